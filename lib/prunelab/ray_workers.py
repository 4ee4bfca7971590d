"""Workers on the nodes of a Ray cluster, in place of those of `workers`: the same runs, records and errors.

A worker is an actor with one core, or with one GPU on which several runs take turns. It trains in a folder of its node,
where checkpoints stay; records and states come back through Ray, and nothing needs a shared file system. A parent's
state goes to each node once, and so do the decoded images of a plan, which a node checks against their SHA-256.
"""

import contextlib
import hashlib
import os
import socket
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import ray
import torch
from filelock import FileLock, Timeout
from ray.exceptions import RayError

import prunelab
from prunelab import data, paths, recipes, records, stores, workers
from prunelab.files import atomic_write
from prunelab.recipes.recipe import State
from prunelab.runs import Run

_ANSWER_SECONDS = 10.0  # for a cluster to answer at all
Images = dict[tuple[str, int | None], tuple[str, "ray.ObjectRef | None"]]  # by name and size: SHA-256, decoded file


class Cluster:
    """A connection to a cluster, for one plan; a context, at whose end it is closed.

    Stands in for the module `workers`: has its functions, of the cluster's machines.
    """

    def __init__(self, plan: Sequence[Run]) -> None:
        """Connects to the cluster at `RAY_ADDRESS`, or starts one on this machine.

        Raises:
            RuntimeError: There is none at that address.
        """
        address = os.environ.get("RAY_ADDRESS")
        try:
            if address and address.count(":") == 1:  # Ray itself would try for minutes
                host, port = address.split(":")
                socket.create_connection((host, int(port)), timeout=_ANSWER_SECONDS).close()
            ray.init(address or "local", log_to_driver=False, logging_level="error", namespace="prunelab")
        except (RayError, OSError, RuntimeError, ValueError) as error:
            raise RuntimeError(
                f"no cluster answers at RAY_ADDRESS={address}: {error}. Start one with `ray start --head`, or unset"
                " RAY_ADDRESS to start one on this machine"
            ) from error
        self._images, self._states = images_of(plan), dict[str, ray.ObjectRef]()

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        ray.shutdown()

    def resolve_device(self, device: str) -> str:
        """As `workers.resolve_device`, of the whole cluster."""
        if device == "auto":
            return "cuda" if self._has("GPU") else "cpu"
        if device == "cuda" and not self._has("GPU"):
            raise ValueError("device 'cuda' was asked for, but no node of the cluster has a GPU")
        return device

    def default_jobs(self, device: str) -> int:
        """As `workers.default_jobs`, of the whole cluster."""
        return workers.RUNS_PER_GPU * self._has("GPU") if device == "cuda" else self._has("CPU")

    def gpus_each(self, plan: Sequence[Run], device: str) -> int:
        """As `workers.gpus_each`, of the node that has most."""
        return max(workers.n_ranks(run, max(_gpus_of_nodes())) for run in plan) if device == "cuda" else 1

    def share_out(self, jobs: int, device: str, n_gpus: int = 1) -> tuple[int, int]:
        """As `workers.share_out`, of the whole cluster."""
        if n_gpus > 1:
            return min(jobs, sum(gpus // n_gpus for gpus in _gpus_of_nodes())), 1
        n_workers = min(jobs, self._has("GPU")) if device == "cuda" else min(jobs, self._has("CPU"))
        return n_workers, jobs // n_workers

    def _has(self, resource: str) -> int:
        return int(ray.cluster_resources().get(resource, 0))

    def wait(self, some: Iterable["RayWorker"], *, timeout: float) -> list["RayWorker"]:
        """As `workers.wait`."""
        asked = {reference: worker for worker in some for reference in worker.asked}
        ready, _ = ray.wait(list(asked), timeout=timeout)
        return [asked[reference] for reference in ready]

    def Worker(self, number: int, *, store: Path, device: str, n_gpus: int) -> "RayWorker":
        """Starts a worker; its number does not matter here."""
        return RayWorker(number, store=store, device=device, n_gpus=n_gpus, images=self._images, states=self._states)


class RayWorker:
    """A worker on some node; attributes and methods are those of `workers.Worker`, beside:

    Attributes:
        asked: What it is to answer.
    """

    def __init__(self, number: int, *, store: Path, device: str, n_gpus: int, images: Images, states: dict) -> None:
        self.number, self.store = number, store
        self.is_up, self.in_hand, self.is_reserved, self.is_hopeless = False, dict[str, Run](), False, False
        self.why_not_started = "no worker could start"
        resources = {"num_cpus": 0, "num_gpus": n_gpus} if device == "cuda" else {"num_cpus": 1}
        self._actor = _Actor.options(**resources).remote(_folder_of(store), device, n_gpus)
        self._start = self._actor.start.remote(_versions(), images)
        self._states, self._answers = states, dict[ray.ObjectRef, tuple[Run, ray.ObjectRef | None]]()
        self._locks: dict[str, FileLock] = {}
        self._question, self._n_done = None, 0.0

    @property
    def asked(self) -> list[ray.ObjectRef]:
        return list(self._answers) if self.is_up else [self._start]

    def start(self, run: Run, *, keep_state: bool, is_reserved: bool) -> None:
        """Hands over a run; where another process trains it, the answer is None, at once."""
        self.in_hand[run.id], self.is_reserved = run, is_reserved
        (self.store / run.id).mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.store / run.id / "lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            self._answers[ray.put(None)] = run, None
            return
        self._locks[run.id] = lock
        states = [self._state_of(parent) for parent in run.parents]
        answer, state = self._actor.train.remote(run, keep_state, *states)
        self._answers[answer] = run, state if keep_state else None

    def answer(self) -> tuple[Run, dict | str | None] | None:
        """Returns what `workers.Worker.answer` does; what comes back is in the store by then."""
        if not self.is_up:
            self._see_start()
            return None
        reference = next(iter(ray.wait(self.asked, timeout=0)[0]))
        try:
            answer, (run, state) = ray.get(reference), self._answers[reference]
            state = ray.get(state) if state and isinstance(answer, dict) else None
        except RayError as error:
            raise EOFError(str(error)) from error
        del self._answers[reference]
        if isinstance(answer, dict):
            if earlier := stores.on_record([run], fresh=True, store=self.store).get(run.id):
                answer = earlier
            else:
                records.save(answer, self.store)
            if state:
                stores.save_state(run, State(**state), self.store)
        if lock := self._locks.pop(run.id, None):
            lock.release()
        return self.in_hand.pop(run.id), answer

    @property
    def n_done(self) -> float:
        """How much of the runs in hand is done, as last heard."""
        if self._question is None and self.in_hand:
            self._question = self._actor.n_done.remote()
        elif self._question and ray.wait([self._question], timeout=0)[0]:
            with contextlib.suppress(RayError):
                self._n_done = ray.get(self._question)
            self._question = None
        return min(self._n_done, len(self.in_hand))

    def kill(self) -> None:
        """Ends the process."""
        ray.kill(self._actor)
        for lock in self._locks.values():
            lock.release()

    def _see_start(self) -> None:
        try:
            problem = ray.get(self._start)
        except RayError as error:
            self.why_not_started = f"no worker could start: {error}"
            raise EOFError(str(error)) from error
        if problem:
            self.is_hopeless, self.why_not_started = True, problem
            warnings.warn(f"{problem}; it is left aside", stacklevel=2)
            raise EOFError(problem)
        self.is_up = True

    def _state_of(self, parent: Run) -> ray.ObjectRef:
        if parent.id not in self._states:
            self._states[parent.id] = _put(vars(stores.load_state(parent, self.store)), f"the state of {parent}")
        return self._states[parent.id]


@ray.remote(max_concurrency=workers.RUNS_PER_GPU + 2)
class _Actor:
    """What runs on a node: trains in a thread as a worker does, and answers from others."""

    def __init__(self, folder: str, device: str, n_gpus: int) -> None:
        self.store, self.device = paths.RUNS.parent / "cluster" / folder, device
        self._answers: dict[str, Future] = {}
        self._pipe, theirs = Pipe()
        serving = (workers.serve, theirs, 0, self.store, device, n_gpus)
        threading.Thread(target=_or_die, args=serving, daemon=True).start()
        threading.Thread(target=_or_die, args=(self._listen,), daemon=True).start()

    def start(self, versions: dict[str, str], images: Images) -> str | None:
        """Fetches the images; returns what is wrong with this node, None if nothing is."""
        node = f"the node {socket.gethostname()}"
        if (own := _versions()) != versions:
            here, there = (", ".join(f"{name} {version}" for name, version in each.items()) for each in (own, versions))
            return f"{node} has {here}, and not {there}, as who asks"
        try:
            self.store.mkdir(parents=True, exist_ok=True)
            for (name, image_size), (sha256, decoded) in images.items():
                _fetch(name, image_size, decoded)
                if (found := data.load(name, image_size=image_size).sha256) != sha256:
                    return f"{node} has other images of {name}: their SHA-256 is {found}, and not {sha256}"
        except (OSError, ValueError) as error:
            return f"{node} cannot be used: {error}"
        return None

    @ray.method(num_returns=2)
    def train(self, run: Run, keep_state: bool, *states: dict) -> tuple[dict | str | None, dict | None]:
        """Trains a run; returns its answer, as `workers.take_turns` gives it, and its state if it is to be kept."""
        for parent, state in zip(run.parents, states, strict=True):
            if not (self.store / parent.id / "state").exists():
                stores.save_state(parent, State(**state), self.store)
        self._answers[run.id] = answered = Future()
        self._pipe.send((run, keep_state))
        answer = answered.result()
        folder, state = self.store / run.id, None
        if isinstance(answer, dict):
            state = vars(stores.load_state(run, self.store)) if keep_state else None
            (folder / "record.json").unlink()  # whoever asked has it
        return answer, state

    def n_done(self) -> float:
        """How much of the runs in hand is done."""
        return sum(workers.share_done(self.store / run_id) for run_id in list(self._answers))

    def _listen(self) -> None:
        while True:
            run_id, answer = self._pipe.recv()
            self._answers.pop(run_id).set_result(answer)


def _or_die(work: Callable[..., None], *arguments: object) -> None:
    """Works in a thread whose end is that of the process: who waits for it hears of it."""
    try:
        work(*arguments)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def images_of(plan: Sequence[Run]) -> Images:
    """Puts the decoded images of a plan where nodes find them; those that are streamed must lie on each node.

    Raises:
        RuntimeError: The object store cannot hold them.
    """
    images: Images = {}
    for run in plan:
        options = recipes.get(run.recipe).options_of(run)
        if (key := (options.dataset, options.image_size)) not in images:
            sha256, decoded = data.load(key[0], image_size=key[1]).sha256, data.decoded_file(*key)
            images[key] = sha256, decoded and _put(decoded.read_bytes(), f"the images of {key[0]}")
    return images


def _put(what: Any, name: str) -> ray.ObjectRef:
    try:
        return ray.put(what)
    except RayError as error:
        raise RuntimeError(
            f"the cluster cannot hold {name}: {error}. Start Ray with more --object-store-memory"
        ) from error


def _fetch(name: str, image_size: int | None, decoded: "ray.ObjectRef | None") -> None:
    if decoded and not (path := data.decoded_file(name, image_size)).exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():  # another worker of this node was faster
                atomic_write(path, ray.get(decoded))


def _gpus_of_nodes() -> list[int]:
    return [int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]]


def _folder_of(store: Path) -> str:
    """Names the folder that a node keeps for a store, the same whenever it is asked for."""
    return hashlib.sha256(f"{socket.gethostname()}:{store}".encode()).hexdigest()[:16]


def _versions() -> dict[str, str]:
    return {"prunelab": prunelab.__version__, "torch": torch.__version__, "commit": records.commit()}
