"""How many images published sets have, so that what they take can be foretold where they are not.

Sources: Russakovsky et al. 2015, arXiv:1409.0575; ILSVRC2012's two archives have 147,897,477,120 and 6,744,924,160
bytes, as JPEGs do not shrink. Other counts are those of the sets' authors, split as in `photos`; of Birdsnap, of which
links die, those of Salman et al. 2020, arXiv:2007.08489. SUN397 is 39 GB, of which its splits leave most images aside.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from prunelab.data.batches import LabelledImages


class Size(NamedTuple):
    """Of a data set.

    Args:
        n_train: Images to train on.
        n_test: Images to test on.
        num_classes: Of both.
        gigabytes: On disk, as they are downloaded or unpacked; 0.0 for less than a tenth.
        side: In pixels; None where images are of any size.
        channels: 1 or 3.
    """

    n_train: int
    n_test: int
    num_classes: int
    gigabytes: float
    side: int | None = None
    channels: int = 3


SIZES = {
    "imagenet": Size(1_281_167, 50_000, 1000, 154.6),
    "birdsnap": Size(47_386, 2_443, 500, 1.1),
    "eurosat": Size(21_600, 5_400, 10, 0.1),
    "caltech101": Size(3_030, 5_647, 101, 0.1),
    "caltech256": Size(15_420, 15_187, 257, 1.2),
    "pets": Size(3_680, 3_669, 37, 0.8),
    "dtd": Size(3_760, 1_880, 47, 0.6),
    "cars": Size(8_144, 8_041, 196, 1.9),
    "sun397": Size(19_850, 19_850, 397, 39.4),
    "aircraft": Size(6_667, 3_333, 100, 2.8),
    "flowers": Size(2_040, 6_149, 102, 0.3),
    "food101": Size(75_750, 25_250, 101, 5.0),
    "cifar10": Size(50_000, 10_000, 10, 0.2, 32),
    "cifar100": Size(50_000, 10_000, 100, 0.2, 32),
    "svhn": Size(73_257, 26_032, 10, 0.2, 32),
    "mnist": Size(60_000, 10_000, 10, 0.0, 28, 1),
    "mnist10k": Size(8_000, 2_000, 10, 0.0, 28, 1),
    "fashion_mnist": Size(60_000, 10_000, 10, 0.0, 28, 1),
    "tiny-imagenet-200": Size(100_000, 10_000, 200, 0.2, 64),
    "tiny-imagenet-200-32px": Size(100_000, 10_000, 200, 0.2, 32),
}


@dataclass(frozen=True, eq=False)
class AbsentDataset(LabelledImages):
    """Counts and shapes in place of images: there are no batches."""

    train_labels: Tensor
    test_labels: Tensor
    class_names: Sequence[str]
    image_size: int
    channels: int

    def take(self, kept: Tensor, *, held_out: Tensor | None = None) -> "AbsentDataset":
        """As `Dataset.take`."""
        tested = {} if held_out is None else {"test_labels": self.train_labels[held_out]}
        return replace(self, train_labels=self.train_labels[kept], **tested)


def stand_in(name: str, *, image_size: int | None, in_colour: bool) -> AbsentDataset:
    """Makes what a data set is without its images, classes equally large.

    Args:
        name: A key of `SIZES`.
        image_size: Side of the images; None for their own.
        in_colour: Whether grey ones have three channels.
    """
    size = SIZES[name]
    train_labels, test_labels = (torch.arange(n) % size.num_classes for n in (size.n_train, size.n_test))
    class_names = tuple(map(str, range(size.num_classes)))
    channels = 3 if in_colour else size.channels
    return AbsentDataset(name, train_labels, test_labels, class_names, image_size or size.side, channels)
