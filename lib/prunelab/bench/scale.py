"""What the engine and the store take at a scale that no machine here reaches: runs that nobody trains.

Workers are objects in this process, which answer at once, one at a time, each with a copy of a record that ships, under
the id of the run that was asked for. So the engine has as much to do as it can have.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch

from prunelab import engine, recipes, records, stores, workers
from prunelab.models import build_model
from prunelab.recipes.common import copy_of
from prunelab.recipes.recipe import State
from prunelab.runs import Run

N_RUNS, N_WORKERS = 20_000, 200
ROUNDS = 4  # of a line of descent
_N_STATES = 20


class Crew:
    """Stands in for the module `workers`.

    Attributes:
        taken: The runs that were handed over, in this order.
        writing_seconds: What workers spent on writing records, which is not the engine's time; most of it waiting for
            the disk.
        computing_seconds: Those of them in which the processor was busy.
    """

    def __init__(self) -> None:
        by_length = sorted(records.load("01_rigl"), key=lambda record: len(str(record)))
        self.record = by_length[len(by_length) // 2]
        self.taken: list[Run] = []
        self.writing_seconds = self.computing_seconds = 0.0
        self._due: deque[_Worker] = deque()

    def resolve_device(self, device: str) -> str:
        return device

    def gpus_each(self, plan: Sequence[Run], device: str) -> int:
        return 1

    def share_out(self, jobs: int, device: str, n_gpus: int) -> tuple[int, int]:
        return jobs, 1

    def Worker(self, number: int, *, store: Path, device: str, n_gpus: int) -> "_Worker":
        worker = _Worker(self, number, store)
        self._due.append(worker)
        return worker

    def wait(self, some: Sequence["_Worker"], *, timeout: float) -> list["_Worker"]:
        return [self._due.popleft()]

    def take(self, worker: "_Worker", run: Run) -> None:
        """Notes a run that a worker was given."""
        self.taken.append(run)
        self._due.append(worker)

    def answer(self, run: Run, store: Path) -> dict:
        """Writes a run's record, and returns it as it comes from another process: it shares no text."""
        own = {"id": run.id, "recipe": run.recipe, "seed": run.seed, "parent": run.parent_ids}
        record = self.record | own | {"options": recipes.get(run.recipe).defaults | dict(run.options)}
        began, began_computing = time.perf_counter(), time.process_time()
        records.save(record, store)
        self.writing_seconds += time.perf_counter() - began
        self.computing_seconds += time.process_time() - began_computing
        return json.loads(json.dumps(record))


class _Worker:
    """As `workers.Worker`."""

    n_done = workers.Worker.n_done

    def __init__(self, crew: Crew, number: int, store: Path) -> None:
        self.crew, self.number, self.store = crew, number, store
        self.is_up, self.in_hand, self.is_reserved = False, dict[str, Run](), False

    def start(self, run: Run, *, keep_state: bool, is_reserved: bool) -> None:
        self.in_hand[run.id] = run
        self.crew.take(self, run)

    def answer(self) -> tuple[Run, dict] | None:
        if not self.is_up:
            self.is_up = True
            return None
        _, run = self.in_hand.popitem()
        return run, self.crew.answer(run, self.store)

    def kill(self) -> None:
        pass


def plan(n_runs: int) -> list[Run]:
    """Lists runs in lines of descent of `ROUNDS`: a lottery's, each of which starts from the one before."""
    rigl, runs = recipes.get("rigl"), []
    for number in range(n_runs):
        seed, n_before = divmod(number, ROUNDS)
        parent = {"start": "ticket", "parents": (runs[-1],)} if n_before else {}
        runs.append(rigl.run(seed=seed, dataset="digits", method="lottery", density=0.8**n_before, **parent))
    return runs


def train(runs: Sequence[Run], store: Path, *, n_workers: int) -> Crew:
    """Lets the engine have runs trained by those who do not."""
    crew = Crew()
    with mock.patch.object(engine, "_crew", lambda *_: nullcontext(crew)):
        engine.run(runs, fresh=True, device="cpu", jobs=n_workers, progress=False, store=store)
    return crew


class Scale(NamedTuple):
    """What a plan takes.

    Args:
        engine: Milliseconds of the processor that the engine takes for each run.
        write: Milliseconds of a worker for each record, which are not the engine's.
        memory: MB that Python holds at the most, plan and records.
        disk: MB of the store.
        read: Seconds of the processor that the engine takes to find all on record.
        status: Seconds of the processor that `prunelab status` takes, with the start of its process.
    """

    engine: float
    write: float
    memory: float
    disk: float
    read: float
    status: float


def measure(n_runs: int, *, n_workers: int = N_WORKERS) -> Scale:
    """Has a plan trained into a new store, and reads that; then once more for the memory, of which counting is slow."""
    runs = plan(n_runs)
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "runs"
        began = time.process_time()
        crew = train(runs, store, n_workers=n_workers)
        spent = time.process_time() - began - crew.computing_seconds
        writing = crew.writing_seconds
        del crew
        began = time.process_time()
        engine.run(runs, fresh=True, train=False, store=store)
        read = time.process_time() - began
        command = [sys.executable, "-m", "prunelab.cli", "status"]
        asked = os.environ | {"PRUNELAB_DATA": folder}
        before = os.times()
        subprocess.run(command, check=True, capture_output=True, env=asked)
        after = os.times()
        status = after.children_user + after.children_system - before.children_user - before.children_system
        disk = sum(file.stat().st_blocks * 512 for file in store.rglob("*"))
    with tempfile.TemporaryDirectory() as folder:
        tracemalloc.start()
        train(plan(n_runs), Path(folder), n_workers=n_workers)
        _, memory = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    each = 1000 / n_runs
    return Scale(spent * each, writing * each, memory / 1e6, disk / 1e6, read, status)


def state_cost() -> tuple[float, float]:
    """Returns the engine's milliseconds of the processor to check a ResNet-20 that others start from, and its MB."""
    model = build_model("resnet20", num_classes=10, in_channels=3, image_size=32)
    values, start = copy_of(model.state_dict()), copy_of(model.state_dict())
    masks = {name: torch.ones_like(value, dtype=torch.bool) for name, value in values.items() if value.dim() > 1}
    state, runs = State(values, 10, {}, 0.0, start=start, masks=masks), plan(_N_STATES)
    with tempfile.TemporaryDirectory() as folder:
        for run in runs:
            stores.save_state(run, state, Path(folder))
        stores.has_state(runs[0], Path(folder))  # what is loaded for the first
        began = time.process_time()
        for run in runs:
            stores.has_state(run, Path(folder))
        spent = time.process_time() - began
        return 1000 * spent / len(runs), (Path(folder) / runs[0].id / "state").stat().st_size / 1e6
