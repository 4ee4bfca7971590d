"""Measures of transfer, by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from prunelab.transfer import (
    against_dense,
    against_method,
    over_tasks,
    seed_intervals,
    slopes,
    trends,
    turned,
)


def frame(rows):
    return pd.DataFrame(rows, columns=["upstream", "dataset", "seed", "test_accuracy"])


def test_networks_stand_beside_the_dense_one_of_their_seed_and_task():
    rows = [("dense", "cars", 0, 0.5), ("gmp", "cars", 0, 0.4), ("dense", "cars", 1, 0.75), ("gmp", "cars", 1, 0.8)]
    beside = against_dense(frame(rows))
    assert beside["upstream"].tolist() == ["gmp", "gmp"] and beside["seed"].tolist() == [0, 1]
    assert beside["lead"].tolist() == pytest.approx([-0.1, 0.05])
    assert beside["difficulty"].tolist() == pytest.approx([0.5, 0.25])
    assert beside["increase"].tolist() == pytest.approx([0.2, -0.2])


def test_relative_error_increase_by_hand():
    # Errors 0.6, 0.1 and 0.2 instead of 0.5, 0.1 and 0.25: 20 % more, as many, 20 % less; none to be relative to.
    accuracies = {"cars": (0.5, 0.4), "pets": (0.9, 0.9), "dtd": (0.75, 0.8), "mnist": (1.0, 0.9)}
    rows = [(name, task, 0, pair[at]) for at, name in enumerate(("dense", "gmp")) for task, pair in accuracies.items()]
    increase = against_dense(frame(rows)).set_index("dataset")["increase"]
    assert increase[["cars", "pets", "dtd"]].tolist() == pytest.approx([0.2, 0.0, -0.2])
    assert np.isnan(increase["mnist"])


@pytest.mark.parametrize("dense, own, wrong", [(0.4, 50.0, 50.0), (-0.1, 0.5, -0.1)])
def test_an_accuracy_that_is_no_share_is_refused(dense, own, wrong):
    with pytest.raises(ValueError, match=rf"the accuracy on 'cars' must be a share in \[0, 1\], got {wrong}"):
        against_dense(frame([("dense", "cars", 0, dense), ("gmp", "cars", 0, own)]))


@pytest.mark.parametrize(
    "rows", [[("gmp", "cars", 0, 0.4)], [("dense", "cars", 0, 0.4)] * 2 + [("gmp", "cars", 0, 0.4)]]
)
def test_a_network_without_one_dense_network_is_refused(rows):
    with pytest.raises(ValueError, match="each network needs one dense network with the same seed, dataset"):
        against_dense(frame(rows))


def test_networks_stand_beside_one_method_where_it_has_a_network():
    rows = [("gmp", 0.1, "cars", 0.3, -0.1), ("rigl", 0.1, "cars", 0.1, 0.05), ("rigl", 0.2, "cars", 0.0, 0.0)]
    beside = pd.DataFrame(rows, columns=["upstream", "density", "dataset", "increase", "lead"])
    (row,) = against_method(beside, "gmp").to_dict("records")
    assert (row.pop("increase"), row.pop("lead")) == (pytest.approx(-0.2), pytest.approx(0.15))
    assert row == {"upstream": "rigl", "density": 0.1, "dataset": "cars"}
    with pytest.raises(ValueError, match="each network needs one of rigl with the same dataset"):
        against_method(beside, "rigl", within=())


def test_seeds_of_both_networks_move_an_increase():
    rows = [("dtd", 0.5, 0.5, 0.02, 4), ("pets", 0.1, 0.0, 0.0, 3), ("cars", 0.2, 0.1, float("nan"), 1)]
    beside = pd.DataFrame(rows, columns=["dataset", "difficulty", "increase", "std", "n"])
    rows = [("pets", 0.0, 2), ("dtd", 0.04, 4), ("cars", float("nan"), 1)]
    found = seed_intervals(beside, pd.DataFrame(rows, columns=["dataset", "std", "n"]))
    assert found["mean"].tolist() == [0.5, 0.0, 0.1]
    # DTD: errors of the means 0.01 and 0.02, the latter times 1.5, both over 0.5; 6 degrees of freedom: 2.4469.
    half_width = 2.4469119 * (0.01**2 + 0.03**2) ** 0.5 / 0.5
    assert found["low"].tolist()[:2] == pytest.approx([0.5 - half_width, 0.0])
    assert found["high"].tolist()[:2] == pytest.approx([0.5 + half_width, 0.0])
    assert found.loc[2, ["low", "high"]].isna().all()


def test_interval_of_seeds_is_as_wide_as_simulated_ratios_spread():
    draw = np.random.default_rng(0)
    own, dense = (draw.normal(error, 0.01 / 5**0.5, 20_000) for error in (0.3, 0.2))  # means of five seeds
    row = pd.DataFrame({"dataset": ["dtd"], "difficulty": 0.2, "increase": 0.5, "std": 0.01, "n": 5})
    found = seed_intervals(row, row)
    half_width = stats.t.ppf(0.975, 8) * np.std(own / dense - 1)
    assert found["high"].item() - 0.5 == pytest.approx(half_width, rel=0.03)


def measured(increases, *, upstream="rigl", density=0.1, n_seeds=1):
    """A network's increases on tasks of difficulty 0.1, 0.2 and so on; seeds lie evenly around them."""
    rows = [
        (upstream, density, f"task {number}", 0.1 * (number + 1), increase + seed - (n_seeds - 1) / 2)
        for number, increase in enumerate(increases)
        for seed in range(n_seeds)
    ]
    return pd.DataFrame(rows, columns=["upstream", "density", "dataset", "difficulty", "increase"])


def test_mean_over_tasks_has_the_interval_of_a_t_test():
    # Four tasks, mean 2.5, deviation sqrt(5/3), so the error is sqrt(5/12); 3 degrees of freedom: 3.1824 errors.
    (row,) = over_tasks(measured([1.0, 2.0, 3.0, 4.0])).to_dict("records")
    assert (row["upstream"], row["density"], row["n"]) == ("rigl", 0.1, 4)
    half_width = 3.1824463 * (5 / 12) ** 0.5
    assert [row[name] for name in ("mean", "low", "high")] == pytest.approx([2.5, 2.5 - half_width, 2.5 + half_width])
    assert row["p"] == pytest.approx(stats.ttest_1samp([1.0, 2.0, 3.0, 4.0], 0).pvalue)


@pytest.mark.parametrize("n_seeds", [1, 3])
def test_seeds_are_no_tasks(n_seeds):
    few, many = (over_tasks(measured([1.0, 2.0, 4.0], n_seeds=n)) for n in (1, n_seeds))
    pd.testing.assert_frame_equal(few, many)
    few, many = (trends(measured([1.0, 2.0, 4.0], n_seeds=n)) for n in (1, n_seeds))
    pd.testing.assert_frame_equal(few, many)


def test_each_network_is_averaged_by_itself():
    both = pd.concat([measured([3.0, 5.0]), measured([1.0, 2.0], density=0.2), measured([0.0, 0.0], upstream="gmp")])
    found = over_tasks(both)
    assert found[["upstream", "density", "mean"]].values.tolist() == [
        ["rigl", 0.1, 4.0],
        ["rigl", 0.2, 1.5],
        ["gmp", 0.1, 0.0],
    ]
    assert over_tasks(both, "difficulty", by=["upstream"])["mean"].tolist() == pytest.approx([0.15, 0.15])


def test_slope_of_least_squares_by_hand():
    # Around the means 0.2 and 2: (-0.1)(-1) + 0.1(2) + 0(-1) = 0.3 of 0.02 is 15; residuals 0.5, -1, 0.5, so the
    # error is sqrt(1.5 / 1 / 0.02), and 1 degree of freedom takes 12.7062 of them.
    (row,) = trends(measured([1.0, 1.0, 4.0])).to_dict("records")
    half_width = 12.7062047 * 75**0.5
    assert [row[name] for name in ("mean", "low", "high")] == pytest.approx([15, 15 - half_width, 15 + half_width])
    # A t of 15 / sqrt(75) is the square root of 3: an angle of 60 degrees, beyond which a Cauchy variable has 1/3.
    assert (row["p"], row["n"]) == (pytest.approx(1 / 3), 3)


def test_slope_along_two_groups_is_the_difference_of_their_means():
    values, groups = [1.0, 4.0, 2.0, 7.0, 3.0], np.array([True, False, True, False, False])
    rows = measured(values).assign(is_special=groups)
    (row,) = trends(rows, along="is_special").to_dict("records")
    test = stats.ttest_ind(np.array(values)[groups], np.array(values)[~groups])
    ends = test.confidence_interval(0.95)
    assert [row[name] for name in ("mean", "low", "high")] == pytest.approx([1.5 - 14 / 3, ends.low, ends.high])


def test_tasks_without_a_number_are_left_out():
    # The dense network makes no error on the third task, so that nothing is relative to it.
    pairs = {"a": (0.5, 0.4), "b": (0.6, 0.55), "c": (1.0, 0.99)}
    rows = [(name, task, 0, pair[at]) for at, name in enumerate(("dense", "gmp")) for task, pair in pairs.items()]
    beside = against_dense(frame(rows))
    (row,) = over_tasks(beside, by=["upstream"]).to_dict("records")
    (alone,) = over_tasks(beside[beside["dataset"] != "c"], by=["upstream"]).to_dict("records")
    assert row == alone and row["n"] == 2


def test_one_task_that_makes_a_slope_is_seen():
    # Three tasks without a trend and one easy one, far above them.
    beside = measured([2.0, 0.0, 0.1, 0.0]).assign(difficulty=[0.1, 0.5, 0.6, 0.7])
    found = slopes(beside).set_index("tasks")
    assert found.loc["all", "n"] == 4 and found.loc["without the easiest", "n"] == 3
    assert found.loc["all", "mean"] < -0.3 and found.loc["without the easiest", "mean"] == pytest.approx(0.0)


def test_turn_is_the_change_of_a_lead_over_tasks():
    # AC/DC leads WoodFisher by 2 and 4 points, then is 1 and 3 behind: it loses 3 and 7, in the mean 5.
    keys = ["upstream", "density", "seed", "dataset", "lead", "increase"]
    linear = [("acdc", 0.1, 0, "a", 0.02, 0), ("acdc", 0.1, 0, "b", 0.04, 0), ("woodfisher", 0.1, 0, "a", 0.0, 0)]
    full = [("acdc", 0.1, 0, "a", -0.02, 0), ("acdc", 0.1, 0, "b", -0.03, 0), ("woodfisher", 0.1, 0, "a", -0.01, 0)]
    linear, full = (pd.DataFrame([*rows, ("woodfisher", 0.1, 0, "b", 0.0, 0)], columns=keys) for rows in (linear, full))
    (row,) = turned(linear, full, upstream="acdc", over="woodfisher").to_dict("records")
    assert row["mean"] == pytest.approx(-0.05) and row["n"] == 2
    assert row["high"] - row["mean"] == pytest.approx(12.706205 * 0.02)  # one degree of freedom
