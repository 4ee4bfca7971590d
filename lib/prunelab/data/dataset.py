"""A data set that lies on a device as uint8, and what can be done to it without reading it again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np
import torch
from torch import Tensor

from prunelab.data.batches import LabelledImages, TrainBatches


@dataclass(frozen=True, eq=False)
class Images:
    """What a source yields: images uint8 (n, h, w, c), labels int64 (n,), and the name of each label."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]

    def map(self, change: Callable[[Tensor], Tensor]) -> "Images":
        """Returns them with their training and test images changed, and the same labels."""
        return replace(self, train_images=change(self.train_images), test_images=change(self.test_images))


@dataclass(frozen=True, eq=False)
class Dataset(Images, LabelledImages):
    """Training and test images on one device.

    Args:
        name: As it was asked for.
        train_images: uint8 (n, h, w, c), square, c is 1 or 3.
        train_labels: int64 (n,), indices into `class_names`.
        test_images: As `train_images`.
        test_labels: As `train_labels`.
        class_names: One for each label.
        flip: Whether a mirrored image is still an image of its class.
        source: "cifar10.tar.xz", "torchvision CIFAR10" or "embedded".
        sha256: Of that source.
    """

    flip: bool
    source: str
    sha256: str

    @property
    def image_size(self) -> int:
        return self.train_images.shape[1]

    @property
    def channels(self) -> int:
        return self.train_images.shape[3]

    def train_batches(self, *, batch_size: int, augment: bool, generator: torch.Generator) -> TrainBatches:
        """Starts training batches without end."""
        return TrainBatches(self, batch_size=batch_size, augment=augment, generator=generator)

    def test_pixels(self, batch_size: int) -> Sequence[Tensor]:
        """Returns the test images in order, uint8, in parts of `batch_size`."""
        return self.test_images.split(batch_size)

    def take(self, kept: Tensor, *, held_out: Tensor | None = None) -> "Dataset":
        """Returns the data set with those of its training images, int64, and others in place of its test images."""
        tested = {}
        if held_out is not None:
            tested = {"test_images": self.train_images[held_out], "test_labels": self.train_labels[held_out]}
        return replace(self, train_images=self.train_images[kept], train_labels=self.train_labels[kept], **tested)

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the training pixels; at least one grey level, so that one can divide by it."""
        # Counting the 256 grey levels is exact: no sum over millions of floats depends on threads or device.
        counts = sum(
            torch.stack([channel.flatten().bincount(minlength=256) for channel in images.unbind(dim=3)])
            for images in self.train_images.split(1024)
        )
        shares = counts.double() / counts.sum(dim=1, keepdim=True)
        levels = torch.arange(256, device=counts.device).double() / 255
        mean = shares @ levels
        variance = (shares * (levels - mean[:, None]) ** 2).sum(dim=1)
        return mean.float(), variance.sqrt().clamp(min=1 / 255).float()


def balanced_sample(labels: Tensor, n: int, *, generator: torch.Generator) -> Tensor:
    """Chooses n images with as many of each class as can be.

    Classes take turns, each giving its images in a random order. So totals differ by one at most until a
    class is used up, and a smaller sample from an equal generator is part of a larger one.

    Args:
        labels: int64 (n_images,), on the CPU.
        n: How many, at most n_images.
        generator: Decides which.
    Returns:
        Ascending indices, int64 (n,).
    """
    shuffled = torch.randperm(len(labels), generator=generator)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    counts = labels.bincount()
    first = counts.cumsum(0) - counts
    turn = torch.arange(len(labels)) - first[labels[by_class]]
    return by_class[turn.argsort(stable=True)[:n]].sort().values


def split(dataset: LabelledImages, *, n_train: int | None = None, n_validation: int | None = None) -> LabelledImages:
    """Returns the data set with part of its training images, and to tune on, with others in place of its test images.

    Classes are balanced, and the same images are taken on every call: first those to train on, whatever is held out.
    Where classes are so unequal that a small one would be used up before, each gives its share of what is held out.

    Args:
        dataset: Left as it is.
        n_train: Images to train on; None takes all that are not held out.
        n_validation: Images to hold out; None keeps the test images.
    Raises:
        ValueError: Too many images, or none.
    """
    last = dataset.n_train - (n_validation or 0)
    for name, n, most in (("n_validation", n_validation, dataset.n_train - 1), ("n_train", n_train, last)):
        if n is not None and not 1 <= n <= most:
            raise ValueError(
                f"{name} must lie in 1..{most}, as {dataset.name} has {dataset.n_train} training images; got {n}"
            )
    labels = dataset.train_labels.cpu()
    n_train = last if n_train is None else n_train
    taken, more = (
        balanced_sample(labels, n, generator=torch.Generator().manual_seed(0)).to(dataset.device)
        for n in (n_train, n_train + (n_validation or 0))
    )
    if not n_validation:
        return dataset.take(taken)
    held_out = more[~torch.isin(more, taken)]
    if len(labels[held_out].unique()) < min(dataset.num_classes, n_validation):
        from sklearn.model_selection import train_test_split  # takes seconds to import

        parts = train_test_split(np.arange(dataset.n_train), test_size=n_validation, stratify=labels, random_state=0)
        rest, held_out = (torch.from_numpy(part).sort().values.to(dataset.device) for part in parts)
        of_rest = balanced_sample(labels[rest.cpu()], n_train, generator=torch.Generator().manual_seed(0))
        taken = rest[of_rest.to(dataset.device)]
    return dataset.take(taken, held_out=held_out)


def area_average(image: np.ndarray, size: int) -> np.ndarray:
    """Shrinks a square image; each new pixel is the mean of the area it covers, where it cuts old pixels too.

    Args:
        image: uint8 (h, h, c).
        size: New side, at most h.
    Returns:
        uint8 (size, size, c), rounded.
    Raises:
        ValueError: The image would have to be enlarged.
    """
    side, _, channels = image.shape
    if size > side:
        raise ValueError(f"image_size {size} would enlarge an image of {side}x{side} pixels")
    if size == side:
        return image
    cover = _cover(side, size)
    rows = cover @ image.reshape(side, side * channels).astype(np.float32)
    return np.rint(cover @ rows.reshape(size, side, channels)).astype(np.uint8)


@cache
def _cover(side: int, size: int) -> np.ndarray:
    """Returns the share of each new pixel that each old one covers, float32 (size, side); rows sum to 1."""
    edges = np.arange(size + 1) * side / size
    pixels = np.arange(side)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (overlap.clip(min=0) * size / side).astype(np.float32)
