"""What `04_sparse_transfer` trains: every experiment of the notebook as a list of runs, in four sizes.

Networks that are made sparse upstream are runs of `01_rigl` and `03_rethinking`; the runs of this recipe carry them to
other tasks.

Source: Iofinova et al. 2022, arXiv:2111.13445; protocols as in IST-DASLab/sparse-imagenet-transfer, shortened as
profiles say.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from itertools import product
from types import SimpleNamespace

from prunelab.recipes.recipe import TrainingOptions
from prunelab.recipes.rethinking.plan import RethinkingOptions
from prunelab.recipes.rigl.plan import RigLOptions
from prunelab.runs import Option, Run, make_run, option

Some = dict[str, Option]

# What is done with a trained network: linear classifiers on its features; training it whole, on a task or to find
# pictures in scenes; only looking at it.
TRAININGS = ("probe", "full", "detect", "inspect")

# What the options of a network's run are, by the name of the method that made it sparse.
_METHODS = ("dense", "gmp", "woodfisher", "acdc", "str", "rigl", "lottery")
UPSTREAM: dict[str, Some] = {
    **{name: {"method": name} for name in _METHODS},
    "rigl_5x": {"method": "rigl", "train_multiplier": 5.0},
    "l1": {"pruning": "l1"},
    "slimming": {"pruning": "slimming"},
}
PROGRESSIVE, REGULARISED, STRUCTURED = ("gmp", "woodfisher"), ("acdc", "str", "rigl"), ("l1", "slimming")
_SPARSE = (*PROGRESSIVE, *REGULARISED)


@dataclass(frozen=True, kw_only=True)
class TransferOptions(TrainingOptions):
    """Options of the runs of `04_sparse_transfer`; the defaults are those of full fine-tuning."""

    training: str = option("probe, full, detect or inspect", "full")
    upstream: str = option("method that made the network sparse, a key of plan.UPSTREAM", "dense")
    density: float = option("share of the weights that it was to keep", 1.0)
    checkpoint: str | None = option("key of pretrained.RELEASES or file in data/; None has a parent", None)
    n_scenes: int = option("of detect, to train on", 500)
    n_probes: int = option("linear classifiers that are trained at once, and averaged", 5)
    n_passes: int = option("augmented copies of the training images that they are trained on; 0 has none", 0)
    model: str = "resnet50"
    n_epochs: int = 150
    batch_size: int = 64
    optimizer: str = "plain_sgd"
    learning_rate: float = 1e-3
    schedule: str = "thirds"
    weight_decay: float = 5e-4


# What a profile decides:
#   seeds: Of the judged networks; the first one is that of all else.
#   base: What all runs share.
#   upstream: What networks are trained on, how long, and how large they are.
#   masked: What the networks that train under masks from the start share besides.
#   densities: Of the judged networks; of those that are drawn beside them.
#   progressive: How a trained network is pruned step by step.
#   thresholds: Of STR, by the density that each was found to leave, on images held out of training.
#   rounds: Densities of the rounds of a lottery.
#   penalty: Of slimming, on the factors of batch normalisation.
#   fine_tuning: Of what structured pruning leaves.
#   channels: Share of the channels inside of blocks that it leaves.
#   n_held_out: Training images of upstream that no run trains on, a second test set.
#   probe, full: How classifiers on features are trained, and whole networks; rates are chosen on held-out images.
#   detect: What detectors are trained on, and how.
#   n_passes: Copies of the training images in the augmented variant of classifiers.
#   tasks: General ones first.
#   few: Of the tasks, those of networks that are drawn and not judged, where these are trained whole.
#   more: Methods beside the judged ones, once each.
#   networks: Other networks, on which a few methods are compared at the first density.
#   released: Dense networks that others have trained, keys of `pretrained.RELEASES`.
_ADAM = {"optimizer": "adam", "learning_rate": 0.01, "schedule": "cosine"}
_ON_NETWORKS = ("gmp", "acdc", "rigl")
_LIKE_RIGL = {name: getattr(RigLOptions(), name) for name in ("batch_size", "optimizer", "schedule", "weight_decay")}
SMOKE = SimpleNamespace(
    seeds=(0,),
    base={"image_size": 8, "in_colour": True},
    upstream={"model": "resnet8", "width": 0.5, "dataset": "glyphs", "n_train": 2_000, "n_epochs": 4, "eval_every": 4},
    masked={"update_every": 20},
    densities=((0.1,), (0.2,)),
    progressive={"begin_pruning": 0.1, "fisher_gradients": 50, "update_every": 20},
    thresholds={0.1: {"threshold_decay": 0.044}, 0.2: {"threshold_decay": 0.036}},
    rounds=(1.0, 0.3, 0.1),
    penalty=0.01,
    fine_tuning={"fine_tune_epochs": 2, "fine_tune_rate": 0.02},
    channels=0.3,
    n_held_out=500,
    probe={"n_epochs": 10, "learning_rate": 0.1},
    n_passes=2,
    detect=({"dataset": "digits", "n_scenes": 100, "n_epochs": 2, "batch_size": 25} | _ADAM,),
    full={"n_epochs": 3, "learning_rate": 0.02, "eval_every": 3},
    tasks=({"dataset": "digits", "n_train": 500}, {"dataset": "glyphs:greek", "n_train": 500}),
    few=slice(1),
    more=("lottery", "l1"),
    networks=({"model": "resnet8", "width": 0.25},),
    released=(),
)
_TINY = "tiny-imagenet-200-32px"
_GENERAL = ({"dataset": "cifar10"}, {"dataset": f"{_TINY}:mixed"})
_SPECIALISED = (
    *({"dataset": f"{_TINY}:{task}"} for task in ("insects", "dogs", "vehicles", "food")),
    *({"dataset": name, "in_colour": True} for name in ("mnist10k", "omniglot-small", "glyphs:cyrillic:40")),
)
_MORE = ("rigl_5x", "lottery", "l1", "slimming")
SMALL = SimpleNamespace(
    seeds=(0, 1, 2),
    base={"image_size": 16},
    upstream={"model": "resnet8", "width": 1.5, "dataset": f"{_TINY}:pretraining", "n_train": 20_000}
    | {"n_epochs": 15, "eval_every": 5},
    masked={},
    densities=((0.1,), (0.2, 0.05, 0.02)),
    progressive={"begin_pruning": 0.05, "stop_update": 0.6, "fisher_gradients": 500, "update_every": 150},
    thresholds={
        0.2: {"threshold_decay": 2.1e-3},
        0.1: {"threshold_decay": 3.8e-3},
        0.05: {"threshold_decay": 5.8e-3},
        0.02: {"threshold_decay": 9.5e-3},
    },
    rounds=(1.0, 0.5, 0.22, 0.1),
    penalty=1e-3,
    fine_tuning={"fine_tune_epochs": 15, "fine_tune_rate": 0.01},
    channels=0.25,
    n_held_out=6_550,
    probe={"n_epochs": 60, "learning_rate": 0.01},
    n_passes=10,
    detect=(
        {"dataset": "glyphs:greek", "in_colour": True, "n_scenes": 1_500, "n_epochs": 12, "batch_size": 25} | _ADAM,
    ),
    full={"n_epochs": 15, "learning_rate": 0.05, "eval_every": 15},
    tasks=tuple(task | {"n_train": 2_000} for task in (*_GENERAL, *_SPECIALISED)),
    few=slice(4),
    more=_MORE,
    networks=(
        {"model": "resnet8", "width": 0.75},
        {"model": "resnet20", "width": 0.75},
        {"model": "mobilenet_v1", "width": 0.25},
    ),
    released=(),
)
# Sized to half an hour of one data-centre GPU.
FULL = SimpleNamespace(
    **vars(SMALL)
    | {
        "base": {},
        "upstream": SMALL.upstream | {"model": "resnet20", "width": 2.0, "n_train": 60_000, "n_epochs": 20},
        "densities": ((0.1, 0.2), (0.05, 0.02)),
        "progressive": {"begin_pruning": 0.05, "stop_update": 0.6, "update_every": 450},
        "thresholds": {
            at: {"threshold_decay": decay} for at, decay in ((0.2, 1e-3), (0.1, 2e-3), (0.05, 3e-3), (0.02, 5e-3))
        },
        "penalty": 1e-4,
        "n_held_out": 5_240,
        "full": {"n_epochs": 20, "learning_rate": 0.05, "eval_every": 20},
        "tasks": tuple(task | {"n_train": 3_000} for task in (*_GENERAL, *_SPECIALISED)),
        "networks": (
            *({"model": model, "width": 1.0} for model in ("resnet20", "resnet56")),
            {"model": "mobilenet_v1", "width": 0.5},
        ),
    }
)
# Networks as in the code of their methods' authors, tasks as in the paper's; STR's thresholds leave 90.2 %.
_STR: Some = {"threshold_start": -3200.0, "threshold_decay": 2.251757813e-5, "weight_decay": 2.251757813e-5}
PAPER = SimpleNamespace(
    seeds=(0, 1, 2),
    base={},
    upstream={"model": "resnet50", "width": 1.0, "dataset": "imagenet", "n_train": None, "n_epochs": 100}
    | {
        "batch_size": 256,
        "learning_rate": 0.256,
        "momentum": 0.875,
        "weight_decay": 3.05e-5,
        "warmup_epochs": 5,
        "eval_every": 10,
    },
    masked={},
    densities=((0.1,), ()),
    progressive={"begin_pruning": 0.01, "stop_update": 0.4, "learning_rate": 0.005, "update_every": 25_000},
    thresholds={0.1: _STR},
    n_held_out=None,
    probe={"learning_rate": 0.01},
    n_passes=0,
    detect=(),
    full={"eval_every": 10},
    tasks=(
        *({"dataset": name, "learning_rate": 0.01} for name in ("aircraft", "cars")),
        *({"dataset": f"{name}:enlarged"} for name in ("cifar10", "cifar100")),
        *({"dataset": name} for name in ("birdsnap", "caltech101", "caltech256", "dtd", "flowers", "food101")),
        *({"dataset": name} for name in ("pets", "sun397")),
    ),
    few=slice(0),
    more=(),
    networks=(),
    released=("resnet50_imagenet",),
)
PROFILES = {"smoke": SMOKE, "small": SMALL, "full": FULL, "paper": PAPER}


def experiments(profile: str, seeds: tuple[int, ...]) -> dict[str, list[Run]]:
    """Lists the runs of each experiment: judged ones of all seeds, others of the first; and where they start from."""
    size = PROFILES[profile]
    found: dict[str, list[Run]] = {}
    for seed in seeds:
        for name, runs in _judged(size, _Networks(size, seed)).items():
            found.setdefault(name, []).extend(runs)
    drawn = _drawn(size, seeds[0])
    of_judged, of_drawn = (
        dict.fromkeys(parent for runs in own.values() for run in runs for parent in run.parents)
        for own in (found, drawn)
    )
    others = [run for run in of_drawn if run not in of_judged]
    every = {"upstream": list(of_judged)} | found | {"upstream_others": others} | drawn
    return {name: runs for name, runs in every.items() if runs}


def _judged(size: SimpleNamespace, networks: "_Networks") -> dict[str, list[Run]]:
    """Networks of the judged densities on all tasks, by both transfers."""
    chosen = [("dense", 1.0), *product(_SPARSE, size.densities[0])]
    return {
        "linear": networks.carried(chosen, size.tasks, training="probe", **size.probe),
        "full": networks.carried(chosen, size.tasks, training="full", **size.full),
        "inspected": networks.inspected(chosen),
    }


def _drawn(size: SimpleNamespace, seed: int) -> dict[str, list[Run]]:
    """Other densities, methods and networks, and classifiers on features of augmented images."""
    (density, *_), others = size.densities
    networks, few = _Networks(size, seed), size.tasks[size.few]
    of = {
        "densities": (networks, list(product(_SPARSE, others))),
        "methods": (networks, [(name, size.channels if name in STRUCTURED else density) for name in size.more]),
    }
    for network in size.networks:
        name = "{model}_{width:g}".format(**network)
        of[name] = _Networks(size, seed, **network), [("dense", 1.0), *product(_ON_NETWORKS, (density,))]
    found: dict[str, list[Run]] = {"inspected_others": []}
    for name, (own, chosen) in of.items():
        found[f"linear_{name}"] = own.carried(chosen, size.tasks, training="probe", **size.probe)
        found[f"full_{name}"] = own.carried(chosen, few, training="full", **size.full)
        found["inspected_others"] += own.inspected(chosen)
    chosen = [("dense", 1.0), *product(_SPARSE, (density,))]
    augmented = size.probe | {"n_passes": size.n_passes}
    return found | {
        "augmented": networks.carried(chosen, few, training="probe", **augmented),
        "detection": networks.carried(chosen, size.detect, training="detect"),
        "linear_released": networks.released(size.tasks, training="probe", **size.probe),
        "full_released": networks.released(size.tasks, training="full", **size.full),
    }


class _Networks:
    """The networks of one seed, and what is done with them."""

    def __init__(self, size: SimpleNamespace, seed: int, **network: Option) -> None:
        self.size, self.seed = size, seed
        self.shared = size.base | size.upstream | network
        self.network = {name: self.shared[name] for name in ("model", "width")}

    def carried(self, chosen: Iterable[tuple[str, float]], tasks: Iterable[Some], **options: Option) -> list[Run]:
        """Runs of networks, by method and density, on tasks."""
        tasks = list(tasks)
        return [self._run(*each, **options | task) for each in chosen for task in tasks]

    def released(self, tasks: Iterable[Some], **options: Option) -> list[Run]:
        """Runs of networks that others have trained."""
        every = [self.network | options | task | {"checkpoint": name} for name in self.size.released for task in tasks]
        return [make_run("transfer", TransferOptions, seed=self.seed, **own) for own in every]

    def inspected(self, chosen: Iterable[tuple[str, float]]) -> list[Run]:
        """Runs that look at networks, and test them on images held out of their training."""
        images = {name: self.shared[name] for name in ("dataset", "n_train")} | {"n_validation": self.size.n_held_out}
        return [self._run(*each, **images, training="inspect") for each in chosen]

    def _run(self, upstream: str, density: float, **options: Option) -> Run:
        own = {"upstream": upstream, "density": density}
        parents = (self._parent(upstream, density),)
        every = self.size.base | self.network | options | own
        return make_run("transfer", TransferOptions, seed=self.seed, parents=parents, **every)

    def _parent(self, upstream: str, density: float) -> Run:
        """The run that makes a network sparse, by a key of `UPSTREAM`."""
        size, method = self.size, UPSTREAM[upstream]
        dense = self._masked(method="dense")
        if upstream == "dense":
            return dense
        if upstream in STRUCTURED:
            return self._structured(dense, density, **method)
        if upstream in PROGRESSIVE:
            own = {"distribution": "uniform"} if upstream == "gmp" else {"fisher_joint": True}
            return self._masked(dense, **method | size.progressive | own, start="solution", density=density)
        if upstream == "lottery":
            rounds: list[Run] = []
            for left in size.rounds:
                own = {"start": "ticket"} if rounds else {}
                rounds.append(self._masked(*rounds[-1:], **method | own, density=left, rewind_epochs=1.0))
            return rounds[-1]
        own = size.thresholds[density] if upstream == "str" else {}
        return self._masked(**method | size.masked | own, density=density)

    def _masked(self, *parents: Run, **options: Option) -> Run:
        return make_run("rigl", RigLOptions, seed=self.seed, parents=parents, **self.shared | options)

    def _structured(self, dense: Run, density: float, pruning: str) -> Run:
        """Filters are taken from a dense network; channels by slimming from one that was trained under its penalty."""
        run = partial(make_run, "rethinking", RethinkingOptions, seed=self.seed, **self.shared | _LIKE_RIGL)
        if pruning == "slimming":
            dense = run(training="dense", pruning=pruning, penalty=self.size.penalty)
        return run(parents=(dense,), training="fine_tune", pruning=pruning, density=density, **self.size.fine_tuning)
