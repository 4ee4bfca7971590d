"""Which weights of a run's network are active: a parent's or a method's choice, and how many in each layer."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from prunelab import cost
from prunelab.data import LabelledImages
from prunelab.methods import METHODS, lottery
from prunelab.methods.dynamic import CustomGrowth
from prunelab.methods.hooks import Hooks
from prunelab.methods.static import active_counts
from prunelab.recipes.common import Masks, generator_of, image_of, layers_of, network_of
from prunelab.recipes.recipe import MaskingOptions, State

GrowScore = Callable[[Tensor, Tensor], Tensor]

_WIDTH_STEPS = 256  # a small dense network's width is found to this fraction of the full one's


def reference_of(options: MaskingOptions, dataset: LabelledImages) -> list[dict]:
    """Returns the layer table of the dense network that density and costs are relative to; to be read only."""
    return layers_of(replace(options, model=options.density_of or options.model), dataset, options.width)


def width_of(options: MaskingOptions, dataset: LabelledImages) -> float:
    """Returns the width of a run's network: of a small dense one that at which it is as large as its rival."""
    column = METHODS[options.method].matched
    if column is None:
        return options.width
    with torch.device("meta"):
        rival = network_of(options, dataset, width=options.width)
    n_active = _counts(options, rival, dataset)
    target = cost.total(cost.layer_table(rival, n_active=n_active, **image_of(dataset)), column)

    def width(k: int) -> float:
        return options.width * (k / _WIDTH_STEPS)

    def size(k: int) -> int:
        return cost.total(layers_of(options, dataset, width(k)), column)

    return width(cost.nearest_step(target, size, most=_WIDTH_STEPS))


def build_method(
    options: MaskingOptions,
    model: nn.Module,
    masks: Masks | None,
    dataset: LabelledImages,
    *,
    n_epochs: int,
    seed: int,
    grow_score: GrowScore | None = None,
) -> Hooks | None:
    """Builds the method of a run around its model; None where nothing is masked.

    Args:
        options: All of the run's.
        model: With the values to start from.
        masks: Taken from the parent; None lets the method choose its own.
        dataset: Decides how many steps there are.
        n_epochs: Length of the training.
        seed: Of the random masks and moves.
        grow_score: In place of RigL's.
    Raises:
        ValueError: See the methods.
    """
    method, own = METHODS[options.method], {}
    if grow_score is not None:
        method, own = CustomGrowth, {"score": grow_score}
    return method.build(
        model,
        options,
        masks=masks,
        n_active=partial(_allocated, options, model, dataset),
        n_epochs=n_epochs,
        n_steps=n_epochs * (dataset.n_train // options.batch_size),
        generator=partial(generator_of, seed=seed),
        batches=partial(dataset.train_batches, augment=options.augment, generator=generator_of("fisher", seed)),
        **own,
    )


def _allocated(options: MaskingOptions, model: nn.Module, dataset: LabelledImages) -> dict[str, int]:
    """Active weights by layer: those of the density, or of that at which MACs are as many as with ERK."""
    if options.equal == "weights":
        return _counts(options, model, dataset)
    layers = cost.layer_table(model, **image_of(dataset))
    erk = cost.layer_table(model, n_active=_counts(options, model, dataset, distribution="erk"), **image_of(dataset))
    density = cost.matching_density(
        layers, lambda density: _counts(options, model, dataset, density=density), macs=cost.total(erk, "macs")
    )
    return _counts(options, model, dataset, density=density)


def _counts(
    options: MaskingOptions, model: nn.Module, dataset: LabelledImages, **changes: float | str
) -> dict[str, int]:
    """Counts a model's active weights by layer; in `changes` density is a share of the model's own weights."""
    allocation = {name: getattr(options, name) for name in ("density", "distribution", "first_layer")}
    own, reference = layers_of(options, dataset, options.width), reference_of(options, dataset)
    allocation["density"] *= cost.total(reference, "n_weights") / cost.total(own, "n_weights")
    return active_counts(model, **allocation | changes)


# What a run takes from its parent: which of its values, by their name in `State`, if any; and unless fresh, its masks.
STARTS = {
    "fresh": None,
    "ticket": "start",
    "reinitialised": None,
    "shuffled": "start",  # under random masks with as many active weights in each layer
    "solution": "model",
}


def begin(options: MaskingOptions, model: nn.Module, parents: Sequence[State], *, seed: int) -> Masks | None:
    """Puts a parent's values into a run's model, and returns the masks to begin with; None leaves them to the method.

    A method that chooses its own masks goes on from the solution of a dense parent.

    Args:
        options: All of the run's; `start` says what it takes.
        model: Freshly built; changed in place.
        parents: One, but of a fresh start none.
        seed: Of the random masks.
    Raises:
        ValueError: A parent of another network, or dense where masks are taken from it, masked where none are.
    """
    if options.start == "fresh":
        return None
    parent = parents[0]
    if values := STARTS[options.start]:
        lottery.load_values(model, getattr(parent, values))
    if not METHODS[options.method].inherits:
        if parent.masks:
            raise ValueError(f"{options.method} chooses its own mask: it goes on from a dense parent, not a masked one")
        return None
    if not parent.masks:
        raise ValueError("the parent has no mask to start from; use start='fresh' or a masked parent")
    trained = {name: parent.model[f"{name}.weight"] for name in parent.masks}
    masks = METHODS[options.method].inherit(parent.masks, trained, density=options.density)
    return lottery.shuffled(masks, generator=generator_of("shuffled", seed)) if options.start == "shuffled" else masks
