"""ImageFolder trees and archives: train/ and test/ (or val/), in each one folder of images per class.

An archive is read as a stream and decoded in memory; nothing in it is ever written to disk. What no archive
of images needs (links, paths that lead outside, a thousandfold unfolding) is refused, and named.
"""

import gzip
import hashlib
import io
import lzma
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from prunelab import files
from prunelab.data.dataset import Images, area_average

ARCHIVE_SUFFIXES = (".tar.xz", ".tgz", ".tar.gz", ".zip")
SPLITS = ("train", "test", "val")
# PIL knows more: some run programs, others have no mark by which a damaged file is told from theirs.
_KNOWN = {"JPEG", "MPO", "PNG", "BMP", "DIB", "GIF", "WEBP", "PPM", "TIFF", "JPEG2000", "AVIF", "QOI"}
IMAGE_SUFFIXES = {suffix for suffix, name in Image.registered_extensions().items() if name in _KNOWN}
_FORMATS = [name for name in Image.ID if name in _KNOWN]  # what this PIL was built with

# Images hardly shrink once more in an archive, so one that unfolds a hundredfold is a bomb.
MAX_BYTES = 16 << 30
MAX_RATIO = 100
ALWAYS_ALLOWED = 64 << 20
MAX_PIXELS = 50_000_000  # of one image
# What becomes of each image that is read for a size, in words.
CUT = "the largest square at the centre cut out, shrunk by area averaging; what is transparent on white"
_DAMAGE = (EOFError, OSError, NotImplementedError, tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error)


def read(source: Path, *, image_size: int | None = None) -> Images:
    """Decodes a tree or an archive.

    The images of a split are in the order of their paths, whatever the order in the archive. They are grey if
    all of them are, else RGB. What is not named as an image is skipped, as is what is hidden. Of test/ and val/, test/
    counts, unless only val/ has classes of train/: the test images of a challenge have no labels.

    Args:
        source: A folder, or an archive with one of `ARCHIVE_SUFFIXES`. One folder may enclose the splits.
        image_size: Side of the square cut from the centre of each image, as large as fits, and shrunk by area
            averaging. None takes the images as they are, which must then all be square and of one size.
    Raises:
        ValueError: A hostile or damaged archive, images that cannot be used, or another layout.
    """
    pixels, beside, refused, n_bytes = {}, [], [], 0
    for path, content in _image_files(source, beside):
        if _place(path) is None:
            continue
        if path in pixels:
            raise ValueError(f"{source}: {path} occurs twice")
        try:
            pixels[path] = _decode(content, image_size)
            n_bytes += pixels[path].nbytes
        except Exception as error:  # decoders meet damaged files with errors of many kinds
            refused.append(f"{path} ({error})")
        if n_bytes > MAX_BYTES:
            raise ValueError(f"{source}: its images need more than {MAX_BYTES:,} bytes at {path}; set image_size")
    refuse(source, refused)
    _check_classes(source, pixels, beside)
    return assemble(source, pixels)


def refuse(source: Path, faults: Sequence[str]) -> None:
    """Raises ValueError if images have faults: says how many, and names three, each given as its path and reason."""
    if faults:
        raise ValueError(f"{source}: {len(faults)} images cannot be used, such as {'; '.join(faults[:3])}")


def assemble(source: Path, pixels: dict[str, np.ndarray]) -> Images:
    """Stacks decoded images by their paths, as `read` does; a grey one among coloured ones repeats its one channel.

    Args:
        source: What errors call it.
        pixels: uint8 (h, w, c), by path.
    """
    listing = _listing(source, pixels)
    train, test = ([pixels[path] for path in paths] for paths in (listing.train_files, listing.test_files))
    sides = sorted({image.shape[:2] for image in train + test})
    if len(sides) > 1 or sides[0][0] != sides[0][1]:
        shown = ", ".join(f"{width}x{height}" for height, width in sides[:3])
        raise ValueError(f"{source}: images are not all square and of one size ({shown}); set image_size")
    shape = *sides[0], max(image.shape[2] for image in train + test)
    train, test = (
        torch.from_numpy(np.array([np.broadcast_to(image, shape) for image in split])) for split in (train, test)
    )
    return Images(train, listing.train_labels, test, listing.test_labels, listing.class_names)


@dataclass(frozen=True, eq=False)
class Listing:
    """What images a source has, by their paths in it, in the order and with the labels that `read` gives them."""

    train_files: Sequence[str]
    train_labels: Tensor
    test_files: Sequence[str]
    test_labels: Tensor
    class_names: tuple[str, ...]


def list_images(folder: Path) -> Listing:
    """Lists the images of a tree without opening one.

    Raises:
        ValueError: Another layout.
    """
    paths = list(_walk(folder, beside := []))
    _check_classes(folder, paths, beside)
    return _listing(folder, paths)


def _check_classes(source: Path, paths: Iterable[str], beside: Iterable[str]) -> None:
    """Raises ValueError if a class of train/ has no image: its name would be missing, and labels shift.

    Args:
        source: What errors call it.
        paths: Of its images.
        beside: Paths of its folders, each with a slash at its end, and of files that are no images.
    """
    found = {place[1:] for path in paths if (place := _place(path))}
    held: dict[str, list[str]] = {}
    for path in beside:
        if (place := _place(path)) and place[1] == "train" and place[1:] not in found:
            held.setdefault(place[2], []).extend([] if path.endswith("/") else [path])
    held.pop("", None)  # what lies in train/ itself
    if held:
        class_name, others = min(held.items())
        raise ValueError(
            f"{source}: class {class_name!r} has no image that can be read: its folder in train/ "
            + (
                f"holds {len(others)} other files, such as {others[0]}"
                if others
                else "is empty, but for hidden files; remove it"
            )
        )


def sha256(source: Path) -> str:
    """Returns the SHA-256 of an archive, or of the paths and contents of a folder's images."""
    return sha256_of_files(_image_files(source, [])) if source.is_dir() else files.sha256(source)


def sha256_of_files(contents: Iterable[tuple[str, bytes]]) -> str:
    """Returns the SHA-256 over pairs of path and content, in the order given."""
    digest = hashlib.sha256()
    for path, content in contents:
        digest.update(f"{path}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _listing(source: Path, paths: Iterable[str]) -> Listing:
    places = {path: place for path in sorted(paths) if (place := _place(path))}
    enclosing = {above for above, _, _ in places.values()}
    if len(enclosing) > 1:
        raise ValueError(f"{source}: several folders hold a train/, test/ or val/: {', '.join(sorted(enclosing))}")
    found = {split: [path for path, place in places.items() if place[1] == split] for split in SPLITS}
    train, test = found["train"], found["test"] or found["val"]
    classes = {split: {places[path][2] for path in found[split]} for split in SPLITS}
    if classes["val"] & classes["train"] and not classes["test"] & classes["train"]:
        test = found["val"]
    if not train or not test:
        raise ValueError(
            f"{source} has {len(train)} training and {len(test)} test images; "
            "it needs train/ and test/ (or val/) with one folder of images per class"
        )
    if flat := [path for path in train + test if not places[path][2]]:
        raise ValueError(
            f"{source}: {flat[0]} lies in no class folder; {len(flat)} such images must each be put into a folder that"
            " is named after its class, as in train/"
        )
    train_classes, test_classes = ([places[path][2] for path in paths] for paths in (train, test))
    class_names = tuple(sorted(set(train_classes)))
    if unknown := sorted(set(test_classes) - set(class_names)):
        raise ValueError(
            f"{source}: classes in its test set that have no image in train/: {', '.join(unknown[:5])}; an image must"
            " lie in a folder that is named after its class, so those of Tiny-ImageNet's val/images, for instance, as"
            " val_annotations.txt says"
        )
    train_labels, test_labels = (
        torch.from_numpy(np.searchsorted(class_names, classes)) for classes in (train_classes, test_classes)
    )
    return Listing(train, train_labels, test, test_labels, class_names)


def _place(path: str) -> tuple[str, str, str] | None:
    """Splits a path into enclosing folder, split and class, "" if it has none; None for what stands elsewhere."""
    match path.split("/"):
        case [split, class_name, _, *_] if split in SPLITS:
            return "", split, class_name
        case [above, split, class_name, _, *_] if split in SPLITS:
            return f"{above}/", split, class_name
        case [split, _] if split in SPLITS:
            return "", split, ""
        case [above, split, _] if split in SPLITS:
            return f"{above}/", split, ""
    return None


@contextmanager
def opened(file: Path | io.BytesIO) -> Iterator[Image.Image]:
    """Opens one image, of a format and size that can be trusted; its pixels are not decoded yet."""
    with Image.open(file, formats=_FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"more than {MAX_PIXELS:,} pixels")
        if image.mode.startswith(("I", "F")):
            raise ValueError("more than 8 bits a channel; convert it to 8")
        yield image


def _decode(content: bytes, image_size: int | None) -> np.ndarray:
    """Returns one image as uint8 (h, w, 1) if grey, else (h, w, 3)."""
    with opened(io.BytesIO(content)) as image:
        mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
        if image.has_transparency_data:  # shown on white, as a page shows it
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        pixels = np.array(image if image.mode == mode else image.convert(mode))
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    if image_size is None:
        return pixels
    height, width, _ = pixels.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return area_average(pixels[top : top + side, left : left + side], image_size)


def _image_files(source: Path, beside: list[str]) -> Iterator[tuple[str, bytes]]:
    """Yields the path, from the source's top, and the content of each file that is named as an image.

    Paths of all else that is not hidden are appended to `beside`, those of folders with a slash at their end.
    """
    if source.is_dir():
        yield from ((path, (source / path).read_bytes()) for path in _walk(source, beside))
        return
    limit = min(MAX_BYTES, max(ALWAYS_ALLOWED, MAX_RATIO * source.stat().st_size))
    read = _read_zip if source.name.endswith(".zip") else _read_tar
    try:
        for path, content in read(source, limit):
            if _is_image(path):
                yield path, content()
            elif not _is_hidden(path):
                beside.append(path)
    except _DAMAGE as error:
        raise ValueError(f"{source} is truncated or damaged: {error}") from error


def _is_hidden(path: str) -> bool:
    """Tells by its name; macOS puts a hidden ._x.jpg beside x.jpg, which is no image."""
    return "/." in f"/{path}"


def _is_image(path: str) -> bool:
    return not _is_hidden(path) and os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES


def _walk(folder: Path, beside: list[str]) -> Iterator[str]:
    """Yields the path, from the folder, of each file in it that is named as an image; for `beside` see above."""
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        above = Path(parent).relative_to(folder).parts
        if len(above) > 16:
            raise ValueError(f"{parent}: folders too deep; does a link lead back up?")
        for path in ("/".join((*above, name)) for name in [*sorted(names), *(f"{name}/" for name in folders)]):
            if _is_image(path):
                _check_file(folder / path)
                yield path
            elif not _is_hidden(path):
                beside.append(path)


def _check_file(file: Path) -> None:
    """Raises ValueError unless it can be read to an end: a pipe would wait, and a device may never stop."""
    try:
        file.name.encode()
        is_plain = stat.S_ISREG(file.stat().st_mode)
    except UnicodeEncodeError as error:
        raise ValueError(f"{os.fsencode(file)!r}: its name is no UTF-8; rename it") from error
    except OSError as error:
        raise ValueError(f"{file}: a link that leads nowhere, or a file that cannot be looked at: {error}") from error
    if not is_plain:
        raise ValueError(f"{file} is no plain file but a pipe, a socket or a device; remove it")


def _clean_name(archive: Path, name: str, *, plain: bool) -> str:
    """Returns the member's path in its shortest form; refuses members that have no place among images."""
    parts = name.replace("\\", "/").split("/")
    if parts[0] == "" or ".." in parts or re.match("[A-Za-z]:", name):
        raise ValueError(f"{archive}: member {name!r} points outside the archive")
    if not plain:
        raise ValueError(f"{archive}: member {name!r} is neither a plain file nor a folder; links are refused too")
    return "/".join(part for part in parts if part not in ("", "."))


def _read_tar(archive: Path, limit: int) -> Iterator[tuple[str, Callable[[], bytes]]]:
    decompress = lzma.open if archive.name.endswith(".xz") else gzip.open
    with decompress(archive) as raw:
        stream = _Capped(archive, raw, limit=limit)
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                plain = member.isdir() or (member.isreg() and not member.issparse())
                path = _clean_name(archive, member.name, plain=plain)
                yield (f"{path}/", bytes) if member.isdir() else (path, tar.extractfile(member).read)
        while stream.read(1 << 20):  # up to the checksum at the very end
            pass


def _read_zip(archive: Path, limit: int) -> Iterator[tuple[str, Callable[[], bytes]]]:
    with zipfile.ZipFile(archive) as file:
        if sum(member.file_size for member in file.infolist()) > limit:
            raise ValueError(f"{archive} unfolds to more than {limit:,} bytes")
        for member in file.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where it was not made on Unix
            path = _clean_name(archive, member.filename, plain=kind in (0, stat.S_IFREG, stat.S_IFDIR))
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others know no end in advance
                raise ValueError(f"{archive}: member {member.filename!r} is neither stored nor deflated; pack it anew")
            if member.flag_bits & 1:
                raise ValueError(f"{archive}: member {member.filename!r} needs a password")
            content = file.read(member)  # even of what is no image: a damaged name is noticed nowhere else
            yield f"{path}/" if member.is_dir() else path, partial(bytes, content)


class _Capped:
    """A decompressed stream that ends in an error at a limit, before it has filled the memory."""

    def __init__(self, archive: Path, raw: io.BufferedIOBase, *, limit: int) -> None:
        self.archive, self.raw, self.limit, self.n_read = archive, raw, limit, 0

    def read(self, n: int) -> bytes:
        content = self.raw.read(n)
        self.n_read += len(content)
        if self.n_read > self.limit:
            raise ValueError(f"{self.archive} unfolds to more than {self.limit:,} bytes")
        return content
