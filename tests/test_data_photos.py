"""Photographs of any size: found where torchvision has them, or where their reader has put them; split; decoded."""

import io
import json
import socket
import urllib.error
import urllib.request
from math import inf

import numpy as np
import pytest
import scipy.io
import torch
import torchvision
from PIL import Image

from prunelab import data, paths
from prunelab.data import downstream, photos, registry
from prunelab.recipes import runner
from prunelab.recipes.afr import AFR

SIZES = [(9, 7), (40, 300), (64, 64), (8, 8), (33, 50)]  # width and height


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """An empty machine without a network."""
    monkeypatch.setattr(paths, "DATA", tmp_path)
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")

    def refuse(request, **options):
        assert 0 < socket.getdefaulttimeout() <= 60
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return tmp_path


def write(folder, texts=(), *, images):
    """Plain images of many sizes, each of another shade; the first is grey, all others are red."""
    for path, text in dict(texts).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    for number, path in enumerate(images):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        image = (
            Image.new("L", SIZES[number % 5], 100) if not number else Image.new("RGB", SIZES[number % 5], (200, 0, 0))
        )
        image.save(folder / path)


def write_eurosat(root):
    images = [
        f"eurosat/2750/{name}/{name}_{n}.jpg" for name, count in (("Crop", 11), ("River", 5)) for n in range(count)
    ]
    write(root, images=images)
    ordered = sorted(images)  # ... 0, 1, 10, 2, 3, 4, ...
    tested = [ordered[4], ordered[9], ordered[15]]
    return [image for image in ordered if image not in tested], [0] * 9 + [1] * 4, tested, [0, 0, 1], ("Crop", "River")


def write_caltech101(root):  # its first two of each class are to train on
    above = "caltech101/101_ObjectCategories"
    images = [f"{above}/{name}/image_{n:04}.jpg" for name in ("Faces", "ant") for n in range(1, 5)]
    write(root, images=[*images, f"{above}/BACKGROUND_Google/image_0001.jpg"])
    return images[:2] + images[4:6], [0, 0, 1, 1], images[2:4] + images[6:], [0, 0, 1, 1], ("Faces", "ant")


def write_caltech256(root):
    above = "caltech256/256_ObjectCategories"
    images = [f"{above}/{name}/{name[:3]}_{n:04}.jpg" for name in ("001.ak47", "002.flag") for n in range(1, 5)]
    write(root, {f"{above}/002.flag/RENAME2": ""}, images=images)
    return images[:2] + images[4:6], [0, 0, 1, 1], images[2:4] + images[6:], [0, 0, 1, 1], ("001.ak47", "002.flag")


def write_pets(root):
    lists = {"trainval": "pug_2 2 2 1\nBengal_1 1 1 1\nBengal_3 1 1 1\n", "test": "Bengal_2 1 1 1\nbig_pug_1 2 2 1\n"}
    texts = {f"oxford-iiit-pet/annotations/{split}.txt": lines for split, lines in lists.items()}
    names = ["Bengal_1", "Bengal_3", "pug_2", "Bengal_2", "big_pug_1"]
    images = [f"oxford-iiit-pet/images/{name}.jpg" for name in names]
    write(root, texts, images=images)
    return images[:3], [0, 0, 1], images[3:], [0, 1], ("Bengal", "Pug")


def write_dtd(root):
    names = {"train": ["dotted/1", "woven/1"], "val": ["dotted/0", "woven/0"], "test": ["woven/2", "dotted/2"]}
    texts = {
        f"dtd/dtd/labels/{split}1.txt": "".join(f"{name}.jpg\n" for name in found) for split, found in names.items()
    }
    images = [
        f"dtd/dtd/images/{name}.jpg" for name in ["dotted/0", "dotted/1", "woven/0", "woven/1", "dotted/2", "woven/2"]
    ]
    write(root, texts, images=images)
    return images[:4], [0, 0, 1, 1], images[4:], [0, 1], ("dotted", "woven")


def write_sun397(root):  # of each class two are to train on, one to test on, and one is left out
    images = [f"SUN397/a/{name}/sun_{letter}.jpg" for name in ("abbey", "attic/indoor") for letter in "abcd"]
    write(root, {"SUN397/ClassName.txt": "/a/abbey\n/a/attic/indoor\n"}, images=images)
    return images[:2] + images[4:6], [0, 0, 1, 1], [images[2], images[6]], [0, 1], ("abbey", "attic/indoor")


def write_flowers(root):
    images = [f"flowers-102/jpg/image_{n:05}.jpg" for n in range(1, 6)]
    write(root, images=images)
    scipy.io.savemat(root / "flowers-102/imagelabels.mat", {"labels": [2, 1, 1, 2, 1]})
    scipy.io.savemat(root / "flowers-102/setid.mat", {"trnid": [1, 3], "valid": [2, 5], "tstid": [4, 3]})
    train = [images[n] for n in (0, 1, 2, 4)]
    return train, [1, 0, 0, 0], [images[2], images[3]], [0, 1], tuple(torchvision.datasets.Flowers102.classes)


def write_food101(root):
    lists = {"train": {"pizza": ["pizza/2", "pizza/1"], "apple_pie": ["apple_pie/7"]}, "test": {"pizza": ["pizza/3"]}}
    lists["test"]["apple_pie"] = ["apple_pie/8"]
    images = [f"food-101/images/{name}.jpg" for name in ("apple_pie/7", "pizza/1", "pizza/2", "apple_pie/8", "pizza/3")]
    write(root, {f"food-101/meta/{split}.json": json.dumps(found) for split, found in lists.items()}, images=images)
    return images[:3], [0, 1, 1], images[3:], [0, 1], ("apple_pie", "pizza")


def write_aircraft(root):
    above = "fgvc-aircraft-2013b/data"
    lists = {"trainval": "0007 A 300\n0003 F-16A/B\n", "test": "0001 F-16A/B\n"}
    texts = {f"{above}/images_variant_{split}.txt": lines for split, lines in lists.items()}
    images = [f"{above}/images/{number}.jpg" for number in ("0003", "0007", "0001")]
    write(root, texts | {f"{above}/variants.txt": "A 300\nF-16A/B\n"}, images=images)
    return images[:2], [1, 0], images[2:], [1], ("A 300", "F-16A/B")


def write_cars(root):
    images = ["stanford_cars/cars_train/1.jpg", "stanford_cars/cars_train/2.jpg", "stanford_cars/cars_test/1.jpg"]
    write(root, {"stanford_cars/devkit/x": ""}, images=images)
    for path, found in (("devkit/cars_train_annos", [("2.jpg", 1), ("1.jpg", 2)]),
                        ("cars_test_annos_withlabels", [("1.jpg", 2), ("1.jpg", 2)])):  # fmt: skip
        rows = np.array(found, dtype=[("fname", "O"), ("class", "i4")])
        scipy.io.savemat(root / f"stanford_cars/{path}.mat", {"annotations": rows})
    scipy.io.savemat(root / "stanford_cars/devkit/cars_meta.mat", {"class_names": np.array(["Audi", "BMW"], "O")})
    return images[:2], [1, 0], images[2:] * 2, [1, 1], ("Audi", "BMW")


LAYOUTS = {
    "eurosat": write_eurosat,
    "caltech101": write_caltech101,
    "caltech256": write_caltech256,
    "pets": write_pets,
    "dtd": write_dtd,
    "sun397": write_sun397,
    "aircraft": write_aircraft,
    "cars": write_cars,
    "flowers": write_flowers,
    "food101": write_food101,
}
FIRST = {"caltech101": (2, inf), "caltech256": (2, inf), "sun397": (2, 1)}  # of each class of the small ones


@pytest.fixture(params=photos.PHOTOS)
def laid_out(request, monkeypatch):
    """A set's name, and what is in the small one that lies where torchvision would have put it."""
    name = request.param
    expected = LAYOUTS[name](paths.CACHE / "torchvision" / name)
    n_images = len(expected[0]) + len(expected[2]) + (2 if name == "sun397" else 0)
    small = {"n_images": n_images, "first": FIRST.get(name)}
    monkeypatch.setitem(photos.PHOTOS, name, photos.PHOTOS[name]._replace(**small))
    files = {kind: (file, None) for kind, (file, _) in torchvision.datasets.Flowers102._file_dict.items()}
    monkeypatch.setattr(torchvision.datasets.Flowers102, "_file_dict", files)  # without the true ones' MD5
    return name, expected


def test_torchvisions_own_layouts_are_listed_and_split_as_they_are_documented(laid_out):
    name, (train_files, train_labels, test_files, test_labels, class_names) = laid_out
    data.require(name)
    dataset = data.load(name, image_size=16)
    assert dataset.train_files == train_files and dataset.test_files == test_files
    assert (dataset.train_labels.tolist(), dataset.test_labels.tolist()) == (train_labels, test_labels)
    assert dataset.class_names == class_names and dataset.train_labels.dtype == torch.int64
    assert dataset.source == f"torchvision {photos.PHOTOS[name].kind}" and len(dataset.sha256) == 64
    assert data.load(name).image_size == 224


def test_grey_images_and_small_ones_become_coloured_and_large_enough(laid_out):
    name, _ = laid_out
    dataset = data.load(name, image_size=16)
    dataset = dataset.take(torch.arange(dataset.n_train), held_out=torch.arange(dataset.n_train))
    (pixels,) = dataset.test_pixels(100)
    assert pixels.shape == (dataset.n_train, 16, 16, 3)
    means = pixels.float().mean(dim=(1, 2))
    torch.testing.assert_close(means[0], torch.full((3,), 100.0), atol=2, rtol=0)
    torch.testing.assert_close(means[1:], torch.tensor([200.0, 0, 0]).expand(dataset.n_train - 1, 3), atol=3, rtol=0)
    images, _ = next(dataset.train_batches(batch_size=2, augment=True, generator=torch.Generator().manual_seed(0)))
    assert images.shape == (2, 3, 16, 16)


@pytest.mark.parametrize("name", photos.PHOTOS)
def test_a_folder_of_ones_own_comes_first(offline, monkeypatch, name):
    monkeypatch.setattr(torchvision.datasets, photos.PHOTOS[name].kind, None)
    write(offline / name, images=[f"{split}/{c}/{n}.jpg" for split in ("train", "val") for c in "ab" for n in range(2)])
    data.require(name)
    dataset = data.load(name, image_size=8)
    assert (dataset.source, dataset.n_train, dataset.n_test, dataset.class_names) == (name, 4, 4, ("a", "b"))


def test_a_set_of_which_an_image_is_missing_is_not_used(laid_out):
    name, (train_files, *_) = laid_out
    root = paths.CACHE / "torchvision" / name
    (root / train_files[-1]).unlink()
    n_images = photos.PHOTOS[name].n_images
    with pytest.raises(data.DatasetNotFoundError, match=rf"ValueError: \d+ images instead of {n_images}\)") as caught:
        data.load(name)
    assert str(root) in str(caught.value)


def test_network_is_pruned_for_photographs_and_trained_on_them(offline):
    write(
        offline / "pets", images=[f"{split}/{c}/{n}.jpg" for split in ("train", "test") for c in "ab" for n in range(4)]
    )
    images = {"dataset": "pets", "image_size": 16, "enlarged_to": 32, "batch_size": 4, "n_scored": 8}
    run = AFR.run(seed=0, **images, model="vit_micro4", width=0.25, score="snip", density=0.5, n_epochs=2)
    result = runner.execute(AFR, run, device="cpu", parents=[])
    assert result["status"] == "finished" and result["dataset"]["source"] == "pets"
    assert 0 <= result["metrics"]["test_accuracy"] <= 1


@pytest.mark.parametrize("name", photos.PHOTOS)
@pytest.mark.parametrize("get", [data.load, data.require])
def test_what_is_nowhere_says_where_to_put_it(offline, name, get):
    with pytest.raises(data.DatasetNotFoundError) as caught:
        get(name)
    said, kind, obstacle = str(caught.value), photos.PHOTOS[name].kind, photos.PHOTOS[name].obstacle
    for part in (
        f"no folder {offline / name}:",
        "train/ and val/",
        "unpacked",
        f"torchvision.datasets.{kind}",
        "'smoke'",
    ):
        assert part in said
    assert str(paths.CACHE / "torchvision" / name) in said and socket.getdefaulttimeout() is None
    assert (obstacle or "URLError: <urlopen error no network>); empty that folder") in said


@pytest.mark.parametrize("name", [name for name in photos.PHOTOS if photos.PHOTOS[name].obstacle])
def test_what_is_dead_or_large_is_never_asked_for(monkeypatch, name):
    asked = []
    monkeypatch.setattr(urllib.request, "urlopen", lambda request, **options: asked.append(request) or io.BytesIO())
    with pytest.raises(data.DatasetNotFoundError):
        data.require(name)
    assert asked == []


@pytest.mark.parametrize(
    "name, n_classes, first, n_train, n_test",
    [  # As Salman et al. 2020 (arXiv:2007.08489) count them; SUN397 as its authors' ten partitions have it.
        ("caltech101", 101, (30, inf), 3_030, 5_647),
        ("caltech256", 257, (60, inf), 15_420, 15_187),
        ("sun397", 397, (50, 50), 19_850, 19_850),
    ],
)
def test_sets_without_splits_have_as_many_images_to_train_and_test_on_as_is_usual(
    name, n_classes, first, n_train, n_test
):
    found = photos.PHOTOS[name]
    assert found.first == first and n_train == n_classes * first[0]
    assert n_test == min(found.n_images - n_train, n_classes * first[1])


def test_birdsnap_is_a_folder_of_ones_own_and_the_error_says_so(offline):
    with pytest.raises(data.DatasetNotFoundError, match=r"no folder .*birdsnap: .* torchvision has no download of it"):
        data.require("birdsnap")
    images = [f"{split}/{name}/{n}.jpg" for split in ("train", "test") for name in ("Gull", "Wren") for n in range(2)]
    write(offline / "birdsnap", images=images)
    dataset = data.load("birdsnap", image_size=16)
    assert (dataset.n_train, dataset.n_test, dataset.class_names) == (4, 4, ("Gull", "Wren"))


def test_papers_take_only_images_that_the_registry_loads_or_the_manual_explains():
    names = {AFR.options_of(run).dataset for run in AFR.plan("paper")} | {*downstream.TASKS, *registry.ENLARGED}
    manual = (paths.ROOT / "data" / "README.md").read_text()
    assert photos.PHOTOS.keys() < names <= {*registry.STREAMED, *registry.TORCHVISION, "tiny-imagenet-200"}
    assert [name for name in sorted(names) if f"`{name}`" not in manual] == []
