"""Workers on the nodes of a Ray cluster, in place of those of `workers`: the same runs, records and errors.

A worker is an actor with one core, or with one GPU on which several runs take turns, or with several GPUs. It trains in
a folder of its node, where checkpoints stay; records and states come back through Ray, so nothing needs a shared file
system. What a run starts from, the images and its parents' states, goes to a node once, and only if it is not there.
"""

import contextlib
import hashlib
import os
import socket
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import cache, lru_cache
from multiprocessing import Pipe
from pathlib import Path
from typing import NamedTuple

import ray
import torch
from filelock import FileLock, Timeout
from ray.exceptions import RayError

import prunelab
from prunelab import data, files, paths, recipes, stores, workers
from prunelab.data.folders import sha256_of_files
from prunelab.runs import Run, check_choice

_ANSWER_SECONDS = 10.0  # for a cluster to answer at all; Ray itself would try for minutes
_N_STATES = 32  # of parents that the object store holds at a time: siblings ask for one after another


class Cluster:
    """A connection to a cluster, for one plan; a context, at whose end it is closed.

    Stands in for the module `workers`: has its functions, of the cluster's machines.

    Attributes:
        images: What nodes need of each data set, by name and size.
        state_of: Sends what a parent, in a store, hands on.
        left_aside: Actors on nodes that cannot be used, where no other is to take their place.
    """

    def __init__(self, plan: Sequence[Run]) -> None:
        """Connects to the cluster at `RAY_ADDRESS`, or starts one on this machine; or takes the one in use here.

        Raises:
            RuntimeError: There is none at that address, it cannot be started, or it cannot hold the plan's images.
        """
        self._is_own = not ray.is_initialized()
        self.state_of, self.left_aside = lru_cache(_N_STATES)(_state_of), []
        try:
            if self._is_own:
                _connect(os.environ.get("RAY_ADDRESS"))
            self.images = _images_of(plan)
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_own:
            ray.shutdown()

    def resolve_device(self, device: str) -> str:
        """As `workers.resolve_device`, of the whole cluster."""
        check_choice("device", device, ("auto", "cpu", "cuda"))
        if device == "cuda" and not self._count("GPU"):
            raise ValueError("device 'cuda' was asked for, but no node of the cluster has a GPU")
        return ("cuda" if self._count("GPU") else "cpu") if device == "auto" else device

    def default_jobs(self, device: str) -> int:
        """As `workers.default_jobs`, of the whole cluster."""
        return workers.RUNS_PER_GPU * self._count("GPU") if device == "cuda" else self._count("CPU")

    def gpus_each(self, plan: Sequence[Run], device: str) -> int:
        """As `workers.gpus_each`, of the node that has most."""
        most = max(_gpus_of_nodes())
        return max(workers.n_ranks(run, most) for run in plan) if device == "cuda" else 1

    def share_out(self, jobs: int, device: str, n_gpus: int = 1) -> tuple[int, int]:
        """As `workers.share_out`, of the whole cluster.

        Raises:
            RuntimeError: No node has a core, or as many GPUs, for a worker.
        """
        groups = sum(gpus // n_gpus for gpus in _gpus_of_nodes()) if device == "cuda" else self._count("CPU")
        if not groups:
            raise RuntimeError("no node of the cluster has a core for a worker; `ray start` says what each node has")
        n_workers = min(jobs, groups)
        return n_workers, min(jobs // n_workers, workers.RUNS_PER_GPU) if n_gpus == 1 else 1

    def _count(self, resource: str) -> int:
        return int(ray.cluster_resources().get(resource, 0))

    def wait(self, some: Iterable["RayWorker"], *, timeout: float) -> list["RayWorker"]:
        """As `workers.wait`."""
        asked = {reference: worker for worker in some for reference in worker.asked}
        if not asked:
            time.sleep(timeout)
            return []
        ready, _ = ray.wait(list(asked), timeout=timeout)
        return [asked[reference] for reference in ready]

    def Worker(self, number: int, *, store: Path, device: str, n_gpus: int) -> "RayWorker":
        """Starts a worker, on whichever node has room."""
        return RayWorker(self, number, store=store, device=device, n_gpus=n_gpus)


def _connect(address: str | None) -> None:
    try:
        if address and address.count(":") == 1:
            host, port = address.split(":")
            socket.create_connection((host, int(port)), timeout=_ANSWER_SECONDS).close()
        ray.init(address or "local", log_to_driver=False, logging_level="error")
    except (RayError, OSError, RuntimeError, ValueError) as error:
        tried = f"reached at RAY_ADDRESS={address}" if address else "started on this machine"
        raise RuntimeError(
            f"no cluster could be {tried}: {error}. `ray start --head` starts one, and says its address;"
            " RAY_AUTH_MODE=token shows it the token that it may ask for"
        ) from error


class RayWorker:
    """A worker on some node; attributes and methods are those of `workers.Worker`, and one more.

    Attributes:
        asked: What it is to answer.
    """

    def __init__(self, cluster: Cluster, number: int, *, store: Path, device: str, n_gpus: int) -> None:
        self.cluster, self.number, self.store = cluster, number, store
        self.is_up, self.in_hand, self.is_reserved, self.is_hopeless = False, dict[str, Run](), False, False
        self.why_not_started = "no worker could start"
        resources = {"num_cpus": 0, "num_gpus": n_gpus} if device == "cuda" else {"num_cpus": 1}
        self._actor = _Actor.options(**resources).remote(_folder_of(store), device, n_gpus)
        self._start = self._actor.start.remote(_versions(), cluster.images)
        self._answers, self._locks = dict[ray.ObjectRef, Run](), dict[str, FileLock]()
        self._node, self._question, self._n_done = None, None, 0.0

    @property
    def asked(self) -> list["ray.ObjectRef"]:
        return list(self._answers) if self.is_up else [self._start]

    @property
    def is_lost(self) -> bool:
        """Whether its whole node is gone."""
        return not any(node["Alive"] for node in ray.nodes() if node["NodeID"] == self._node)

    def start(self, run: Run, *, keep_state: bool, is_reserved: bool) -> None:
        """Hands over a run; the answer is there at once where it needs no training here, or cannot be handed over."""
        try:
            answer = self._ask(run, keep_state=keep_state)
        except Exception as error:  # on this machine: it is not the worker's
            answer = ray.put((_failure(run, error), None))
        self._answers[answer], self.in_hand[run.id], self.is_reserved = run, run, is_reserved

    def _ask(self, run: Run, *, keep_state: bool) -> "ray.ObjectRef":
        (self.store / run.id).mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.store / run.id / "lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            return ray.put((None, None))  # another process has it trained
        self._locks[run.id] = lock
        if record := workers.on_record(run, store=self.store, keep_state=keep_state):
            return ray.put((record, None))
        states = [self.cluster.state_of(parent, self.store) for parent in run.parents]
        return self._actor.train.remote(run, keep_state, states)

    def answer(self) -> tuple[Run, dict | str | None] | None:
        """Returns what `workers.Worker.answer` does; what came back is in the store by then."""
        try:
            if not self.is_up:
                return self._see_start(*ray.get(self._start))
            (reference,), _ = ray.wait(self.asked)
            answer, state = ray.get(reference)
        except RayError as error:
            self.why_not_started = f"no worker could start: {error}"
            raise EOFError(str(error)) from error
        run = self._answers.pop(reference)
        try:
            if isinstance(answer, dict):
                answer = workers.put_on_record(run, answer, store=self.store)
            if state:
                files.atomic_write(stores.state_file(run, self.store), state)
        except OSError as error:
            answer = _failure(run, error)
        if run.id in self._locks:
            self._locks.pop(run.id).release()
        return self.in_hand.pop(run.id), answer

    def _see_start(self, node: str, problem: str | None) -> None:
        if problem:
            self.is_hopeless, self.why_not_started = True, problem
            self.cluster.left_aside.append(self._actor)
            warnings.warn(f"{problem}; it is left aside", stacklevel=3)
            raise EOFError(problem)
        self.is_up, self._node = True, node

    @property
    def n_done(self) -> float:
        """How much of the runs in hand is done, as last heard."""
        if self._question and ray.wait([self._question], timeout=0)[0]:
            with contextlib.suppress(RayError):
                self._n_done = ray.get(self._question)
            self._question = None
        if self.in_hand and not self._question:
            self._question = self._actor.n_done.remote()
        return min(self._n_done, len(self.in_hand))

    def kill(self) -> None:
        """Ends the process, unless it keeps others from a node that cannot be used."""
        if not self.is_hopeless:
            ray.kill(self._actor)
        for lock in self._locks.values():
            lock.release()


@ray.remote(max_concurrency=workers.RUNS_PER_GPU + 2)
class _Actor:
    """What runs on a node: one thread trains, as a worker does, and others answer."""

    def __init__(self, folder: str, device: str, n_gpus: int) -> None:
        self.store, self._answers = paths.DATA / "cluster" / folder, dict[str, Future]()
        self._sending, (self._pipe, theirs) = threading.Lock(), Pipe()
        for work in (lambda: workers.serve(theirs, 0, self.store, device, n_gpus), self._listen):
            threading.Thread(target=_or_die, args=(work,), daemon=True).start()

    def start(self, versions: dict[str, str], images: "Images") -> tuple[str, str | None]:
        """Fetches the images; returns which node this is, and what is wrong with it, None if nothing is."""
        return ray.get_runtime_context().get_node_id(), self._problem(versions, images)

    def _problem(self, versions: dict[str, str], images: "Images") -> str | None:
        node = f"the node {socket.gethostname()}"
        if (own := _versions()) != versions:
            here, there = (", ".join(f"{name} {version}" for name, version in each.items()) for each in (own, versions))
            return f"{node} has {here}, and not {there} as where the plan was started"
        try:
            self.store.mkdir(parents=True, exist_ok=True)
            for (name, image_size), (sha256, decoded) in images.items():
                if decoded:
                    _receive(decoded, data.decoded_file(name, image_size))
                data.require(name, image_size=image_size)
                if (found := data.load(name, image_size=image_size).sha256) != sha256:
                    return f"{node} has other images of {name}: their SHA-256 is {found}, and not {sha256}"
        except (OSError, ValueError, RayError) as error:
            return f"{node} cannot be used: {error}"
        return None

    def train(self, run: Run, keep_state: bool, states: list["_Sent"]) -> tuple[dict | str | None, bytes | None]:
        """Trains a run; returns its answer, as `workers.take_turns` gives it, and its state if it is to be kept."""
        try:
            for parent, state in zip(run.parents, states, strict=True):
                _receive(state, stores.state_file(parent, self.store))
            self._answers[run.id] = answered = Future()
            with self._sending:
                self._pipe.send((run, keep_state))
            if not isinstance(answer := answered.result(), dict):
                return answer, None
            (self.store / run.id / "record.json").unlink()  # it belongs to whoever asked
            return answer, stores.state_file(run, self.store).read_bytes() if keep_state else None
        except (OSError, RayError) as error:
            return _failure(run, error), None

    def n_done(self) -> float:
        """How much of the runs in hand is done."""
        return sum(workers.share_done(self.store / run_id) for run_id in list(self._answers))

    def _listen(self) -> None:
        while True:
            run_id, answer = self._pipe.recv()
            self._answers.pop(run_id).set_result(answer)


def _or_die(work: Callable[[], None]) -> None:
    """Works in a thread whose end is that of the process: who waits for it hears of it."""
    try:
        work()
    except BaseException:
        traceback.print_exc()
    os._exit(1)


class _Sent(NamedTuple):
    """A file on its way to nodes.

    Args:
        sha256: Of its content.
        content: Where Ray has it; in a list, which Ray does not unfold: it goes to a node that asks for it.
    """

    sha256: str
    content: list["ray.ObjectRef"]


Images = dict[tuple[str, int | None], tuple[str, _Sent | None]]  # by name and size: SHA-256, decoded file


def _images_of(plan: Sequence[Run]) -> Images:
    """Sends the decoded images of a plan; those that are streamed must lie on each node."""
    images: Images = {}
    for run in plan:
        options = recipes.get(run.recipe).options_of(run)
        if (key := (options.dataset, options.image_size)) not in images:
            sha256, decoded = data.load(key[0], image_size=key[1]).sha256, data.decoded_file(*key)
            images[key] = sha256, decoded and _send(decoded, f"the images of {key[0]}")
    return images


def _state_of(parent: Run, store: Path) -> _Sent:
    return _send(stores.state_file(parent, store), f"the state of {parent}")


def _send(path: Path, name: str) -> _Sent:
    content = path.read_bytes()
    try:
        return _Sent(files.sha256(content), [ray.put(content)])
    except RayError as error:
        raise RuntimeError(
            f"the cluster cannot hold {name}: {error}. `ray start --object-store-memory` gives it more"
        ) from error


def _receive(sent: _Sent, path: Path) -> None:
    """Writes a file, unless the same one is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):  # one worker of a node is enough
        if not (path.exists() and files.sha256(path) == sent.sha256):
            files.atomic_write(path, ray.get(sent.content[0]))


def _failure(run: Run, error: Exception) -> str:
    return f"{run}: {type(error).__name__}: {error}"


def _gpus_of_nodes() -> list[int]:
    return [int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]]


def _folder_of(store: Path) -> str:
    """Names the folder that nodes keep for a store and this version, the same whenever it is asked for."""
    return hashlib.sha256(f"{store} {_versions()}".encode()).hexdigest()[:16]


@cache  # of the code that runs, whatever becomes of its files
def _versions() -> dict[str, str]:
    code = ((path.name, path.read_bytes()) for path in sorted(Path(prunelab.__file__).parent.rglob("*.py")))
    return {
        "prunelab": prunelab.__version__,
        "code": sha256_of_files(code)[:10],
        "torch": torch.__version__,
    }
