"""The speed claims, each a ratio of two things measured side by side in one run on this machine.

The two sides take turns, so that a machine that slows down slows both. A ratio is taken each round; what is
reported is the median round, with the lowest and the highest. Wall clock counts, with the start of processes
and the test. Nothing else should run meanwhile: beside a busy process two threads are slower than one.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from prunelab import batch, data, engine, paths, records
from prunelab.data.batches import TrainBatches
from prunelab.files import atomic_write
from prunelab.methods import METHODS
from prunelab.methods.static import initial_masks
from prunelab.recipes import rigl
from prunelab.runs import Run, make_run
from prunelab.steps import Stepper, build_optimizer

UPDATE_EVERY = 100  # steps between two mask updates; one round has one
N_WARM_UP = 3


def measure(*, quick: bool = False) -> Iterator[dict]:
    """Measures claim after claim; yields each one's row as soon as it is known.

    Args:
        quick: One short round each, on images that need no download; a rough look, nothing to quote.
    Returns:
        Rows with `claim`, `unit` ("x" for ratios, "s"), `target`, `median`, `low`, `high` and `verdict`.
    Raises:
        DatasetNotFoundError: CIFAR-10 is not here, and not `quick`.
    """

    def rounds(measurement: Callable[[], float]) -> list[float]:
        return [measurement() for _ in range(1 if quick else 3)]

    n_train = 50_000 if engine.resolve_device("auto") == "cuda" else 10_000  # long beside the start of a process
    images = {"dataset": "glyphs", "n_train": 512} if quick else {"dataset": "cifar10", "n_train": n_train}
    for image_size in (None, 16):  # decoded and cached before the clock starts
        data.load(images["dataset"], image_size=image_size)
    yield _row("engine over ordinary script, samples/s", ">=", 1.5, rounds(lambda: _engine_gain(images)))
    digits = {"dataset": "digits", "model": "resnet8", "width": 0.5, "batch_size": 64, "n_epochs": 2 if quick else 30}
    yield _row("8 smoke runs, one a core over all threads", ">=", 1.3, rounds(lambda: _parallel_gain(digits)))
    small = images | {"model": "resnet8", "image_size": 16, "n_epochs": 3, "eval_every": 3}
    yield _row("8 small runs, one a core over all threads", ">=", 1.3, rounds(lambda: _parallel_gain(small)))
    steps = rounds(lambda: _step_ratios(images))
    yield _row("masked step over dense step", "<=", 1.05, [masked for masked, _ in steps])
    yield _row("RigL over static, update every 100 steps", "<=", 1.02, [moving for _, moving in steps])
    if "01_rigl" in batch.stems():
        yield _row("01_rigl replayed from records", "<=", 30, rounds(_replay_seconds), unit="s")
        if not quick:
            yield _row("01_rigl trained afresh, smoke", "<=", 120, rounds(_fresh_seconds), unit="s")


def save(rows: list[dict]) -> Path:
    """Writes rows, and what they were measured on, to `data/records/bench.json`; returns its path."""
    device = engine.resolve_device("auto")
    machine = {"processor": _processor(), "cores": os.cpu_count(), "device": device}
    if device == "cuda":
        machine["gpu"] = torch.cuda.get_device_name()
    content = {"provenance": records.provenance() | machine, "claims": rows}
    path = paths.RECORDS / "bench.json"
    atomic_write(path, json.dumps(content, indent=1) + "\n")
    return path


def _row(claim: str, sign: str, target: float, values: list[float], *, unit: str = "x") -> dict:
    median = statistics.median(values)
    missed_by = target - median if sign == ">=" else median - target
    return {
        "claim": claim,
        "unit": unit,
        "target": f"{sign} {target:g}",
        "median": round(median, 3),
        "low": round(min(values), 3),
        "high": round(max(values), 3),
        "verdict": f"missed by {missed_by:.3f}" if missed_by > 0 else "met",
    }


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _plan(n_runs: int, images: dict, **options: str | int) -> list[Run]:
    return [
        make_run("rigl", rigl.OPTIONS, seed=seed, method="dense", density=1.0, **{"n_epochs": 1} | images | options)
        for seed in range(n_runs)
    ]


def _train(plan: list[Run]) -> None:
    with tempfile.TemporaryDirectory() as store:
        engine.run(plan, fresh=True, progress=False, store=Path(store))


def _python(*arguments: str) -> None:
    """Runs Python with as many threads as it takes by itself."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    }
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env=environment)


def _engine_gain(images: dict) -> float:
    """Our engine trains one ResNet-20 a core; the ordinary script trains as many, one after another."""
    plan = _plan(engine.n_cores(), images)

    def ordinary() -> None:
        for run in plan:
            arguments = ["--dataset", images["dataset"], "--n-train", str(images["n_train"]), "--n-epochs", "1"]
            _python("-m", "prunelab.bench_ordinary", *arguments, "--seed", str(run.seed))

    ours = _seconds(lambda: _train(plan))
    return _seconds(ordinary) / ours  # the same samples, so the rates are as the times are, inverted


def _parallel_gain(runs: dict) -> float:
    """Eight runs through the engine, against one after another in one process with all threads."""
    ours = _seconds(lambda: _train(_plan(8, runs)))
    return _seconds(lambda: _python("-c", f"from prunelab import bench; bench._train_in_turn({runs})")) / ours


def _train_in_turn(runs: dict) -> None:
    with tempfile.TemporaryDirectory() as store:
        for run in _plan(8, runs):
            engine.execute(run, store=Path(store), device=engine.resolve_device("auto"))


def _step_ratios(images: dict) -> tuple[float, float]:
    """Masked over dense, and RigL over static for equally many steps of ResNet-20, taking turns each step."""
    spent: dict[str, list[float]] = {"dense": [], "static": [], "rigl": []}
    with _one_thread():
        sides = {method: _stepper(method, images) for method in spent}
        for step in range(N_WARM_UP + UPDATE_EVERY):
            for method, take_step in sides.items():
                seconds = _seconds(lambda take_step=take_step, step=step: take_step(step))
                if step >= N_WARM_UP:
                    spent[method].append(seconds)
    dense, static, rigl_step = (statistics.median(seconds) for seconds in spent.values())
    # Of RigL's steps one, the slowest, has the mask update before it, which takes another batch.
    moving = (UPDATE_EVERY - 1) * rigl_step + max(spent["rigl"])
    return static / dense, moving / (UPDATE_EVERY * static)


def _stepper(method: str, images: dict) -> Callable[[int], None]:
    """A function that takes one optimizer step, preceded by a mask update where one is due."""
    device = engine.resolve_device("auto")
    # What masks cost does not depend on the batch: a small one shows it best, but a GPU must be kept busy.
    batch_size = 128 if device == "cuda" else 16
    dataset = data.load(images["dataset"], n_train=images["n_train"], device=device)
    batches = TrainBatches(dataset, batch_size=batch_size, augment=True, generator=torch.Generator().manual_seed(0))
    model = rigl.build(rigl.OPTIONS | {"method": method}, dataset).to(device, memory_format=torch.channels_last)
    model.train()
    optimizer = build_optimizer(model, momentum=0.9, weight_decay=5e-4)
    masking = None
    if method != "dense":
        generator = torch.Generator().manual_seed(0)
        masks = initial_masks(model, density=0.1, distribution="erk", generator=generator)
        schedule = {"initial_drop_fraction": 0.3, "update_every": UPDATE_EVERY, "stop_update_step": 10**6}
        options = schedule | {"decay": "constant", "generator": generator} if method == "rigl" else {}
        masking = METHODS[method](model, masks, **options)

    stepper = Stepper(model, optimizer, batches, method=masking)

    def take_step(step: int) -> None:
        while not stepper.take(step):
            pass
        float(stepper.loss_sum)  # waits for the GPU

    return take_step


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _replay_seconds() -> float:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "replayed.ipynb"
        return _seconds(lambda: batch.execute("01_rigl", parameters={}, timeout=600, output=output))


def _fresh_seconds() -> float:
    parameters = {"profile": "smoke", "fresh": True}
    with tempfile.TemporaryDirectory() as folder, _data_in(folder):
        output = Path(folder) / "fresh.ipynb"
        return _seconds(lambda: batch.execute("01_rigl", parameters=parameters, timeout=900, output=output))


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


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
