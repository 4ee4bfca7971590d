"""Masks and the mask update: eight weights by hand, invariants over shapes and densities, and a slow loop."""

import itertools

import pytest
import torch
from torch import nn

from prunelab.masks import (
    distinct,
    drop_and_grow,
    empty_layers,
    global_masks,
    layer_weights,
    prunable_weights,
    random_mask,
)
from prunelab.methods.static import active_counts, random_masks

#                       0    1    2    3    4    5    6    7
WEIGHT = torch.tensor([0.9, -0.1, 0.5, 0.0, 0.0, -0.3, 0.0, 0.0])
GRAD = torch.tensor([0.0, 0.0, 0.0, 0.2, -0.8, 0.0, 0.4, 0.1])
MASK = torch.tensor([1, 1, 1, 0, 0, 1, 0, 0], dtype=torch.bool)


def positions(mask):
    return set(mask.nonzero().flatten().tolist())


@pytest.mark.parametrize(
    "drop_fraction, active, newborn",
    [
        (0.00, {0, 1, 2, 5}, set()),
        (0.25, {0, 2, 4, 5}, {4}),  # 1 (|w| = .1) makes room for 4 (|g| = .8)
        (0.49, {0, 2, 4, 5}, {4}),  # 1.96 weights are 1: rounded down
        (0.50, {0, 2, 4, 6}, {4, 6}),  # 1 and 5 leave; 4 and 6 enter
        (1.00, {3, 4, 6, 7}, {3, 4, 6, 7}),  # magnitude no longer protects anything
    ],
)
def test_moves_small_weights_to_large_gradients(drop_fraction, active, newborn):
    new_mask, born = drop_and_grow(WEIGHT, GRAD.abs(), MASK, drop_fraction=drop_fraction)
    assert positions(new_mask) == active
    assert positions(born) == newborn


def test_dropped_weight_with_the_largest_gradient_returns_and_is_not_newborn():
    grad = GRAD.clone()
    grad[1] = 5.0
    new_mask, born = drop_and_grow(WEIGHT, grad.abs(), MASK, drop_fraction=0.25)
    assert positions(new_mask) == {0, 1, 2, 5}
    assert not born.any()


def test_active_weight_that_happens_to_be_zero_ranks_above_inactive_ones():
    weight = torch.tensor([0.0, 0.5, 0.0, 0.0])
    mask = torch.tensor([True, True, False, False])
    new_mask, _ = drop_and_grow(weight, torch.zeros(4), mask, drop_fraction=0.0)
    assert positions(new_mask) == {0, 1}


def slow_drop_and_grow(weight, score, mask, drop_fraction):
    """The rule, one weight at a time."""
    active = [i for i in range(len(mask)) if mask[i]]
    n_moved = int(drop_fraction * len(active))
    kept = sorted(active, key=lambda i: -abs(weight[i]))[: len(active) - n_moved]
    candidates = [i for i in range(len(mask)) if i not in kept]
    return set(kept) | set(sorted(candidates, key=lambda i: -score[i])[:n_moved])


@pytest.mark.parametrize(
    "shape, density, drop_fraction",
    list(itertools.product([(7,), (5, 6), (4, 3, 3, 3), (1, 1, 1, 1)], [0.05, 0.5, 1.0], [0.0, 0.3, 1.0])),
)
def test_update_agrees_with_a_slow_loop_and_keeps_the_count(shape, density, drop_fraction):
    generator = torch.Generator().manual_seed(0)
    n = torch.Size(shape).numel()
    mask = random_mask(shape, max(1, round(density * n)), generator=generator)
    weight = torch.randn(shape, generator=generator) * mask
    score = torch.rand(shape, generator=generator)
    new_mask, newborn = drop_and_grow(weight, score, mask, drop_fraction=drop_fraction)
    expected = slow_drop_and_grow(
        weight.flatten().tolist(), score.flatten().tolist(), mask.flatten().tolist(), drop_fraction
    )
    assert positions(new_mask.flatten()) == expected
    assert new_mask.sum() == mask.sum()
    assert torch.equal(newborn, new_mask & ~mask)
    assert new_mask.shape == mask.shape


@pytest.mark.parametrize("drop_fraction", [-0.1, 1.01, 30])
def test_percentage_is_rejected(drop_fraction):
    with pytest.raises(ValueError, match=r"drop_fraction must lie in \[0, 1\]"):
        drop_and_grow(WEIGHT, GRAD.abs(), MASK, drop_fraction=drop_fraction)


@pytest.mark.parametrize("n_active", [0, 1, 7, 24])
def test_random_mask_has_exactly_the_requested_weights(n_active):
    mask = random_mask((2, 3, 4), n_active, generator=torch.Generator().manual_seed(1))
    assert mask.shape == (2, 3, 4)
    assert mask.dtype == torch.bool
    assert mask.sum() == n_active


def test_random_masks_follow_their_generator():
    def draw(seed):
        return random_mask((50, 50), 500, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_random_mask_with_too_many_weights_is_refused():
    with pytest.raises(ValueError, match="6 weights cannot have 7 active"):
        random_mask((2, 3), 7, generator=torch.Generator())


def test_prunable_weights_are_convolutions_and_linear_layers_in_order():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    assert list(prunable_weights(model)) == ["0", "3"]


def test_model_without_prunable_layers_is_refused():
    with pytest.raises(ValueError, match="Sequential has no convolution or linear layer"):
        prunable_weights(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()))


def test_depthwise_convolutions_are_never_pruned_but_other_grouped_ones_are():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),  # sees all of one channel: not depthwise
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Conv2d(4, 8, 3, groups=4),  # two filters for each channel
        nn.Conv2d(8, 8, 3, groups=2),
        nn.Conv2d(8, 2, 1),
    )
    assert list(layer_weights(model)) == ["0", "1", "2", "3", "4"]
    assert list(prunable_weights(model)) == ["0", "3", "4"]
    assert set(active_counts(model, density=0.5, distribution="erk")) == {"0", "3", "4"}
    with pytest.raises(ValueError, match="Conv2d has no convolution or linear layer, so nothing in it can be pruned"):
        prunable_weights(model[1])


def test_a_weight_that_layers_share_is_one_by_the_name_of_the_first():
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(5)))
    model[3].weight = model[4].weight = model[1].weight
    model[2].weight.data = model[0].weight.data.clone()  # alike, but two
    assert list(layer_weights(model)) == ["0", "1", "2", "3", "4"]
    weights = distinct(layer_weights(model))
    assert list(weights) == ["0", "1", "2"] and all(weights[name] is model[int(name)].weight for name in weights)
    assert list(prunable_weights(model)) == ["0", "1", "2"]
    assert sum(active_counts(model, density=0.25, distribution="erk").values()) == 12


# Layers of 10, 20 and 40 weights.
THREE_LAYERS = nn.Sequential(nn.Linear(2, 5), nn.Linear(5, 4), nn.Linear(4, 10))


@pytest.mark.parametrize(
    "distribution, first_layer, layers, n_active",
    [
        ("uniform", "by_distribution", {"1", "2"}, 30),
        ("uniform", "dense", {"1", "2"}, 30),
        ("erk", "by_distribution", {"0", "1", "2"}, 35),
        ("erk", "dense", {"1", "2"}, 30),
        ("erdos_renyi", "by_distribution", {"0", "1", "2"}, 35),
        ("erdos_renyi", "dense", {"1", "2"}, 30),
    ],
)
def test_first_layer_is_dense_on_request_and_then_outside_the_budget(distribution, first_layer, layers, n_active):
    options = {"density": 0.5, "distribution": distribution, "first_layer": first_layer}
    counts = active_counts(THREE_LAYERS, **options)
    assert set(counts) == layers and sum(counts.values()) == n_active
    masks = random_masks(THREE_LAYERS, counts, generator=torch.Generator().manual_seed(0))
    assert {name: int(mask.sum()) for name, mask in masks.items()} == counts


def test_first_layer_is_left_to_the_distribution_by_default():
    for distribution in ("uniform", "erk"):
        options = {"density": 0.5, "distribution": distribution}
        counts = active_counts(THREE_LAYERS, **options)
        assert counts == active_counts(THREE_LAYERS, **options, first_layer="by_distribution")
        assert set(random_masks(THREE_LAYERS, counts, generator=torch.Generator())) == set(counts)


def test_impossible_first_layers_are_refused():
    with pytest.raises(ValueError, match="unknown first_layer 'sparse'; there are by_distribution, dense"):
        active_counts(THREE_LAYERS, density=0.5, distribution="erk", first_layer="sparse")
    with pytest.raises(ValueError, match="no layer to make sparse"):
        active_counts(THREE_LAYERS[:1], density=0.5, distribution="uniform", first_layer="dense")


# Over both layers: b0 4, a0 3, b1 2, a2 1, a1 -1, b2 -2; signs count, magnitudes do not.
SCORES = {"a": torch.tensor([[3.0, -1.0, 1.0]]), "b": torch.tensor([4.0, 2.0, -2.0])}
WITHOUT_B0 = {"a": torch.ones(1, 3, dtype=torch.bool), "b": torch.tensor([False, True, True])}


@pytest.mark.parametrize(
    "density, masks, a, b",
    [
        (1.0, None, {0, 1, 2}, {0, 1, 2}),
        (0.5, None, {0}, {0, 1}),
        (0.4, None, {0}, {0}),  # 2.4 weights are 2
        (0.1, None, set(), {0}),  # 0.6 is 1: the other layer is empty
        (0.5, WITHOUT_B0, {0, 2}, {1}),  # of all weights, active or not
        (5 / 6, WITHOUT_B0, {0, 1, 2}, {1, 2}),
    ],
)
def test_largest_scores_of_all_layers_stay(density, masks, a, b):
    found = global_masks(SCORES, density=density, masks=masks)
    assert found["a"].shape == (1, 3) and (positions(found["a"][0]), positions(found["b"])) == (a, b)
    assert empty_layers(found) == ["a"] * (not a)


@pytest.mark.parametrize("density", [0.01, 0.3, 0.77, 1.0])
@pytest.mark.parametrize("n_values", [1, 3, 1000])
def test_global_masks_have_the_exact_count_and_equal_scores_stay_from_the_front(density, n_values):
    generator = torch.Generator().manual_seed(0)
    scores = {
        name: torch.randint(n_values, shape, generator=generator) / 1.0 for name, shape in [("a", (7, 9)), ("b", (50,))]
    }
    masks = {name: torch.rand(score.shape, generator=generator) < 0.9 for name, score in scores.items()}
    flat, active = (torch.cat([part.flatten() for part in parts.values()]) for parts in (scores, masks))
    n_left = min(round(density * 113), int(active.sum()))
    found = torch.cat([mask.flatten() for mask in global_masks(scores, density=n_left / 113, masks=masks).values()])
    ranking = sorted(positions(active), key=lambda i: (-flat[i].item(), i))
    assert positions(found) == set(ranking[:n_left])


@pytest.mark.parametrize("wrong", [torch.nan, -torch.inf])
def test_scores_that_cannot_be_ranked_are_refused_with_their_layer(wrong):
    with pytest.raises(ValueError, match="layer 'b' has scores that cannot be ranked"):
        global_masks(SCORES | {"b": torch.tensor([1.0, wrong, 2.0])}, density=0.5)
    assert global_masks(SCORES | {"b": torch.tensor([1.0, torch.inf, 2.0])}, density=1 / 6)["b"].tolist()[1]


@pytest.mark.parametrize(
    "density, scores, masks, match",
    [
        (0.0, SCORES, None, r"density must lie in \(0, 1\]"),
        (90, SCORES, None, r"density must lie in \(0, 1\]"),
        (0.05, SCORES, None, "density 0.05 leaves none of 6 weights"),
        (1.0, SCORES, WITHOUT_B0, "density 1.0 asks for 6 weights, but only 5 of 6 are left"),
        (0.5, SCORES, {"a": WITHOUT_B0["a"]}, "they differ in b"),
        (0.5, SCORES, WITHOUT_B0 | {"a": torch.ones(3, dtype=torch.bool)}, "they differ in a"),
        (0.5, {}, None, "no scores, so there is nothing to prune"),
    ],
)
def test_impossible_global_masks_are_refused(density, scores, masks, match):
    with pytest.raises(ValueError, match=match):
        global_masks(scores, density=density, masks=masks)


def test_frozen_weights_are_not_prunable():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    model[0].weight.requires_grad_(False)
    assert list(prunable_weights(model)) == ["1"]
    with pytest.raises(ValueError, match="all layers of Sequential are frozen, so nothing in it can be pruned"):
        prunable_weights(model.requires_grad_(False))
