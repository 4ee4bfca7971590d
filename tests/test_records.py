"""Records: whole, findable, and never used where they are damaged."""

import json

import pytest

from prunelab import paths, records
from prunelab.runs import Run


def a_record(run_id="aaaa", **changes):
    return {
        "format": records.FORMAT,
        "id": run_id,
        "recipe": "rigl",
        "options": {"method": "rigl", "density": 0.1},
        "seed": 0,
        "parent": None,
        "status": "finished",
        "metrics": {"test_accuracy": 0.123456789},
        "curves": {"epoch": [1], "test_accuracy": [0.123456789]},
        "layers": [],
        "moves": {},
        "provenance": {"date": "2026-11-21", "commit": "abc", "seconds": 1.5, "dataset": {"name": "digits"}},
    } | changes


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(paths, "RECORDS", tmp_path / "records")


def test_saved_record_comes_back_unchanged():
    records.save(a_record())
    assert records.find("aaaa") == a_record()
    assert records.local() == [a_record()]
    assert records.find("bbbb") is None


def test_shipped_records_are_sorted_merged_and_replaced_by_newer_ones():
    assert records.ship("01_rigl", [a_record("bbbb"), a_record("aaaa")]) == 2
    assert records.ship("01_rigl", [a_record("aaaa", seed=5), a_record("cccc")]) == 3
    assert [record["id"] for record in records.load("01_rigl")] == ["aaaa", "bbbb", "cccc"]
    assert records.load("01_rigl")[0]["seed"] == 5


def test_shipping_twice_gives_the_same_bytes():
    records.ship("01_rigl", [a_record("aaaa"), a_record("bbbb")])
    before = (paths.RECORDS / "01_rigl.jsonl").read_bytes()
    records.ship("01_rigl", [a_record("bbbb")])
    assert (paths.RECORDS / "01_rigl.jsonl").read_bytes() == before


def test_notebook_without_records_has_none():
    assert records.load("99_nothing") == []


@pytest.mark.parametrize(
    "text, message",
    [
        (json.dumps(a_record())[:100], "is damaged"),
        ("", "is damaged"),
        ("[1, 2]", "has record format None"),
        (json.dumps(a_record(format=0)), "has record format 0, this version reads 1"),
        (json.dumps({"format": records.FORMAT, "id": "aaaa"}), "lacks curves, layers"),
    ],
)
def test_damaged_and_older_records_are_named_and_never_used(text, message):
    records.save(a_record("bbbb"))
    path = paths.RUNS / "aaaa" / "record.json"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.warns(UserWarning, match=rf"aaaa.*{message}"):
        assert records.find("aaaa") is None
    with pytest.warns(UserWarning, match=message):
        assert [record["id"] for record in records.local()] == ["bbbb"]


def test_half_written_line_costs_only_itself():
    records.ship("01_rigl", [a_record("aaaa"), a_record("bbbb")])
    path = paths.RECORDS / "01_rigl.jsonl"
    path.write_text(path.read_text()[:-50])
    with pytest.warns(UserWarning, match=r"01_rigl.jsonl line 2 is damaged"):
        assert [record["id"] for record in records.load("01_rigl")] == ["aaaa"]


def test_frame_flattens_without_changing_a_value():
    table = records.frame([a_record()])
    assert table.loc[0, ["id", "method", "density", "test_accuracy", "seconds", "status"]].tolist() == [
        "aaaa", "rigl", 0.1, 0.123456789, 1.5, "finished"
    ]  # fmt: skip


def test_frame_lists_the_runs_of_each_experiment_and_no_other():
    found = [a_record(run_id, seed=seed) for seed, run_id in enumerate(("aaaa", "bbbb", "cccc"))]
    experiments = {"main": ["bbbb", "aaaa"], "longer": iter(["aaaa", "dddd"]), "empty": []}
    table = records.frame(iter(found), experiments)
    # aaaa belongs to two; cccc to none; dddd is not on record.
    assert table[["experiment", "id", "seed"]].to_numpy().tolist() == [
        ["main", "bbbb", 1], ["main", "aaaa", 0], ["longer", "aaaa", 0]
    ]  # fmt: skip
    assert table.iloc[2].drop("experiment").tolist() == records.frame(found[:1]).iloc[0].tolist()
    assert "experiment" not in records.frame(found).columns
    assert len(records.frame(found, {})) == 0


def test_options_of_the_one_parent_become_columns():
    parent = a_record("aaaa", options={"method": "lottery", "density": 0.8})
    child = a_record("bbbb", parent="aaaa")
    orphan = a_record("cccc", parent="gone")
    between = a_record("dddd", parent=["aaaa", "bbbb"])
    table = records.frame([child, orphan, between, parent]).set_index("id")
    assert table.loc["bbbb", ["parent_method", "parent_density", "method", "density"]].tolist() == [
        "lottery", 0.8, "rigl", 0.1
    ]  # fmt: skip
    assert table.loc[["aaaa", "cccc", "dddd"], ["parent_method", "parent_density"]].isna().all(axis=None)
    # A parent gives its options also where it belongs to no experiment.
    listed = records.frame([child, parent], {"main": ["bbbb"]})
    assert listed[["id", "parent_method"]].to_numpy().tolist() == [["bbbb", "lottery"]]
    assert not any(name.startswith("parent_") for name in records.frame([orphan, between, parent]).columns)


def test_plan_has_the_columns_of_the_frame_that_are_known_beforehand():
    defaults = {"rigl": {"method": "rigl", "density": 0.1}, "other": {"width": 1.0}}
    dense = Run("rigl", {"density": 1.0})
    child = Run("other", {}, 3, parents=(dense,))
    path = Run("other", {"width": 2.0}, 3, parents=(dense, child))
    table = records.planned({"main": [child], "both": iter([child, path, dense]), "empty": []}, defaults)
    assert table[["experiment", "id", "recipe", "seed"]].to_numpy().tolist() == [
        ["main", child.id, "other", 3],
        ["both", child.id, "other", 3],
        ["both", path.id, "other", 3],
        ["both", dense.id, "rigl", 0],
    ]
    assert table["width"].fillna(0).tolist() == [1, 1, 2, 0] and table.loc[3, "method"] == "rigl"
    assert table["parent_method"].notna().tolist() == [True, True, False, False]  # of one parent only
    assert table["parent_density"].iloc[0] == 1.0 and "parent_width" not in table


def test_not_a_number_never_enters_a_record():
    with pytest.raises(ValueError, match="Out of range float"):
        records.save(a_record(metrics={"train_loss": float("nan")}))


def test_provenance_names_date_commit_and_versions():
    assert {"date", "commit", "prunelab", "torch", "python"} == records.provenance().keys()
