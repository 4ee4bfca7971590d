"""What a run takes from its parent: values, a mask, both or neither."""

from collections.abc import Callable, Sequence

from torch import nn

from prunelab.methods import METHODS, lottery
from prunelab.recipes.common import Masks, generator_of
from prunelab.recipes.options import MaskingOptions
from prunelab.recipes.recipe import State


def _fresh(options: MaskingOptions, model: nn.Module, parents: Sequence[State], seed: int) -> None:
    """Nothing: the method chooses its own mask."""


def _ticket(options: MaskingOptions, model: nn.Module, parents: Sequence[State], seed: int) -> Masks:
    """The values before training, and the mask, or what a lottery leaves of it."""
    lottery.load_values(model, parents[0].start)
    return _inherited_masks(options, parents[0])


def _reinitialised(options: MaskingOptions, model: nn.Module, parents: Sequence[State], seed: int) -> Masks:
    """The ticket's mask alone; the model has new random values."""
    return _inherited_masks(options, parents[0])


def _shuffled(options: MaskingOptions, model: nn.Module, parents: Sequence[State], seed: int) -> Masks:
    """The ticket's values under a random mask with as many active weights in each layer."""
    masks = _ticket(options, model, parents, seed)
    return lottery.shuffled(masks, generator=generator_of("shuffled", seed))


def _solution(options: MaskingOptions, model: nn.Module, parents: Sequence[State], seed: int) -> Masks:
    """The trained values, and the mask."""
    lottery.load_values(model, parents[0].model)
    return _inherited_masks(options, parents[0])


# Each puts values into the model and returns the masks to begin with, or None.
STARTS: dict[str, Callable[[MaskingOptions, nn.Module, Sequence[State], int], Masks | None]] = {
    "fresh": _fresh,
    "ticket": _ticket,
    "reinitialised": _reinitialised,
    "shuffled": _shuffled,
    "solution": _solution,
}


def _inherited_masks(options: MaskingOptions, parent: State) -> Masks:
    if not parent.masks:
        raise ValueError("the parent was trained dense: it has no mask to start from")
    trained = {name: parent.model[f"{name}.weight"] for name in parent.masks}
    return METHODS[options.method].inherit(parent.masks, trained, density=options.density)
