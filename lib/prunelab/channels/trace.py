"""Which layers share which channels, read off one forward pass of a network without numbers.

Every output channel of a layer has a name of its own, which is carried along to whoever reads it. Where two tensors are
added or multiplied, a channel of one and its partner become the same channel: one cannot go without the other. So a
residual stream is one set of channels that many layers write, a concatenation is a row of channels of several layers,
and what a layer reads is a list of names. `following` has what each operation does to them.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from prunelab.channels.calls import Parting
from prunelab.channels.cutting import cut
from prunelab.channels.following import Follower
from prunelab.channels.known import LAYERS
from prunelab.channels.names import NORMS, Layer, Trace
from prunelab.channels.prefix import ordinary
from prunelab.shadows import Size, as_given, images_for, without_numbers

__all__ = ["NORMS", "Layer", "Trace", "UntraceableError", "differing", "followed", "trace"]


class UntraceableError(ValueError):
    """A network whose channels cannot be followed; says what is in the way, and what to do.

    Attributes:
        module: The name of the module that ran.
    """

    module = ""


def trace(model: nn.Module, *, in_channels: int, image_size: Size) -> Trace:
    """Follows the channels of a network through one forward pass, in which no number is computed.

    A network that was compiled or made parallel is followed as the one inside. Where the forward pass takes channels
    apart by numbers that are written down in it, as in `split(x, [16, 16], dim=1)`, these channels are fixed.

    Args:
        model: Takes images (n, c, h, w); left as it is. A slimmable one is followed at all its channels.
        in_channels: Channels of the images.
        image_size: Their height and width in pixels; one number for both.
    Raises:
        UntraceableError: The forward pass depends on the values of tensors.
        ValueError: Weights are no parameters but made of others; see `shadows.as_given`.
    """
    model = as_given(model)
    shadow, images = ordinary(without_numbers(model)), images_for(model, in_channels, image_size)
    traced, partings = followed(shadow, images)
    is_sure = not partings and not any(map(_has_sizes_of_its_own, shadow.modules()))
    while not is_sure and (trouble := _trouble(shadow, traced, images)):
        place, module = trouble
        free = [each for each in partings if each.n_layers <= place and not traced.are_fixed(each.names)]
        if free:
            for each in partings:
                if each is free[-1] or (each.attention and each.attention is free[-1].attention):  # the same code
                    traced.fix(each.names, f"{each.where} takes them apart by numbers that are written down there")
        elif (
            module
            and _has_sizes_of_its_own(shadow.get_submodule(module))
            and not traced.are_fixed(own := traced.names_of(module))
        ):
            traced.fix(own, f"{module!r} has sizes of its own that are written down there")
        else:
            break
    for name, layer in traced.layers.items():
        layer.module = model.get_submodule(name)
    return traced


def followed(shadow: nn.Module, images: Tensor, onto: Trace | None = None) -> tuple[Trace, list[Parting]]:
    """Follows a network without numbers; where parts of it are idle, once more as it trains.

    Raises:
        UntraceableError: Its forward pass fails, or depends on the values of tensors.
    """
    traced = onto or Trace()
    follower = Follower(shadow, traced)
    known = follower.known
    try:
        for is_training in (False, True):
            if not is_training or known.idle:
                shadow.train(is_training)
                follower.follow(images)
    except Exception as error:
        untraceable = UntraceableError(
            f"the forward pass of {type(shadow).__name__} cannot be traced: {error} (at {known.at}; the last shape"
            f" was given by {known.shaped}). Its course must not depend on the values of tensors, nor shapes on"
            " numbers that are written down"
        )
        untraceable.module = known.running[-1]
        raise untraceable from error
    finally:
        shadow.eval()
    return traced, known.partings


def _has_sizes_of_its_own(module: nn.Module) -> bool:
    """Whether a module has parameters and is none of those whose sizes are known."""
    is_known = isinstance(module, (*LAYERS, nn.PReLU, nn.LayerNorm, nn.Embedding))
    return not is_known and any(True for _ in module.parameters(recurse=False))


def _trouble(shadow: nn.Module, traced: Trace, images: Tensor) -> tuple[int, str] | None:
    """Takes half of the channels out that may go, and sees whether this goes wrong.

    Returns:
        Before which layer, and the name of the module that failed, if it did; None if nothing goes wrong.
    """
    free = [traced.layers[name].writes for name in traced.widths] + [traced.attentions[name] for name in traced.heads]
    gone = {channel for names in free for channel in traced.channels(names[: len(names) // 2])}
    smaller, found = cut(shadow, traced, gone), Trace()
    try:
        followed(smaller, images, found)
    except UntraceableError as error:
        return len(found.layers), error.module
    place = differing(traced, gone, found)
    return None if place is None else (place, "")


def differing(traced: Trace, gone: set[int], found: Trace) -> int | None:
    """Compares the channels of a network with those of the smaller one that was cut out of it.

    Returns:
        The place of the first layer that reads or writes other channels than those that are left; None if none does.
    """
    stays, nothing = traced.staying(gone), Layer(nn.Identity(), *torch.empty(2, 0, dtype=torch.long, device="cpu"))
    traced = replace(traced, _joined=[*traced._joined], _found=None)
    found = replace(found, _joined=[*found._joined], _found=None)
    both, end = [], None  # names here and there, and the place of their layer; where they are not as many
    for place, (name, layer) in enumerate(traced.layers.items()):
        other = found.layers.get(name, nothing)
        reads, writes = layer.reads[stays[layer.reads]], layer.writes[stays[layer.writes]]
        if (len(reads), len(writes)) != (len(other.reads), len(other.writes)):
            end = place
            break
        both += [(reads, other.reads, place), (writes, other.writes, place)]
        if layer.is_grouped and other.is_depthwise:  # with one channel in each group, or in all, it is of another kind
            traced.join(reads, writes)
        elif layer.is_depthwise and not other.is_depthwise:
            found.join(other.reads, other.writes)
    for heads in traced.attentions.values():
        alone = traced.numbered(heads[stays[heads]])
        if len(alone) == 1:  # the channels of one that is left are followed as such
            its = torch.cat([others[traced.numbered(names) == alone] for names, others, _ in both])
            found.join(its[:1], its)
    pairs = [
        torch.stack([traced.numbered(names), found.numbered(others), torch.full_like(names, place)])
        for names, others, place in both
    ]
    if pairs:
        one, other, places = torch.cat(pairs, dim=1)
        is_wrong = (_first_beside(one, other) != other) | (_first_beside(other, one) != one)
        end = int(places[is_wrong].min()) if is_wrong.any() else end
    return end


def _first_beside(keys: Tensor, values: Tensor) -> Tensor:
    """Returns for each key the value beside its first occurrence."""
    places = torch.arange(len(keys), device=keys.device)
    firsts = keys.new_full((int(keys.max()) + 1,), len(keys)).scatter_reduce(0, keys, places, "amin")
    return values[firsts[keys]]
