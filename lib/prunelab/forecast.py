"""How long a plan will take on this machine, from a few seconds of measurement. No image is needed, nothing is stored.

Networks of each kind (same model, image and batch size) are trained for some steps on noise, the widest and the
narrowest, in as many processes at once as will train the plan, and in each as many in turn; the time of other widths is
read between the two.
"""

import itertools
import math
import multiprocessing
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from prunelab import interrupts
from prunelab.cost import training_macs
from prunelab.data.dataset import Dataset
from prunelab.models import build_model
from prunelab.precision import best_precision
from prunelab.runs import Run
from prunelab.steps import N_WARM_UP, Stepper, build_optimizer, can_capture
from prunelab.training import evaluate
from prunelab.turns import Turns, in_turns

SECONDS = 10.0  # of measurement, shared among the networks
MEASURED_PIXELS = 500_000  # of a batch; of larger ones the time is that of a part, to scale
MEASURED_MACS = 5e9  # likewise, of a forward pass on a CPU, where more would not be faster
# Of an NVIDIA H200 each second: what the runs of `full` of 01_rigl that ship passed through ResNet-20 between the start
# of the first and the end of the last, ten at once. Larger networks get more out of it.
H200_MACS = 8.26e12
STATE_BYTES = 9  # for each weight of a network that others start from: its value, its first value, its mask


@dataclass(frozen=True)
class Workload:
    """What a machine does for one run. Masks save none of it: zeros are multiplied as well.

    Attributes:
        model: A key of `models.MODELS`; built by `build_model` with the next four.
        optimizer: A key of `steps.OPTIMIZERS`.
        batch_size: Images a step.
        macs: Of a forward pass for one image.
        n_steps: Batches trained on.
        n_evaluated: Images passed forward only, each as often as it is.
        n_weights: Of all layers.
    """

    model: str
    width: float
    num_classes: int
    in_channels: int
    image_size: int
    optimizer: str
    batch_size: int
    macs: int
    n_steps: int
    n_evaluated: int
    n_weights: int

    @property
    def kind(self) -> tuple:
        """What networks share whose times differ by their width only."""
        return self.model, self.in_channels, self.image_size, self.optimizer, self.batch_size

    @property
    def training_macs(self) -> float:
        return training_macs(self.macs, self.macs, n_samples=self.n_steps * self.batch_size)

    @property
    def all_macs(self) -> float:
        """With those of images passed forward only."""
        return self.training_macs + self.macs * self.n_evaluated


@dataclass(frozen=True)
class Timing:
    """Seconds for one network: a step, and the test of one image."""

    macs: int
    step: float
    test: float


@dataclass(frozen=True)
class Calibration:
    """What was measured: of each kind of workload its timings, narrowest network first; and the start of a process."""

    timings: Mapping[tuple, Sequence[Timing]]
    start_seconds: float

    def seconds(self, workload: Workload) -> float:
        """Returns the expected time of one run on a worker, of which runs in turn have equal shares."""
        step, test = (_interpolated(workload.macs, self.timings[workload.kind], key) for key in ("step", "test"))
        return workload.n_steps * step + workload.n_evaluated * test


def _interpolated(macs: int, timings: Sequence[Timing], key: str) -> float:
    """Reads a time along a straight line through the first and the last timing, both axes logarithmic."""
    low, high = timings[0], timings[-1]
    if low.macs == high.macs:
        return getattr(low, key)
    share = math.log(macs / low.macs) / math.log(high.macs / low.macs)
    return getattr(low, key) ** (1 - share) * getattr(high, key) ** share


def plan_seconds(plan: Sequence[Run], seconds: Mapping[str, float], *, n_workers: int, start_seconds: float) -> float:
    """Forecasts the wall-clock time of a plan: all its work shared out, but at least its longest line of descent.

    Args:
        plan: Parents before children.
        seconds: Of each run, by id.
        n_workers: Among whom the work is shared.
        start_seconds: Until the first run starts.
    """
    if not plan:
        return 0.0
    ends: dict[str, float] = {}
    for run in plan:
        ends[run.id] = seconds[run.id] + max((ends.get(parent.id, 0.0) for parent in run.parents), default=0.0)
    return start_seconds + max(sum(seconds[run.id] for run in plan) / n_workers, max(ends.values()))


def gpu_hours(workloads: Iterable[Workload]) -> float:
    """Returns in how many hours one H200 trains what is given, several runs at a time, or fewer for large networks."""
    return sum(workload.all_macs for workload in workloads) / H200_MACS / 3600


def state_gigabytes(plan: Iterable[Run], workloads: Mapping[str, Workload]) -> float:
    """Returns what the networks take on disk that others of a plan start from; they are kept.

    Args:
        plan: With all parents.
        workloads: Of each run, by id.
    """
    parents = {parent.id for run in plan for parent in run.parents}
    return STATE_BYTES * sum(workloads[parent].n_weights for parent in parents) / 1e9


def calibrate(
    workloads: Iterable[Workload], *, device: str, n_workers: int, slots: int, seconds: float = SECONDS
) -> Calibration:
    """Measures this machine.

    Args:
        workloads: Of the runs whose time is asked for.
        device: "cpu" or "cuda".
        n_workers: Processes at the same time; on GPUs each has one of its own.
        slots: Runs that each of them takes in turn.
        seconds: Spent in each process, longer where steps are slow.
    """
    kinds: dict[tuple, list[Workload]] = {}
    for workload in sorted(workloads, key=lambda workload: workload.macs):
        kinds.setdefault(workload.kind, []).append(workload)
    networks = [each for own in kinds.values() for each in {end.macs: end for end in (own[0], own[-1])}.values()]
    devices = [f"cuda:{number}" if device == "cuda" else device for number in range(n_workers)]
    started = time.time()
    measure = partial(_measure, networks, slots=slots, seconds=seconds / len(networks))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(n_workers, spawn, initializer=interrupts.end_silently) as pool:
        with interrupts.held_back():
            answers = pool.map(measure, devices)
        began, measured = zip(*answers, strict=True)
    timings: dict[tuple, list[Timing]] = {}
    for network, *several in zip(networks, *measured, strict=True):
        step, test = (statistics.mean(getattr(timing, key) for timing in several) for key in ("step", "test"))
        timings.setdefault(network.kind, []).append(Timing(network.macs, step, test))
    return Calibration(timings, start_seconds=statistics.mean(began) - started)


def _measure(networks: Sequence[Workload], device: str, *, slots: int, seconds: float) -> tuple[float, list[Timing]]:
    """Returns when this process was ready, and the timings of networks, each taken in so many seconds."""
    began = time.time()
    if device == "cpu":
        torch.set_num_threads(1)
    torch.backends.cudnn.deterministic = True  # as in training
    return began, [_time(network, torch.device(device), slots=slots, seconds=seconds) for network in networks]


def _time(network: Workload, device: torch.device, *, slots: int, seconds: float) -> Timing:
    """Times as many networks as take turns on a device, all alike; a step is its share of a round."""
    n_images = max(1, MEASURED_PIXELS // network.image_size**2)
    if device.type == "cpu":
        n_images = min(n_images, max(2, int(MEASURED_MACS / network.macs)))
    few = replace(network, batch_size=min(network.batch_size, n_images))
    dataset = _noise(few).to(device)
    precision = best_precision(device.type, network.model)
    models = [
        build_model(
            network.model,
            num_classes=network.num_classes,
            in_channels=network.in_channels,
            image_size=network.image_size,
            width=network.width,
        ).to(device, memory_format=torch.channels_last)
        for _ in range(slots)
    ]
    trainings = [_steps(model, dataset, few, precision=precision) for model in models]

    def spend(n_rounds: int) -> float:
        """Returns the seconds that rounds take, a step of each network in turn, the last one's end awaited."""
        started = time.perf_counter()
        for training in trainings * n_rounds:
            next(training)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    spend(N_WARM_UP + 1 if can_capture(device) else 1)
    n_rounds = max(1, int(seconds / spend(1)))
    step_seconds = spend(n_rounds) / n_rounds / slots * network.batch_size / few.batch_size
    started = time.perf_counter()
    evaluate(models[0], dataset, precision=precision)
    return Timing(network.macs, step_seconds, (time.perf_counter() - started) / dataset.n_test)


@in_turns
def _steps(model: nn.Module, dataset: Dataset, network: Workload, *, precision: str) -> Turns[None]:
    """Trains a network without end, a step a turn."""
    optimizer = build_optimizer(model, optimizer=network.optimizer, momentum=0.9, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    batches = dataset.train_batches(batch_size=network.batch_size, augment=True, generator=generator)
    stepper = Stepper(model, optimizer, batches, precision=precision)
    for step in itertools.count():
        stepper.step(step)
        yield


def _noise(network: Workload) -> Dataset:
    n_images, size = 2 * network.batch_size, network.image_size
    images = torch.randint(256, (n_images, size, size, network.in_channels), dtype=torch.uint8)
    labels = torch.arange(n_images) % network.num_classes
    names = tuple(map(str, range(network.num_classes)))
    return Dataset("noise", images, labels, images, labels, names, flip=False, source="noise", sha256="")
