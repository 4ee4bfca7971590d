"""Scenes: pictures side by side, each in the box that is said."""

from types import SimpleNamespace

import pytest
import torch

from prunelab import data
from prunelab.data.scenes import MOST_PICTURES, SIDES, compose, scenes_of


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def plain_pictures(channels=1):
    """Four pictures, each of one grey level, and their classes."""
    levels = torch.tensor([0, 80, 160, 240], dtype=torch.uint8)
    return levels.view(4, 1, 1, 1).expand(4, 6, 6, channels).contiguous(), torch.arange(4)


@pytest.mark.parametrize("size, channels", [(16, 1), (32, 3), (48, 1)])
def test_pixels_within_a_box_are_its_picture_and_all_others_are_ground(size, channels):
    images, labels = plain_pictures(channels)
    scenes, boxes = compose(images, labels, n=40, size=size, generator=generator())
    assert scenes.shape == (40, size, size, channels) and scenes.dtype == torch.uint8
    assert boxes.shape == (40, MOST_PICTURES, 5) and boxes.dtype == torch.float32
    assert torch.equal(scenes, scenes[..., :1].expand_as(scenes))  # equal channels stay equal
    for scene, own in zip(scenes[..., 0], boxes.tolist(), strict=True):
        is_ground = torch.ones(size, size, dtype=torch.bool)
        for label, x, y, width, height in own:
            if label < 0:
                continue
            columns, rows = (
                torch.tensor([abs(i + 0.5 - at) < side / 2 for i in range(size)])
                for at, side in ((x, width), (y, height))
            )
            assert (scene[rows][:, columns] == 80 * label).all() and columns.any() and rows.any()
            is_ground &= ~(rows[:, None] & columns)
        assert scene[is_ground].float().std() > 5  # noise


def test_boxes_are_in_the_scene_of_allowed_sides_and_apart():
    _, boxes = compose(*plain_pictures(), n=500, size=32, generator=generator())
    is_there = boxes[..., 0] >= 0
    assert (boxes[~is_there] == torch.tensor([-1.0, 0, 0, 0, 0])).all()
    assert is_there[:, 0].all() and (is_there.int().diff(dim=1) <= 0).sum() > 900
    counts = is_there.sum(dim=1).bincount(minlength=4)
    assert counts[0] == 0 and counts[1:].min() > 100
    assert torch.equal(boxes[is_there][:, 0].unique(), torch.arange(4.0))
    low, high = (boxes[..., 1:3] + sign * boxes[..., 3:] / 2 for sign in (-1, 1))
    assert low.min() > -1e-4 and high.max() < 32 + 1e-4
    sides = boxes[is_there][:, 3:]
    assert 32 * SIDES[0] <= sides.min() < 8.5 and 15.5 < sides.max() <= 32 * SIDES[1]
    for i in range(MOST_PICTURES):
        for j in range(i):
            shared = torch.minimum(high[:, i], high[:, j]) - torch.maximum(low[:, i], low[:, j])
            assert shared.min(dim=1).values[is_there[:, i] & is_there[:, j]].max() < 1e-4


def test_picture_is_scaled_not_cut_or_mirrored():
    """Left half black, upper right grey, lower right white."""
    picture = torch.zeros(1, 8, 8, 1, dtype=torch.uint8)
    picture[:, :4, 4:], picture[:, 4:, 4:] = 128, 255
    scenes, boxes = compose(picture, torch.zeros(1).long(), n=20, size=64, generator=generator())
    for scene, (_, x, y, width, height) in zip(scenes[..., 0], boxes[:, 0].tolist(), strict=True):
        for dx, dy, level in ((-0.3, -0.3, 0), (-0.3, 0.3, 0), (0.3, -0.3, 128), (0.3, 0.3, 255)):
            assert scene[int(y + dy * height), int(x + dx * width)] == level


def test_scenes_follow_from_their_generator():
    first, again, other = (compose(*plain_pictures(), n=8, size=32, generator=generator(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(own, its) for own, its in zip(first, again, strict=True))
    assert not torch.equal(first[1], other[1])


def test_scenes_are_a_data_set_whose_training_batches_have_the_boxes_of_their_images():
    digits = data.load("digits", in_colour=True)
    scenes = scenes_of(digits, n_train=30, n_test=20, size=32, generator=generator())
    assert (scenes.n_train, scenes.n_test, scenes.num_classes) == (30, 20, 10)
    assert (scenes.image_size, scenes.channels, scenes.name, scenes.sha256) == (32, 3, "digits", digits.sha256)
    batches = scenes.train_batches(batch_size=10, augment=False, generator=generator())
    for _ in range(3):
        images, boxes = next(batches)
        pixels = (images * scenes.std.view(3, 1, 1) + scenes.mean.view(3, 1, 1)).mul(255).round().permute(0, 2, 3, 1)
        for own, its in zip(pixels, boxes, strict=True):
            (index,) = (scenes.train_images == own).flatten(1).all(dim=1).nonzero().tolist()
            assert torch.equal(scenes.train_labels[index[0]], its)
    labels = torch.cat([labels for _, labels in scenes.test_batches(batch_size=8)])
    assert torch.equal(labels, scenes.test_labels[:, 0, 0].long())
    assert len(scenes.take(torch.arange(5)).train_labels) == 5


def test_scenes_are_not_augmented_nor_composed_of_a_stream():
    scenes = scenes_of(data.load("digits"), n_train=8, n_test=4, size=32, generator=generator())
    with pytest.raises(ValueError, match="scenes are not augmented"):
        scenes.train_batches(batch_size=4, augment=True, generator=generator())
    with pytest.raises(ValueError, match="imagenet is streamed"):
        scenes_of(SimpleNamespace(name="imagenet"), n_train=8, n_test=4, size=32, generator=generator())
