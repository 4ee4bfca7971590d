"""The engine: executes a plan, parents first, each run once, skipping what is on record.

Every worker is one process that trains one run at a time, single-threaded on CPUs: there, one run a core is faster
than one run on all cores. A record is written the moment its run ends, so whatever is killed, the same call goes on
from there. A worker that dies (out of memory, SIGKILL) costs its run one retry and nobody else anything.
"""

import math
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from multiprocessing import connection
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from prunelab import paths, recipes, records
from prunelab.files import atomic_write
from prunelab.runs import Run

POLL_SECONDS = 0.5  # between two looks at the progress of running workers
BUSY_SECONDS = 2.0  # before asking again for a run that another engine is training
RUNS_PER_GPU = 4  # small networks leave a large card idle
MAX_DEATHS = 2  # of workers under one run, before it is given up


class RunFailed(RuntimeError):
    """A run that could not be finished, in spite of a retry."""


def resolve_device(device: str) -> str:
    """ "auto" becomes "cuda" where there is a GPU, else "cpu".

    Raises:
        ValueError: Another name than auto, cpu, cuda; or cuda where there is none.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"unknown device {device!r}; there are auto, cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda' was asked for, but torch sees no GPU; use device 'auto' or 'cpu'")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def on_record(plan: Iterable[Run], *, fresh: bool = False, store: Path | None = None) -> dict[str, dict]:
    """Records of those runs of a plan that need no training, by run id.

    Args:
        plan: Runs.
        fresh: Only what this machine trained; otherwise what ships comes first, and what this machine trained fills in.
        store: Folder of this machine's runs.
    """
    wanted = {run.id: run for run in plan}
    mine = {run_id: record for run_id in wanted if (record := records.find(run_id, store))}
    if fresh:
        return mine
    notebooks = {recipes.get(run.recipe).NOTEBOOK for run in wanted.values()}
    shipped = {record["id"]: record for notebook in notebooks for record in records.load(notebook)}
    return mine | {run_id: record for run_id, record in shipped.items() if run_id in wanted}


def with_parents(plan: Iterable[Run]) -> list[Run]:
    """The plan's runs and all their ancestors, each once, parents before children."""
    ordered: dict[str, Run] = {}

    def add(run: Run) -> None:
        if run.parent:
            add(run.parent)
        ordered.setdefault(run.id, run)

    for run in plan:
        add(run)
    return list(ordered.values())


def run(
    plan: Iterable[Run],
    *,
    fresh: bool = False,
    device: str = "auto",
    jobs: int | None = None,
    progress: bool = True,
    store: Path | None = None,
) -> list[dict]:
    """Trains what is not on record and returns the records of the whole plan, in its order.

    Args:
        plan: Runs; their parents are added.
        fresh: Leave shipped records aside: only what this machine trained counts, now or earlier.
        device: "auto", "cpu" or "cuda".
        jobs: Runs at the same time; one a core on CPUs, a few on a GPU, unless given.
        progress: Shows a bar with the time left, while there is something to train.
        store: Folder of this machine's runs.
    Raises:
        ValueError: Device or options that do not exist, jobs below 1.
        RunFailed: A run raised an error or lost two workers; all others are finished and on record by then.
        KeyboardInterrupt: Runs in hand stop; what they had saved stays.
    """
    plan, store = list(plan), store or paths.RUNS
    device = resolve_device(device)
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    done = on_record(with_parents(plan), fresh=fresh, store=store)
    missing = [item for item in with_parents(plan) if item.id not in done]
    if missing:
        jobs = min(jobs or (RUNS_PER_GPU if device == "cuda" else n_cores()), len(missing))
        done |= _Pool(missing, store=store, device=device, jobs=jobs).train(progress=progress)
    return [done[item.id] for item in plan]


def verify(
    plan: Iterable[Run], *, sample: int, seed: int | None = None, device: str = "auto", jobs: int | None = None
) -> list[dict]:
    """Trains runs drawn at random again, in a store of their own, and sets the new numbers beside those on record.

    Args:
        plan: Runs of which those on record are eligible.
        sample: How many to draw.
        seed: Of the draw; None draws differently each time.
        device: "auto", "cpu" or "cuda".
        jobs: Runs at the same time.
    Returns:
        For each: `run`, `recorded` and `trained` (their records), and `equal`, whether all metrics are the same number.
    Raises:
        ValueError: Nothing is on record, or a sample below 1.
    """
    plan = list(plan)
    recorded = on_record(plan)
    eligible = [item for item in plan if item.id in recorded]
    if not eligible or sample < 1:
        raise ValueError(f"cannot draw {sample} runs from {len(eligible)} on record")
    drawn = random.Random(seed).sample(eligible, min(sample, len(eligible)))
    store = paths.RUNS.parent / f"verify-{os.getpid()}"
    try:
        trained = run(drawn, fresh=True, device=device, jobs=jobs, store=store)
    finally:
        shutil.rmtree(store, ignore_errors=True)
    return [
        {
            "run": item,
            "recorded": recorded[item.id],
            "trained": record,
            "equal": record["metrics"] == recorded[item.id]["metrics"],
        }
        for item, record in zip(drawn, trained, strict=True)
    ]


def execute(item: Run, *, store: Path, device: str) -> dict | None:
    """Trains one run in this process, and puts its record and nothing else into the store.

    Returns:
        Its record; None while another process is training it.
    """
    folder = store / item.id
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "lock", timeout=0):  # let go by the system when its holder dies
            if record := records.find(item.id, store):
                return record
            for half_written in folder.glob(".*"):  # left by a process killed in the middle of a write
                half_written.unlink()
            record = _train(item, folder=folder, device=device)
            records.save(record, store)
            for leftover in ("checkpoint", "progress"):
                (folder / leftover).unlink(missing_ok=True)
            return record
    except Timeout:
        return None


def _train(item: Run, *, folder: Path, device: str) -> dict:
    provenance = records.provenance()  # before training: the commit may change under a long run
    recipe = recipes.get(item.recipe)
    result = recipe.execute(
        item,
        device=device,
        checkpoint=folder / "checkpoint",
        report=lambda share: atomic_write(folder / "progress", f"{share:.4f}"),
    )
    return {
        "format": records.FORMAT,
        "id": item.id,
        "recipe": item.recipe,
        "options": recipe.OPTIONS | dict(item.options),
        "seed": item.seed,
        "parent": item.parent.id if item.parent else None,
        **{key: _finite(result[key]) for key in ("status", "metrics", "curves", "layers", "moves")},
        "provenance": provenance
        | {
            "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "seconds": round(result["seconds"], 2),
            "dataset": result["dataset"],
        },
    }


def _finite(value):
    """The same value with None for each number that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def n_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Worker:
    """A process that trains one run after another. Its pipe ends when it dies, which is how its death is noticed."""

    def __init__(self, *, store: Path, device: str) -> None:
        # Spawned: a forked process cannot use a GPU, nor threads that its parent had.
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, store, device), daemon=True)
        self.process.start()
        theirs.close()
        self.item: Run | None = None

    def start(self, item: Run) -> None:
        self.pipe.send(item)
        self.item = item

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _serve(pipe: connection.Connection, store: Path, device: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the engine, which ends its workers
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    if device == "cpu":
        torch.set_num_threads(1)
    while True:
        item = pipe.recv()
        try:
            answer = execute(item, store=store, device=device)
        except Exception as error:
            answer = RunFailed(f"{item}: {type(error).__name__}: {error}\n{traceback.format_exc()}")
        pipe.send(answer)


def _exit_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)  # a killed notebook kernel leaves no worker behind


class _Pool:
    """Workers, and the runs they share."""

    def __init__(self, items: list[Run], *, store: Path, device: str, jobs: int) -> None:
        """Args:
        items: Runs to train, parents before children; a parent that is not among them is on record.
        """
        self.store, self.device = store, device
        self.items, self.waiting = items, list(items)
        self.done: dict[str, dict] = {}
        self.failed: dict[str, str] = {}
        self.deaths: Counter[str] = Counter()
        self.not_before: dict[str, float] = {}
        self.workers = [_Worker(store=store, device=device) for _ in range(jobs)]

    def train(self, *, progress: bool) -> dict[str, dict]:
        """Returns the records of all runs, by id; the workers end with it, whatever happens."""
        try:
            with tqdm(total=len(self.items), unit="run", disable=not progress, leave=False) as bar:
                while self.waiting or any(worker.item for worker in self.workers):
                    self._give_out()
                    self._collect()
                    shares = sum(_share_done(self.store, worker.item) for worker in self.workers)
                    bar.n = len(self.done) + len(self.failed) + shares
                    bar.refresh()
        finally:
            for worker in self.workers:
                worker.kill()
        if self.failed:
            raise RunFailed(
                f"{len(self.failed)} of {len(self.items)} runs failed, the others are on record:\n"
                + "\n".join(self.failed.values())
            )
        return self.done

    def _give_out(self) -> None:
        for item in [item for item in self.waiting if item.parent and item.parent.id in self.failed]:
            self.waiting.remove(item)
            self.failed[item.id] = f"{item}: its parent failed"
        for worker in [worker for worker in self.workers if worker.item is None]:
            item = next(filter(self._can_start, self.waiting), None)
            if item is None:
                return
            try:
                worker.start(item)
            except OSError:  # it died while it had nothing to do
                self._replace(worker)
            else:
                self.waiting.remove(item)

    def _can_start(self, item: Run) -> bool:
        coming = {other.id for other in self.items} - self.done.keys()
        return not (item.parent and item.parent.id in coming) and self.not_before.get(item.id, 0) <= time.monotonic()

    def _collect(self) -> None:
        busy = {worker.pipe: worker for worker in self.workers if worker.item}
        if not busy:
            time.sleep(POLL_SECONDS)
            return
        for pipe in connection.wait(list(busy), timeout=POLL_SECONDS):
            worker, item = busy[pipe], busy[pipe].item
            try:
                answer = pipe.recv()
            except (EOFError, ConnectionResetError):
                self._replace(worker)
                self.deaths[item.id] += 1
                if self.deaths[item.id] < MAX_DEATHS:
                    self.waiting.insert(0, item)
                    continue
                answer = RunFailed(f"{item}: its worker was killed {MAX_DEATHS} times; out of memory?")
            worker.item = None
            if answer is None:
                self.waiting.append(item)
                self.not_before[item.id] = time.monotonic() + BUSY_SECONDS
            elif isinstance(answer, RunFailed):
                self.failed[item.id] = str(answer)
            else:
                self.done[item.id] = answer

    def _replace(self, worker: _Worker) -> None:
        worker.kill()
        self.workers[self.workers.index(worker)] = _Worker(store=self.store, device=self.device)


def _share_done(store: Path, item: Run | None) -> float:
    try:
        return float((store / item.id / "progress").read_text()) if item else 0.0
    except (OSError, ValueError):
        return 0.0
