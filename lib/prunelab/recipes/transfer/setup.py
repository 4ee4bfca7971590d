"""Transfer: what a run is made of. A trained network is probed, trained whole on a task, or looked at."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from prunelab import cost, detection
from prunelab.data import LabelledImages
from prunelab.data.downstream import metric_of
from prunelab.data.scenes import scenes_of
from prunelab.density import check_density
from prunelab.methods.static import Static
from prunelab.probes import METRICS
from prunelab.recipes.common import generator_of, image_of, layers_of
from prunelab.recipes.recipe import Outline, Setup, State, check_choices
from prunelab.recipes.released import state_of_checkpoint
from prunelab.recipes.structures import carried_over
from prunelab.recipes.transfer.looks import inspect, probe
from prunelab.recipes.transfer.plan import TRAININGS, UPSTREAM, TransferOptions
from prunelab.training import Result

_SCENE_SIDE = 32  # in pixels
_N_TEST_SCENES, _N_SHOWN = 200, 4


def check(options: TransferOptions, *, n_parents: int) -> None:
    """Raises ValueError unless the options of a run go together."""
    check_density(options.density)
    check_choices(options, {"training": TRAININGS, "upstream": UPSTREAM})
    wanted = int(options.checkpoint is None)
    if n_parents != wanted:
        raise ValueError(
            f"upstream={options.upstream} checkpoint={options.checkpoint} needs {wanted} parents, got {n_parents}: "
            "the run that made the network, or the file that holds it"
        )
    for name, least in (("n_probes", 1), ("n_passes", 0), ("n_scenes", 1)):
        if getattr(options, name) < least:
            raise ValueError(f"{name} must be at least {least}, got {getattr(options, name)}")


def outline(options: TransferOptions, dataset: LabelledImages) -> Outline:
    """Foretells the length of a training; of classifiers on features, how many images these are of."""
    if options.training == "full":
        return Outline(options.width, options.n_epochs)
    if options.training == "detect":
        larger = (_SCENE_SIDE / dataset.image_size) ** 2
        n_epochs = round(options.n_epochs * larger * options.n_scenes / dataset.n_train)
        return Outline(options.width, max(1, n_epochs))
    n_passes = (options.n_passes or 1) * (options.training == "probe")
    return Outline(options.width, 0, n_evaluated=n_passes * dataset.n_train + dataset.n_test)


def setup(options: TransferOptions, dataset: LabelledImages, parents: Sequence[State], *, seed: int) -> Setup | dict:
    """Sets up the training of a whole network on a task; classifiers on its features are trained at once.

    Args:
        options: All of the run's.
        dataset: The task, on the device where to train; of `inspect` the images that the network was trained on.
        parents: The network, unless it comes from a file.
        seed: Of every random stream.
    Raises:
        ValueError: A parent that is not what the options say, or has diverged.
        pretrained.WeightsNotFoundError: A file that is not there.
    """
    if options.checkpoint:
        parent = state_of_checkpoint(options.checkpoint, model=options.model, width=options.width)
    else:
        (parent,) = parents
        _check_parent(options, parent)
    torch.manual_seed(seed)  # of the new head
    if options.training == "inspect":
        return inspect(options, dataset, parent)
    if options.training == "detect":
        return _detecting(options, dataset, parent, seed=seed)
    if options.upstream == "lottery":  # a ticket for transfer: the last mask, on the values early in training
        parent = replace(parent, model=parent.start)
    model, method = carried_over(options, dataset, parent)
    if options.training == "probe":
        return probe(options, dataset, model, seed=seed)
    return Setup(
        model,
        reference=layers_of(options, dataset, options.width),
        n_epochs=options.n_epochs,
        ordinary_epochs=options.n_epochs,
        training={"metric": METRICS[metric_of(options.dataset)]},
        method=method,
        state=parent.lost,
    )


def _check_parent(options: TransferOptions, parent: State) -> None:
    """Raises ValueError unless the parent was made sparse as the options say."""
    if parent.diverged:
        raise ValueError("the parent has diverged; there is nothing in it to carry to another task")
    wanted = UPSTREAM[options.upstream] | ({} if options.upstream == "dense" else {"density": options.density})
    if wrong := {name: parent.options.get(name) for name, value in wanted.items() if parent.options.get(name) != value}:
        raise ValueError(f"upstream={options.upstream} needs a parent with {wanted}, this one has {wrong}")


def _detecting(options: TransferOptions, dataset: LabelledImages, parent: State, *, seed: int) -> Setup:
    """The network finds pictures of the data set in scenes that are composed of them."""
    n = {"n_train": options.n_scenes, "n_test": _N_TEST_SCENES}
    scenes = scenes_of(dataset, **n, size=_SCENE_SIDE, generator=generator_of("scenes", seed))
    model, method = carried_over(options, scenes, parent)
    detector = detection.Detector(model, scenes)

    def fields(result: Result) -> dict:
        result.curves = {name: result.curves[name] for name in ("epoch", "train_loss")}
        found, true = detection.detect(detector, scenes), detection.true_boxes(scenes)
        shown = {
            name: boxes.take(boxes.images < _N_SHOWN).rows(scenes.class_names)
            for name, boxes in (("found", found), ("true", true))
        }
        return {"metrics": {"mean_average_precision": detection.mean_average_precision(found, true)}, "boxes": shown}

    return Setup(
        detector,
        reference=cost.layer_table(detector, **image_of(scenes)),
        n_epochs=options.n_epochs,
        ordinary_epochs=options.n_epochs,
        training={"objective": detection.objective, "augment": False},
        dataset=scenes,
        method=Static(detector, detection.masks_of(method.masks)) if method else None,
        finish=fields,
    )
