"""What whole plans and notebooks take, with the start of their processes."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from prunelab import batch, engine, recipes
from prunelab.runs import Run

SMOKE = {"dataset": "digits", "model": "resnet8", "width": 0.5, "batch_size": 64}  # runs as `smoke` has them


def engine_gain(images: dict) -> float:
    """Our engine trains one ResNet-20 a core, or one on a GPU; the ordinary script as many, one after another."""
    runs = _plan(1 if engine.resolve_device("auto") == "cuda" else engine.n_cores(), images)

    def ordinary() -> None:
        for run in runs:
            arguments = ["--dataset", images["dataset"], "--n-train", str(images["n_train"]), "--n-epochs", "1"]
            _python("-m", "prunelab.bench.ordinary", *arguments, "--seed", str(run.seed))

    ours = seconds(lambda: _train(runs))
    return seconds(ordinary) / ours  # the same samples, so the rates are as the times are, inverted


def parallel_gain(runs: dict) -> float:
    """Eight runs through the engine, against one after another in one process with all threads."""
    ours = seconds(lambda: _train(_plan(8, runs)))
    return seconds(lambda: _python("-c", f"from prunelab.bench import plans; plans.train_in_turn({runs})")) / ours


def train_in_turn(runs: dict) -> None:
    """Eight runs, one after another in this process."""
    with tempfile.TemporaryDirectory() as store:
        for run in _plan(8, runs):
            engine.execute(run, store=Path(store), device=engine.resolve_device("auto"))


def at_once_gain(runs: dict) -> float:
    """Eight runs through the engine one at a time, against as many at once as it takes by itself."""
    return seconds_a_run(runs, jobs=1) / seconds_a_run(runs)


def seconds_a_run(runs: dict, *, n_runs: int = 8, jobs: int | None = None) -> float:
    """Wall-clock time of a plan through the engine, shared by its runs."""
    return seconds(lambda: _train(_plan(n_runs, runs), jobs=jobs)) / n_runs


def replay_seconds() -> float:
    """From the start of 01_rigl to its last figure, out of records."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "replayed.ipynb"
        return seconds(lambda: batch.execute("01_rigl", parameters={}, timeout=600, output=output))


def fresh_seconds() -> float:
    """01_rigl with every run of `smoke` trained anew."""
    parameters = {"profile": "smoke", "fresh": True}
    with tempfile.TemporaryDirectory() as folder, _data_in(folder):
        output = Path(folder) / "fresh.ipynb"
        return seconds(lambda: batch.execute("01_rigl", parameters=parameters, timeout=900, output=output))


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock time of a piece of work."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _plan(n_runs: int, runs: dict) -> list[Run]:
    options = {"method": "dense", "density": 1.0, "n_epochs": 1} | runs
    return [recipes.get("rigl").run(seed=seed, **options) for seed in range(n_runs)]


def _train(plan: list[Run], *, jobs: int | None = None) -> None:
    with tempfile.TemporaryDirectory() as store:
        engine.run(plan, fresh=True, progress=False, jobs=jobs, store=Path(store))


def _python(*arguments: str) -> None:
    """Runs Python with as many threads as it takes by itself."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    }
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env=environment)


@contextmanager
def _data_in(folder: str) -> Iterator[None]:
    """Lets notebooks find nothing that this machine has trained or decoded before."""
    before = os.environ.get("PRUNELAB_DATA")
    os.environ["PRUNELAB_DATA"] = folder
    try:
        yield
    finally:
        del os.environ["PRUNELAB_DATA"]
        if before is not None:
            os.environ["PRUNELAB_DATA"] = before
