"""The batch driver, on tiny notebooks made here."""

import asyncio
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

PARAMETERS = 'profile: str = "smoke"  # which plan\nsteps: int = 3  # how long'


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
    folder = paths.FIGURES / "01_tiny" / "smoke"
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


@pytest.mark.parametrize("profile", ["../../elsewhere", "Smoke"])
def test_unknown_profile_leaves_no_folder(suite, profile):
    stem = suite("pass")
    with pytest.raises(ValueError, match=r"unknown profile .*; there are smoke, small, full, paper"):
        batch.execute(stem, parameters={"profile": profile}, timeout=60)
    assert not paths.FIGURES.exists()


def test_output_that_has_nowhere_to_go_is_told_before_a_kernel_starts(suite, monkeypatch):
    stem = suite("pass")
    paths.FIGURES.touch()
    monkeypatch.setattr(batch, "_run", lambda *arguments: pytest.fail("a kernel was started"))
    with pytest.raises(OSError, match=f"nothing can be written into .*{stem}/smoke .*set PRUNELAB_DATA"):
        batch.execute(stem, parameters={}, timeout=60)


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

    async def wait_for_cell(process_ends, timeout):
        """Time is over as soon as the cell is under way."""
        process_ends.close()
        while not pids.exists():
            await asyncio.sleep(0.1)
        raise TimeoutError

    monkeypatch.setattr(asyncio, "wait_for", wait_for_cell)
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


def test_end_of_the_caller_ends_kernels_and_children(suite, tmp_path):
    library = str(Path(batch.__file__).resolve().parents[1])
    callers = []
    for how, n, call in (
        (signal.SIGINT, 2, "batch.execute_all({}, parameters={{}}, timeout=60, report=print)"),
        (signal.SIGKILL, 1, "batch.execute({}[0], parameters={{}}, timeout=60)"),
    ):
        pids = [tmp_path / f"pids {how.name} {number}" for number in range(n)]
        stems = [suite(sleeper(path), stem=f"{number}_{how.name}") for number, path in enumerate(pids)]
        code = (
            "from pathlib import Path; from prunelab import batch, paths\n"
            f"paths.NOTEBOOKS, paths.FIGURES = Path({str(paths.NOTEBOOKS)!r}), Path({str(paths.FIGURES)!r})\n"
            + call.format(stems)
        )
        environment = os.environ | {"PYTHONPATH": library}
        caller = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL)
        callers.append((caller, how, pids))
    for caller, how, pids in callers:
        for path in pids:
            wait_for(path.exists, seconds=90)
        caller.send_signal(how)
        caller.wait(60)
        for path in pids:
            assert_gone(path)
    wait_for(lambda: not leftovers(), seconds=20)


@pytest.mark.skipif(not hasattr(psutil.Process, "cpu_affinity"), reason="processes cannot be confined to cores")
@pytest.mark.skipif(os.cpu_count() == 1, reason="notebooks run at the same time where there are several cores")
def test_notebooks_run_at_the_same_time_on_cores_of_their_own(suite, tmp_path):
    meet = "\n".join(
        [
            "import os, time, pathlib",
            f"folder = pathlib.Path({str(tmp_path)!r})",
            "(folder / f'here {os.getpid()}').touch()",
            "while len(list(folder.glob('here *'))) < 2: time.sleep(0.05)",
            "print(*os.sched_getaffinity(0))",
        ]
    )
    stems, ended = [suite(meet, stem="01_one"), suite(meet, stem="02_two")], {}
    batch.execute_all(stems, parameters={}, timeout=60, report=lambda stem, output, _: ended.update({stem: output}))
    one, two = (set(outputs(ended[stem]).split()) for stem in stems)
    assert one and two and not one & two


@pytest.fixture
def runs(monkeypatch):
    """Notebooks that only note on which cores they were to run, and with how many others; the first one fails."""
    seen, now = {}, []

    async def run(request, timeout):
        stem = Path(request["input_path"]).stem
        now.append(stem)
        await asyncio.sleep(0.01)
        seen[stem] = request["cores"], len(now)
        now.remove(stem)
        nbformat.write(nbformat.read(request["input_path"], as_version=4), request["output_path"])
        return "no" if stem == "01_fails" else None

    monkeypatch.setattr(batch, "_run", run)
    monkeypatch.setattr(batch, "_last_cell", lambda partial: "cell 3")
    return seen


@pytest.mark.parametrize(
    "cores, at_once, expected",
    [
        ([0, 2, 5], None, [([0], 3), ([2], 3), ([5], 3)]),
        ([0, 2, 5], 1, [([0, 2, 5], 1)] * 3),
        ([0, 2, 5], 2, [([0, 5], 2), ([2], 2), ([0, 5], 2)]),
        ([4], None, [([4], 1)] * 3),
        (None, None, [([], 1)] * 3),
    ],
)
def test_cores_are_shared_out_and_a_failure_leaves_the_others_alone(suite, runs, monkeypatch, cores, at_once, expected):
    if cores:
        monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda self: cores, raising=False)
    else:
        monkeypatch.delattr(psutil.Process, "cpu_affinity", raising=False)
    stems, ended = [suite("pass", stem=stem) for stem in ("01_fails", "02_b", "03_c")], {}
    report = lambda stem, outcome, seconds: ended.update({stem: outcome})  # noqa: E731
    batch.execute_all(stems, parameters={}, timeout=60, report=report, at_once=at_once)
    assert [runs[stem][0] for stem in stems] == [own for own, _ in expected]
    assert max(n for _, n in runs.values()) == max(n for _, n in expected)
    assert isinstance(ended.pop("01_fails"), batch.NotebookFailed)
    assert {stem: path.name for stem, path in ended.items()} == {"02_b": "02_b.ipynb", "03_c": "03_c.ipynb"}


def test_kernel_that_does_not_start_is_tried_once_more_and_not_twice(suite, monkeypatch):
    stem = suite("pass")
    tries = []

    def starts_at(attempt):
        async def run(request, timeout):
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
