"""What `02_dmcp` trains: every experiment of the notebook as a list of runs, in four sizes.

Sources: Guo et al. 2020, arXiv:2005.03354, and the authors' code; its ImageNet protocol, shortened as profiles say.
"""

from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

from prunelab.channels.dmcp import N_DRAWN
from prunelab.recipes.recipe import TrainingOptions
from prunelab.runs import Option, Run, make_run, option

Some = dict[str, Option]

# What is trained: the full network as it is; at several widths a step; with a search; with weights that another one
# makes; nothing, where widths are looked for in a trained one; a network of certain widths; the same along with the
# full one, whose outputs it learns.
TRAININGS = ("dense", "slimmable", "dmcp", "metapruning", "none", "scratch", "distilled")
FINAL = TRAININGS[5:]
# How the widths of a network come about: looked for in a trained one; taken from the chains of a search; and others.
LOOKED_FOR = ("greedy", "evolved")
SAMPLED = ("expected", "smallest", "largest", *(f"direct_{i}" for i in range(1, N_DRAWN + 1)))
FOUND = (*LOOKED_FOR, *SAMPLED)
DESIGNS = ("uniform", "random", "slimming", *FOUND)


@dataclass(frozen=True, kw_only=True)
class DmcpOptions(TrainingOptions):
    """Options of the runs of `02_dmcp`; the defaults are the paper's for ResNet-50."""

    training: str = option("dense, slimmable, dmcp, metapruning, none, scratch or distilled", "dense")
    design: str | None = option("how the widths are found, a key of plan.DESIGNS", None)
    budget: float = option("share of the full network's cost that the widths may cost", 0.25)
    cost: str = option("macs, or the name of a latency table in data/latency", "macs")
    warm_up: float = option("share of a search in which the weights learn alone", 0.5)
    budget_penalty: float = option("of a search: weight of the budget's penalty in the loss of alpha", 0.1)
    alpha_rate: float = option("of a search: learning rate of alpha when it starts to learn", 0.5)
    sandwich: bool = option("of a search: whether weights learn at several widths a step", True)
    independent: bool = option("of slimmable training: whether each group's width is drawn by itself", True)
    penalty: float = option("of slimming's gammas, while the full network trains", 0.0)
    label_smoothing: float = option("share of the target spread over all classes", 0.1)
    warmup_epochs: int = option("length of the linear rise of the learning rate", 0)
    model: str = "resnet50"
    n_epochs: int = 100
    batch_size: int = 64
    optimizer: str = "sgd"
    schedule: str = "cosine"
    weight_decay: float = 1e-4


# What a profile decides:
#   seeds: Of the judged comparisons; the first one is that of all else.
#   base: What all runs share.
#   search: How long the full network learns at several widths, searches, or makes weights; without held-out images.
#   lengths: Of the trainings of the networks that were found; the last is that of sweeps and ablations.
#   budgets: Shares of the MACs: of the judged comparisons, then those that are drawn.
#   penalty: Of slimming's gammas.
#   n_validation: Training images on which widths are looked for.
#   ablations: What changes in the search of each.
#   networks: Others, on which DMCP meets uniform widths.
_ABLATIONS = (
    *({"sandwich": value} for value in (True, False)),
    *({"warm_up": value} for value in (0.0, 0.25, 0.75)),
    *({"budget_penalty": value} for value in (0.01, 1.0)),
)
SMOKE = SimpleNamespace(
    seeds=(0,),
    base={"dataset": "digits", "model": "resnet8", "label_smoothing": 0.0, "alpha_rate": 2.0},
    search={"n_epochs": 4, "batch_size": 32, "n_train": 1_338},
    lengths={"long": {"n_epochs": 4}, "short": {"n_epochs": 2}},
    budgets=(0.25, 0.5),
    penalty=0.01,
    n_validation=100,
    **{"ablations": (), "networks": ()},
)
SMALL = SimpleNamespace(
    seeds=(0, 1, 2),
    base={"model": "resnet20", "image_size": 16, "n_train": 8_000, "label_smoothing": 0.0, "eval_every": 4},
    search={"n_epochs": 8},
    lengths={"long": {"n_epochs": 30}, "short": {"n_epochs": 8}},
    budgets=(0.25, 0.5, 0.1),
    penalty=0.001,
    n_validation=500,
    ablations=(*_ABLATIONS, {"cost": "resnet20_16px_cpu", "budget": 0.6}),
    networks=(),
)
# At most 25 minutes of one H100, on which a step at several widths, launched operation by operation, takes 25 ms.
FULL = SimpleNamespace(
    seeds=(0, 1, 2),
    base={"model": "resnet20", "n_train": 45_000, "label_smoothing": 0.0, "batch_size": 256, "eval_every": 5},
    search={"n_epochs": 10},
    lengths={"long": {"n_epochs": 60}, "short": {"n_epochs": 15}},
    budgets=(0.25, 0.5, 0.1),
    penalty=0.0003,
    n_validation=2_000,
    ablations=_ABLATIONS,
    networks=({"model": "mobilenet_v2", "width": 0.5},),
)
PAPER = SimpleNamespace(
    seeds=(0, 1, 2),
    base={"dataset": "imagenet", "batch_size": 1024, "n_gpus": 8},
    search={"n_epochs": 40, "learning_rate": 0.5, "label_smoothing": 0.0, "n_train": 1_271_167},
    lengths={"long": {"n_epochs": 100, "learning_rate": 0.8, "warmup_epochs": 1}},
    budgets=(0.27, 0.54, 0.068),
    penalty=1e-5,
    n_validation=10_000,
    ablations=(),
    networks=(
        {"model": "resnet18", "budget": 0.57},
        *({"model": "mobilenet_v2", "width": 1.5, "weight_decay": 4e-5, "budget": share} for share in (0.32, 0.45)),
    ),
)
PROFILES = {"smoke": SMOKE, "small": SMALL, "full": FULL, "paper": PAPER}
RIVALS = ("uniform", "random", "expected", "greedy", "evolved")


def experiments(profile: str, seeds: tuple[int, ...]) -> dict[str, list[Run]]:
    """Lists the runs of each experiment: judged ones of all seeds, others of the first; and their parents."""
    size = PROFILES[profile]
    found: dict[str, list[Run]] = {}
    for seed in seeds:
        for name, runs in _judged(size, partial(_run, size, seed)).items():
            found.setdefault(name, []).extend(runs)
    drawn = _drawn(size, partial(_run, size, seeds[0]))
    for name, part in {"searches": [*found.values()], "drawn_searches": [*drawn.values()]}.items():
        found[name] = list(dict.fromkeys(earlier for runs in part for run in runs for earlier in run.ancestors))
    return found | drawn


def _run(size: SimpleNamespace, seed: int, *parents: Run, **options: Option) -> Run:
    options = size.base | {"budget": size.budgets[0]} | options
    return make_run("dmcp", DmcpOptions, seed=seed, parents=parents, **options)


def _judged(size: SimpleNamespace, run: partial) -> dict[str, list[Run]]:
    """All rivals at one budget, for each length of the final training; and what cutting does to trained networks."""
    found = {
        f"main_{name}": [run(**length), *(_final(size, run, design, **length) for design in (*RIVALS, "slimming"))]
        for name, length in size.lengths.items()
    }
    return found | {"cut": [run(**size.search, training=training) for training in ("dense", "slimmable", "dmcp")]}


def _drawn(size: SimpleNamespace, run: partial) -> dict[str, list[Run]]:
    """The other budgets and networks, and the ablations, with the shortest training of the networks that are found."""
    final = partial(_final, size, run, **list(size.lengths.values())[-1])
    found = {
        "budgets": [final(design, budget=budget) for budget in size.budgets[1:] for design in RIVALS],
        "networks": [final(design, **network) for network in size.networks for design in ("uniform", "expected")],
        "sampling": [final(design) for design in SAMPLED],
        "distillation": [final(design, training=kind) for design in ("uniform", "expected") for kind in FINAL],
        "universal": [run(**size.search, training="slimmable", independent=False)],
        "ablations": [final("expected", search=change) for change in size.ablations],
    }
    return {name: runs for name, runs in found.items() if runs}


def _final(
    size: SimpleNamespace,
    run: partial,
    design: str,
    *,
    training: str = "scratch",
    search: Some | None = None,
    **options: Option,
) -> Run:
    """A network of certain widths, trained from scratch, whose parents are what found these."""
    large = {name: options[name] for name in ("model", "width", "weight_decay", "budget") if name in options}
    large = partial(run, **size.search | large | (search or {}))
    parents = []
    if design == "slimming":
        parents = [large(penalty=size.penalty)]
    elif design in SAMPLED:
        parents = [large(training="dmcp")]
    elif design in LOOKED_FOR:
        trained = large(training="slimmable" if design == "greedy" else "metapruning", budget=size.budgets[0])
        budget = options.get("budget", size.budgets[0])
        parents = [
            run(trained, training="none", design=design, n_validation=size.n_validation, budget=budget, n_gpus=1)
        ]
    return run(*parents, training=training, design=design, **options)
