"""The engine: executes a plan, parents first, each run once, skipping what is on record.

Every worker is one process that trains one run at a time, single-threaded on CPUs: there, one run a core is faster
than one run on all cores. A record is written the moment its run ends, so whatever is killed, the same call goes on
from there. A worker that dies (out of memory, SIGKILL) costs its run one retry and nobody else anything.

A run that others start from leaves its state (weights, masks) in `data/runs/<id>/state`. Where a child is to be
trained and that state is not on this machine, or damaged, the parent is trained again; its record stays as it was.
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
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from multiprocessing import connection
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from prunelab import paths, recipes, records
from prunelab.checkpoints import CorruptCheckpoint, load_checkpoint, save_checkpoint
from prunelab.files import atomic_write
from prunelab.recipes import runner
from prunelab.recipes.recipe import State
from prunelab.runs import Run

POLL_SECONDS = 0.5  # between two looks at the progress of running workers
BUSY_SECONDS = 2.0  # before asking again for a run that another engine is training
RUNS_PER_GPU = 8  # small networks leave a large card idle; not yet measured
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
    known = records.local(store, wanted)
    if not fresh:
        notebooks = {recipes.get(run.recipe).notebook for run in wanted.values()}
        known += [record for notebook in notebooks for record in records.load(notebook)]
    found = {}
    for record in known:
        run = wanted.get(record["id"])
        if run and _is_of(record, run):
            found[record["id"]] = _with_defaults(record)
        elif run:
            warnings.warn(f"record {run.id} is not of {run}, from which its id follows; it is left aside", stacklevel=2)
    return found


def _is_of(record: dict, run: Run) -> bool:
    """Whether a record with the run's id has all that this id follows from, defaults included."""
    if (record["recipe"], record["seed"], record["parent"]) != (run.recipe, run.seed, run.parent_ids):
        return False
    return _with_defaults(record)["options"] == recipes.get(run.recipe).defaults | dict(run.options)


def _with_defaults(record: dict) -> dict:
    """The record with the options that its recipe got since; a new option's default is what was done before it."""
    return record | {"options": recipes.get(record["recipe"]).defaults | record["options"]}


def with_parents(plan: Iterable[Run]) -> list[Run]:
    """The plan's runs and all their ancestors, each once, parents before children."""
    ordered: dict[str, Run] = {}

    def add(run: Run) -> None:
        for parent in run.parents:
            add(parent)
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
        jobs: Runs at the same time; `default_jobs` unless given.
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
    if missing := _to_train(plan, done, store=store):
        jobs = min(jobs or default_jobs(device), len(missing))
        done = _Pool(missing, store=store, device=device, jobs=jobs).train(progress=progress) | done
    return [done[item.id] for item in plan]


def _to_train(plan: Iterable[Run], done: Mapping[str, dict], *, store: Path) -> list[Run]:
    """What is not on record, and the ancestors from whose state it starts where that is not in the store."""
    chosen: dict[str, Run] = {}

    def add(run: Run) -> None:
        for parent in run.parents:
            if parent.id not in chosen and not _has_state(parent, store):
                add(parent)
        chosen.setdefault(run.id, run)

    for item in with_parents(plan):
        if item.id not in done:
            add(item)
    return list(chosen.values())


def _has_state(item: Run, store: Path) -> bool:
    try:
        load_checkpoint(store / item.id / "state")
    except FileNotFoundError:
        return False
    except CorruptCheckpoint as error:
        warnings.warn(f"{error}; its run will be trained again", stacklevel=2)
        return False
    return True


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


def execute(item: Run, *, store: Path, device: str, keep_state: bool = False) -> dict | None:
    """Trains one run in this process, and puts its record, and on request its state, into the store.

    Args:
        item: Its parents' states are in the store.
        store: Folder of this machine's runs.
        device: "cpu" or "cuda".
        keep_state: Others start from this run.
    Returns:
        Its record; None while another process is training it.
    """
    folder = store / item.id
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "lock", timeout=0):  # let go by the system when its holder dies
            record = on_record([item], fresh=True, store=store).get(item.id)
            if record and not (keep_state and not _has_state(item, store)):
                return record
            for half_written in folder.glob(".*"):  # left by a process killed in the middle of a write
                half_written.unlink()
            trained, state = _train(item, store=store, device=device)
            if keep_state:
                save_checkpoint(vars(state), folder / "state")
            if record is None:
                record = trained
                records.save(record, store)
            for leftover in ("checkpoint", "progress"):
                (folder / leftover).unlink(missing_ok=True)
            return record
    except Timeout:
        return None


def _train(item: Run, *, store: Path, device: str) -> tuple[dict, dict]:
    provenance = records.provenance()  # before training: the commit may change under a long run
    recipe = recipes.get(item.recipe)
    result = runner.execute(
        recipe,
        item,
        device=device,
        parents=[State(**load_checkpoint(store / parent.id / "state")) for parent in item.parents],
        checkpoint=store / item.id / "checkpoint",
        report=lambda share: atomic_write(store / item.id / "progress", f"{share:.4f}"),
    )
    state, seconds, precision, dataset = (result.pop(key) for key in ("state", "seconds", "precision", "dataset"))
    record = {
        "format": records.FORMAT,
        "id": item.id,
        "recipe": item.recipe,
        "options": recipe.defaults | dict(item.options),
        "seed": item.seed,
        "parent": item.parent_ids,
        **_finite(result),
        "provenance": provenance
        | {
            "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "precision": precision,
            "seconds": round(seconds, 2),
            "dataset": dataset,
        },
    }
    return record, state


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


def default_jobs(device: str) -> int:
    """Runs at the same time: one a core, of which a GPU gets a few only."""
    return min(RUNS_PER_GPU, n_cores()) if device == "cuda" else n_cores()


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

    def start(self, item: Run, *, keep_state: bool) -> None:
        self.pipe.send((item, keep_state))
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
    else:
        torch.backends.cudnn.deterministic = True  # the same numbers, whoever else keeps the GPU busy
    while True:
        item, keep_state = pipe.recv()
        try:
            answer = execute(item, store=store, device=device, keep_state=keep_state)
        except Exception as error:
            answer = RunFailed(f"{item}: {type(error).__name__}: {error}\n{traceback.format_exc()}")
        pipe.send(answer)


def _exit_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)  # a killed notebook kernel leaves no worker behind


def _most_descendants_first(items: list[Run]) -> list[Run]:
    """Runs with the longest line of descent first, so that no line is left over when all else is done."""
    generations = Counter[str]()
    for item in reversed(items):  # children before their parents
        for parent in item.parents:
            generations[parent.id] = max(generations[parent.id], generations[item.id] + 1)
    return sorted(items, key=lambda item: -generations[item.id])


class _Pool:
    """Workers, and the runs they share."""

    def __init__(self, items: list[Run], *, store: Path, device: str, jobs: int) -> None:
        """Args:
        items: Runs to train, parents before children; a parent that is not among them is on record.
        """
        self.store, self.device = store, device
        self.items, self.waiting = items, _most_descendants_first(items)
        self.parents = {parent.id for item in items for parent in item.parents}
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
        for item in list(self.waiting):
            if any(parent.id in self.failed for parent in item.parents):
                self.waiting.remove(item)
                self.failed[item.id] = f"{item}: its parent failed"
        for worker in [worker for worker in self.workers if worker.item is None]:
            item = next(filter(self._can_start, self.waiting), None)
            if item is None:
                return
            try:
                worker.start(item, keep_state=item.id in self.parents)
            except OSError:  # it died while it had nothing to do
                self._replace(worker)
            else:
                self.waiting.remove(item)

    def _can_start(self, item: Run) -> bool:
        coming = {other.id for other in self.items} - self.done.keys()
        is_ready = not any(parent.id in coming for parent in item.parents)
        return is_ready and self.not_before.get(item.id, 0) <= time.monotonic()

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
