"""What the runs of all recipes share: their images and their streams of random numbers."""

import functools
import zlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from prunelab import cost, data
from prunelab.channels.surgery import without
from prunelab.models import build_model
from prunelab.recipes.recipe import TrainingOptions

Masks = dict[str, Tensor]


def dataset_of(options: TrainingOptions, device: str) -> data.LabelledImages:
    """Loads the images of a run, shared by the runs that a worker trains."""
    return _load(options.dataset, device=device, **_chosen(options))


def foreseen(options: TrainingOptions) -> data.LabelledImages:
    """Returns the images of a run as far as a forecast needs them, which is without pixels."""
    return _foresee(options.dataset, **_chosen(options))


def _chosen(options: TrainingOptions) -> dict[str, int | bool | None]:
    return {name: getattr(options, name) for name in ("image_size", "n_train", "n_validation", "in_colour")}


_load, _foresee = (functools.lru_cache(maxsize=4)(load) for load in (data.load, data.foresee))


def image_of(dataset: data.LabelledImages) -> dict[str, int]:
    """Returns the shape of an image, as `cost.layer_table` takes it."""
    return {"in_channels": dataset.channels, "image_size": dataset.image_size}


def network_of(
    options: TrainingOptions,
    dataset: data.LabelledImages,
    *,
    width: float,
    widths: Mapping[str, int] | None = None,
    removed: Iterable[str] = (),
    num_classes: int | None = None,
) -> nn.Module:
    """Builds a fresh network of a run's kind for its images, on the CPU.

    Args:
        options: Name the model.
        dataset: Decides its inputs and outputs.
        width: Factor on the channels of every layer.
        widths: Channels of the layers that have others.
        removed: Names of the blocks that it goes without.
        num_classes: Outputs, where they are not those of the data set.
    """
    num_classes = num_classes or dataset.num_classes
    model = build_model(options.model, num_classes=num_classes, width=width, widths=widths, **image_of(dataset))
    return without(model, removed)


def layers_of(options: TrainingOptions, dataset: data.LabelledImages, width: float) -> list[dict]:
    """Returns the layer table of the whole network, dense; to be read only, since it is kept."""
    return _layers(options.model, dataset.num_classes, dataset.channels, dataset.image_size, width)


@functools.cache
def _layers(model: str, num_classes: int, in_channels: int, image_size: int, width: float) -> list[dict]:
    image = {"in_channels": in_channels, "image_size": image_size}
    with torch.device("meta"):  # shapes without numbers, and no random number drawn
        network = build_model(model, num_classes=num_classes, width=width, **image)
    return cost.layer_table(network, **image)


def source_of(dataset: data.LabelledImages) -> dict[str, str]:
    """Says which images they are, as a record has it."""
    return {"name": dataset.name, "source": dataset.source, "sha256": dataset.sha256}


def stream_seed(stream: str, seed: int) -> int:
    """Returns the seed of one random stream of a run; streams of one run must not be the same numbers."""
    return zlib.crc32(f"{stream} {seed}".encode())  # hash() differs between processes


def generator_of(stream: str, seed: int) -> torch.Generator:
    """Returns a generator for one random stream of a run, on the CPU."""
    return torch.Generator().manual_seed(stream_seed(stream, seed))


def copy_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies the tensors as they are now, whatever becomes of them."""
    return {name: value.clone() for name, value in state.items()}
