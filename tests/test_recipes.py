"""All recipes alike: their plans, their options, and what every run of any of them must do."""

import functools
import hashlib
from dataclasses import asdict, dataclass

import pytest
import torch
from torch import nn

from prunelab import claims, cost, data, engine, recipes, records, stores, training
from prunelab.data.registry import STREAMED
from prunelab.precision import best_precision
from prunelab.recipes import AFR, DMCP, PROFILES, RETHINKING, RIGL, TRANSFER, Recipe, Study, runner
from prunelab.recipes.common import image_of
from prunelab.recipes.dmcp import setup as dmcp_setup
from prunelab.recipes.dmcp.plan import SAMPLED
from prunelab.recipes.recipe import Outline, Setup, TrainingOptions
from prunelab.recipes.rethinking import setup as rethinking_setup
from prunelab.runs import Run, describe, make_run, option

STUDIES = recipes.STUDIES.values()
ALL = pytest.mark.parametrize("recipe", recipes.RECIPES.values(), ids=recipes.RECIPES)
ALL_STUDIES = pytest.mark.parametrize("study", STUDIES, ids=recipes.STUDIES)
EACH = pytest.mark.parametrize("study, profile", [(s, p) for s in STUDIES for p in PROFILES], ids=str)
Study.__str__ = lambda study: study.name  # for the names of tests


@functools.cache
def experiments(study, profile):
    return study.experiments(profile)


@functools.cache
def plan(study, profile):
    return study.plan(profile)


def first_seed(study, profile):
    return engine.with_parents(study.plan(profile, seeds=[0]))


def options_of(run):
    """All of a run's, which in a plan may be of another recipe: a parent that is drawn too."""
    return recipes.get(run.recipe).options_of(run)


def ids(runs):
    return [run.id for run in runs]


# Plans.

# SHA-256 of the ids of each plan, in its order: what is recorded stays findable. Nothing of `paper` is recorded yet.
PLANS = {
    ("rigl", "smoke"): (142, "11a1fb462d316ace"),
    ("rigl", "small"): (625, "528624bf649d3c25"),
    ("rigl", "full"): (534, "28a1938602c07ce7"),
    ("dmcp", "smoke"): (39, "a3f8e47bf8b4978c"),
    ("dmcp", "small"): (100, "855c2fc183db019d"),
    ("dmcp", "full"): (104, "e06a0c3e603f59f6"),
    ("rethinking", "smoke"): (79, "e60e49031e3b0131"),
    ("rethinking", "small"): (630, "12fe8dec781eb2b3"),
    ("rethinking", "full"): (483, "1cc8d1686d2a2f0a"),
    ("transfer", "smoke"): (103, "c00d37f6352dd14a"),
    ("transfer", "small"): (855, "5a1783fda3e0bd57"),
    ("transfer", "full"): (1080, "66be048db67c35e1"),
    ("afr", "smoke"): (76, "76d27b6c054a03be"),
    ("afr", "small"): (526, "6c80da6f68c8a302"),
    ("afr", "full"): (526, "4d47b57fe19f296c"),
    ("frontier", "smoke"): (42, "348d165311fe179b"),
    ("frontier", "small"): (170, "4ffb1a7129f62746"),
    ("frontier", "full"): (122, "eb8e582849fc2bc9"),
}


@pytest.mark.parametrize("study, profile", PLANS)
def test_ids_of_plans_stay_as_they_were(study, profile):
    found = ids(plan(recipes.STUDIES[study], profile))
    assert (len(found), hashlib.sha256("\n".join(found).encode()).hexdigest()[:16]) == PLANS[study, profile]


@ALL_STUDIES
def test_id_of_every_shipped_record_follows_from_its_options(study):
    own = {record["id"]: record for record in records.load(study.notebook)}
    shipped = {record["id"]: record for record in stores.shipped(plan(study, "smoke"))} | own

    def run_of(record):
        ids = record["parent"] if isinstance(record["parent"], list) else [record["parent"]] if record["parent"] else []
        defaults = recipes.get(record["recipe"]).defaults
        changed = {name: value for name, value in record["options"].items() if value != defaults[name]}
        return Run(record["recipe"], changed, record["seed"], tuple(run_of(shipped[parent]) for parent in ids))

    assert len(shipped) > 100
    assert all(run_of(record).id == run_id for run_id, record in own.items())


@ALL_STUDIES
def test_shipped_records_are_of_planned_runs_and_of_the_options_these_have_today(study):
    planned = {run.id: run for profile in PROFILES for run in engine.with_parents(plan(study, profile))}
    for record in records.load(study.notebook):
        assert record["id"] in planned, record["options"]
        # A default that changed would leave the ids alone, and make the old records wrong.
        assert record["options"].items() <= asdict(options_of(planned[record["id"]])).items()


@EACH
def test_plan_lists_each_run_of_its_experiments_once_and_reaches_their_parents(study, profile):
    planned = ids(plan(study, profile))
    assert len(set(planned)) == len(planned)
    assert set(planned) == {run_id for runs in experiments(study, profile).values() for run_id in ids(runs)}
    for name, runs in experiments(study, profile).items():
        assert len(set(ids(runs))) == len(runs), name
    seen = set()
    for run in engine.with_parents(plan(study, profile)):
        assert all(parent.id in seen and parent.seed == run.seed for parent in run.parents), run
        seen.add(run.id)


JUDGED = {name: set() for name in recipes.STUDIES}
for claim in claims.load():
    JUDGED[claim.recipe].update(*(cell.get("experiment", ()) for cell in claim.better))


@EACH
def test_every_experiment_has_as_many_runs_for_each_of_its_seeds(study, profile):
    for name, runs in experiments(study, profile).items():
        seeds = sorted(run.seed for run in runs)
        own = sorted(set(seeds))
        assert own == sorted(study.seeds[profile])[: len(own)], name
        assert seeds == sorted(own * (len(seeds) // len(own or [0]))), name
        is_judged = own and name in JUDGED[study.name]
        assert profile == "smoke" or len(own) >= 3 or not is_judged, name
    assert {run.seed for run in study.plan(profile, seeds=(5, 3))} <= {5, 3}


@EACH
def test_options_of_every_planned_run_go_together(study, profile):
    for run in engine.with_parents(plan(study, profile)):
        own = recipes.get(run.recipe)
        own.check(options_of(run), n_parents=len(run.parents))
        assert all(value != own.defaults[name] for name, value in run.options.items())


# Height and width of the images as they are published; none can be enlarged.
SIZES = {"digits": 8, "mnist": 28, "mnist10k": 28, "fashion_mnist": 28, "tiny-imagenet-200": 64}
SIZES |= dict.fromkeys(STREAMED, 224)


def size_of(options):
    return options.image_size or SIZES.get(options.dataset, 32)


@EACH
def test_no_image_of_a_plan_has_to_be_enlarged(study, profile):
    for run in first_seed(study, profile):
        options = options_of(run)
        assert size_of(options) <= SIZES.get(options.dataset, 32), run


@ALL_STUDIES
def test_unknown_profile_and_impossible_seeds_are_refused(study):
    for function in (study.plan, study.experiments):
        with pytest.raises(ValueError, match="unknown profile 'huge'; there are smoke, small, full, paper"):
            function("huge")
        for seeds in ((1, 1), ()):
            with pytest.raises(ValueError, match="seeds must be one or more different numbers"):
                function("smoke", seeds=seeds)


def test_recipes_are_found_by_name_and_by_notebook():
    assert recipes.get("rigl") is recipes.for_notebook("01_rigl") is RIGL
    with pytest.raises(ValueError, match="unknown recipe 'x'; there are rigl"):
        recipes.get("x")
    with pytest.raises(ValueError, match="unknown notebook '01'; there are 01_rigl"):
        recipes.for_notebook("01")


# Options.


@ALL
def test_every_option_has_a_type_a_default_and_a_line_of_help(recipe):
    described = describe(recipe.options)
    assert list(described) == list(recipe.defaults)
    for name, (kind, default, help) in described.items():
        assert recipe.defaults[name] == default and type(default).__name__.replace("NoneType", "None") in kind
        assert 10 < len(help) < 100 and "\n" not in help, name


@pytest.mark.parametrize(
    "recipe, options, message",
    [
        (RIGL, {"image_size": "16"}, "option image_size is int or None, got '16'"),
        (RIGL, {"n_train": 3.5}, "option n_train is int or None, got 3.5"),
        (RIGL, {"path": 7}, "option path is str or None, got 7"),
        (RIGL, {"density": True}, "option density is float, got True"),
        (RIGL, {"sparsity": 0.9}, "rigl has no option 'sparsity'; it has model, width"),
        (RETHINKING, {"max_epochs": 1.0}, "option max_epochs is int or None, got 1.0"),
        (RETHINKING, {"target": 1}, "option target is str or None, got 1"),
    ],
)
def test_options_of_another_type_or_of_no_recipe_are_refused(recipe, options, message):
    with pytest.raises(ValueError, match=message):
        recipe.run(seed=0, **options)


# Execution: each recipe's smallest runs.

TINY = {"dataset": "digits", "n_train": 128, "batch_size": 64, "n_epochs": 2}
RESNET = {"model": "resnet8", "width": 0.25}
PARENTS = {  # a sparse network; and one without some of its channels
    "rigl": [RIGL.run(seed=0, **TINY, **RESNET, method=method, density=0.5) for method in ("static", "rigl")],
    "rethinking": [
        dense := RETHINKING.run(seed=0, **TINY, **RESNET),
        RETHINKING.run(seed=0, parents=(dense,), **TINY, **RESNET, training="fine_tune", pruning="l1", density=0.5),
    ],
    "dmcp": [
        search := DMCP.run(seed=0, **TINY, **RESNET, training="dmcp"),
        DMCP.run(seed=0, parents=(search,), **TINY, **RESNET, training="scratch", design="expected"),
    ],
}
PARENTS["transfer"] = [
    TRANSFER.run(seed=0, parents=(PARENTS["rigl"][-1],), **TINY, **RESNET, upstream="rigl", density=0.5)
]
PARENTS["afr"] = [AFR.run(seed=0, **TINY, model="vit_micro4", width=0.25, training="dino", warmup_epochs=0)]
CHILDREN = {
    "rigl": {"method": "static", "start": "solution"},
    "rethinking": {"training": "scratch_e", "pruning": "magnitude", "density": 0.2},
    "transfer": {"density": 0.5},
}
UPSTREAM_OF = {"rigl": "rigl", "rethinking": "l1"}  # transfer names the method that made its parent


@functools.cache
def executed(run):
    parents = [executed(parent)["state"] for parent in run.parents]
    return runner.execute(recipes.get(run.recipe), run, device="cpu", parents=parents)


PAIRS = [
    (parent, child)
    for parent in PARENTS
    for child in CHILDREN
    if parent != "afr" and (child != "transfer" or parent in UPSTREAM_OF)  # a transformer fits no other network
]


@pytest.mark.parametrize("of_parent, of_child", PAIRS)
def test_run_of_any_recipe_is_parent_to_a_run_of_any_other(of_parent, of_child):
    parent = PARENTS[of_parent][-1]
    if of_child == "rigl" and of_parent in ("rethinking", "dmcp"):  # RigL starts from a mask of single weights
        large = dense if of_parent == "rethinking" else parent
        parent = RETHINKING.run(
            seed=0, parents=(large,), **TINY, **RESNET, training="fine_tune", pruning="magnitude", density=0.3
        )
    own = CHILDREN[of_child] | ({"upstream": UPSTREAM_OF[of_parent]} if of_child == "transfer" else {})
    child = recipes.get(of_child).run(seed=0, parents=(parent,), **TINY, **RESNET, **own)
    result, handed_on = executed(child), executed(parent)["state"]
    assert result["status"] == "finished"
    assert result["metrics"]["total_training_macs"] == result["metrics"]["training_macs"] + handed_on.training_macs
    assert result["state"].widths == handed_on.widths  # what was cut off before is still gone
    shapes = {name: value.shape for name, value in handed_on.model.items()}
    assert {name: value.shape for name, value in result["state"].model.items()} == shapes
    for name, mask in result["state"].masks.items():
        assert not (mask & ~handed_on.masks.get(name, torch.ones_like(mask))).any()


@ALL
def test_killed_run_goes_on_from_its_checkpoint_to_the_same_numbers(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    run = PARENTS[recipe.name][0]
    how = {"device": "cpu", "parents": [executed(parent)["state"] for parent in run.parents]}
    turns = runner.executing(recipe, run, checkpoint=tmp_path / "state", **how)
    for _ in range(3):  # an epoch has two steps
        next(turns)
    turns.close()
    assert (tmp_path / "state").exists()
    again = runner.execute(recipe, run, checkpoint=tmp_path / "state", **how)
    for key in ("metrics", "curves", "layers", "moves"):
        assert again[key] == executed(run)[key]


# What these learn beside the weights has gradients that nobody scales back.
IN_FLOAT32 = [search, RETHINKING.run(seed=0, **TINY, **RESNET, pruning="selection")]


@ALL
def test_on_a_t4_runs_train_in_float16_to_about_the_same_loss(recipe, monkeypatch):
    runs = {run: executed(run) for run in [*PARENTS[recipe.name], *IN_FLOAT32] if run.recipe == recipe.name}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)  # torch emulates it there
    for module in (runner, dmcp_setup, rethinking_setup):
        monkeypatch.setattr(module, "best_precision", lambda device, model: best_precision("cuda", model))
    for run, usual in runs.items():
        parents = [executed(parent)["state"] for parent in run.parents]
        result = runner.execute(recipe, run, device="cpu", parents=parents)
        assert result["precision"] == ("fp32" if run in IN_FLOAT32 else "fp16"), run
        assert result["curves"]["train_loss"] == pytest.approx(usual["curves"]["train_loss"], rel=0.02), run


# One of each kind of run of `full` takes a step, on noise in the shape of its images.


def noise(options, device):
    name, size = options.dataset, size_of(options)
    is_grey = any(part in name for part in ("mnist", "digits", "glyphs")) and not options.in_colour
    num_classes = {"tiny-imagenet-200-32px": 200, "omniglot-small": 242, "cifar100": 100}.get(name, 10)
    n = {"supervised": 20, "dino": 20}.get(getattr(options, "training", None), 8)  # that many neighbours vote
    n = {"woodfisher": 32}.get(getattr(options, "method", None), n)  # so many gradients are taken at once
    images = torch.randint(256, (n, size, size, 1 if is_grey else 3), dtype=torch.uint8)
    labels = torch.arange(n) % num_classes
    names = tuple(map(str, range(num_classes)))
    return data.Dataset(name, images, labels, images, labels, names, flip=True, source="noise", sha256="0")


KINDS = {
    "rigl": ("method", "model", "dataset", "distribution", "equal", "first_layer", "start", "optimizer", "decay"),
    "rethinking": ("model", "training", "pruning", "start"),
    "dmcp": ("model", "training", "sandwich", "independent"),  # test_recipe_dmcp has each design
    "transfer": ("training", "upstream", "model", "checkpoint", "n_passes"),
    "afr": ("model", "training", "pretrained", "score", "probed"),
}


def of_each_kind(study, profile):
    """Runs that together have every value of the options in `KINDS`; `smoke` has them in all combinations."""
    seen, chosen = set(), []
    runs = [run for run in first_seed(study, profile) if run.options.get("path") is None]  # which needs more images
    for run in sorted(runs, key=lambda run: "vgg" in options_of(run).model):  # the slowest only where they must
        kinds = {(run.recipe, name, getattr(options_of(run), name)) for name in KINDS[run.recipe]}
        chosen += [] if kinds <= seen else [run]
        seen |= kinds
    return engine.with_parents(chosen)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:density .* leaves no channel", "ignore:density .* would empty")
@ALL_STUDIES  # test_paper has those of `paper`
def test_each_kind_of_run_of_the_full_profile_takes_a_step_and_hands_on_its_state(study, monkeypatch):
    monkeypatch.setattr(runner, "dataset_of", noise)
    # Thousands of networks are judged else; the fourth tenth of all groups is as good here.
    monkeypatch.setattr(dmcp_setup, "greedy", lambda grid, cost, *, budget, loss: grid.at(3))
    monkeypatch.setattr(dmcp_setup, "evolve", lambda grid, cost, *, budget, loss, **options: grid.at(4))
    monkeypatch.setattr(dmcp_setup.Search, "found", lambda search, _: dict.fromkeys(SAMPLED, search.grid.at(4)))
    narrow = {"width": 0.125} if study in (AFR, TRANSFER) else {}
    states = {}
    for run in of_each_kind(study, "full"):
        few = {"n_train": None, "batch_size": 8, "n_epochs": 1, "rewind_epochs": 0.0}
        few |= {} if study is TRANSFER else {"train_multiplier": 1.0}  # it tells RigL from RigL five times as long
        few |= {
            "fine_tune_epochs": 1,
            "max_epochs": 1,
            "warmup_epochs": 0,
            "image_size": min(32, size_of(options_of(run))),
            "enlarged_to": None,
            "n_rounds": 1,
            "n_scored": 8,
            "n_scenes": 8,
            "fisher_gradients": 8,
            "stop_update": 1.0,
        }
        own = recipes.get(run.recipe)
        few = {name: value for name, value in (few | narrow).items() if name in own.defaults}
        small = Run(run.recipe, dict(run.options) | few, 0, run.parents)
        parents = [states[parent.id] for parent in run.parents]
        result = runner.execute(own, small, device="cpu", parents=parents)
        assert result["status"] == "finished", run
        states[run.id] = result["state"]


@ALL_STUDIES
def test_every_run_of_the_small_profiles_can_be_forecast(study, monkeypatch):
    monkeypatch.setattr(runner, "foreseen", lambda options: noise(options, "cpu"))
    for run in [*first_seed(study, "smoke"), *first_seed(study, "small")]:
        few = Run(run.recipe, dict(run.options) | {"batch_size": 8}, 0, run.parents)
        workload = runner.forecast(recipes.get(run.recipe), few)
        assert workload.macs > 0 and workload.n_steps + workload.n_evaluated > 0, run


# A recipe of one's own: all that a new paper needs.


@dataclass(frozen=True, kw_only=True)
class ToyOptions(TrainingOptions):
    """A perceptron of one hidden layer."""

    hidden: int = option("units of the hidden layer", 8)
    model: str = "perceptron"
    dataset: str = "digits"
    n_epochs: int = 2
    batch_size: int = 64
    optimizer: str = "sgd"
    schedule: str = "cosine"
    weight_decay: float = 0.0


def toy_check(options, *, n_parents):
    if options.hidden < 1:
        raise ValueError(f"hidden must be at least 1, got {options.hidden}")


def toy_setup(options, dataset, parents, *, seed):
    torch.manual_seed(seed)
    n_pixels = dataset.channels * dataset.image_size**2
    model = nn.Sequential(nn.Flatten(), nn.Linear(n_pixels, options.hidden), nn.ReLU(), nn.Linear(options.hidden, 10))
    if parents:
        model.load_state_dict(parents[0].model)
    return Setup(
        model,
        reference=cost.layer_table(model, **image_of(dataset)),
        n_epochs=options.n_epochs,
        ordinary_epochs=options.n_epochs,
    )


def toy_experiments(profile, seeds):
    runs = [make_run("toy", ToyOptions, seed=seed, hidden=hidden) for seed in seeds for hidden in (4, 8)]
    return {"first": runs, "onward": [make_run("toy", ToyOptions, seed=0, parents=(runs[1],))]}


TOY = Recipe(
    name="toy",
    notebook="00_toy",
    options=ToyOptions,
    seeds=dict.fromkeys(PROFILES, (0,)),
    experiments_of=toy_experiments,
    check=toy_check,
    outline=lambda options, dataset: Outline(1.0, options.n_epochs),
    setup=toy_setup,
)


def test_toy_recipe_is_planned_trained_and_handed_on(monkeypatch):
    monkeypatch.setitem(recipes.RECIPES, "toy", TOY)
    first, second, onward = TOY.plan("smoke")
    assert executed(first)["metrics"]["n_stored_weights"] == 4 * (64 + 10)
    after = executed(onward)
    assert after["metrics"]["total_training_macs"] == 2 * after["metrics"]["training_macs"]
    assert after["curves"]["train_loss"][-1] < executed(second)["curves"]["train_loss"][-1]
    with pytest.raises(ValueError, match="hidden must be at least 1, got 0"):
        executed(TOY.run(seed=0, hidden=0))
