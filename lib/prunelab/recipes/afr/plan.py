"""What `05_afr` trains: every experiment of the notebook as a list of runs, in four sizes.

Source: Nitta et al. 2024, "Adaptive Feature Retention". The paper names no settings of training or scoring, so these
are ours.
"""

from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

from prunelab.recipes.recipe import TrainingOptions
from prunelab.runs import Option, Run, make_run, option
from prunelab.scores import SCORES

# What a run does: learn from labels, or without them; prune what another has learned and train it on; only look at it.
PRETRAININGS = ("supervised", "dino")
TRAININGS = (*PRETRAININGS, "fine_tune", "inspect")


@dataclass(frozen=True, kw_only=True)
class AfrOptions(TrainingOptions):
    """Options of the runs of `05_afr`; the defaults are those of fine-tuning."""

    training: str = option("supervised, dino, fine_tune or inspect", "fine_tune")
    pretrained: str | None = option("training of the parent, or a key of pretrained.RELEASES; None has none", None)
    score: str | None = option("what weights are ranked by, a key of scores.SCORES; None prunes nothing", None)
    density: float = option("share of the weights inside of the blocks that stay", 1.0)
    mixture: float = option("of AFR: from 0, ReFer alone, to 1, SNIP alone; the paper's sum is 0.5", 0.5)
    scope: str = option("of AFR: standardised over the network, global, or layerwise", "global")
    features: str = option("of ReFer: cls, mean or tokens", "cls")
    feature_layers: str = option("of ReFer: whose outputs are features, blocks or linear", "blocks")
    n_scored: int = option("training images on which weights are scored", 512)
    n_rounds: int = option("rounds of scoring in which the density is reached", 1)
    enlarged_to: int | None = option("side in pixels to which images are enlarged for the network; None has none", None)
    probed: bool = option(
        "whether weights are scored with a fitted head; training begins with a new one either way", False
    )
    layer_decay: float = option("factor on the learning rate from each block to the one before it", 1.0)
    label_smoothing: float = option("share of the target spread over all classes", 0.0)
    warmup_epochs: int = option("length of the linear rise of the learning rate", 1)
    model: str = "vit_b16"
    n_epochs: int = 30
    batch_size: int = 128
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    weight_decay: float = 0.05


# What a profile decides:
#   seeds: Of the judged comparisons, each with pretrainings of its own; the first one is that of all else.
#   base: What all runs share.
#   pretrainings: How long, and on what; or the names of released weights.
#   lengths: Of fine-tuning; the first is that of sweeps and ablations.
#   general, specific: Tasks; all scores meet on the first of the general ones, at `densities[0]`.
#   densities: Of the general tasks, judged and then drawn; of the specific ones.
#   ablations: What changes in the scoring of each.
_FEW = ("snip", "refer", "afr")
_ABLATIONS = {
    "mixture": [{"score": "afr", "mixture": share} for share in (0.25, 0.75)],
    "scope": [{"score": "afr", "scope": "layerwise"}],
    "features": [
        *({"score": "refer", **how} for how in ({"features": "mean"}, {"features": "tokens"})),
        {"score": "refer", "features": "tokens", "feature_layers": "linear"},
        {"score": "afr", "features": "tokens"},
    ],
    "n_scored": [{"score": "afr", "n_scored": n} for n in (32, 128, 2_048)],
    "rounds": [{"score": score, "n_rounds": 10} for score in _FEW],
    "probed": [{"score": score, "probed": True} for score in ("snip", "afr")],
}
SMOKE = SimpleNamespace(
    seeds=(0,),
    base={"model": "vit_micro4", "width": 0.5, "image_size": 16, "augment": False, "batch_size": 32}
    | {"n_scored": 128, "eval_every": 8},
    pretrainings={
        "supervised": {"dataset": "glyphs", "n_train": 3_000, "n_epochs": 8},
        "dino": {"dataset": "glyphs", "n_train": 1_000, "n_epochs": 6},
    },
    lengths={"long": {"n_epochs": 5}, "short": {"n_epochs": 2}},
    general=({"dataset": "digits", "image_size": 8, "n_train": 500},),
    specific=tuple({"dataset": f"glyphs:{script}", "n_train": 500} for script in ("greek", "symbols")),
    densities=((0.2,), 0.5),
    ablations={name: runs[:1] for name, runs in _ABLATIONS.items()},
)
_TINY = "tiny-imagenet-200-32px"
_FINE_GRAINED = [{"dataset": f"{_TINY}:{task}"} for task in ("insects", "dogs", "vehicles", "food")]
_OTHER = [{"dataset": name, "in_colour": True} for name in ("mnist10k", "omniglot-small", "glyphs:cyrillic:40")]
SMALL = SimpleNamespace(
    seeds=(0, 1, 2),
    base={"model": "vit_micro4", "image_size": 16, "eval_every": 6},
    pretrainings={
        name: {"dataset": f"{_TINY}:pretraining", "n_train": 30_000, "n_epochs": 15} for name in PRETRAININGS
    },
    lengths={"long": {"n_epochs": 6}, "short": {"n_epochs": 2}},
    general=({"dataset": "cifar10", "n_train": 8_000}, {"dataset": f"{_TINY}:mixed", "n_train": 5_000}),
    specific=tuple(task | {"n_train": 3_000} for task in (*_FINE_GRAINED, *_OTHER)),
    densities=((0.05, 0.2, 0.1, 0.02), 0.2),
    ablations=_ABLATIONS,
)
# A ViT-S of half the width; sized to one data-centre GPU, on which transformers were not measured yet.
FULL = SimpleNamespace(
    seeds=(0, 1, 2),
    base={"model": "vit_s4", "width": 0.5, "eval_every": 5},
    pretrainings={name: {"dataset": f"{_TINY}:pretraining", "n_epochs": 15} for name in PRETRAININGS},
    lengths={"long": {"n_epochs": 5}, "short": {"n_epochs": 2}},
    general=({"dataset": "cifar10", "n_train": 20_000}, {"dataset": f"{_TINY}:mixed"}),
    specific=(*_FINE_GRAINED, *_OTHER),
    densities=((0.05, 0.2, 0.1, 0.02), 0.2),
    ablations=_ABLATIONS,
)
PAPER = SimpleNamespace(
    seeds=(0, 1, 2),
    base={"model": "vit_b16", "enlarged_to": 224, "learning_rate": 1e-4, "layer_decay": 0.75},
    pretrainings={"supervised": "vit_b16_imagenet", "dino": "vit_b16_dino"},
    lengths={"long": {"n_epochs": 30}},
    general=tuple({"dataset": name} for name in ("cifar10", "cifar100", "tiny-imagenet-200")),
    specific=tuple(
        {"dataset": name, "image_size": 224}
        for name in ("eurosat", "caltech101", "pets", "dtd", "cars", "sun397", "aircraft")
    ),
    densities=((0.05, 0.1, 0.02), 0.2),
    ablations={},
)
PROFILES = {"smoke": SMOKE, "small": SMALL, "full": FULL, "paper": PAPER}


def experiments(profile: str, seeds: tuple[int, ...]) -> dict[str, list[Run]]:
    """Lists the runs of each experiment: judged ones of all seeds, others of the first; and the pretrainings of all."""
    size = PROFILES[profile]
    found: dict[str, list[Run]] = {}
    for seed in seeds:
        for name, runs in _judged(size, partial(_fine_tuned, size, seed)).items():
            found.setdefault(name, []).extend(runs)
    found |= _drawn(size, partial(_fine_tuned, size, seeds[0], **next(iter(size.lengths.values()))))
    every = (parent for runs in found.values() for run in runs for parent in run.parents)
    return {"pretrainings": list(dict.fromkeys(every))} | {name: runs for name, runs in found.items() if runs}


def _fine_tuned(size: SimpleNamespace, seed: int, kind: str | None = "supervised", **options: Option) -> Run:
    """A run on top of a pretraining of a kind with the same seed; None starts from fresh values."""
    run, how = partial(make_run, "afr", AfrOptions, seed=seed), size.pretrainings.get(kind)
    if isinstance(how, dict):
        parents, pretrained = [run(**size.base | how, training=kind)], kind
    else:
        parents, pretrained = [], how
    return run(parents=tuple(parents), **size.base | options, pretrained=pretrained)


def _judged(size: SimpleNamespace, run: partial) -> dict[str, list[Run]]:
    """General tasks at the first density and specific ones, on both pretrainings, for each length of fine-tuning."""
    (density, *_), specific = size.densities
    found = {}
    for length, epochs in size.lengths.items():
        scores = [(task, score) for task in size.general for score in (SCORES if task is size.general[0] else _FEW)]
        found[f"general_{length}"] = [
            run(kind, **task, **epochs, **_pruned(score, density)) for kind in PRETRAININGS for task, score in scores
        ]
        found[f"specific_{length}"] = [
            run(kind, **task, **epochs, **_pruned(score, specific))
            for kind in PRETRAININGS
            for task in size.specific
            for score in ("magnitude", "snip", "afr")
        ]
        found[f"dense_{length}"] = [
            run(kind, **task, **epochs) for kind in PRETRAININGS for task in (*size.general, *size.specific)
        ]
    return found


def _drawn(size: SimpleNamespace, run: partial) -> dict[str, list[Run]]:
    """Other densities, and other ways to score, on the first general task and the supervised pretraining."""
    (density, *others), _ = size.densities
    task = size.general[0]
    found = {"densities": [run(**task, **_pruned(score, other)) for other in others for score in SCORES]}
    for name, changes in size.ablations.items():
        found[name] = [run(**task, **_pruned(density=density, **change)) for change in changes]
    found["fresh"] = [run(None, **task), run(None, **task, **_pruned("snip", density))]
    found["looked_at"] = [run(kind, **task, training="inspect", density=density) for kind in PRETRAININGS]
    return found


def _pruned(score: str, density: float, **options: Option) -> dict[str, Option]:
    """Options of pruning; SynFlow has the rounds that its authors take."""
    return {"score": score, "density": density, "n_rounds": 100 if score == "synflow" else 1} | options
