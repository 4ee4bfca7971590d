"""What whole plans and whole notebooks take, with the start of their processes."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from prunelab import engine, recipes, stores, workers
from prunelab.runs import Run

SMOKE = {"dataset": "digits", "model": "resnet8", "width": 0.5, "batch_size": 64}  # runs as `smoke` has them


def engine_gain(images: dict) -> float:
    """Lets our engine train one ResNet-20 a core, or one on a GPU; the ordinary script as many, one after another."""
    runs = _plan(1 if workers.resolve_device("auto") == "cuda" else workers.n_cores(), images)

    def ordinary() -> None:
        for run in runs:
            _python(f"from prunelab.bench import ordinary; ordinary.train(**{images}, n_epochs=1, seed={run.seed})")

    ours = seconds(lambda: _train(runs))
    return seconds(ordinary) / ours  # the same samples, so the rates are as the times are, inverted


def parallel_gain(runs: dict) -> float:
    """Compares eight runs through the engine with one after another in one process with all threads."""
    ours = seconds(lambda: _train(_plan(8, runs)))
    return seconds(lambda: _python(f"from prunelab.bench import plans; plans.train_in_turn({runs})")) / ours


def train_in_turn(runs: dict) -> None:
    """Trains eight runs, one after another in this process."""
    with tempfile.TemporaryDirectory() as store:
        for run in _plan(8, runs):
            workers.execute(run, store=Path(store), device=workers.resolve_device("auto"))


def at_once_gain(runs: dict) -> float:
    """Compares eight runs through the engine one at a time with as many at once as it takes by itself."""
    return seconds_a_run(runs, jobs=1) / seconds_a_run(runs)


def seconds_a_run(runs: dict, *, n_runs: int = 8, jobs: int | None = None) -> float:
    """Returns the wall-clock time of a plan through the engine, shared by its runs."""
    return seconds(lambda: _train(_plan(n_runs, runs), jobs=jobs)) / n_runs


def cluster_ratio(runs: dict) -> float:
    """Compares what one more run takes on a cluster, started here, and in the local engine; no start is counted."""
    import ray  # an extra

    with ray.init("local", log_to_driver=False, logging_level="error"):
        on_cluster = _seconds_more(runs, engine="ray")
    return on_cluster / _seconds_more(runs, engine="local")


def _seconds_more(runs: dict, **options: str) -> float:
    few, many = 4, 124
    sizes = few, few, many  # the first takes processes that a new cluster has ready
    _, before, after = (seconds(lambda n=n: _train(_plan(n, runs), **options)) for n in sizes)
    return (after - before) / (many - few)


def schedule_milliseconds(n_children: int) -> float:
    """Returns what the engine spends on each run of a plan of many children of one parent, none of which is trained."""
    (parent,) = _plan(1, SMOKE)
    plan = [Run("rigl", {}, seed, (parent,)) for seed in range(n_children)]
    with tempfile.TemporaryDirectory() as store:

        def schedule() -> None:
            done = stores.on_record(engine.with_parents(plan), fresh=True, store=Path(store))
            ready = engine.Schedule(engine.to_train(plan, done, store=Path(store)))
            while run := ready.next_ready():
                ready.finished(run.id)

        return 1000 * seconds(schedule) / n_children


def replay_seconds() -> float:
    """Times 01_rigl from its start to its last figure, out of records."""
    return _notebook_seconds({})


def fresh_seconds() -> float:
    """Times 01_rigl with every run of `smoke` trained anew, which finds nothing that was trained or decoded before."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, PRUNELAB_DATA=folder):
        return _notebook_seconds({"profile": "smoke", "fresh": True})


def _notebook_seconds(parameters: dict) -> float:
    from prunelab import batch  # what executes notebooks need not be there where runs are trained

    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "executed.ipynb"
        return seconds(lambda: batch.execute("01_rigl", parameters=parameters, timeout=900, output=output))


def seconds(work: Callable[[], object]) -> float:
    """Returns the wall-clock time of a piece of work."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _plan(n_runs: int, runs: dict) -> list[Run]:
    options = {"method": "dense", "density": 1.0, "n_epochs": 1} | runs
    return [recipes.get("rigl").run(seed=seed, **options) for seed in range(n_runs)]


def _train(plan: list[Run], **options: object) -> None:
    with tempfile.TemporaryDirectory() as store:
        engine.run(plan, fresh=True, progress=False, store=Path(store), **options)


def _python(code: str) -> None:
    """Runs code in a process of its own, with as many threads as it takes by itself."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    }
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=environment)
