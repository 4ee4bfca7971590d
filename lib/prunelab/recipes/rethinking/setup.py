"""Rethinking the value of pruning: what a run is made of. A large network, or a pruned one, trained in three ways."""

import statistics
import sys
from collections.abc import Sequence

import torch

from prunelab import cost
from prunelab.channels.filters import TARGETS
from prunelab.channels.selection import Selection
from prunelab.channels.trace import trace
from prunelab.data import LabelledImages
from prunelab.density import check_density
from prunelab.latency import n_bytes
from prunelab.methods.static import Static
from prunelab.models import TORCHVISION_MODELS
from prunelab.precision import best_precision
from prunelab.recipes.common import copy_of, image_of, layers_of, stream_seed
from prunelab.recipes.prunings import PREPARATIONS, PRUNINGS, WEIGHT_PRUNINGS, patterns_of
from prunelab.recipes.recipe import Outline, Setup, State, check_choices
from prunelab.recipes.rethinking.plan import SCRATCH, STARTS, TRAININGS, RethinkingOptions
from prunelab.recipes.structures import Structure, from_scratch, original_of
from prunelab.training import Result, evaluate


def check(options: RethinkingOptions, *, n_parents: int) -> None:
    """Raises ValueError unless the options of a run go together."""
    check_density(options.density)
    is_large = options.training == "dense"
    check_choices(
        options,
        {
            "training": TRAININGS,
            "start": STARTS,
            "pruning": (None, *PREPARATIONS) if is_large else PRUNINGS,
            "target": (*TARGETS, None),
        },
    )
    wanted = 0 if is_large or options.pruning == "predefined" else 1 + options.pruning.startswith("guided")
    if n_parents != wanted:
        raise ValueError(
            f"training={options.training} pruning={options.pruning} needs {wanted} parents, got {n_parents}"
        )
    if options.start == "ticket" and options.training not in SCRATCH:
        raise ValueError(f"a ticket is trained from scratch: {', '.join(SCRATCH)}; got training={options.training}")
    if options.pruning == "predefined" and (options.training == "fine_tune" or options.start == "ticket"):
        raise ValueError("a predefined structure has no values to inherit; prune a trained network, by l1 for example")


def outline(options: RethinkingOptions, dataset: LabelledImages) -> Outline:
    """Foretells the width of a network, by its density where training finds it, and the length of its training."""
    is_narrower = options.training != "dense" and options.pruning not in WEIGHT_PRUNINGS
    share = 1.0
    if is_narrower:
        share = statistics.mean(TARGETS[options.target].densities) if options.target else options.density
    width = options.width * (1.0 if options.model in TORCHVISION_MODELS else share)
    macs, full_macs = (cost.total(layers_of(options, dataset, at), "macs") for at in (width, options.width))
    return Outline(width, _n_epochs(options, macs / full_macs if is_narrower else options.density))


def setup(options: RethinkingOptions, dataset: LabelledImages, parents: Sequence[State], *, seed: int) -> Setup:
    """Sets up a large network; or what pruning leaves of one, with the values it inherits or with fresh ones.

    Args:
        options: All of the run's.
        dataset: On the device where to train.
        parents: The network that is pruned; of a guided design also the one that the design is taken from.
        seed: Of every random stream.
    Raises:
        ValueError: A parent that does not fit.
    """
    torch.manual_seed(seed)
    original = original_of(options, dataset, parents, seed=seed)
    pruned, model, metrics = Structure(original.model), original.model, {}
    is_large, inherits = (options.training == training for training in ("dense", "fine_tune"))
    if not is_large:
        pruned = PRUNINGS[options.pruning](original)
        if inherits:
            _check_inheritance(parents[0], pruned, dataset)
        torch.manual_seed(stream_seed("scratch", seed))  # the same values, whatever was drawn to find the structure
        model = pruned.shrunken(pruned.model, dataset) if inherits else from_scratch(pruned, original)
    widths, removed = original.reduced_to(model, pruned)
    reference = layers_of(options, dataset, options.width)
    n_active = {name: int(mask.sum()) for name, mask in pruned.masks.items()}
    macs = cost.total(cost.layer_table(model, n_active=n_active, **image_of(dataset)), "macs")
    n_epochs = _n_epochs(options, macs / cost.total(reference, "macs"))
    start = parents[0].start if options.start == "ticket" else copy_of(model.state_dict())
    method = Static(model, pruned.masks) if pruned.masks else None
    if options.pruning in PREPARATIONS and is_large:
        method = PREPARATIONS[options.pruning](original, dataset.n_train // options.batch_size)
    if inherits:
        _, metrics["inherited_accuracy"] = evaluate(model, dataset)
    training = {"learning_rate": options.fine_tune_rate, "schedule": "constant"} if inherits else {}
    if isinstance(method, Selection) and best_precision(dataset.device.type, options.model) == "fp16":
        training["precision"] = "fp32"  # its factors cannot be trained in fp16

    def finish(result: Result) -> dict:
        factors = {}
        if isinstance(method, Selection):
            method.fold()
            factors = copy_of(method.factors)
        return {
            "widths": trace(model, **image_of(dataset)).own_widths,
            "removed": removed,
            "image": image_of(dataset) | {"num_classes": dataset.num_classes},
            "patterns": patterns_of(original, pruned.masks) if pruned.masks else {},
            "metrics": metrics | {"n_bytes": n_bytes(model), "n_epochs_trained": n_epochs},
            "state": {"factors": factors},
        }

    return Setup(
        model,
        reference=reference,
        n_epochs=n_epochs,
        ordinary_epochs=options.n_epochs,
        training=training,
        method=method,
        state={"widths": widths, "removed": removed, "start": start},
        finish=finish,
    )


def _check_inheritance(parent: State, pruned: Structure, dataset: LabelledImages) -> None:
    """Raises ValueError where fine-tuning would not go on from what the parent is."""
    if parent.num_classes != dataset.num_classes:
        raise ValueError(
            f"the parent tells {parent.num_classes} classes apart, {dataset.name} has {dataset.num_classes};"
            " fine-tune it on images of as many, or train from scratch"
        )
    kept = {name: pruned.masks.get(name) for name in parent.masks}
    if any(kept[name] is None or (kept[name].cpu() & ~mask.cpu()).any() for name, mask in parent.masks.items()):
        raise ValueError("the parent is masked, and this pruning would not keep to its masks; prune it by magnitude")


def _n_epochs(options: RethinkingOptions, macs_ratio: float) -> int:
    """Epochs of a training; from scratch with the budget of the large network's, as many more as they are cheaper."""
    if options.training == "fine_tune":
        return options.fine_tune_epochs
    if options.training == "scratch_b":
        return min(int(options.n_epochs / macs_ratio), options.max_epochs or sys.maxsize)
    return options.n_epochs
