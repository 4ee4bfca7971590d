"""Records: whole, findable, and never used where they are damaged."""

import hashlib
import json
import random
import subprocess
import warnings

import pytest
from conftest import find_record

from prunelab import paths, records
from prunelab.runs import Run

A, B, C, D = (letter * 16 for letter in "abcd")  # ids


def a_record(run_id=A, **changes):
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
    assert find_record(A) == a_record()
    assert records.local() == [a_record()]
    assert find_record(B) is None


def test_shipped_records_are_sorted_merged_and_replaced_by_newer_ones():
    assert records.ship("01_rigl", [a_record(B), a_record(A)]) == 2
    assert records.ship("01_rigl", [a_record(A, seed=5), a_record(C)]) == 3
    assert [record["id"] for record in records.load("01_rigl")] == [A, B, C]
    assert records.load("01_rigl")[0]["seed"] == 5


def test_shipping_twice_gives_the_same_bytes():
    records.ship("01_rigl", [a_record(A), a_record(B)])
    before = (paths.RECORDS / "01_rigl.jsonl").read_bytes()
    records.ship("01_rigl", [a_record(B)])
    assert (paths.RECORDS / "01_rigl.jsonl").read_bytes() == before


def test_notebook_without_records_has_none():
    assert records.load("99_nothing") == []


def text_of(record):
    return json.dumps(record, sort_keys=True, separators=(",", ":"))


def hashed(record):
    """Text with the SHA-256 that it should have, whatever it holds."""
    return text_of(record | {"sha256": hashlib.sha256(text_of(record).encode()).hexdigest()})


def without(key):
    return {name: value for name, value in a_record().items() if name != key}


NO_HASH = "its SHA-256 is not the one it was written with"
BAD = [
    (b"", "Expecting value"),
    (hashed(a_record()).encode()[:100], "Expecting ',' delimiter"),
    (b"\xff" + hashed(a_record()).encode(), "'utf-8' codec can't decode"),
    (hashed(a_record()).encode("utf-16"), "'utf-8' codec can't decode"),
    (b"[1, 2]", "it is no JSON object"),
    (b"[" * 100_000, "maximum recursion depth"),
    (b'{"a":' * 100_000, "maximum recursion depth"),
    (hashed(a_record(seed=float("nan"))).encode(), "Out of range float"),
    (hashed(a_record(metrics={"test_loss": float("inf")})).encode(), "Out of range float"),
    (hashed(a_record()).replace("0.123456789", "1e999").encode(), "Out of range float"),
    (text_of(a_record()).encode(), NO_HASH),
    (text_of(a_record(sha256="0" * 64)).encode(), NO_HASH),
    (text_of(a_record(sha256=None)).encode(), NO_HASH),
    (hashed(a_record()).replace('"seed":0', '"seed":0,"seed":1').encode(), NO_HASH),
    (hashed(a_record(format=0)).encode(), "it has record format 0, this version reads 2"),
    (hashed(a_record(format=3)).encode(), "it has record format 3, this version reads 2"),
    (hashed(a_record(format=2.0)).encode(), "it has format 2.0"),
    (hashed(a_record()).replace('"format":2', '"format":1').encode(), "it has record format 1"),  # not adopted
    (text_of(a_record(format=True)).encode(), "it has format True"),
    (text_of(a_record(format=1, options=None)).encode(), "it has options None"),
    (text_of(a_record(format=1, metrics={"test_loss": float("nan")})).encode(), "Out of range float"),
    (hashed(without("format")).encode(), "it has record format None"),
    (hashed(without("layers")).encode(), "it lacks layers"),
]
WRONG = {
    "id": [None, 5, "a" * 15, "A" * 16, "a" * 16 + "\n"],
    "recipe": [None, 3],
    "options": [None, [], {"density": [0.1]}],
    "seed": [None, True, 1.0, "0", -1],
    "parent": [5, "a", [A, None], {}],
    "status": [None, [], "done"],
    "metrics": [None, 0.5, {"test_accuracy": {}}],
    "curves": [None, {"epoch": 1}],
    "layers": [None, {}, [1]],
    "provenance": [None, {"date": []}],
}


@pytest.mark.parametrize("content, message", BAD, ids=range(len(BAD)))
def test_damaged_and_older_records_are_named_and_never_used(content, message):
    records.save(a_record(B))
    path = paths.RUNS / A / "record.json"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=rf"{A}.record.json is damaged.*{message}.*will be trained again"):
        assert find_record(A) is None
    with pytest.warns(UserWarning, match=message):
        assert [record["id"] for record in records.local()] == [B]
    assert path.read_bytes() == content


def test_record_that_stands_as_it_was_written_is_not_written_again_to_be_checked(monkeypatch):
    text = hashed(a_record())
    spaced = json.dumps(json.loads(text), indent=1)  # the same record, in no text of ours
    assert records.parse(spaced.encode(), where="x") == a_record()
    monkeypatch.setattr(records, "_canonical", lambda record: pytest.fail("written"))
    assert records.parse(text.encode(), where="x") == a_record()


@pytest.mark.parametrize("key, value", [(key, value) for key, values in WRONG.items() for value in values])
def test_value_of_another_type_is_damage_and_is_not_written(key, value):
    record = a_record() | {key: value}
    with pytest.raises(records.BadRecord, match=f"x is damaged .it has {key} "):
        records.parse(hashed(record).encode(), where="x")
    with pytest.raises(records.BadRecord, match=f"it has {key} "):
        records.ship("01_rigl", [record])


def test_line_that_is_no_text_costs_only_itself():
    records.ship("01_rigl", [a_record(A), a_record(B), a_record(C)])
    path = paths.RECORDS / "01_rigl.jsonl"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], b"\xff\xfe" + lines[1], b"", lines[2]]))
    with pytest.warns(UserWarning) as caught:
        assert [record["id"] for record in records.load("01_rigl")] == [A, C]
    assert [str(warning.message)[:25] for warning in caught] == [
        "01_rigl.jsonl line 2 is d", "01_rigl.jsonl line 3 is d"
    ]  # fmt: skip


def test_shipped_line_without_a_hash_is_damaged():
    paths.RECORDS.mkdir()
    (paths.RECORDS / "01_rigl.jsonl").write_text(text_of(a_record(format=1)) + "\n")
    with pytest.warns(UserWarning, match="01_rigl.jsonl line 1 is damaged .it has record format 1"):
        assert records.load("01_rigl") == []


def test_folder_or_unreadable_file_in_place_of_a_record_is_named_and_the_rest_goes_on():
    records.save(a_record(B))
    (paths.RUNS / A / "record.json").mkdir(parents=True)
    (paths.RECORDS / "01_rigl.jsonl").mkdir(parents=True)
    with pytest.warns(UserWarning, match=f"{A}.record.json cannot be read"):
        assert records.local() == [a_record(B)]
    with pytest.warns(UserWarning, match="01_rigl.jsonl cannot be read"):
        assert records.load("01_rigl") == []


def test_record_in_the_folder_of_another_run_is_named_and_left_alone():
    records.save(a_record(B))
    (paths.RUNS / B).rename(paths.RUNS / A)
    with pytest.warns(UserWarning, match=rf"{A}.record.json is of another run, {B}"):
        assert find_record(A) is None


def test_own_records_of_the_earlier_format_are_adopted_with_one_warning():
    for run_id in (A, B, C):
        (paths.RUNS / run_id).mkdir(parents=True)
        (paths.RUNS / run_id / "record.json").write_text(text_of(a_record(run_id, format=1)))
    with pytest.warns(UserWarning) as caught:
        assert records.local(ids=[A, B, D]) == [a_record(A), a_record(B)]
    assert [str(warning.message) for warning in caught] == [
        "records of an earlier version, without a SHA-256, adopted: 2"
    ]
    with warnings.catch_warnings(action="error"):
        assert records.local(ids=[A, B]) == [a_record(A), a_record(B)]
    assert (paths.RUNS / A / "record.json").read_text() == hashed(a_record())
    assert '"format":1' in (paths.RUNS / C / "record.json").read_text()  # nobody asked for it


def test_own_record_of_the_earlier_format_serves_where_nothing_can_be_written(monkeypatch):
    (paths.RUNS / A).mkdir(parents=True)
    (paths.RUNS / A / "record.json").write_text(text_of(a_record(format=1)))

    def read_only(path, content):
        raise PermissionError

    monkeypatch.setattr(records, "atomic_write", read_only)
    with pytest.warns(UserWarning, match="adopted: 1"):
        assert find_record(A) == a_record()


def test_records_of_the_earlier_format_and_with_a_hash_ship_in_todays():
    shipped = json.loads(hashed(a_record(B)))
    records.ship("01_rigl", [a_record(format=1), shipped | {"seed": 3}])
    assert (paths.RECORDS / "01_rigl.jsonl").read_text() == f"{hashed(a_record())}\n{hashed(a_record(B, seed=3))}\n"


def test_keys_that_are_numbers_are_hashed_as_they_will_be_read():
    records.save(a_record(moves={10: 1, 9: 2}))
    assert find_record(A)["moves"] == {"10": 1, "9": 2}


def flips(content, n_places):
    """The content with one byte changed, often by a single bit, at places drawn at random."""
    generator = random.Random(0)
    for place in generator.sample(range(len(content)), n_places):
        changed = bytearray(content)
        changed[place] ^= generator.choice([1 << generator.randrange(8), generator.randrange(1, 256)])
        yield place, bytes(changed)


def test_no_flipped_byte_of_a_record_is_believed():
    records.save(a_record())
    path = paths.RUNS / A / "record.json"
    for place, changed in flips(path.read_bytes(), 200):
        path.write_bytes(changed)
        with pytest.warns(UserWarning, match=f"{A}.record.json is damaged"):
            assert find_record(A) is None, place


def test_no_flipped_byte_of_a_shipped_file_is_believed_and_it_costs_only_its_line():
    good = [a_record(run_id, seed=seed) for seed, run_id in enumerate((A, B, C))]
    records.ship("01_rigl", good)
    path = paths.RECORDS / "01_rigl.jsonl"
    content = path.read_bytes()
    for place, changed in flips(content, 100):
        path.write_bytes(changed)
        number = content.count(b"\n", 0, place)
        lost = {number, number + 1} if content[place] == ord("\n") else {number}  # a line end joins two
        with pytest.warns(UserWarning) as caught:
            assert records.load("01_rigl") == [record for index, record in enumerate(good) if index not in lost], place
        assert f"01_rigl.jsonl line {number + 1} is damaged" in str(caught[0].message), place


def test_half_written_line_costs_only_itself():
    records.ship("01_rigl", [a_record(A), a_record(B)])
    path = paths.RECORDS / "01_rigl.jsonl"
    path.write_text(path.read_text()[:-50])
    with pytest.warns(UserWarning, match=r"01_rigl.jsonl line 2 is damaged"):
        assert [record["id"] for record in records.load("01_rigl")] == [A]


def test_frame_flattens_without_changing_a_value():
    table = records.frame([a_record()])
    assert table.loc[0, ["id", "method", "density", "test_accuracy", "seconds", "status"]].tolist() == [
        A, "rigl", 0.1, 0.123456789, 1.5, "finished"
    ]  # fmt: skip


def test_frame_lists_the_runs_of_each_experiment_and_no_other():
    found = [a_record(run_id, seed=seed) for seed, run_id in enumerate((A, B, C))]
    experiments = {"main": [B, A], "longer": iter([A, D]), "empty": []}
    table = records.frame(iter(found), experiments)
    # aaaa belongs to two; cccc to none; dddd is not on record.
    assert table[["experiment", "id", "seed"]].to_numpy().tolist() == [
        ["main", B, 1], ["main", A, 0], ["longer", A, 0]
    ]  # fmt: skip
    assert table.iloc[2].drop("experiment").tolist() == records.frame(found[:1]).iloc[0].tolist()
    assert "experiment" not in records.frame(found).columns
    assert len(records.frame(found, {})) == 0


def test_options_of_the_one_parent_become_columns():
    parent = a_record(A, options={"method": "lottery", "density": 0.8})
    child = a_record(B, parent=A)
    orphan = a_record(C, parent="gone")
    between = a_record(D, parent=[A, B])
    table = records.frame([child, orphan, between, parent]).set_index("id")
    assert table.loc[B, ["parent_method", "parent_density", "method", "density"]].tolist() == [
        "lottery", 0.8, "rigl", 0.1
    ]  # fmt: skip
    assert table.loc[[A, C, D], ["parent_method", "parent_density"]].isna().all(axis=None)
    # A parent gives its options also where it belongs to no experiment.
    listed = records.frame([child, parent], {"main": [B]})
    assert listed[["id", "parent_method"]].to_numpy().tolist() == [[B, "lottery"]]
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


@pytest.fixture
def git(tmp_path):
    """Runs git in a repository with one commit, and returns what it prints."""

    def git(*arguments, cwd=tmp_path / "theirs"):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True, cwd=cwd)
        return done.stdout.strip()

    (tmp_path / "theirs" / "lib").mkdir(parents=True)
    (tmp_path / "theirs" / "lib" / "code.py").touch()
    git("init")
    git("add", ".")
    git("commit", "-m", "theirs")
    return git


def commit_of(root, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", root)
    return records.commit.__wrapped__()


def test_commit_is_that_of_the_library_and_marked_where_it_was_changed(tmp_path, git, monkeypatch):
    head = git("rev-parse", "--short=10", "HEAD")
    assert commit_of(tmp_path / "theirs", monkeypatch) == head
    git("worktree", "add", tmp_path / "beside")
    assert commit_of(tmp_path / "beside", monkeypatch) == head
    (tmp_path / "theirs" / "lib" / "code.py").write_text("new")
    assert commit_of(tmp_path / "theirs", monkeypatch) == f"{head}+"


@pytest.mark.parametrize("inside", ["lib", ".venv/lib/python3.11"])
def test_commit_of_a_surrounding_repository_is_never_the_librarys(tmp_path, git, inside, monkeypatch):
    root = tmp_path / "theirs" / inside
    root.mkdir(parents=True, exist_ok=True)
    assert commit_of(root, monkeypatch) == "unknown"
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "theirs" / ".git"))  # as in a hook of theirs
    assert commit_of(root, monkeypatch) == "unknown"


def an_older_record(run_id=A, parent=None, *, n_weights, training_macs):
    """As recipes wrote them when two words meant two things: 6 of 30 weights are active, beside a network of 60."""
    metrics = {"n_weights": n_weights, "n_active": 6, "measured_density": 0.1, "training_macs": training_macs}
    layers = [{"name": "a", "n_weights": 10}, {"name": "b", "n_weights": 20}]
    return a_record(run_id, parent=parent, layers=layers, metrics=metrics | {"total_training_macs_ratio": 1.5})


@pytest.mark.parametrize("n_weights", [60, 30])  # the reference's in one recipe, its own in the other
def test_words_that_meant_two_things_are_told_by_what_each_recipe_meant(n_weights):
    told = records.metrics(an_older_record(n_weights=n_weights, training_macs=5))
    assert told == {
        "n_stored_weights": 30,
        "n_reference_weights": 60,
        "n_active": 6,
        "measured_density": 0.1,
        "training_macs": 5,
    }


def test_frame_adds_up_what_a_run_and_its_ancestors_took_to_train():
    first = an_older_record(A, n_weights=60, training_macs=5)
    second = an_older_record(B, A, n_weights=60, training_macs=7)
    third = an_older_record(C, [A, B], n_weights=60, training_macs=1)
    frame = records.frame([third, first, second]).set_index("id")
    assert frame["total_training_macs"].to_dict() == {A: 5, B: 12, C: 18}
    assert records.frame([second])["total_training_macs"].isna().all()  # its parent is not among them
    own = a_record(B, parent=A, metrics={"training_macs": 7, "total_training_macs": 12})
    assert records.frame([own])["total_training_macs"].tolist() == [12]  # recorded by itself
