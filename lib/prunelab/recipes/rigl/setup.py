"""RigL and its rivals: what a run is made of. Its network, what it takes from its parent, and its method."""

import time
from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch import nn

from prunelab import landscape, perceptron
from prunelab.data import LabelledImages
from prunelab.density import check_density
from prunelab.masks import prunable_weights
from prunelab.methods import METHODS
from prunelab.methods.dynamic import RigL
from prunelab.recipes.common import Masks, copy_of, generator_of, network_of, stream_seed
from prunelab.recipes.masking import STARTS, GrowScore, begin, build_method, reference_of, width_of
from prunelab.recipes.recipe import Outline, Setup, State, check_choices
from prunelab.recipes.rigl.plan import PATHS, RigLOptions
from prunelab.training import Result


def check(options: RigLOptions, *, n_parents: int) -> None:
    """Raises ValueError unless the options of a run go together."""
    check_density(options.density)
    check_choices(options, {"method": METHODS, "start": STARTS, "equal": ("weights", "macs"), "path": (None, *PATHS)})
    if _n_epochs(options) < 1:
        raise ValueError(f"{options.n_epochs} epochs times {options.train_multiplier:g} leave no training")
    wanted = 2 if options.path else int(options.start != "fresh")
    if n_parents != wanted:
        raise ValueError(f"start={options.start} path={options.path} needs {wanted} parents, got {n_parents}")
    if options.start not in ("fresh", "solution") and not METHODS[options.method].inherits:
        raise ValueError(
            f"{options.method} chooses its own mask and takes none from a parent; use start='fresh', or 'solution' for"
            " the values of a dense one"
        )


def outline(options: RigLOptions, dataset: LabelledImages) -> Outline:
    """Foretells the width of a run's network and the length of its training."""
    width, n_epochs = width_of(options, dataset), _n_epochs(options)
    if not options.path:
        return Outline(width, n_epochs)
    # A straight line is not trained; every path is tested at its positions.
    n_images = min(landscape.N_IMAGES, dataset.n_train)
    return Outline(width, n_epochs if PATHS[options.path][0] else 0, landscape.N_POSITIONS * n_images)


def setup(
    options: RigLOptions,
    dataset: LabelledImages,
    parents: Sequence[State],
    *,
    seed: int,
    grow_score: GrowScore | None = None,
) -> Setup | dict:
    """Sets up a run's network, its masks and its method; a path between two solutions is followed at once.

    Args:
        options: All of the run's.
        dataset: On the device where to train.
        parents: One for most starts, two for a path.
        seed: Of every random stream.
        grow_score: The reader's own criterion in place of RigL's; see `methods.dynamic.CustomGrowth`.
    Raises:
        ValueError: A parent that does not fit, or a criterion for a method that does not grow by one.
    """
    if grow_score is not None and METHODS[options.method] is not RigL:
        raise ValueError(
            f"grow_score takes the place of RigL's; method {options.method!r} does not grow by it; use method='rigl'"
        )
    if options.path:
        return _follow_path(options, dataset, parents, seed=seed)
    # Initialisation, and dropout where there is any.
    torch.manual_seed(seed if options.start != "reinitialised" else stream_seed("reinitialised", seed))
    shape = outline(options, dataset)
    lost = parents[0].lost if parents else {}  # a pruned parent's network has fewer channels, and so has this one
    model = network_of(options, dataset, width=shape.width, **lost)
    masks = begin(options, model, parents, seed=seed)
    model = model.to(dataset.device, memory_format=torch.channels_last)
    start = copy_of(model.state_dict())
    method = build_method(options, model, masks, dataset, n_epochs=shape.n_epochs, seed=seed, grow_score=grow_score)

    def finish(result: Result) -> dict:
        fields = {"state": {"start": getattr(method, "start", start)}}  # a lottery may remember a later step
        if options.model == "lenet_300_100":
            fields["units"] = _units(model, method.masks if method else {})
            counts = fields["units"]["input_connections"]
            fields["metrics"] = perceptron.input_shares(counts, image_size=dataset.image_size)
        return fields

    return Setup(
        model,
        reference=reference_of(options, dataset),
        n_epochs=shape.n_epochs,
        ordinary_epochs=options.n_epochs,
        training={
            "warmup_epochs": round(options.warmup_epochs * options.train_multiplier),
            "label_smoothing": options.label_smoothing,
        },
        method=method,
        state={"options": asdict(options) | {"width": shape.width}} | lost,
        finish=finish,
    )


def _n_epochs(options: RigLOptions) -> int:
    """Epochs of the whole training."""
    return round(options.n_epochs * options.train_multiplier)


def _units(model: nn.Module, masks: Masks) -> dict:
    """Of a perceptron: units that survive, what it takes without the others, and connections of each input."""
    weights = prunable_weights(model)
    full = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    layers = [mask.cpu() for mask in (full | dict(masks)).values()]
    return {
        "surviving": [int(alive.sum()) for alive in perceptron.surviving(layers)],
        "input_connections": layers[0].sum(dim=0).tolist(),
        **perceptron.compact_table(layers),
    }


def _follow_path(options: RigLOptions, dataset: LabelledImages, parents: Sequence[State], *, seed: int) -> dict:
    """Gives the training loss between two solutions, along a curve that is optimised first, or along a line."""
    started = time.monotonic()
    n_control_points, is_dense = PATHS[options.path]
    device = dataset.device
    shape = outline(options, dataset)
    model = network_of(options, dataset, width=shape.width, **parents[0].lost).to(device)
    ends = [parent.model for parent in parents]
    union = landscape.union_masks(*(parent.masks for parent in parents))  # a dense one masks nothing
    control_points = []
    if n_control_points:
        control_points = landscape.fit_curve(
            model,
            *ends,
            dataset,
            n_control_points=n_control_points,
            masks=None if is_dense else {name: mask.to(device) for name, mask in union.items()},
            n_steps=shape.n_epochs * (dataset.n_train // options.batch_size),
            generator=generator_of("path", seed),
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            momentum=options.momentum,
        )
    positions, losses = landscape.loss_along(model, *ends, dataset, control_points=control_points)
    return {
        "metrics": {"loss_barrier": landscape.barrier(losses), "train_loss": max(losses)},
        "curves": {"position": positions, "train_loss": losses},
        "seconds": time.monotonic() - started,
    }
