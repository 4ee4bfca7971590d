"""Sets of photographs of any size that torchvision can find on disk: which images they have, and how they are split."""

from collections import Counter
from collections.abc import Iterable
from itertools import chain
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import torch

from prunelab.data.folders import Listing


class Photos(NamedTuple):
    """A class of `torchvision.datasets`.

    Args:
        kind: Its name.
        n_images: That it has; where others are found, a download or its unpacking was broken off.
        splits: Its own, the last to test on and the others to train on.
        obstacle: Why it is not downloaded; None where it is.
        first: Where it has no splits: how many images of each class are to train on, in the order of their paths, and
            how many after them to test on, `inf` for all; others are left out. None: every fifth is to test on.
    """

    kind: str
    n_images: int
    splits: tuple[str, ...] = ()
    obstacle: str | None = None
    first: tuple[float, float] | None = None


_GONE = "torchvision can no longer download it, whatever it says"
_LARGE = "its 2.8 GB, which no checksum guards, are not downloaded unasked"
_LARGER = "its 5 GB are not downloaded unasked"
PHOTOS = {
    "eurosat": Photos("EuroSAT", 27_000),
    "caltech101": Photos("Caltech101", 8_677, first=(30, inf)),
    "caltech256": Photos("Caltech256", 30_607, obstacle="its 1.2 GB are not downloaded unasked", first=(60, inf)),
    "pets": Photos("OxfordIIITPet", 7_349, ("trainval", "test")),
    "dtd": Photos("DTD", 5_640, ("train", "val", "test")),
    "cars": Photos("StanfordCars", 16_185, ("train", "test"), _GONE),
    "sun397": Photos("SUN397", 108_754, (), _GONE, first=(50, 50)),
    "aircraft": Photos("FGVCAircraft", 10_000, ("trainval", "test"), _LARGE),
    "flowers": Photos("Flowers102", 8_189, ("train", "val", "test")),
    "food101": Photos("Food101", 101_000, ("train", "test"), _LARGER),
}


def list_images(name: str, root: Path) -> Listing:
    """Lists a set's images where torchvision finds them, or downloads them to.

    Args:
        name: A key of `PHOTOS`.
        root: As torchvision's class takes it.
    Raises:
        ValueError: Images are missing.
        Exception: Of other kinds, where torchvision finds nothing and a download fails.
    """
    from torchvision import datasets  # takes a second to import

    kind, n_images, splits, obstacle, first = PHOTOS[name]
    options = [{"split": split} for split in splits] or [{}]
    parts = [getattr(datasets, kind)(root, **option, download=obstacle is None) for option in options]
    images = [
        sorted((Path(path).relative_to(root).as_posix(), int(label)) for path, label in _images(part)) for part in parts
    ]
    if (found := sum((root / path).is_file() for path, _ in chain(*images))) != n_images:
        raise ValueError(f"{found:,} images instead of {n_images:,}")
    train, test = (sorted(chain(*images[:-1])), images[-1]) if splits else _split(*images, first)
    train_files, test_files = ([path for path, _ in part] for part in (train, test))
    train_labels, test_labels = (torch.tensor([label for _, label in part]) for part in (train, test))
    class_names = parts[0].categories if hasattr(parts[0], "categories") else parts[0].classes
    return Listing(train_files, train_labels, test_files, test_labels, tuple(class_names))


def _images(dataset: Any) -> Iterable[tuple[str | Path, int]]:
    """Returns the path and the label of each image, which torchvision's classes keep each in its own way."""
    if hasattr(dataset, "categories"):  # Caltech101 and Caltech256, whose images are numbered in each class
        (folder,) = Path(dataset.root).glob("*_ObjectCategories")
        prefix = "image" if folder.name.startswith("101") else "{:03}"
        numbered = zip(dataset.index, dataset.y, strict=True)
        return ((folder / dataset.categories[y] / f"{prefix.format(y + 1)}_{n:04}.jpg", y) for n, y in numbered)
    fields = vars(dataset)
    if samples := fields.get("samples") or fields.get("_samples"):  # EuroSAT, StanfordCars
        return samples
    return zip(fields.get("_images") or fields["_image_files"], fields["_labels"], strict=True)  # OxfordIIITPet, others


def _split(
    images: list[tuple[str, int]], first: tuple[float, float] | None
) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Parts images to train on from those to test on, as `Photos` says."""
    seen, parts = Counter(), ([], [])
    for path, label in images:
        seen[label] += 1
        if first is None:
            parts[seen[label] % 5 == 0].append((path, label))
        elif seen[label] <= sum(first):
            parts[seen[label] > first[0]].append((path, label))
    return parts
