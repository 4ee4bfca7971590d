"""Tensors of names, of the shape of what they name, with stride 0 along the axes on which nothing changes."""

from collections.abc import Sequence

import torch
from torch import Tensor


def varying(names: Tensor) -> set[int]:
    """Returns the axes along which names change."""
    return {axis for axis, (n, step) in enumerate(zip(names.shape, names.stride(), strict=True)) if n > 1 and step}


def core(names: Tensor) -> Tensor:
    """Takes the first position of each axis along which names do not change."""
    axes = varying(names)
    return names[tuple(slice(None) if axis in axes else slice(1) for axis in range(names.dim()))]


def compact(names: Tensor) -> Tensor:
    """Gives stride 0 to each axis along which names do not change."""
    for axis in varying(names):
        first = names.narrow(axis, 0, 1)
        if torch.equal(names, first.expand_as(names)):
            names = first.expand_as(names)
    return names


def spread(names: Tensor, axis: int, shape: Sequence[int]) -> Tensor:
    """Lays names along one axis of a shape."""
    return names.view([-1 if other == axis else 1 for other in range(len(shape))]).expand(shape)


def positions(names: Tensor, axis: int) -> Tensor:
    """Returns the names that stand at each position of an axis, (n, others)."""
    return core(names).movedim(axis, 0).flatten(1) if names.dim() > 1 else core(names).unsqueeze(1)


def shared(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Leaves out the axes along which neither changes."""
    axes = varying(one) | varying(other)
    index = tuple(slice(None) if axis in axes else slice(1) for axis in range(one.dim()))
    return one[index], other[index]


def parted(names: tuple[Tensor, ...], axis: int) -> tuple[list[Tensor], list[Tensor]]:
    """Tells the names along an axis, and the others."""
    along = on(names, axis)
    return along, [each for each in names if all(each is not other for other in along)]


def on(names: tuple[Tensor, ...], axis: int) -> list[Tensor]:
    """Returns the names that change along an axis; where none does, the last of those that do not change at all."""
    return [each for each in names if axis in varying(each)] or [each for each in names if not varying(each)][-1:]
