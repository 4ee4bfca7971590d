"""Fronts: by hand, by an independent slow loop, and by what must hold; and the plan, whose runs are trained alike."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from prunelab import frontier, recipes, records, sparse_inference
from prunelab.bench import front
from prunelab.recipes import PROFILES, runner
from prunelab.recipes.rigl.plan import experiments as rigl_experiments
from prunelab.sparse_inference import SparseConv

FRONTIER = recipes.STUDIES["frontier"]

# The front.


@pytest.mark.parametrize(
    "costs, values, on_front",
    [
        ([1, 2, 3], [0.5, 0.6, 0.7], [True, True, True]),
        ([1, 2, 3], [0.5, 0.4, 0.7], [True, False, True]),  # dearer than the first, and worse
        ([1, 1, 2], [0.5, 0.6, 0.6], [False, True, False]),  # as cheap and worse; as good and dearer
        ([1, 1], [0.5, 0.5], [True, True]),  # neither is better in anything
        ([1, np.nan], [0.5, 0.9], [True, False]),  # what it costs is not known
        ([], [], []),
    ],
)
def test_point_is_on_the_front_unless_another_is_no_worse_and_better_in_one(costs, values, on_front):
    assert frontier.pareto(costs, values).tolist() == on_front


def slowly(costs, values):
    found = []
    for i in range(len(costs)):
        dominated = False
        for j in range(len(costs)):
            if costs[j] <= costs[i] and values[j] >= values[i] and (costs[j] != costs[i] or values[j] != values[i]):
                dominated = True
        found.append(not dominated)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_front_is_that_of_two_loops_rises_and_does_not_hang_on_what_is_below_it(seed):
    generator = np.random.default_rng(seed)
    costs, values = generator.integers(0, 12, (2, 40))  # with ties
    on_front = frontier.pareto(costs, values)
    assert on_front.tolist() == slowly(costs, values)
    order = np.lexsort((values[on_front], costs[on_front]))
    assert (np.diff(values[on_front][order]) >= 0).all()
    without = np.delete(np.arange(40), generator.choice(np.flatnonzero(~on_front)))
    assert frontier.pareto(costs[without], values[without]).tolist() == on_front[without].tolist()


# Networks, their costs and what to pick.


def run(way, kind_of, seed, accuracy, *, density, macs, **more):
    """A run whose network has 320 weights, dense; `more` overrides what it stores."""
    recipe, method = kind_of
    row = {"experiment": way, "id": f"{way}{density}{seed}", "recipe": recipe, "method": method, "density": density}
    row |= {"budget": np.nan, "seed": seed, "test_accuracy": accuracy, "macs_ratio": macs, "measured_density": density}
    row |= {"n_reference_weights": 320, "n_active": round(320 * density), "n_stored_weights": round(320 * density)}
    return row | {"training_macs": 100.0, "total_training_macs": 100.0 * macs} | more


RIGL, SMALL, L1 = ("rigl", "rigl"), ("rigl", "small_dense"), ("rethinking", np.nan)
MASKED = {"n_stored_weights": 320}
RUNS = [
    *(run("dense", ("rigl", "dense"), seed, 0.80 + 0.01 * seed, density=1.0, macs=1.0) for seed in range(3)),
    *(run("rigl", RIGL, seed, (0.72, 0.75, 0.78)[seed], density=0.1, macs=0.18, **MASKED) for seed in range(3)),
    *(run("small_dense", SMALL, seed, (0.70, 0.71, 0.72)[seed], density=0.1, macs=0.11) for seed in range(3)),
    *(run("small_dense", SMALL, seed, (0.71, 0.73, 0.60)[seed], density=0.105, macs=0.12) for seed in range(3)),
    *(run("l1", L1, seed, 0.76, density=0.5, macs=0.52) for seed in range(3)),
    run("prepared", L1, 0, 0.9, density=1.0, macs=1.0),
]
TIMES = {f"dense1.0{seed}": 1.0 for seed in range(3)} | {f"l10.5{seed}": 0.8 for seed in range(3)}
COSTED = frontier.costed(pd.DataFrame(RUNS), TIMES)
NETWORKS = frontier.networks(COSTED)


def test_network_costs_shares_of_the_dense_one_and_a_mask_its_positions():
    assert "prepared" not in set(COSTED["experiment"])
    assert list(NETWORKS.index) == ["dense 1", "rigl 0.1", "small_dense 0.1", "small_dense 0.105", "l1 0.5"]
    assert NETWORKS.loc["rigl 0.1", ["weights", "macs"]].tolist() == [0.1, 0.18]
    # 32 weights of 32 bits and 320 positions of one, of 320 weights of 32 bits.
    assert NETWORKS.at["rigl 0.1", "bytes"] == (32 * 32 + 320) / (320 * 32) == 0.13125
    assert NETWORKS.at["small_dense 0.1", "bytes"] == 0.1
    assert NETWORKS.at["l1 0.5", "time"] == 0.8 and np.isnan(NETWORKS.at["rigl 0.1", "time"])
    assert NETWORKS.at["rigl 0.1", "training"] == 0.18


def test_network_has_the_mean_of_its_seeds_and_an_interval_unless_it_has_one():
    assert NETWORKS.at["rigl 0.1", "accuracy"] == pytest.approx(0.75)
    assert (NETWORKS["low"] < NETWORKS["accuracy"]).all() and (NETWORKS["accuracy"] < NETWORKS["high"]).all()
    of_one = frontier.networks(COSTED[COSTED["seed"] == 0])
    assert of_one[["low", "high"]].isna().all(axis=None) and of_one.at["rigl 0.1", "accuracy"] == 0.72
    assert set(frontier.share_on_front(of_one, "macs")) <= {0.0, 1.0}  # what has no interval does not move


def test_share_on_front_is_a_half_for_equals_and_grows_with_the_lead():
    found = pd.DataFrame({"accuracy": [0.5, 0.5, 0.9, 0.3], "macs": [0.5, 0.5, 1.0, 0.5]}, index=list("abcd"))
    shares = frontier.share_on_front(found.assign(error=0.01, df=6.0), "macs")
    assert shares["a"] == pytest.approx(0.5, abs=0.05) and shares["a"] + shares["b"] == pytest.approx(1.0, abs=0.01)
    assert shares["c"] == 1.0 and shares["d"] == 0.0


def test_most_accurate_network_of_each_kind_within_all_budgets_is_recommended_the_best_first():
    ranked = frontier.recommend(NETWORKS, {"macs": 0.2})
    assert list(ranked.index) == ["rigl 0.1", "small_dense 0.1"] and list(ranked["kind"]) == ["masked", "dense"]
    assert ranked["behind"].tolist() == pytest.approx([0.0, 0.04])
    best, second = (NETWORKS.loc[name] for name in ranked.index)
    # Welch's t; of the common variance's degrees of freedom both have one share, of their own 2 each.
    t = 0.04 / np.sqrt(best["error"] ** 2 + second["error"] ** 2)
    assert ranked["p"].tolist() == pytest.approx([np.nan, 2 * stats.t.sf(t, best["df"] + 2)], nan_ok=True)
    assert list(frontier.recommend(NETWORKS, {"macs": 0.2, "bytes": 0.12}).index) == ["small_dense 0.1"]
    # Of those whose time is known.
    assert list(frontier.recommend(NETWORKS, {"time": 1.0}).index) == ["dense 1", "l1 0.5"]
    assert frontier.recommend(NETWORKS, {"training": 0.17}).index[0] == "small_dense 0.1"


def test_network_of_fewer_seeds_than_others_is_not_recommended():
    few = COSTED[(COSTED["network"] != "rigl 0.1") | (COSTED["seed"] == 0)]
    assert frontier.recommend(frontier.networks(few), {"macs": 0.2}).index[0] == "small_dense 0.1"
    of_one = frontier.recommend(frontier.networks(COSTED[COSTED["seed"] == 0]), {"macs": 0.2})
    assert list(of_one.index) == ["rigl 0.1", "small_dense 0.105"] and of_one["p"].isna().all()


def test_larger_budget_never_gives_less():
    shares = 0.11, 0.15, 0.18, 0.6, 1.0
    found = [frontier.recommend(NETWORKS, {"macs": macs})["accuracy"].iloc[0] for macs in shares]
    assert found == sorted(found)


@pytest.mark.parametrize(
    "budgets, message",
    [
        ({}, "give a budget of one or several of weights, macs, bytes, time"),
        ({"flops": 0.5}, "unknown cost 'flops'; there are weights, macs, bytes, time, training"),
        ({"macs": 0}, "such as 0.25; got macs 0"),
        ({"macs": 25}, "such as 0.25; got macs 25"),
        ({"training": float("nan")}, "such as 0.25; got training nan"),
        (
            {"macs": 0.01},
            "no network that is left costs at most 0.01 of the macs; the least, small_dense 0.1, costs 0.11",
        ),
        ({"time": 0.8, "macs": 0.2}, "costs at most 0.2 of the macs; the least, l1 0.5, costs 0.52"),
    ],
)
def test_budget_that_cannot_be_kept_is_refused(budgets, message):
    with pytest.raises(ValueError, match=message):
        frontier.recommend(NETWORKS, budgets)


# What claims compare.


def test_best_of_a_kind_within_a_budget_is_chosen_by_the_other_seeds():
    best = frontier.best_within(COSTED).query("axis == 'weights' and within == 0.1 and kind == 'dense'")
    # Small networks of 10 and 10.5 %, within 5 % above: others' means .715 and .665, .71 and .655, .705 and .72.
    assert best.sort_values("seed")["network"].tolist() == ["small_dense 0.1", "small_dense 0.1", "small_dense 0.105"]
    assert best.sort_values("seed")["test_accuracy"].tolist() == [0.70, 0.71, 0.60]
    within = frontier.best_within(COSTED)
    assert within.query("axis == 'weights' and within == 0.1 and kind == 'pruned'").empty  # nothing fits
    assert within.query("axis == 'time' and within == 0.8")["network"].tolist() == ["l1 0.5"] * 3
    assert set(within["id"]) <= set(COSTED["id"]) and set(within["experiment"]) == {"within"}


def test_rows_within_budgets_are_there_once_all_that_is_planned_is_on_record():
    frame = pd.DataFrame(RUNS)
    longer, planned = frontier.with_best(frame, frame[["id", "experiment"]], TIMES)
    assert len(longer) > len(frame) and len(planned) == len(longer)
    partly = frame.iloc[1:]
    assert [len(table) for table in frontier.with_best(partly, frame, TIMES)] == [len(partly), len(frame)]
    assert len(frontier.with_best(pd.DataFrame(), frame, TIMES)[0]) == 0


# The plan.

SHARED = (
    *("model", "width", "dataset", "image_size", "n_train", "n_validation", "n_epochs", "batch_size", "optimizer"),
    *("learning_rate", "schedule", "momentum", "weight_decay", "augment", "label_smoothing", "warmup_epochs"),
)


@pytest.mark.parametrize("profile", PROFILES)
def test_all_networks_on_a_front_are_trained_alike(profile):
    for name, runs in FRONTIER.experiments(profile).items():
        for run in runs if name in frontier.KINDS else ():
            own, like = (recipes.get(each.recipe).defaults | dict(each.options) for each in (run, first(profile)))
            assert {key: own[key] for key in SHARED if key in own} == {key: like[key] for key in SHARED if key in own}
            assert (own.get("train_multiplier", 1.0) == 1.0) == (not name.endswith("_long"))


def first(profile):
    (dense, *_) = FRONTIER.experiments(profile)["dense"]
    return dense


@pytest.mark.parametrize("profile", ["smoke", "small", "full"])
def test_masks_and_small_dense_networks_are_the_runs_of_01_rigl(profile):
    main = {run.id for run in rigl_experiments(profile, FRONTIER.seeds[profile])["main"]}
    for name in ("dense", "static", "snip", "set", "rigl"):
        assert {run.id for run in FRONTIER.experiments(profile)[name]} <= main


def test_every_way_has_a_kind_and_what_is_prepared_has_none():
    for profile in PROFILES:
        ways = FRONTIER.experiments(profile).keys()
        assert {way for way in ways if not way.startswith("prepared")} == frontier.KINDS.keys()


def test_distilled_network_is_as_wide_as_the_small_dense_one_that_a_claim_sets_beside_it():
    """FRONT-C5a."""
    shipped = {record["id"]: record for record in records.load("06_frontier") + records.load("01_rigl")}
    ways = FRONTIER.experiments("small")
    like = ("small_dense_macs", 0.1)
    options = {run: recipes.get("rigl").options_of(run) for run in ways["small_dense"]}
    small = next(run for run, own in options.items() if (own.method, own.density) == like)
    shapes = [[layer["shape"] for layer in shipped[run.id]["layers"]] for run in (small, ways["distilled"][0])]
    assert shapes[0] == shapes[1]


# Times.


@pytest.mark.parametrize("way", frontier.KINDS)
def test_network_that_is_timed_has_the_shapes_of_its_record(way):
    shipped = {record["id"]: record for record in records.load("06_frontier") + records.load("01_rigl")}
    for record in {run.options.get("density"): shipped[run.id] for run in FRONTIER.experiments("small")[way]}.values():
        model = front.network(record)
        for layer in record["layers"]:
            assert list(model.get_submodule(layer["name"]).weight.shape) == layer["shape"]


TINY = {"dataset": "digits", "n_train": 128, "batch_size": 64, "n_epochs": 1, "model": "resnet8", "width": 0.5}


def recorded(name, run, parents=()):
    result = runner.execute(recipes.get(name), run, device="cpu", parents=parents)
    options = recipes.get(name).defaults | dict(run.options)
    return {"id": run.id, "recipe": name, "options": options} | result


def test_networks_are_built_from_their_records_and_timed_beside_the_dense_one():
    rigl, rethinking = recipes.get("rigl"), recipes.get("rethinking")
    dense = rigl.run(seed=0, **TINY, method="dense", density=1.0)
    masked = rigl.run(seed=0, **TINY, method="static", density=0.1)
    small = rigl.run(seed=0, **TINY, method="small_dense", density=0.1)
    pruned = rethinking.run(seed=0, **TINY, training="scratch_e", pruning="predefined", density=0.5)
    found = [recorded("rigl", run) for run in (dense, masked, small)] + [recorded("rethinking", pruned)]
    for record in found:
        model = front.network(record)
        for layer in record["layers"]:
            assert list(model.get_submodule(layer["name"]).weight.shape) == layer["shape"]
    assert front.sparse(found[1])(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    assert isinstance(front.sparse(found[1], pays=lambda *_: True).get_submodule("conv"), SparseConv)
    table = front.times(found, n_rounds=2).set_index("id")
    assert table.at[dense.id, "time"] == 1.0 and (table["time"] > 0).all() and table.at[masked.id, "time"] <= 1.0
    for column, filled in ("sparse", masked), ("n_sparse", masked), ("again", dense):
        assert list(table.index[table[column].notna()]) == [filled.id]


def test_mask_without_a_layer_that_is_faster_sparse_takes_the_dense_networks_time(monkeypatch):
    dense = recorded("rigl", recipes.get("rigl").run(seed=0, **TINY, method="dense", density=1.0))
    masked = recorded("rigl", recipes.get("rigl").run(seed=0, **TINY, method="static", density=0.1))
    for pays, n_sparse in (True, 7), (False, 0):
        monkeypatch.setattr(sparse_inference, "_is_faster", lambda *_, pays=pays: pays)
        row = front.times([dense, masked], n_rounds=2).set_index("id").loc[masked["id"]]
        assert row["n_sparse"] == n_sparse and (row["time"] == 1.0 or pays)
