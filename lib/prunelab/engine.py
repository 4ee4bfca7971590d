"""The engine: executes a plan, parents first, each run once, skipping what is on record.

It says which runs are ready; workers train them. When a worker dies (out of memory, SIGKILL), each run that it had in
hand is tried again. Where it had several, they are trained alone from there on, so that one bad run costs the others
nothing more: only a death with the worker to itself counts against a run. A worker that dies while it starts is none of
their doing: it is started once more.

Where a child is to be trained and its parent's state is not on this machine, or damaged, the parent is trained again;
its record stays as it was.
"""

import functools
import heapq
import random
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from prunelab import paths, records, stores, workers
from prunelab.files import require_folder
from prunelab.progress import progress_of
from prunelab.runs import ENGINES, Run, check_choice

POLL_SECONDS = 0.5  # between two looks at the progress of running workers
BUSY_SECONDS = 2.0  # before asking again for a run that another engine is training
MAX_DEATHS = 2  # of workers that had nothing else in hand, before a run is given up


class RunFailed(RuntimeError):
    """A run that raised an error, or whose worker died twice with nothing else in hand."""


def with_parents(plan: Iterable[Run], *, takes: Callable[[Run], bool] = lambda parent: True) -> list[Run]:
    """Returns the plan's runs and all their ancestors, each once, parents before children.

    Args:
        plan: Runs.
        takes: Tells whether a parent that is not in the list yet is to come into it, with its own ancestors.
    """
    ordered: dict[str, Run] = {}

    def add(run: Run) -> None:
        for parent in run.parents:
            if parent.id not in ordered and takes(parent):
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
    train: bool = True,
    store: Path | None = None,
    engine: str = "local",
) -> list[dict]:
    """Trains what is not on record and returns the records of the whole plan, in its order.

    Args:
        plan: Runs; their parents are added.
        fresh: Leave shipped records aside: only what this machine trained counts, now or earlier.
        device: "auto", "cpu" or "cuda".
        jobs: Runs at the same time; `workers.default_jobs` unless given.
        progress: Shows how far it is and the time left, while there is something to train.
        train: False trains nothing: runs that are not on record are left out.
        store: Folder of this machine's runs.
        engine: "local", or "ray" for the cores and GPUs of a cluster.
    Raises:
        ValueError: Device, engine or options that do not exist, jobs below 1, or images that cannot be used.
        DatasetNotFoundError: Images of runs to train are missing; nothing is trained.
        OSError: Nothing can be written into the store, or into a folder of a run there; nothing is trained.
        RunFailed: A run raised an error or lost two workers; all others are finished and on record by then.
        RuntimeError: No worker could start: the script has no `if __name__ == "__main__":`, or is no file; there is no
            cluster, or none of its nodes can be used.
        KeyboardInterrupt: Runs in hand stop; says what is kept, and how to go on.
    """
    plan, store = list(plan), store or paths.RUNS
    check_choice("engine", engine, ENGINES)
    if engine == "local":
        workers.resolve_device(device)
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    done = stores.on_record(with_parents(plan), fresh=fresh, store=store)
    if train and (missing := to_train(plan, done, store=store)):
        stores.require_images(missing, quiet=not progress)
        for folder in (store, *filter(Path.exists, (store / run.id for run in missing))):
            require_folder(folder)
        with _crew(engine, missing) as crew:
            device = crew.resolve_device(device)
            n_gpus = crew.gpus_each(missing, device)
            n_workers, slots = crew.share_out(min(jobs or crew.default_jobs(device), len(missing)), device, n_gpus)
            sizes = {"n_workers": n_workers, "slots": slots, "n_gpus": n_gpus}
            pool = _Pool(Schedule(missing), store=store, device=device, crew=crew, **sizes)
            done = pool.train(progress=progress) | done
    return [done[run.id] for run in plan if run.id in done]


def _crew(engine: str, plan: Sequence[Run]) -> AbstractContextManager[Any]:
    """Gives what workers come from: this machine, or a cluster to which a connection is opened and closed."""
    if engine == "local":
        return nullcontext(workers)
    try:
        from prunelab import ray_workers
    except ModuleNotFoundError as error:
        raise RuntimeError(f"engine 'ray' needs the extra: pip install 'prunelab[cluster]' ({error})") from error
    return ray_workers.Cluster(plan)


def to_train(plan: Iterable[Run], done: Mapping[str, dict], *, store: Path) -> list[Run]:
    """Returns what is not on record, and the ancestors from whose state it starts where that is not in the store.

    Args:
        plan: Runs; their parents are added.
        done: What is on record, by id.
        store: Folder of this machine's runs.
    Returns:
        Parents before children.
    """

    @functools.cache  # read once, however many children it has
    def has_no_state(parent: Run) -> bool:
        return not stores.has_state(parent, store)

    return with_parents((run for run in with_parents(plan) if run.id not in done), takes=has_no_state)


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
        For each: `run`, `recorded` and `trained` (their records), and `equal`, whether all metrics on record are the
        same number now.
    Raises:
        ValueError: Nothing is on record, or a sample below 1.
    """
    plan = list(plan)
    recorded = stores.on_record(plan)
    eligible = [run for run in plan if run.id in recorded]
    if not eligible or sample < 1:
        raise ValueError(f"cannot draw {sample} runs from {len(eligible)} on record")
    drawn = random.Random(seed).sample(eligible, min(sample, len(eligible)))
    require_folder(paths.RUNS.parent)
    with tempfile.TemporaryDirectory(prefix="verify-", dir=paths.RUNS.parent, ignore_cleanup_errors=True) as store:
        trained = run(drawn, fresh=True, device=device, jobs=jobs, store=Path(store))
    return [
        {
            "run": run,
            "recorded": recorded[run.id],
            "trained": record,
            "equal": records.metrics(recorded[run.id]).items() <= record["metrics"].items(),
        }
        for run, record in zip(drawn, trained, strict=True)
    ]


class Schedule:
    """Says which run is next: its parents are trained, and the longest line of descent hangs on it.

    So no line is left over when all else is done. It knows no process, and looks at no run that is not concerned.

    Attributes:
        runs: All runs, by id.
        children: The ids of the runs that start from each, by its id.
        n_left: Those that neither finished nor failed.
        failures: What went wrong, by id.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        """Args:
        runs: Runs to train, parents before children; a parent that is not among them is on record.
        """
        self.runs = {run.id: run for run in runs}
        self.n_left = len(self.runs)
        self.failures: dict[str, str] = {}
        parents = {run.id: {parent.id for parent in run.parents} & self.runs.keys() for run in runs}
        self.children: dict[str, list[str]] = {run_id: [] for run_id in self.runs}
        for run_id, own in parents.items():
            for parent in own:
                self.children[parent].append(run_id)
        generations: dict[str, int] = {}
        for run_id in reversed(self.runs):  # children before their parents
            generations[run_id] = max((1 + generations[child] for child in self.children[run_id]), default=0)
        self._rank = {run_id: (-generations[run_id], place) for place, run_id in enumerate(self.runs)}
        self._order = TopologicalSorter(parents)
        self._order.prepare()
        self._ready: list[tuple[tuple[int, int], str]] = []
        self._later: list[tuple[float, str]] = []
        self._push(self._order.get_ready())

    def next_ready(self) -> Run | None:
        """Takes out the run to start next; None while there is none."""
        while self._later and self._later[0][0] <= time.monotonic():
            self._push([heapq.heappop(self._later)[1]])
        return self.runs[heapq.heappop(self._ready)[1]] if self._ready else None

    def _push(self, run_ids: Iterable[str]) -> None:
        for run_id in run_ids:
            heapq.heappush(self._ready, (self._rank[run_id], run_id))

    def later(self, run_id: str, seconds: float) -> None:
        """Puts a run back for some time."""
        heapq.heappush(self._later, (time.monotonic() + seconds, run_id))

    def finished(self, run_id: str) -> None:
        """Takes note of a run that is on record now; its children may be ready."""
        self.n_left -= 1
        self._order.done(run_id)
        self._push(self._order.get_ready())

    def failed(self, run_id: str, reason: str) -> None:
        """Takes note of a run that is given up; its descendants fall with it."""
        self.n_left -= 1
        self.failures[run_id] = reason
        for child in self.children[run_id]:
            if child not in self.failures:
                self.failed(child, f"{self.runs[child]}: its parent failed")


class _Pool:
    """Workers, and the schedule of the runs that they share."""

    def __init__(
        self,
        schedule: Schedule,
        *,
        store: Path,
        device: str,
        n_workers: int,
        slots: int,
        n_gpus: int = 1,
        crew: Any = workers,
    ) -> None:
        """Args:
        slots: Runs that a worker takes in turn.
        n_gpus: Of each worker.
        crew: Where workers come from: the module `workers`, or an object that has its functions.
        """
        self.schedule, self.slots, self.crew = schedule, slots, crew
        self.new_worker = functools.partial(crew.Worker, store=store, device=device, n_gpus=n_gpus)
        self.workers = [self.new_worker(number) for number in range(n_workers)]
        self.done: dict[str, dict] = {}
        self.deaths: Counter[str] = Counter()
        self.failed_starts: Counter[int] = Counter()  # by the number of the worker
        self.suspects: deque[Run] = deque()  # to be tried again, each alone

    def train(self, *, progress: bool) -> dict[str, dict]:
        """Returns the records of all runs, by id; the workers end with it, whatever happens."""
        n_runs, told = len(self.schedule.runs), 0.0
        try:
            with progress_of(n_runs, quiet=not progress) as tell:
                while self.schedule.n_left:
                    self._give_out()
                    self._collect()
                    if time.monotonic() - told >= POLL_SECONDS or not self.schedule.n_left:
                        tell(n_runs - self.schedule.n_left + sum(worker.n_done for worker in self.workers))
                        told = time.monotonic()  # not at every answer: each worker reads a file for it
        except KeyboardInterrupt:
            kept = f"{len(self.done)} of {n_runs} runs are on record now, those in hand keep what they had saved"
            raise KeyboardInterrupt(f"stopped: {kept}; start it again to go on from there") from None
        finally:
            for worker in self.workers:
                worker.kill()
        if failures := self.schedule.failures:
            others = ", the others are on record" * (len(failures) < n_runs)
            raise RunFailed(f"{len(failures)} of {n_runs} runs failed{others}:\n" + "\n".join(failures.values()))
        return self.done

    def _give_out(self) -> None:
        while free := [worker for worker in self.workers if self._has_room(worker)]:
            worker = min(free, key=lambda worker: len(worker.in_hand))
            is_suspect = bool(self.suspects) and not worker.in_hand
            run = self.suspects.popleft() if is_suspect else self.schedule.next_ready()
            if run is None:
                return
            try:
                worker.start(run, keep_state=bool(self.schedule.children[run.id]), is_reserved=is_suspect)
            except OSError:  # it died before
                self.suspects.append(run)
                self._replace(worker)

    def _has_room(self, worker: workers.Worker) -> bool:
        n = len(worker.in_hand)
        return worker.is_up and (n == 0 or (n < self.slots and not worker.is_reserved))

    def _collect(self) -> None:
        busy = [worker for worker in self.workers if worker.in_hand or not worker.is_up]
        for worker in self.crew.wait(busy, timeout=POLL_SECONDS):
            try:
                answered = worker.answer()
            except (EOFError, OSError):
                self._replace(worker)
                continue
            if answered is None:
                del self.failed_starts[worker.number]
                continue
            run, answer = answered
            if answer is None:
                self.schedule.later(run.id, BUSY_SECONDS)
            elif isinstance(answer, str):
                self.schedule.failed(run.id, answer)
            else:
                self.done[run.id] = answer
                self.schedule.finished(run.id)

    def _replace(self, worker: workers.Worker) -> None:
        """Puts a new worker in place of a dead one, whose runs are tried again or given up.

        Raises:
            RuntimeError: It could not start, and no other one is left.
        """
        worker.kill()
        self.workers.remove(worker)
        if not worker.is_up:
            self.failed_starts[worker.number] += 1
            if self.failed_starts[worker.number] == MAX_DEATHS or worker.is_hopeless:
                if not self.workers:
                    raise RuntimeError(worker.why_not_started) from None
                return
        self.workers.append(self.new_worker(worker.number))
        if worker.is_lost:
            for run_id in worker.in_hand:
                self.schedule.later(run_id, 0.0)
        elif worker.is_up:
            self._suspect(list(worker.in_hand.values()))

    def _suspect(self, runs: list[Run]) -> None:
        """Has the runs of a dead worker tried again, each alone; one that has lost two of its own is given up."""
        self.suspects.extendleft(reversed(runs))
        if len(runs) == 1:
            run = self.suspects[0]
            self.deaths[run.id] += 1
            if self.deaths[run.id] == MAX_DEATHS:
                self.suspects.popleft()
                reason = f"its worker was killed {MAX_DEATHS} times; out of memory? Try fewer runs at once"
                self.schedule.failed(run.id, f"{run}: {reason}")
