"""Workers: the processes that train runs, and the training of one run, from its lock to its record.

On CPUs a worker has one run at a time, on one thread: one run a core is faster than one run on all cores. On a GPU one
worker trains several, a step of each in turn, each run on a stream of its own: there kernels of small networks
overlap, those of several processes do not.

A record is written the moment its run ends, so whatever is killed, the same call goes on from there. A run that others
start from leaves its state (weights, masks) in `data/runs/<id>/state`.
"""

import json
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from multiprocessing import connection
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from prunelab import data, interrupts, ranks, recipes, records, stores
from prunelab.files import atomic_write
from prunelab.recipes import runner
from prunelab.recipes.recipe import State
from prunelab.runs import Run, check_choice
from prunelab.turns import Turns, exhaust

TIDY_SECONDS = 1.0  # for a worker to end by itself, when it sees that its pipe is closed
NO_GUARD = 3  # exit code of a worker that came to train runs itself, as it imported the script
RUNS_PER_GPU = 8  # where ResNet-20 stops gaining images a second, on an H100


def resolve_device(device: str) -> str:
    """Makes "auto" "cuda" where there is a GPU, else "cpu".

    Raises:
        ValueError: Another name than auto, cpu, cuda; or cuda where there is none.
    """
    check_choice("device", device, ("auto", "cpu", "cuda"))
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda' was asked for, but torch sees no GPU; use device 'auto' or 'cpu'")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def n_cores() -> int:
    """Counts the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_jobs(device: str) -> int:
    """Returns how many runs are trained at the same time: one a core, or several a GPU."""
    return RUNS_PER_GPU * torch.cuda.device_count() if device == "cuda" else n_cores()


def n_ranks(run: Run, n_gpus: int) -> int:
    """Returns on how many of so many GPUs a run is trained: as many as it may have and its batch can be divided among.

    It is one where the images lie on the device: there are too few of them to be worth more.
    """
    if (n := min(run.n_gpus, n_gpus)) <= 1:
        return 1
    options = recipes.get(run.recipe).options_of(run)
    return ranks.most(n, batch_size=options.batch_size) if options.dataset in data.STREAMED else 1


def gpus_each(plan: Iterable[Run], device: str) -> int:
    """Returns how many GPUs each worker has for a plan: as many as one of its runs uses of those that there are."""
    return max(n_ranks(run, torch.cuda.device_count()) for run in plan) if device == "cuda" else 1


def share_out(jobs: int, device: str, n_gpus: int = 1) -> tuple[int, int]:
    """Returns how many workers train so many runs at the same time, and how many of them each takes in turn.

    Args:
        jobs: Runs at the same time.
        device: "cpu" or "cuda".
        n_gpus: Of each worker; with several it takes one run at a time.
    """
    if n_gpus > 1:
        return min(jobs, torch.cuda.device_count() // n_gpus), 1
    n_workers = min(jobs, torch.cuda.device_count()) if device == "cuda" else jobs
    return n_workers, jobs // n_workers


def n_threads(device: str) -> int:
    """Returns on how many threads a worker works: one on a CPU; its share of the cores, to decode images, on a GPU."""
    return max(1, n_cores() // torch.cuda.device_count()) if device == "cuda" else 1


def execute(run: Run, *, store: Path, device: str, keep_state: bool = False) -> dict | None:
    """Trains one run in this process, without a pause; arguments and what is returned are those of `executing`."""
    return exhaust(executing(run, store=store, device=device, keep_state=keep_state))


def executing(run: Run, *, store: Path, device: str, keep_state: bool = False, n_gpus: int = 1) -> Turns[dict | None]:
    """Trains one run and puts its record, and on request its state, into the store; pauses after each step.

    Args:
        run: Its parents' states are in the store.
        store: Folder of this machine's runs.
        device: "cpu" or "cuda".
        keep_state: Others start from this run.
        n_gpus: Of this worker; where the run uses several, or on a CPU as many processes, others train it.
    Returns:
        Its record; None while another process is training it.
    """
    if (n := n_ranks(run, n_gpus)) > 1:
        return (yield from ranks.together(n, _train_as_rank, run, store, device, keep_state, device=device))
    folder = store / run.id
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "lock", timeout=0):  # let go by the system when its holder dies
            if record := on_record(run, store=store, keep_state=keep_state):
                return record
            for half_written in folder.glob(".*"):  # left by a process killed in the middle of a write
                half_written.unlink()
            trained, state = yield from _train(run, store=store, device=device)
            record = put_on_record(run, trained, store=store)
            if keep_state:
                stores.save_state(run, state, store)
            for leftover in ("checkpoint", "progress"):
                (folder / leftover).unlink(missing_ok=True)
            return record
    except Timeout:
        return None


def on_record(run: Run, *, store: Path, keep_state: bool = False) -> dict | None:
    """Returns the record of a run that needs no training; arguments as for `executing`."""
    record = stores.on_record([run], fresh=True, store=store).get(run.id)
    return record if record and not (keep_state and not stores.has_state(run, store)) else None


def put_on_record(run: Run, record: dict, *, store: Path) -> dict:
    """Puts a record into the store, unless there is an earlier one; returns which of them is there."""
    if earlier := on_record(run, store=store):
        return earlier
    records.save(record, store)
    return record


def _train_as_rank(run: Run, store: Path, device: str, keep_state: bool) -> dict | None:
    """Does what `execute` does on rank 0; all others only train."""
    _settle(device)
    if ranks.number() == 0:
        return execute(run, store=store, device=device, keep_state=keep_state)
    exhaust(_train(run, store=store, device=device))
    return None


def _train(run: Run, *, store: Path, device: str) -> Turns[tuple[dict, State | None]]:
    """Returns a run's record and its state."""
    provenance = records.provenance()  # before training: the commit may change under a long run
    recipe = recipes.get(run.recipe)
    result = yield from runner.executing(
        recipe,
        run,
        device=device,
        parents=[stores.load_state(parent, store) for parent in run.parents],
        checkpoint=store / run.id / "checkpoint",
        report=partial(_report, store / run.id / "progress"),
    )
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    state, seconds, precision, dataset = (result.pop(key) for key in ("state", "seconds", "precision", "dataset"))
    record = {
        "format": records.FORMAT,
        "id": run.id,
        "recipe": run.recipe,
        "options": recipe.defaults | dict(run.options),
        "seed": run.seed,
        "parent": run.parent_ids,
        **json.loads(json.dumps(result), parse_constant=lambda name: None),  # JSON has no NaN and no infinity
        "provenance": provenance
        | {
            "device": f"{ranks.count()} x " * (ranks.count() > 1) + name,
            "threads": torch.get_num_threads(),
            "precision": precision,
            "seconds": round(seconds, 2),
            "dataset": dataset,
        },
    }
    return record, state


def _report(path: Path, share: float) -> None:
    if ranks.number() == 0:
        atomic_write(path, f"{share:.4f}")


def wait(some: Iterable["Worker"], *, timeout: float) -> list["Worker"]:
    """Returns those that have answered or died, as soon as one has, or when time is up."""
    by_pipe = {worker.pipe: worker for worker in some}
    return [by_pipe[pipe] for pipe in connection.wait(list(by_pipe), timeout=timeout)]


class Worker:
    """A process that trains what it is given. Its pipe ends when it dies, which is how its death is noticed.

    Attributes:
        number: Counts the workers, and so the GPUs, or groups of them, that they use.
        is_up: It has started.
        in_hand: The runs that it has not answered yet, by id.
        is_reserved: The run that it has in hand is to be trained alone.
        is_lost: Its machine is gone, for which its runs are not to blame; this one is not.
    """

    is_lost = False

    def __init__(self, number: int, *, store: Path, device: str, n_gpus: int = 1) -> None:
        """Starts the process, which has so many GPUs.

        Raises:
            RuntimeError: The script that runs here cannot be imported there.
        """
        _require_importable_script()
        # Forked, where that is safe, from a server that has only imported torch; a fork of this process has no GPU.
        context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
        context.set_forkserver_preload(["torch"])
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, number, store, device, n_gpus), daemon=True)
        with interrupts.held_back():  # they reach the engine, which ends its workers
            self.process.start()
        theirs.close()
        self.number, self.is_up, self.in_hand, self.is_reserved = number, False, dict[str, Run](), False
        self.store = store

    def start(self, run: Run, *, keep_state: bool, is_reserved: bool) -> None:
        """Hands over a run.

        Raises:
            OSError: The worker is dead.
        """
        self.pipe.send((run, keep_state))
        self.in_hand[run.id], self.is_reserved = run, is_reserved

    def answer(self) -> tuple[Run, dict | str | None] | None:
        """Returns a run that ended, and its record, or what went wrong, or None where another process trains it.

        The first answer is None: the worker has started.

        Raises:
            EOFError, OSError: The worker is dead.
        """
        if not self.is_up:
            self.is_up = self.pipe.recv()
            return None
        run_id, answer = self.pipe.recv()
        return self.in_hand.pop(run_id), answer

    @property
    def n_done(self) -> float:
        """How much of the runs in hand is done, each counted with its share."""
        return sum(share_done(self.store / run_id) for run_id in self.in_hand)

    @property
    def is_hopeless(self) -> bool:
        """Whether another process would start no better."""
        return self.process.exitcode == NO_GUARD

    @property
    def why_not_started(self) -> str:
        """What is known of a process that died while it started."""
        code = self.process.exitcode
        if self.is_hopeless:
            return 'workers import the script, which calls engine.run; put the call under `if __name__ == "__main__":`'
        how = "killed; out of memory? Try fewer runs at once" if code < 0 else "what it said of it stands above"
        return f"no worker could start: the last one ended with exit code {code}, {how}"

    def kill(self) -> None:
        """Ends the process, which gets a moment to tidy up after itself."""
        self.pipe.close()
        self.process.join(TIDY_SECONDS)
        self.process.kill()
        self.process.join()


def share_done(folder: Path) -> float:
    """Returns the share of a run's training that is done, as the run itself has written it down."""
    try:
        return float((folder / "progress").read_text())
    except (OSError, ValueError):
        return 0.0


def _require_importable_script() -> None:
    """Makes sure that workers can import the script that runs here, as Python does when it starts a process.

    Ends such a process, where the script starts workers though it is only imported.

    Raises:
        RuntimeError: The script is no file.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        os._exit(NO_GUARD)  # a server of forks would make 1 of SystemExit
    main = sys.modules["__main__"]
    script = getattr(main, "__file__", None)
    if script and main.__spec__ is None and not os.path.exists(script):
        raise RuntimeError(
            f"workers import the script, and {script} is no file; save it as one, with the call of engine.run under "
            '`if __name__ == "__main__":`'
        )


def _serve(pipe: connection.Connection, number: int, store: Path, device: str, n_gpus: int) -> None:
    interrupts.end_with_parent()  # a killed notebook kernel leaves no worker behind
    multiprocessing.current_process().daemon = False  # it may have ranks, which end with it
    with suppress(ConnectionError):
        pipe.send(True)
        serve(pipe, number, store, device, n_gpus)


def serve(pipe: connection.Connection, number: int, store: Path, device: str, n_gpus: int = 1) -> None:
    """Trains what comes through a pipe until the other end is closed: on one thread, or on GPUs.

    Args:
        pipe: As for `take_turns`.
        number: Of the group of GPUs, each of `n_gpus`; a run that takes one is trained on its first.
        store: Folder of this machine's runs.
        device: "cpu" or "cuda".
        n_gpus: As for `executing`.
    """
    _settle(device)
    if device == "cuda":
        torch.cuda.set_device(number * n_gpus)
    with suppress(EOFError, ConnectionError):  # the engine is gone
        take_turns(pipe, partial(executing, store=store, device=device, n_gpus=n_gpus))


def _settle(device: str) -> None:
    """Sets what trainings in this process share."""
    torch.set_num_threads(n_threads(device))
    if device == "cuda":
        # The same numbers, whoever else keeps the GPU busy. cudnn.benchmark stays off: it chooses by timing.
        torch.backends.cudnn.deterministic = True


def take_turns(pipe: connection.Connection, executing: Callable[..., Turns[dict | None]]) -> None:
    """Trains what comes through a pipe, a step of each run in turn, and answers each when it ends; never returns.

    Args:
        pipe: Gives pairs of a run and whether to keep its state; takes pairs of an id and what `Worker.answer` returns.
        executing: Called with a run and `keep_state`.
    Raises:
        EOFError: The other end is closed.
        torch.OutOfMemoryError, torch.AcceleratorError: Of a GPU, whose other runs would fail as well.
        ranks.RankDied: As if this process had: the run is tried again.
    """
    turns: dict[str, tuple[Run, Turns]] = {}
    while True:
        while not turns or pipe.poll():
            run, keep_state = pipe.recv()
            turns[run.id] = run, executing(run, keep_state=keep_state)
        for run, training in list(turns.values()):
            try:
                next(training)
                continue
            except StopIteration as end:
                answer = end.value
            except (torch.OutOfMemoryError, torch.AcceleratorError, ranks.RankDied):
                raise
            except Exception as error:
                answer = f"{run}: {type(error).__name__}: {error}\n{traceback.format_exc()}"
            del turns[run.id]
            pipe.send((run.id, answer))
