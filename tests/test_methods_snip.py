"""SNIP on eight weights, worked out on paper, and its invariants in real training."""

import copy

import pytest
import torch
from conftest import train_step
from torch import nn

from prunelab.masks import largest
from prunelab.methods.snip import Snip
from prunelab.methods.static import active_counts, full_masks
from prunelab.models import build_model
from prunelab.steps import build_optimizer

#                       0    1    2    3    4    5    6    7
WEIGHT = torch.tensor([0.9, -0.1, 0.5, 1.0, 0.2, -0.3, 0.4, 0.6])
GRAD = torch.tensor([0.1, 2.0, -0.8, 0.0, 0.9, 0.5, -0.3, 0.1])
# |gradient * weight|: .09   .20   .40   .00   .18   .15   .12   .06, so the order is 2 1 4 5 6 0 7 3.
# By |gradient| it would be 1 4 2 5 6 ..., by |weight| 3 0 7 2 6 ...


def eight_weights(n_active):
    layer = nn.Linear(8, 1, bias=False)
    layer.weight.data = WEIGHT.clone().view(1, 8)
    method = Snip(nn.Sequential(layer), {"0": n_active})
    layer.weight.grad = GRAD.clone().view(1, 8)
    return layer, method, torch.optim.SGD(layer.parameters(), lr=0.1)


@pytest.mark.parametrize(
    "n_active, active",
    [
        (1, [2]),  # the largest gradient is that of 1, the largest weight 3
        (2, [1, 2]),  # by |gradient| alone 1 and 4
        (4, [1, 2, 4, 5]),
        (5, [1, 2, 4, 5, 6]),
        (8, [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_weights_of_largest_gradient_times_weight_stay(n_active, active):
    layer, method, optimizer = eight_weights(n_active)
    assert method.masks["0"].all() and torch.equal(layer.weight.data[0], WEIGHT)
    assert method.before_update(0, optimizer)
    assert method.masks["0"][0].nonzero().flatten().tolist() == active
    kept = torch.zeros(8)
    kept[active] = WEIGHT[active]
    assert torch.equal(layer.weight.data[0], kept)
    assert method.n_dense_gradients == 1


def test_only_the_first_batch_is_consumed():
    layer, method, optimizer = eight_weights(2)
    assert method.before_update(0, optimizer)
    layer.weight.grad = GRAD.flip(0).view(1, 8)
    assert not method.before_update(0, optimizer)
    assert method.masks["0"][0].nonzero().flatten().tolist() == [1, 2]
    assert method.n_dense_gradients == 1


def test_gradients_of_two_images_may_cancel():
    # The loss of one image is the output w.x. Images (1, 1) and (-1, 0) sum to (0, 1): the first weight, the larger,
    # has no saliency, while the sum of magnitudes, 2 * 3 against 1 * 1, would keep it.
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[3.0, 1.0]])
    model = nn.Sequential(layer)
    method = Snip(model, {"0": 1})
    model(torch.tensor([[1.0, 1.0], [-1.0, 0.0]])).sum().backward()
    method.before_update(0, torch.optim.SGD(model.parameters(), lr=0.1))
    assert method.masks["0"].tolist() == [[False, True]]


def test_layers_keep_their_own_counts_however_small_their_saliency():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    method = Snip(model, {"0": 3, "1": 1})
    for layer, scale in zip(model, (1e-6, 1.0), strict=True):
        layer.weight.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        layer.weight.grad = torch.full((2, 2), scale)
    method.before_update(0, torch.optim.SGD(model.parameters(), lr=0.1))
    assert method.masks["0"].tolist() == [[False, True], [True, True]]
    assert method.masks["1"].tolist() == [[False, False], [False, True]]


@pytest.mark.parametrize("n_active", [1, 7, 100, 1999])
def test_equal_scores_are_kept_from_the_front(n_active):
    mask = largest(torch.full((20, 100), 0.5), n_active)
    assert mask.shape == (20, 100)
    assert mask.flatten()[:n_active].all() and int(mask.sum()) == n_active


@pytest.mark.parametrize("density", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("distribution", ["uniform", "erk"])
def test_counts_are_exact_and_pruned_weights_stay_zero(density, distribution):
    torch.manual_seed(0)
    model = build_model("resnet8", num_classes=10, width=0.5)
    counts = active_counts(model, density=density, distribution=distribution)
    method = Snip(model, counts)
    optimizer = build_optimizer(model, momentum=0.9, weight_decay=5e-4)
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 0.1
    images, labels = torch.randn(8, 3, 8, 8), torch.arange(8)
    before = {name: weight.detach().clone() for name, weight in method.weights.items()}
    _, stepped = train_step(model, optimizer, images, labels, 0, method=method)
    assert not stepped
    for name, weight in method.weights.items():
        assert torch.equal(weight, before[name] * method.masks[name])
    chosen = copy.deepcopy(method.masks)
    for step in range(5):
        assert train_step(model, optimizer, images, labels, step, method=method)[1]
        for name, weight in method.weights.items():
            assert torch.equal(method.masks[name], chosen[name]) and int(chosen[name].sum()) == counts[name]
            assert not weight[~chosen[name]].any()
            assert not optimizer.state[weight]["momentum_buffer"][~chosen[name]].any()
    assert method.n_dense_gradients == 1


def test_resumed_training_does_not_prune_again():
    _, method, optimizer = eight_weights(2)
    method.before_update(0, optimizer)
    layer, resumed, optimizer = eight_weights(2)
    resumed.load_state_dict(copy.deepcopy(method.state_dict()))
    layer.weight.grad = GRAD.flip(0).view(1, 8)
    assert not resumed.before_update(0, optimizer)
    assert torch.equal(resumed.masks["0"], method.masks["0"])
    assert resumed.n_dense_gradients == 1


def test_training_resumed_before_the_first_batch_still_prunes():
    _, method, _ = eight_weights(2)
    _, resumed, optimizer = eight_weights(2)
    resumed.load_state_dict(copy.deepcopy(method.state_dict()))
    assert resumed.before_update(0, optimizer)
    assert resumed.masks["0"][0].nonzero().flatten().tolist() == [1, 2]


def test_layer_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="Sequential has no convolution or linear layer 'head'"):
        Snip(nn.Sequential(nn.Linear(2, 2)), {"head": 1})


@pytest.mark.parametrize("count", [-1, 0, 5])
def test_impossible_count_is_refused_with_its_layer(count):
    with pytest.raises(ValueError, match=f"layer '0' of 4 weights cannot keep {count} of them"):
        Snip(nn.Sequential(nn.Linear(2, 2)), {"0": count})


def test_full_masks_cover_the_named_layers_only():
    masks = full_masks(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), {"1": 6})
    assert list(masks) == ["1"] and masks["1"].shape == (2, 3) and masks["1"].all()
