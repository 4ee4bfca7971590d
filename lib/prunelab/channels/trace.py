"""Which layers share which channels, read off one forward pass of a network without numbers.

Every output channel of a layer has a name of its own, which is carried along to whoever reads it. Where two tensors are
added or multiplied, a channel of one and its partner become the same channel: one cannot go without the other. So a
residual stream is one set of channels that many layers write, a concatenation is a row of channels of several layers,
and what a layer reads is a list of names. `following` has what each operation does to them.
"""

import torch
from torch import Tensor, nn

from prunelab.channels.calls import Parting
from prunelab.channels.comparing import differing
from prunelab.channels.cutting import cut
from prunelab.channels.following import Follower
from prunelab.channels.known import LAYERS
from prunelab.channels.names import NORMS, Layer, Trace
from prunelab.channels.prefix import ordinary
from prunelab.shadows import Size, as_given, images_for, without_numbers

__all__ = ["NORMS", "Layer", "Trace", "UntraceableError", "followed", "trace"]


class UntraceableError(ValueError):
    """A network whose channels cannot be followed; says what is in the way, and what to do.

    Attributes:
        module: The name of the module that ran.
    """

    module = ""


@torch.inference_mode(False)
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
        _fix_cause(shadow, traced, partings, *trouble)
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


def _fix_cause(shadow: nn.Module, traced: Trace, partings: list[Parting], place: int, module: str) -> None:
    """Fixes what is most likely to blame for trouble at an operation, while a module runs."""
    free = [each for each in partings if each.n_steps <= place and not traced.are_fixed(each.names)]
    own = traced.names_of(module)
    if free:
        for each in partings:
            if each is free[-1] or (each.attention and each.attention is free[-1].attention):  # the same code
                traced.fix(each.names, f"{each.where} takes them apart by numbers that are written down there")
    elif module and _has_sizes_of_its_own(shadow.get_submodule(module)) and not traced.are_fixed(own):
        traced.fix(own, f"{module!r} has sizes of its own that are written down there")
    else:  # the last operation so far that is given something free, or else any
        steps = (*reversed(traced.steps[: place + 1]), *traced.steps)
        step = next(step for step in steps if not traced.are_fixed(step.names))
        traced.fix(step.names, f"{step.where} is not the same for any number of them")


def _trouble(shadow: nn.Module, traced: Trace, images: Tensor) -> tuple[int, str] | None:
    """Takes some of the channels out that may go, the first half or others, and sees whether this goes wrong.

    Returns:
        The place of the operation that is given other channels then, or fails, and the name of the module that failed;
        None if nothing goes wrong.
    """
    free = [traced.layers[name].writes for name in traced.widths] + [traced.attentions[name] for name in traced.heads]
    for pick in (lambda names: names[: len(names) // 2], lambda names: names.flip(0)[::3][: len(names) - 1]):
        gone, found = {each for names in free for each in traced.channels(pick(names))}, Trace()
        try:
            followed(cut(shadow, traced, gone), images, found)
        except UntraceableError as error:
            return len(found.steps), error.module
        if (place := differing(traced, gone, found)) is not None:
            return place, ""
    return None
