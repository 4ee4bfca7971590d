"""What `03_rethinking` trains: every experiment of the notebook as a list of runs, in four sizes.

Sources: Liu et al. 2019, arXiv:1810.05270, and the authors' code; its CIFAR-10 protocol, shortened as profiles say.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType, SimpleNamespace
from typing import NamedTuple

from prunelab.recipes.recipe import PruningOptions
from prunelab.runs import Option, Run, make_run, option

Some = dict[str, Option]  # options that name a network or a target, and how it is trained where that is its own

# How the network of a run is trained: the large one; the pruned one from what it inherits; or from scratch, for as many
# epochs as the large one, or for as many MACs.
TRAININGS = ("dense", "fine_tune", "scratch_e", "scratch_b")
SCRATCH = TRAININGS[2:]
STARTS = ("reinitialised", "ticket")


@dataclass(frozen=True, kw_only=True)
class RethinkingOptions(PruningOptions):
    """Options of the runs of `03_rethinking`; the defaults are the paper's on CIFAR-10."""

    training: str = option("dense, fine_tune, scratch_e or scratch_b", "dense")
    model: str = "vgg16"
    n_epochs: int = 160  # of the large network, and of scratch_e
    fine_tune_epochs: int = option("passes over the training images of fine-tuning", 40)
    fine_tune_rate: float = option("constant learning rate of fine-tuning", 1e-3)
    max_epochs: int | None = option("bound on scratch_b's; the paper has 180 on ImageNet, none on CIFAR", None)
    batch_size: int = 64
    optimizer: str = "plain_sgd"
    schedule: str = "halves"
    weight_decay: float = 1e-4


class Main(NamedTuple):
    """How the judged comparisons are trained, where that is not as the others are.

    Attributes:
        training: What changes for all of their runs; the penalty of slimming, so that its sum over all steps stays.
        predefined: The families whose predefined targets are compared.
        channels: Of each family that is slimmed, the share of channels that stays.
        weights: Of each family whose single weights are pruned, the share that stays.
        rates: Of fine-tuning, of which one is chosen on held-out training images, `n_validation` of them.
        rate: The chosen one; a test holds it to the records.
        of: What changes besides for the runs of one comparison, by its name, such as "slimmed_vgg".
    """

    training: Some
    predefined: tuple[str, ...]
    channels: dict[str, float]
    weights: dict[str, float]
    rates: tuple[float, ...] = ()
    rate: float = 0.01
    n_validation: int = 5_000
    of: Mapping[str, Some] = MappingProxyType({})


class Predefined(NamedTuple):
    """A family of networks with given targets, and by which methods filters are chosen for them."""

    network: Some
    targets: tuple[Some, ...]
    choices: tuple[str, ...]


# What a profile decides; families are networks by name, shares are those of channels or weights that stay:
#   seeds: Of all experiments.
#   base: What all runs share. Training is shorter than the paper's, by one factor in all of its ways.
#   predefined: Families with predefined targets.
#   slimmed: Families that are slimmed, and the shares. The penalty grows as training gets shorter: its sum over all
#     steps, each times its learning rate, is what pulls a gamma from where it starts towards zero.
#   selected: Families whose blocks, groups or channels are selected by factors under a penalty.
#   unstructured: Families whose single weights are pruned, and the shares.
#   main: The judged comparisons, of one target each.
#   stand_in: The network and images that stand in for ImageNet, and by name of its length what training takes.
#   guided: What changes where a VGG's design is carried over: the network, or the images.
#   tickets: Networks in which tickets are looked for.
#   compares_designs: Whether structures that pruning found are compared with uniform ones.
_JUDGED = ("l1", "thinet", "regression")
_STAND_IN_DENSITY = 0.2
_CHOICES = ("l1", "thinet", "regression", "random")
_GUIDED_CHANNELS, _GUIDED_WEIGHTS = 0.4, 0.2  # shares that stay
_RATES = (0.1, 0.01)
_TICKET_DENSITIES = (0.2, 0.05)
_ROUND_DENSITIES = (0.5, 0.25, 0.125)

_VGG: Some = {"model": "vgg11", "width": 0.125}
SMOKE = SimpleNamespace(
    seeds=(0,),
    base={"dataset": "digits", "n_epochs": 4, "fine_tune_epochs": 1},
    predefined={
        "vgg": Predefined(_VGG, ({"target": "vgg16_a"}, {"density": 0.5}), _CHOICES),
        "resnet": Predefined({"model": "resnet8", "width": 0.5}, ({"density": 0.5},), ("l1",)),
    },
    slimmed={"vgg": (_VGG | {"penalty": 0.015}, (0.5,))},
    selected={"vgg": _VGG | {"penalty": 0.03}},
    unstructured={"vgg": (_VGG, (0.2,))},
    main=Main({}, ("vgg", "resnet"), channels={"vgg": 0.5}, weights={"vgg": 0.2}),
    stand_in=(_VGG, {}),
    guided={"network": {"model": "vgg16"}, "images": {"dataset": "glyphs", "image_size": 8}},
    tickets=(_VGG,),
    compares_designs=True,
)

_THIN_VGG: Some = {"model": "vgg11", "width": 0.25}
_THIN_PRERESNET: Some = {"model": "preresnet20", "width": 0.25}
_THIN_DENSENET: Some = {"model": "densenet22", "width": 0.34}
SMALL = SimpleNamespace(
    seeds=(0, 1, 2),
    base={
        "image_size": 16,
        "n_train": 3_200,
        "n_epochs": 12,
        "fine_tune_epochs": 3,
        "max_epochs": 60,
        "eval_every": 12,
    },
    predefined={
        "vgg": Predefined(_THIN_VGG, ({"target": "vgg16_a"}, {"density": 0.5}), _CHOICES),
        "resnet": Predefined(
            {"model": "resnet20", "width": 0.5}, ({"target": "resnet56_b"}, {"density": 0.5}), _CHOICES
        ),
    },
    slimmed={
        "vgg": (_THIN_VGG | {"penalty": 0.002}, (0.7, 0.5, 0.3)),
        "preresnet": (_THIN_PRERESNET | {"penalty": 0.002}, (0.6, 0.4)),
        "densenet": (_THIN_DENSENET | {"penalty": 0.002}, (0.6, 0.4)),
    },
    selected={"vgg": _THIN_VGG | {"penalty": 0.005}, "preresnet": _THIN_PRERESNET | {"penalty": 0.015}},
    unstructured={
        "vgg": (_THIN_VGG, (0.7, 0.2, 0.05)),
        "preresnet": (_THIN_PRERESNET, (0.2, 0.05)),
        "densenet": (_THIN_DENSENET, (0.2,)),
    },
    main=Main(
        {"n_epochs": 100, "fine_tune_epochs": 25, "max_epochs": 200, "eval_every": 25},
        predefined=("vgg", "resnet"),
        channels={"vgg": 0.5, "preresnet": 0.4, "densenet": 0.4},
        weights={"vgg": 0.2, "preresnet": 0.2, "densenet": 0.2},
        rates=(0.001, 0.003, 0.01, 0.03),
        of={"unstructured_densenet": {"n_epochs": 50, "fine_tune_epochs": 12, "max_epochs": 100}},  # the costliest
    ),
    stand_in=(
        _THIN_VGG | {"dataset": "tiny-imagenet-200-32px", "n_train": 32_000},
        {
            "short": {"n_epochs": 4, "fine_tune_epochs": 1, "max_epochs": 8},
            "long": {"n_epochs": 16, "fine_tune_epochs": 4, "max_epochs": 32},
            "repeated": {"n_train": 8_000, "n_epochs": 64, "fine_tune_epochs": 16, "max_epochs": 128},  # as many steps
        },
    ),
    guided={"network": {"model": "vgg16"}, "images": {"dataset": "tiny-imagenet-200-32px", "n_train": 6_000}},
    tickets=(_THIN_VGG,),
    compares_designs=True,
)

# At most 25 minutes at 100,000 images of ResNet-20 a second, or as many MACs: networks are smaller than the paper's.
_VGG_11: Some = {"model": "vgg11", "width": 0.5}
_PRERESNET: Some = {"model": "preresnet20", "width": 0.5}
_DENSENET: Some = {"model": "densenet22", "width": 0.5}
FULL = SimpleNamespace(
    seeds=(0, 1, 2),
    base={"n_train": 45_000, "n_epochs": 16, "fine_tune_epochs": 4, "max_epochs": 32, "eval_every": 4},
    predefined={
        "vgg": Predefined(_VGG_11, ({"target": "vgg16_a"}, {"density": 0.5}), _CHOICES),
        "resnet": Predefined(
            {"model": "resnet56", "width": 0.5}, ({"target": "resnet56_b"}, {"density": 0.5}), _CHOICES
        ),
    },
    slimmed={
        "vgg": (_VGG_11 | {"penalty": 1e-4}, (0.5, 0.3)),
        "preresnet": (_PRERESNET | {"penalty": 1e-4}, (0.6, 0.4)),
        "densenet": (_DENSENET | {"penalty": 1e-4}, (0.6, 0.4)),
    },
    selected={
        "vgg": _VGG_11 | {"penalty": 2.5e-4},
        "preresnet": _PRERESNET | {"penalty": 7.5e-4},
        "resnext": {"model": "resnext20", "penalty": 2.5e-4},
    },
    unstructured={
        "vgg": (_VGG_11, (0.2, 0.05)),
        "preresnet": (_PRERESNET, (0.2, 0.05)),
        "densenet": (_DENSENET, (0.2,)),
    },
    main=Main(
        {},
        predefined=("vgg", "resnet"),
        channels={"vgg": 0.5, "preresnet": 0.4, "densenet": 0.4},
        weights={"vgg": 0.2, "preresnet": 0.2, "densenet": 0.2},
        rates=(0.001, 0.003, 0.01, 0.03),
    ),
    stand_in=(_VGG_11, {}),
    guided={"network": {"model": "vgg16"}, "images": {"dataset": "tiny-imagenet-200-32px", "n_train": 20_000}},
    tickets=(_VGG_11,),
    compares_designs=True,
)

# The paper's experiments on designs and on tickets are on CIFAR, and belong to `full`.
PAPER = SimpleNamespace(
    seeds=(0, 1, 2),
    base={
        "dataset": "imagenet",
        "n_epochs": 90,
        "fine_tune_epochs": 20,
        "max_epochs": 180,
        "batch_size": 256,
        "schedule": "thirds",
        "n_gpus": 8,
    },
    predefined={
        "resnet": Predefined({"model": "resnet34"}, ({"target": "resnet34_a"}, {"target": "resnet34_b"}), ("l1",)),
        "vgg": Predefined(
            {"model": "vgg16_bn", "learning_rate": 0.01}, ({"target": "vgg16_thinet"},), ("thinet", "regression")
        ),
        "resnet50": Predefined(
            {"model": "resnet50"},
            tuple({"target": f"resnet50_thinet{percent}"} for percent in (30, 50, 70)),
            ("thinet", "regression"),
        ),
    },
    slimmed={"vgg": ({"model": "vgg11_bn", "penalty": 1e-5, "fine_tune_epochs": 5, "max_epochs": None}, (0.5,))},
    selected={"resnet50": {"model": "resnet50", "n_epochs": 100, "penalty": 1e-3, "max_epochs": None}},
    unstructured={
        "vgg": ({"model": "vgg16_bn", "fine_tune_epochs": 10, "max_epochs": None}, (0.7, 0.4)),
        "resnet50": ({"model": "resnet50", "fine_tune_epochs": 10, "max_epochs": None}, (0.7, 0.4)),
    },
    main=Main(
        {},
        ("resnet", "vgg", "resnet50"),
        channels={"vgg": 0.5},
        weights={"vgg": 0.4, "resnet50": 0.4},
        rate=0.001,
    ),
    stand_in=({}, {}),
    guided={},
    tickets=(),
    compares_designs=False,
)

PROFILES = {"smoke": SMOKE, "small": SMALL, "full": FULL, "paper": PAPER}


def experiments(profile: str, seeds: tuple[int, ...]) -> dict[str, list[Run]]:
    """Lists the runs of each experiment; most have the name of a family of networks behind theirs, `predefined_vgg`."""
    size = PROFILES[profile]
    found: dict[str, list[Run]] = {}
    for seed in seeds:
        run = partial(_run, size, seed)
        for build in _EXPERIMENTS:
            for name, runs in build(size, run).items():
                found.setdefault(name, []).extend(runs)
    return found | _rates(size, partial(_run, size, seeds[0]))


def _run(size: SimpleNamespace, seed: int, network: Some, *parents: Run, **options: Option) -> Run:
    return make_run("rethinking", RethinkingOptions, seed=seed, parents=parents, **size.base | network | options)


def _main(size: SimpleNamespace, run: partial) -> dict[str, list[Run]]:
    """The judged comparisons, one target each: fine-tuned at the chosen rate, and at the paper's, beside scratch."""
    found = {}
    for name, (large, fine_tuned, scratch) in _judged(size, run).items():
        found[f"main_{name}"] = [large, *(each(fine_tune_rate=size.main.rate) for each in fine_tuned), *scratch]
        found[f"paper_rate_{name}"] = [large, *(each() for each in fine_tuned), *scratch]
    return found


def _rates(size: SimpleNamespace, run: partial) -> dict[str, list[Run]]:
    """What the rate of fine-tuning is chosen by: accuracy on held-out training images, of one seed."""
    held_out = {"n_validation": size.main.n_validation}
    rates = {
        f"rates_{name}": [each(fine_tune_rate=rate, **held_out) for each in fine_tuned for rate in size.main.rates]
        for name, (_, fine_tuned, _) in _judged(size, run).items()
    }
    return {name: runs for name, runs in rates.items() if runs}


def _judged(size: SimpleNamespace, run: partial) -> dict[str, tuple[Run, list[partial], list[Run]]]:
    """Lists by family the large network, what fine-tunes it after each pruning, and what is trained from scratch.

    Filters that the paper's targets name are pruned by L1 norm, half of all by the other methods; channels by slimming,
    single weights by magnitude.
    """
    found = {}
    for family in size.main.predefined:
        network, targets, choices = size.predefined[family]
        network = _longer(size, f"predefined_{family}", network)
        target_of = {choice: targets[0 if choice == "l1" else -1] for choice in _JUDGED if choice in choices}
        found[f"predefined_{family}"] = (
            run(network),
            [
                partial(run, network, run(network), training="fine_tune", pruning=choice, **target)
                for choice, target in target_of.items()
            ],
            [
                run(network, training="scratch_b", pruning="predefined", **target)
                for target in targets
                if target in target_of.values()
            ],
        )
    for family, density in size.main.channels.items():
        network = _longer(size, f"slimmed_{family}", size.slimmed[family][0])
        found[f"slimmed_{family}"] = _fine_tuned_or_scratch(
            run, network, run(network, pruning="slimming"), "scratch_b", pruning="slimming", density=density
        )
    for family, density in size.main.weights.items():
        network = _longer(size, f"unstructured_{family}", size.unstructured[family][0])
        found[f"unstructured_{family}"] = _fine_tuned_or_scratch(
            run, network, run(network), "scratch_e", pruning="magnitude", density=density
        )
    return found


def _longer(size: SimpleNamespace, name: str, network: Some) -> Some:
    """Returns a network with the training of the judged comparisons; a penalty shrinks as the epochs grow."""
    longer = network | size.main.training | size.main.of.get(name, {})
    if "penalty" in network:
        longer["penalty"] = network["penalty"] * size.base["n_epochs"] / (size.base | longer)["n_epochs"]
    return longer


def _fine_tuned_or_scratch(
    run: partial, network: Some, large: Run, scratch: str, **pruned: Option
) -> tuple[Run, list[partial], list[Run]]:
    pruned_run = partial(run, network, large, **pruned)
    return large, [partial(pruned_run, training="fine_tune")], [pruned_run(training=scratch)]


def _stand_in(size: SimpleNamespace, run: partial) -> dict[str, list[Run]]:
    """Single weights pruned on images of many classes, as the paper does on ImageNet; trained for several lengths."""
    network, lengths = size.stand_in
    found = {}
    for name, length in lengths.items():
        large = run(network | length)
        pruned = partial(run, network | length, large, pruning="magnitude", density=_STAND_IN_DENSITY)
        fine_tuned = partial(pruned, training="fine_tune")
        scratch = [pruned(training=training) for training in SCRATCH]
        found[f"tiny_{name}"] = [large, fine_tuned(fine_tune_rate=size.main.rate), *scratch]
        found[f"tiny_{name}_paper_rate"] = [large, fine_tuned(), *scratch]
    return found


def _predefined(size: SimpleNamespace, run: partial) -> dict[str, list[Run]]:
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
        for family, (network, targets, choices) in size.predefined.items()
    }


def _controls(size: SimpleNamespace, run: partial) -> dict[str, list[Run]]:
    """Fine-tuning as long as training, at a larger rate; and after soft filter pruning, which prunes all along.

    The paper's soft networks are not fine-tuned. Removing their filters takes away what normalisation makes of zeros,
    though, so that here they are, like all others.
    """
    found = {}
    for family, (network, targets, choices) in size.predefined.items():
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


def _discovered(size: SimpleNamespace, run: partial) -> dict[str, list[Run]]:
    """A structure that training finds: slimming's channels; selection's blocks, groups or channels."""
    slimmed = {
        f"slimmed_{family}": _pruned(run, network, run(network, pruning="slimming"), "slimming", densities)
        for family, (network, densities) in size.slimmed.items()
    }
    selected = {
        f"selected_{family}": _pruned(run, network, run(network, pruning="selection"), "selection", (1.0,))
        for family, network in size.selected.items()
    }
    return slimmed | selected


def _unstructured(size: SimpleNamespace, run: partial) -> dict[str, list[Run]]:
    """Single weights, by magnitude over all convolutions at once; and layer by layer, fine-tuned."""
    return {
        f"unstructured_{family}": [
            *_pruned(run, network, run(network), "magnitude", densities),
            *(
                run(network, run(network), training="fine_tune", pruning="magnitude_layerwise", density=density)
                for density in densities
            ),
        ]
        for family, (network, densities) in size.unstructured.items()
    }


def _pruned(run: partial, network: Some, large: Run, pruning: str, densities: Iterable[float]) -> list[Run]:
    """A large network, and what pruning leaves of it, trained in all three ways."""
    return [
        large,
        *(
            run(network, large, training=training, pruning=pruning, density=density)
            for density in densities
            for training in TRAININGS[1:]
        ),
    ]


def _efficiency(size: SimpleNamespace, run: partial) -> dict[str, list[Run]]:
    """Structures that pruning found beside uniform ones with as many weights, all from scratch."""
    if not size.compares_designs:
        return {}
    channels = {
        f"channels_{family}": _designs(run, network, "slimming", ("slimming", "uniform"), densities)
        for family, (network, densities) in size.slimmed.items()
    }
    weights = {
        f"weights_{family}": _designs(run, network, None, ("magnitude", "uniform_weights"), densities)
        for family, (network, densities) in size.unstructured.items()
    }
    return channels | weights


def _guided(size: SimpleNamespace, run: partial) -> dict[str, list[Run]]:
    """A VGG's design carried to another network or to other images, beside the one found there and a uniform one."""
    found = {}
    for name, change in size.guided.items():
        slimmed, plain = size.slimmed["vgg"][0], size.unstructured["vgg"][0]
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
    network: Some,
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


def _lottery(size: SimpleNamespace, run: partial) -> dict[str, list[Run]]:
    """What is kept, from its values before training and from new ones, at a large and at a small learning rate.

    Weights are pruned in one shot, or in rounds, each of which prunes what the one before has trained; filters in one.
    """
    found: dict[str, list[Run]] = {}
    for network in size.tickets:
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


_EXPERIMENTS = (
    *(_main, _stand_in, _predefined, _controls, _discovered, _unstructured, _efficiency, _guided),
    _lottery,
)
