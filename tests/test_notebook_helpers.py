"""The first cells of a notebook: mistyped parameters stop it, and it says where its numbers come from."""

import re
from datetime import UTC, datetime

import nbformat
import pandas as pd
import papermill
import pytest

from prunelab import notebook, paths, schedules

TYPES = {"profile": str, "fresh": bool, "seeds": str, "device": str, "density": float}
PARAMETERS = """profile: str = "small"  # smoke, small, full or paper
fresh: bool = False  # True trains now
seeds: str = "0,1,2"  # separated by commas
device: str = "auto"
density: float = 0.1"""
SETUP = "from prunelab.notebook import check_parameters\nfigures = []\ncheck_parameters(globals(), profile=str)"


def kernel(*cells):
    """The namespace of a kernel that ran these cells and is in the middle of the setup cell."""
    namespace = {"In": ["", *cells, SETUP], "Out": {}, "figures": [], "exit": print}
    for cell in cells:
        exec(cell, namespace)
    return namespace


def injected(assignments):
    return f"# Parameters\n{assignments}\n"


def test_values_come_back_with_their_types():
    values = notebook.check_parameters(kernel(PARAMETERS, injected('seeds = "4, 2"\ndensity = 1')), **TYPES)
    assert vars(values) == {
        "profile": "small",
        "fresh": False,
        "seeds": (4, 2),
        "device": "auto",
        "density": 1.0,
        "train": True,
        "engine": "local",
    }
    assert type(values.density) is float


@pytest.mark.parametrize(
    "cell",
    [
        injected("sead = 7"),
        injected("sead = None"),
        injected("sead = float('nan')"),
        injected('sead = ["0"]'),
        '"""Text."""\nsead = 7',
    ],
)
def test_mistyped_name_is_refused_with_the_nearest_and_all(cell):
    with pytest.raises(ValueError) as error:
        notebook.check_parameters(kernel(PARAMETERS, cell), **TYPES)
    known = "profile, fresh, seeds, device, density"
    assert str(error.value) == f"no parameter 'sead'; there are {known}. Did you mean 'seeds'?"


def test_name_like_no_other_gets_no_suggestion():
    with pytest.raises(ValueError, match=r"no parameter 'zzz'; there are .*density$"):
        notebook.check_parameters(kernel(PARAMETERS, injected("zzz = 7")), **TYPES)


def test_mistyped_name_in_the_cell_of_parameters_is_refused():
    with pytest.raises(ValueError, match="no parameter 'epochs'"):
        notebook.check_parameters(kernel(PARAMETERS + "\nepochs: int = 3"), **TYPES)


def test_what_other_cells_define_is_no_parameter():
    cells = ["import math\nn_runs = 3", "def helper():\n    pass", "%matplotlib inline"]
    namespace = kernel(PARAMETERS, *cells[:2])
    namespace["In"].insert(2, cells[2])
    assert notebook.check_parameters(namespace, **TYPES).profile == "small"


def test_second_run_of_the_cell_meets_other_variables():
    namespace = kernel(PARAMETERS)
    notebook.check_parameters(namespace, **TYPES)
    namespace["In"] += ["n_epochs = 3", SETUP]
    namespace.update(n_epochs=3, profile="smoke")
    assert notebook.check_parameters(namespace, **TYPES).profile == "smoke"
    namespace["fresh"] = 1
    with pytest.raises(ValueError, match="parameter fresh must be bool"):
        notebook.check_parameters(namespace, **TYPES)


def test_first_run_that_failed_does_not_count():
    namespace = kernel(PARAMETERS, injected("sead = 7"))
    for _ in range(2):
        with pytest.raises(ValueError, match="no parameter 'sead'"):
            notebook.check_parameters(namespace, **TYPES)
    del namespace["sead"]
    assert notebook.check_parameters(namespace, **TYPES).profile == "small"


def test_in_a_script_which_has_no_cells_other_names_are_its_own():
    namespace = {"__name__": "__main__", "print": print, "profile": "small", "address": "of a clone"}
    assert notebook.check_parameters(namespace, profile=str).profile == "small"
    with pytest.raises(ValueError, match="unknown profile 'tiny'"):
        notebook.check_parameters(namespace | {"profile": "tiny"}, profile=str)


SEEDS = "whole numbers from 0 to 9223372036854775807"


@pytest.mark.parametrize(
    "assignment, message",
    [
        ("fresh = 1", "parameter fresh must be bool, got 1 (int)"),
        ("fresh = 'False'", "parameter fresh must be bool, got 'False' (str)"),
        ("density = True", "parameter density must be float, got True (bool)"),
        ("density = '0.1'", "parameter density must be float, got '0.1' (str)"),
        ("n_epochs = 1.0", "parameter n_epochs must be int, got 1.0 (float)"),
        ("n_epochs = True", "parameter n_epochs must be int, got True (bool)"),
        ("profile = None", "parameter profile must be str, got None (NoneType)"),
        ("profile = 'Smoke'", "there are smoke, small, full, paper. Did you mean 'smoke'?"),
        ("profile = 'tiny'", "unknown profile 'tiny'; there are smoke, small, full, paper"),
        ("device = 'gpu'", "unknown device 'gpu'; there are auto, cpu, cuda"),
        *(
            (
                f"seeds = {text!r}",
                f"seeds must be different {SEEDS}, separated by commas, such as 0,1,2; got {text!r}",
            )
            for text in (" ", "0,", "0 1", "0,1,0", "1,01", "-1", "0.5", "a", "²", str(2**63), "9" * 30)
        ),
        ("seeds = [0, 1]", 'parameter seeds must be str, such as "0,1,2", got [0, 1] (list)'),
        ("seeds = -1", f"seeds must be different {SEEDS}"),
        ("seeds = 2**64", f"seeds must be different {SEEDS}"),
        ("density = 10**400", "parameter density must be a finite number of 64 bits, got 1000"),
        ("density = float('nan')", "parameter density must be a finite number of 64 bits, got nan"),
        ("density = [1]", "parameter density must be float, got [1] (list)"),
        ("seeds = False", 'parameter seeds must be str, such as "0,1,2", got False (bool)'),
    ],
)
def test_bad_value_is_refused_with_what_is_allowed(assignment, message):
    types = TYPES | {"n_epochs": int}
    with pytest.raises(ValueError, match=re.escape(message)):
        notebook.check_parameters(kernel(f"{PARAMETERS}\nn_epochs: int = 2", injected(assignment)), **types)


def test_one_seed_may_come_as_the_number_that_papermill_makes_of_it():
    assert notebook.check_parameters(kernel(PARAMETERS, injected("seeds = 7")), **TYPES).seeds == (7,)


def test_no_seeds_leave_the_choice_to_the_profile():
    assert notebook.check_parameters(kernel(PARAMETERS, injected('seeds = ""')), **TYPES).seeds == ()


def test_parameter_without_a_value_is_named():
    with pytest.raises(ValueError, match="parameter 'seeds' is not set"):
        notebook.check_parameters(kernel('profile = "small"'), profile=str, seeds=str)


def test_figures_that_have_nowhere_to_go_stop_a_notebook_at_its_start(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(paths, "FIGURES", tmp_path / "file" / "figures")
    with pytest.raises(OSError, match=f"nothing can be written into {tmp_path}/file/figures .*set PRUNELAB_DATA"):
        notebook.check_parameters(kernel(PARAMETERS), **TYPES)


def test_papermill_stops_at_a_mistyped_parameter(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(paths.ROOT / "lib"))
    document = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    )
    document.cells = [
        nbformat.v4.new_code_cell('profile: str = "smoke"', metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(SETUP),
        nbformat.v4.new_code_cell("n_runs = 3"),
        nbformat.v4.new_code_cell(f"{SETUP}\nprint(profile)"),
    ]
    nbformat.write(document, tmp_path / "in.ipynb")
    run = {"input_path": tmp_path / "in.ipynb", "output_path": tmp_path / "out.ipynb", "progress_bar": False}
    with pytest.raises(papermill.PapermillExecutionError, match=r"no parameter 'profil'; there are profile"):
        papermill.execute_notebook(**run, parameters={"profil": "small"})
    done = papermill.execute_notebook(**run, parameters={"profile": "small"})
    assert done.cells[-1].outputs[0].text == "small\n"


def record(date, *, commit="abc123", device="cpu", seconds=30.0):
    return {"provenance": {"date": date, "commit": commit, "device": device, "seconds": seconds}}


SINCE = datetime(2026, 7, 3, 12, 0, 0, tzinfo=UTC)
OLD = [
    record("2026-07-01T10:00:00+00:00"),
    record("2026-07-02T10:00:00+00:00", device="NVIDIA H200", seconds=2400),
]
NEW = record("2026-07-03T12:00:00+00:00", commit="def456+")


def test_provenance_tells_records_from_what_was_trained_now():
    old = "2 from records (2026-07-01 to 2026-07-02, commit abc123, on NVIDIA H200, cpu, 40 min of training)"
    new = "1 trained now (2026-07-03, commit def456+, on cpu, 30 s of training)"
    assert notebook.provenance_line(OLD, since=SINCE) == old
    assert notebook.provenance_line([NEW], since=SINCE) == new
    assert notebook.provenance_line([NEW, *OLD], since=SINCE) == f"{old}; {new}"
    assert notebook.provenance_line([], since=SINCE) == "no runs"


def test_what_is_trained_after_the_start_of_the_notebook_is_now():
    now = datetime.now(UTC).isoformat(timespec="seconds")
    assert notebook.provenance_line([record(now)]).startswith("1 trained now")
    assert notebook.provenance_line(OLD).startswith("2 from records")


def test_environment_line_names_device_commit_and_profile():
    line = notebook.environment_line(profile="smoke", device="cpu")
    assert re.fullmatch(r"prunelab \S+ at commit \S+, torch \S+, cpu \(\d+ cores\), profile smoke", line)
    with pytest.raises(ValueError, match="unknown device 'tpu'"):
        notebook.environment_line(profile="smoke", device="tpu")
    assert ", a cluster, profile smoke" in notebook.environment_line(profile="smoke", engine="ray")


def test_source_shown_is_that_of_the_library(capsys):
    notebook.show_source(schedules.drop_fraction, notebook.show_source)
    shown = capsys.readouterr().out
    text = (paths.ROOT / "lib" / "prunelab" / "schedules.py").read_text()
    first, second = shown.split("\n\ndef show_source")
    assert first.startswith("def drop_fraction(") and first.rstrip() in text
    assert "inspect.getsource" in second and shown.endswith("\n") and not shown.endswith("\n\n")


@pytest.mark.parametrize(
    "profile, fresh, train, trains",
    [
        ("smoke", False, "auto", True),
        ("small", False, "auto", True),
        ("full", False, "auto", False),  # hours on a laptop: only where it is asked for
        ("paper", False, "auto", False),
        ("full", True, "auto", True),
        ("full", False, "yes", True),
        ("small", False, "no", False),
    ],
)
def test_large_profiles_train_only_where_it_is_asked_for(profile, fresh, train, trains):
    cell = f'profile: str = "{profile}"\nfresh: bool = {fresh}\ntrain: str = "{train}"'
    assert notebook.check_parameters(kernel(cell), profile=str, fresh=bool, train=str).train is trains


def test_tables_say_what_is_not_on_record(capsys):
    planned = pd.DataFrame({"experiment": ["main", "main", "length"], "id": ["a", "b", "a"]})
    frame = pd.DataFrame({"experiment": ["main"], "id": ["b"], "test_accuracy": [0.5]})
    tables = notebook.Tables(frame, planned)
    assert list(tables) == ["main"] and tables["main"]["id"].tolist() == ["b"]
    assert tables.missing == "on record are only 1 of 2 runs of main, 0 of 1 runs of length"
    assert tables.have("main") and not capsys.readouterr().out
    assert not tables.have("main", "length", "networks")
    assert capsys.readouterr().out == "not shown: on record are 0 of 1 runs of length, no networks\n"
    whole = notebook.Tables(planned.assign(test_accuracy=0.5), planned)
    assert whole.missing == "every run is on record"
    nothing = notebook.Tables(pd.DataFrame(), planned)
    assert nothing == {} and not nothing.have("main")


@pytest.mark.parametrize("given, device, engine", [("ray", "auto", "ray"), ("cpu", "cpu", "local")])
def test_cluster_is_a_device_to_the_reader_and_an_engine_to_the_library(given, device, engine):
    values = notebook.check_parameters(kernel(f'device: str = "{given}"'), device=str)
    assert (values.device, values.engine) == (device, engine)
