import io
import shutil
import socket
import tarfile
import threading
import time
import urllib.error
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from prunelab import data, files, paths
from prunelab.data import absent, cache, embedded, folders, photos, registry
from prunelab.data.dataset import Dataset, balanced_sample

ARCHIVES = paths.DATA


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Empty folders for data and cache."""
    monkeypatch.setattr(paths, "DATA", tmp_path / "data")
    monkeypatch.setattr(paths, "CACHE", tmp_path / "data" / "cache")
    paths.DATA.mkdir()
    return paths.DATA


def write_folder(folder, *, n_train=6, n_test=2, value=0, size=4, colour=True, classes=("ant", "bee")):
    """An ImageFolder tree of plain images, each of another shade."""
    for split, n_images in (("train", n_train), ("test", n_test)):
        for label, class_name in enumerate(classes):
            (folder / split / class_name).mkdir(parents=True, exist_ok=True)
            for i in range(n_images):
                pixels = np.full((size, size, 3) if colour else (size, size), value + 10 * label + i, np.uint8)
                Image.fromarray(pixels).save(folder / split / class_name / f"{i}.png")
    return folder


def forbid_decoding(monkeypatch):
    def read(source, **options):
        raise AssertionError(f"{source} was decoded")

    monkeypatch.setattr(folders, "read", read)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))


def tensors(dataset):
    return dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels


# Names


@pytest.mark.parametrize(
    "name, num_classes, image_size, n_train",
    [
        ("digits", 10, 8, 1438),
        ("glyphs", 10, 32, 3000),
        ("glyphs:symbols:3", 3, 32, 900),
    ],
)
def test_embedded_sets_load_without_any_file(name, num_classes, image_size, n_train):
    dataset = data.load(name)
    assert (dataset.name, dataset.source, dataset.flip) == (name, "embedded", False)
    assert (dataset.num_classes, dataset.image_size, dataset.channels) == (num_classes, image_size, 1)
    assert len(dataset.train_labels) == n_train and len(dataset.sha256) == 64
    assert dataset.train_images.dtype == torch.uint8 and dataset.train_labels.dtype == torch.int64


def test_the_hash_of_an_embedded_set_is_that_of_its_images_at_any_size():
    assert data.load("digits").sha256 == data.load("digits", image_size=4).sha256
    assert data.load("glyphs:greek:2").sha256 != data.load("glyphs:greek:3").sha256


@pytest.mark.parametrize(
    "name, message",
    [
        ("glyphs:", "'glyphs:<family>:<classes>', not 'glyphs:'"),
        ("glyphs:latin:ten", "not 'glyphs:latin:ten'"),
        ("glyphs:latin:-3", "not 'glyphs:latin:-3'"),
        ("glyphs:latin:3:4", "not 'glyphs:latin:3:4'"),
        ("glyphs:../../up:3", "unknown data set"),
        ("glyphs:klingon", "unknown glyph family 'klingon'"),
        ("glyphs:latin:1000", "2 to 51 classes to choose from, got 1000"),
        ("digits:3", "unknown data set 'digits:3'"),
    ],
)
def test_names_that_say_nothing_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        data.load(name)


def test_an_unknown_name_lists_the_known_ones_and_what_lies_there(home):
    write_folder(home / "zoo")
    (home / "birds.tar.xz").touch()
    (home / "paper").mkdir()
    with pytest.raises(ValueError) as caught:
        data.load("cifar-10")
    for known in ("'cifar-10'", "digits", "glyphs:latin", *registry.TORCHVISION, "birds, zoo", str(home)):
        assert known in str(caught.value)
    assert "paper" not in str(caught.value)


@pytest.mark.parametrize("name", ["", ".", "..", "../data/zoo", "/etc", "a/b", "a\\b", ".hidden", "x" * 200])
def test_a_name_is_never_a_path(home, name):
    write_folder(home / "zoo")
    write_folder(home / ".hidden")
    with pytest.raises(ValueError, match="unknown data set"):
        data.load(name)


@pytest.mark.parametrize("image_size", [0, -1])
def test_impossible_sizes_are_refused(image_size):
    with pytest.raises(ValueError, match=f"at least 1.*got {image_size}"):
        data.load("digits", image_size=image_size)


@pytest.mark.parametrize("name", ["zoo", "birdsnap"])
def test_a_single_class_is_refused(home, name):
    write_folder(home / name, classes=("ant",))
    with pytest.raises(
        ValueError, match=rf"{name} has images of a single class, ant, so .*; it needs two or more folders"
    ):
        data.load(name, image_size=4)


@pytest.mark.parametrize("colour", [True, False])
@pytest.mark.parametrize("is_archive", [False, True])
def test_photographs_that_lie_anywhere_are_in_three_channels(tmp_path, colour, is_archive):
    source = write_folder(tmp_path / "zoo", colour=colour)
    if is_archive:
        source = Path(shutil.make_archive(source, "zip", tmp_path, "zoo"))
    dataset = data.load_from(source, image_size=2)
    (images, labels), *_ = dataset.test_batches(batch_size=3)
    assert images.shape == (3, 3, 2, 2) and labels.tolist() == [0, 0, 1]
    assert dataset.class_names == ("ant", "bee") and dataset.n_train == 12
    assert dataset.name == str(source) and dataset.source == source.name
    assert dataset.flip is (colour or not is_archive)


def test_photographs_that_cannot_be_used_are_named(tmp_path):
    (tmp_path / "zoo.txt").touch()
    for name in ("nowhere", "zoo.txt"):
        with pytest.raises(
            data.DatasetNotFoundError, match=f"there is no folder or archive of images .*{name}; it needs"
        ):
            data.load_from(tmp_path / name, image_size=4)
    with pytest.raises(ValueError, match="has images of a single class, ant"):
        data.load_from(write_folder(tmp_path / "one", classes=("ant",)), image_size=4)
    dataset = data.load_from(write_folder(tmp_path / "zoo"), image_size=4)
    data.check(dataset)
    data.check(dataset)  # it is remembered, until a file changes
    (tmp_path / "zoo" / "train" / "ant" / "0.png").write_bytes(b"no image")
    for checked in (dataset, data.load_from(tmp_path / "zoo", image_size=4)):
        with pytest.raises(ValueError, match=r"1 images cannot be used, such as train/ant/0\.png"):
            data.check(checked)


def test_embedded_images_are_not_enlarged():
    with pytest.raises(ValueError, match="image_size 9 would enlarge an image of 8x8"):
        data.load("digits", image_size=9)


# Folders and archives


@pytest.mark.parametrize("colour, name, flip", [(True, "zoo", True), (False, "zoo", False), (True, "svhn", False)])
def test_coloured_images_may_be_flipped_unless_they_are_digits(home, colour, name, flip):
    write_folder(home / name, colour=colour)
    dataset = data.load(name)
    assert dataset.flip is flip and dataset.channels == (3 if colour else 1)
    assert dataset.source == name and dataset.sha256 == folders.sha256(home / name)


@pytest.mark.parametrize("name", registry.TORCHVISION)
def test_an_archive_comes_before_a_download_and_a_folder_before_an_archive(home, tmp_path, monkeypatch, name):
    monkeypatch.setattr(torchvision.datasets, registry.TORCHVISION[name], None)
    shutil.make_archive(str(home / name), "zip", write_folder(tmp_path / "a", value=100))
    dataset = data.load(name)
    assert dataset.source == f"{name}.zip" and dataset.train_images.min() == 100
    assert dataset.sha256 == files.sha256(home / f"{name}.zip")
    write_folder(home / name, value=50)
    dataset = data.load(name)
    assert dataset.source == name and dataset.train_images.min() == 50


def test_a_smaller_image_is_the_mean_of_its_area(home):
    write_folder(home / "zoo", size=6)
    dataset = data.load("zoo", image_size=2)
    assert dataset.image_size == 2
    assert torch.equal(dataset.train_images[:, 0, 0], data.load("zoo").train_images[:, 0, 0])
    assert data.load("digits", image_size=4).train_images[0, 0, 0, 0] == pytest.approx(
        data.load("digits").train_images[0, :2, :2].float().mean(), abs=0.5
    )


@pytest.mark.parametrize("n_train", [None, 100])
def test_grey_images_in_colour_have_three_equal_channels_and_stay_unflipped(n_train):
    coloured, grey = data.load("digits", n_train=n_train, in_colour=True), data.load("digits", n_train=n_train)
    assert (coloured.channels, grey.channels) == (3, 1) and coloured.flip is False
    assert torch.equal(coloured.train_labels, grey.train_labels)
    for split in ("train_images", "test_images"):
        images = getattr(coloured, split)
        assert torch.equal(images, getattr(grey, split).repeat(1, 1, 1, 3)) and images.is_contiguous()
    assert torch.equal(coloured.mean, grey.mean.expand(3)) and coloured.sha256 == grey.sha256
    assert len(list(paths.CACHE.glob("*.pt"))) == 1


def test_coloured_images_in_colour_are_as_they_were(home):
    write_folder(home / "zoo")
    assert same(data.load("zoo", in_colour=True), data.load("zoo"))
    assert data.load("zoo", in_colour=True).flip is True


# The cache


def test_the_second_load_decodes_nothing(home, monkeypatch):
    write_folder(home / "zoo")
    first = data.load("zoo"), data.load("zoo", image_size=2)
    forbid_decoding(monkeypatch)
    assert same(data.load("zoo"), first[0]) and same(data.load("zoo", image_size=2), first[1])
    assert data.load("zoo").class_names == ("ant", "bee") and data.load("zoo").flip


def test_the_second_load_draws_nothing_while_the_code_is_the_same(monkeypatch):
    first = data.load("glyphs:greek:2")
    draw = embedded.glyphs
    monkeypatch.setattr(embedded, "glyphs", lambda *options: None)
    assert same(data.load("glyphs:greek:2"), first)
    monkeypatch.setattr(embedded, "glyphs", lambda *options: draw("greek", 3))
    monkeypatch.setattr(registry, "version", lambda package: "another")
    assert data.load("glyphs:greek:2").num_classes == 3


@pytest.mark.parametrize("position", [0, 5, 64, 65, 70, 500, -1])
def test_a_flipped_byte_in_the_cache_is_noticed_and_mended(home, position):
    write_folder(home / "zoo")
    expected = data.load("zoo")
    (path,) = paths.CACHE.glob("*.pt")
    intact = path.read_bytes()
    flipped = bytearray(intact)
    flipped[position] ^= 1
    path.write_bytes(flipped)
    assert same(data.load("zoo"), expected)
    assert path.read_bytes() == intact


@pytest.mark.parametrize("length", [0, 10, 64, 65, 100, 1000])
def test_a_half_written_cache_is_noticed_and_mended(home, length):
    write_folder(home / "zoo")
    expected = data.load("zoo")
    (path,) = paths.CACHE.glob("*.pt")
    path.write_bytes(path.read_bytes()[:length])
    assert same(data.load("zoo"), expected)
    assert path.stat().st_size > 1000


class Evil:
    """Unpickled, it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("make", [lambda evil: evil, lambda evil: {"format": 1, "key": None, "tensors": evil}, list])
def test_a_cache_with_a_valid_hash_but_foreign_content_is_not_executed(home, tmp_path, make):
    write_folder(home / "zoo")
    expected = data.load("zoo")
    (path,) = paths.CACHE.glob("*.pt")
    buffer = io.BytesIO()
    torch.save(make(Evil(tmp_path / "pwned")) if make is not list else [1, 2], buffer)
    path.write_bytes(files.sha256(buffer.getvalue()).encode() + b"\n" + buffer.getvalue())
    assert same(data.load("zoo"), expected)
    assert not (tmp_path / "pwned").exists()


def test_the_cache_serves_when_the_source_is_gone(home):
    folder = write_folder(home / "zoo")
    expected = data.load("zoo")
    folder.rename(home.parent / "away")
    dataset = data.load("zoo")
    assert same(dataset, expected) and dataset.sha256 == expected.sha256 and dataset.source == "zoo"
    with pytest.raises(ValueError, match="unknown data set 'zoo'"):
        data.load("zoo", image_size=2)


def test_a_damaged_cache_without_its_source_says_so(home):
    folder = write_folder(home / "zoo")
    data.load("zoo")
    folder.rename(home.parent / "away")
    (path,) = paths.CACHE.glob("*.pt")
    path.write_bytes(b"damaged")
    with pytest.raises(data.DatasetNotFoundError, match=r"damaged and its source is gone") as caught:
        data.load("zoo")
    assert str(path) in str(caught.value) and "zoo.tar.xz" in str(caught.value)


def test_a_changed_source_is_decoded_again(home):
    folder = write_folder(home / "zoo")
    before = data.load("zoo")
    write_folder(home / "zoo", value=1)
    changed = data.load("zoo")
    assert torch.equal(changed.train_images, before.train_images + 1) and changed.sha256 != before.sha256
    (folder / "test" / "ant" / "0.png").unlink()
    assert len(data.load("zoo").test_labels) == 3


def test_an_impossible_cache_costs_one_warning_and_nothing_else(home, monkeypatch):
    write_folder(home / "zoo")
    (home / "file").touch()
    monkeypatch.setattr(paths, "CACHE", home / "file" / "cache")
    with pytest.warns(UserWarning, match="cannot be kept in") as caught:
        first = data.load("zoo")
    assert len(caught) == 1 and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(data.load("zoo"), first)
        data.load("zoo", image_size=2)


def test_a_cache_that_may_not_be_written_costs_one_warning_for_all_images(home, monkeypatch):
    def no_permission(path, content):
        raise PermissionError(13, "Permission denied", f"{path}.new")

    monkeypatch.setattr(files, "atomic_write", no_permission)
    with pytest.warns(UserWarning, match=f"cannot be kept in {paths.CACHE} .*: Permission denied") as caught:
        for name in ("zoo", "farm"):
            data.load(write_folder(home / name).name)
    assert len(caught) == 1


def test_a_full_disk_costs_one_warning_and_leaves_nothing(home, monkeypatch):
    def no_space(path, content):
        raise OSError(28, "No space left on device")

    write_folder(home / "zoo")
    monkeypatch.setattr(files, "atomic_write", no_space)
    with pytest.warns(UserWarning, match="No space left on device"):
        assert len(data.load("zoo").train_labels) == 12
    assert list(paths.CACHE.glob("*.pt")) == []


def test_a_set_that_many_want_at_once_is_decoded_once(home, monkeypatch):
    write_folder(home / "zoo")
    n_decoded, read = [], folders.read

    def slow_read(source, **options):
        n_decoded.append(1)
        time.sleep(0.2)
        return read(source, **options)

    monkeypatch.setattr(folders, "read", slow_read)
    loaded = []
    threads = [threading.Thread(target=lambda: loaded.append(data.load("zoo"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert len(loaded) == 4 and all(same(dataset, loaded[0]) for dataset in loaded)
    assert len(n_decoded) == 1


def test_a_failed_decoding_leaves_no_cache_and_no_lock(home):
    folder = write_folder(home / "zoo")
    good = (folder / "train/ant/0.png").read_bytes()
    (folder / "train/ant/0.png").write_bytes(b"")
    with pytest.raises(ValueError, match="1 images cannot be used"):
        data.load("zoo")
    assert list(paths.CACHE.glob("*.pt")) == []
    (folder / "train/ant/0.png").write_bytes(good)
    assert len(data.load("zoo").train_labels) == 12


# torchvision


class Download:
    """What torchvision's data sets have in common: files under the root, and only if download is true."""

    def __init__(self, root, *, train=True, split=None, download=False):
        assert download and 0 < socket.getdefaulttimeout() <= 60
        train = train if split is None else {"train": True, "test": False}[split]
        root.mkdir(parents=True, exist_ok=True)
        (root / "raw").write_text("the same for both")
        self.fill(6 if train else 4)


class CIFAR(Download):
    classes = ("a", "b")

    def fill(self, n):
        self.data, self.targets = np.arange(n * 48, dtype=np.uint8).reshape(n, 4, 4, 3), [0, 1] * (n // 2)


class MNIST(Download):
    classes = ("0 - zero", "1 - one")

    def fill(self, n):
        self.data = torch.arange(n * 16, dtype=torch.uint8).view(n, 4, 4)
        self.targets = torch.tensor([0, 1] * (n // 2))


class SVHN(Download):
    def fill(self, n):
        self.data = np.arange(n * 48, dtype=np.uint8).reshape(n, 4, 4, 3).transpose(0, 3, 1, 2)
        self.labels = np.array([0, 9] * (n // 2))


@pytest.mark.parametrize(
    "name, kind, channels, flip, num_classes",
    [
        ("cifar10", CIFAR, 3, True, 2),
        ("cifar100", CIFAR, 3, True, 2),
        ("mnist", MNIST, 1, False, 2),
        ("fashion_mnist", MNIST, 1, False, 2),
        ("svhn", SVHN, 3, False, 10),
    ],
)
def test_torchvisions_sets_arrive_in_one_layout(monkeypatch, name, kind, channels, flip, num_classes):
    monkeypatch.setattr(torchvision.datasets, registry.TORCHVISION[name], kind)
    dataset = data.load(name)
    assert dataset.source == f"torchvision {registry.TORCHVISION[name]}"
    assert (dataset.channels, dataset.flip, dataset.num_classes) == (channels, flip, num_classes)
    assert torch.equal(dataset.train_images.flatten(), torch.arange(6 * 16 * channels).to(torch.uint8))
    assert torch.equal(dataset.test_images.flatten(), torch.arange(4 * 16 * channels).to(torch.uint8))
    assert dataset.train_labels.tolist() == [0, num_classes - 1] * 3
    assert dataset.train_images.is_contiguous() and dataset.train_labels.dtype == torch.int64
    assert dataset.sha256 == folders.sha256_of_files([("raw", b"the same for both")])
    assert data.load(name, image_size=2).image_size == 2
    monkeypatch.setattr(torchvision.datasets, registry.TORCHVISION[name], None)
    assert same(data.load(name), dataset)


def unpacked(kind, *, values=range(6)):
    """Files as torchvision's MNIST and its kin unpack them, of images of one pixel; their SHA-256, by name."""
    raw, found = paths.CACHE / "torchvision" / "mnist" / kind / "raw", {}
    raw.mkdir(parents=True, exist_ok=True)
    for split in ("train", "t10k"):
        images = np.array([0x803, len(values), 1, 1], ">i4").tobytes() + bytes(values)
        labels = np.array([0x801, len(values)], ">i4").tobytes() + bytes(value % 10 for value in values)
        for name, content in ((f"{split}-images-idx3-ubyte", images), (f"{split}-labels-idx1-ubyte", labels)):
            (raw / name).write_bytes(content)
            found[name] = files.sha256(content)
    return raw, found


def test_what_torchvision_unpacked_before_is_held_to_its_sha256(monkeypatch):
    raw, published = unpacked("MNIST")
    with pytest.raises(ValueError, match=f"{raw}/train-images-idx3-ubyte is not as published.*remove it"):
        data.load("mnist")
    monkeypatch.setitem(registry._UNPACKED_SHA256, "MNIST", published)
    (raw / "t10k-labels-idx1-ubyte").write_bytes(b"other")
    with pytest.raises(ValueError, match=f"{raw}/t10k-labels-idx1-ubyte is not as published"):
        data.load("mnist")
    unpacked("MNIST")
    (raw.parent / "processed").mkdir()  # read in place of the others
    with pytest.raises(ValueError, match=f"{raw.parent}/processed is an earlier torchvision's.*remove it"):
        data.load("mnist")
    (raw.parent / "processed").rmdir()
    assert data.load("mnist").train_images.flatten().tolist() == [*range(6)]


@pytest.mark.parametrize("kind", sorted(set(registry.TORCHVISION.values())))
def test_each_set_that_torchvision_reads_unchecked_has_the_sha256_of_its_files(kind):
    offered = getattr(torchvision.datasets, kind)
    names = (
        {Path(name).stem for name, _ in offered.resources} if issubclass(offered, torchvision.datasets.MNIST) else set()
    )
    assert registry._UNPACKED_SHA256.get(kind, {}).keys() == names


def test_sha256_of_mnists_test_labels_is_that_of_the_archives():
    if not (ARCHIVES / "mnist10k.tar.xz").is_file():
        pytest.skip(f"no mnist10k.tar.xz in {ARCHIVES}")
    labels = np.array([0x801, 10000], ">i4").tobytes() + bytes(offered("mnist10k")[1].tolist())
    assert files.sha256(labels) == registry._UNPACKED_SHA256["MNIST"]["t10k-labels-idx1-ubyte"]


def offer_mnist(monkeypatch, images, labels):
    """A torchvision.datasets.MNIST with these test images and no training images."""

    def fake(root, *, train, download):
        assert download and not train and 0 < socket.getdefaulttimeout() <= 60
        root.mkdir(parents=True, exist_ok=True)
        (root / "raw").write_text("test images")
        return SimpleNamespace(data=images, targets=labels, classes=MNIST.classes)

    monkeypatch.setattr(torchvision.datasets, "MNIST", fake)


def offer_omniglot(monkeypatch, images):
    """A torchvision.datasets.Omniglot of these images, by path; its zip holds the last ones first."""

    def fake(root, *, background, download):
        assert download and background and 0 < socket.getdefaulttimeout() <= 60
        folder = root / "omniglot-py"
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(folder / "images_background.zip", "w") as archive:
            for path in sorted(images, reverse=True):
                content = io.BytesIO()
                images[path].save(content, "PNG")
                archive.writestr(f"images_background/{path}", content.getvalue())
        return SimpleNamespace(root=str(folder))

    monkeypatch.setattr(torchvision.datasets, "Omniglot", fake)


def test_mnist10k_is_the_first_and_the_last_of_mnists_test_images_class_by_class(monkeypatch):
    labels = torch.randint(0, 10, (10000,), generator=torch.Generator().manual_seed(0))
    images = torch.zeros(10000, 28, 28, dtype=torch.uint8)
    images[:, 3, 5], images[:, 5, 3] = torch.arange(10000) // 100, torch.arange(10000) % 100
    offer_mnist(monkeypatch, images, labels)
    dataset = data.load("mnist10k")
    assert (dataset.source, dataset.flip, dataset.class_names) == ("torchvision MNIST", False, tuple("0123456789"))
    assert dataset.sha256 == folders.sha256_of_files([("raw", b"test images")])
    for split, indices in (("train", range(8000)), ("test", range(8000, 10000))):
        expected = sorted(indices, key=lambda i: (labels[i], i))
        assert torch.equal(getattr(dataset, f"{split}_images"), images[expected].unsqueeze(3))
        assert torch.equal(getattr(dataset, f"{split}_labels"), labels[expected])
    assert data.load("mnist10k", image_size=14).image_size == 14


def test_omniglot_small_is_shrunk_white_on_black_and_split_by_drawer(monkeypatch):
    """Black in the upper left corner: 5 rows for each drawer, 10 columns for each class."""
    alphabets = ["Balinese", "Early_Aramaic", "Greek", "Japanese_(katakana)", "Korean", "Latin", "Sanskrit", "Tagalog"]
    characters = [*(f"{alphabet}/character01" for alphabet in alphabets), "Tagalog/character17"]
    images = {}
    for number, character in enumerate(characters, 1):
        for drawer in range(1, 21):
            pixels = np.ones((105, 105), bool)
            pixels[: 5 * drawer, : 10 * number] = False
            images[f"{character}/{number:04}_{drawer:02}.png"] = Image.fromarray(pixels)
    left_out = "Japanese_(hiragana)/character01/0005_01.png", "Greek/character01/._0001_01.png"
    offer_omniglot(monkeypatch, images | dict.fromkeys(left_out, Image.new("1", (105, 105))))
    dataset = data.load("omniglot-small")
    assert (dataset.source, dataset.flip) == ("torchvision Omniglot", False)
    assert dataset.class_names[2:5] == ("Greek-character01", "Japanese_katakana-character01", "Korean-character01")
    assert dataset.num_classes == 9 and dataset.class_names[8] == "Tagalog-character17"
    for split, drawers in (("train", range(1, 15)), ("test", range(15, 21))):
        shrunk, labels = getattr(dataset, f"{split}_images"), getattr(dataset, f"{split}_labels")
        assert shrunk.shape == (9 * len(drawers), 32, 32, 1) and shrunk.dtype == torch.uint8
        assert labels.tolist() == [label for label in range(9) for _ in drawers]
        assert shrunk[:, 0, 0].eq(255).all() and shrunk[:, -1, -1].eq(0).all()
        rows = shrunk[:, :, 0, 0].double().mean(dim=1) / 255 * 21
        columns = shrunk[:, 0, :, 0].double().mean(dim=1) / 255 * 105 / 10
        torch.testing.assert_close(rows, torch.tensor([*drawers] * 9).double(), atol=0.01, rtol=0)
        torch.testing.assert_close(columns, labels + 1.0, atol=0.01, rtol=0, check_dtype=False)
    assert data.load("omniglot-small", image_size=16).image_size == 16


def offered(name):
    """What torchvision offers, made from the images of the real archive."""
    found = {}
    with tarfile.open(ARCHIVES / f"{name}.tar.xz") as archive:
        for member in archive:
            if member.name.endswith(".png"):
                with Image.open(archive.extractfile(member)) as image:
                    image.load()
                found[Path(member.name)] = image
    if name == "mnist10k":
        ordered = sorted(found, key=lambda path: path.stem)
        images = torch.from_numpy(np.stack([np.array(found[path]) for path in ordered]))
        return images, torch.tensor([int(path.parent.name) for path in ordered])
    images = {}
    for path, image in found.items():
        alphabet, character = path.parent.name.replace("_katakana", "_(katakana)").split("-")
        images[f"{alphabet}/{character}/0001_{path.stem}.png"] = Image.fromarray(255 - np.array(image))
    return (images,)


@pytest.mark.parametrize("name, offer", [("mnist10k", offer_mnist), ("omniglot-small", offer_omniglot)])
def test_a_download_of_the_archives_images_is_the_archive(home, monkeypatch, name, offer):
    if not (ARCHIVES / f"{name}.tar.xz").is_file():
        pytest.skip(f"no {name}.tar.xz in {ARCHIVES}")
    offer(monkeypatch, *offered(name))
    downloaded = data.load(name)
    (home / f"{name}.tar.xz").symlink_to(ARCHIVES / f"{name}.tar.xz")
    read = data.load(name)
    assert (downloaded.source, read.source) == (f"torchvision {registry.TORCHVISION[name]}", f"{name}.tar.xz")
    assert same(downloaded, read) and downloaded.class_names == read.class_names
    assert same(data.load(name, n_train=1000), registry.split(downloaded, n_train=1000))


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError("no network"),
        TimeoutError("timed out"),
        RuntimeError("File not found or corrupted."),
        ConnectionResetError(),
    ],
)
@pytest.mark.parametrize("name", registry.TORCHVISION)
def test_a_failed_download_says_what_to_do(home, monkeypatch, name, error):
    def fail(root, **options):
        raise error

    monkeypatch.setattr(torchvision.datasets, registry.TORCHVISION[name], fail)
    with pytest.raises(data.DatasetNotFoundError) as caught:
        data.load(name)
    said = str(caught.value)
    for helpful in (f"{name}.tar.xz", f"{name}.tgz", f"{name}.tar.gz", f"{name}.zip", f"{name}/", str(home)):
        assert helpful in said
    assert f"prunelab.data.load('{name}')" in said and "'smoke'" in said and type(error).__name__ in said
    assert isinstance(caught.value, FileNotFoundError) and caught.value.__cause__ is error
    assert socket.getdefaulttimeout() is None


def test_what_is_required_is_there_or_downloaded_without_decoding_what_is_there(home, monkeypatch):
    for name in ("digits", "glyphs:greek:20"):
        data.require(name, image_size=8)
    write_folder(home / "cifar10")
    data.require("cifar10")
    assert not paths.CACHE.exists()
    (home / "cifar10").rename(home / "zoo")
    data.load("zoo", image_size=2)
    (home / "zoo").rename(home.parent / "away")
    data.require("zoo", image_size=2)  # from the cache
    for image_size in (None, 3):
        with pytest.raises(data.DatasetNotFoundError, match=r"There is no zoo on this machine.*zoo\.zip.*'smoke'"):
            data.require("zoo", image_size=image_size)
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", CIFAR)
    data.require("cifar10")
    monkeypatch.delattr(torchvision.datasets, "CIFAR10")
    assert data.load("cifar10").source == "torchvision CIFAR10"


def test_an_archive_that_arrives_later_replaces_the_download(home, monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", CIFAR)
    assert data.load("cifar10").source == "torchvision CIFAR10"
    write_folder(home / "cifar10")
    assert data.load("cifar10").source == "cifar10"


# Parts of a data set


def stand_in(labels, **changes):
    n = len(labels)
    values = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1)
    fields = dict(
        name="stand-in",
        train_images=values,
        train_labels=torch.tensor(labels),
        test_images=values[:1] + 200,
        test_labels=torch.tensor(labels[:1]),
        class_names=tuple("abc"),
        flip=False,
        source="test",
        sha256="0" * 64,
    )
    return Dataset(**(fields | changes))


@pytest.mark.parametrize(
    "n, counts",
    [(3, [1, 1, 1]), (4, [1, 1, 2]), (6, [2, 2, 2]), (8, [2, 3, 3]), (9, [2, 3, 4]), (11, [2, 3, 6])],
)
def test_a_balanced_sample_is_as_even_as_the_classes_allow(n, counts):
    labels = torch.tensor([0] * 2 + [1] * 3 + [2] * 6)
    chosen = balanced_sample(labels, n, generator=torch.Generator().manual_seed(0))
    assert len(set(chosen.tolist())) == n and chosen.tolist() == sorted(chosen.tolist())
    assert sorted(labels[chosen].bincount(minlength=3).tolist()) == counts


def test_balanced_samples_nest_and_depend_on_the_generator_alone():
    labels = torch.arange(90) % 3

    def sample(n, seed):
        return set(balanced_sample(labels, n, generator=torch.Generator().manual_seed(seed)).tolist())

    assert sample(10, 0) < sample(31, 0) and sample(31, 0) == sample(31, 0) != sample(31, 1)


def test_any_image_of_a_class_may_be_sampled():
    labels = torch.tensor([0] * 5 + [1] * 5)
    seen = set()
    for seed in range(40):
        seen |= set(balanced_sample(labels, 2, generator=torch.Generator().manual_seed(seed)).tolist())
    assert seen == set(range(10))


def test_n_train_takes_a_balanced_part_and_the_same_each_time():
    whole, part = data.load("digits"), data.load("digits", n_train=105)
    assert len(part.train_labels) == 105 and set(part.train_labels.bincount().tolist()) == {10, 11}
    assert same(part, data.load("digits", n_train=105)) and torch.equal(part.test_images, whole.test_images)
    assert part.sha256 == whole.sha256
    assert same(data.load("digits", n_train=1438), whole)


@pytest.mark.parametrize("n_train", [0, -5, 1439])
def test_an_impossible_n_train_names_the_count(n_train):
    with pytest.raises(ValueError, match=rf"1\.\.1438, as digits has 1438 training images; got {n_train}"):
        data.load("digits", n_train=n_train)


def test_a_validation_split_holds_out_images_that_no_training_of_that_size_sees():
    dataset = stand_in([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])
    part = registry.split(dataset, n_train=6)
    tuning = registry.split(dataset, n_train=6, n_validation=3)
    kept, held_out = tuning.train_images.flatten().tolist(), tuning.test_images.flatten().tolist()
    assert kept == part.train_images.flatten().tolist() and not set(kept) & set(held_out)
    assert (tuning.train_labels.tolist(), tuning.test_labels.tolist()) == ([0, 0, 1, 1, 2, 2], [0, 1, 2])
    for images, labels in ((kept, tuning.train_labels), (held_out, tuning.test_labels)):
        assert [image // 4 for image in images] == labels.tolist()
    assert len(dataset.train_labels) == 12 and dataset.test_images.item() == 200  # left as they were


def test_all_that_is_not_held_out_is_trained_on():
    split = registry.split(stand_in([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]), n_validation=6)
    assert sorted((*split.train_images.flatten().tolist(), *split.test_images.flatten().tolist())) == list(range(12))
    loaded = data.load("digits", n_train=105, n_validation=33)
    assert (len(loaded.train_labels), len(loaded.test_labels)) == (105, 33)
    assert same(loaded, registry.split(data.load("digits"), n_train=105, n_validation=33))


def test_each_of_unequal_classes_gives_its_share_of_what_is_held_out():
    tuning = registry.split(stand_in([0] * 30 + [1] * 6), n_validation=12)  # in turns, all of class 1 would train
    assert tuning.test_labels.bincount().tolist() == [10, 2] and tuning.train_labels.bincount().tolist() == [20, 4]
    fewer = registry.split(stand_in([0] * 30 + [1] * 6), n_train=10, n_validation=12)
    assert fewer.train_labels.bincount().tolist() == [6, 4]  # in turns, of the 20 and 4 that are left


@pytest.mark.parametrize(
    "n_train, n_validation, message",
    [
        *((None, n, rf"n_validation must lie in 1\.\.11, .*12 .* got {n}") for n in (0, 12, 13)),
        (7, 6, r"n_train must lie in 1\.\.6, .*12 .* got 7"),
        (0, None, r"n_train must lie in 1\.\.12, .* got 0"),
    ],
)
def test_an_impossible_split_is_refused(n_train, n_validation, message):
    with pytest.raises(ValueError, match=message):
        registry.split(stand_in([0, 1, 2] * 4), n_train=n_train, n_validation=n_validation)


def test_mean_and_deviation_are_those_of_the_training_pixels():
    images = torch.randint(0, 256, (1500, 5, 5, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[..., 2] = images[..., 2] // 2
    dataset = stand_in([0] * 1500, train_images=images)
    exact = images.double().flatten(0, 2) / 255
    assert dataset.mean.shape == dataset.std.shape == (3,) and dataset.mean.dtype == torch.float32
    torch.testing.assert_close(dataset.mean.double(), exact.mean(dim=0), rtol=1e-6, atol=0)
    torch.testing.assert_close(dataset.std.double(), exact.std(dim=0, correction=0), rtol=1e-6, atol=0)


def test_a_blank_channel_can_be_divided_by():
    dataset = stand_in([0] * 4, train_images=torch.full((4, 2, 2, 1), 51, dtype=torch.uint8))
    assert dataset.mean.item() == pytest.approx(0.2) and dataset.std.item() == pytest.approx(1 / 255)


def test_a_part_has_a_mean_of_its_own():
    dataset = stand_in([0, 1, 2] * 20)
    assert dataset.mean.item() == pytest.approx(29.5 / 255)
    split = registry.split(dataset, n_validation=30)
    assert split.mean.item() == pytest.approx(split.train_images.float().mean().item() / 255)


def test_an_entry_survives_the_cache_unchanged(tmp_path):
    images = data.load("digits")
    entry = cache.Entry(folders.Images(*tensors(images), class_names=("é", "b")), source="somewhere", sha256="ab")
    cache.write(tmp_path / "entry.pt", entry, key="k")
    read = cache.read(tmp_path / "entry.pt", key="k")
    assert read.source == "somewhere" and read.sha256 == "ab" and read.images.class_names == ("é", "b")
    assert same(read.images, images)
    assert cache.read(tmp_path / "entry.pt", key="other") is None
    assert cache.read(tmp_path / "entry.pt", key=None) is not None
    assert cache.read(tmp_path / "nothing.pt", key=None) is None


@pytest.mark.gpu
def test_a_data_set_moves_to_the_device_as_a_whole():
    dataset = data.load("digits", n_train=100, device="cuda")
    assert all(tensor.is_cuda for tensor in (*tensors(dataset), dataset.mean, dataset.std))
    split = registry.split(dataset, n_validation=20)
    assert split.test_images.is_cuda and len(split.train_labels) == 80
    assert same(dataset.to("cpu"), data.load("digits", n_train=100))


# What is foreseen where there are no images.


def test_what_is_known_is_foreseen_without_images_and_nothing_is_asked_for(monkeypatch):
    monkeypatch.setattr(socket, "socket", lambda *_: pytest.fail("asked"))
    whole = data.foresee("imagenet")
    assert (whole.n_train, whole.n_test, whole.num_classes) == (1_281_167, 50_000, 1000)
    assert (whole.image_size, whole.channels, data.gigabytes("imagenet")) == (224, 3, 154.6)
    part = data.foresee("imagenet", image_size=64, n_train=1_271_167, n_validation=10_000)
    assert (part.n_train, part.n_test, part.image_size) == (1_271_167, 10_000, 64)
    grey, coloured = data.foresee("mnist"), data.foresee("mnist", image_size=14, in_colour=True)
    assert (grey.image_size, grey.channels, coloured.image_size, coloured.channels) == (28, 1, 14, 3)
    enlarged = data.foresee("cifar100:enlarged")
    assert (enlarged.image_size, enlarged.num_classes, data.gigabytes("cifar100:enlarged")) == (224, 100, 0.2)
    assert data.gigabytes("digits") == 0.0
    with pytest.raises(ValueError, match="unknown data set 'cifar11'"):
        data.foresee("cifar11")


def test_images_that_are_here_are_counted_and_not_foreseen(home):
    write_folder(home / "imagenet", n_train=3, n_test=1)
    write_folder(home / "cifar10", n_train=2, n_test=1)
    assert (data.foresee("imagenet").n_train, data.foresee("cifar10").n_train) == (6, 4)


def test_sizes_are_those_of_the_photographs_and_of_their_splits():
    assert {*registry.STREAMED} - {*registry.ENLARGED} <= absent.SIZES.keys()
    for name, found in photos.PHOTOS.items():
        size = absent.SIZES[name]
        if found.first is None:  # all are in one of the two parts
            assert size.n_train + size.n_test == found.n_images, name
        else:
            assert size.n_train == size.num_classes * found.first[0]
            assert size.n_test == min(found.n_images - size.n_train, size.num_classes * found.first[1]), name
