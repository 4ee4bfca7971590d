"""A data set that stays on disk: a folder of images of any size, decoded by threads a little ahead of their use."""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from prunelab import files
from prunelab.data import cache, folders
from prunelab.data.batches import LabelledImages, TrainBatches, normalise
from prunelab.data.dataset import Images
from prunelab.progress import progress_of

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's channels, as everybody has them
RESIZED = 256 / 224  # shorter side of a test image before its centre is cut out, in sides of the crop
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # area of a training crop, as a share of the image, and width by height
_LOG_RATIO = torch.tensor(RATIO).log().tolist()
_N_TRIES = 10  # for a crop that fits into the image
_N_CHECKED = 1024  # images between two looks at what was found


@dataclass(frozen=True, eq=False)
class StreamedDataset(folders.Listing, LabelledImages):
    """Images in a folder, as `data.Dataset` wherever images come in batches; there are no tensors of all of them.

    A crop of random area and shape is cut from each training image, resized, and mirrored in one case of two; of a test
    image the centre is cut. Grey images become coloured.

    Args:
        train_files: Paths in the folder.
        train_labels: int64 (n,), indices into `class_names`, on the device that batches are for.
        test_files: As `train_files`.
        test_labels: As `train_labels`.
        class_names: One for each label.
        name: As it was asked for.
        folder: Holds the images.
        source: "imagenet" or "torchvision EuroSAT".
        image_size: Side of the crops.
        sha256: Of the paths and sizes of all images, not of their contents, which would take hours.
        n_threads: That decode images; results do not depend on how many.
        part: Which of how many equal parts of each training batch is wanted, counted from 0; the order of images and
            their crops are those of the whole.
    """

    folder: Path
    source: str
    image_size: int
    sha256: str
    n_threads: int
    part: tuple[int, int] = field(default=(0, 1), kw_only=True)
    channels: ClassVar[int] = 3
    flip: ClassVar[bool] = True

    @cached_property
    def _moments(self) -> Tensor:
        return torch.tensor([MEAN, STD], device=self.device)

    @property
    def cut(self) -> str:
        """What becomes of each test image, in words."""
        side, size = round(RESIZED * self.image_size), self.image_size
        return f"shorter side resized to {side} by bilinear filtering, {size}x{size} cut out of the centre"

    def train_batches(self, *, batch_size: int, augment: bool, generator: torch.Generator) -> "StreamedBatches":
        """Starts training batches without end."""
        return StreamedBatches(self, batch_size=batch_size, augment=augment, generator=generator)

    def shared(self, rank: int, n_ranks: int) -> "StreamedDataset":
        tested = {"test_files": self.test_files[rank::n_ranks], "test_labels": self.test_labels[rank::n_ranks]}
        return replace(self, part=(rank, n_ranks), **tested)

    def test_pixels(self, batch_size: int) -> Iterator[Tensor]:
        """Yields the test images in order, uint8, in parts of `batch_size`."""
        return _decoded(self, self.test_files, torch.arange(self.n_test)[:, None].split(batch_size))

    def opened(self, path: str) -> AbstractContextManager[Image.Image]:
        """Opens one of the images by its path in the folder."""
        return folders.opened(self.folder / path)

    def take(self, kept: Tensor, *, held_out: Tensor | None = None) -> "StreamedDataset":
        """Returns the data set with those of its training images, int64, and others in place of its test images."""
        tested = {}
        if held_out is not None:
            test_files = [self.train_files[i] for i in held_out.tolist()]
            tested = {"test_files": test_files, "test_labels": self.train_labels[held_out]}
        train_files = [self.train_files[i] for i in kept.tolist()]
        return replace(self, train_files=train_files, train_labels=self.train_labels[kept], **tested)


def open_listing(folder: Path, listing: folders.Listing, *, name: str, source: str, image_size: int) -> StreamedDataset:
    """Makes a data set of images that are listed, opening none; the arguments are its own."""
    lines = [f"{path}\0{os.stat(folder / path).st_size}" for path in listing.train_files + listing.test_files]
    return StreamedDataset(
        name=name,
        folder=folder,
        source=source,
        **vars(listing),
        image_size=image_size,
        sha256=files.sha256("\n".join(lines).encode()),
        n_threads=torch.get_num_threads(),
    )


@dataclass(frozen=True, eq=False)
class EnlargedDataset(StreamedDataset):
    """Small images that are held, and cut, enlarged and mirrored as they are used, as if they were photographs.

    Args:
        pixels: uint8 (h, w, 3), by path; there is no folder.
    """

    pixels: Mapping[str, np.ndarray]

    def opened(self, path: str) -> AbstractContextManager[Image.Image]:
        return Image.fromarray(self.pixels[path])


def enlarge(images: Images, *, name: str, source: str, sha256: str, image_size: int) -> EnlargedDataset:
    """Makes a data set of coloured images that are smaller than its crops; the arguments are its own."""
    train, test = (
        {f"{split}/{number}": image for number, image in enumerate(part.numpy())}
        for split, part in (("train", images.train_images), ("test", images.test_images))
    )
    listing = folders.Listing([*train], images.train_labels, [*test], images.test_labels, images.class_names)
    return EnlargedDataset(
        **vars(listing),
        name=name,
        folder=Path(source),
        source=source,
        image_size=image_size,
        sha256=sha256,
        n_threads=torch.get_num_threads(),
        pixels=train | test,
    )


class StreamedBatches(TrainBatches):
    """As `TrainBatches`, bit for bit resumable too; without `augment` images are as in the test set.

    Threads decode, since a DataLoader's workers are processes, which a worker of the engine may not start. They touch
    no shared generator: an image's crop follows from a seed that was drawn for its place in the pass.
    """

    def __init__(self, dataset: StreamedDataset, *, batch_size: int, augment: bool, generator: torch.Generator) -> None:
        (part, n_parts), size = dataset.part, dataset.image_size
        if batch_size % n_parts:
            raise ValueError(f"a batch of {batch_size} images cannot be divided equally among {n_parts} processes")
        n_own = batch_size // n_parts
        self._own = slice(part * n_own, (part + 1) * n_own)
        super().__init__(dataset, batch_size=batch_size, augment=augment, generator=generator)
        self._images = torch.zeros(n_own, size, size, 3, dtype=torch.uint8, device=dataset.device)

    def advance(self) -> None:
        super().advance()
        self._images.copy_(next(self._decoded), non_blocking=True)

    def current(self) -> tuple[Tensor, Tensor]:
        return normalise(self._images, self.dataset), self.dataset.train_labels[self._batch[0, self._own]]

    def _start_pass(self, position: int = 0) -> None:
        super()._start_pass(position)
        parts = self._drawn.T[position:].cpu().split(self.batch_size)
        n_full = (self.dataset.n_train - position) // self.batch_size
        self._decoded = _decoded(self.dataset, self.dataset.train_files, [part[self._own] for part in parts[:n_full]])

    def _augmentations(self) -> tuple[int, ...]:
        return (1 << 32,)  # the seed of a crop; torch's generator on the CPU takes no more bits


def _decoded(dataset: StreamedDataset, paths: Sequence[str], parts: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yields the images of each part, uint8 (b, h, h, 3), while threads decode those of the next.

    Args:
        dataset: Says how.
        paths: In its folder.
        parts: Of each batch the indices into `paths`, int64 (b, 1), or indices and seeds, (b, 2).
    """
    size, is_pinned = dataset.image_size, dataset.device.type == "cuda"
    pool, ahead = ThreadPoolExecutor(dataset.n_threads), deque()
    try:
        for part in parts:
            images = torch.empty(len(part), size, size, 3, dtype=torch.uint8, pin_memory=is_pinned)
            work = [
                pool.submit(_decode_into, image, dataset, paths[i], *seed)
                for image, (i, *seed) in zip(images.numpy(), part.tolist(), strict=True)
            ]
            ahead.append((images, work))
            if len(ahead) > 1 + 2 * dataset.n_threads // max(1, len(part)):  # small batches leave no thread idle either
                yield _finished(*ahead.popleft())
        while ahead:
            yield _finished(*ahead.popleft())
    finally:  # also when nobody wants the rest
        pool.shutdown(wait=False, cancel_futures=True)


def _finished(images: Tensor, work: list) -> Tensor:
    for one in work:
        one.result()
    return images


def _decode_into(pixels: np.ndarray, dataset: StreamedDataset, path: str, seed: int | None = None) -> None:
    """Fills uint8 (h, h, 3) with a random crop of the image there, or without a seed with its centre."""
    size = len(pixels)
    try:
        with _opened(dataset, path) as file:
            image = file.convert("RGB")
    except Exception as error:  # decoders meet damaged files with errors of many kinds
        raise ValueError(f"{dataset.folder / path} cannot be used as an image: {error}") from error
    if seed is None:
        image = F.center_crop(F.resize(image, [round(RESIZED * size)]), [size, size])
    else:
        generator = torch.Generator().manual_seed(seed)
        image = F.resized_crop(image, *random_crop(*image.size, generator=generator), size=[size, size])
        if torch.rand((), generator=generator) < 0.5:
            image = F.horizontal_flip(image)
    pixels[...] = image


@contextmanager
def _opened(dataset: StreamedDataset, path: str) -> Iterator[Image.Image]:
    """Opens an image whose shorter side can become what is cut from; its pixels are not decoded yet."""
    with dataset.opened(path) as image:
        if max(image.size) / min(image.size) * (RESIZED * dataset.image_size) ** 2 > folders.MAX_PIXELS:
            raise ValueError(f"with its {image.width}x{image.height} pixels it is too long to be resized")
        yield image


def check(dataset: StreamedDataset, *, passed: Path, quiet: bool = False) -> None:
    """Decodes every image once, so that a damaged one is found before a training of days, not in it.

    JPEGs are decoded at an eighth of their size: that reads them to their end, and takes two thirds of the time. Only
    headers would take a twentieth, and miss every file that was cut short.

    Args:
        dataset: Its images are checked, by all cores.
        passed: File that remembers it, until a path, a size or a time of change does.
        quiet: Shows no progress.
    Raises:
        ValueError: Images that cannot be used; says how many, and names three.
    """

    def fault(path: str) -> str | None:
        try:
            with _opened(dataset, path) as image:
                image.draft(None, (1, 1))
                image.convert("RGB")
        except Exception as error:  # decoders meet damaged files with errors of many kinds
            return f"{path} ({error})"

    images, faults = [*dataset.train_files, *dataset.test_files], []
    times = [(dataset.folder / path).stat().st_mtime_ns for path in images]
    mark = files.sha256(f"{dataset.sha256} {times}".encode())
    with cache.building(passed.with_suffix(".lock")):  # once, whoever else wants it
        if passed.is_file() and passed.read_text() == mark:
            return
        with ThreadPoolExecutor() as pool, progress_of(len(images), what="images", to="check", quiet=quiet) as tell:
            for start in range(0, len(images), _N_CHECKED):
                faults += filter(None, pool.map(fault, images[start : start + _N_CHECKED]))
                tell(min(start + _N_CHECKED, len(images)))
        folders.refuse(dataset.folder, faults)
        with suppress(OSError):  # a read-only folder: they are checked again next time
            files.atomic_write(passed, mark)


def random_crop(width: int, height: int, *, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Draws where to cut an image, as torchvision's RandomResizedCrop would if it took a generator.

    Returns:
        Top, left, height and width.
    """
    for _ in range(_N_TRIES):
        area = width * height * torch.empty(1).uniform_(*SCALE, generator=generator).item()
        ratio = torch.empty(1).uniform_(*_LOG_RATIO, generator=generator).exp().item()
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            top = torch.randint(height - h + 1, (1,), generator=generator).item()
            return top, torch.randint(width - w + 1, (1,), generator=generator).item(), h, w
    # An image too long for any: its centre, as long as may be.
    w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    return (height - h) // 2, (width - w) // 2, h, w
