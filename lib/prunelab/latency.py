"""What a network costs when it runs: measured seconds of a forward pass, and bytes on disk. Counts are in `cost`."""

import copy
import io
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from prunelab.shadows import Size, precision_of, sides

N_WARM_UP = 3  # rounds before the measured ones: kernels are chosen and memory is allocated in them


class Spread(NamedTuple):
    """Quartiles of what the rounds gave."""

    low: float
    median: float
    high: float


@dataclass(frozen=True)
class Latency:
    """How long a forward pass of one batch takes.

    Attributes:
        seconds: One entry a round, in order.
    """

    seconds: tuple[float, ...]

    def spread(self) -> Spread:
        """Returns the quartiles of the seconds."""
        return _spread(self.seconds)

    def speed_up_over(self, other: "Latency") -> Spread:
        """Returns the quartiles of how many times as fast this network is as another one of the same `compare`.

        A ratio is taken within each round, so that a machine that slows down between rounds changes none.
        """
        return _spread(theirs / ours for ours, theirs in zip(self.seconds, other.seconds, strict=True))


def _spread(values: Iterable[float]) -> Spread:
    return Spread(*statistics.quantiles(values, n=4, method="inclusive"))


def measure(model: nn.Module, *, batch_size: int, in_channels: int, image_size: Size, n_rounds: int) -> Latency:
    """Times a single network; all else as for `compare`."""
    return compare(
        {"model": model}, batch_size=batch_size, in_channels=in_channels, image_size=image_size, n_rounds=n_rounds
    )["model"]


@torch.no_grad()
def compare(
    models: Mapping[str, nn.Module],
    *,
    batch_size: int,
    in_channels: int,
    image_size: Size,
    n_rounds: int,
) -> dict[str, Latency]:
    """Times networks in turn, round by round, so that a machine that slows down slows all of them.

    A turn is one forward pass in evaluation mode, channels last as in training, on as many threads as PyTorch is set
    to use. A GPU is waited for; on small networks it is launching its work that takes the time.

    Args:
        models: By name, each on the device where it is timed; left as they are, copies run.
        batch_size: Images a pass.
        in_channels: Channels of the images.
        image_size: Their height and width in pixels; one number for both.
        n_rounds: How often each network is timed.
    Returns:
        The latency of each network, with `n_rounds` entries.
    Raises:
        ValueError: Fewer than two rounds, or a network without numbers, on the meta device, that takes no time.
    """
    if n_rounds < 2:
        raise ValueError(f"n_rounds must be at least 2, a single one has no spread; got {n_rounds}")
    for name, model in models.items():
        _check_numbers(name, model)
    copies = {name: copy.deepcopy(model).eval().to(memory_format=torch.channels_last) for name, model in models.items()}
    # Noise, for a GPU draws less power on zeros, and runs faster.
    shape = (batch_size, in_channels, *sides(image_size))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)

    def forward(model: nn.Module, images: torch.Tensor, _round: int) -> None:
        model(images)
        if images.is_cuda:
            torch.cuda.synchronize(images.device)

    passes = {
        name: partial(forward, model, noise.to(next(model.parameters()).device, precision_of(model)))
        for name, model in copies.items()
    }
    seconds = in_turn(passes, n_rounds=n_rounds, n_warm_up=N_WARM_UP)
    return {name: Latency(tuple(spent)) for name, spent in seconds.items()}


def _check_numbers(name: str, model: nn.Module) -> None:
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(f"network {name!r} is on the meta device, without numbers; put it on a device that computes")


def in_turn(sides: Mapping[str, Callable[[int], None]], *, n_rounds: int, n_warm_up: int) -> dict[str, list[float]]:
    """Returns the seconds that each side takes each round, after some rounds to warm up; sides are told the round."""
    spent: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(n_warm_up + n_rounds):
        for name, side in sides.items():
            started = time.perf_counter()
            side(number)
            spent[name].append(time.perf_counter() - started)
    return {name: seconds[n_warm_up:] for name, seconds in spent.items()}


def n_bytes(model: nn.Module) -> int:
    """Counts the bytes of the file in which `torch.save` stores a network's state; zeroed weights are in it.

    Raises:
        ValueError: A network without numbers, on the meta device, of which there is nothing to be stored.
    """
    _check_numbers("model", model)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return len(file.getbuffer())
