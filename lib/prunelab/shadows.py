"""Networks without numbers: as large as the ones they stand for, and run in no time to learn about shapes."""

import copy
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.utils._python_dispatch import TorchDispatchMode

Size = int | tuple[int, int]  # height and width of images in pixels; one number for both


aten = torch.ops.aten
_ALIKE = {
    *(aten.hardtanh, aten.relu, aten.silu, aten.gelu, aten.hardswish, aten.hardsigmoid, aten.leaky_relu, aten.elu),
    aten.sigmoid,
}
_IN_PLACE = {
    *(aten.hardtanh_, aten.relu_, aten.silu_, aten.hardswish_, aten.hardsigmoid_, aten.leaky_relu_, aten.elu_),
    aten.sigmoid_,
}
_NORMS = {aten.native_batch_norm, aten._native_batch_norm_legit, aten._native_batch_norm_legit_no_training}


class Shapes(TorchDispatchMode):
    """A mode in which networks without numbers run faster: what keeps a shape is not worked out."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence = (), kwargs: dict | None = None) -> Any:
        packet = func.overloadpacket
        if packet in _IN_PLACE:
            return args[0]
        if packet in _ALIKE:
            return torch.empty_like(args[0])
        if packet in _NORMS:
            return torch.empty_like(args[0]), args[0].new_empty(0), args[0].new_empty(0)
        return func(*args, **(kwargs or {}))


class Scaling(partial):
    """A forward hook that scales what a layer gives by factors that are no parameters of the network."""


def _check_folded(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if any(isinstance(hook, Scaling) for hook in module._forward_hooks.values()):
            raise ValueError(
                f"what {name!r} gives is scaled by factors that are not part of {type(model).__name__}; call fold() of"
                " the method that trains them first"
            )


def without_numbers(model: nn.Module) -> nn.Module:
    """Copies a network in evaluation mode, shapes only; parameters that it shares are shared in the copy.

    Raises:
        ValueError: Factors of `channels.selection` scale it, which are to be folded first.
    """
    _check_folded(model)
    held = (each for module in model.modules() for each in vars(module).values() if isinstance(each, Tensor))
    made_anew = (each for each in held if not each.is_leaf)  # which deepcopy refuses
    tensors = chain(model.parameters(), model.buffers(), made_anew)
    return copy.deepcopy(model, {id(tensor): torch.empty_like(tensor, device="meta") for tensor in tensors}).eval()


def sides(image_size: Size) -> tuple[int, int]:
    """Returns height and width of images, of which one number stands for both.

    Raises:
        ValueError: Anything but one or two whole numbers of pixels.
    """
    pair = (image_size, image_size) if isinstance(image_size, Integral) else image_size
    if not isinstance(pair, Sequence) or len(pair) != 2 or not all(isinstance(n, Integral) and n > 0 for n in pair):
        raise ValueError(f"image_size must be a number of pixels or (height, width), all above 0; got {image_size!r}")
    return tuple(pair)


def precision_of(model: nn.Module) -> torch.dtype:
    """Returns the type of a network's numbers; float32 where it has none."""
    return next((each.dtype for each in model.parameters() if each.is_floating_point()), torch.float32)


def images_for(model: nn.Module, in_channels: int, image_size: Size, *, n: int = 2) -> Tensor:
    """Makes images without numbers for a network, (n, c, h, w), in its precision.

    Raises:
        ValueError: No such images.
    """
    if not isinstance(in_channels, Integral) or in_channels < 1:
        raise ValueError(f"in_channels must be a whole number above 0, got {in_channels!r}")
    return torch.empty(n, in_channels, *sides(image_size), dtype=precision_of(model), device="meta")


def as_given(model: nn.Module) -> nn.Module:
    """Returns the network inside of one that was compiled or made parallel.

    Raises:
        ValueError: It was scripted, weights that are not parameters but made of them anew, or factors that scale it as
            in `without_numbers`; says what to call first.
    """
    while isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel) or hasattr(model, "_orig_mod"):
        model = model._orig_mod if hasattr(model, "_orig_mod") else model.module
    _check_folded(model)
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"{name or 'the network'!r} is scripted: give it as it was before torch.jit.script")
        for own, remedy in _made_anew(module):
            raise ValueError(
                f"the {own} of {name!r} is no parameter but made of others before each run; call {remedy} on it first"
            )
    return model


def _made_anew(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Yields the names of tensors that a module makes of its parameters before it runs, and what puts an end to it."""
    for name in module.parametrizations if parametrize.is_parametrized(module) else ():
        yield name, "torch.nn.utils.parametrize.remove_parametrizations"
    is_masked = any(isinstance(hook, prune.BasePruningMethod) for hook in module._forward_pre_hooks.values())
    for parameter in module._parameters:
        name, _, part = parameter.rpartition("_")
        if part in ("orig", "g") and isinstance(vars(module).get(name), Tensor):
            by_norm = "remove_weight_norm" if part == "g" else "remove_spectral_norm"
            yield name, "torch.nn.utils." + ("prune.remove" if is_masked else by_norm)
