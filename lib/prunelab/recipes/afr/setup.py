"""AFR and its rivals: what a run is made of. A network that is pretrained, or pruned for a task and trained on it."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import torch
from torch import nn

from prunelab import cost
from prunelab.data import LabelledImages
from prunelab.density import check_density
from prunelab.dino import Dino, ProjectionHead, Student
from prunelab.masks import empty_layers
from prunelab.methods.static import Static
from prunelab.models import build_model, pretrained
from prunelab.models.vit import load_backbone
from prunelab.neighbours import N_NEIGHBOURS, knn_test
from prunelab.recipes.afr.looks import block_weights, fit_head, look_at, matrices
from prunelab.recipes.afr.plan import PRETRAININGS, TRAININGS, AfrOptions
from prunelab.recipes.common import copy_of, generator_of, image_of
from prunelab.recipes.recipe import Outline, Setup, State, check_choices
from prunelab.scores import SCORES, score
from prunelab.scores.afr import SCOPES
from prunelab.scores.refer import FEATURES
from prunelab.scores.rounds import prune_in_rounds
from prunelab.training import Result
from prunelab.views import Views

# Of DINO, for networks as small as ours; the paper's ViT comes pretrained.
# Short trainings of small networks collapse with the authors' momentum of 0.996 and temperature of 0.07.
_PROJECTION = {"n_hidden": 512, "n_bottleneck": 256, "n_outputs": 1024}
_VIEWS = {"n_local": 2, "local_scale": (0.15, 0.5)}
_TEACHER = {"momentum": 0.99, "temperatures": (0.04, 0.04), "frozen": 0.05}
_DINO_PASSES = 4  # of one image at full size, in a step's forward and backward passes of all its views, about


def check(options: AfrOptions, *, n_parents: int) -> None:
    """Raises ValueError unless the options of a run go together."""
    allowed = {"training": TRAININGS, "scope": SCOPES, "features": FEATURES, "feature_layers": ("blocks", "linear")}
    check_choices(options, allowed | {"score": (None, *SCORES)})
    check_choices(options, {"pretrained": (None, *PRETRAININGS, *pretrained.RELEASES)})
    check_density(options.density)
    if options.training == "fine_tune" and (options.score is None) != (options.density == 1):
        raise ValueError(
            f"a density below 1 needs a score, and no other does; got score={options.score} density={options.density:g}"
        )
    if options.score is not None and options.training != "fine_tune":
        raise ValueError(f"only fine_tune prunes by a score; got training={options.training} score={options.score}")
    for name in ("n_scored", "n_rounds", "enlarged_to"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    for name, holds in (("mixture", 0 <= options.mixture <= 1), ("label_smoothing", 0 <= options.label_smoothing < 1)):
        if not holds:
            raise ValueError(f"{name} is a share, got {getattr(options, name)}")
    wanted = int(options.pretrained in PRETRAININGS)
    if n_parents != wanted or (options.training in PRETRAININGS and options.pretrained):
        raise ValueError(
            f"training={options.training} pretrained={options.pretrained} needs {wanted} parents, got {n_parents}"
        )


def outline(options: AfrOptions, dataset: LabelledImages) -> Outline:
    """Foretells the width of a network and the length of its training, of DINO's with all its views."""
    if options.training == "inspect":
        return Outline(options.width, 0, n_evaluated=3 * len(SCORES) * options.n_scored)
    larger = ((options.enlarged_to or dataset.image_size) / dataset.image_size) ** 2  # as many patches, and more
    return Outline(
        options.width, round(options.n_epochs * larger * (_DINO_PASSES if options.training == "dino" else 1))
    )


def setup(options: AfrOptions, dataset: LabelledImages, parents: Sequence[State], *, seed: int) -> Setup | dict:
    """Sets up a pretraining, or a network that is pruned for a task at once and then trained on it, or only looked at.

    Args:
        options: All of the run's.
        dataset: On the device where to train.
        parents: The pretraining, where it is one of ours.
        seed: Of every random stream.
    Raises:
        ValueError: A parent that does not fit, or weights that cannot be scored or pruned that far.
        pretrained.WeightsNotFoundError: Released weights that are not there.
    """
    torch.manual_seed(seed)
    size = options.enlarged_to or dataset.image_size
    shape = {"num_classes": dataset.num_classes, "in_channels": dataset.channels, "image_size": size}
    model = build_model(options.model, width=options.width, **shape)
    model.enlarged_to = options.enlarged_to
    if parents:
        _check_parent(parents[0], options.pretrained)
        load_backbone(model, parents[0].model)
    elif options.pretrained:
        load_backbone(model, pretrained.read(options.pretrained))
    model.to(dataset.device, memory_format=torch.channels_last)
    if options.training in PRETRAININGS and dataset.n_train < N_NEIGHBOURS:
        raise ValueError(f"a pretraining is tested by {N_NEIGHBOURS} neighbours, got {dataset.n_train} training images")
    if options.training == "dino":
        return _dino(options, dataset, model, seed=seed)
    if options.training == "supervised":
        return _setup(options, dataset, model, lambda result: _near(result, model, dataset))
    if options.training == "fine_tune" and options.score is None:
        return _setup(options, dataset, model)

    batch_size = min(options.batch_size, options.n_scored)
    if options.n_scored % batch_size or options.n_scored > dataset.n_train:
        raise ValueError(
            f"n_scored must be a multiple of {batch_size}, the size of a batch, and at most {dataset.n_train}, that of"
            f" the training images; got {options.n_scored}"
        )
    drawn = dataset.train_batches(batch_size=batch_size, augment=False, generator=generator_of("scored", seed))
    batches = [next(drawn) for _ in range(options.n_scored // batch_size)]
    fresh = copy_of(model.head.state_dict())
    if options.probed:
        fit_head(model, batches)
    weights = block_weights(model)
    ways = {name: partial(score, name, **_how(options, weights, seed)) for name in SCORES}
    if options.training == "inspect":
        return look_at(model, weights, batches, ways, density=options.density)
    found = {"density": options.density, "n_rounds": options.n_rounds}
    masks = prune_in_rounds(ways[options.score], model, weights, batches, **found)
    model.head.load_state_dict(fresh)  # a fitted head was for scoring alone: all rivals are fine-tuned from a new one
    own = {"matrices": matrices(masks), "emptied": empty_layers(masks)}
    return _setup(options, dataset, model, lambda result: own, method=Static(model, masks))


def _check_parent(parent: State, kind: str | None) -> None:
    """Raises ValueError unless the parent is a dense network of the training that the options name."""
    if parent.diverged:
        raise ValueError("the parent has diverged; there is nothing in it to retain")
    if parent.masks:
        raise ValueError("the parent is pruned already; scores rank the weights of a dense network")
    if (training := parent.options.get("training", "supervised")) != kind:
        raise ValueError(f"pretrained={kind} needs a parent of that training, got {training}")


def _how(options: AfrOptions, weights: dict[str, nn.Parameter], seed: int) -> dict[str, object]:
    """Keywords of the scores."""
    return {
        "mixture": options.mixture,
        "scope": options.scope,
        "features": options.features,
        "layers": list(weights) if options.feature_layers == "linear" else None,
        "generator": generator_of("scores", seed),
    }


def _dino(options: AfrOptions, dataset: LabelledImages, model: nn.Module, *, seed: int) -> Setup:
    """Pretraining without labels: there is nothing to test but how near images of a class are to each other."""
    views = Views(dataset, generator=generator_of("views", seed), local_size=dataset.image_size // 2, **_VIEWS)
    student = Student(model, ProjectionHead(model.head.in_features, **_PROJECTION)).to(dataset.device)
    dino = Dino(student, views, n_steps=options.n_epochs * (dataset.n_train // options.batch_size), **_TEACHER)

    def fields(result: Result) -> dict:
        # The rest is of a head that nothing has taught.
        result.curves = {name: result.curves[name] for name in ("epoch", "train_loss")}
        return {"history": dino.history} | _near(result, dino.backbone, dataset)

    training = {"objective": dino.objective, "is_static": False, "augment": False}
    own = {"method": dino, "trained": lambda: dino.backbone, "forward_macs": dino.forward_macs}
    return _setup(options, dataset, student, fields, reference=model, training=training, **own)


def _near(result: Result, backbone: nn.Module, dataset: LabelledImages) -> dict:
    """Tells how good the features of a pretraining are, unless it has diverged."""
    return {"metrics": {"knn_accuracy": None if result.diverged else knn_test(backbone, dataset)}}


def _setup(
    options: AfrOptions,
    dataset: LabelledImages,
    model: nn.Module,
    fields: Callable[[Result], dict] = lambda result: {},
    *,
    reference: nn.Module | None = None,
    training: Mapping[str, object] = MappingProxyType({}),
    **own: object,
) -> Setup:
    """What all trainings share."""
    shared = {"warmup_epochs": options.warmup_epochs, "layer_decay": options.layer_decay}
    if "objective" not in training:
        shared["label_smoothing"] = options.label_smoothing
    return Setup(
        model,
        reference=cost.layer_table(model if reference is None else reference, **image_of(dataset)),
        n_epochs=options.n_epochs,
        ordinary_epochs=options.n_epochs,
        training=shared | training,
        finish=fields,
        **own,
    )
