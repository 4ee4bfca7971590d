"""What `03_rethinking` trains: every experiment of the notebook as a list of runs, in four sizes.

Sources: Liu et al. 2019, arXiv:1810.05270, and the authors' code; its CIFAR-10 protocol, shortened as profiles say.
"""

from collections.abc import Iterable
from functools import partial

from prunelab.recipes.plans import chosen_seeds, distinct
from prunelab.runs import Option, Run, make_run

NOTEBOOK = "03_rethinking"

Network = dict[str, Option]  # options that name a network, and how it is trained where that is its own

OPTIONS: dict[str, Option] = {
    "training": "dense",  # a key of TRAININGS
    "pruning": None,  # a key of rethinking_build.PRUNINGS: how the structure of the network is found, or prepared for
    "target": None,  # a key of channels.filters.TARGETS: the predefined structure, where it is one of the paper's
    "density": 1.0,  # else the share of channels, or of single weights, that stays
    "penalty": 0.0,  # of slimming's gammas and of selection's factors, while the large network is trained
    "start": "reinitialised",  # values of a scratch training; or ticket, those that the large network started from
    "model": "vgg16",
    "width": 1.0,
    "dataset": "cifar10",
    "image_size": None,
    "n_train": None,
    "in_colour": False,
    "n_epochs": 160,  # of the large network, and of scratch_e
    "fine_tune_epochs": 40,
    "fine_tune_rate": 1e-3,
    "max_epochs": None,  # of scratch_b; the paper has 180 on ImageNet, none on CIFAR
    "batch_size": 64,
    "optimizer": "plain_sgd",
    "learning_rate": 0.1,
    "schedule": "halves",
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "augment": True,
    "eval_every": 1,
}

# How the network of a run is trained: the large one; the pruned one from what it inherits; or from scratch, for as many
# epochs as the large one, or for as many MACs.
TRAININGS = ("dense", "fine_tune", "scratch_e", "scratch_b")
SCRATCH = TRAININGS[2:]
STARTS = ("reinitialised", "ticket")

# What all runs of a profile share. Training is shorter than the paper's, by one factor in all of its ways.
_BASE: dict[str, dict[str, Option]] = {
    "smoke": {"dataset": "digits", "n_epochs": 4, "fine_tune_epochs": 1},
    "small": {
        "image_size": 16,
        "n_train": 3_200,
        "n_epochs": 12,
        "fine_tune_epochs": 3,
        "max_epochs": 60,
        "eval_every": 12,
    },
    "full": {"n_epochs": 20, "fine_tune_epochs": 5, "max_epochs": 100},
    "paper": {
        "dataset": "imagenet",
        "n_epochs": 90,
        "fine_tune_epochs": 20,
        "max_epochs": 180,
        "batch_size": 256,
        "schedule": "thirds",
    },
}

# Families of networks, each with its predefined targets, and by which methods filters are chosen for them.
_CHOICES = ("l1", "thinet", "regression", "random")
_PREDEFINED: dict[str, dict[str, tuple[Network, list[dict[str, Option]], tuple[str, ...]]]] = {
    "smoke": {
        "vgg": ({"model": "vgg11", "width": 0.125}, [{"target": "vgg16_a"}, {"density": 0.5}], _CHOICES),
        "resnet": ({"model": "resnet8", "width": 0.5}, [{"density": 0.5}], ("l1",)),
    },
    "small": {
        "vgg": ({"model": "vgg11", "width": 0.25}, [{"target": "vgg16_a"}, {"density": 0.5}], _CHOICES),
        "resnet": ({"model": "resnet20", "width": 0.5}, [{"target": "resnet56_b"}, {"density": 0.5}], _CHOICES),
    },
    "full": {
        "vgg": ({"model": "vgg16"}, [{"target": "vgg16_a"}, {"density": 0.5}], _CHOICES),
        "resnet": ({"model": "resnet56"}, [{"target": "resnet56_b"}, {"density": 0.5}], _CHOICES),
        "resnet110": ({"model": "resnet110"}, [{"target": "resnet110_a"}, {"target": "resnet110_b"}], ("l1",)),
    },
    "paper": {
        "resnet": ({"model": "resnet34"}, [{"target": "resnet34_a"}, {"target": "resnet34_b"}], ("l1",)),
        "vgg": (
            {"model": "vgg16_bn", "learning_rate": 0.01},
            [{"target": "vgg16_thinet"}],
            ("thinet", "regression"),
        ),
        "resnet50": (
            {"model": "resnet50"},
            [{"density": 0.3}, {"density": 0.5}, {"density": 0.7}],
            ("thinet", "regression"),
        ),
    },
}
# Networks that are slimmed, and the shares of their channels that stay. The penalty grows as training gets shorter: its
# sum over all steps, each times its learning rate, is what pulls a gamma from where it starts towards zero.
_SLIMMED: dict[str, dict[str, tuple[Network, tuple[float, ...]]]] = {
    "smoke": {"vgg": ({"model": "vgg11", "width": 0.125, "penalty": 0.015}, (0.5,))},
    "small": {
        "vgg": ({"model": "vgg11", "width": 0.25, "penalty": 0.002}, (0.7, 0.5, 0.3)),
        "preresnet": ({"model": "preresnet20", "width": 0.25, "penalty": 0.002}, (0.6, 0.4)),
        "densenet": ({"model": "densenet22", "width": 0.34, "penalty": 0.002}, (0.6, 0.4)),
    },
    "full": {
        "vgg": ({"model": "vgg19", "penalty": 8e-5}, (0.7, 0.5, 0.3)),
        "preresnet": ({"model": "preresnet164", "penalty": 8e-5}, (0.6, 0.4)),
        "densenet": ({"model": "densenet40", "penalty": 8e-5}, (0.6, 0.4)),
    },
    "paper": {"vgg": ({"model": "vgg11_bn", "penalty": 1e-5, "fine_tune_epochs": 5, "max_epochs": None}, (0.5,))},
}
# Networks whose blocks, groups or channels are selected by factors under a penalty.
_SELECTED: dict[str, dict[str, Network]] = {
    "smoke": {"vgg": {"model": "vgg11", "width": 0.125, "penalty": 0.03}},
    "small": {
        "vgg": {"model": "vgg11", "width": 0.25, "penalty": 0.005},
        "preresnet": {"model": "preresnet20", "width": 0.25, "penalty": 0.015},
    },
    "full": {
        "vgg": {"model": "vgg16", "penalty": 2e-4},
        "preresnet": {"model": "preresnet164", "penalty": 6e-4},
        "resnext": {"model": "resnext20", "penalty": 2e-4},
    },
    "paper": {"resnet50": {"model": "resnet50", "n_epochs": 100, "penalty": 1e-3, "max_epochs": None}},
}
# Networks whose single weights are pruned, and the shares of their convolutions' weights that stay.
_UNSTRUCTURED: dict[str, dict[str, tuple[Network, tuple[float, ...]]]] = {
    "smoke": {"vgg": ({"model": "vgg11", "width": 0.125}, (0.2,))},
    "small": {
        "vgg": ({"model": "vgg11", "width": 0.25}, (0.7, 0.2, 0.05)),
        "preresnet": ({"model": "preresnet20", "width": 0.25}, (0.2, 0.05)),
        "densenet": ({"model": "densenet22", "width": 0.34}, (0.2,)),
    },
    "full": {
        "vgg": ({"model": "vgg19"}, (0.7, 0.2, 0.05)),
        "preresnet": ({"model": "preresnet110"}, (0.7, 0.2, 0.05)),
        "densenet": ({"model": "densenet100_bc"}, (0.7, 0.2, 0.05)),
    },
    "paper": {
        "vgg": ({"model": "vgg16_bn", "fine_tune_epochs": 10, "max_epochs": None}, (0.7, 0.4)),
        "resnet50": ({"model": "resnet50", "fine_tune_epochs": 10, "max_epochs": None}, (0.7, 0.4)),
    },
}
# What changes where a VGG's design is carried over: the network, or the images. The paper's experiments on designs and
# on tickets are on CIFAR, and belong to `full`.
_GUIDED: dict[str, dict[str, Network]] = {
    "smoke": {"network": {"model": "vgg16"}, "images": {"dataset": "glyphs", "image_size": 8}},
    "small": {"network": {"model": "vgg16"}, "images": {"dataset": "tiny-imagenet-200-32px", "n_train": 6_000}},
    "full": {"network": {"model": "vgg16"}, "images": {"dataset": "tiny-imagenet-200-32px"}},
    "paper": {},
}
_GUIDED_CHANNELS, _GUIDED_WEIGHTS = 0.4, 0.2  # shares that stay
_TICKETS: dict[str, list[Network]] = {
    "smoke": [{"model": "vgg11", "width": 0.125}],
    "small": [{"model": "vgg11", "width": 0.25}],
    "full": [{"model": "vgg16"}],
    "paper": [],
}
_RATES = (0.1, 0.01)
_TICKET_DENSITIES = (0.2, 0.05)
_ROUND_DENSITIES = (0.5, 0.25, 0.125)

SEEDS = {"smoke": (0,), "small": (0, 1, 2), "full": (0, 1, 2), "paper": (0, 1, 2)}


def experiments(profile: str, *, seeds: Iterable[int] | None = None) -> dict[str, list[Run]]:
    """The runs of each experiment, by its name; some runs belong to several.

    Most experiments have the name of a family of networks behind theirs: `predefined_vgg`.

    Args:
        profile: One of `plans.PROFILES`.
        seeds: Instead of those in `SEEDS`.
    Raises:
        ValueError: Unknown profile, no seed, or a seed twice.
    """
    found: dict[str, list[Run]] = {}
    for seed in chosen_seeds(profile, seeds, of_profile=SEEDS):
        run = partial(_run, profile, seed)
        for build in (_predefined, _controls, _discovered, _unstructured, _efficiency, _guided, _lottery):
            for name, runs in build(profile, run).items():
                found.setdefault(name, []).extend(runs)
    return found


def plan(profile: str, *, seeds: Iterable[int] | None = None) -> list[Run]:
    """The runs behind the notebook's figures, each once; arguments and errors as for `experiments`."""
    return distinct(experiments(profile, seeds=seeds))


def _run(profile: str, seed: int, network: Network, *parents: Run, **options: Option) -> Run:
    return make_run("rethinking", OPTIONS, seed=seed, parents=parents, **_BASE[profile] | network | options)


def _predefined(profile: str, run: partial) -> dict[str, list[Run]]:
    """A structure given beforehand: what several methods keep, fine-tuned, and the same structure from scratch."""
    return {
        f"predefined_{family}": [
            run(network),
            *(
                run(network, run(network), training="fine_tune", pruning=choice, **target)
                for target in targets
                for choice in choices
            ),
            *(
                run(network, training=training, pruning="predefined", **target)
                for target in targets
                for training in SCRATCH
            ),
        ]
        for family, (network, targets, choices) in _PREDEFINED[profile].items()
    }


def _controls(profile: str, run: partial) -> dict[str, list[Run]]:
    """Fine-tuning as long as training, at a larger rate; and after soft filter pruning, which prunes all along.

    The paper's soft networks are not fine-tuned. Removing their filters takes away what normalisation makes of zeros,
    though, so that here they are, like all others.
    """
    found = {}
    for family, (network, targets, choices) in _PREDEFINED[profile].items():
        if "l1" in choices:
            soft = run(network, pruning="soft", **targets[-1])
            fine_tuned = partial(run, network, run(network), training="fine_tune", pruning="l1", **targets[-1])
            found[f"controls_{family}"] = [
                soft,
                fine_tuned(),
                fine_tuned(fine_tune_epochs=run(network).options["n_epochs"], fine_tune_rate=0.01),
                run(network, soft, training="fine_tune", pruning="soft", **targets[-1]),
                *(run(network, training=training, pruning="predefined", **targets[-1]) for training in SCRATCH),
            ]
    return found


def _discovered(profile: str, run: partial) -> dict[str, list[Run]]:
    """A structure that training finds: slimming's channels; selection's blocks, groups or channels."""
    slimmed = {
        f"slimmed_{family}": _pruned(run, network, run(network, pruning="slimming"), "slimming", densities)
        for family, (network, densities) in _SLIMMED[profile].items()
    }
    selected = {
        f"selected_{family}": _pruned(run, network, run(network, pruning="selection"), "selection", (1.0,))
        for family, network in _SELECTED[profile].items()
    }
    return slimmed | selected


def _unstructured(profile: str, run: partial) -> dict[str, list[Run]]:
    """Single weights, by magnitude over all convolutions at once; and layer by layer, fine-tuned."""
    return {
        f"unstructured_{family}": [
            *_pruned(run, network, run(network), "magnitude", densities),
            *(
                run(network, run(network), training="fine_tune", pruning="magnitude_layerwise", density=density)
                for density in densities
            ),
        ]
        for family, (network, densities) in _UNSTRUCTURED[profile].items()
    }


def _pruned(run: partial, network: Network, large: Run, pruning: str, densities: Iterable[float]) -> list[Run]:
    """A large network, and what pruning leaves of it, trained in all three ways."""
    return [
        large,
        *(
            run(network, large, training=training, pruning=pruning, density=density)
            for density in densities
            for training in TRAININGS[1:]
        ),
    ]


def _efficiency(profile: str, run: partial) -> dict[str, list[Run]]:
    """Structures that pruning found beside uniform ones with as many weights, all from scratch."""
    if profile == "paper":
        return {}
    channels = {
        f"channels_{family}": _designs(run, network, "slimming", ("slimming", "uniform"), densities)
        for family, (network, densities) in _SLIMMED[profile].items()
    }
    weights = {
        f"weights_{family}": _designs(run, network, None, ("magnitude", "uniform_weights"), densities)
        for family, (network, densities) in _UNSTRUCTURED[profile].items()
    }
    return channels | weights


def _guided(profile: str, run: partial) -> dict[str, list[Run]]:
    """A VGG's design carried to another network or to other images, beside the one found there and a uniform one."""
    found = {}
    for name, change in _GUIDED[profile].items():
        slimmed, plain = _SLIMMED[profile]["vgg"][0], _UNSTRUCTURED[profile]["vgg"][0]
        found[f"guided_{name}"] = [
            run(slimmed | change, pruning="slimming"),
            run(plain | change),
            *_designs(run, slimmed | change, "slimming", ("slimming", "uniform"), (_GUIDED_CHANNELS,)),
            *_designs(
                run,
                slimmed | change,
                "slimming",
                ("guided",),
                (_GUIDED_CHANNELS,),
                source=run(slimmed, pruning="slimming"),
            ),
            *_designs(run, plain | change, None, ("magnitude", "uniform_weights"), (_GUIDED_WEIGHTS,)),
            *_designs(run, plain | change, None, ("guided_weights",), (_GUIDED_WEIGHTS,), source=run(plain)),
        ]
    return found


def _designs(
    run: partial,
    network: Network,
    preparation: str | None,
    prunings: Iterable[str],
    densities: Iterable[float],
    *,
    source: Run | None = None,
) -> list[Run]:
    """Structures, each trained from scratch; all of a density are as large as what pruning this network leaves."""
    parents = [run(network, pruning=preparation), *([source] if source else [])]
    return [
        run(network, *parents, training="scratch_e", pruning=pruning, density=density)
        for density in densities
        for pruning in prunings
    ]


def _lottery(profile: str, run: partial) -> dict[str, list[Run]]:
    """What is kept, from its values before training and from new ones, at a large and at a small learning rate.

    Weights are pruned in one shot, or in rounds, each of which prunes what the one before has trained; filters in one.
    """
    found: dict[str, list[Run]] = {}
    for network in _TICKETS[profile]:
        for rate in _RATES:
            slow = network | {"learning_rate": rate}
            large = run(slow)
            scratch = partial(run, slow, training="scratch_e", pruning="magnitude")
            found.setdefault("tickets", []).append(large)
            for density in _TICKET_DENSITIES:
                found["tickets"] += [scratch(large, density=density, start=start) for start in STARTS]
            filters = partial(run, slow, large, training="scratch_e", pruning="l1", density=0.5)
            found.setdefault("filter_tickets", []).extend(filters(start=start) for start in STARTS)
            rounds = [large]
            for density in _ROUND_DENSITIES:
                rounds.append(scratch(rounds[-1], density=density, start="ticket"))
            control = scratch(rounds[-2], density=_ROUND_DENSITIES[-1])
            found.setdefault("rounds", []).extend([*rounds[1:], control])
    return found
