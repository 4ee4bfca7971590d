"""Magnitude pruning on eight weights, its invariants, and the random networks that are compared with it."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from prunelab.masks import largest, random_mask
from prunelab.methods import magnitude
from prunelab.methods.magnitude import conv_weights, magnitude_masks, pattern_masks, rescaled_init_, stage_patterns
from prunelab.models import build_model

WEIGHTS = {
    "a": torch.tensor([0.9, -0.1, 0.5, 0.05]).view(4, 1, 1, 1),
    "b": torch.tensor([-0.7, 0.2, -0.3, 0.0]).view(2, 2, 1, 1),
}


def positions(masks):
    return {f"{name}{i}" for name, mask in masks.items() for i in mask.flatten().nonzero().flatten().tolist()}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# In order of magnitude: a0 .9, b0 .7, a2 .5, b2 .3, b1 .2, a1 .1, a3 .05, b3 0.
@pytest.mark.parametrize(
    "density, scope, active",
    [
        (0.25, "global", {"a0", "b0"}),
        (0.375, "global", {"a0", "a2", "b0"}),
        (0.625, "global", {"a0", "a2", "b0", "b1", "b2"}),
        (0.3, "global", {"a0", "b0"}),  # 2.4 of 8
        (1.0, "global", {"a0", "a1", "a2", "a3", "b0", "b1", "b2", "b3"}),
        (0.1, "layerwise", {"a0", "b0"}),  # .4 of 4, but at least one
        (0.5, "layerwise", {"a0", "a2", "b0", "b2"}),
        (0.7, "layerwise", {"a0", "a1", "a2", "b0", "b1", "b2"}),  # 2.8 of 4
        (1.0, "layerwise", {"a0", "a1", "a2", "a3", "b0", "b1", "b2", "b3"}),
    ],
)
def test_weights_of_largest_magnitude_stay(density, scope, active):
    masks = magnitude_masks(WEIGHTS, density=density, scope=scope)
    assert positions(masks) == active
    assert all(
        masks[name].shape == weight.shape and masks[name].dtype == torch.bool for name, weight in WEIGHTS.items()
    )


def test_layer_that_would_be_emptied_keeps_its_largest_weight_and_is_named():
    # In order: a0 9, a1 8, a2 7, b0 .3, c1 .2, b1 .1, c0 0. The three largest are all of a; b0 and c1 take the places
    # of a1 and a2, so that a0 is left.
    weights = {"a": torch.tensor([9.0, 8.0, -7.0]), "b": torch.tensor([0.3, 0.1]), "c": torch.tensor([0.0, -0.2])}
    with pytest.warns(UserWarning, match=r"density 0.43 would empty b, c; one weight stays in each") as caught:
        masks = magnitude_masks(weights, density=0.43, scope="global")
    assert positions(masks) == {"a0", "b0", "c1"}
    assert [warning.filename for warning in caught] == [__file__]


def test_layer_with_a_single_weight_left_does_not_lose_it_to_an_emptied_one():
    # In order: a0 9, a1 8, b0 7, c0 .1. Of three weights a has two and b one; c0 takes the place of a1, not of b0.
    weights = {"a": torch.tensor([9.0, 8.0]), "b": torch.tensor([7.0]), "c": torch.tensor([0.1])}
    with pytest.warns(UserWarning, match="would empty c;"):
        masks = magnitude_masks(weights, density=0.75, scope="global")
    assert positions(masks) == {"a0", "b0", "c0"}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("density", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("scope", magnitude.SCOPES)
@pytest.mark.parametrize("name, width", [("resnet8", 0.5), ("resnet20", 0.25)])
def test_counts_are_exact_and_no_weight_outside_is_larger(name, width, scope, density):
    torch.manual_seed(0)
    weights = conv_weights(build_model(name, num_classes=10, width=width))
    masks = magnitude_masks(weights, density=density, scope=scope)
    assert list(masks) == list(weights) and not any(mask.requires_grad for mask in masks.values())
    groups = [list(weights)] if scope == "global" else [[layer] for layer in weights]
    for group in groups:
        values = torch.cat([weights[layer].detach().abs().flatten() for layer in group])
        active = torch.cat([masks[layer].flatten() for layer in group])
        assert int(active.sum()) == round(density * len(values))
        assert active.all() or values[active].min() >= values[~active].max()


@pytest.mark.parametrize("density", [0.05, 0.3, 0.8])
def test_global_masks_are_those_of_torchs_own_pruning(density):
    torch.manual_seed(0)
    model = build_model("resnet8", num_classes=10, width=0.5)
    weights = conv_weights(model)
    masks = magnitude_masks(weights, density=density, scope="global")
    n_pruned = sum(weight.numel() for weight in weights.values()) - sum(int(mask.sum()) for mask in masks.values())
    layers = [(model.get_submodule(name), "weight") for name in weights]
    prune.global_unstructured(layers, prune.L1Unstructured, amount=n_pruned)
    for name, mask in masks.items():
        assert torch.equal(mask, model.get_submodule(name).weight_mask.bool())


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1, 90])
@pytest.mark.parametrize("scope", magnitude.SCOPES)
def test_percentage_is_no_density(density, scope):
    with pytest.raises(ValueError, match=r"density must lie in \(0, 1\]"):
        magnitude_masks(WEIGHTS, density=density, scope=scope)


def test_unknown_scope_is_refused():
    with pytest.raises(ValueError, match="unknown scope 'local'; there are global, layerwise"):
        magnitude_masks(WEIGHTS, density=0.5, scope="local")


def test_fewer_weights_than_layers_are_refused():
    with pytest.raises(ValueError, match=r"density 0\.125 leaves 1 weights for 2 layers; each needs at least one"):
        magnitude_masks(WEIGHTS, density=0.125, scope="global")


def test_convolutions_alone_are_pruned_and_depthwise_ones_stay_dense():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Conv2d(4, 2, 1),
        nn.Flatten(),
        nn.Linear(2, 2),
    )
    weights = conv_weights(model)
    assert list(weights) == ["0", "3"] and weights["3"] is model[3].weight


@pytest.mark.parametrize(
    "model", [nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2), nn.Conv2d(4, 4, 3, groups=4))]
)
def test_network_without_convolutions_is_refused(model):
    with pytest.raises(ValueError, match="Sequential has no convolution that may be pruned"):
        conv_weights(model)


def test_initial_deviation_is_that_of_the_weights_that_are_left():
    # 5000 of 64 * 32 * 9 weights for 32 inputs: n = 156.25, the deviation sqrt(2 / 156.25) = .11314. The dense one is
    # sqrt(2 / (9 * 64)) = .0589. The mean of 5000 is 0 +- .0016, their deviation exact to 1 %.
    layer = nn.Conv2d(32, 64, 3)
    layer.weight.data.fill_(7.0)
    mask = random_mask(layer.weight.shape, 5000, generator=seeded())
    rescaled_init_(nn.Sequential(layer), {"0": mask}, generator=seeded(1))
    assert not layer.weight[~mask].any()
    active = layer.weight[mask].detach()
    assert active.mean().abs() < 3 * 0.0016
    assert active.std() == pytest.approx(0.11314, rel=0.03)


def test_dense_initial_deviation_is_that_of_the_fan_out():
    torch.manual_seed(0)
    rescaled, usual = nn.Conv2d(32, 64, 3), nn.Conv2d(32, 64, 3)
    nn.init.kaiming_normal_(usual.weight, mode="fan_out", nonlinearity="relu")
    rescaled_init_(nn.Sequential(rescaled), {"0": torch.ones(64, 32, 3, 3, dtype=torch.bool)}, generator=seeded())
    assert rescaled.weight.std().item() == pytest.approx(usual.weight.std().item(), rel=0.03)


def test_initial_values_follow_the_generator_alone_and_other_layers_stay():
    model = build_model("resnet8", num_classes=10, width=0.25)
    masks = magnitude_masks(conv_weights(model), density=0.5, scope="layerwise")
    del masks["conv"]
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def drawn(seed):
        rescaled_init_(model, masks, generator=seeded(seed))
        return {name: value.clone() for name, value in model.state_dict().items()}

    first, other, again = drawn(0), drawn(1), drawn(0)
    for name, value in first.items():
        assert torch.equal(value, again[name])
        is_masked = name.removesuffix(".weight") in masks
        assert torch.equal(value, before[name]) != is_masked and torch.equal(value, other[name]) != is_masked


def test_layer_without_active_weights_has_no_initial_values():
    with pytest.raises(ValueError, match="layer '0' has no active weight, so there is nothing to initialise"):
        rescaled_init_(
            nn.Sequential(nn.Conv2d(1, 1, 1)), {"0": torch.zeros(1, 1, 1, 1, dtype=torch.bool)}, generator=seeded()
        )


def test_mask_that_fits_no_layer_is_refused():
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"mask '0' of shape \(1, 1, 3, 3\) fits no layer of Sequential"):
        rescaled_init_(nn.Sequential(nn.Conv2d(1, 1, 1)), {"0": mask}, generator=seeded())


def test_pattern_is_the_mean_over_layers_of_the_shares_at_each_position():
    # Layer a has two kernels, of which one has the left position and both have the right one: shares .5 and 1.
    # Layer b has a single one, with the left position alone: 1 and 0. The layers count alike: .75 and .5.
    masks = {
        "a": torch.tensor([[True, True], [False, True]]).view(2, 1, 1, 2),
        "b": torch.tensor([[True, False]]).view(1, 1, 1, 2),
        "c": torch.ones(1, 1, 1, 1, dtype=torch.bool),
    }
    patterns = stage_patterns(masks, stages={"first": ["a", "b"], "last": ["c"]})
    assert list(patterns) == ["first", "last"]
    assert patterns["first"].tolist() == [[0.75, 0.5]] and patterns["last"].tolist() == [[1.0]]


def test_counts_at_each_position_are_those_of_the_pattern():
    # Four kernels times .75 .4 .9 .2 are 3, 1.6, 3.6 and .8, in total 9. Rounded down they are 3 1 3 0, so two are
    # missing: the largest remainder is that of the fourth, then come the second and the third, of which the first wins.
    pattern = torch.tensor([[0.75, 0.4], [0.9, 0.2]], dtype=torch.float64)
    (mask,) = pattern_masks(
        {"a": torch.empty(2, 2, 2, 2)}, {"s": pattern}, stages={"s": ["a"]}, generator=seeded()
    ).values()
    assert mask.sum(dim=(0, 1)).tolist() == [[3, 2], [3, 1]]


@pytest.mark.parametrize("density", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (5, 1, 3, 3), (16, 8, 3, 3), (4, 3, 1, 7)])
def test_masks_have_the_pattern_they_were_drawn_from(shape, density):
    n_active = max(1, round(density * math.prod(shape)))
    source = {"source": largest(torch.randn(shape, generator=seeded()), n_active)}
    patterns = stage_patterns(source, stages={"stage": ["source"]})
    stages = {"stage": ["same", "tall"]}
    weights = {"same": torch.empty(shape), "tall": torch.empty(3 * shape[0], *shape[1:]), "outside": torch.empty(shape)}
    masks = pattern_masks(weights, patterns, stages=stages, generator=seeded(1))
    assert list(masks) == ["same", "tall"]
    assert all(masks[name].shape == weights[name].shape and masks[name].dtype == torch.bool for name in masks)
    count = source["source"].sum(dim=(0, 1))
    assert torch.equal(masks["same"].sum(dim=(0, 1)), count)
    assert torch.equal(masks["tall"].sum(dim=(0, 1)), 3 * count)


@pytest.mark.parametrize("n_out", [1, 2, 3, 17])
def test_any_pattern_gives_an_exact_total_within_one_of_each_share(n_out):
    pattern = torch.rand(3, 3, generator=seeded(n_out), dtype=torch.float64) * 0.6
    weights = {"a": torch.empty(n_out, 5, 3, 3)}
    mask = pattern_masks(weights, {"s": pattern}, stages={"s": ["a"]}, generator=seeded())["a"]
    assert int(mask.sum()) == round(float(pattern.mean()) * mask.numel())
    assert ((mask.sum(dim=(0, 1)) - 5 * n_out * pattern).abs() < 1).all()


def test_sparsest_pattern_leaves_one_weight():
    pattern = torch.tensor([[0.01, 0.02]], dtype=torch.float64)
    mask = pattern_masks({"a": torch.empty(2, 3, 1, 2)}, {"s": pattern}, stages={"s": ["a"]}, generator=seeded())["a"]
    assert mask.sum(dim=(0, 1)).tolist() == [[0, 1]]


def test_kernels_are_drawn_for_each_position_by_the_generator_alone():
    weights, patterns = {"a": torch.empty(40, 50, 1, 2)}, {"s": torch.full((1, 2), 0.5, dtype=torch.float64)}

    def drawn(seed):
        return pattern_masks(weights, patterns, stages={"s": ["a"]}, generator=seeded(seed))["a"]

    assert torch.equal(drawn(0), drawn(0)) and not torch.equal(drawn(0), drawn(1))
    # Of 2000 kernels 500 +- 11 are active at both positions, if these are independent.
    assert int(drawn(0).all(dim=(2, 3)).sum()) == pytest.approx(500, abs=45)
    # And each output channel has 25 +- 3.6 of its 50 at the first.
    assert ((drawn(0)[:, :, 0, 0].sum(dim=1) - 25).abs() < 18).all()


LAYERS = {"a": torch.ones(1, 1, 3, 3, dtype=torch.bool), "b": torch.ones(1, 1, 1, 1, dtype=torch.bool)}


@pytest.mark.parametrize(
    "names, message",
    [
        (["a", "z"], "stage 's' names 'z', but there are only a, b"),
        (["a", "b"], r"stage 's' must have kernels of one size, got \[\(1, 1\), \(3, 3\)\]"),
        ([], r"stage 's' must have kernels of one size, got \[\]"),
    ],
)
def test_stages_of_other_layers_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        stage_patterns(LAYERS, stages={"s": names})
    with pytest.raises(ValueError, match=message):
        pattern_masks(LAYERS, {"s": torch.ones(3, 3)}, stages={"s": names}, generator=seeded())


@pytest.mark.parametrize("patterns, found", [({}, "absent"), ({"s": torch.ones(1, 1)}, r"\(1, 1\)")])
def test_stage_without_a_pattern_of_its_size_is_refused(patterns, found):
    with pytest.raises(ValueError, match=rf"stage 's' has kernels of size \(3, 3\), but its pattern is {found}"):
        pattern_masks(LAYERS, patterns, stages={"s": ["a"]}, generator=seeded())
