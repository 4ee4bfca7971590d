"""What the runs of all recipes share: their images and their streams of random numbers."""

import functools
import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

from prunelab import cost, data
from prunelab.models import build_model
from prunelab.runs import Option

Masks = dict[str, Tensor]
Options = dict[str, Option]


def dataset_of(options: Options, device: str) -> data.Dataset:
    """The images of a run, shared by the runs that a worker trains."""
    return _load(*(options[name] for name in ("dataset", "image_size", "n_train", "in_colour")), device)


@functools.lru_cache(maxsize=4)
def _load(name: str, image_size: int | None, n_train: int | None, in_colour: bool, device: str) -> data.Dataset:
    return data.load(name, image_size=image_size, n_train=n_train, in_colour=in_colour, device=device)


def image_of(dataset: data.Dataset) -> dict[str, int]:
    """Shape of an image, as `cost.layer_table` takes it."""
    return {"in_channels": dataset.channels, "image_size": dataset.image_size}


def layers_of(options: Options, dataset: data.Dataset, width: float) -> list[dict]:
    """Layer table of a run's kind of network for its images, dense, at any width; to be read only, since it is kept."""
    return _layers(options["model"], dataset.num_classes, dataset.channels, dataset.image_size, width)


@functools.cache
def _layers(model: str, num_classes: int, in_channels: int, image_size: int, width: float) -> list[dict]:
    image = {"in_channels": in_channels, "image_size": image_size}
    with torch.device("meta"):  # shapes without numbers, and no random number drawn
        network = build_model(model, num_classes=num_classes, width=width, **image)
    return cost.layer_table(network, **image)


def source_of(dataset: data.Dataset) -> dict[str, str]:
    """Which images they are, as a record says it."""
    return {"name": dataset.name, "source": dataset.source, "sha256": dataset.sha256}


def stream_seed(stream: str, seed: int) -> int:
    """The seed of one random stream of a run; streams of one run must not be the same numbers."""
    return zlib.crc32(f"{stream} {seed}".encode())  # hash() differs between processes


def generator_of(stream: str, seed: int) -> torch.Generator:
    """A generator for one random stream of a run, on the CPU."""
    return torch.Generator().manual_seed(stream_seed(stream, seed))


def copy_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as they are now, whatever becomes of them."""
    return {name: value.clone() for name, value in state.items()}
