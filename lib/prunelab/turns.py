"""Trainings that take turns in one thread: each pauses after a step, and gives the numbers that it gives alone.

What a training shares with others is put in its place for each turn: the global random generators, from which dropout
draws, and on a GPU the stream, so that the kernels of several small networks fill the card.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import TypeVar

import torch
from torch import nn

T = TypeVar("T")
Turns = Generator[None, None, T]  # pauses after each turn, and returns a result


def in_turns(work: Callable[..., Turns[T]]) -> Callable[..., Turns[T]]:
    """Lets generators that are called with a model on some device take turns in one thread.

    Each draws from global generators of its own, which are at first as they are when `work` is called, and on a GPU
    launches on a stream of its own. Whoever takes turns has nothing to put in place.
    """

    @wraps(work)
    def started(model: nn.Module, *args, **options) -> Turns[T]:
        device = next(model.parameters()).device
        return _take_turns(work(model, *args, **options), GlobalGenerators(device), device)

    return started


def _take_turns(turns: Turns[T], generators: "GlobalGenerators", device: torch.device) -> Turns[T]:
    with own_stream(device) as stream:
        while True:
            with stream, generators:
                try:
                    next(turns)
                except StopIteration as end:
                    return end.value
            yield


def exhaust(turns: Turns[T]) -> T:
    """Takes all turns, one after another, and returns the result."""
    while True:
        try:
            next(turns)
        except StopIteration as end:
            return end.value


class GlobalGenerators:
    """The global random generators as one training has them: a context, to be entered for each of its turns.

    What draws after a turn goes on from where they are, as after a training that ran alone.
    """

    def __init__(self, device: torch.device) -> None:
        """Takes over the generators as they are now: the CPU's, and on a GPU also that of `device`."""
        self._cpu = torch.get_rng_state()
        self._of_gpu = torch.cuda.default_generators[device.index] if device.type == "cuda" else None
        self._gpu = self._of_gpu.clone_state() if self._of_gpu else None

    def __enter__(self) -> None:
        torch.set_rng_state(self._cpu)
        if self._of_gpu:  # swapped, not copied: a captured step goes on drawing from what it was captured with
            self._of_gpu.graphsafe_set_state(self._gpu)

    def __exit__(self, *_: object) -> None:
        self._cpu = torch.get_rng_state()
        if self._of_gpu:  # whoever seeds it now must not seed this training's
            self._of_gpu.graphsafe_set_state(self._gpu.clone_state())


@contextmanager
def own_stream(device: torch.device) -> Iterator[AbstractContextManager]:
    """Gives a context, to be entered any number of times, whose work is launched on a stream of its own.

    It begins after what was launched before, and what is launched after it waits for its end. A step can be captured
    only there, not on the default stream. On a CPU nothing changes.
    """
    if device.type != "cuda":
        yield nullcontext()
        return
    outside, inside = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    inside.wait_stream(outside)
    try:
        yield torch.cuda.stream(inside)
    finally:  # after an error too: memory that is freed now is still being written
        outside.wait_stream(inside)


def until_done(device: torch.device) -> Iterator[None]:
    """Pauses until a GPU has done what was launched so far on this stream, so that reading it keeps nobody waiting."""
    if device.type == "cuda":
        event = torch.cuda.Event()
        event.record()
        while not event.query():
            yield
