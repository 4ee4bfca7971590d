"""Batches of normalised images, and what a data set needs for them; made where it lies: no copy, no worker, no loop."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """What all data sets have in common, wherever their images lie.

    Each kind has also `train_labels`, `test_labels` and `class_names`, `source`, `sha256`, `image_size` (of a batch),
    `channels`, `flip` and `train_batches`, and for its batches `test_pixels` and `_moments`; `take` gives a part of it.
    """

    name: str

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def n_train(self) -> int:
        return len(self.train_labels)

    @property
    def n_test(self) -> int:
        return len(self.test_labels)

    @property
    def device(self) -> torch.device:
        """Where batches lie."""
        return self.train_labels.device

    @property
    def mean(self) -> Tensor:
        """Mean pixel of each channel, as a share of 255, by which batches are normalised; float32 (c,)."""
        return self._moments[0]

    @property
    def std(self) -> Tensor:
        """Standard deviation of the pixels of each channel, as `mean`."""
        return self._moments[1]

    def to(self, device: torch.device | str) -> Self:
        """Returns the same data set with its tensors, and so its batches, on another device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)})

    def shared(self, rank: int, n_ranks: int) -> Self:
        """Returns the data set as one of several ranks uses it: its part of each batch, and of the test images.

        Raises:
            ValueError: It lies on a device, or a batch, once it is asked for, cannot be divided equally.
        """
        raise ValueError(f"{self.name} lies on one device, where one process trains; several share streamed images")

    def test_batches(self, *, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the whole test set in order, as `train_batches` gives it; the last batch may be short."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        for images, labels in zip(self.test_pixels(batch_size), self.test_labels.split(batch_size), strict=True):
            yield normalise(images.to(self.device, non_blocking=True), self), labels


def crop_and_flip(
    images: Tensor, index: Tensor, rows: Tensor, columns: Tensor, flips: Tensor, *, padding: int
) -> Tensor:
    """Cuts one crop of the images' own size from each chosen image, mirrored at its borders.

    Reads every pixel once, from where it stands: the border exists only in the arithmetic of indices.

    Args:
        images: uint8 (n, h, h, c), contiguous.
        index: Which images, int64 (b,).
        rows: First row of each crop in the padded image, int64 (b,), in 0..2 * padding.
        columns: First column likewise.
        flips: Bool (b,); True mirrors left and right.
        padding: Border in pixels, less than h. The pixel at the edge is not repeated.
    Returns:
        uint8 (b, h, h, c).
    """
    size, channels = images.shape[1], images.shape[3]
    line = torch.arange(-padding, size + padding, device=images.device)
    line = (size - 1) - ((size - 1) - line.abs()).abs()  # -1, -2 become 1, 2; h, h + 1 become h - 2, h - 3
    window = torch.arange(size, device=images.device)
    row = line[rows[:, None] + window]
    column = line[columns[:, None] + torch.where(flips[:, None], size - 1 - window, window)]
    pixel = ((index[:, None, None] * size) + row[:, :, None]) * size + column[:, None, :]
    return images.view(-1, channels).index_select(0, pixel.flatten()).view(-1, size, size, channels)


class TrainBatches(Iterator[tuple[Tensor, Tensor]]):
    """Training batches without end: each pass takes the images in a new order, full batches only.

    Crops move by up to an eighth of the image size. A pass is drawn as a whole when it starts, so a state
    is the generator's before the pass and the position in it; nobody else may draw from that generator.

    Args:
        dataset: Its training images are used, where they lie.
        batch_size: At most the number of training images.
        augment: Random crops, and flips where the data set allows them.
        generator: Decides order, crops and flips.
    Raises:
        ValueError: An impossible batch size.
    Source: mirrored borders and random crops as in the CIFAR-10 code of Evci et al. 2020, arXiv:1911.11134.
    """

    def __init__(self, dataset: LabelledImages, *, batch_size: int, augment: bool, generator: torch.Generator) -> None:
        if not 1 <= batch_size <= dataset.n_train:
            raise ValueError(
                f"batch_size must lie in 1..{dataset.n_train}, the number of training images; got {batch_size}"
            )
        self.dataset, self.batch_size, self.augment, self.generator = dataset, batch_size, augment, generator
        self.padding = dataset.image_size // 8
        self._start_pass()
        self._batch = self._drawn[:, :batch_size].clone()

    def __next__(self) -> tuple[Tensor, Tensor]:
        """Gives the next images, float32 (b, c, h, h) in channels_last, and their labels, int64 (b,)."""
        self.advance()
        return self.current()

    def advance(self) -> None:
        """Goes on to the next batch, which `current` then gives."""
        if self._position + self.batch_size > self._drawn.shape[1]:
            self._start_pass()
        stop = self._position + self.batch_size
        self._batch.copy_(self._drawn[:, self._position : stop])
        self._position = stop

    def current(self) -> tuple[Tensor, Tensor]:
        """Returns images and labels of the batch in hand, in tensors that stay the same from batch to batch."""
        return normalise(self._pixels(), self.dataset), self.dataset.train_labels[self._batch[0]]

    def state_dict(self) -> dict[str, Tensor | int]:
        return {"pass_start": self._pass_start, "position": self._position}

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        """Goes on bit for bit where `state_dict` was taken, given the same data set and batch size."""
        self.generator.set_state(state["pass_start"].cpu())
        self._start_pass(state["position"])

    def _start_pass(self, position: int = 0) -> None:
        self._pass_start, self._position = self.generator.get_state(), position
        n_images, options = self.dataset.n_train, {"generator": self.generator, "device": self.generator.device}
        drawn = [torch.randperm(n_images, **options)]
        if self.augment:
            drawn += [torch.randint(n_values, (n_images,), **options) for n_values in self._augmentations()]
        # One row for the image of each place in the pass, and if augmented, one for each number that changes it.
        self._drawn = torch.stack(drawn).to(self.dataset.device)

    def _augmentations(self) -> tuple[int, ...]:
        """Returns how many values each number has that changes an image: row, column and flip of its crop."""
        n_offsets = 2 * self.padding + 1
        return n_offsets, n_offsets, 2 if self.dataset.flip else 1

    def _pixels(self) -> Tensor:
        """Returns the images of the batch in hand, uint8 (b, h, h, c)."""
        if not self.augment:
            return self.dataset.train_images[self._batch[0]]
        index, rows, columns, flips = self._batch
        return crop_and_flip(self.dataset.train_images, index, rows, columns, flips.bool(), padding=self.padding)


def normalise(images: Tensor, dataset: LabelledImages) -> Tensor:
    """Turns uint8 (b, h, w, c) into float32 (b, c, h, w), with mean 0 and deviation 1 over the training set."""
    mean, std = (255 * moment.view(1, -1, 1, 1) for moment in (dataset.mean, dataset.std))
    # No pixel moves: what was stored channels-last is read as channels_last.
    return images.permute(0, 3, 1, 2).float().sub_(mean).div_(std)
