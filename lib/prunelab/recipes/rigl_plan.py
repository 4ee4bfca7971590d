"""What `01_rigl` trains: every experiment of the notebook as a list of runs, in four sizes.

Sources: Evci et al. 2020, arXiv:1911.11134; Frankle & Carbin 2019, arXiv:1803.03635; Morcos et al. 2019,
arXiv:1906.02773; the CIFAR-10 protocol of google-research/rigl, shortened as profiles say.
"""

from collections.abc import Iterable
from functools import partial

from prunelab.methods.static import FIRST_LAYERS
from prunelab.recipes.plans import chosen_seeds, distinct
from prunelab.runs import Option, Run, make_run
from prunelab.schedules import DECAYS

NOTEBOOK = "01_rigl"

OPTIONS: dict[str, Option] = {
    "method": "rigl",
    "density": 0.1,
    "distribution": "erk",
    "first_layer": "by_distribution",
    "equal": "weights",  # what a network has as many of as an ERK one of its density: weights or macs
    "model": "resnet20",
    "width": 1.0,
    "dataset": "cifar10",
    "image_size": None,
    "n_train": None,
    "in_colour": False,
    "n_epochs": 100,
    "train_multiplier": 1.0,  # of n_epochs and all that is scheduled by it
    "batch_size": 128,
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "schedule": "cosine",
    "warmup_epochs": 0,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "label_smoothing": 0.0,
    "augment": True,
    "eval_every": 1,
    "drop_fraction": 0.3,
    "update_every": 100,
    "stop_update": 0.75,
    "decay": "cosine",
    "gradient_momentum": 0.9,  # of SNFS
    "begin_pruning": 0.2,  # of GMP, as a share of training; it ends at stop_update
    "start": "fresh",  # a key of rigl_build.STARTS: what a run takes from its parent
    "rewind_epochs": 0.0,  # of a lottery; 0 rewinds to initialisation
    "path": None,  # a key of PATHS, between the solutions of two parents; then no network is trained
}

# The main comparison of each profile, as it departs from the defaults. `paper` is the paper's own CIFAR-10 protocol
# (Sec. 4.3); its ImageNet experiments do not fit a data set that lives on the device, and are not planned here.
_MAIN: dict[str, dict[str, Option]] = {
    "smoke": {
        "model": "resnet8",
        "width": 0.5,
        "dataset": "digits",
        "n_epochs": 6,
        "batch_size": 64,
        "update_every": 10,
    },
    "small": {
        "model": "resnet8",
        "image_size": 16,
        "n_train": 10_000,
        "n_epochs": 20,
        "eval_every": 5,
    },
    "full": {"n_epochs": 40},
    "paper": {
        "model": "wrn22_2",
        "n_epochs": 250,
        "schedule": "step",
    },
}
# Studies of one setting at a time use a lighter network and fewer images.
_STUDY: dict[str, dict[str, Option]] = _MAIN | {
    "small": {
        "model": "resnet8",
        "width": 0.5,
        "image_size": 16,
        "n_train": 4_000,
        "n_epochs": 20,
        "batch_size": 64,
        "learning_rate": 0.05,
        "eval_every": 10,
    },
    "full": {"n_epochs": 20},
}
_MOBILENET = {
    "smoke": {"model": "mobilenet_v1", "width": 0.125},
    "small": {"model": "mobilenet_v1", "width": 0.125},
    "full": {"model": "mobilenet_v1", "width": 0.5},
    "paper": {"model": "mobilenet_v1", "width": 1.0},
}
_BIG = 1.98  # times the width, at a density of 0.25: about as many weights and MACs as dense (paper, Fig. 3)

# LeNet-300-100 and small ResNets for tickets; the multi-layer perceptron of the paper's Table 2.
_LENET: dict[str, Option] = {"model": "lenet_300_100", "augment": False, "weight_decay": 0.0}
_TICKETS: dict[str, dict[str, Option]] = {
    "smoke": _LENET | {"dataset": "digits", "n_epochs": 8, "batch_size": 64, "momentum": 0.0, "schedule": "constant"},
    "small": _LENET
    | {"dataset": "mnist10k", "n_epochs": 20, "batch_size": 64, "momentum": 0.0, "schedule": "constant"},
    "full": _LENET | {"dataset": "mnist10k", "n_epochs": 40, "batch_size": 64, "momentum": 0.0, "schedule": "constant"},
    "paper": _LENET | {"dataset": "mnist", "n_epochs": 50, "batch_size": 60, "momentum": 0.0, "schedule": "constant"},
}
_TRANSFER: dict[str, dict[str, Option]] = {
    "smoke": {"model": "resnet8", "width": 0.5, "n_epochs": 6, "batch_size": 64, "n_train": 1000, "image_size": 8},
    "small": {
        "model": "resnet8",
        "width": 0.5,
        "image_size": 16,
        "n_train": 3_000,
        "in_colour": True,
        "n_epochs": 15,
        "batch_size": 64,
        "learning_rate": 0.05,
        "eval_every": 5,
    },
    "full": {"in_colour": True, "n_epochs": 12, "image_size": 28},  # as large as the smallest, MNIST
    "paper": {"in_colour": True, "n_epochs": 160, "image_size": 28, "schedule": "step"},
}
_TRANSFER_DATASETS = {
    "smoke": ("digits", "glyphs"),
    "small": ("cifar10", "mnist10k", "omniglot-small"),
    "full": ("cifar10", "mnist10k", "omniglot-small", "tiny-imagenet-200-32px"),
    "paper": ("cifar10", "cifar100", "fashion_mnist", "svhn"),
}
_ADAM: dict[str, Option] = {"optimizer": "adam", "learning_rate": 1e-3}
_MLP: dict[str, dict[str, Option]] = {
    "smoke": _LENET | {"dataset": "digits", "n_epochs": 8, "batch_size": 64, "update_every": 10},
    "small": _LENET | {"dataset": "mnist10k", "n_epochs": 30, "batch_size": 100, "update_every": 50},
    "full": _LENET | {"dataset": "mnist10k", "n_epochs": 100, "batch_size": 100},
    "paper": _LENET | {"dataset": "mnist", "n_epochs": 200, "batch_size": 100, "learning_rate": 0.2},
}

_DENSITIES = {
    "smoke": (0.2, 0.1),
    "small": (0.2, 0.1, 0.05, 0.02),
    "full": (0.5, 0.2, 0.1, 0.05, 0.02),
    "paper": (0.5, 0.2, 0.1, 0.05),
}
# Where the distributions are compared; ERK is there already.
_DISTRIBUTION_DENSITIES = {"smoke": (0.1,), "small": (0.1, 0.05), "full": (0.1, 0.05), "paper": (0.1, 0.05)}
_SNFS_DENSITIES = {"smoke": (0.2,), "small": (0.2, 0.1), "full": (0.2, 0.1), "paper": (0.2, 0.1)}
_GMP_DENSITIES = _DENSITIES | {"small": (0.2, 0.1, 0.05)}
_NETWORKS = {"smoke": (), "small": (), "full": ("resnet32", "wrn22_2"), "paper": ("resnet32",)}
_MULTIPLIERS = {"smoke": (1, 2), "small": (1, 2, 5), "full": (1, 2, 5), "paper": (1, 2)}
_UPDATES_EVERY = {"smoke": (10, 40), "small": (50, 100, 500), "full": (50, 100, 500, 1000), "paper": (50, 100, 500)}
_DROP_FRACTIONS = {"smoke": (0.1, 0.3), "small": (0.1, 0.3, 0.5), "full": (0.1, 0.3, 0.5), "paper": (0.1, 0.3, 0.5)}
_GRADIENT_MOMENTA = {
    "smoke": (0.0, 0.9),
    "small": (0.0, 0.5, 0.9, 0.99),
    "full": (0.0, 0.5, 0.9, 0.99),
    "paper": (0.0, 0.9),
}
# Densities after rounds that prune a fifth of what is left, and those at which a ticket is compared with its controls.
_ROUNDS = {"smoke": 5, "small": 18, "full": 18, "paper": 18}
_COMPARED_ROUNDS = {"smoke": (2, 5), "small": (3, 7, 12, 15, 18), "full": (3, 7, 12, 15, 18), "paper": (3, 7, 12, 15)}
_TRANSFER_DENSITIES = {
    "smoke": (0.5, 0.25),
    "small": (0.5, 0.25, 0.125),
    "full": (0.5, 0.25, 0.125, 0.0625),
    "paper": (0.5, 0.25),
}
# Between two solutions: control points of the curve, and whether they are free to leave the sparse subspace.
PATHS = {
    "line": (0, False),
    "quadratic_sparse": (1, False),
    "cubic_sparse": (2, False),
    "quadratic_dense": (1, True),
}

SEEDS = {"smoke": (0, 1, 2), "small": (0, 1, 2, 3, 4), "full": (0, 1, 2), "paper": (0, 1, 2)}
_N_STUDY_SEEDS = {"smoke": 1, "small": 3, "full": 3, "paper": 3}  # the first ones; `main` has all


def experiments(profile: str, *, seeds: Iterable[int] | None = None) -> dict[str, list[Run]]:
    """The runs of each experiment, by its name; some runs belong to several.

    `main` has all seeds, the others the first three; in `smoke`, which judges nothing, the first.

    Args:
        profile: One of `PROFILES`.
        seeds: Instead of those in `SEEDS`.
    Raises:
        ValueError: Unknown profile, no seed, or a seed twice.
    """
    seeds = chosen_seeds(profile, seeds, of_profile=SEEDS)
    few = seeds[: _N_STUDY_SEEDS[profile]]
    return {
        name: [run for seed in (seeds if name == "main" else few) for run in build(profile, seed)]
        for name, build in _EXPERIMENTS.items()
    }


def plan(profile: str, *, seeds: Iterable[int] | None = None) -> list[Run]:
    """The runs behind the notebook's figures, each once; arguments and errors as for `experiments`."""
    return distinct(experiments(profile, seeds=seeds))


def _main(profile: str, seed: int) -> list[Run]:
    """Every method at every density, and the distributions of density at some."""
    run = partial(make_run, "rigl", OPTIONS, seed=seed, **_MAIN[profile])
    runs = [run(method="dense", density=1.0)]
    for density in _DENSITIES[profile]:
        for method in ("small_dense", "small_dense_macs", "static", "snip", "set", "rigl"):
            runs.append(run(method=method, density=density))
    runs += [run(method="snfs", density=density) for density in _SNFS_DENSITIES[profile]]
    runs += [run(method="gmp", density=density) for density in _GMP_DENSITIES[profile]]
    for density in _DISTRIBUTION_DENSITIES[profile]:
        for distribution in ("erdos_renyi", "uniform"):
            for method in ("static", "rigl"):
                runs.append(run(method=method, density=density, distribution=distribution))
    return runs


def _networks(profile: str, seed: int) -> list[Run]:
    """Other networks than that of the main comparison, where they can be afforded."""
    return [
        make_run("rigl", OPTIONS, seed=seed, method=method, density=density, **_STUDY[profile] | {"model": model})
        for model in _NETWORKS[profile]
        for method, density in (("dense", 1.0), ("static", 0.1), ("set", 0.1), ("gmp", 0.1), ("rigl", 0.1))
    ]


def _longer(profile: str, seed: int) -> list[Run]:
    """Training 1, 2 and 5 times as long."""
    run = partial(make_run, "rigl", OPTIONS, seed=seed, **_STUDY[profile])
    longest = _MULTIPLIERS[profile][-1]
    return [
        run(method="dense", density=1.0),
        *(
            run(method=method, density=0.1, train_multiplier=multiplier)
            for method in ("small_dense", "static", "set", "rigl")
            for multiplier in _MULTIPLIERS[profile]
        ),
        run(method="rigl", density=0.2, train_multiplier=longest),
        run(method="rigl", density=0.1, train_multiplier=longest, distribution="uniform"),
        run(method="gmp", density=0.1, train_multiplier=1.5, distribution="uniform"),
    ]


def _equal_macs(profile: str, seed: int) -> list[Run]:
    """Three distributions with as many weights as ERK, and with as many MACs."""
    run = partial(make_run, "rigl", OPTIONS, seed=seed, density=0.2, **_STUDY[profile])
    return [
        run(method=method, distribution=distribution, equal=equal)
        for method in ("static", "rigl")
        for distribution, equal in (
            ("erk", "weights"),
            ("erdos_renyi", "weights"),
            ("uniform", "weights"),
            ("erdos_renyi", "macs"),
            ("uniform", "macs"),
        )
    ]


def _schedule(profile: str, seed: int) -> list[Run]:
    """When, how many and for how long connections move."""
    base = _STUDY[profile] | {"density": 0.2}
    points = [
        *({"update_every": n, "drop_fraction": f} for n in _UPDATES_EVERY[profile] for f in _DROP_FRACTIONS[profile]),
        *({"decay": decay} for decay in DECAYS if decay != OPTIONS["decay"]),
        {"stop_update": 1.0},
        {"method": "static"},
    ]
    return [make_run("rigl", OPTIONS, seed=seed, **base | point) for point in points]


def _momentum(profile: str, seed: int) -> list[Run]:
    """SNFS by the momentum of the gradients it grows by."""
    run = partial(make_run, "rigl", OPTIONS, seed=seed, method="snfs", density=0.2, **_STUDY[profile])
    return [run(gradient_momentum=momentum) for momentum in _GRADIENT_MOMENTA[profile]]


def _restart(profile: str, seed: int) -> list[Run]:
    """RigL's final mask with its original values, as a start for static and for RigL."""
    run = partial(make_run, "rigl", OPTIONS, seed=seed, density=0.2, **_STUDY[profile])
    found = run(method="rigl")
    restarts = [run(method=method, start="ticket", parents=(found,)) for method in ("static", "rigl")]
    return [found, run(method="static"), run(method="rigl", train_multiplier=2), *restarts]


def _landscape(profile: str, seed: int) -> list[Run]:
    """The loss between a static and a pruned solution, and training on from the static one."""
    run = partial(make_run, "rigl", OPTIONS, seed=seed, density=0.2, **_STUDY[profile])
    static, pruned = run(method="static"), run(method="gmp")
    shorter = _STUDY[profile] | {"n_epochs": max(1, _STUDY[profile]["n_epochs"] // 4)}
    between = partial(make_run, "rigl", OPTIONS, seed=seed, density=0.2, parents=(static, pruned), **shorter)
    onward = [run(method=method, start="solution", parents=(static,)) for method in ("static", "rigl")]
    return [static, pruned, *onward, *(between(path=path, method="dense") for path in PATHS)]


def _mobilenet(profile: str, seed: int) -> list[Run]:
    """MobileNet at three quarters sparsity."""
    base = _STUDY[profile] | _MOBILENET[profile]
    run = partial(make_run, "rigl", OPTIONS, seed=seed, distribution="uniform", **base)
    sparse = [run(method=method, density=0.25) for method in ("static", "small_dense", "gmp", "rigl")]
    return [run(method="dense", density=1.0), *sparse]


def _big_sparse(profile: str, seed: int) -> list[Run]:
    """A dense MobileNet, and a wider sparse one of about its cost."""
    base = _STUDY[profile] | _MOBILENET[profile] | {"distribution": "uniform"}
    wider = base | {"width": round(base["width"] * _BIG, 4)}
    return [
        make_run("rigl", OPTIONS, seed=seed, method="dense", density=1.0, **base),
        make_run("rigl", OPTIONS, seed=seed, method="rigl", density=0.25, **wider),
    ]


def _first_layer(profile: str, seed: int) -> list[Run]:
    """One weight in a hundred, with and without a dense first layer."""
    base = _STUDY[profile] | {"width": _MAIN[profile].get("width", OPTIONS["width"])}
    run = partial(make_run, "rigl", OPTIONS, seed=seed, method="rigl", density=0.01, **base)
    return [run(first_layer=first_layer) for first_layer in FIRST_LAYERS]


def _lottery(profile: str, seed: int) -> list[Run]:
    """Iterative magnitude pruning of LeNet-300-100, and its controls: new weights, and a random mask."""
    run = partial(make_run, "rigl", OPTIONS, seed=seed, method="lottery", **_TICKETS[profile])
    densities = [round(0.8**n, 3) for n in range(_ROUNDS[profile] + 1)]
    rounds = _rounds(run, densities)
    controls = [
        run(density=densities[n], start=start, parents=(rounds[n - 1],))
        for n in _COMPARED_ROUNDS[profile]
        for start in ("reinitialised", "shuffled")
    ]
    return [*rounds, *controls]


def _transfer(profile: str, seed: int) -> list[Run]:
    """Tickets carried to other data and to another optimizer, beside random masks with as many weights a layer."""
    base = _TRANSFER[profile]
    final = _TRANSFER_DENSITIES[profile][-1]
    sources = [{"dataset": name} for name in _TRANSFER_DATASETS[profile]]
    sources.append(sources[0] | _ADAM)
    found = [_transfer_rounds(profile, seed, **source, rewind_epochs=1) for source in sources]
    runs = [run for rounds in found for run in rounds]
    for target, rounds in zip(sources, found, strict=True):
        run = partial(make_run, "rigl", OPTIONS, seed=seed, density=final, **base | target)
        for start in ("reinitialised", "shuffled"):
            runs.append(run(method="lottery", start=start, rewind_epochs=1, parents=(rounds[-2],)))
        for source, others in zip(sources, found, strict=True):
            other_data = source["dataset"] != target["dataset"]
            other_optimizer = source.keys() != target.keys()
            if other_data != other_optimizer:
                runs.append(run(method="static", start="ticket", parents=(others[-1],)))
    return runs


def _rewinding(profile: str, seed: int) -> list[Run]:
    """Rounds that rewind to initialisation, and to the values after an epoch."""
    dataset = _TRANSFER_DATASETS[profile][0]
    both = (_transfer_rounds(profile, seed, dataset=dataset, rewind_epochs=epochs) for epochs in (0, 1))
    return [run for rounds in both for run in rounds]


def _transfer_rounds(profile: str, seed: int, **options: Option) -> list[Run]:
    run = partial(make_run, "rigl", OPTIONS, seed=seed, method="lottery", **_TRANSFER[profile] | options)
    return _rounds(run, (1.0, *_TRANSFER_DENSITIES[profile]))


def _rounds(run: partial, densities: Iterable[float]) -> list[Run]:
    """Iterative magnitude pruning: the parent of each round is the one before."""
    rounds: list[Run] = []
    for density in densities:
        from_last = {"start": "ticket", "parents": (rounds[-1],)} if rounds else {}
        rounds.append(run(density=density, **from_last))
    return rounds


def _mlp(profile: str, seed: int) -> list[Run]:
    """Which pixels and units of a sparse perceptron stay connected."""
    run = partial(make_run, "rigl", OPTIONS, seed=seed, **_MLP[profile])
    sparse = 0.1 if profile == "smoke" else 0.02
    return [
        run(method="dense", density=1.0),
        *(run(method=method, density=sparse) for method in ("static", "set", "rigl")),
    ]


_EXPERIMENTS = {
    "main": _main,
    "networks": _networks,
    "longer": _longer,
    "equal_macs": _equal_macs,
    "schedule": _schedule,
    "momentum": _momentum,
    "restart": _restart,
    "landscape": _landscape,
    "mobilenet": _mobilenet,
    "big_sparse": _big_sparse,
    "first_layer": _first_layer,
    "lottery": _lottery,
    "transfer": _transfer,
    "rewinding": _rewinding,
    "mlp": _mlp,
}
