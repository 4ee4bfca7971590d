"""Tasks cut from one archive: which classes, numbered how, decoded how often."""

import hashlib
import tarfile

import pytest
import torch
from test_data_registry import ARCHIVES, forbid_decoding, same, write_folder

from prunelab import data, paths
from prunelab.data import folders, tasks
from prunelab.data.dataset import Images

ARCHIVE = ARCHIVES / "tiny-imagenet-200-32px.tar.xz"
SMALL = {"insects": {"n3": "fly", "n1": "bee"}, "food": {"n4": "pizza", "n5": "pretzel"}}
NAMES = ("n0", "n1", "n2", "n3", "n4", "n5")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Empty folders for data and cache."""
    monkeypatch.setattr(paths, "DATA", tmp_path / "data")
    monkeypatch.setattr(paths, "CACHE", tmp_path / "data" / "cache")
    paths.DATA.mkdir()
    return paths.DATA


@pytest.fixture
def small(home, monkeypatch):
    """Two tasks, and a folder with their classes and two more."""
    monkeypatch.setattr(tasks, "TASKS", SMALL)
    return write_folder(home / "tiny", classes=NAMES)


def images_of(labels, names):
    values = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1)
    return Images(values, torch.tensor(labels), values + 100, torch.tensor(labels), names)


def test_classes_are_numbered_anew_and_images_stay_in_order(monkeypatch):
    monkeypatch.setattr(tasks, "TASKS", SMALL)
    images = images_of([4, 3, 2, 1, 0, 3, 1], NAMES)
    for task, kept, labels, names in (
        ("insects", [1, 3, 5, 6], [1, 0, 1, 0], ("n1", "n3")),
        ("food", [0], [0], ("n4", "n5")),
        ("pretraining", [2, 4], [1, 0], ("n0", "n2")),
    ):
        part = tasks.cut(images, task, source="here")
        assert part.train_images.flatten().tolist() == kept
        assert part.test_images.flatten().tolist() == [100 + value for value in kept]
        assert part.train_labels.tolist() == part.test_labels.tolist() == labels
        assert part.class_names == names and part.train_labels.dtype == torch.int64


def test_tasks_have_no_class_in_common_and_pretraining_has_none_of_theirs():
    held_out = [name for classes in tasks.TASKS.values() for name in classes]
    assert len(held_out) == len(set(held_out)) == 69
    assert {task: len(classes) for task, classes in tasks.TASKS.items()} == {
        **{"insects": 10, "dogs": 6, "vehicles": 15, "food": 17, "mixed": 21}
    }
    names = tuple(sorted({*held_out, "n00000001", "n99999999"}))
    whole = images_of(list(range(len(names))), names)
    assert tasks.cut(whole, "pretraining", source="here").class_names == ("n00000001", "n99999999")


def test_tasks_are_those_that_records_name():
    """A class that moves makes other data of the same name."""
    listed = "\n".join(f"{task} {' '.join(classes)}" for task, classes in tasks.TASKS.items())
    assert hashlib.sha256(listed.encode()).hexdigest().startswith("c2c430773ef8")


def test_classes_have_the_names_of_the_archive_and_mixed_ones_are_every_seventh_of_the_others():
    if not ARCHIVE.is_file():
        pytest.skip(f"no {ARCHIVE.name} in {ARCHIVES}")
    with tarfile.open(ARCHIVE) as archive:
        member = next(member for member in archive if member.name.endswith("classes.tsv"))
        lines = archive.extractfile(member).read().decode().splitlines()
    words = dict(line.split("\t") for line in lines)
    for classes in tasks.TASKS.values():
        assert list(classes) == sorted(classes)
        assert classes == {name: words[name].split(",")[0] for name in classes}
    coherent = set().union(*(classes for task, classes in tasks.TASKS.items() if task != "mixed"))
    assert list(tasks.TASKS["mixed"]) == sorted(words.keys() - coherent)[6::7]


def test_one_decoding_serves_all_tasks_of_a_size(small, monkeypatch):
    decoded, read = [], folders.read

    def counted(source, *, image_size):
        decoded.append(image_size)
        return read(source, image_size=image_size)

    monkeypatch.setattr(folders, "read", counted)
    for image_size in (None, 2):
        whole, *parts = (
            data.load(f"tiny{task}", image_size=image_size) for task in ("", ":insects", ":food", ":pretraining")
        )
        assert [part.num_classes for part in parts] == [2, 2, 2] and whole.num_classes == 6
        assert {part.image_size for part in parts} == {image_size or 4}
        assert sum(part.n_train for part in parts) == whole.n_train
        assert torch.equal(parts[1].test_images, whole.test_images[whole.test_labels >= 4])
        for part in parts:
            assert (part.source, part.sha256, part.flip) == (whole.source, whole.sha256, whole.flip)
    assert decoded == [None, 2]
    assert data.load("tiny:food", n_train=4, device="cpu").n_train == 4 and data.load("tiny:food").name == "tiny:food"


def test_a_task_is_cached_until_its_classes_or_its_source_change(small, monkeypatch):
    first = data.load("tiny:insects")
    with monkeypatch.context() as patched:
        patched.setattr(tasks, "cut", None)
        forbid_decoding(patched)
        assert same(data.load("tiny:insects"), first)
    monkeypatch.setitem(SMALL, "insects", {"n0": "ant", "n1": "bee"})
    with monkeypatch.context() as patched:
        forbid_decoding(patched)
        assert data.load("tiny:insects").class_names == ("n0", "n1")
    write_folder(small, value=1, classes=NAMES)
    assert torch.equal(data.load("tiny:insects").train_images, data.load("tiny").train_images[:12])
    assert data.load("tiny:insects").train_images.min() == 1


def test_an_unknown_task_names_those_there_are(small):
    for use in (data.load, data.require):
        with pytest.raises(ValueError, match=r"unknown task 'cats'; there are insects, dogs, .*mixed, pretraining"):
            use("tiny:cats")


@pytest.mark.parametrize("task, n_named", [("insects", 2), ("pretraining", 4)])
def test_classes_that_are_missing_are_named(home, monkeypatch, task, n_named):
    monkeypatch.setattr(tasks, "TASKS", SMALL)
    write_folder(home / "zoo", classes=("n0", "n1", "n4", "n5"))
    message = rf"zoo has no classes for the task '{task}', .* 1 of {n_named} are missing, such as n3"
    with pytest.raises(ValueError, match=message):
        data.load(f"zoo:{task}")


@pytest.mark.parametrize("name", ["digits:insects", "cifar10:insects", "nothing:insects", "tiny:", "tiny:food:2"])
def test_tasks_are_of_archives_only(home, name):
    with pytest.raises(ValueError, match="unknown data set"):
        data.load(name)


def test_a_missing_archive_is_asked_for_by_its_own_name(home):
    with pytest.raises(data.DatasetNotFoundError, match=r"no tiny:food on this machine.* tiny/, tiny\.tar\.xz"):
        data.require("tiny:food")
    write_folder(home / "tiny")
    data.require("tiny:food")
