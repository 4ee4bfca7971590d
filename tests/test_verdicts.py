"""The rule that judges claims, on cases worked out by hand; `test_moderated.py` has the statistics."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp
from test_claims import claim

from prunelab import claims, moderated, verdicts


def frame(accuracies, **common):
    """Stand-in records: `accuracies` maps (method, density) to one value a seed."""
    rows = [
        {"id": f"{method} {density} {seed}", "method": method, "density": density, "seed": seed}
        | {"test_accuracy": value, "status": "finished"}
        | common
        for (method, density), values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


def judge(one, recorded, **arguments):
    """The row of a claim that is judged alone, by a paired t test: it has no family."""
    return next(verdicts.table(recorded, of=[one], **arguments).itertuples())


TWO_METHODS = frame({("rigl", 0.1): [0.80, 0.82, 0.84], ("set", 0.1): [0.79, 0.80, 0.81]})


def test_differences_are_taken_within_each_seed():
    row = judge(claim(), TWO_METHODS)  # differences 0.01, 0.02, 0.03
    assert (row.difference, row.n_seeds, row.seeds) == (pytest.approx(0.02), 3, "+0.0100 +0.0200 +0.0300")
    reference = ttest_1samp([0.01, 0.02, 0.03], 0)
    assert (row.low, row.high) == pytest.approx(reference.confidence_interval(0.95))
    assert row.p == row.q == pytest.approx(reference.pvalue)  # 0.074: one row is adjusted for nothing
    assert (row.verdict, row.reason) == ("inconclusive", "")


def test_pairs_follow_the_seed_and_not_the_order_of_rows():
    shuffled = TWO_METHODS.iloc[[2, 3, 1, 5, 0, 4]]
    pd.testing.assert_frame_equal(verdicts.table(shuffled, of=[claim()]), verdicts.table(TWO_METHODS, of=[claim()]))


@pytest.mark.parametrize(
    "margin, verdict",
    [  # 0.02 with a standard error of 0.00577 and 2 degrees of freedom: 4.303 of them are 0.0248
        ("-0.0049", "reproduced"),
        ("-0.0047", "inconclusive"),
        ("0.0447", "inconclusive"),
        ("0.0449", "not reproduced"),
        ("±0.0449", "reproduced"),  # the nearer end is tested, and the difference lies between both
        ("±0.0447", "inconclusive"),
        ("±0.001", "inconclusive"),
    ],
)
def test_verdict_says_on_which_side_of_the_margin_the_interval_lies(margin, verdict):
    assert judge(claim(margin=margin), TWO_METHODS).verdict == verdict


def test_as_accurate_is_not_reproduced_beyond_either_margin():
    far = frame({("rigl", 0.1): [0.90, 0.91, 0.92], ("set", 0.1): [0.80, 0.809, 0.8205]})
    either = claim(margin="±0.01"), claim(margin="±0.01", better="method=set", worse="method=rigl")
    assert [judge(each, far).verdict for each in either] == ["not reproduced"] * 2
    assert [judge(each, far).margin for each in either] == [0.01, -0.01]


def test_listed_values_are_averaged_within_each_seed():
    both = frame(
        {
            ("rigl", 0.1): [0.80, 0.82, 0.84],
            ("set", 0.1): [0.79, 0.80, 0.81],
            ("rigl", 0.05): [0.70, 0.70, 0.70],
            ("set", 0.05): [0.72, 0.73, 0.74],
        }
    )
    row = judge(claim(where="density=0.1|0.05"), both)  # 0.01 - 0.02, 0.02 - 0.03, 0.03 - 0.04, halved
    assert (row.difference, row.n_seeds, row.seeds) == (pytest.approx(-0.005), 3, "-0.0050 -0.0050 -0.0050")
    assert row.levels == "density=0.1 +0.0200, density=0.05 -0.0300"
    assert row.remarks == "opposite ways: +2.0 at density=0.1, -3.0 at density=0.05"


def test_a_seed_without_a_pair_at_each_listed_value_does_not_count():
    some = frame({("rigl", 0.1): [0.8] * 4, ("set", 0.1): [0.7] * 4, ("rigl", 0.2): [0.8] * 3, ("set", 0.2): [0.8] * 3})
    row = judge(claim(where="density=0.1|0.2"), some)
    assert (row.n_seeds, row.difference) == (3, pytest.approx(0.05))


def test_gap_that_grows_is_a_difference_of_differences():
    gaps = frame(
        {
            ("rigl", 0.02): [0.60, 0.62, 0.61],
            ("static", 0.02): [0.50, 0.50, 0.50],
            ("rigl", 0.2): [0.80, 0.80, 0.80],
            ("static", 0.2): [0.78, 0.77, 0.79],
        }
    )
    growing = claim(
        where="",
        better="method=rigl density=0.02 - method=static density=0.02",
        worse="method=rigl density=0.2 - method=static density=0.2",
    )
    assert judge(growing, gaps).seeds == "+0.0800 +0.0900 +0.1000"  # 0.10 - 0.02, 0.12 - 0.03, 0.11 - 0.01


# Variances are compared in units of one run's, so that rows of two runs and of many are one family.


def units(one, recorded):
    """The sum of squared coefficients, as it follows from the interval of a row that is judged alone."""
    (row,) = verdicts._rows(one, recorded, recorded, None)
    return row.measured.weight


def test_coefficients_are_those_of_each_run():
    dense = frame({("rigl", 0.2): [0.9] * 3, ("rigl", 0.1): [0.8] * 3, ("dense", 1.0): [0.85] * 3})
    assert units(claim(), TWO_METHODS) == pytest.approx(1 + 1)
    # Half of each of two runs, and twice the half of one that stands against both.
    assert units(claim(where="", better="method=rigl density=0.2|0.1", worse="method=dense"), dense) == pytest.approx(
        1 / 4 + 1 / 4 + 1
    )
    # The same run on both sides of a difference of differences is gone.
    gap = claim(
        where="", better="method=rigl density=0.2 - method=dense", worse="method=rigl density=0.1 - method=dense"
    )
    assert units(gap, dense) == pytest.approx(1 + 0 + 1)


def test_runs_of_one_parent_are_one_replicate():
    rng = np.random.default_rng(0)
    inner = frame({(method, 0.1): list(rng.normal(0.8, 0.01, 9)) for method in ("rigl", "set")})
    row = judge(claim(), inner.assign(replicate=inner["seed"] // 3))
    wide = inner.pivot(index="seed", columns="method", values="test_accuracy")
    means = (wide["rigl"] - wide["set"]).groupby(lambda seed: seed // 3).mean()
    assert row.n_seeds == 3
    assert (row.low, row.high) == pytest.approx(ttest_1samp(means, 0).confidence_interval(0.95))


def many_rows(n, **common):
    """n claims on as many densities, whose differences spread by different amounts around 0.02."""
    rng = np.random.default_rng(3)
    values = {
        (method, density): list(0.5 + 0.02 * (method == "rigl") + rng.normal(0, 0.002 * (1 + density), 3))
        for density in range(n)
        for method in ("rigl", "set")
    }
    return [claim(part=str(density), where=f"density={density}") for density in range(n)], frame(values, **common)


def test_eight_rows_of_a_network_and_length_share_their_variance():
    rows, recorded = many_rows(8, model="resnet8", dataset="cifar10", n_epochs=20)
    judged = verdicts.table(recorded, of=rows)
    wide = recorded.pivot(index=["density", "seed"], columns="method", values="test_accuracy")
    seeds = (wide["rigl"] - wide["set"]).unstack()
    shrunk, df = moderated.shrunk(seeds.var(axis=1).to_numpy() / 2, np.full(8, 2.0))
    low, high = moderated.interval(seeds.mean(axis=1).to_numpy(), np.sqrt(shrunk * 2 / 3), df)
    assert judged["low"].to_numpy() == pytest.approx(low) and judged["high"].to_numpy() == pytest.approx(high)
    assert judged["q"].to_numpy() == pytest.approx(moderated.adjusted(judged["p"].to_numpy()))
    assert (judged["q"] >= judged["p"]).all() and (judged["q"] > judged["p"]).any()


def test_small_families_of_a_metric_share_and_large_ones_do_not():
    rows, recorded = many_rows(12)
    in_one = verdicts.table(recorded.assign(n_epochs=20), of=rows)
    apart = recorded.assign(n_epochs=np.where(recorded["density"] < 9, 20, 40))
    split = verdicts.table(apart, of=rows)
    nine = verdicts.table(apart[apart["n_epochs"] == 20], of=rows[:9])
    assert split["low"].iloc[:9].to_numpy() == pytest.approx(nine["low"].to_numpy())
    assert split["low"].iloc[:9].to_numpy() != pytest.approx(in_one["low"].iloc[:9].to_numpy())
    small = apart.assign(n_epochs=recorded["density"] // 4)  # four rows each: all share
    assert verdicts.table(small, of=rows)["low"].to_numpy() == pytest.approx(in_one["low"].to_numpy())


def test_a_missing_row_counts_as_found_by_chance():
    rows, recorded = many_rows(8)
    whole = verdicts.table(recorded, of=rows)
    missing = verdicts.table(recorded[recorded["density"] < 4], of=rows, planned=recorded)
    assert missing["verdict"].tolist()[4:] == ["not judged"] * 4 and missing["q"].iloc[4:].isna().all()
    p = np.append(missing["p"].iloc[:4], np.ones(4))
    assert missing["q"].iloc[:4].to_numpy() == pytest.approx(moderated.adjusted(p)[:4])
    assert len(whole) == len(missing) == 8


def test_the_adjustment_is_over_all_rows_whichever_are_asked_for():
    rows, recorded = many_rows(8)
    rows = [claims.parse(vars_of(row) | {"id": f"RigL-C{int(row.part) + 1}", "part": "a"}) for row in rows]
    whole = verdicts.table(recorded, of=rows)
    one = verdicts.table(recorded, "RigL-C3", of=rows)
    pd.testing.assert_frame_equal(one, whole[whole["claim"] == "RigL-C3"].reset_index(drop=True))


def vars_of(row):
    """The text of a claim as `many_rows` makes it."""
    from test_claims import ROW

    return ROW | {"part": row.part, "where": f"density={row.part}"}


def test_what_a_profile_does_not_plan_is_not_adjusted_for():
    rows, recorded = many_rows(8)
    elsewhere = [claim(part=f"x{number}", better="method=snip") for number in range(8)]
    pd.testing.assert_frame_equal(
        verdicts.table(recorded, of=rows + elsewhere).iloc[:8], verdicts.table(recorded, of=rows)
    )


def test_runs_that_start_from_one_parent_on_either_side_are_one_replicate():
    one_parent = TWO_METHODS.assign(replicate=np.where(TWO_METHODS["method"] == "set", 0, TWO_METHODS["seed"]))
    assert (
        judge(claim(), one_parent).n_seeds
        == judge(claim(better="method=set", worse="method=rigl"), one_parent).n_seeds
        == 1
    )


def test_a_run_compared_with_itself_decides_nothing():
    rows, recorded = many_rows(8)
    itself = claim(part="x", worse="method=rigl", where="density=0")
    assert verdicts.table(recorded, of=[*rows, itself])["verdict"].iloc[-1] == "inconclusive"


# Costs, lengths, other settings.


def test_what_options_fix_is_arithmetic():
    costs = TWO_METHODS.assign(macs_ratio=np.where(TWO_METHODS["method"] == "rigl", 0.4, 0.2))
    row = judge(claim(metric="macs_ratio"), costs)
    assert (row.verdict, row.difference) == ("reproduced", pytest.approx(0.2))
    assert all(math.isnan(value) for value in (row.low, row.high, row.p, row.q))
    assert judge(claim(metric="macs_ratio", margin="0.3"), costs).verdict == "not reproduced"
    found = costs.assign(macs_ratio=costs["macs_ratio"] + costs["seed"] * np.where(costs["method"] == "set", 0.01, 0))
    assert judge(claim(metric="macs_ratio"), found).p < 0.05  # a cost that was found is judged like all else


def test_equal_accuracies_in_all_seeds_are_no_arithmetic():
    level = frame({("rigl", 0.1): [0.8] * 3, ("set", 0.1): [0.8] * 3})
    assert judge(claim(), level).verdict == "inconclusive"


LENGTHS = pd.concat(
    [
        frame({("rigl", 0.1): [0.80, 0.82, 0.84], ("set", 0.1): [0.79, 0.80, 0.81]}, n_epochs=100),
        frame({("rigl", 0.1): [0.60, 0.61, 0.60], ("set", 0.1): [0.66, 0.66, 0.67]}, n_epochs=12).assign(
            id=lambda runs: runs["id"] + " short"
        ),
        frame({("rigl", 0.2): [0.60, 0.61, 0.60], ("set", 0.2): [0.50, 0.52, 0.51]}, n_epochs=12),
    ]
)
TWO_LENGTHS = [
    claim(where="density=0.1 n_epochs=100", beside="short: density=0.1 n_epochs=12"),
    claim(part="b", where="density=0.2 n_epochs=12"),
]


def test_another_setting_is_told_with_its_interval_and_not_judged():
    judged = verdicts.table(LENGTHS, of=TWO_LENGTHS)
    assert judged[["part", "at", "verdict"]].to_numpy().tolist() == [
        ["a", "", "reproduced"],
        ["a", "short", "beside"],
        ["b", "", "reproduced"],
    ]
    assert judged["difference"].tolist() == pytest.approx([0.02, -0.06, 0.0933333333])
    assert judged["low"].notna().all() and judged["q"].isna().tolist() == [False, True, False]
    assert verdicts.tally(judged).startswith("of 2 comparisons 2 are reproduced")


def test_remarks_name_short_trainings_and_where_the_sign_turns():
    assert verdicts.table(LENGTHS, of=TWO_LENGTHS)["remarks"].tolist() == [
        "the sign turns: -6.0 at short",
        "",
        "short, 12 epochs",
    ]
    assert verdicts.table(LENGTHS, of=TWO_LENGTHS[1:])["remarks"].tolist() == [""]  # nothing is longer


@pytest.mark.parametrize("n_epochs, remark", [(49, "short, 49 epochs"), (50, "")])
def test_another_network_is_short_below_half_of_what_others_train_for_on_its_images(n_epochs, remark):
    runs = LENGTHS.assign(model="resnet20", width=1.0, dataset="cifar10", image_size=16)
    runs.loc[runs["density"] == 0.2, ["model", "n_epochs"]] = ["vgg16", n_epochs]
    judged = verdicts.table(runs, of=[TWO_LENGTHS[0], claim(part="b", where="density=0.2")])
    assert judged["remarks"].iloc[-1] == remark


# What is not there.


def test_two_seeds_are_never_more_than_inconclusive():
    row = judge(claim(), TWO_METHODS[TWO_METHODS["seed"] < 2])
    assert (row.verdict, row.reason) == ("inconclusive", "2 of 3 seeds")
    assert row.difference == pytest.approx(0.015) and math.isnan(row.low) and math.isnan(row.q)


def test_a_listed_value_without_runs_leaves_the_claim_open():
    row = judge(claim(where="density=0.1|0.05"), TWO_METHODS)
    assert (row.verdict, row.reason) == ("not judged", "no runs are planned at density=0.05")


def test_diverged_run_counts_with_the_accuracy_it_has():
    diverged = TWO_METHODS.copy()
    diverged.loc[2, ["test_accuracy", "status"]] = [0.10, "diverged"]
    row = judge(claim(), diverged)
    assert row.difference == pytest.approx((0.01 + 0.02 - 0.71) / 3)
    assert row.verdict == "inconclusive"


@pytest.mark.parametrize("at", ["density=0.1", "density=0.1|0.2"])
def test_diverged_run_without_a_value_is_not_dropped(at):
    other = frame({("rigl", 0.2): [0.9] * 3, ("set", 0.2): [0.8] * 3})
    diverged = pd.concat([TWO_METHODS, other], ignore_index=True)
    diverged.loc[2, "test_accuracy"] = None
    row = judge(claim(where=at), diverged)
    assert (row.verdict, row.reason) == ("inconclusive", "a diverged run has no test_accuracy")
    assert math.isnan(row.difference) and math.isnan(row.low) and math.isnan(row.high)
    assert verdicts.difference(row) == row.reason


def test_runs_that_are_compared_with_themselves_decide_nothing():
    row = judge(claim(better="method=rigl", worse="method=rigl"), TWO_METHODS)
    assert (row.verdict, row.reason, row.difference) == ("inconclusive", "it compares runs with themselves", 0)


def test_a_metric_that_is_no_number_is_named_with_the_claim():
    with pytest.raises(ValueError, match="claim RigL-C1 part a: model of the runs is no number"):
        judge(claim(metric="model"), TWO_METHODS.assign(model="resnet8"))


@pytest.mark.parametrize("records", [pd.DataFrame(), TWO_METHODS], ids=["none", "of other methods"])
def test_without_pairs_the_reason_names_what_would_judge_it(records):
    row = judge(claim(better="method=static"), records)
    assert (row.verdict, row.reason) == ("not judged", "needs runs of profile small")
    assert math.isnan(row.difference)
    assert judge(claim(better="method=snip", needs="snip"), records).reason == "needs snip"


def test_a_claim_that_waits_for_an_option_may_name_it():
    waiting = claim(better="method=rigl train_multiplier=5", needs="longer training")
    assert judge(waiting, TWO_METHODS).reason == "needs longer training"


def test_a_claim_that_waited_is_judged_once_its_runs_exist():
    assert judge(claim(needs="set", margin="-0.01"), TWO_METHODS).verdict == "reproduced"


def test_a_smaller_profile_than_the_claims_own_judges_nothing():
    assert judge(claim(), TWO_METHODS, profile="smoke").reason == "needs runs of profile small"
    assert judge(claim(), TWO_METHODS, profile="small").n_seeds == 3
    assert judge(claim(), TWO_METHODS, profile="full").n_seeds == 3
    with pytest.raises(ValueError, match=r"unknown profile 'tiny'; there are smoke, small, full, paper"):
        judge(claim(), TWO_METHODS, profile="tiny")


def test_numbers_match_as_numbers_and_words_as_words():
    as_text = TWO_METHODS.assign(density="1e-1", width=2)
    assert judge(claim(where="density=0.10 width=2.0"), as_text).n_seeds == 3
    assert judge(claim(where="density=0.11"), as_text).n_seeds == 0
    assert judge(claim(where="augment=True"), TWO_METHODS.assign(augment=True)).n_seeds == 3


def test_unknown_column_is_named_with_the_claim_and_the_known_ones():
    with pytest.raises(
        ValueError, match=r"claim RigL-C1 part a: .* no column distibution; they have id, method, density"
    ):
        judge(claim(where="distibution=erk"), TWO_METHODS)
    with pytest.raises(ValueError, match="no column top1"):
        judge(claim(metric="top1"), TWO_METHODS)


def test_cell_that_matches_two_runs_of_a_seed_is_refused():
    twice = pd.concat([TWO_METHODS.assign(n_epochs=1), TWO_METHODS.assign(n_epochs=20)])
    with pytest.raises(ValueError, match=r"part a: method=rigl density=0\.1 matches several runs of a seed"):
        judge(claim(), twice)


def test_of_a_plan_with_parents_of_another_recipe_only_the_claims_about_one_are_judged():
    planned = TWO_METHODS.assign(recipe=["rigl"] * 3 + ["transfer"] * 3)
    claims_of = [claim(recipe="rigl", part="a"), claim(recipe="transfer", part="b")]
    assert verdicts.table(TWO_METHODS, planned=planned, of=claims_of)["part"].tolist() == ["a", "b"]
    assert verdicts.table(TWO_METHODS, planned=planned, recipe="transfer", of=claims_of)["part"].tolist() == ["b"]


PLANNED = frame(
    {(method, density): [math.nan] * 3 for method in ("rigl", "set") for density in (0.1, 0.05)}, recipe="rigl"
).drop(columns=["test_accuracy", "status"])


def test_claim_without_all_its_planned_runs_says_how_many_are_missing():
    at_both = claim(where="density=0.1|0.05")
    recorded = frame({("rigl", 0.1): [0.8, 0.8, 0.8], ("set", 0.1): [0.7, 0.7, 0.7], ("rigl", 0.05): [0.7]})
    row = judge(at_both, recorded, planned=PLANNED, profile="small")
    assert (row.verdict, row.reason) == ("not judged", "5 of 12 runs not recorded")
    assert math.isnan(row.difference) and row.n_seeds == 0
    assert judge(at_both, pd.DataFrame(), planned=PLANNED).reason == "12 of 12 runs not recorded"


def test_a_planned_seed_that_is_missing_is_not_left_out_in_silence():
    planned = pd.concat([PLANNED, PLANNED.assign(seed=PLANNED["seed"] + 3, id=PLANNED["id"] + "+3")])
    assert judge(claim(), TWO_METHODS, planned=planned).reason == "6 of 12 runs not recorded"


def test_runs_are_found_by_what_is_planned_and_not_by_what_is_on_record():
    planned = PLANNED.assign(parent_dataset=["mnist", "cifar10"] * 6)
    recorded = TWO_METHODS.drop(columns="density")
    on_mnist = claim(where="density=0.1 parent_dataset=mnist")
    assert judge(on_mnist, recorded, planned=planned).n_seeds == 2  # seeds 0 and 2
    assert judge(on_mnist, pd.DataFrame(), planned=planned).reason == "4 of 4 runs not recorded"


def test_only_a_metric_of_recorded_runs_is_known_to_be_none():
    at_large = claim(where="density=0.05", metric="loss_barrier")
    assert judge(at_large, TWO_METHODS, planned=PLANNED).reason == "6 of 6 runs not recorded"
    with pytest.raises(ValueError, match="RigL-C1 part a: the runs have no column loss_barrier; they have id, method"):
        judge(claim(metric="loss_barrier"), TWO_METHODS, planned=PLANNED)


def test_nothing_planned_is_told_from_nothing_recorded():
    assert judge(claim(better="method=snip"), TWO_METHODS, planned=PLANNED).reason == "needs runs of profile small"
    with pytest.raises(ValueError, match="RigL-C1 part a: the runs have no column distibution"):
        judge(claim(where="distibution=erk"), TWO_METHODS.assign(distibution="erk"), planned=PLANNED)


# Tables, and what is written of them.


PARTS = [
    claim(where="density=0.1|0.05", statement="RigL is ahead of SET."),
    claim(part="b", better="method=set", worse="method=static", where="density=0.1|0.05", statement="SET leads."),
    claim(part="c", better="method=rigl", worse="method=snip", statement="RigL is ahead of SNIP."),
]


def partial_table():
    """Two densities are planned; 0.1 is recorded whole and 0.05 but for a run."""
    values = {"rigl": 0.80, "set": 0.79, "static": 0.81}
    noise = {"rigl": [0.0, 0.001, 0.002], "set": [0.0, 0.001, 0.0015], "static": [0.0, 0.001, 0.002]}
    planned = frame({(m, d): [values[m] + e for e in noise[m]] for m in values for d in (0.1, 0.05)}, recipe="rigl")
    recorded = planned[planned["id"] != "rigl 0.05 2"]
    planned = planned.drop(columns=["test_accuracy", "status"])
    return verdicts.table(recorded, of=PARTS, planned=planned, profile="small")


def test_a_part_recorded_in_part_is_judged_at_each_listed_value():
    judged = partial_table()
    assert judged[["part", "at", "verdict", "reason"]].to_numpy().tolist() == [
        ["a", "", "not judged", "1 of 12 runs not recorded"],
        ["a", "density=0.1", "reproduced", ""],
        ["a", "density=0.05", "not judged", "1 of 6 runs not recorded"],
        ["b", "", "not reproduced", ""],
        ["c", "", "not judged", "needs runs that profile small does not plan"],
    ]


def test_listed_values_are_told_and_never_counted():
    judged = partial_table()
    assert verdicts.tally(judged) == (
        "of 3 comparisons 0 are reproduced, 1 are not reproduced, 0 are inconclusive, 2 are not judged"
    )
    assert verdicts.summary(judged).to_dict("records") == [
        {"claim": "RigL-C1", "reproduced": 0, "not reproduced": 1, "inconclusive": 0, "not judged": 2}
    ]
    assert [line[:13] for line in verdicts.markdown(judged).splitlines()[2:]] == ["| RigL-C1a | ", "| RigL-C1b | "]
    assert "| RigL is ahead of SET. Here at density=0.1. |" in verdicts.markdown(judged)
    told = [line.split() for line in verdicts.report(judged).splitlines()]
    assert " ".join(told[1]) == "RigL-C1a not judged 1 of 12 runs not recorded RigL is ahead of SET."
    assert told[2][0] == "reproduced" and told[2][-2:] == ["at", "density=0.1"]
    assert told[4][:3] == ["RigL-C1b", "not", "reproduced"] and told[4][-2:] == ["SET", "leads."]
    assert verdicts.report(judged).splitlines()[5:] == [
        "",
        "not judged, needs runs that profile small does not plan:",
        "RigL-C1c",
    ]


def test_claims_are_chosen_by_their_whole_name_or_what_stands_before_its_number():
    empty = pd.DataFrame()
    assert set(verdicts.table(empty, "RigL-C1")["claim"]) == {"RigL-C1"}  # and not the tenth
    assert verdicts.table(empty, "LTH")["claim"].unique().tolist() == ["LTH-C1", "LTH-C2"]
    assert len(verdicts.table(empty)) == len(claims.load())
    with pytest.raises(ValueError, match=r"no claims 'XY'; there are RigL-C1, RigL-C2"):
        verdicts.table(empty, "XY")


def test_markdown_and_report_write_shares_in_points_and_losses_as_they_are():
    columns = ["claim", "part", "at", "statement", "metric", "difference", "low", "high", "q", "paper", "paper_setting"]
    columns += ["remarks", "verdict", "reason"]
    nan = math.nan
    resnet = "ResNet-50, ImageNet"
    wins = ["RigL-C1", "a", "", "RigL wins.", "test_accuracy", 0.0312, 0.01, 0.05, 0.0004, 0.024, resnet]
    loses = ["RigL-C1", "a", "5x", "RigL wins.", "test_accuracy", -0.0312, -0.05, -0.01, nan, 0.024, resnet]
    rows = [
        [*wins, "short, 12 epochs", "reproduced", ""],
        [*loses, "", "beside", ""],
        ["RigL-C10", "a", "", "A hill.", "loss_barrier", 0.0312, 0.01, 0.5, 0.41, nan, "", "", "inconclusive", ""],
        ["RigL-C11", "a", "", "Cheap.", "macs_ratio", 0.2, nan, nan, nan, nan, "", "", "reproduced", ""],
        ["RigL-C2", "a", "", "Later.", "test_accuracy", nan, nan, nan, nan, 0.1, "", "", "not judged", "needs time"],
    ]
    judged = pd.DataFrame(rows, columns=columns)
    assert verdicts.markdown(judged).splitlines()[2:] == [
        "| RigL-C1a | reproduced | RigL wins. | +3.1 [+1.0, +5.0] | <0.001 | 5x -3.1 [-5.0, -1.0]; short, 12 epochs"
        " | +2.4 (ResNet-50, ImageNet) |",
        "| RigL-C10a | inconclusive | A hill. | +0.031 [+0.010, +0.500] of loss | 0.410 |  |  |",
        "| RigL-C11a | reproduced | Cheap. | +20.0 |  |  |  |",
    ]
    assert [" ".join(line.split()) for line in verdicts.report(judged).splitlines()[1:4]] == [
        "RigL-C1a reproduced +3.1 [+1.0, +5.0] <0.001 RigL wins.",
        "short, 12 epochs",
        "-3.1 [-5.0, -1.0] at 5x",
    ]


def test_texts_quote_differences_and_verdicts_by_the_name_of_a_part():
    judged = verdicts.table(LENGTHS, of=TWO_LENGTHS)
    assert verdicts.points(judged, "RigL-C1b", "RigL-C1a") == [9.3, 2.0]
    assert verdicts.points(judged, "RigL-C1a", at="short") == [-6.0]
    assert verdicts.named(judged, verdicts.REPRODUCED) == {"RigL-C1a", "RigL-C1b"}


def test_parts_that_the_earlier_rule_judged_otherwise_are_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(verdicts.paths, "RECORDS", tmp_path)
    lines = ["claim,difference,low,high,verdict", "RigL-C1a,0.02,0.01,0.03,inconclusive"]
    lines += ["RigL-C1b,0.09,0.08,0.1,reproduced", "RT-C1a,0.01,0.01,0.01,reproduced"]
    (tmp_path / "earlier_verdicts.csv").write_text("\n".join(lines))
    changed = verdicts.changed(verdicts.table(LENGTHS, of=TWO_LENGTHS))
    assert changed.to_numpy().tolist() == [
        ["RigL-C1a", "inconclusive", "+2.0 [+1.0, +3.0]", "reproduced", "+2.0 [+0.4, +3.6]"]
    ]


def test_a_star_is_for_what_stays_small_in_one_correction():
    rows = [(-0.02, -0.031, -0.009, 0.004), (-0.0002, -0.1, 0.0996, 0.99), (1.2, 0.1, 2.3, 0.04)]
    found = pd.DataFrame(rows, columns=["mean", "low", "high", "p"])
    # Of three rows: q is 0.012, 0.99 and 0.04 * 3 / 2 = 0.06.
    assert verdicts.starred(found) == ["-2.0 [-3.1, -0.9]*", "+0.0 [-10.0, +10.0]", "+120.0 [+10.0, +230.0]"]
    assert verdicts.starred(found[2:]) == ["+120.0 [+10.0, +230.0]*"]  # alone, q is p
