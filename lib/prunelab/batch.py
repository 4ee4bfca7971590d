"""Executes notebooks unattended: papermill, in a process for each, within limits.

papermill pastes parameter *names* into the notebook as code, and only warns of names that the notebook does
not know. Here a name must be one that the notebook declares. papermill also writes its output in place; here
the output appears whole, when the last cell has run.
"""

import asyncio
import contextlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import nbformat
import papermill
import psutil

from prunelab import paths
from prunelab.files import require_folder
from prunelab.runs import PROFILES, check_choice

START_TIMEOUT = 120  # seconds for a kernel to answer; importing Jupyter from a cold disk takes a while


class NotebookFailed(RuntimeError):
    """A notebook did not run to its end; says which cell, and where the notebook up to there lies."""


def declared(notebook: Path) -> dict[str, str]:
    """Returns the parameters a notebook declares, and the source text of their defaults."""
    return {name: about["default"] for name, about in papermill.inspect_notebook(_literal(notebook)).items()}


def execute(
    notebook_stem: str,
    *,
    parameters: Mapping[str, object],
    timeout: float,
    cell_timeout: float | None = None,
    output: Path | None = None,
) -> Path:
    """Executes one notebook of the suite, in a fresh process and a fresh kernel.

    Whatever ends this call, also Ctrl-C or a killed caller, takes the kernel and all its processes along.
    A kernel that fails to start is tried a second time.

    Args:
        notebook_stem: Such as "01_rigl".
        parameters: Values for parameters that the notebook declares; plain values only.
        timeout: Seconds for the whole notebook.
        cell_timeout: Seconds for any one cell; None leaves it at `timeout`.
        output: Where the executed notebook goes; `figures/<stem>/<profile>/<stem>.ipynb` by default.
    Returns:
        Where the executed notebook lies.
    Raises:
        ValueError: No such notebook or profile, or a parameter it does not declare.
        OSError: The output has nowhere to go.
        NotebookFailed: A cell raised, time ran out or the kernel died. What ran stays as `*.failed.ipynb`.
    """
    return asyncio.run(
        _execute(notebook_stem, [], parameters=parameters, timeout=timeout, cell_timeout=cell_timeout, output=output)
    )


def execute_all(
    stems: Sequence[str],
    *,
    parameters: Mapping[str, object],
    timeout: float,
    report: Callable[[str, Path | NotebookFailed, float], None],
    at_once: int | None = None,
) -> None:
    """Executes notebooks as `execute` does, several at once, each on cores of its own.

    Args:
        stems: In the order in which they start.
        parameters: Of all of them.
        timeout: Seconds for each.
        report: Called as each ends, with its stem, where the executed notebook lies or why there is none, and seconds.
        at_once: One a core unless given; always 1 where a process cannot be confined to cores, as on macOS.
    Raises:
        ValueError: No such notebook or profile, or a parameter that one does not declare; the others end.
        OSError: As for `execute`; the others end.
    """
    asyncio.run(_execute_all(stems, _shares(at_once or len(stems)), report, parameters=parameters, timeout=timeout))


async def _execute_all(stems: Sequence[str], shares: list[list[int]], report: Callable, **options) -> None:
    free = asyncio.Queue()
    for cores in shares:
        free.put_nowait(cores)

    async def run(stem: str) -> None:
        cores = await free.get()
        started = time.monotonic()
        try:
            outcome = await _execute(stem, cores, **options)
        except NotebookFailed as error:  # the others can still be drawn
            outcome = error
        report(stem, outcome, time.monotonic() - started)
        free.put_nowait(cores)

    await asyncio.gather(*map(run, stems))


def _shares(n: int) -> list[list[int]]:
    """Shares out this process's cores to at most `n`; where processes cannot be confined, one share names none."""
    if not hasattr(psutil.Process, "cpu_affinity"):
        return [[]]
    cores = psutil.Process().cpu_affinity()
    n = min(n, len(cores))
    return [cores[first::n] for first in range(n)]


async def _execute(
    notebook_stem: str,
    cores: list[int],
    *,
    parameters: Mapping[str, object],
    timeout: float,
    cell_timeout: float | None = None,
    output: Path | None = None,
) -> Path:
    notebook = paths.NOTEBOOKS / f"{notebook_stem}.ipynb"
    check_choice("notebook", notebook_stem, stems())
    defaults = declared(notebook)
    if unknown := [name for name in parameters if name not in defaults or not name.isidentifier()]:
        raise ValueError(
            f"{notebook_stem} has no parameter {', '.join(map(repr, unknown))}; it has {', '.join(defaults)}"
        )
    profile = str(parameters.get("profile", defaults["profile"])).strip("\"'")
    check_choice("profile", profile, PROFILES)
    if output is None:
        output = paths.FIGURES / notebook_stem / profile / f"{notebook_stem}.ipynb"
    output = Path(output).resolve()
    require_folder(output.parent)
    partial = output.with_suffix(f".{os.getpid()}.partial.ipynb")
    failed = output.with_suffix(".failed.ipynb")

    request = {
        "input_path": str(notebook),
        "output_path": str(partial),
        "parameters": dict(parameters),
        "cwd": str(paths.NOTEBOOKS),  # as Jupyter has it
        "execution_timeout": cell_timeout or timeout,
        "start_timeout": START_TIMEOUT,
        "cores": cores,
    }
    deadline = time.monotonic() + timeout
    try:
        error = await _run(request, timeout)
        if error is not None and _last_cell(partial) is None and time.monotonic() < deadline:
            error = await _run(request, deadline - time.monotonic())  # ports collide now and then
        if error is None:
            os.replace(partial, output)
            failed.unlink(missing_ok=True)
            return output
        if cell := _last_cell(partial):
            os.replace(partial, failed)
            raise NotebookFailed(f"{notebook_stem}, {cell}: {error} (up to there: {failed})")
        raise NotebookFailed(f"{notebook_stem} did not start: {error}")
    finally:
        partial.unlink(missing_ok=True)


def stems() -> list[str]:
    """Returns the notebooks of the suite, in reading order."""
    return sorted(path.stem for path in paths.NOTEBOOKS.glob("[0-9]*.ipynb"))


def _literal(path: Path | str) -> str:
    """Returns a path that papermill's str.format gives back unchanged."""
    return str(path).replace("{", "{{").replace("}", "}}")


async def _run(request: dict, timeout: float) -> str | None:
    """Runs papermill in a process; returns what went wrong, or None."""
    library = str(Path(__file__).resolve().parents[1])
    search = os.pathsep.join(filter(None, [library, os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "stderr", "w+b") as stderr:
        outcome = Path(folder) / "outcome.json"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "prunelab.batch", json.dumps(request | {"outcome": str(outcome)})),
            stdin=asyncio.subprocess.PIPE,  # never written to: its end tells the process that this one is gone
            stdout=asyncio.subprocess.DEVNULL,
            stderr=stderr,
            env=os.environ | {"PYTHONPATH": search},
            start_new_session=True,  # a terminal's Ctrl-C reaches the caller alone, which then ends it
        )
        try:
            await asyncio.wait_for(process.wait(), timeout)
        except TimeoutError:
            return f"stopped, {timeout:.0f} seconds are over"
        finally:
            if process.returncode is None:
                _end(process.pid)
                await process.wait()
        if outcome.exists():
            return json.loads(outcome.read_text())
        stderr.seek(0)
        last_words = stderr.read().decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        return f"its process ended with code {process.returncode}: {last_words[0]}"


def _end(pid: int, *, itself: bool = True) -> None:
    """Kills a process and all that it started, each of which may have started a session of its own."""
    gone = contextlib.suppress(psutil.NoSuchProcess)
    with gone:
        process = psutil.Process(pid)
        for member in [process] * itself + process.children(recursive=True):
            with gone:
                member.kill()


def _last_cell(partial: Path) -> str | None:
    """Returns the last cell that papermill began, numbered as in the notebook itself; None if it began none."""
    try:
        cells = nbformat.read(partial, as_version=4).cells
    except (OSError, ValueError):  # never written, or killed while writing
        return None
    added = {"injected-parameters", "papermill-error-cell-tag"}
    own = [cell for cell in cells if not added & set(cell.metadata.get("tags", []))]
    began = [
        f"cell {number} ({cell.source.strip().splitlines()[0]})"
        for number, cell in enumerate(own, start=1)
        if cell.cell_type == "code" and cell.source.strip() and cell.metadata.papermill.start_time
    ]
    return began[-1] if began else None


def _main(request: dict) -> None:
    """Does the process's side of `_run`."""
    outcome = Path(request.pop("outcome"))
    partial = Path(request["output_path"])
    if cores := request.pop("cores"):
        psutil.Process().cpu_affinity(cores)  # all that it starts inherits them

    def end_with_caller() -> None:
        os.read(0, 1)
        _end(os.getpid(), itself=False)
        partial.unlink(missing_ok=True)
        os._exit(1)

    threading.Thread(target=end_with_caller, daemon=True).start()
    error = None
    try:
        papermill.execute_notebook(
            **request | {"input_path": _literal(request["input_path"]), "output_path": _literal(partial)},
            progress_bar=False,
        )
    except papermill.PapermillExecutionError as failure:
        error = " ".join(f"{failure.ename}: {failure.evalue}".split())
    except Exception as failure:
        error = (str(failure).strip() or type(failure).__name__).splitlines()[0]
    outcome.write_text(json.dumps(error))


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
