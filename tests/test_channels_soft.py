"""Soft Filter Pruning on four filters, worked out on paper, and in real training."""

import pytest
import torch
from conftest import small_resnet, train_step
from test_training import SETTINGS, Killed, kill_at
from torch import nn

from prunelab import training
from prunelab.channels.soft import SoftFilterPruning, l2_scores
from prunelab.steps import build_optimizer, set_learning_rate
from prunelab.training import train

FILTERS = torch.tensor([[3.0, 0.0, 0.0], [1.9, -1.9, 0.0], [2.0, 2.0, -2.0], [0.5, 0.5, 0.5]])
# L2 norms: 3, 2.69, 3.46 and 0.87, so the order is 2 0 1 3; by L1 norms, 3, 3.8, 6 and 1.5, it would be 2 1 0 3.


def four_filters(*, kept, prune_every_steps=2):
    layer = nn.Linear(3, 4)
    layer.weight.data, layer.weight.grad = FILTERS.clone(), torch.zeros(4, 3)
    method = SoftFilterPruning(nn.Sequential(layer), {"0": kept}, prune_every_steps=prune_every_steps)
    return layer, method, torch.optim.SGD(layer.parameters(), lr=1.0, momentum=0.5)


def run(dataset, counts, **changes):
    """Trains, pruning at the end of each epoch of four steps, or without the method where no counts are given."""
    model = small_resnet()
    method = SoftFilterPruning(model, counts, prune_every_steps=4) if counts else None
    generator = torch.Generator().manual_seed(1)
    return model, method, train(model, dataset, method=method, generator=generator, **SETTINGS | changes)


@pytest.mark.parametrize("n, kept", [(1, [2]), (2, [0, 2]), (3, [0, 1, 2]), (4, [0, 1, 2, 3])])
def test_filters_of_largest_l2_norm_stay(n, kept):
    layer, method, optimizer = four_filters(kept=n)
    assert method.kept()["0"].tolist() == kept
    method.after_update(2, optimizer)
    expected = torch.zeros(4, 3)
    expected[kept] = FILTERS[kept]
    assert torch.equal(layer.weight.data, expected)
    assert method.kept()["0"].tolist() == kept


def test_filters_are_zeroed_at_the_end_of_each_interval_only():
    layer, method, optimizer = four_filters(kept=1, prune_every_steps=3)
    zeros = []
    for step in range(1, 8):
        nn.init.ones_(layer.weight)
        method.after_update(step, optimizer)
        zeros.append(int((layer.weight == 0).all(dim=1).sum()))
    assert zeros == [0, 0, 3, 0, 0, 3, 0]


def test_zeroed_filter_comes_back_with_its_momentum():
    layer, method, optimizer = four_filters(kept=3, prune_every_steps=1)
    bias = layer.bias.detach().clone()
    layer.weight.grad, layer.bias.grad = torch.zeros(4, 3), torch.zeros(4)
    layer.weight.grad[3] = -1.0
    optimizer.step()
    layer.weight.data = FILTERS.clone()
    method.after_update(1, optimizer)
    assert not layer.weight[3].any()
    assert optimizer.state[layer.weight]["momentum_buffer"][3].tolist() == [-1.0, -1.0, -1.0]
    optimizer.step()
    # Momentum 0.5 * -1 and gradient -1 make a step of 1.5 from 0: norm 2.60, still below the 2.69 of filter 1.
    assert layer.weight[3].tolist() == [1.5, 1.5, 1.5]
    assert method.kept()["0"].tolist() == [0, 1, 2]
    optimizer.step()
    # Then 0.5 * -1.5 and -1: 3.25 each, norm 5.63, and filter 1 is the smallest.
    method.after_update(3, optimizer)
    assert method.kept()["0"].tolist() == [0, 2, 3]
    assert layer.weight[3].tolist() == [3.25, 3.25, 3.25] and not layer.weight[1].any()
    assert torch.equal(layer.bias.data, bias)


def test_of_equal_filters_the_first_stay():
    layer, method, optimizer = four_filters(kept=2)
    nn.init.ones_(layer.weight)
    method.after_update(2, optimizer)
    assert layer.weight[:, 0].tolist() == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (4, 3, 3, 3), (7, 1, 5, 2)])
def test_scores_are_norms_of_a_slow_loop(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    norms = [sum(value.item() ** 2 for value in filter_.flatten()) ** 0.5 for filter_ in weight]
    assert l2_scores(weight).tolist() == pytest.approx(norms, rel=1e-5)


@pytest.mark.parametrize("share", [0.05, 0.5, 1.0])
def test_counts_are_exact_and_all_filters_go_on_being_trained(share):
    model = small_resnet()
    counts = {
        name: max(1, int(share * module.out_channels))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    }
    method = SoftFilterPruning(model, counts, prune_every_steps=2)
    optimizer = build_optimizer(model, momentum=0.9, weight_decay=5e-4)
    set_learning_rate(optimizer, 0.1)
    images, labels = torch.randn(16, 1, 8, 8), torch.arange(16) % 10
    for step in range(4):
        train_step(model, optimizer, images, labels, step, method=method)
        for name, weight in method.weights.items():
            kept = weight.flatten(1).any(dim=1).nonzero().flatten()
            if step % 2:
                assert len(kept) == counts[name] and torch.equal(kept, method.kept()[name])
            else:
                assert len(kept) == len(weight)


def test_filters_without_a_gradient_stay():
    layers = nn.ModuleList(nn.Linear(3, 4) for _ in range(3))  # one learns, one is frozen, one never runs
    layers[1].requires_grad_(False)
    before = [layer.weight.detach().clone() for layer in layers]
    method = SoftFilterPruning(layers, {"0": 1, "1": 1, "2": 1}, prune_every_steps=1)
    layers[1](layers[0](torch.ones(1, 3))[:, :3]).sum().backward()
    method.after_update(1, torch.optim.SGD(layers.parameters(), lr=1.0))
    assert [torch.equal(layer.weight, old) for layer, old in zip(layers, before, strict=True)] == [False, True, True]


def test_training_ends_on_zeroed_filters(digits):
    model, method, _ = run(digits, {"blocks.0.conv1": 2, "blocks.2.conv1": 5})
    for name, n in method.counts.items():
        weight = model.get_submodule(name).weight
        assert weight.flatten(1).any(dim=1).nonzero().flatten().tolist() == method.kept()[name].tolist()
        assert len(method.kept()[name]) == n


def test_training_that_keeps_all_filters_is_plain_training_bit_for_bit(digits):
    plain, _, plain_result = run(digits, None)
    model, _, result = run(digits, {"blocks.0.conv1": 4, "blocks.2.conv1": 16})
    assert result.curves == plain_result.curves
    for key, value in plain.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key


def test_killed_and_resumed_is_bit_for_bit_uninterrupted(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    counts = {"blocks.0.conv1": 2, "blocks.2.conv1": 5}
    whole_model, _, whole = run(digits, counts)
    with pytest.raises(Killed):
        run(digits, counts, checkpoint=tmp_path / "state", report=kill_at(2 / 3))
    model, _, result = run(digits, counts, checkpoint=tmp_path / "state")
    assert result.curves == whole.curves
    for key, value in whole_model.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key


def test_layer_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="Sequential has no convolution or linear layer 'head'"):
        SoftFilterPruning(nn.Sequential(nn.Linear(2, 2)), {"head": 1}, prune_every_steps=1)


@pytest.mark.parametrize("n", [-1, 0, 5])
def test_impossible_count_is_refused_with_its_layer(n):
    with pytest.raises(ValueError, match=f"layer '0' of 4 filters cannot keep {n} of them"):
        four_filters(kept=n)


def test_impossible_interval_is_refused():
    with pytest.raises(ValueError, match="prune_every_steps must be at least 1, got 0"):
        four_filters(kept=1, prune_every_steps=0)
