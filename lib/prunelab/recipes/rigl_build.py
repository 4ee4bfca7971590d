"""RigL and its rivals: what a run is made of. Its images, its network, what it takes from its parent, its method."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from prunelab import cost, data
from prunelab.methods import METHODS, lottery
from prunelab.methods.dynamic import CustomGrowth, SparseMomentum
from prunelab.methods.gradual import GradualPruning
from prunelab.methods.lottery import Ticket
from prunelab.methods.snip import Snip
from prunelab.methods.static import Static, active_counts, initial_masks
from prunelab.models import build_model
from prunelab.recipes.common import Masks, Options, generator_of, image_of, layers_of


def n_epochs(options: Options) -> int:
    """Epochs of the whole training."""
    return round(options["n_epochs"] * options["train_multiplier"])


def n_steps(options: Options, dataset: data.Dataset) -> int:
    """Optimizer steps of the whole training."""
    return n_epochs(options) * (dataset.n_train // options["batch_size"])


# A small dense network's width is found to this fraction of the full one's.
_WIDTH_STEPS = 256
_MATCHED = {"small_dense": "n_active", "small_dense_macs": "macs"}


def build(options: Options, dataset: data.Dataset) -> nn.Module:
    """The network of a run at its initialisation, on the CPU."""
    return model_of(options, dataset, width_of(options, dataset))


def model_of(options: Options, dataset: data.Dataset, width: float) -> nn.Module:
    """A fresh network of the run's kind for its images, at any width."""
    return build_model(options["model"], num_classes=dataset.num_classes, width=width, **image_of(dataset))


def width_of(options: Options, dataset: data.Dataset) -> float:
    """The width of a run's network; of a small dense one, at which it has as many weights, or MACs, as its rival."""
    full = options["width"]
    if options["method"] not in _MATCHED:
        return full
    key = _MATCHED[options["method"]]
    with torch.device("meta"):
        reference = model_of(options, dataset, full)
    allocation = {name: options[name] for name in ("density", "distribution", "first_layer")}
    n_active = active_counts(reference, **allocation)
    target = cost.total(cost.layer_table(reference, n_active=n_active, **image_of(dataset)), key)

    def width(k: int) -> float:
        return full * (k / _WIDTH_STEPS)

    def size(k: int) -> int:
        return cost.total(layers_of(options, dataset, width(k)), key)

    return width(cost.nearest_step(target, size, most=_WIDTH_STEPS))


def _from_ticket(options: Options, model: nn.Module, parents: Sequence[dict], seed: int) -> Masks:
    """Mask and start values of the parent; in a lottery the mask is what pruning leaves of the parent's."""
    lottery.load_values(model, parents[0]["start"])
    return _parent_masks(options, model, parents[0])


def _reinitialised(options: Options, model: nn.Module, parents: Sequence[dict], seed: int) -> Masks:
    """The ticket's mask alone; the model has new random values."""
    return _parent_masks(options, model, parents[0])


def _shuffled(options: Options, model: nn.Module, parents: Sequence[dict], seed: int) -> Masks:
    """The ticket's values under a random mask with as many active weights in each layer."""
    masks = _from_ticket(options, model, parents, seed)
    return lottery.shuffled(masks, generator=generator_of("shuffled", seed))


def _solution(options: Options, model: nn.Module, parents: Sequence[dict], seed: int) -> Masks:
    """Mask and trained values of the parent."""
    lottery.load_values(model, parents[0]["model"])
    return _parent_masks(options, model, parents[0])


# What a run takes from its parent. Each puts values into the model and returns the masks to begin with, or None.
STARTS: dict[str, Callable[[Options, nn.Module, Sequence[dict], int], Masks | None]] = {
    "fresh": lambda options, model, parents, seed: None,
    "ticket": _from_ticket,
    "reinitialised": _reinitialised,
    "shuffled": _shuffled,
    "solution": _solution,
}


def _parent_masks(options: Options, model: nn.Module, parent: dict) -> Masks:
    if parent["masks"] is None:
        raise ValueError("the parent was trained dense: it has no mask to start from")
    if options["method"] != "lottery":
        return parent["masks"]
    trained = {name: parent["model"][f"{name}.weight"] for name in parent["masks"]}
    return lottery.keep_largest(trained, parent["masks"], density=options["density"])


def build_method(
    options: Options,
    model: nn.Module,
    masks: Masks | None,
    dataset: data.Dataset,
    *,
    seed: int,
    grow_score: Callable[[Tensor, Tensor], Tensor] | None,
) -> Static | None:
    """The method of a run around its model; None where nothing is masked.

    Args:
        options: All of the run's.
        model: With the values to start from.
        masks: Taken from the parent; None lets the method choose its own.
        dataset: Decides how many steps there are.
        seed: Of the random masks and moves.
        grow_score: In place of RigL's.
    Raises:
        ValueError: See the methods; rewinding past the end of training.
    """
    method = METHODS[options["method"]]
    if method is None:
        return None
    length = n_steps(options, dataset)
    stop_step = round(options["stop_update"] * length)
    if method is Ticket:
        return _ticket(options, model, masks, length)
    if masks is None:
        allocation = {"density": _density(options, model, dataset)}
        allocation |= {name: options[name] for name in ("distribution", "first_layer")}
        counts = active_counts(model, **allocation)
        if method is Snip:
            return Snip(model, counts)
        if method is GradualPruning:
            begin_step = round(options["begin_pruning"] * length)
            update_every = options["update_every"]
            return GradualPruning(model, counts, begin_step=begin_step, end_step=stop_step, update_every=update_every)
        masks = initial_masks(model, generator=generator_of("masks", seed), **allocation)
    if method is Static:
        return Static(model, masks)
    more = {"gradient_momentum": options["gradient_momentum"]} if method is SparseMomentum else {}
    if grow_score is not None:
        method, more = CustomGrowth, {"score": grow_score}
    return method(
        model,
        masks,
        initial_drop_fraction=options["drop_fraction"],
        update_every=options["update_every"],
        stop_update_step=stop_step,
        decay=options["decay"],
        generator=generator_of("moves", seed),
        **more,
    )


def _ticket(options: Options, model: nn.Module, masks: Masks | None, length: int) -> Ticket:
    """One round of a lottery; the first is dense, and remembers the values that all later ones rewind to."""
    if not 0 <= options["rewind_epochs"] <= n_epochs(options):
        raise ValueError(
            f"cannot rewind to epoch {options['rewind_epochs']:g}: training has {n_epochs(options)};"
            " rewind_epochs must lie between 0 and that"
        )
    if masks is not None:
        return Ticket(model, masks, rewind_steps=0)
    masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in lottery.ticket_layers(model).items()}
    return Ticket(model, masks, rewind_steps=round(options["rewind_epochs"] * length / n_epochs(options)))


def _density(options: Options, model: nn.Module, dataset: data.Dataset) -> float:
    """The density to allocate: that of the options, or the one at which MACs are those of ERK at that density."""
    if options["equal"] == "weights":
        return options["density"]
    layers = cost.layer_table(model, **image_of(dataset))
    erk = active_counts(model, density=options["density"], distribution="erk", first_layer=options["first_layer"])
    n_active = {name: options[name] for name in ("distribution", "first_layer")}
    return cost.matching_density(
        layers,
        lambda density: active_counts(model, density=density, **n_active),
        macs=cost.total(cost.layer_table(model, n_active=erk, **image_of(dataset)), "macs"),
    )
