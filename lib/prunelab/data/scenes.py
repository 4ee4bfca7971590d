"""Scenes: a few pictures of a data set side by side, with the boxes that they are in; what detectors are trained on."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from prunelab.data.batches import LabelledImages, TrainBatches
from prunelab.data.dataset import Dataset

MOST_PICTURES = 3
SIDES = (0.25, 0.5)  # of a picture, least and largest, as shares of the scene's
NOISE = 25.0  # deviation of the ground's grey levels
_TRIES = 16  # places that are drawn for a picture; where none is free, the scene goes without it


def compose(images: Tensor, labels: Tensor, *, n: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Composes scenes: one to three pictures, scaled, none over another, on a grey ground with noise.

    Args:
        images: To choose from, uint8 (m, h, h, c); best about as large as they become, 1/4 to 1/2 of `size`.
        labels: Their classes, int64 (m,).
        n: Number of scenes.
        size: Their side in pixels.
        generator: Decides all, on the CPU.
    Returns:
        scenes: uint8 (n, size, size, c), where the images lie.
        boxes: float32 (n, 3, 5), there too: class, column and row of the centre, width and height in pixels; where
            there are fewer pictures, class -1 and zeros.
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    chosen = torch.randint(len(images), (n, MOST_PICTURES), generator=generator)
    n_wanted = torch.randint(1, MOST_PICTURES + 1, (n,), generator=generator)
    sides = uniform(SIDES[0] * size, SIDES[1] * size, n, MOST_PICTURES, _TRIES, 2)
    centres = sides / 2 + (size - sides) * uniform(0, 1, n, MOST_PICTURES, _TRIES, 2)
    ground = uniform(0, 255, n, 1, 1, 1) + NOISE * torch.randn(n, 1, size, size, generator=generator)

    places = torch.zeros(n, MOST_PICTURES, 4)  # of no area, in nobody's way
    for i in range(MOST_PICTURES):
        distances = (centres[:, i, :, None] - places[:, None, :, :2]).abs()  # (n, tries, other pictures, 2)
        is_apart = distances >= (sides[:, i, :, None] + places[:, None, :, 2:]) / 2
        is_free = is_apart.any(dim=3).all(dim=2)
        first = torch.cat([centres[:, i], sides[:, i]], dim=2)[torch.arange(n), is_free.int().argmax(dim=1)]
        places[:, i] = first * (is_free.any(dim=1) & (i < n_wanted)).unsqueeze(1)

    scenes, places, chosen = (part.to(images.device) for part in (ground, places, chosen))
    for i in range(MOST_PICTURES):
        # From a scene's coordinates, -1 to 1 from edge to edge, to those of the picture.
        extent = places[:, i, 2:].clamp(min=1e-3)
        scale, shift = size / extent, (size - 2 * places[:, i, :2]) / extent
        theta = torch.cat([scale.diag_embed(), shift.unsqueeze(2)], dim=2)
        grid = F.affine_grid(theta, [n, 1, size, size], align_corners=False)
        pictures = images[chosen[:, i]].permute(0, 3, 1, 2).float()
        pictures = F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
        scenes = torch.where((grid.abs() <= 1).all(dim=3).unsqueeze(1), pictures, scenes)
    classes = labels[chosen].masked_fill(places[..., 2] == 0, -1)
    scenes = scenes.clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    return scenes, torch.cat([classes.unsqueeze(2), places], dim=2)


class Scenes(Dataset):
    """Scenes as a data set. Their labels are boxes, as `compose` gives them."""

    def train_batches(self, *, augment: bool, **options: object) -> TrainBatches:
        """Starts training batches without end, of images and boxes (b, 3, 5).

        Raises:
            ValueError: They are to be augmented.
        """
        if augment:
            raise ValueError("scenes are not augmented, as their boxes would stay where they are; use augment=False")
        return super().train_batches(augment=False, **options)

    def test_batches(self, *, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the test scenes in order, each with the class of its first picture: `training` tests on one class."""
        for images, boxes in super().test_batches(batch_size=batch_size):
            yield images, boxes[:, 0, 0].long()


def scenes_of(dataset: LabelledImages, *, n_train: int, n_test: int, size: int, generator: torch.Generator) -> Scenes:
    """Composes scenes of a data set's training images, and others, to be tested on, of its test images.

    Args:
        dataset: On the device of the training.
        n_train: Scenes to train on.
        n_test: Scenes to test on.
        size: As for `compose`.
        generator: As for `compose`.
    Raises:
        ValueError: A data set that is streamed.
    """
    if not isinstance(dataset, Dataset):
        raise ValueError(f"scenes are composed of images that lie on a device, but {dataset.name} is streamed")
    how = {"size": size, "generator": generator}
    train = compose(dataset.train_images, dataset.train_labels, n=n_train, **how)
    test = compose(dataset.test_images, dataset.test_labels, n=n_test, **how)
    origin = {"source": dataset.source, "sha256": dataset.sha256}
    return Scenes(dataset.name, *train, *test, dataset.class_names, flip=False, **origin)
