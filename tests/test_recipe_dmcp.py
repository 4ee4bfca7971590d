"""The recipe of 02_dmcp: what it compares is comparable, and what is recorded of a network is true of it."""

import functools
import math
from dataclasses import asdict, replace

import pytest
import torch

from prunelab import cost, data
from prunelab.channels.dmcp import Search
from prunelab.channels.groups import Grid, groups_of, leading_state
from prunelab.channels.slimmable import calibrate
from prunelab.channels.trace import trace
from prunelab.models import build_model
from prunelab.recipes import PROFILES, runner
from prunelab.recipes.common import generator_of
from prunelab.recipes.dmcp import DMCP
from prunelab.recipes.dmcp.plan import DESIGNS, FOUND, LOOKED_FOR, SAMPLED, TRAININGS
from prunelab.recipes.recipe import State
from prunelab.training import evaluate

# Eight steps: four in which chains learn, fast.
TINY = {"dataset": "digits", "n_train": 128, "model": "resnet8", "width": 0.5, "batch_size": 32, "n_epochs": 2}
TINY |= {"label_smoothing": 0.0, "alpha_rate": 2.0}
IMAGE = {"in_channels": 1, "image_size": 8}


def execute(*parents, seed=0, **options):
    """Executes a run; parents are states, or records of runs."""
    run = DMCP.run(seed=seed, **TINY | options)
    return runner.execute(DMCP, run, device="cpu", parents=[state_of(parent) for parent in parents])


def state_of(parent):
    return parent if isinstance(parent, State) else parent["state"]


@functools.cache
def trained(training, **options):
    return execute(training=training, **options)


@functools.cache
def looked(design):
    kind = "slimmable" if design == "greedy" else "metapruning"
    return execute(trained(kind), training="none", design=design, n_validation=40)


def parents_of(design):
    """What the plans give a network of this design; a search of eight steps need not have drawn networks."""
    if design in LOOKED_FOR:
        return [looked(design)]
    if design in SAMPLED:
        state = trained("dmcp")["state"]
        drawn = {f"direct_{i}": {**state.found["smallest"], "conv": i} for i in range(1, 6)}
        return [replace(state, found=drawn | state.found)]
    return [trained("dense", penalty=0.01)] if design == "slimming" else []


@functools.cache
def final(training, design, **options):
    return execute(*parents_of(design), training=training, design=design, **options)


def build(widths=None):
    return build_model("resnet8", num_classes=10, width=0.5, widths=widths, **IMAGE)


def macs_of(widths=None):
    return cost.total(cost.layer_table(build(widths), **IMAGE), "macs")


def evaluated(result):
    """Loss and accuracy of the network that a run hands on, when it is built by itself."""
    model = build(result["widths"])
    model.load_state_dict(result["state"].model)
    return evaluate(model, digits())


def digits():
    return data.load("digits", n_train=TINY["n_train"])


def grid():
    return Grid(groups_of(trace(build(), **IMAGE)))


def is_equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# What is planned.


def test_every_training_and_every_design_is_planned():
    planned = [DMCP.options_of(run) for profile in PROFILES for run in DMCP.plan(profile, seeds=[0])]
    assert {options.training for options in planned} == set(TRAININGS)
    assert {options.design for options in planned} == {None, *DESIGNS}


@pytest.mark.parametrize("profile", PROFILES)
def test_rivals_of_one_comparison_differ_in_their_widths_only(profile):
    for name, runs in DMCP.experiments(profile).items():
        if name.startswith("main"):
            dense, *others = [asdict(DMCP.options_of(run)) for run in runs if run.seed == 0]
            ours = {"training": "scratch", "budget": others[0]["budget"]}
            assert all(options == dense | ours | {"design": options["design"]} for options in others)
            assert len({options["design"] for options in others}) == len(others) == 6


@pytest.mark.parametrize("profile", PROFILES)
def test_images_on_which_widths_are_looked_for_are_none_that_the_network_was_trained_on(profile):
    for run in DMCP.plan(profile, seeds=[0]):
        options = DMCP.options_of(run)
        if options.training == "none":
            (parent,) = (DMCP.options_of(own) for own in run.parents)
            # Those to train on come first, and those that are held out after them: see data.split.
            assert parent.n_train and options.n_train in (None, parent.n_train)
            if profile == "smoke":
                seen = data.load("digits", n_train=parent.n_train).train_images.flatten(1).tolist()
                held_out = data.load("digits", n_train=options.n_train, n_validation=options.n_validation)
                assert len(seen) + options.n_validation == data.load("digits").n_train
                assert not set(map(tuple, held_out.test_images.flatten(1).tolist())) & set(map(tuple, seen))


@pytest.mark.parametrize(
    "model, message", [("resnet8_wide_early", "ties layers of several groups"), ("densenet22", "first channels only")]
)
def test_network_that_cannot_be_slimmed_is_refused_before_it_is_trained(model, message, monkeypatch):
    monkeypatch.setattr(runner, "training", None)  # which would be called
    for training in ("dense", "slimmable", "dmcp", "metapruning"):
        with pytest.raises(ValueError, match=message):
            execute(training=training, model=model)


# What is executed.


@pytest.mark.parametrize("training", ["dense", "slimmable", "dmcp", "metapruning"])
def test_large_networks_are_judged_at_every_tenth_of_their_channels(training):
    result = trained(training)
    metrics = result["metrics"]
    assert result["status"] == "finished" and all(math.isfinite(value) for value in metrics.values())
    assert metrics["macs"] == macs_of() and metrics["macs_ratio"] == metrics["measured_density"] == 1
    assert len(result["cut"]) == 10 and metrics["half_width_accuracy"] == result["cut"][4]
    assert result["found"] == result["state"].found and bool(result["found"]) == (training == "dmcp")
    if training == "metapruning":
        assert metrics["test_accuracy"] == result["cut"][-1]


def test_training_at_several_widths_is_accounted_for_pass_by_pass():
    smallest, full = macs_of(grid().at(0)), macs_of()
    metrics = final("distilled", "smallest")["metrics"]
    assert metrics["training_macs"] == 3 * 8 * 32 * (full + smallest)
    assert metrics["macs_ratio"] == smallest / full
    assert trained("dense")["metrics"]["training_macs"] == 3 * 8 * 32 * full
    plain = trained("dmcp", sandwich=False)["metrics"]  # eight passes of the weights, four of the chains
    assert plain["training_macs"] == 3 * 12 * 32 * full


@pytest.mark.parametrize("design", DESIGNS)
def test_scratch_network_of_each_design_has_the_widths_that_are_recorded(design):
    result = final("scratch", design)
    metrics, widths = result["metrics"], result["widths"]
    assert result["status"] == "finished" and all(math.isfinite(value) for value in metrics.values())
    assert metrics["macs_ratio"] == macs_of(widths) / macs_of()
    assert metrics["training_macs"] == 3 * 8 * 32 * macs_of(widths)
    spent = sum(state_of(parent).training_macs for parent in parents_of(design))
    assert metrics["total_training_macs"] == metrics["training_macs"] + spent
    assert result["state"].widths == widths
    assert evaluated(result) == pytest.approx((metrics["test_loss"], metrics["test_accuracy"]), rel=1e-5)
    shares = [widths[name] / n for name, n in grid().at(-1).items()]
    assert metrics["depth_tilt"] == pytest.approx(sum(shares[-2:]) / 2 - sum(shares[:2]) / 2)
    if design in ("uniform", "random", "slimming"):
        assert metrics["macs_ratio"] == pytest.approx(0.25, rel=0.06)
    elif design in LOOKED_FOR:
        assert 0.15 < looked(design)["metrics"]["macs_ratio"] <= 0.25 and looked(design)["found"] == {design: widths}


@pytest.mark.parametrize("design", ["uniform", "greedy", "direct_3"])
def test_distilled_network_is_recorded_as_it_is_when_it_stands_alone(design):
    result = final("distilled", design)
    metrics = result["metrics"]
    assert evaluated(result) == pytest.approx((metrics["test_loss"], metrics["test_accuracy"]), rel=1e-5)
    assert metrics["macs_ratio"] == macs_of(result["widths"]) / macs_of()
    assert result["widths"] == final("scratch", design)["widths"]


def test_networks_of_the_same_widths_start_from_the_same_values_however_these_were_found():
    first = final("scratch", "largest")
    for design in ("uniform", "slimming"):  # the latter builds the network that was trained with a penalty first
        result = final("scratch", design, budget=1.0)
        assert result["widths"] == first["widths"] == grid().at(-1)
        assert result["curves"] == first["curves"] and is_equal(result["state"].model, first["state"].model)
    other = execute(training="scratch", design="uniform", budget=1.0, seed=1)
    assert not is_equal(other["state"].model, first["state"].model)


@pytest.mark.parametrize("design, kind", [("greedy", "slimmable"), ("evolved", "metapruning")])
def test_looking_for_widths_leaves_the_trained_network_as_it_was_and_ends_on_the_best_loss(design, kind):
    parent, result = trained(kind)["state"], looked(design)
    metrics, losses = result["metrics"], result["curves"]["validation_loss"]
    assert is_equal(result["state"].model, parent.model) and not parent.found
    assert metrics["validation_loss"] == losses[-1] and losses[-1] in losses[:-1]
    assert design == "greedy" or losses[-1] == min(losses)
    # 40 held-out images, and four batches of 125 for the statistics, for each loss.
    spent = metrics["total_training_macs"] - parent.training_macs
    assert result["state"].training_macs == metrics["total_training_macs"]
    assert 0.05 < spent / (540 * len(losses) * macs_of()) < 1.0


def test_cut_networks_are_those_that_are_built_with_statistics_of_their_own():
    for training in ("dense", "slimmable"):
        for choice in (0, 4, 9):
            model = build(grid().at(choice))
            model.load_state_dict(leading_state(model, trained(training)["state"].model))
            options = {"batch_size": 125, "augment": False, "generator": generator_of("calibration", 0)}
            batches = digits().train_batches(**options)
            calibrate(model, [next(batches)[0].clone() for _ in range(4)])
            assert evaluate(model, digits())[1] == trained(training)["cut"][choice]


def test_diverged_search_has_found_nothing_and_its_children_say_so(monkeypatch):
    monkeypatch.setattr(Search, "_step_alphas", lambda search, *args: search.markov.alphas.data.fill_(math.nan))
    result = execute(training="dmcp", warm_up=0.25)
    assert result["status"] == "diverged" and result["state"].found == {}
    assert not {"cut", "found", "half_width_accuracy"} & (result.keys() | result["metrics"].keys())
    with pytest.raises(ValueError, match="the parent has diverged; no widths can be found in it"):
        execute(result, training="scratch", design="expected")


@pytest.mark.parametrize(
    "training, design", [("slimmable", "greedy"), ("metapruning", "evolved"), ("dense", "slimming")]
)
def test_no_widths_are_found_in_a_network_that_diverged(training, design):
    result = execute(training=training, learning_rate=1e30, penalty=0.01 * (training == "dense"))
    assert result["status"] == "diverged"
    child = {"training": "scratch"} if design == "slimming" else {"training": "none", "n_validation": 40}
    with pytest.raises(ValueError, match="the parent has diverged; no widths can be found in it"):
        execute(result, design=design, **child)


def test_training_without_epochs_is_refused():
    with pytest.raises(ValueError, match="n_epochs must be at least 1, got 0"):
        execute(training="slimmable", n_epochs=0)


def test_search_without_drawn_networks_says_so():
    state = replace(trained("dmcp")["state"], found=looked("greedy")["found"])
    with pytest.raises(
        ValueError, match="the parent has found no widths 'direct_1' for this network; it has found greedy"
    ):
        execute(state, training="scratch", design="direct_1")


@pytest.mark.parametrize(
    "n_parents, options, message",
    [
        (0, {"training": "scratches"}, "unknown training 'scratches'; there are dense, slimmable"),
        (0, {"training": "scratch"}, "unknown design None; there are uniform, random"),
        (0, {"training": "distilled", "design": "thin"}, "unknown design 'thin'; there are uniform, random"),
        (0, {"design": "uniform"}, "unknown design 'uniform'; there are None"),
        (1, {"training": "none", "design": "expected"}, "unknown design 'expected'; there are greedy, evolved"),
        (0, {"training": "none", "design": "greedy"}, "training=none design=greedy needs 1 parents, got 0"),
        (1, {"training": "slimmable"}, "training=slimmable design=None needs 0 parents, got 1"),
        (1, {"training": "scratch", "design": "random"}, "needs 0 parents, got 1"),
        *(
            (0, {"training": "distilled", "design": design}, "needs 1 parents, got 0")
            for design in ("slimming", *FOUND)
        ),
        *((0, {"budget": budget}, "budget is a share .* in .0, 1.; got") for budget in (0.0, 1.1)),
        *((0, {"warm_up": warm_up}, "warm_up is a share .* in .0, 1.; got") for warm_up in (-0.1, 1.0)),
    ],
)
def test_options_that_do_not_go_together_are_refused(n_parents, options, message):
    with pytest.raises(ValueError, match=message):
        DMCP.check(DMCP.options(**options), n_parents=n_parents)


@pytest.mark.parametrize("design, kind", [("greedy", "metapruning"), ("evolved", "slimmable")])
def test_parent_in_which_no_widths_can_be_looked_for_is_refused(design, kind):
    with pytest.raises(ValueError, match=r"the parent is no (ResNet|MetaNetwork) of resnet8: Error"):
        execute(trained(kind), training="none", design=design)
