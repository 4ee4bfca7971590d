"""What `01_rigl` trains: every experiment of the notebook as a list of runs, in four sizes.

Sources: Evci et al. 2020, arXiv:1911.11134; Frankle & Carbin 2019, arXiv:1803.03635; Morcos et al. 2019,
arXiv:1906.02773; the CIFAR-10 protocol of google-research/rigl, shortened as profiles say.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

from prunelab.methods.static import FIRST_LAYERS
from prunelab.recipes.recipe import MaskingOptions
from prunelab.runs import Option, Run, make_run, option
from prunelab.schedules import DECAYS

Some = dict[str, Option]  # options that depart from the defaults


@dataclass(frozen=True, kw_only=True)
class RigLOptions(MaskingOptions):
    """Options of the runs of `01_rigl`; the defaults are RigL's authors' on CIFAR-10, with a smaller network."""

    model: str = "resnet20"
    n_epochs: int = 100
    train_multiplier: float = option("factor on n_epochs and on all that is scheduled by them", 1.0)
    batch_size: int = 128
    optimizer: str = "sgd"
    schedule: str = "cosine"
    warmup_epochs: int = option("in which the learning rate rises from 0", 0)
    weight_decay: float = 5e-4
    label_smoothing: float = option("share of the target spread over all classes", 0.0)
    path: str | None = option("between two parents' solutions, a key of plan.PATHS; trains no network", None)


# Between two solutions: control points of the curve, and whether they are free to leave the sparse subspace.
PATHS = {
    "line": (0, False),
    "quadratic_sparse": (1, False),
    "cubic_sparse": (2, False),
    "quadratic_dense": (1, True),
}


# What a profile decides:
#   seeds: Of the main comparison.
#   n_study_seeds: The other experiments have so many of them, the first.
#   main: The network, images and training of the main comparison.
#   study: Those of studies of one setting at a time: lighter.
#   mobilenet: What makes a study one of MobileNet.
#   tickets: LeNet-300-100, in which tickets are looked for.
#   rounds: Rounds of a lottery, each of which prunes a fifth of what is left.
#   compared_rounds: Those at which a ticket is compared with its controls.
#   transfer: The small ResNet whose tickets travel.
#   transfer_sources: Where they are found, and where they are tried; with an own number of images they are only found.
#   transfer_densities: Of their rounds.
#   mlp: The perceptron of the paper's Table 2.
#   mlp_density: Share of its weights that are active.
#   densities: Of the main comparison; `snfs_densities` and `gmp_densities` of these two in it.
#   denser: A few methods at densities where the others are not compared.
#   distribution_densities: At which distributions are compared; ERK is there already.
#   networks: Other networks, compared at a density of 0.1.
#   widened: The network of the study with twice the channels in its first stage, and in its last.
#   multipliers: Of the length of training.
#   updates_every: Steps between two changes of masks, crossed with `drop_fractions`.
#   gradient_momenta: Of SNFS.
_LENET: Some = {"model": "lenet_300_100", "augment": False, "weight_decay": 0.0}
_TICKETS: Some = _LENET | {"dataset": "mnist10k", "batch_size": 64, "momentum": 0.0, "schedule": "constant"}
_ADAM: Some = {"optimizer": "adam", "learning_rate": 1e-3}
_LARGER_SOURCE: Some = {"dataset": "tiny-imagenet-200-32px", "n_train": 12_000}  # more images, of more classes
_BIG = 1.98  # times the width, at a density of 0.25: about as many weights and MACs as dense (paper, Fig. 3)

_DIGITS: Some = {"model": "resnet8", "width": 0.5, "dataset": "digits", "n_epochs": 6, "batch_size": 64}
SMOKE = SimpleNamespace(
    seeds=(0, 1, 2),
    n_study_seeds=1,  # nothing is judged
    main=_DIGITS | {"update_every": 10},
    study=_DIGITS | {"update_every": 10},
    mobilenet={"model": "mobilenet_v1", "width": 0.125},
    tickets=_TICKETS | {"dataset": "digits", "n_epochs": 8},
    rounds=5,
    compared_rounds=(2, 5),
    transfer=_DIGITS | {"n_train": 1000, "image_size": 8},
    transfer_sources=({"dataset": "digits"}, {"dataset": "glyphs"}),
    transfer_densities=(0.5, 0.25),
    mlp=_LENET | {"dataset": "digits", "n_epochs": 8, "batch_size": 64, "update_every": 10},
    mlp_density=0.1,
    densities=(0.2, 0.1),
    denser=(),
    snfs_densities=(0.2,),
    gmp_densities=(0.2, 0.1),
    distribution_densities=(0.1,),
    networks=(),
    widened=("resnet8_wide_early", "resnet8_wide_late"),
    multipliers=(1, 2),
    updates_every=(10, 40),
    drop_fractions=(0.1, 0.3),
    gradient_momenta=(0.0, 0.9),
)

_RESNET_8: Some = {"model": "resnet8", "width": 0.5, "image_size": 16, "batch_size": 64, "learning_rate": 0.05}
SMALL = SimpleNamespace(
    seeds=(0, 1, 2, 3, 4),
    n_study_seeds=3,
    main={"model": "resnet8", "image_size": 16, "n_train": 10_000, "n_epochs": 20, "eval_every": 5},
    study=_RESNET_8 | {"n_train": 4_000, "n_epochs": 20, "eval_every": 10},
    mobilenet={"model": "mobilenet_v1", "width": 0.125},
    tickets=_TICKETS | {"n_epochs": 20},
    rounds=18,
    compared_rounds=(3, 7, 12, 15, 18),
    transfer=_RESNET_8 | {"n_train": 3_000, "in_colour": True, "n_epochs": 15, "eval_every": 5},
    transfer_sources=({"dataset": "cifar10"}, {"dataset": "mnist10k"}, {"dataset": "omniglot-small"}, _LARGER_SOURCE),
    transfer_densities=(0.5, 0.25, 0.125),
    mlp=_LENET | {"dataset": "mnist10k", "n_epochs": 30, "batch_size": 100, "update_every": 50},
    mlp_density=0.02,
    densities=(0.2, 0.1, 0.05, 0.02),
    denser=(),
    snfs_densities=(0.2, 0.1),
    gmp_densities=(0.2, 0.1, 0.05),
    distribution_densities=(0.1, 0.05),
    networks=(),
    widened=("resnet8_wide_early", "resnet8_wide_late"),
    multipliers=(1, 2, 5),
    updates_every=(50, 100, 500),
    drop_fractions=(0.1, 0.3, 0.5),
    gradient_momenta=(0.0, 0.5, 0.9, 0.99),
)

# At most 25 minutes beyond what is on record, at 100,000 images of ResNet-20 a second.
FULL = SimpleNamespace(
    seeds=(0, 1, 2),
    n_study_seeds=3,
    main={"n_epochs": 40},
    study={"n_epochs": 6},
    mobilenet={"model": "mobilenet_v1", "width": 0.5},
    tickets=_TICKETS | {"n_epochs": 40},
    rounds=18,
    compared_rounds=(3, 7, 12, 15, 18),
    transfer={"n_train": 3_000, "in_colour": True, "n_epochs": 30, "image_size": 28, "eval_every": 5},  # as MNIST's
    transfer_sources=({"dataset": "cifar10"}, {"dataset": "mnist10k"}, {"dataset": "omniglot-small"}, _LARGER_SOURCE),
    transfer_densities=(0.5, 0.25, 0.125, 0.0625),
    mlp=_LENET | {"dataset": "mnist10k", "n_epochs": 100, "batch_size": 100},
    mlp_density=0.02,
    densities=(0.1, 0.05, 0.02),
    denser=(("rigl", 0.5), ("rigl", 0.2), ("static", 0.2)),
    snfs_densities=(0.1,),
    gmp_densities=(0.1, 0.05, 0.02),
    distribution_densities=(0.1, 0.05),
    networks=("wrn22_2",),
    widened=(),
    multipliers=(1, 2, 5),
    updates_every=(100, 500),
    drop_fractions=(0.3,),
    gradient_momenta=(0.0, 0.9, 0.99),
)

# The paper's own CIFAR-10 protocol (Sec. 4.3). Its ImageNet experiments are not planned here.
_WRN: Some = {"model": "wrn22_2", "n_epochs": 250, "schedule": "step"}
PAPER = SimpleNamespace(
    seeds=(0, 1, 2),
    n_study_seeds=3,
    main=_WRN,
    study=_WRN,
    mobilenet={"model": "mobilenet_v1", "width": 1.0},
    tickets=_TICKETS | {"dataset": "mnist", "n_epochs": 50, "batch_size": 60},
    rounds=18,
    compared_rounds=(3, 7, 12, 15),
    transfer={"in_colour": True, "n_epochs": 160, "image_size": 28, "schedule": "step"},
    transfer_sources=tuple({"dataset": name} for name in ("cifar10", "cifar100", "fashion_mnist", "svhn")),
    transfer_densities=(0.5, 0.25),
    mlp=_LENET | {"dataset": "mnist", "n_epochs": 200, "batch_size": 100, "learning_rate": 0.2},
    mlp_density=0.02,
    densities=(0.5, 0.2, 0.1, 0.05),
    denser=(),
    snfs_densities=(0.2, 0.1),
    gmp_densities=(0.5, 0.2, 0.1, 0.05),
    distribution_densities=(0.1, 0.05),
    networks=("resnet32",),
    widened=(),
    multipliers=(1, 2),
    updates_every=(50, 100, 500),
    drop_fractions=(0.1, 0.3, 0.5),
    gradient_momenta=(0.0, 0.9),
)

PROFILES = {"smoke": SMOKE, "small": SMALL, "full": FULL, "paper": PAPER}


def experiments(profile: str, seeds: tuple[int, ...]) -> dict[str, list[Run]]:
    """Lists the runs of each experiment: `main` has all seeds, the others the first few."""
    size = PROFILES[profile]
    few = seeds[: size.n_study_seeds]
    return {
        name: [run for seed in (seeds if name == "main" else few) for run in build(size, seed)]
        for name, build in _EXPERIMENTS.items()
    }


def _of(seed: int, **options: Option) -> partial:
    """Makes runs of a seed that share some options."""
    return partial(make_run, "rigl", RigLOptions, seed=seed, **options)


def _main(size: SimpleNamespace, seed: int) -> list[Run]:
    """Every method at every density, and the distributions of density at some."""
    run = _of(seed, **size.main)
    return [
        run(method="dense", density=1.0),
        *(
            run(method=method, density=density)
            for density in size.densities
            for method in ("small_dense", "small_dense_macs", "static", "snip", "set", "rigl")
        ),
        *(run(method=method, density=density) for method, density in size.denser),
        *(run(method="snfs", density=density) for density in size.snfs_densities),
        *(run(method="gmp", density=density) for density in size.gmp_densities),
        *(
            run(method=method, density=density, distribution=distribution)
            for density in size.distribution_densities
            for distribution in ("erdos_renyi", "uniform")
            for method in ("static", "rigl")
        ),
    ]


def _networks(size: SimpleNamespace, seed: int) -> list[Run]:
    """Other networks than that of the main comparison, where they can be afforded."""
    return [
        _of(seed)(method=method, density=density, **size.study | {"model": model})
        for model in size.networks
        for method, density in (("dense", 1.0), ("static", 0.1), ("set", 0.1), ("gmp", 0.1), ("rigl", 0.1))
    ]


def _longer(size: SimpleNamespace, seed: int) -> list[Run]:
    """Training 1, 2 and 5 times as long; what is compared with that, once and 5 times."""
    run = _of(seed, **size.study)
    longest = size.multipliers[-1]
    return [
        *(run(method="dense", density=1.0, train_multiplier=multiplier) for multiplier in (1, longest)),
        *(
            run(method=method, density=0.1, train_multiplier=multiplier)
            for method in ("small_dense", "static", "set", "rigl")
            for multiplier in size.multipliers
        ),
        *(
            run(method=method, density=0.1, train_multiplier=multiplier)
            for method in ("snip", "gmp")
            for multiplier in (1, longest)
        ),
        run(method="rigl", density=0.2, train_multiplier=longest),
        run(method="rigl", density=0.1, train_multiplier=longest, distribution="uniform"),
        run(method="gmp", density=0.1, train_multiplier=1.5, distribution="uniform"),
    ]


def _wider(size: SimpleNamespace, seed: int) -> list[Run]:
    """The first stage twice as wide, or the last, with as many active weights as without."""
    plain = size.study.get("model", RigLOptions.model)
    networks = [{}, *({"model": model, "density_of": plain} for model in size.widened)]
    return [
        _of(seed, density=0.1)(method=method, **size.study | network)
        for network in networks
        for method in ("static", "rigl")
    ]


def _equal_macs(size: SimpleNamespace, seed: int) -> list[Run]:
    """Three distributions with as many weights as ERK, and with as many MACs."""
    run = _of(seed, density=0.2, **size.study)
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


def _schedule(size: SimpleNamespace, seed: int) -> list[Run]:
    """When, how many and for how long connections move."""
    base = size.study | {"density": 0.2}
    points = [
        *({"update_every": n, "drop_fraction": f} for n in size.updates_every for f in size.drop_fractions),
        *({"decay": decay} for decay in DECAYS if decay != RigLOptions.decay),
        {"stop_update": 1.0},
        {"method": "static"},
    ]
    return [_of(seed)(**base | point) for point in points]


def _momentum(size: SimpleNamespace, seed: int) -> list[Run]:
    """SNFS by the momentum of the gradients it grows by."""
    run = _of(seed, method="snfs", density=0.2, **size.study)
    return [run(gradient_momentum=momentum) for momentum in size.gradient_momenta]


def _restart(size: SimpleNamespace, seed: int) -> list[Run]:
    """RigL's final mask with its original values, as a start for static and for RigL."""
    run = _of(seed, density=0.2, **size.study)
    found = run(method="rigl")
    restarts = [run(method=method, start="ticket", parents=(found,)) for method in ("static", "rigl")]
    return [found, run(method="static"), run(method="rigl", train_multiplier=2), *restarts]


def _landscape(size: SimpleNamespace, seed: int) -> list[Run]:
    """The loss between a static and a pruned solution, and training on from the static one."""
    run = _of(seed, density=0.2, **size.study)
    static, pruned = run(method="static"), run(method="gmp")
    shorter = size.study | {"n_epochs": max(1, size.study["n_epochs"] // 4)}
    between = _of(seed, density=0.2, parents=(static, pruned), **shorter)
    onward = [run(method=method, start="solution", parents=(static,)) for method in ("static", "rigl")]
    return [static, pruned, *onward, *(between(path=path, method="dense") for path in PATHS)]


def _mobilenet(size: SimpleNamespace, seed: int) -> list[Run]:
    """MobileNet at three quarters sparsity."""
    run = _of(seed, distribution="uniform", **size.study | size.mobilenet)
    sparse = [run(method=method, density=0.25) for method in ("static", "small_dense", "gmp", "rigl")]
    return [run(method="dense", density=1.0), *sparse]


def _big_sparse(size: SimpleNamespace, seed: int) -> list[Run]:
    """A dense MobileNet, and a wider sparse one of about its cost."""
    base = size.study | size.mobilenet | {"distribution": "uniform"}
    wider = base | {"width": round(base["width"] * _BIG, 4)}
    return [
        _of(seed)(method="dense", density=1.0, **base),
        _of(seed)(method="rigl", density=0.25, **wider),
    ]


def _first_layer(size: SimpleNamespace, seed: int) -> list[Run]:
    """One weight in a hundred, with and without a dense first layer."""
    width = size.main.get("width", RigLOptions.width)
    run = _of(seed, method="rigl", density=0.01, **size.study | {"width": width})
    return [run(first_layer=first_layer) for first_layer in FIRST_LAYERS]


def _lottery(size: SimpleNamespace, seed: int) -> list[Run]:
    """Iterative magnitude pruning of LeNet-300-100, and its controls: new weights, and a random mask."""
    run = _of(seed, method="lottery", **size.tickets)
    densities = [round(0.8**n, 3) for n in range(size.rounds + 1)]
    rounds = _rounds(run, densities)
    controls = [
        run(density=densities[n], start=start, parents=(rounds[n - 1],))
        for n in size.compared_rounds
        for start in ("reinitialised", "shuffled")
    ]
    return [*rounds, *controls]


def _transfer(size: SimpleNamespace, seed: int) -> list[Run]:
    """Tickets carried to other data and to another optimizer, beside random masks with as many weights a layer."""
    sources = [*size.transfer_sources, size.transfer_sources[0] | _ADAM]
    found = [_transfer_rounds(size, seed, **source, rewind_epochs=1) for source in sources]
    runs = [run for rounds in found for run in rounds]
    for target, rounds in zip(sources, found, strict=True):
        if "n_train" in target:
            continue
        run = _of(seed, density=size.transfer_densities[-1], **size.transfer | target)
        for start in ("reinitialised", "shuffled"):
            runs.append(run(method="lottery", start=start, rewind_epochs=1, parents=(rounds[-2],)))
        for source, others in zip(sources, found, strict=True):
            other_data = source["dataset"] != target["dataset"]
            other_optimizer = source.get("optimizer") != target.get("optimizer")
            if other_data != other_optimizer:
                runs.append(run(method="static", start="ticket", parents=(others[-1],)))
    return runs


def _rewinding(size: SimpleNamespace, seed: int) -> list[Run]:
    """Rounds that rewind to initialisation, and to the values after an epoch."""
    both = (_transfer_rounds(size, seed, **size.transfer_sources[0], rewind_epochs=epochs) for epochs in (0, 1))
    return [run for rounds in both for run in rounds]


def _transfer_rounds(size: SimpleNamespace, seed: int, **options: Option) -> list[Run]:
    run = _of(seed, method="lottery", **size.transfer | options)
    return _rounds(run, (1.0, *size.transfer_densities))


def _rounds(run: partial, densities: Iterable[float]) -> list[Run]:
    """Iterative magnitude pruning: the parent of each round is the one before."""
    rounds: list[Run] = []
    for density in densities:
        from_last = {"start": "ticket", "parents": (rounds[-1],)} if rounds else {}
        rounds.append(run(density=density, **from_last))
    return rounds


def _mlp(size: SimpleNamespace, seed: int) -> list[Run]:
    """Which pixels and units of a sparse perceptron stay connected."""
    run = _of(seed, **size.mlp)
    return [
        run(method="dense", density=1.0),
        *(run(method=method, density=size.mlp_density) for method in ("static", "set", "rigl")),
    ]


_EXPERIMENTS = {
    "main": _main,
    "networks": _networks,
    "longer": _longer,
    "wider": _wider,
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
