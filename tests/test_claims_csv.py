"""The shipped numbers and rules: every row can be read, and says what the papers' files say."""

import functools

import pandas as pd
import pytest

from prunelab import claims, papers, paths, recipes, records, stores, verdicts
from prunelab.engine import with_parents
from prunelab.files import sha256

CLAIMS = claims.load()
IDS = [f"RigL-C{number}" for number in range(1, 13)] + ["LTH-C1", "LTH-C2", "ONE-C1", "ART-C1"]
IDS += [f"DMCP-C{number}" for number in (1, 2, 3, 4, 7, 8)]  # C5 is arithmetic; C6 is one search, and drawn
IDS += [f"RT-C{number}" for number in range(1, 6)]
IDS += [f"TR-C{number}" for number in (1, 2, 3, 4, 5, 7)]  # C6 is a speed, and measured; C8 is drawn
IDS += [f"AFR-C{number}" for number in range(1, 5)]
IDS += [f"FRONT-C{number}" for number in range(1, 7)]
METRICS = (
    "test_accuracy",
    "macs_ratio",
    "training_macs_ratio",
    "train_loss",
    "loss_barrier",
    "input_share",
    "central_share",
    "half_width_accuracy",
    "depth_tilt",
    "measured_density",
    "dead_filters",
)
OPTIONS = {name: recipe.defaults for name, recipe in recipes.RECIPES.items()}


@functools.cache
def planned(recipe, profile):
    experiments = recipes.STUDIES[recipe].experiments(profile, seeds=range(verdicts.MIN_SEEDS))
    return records.planned(experiments, OPTIONS)


def test_rules_and_papers_numbers_are_those_of_the_manifest():
    lines = (paths.PAPER / "SHA256SUMS").read_text().splitlines()
    listed = {name: digest for digest, name in map(str.split, lines)}
    found = {path.name: sha256(path) for path in paths.PAPER.glob("*.csv")}
    differing = ", ".join(sorted({name for name, _ in listed.items() ^ found.items()}))
    renew = "(cd data/paper && LC_ALL=C sha256sum *.csv > SHA256SUMS)"
    assert not differing, f"not as in data/paper/SHA256SUMS: {differing}; a change that is meant needs: {renew}"


def test_every_claim_is_there_with_parts_a_b_c():
    parts = {}
    for claim in CLAIMS:
        parts.setdefault(claim.id, []).append(claim.part)
    assert list(parts) == IDS
    for letters in parts.values():
        assert letters == [chr(ord("a") + number) for number in range(len(letters))]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: f"{claim.id}{claim.part}")
def test_row_is_complete(claim):
    assert claim.statement.endswith(".") and len(claim.statement) < 130
    assert claim.paper_source
    assert bool(claim.paper_better == claim.paper_better) == bool(claim.paper_worse == claim.paper_worse)
    assert all(abs(margin) <= 0.1 for margin in claim.margins)
    assert bool(claim.paper_setting) == (claim.paper_better == claim.paper_better) or claim.id == "RigL-C11"


@pytest.mark.parametrize(
    "claim", [claim for claim in CLAIMS if not claim.needs], ids=lambda claim: f"{claim.id}{claim.part}"
)
def test_claim_that_waits_for_nothing_finds_its_runs_in_the_plan_of_its_profile(claim):
    made = planned(claim.recipe, claim.profile).assign(**dict.fromkeys(METRICS, 0.5))
    whole, *others = verdicts.table(made, of=[claim], profile=claim.profile, recipe=claim.recipe).itertuples()
    assert whole.n_seeds >= verdicts.MIN_SEEDS, whole.reason
    assert [row.at for row in others] == list(claim.beside) or claim.profile != "small"


def test_no_claim_pools_data_sets_but_those_that_are_about_tasks_in_general():
    pooled = [claim for claim in CLAIMS if {"dataset", "parent_dataset"} & claim.listed.keys()]
    assert {claim.id for claim in pooled} == {"TR-C1", "TR-C2", "TR-C3", "TR-C4", "AFR-C3", "AFR-C4"}


def test_every_claim_answers_a_question():
    assert list(claims.questions()) == IDS


@pytest.mark.parametrize("profile", ["full", "paper"])
@pytest.mark.parametrize("recipe", recipes.STUDIES)
def test_without_records_every_claim_says_what_it_waits_for(recipe, profile):
    judged = verdicts.table(pd.DataFrame(), planned=planned(recipe, profile), profile=profile, recipe=recipe)
    assert set(judged["verdict"]) == {verdicts.NOT_JUDGED} and set(judged["at"]) == {""}
    assert judged["reason"].str.fullmatch(r"needs .+|(\d+) of \1 runs not recorded").all()


@pytest.mark.parametrize("study", recipes.STUDIES.values(), ids=recipes.STUDIES)
def test_of_a_profile_that_ships_whole_the_plan_adds_nothing_to_the_records(study, tmp_path):
    experiments = study.experiments("small")
    ids = {name: [run.id for run in runs] for name, runs in experiments.items()}
    plan = with_parents(study.plan("small"))
    frame = records.frame(stores.on_record(plan, store=tmp_path).values(), ids)
    everything = records.planned(experiments, OPTIONS)
    assert set(everything["id"]) == set(frame["id"])
    pd.testing.assert_frame_equal(frame[everything.columns], everything, check_dtype=False)
    frame, everything = study.extended(frame, everything)
    whole, again = (
        verdicts.table(frame, planned=runs, profile="small", recipe=study.name) for runs in (None, everything)
    )
    pd.testing.assert_frame_equal(again, whole, check_exact=True)


@functools.cache
def read(file):
    return pd.read_csv(paths.PAPER / f"{file}.csv")


def published(rows, *, metric):
    """The values of a paper's rows in the unit of our metric."""
    if metric == "test_accuracy":
        accuracies = rows[rows["metric"].isin(["top1", "test_acc"])]["value"] / 100
        return [*accuracies, *(1 - rows[rows["metric"].str.startswith("error_")]["value"] / 100)]
    if metric == "macs":
        return list(rows[rows["unit"] == "KFLOPs"]["value"] * 1000 / 2)
    return list(rows[rows["metric"].isin(["train_flops_ratio", "test_flops_ratio"])]["value"])


@pytest.mark.parametrize(
    "claim",
    [claim for claim in CLAIMS if claim.paper_source.partition("_")[0] in ("rigl", "rethinking")],
    ids=lambda claim: f"{claim.id}{claim.part}",
)
def test_paper_values_stand_in_the_file_and_source_named(claim):
    file, *source_ids = claim.paper_source.partition(":")[0].replace(",", "").split()
    rows = read(file)
    rows = rows[rows["source_id"].isin(source_ids) & ~rows["note"].fillna("").str.startswith("SUSPECT")]
    assert set(rows["source_id"]) == set(source_ids)
    for cells, value in [(claim.better, claim.paper_better), (claim.worse, claim.paper_worse)]:
        found = []
        for cell in cells:
            names = {*cell.get("method", cell.get("training", ("rigl",))), "big_sparse"}
            found.append(published(rows[rows["method"].map(papers.our_name).isin(names)], metric=claim.metric))
        if len(found) == 2:
            found = [[first - second for first in found[0] for second in found[1]]]
        assert any(value == pytest.approx(candidate, abs=1e-6) for candidate in found[0]), (value, found)


@pytest.mark.parametrize("path", papers.files(), ids=lambda path: path.stem)
def test_every_paper_file_has_the_fixed_columns(path):
    rows = pd.read_csv(path)
    assert [column for column in rows.columns if column in papers.COLUMNS] == list(papers.COLUMNS)
    assert set(rows.columns) <= {*papers.COLUMNS, "distribution", "train_mult", "width", "init", "pretraining"}
    assert rows["value"].notna().all() and rows["source_id"].notna().all()
    assert rows["sparsity"].dropna().between(0, 1).all()
    assert set(rows["confidence"]) <= {"read", "derived"}, "a number without an opened source is no number"


def test_files_of_the_first_paper_are_there():
    assert {path.stem for path in papers.files()} >= {
        "rigl_resnet50_imagenet",
        "rigl_wrn22_2_cifar10",
        "rigl_lottery",
        "rigl_mobilenet",
    }


def test_paper_points_are_shares_in_our_words():
    points = papers.paper_points("rigl_wrn22_2_cifar10", source_id="author_issue8", method="gmp", train_mult=1)
    assert dict(zip(points["density"], points["accuracy"], strict=True)) == {
        0.5: 0.94,
        0.2: 0.936,
        0.1: 0.933,
        0.05: 0.923,
    }
    assert set(points["distribution"]) == {"erk"}


def test_paper_points_leave_out_misprints():
    at = {"source_id": "paper_tab4", "method": "static"}
    assert set(papers.paper_points("rigl_resnet50_imagenet", **at)["distribution"]) == {"uniform"}
    with pytest.raises(ValueError, match=r"no accuracy with distribution='erk'; there .* \['uniform'\]"):
        papers.paper_points("rigl_resnet50_imagenet", **at, distribution="erk")


@pytest.mark.parametrize(
    "file, filters, message",
    [
        (
            "rigl_wrn",
            {"source_id": "author_issue8"},
            "no paper file 'rigl_wrn'; there are .*rigl_wrn22_2_cifar10",
        ),
        ("rigl_wrn22_2_cifar10", {"source_id": "issue8"}, r"source_id='issue8'; there .*'author_issue8'"),
        (
            "rigl_wrn22_2_cifar10",
            {"source_id": "author_issue8", "speed": 1},
            "no column 'speed'; it has model, ",
        ),
    ],
)
def test_paper_points_name_what_there_is(file, filters, message):
    with pytest.raises(ValueError, match=message):
        papers.paper_points(file, **filters)
