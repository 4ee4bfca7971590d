"""The rule that judges claims: hand-worked cases, and an independent, slow computation of the interval."""

import math
from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy.stats import bootstrap

from prunelab import claims

ROW = {
    "recipe": "rigl",
    "id": "RigL-C1",
    "part": "a",
    "paper": "Evci et al. 2020",
    "statement": "RigL is more accurate than SET.",
    "metric": "test_accuracy",
    "better": "method=rigl",
    "worse": "method=set",
    "where": "density=0.1",
    "margin": "0",
    "paper_better": "0.720",
    "paper_worse": "0.696",
    "paper_source": "Fig. 2-left",
    "profile": "small",
    "needs": "",
}


def claim(**changes):
    return claims.parse(ROW | changes)


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


TWO_METHODS = frame({("rigl", 0.1): [0.80, 0.82, 0.84], ("set", 0.1): [0.79, 0.80, 0.81]})


def test_differences_are_taken_within_each_seed():
    verdict = claims.judge(claim(), TWO_METHODS)  # differences 0.01, 0.02, 0.03
    assert verdict.difference == pytest.approx(0.02)
    assert (verdict.low, verdict.high) == pytest.approx((0.01, 0.03))
    assert (verdict.n_seeds, verdict.n_pairs, verdict.verdict, verdict.reason) == (3, 3, "reproduced", "")


def test_pairs_follow_the_seed_and_not_the_order_of_rows():
    shuffled = TWO_METHODS.iloc[[2, 3, 1, 5, 0, 4]]
    assert claims.judge(claim(), shuffled) == claims.judge(claim(), TWO_METHODS)


@pytest.mark.parametrize(
    "margin, verdict",
    [
        ("0.009", "reproduced"),
        ("0.011", "inconclusive"),
        ("0.029", "inconclusive"),
        ("0.031", "not reproduced"),
    ],
)
def test_verdict_says_on_which_side_of_the_margin_the_interval_lies(margin, verdict):
    assert claims.judge(claim(margin=margin), TWO_METHODS).verdict == verdict


def test_margin_below_zero_accepts_a_small_loss():
    swapped = {"better": "method=set", "worse": "method=rigl"}  # differences -0.01, -0.02, -0.03
    assert claims.judge(claim(**swapped), TWO_METHODS).verdict == "not reproduced"
    assert claims.judge(claim(**swapped, margin="-0.05"), TWO_METHODS).verdict == "reproduced"


def test_listed_values_each_give_a_pair():
    both = frame(
        {
            ("rigl", 0.1): [0.80, 0.82, 0.84],
            ("set", 0.1): [0.79, 0.80, 0.81],
            ("rigl", 0.05): [0.70, 0.70, 0.70],
            ("set", 0.05): [0.65, 0.66, 0.67],
        }
    )
    verdict = claims.judge(claim(where="density=0.1|0.05"), both)
    assert (verdict.n_pairs, verdict.n_seeds) == (6, 3)
    assert verdict.difference == pytest.approx((0.01 + 0.02 + 0.03 + 0.05 + 0.04 + 0.03) / 6)
    assert (verdict.low, verdict.high) == pytest.approx((0.03, 0.03))  # every seed's mean is 0.03


def test_listed_values_on_one_side_meet_the_same_run_on_the_other():
    dense = frame({("rigl", 0.2): [0.9] * 3, ("rigl", 0.1): [0.8] * 3, ("dense", 1.0): [0.85] * 3})
    verdict = claims.judge(claim(where="", better="method=rigl density=0.2|0.1", worse="method=dense"), dense)
    assert verdict.n_pairs == 6
    assert verdict.difference == pytest.approx(0.0)


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
    verdict = claims.judge(growing, gaps)  # 0.10 - 0.02, 0.12 - 0.03, 0.11 - 0.01
    assert verdict.difference == pytest.approx(0.09)
    assert (verdict.low, verdict.high) == pytest.approx((0.08, 0.10))


def test_two_seeds_are_never_more_than_inconclusive():
    verdict = claims.judge(claim(), TWO_METHODS[TWO_METHODS["seed"] < 2])
    assert (verdict.verdict, verdict.reason) == ("inconclusive", "2 of 3 seeds")
    assert verdict.low > 0


def test_a_listed_value_without_runs_leaves_the_claim_open():
    verdict = claims.judge(claim(where="density=0.1|0.05"), TWO_METHODS)
    assert (verdict.verdict, verdict.reason) == ("not judged", "no runs are planned at density=0.05")


def test_diverged_run_counts_with_the_accuracy_it_has():
    diverged = TWO_METHODS.copy()
    diverged.loc[2, ["test_accuracy", "status"]] = [0.10, "diverged"]
    verdict = claims.judge(claim(), diverged)
    assert verdict.difference == pytest.approx((0.01 + 0.02 - 0.71) / 3)
    assert verdict.verdict == "inconclusive"


def test_diverged_run_without_a_value_is_not_dropped():
    diverged = TWO_METHODS.copy()
    diverged.loc[2, "test_accuracy"] = None
    verdict = claims.judge(claim(), diverged)
    assert (verdict.verdict, verdict.reason) == ("inconclusive", "a diverged run has no test_accuracy")
    assert math.isnan(verdict.difference) and math.isnan(verdict.low) and math.isnan(verdict.high)


@pytest.mark.parametrize("records", [pd.DataFrame(), TWO_METHODS], ids=["none", "of other methods"])
def test_without_pairs_the_reason_names_what_would_judge_it(records):
    verdict = claims.judge(claim(better="method=static"), records)
    assert (verdict.verdict, verdict.reason) == ("not judged", "needs runs of profile small")
    assert math.isnan(verdict.difference)
    assert claims.judge(claim(better="method=snip", needs="snip"), records).reason == "needs snip"


def test_a_claim_that_waits_for_an_option_may_name_it():
    waiting = claim(better="method=rigl train_multiplier=5", needs="longer training")
    assert claims.judge(waiting, TWO_METHODS).reason == "needs longer training"


def test_a_claim_that_waited_is_judged_once_its_runs_exist():
    assert claims.judge(claim(needs="set"), TWO_METHODS).verdict == "reproduced"


def test_a_smaller_profile_than_the_claims_own_judges_nothing():
    assert claims.judge(claim(), TWO_METHODS, profile="smoke").reason == "needs runs of profile small"
    assert claims.judge(claim(), TWO_METHODS, profile="small").verdict == "reproduced"
    assert claims.judge(claim(), TWO_METHODS, profile="full").verdict == "reproduced"
    with pytest.raises(ValueError, match=r"unknown profile 'tiny'; there are smoke, small, full, paper"):
        claims.judge(claim(), TWO_METHODS, profile="tiny")


def test_numbers_match_as_numbers_and_words_as_words():
    as_text = TWO_METHODS.assign(density="1e-1", width=2)
    assert claims.judge(claim(where="density=0.10 width=2.0"), as_text).n_pairs == 3
    assert claims.judge(claim(where="density=0.11"), as_text).n_pairs == 0
    assert claims.judge(claim(where="augment=True"), TWO_METHODS.assign(augment=True)).n_pairs == 3


def test_unknown_column_is_named_with_the_claim_and_the_known_ones():
    with pytest.raises(
        ValueError, match=r"claim RigL-C1 part a: .* no column distibution; they have id, method, density"
    ):
        claims.judge(claim(where="distibution=erk"), TWO_METHODS)
    with pytest.raises(ValueError, match="no column top1"):
        claims.judge(claim(metric="top1"), TWO_METHODS)


def test_cell_that_matches_two_runs_of_a_seed_is_refused():
    twice = pd.concat([TWO_METHODS.assign(n_epochs=1), TWO_METHODS.assign(n_epochs=20)])
    with pytest.raises(ValueError, match=r"part a: method=rigl density=0\.1 matches several runs of a seed"):
        claims.judge(claim(), twice)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"better": "rigl"}, r"cannot read 'rigl' in 'rigl'"),
        ({"better": "method="}, r"cannot read 'method='"),
        ({"better": "method=rigl|"}, r"cannot read 'method=rigl\|'"),
        ({"better": "method==rigl"}, r"cannot read 'method==rigl'"),
        ({"better": "method=rigl method=set"}, r"cannot read 'method=set' in 'method=rigl method=set'"),
        ({"better": "method=rigl -method=set"}, r"cannot read '-method=set'"),
        ({"better": ""}, "empty expression"),
        ({"worse": "a=1 - b=2 - c=3"}, r"difference of two, got 'a=1 - b=2 - c=3'"),
        ({"worse": "method=set density=0.2"}, r"density stands in 'method=set density=0.2' and in where"),
        (
            {"where": "", "better": "density=0.1|0.2", "worse": "density=0.1|0.5"},
            r"two lists for density: 0.1\|0.2 and",
        ),
        ({"margin": "a point"}, r"expected a number, got 'a point'"),
        ({"margin": "nan"}, r"expected a number, got 'nan'"),
        ({"paper_worse": "69,6"}, r"expected a number, got '69,6'"),
        ({"profile": "tiny"}, r"unknown profile 'tiny'; there are smoke, small, full, paper"),
    ],
)
def test_malformed_row_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=f"claim RigL-C1 part a: .*{message}"):
        claim(**changes)


def test_other_columns_are_refused(tmp_path):
    (tmp_path / "claims.csv").write_text("id,part\nRigL-C1,a\n")
    with pytest.raises(ValueError, match=r"claims\.csv has columns id, part; they must be recipe, id, part"):
        claims.load(tmp_path / "claims.csv")


def test_interval_of_three_seeds_is_that_of_all_27_draws():
    differences = [[0.03, 0.01], [-0.02], [0.05, 0.09]]  # the second seed lacks a pair
    every_draw = [np.mean([d for seed in draw for d in differences[seed]]) for draw in product(range(3), repeat=3)]
    low, high = np.percentile(every_draw, [2.5, 97.5], method="inverted_cdf")
    seeds = [seed for seed, own in enumerate(differences) for _ in own]
    flat = [d for own in differences for d in own]
    assert claims.interval(flat, seeds) == pytest.approx((low, high))
    assert (low, high) == pytest.approx((-0.02, 0.07))  # the lowest and the highest seed's mean


def test_interval_of_many_seeds_agrees_with_scipy():
    differences = np.random.default_rng(1).normal(0.02, 0.05, size=12)
    low, high = claims.interval(differences, range(12))
    reference = bootstrap(
        (differences,), np.mean, n_resamples=50_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert (low, high) == pytest.approx((reference.low, reference.high), abs=1e-3)


def test_seeds_and_not_pairs_are_drawn():
    # Two seeds that agree within themselves: drawing single pairs would give a narrower interval.
    assert claims.interval([0.0] * 20 + [1.0] * 20, [0] * 20 + [1] * 20) == (0.0, 1.0)


@pytest.mark.parametrize(
    "parts, whole",
    [
        (["reproduced", "reproduced"], "reproduced"),
        (["reproduced", "not judged"], "reproduced"),
        (["reproduced", "inconclusive"], "inconclusive"),
        (["reproduced", "inconclusive", "not reproduced"], "not reproduced"),
        (["not judged", "not judged"], "not judged"),
        ([], "not judged"),
    ],
)
def test_verdict_on_a_whole_claim(parts, whole):
    assert claims.overall(parts) == whole


def test_table_judges_every_part_and_summary_every_claim():
    methods = {"rigl": 0.80, "set": 0.79, "static": 0.70, "small_dense": 0.795, "small_dense_macs": 0.81}
    densities = (0.2, 0.1, 0.05, 0.02)
    # RigL's lead over static grows by 0.01 from each density to the next.
    records = frame(
        {
            (method, density): [value + 0.01 * step * (method == "rigl") + 0.001 * seed for seed in range(3)]
            for method, value in methods.items()
            for step, density in enumerate(densities)
        },
        distribution="erk",
        experiment="main",
    )
    judged = claims.table(records, "RigL-C1", profile="small").set_index("part")
    assert judged["verdict"].to_dict() == {
        "a": "reproduced",
        "b": "reproduced",
        "c": "reproduced",
        "d": "not reproduced",
        "e": "reproduced",
        "f": "reproduced",
        "g": "not judged",
        "h": "not judged",
    }
    assert judged.loc["a", "difference"] == pytest.approx(0.01 + 0.015)
    assert judged.loc["a", "paper"] == pytest.approx(0.024)
    assert judged.loc["e", "difference"] == pytest.approx(0.03)
    assert judged.loc["g", "reason"] == "needs runs that profile small does not plan"

    whole = claims.summary(judged.reset_index()).to_dict("records")
    assert whole == [{"claim": "RigL-C1", "n_parts": 8, "n_judged": 6, "verdict": "not reproduced"}]


PLANNED = frame(
    {(method, density): [math.nan] * 3 for method in ("rigl", "set") for density in (0.1, 0.05)}, recipe="rigl"
).drop(columns=["test_accuracy", "status"])


def test_claim_without_all_its_planned_runs_says_how_many_are_missing():
    at_both = claim(where="density=0.1|0.05")
    recorded = frame({("rigl", 0.1): [0.8, 0.8, 0.8], ("set", 0.1): [0.7, 0.7, 0.7], ("rigl", 0.05): [0.7]})
    verdict = claims.judge(at_both, recorded, planned=PLANNED, profile="small")
    assert (verdict.verdict, verdict.reason) == ("not judged", "5 of 12 runs not recorded")
    assert math.isnan(verdict.difference) and verdict.n_pairs == 0
    assert claims.judge(claim(), recorded, planned=PLANNED) == claims.judge(claim(), recorded)
    assert claims.judge(at_both, pd.DataFrame(), planned=PLANNED).reason == "12 of 12 runs not recorded"


def test_a_planned_seed_that_is_missing_is_not_left_out_in_silence():
    planned = pd.concat([PLANNED, PLANNED.assign(seed=PLANNED["seed"] + 3, id=PLANNED["id"] + "+3")])
    assert claims.judge(claim(), TWO_METHODS, planned=planned).reason == "6 of 12 runs not recorded"


def test_runs_are_found_by_what_is_planned_and_not_by_what_is_on_record():
    planned = PLANNED.assign(parent_dataset=["mnist", "cifar10"] * 6)
    recorded = TWO_METHODS.drop(columns="density")
    on_mnist = claim(where="density=0.1 parent_dataset=mnist")
    assert claims.judge(on_mnist, recorded, planned=planned).n_pairs == 2  # seeds 0 and 2
    assert claims.judge(on_mnist, pd.DataFrame(), planned=planned).reason == "4 of 4 runs not recorded"


def test_only_a_metric_of_recorded_runs_is_known_to_be_none():
    at_large = claim(where="density=0.05", metric="loss_barrier")
    assert claims.judge(at_large, TWO_METHODS, planned=PLANNED).reason == "6 of 6 runs not recorded"
    with pytest.raises(ValueError, match="RigL-C1 part a: the runs have no column loss_barrier; they have id, method"):
        claims.judge(claim(metric="loss_barrier"), TWO_METHODS, planned=PLANNED)


def test_nothing_planned_is_told_from_nothing_recorded():
    assert (
        claims.judge(claim(better="method=snip"), TWO_METHODS, planned=PLANNED).reason == "needs runs of profile small"
    )
    with pytest.raises(ValueError, match="RigL-C1 part a: the runs have no column distibution"):
        claims.judge(claim(where="distibution=erk"), TWO_METHODS.assign(distibution="erk"), planned=PLANNED)


def partial_table():
    """All four densities are planned, 0.1 is recorded whole and 0.05 but for a run."""
    common = {"recipe": "rigl", "experiment": "main", "distribution": "erk"}
    values = {"rigl": 0.80, "set": 0.79, "static": 0.81}
    planned = frame({(m, d): [values[m]] * 3 for m in values for d in (0.2, 0.1, 0.05, 0.02)}, **common)
    recorded = planned[planned["density"].isin([0.1, 0.05]) & (planned["id"] != "rigl 0.05 2")]
    planned = planned.drop(columns=["test_accuracy", "status"])
    return claims.table(recorded, "RigL-C1", planned=planned, profile="small")


def test_a_part_recorded_in_part_is_judged_at_each_listed_value():
    judged = partial_table()
    rows = judged[judged["part"] == "a"]
    assert rows[["at", "verdict", "reason"]].to_numpy().tolist() == [
        ["", "not judged", "13 of 24 runs not recorded"],
        ["density=0.2", "not judged", "6 of 6 runs not recorded"],
        ["density=0.1", "reproduced", ""],
        ["density=0.05", "not judged", "1 of 6 runs not recorded"],
        ["density=0.02", "not judged", "6 of 6 runs not recorded"],
    ]
    assert rows["difference"].iloc[2] == pytest.approx(0.01)
    # Nothing to say of c, whose runs are not planned, nor of e, which lists nothing.
    assert judged["part"].value_counts().to_dict() == {"a": 5, "b": 5} | dict.fromkeys("cdefgh", 1)


def test_listed_values_are_told_and_never_counted():
    judged = partial_table()
    assert claims.tally(judged) == (
        "of 8 comparisons 0 are reproduced, 0 are not reproduced, 0 are inconclusive, 8 are not judged"
    )
    assert claims.summary(judged).to_dict("records") == [
        {"claim": "RigL-C1", "n_parts": 8, "n_judged": 0, "verdict": "not judged"}
    ]
    assert len(claims.markdown(judged).splitlines()) == 2  # no more than the head
    told = claims.report(judged).splitlines()
    assert told[1].split(maxsplit=1) == [
        "RigL-C1a", "not judged      13 of 24 runs not recorded RigL is more accurate than SET at equal density."
    ]  # fmt: skip
    assert told[3] == "           reproduced      +1.0 [+1.0, +1.0]           at density=0.1"
    assert told[8] == "           not reproduced  -2.0 [-2.0, -2.0]           at density=0.1"
    assert told[11:14] == [
        "",
        "not judged, needs runs that profile small does not plan:",
        "RigL-C1c, RigL-C1d, RigL-C1f, RigL-C1g, RigL-C1h",
    ]


def test_a_whole_part_has_one_row_whatever_it_pools():
    both = frame({(m, d): [0.8] * 3 for m in ("rigl", "set") for d in (0.2, 0.1, 0.05, 0.02)}, distribution="erk")
    judged = claims.table(both.assign(experiment="main"), "RigL-C1")
    assert (judged["at"] == "").all() and len(judged) == 8


def test_first_claim_is_not_the_prefix_of_the_tenth():
    assert set(claims.table(TWO_METHODS.assign(distribution="erk", experiment="main"), "RigL-C1")["claim"]) == {
        "RigL-C1"
    }
    assert claims.table(pd.DataFrame(), "LTH")["claim"].unique().tolist() == ["LTH-C1", "LTH-C2"]
    assert len(claims.table(pd.DataFrame())) == len(claims.load())


def test_unknown_prefix_lists_the_claims():
    with pytest.raises(ValueError, match=r"no claims 'DMCP'; there are RigL-C1, RigL-C2"):
        claims.table(TWO_METHODS, "DMCP")


def test_markdown_tells_what_was_judged_and_leaves_the_rest_out():
    columns = ["claim", "part", "at", "statement", "metric", "difference", "low", "high", "paper", "verdict", "reason"]
    rows = [
        ["RigL-C1", "a", "", "RigL wins.", "test_accuracy", 0.0312, 0.01, 0.05, 0.024, claims.REPRODUCED, ""],
        ["RigL-C10", "a", "", "A hill.", "loss_barrier", 0.0312, 0.01, 0.5, math.nan, claims.INCONCLUSIVE, ""],
        ["RigL-C2", "a", "", "Later.", "test_accuracy", *[math.nan] * 3, 0.1, claims.NOT_JUDGED, "needs time"],
    ]
    judged = pd.DataFrame(rows, columns=columns)
    assert claims.markdown(judged).splitlines()[2:] == [
        "| RigL-C1a | RigL wins. | +3.1 [+1.0, +5.0] | +2.4 | reproduced |",
        "| RigL-C10a | A hill. | +0.031 [+0.010, +0.500] of loss |  | inconclusive |",
    ]
    assert claims.tally(judged) == (
        "of 3 comparisons 1 are reproduced, 0 are not reproduced, 1 are inconclusive, 1 are not judged"
    )
    assert claims.report(judged).splitlines()[1:] == [
        "RigL-C1a   reproduced      +3.1 [+1.0, +5.0]         RigL wins.",
        "RigL-C10a  inconclusive    +0.031 [+0.010, +0.500] of loss A hill.",
        "",
        "not judged, needs time:",
        "RigL-C2a",
    ]
