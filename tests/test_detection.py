"""Detection: its loss and its precision by hand and by slow loops, and a sparse network that learns to detect."""

import copy
import math
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from conftest import with_statistics
from torch import nn

from prunelab import cost, data, recipes
from prunelab.data.scenes import scenes_of
from prunelab.detection import (
    EMPTY_WEIGHT,
    LEAST_SCORE,
    OVERLAP,
    PLACE_WEIGHT,
    Boxes,
    Detector,
    detect,
    evaluate,
    masks_of,
    mean_average_precision,
    objective,
    true_boxes,
)
from prunelab.methods.static import Static, initial_masks
from prunelab.models import build_model
from prunelab.recipes.common import generator_of, image_of
from prunelab.recipes.recipe import Outline, Recipe, Setup, State, TrainingOptions
from prunelab.recipes.runner import execute
from prunelab.recipes.structures import carried_over
from prunelab.runs import PROFILES
from prunelab.training import train


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def scenes():
    return scenes_of(data.load("digits", in_colour=True), n_train=400, n_test=100, size=32, generator=generator())


def network(name="resnet8", *, seed=0, **shape):
    torch.manual_seed(seed)
    return build_model(name, **{"num_classes": 10, "image_size": 32, "width": 0.5} | shape)


# The head.


@pytest.mark.parametrize(
    "name, n_cells",
    [("resnet8", 8), ("preresnet20", 8), ("wrn22_2", 8), ("mobilenet_v1", 4), ("resnet18", 4), ("mobilenet_v2", 4)],
)
def test_head_reads_the_maps_of_any_convolutional_network_cell_by_cell(scenes, name, n_cells):
    model, images = with_statistics(network(name, width=0.25)), torch.randn(2, 3, 32, 32)
    before, names = copy.deepcopy(model), set(dict(model.named_modules()))
    detector = Detector(model, scenes).eval()
    assert detector.n_cells == n_cells and not any(module._forward_hooks for module in detector.modules())
    assert {f"backbone.{name}" for name in names - {""}} <= set(dict(detector.named_modules()))
    n_channels = detector.head[0].in_channels
    detector.head = nn.Identity()  # shows the maps themselves
    maps = detector(images).unflatten(1, (n_cells**2, n_channels))
    seen = []
    *_, head = (module for module in before.modules() if isinstance(module, nn.Linear))
    head.register_forward_pre_hook(lambda module, inputs: seen.extend(inputs))
    before(images)
    torch.testing.assert_close(maps.mean(dim=1), seen[0], rtol=1e-4, atol=1e-4)


def test_cells_are_read_row_after_row_and_boxes_stay_in_bounds(scenes):
    detector = Detector(network(), scenes)
    outputs = torch.zeros(1, 64, 15)
    outputs[0, 8 * 2 + 5, :5] = torch.tensor([3.0, math.log(3), -math.log(3), math.log(3), 0.0])  # row 2, column 5
    presence, places, classes = detector.read(outputs.flatten(1))
    # A cell has 4 pixels; sigmoid(log 3) = 3/4 and sigmoid(-log 3) = 1/4.
    torch.testing.assert_close(places[0, 21], torch.tensor([4 * 5.75, 4 * 2.25, 24.0, 16.0]))
    torch.testing.assert_close(places[0, 0], torch.tensor([2.0, 2.0, 16.0, 16.0]))
    assert presence[0].argmax() == 21 and classes.shape == (1, 64, 10)


@pytest.mark.parametrize(
    "name, message",
    [
        ("vit_micro4", "reads no feature maps"),
        ("vgg16", "reads no feature maps"),
        ("vgg11", "2 x 2 cells on images of 32 pixels; 4 x 4 keep"),
    ],
)
def test_network_without_maps_or_with_too_few_cells_is_refused(scenes, name, message):
    with pytest.raises(ValueError, match=message):
        Detector(with_statistics(network(name, width=0.25)), scenes)


def slow_loss(readings, boxes, *, n_cells, size):
    """Scene by scene and cell by cell, as the paper writes it."""
    total = 0.0
    for presence, places, classes, own in zip(*(part.double() for part in readings), boxes.double(), strict=True):
        at = {
            int(y * n_cells // size) * n_cells + int(x * n_cells // size): box
            for box in own
            if box[0] >= 0
            for _, x, y, *_ in [box.tolist()]
        }
        for cell in range(n_cells**2):
            probability = presence[cell].sigmoid()
            if cell not in at:
                total -= EMPTY_WEIGHT * (1 - probability).log()
                continue
            label, *wanted = at[cell].tolist()
            x, y, width, height = (
                (found / size, true / size) for found, true in zip(places[cell].tolist(), wanted, strict=True)
            )
            total -= probability.log()
            total += PLACE_WEIGHT * sum((found - true) ** 2 for found, true in (x, y))
            total += PLACE_WEIGHT * sum((found**0.5 - true**0.5) ** 2 for found, true in (width, height))
            total -= classes[cell].log_softmax(dim=0)[int(label)]
    return float(total) / len(boxes)


def test_loss_is_that_of_every_cell_and_every_picture(scenes):
    detector = Detector(network(), scenes).eval()
    images, _ = next(scenes.test_batches(batch_size=12))
    boxes = scenes.test_labels[:12]
    assert (boxes[..., 0] < 0).any() and (boxes[..., 0] >= 0).all(dim=1).any()
    with torch.no_grad():
        detector.head[-1].weight.mul_(30)  # numbers that differ from cell to cell
        readings = detector.read(detector(images))
        (loss,) = objective(detector, images, boxes)
    assert loss.item() == pytest.approx(slow_loss(readings, boxes, n_cells=8, size=32), rel=1e-5)


# Average precision.


def boxes_of(*rows):
    """Boxes from rows of image, class, left, top, right, bottom and score."""
    table = torch.tensor(rows, dtype=torch.float).view(-1, 7)
    return Boxes(table[:, 0].long(), table[:, 1].long(), table[:, 2:6], table[:, 6])


# Three boxes of 10 x 10 pixels: two in image 0, one in image 1.
TRUE = [(0, 0, 0, 0, 10, 10, 1), (0, 0, 20, 0, 30, 10, 1), (1, 0, 0, 0, 10, 10, 1)]


@pytest.mark.parametrize(
    "found, precision",
    [
        ([], 0),
        (TRUE, 1),
        # Right, wrong (another image's), right, double: precision 1 and 2/3 at the recalls 1/3 and 2/3.
        (
            [
                (0, 0, 0, 0, 10, 10, 0.9),
                (1, 0, 20, 0, 30, 10, 0.8),
                (1, 0, 0, 0, 10, 10, 0.7),
                (0, 0, 0, 0, 10, 9, 0.6),
            ],
            (1 + 2 / 3) / 3,
        ),
        # Wrong, right, right: precision 1/2 at a third, 2/3 at two thirds, which counts for both.
        ([(0, 0, 50, 0, 60, 10, 0.9), (0, 0, 0, 0, 10, 10, 0.8), (0, 0, 20, 0, 30, 10, 0.7)], 2 * (2 / 3) / 3),
        # 10 x 5 of 10 x 10 is an overlap of 1/2, which is enough; 10 x 4.9 is not. In any order in the list.
        ([(1, 0, 0, 0, 10, 4.9, 0.8), (0, 0, 0, 0, 10, 5, 0.9)], 1 / 3),
        # A box of another class finds nothing, and takes nothing away.
        ([(0, 1, 0, 0, 10, 10, 0.9), (0, 0, 0, 0, 10, 10, 0.8)], 1 / 3),
        # The best one of a true box counts though a worse one comes first in the list, and only once.
        ([(0, 0, 0, 0, 10, 8, 0.5), (0, 0, 0, 0, 10, 10, 0.9)], 1 / 3),
    ],
)
def test_average_precision_by_hand(found, precision):
    assert mean_average_precision(boxes_of(*found), boxes_of(*TRUE)) == pytest.approx(precision)


def test_mean_is_over_classes_that_have_true_boxes():
    true = boxes_of(*TRUE, (1, 4, 20, 20, 30, 30, 1), (1, 4, 0, 20, 9, 30, 1))
    found = boxes_of(*TRUE, (1, 4, 20, 20, 30, 30, 0.3), (0, 7, 0, 0, 5, 5, 0.9))
    assert mean_average_precision(found, true) == pytest.approx((1 + 0.5) / 2)


def overlap(one, other):
    width, height = (min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1))
    shared = max(0, width) * max(0, height)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / (sum(areas) - shared)


def slow_mean_average_precision(found, true):
    """Box by box in the order of scores, as the challenges' kits do; area under the steps of the curve."""
    of = [list(zip(*(part.tolist() for part in boxes), strict=True)) for boxes in (found, true)]
    areas = []
    for label in sorted({box[1] for box in of[1]}):
        wanted, taken, curve, n_right = [box for box in of[1] if box[1] == label], set(), [(0.0, 0.0)], 0
        for rank, (image, _, corners, _) in enumerate(
            sorted((b for b in of[0] if b[1] == label), key=lambda b: -b[3]), 1
        ):
            overlaps = [(overlap(corners, box[2]), i) for i, box in enumerate(wanted) if box[0] == image]
            most, i = max(overlaps, key=lambda pair: (pair[0], -pair[1]), default=(0, None))
            if most >= 0.5 and i not in taken:
                taken.add(i)
                n_right += 1
            curve.append((n_right / len(wanted), n_right / rank))
        areas.append(0.0)
        for (before, _), (recall, _) in pairwise(curve):
            areas[-1] += (recall - before) * max(p for r, p in curve if r >= recall)
    return sum(areas) / len(areas)


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_is_that_of_a_slow_loop(seed):
    rng = generator(seed)

    def drawn(n, images, labels, corners):
        scores = torch.randperm(n, generator=rng) / n
        return Boxes(images, labels, corners, scores)

    n = 60
    images, labels = torch.randint(8, (n,), generator=rng), torch.randint(4, (n,), generator=rng)
    low = 30 * torch.rand(n, 2, generator=rng)
    corners = torch.cat([low, low + 5 + 10 * torch.rand(n, 2, generator=rng)], dim=1)
    true = drawn(n, images, labels, corners)
    chosen = torch.randint(n, (200,), generator=rng)  # some twice, some not at all
    moved = corners[chosen] + 2 * torch.randn(200, 4, generator=rng)
    others = torch.where(torch.rand(200, generator=rng) < 0.2, torch.randint(4, (200,), generator=rng), labels[chosen])
    found = drawn(200, images[chosen], others, moved)
    expected = slow_mean_average_precision(found, true)
    assert 0.1 < expected < 0.9
    assert mean_average_precision(found, true) == pytest.approx(expected)


class Knowing(nn.Module):
    """Says of the scenes what it is told."""

    read = Detector.read

    def __init__(self, outputs, n_cells, size, num_classes):
        super().__init__()
        self.outputs, self.n_cells, self.size, self.num_classes = outputs, n_cells, size, num_classes

    def forward(self, images):
        return self.outputs


def knowing(boxes, *, n_cells=8, size=32, num_classes=10):
    """Outputs by which each box is found, surely, in its cell."""
    outputs = torch.full((len(boxes), n_cells**2, 5 + num_classes), -20.0)
    for row, own in zip(outputs, boxes.tolist(), strict=True):
        for label, x, y, *sides in own:
            if label >= 0:
                column, line = x * n_cells / size, y * n_cells / size
                shares = torch.tensor([column % 1, line % 1, *(side / size for side in sides)])
                cell = row[int(line) * n_cells + int(column)]
                cell[0], cell[1:5], cell[5 + int(label)] = 20.0, shares.logit(), 20.0
    return Knowing(outputs.flatten(1), n_cells, size, num_classes)


def test_detector_that_knows_all_boxes_finds_each_once_and_has_precision_1(scenes):
    model = knowing(scenes.test_labels)
    found, true = detect(model, scenes), true_boxes(scenes)
    assert model.training and len(found.scores) == len(true.scores) == (scenes.test_labels[..., 0] >= 0).sum()
    assert (true.scores == 1).all() and found.scores.min() > 0.999
    assert evaluate(model, scenes) == pytest.approx(1)


def test_box_found_twice_is_told_once_in_its_class_and_weak_ones_not_at_all(scenes):
    model = knowing(torch.full_like(scenes.test_labels, -1))
    outputs = model.outputs.view(len(scenes.test_labels), 64, 15)
    for cell, logit, own in ((0, 3.0, 4), (1, 5.0, 4), (2, 4.0, 6), (3, -5.0, 6)):  # cells beside each other
        outputs[7, cell, :5] = torch.tensor([logit, 0.0, 0.0, 5.0, 5.0])  # as large as the scene, nearly
        outputs[7, cell, 5 + own] = 20.0
    assert torch.tensor(-5.0).sigmoid() < LEAST_SCORE and OVERLAP == 0.5
    rows = detect(model, scenes).rows(scenes.class_names)
    assert [(row["image"], row["class"], row["score"]) for row in rows] == [(7, "4", 0.993), (7, "6", 0.982)]
    corners = [rows[0][side] for side in ("left", "top", "right", "bottom")]
    half = 16 * torch.tensor(5.0).sigmoid().item()
    assert corners == pytest.approx([6 - half, 2 - half, 6 + half, 2 + half], abs=0.01)


# In training.


def test_training_under_masks_learns_to_detect_and_keeps_pruned_weights_zero(scenes):
    model = network()
    masks = {
        name: mask
        for name, mask in initial_masks(model, density=0.3, distribution="erk", generator=generator()).items()
        if name != "fc"
    }
    torch.manual_seed(1)
    detector = Detector(model, scenes)
    method, untrained = Static(detector, masks_of(masks)), evaluate(detector, scenes)
    how = {"optimizer": "adam", "learning_rate": 0.01, "schedule": "cosine", "momentum": 0.9, "weight_decay": 5e-4}
    result = train(
        detector,
        scenes,
        method=method,
        objective=objective,
        n_epochs=12,
        batch_size=20,
        augment=False,
        eval_every=12,
        generator=generator(),
        **how,
    )
    assert result.curves["train_loss"][-1] < 6 and not result.diverged
    assert untrained < 0.05 and evaluate(detector, scenes) > 0.25
    for name, mask in masks.items():
        weight = detector.get_parameter(f"backbone.{name}.weight")
        assert (weight[~mask] == 0).all() and (weight[mask] != 0).all()
    n_active = {name: int(mask.sum()) for name, mask in method.masks.items()}
    table = {row["name"]: row for row in cost.layer_table(detector, n_active=n_active, **image_of(scenes))}
    assert "backbone.fc" not in table and table["head.0"]["macs"] == 8 * 8 * 9 * 32 * 32
    assert table["backbone.conv"]["n_active"] == masks["conv"].sum()


DETECTING = {"model": "resnet8", "width": 0.25, "dataset": "digits", "in_colour": True}


@dataclass(frozen=True, kw_only=True)
class DetectingOptions(TrainingOptions):
    """A network that is carried over to scenes."""

    n_epochs: int = 2
    batch_size: int = 20
    optimizer: str = "adam"
    schedule: str = "cosine"
    weight_decay: float = 0.0


def detecting_setup(options, dataset, parents, *, seed):
    torch.manual_seed(seed)
    scenes = scenes_of(dataset, n_train=60, n_test=40, size=32, generator=generator_of("scenes", seed))
    model, method = carried_over(options, scenes, parents[0])
    detector = Detector(model, scenes)

    def fields(result):
        result.curves = {name: result.curves[name] for name in ("epoch", "train_loss")}
        return {"metrics": {"mean_average_precision": evaluate(detector, scenes)}}

    return Setup(
        detector,
        reference=cost.layer_table(detector, **image_of(scenes)),
        n_epochs=options.n_epochs,
        ordinary_epochs=options.n_epochs,
        training={"objective": objective, "augment": False},
        dataset=scenes,
        method=Static(detector, masks_of(method.masks)) if method else None,
        finish=fields,
    )


def test_sparse_network_of_other_images_is_carried_over_to_detection_by_an_ordinary_run(monkeypatch):
    recipe = Recipe(
        name="detecting",
        notebook="00_detecting",
        options=DetectingOptions,
        seeds=dict.fromkeys(PROFILES, (0,)),
        experiments_of=lambda profile, seeds: {},
        check=lambda options, n_parents: None,
        outline=lambda options, dataset: Outline(1.0, options.n_epochs),
        setup=detecting_setup,
    )
    monkeypatch.setitem(recipes.RECIPES, "detecting", recipe)
    upstream = network(width=0.25, num_classes=7, image_size=16)
    masks = initial_masks(upstream, density=0.2, distribution="erk", generator=generator())
    Static(upstream, masks)
    parent = State(upstream.state_dict(), 7, {}, 1e6, masks=masks)
    record = execute(recipe, recipe.run(seed=3, **DETECTING), device="cpu", parents=(parent,))
    assert 0 <= record["metrics"]["mean_average_precision"] <= 1 and "test_accuracy" not in record["metrics"]
    assert record["metrics"]["n_steps"] == 2 * 3 and record["dataset"]["name"] == "digits"
    layers = {row["name"]: row for row in record["layers"]}
    assert layers["backbone.conv"]["macs"] == 32 * 32 * int(masks["conv"].sum())  # at the scenes' size
    assert not layers["head.0"]["masked"] and "fc" in masks and "backbone.fc" not in layers
    state = record["state"]
    assert set(state.masks) == {f"backbone.{name}" for name in masks} - {"backbone.fc"}
    assert all((state.model[f"{name}.weight"][~mask] == 0).all() for name, mask in state.masks.items())
