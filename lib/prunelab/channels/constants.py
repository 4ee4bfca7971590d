"""Channels that tell nothing of the image, taken out of a network for good, which computes what it did.

A filter without an active weight writes a constant, and batch normalisation shifts it: rarely is it zero. `dead` counts
such filters; `surgery.shrink` drops what they write as if it were zero. Here it is worked out, at every position of the
image, and what a layer makes of it is added to that layer's output: a bias, or where the edge of the image differs, a
map. Channels that no active weight reads go as well, and with them all that only they needed: in a vision transformer
hidden units, and heads as a whole where the masks of `scores` leave nothing that reads them.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunelab.channels.surgery import shrink
from prunelab.channels.trace import Layer, Trace, UntraceableError, trace
from prunelab.models.layers import Select


class AddMap(nn.Module):
    """Adds the same numbers, (1, c, h, w), to each image."""

    values: Tensor

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.values


@torch.no_grad()
def without_constants(model: nn.Module, *, in_channels: int, image_size: int) -> nn.Module:
    """Copies a network without the channels that tell its outputs nothing: constants, and those that nothing reads.

    Of a layer all of whose channels are such, one stays. So do channels of a residual stream that any layer needs
    anywhere, and those that a convolution of several groups, a transposed one, or one of other than two dimensions
    reads or writes.

    Args:
        model: Its pruned weights are zeros; left as it is.
        in_channels: Channels of the images.
        image_size: Their height and width in pixels; the copy takes no other.
    Returns:
        A network of the same outputs, up to rounding, in evaluation mode.
    Raises:
        UntraceableError: See `trace`; or outputs would differ, as an operation, such as a comparison, has lost sight of
            what depends on the image.
    """
    given, model = model, copy.deepcopy(model).eval()
    image = {"in_channels": in_channels, "image_size": image_size}
    traced, inputs = trace(model, **image), _known_inputs(model, **image)
    needed = _needed(traced, inputs)
    gone = _gone(traced, needed)
    kept, added = {}, {}
    for name, layer in traced.layers.items():
        writes = [channel not in gone for channel in traced.channels(layer.writes)]
        if layer.makes_channels:
            kept[name] = [position for position, stays in enumerate(writes) if stays]
        if _mixes(name, layer, inputs):
            module, known = model.get_submodule(name), inputs[name].nan_to_num()
            is_unneeded = torch.tensor([channel not in needed for channel in traced.channels(layer.reads)])
            _channels_second(module, known)[:, ~is_unneeded] = 0.0
            values = module(known) - module(torch.zeros_like(known))
            added[name] = _channels_second(module, values)[:, writes]
            module.weight[:, is_unneeded] = 0.0
    smaller = shrink(model, kept, **image)
    for name, values in added.items():
        _add(smaller, name, values)
    noise = torch.randn(1, in_channels, image_size, image_size, generator=torch.Generator().manual_seed(0))
    images, complete = noise.to(next(model.parameters())), copy.deepcopy(given).eval()
    for one, other in zip(tree_leaves(smaller(images)), tree_leaves(complete(images)), strict=True):
        if torch.allclose(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()), equal_nan=True):
            continue
        raise UntraceableError(
            f"without what seems to be constant {type(given).__name__} would give other outputs: its forward pass hides"
            " what depends on the image, as a comparison does"
        )
    return smaller


def _channels_second(module: nn.Module, x: Tensor) -> Tensor:
    """Returns a view of what a layer reads or writes, (n, c, ...); those of a linear layer are last."""
    return x.movedim(-1, 1) if isinstance(module, nn.Linear) else x


def _known_inputs(model: nn.Module, *, in_channels: int, image_size: int) -> dict[str, Tensor]:
    """What each convolution and linear layer reads, if nothing is known of the image: NaN where it depends on it."""
    inputs: dict[str, Tensor] = {}
    hooks = []
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            hooks.append(layer.register_forward_hook(_ignoring_zeros(name, layer, inputs)))
    weight = next(model.parameters())
    model(weight.new_full((1, in_channels, image_size, image_size), torch.nan))
    for hook in hooks:
        hook.remove()
    return inputs


def _ignoring_zeros(name: str, layer: nn.Module, inputs: dict[str, Tensor]) -> Callable[..., Tensor]:
    """A hook by which a layer's output is NaN only where a weight that is not zero meets a NaN; it keeps the input."""
    reach = copy.deepcopy(layer)
    reach.weight.copy_(layer.weight != 0)
    if reach.bias is not None:
        reach.bias.zero_()

    def hook(layer: nn.Module, given: tuple[Tensor], output: Tensor) -> Tensor:
        (x,) = given
        inputs[name] = x.where(x == inputs.get(name, x), torch.nan)  # of a layer that is used twice what is the same
        return layer.forward(x.nan_to_num()).masked_fill(reach(x.isnan().to(x.dtype)) > 0, torch.nan)

    return hook


def _mixes(name: str, layer: Layer, inputs: dict[str, Tensor]) -> bool:
    """Whether it is a convolution or linear layer whose filters read all its input channels, which are known."""
    return layer.makes_channels and not layer.is_grouped and name in inputs


def _needed(traced: Trace, inputs: dict[str, Tensor]) -> set[int]:
    """The channels that are fixed, or of which an active weight of a needed filter reads more than a constant."""
    needed = set(traced.channels(traced.fixed))
    for name, layer in traced.layers.items():
        if layer.makes_channels and not _mixes(name, layer, inputs) and not isinstance(layer.module, Select):
            needed.update(traced.channels(torch.cat([layer.reads, layer.writes])))
    n_before = 0
    while n_before < len(needed):  # once, but for layers that are used again
        n_before = len(needed)
        for name, layer in reversed(traced.layers.items()):
            reads, writes = traced.channels(layer.reads), traced.channels(layer.writes)
            is_needed = [channel in needed for channel in writes]
            if isinstance(layer.module, Select):
                sources = layer.module.indices.tolist()
                needed.update(reads[i] for i, is_so in zip(sources, is_needed, strict=True) if is_so)
            elif _mixes(name, layer, inputs):
                is_unknown = _channels_second(layer.module, inputs[name]).isnan().transpose(0, 1).flatten(1).any(dim=1)
                is_read = (layer.module.weight[is_needed] != 0).transpose(0, 1).flatten(1).any(dim=1) & is_unknown
                needed.update(channel for channel, is_so in zip(reads, is_read.tolist(), strict=True) if is_so)
    return needed


def _gone(traced: Trace, needed: set[int]) -> set[int]:
    """All channels that are not needed, but one of each layer that would have none."""
    makers = [layer for layer in traced.layers.values() if layer.makes_channels]
    gone = {channel for layer in makers for channel in traced.channels(layer.writes)} - needed
    for layer in makers:
        first, *_ = writes = traced.channels(layer.writes)
        if gone.issuperset(writes):
            gone.discard(first)
            if isinstance(layer.module, Select):
                gone.discard(traced.channel(int(layer.reads[layer.module.indices[0]])))
    return gone


def _add(model: nn.Module, name: str, values: Tensor) -> None:
    """Lets a layer add `values`, (n, out, ...), to its output."""
    layer, same = model.get_submodule(name), values.transpose(0, 1).flatten(1)
    if (same != same[:, :1]).any():
        values = values.movedim(1, -1) if isinstance(layer, nn.Linear) else values
        model.set_submodule(name, nn.Sequential(layer, AddMap(values)))
    elif same.any():
        layer.bias = nn.Parameter(same[:, 0] if layer.bias is None else layer.bias + same[:, 0])
