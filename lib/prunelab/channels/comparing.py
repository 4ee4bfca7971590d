"""Whether a smaller network computes what the larger one does without the channels that went, step by step."""

from dataclasses import replace
from itertools import zip_longest

import torch
from torch import Tensor

from prunelab.channels.names import Trace


def differing(traced: Trace, gone: set[int], found: Trace) -> int | None:
    """Compares the operations of a network with those of the smaller one that was cut out of it.

    Returns:
        The place of the first operation that is another one, with other numbers, or is given other channels than those
        that are left; None if none is.
    """
    stays = traced.staying(gone)
    traced = replace(traced, _joined=[*traced._joined], _found=None)
    found = replace(found, _joined=[*found._joined], _found=None)
    _join_as_kinds_change(traced, found, stays)
    its, theirs, inside = _heads_left_alone(traced, found, stays)
    are_compared = _compared(traced, its), _compared(found, theirs)
    both, end = [torch.empty(3, 0, dtype=torch.long, device="cpu")], None
    for place, (step, other) in enumerate(zip_longest(traced.steps, found.steps)):
        if not step or not other or (step.func, step.numbers) != (other.func, other.numbers):
            end = place
            break
        if step.where.endswith(inside):
            continue
        rows = traced.numbered(step.names[stays[step.names]]), found.numbered(other.names)
        # What is flattened has a channel several times, but once where it is the only one.
        one, two = (row[which[row]].unique_consecutive() for row, which in zip(rows, are_compared, strict=True))
        if len(one) != len(two):
            end = place
            break
        both.append(torch.stack([one, two, torch.full_like(one, place)]))
    one, two, places = torch.cat(both, dim=1)
    is_wrong = (_first_beside(one, two) != two) | (_first_beside(two, one) != one)
    return int(places[is_wrong].min()) if is_wrong.any() else end


def _join_as_kinds_change(traced: Trace, found: Trace, stays: Tensor) -> None:
    """With one channel in each group, or in all, a convolution is of another kind: its channels are one otherwise."""
    for name in found.layers.keys() & traced.layers.keys():
        layer, earlier = found.layers[name], traced.layers[name]
        reads, writes = (names[stays[names]] for names in (earlier.reads, earlier.writes))
        if layer.is_depthwise and earlier.is_grouped:
            traced.join(reads, writes)
        elif (earlier.is_depthwise or earlier.is_grouped) and not (layer.is_depthwise or layer.is_grouped):
            inputs, places = traced.axes[f"{name}.weight"][1], stays[earlier.reads].nonzero().flatten()
            traced.join(reads, inputs[places % len(inputs)])
            if earlier.is_depthwise:
                found.join(layer.reads, layer.writes)


def _heads_left_alone(traced: Trace, found: Trace, stays: Tensor) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Of attentions with one head left, which is followed as its channels: these in both, and where that is."""
    alone = {name: heads[stays[heads]] for name, heads in traced.attentions.items() if stays[heads].sum() == 1}
    its = traced.numbered(torch.cat([traced.new(0), *alone.values()]))
    theirs = [
        own[torch.isin(traced.numbered(mine[stays[mine]]), its)]
        for name in found.axes
        for mine, own in zip(traced.axes[name], found.axes[name], strict=True)
        if alone and stays[mine].sum() == len(own)
    ]
    return its, found.numbered(torch.cat([found.new(0), *theirs])), tuple(f" in {name!r}" for name in alone)


def _compared(traced: Trace, ignored: Tensor) -> Tensor:
    """Tells of each channel whether it has several names and is none of some, bool."""
    is_compared = torch.bincount(traced.numbered(traced.every)) > 1
    is_compared[ignored] = False
    return is_compared


def _first_beside(keys: Tensor, values: Tensor) -> Tensor:
    """Returns for each key the value beside its first occurrence."""
    n_keys = int(keys.max()) + 1 if len(keys) else 0
    places = torch.arange(len(keys), device=keys.device)
    return values[keys.new_full((n_keys,), len(keys)).scatter_reduce(0, keys, places, "amin")[keys]]
