"""What `06_frontier` trains: every way of the other notebooks to spend a budget, on one network and one set of images.

All of its runs are of their recipes, with the same images, batches and optimizer, and for as many epochs at the same
rate, but for what is trained longer on purpose, or trained on. Those that `01_rigl` compares are the same runs. An
experiment is a way, at all of its sizes.
"""

from functools import partial
from types import SimpleNamespace

from prunelab.recipes.dmcp.plan import DmcpOptions
from prunelab.recipes.rethinking.plan import RethinkingOptions
from prunelab.recipes.rigl.plan import RigLOptions
from prunelab.runs import Option, Run, make_run

_MASKED = ("static", "snip", "set", "rigl")

# What a profile decides; the sizes of different ways are chosen so that some have as many weights, some as many MACs:
#   seeds: Of all runs.
#   base: What all runs share.
#   masked: What runs of `01_rigl` share besides.
#   densities: Of masks, and of the small dense networks with as many weights, or as many MACs.
#   gmp_densities: Of gradual pruning.
#   gmp_long, small_long: Densities of gradual pruning, and methods and densities of small dense networks, trained for
#       about as many MACs as the whole network or ten times as long, with the factors on their length.
#   magnitude_densities: Of magnitude pruning in one shot, fine-tuned.
#   larger: Density of one more small dense network.
#   channels: Shares of the channels inside of blocks that are left of a trained network.
#   scratch_e, scratch_b: Those of them that are trained from scratch, too.
#   fine_tuning: A quarter of the epochs, at the rate that `03_rethinking` chose on held-out images.
#   penalty: Of slimming: the sum over all steps is that of `03_rethinking`.
#   search: Of DMCP, as in `02_dmcp`.
#   distilled, found: Shares of the MACs of networks trained along with the whole one, and of those that DMCP finds.
_CIFAR: dict[str, Option] = {
    "dataset": "cifar10",
    "batch_size": 128,
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "schedule": "cosine",
    "weight_decay": 5e-4,
}
SMOKE = SimpleNamespace(
    seeds=(0, 1),
    base=_CIFAR | {"dataset": "digits", "model": "resnet8", "width": 0.5, "n_epochs": 6, "batch_size": 64},
    masked={"update_every": 10},
    densities=(0.1,),
    gmp_densities=(0.1,),
    gmp_long=((0.1, 2.0),),
    small_long=(("small_dense", 0.1, 5.0),),
    magnitude_densities=(0.1,),
    larger=0.5,
    channels=(0.5, 0.15),
    scratch_e=(0.15,),
    scratch_b=(0.5,),
    fine_tuning={"fine_tune_epochs": 2, "fine_tune_rate": 0.01},
    penalty=0.01,
    search={"n_epochs": 4, "alpha_rate": 2.0},
    distilled=(0.36,),
    found=(0.36,),
)
SMALL = SimpleNamespace(
    seeds=(0, 1, 2),
    base=_CIFAR | {"model": "resnet8", "image_size": 16, "n_train": 10_000, "n_epochs": 20, "eval_every": 5},
    masked={},
    densities=(0.2, 0.1, 0.05, 0.02),
    gmp_densities=(0.2, 0.1, 0.05, 0.02),
    gmp_long=((0.2, 1.65), (0.1, 2.05), (0.05, 2.35), (0.02, 2.5)),
    small_long=(
        *(("small_dense", 0.2, 4.9), ("small_dense", 0.1, 9.5), ("small_dense", 0.05, 10.0)),
        *(("small_dense_macs", 0.1, 5.35), ("small_dense_macs", 0.05, 10.0)),
    ),
    magnitude_densities=(0.2, 0.1, 0.05),
    larger=0.5,
    channels=(0.5, 0.34, 0.19, 0.15, 0.09),
    scratch_e=(0.34,),
    scratch_b=(0.34,),
    fine_tuning={"fine_tune_epochs": 5, "fine_tune_rate": 0.01},
    penalty=0.0008,
    search={"n_epochs": 8, "batch_size": 64},
    distilled=(0.18,),
    found=(0.18,),
)
# At most 25 minutes of one data-centre GPU beyond what is on record of `01_rigl`.
FULL = SimpleNamespace(
    seeds=(0, 1, 2),
    base=_CIFAR | {"model": "resnet20", "n_epochs": 40},
    masked={},
    densities=(0.1, 0.05, 0.02),
    gmp_densities=(0.1, 0.05, 0.02),
    gmp_long=((0.1, 2.05), (0.05, 2.35)),
    small_long=(("small_dense", 0.1, 5.0),),
    magnitude_densities=(0.1, 0.05),
    larger=0.5,
    channels=(0.5, 0.34, 0.15, 0.09),
    scratch_e=(0.34,),
    scratch_b=(0.34,),
    fine_tuning={"fine_tune_epochs": 10, "fine_tune_rate": 0.01},
    penalty=1e-4,
    search={"n_epochs": 10, "batch_size": 256},
    distilled=(0.18,),
    found=(0.18,),
)
PAPER = SimpleNamespace(
    seeds=(0, 1, 2),
    base=_CIFAR
    | {"dataset": "imagenet", "model": "resnet50", "n_epochs": 90, "batch_size": 256, "weight_decay": 1e-4}
    | {"schedule": "thirds", "eval_every": 10},
    masked={},
    densities=(0.2, 0.1),
    gmp_densities=(0.2, 0.1),
    gmp_long=((0.2, 1.65),),
    small_long=(("small_dense", 0.2, 2.0),),
    magnitude_densities=(0.2, 0.1),
    larger=0.5,
    channels=(0.5, 0.3),
    scratch_e=(0.5,),
    scratch_b=(0.5,),
    fine_tuning={"fine_tune_epochs": 20, "fine_tune_rate": 1e-3},
    penalty=1e-5,
    search={"n_epochs": 40, "learning_rate": 0.5, "batch_size": 1024, "schedule": "cosine"},
    distilled=(0.36,),
    found=(0.27,),
)
PROFILES = {"smoke": SMOKE, "small": SMALL, "full": FULL, "paper": PAPER}


def experiments(profile: str, seeds: tuple[int, ...]) -> dict[str, list[Run]]:
    """Lists the runs of each way, a key of `frontier.KINDS`; as `prepared...`, networks that only others start from.

    A search takes as long as all else that is trained for a seed: DMCP has the first seed, and is not judged.
    """
    size = PROFILES[profile]
    found: dict[str, list[Run]] = {}
    for seed in seeds:
        for name, runs in (_masked(size, seed) | _pruned(size, seed)).items():
            found.setdefault(name, []).extend(runs)
    return found | _found(size, seeds[0])


def _masked(size: SimpleNamespace, seed: int) -> dict[str, list[Run]]:
    """What `01_rigl` compares: masks from scratch, and small dense networks of their weights, or their MACs."""
    run = partial(make_run, "rigl", RigLOptions, seed=seed, **size.base, **size.masked)
    small = [run(method=method, density=at) for at in size.densities for method in ("small_dense", "small_dense_macs")]
    return {
        "dense": [run(method="dense", density=1.0)],
        "small_dense": [run(method="small_dense", density=size.larger), *small],
        **{method: [run(method=method, density=density) for density in size.densities] for method in _MASKED},
        "gmp": [run(method="gmp", density=density) for density in size.gmp_densities],
        "small_dense_long": [
            run(method=how, density=at, train_multiplier=factor) for how, at, factor in size.small_long
        ],
        "gmp_long": [run(method="gmp", density=at, train_multiplier=factor) for at, factor in size.gmp_long],
    }


def _pruned(size: SimpleNamespace, seed: int) -> dict[str, list[Run]]:
    """What `03_rethinking` compares, fine-tuned or from scratch; and small networks trained along with the whole."""
    run = partial(make_run, "rethinking", RethinkingOptions, seed=seed, **size.base, **size.fine_tuning)
    (dense,) = _masked(size, seed)["dense"]
    slimmed = run(pruning="slimming", penalty=size.penalty)
    distilled = partial(_dmcp, size, seed, training="distilled", design="uniform")

    def fine_tuned(parent: Run, pruning: str, densities: tuple[float, ...]) -> list[Run]:
        return [run(parents=(parent,), training="fine_tune", pruning=pruning, density=at) for at in densities]

    return {
        "magnitude": fine_tuned(dense, "magnitude", size.magnitude_densities),
        "l1": fine_tuned(dense, "l1", size.channels),
        "slimming": fine_tuned(slimmed, "slimming", size.channels),
        "scratch_e": [run(training="scratch_e", pruning="predefined", density=density) for density in size.scratch_e],
        "scratch_b": [run(training="scratch_b", pruning="predefined", density=density) for density in size.scratch_b],
        "distilled": [distilled(budget=budget) for budget in size.distilled],
        "prepared": [slimmed],
    }


def _found(size: SimpleNamespace, seed: int) -> dict[str, list[Run]]:
    """What `02_dmcp` is about: networks of the widths that a search has found."""
    searches = {budget: _dmcp(size, seed, training="dmcp", budget=budget, **size.search) for budget in size.found}
    return {
        "prepared_dmcp": list(searches.values()),
        "dmcp": [
            _dmcp(size, seed, search, training="scratch", design="expected", budget=budget)
            for budget, search in searches.items()
        ],
    }


def _dmcp(size: SimpleNamespace, seed: int, *parents: Run, **options: Option) -> Run:
    options = size.base | {"label_smoothing": 0.0} | options
    return make_run("dmcp", DmcpOptions, seed=seed, parents=parents, **options)
