"""Channels that a mask has cut off: filters without an active weight, and inputs that nothing reads or nothing writes.

Source: Iofinova et al. 2022, arXiv:2111.13445, on the share of channels that are pruned as a whole.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunelab.channels.trace import trace
from prunelab.models.layers import Select


def dead_filters(mask: Tensor) -> Tensor:
    """Tells which filters of a layer have no active weight, bool (out,); `mask` is its own, (out, in, ...)."""
    return ~mask.flatten(1).any(dim=1)


def unread_inputs(mask: Tensor, *, n_groups: int = 1) -> Tensor:
    """Tells for which input channels of a layer no weight is active.

    Args:
        mask: Bool, (out, in / groups, ...).
        n_groups: Groups of a convolution, whose filters each read the channels of their group only.
    Returns:
        Bool (in,).
    """
    by_group = mask.flatten(2) if mask.dim() > 2 else mask.unsqueeze(2)
    return ~by_group.unflatten(0, (n_groups, -1)).any(dim=3).any(dim=1).flatten()


def channel_table(
    model: nn.Module, masks: Mapping[str, Tensor], *, in_channels: int, image_size: int
) -> list[dict[str, str | int]]:
    """Counts the filters and input channels of each layer, and those of them that are dead.

    A filter is dead if none of its weights is active. An input channel is dead if no active weight of the layer reads
    it, or if every filter that has written to it is dead, in a residual stream those of all blocks so far: it may still
    be a constant, the shift of batch normalisation, but tells nothing of the image.

    Args:
        model: Any network that `trace` can follow.
        masks: Bool, by layer name; of a layer that is not named all weights are active.
        in_channels: Channels of the images.
        image_size: Their height and width in pixels.
    Returns:
        One dict for each convolution and linear layer in the order in which they run, depthwise ones left out, whose
        channels are those of the layer before, and transposed ones and those of other than two dimensions, which have
        no masks: `layer`, `n_filters`, `n_dead_filters`, `n_inputs`, `n_dead_inputs`. Of the output layer, which has an
        output a class, filters are not counted. `cost.total` sums columns.
    Raises:
        UntraceableError: See `trace`.
        ValueError: A mask that fits no such layer.
    """
    traced = trace(model, in_channels=in_channels, image_size=image_size)
    layers = {
        name: layer
        for name, layer in traced.layers.items()
        if layer.makes_channels and isinstance(layer.module, nn.Conv2d | nn.Linear)
    }
    for name, mask in masks.items():
        if name not in layers or layers[name].module.weight.shape != mask.shape:
            raise ValueError(f"mask {name!r} of shape {tuple(mask.shape)} fits no layer of {type(model).__name__}")
    fixed = set(traced.channels(traced.fixed))
    live = set(fixed)  # images, and what anything but a dead filter has written so far
    rows = []
    for name, layer in traced.layers.items():
        reads, writes = traced.channels(layer.reads), traced.channels(layer.writes)
        if isinstance(layer.module, Select):
            live.update(new for new, i in zip(writes, layer.module.indices.tolist(), strict=True) if reads[i] in live)
        elif layer.makes_channels and name not in layers:
            live.update(writes)
        if name not in layers:
            continue
        mask = masks.get(name, torch.ones(layer.module.weight.shape, dtype=torch.bool))
        is_dead = dead_filters(mask).tolist()
        is_unread = unread_inputs(mask, n_groups=getattr(layer.module, "groups", 1)).tolist()
        n_dead_inputs = sum(unread or channel not in live for unread, channel in zip(is_unread, reads, strict=True))
        live.update(channel for channel, dead in zip(writes, is_dead, strict=True) if not dead)
        is_output = fixed.issuperset(writes)
        rows.append(
            {
                "layer": name,
                "n_filters": 0 if is_output else len(writes),
                "n_dead_filters": 0 if is_output else sum(is_dead),
                "n_inputs": len(reads),
                "n_dead_inputs": n_dead_inputs,
            }
        )
    return rows
