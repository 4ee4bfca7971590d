"""The batch driver, on tiny notebooks made here."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from prunelab import batch, paths

PARAMETERS = 'profile: str = "tiny"  # which plan\nsteps: int = 3  # how long'


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """Makes notebooks of code cells in a house of its own, whose path has braces in it."""
    house = tmp_path / "{0.__class__} house"
    monkeypatch.setattr(paths, "NOTEBOOKS", house / "notebooks")
    monkeypatch.setattr(paths, "FIGURES", house / "figures")

    def make(*sources: str, stem: str = "01_tiny", parameters: str = PARAMETERS) -> str:
        cells = [nbformat.v4.new_markdown_cell("# A title")]
        cells.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
        cells.extend(nbformat.v4.new_code_cell(source) for source in sources)
        notebook = nbformat.v4.new_notebook(cells=cells)
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
        notebook.metadata["language_info"] = {"name": "python"}
        paths.NOTEBOOKS.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, paths.NOTEBOOKS / f"{stem}.ipynb")
        return stem

    return make


def outputs(path: Path) -> str:
    return "".join(
        output.text
        for cell in nbformat.read(path, as_version=4).cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "stream"
    )


def leftovers() -> list[str]:
    return [path.name for path in paths.FIGURES.rglob("*") if "partial" in path.name]


def test_notebook_runs_whole_with_its_parameters_from_any_folder(suite, tmp_path, monkeypatch):
    stem = suite("import os, prunelab\nprint(steps * 2, os.getcwd())")
    folder = paths.FIGURES / "01_tiny" / "tiny"
    folder.mkdir(parents=True)
    (folder / "01_tiny.failed.ipynb").write_text("of an earlier attempt")
    monkeypatch.chdir(tmp_path)
    output = batch.execute(stem, parameters={"steps": 21}, timeout=60)
    assert outputs(output).strip() == f"42 {paths.NOTEBOOKS}"
    assert list(folder.iterdir()) == [output]
    assert output.name == "01_tiny.ipynb"


@pytest.mark.parametrize("name", ["stpes", 'steps=0;open("pwned","w").write("x");steps', "steps\nimport os"])
def test_parameter_that_is_not_declared_never_reaches_papermill(suite, monkeypatch, name):
    stem = suite("pass")
    monkeypatch.setattr(batch, "_run", lambda *arguments: pytest.fail("papermill was called"))
    with pytest.raises(ValueError, match="it has profile, steps"):
        batch.execute(stem, parameters={name: 1}, timeout=60)


def test_unknown_notebook_is_named_beside_those_there_are(suite):
    suite("pass")
    for stem in ("02_other", "../notebooks/01_tiny"):
        with pytest.raises(ValueError, match="there are 01_tiny"):
            batch.execute(stem, parameters={}, timeout=60)


def test_profile_that_is_no_word_names_no_folder(suite):
    stem = suite("pass")
    with pytest.raises(ValueError, match="plain word"):
        batch.execute(stem, parameters={"profile": "../../elsewhere"}, timeout=60)


def test_failing_cell_is_named_what_ran_is_kept_and_an_earlier_output_stands(suite, tmp_path):
    stem = suite("print('before')", "# a knob\nraise ValueError('must be\\n positive')", "print('after')")
    output, failed = tmp_path / "copy.ipynb", tmp_path / "copy.failed.ipynb"
    output.write_text("of an earlier call")
    with pytest.raises(batch.NotebookFailed, match=r"cell 4 \(# a knob\): ValueError: must be pos") as caught:
        batch.execute(stem, parameters={"steps": 1}, timeout=60, output=output)
    assert str(failed) in str(caught.value)
    assert outputs(failed) == "before\n"
    assert output.read_text() == "of an earlier call"
    assert not list(tmp_path.glob("*partial*"))


def sleeper(pids: Path) -> str:
    """A cell that starts a process, notes its kernel's id and the process's, and sleeps."""
    return (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(90)'])\n"
        f"open({str(pids)!r} + '.new', 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        f"os.replace({str(pids)!r} + '.new', {str(pids)!r})\n"
        "time.sleep(90)"
    )


def test_time_limit_stops_the_notebook_its_kernel_and_their_children(suite, tmp_path, monkeypatch):
    pids = tmp_path / "pids"
    stem = suite(sleeper(pids))

    class Popen(subprocess.Popen):
        """Time is over as soon as the cell is under way."""

        def wait(self, timeout=None):
            if timeout is None:
                return super().wait()
            wait_for(pids.exists, seconds=60)
            raise subprocess.TimeoutExpired("papermill", timeout)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    with pytest.raises(batch.NotebookFailed, match=r"cell 3 \(import os.*\): stopped, 77 seconds are over"):
        batch.execute(stem, parameters={}, timeout=77)
    assert_gone(pids)


def test_time_limit_of_a_cell_stops_it_and_its_children(suite, tmp_path):
    pids = tmp_path / "pids"
    stem = suite(sleeper(pids))
    with pytest.raises(batch.NotebookFailed, match=r"cell 3 \(import os.*\): .*timed out.* 3 seconds"):
        batch.execute(stem, parameters={}, timeout=80, cell_timeout=3)
    assert_gone(pids)


def assert_gone(pids: Path) -> None:
    for pid in map(int, pids.read_text().split()):
        wait_for(lambda pid=pid: is_gone(pid), seconds=20)


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE  # dead, only not yet buried
    except psutil.NoSuchProcess:
        return True


def wait_for(condition, *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_end_of_the_caller_ends_kernel_and_children(suite, tmp_path):
    library = str(Path(batch.__file__).resolve().parents[1])
    callers = {}
    for number, how in ((1, signal.SIGINT), (2, signal.SIGKILL)):
        pids = tmp_path / f"pids {number}"
        stem = suite(sleeper(pids), stem=f"0{number}_tiny")
        code = (
            "from pathlib import Path; from prunelab import batch, paths\n"
            f"paths.NOTEBOOKS, paths.FIGURES = Path({str(paths.NOTEBOOKS)!r}), Path({str(paths.FIGURES)!r})\n"
            f"batch.execute({stem!r}, parameters={{}}, timeout=60)"
        )
        callers[pids, how] = subprocess.Popen(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": library}, stderr=subprocess.DEVNULL
        )
    for (pids, how), caller in callers.items():
        wait_for(pids.exists, seconds=90)
        caller.send_signal(how)
        caller.wait(60)
        assert_gone(pids)
    wait_for(lambda: not leftovers(), seconds=20)


def test_kernel_that_does_not_start_is_tried_once_more_and_not_twice(suite, monkeypatch):
    stem = suite("pass")
    tries = []

    def starts_at(attempt):
        def run(request, timeout):
            tries.append(timeout)
            if len(tries) < attempt:
                return "Kernel died before replying to kernel_info"
            Path(request["output_path"]).write_text("executed")

        return run

    monkeypatch.setattr(batch, "_run", starts_at(2))
    assert batch.execute(stem, parameters={}, timeout=60).read_text() == "executed"
    tries.clear()
    monkeypatch.setattr(batch, "_run", starts_at(3))
    with pytest.raises(batch.NotebookFailed, match="did not start: Kernel died"):
        batch.execute(stem, parameters={}, timeout=60)


def test_dead_kernel_is_reported_not_retried(suite, tmp_path):
    starts = tmp_path / "starts"
    stem = suite(f"open({str(starts)!r}, 'a').write('x')", "import os\nos._exit(9)")
    with pytest.raises(batch.NotebookFailed, match=r"cell 4 \(import os\): .*[Dd]ied"):
        batch.execute(stem, parameters={}, timeout=60)
    assert starts.read_text() == "x"
