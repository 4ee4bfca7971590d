"""Names of data sets, where each one comes from, and what to do when it is absent."""

import io
import re
from collections.abc import Callable
from functools import partial
from http.client import HTTPException
from importlib.metadata import version
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from prunelab import files, paths
from prunelab.data import absent, cache, embedded, folders, photos, tasks
from prunelab.data import dataset as dataset_module
from prunelab.data.dataset import Dataset, Images, LabelledImages, area_average, split

TORCHVISION = {
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "svhn": "SVHN",
    "mnist10k": "MNIST",
    "omniglot-small": "Omniglot",
}
ENLARGED = {f"{name}:enlarged": name for name in ("cifar10", "cifar100")}  # for networks that take photographs
# Too large for a device, or of many sizes, some of which must be enlarged.
STREAMED = ("imagenet", "birdsnap", *photos.PHOTOS, *ENLARGED)
_STREAMED_SIZE = 224
_OMNIGLOT_SMALL = re.compile(  # alphabet, character, drawer
    r"images_background/(Balinese|Early_Aramaic|Greek|Japanese_\(katakana\)|Korean|Latin|Sanskrit|Tagalog)"
    r"/(character\d\d)/\d{4}_(\d\d)\.png"
)
_UNPACKED_SHA256 = {  # of what torchvision unpacks from archives that it checks, and reads unchecked from then on
    "MNIST": {
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    "FashionMNIST": {
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
}
_NEVER_FLIPPED = {"svhn"}  # digits, though in colour
_DRAWN_BY = ("matplotlib", "pillow", "scikit-learn", "torch")


class DatasetNotFoundError(FileNotFoundError):
    """A data set that is not on this machine and could not be fetched; says how to get it."""


def load(
    name: str,
    *,
    image_size: int | None = None,
    n_train: int | None = None,
    n_validation: int | None = None,
    in_colour: bool = False,
    device: torch.device | str = "cpu",
) -> LabelledImages:
    """Loads a data set onto a device: decoded before, from an archive or folder, or downloaded.

    What is in `STREAMED` stays in its folder instead, and its images are decoded, resized and cut as they are used;
    those of `ENLARGED` are held and the rest done alike.

    Args:
        name: "digits"; "glyphs", or "glyphs:greek", "glyphs:cyrillic:40" for another family and number of
            classes; the name of an ImageFolder tree or archive in `paths.DATA`; that name with a colon and one of the
            `tasks`, such as "tiny-imagenet-200-32px:insects", for those of its classes; a key of `TORCHVISION`; or one
            of `STREAMED`.
        image_size: Side of the images, shrunk by area averaging; from images that are not square, the largest
            square is cut first. None leaves them as they are. Where streamed, side of the crops, 224 for None: what is
            smaller is enlarged.
        n_train: A class-balanced part of the training images, always the same; None takes them all.
        n_validation: Other training images, in place of the test images: to tune on; None keeps the test images.
        in_colour: Whether grey images get three equal channels, so that one network takes both kinds; they are still
            not flipped.
        device: Where the images go.
    Raises:
        ValueError: Unknown name or task, impossible size or number, or a source that cannot be used or has one class.
        DatasetNotFoundError: Neither on this machine nor within reach.
    """
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be at least 1, or None for the images' own size; got {image_size}")
    if name in STREAMED:
        dataset = _streamed(name, image_size or _STREAMED_SIZE)
    else:
        images, source, sha256 = _entry(name, image_size)
        flip = images.train_images.shape[3] == 3 and name not in _NEVER_FLIPPED
        if in_colour:
            images = images.map(lambda grey: grey.expand(-1, -1, -1, 3).contiguous())
        dataset = Dataset(name, **vars(images), flip=flip, source=source, sha256=sha256)
    _check_classes(dataset)
    if n_train is not None or n_validation is not None:
        dataset = split(dataset, n_train=n_train, n_validation=n_validation)
    return dataset.to(device)


def load_from(source: Path, *, image_size: int, device: torch.device | str = "cpu") -> LabelledImages:
    """Loads a reader's own photographs, wherever they lie, in three channels.

    Those of a folder are decoded, resized and cut as they are used, as those of `STREAMED`; `check` sees that all can
    be. Those of an archive are decoded now, shrunk by area averaging, and held.

    Args:
        source: A folder or an archive in ImageFolder form, as `folders.read` takes it.
        image_size: Side of the images in pixels.
        device: Where batches go.
    Raises:
        DatasetNotFoundError: There is nothing of that kind.
        ValueError: Another layout, a single class, or images of an archive that cannot be used; says how many.
    """
    if source.is_dir():
        from prunelab.data import streams

        listing = folders.list_images(source)
        dataset = streams.open_listing(source, listing, name=str(source), source=source.name, image_size=image_size)
    elif source.is_file() and source.name.endswith(folders.ARCHIVE_SUFFIXES):
        images, sha256 = folders.read(source, image_size=image_size), folders.sha256(source)
        flip = images.train_images.shape[3] == 3
        images = images.map(lambda pixels: pixels.expand(-1, -1, -1, 3).contiguous())
        dataset = Dataset(str(source), **vars(images), flip=flip, source=source.name, sha256=sha256)
    else:
        raise DatasetNotFoundError(
            f"there is no folder or archive of images {source}; it needs train/ and test/ (or val/) with one folder of "
            f"images per class, in a folder or in a file that ends in {', '.join(folders.ARCHIVE_SUFFIXES)}"
        )
    _check_classes(dataset)
    return dataset.to(device)


def check(dataset: LabelledImages) -> None:
    """Decodes the images of `load_from` once, where they lie in a folder, to see that all can be; that is remembered.

    Raises:
        ValueError: Images that cannot be used; says how many, and names three.
    """
    from prunelab.data import streams

    if isinstance(dataset, streams.StreamedDataset):
        streams.check(dataset, passed=paths.CACHE / f"{dataset.sha256[:16]}-{dataset.image_size}.checked")


def _check_classes(dataset: LabelledImages) -> None:
    if dataset.num_classes < 2:
        raise ValueError(
            f"{dataset.name} has images of a single class, {dataset.class_names[0]}, so there is nothing to tell apart;"
            " it needs two or more folders of images in train/"
        )


def require(name: str, *, image_size: int | None = None, quiet: bool = False) -> None:
    """Makes sure that a data set is on this machine, before many want it; downloads what torchvision has.

    What is in `STREAMED` is decoded once, to see that all of it can be; that is remembered.

    Args:
        name: As for `load`.
        image_size: As for `load`.
        quiet: Shows no progress.
    Raises:
        ValueError: Impossible name of glyphs, an unknown task, a folder of another layout, or images that cannot be
            used, of which it says how many, and names three.
        DatasetNotFoundError: Neither on this machine nor within reach.
    """
    name = ENLARGED.get(name, name)
    if name in STREAMED:
        from prunelab.data import streams

        dataset = _streamed(name, image_size or _STREAMED_SIZE)
        streams.check(dataset, passed=paths.CACHE / f"{name}-{dataset.image_size}.checked", quiet=quiet)
    elif name in TORCHVISION and not _find_source(name):
        _entry(name, image_size)
    elif _origin(name)[1] is None and not _cached(name, image_size).is_file():
        raise DatasetNotFoundError(
            f"There is no {name} on this machine. Either {_put_it(name)}; "
            "or choose the profile 'smoke', which needs no download."
        )


def foresee(
    name: str,
    *,
    image_size: int | None = None,
    n_train: int | None = None,
    n_validation: int | None = None,
    in_colour: bool = False,
) -> LabelledImages:
    """Returns what `load` would, or counts and shapes in its place where these are known and the images not here.

    Nothing that is known is downloaded. Arguments and errors are those of `load`.
    """
    whole = ENLARGED.get(name, name)
    if whole not in absent.SIZES or _is_here(whole, image_size):
        options = {"n_train": n_train, "n_validation": n_validation, "in_colour": in_colour}
        return load(name, image_size=image_size, **options)
    size = image_size or (_STREAMED_SIZE if name in STREAMED else None)
    dataset = absent.stand_in(whole, image_size=size, in_colour=in_colour)
    if n_train is not None or n_validation is not None:
        dataset = split(dataset, n_train=n_train, n_validation=n_validation)
    return dataset


def gigabytes(name: str) -> float:
    """Returns what the images of a data set take on disk, 0 where that is not known or less than a tenth."""
    size = absent.SIZES.get(name.partition(":")[0])  # the whole set, of which a task is a part
    return size.gigabytes if size else 0.0


def _is_here(name: str, image_size: int | None) -> bool:
    if name in STREAMED:
        return (paths.DATA / name).is_dir()
    return _find_source(name) is not None or _cached(name, image_size).is_file()


def decoded_file(name: str, image_size: int | None) -> Path | None:
    """Returns where the images that `load` gives lie decoded, once it was called; None where they are streamed."""
    name, image_size = (ENLARGED[name], None) if name in ENLARGED else (name, image_size)
    return None if name in STREAMED else _cached(name, image_size)


def _streamed(name: str, image_size: int) -> LabelledImages:
    from prunelab.data import streams  # and with it torchvision, which takes a second to import

    if name in ENLARGED:
        images, source, sha256 = _entry(ENLARGED[name], None)
        return streams.enlarge(images, name=name, source=source, sha256=sha256, image_size=image_size)
    folder, listing, source = _listed(name)
    return streams.open_listing(folder, listing, name=name, source=source, image_size=image_size)


def _listed(name: str) -> tuple[Path, folders.Listing, str]:
    """Finds the folder of what is streamed, the images in it, and what records call it."""
    folder, root = paths.DATA / name, paths.CACHE / "torchvision" / name
    if folder.is_dir():
        return folder, folders.list_images(folder), name
    said = (
        f"there is no folder {folder}: {name} is read from its images as they are used, so put train/ and val/ "
        "(or test/) there, with one folder of images per class; an archive must be unpacked. "
    )
    if name not in photos.PHOTOS:
        raise DatasetNotFoundError(f"{said}torchvision has no download of it; the profile 'smoke' needs none")
    kind, obstacle = photos.PHOTOS[name].kind, photos.PHOTOS[name].obstacle
    try:
        with cache.building(paths.CACHE / f"{name}.lock"), files.download_timeout():
            return root, photos.list_images(name, root), f"torchvision {kind}"
    except Exception as error:  # of many kinds, where a download was broken off
        raise DatasetNotFoundError(
            f"{said}Or let torchvision.datasets.{kind} find it in {root}, where it does not yet "
            f"({type(error).__name__}: {error}); {obstacle or 'empty that folder, and try again while online'}. "
            "The profile 'smoke' needs no download"
        ) from error


def _entry(name: str, image_size: int | None) -> cache.Entry:
    """Takes images from the cache, or else builds and caches them."""
    if not re.fullmatch(r"\w[\w .+:-]{0,99}", name):  # it becomes part of file names
        raise ValueError(f"unknown data set {name!r}; {_known()}")
    key, build = _origin(name)
    path = _cached(name, image_size)
    if entry := cache.read(path, key=key):
        return entry
    if build is None and not path.is_file():
        raise ValueError(f"unknown data set {name!r}; {_known()}")
    if build is None:
        raise DatasetNotFoundError(
            f"the decoded copy of {name} in {path} is damaged and its source is gone; "
            f"put it back into {paths.DATA} as one of {_accepted(name)}"
        )
    with cache.building(paths.CACHE / f"{name.replace(':', '-')}.lock"):  # one for all sizes
        entry = cache.read(path, key=key)  # by another process, while this one waited
        if entry is None:
            entry = build(image_size)
            cache.write(path, entry, key=key)
    return entry


def _cached(name: str, image_size: int | None) -> Path:
    return paths.CACHE / f"{name.replace(':', '-')}-{image_size or 'native'}.pt"


def _origin(name: str) -> tuple[str | None, Callable[[int | None], cache.Entry] | None]:
    """Finds where a data set would be built from.

    Returns:
        key: Changes when what would be built changes; None where it never does.
        build: Takes the image size; None where there is nothing to build from.
    """
    if name == "digits" or name.partition(":")[0] == "glyphs":
        draw = embedded.digits if name == "digits" else _glyphs(name)
        return _code_sha256(), partial(_build_embedded, draw)
    if source := _find_source(name):
        sha256 = folders.sha256(source)
        return sha256, lambda size: cache.Entry(folders.read(source, image_size=size), source.name, sha256)
    if name in TORCHVISION:
        return None, partial(_build_torchvision, name)
    whole, _, task = name.partition(":")
    if task and _find_source(whole):
        classes = " ".join(tasks.named_classes(task))
        return f"{_origin(whole)[0]} {classes}", partial(_build_task, whole, task)
    return None, None


def _glyphs(name: str) -> Callable[[], Images]:
    if not (match := re.fullmatch(r"glyphs(?::([a-z]+)(?::([0-9]+))?)?", name)):
        raise ValueError(f"glyphs are named 'glyphs', 'glyphs:<family>' or 'glyphs:<family>:<classes>', not {name!r}")
    family, n_classes = match.groups()
    return partial(embedded.glyphs, *([family] if family else []), *([int(n_classes)] if n_classes else []))


def _code_sha256() -> str:
    """Returns the SHA-256 of what draws the embedded images: our code, and the versions of what it calls."""
    code = [Path(module.__file__).read_bytes() for module in (embedded, dataset_module)]
    return files.sha256(b"\n".join(code + [version(package).encode() for package in _DRAWN_BY]))


def _build_embedded(draw: Callable[[], Images], image_size: int | None) -> cache.Entry:
    images = draw()
    drawn = ((field, tensor.numpy().tobytes()) for field, tensor in vars(images).items() if field != "class_names")
    return cache.Entry(_resized(images, image_size), "embedded", folders.sha256_of_files(drawn))


def _build_task(whole: str, task: str, image_size: int | None) -> cache.Entry:
    """Cuts a task from the cached images of its archive, which all tasks share."""
    entry = _entry(whole, image_size)
    return entry._replace(images=tasks.cut(entry.images, task, source=entry.source))


def _build_torchvision(name: str, image_size: int | None) -> cache.Entry:
    """Builds from torchvision, which downloads where it must and checks its files by MD5; CIFAR's are pickles."""
    root = paths.CACHE / "torchvision" / name
    _check_unpacked(root / TORCHVISION[name])
    try:
        with files.download_timeout():
            images = _torchvision_images(name, root)
    except (OSError, RuntimeError, HTTPException) as error:
        raise DatasetNotFoundError(
            f"There is no usable copy of {name} on this machine, and its download failed "
            f"({type(error).__name__}: {error}). Either {_put_it(name)}; or call prunelab.data.load({name!r}) once "
            f"while online, and torchvision downloads it into {root}; or choose the profile 'smoke', "
            "which needs no download."
        ) from error
    raw = sorted(path for path in root.rglob("*") if path.is_file())
    sha256 = folders.sha256_of_files((path.relative_to(root).as_posix(), path.read_bytes()) for path in raw)
    return cache.Entry(_resized(images, image_size), f"torchvision {TORCHVISION[name]}", sha256)


def _check_unpacked(folder: Path) -> None:
    """Raises ValueError where torchvision would read, unchecked, what is not as published."""
    published = _UNPACKED_SHA256.get(folder.name, {})
    for name, sha256 in published.items():
        if (file := folder / "raw" / name).exists() and files.sha256(file) != sha256:
            raise ValueError(
                f"{file} is not as published, by its SHA-256; remove it, and torchvision unpacks or downloads it anew"
            )
    if published and (earlier := folder / "processed").exists():
        raise ValueError(f"{earlier} is an earlier torchvision's, and nothing tells what is in it; remove it")


def _torchvision_images(name: str, root: Path) -> Images:
    from torchvision import datasets  # takes a second to import

    kind = getattr(datasets, TORCHVISION[name])
    if name == "mnist10k":
        return _mnist10k(kind(root, train=False, download=True))
    if name == "omniglot-small":
        return _omniglot_small(kind(root, background=True, download=True))
    splits = [{"split": "train"}, {"split": "test"}] if name == "svhn" else [{"train": True}, {"train": False}]
    train, test = (kind(root, **split, download=True) for split in splits)
    return Images(*_tensors(train), *_tensors(test), tuple(getattr(train, "classes", "0123456789")))


def _mnist10k(dataset: torch.utils.data.Dataset) -> Images:
    """Splits MNIST's 10,000 test images: 8,000 to train on, the others to test; class by class, as in a folder."""
    images, labels = _tensors(dataset)
    pixels = {
        f"{'train' if number < 8000 else 'test'}/{label}/{number:04}": image
        for number, (image, label) in enumerate(zip(images.numpy(), labels.tolist(), strict=True))
    }
    return folders.assemble(Path("mnist10k"), pixels)


def _omniglot_small(dataset: torch.utils.data.Dataset) -> Images:
    """Reads eight of Omniglot's alphabets, white on black, 32x32: drawers 1-14 to train on, 15-20 to test."""
    source, pixels = Path(dataset.root, "images_background.zip"), {}  # MD5 covers it, not what was unpacked
    with ZipFile(source) as archive:
        for path in archive.namelist():
            if match := _OMNIGLOT_SMALL.fullmatch(path):
                alphabet, character, drawer = match.groups()
                ink = 255 - np.array(Image.open(io.BytesIO(archive.read(path))).convert("L"))
                class_name = f"{re.sub('[()]', '', alphabet)}-{character}"
                split = "train" if int(drawer) <= 14 else "test"
                pixels[f"{split}/{class_name}/{drawer}"] = area_average(ink[..., None], 32)
    return folders.assemble(source, pixels)


def _tensors(dataset: torch.utils.data.Dataset) -> tuple[Tensor, Tensor]:
    """Returns images (n, h, w, c) and labels of torchvision's data set, which come in three shapes."""
    images = torch.as_tensor(dataset.data)
    if images.dim() == 3:  # MNIST and its kin: (n, h, w)
        images = images.unsqueeze(3)
    elif images.shape[1] == 3:  # SVHN: (n, c, h, w)
        images = images.permute(0, 2, 3, 1)
    labels = dataset.targets if hasattr(dataset, "targets") else dataset.labels
    return images.contiguous(), torch.as_tensor(labels).long()


def _resized(images: Images, image_size: int | None) -> Images:
    def shrunk(images: Tensor) -> Tensor:
        return torch.from_numpy(np.stack([area_average(image, image_size) for image in images.numpy()]))

    return images if image_size is None else images.map(shrunk)


def _find_source(name: str) -> Path | None:
    """Finds the folder or archive of that name in `paths.DATA`; the folder where there are both."""
    if (paths.DATA / name).is_dir():
        return paths.DATA / name
    archives = (paths.DATA / f"{name}{suffix}" for suffix in folders.ARCHIVE_SUFFIXES)
    return next((archive for archive in archives if archive.is_file()), None)


def _put_it(name: str) -> str:
    where = f"put it into {paths.DATA} as one of {_accepted(name)}"
    return f"{where} (train/ and test/ with one folder of images per class; data/README.md has more)"


def _accepted(name: str) -> str:
    name = name.partition(":")[0]  # without its task
    return f"{name}/, " + ", ".join(f"{name}{suffix}" for suffix in folders.ARCHIVE_SUFFIXES)


def _known() -> str:
    """Lists what there is to load, for an error."""
    found = {
        path.name.removesuffix(suffix) for suffix in folders.ARCHIVE_SUFFIXES for path in paths.DATA.glob(f"*{suffix}")
    } | {path.parent.name for path in paths.DATA.glob("*/train")}
    names = ["digits", *(f"glyphs:{family}" for family in embedded.FAMILIES), *TORCHVISION, *STREAMED]
    return (
        f"known are {', '.join(names)}, and in {paths.DATA}: {', '.join(sorted(found)) or 'nothing yet'} "
        f"(an ImageFolder tree or archive put there as {_accepted('<name>')} is found by its name; "
        f"of one with ImageNet's classes there is also '<name>:<task>', a task being {tasks.NAMES})"
    )
