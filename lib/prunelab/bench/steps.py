"""What a training step takes, within this process and on one thread where there is no GPU."""

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from prunelab import cost, data, latency, workers
from prunelab.precision import PRECISIONS, best_precision
from prunelab.recipes.common import dataset_of, layers_of, network_of
from prunelab.recipes.masking import build_method
from prunelab.recipes.rigl.plan import RigLOptions
from prunelab.steps import N_WARM_UP as STEPS_BEFORE_CAPTURE
from prunelab.steps import Stepper, build_optimizer
from prunelab.turns import own_stream

UPDATE_EVERY = 100  # steps between two mask updates; one round has one
N_WARM_UP = STEPS_BEFORE_CAPTURE + 1
N_STEPS = 10
# The operations of a step, by the beginnings of their names; the first that fits counts.
OPERATIONS = {
    "convolution": ("aten::convolution_backward", "aten::mkldnn_convolution", "aten::cudnn_convolution"),
    "normalisation": ("aten::native_batch_norm", "aten::cudnn_batch_norm"),
    "activation": ("aten::threshold_backward", "aten::clamp_min", "aten::relu"),
}


@contextmanager
def as_in_training() -> Iterator[None]:
    """Gives one thread, and on a GPU a stream that can be captured."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with own_stream(torch.device(_device())) as stream, stream:
            yield
    finally:
        torch.set_num_threads(before)


@as_in_training()
def method_ratios(images: dict) -> tuple[float, float]:
    """Compares masked with dense steps of ResNet-20, and RigL with static for equally many, taking turns each step."""
    # What masks cost does not depend on the batch: a small one shows it best, but a GPU must be kept busy.
    options = {"batch_size": 128 if _device() == "cuda" else 16}
    sides = {method: _stepper(images, method=method, **options) for method in ("dense", "static", "rigl")}
    spent = _in_turn(sides, n_steps=UPDATE_EVERY)
    dense, static, rigl_step = (statistics.median(seconds) for seconds in spent.values())
    # Of RigL's steps one, the slowest, has the mask update before it, which takes another batch.
    moving = (UPDATE_EVERY - 1) * rigl_step + max(spent["rigl"])
    return static / dense, moving / (UPDATE_EVERY * static)


def gain(images: dict, first: dict, second: dict) -> float:
    """Compares a step under some options of `_stepper` with one under others.

    Args:
        images: Options of a run: its images, and its network where that is not ResNet-20.
        first, second: Of either side.
    """
    return _gain({"first": _stepper(images, **first), "second": _stepper(images, **second)})


def share_of_limit(images: dict) -> float:
    """Returns the FLOP/s of ResNet-20's training over those of a large matrix product in the same precision."""
    device = _device()
    precision = best_precision(device, "resnet20") if device == "cuda" else "fp32"
    side = 8192 if device == "cuda" else 1024
    factor = torch.randn(side, side, device=device, dtype=PRECISIONS[precision][0])

    def multiply(step: int) -> None:
        _ = float((factor @ factor)[0, 0])

    options = RigLOptions(method="dense")
    dataset = data.load(images["dataset"], n_train=images["n_train"])
    macs = 3 * options.batch_size * cost.total(layers_of(options, dataset, 1.0), "macs")
    return macs / side**3 * _gain({"product": multiply, "step": _stepper(images, precision=precision)})


@as_in_training()
def milliseconds(image_size: int) -> float:
    """Times a step of ResNet-20 on 128 images, as the engine would take it."""
    dataset = "glyphs" if image_size <= 16 else "cifar10"
    images = {"dataset": dataset, "image_size": image_size, "n_train": 512, "in_colour": True}
    step = _stepper(images, precision=best_precision(_device(), "resnet20"))
    return 1e3 * statistics.median(_in_turn({"step": step}, n_steps=N_STEPS)["step"])


@as_in_training()
def profile(images: dict) -> dict[str, float]:
    """Returns the shares of the time of ResNet-20's step under a static mask that its operations take."""
    step = _stepper(images, method="static", precision=best_precision(_device(), "resnet20"))
    _in_turn({"step": step}, n_steps=1)
    with torch.profiler.profile() as profiler:
        step(N_WARM_UP)
    key = "self_device_time_total" if _device() == "cuda" else "self_cpu_time_total"
    spent = dict.fromkeys([*OPERATIONS, "all else"], 0.0)
    for event in profiler.key_averages():
        fitting = (name for name, starts in OPERATIONS.items() if event.key.startswith(starts))
        spent[next(fitting, "all else")] += getattr(event, key)
    return {name: round(value / sum(spent.values()), 3) for name, value in spent.items()}


def _device() -> str:
    return workers.resolve_device("auto")


@as_in_training()
def _gain(sides: dict[str, Callable[[int], None]]) -> float:
    """Divides the median step of the first side by that of the second."""
    first, second = (statistics.median(seconds) for seconds in _in_turn(sides, n_steps=N_STEPS).values())
    return first / second


def _in_turn(sides: dict[str, Callable[[int], None]], *, n_steps: int) -> dict[str, list[float]]:
    """Returns the seconds of each step of each side, after some to warm up."""
    return latency.in_turn(sides, n_rounds=n_steps, n_warm_up=N_WARM_UP)


def _stepper(
    images: dict,
    *,
    method: str = "dense",
    batch_size: int = 128,
    precision: str = "fp32",
    layout: torch.memory_format = torch.channels_last,
    is_captured: bool = True,
) -> Callable[[int], None]:
    """Returns what takes one optimizer step, preceded by a mask update where one is due, and waits for its end."""
    device = torch.device(_device())
    options = RigLOptions(
        **images, method=method, batch_size=batch_size, update_every=UPDATE_EVERY, decay="constant", stop_update=1.0
    )
    dataset = dataset_of(options, str(device))
    batches = dataset.train_batches(batch_size=batch_size, augment=True, generator=torch.Generator().manual_seed(0))
    model = network_of(options, dataset, width=1.0).to(device, memory_format=layout).train()
    optimizer = build_optimizer(model, optimizer=options.optimizer, momentum=0.9, weight_decay=5e-4)
    masking = build_method(options, model, None, dataset, n_epochs=1000, seed=0)
    if layout is torch.contiguous_format:
        batches.current = lambda current=batches.current: tuple(part.contiguous() for part in current())
    stepper = Stepper(model, optimizer, batches, method=masking, precision=precision)
    if not is_captured:
        stepper.n_until_capture = -1

    def take_step(step: int) -> None:
        while not stepper.step(step):
            pass
        float(stepper.loss_sum)  # waits for a GPU

    return take_step
