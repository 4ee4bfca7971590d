"""A reader's own growth criterion: as RigL's it moves what RigL moves, and a mistake in it is explained."""

import math

import pytest
import torch
from conftest import train_step
from torch import nn

from prunelab.methods.dynamic import CustomGrowth, RigL
from prunelab.methods.static import active_counts, random_masks
from prunelab.models import build_model
from prunelab.steps import build_optimizer

#                       0    1    2     3    4     5    6    7
WEIGHT = torch.tensor([0.9, -0.1, 0.5, 0.00, 0.0, -0.3, 0.0, 0.0])
GRAD = torch.tensor([0.0, 0.0, 0.0, 0.15, -0.8, 0.0, 0.4, 0.1])
MASK = torch.tensor([1, 1, 1, 0, 0, 1, 0, 0], dtype=torch.bool)
SCHEDULE = {"initial_drop_fraction": 0.5, "update_every": 10, "stop_update_step": 30, "decay": "constant"}


def move(score, mask=MASK, gradient=GRAD):
    """Active weights after one update with `score`."""
    layer = nn.Linear(8, 1, bias=False)
    layer.weight.data = WEIGHT.clone().view(1, 8)
    options = SCHEDULE | {"generator": torch.Generator()}
    method = CustomGrowth(nn.Sequential(layer), {"0": mask.view(1, 8)}, score=score, **options)
    layer.weight.grad = gradient.clone().view(1, 8)
    assert method.before_update(0, torch.optim.SGD(layer.parameters(), lr=0.1))
    assert method.n_dense_gradients == 1
    kept = method.masks["0"] & mask
    assert torch.equal(layer.weight.data, WEIGHT * kept)
    return method.masks["0"][0].nonzero().flatten().tolist()


@pytest.mark.parametrize(
    "score, active",
    [
        # 1 and 5 leave in every row and compete with 3, 4, 6 and 7 for two places.
        (lambda w, g: g.abs(), [0, 2, 4, 6]),
        (lambda w, g: g, [0, 2, 3, 6]),  # 6 .4, 3 .15
        (lambda w, g: g.abs() - 100.0, [0, 2, 4, 6]),  # all negative
        (lambda w, g: -((g - 0.1) ** 2), [0, 2, 3, 7]),  # 7 0, 3 -.0025, 1 and 5 -.01
        (lambda w, g: (10 * g.abs()).int(), [0, 2, 4, 6]),  # 1 8 4 1, no floats
        (lambda w, g: w.abs() + g.abs() / 10, [0, 1, 2, 5]),  # .1 and .3 against at most .08: both return
        (lambda w, g: 1e30 * g, [0, 2, 3, 6]),
        (lambda w, g: g.abs() * 1e-30 - 1.0 * (w != 0), [0, 2, 4, 6]),  # differences that a shift by 1 would lose
    ],
)
def test_new_connections_appear_where_the_score_is_largest(score, active):
    assert move(score) == active


def test_score_sees_one_layer_detached_and_cannot_change_it():
    seen = []

    def score(weight, gradient):
        assert not weight.requires_grad and not isinstance(weight, nn.Parameter)
        seen.append((weight.clone(), gradient.clone()))
        weight.fill_(7.0)
        result = gradient.abs()
        gradient.zero_()
        return result

    assert move(score) == [0, 2, 4, 6]  # `move` looks at the weights
    assert torch.equal(seen[0][0][0], WEIGHT) and torch.equal(seen[0][1][0], GRAD)


@pytest.mark.parametrize("density", [0.05, 0.5, 1.0])
def test_magnitude_of_the_gradient_is_rigl(density):
    methods = []
    for method_class, extra in ((RigL, {}), (CustomGrowth, {"score": lambda w, g: g.abs()})):
        torch.manual_seed(0)
        model = build_model("resnet8", num_classes=10, width=0.5)
        generator = torch.Generator().manual_seed(0)
        masks = random_masks(model, active_counts(model, density=density, distribution="erk"), generator=generator)
        options = SCHEDULE | {"generator": generator, "update_every": 2} | extra
        method = method_class(model, masks, **options)
        optimizer = build_optimizer(model, momentum=0.9, weight_decay=5e-4)
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 0.1
        step = 0
        while step < 6:
            _, stepped = train_step(model, optimizer, torch.randn(8, 3, 8, 8), torch.arange(8), step, method=method)
            step += stepped
            for name, weight in method.weights.items():
                assert not weight[~method.masks[name]].any()
                assert int(method.masks[name].sum()) == int(masks[name].sum())
        methods.append(method)
    rigl, custom = methods
    assert custom.moves == rigl.moves and custom.moves["step"] == [0, 2, 4]
    for name, mask in rigl.masks.items():
        assert torch.equal(custom.masks[name], mask)
        assert torch.equal(custom.weights[name], rigl.weights[name])


@pytest.mark.parametrize(
    "score, message",
    [
        (lambda w, g: None, r"score returned None for layer '0' of shape \(1, 8\); return a tensor of that shape"),
        (lambda w, g: 3.5, "score returned 3.5 for layer '0'"),
        (lambda w, g: g.abs().sum(), r"a tensor of shape \(\) and type torch.float32 for layer '0' of shape \(1, 8\)"),
        (lambda w, g: g.flatten(), r"a tensor of shape \(8,\)"),
        (lambda w, g: g + 1j, "type torch.complex64"),
        (lambda w, g: g.log(), "NaN or infinity for 5 of 8 connections of layer '0'"),
        (lambda w, g: g / w, r"NaN or infinity for 4 of 8 connections .* inactive weights are zero"),
        (lambda w, g: torch.full_like(g, math.inf), "NaN or infinity for 8 of 8"),
        (lambda w, g: w.abs(), r"score returned 0.0 for all 4 inactive connections of layer '0' of shape \(1, 8\)"),
        (lambda w, g: torch.ones_like(g), "score returned 1.0 for all 4 inactive connections"),
        (lambda w, g: g.zero_(), "score returned 0.0 for all 4 inactive connections"),  # only its copy is dead
        (lambda w, g: g * w, "for all 4 inactive connections .* return numbers that differ"),
    ],
)
def test_unusable_scores_are_refused_with_the_reason(score, message):
    with pytest.raises(ValueError, match=message):
        move(score)


@pytest.mark.parametrize("n_inactive", [0, 1])
def test_constant_score_is_no_error_where_nothing_can_be_ranked(n_inactive):
    mask = torch.ones(8, dtype=torch.bool)
    mask[8 - n_inactive :] = False
    assert len(move(lambda w, g: torch.zeros_like(g), mask=mask)) == 8 - n_inactive


def test_dead_layer_is_not_the_fault_of_the_score():
    assert len(move(lambda w, g: g.abs(), gradient=torch.zeros(8))) == 4


def test_the_layer_at_fault_is_the_one_named():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    masks = {"0": torch.eye(2, dtype=torch.bool), "1": torch.tensor([[1, 0], [0, 1], [0, 0]], dtype=torch.bool)}
    score = lambda w, g: g if len(g) == 2 else g / 0  # noqa: E731
    method = CustomGrowth(model, masks, score=score, **SCHEDULE, generator=torch.Generator())
    for layer in model:
        layer.weight.grad = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"6 of 6 connections of layer '1' of shape \(3, 2\)"):
        method.before_update(0, torch.optim.SGD(model.parameters(), lr=0.1))


def test_impossible_update_schedule_is_refused():
    options = SCHEDULE | {"update_every": 0, "generator": torch.Generator()}
    with pytest.raises(ValueError, match="update_every must be at least 1 step"):
        CustomGrowth(nn.Sequential(nn.Linear(8, 1)), {"0": MASK.view(1, 8)}, score=lambda w, g: g, **options)
