import itertools
import random
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from prunelab import data, engine, paths, recipes
from prunelab.checkpoints import load_checkpoint
from prunelab.data import folders, streams
from prunelab.landscape import loss_along
from prunelab.models import build_model
from prunelab.steps import Stepper, build_optimizer, set_learning_rate
from prunelab.training import evaluate, train
from prunelab.turns import own_stream

CLASSES = ("n01", "n02", "n10")
SIZES = [(40, 30), (30, 40), (24, 24), (64, 20), (33, 50)]  # width and height


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def save(path, pixels, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """ImageNet in small: of each of three classes five images of many sizes to train on, two to test."""
    monkeypatch.setattr(paths, "DATA", tmp_path)
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    draw = np.random.default_rng(0)
    for split, n_images in (("train", 5), ("val", 2)):
        for class_name, (number, (width, height)) in itertools.product(CLASSES, enumerate(SIZES[:n_images])):
            pixels = draw.integers(256, size=(height, width, 3))
            save(tmp_path / "imagenet" / split / class_name / f"{number}.{'JPEG' if number else 'png'}", pixels)
    return tmp_path / "imagenet"


def stream(size=16, **options):
    return data.load("imagenet", image_size=size, **options)


def batches_of(dataset, *, batch_size=4, augment=True, seed=0):
    return dataset.train_batches(batch_size=batch_size, augment=augment, generator=generator(seed))


def taken(batches, n):
    return list(itertools.islice(batches, n))


def same(a, b):
    return len(a) == len(b) and all(
        torch.equal(x, y) for one, other in zip(a, b, strict=True) for x, y in zip(one, other, strict=True)
    )


def one_label_each(dataset):
    """With labels that number the training images."""
    return replace(dataset, train_labels=torch.arange(dataset.n_train))


def test_a_folder_is_listed_and_no_image_opened(folder):
    for path in folder.rglob("*.*"):
        path.write_bytes(b"no image")
    dataset = data.load("imagenet")
    assert (dataset.n_train, dataset.n_test, dataset.num_classes) == (15, 6, 3)
    assert (dataset.name, dataset.source, dataset.class_names) == ("imagenet", "imagenet", CLASSES)
    assert (dataset.channels, dataset.image_size, dataset.device) == (3, 224, torch.device("cpu"))
    assert dataset.train_files[:2] == ["train/n01/0.png", "train/n01/1.JPEG"]
    assert dataset.train_labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert dataset.test_labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_labels_and_order_are_those_of_a_folder_that_is_held(folder):
    (folder / "train" / "n01" / "._0.png").write_bytes(b"of a Macintosh")
    held, listed = folders.read(folder, image_size=8), folders.list_images(folder)
    assert listed.class_names == held.class_names
    assert torch.equal(listed.train_labels, held.train_labels) and torch.equal(listed.test_labels, held.test_labels)
    assert listed.train_files == sorted(path.relative_to(folder).as_posix() for path in folder.glob("train/*/[0-9]*"))


def test_a_test_image_is_resized_cut_from_its_centre_and_normalised(folder):
    # 64 x 32 pixels at size 28: to 64 x 32 again, of which columns 18 to 45 and rows 2 to 29 are the centre.
    pixels = np.zeros((32, 64, 3))
    pixels[2:30, 18:46] = 255, 51, 0
    save(folder / "val" / "n01" / "0.png", pixels)
    images, labels = next(stream(size=28).test_batches(batch_size=2))
    assert images.shape == (2, 3, 28, 28) and images.dtype == torch.float32 and labels.tolist() == [0, 0]
    assert images.is_contiguous(memory_format=torch.channels_last)
    expected = torch.tensor([(1 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, (0 - 0.406) / 0.225])
    torch.testing.assert_close(images[0], expected[:, None, None].expand(3, 28, 28))


@pytest.mark.parametrize("batch_size", [1, 4, 6, 100])
def test_the_test_set_comes_whole_in_order_and_as_torchvision_transforms_it(folder, batch_size):
    dataset = stream()
    transform = v2.Compose(
        [
            v2.Resize(round(16 * 256 / 224)),
            v2.CenterCrop(16),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    expected = torch.stack([transform(Image.open(folder / path)) for path in dataset.test_files])
    images, labels = map(torch.cat, zip(*dataset.test_batches(batch_size=batch_size), strict=True))
    torch.testing.assert_close(images, expected)
    assert torch.equal(labels, dataset.test_labels)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_images_of_other_modes_become_coloured(folder, mode):
    (folder / "val" / "n01" / "0.png").unlink()
    kind = "tif" if mode == "CMYK" else "png"  # which has none
    save(folder / "val" / "n01" / f"0.{kind}", np.full((20, 20, 3), 255), mode)
    images, _ = next(stream().test_batches(batch_size=1))
    assert torch.allclose(images[0, :, 0, 0], (1 - torch.tensor(streams.MEAN)) / torch.tensor(streams.STD))


def test_images_of_a_single_pixel_are_enlarged_and_long_ones_cut(folder):
    for split, number in (("train", "1.JPEG"), ("val", "1.JPEG")):
        save(folder / split / "n01" / number, np.full((1, 1, 3), 200))
        save(folder / split / "n02" / number, np.full((1, 1000, 3), 200))
    for images, labels in (next(stream().test_batches(batch_size=6)), next(batches_of(stream(), batch_size=15))):
        assert images.shape[2:] == (16, 16) and sorted(set(labels.tolist())) == [0, 1, 2]


def test_an_image_that_would_fill_the_memory_is_named(folder, monkeypatch):
    # Its shorter side becomes 256/224 of 16 pixels, and its longer one 100 times as many: 33,437 pixels in all.
    save(folder / "val" / "n02" / "1.JPEG", np.zeros((3, 300, 3)))
    monkeypatch.setattr(folders, "MAX_PIXELS", 33_440)
    assert len(list(stream().test_batches(batch_size=2))) == 3
    monkeypatch.setattr(folders, "MAX_PIXELS", 33_430)
    with pytest.raises(
        ValueError, match=r"n02.1\.JPEG cannot be used as an image: with its 300x3 pixels it is too long"
    ):
        list(stream().test_batches(batch_size=2))
    monkeypatch.setattr(folders, "MAX_PIXELS", 899)
    with pytest.raises(ValueError, match=r"n01.0\.png cannot be used as an image: more than 899 pixels"):
        list(stream().test_batches(batch_size=2))


@pytest.mark.parametrize("width, height", [(500, 375), (40, 500), (500, 40), (1, 1), (224, 224)])
def test_crops_are_those_of_torchvision(width, height):
    for seed in range(50):
        torch.manual_seed(seed)
        expected = v2.RandomResizedCrop(224).make_params([torch.empty(3, height, width)])
        crop = streams.random_crop(width, height, generator=generator(seed))
        assert crop == tuple(expected[name] for name in ("top", "left", "height", "width"))


def test_every_training_image_appears_once_a_pass_in_a_new_order_and_full_batches_only(folder):
    batches = batches_of(one_label_each(stream()))
    orders = [torch.cat([labels for _, labels in taken(batches, 3)]).tolist() for _ in range(4)]
    assert all(len(order) == len(set(order)) == 12 for order in orders)  # three of 15 wait for another pass
    assert len(set(map(tuple, orders))) == 4


def test_images_come_with_their_own_labels(folder):
    for shade, path in enumerate(sorted(folder.glob("train/*/*"))):
        path.unlink()
        save(path.with_suffix(".png"), np.full((20, 30, 3), 10 * shade))
    batches = batches_of(one_label_each(stream()), batch_size=5)
    for images, labels in taken(batches, 4):
        assert images.is_contiguous(memory_format=torch.channels_last)
        shades = (images * batches.dataset.std.view(3, 1, 1) + batches.dataset.mean.view(3, 1, 1)) * 255
        torch.testing.assert_close(shades.amax(dim=(1, 2, 3)), 10.0 * labels)
        torch.testing.assert_close(shades.amin(dim=(1, 2, 3)), 10.0 * labels, atol=1e-3, rtol=0)


def test_half_of_the_training_images_are_mirrored(folder):
    n_mirrored = 0
    save(folder / "train" / "n01" / "0.png", np.tile(np.arange(0, 240, 2)[None, :, None], (90, 1, 3)))  # light grows
    dataset, pixels = stream(), np.empty((16, 16, 3), dtype=np.uint8)
    for seed in range(200):
        streams._decode_into(pixels, dataset, "train/n01/0.png", seed)
        n_mirrored += pixels[0, 0, 0] > pixels[0, -1, 0]
    assert 75 < n_mirrored < 125


def test_an_image_is_cut_anew_in_each_pass_unless_it_is_not_augmented(folder):
    def passes(augment):
        batches = batches_of(one_label_each(stream()), batch_size=15, augment=augment)
        return [images[labels.argsort()] for images, labels in taken(batches, 2)]

    first, second = passes(augment=True)
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    first, second = passes(augment=False)
    assert torch.equal(first, second)


@pytest.mark.parametrize("n_threads", [1, 3, 16])
@pytest.mark.parametrize("n_before", range(8))
def test_a_stream_goes_on_bit_for_bit_wherever_it_was_left(folder, n_before, n_threads):
    whole = taken(batches_of(replace(stream(), n_threads=1)), 10)
    dataset = replace(stream(), n_threads=n_threads)
    batches = batches_of(dataset)
    assert same(taken(batches, n_before), whole[:n_before])
    state = batches.state_dict()
    taken(batches, 5)  # what came after is forgotten
    resumed = batches_of(dataset, seed=1)
    taken(resumed, 2)
    resumed.load_state_dict(state)
    assert same(taken(resumed, 10 - n_before), whole[n_before:])


def test_another_seed_gives_another_stream(folder):
    assert not same(taken(batches_of(stream()), 1), taken(batches_of(stream(), seed=1), 1))


def test_global_generators_are_neither_read_nor_moved(folder):
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    first = taken(batches_of(stream()), 5)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1] and np.random.get_state()[1].tolist() == before[2]
    torch.manual_seed(6)
    assert same(taken(batches_of(stream()), 5), first)


def test_a_batch_stays_what_it_was_when_the_next_one_comes(folder):
    batches = batches_of(stream())
    images, labels = next(batches)
    copies = images.clone(), labels.clone()
    next(batches)
    assert torch.equal(images, copies[0]) and torch.equal(labels, copies[1])


def test_the_next_batch_is_decoded_while_one_is_in_use(folder, monkeypatch):
    decoded, decode = threading.Semaphore(0), streams._decode_into

    def decode_and_count(*arguments):
        decode(*arguments)
        decoded.release()

    monkeypatch.setattr(streams, "_decode_into", decode_and_count)
    batches = batches_of(stream())
    next(batches)
    assert all(decoded.acquire(timeout=5) for _ in range(8))


def test_threads_end_with_their_batches(folder):
    before = set(threading.enumerate())
    batches, tested = batches_of(stream()), stream().test_batches(batch_size=1)
    next(batches), next(tested)
    started = set(threading.enumerate()) - before
    assert len(started) >= 2
    del batches, tested
    for thread in started:
        thread.join(timeout=5)
        assert not thread.is_alive()


def test_a_part_of_the_training_images_is_balanced_and_always_the_same(folder):
    dataset = stream(n_train=6)
    assert dataset.train_labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert [path.split("/")[1] for path in dataset.train_files] == ["n01", "n01", "n02", "n02", "n10", "n10"]
    assert dataset.train_files == stream(n_train=6).train_files
    assert dataset.n_test == 6
    with pytest.raises(ValueError, match=r"1\.\.15, as imagenet has 15 training images; got 16"):
        stream(n_train=16)


def test_held_out_images_are_other_training_images_in_place_of_the_test_images(folder):
    dataset = stream(n_train=6, n_validation=3)
    assert dataset.train_files == stream(n_train=6).train_files
    assert dataset.test_labels.tolist() == [0, 1, 2]
    assert not set(dataset.test_files) & set(dataset.train_files) and set(dataset.test_files) < set(
        stream().train_files
    )


def test_the_hash_is_of_paths_and_sizes(folder):
    before = stream().sha256
    assert stream(n_train=3, in_colour=True).sha256 == before and len(before) == 64
    path = folder / "train" / "n01" / "1.JPEG"
    path.write_bytes(path.read_bytes() + b"\0")
    longer = stream().sha256
    path.rename(path.with_name("2.jpg"))
    assert len({before, longer, stream().sha256}) == 3


@pytest.mark.parametrize("content", [b"", b"no image", None], ids=["empty", "text", "truncated"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_an_unreadable_image_is_named(folder, content, split):
    path = folder / split / "n02" / "1.JPEG"
    path.write_bytes(path.read_bytes()[:-200] if content is None else content)
    with pytest.raises(ValueError, match=r"n02.1\.JPEG cannot be used as an image"):
        taken(batches_of(stream()), 8)
        list(stream().test_batches(batch_size=2))


DAMAGES = {  # of three of 200
    "train/n02/007.jpg": lambda content: content[: len(content) // 2],
    "train/n02/050.jpg": lambda content: b"",
    "val/n01/003.jpg": lambda content: b"no image",
}


@pytest.fixture
def photographs(folder):
    """Two hundred images; those of `DAMAGES` are damaged."""
    shutil.rmtree(folder)
    draw = np.random.default_rng(0)
    for split, class_name, number in [("train", c, n) for c in CLASSES[:2] for n in range(80)] + [
        ("val", c, n) for c in CLASSES[:2] for n in range(20)
    ]:
        save(folder / split / class_name / f"{number:03}.jpg", draw.integers(256, size=(30, 40, 3)))
    whole = {path: (folder / path).read_bytes() for path in DAMAGES}
    for path, damage in DAMAGES.items():
        (folder / path).write_bytes(damage(whole[path]))
    return folder, whole


@pytest.mark.parametrize("n_together", [8, 1024])  # the first that is damaged is the last of eight
def test_damaged_images_are_counted_and_named_before_any_training(photographs, capsys, monkeypatch, n_together):
    monkeypatch.setattr(streams, "_N_CHECKED", n_together)
    folder, whole = photographs
    for _ in range(2):  # a failure is not remembered
        with pytest.raises(ValueError) as caught:
            data.require("imagenet", image_size=16)
    said = str(caught.value)
    assert said.startswith(f"{folder}: 3 images cannot be used, such as train/n02/007.jpg (")
    assert all(f"{path} (" in said for path in DAMAGES) and "truncated" in said
    for path, content in list(whole.items())[1:]:
        (folder / path).write_bytes(content)
    with pytest.raises(ValueError, match=r"1 images cannot be used, such as train/n02/007\.jpg \(image file is trunc"):
        data.require("imagenet", image_size=16, quiet=True)
    first, *_ = capsys.readouterr().err.splitlines()
    assert first == "200 images to check"


@pytest.mark.parametrize("damage", [lambda whole: b"no image", lambda whole: bytes(len(whole))])
def test_images_are_checked_once_until_one_changes(photographs, monkeypatch, damage):
    folder, whole = photographs
    for path, content in whole.items():
        (folder / path).write_bytes(content)
    opened = []

    def open_and_count(path):
        opened.append(path)
        return folders.opened(path)

    monkeypatch.setattr(streams.StreamedDataset, "opened", lambda self, path: open_and_count(self.folder / path))
    for n_opened, image_size in ((200, 16), (200, 16), (400, 32)):
        data.require("imagenet", image_size=image_size)
        assert len(opened) == n_opened == len(set(opened)) * (n_opened // 200)
    path = folder / "val" / "n01" / "003.jpg"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="1 images cannot be used"):
        data.require("imagenet", image_size=32)


def test_where_nothing_can_be_remembered_images_are_checked_again(photographs, monkeypatch):
    folder, whole = photographs
    for path, content in whole.items():
        (folder / path).write_bytes(content)

    def refuse(path, content):
        raise PermissionError

    monkeypatch.setattr(streams.files, "atomic_write", refuse)
    data.require("imagenet")


@pytest.mark.parametrize("n_lost", [1, 2, 10, 200])
def test_the_check_finds_what_decoding_finds(folder, n_lost):
    path = folder / "val" / "n02" / "1.JPEG"
    path.write_bytes(path.read_bytes()[:-n_lost])
    with pytest.raises(ValueError, match="cannot be used"):
        list(stream().test_batches(batch_size=6))
    with pytest.raises(ValueError, match=r"1 images cannot be used, such as val/n02/1\.JPEG"):
        data.require("imagenet", image_size=16)


def test_an_image_that_is_too_long_for_its_crops_is_found_by_the_check(folder, monkeypatch):
    save(folder / "val" / "n02" / "1.JPEG", np.zeros((3, 300, 3)))
    monkeypatch.setattr(folders, "MAX_PIXELS", 33_430)  # its longer side becomes 100 times 256/224 of 16 pixels
    with pytest.raises(ValueError, match=r"1 images .*n02/1\.JPEG \(with its 300x3 pixels it is too long"):
        data.require("imagenet", image_size=16)
    data.require("imagenet", image_size=8)


def test_the_engine_trains_nothing_on_damaged_images(photographs, tmp_path):
    run = recipes.get("rigl").run(seed=0, dataset="imagenet", image_size=16, model="resnet8", n_epochs=1, batch_size=8)
    with pytest.raises(ValueError, match="3 images cannot be used"):
        engine.run([run], device="cpu", progress=False, store=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_an_image_that_has_gone_is_named(folder):
    dataset = stream()
    (folder / "val" / "n10" / "0.png").unlink()
    with pytest.raises(ValueError, match=r"n10.0\.png"):
        list(dataset.test_batches(batch_size=2))


def test_a_class_that_is_only_tested_is_named(folder):
    (folder / "val" / "n02").rename(folder / "val" / "n99")
    with pytest.raises(ValueError, match="have no image in train/: n99"):
        stream()


def test_a_folder_without_test_images_is_refused(folder):
    (folder / "val").rename(folder / "validation")
    with pytest.raises(ValueError, match="15 training and 0 test images"):
        stream()


@pytest.mark.parametrize("archive", [None, "imagenet.tar.gz", "imagenet.zip"])
def test_without_a_folder_the_error_says_where_to_put_it(tmp_path, monkeypatch, archive):
    monkeypatch.setattr(paths, "DATA", tmp_path)
    if archive:
        (tmp_path / archive).write_bytes(b"")
    with pytest.raises(data.DatasetNotFoundError) as caught:
        data.load("imagenet")
    for part in (str(tmp_path / "imagenet"), "train/ and val/", "unpacked"):
        assert part in str(caught.value)


@pytest.mark.parametrize("batch_size", [0, 16])
def test_an_impossible_batch_size_is_refused(folder, batch_size):
    with pytest.raises(ValueError, match=r"1\.\.15"):
        batches_of(stream(), batch_size=batch_size)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        next(stream().test_batches(batch_size=0))


def network():
    torch.manual_seed(0)
    return build_model("resnet8", num_classes=3, in_channels=3, image_size=16, width=0.25)


def training(model, checkpoint=None, **options):
    return train(
        model,
        stream(),
        n_epochs=3,
        batch_size=4,
        learning_rate=0.05,
        schedule="constant",
        warmup_epochs=0,
        momentum=0.9,
        weight_decay=1e-4,
        augment=True,
        eval_every=1,
        generator=generator(),
        checkpoint=checkpoint,
        **options,
    )


def assert_same_training(results, networks):
    assert results[0].curves == results[1].curves and results[1].n_steps == 9
    assert all(torch.equal(a, b) for a, b in zip(*(network.parameters() for network in networks), strict=True))


@pytest.mark.parametrize("share_done", [1 / 9, 5 / 9, 6 / 9])  # of three epochs of three steps
def test_a_killed_training_goes_on_bit_for_bit(folder, tmp_path, saved_each_step, share_done):
    whole, resumed = network(), network()
    expected = training(whole)

    def kill(share):
        if share >= share_done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training(network(), tmp_path / "state", report=kill)
    assert load_checkpoint(tmp_path / "state")["result"]["n_steps"] == round(9 * share_done)
    assert_same_training([expected, training(resumed, tmp_path / "state")], [whole, resumed])


def test_a_training_goes_on_bit_for_bit_once_a_file_that_was_damaged_meanwhile_is_mended(
    folder, tmp_path, saved_each_step
):
    whole, resumed = network(), network()
    expected = training(whole)
    paths_of_images = sorted(folder.glob("train/*/*"))
    contents = [path.read_bytes() for path in paths_of_images]

    def damage(share):
        if share >= 4 / 9:
            for path in paths_of_images:
                path.write_bytes(b"no image")

    with pytest.raises(ValueError, match=r"train.n\d\d.\d\.\w+ cannot be used as an image"):
        training(network(), tmp_path / "state", report=damage)
    for path, content in zip(paths_of_images, contents, strict=True):
        path.write_bytes(content)
    assert load_checkpoint(tmp_path / "state")["result"]["n_steps"] >= 4
    assert_same_training([expected, training(resumed, tmp_path / "state")], [whole, resumed])


def test_the_loss_along_a_path_needs_batches_only(folder):
    model = network()
    state = model.state_dict()
    options = {"control_points": (), "n_positions": 2, "n_images": 15, "batch_size": 5}
    _, losses = loss_along(model, state, state, stream(), **options)
    assert losses[0] == losses[1] > 0


@pytest.mark.gpu
def test_captured_steps_give_what_steps_as_they_are_give(folder):
    def losses(n_until_capture):
        model = network().cuda()
        optimizer = build_optimizer(model, optimizer="sgd", momentum=0.9, weight_decay=0.0)
        stepper = Stepper(model, optimizer, batches_of(stream(device="cuda")))
        stepper.n_until_capture = n_until_capture
        found = []
        with own_stream(stepper.device) as own, own:
            set_learning_rate(optimizer, 0.05)
            for step in range(8):
                stepper.step(step)
                found.append(float(stepper.loss_sum))
        return found, evaluate(model, stream(device="cuda"))

    torch.testing.assert_close(losses(3), losses(-1), rtol=1e-4, atol=1e-4)


# Small images, held and enlarged


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """CIFAR-10 in small: of two classes six images to train on and three to test, each lighter from left to right."""
    monkeypatch.setattr(paths, "DATA", tmp_path)
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    draw, slope = np.random.default_rng(0), np.linspace(0, 155, 32).round()[:, None]
    for split, n_images in (("train", 6), ("test", 3)):
        for class_name, number in itertools.product(("cat", "dog"), range(n_images)):
            pixels = draw.integers(100, size=(32, 32, 3)) + slope
            save(tmp_path / "cifar10" / split / class_name / f"{number}.png", pixels)
    return tmp_path / "cifar10"


def test_small_images_are_enlarged_as_if_they_were_photographs(cifar):
    small, large = data.load("cifar10"), data.load("cifar10:enlarged")
    assert (large.image_size, large.n_train, large.n_test, large.name) == (224, 12, 6, "cifar10:enlarged")
    assert (large.source, large.sha256, large.class_names) == (small.source, small.sha256, small.class_names)
    assert torch.equal(large.train_labels, small.train_labels) and large.device == torch.device("cpu")
    # What a folder of the same images would give, had it been put where photographs lie.
    cifar.rename(cifar.with_name("birdsnap"))
    folder = data.load("birdsnap")
    for each in (lambda images: images.test_batches(batch_size=4), lambda images: taken(batches_of(images), 5)):
        assert same(list(each(large)), list(each(folder)))


def test_small_images_can_be_held_out_and_go_on_bit_for_bit(cifar):
    dataset = data.load("cifar10:enlarged", image_size=48, n_train=4, n_validation=6)
    images, labels = next(dataset.test_batches(batch_size=6))
    assert images.shape == (6, 3, 48, 48) and labels.tolist() == [0, 0, 0, 1, 1, 1]
    batches = batches_of(dataset, batch_size=2)
    state = [batches.state_dict() for _ in range(3) if taken(batches, 1)][-1]
    again = batches_of(dataset, batch_size=2)
    again.load_state_dict(state)
    assert same(taken(batches, 4), taken(again, 4))


@pytest.mark.parametrize("name", ["cifar10:enlarged", "cifar100:enlarged"])
def test_what_is_enlarged_is_required_by_its_own_name(cifar, monkeypatch, name):
    asked = []
    monkeypatch.setattr(data.registry, "_entry", lambda *arguments: asked.append(arguments))
    data.require(name)
    assert asked == ([] if name == "cifar10:enlarged" else [("cifar100", None)])


@pytest.mark.parametrize("name", ["mnist10k:enlarged", "digits:enlarged", "cifar10:large"])
def test_no_other_name_is_enlarged(cifar, name):
    with pytest.raises(ValueError, match="unknown"):
        data.load(name)
