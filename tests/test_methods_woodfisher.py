"""WoodFisher: its gradients and one pruning against slow code of their own, and its schedule in real training."""

import copy

import pytest
import torch
from conftest import small_resnet, train_step, with_statistics
from torch import nn
from torch.nn import functional as F

from prunelab import training
from prunelab.masks import prunable_weights
from prunelab.methods.gradual import scheduled_count
from prunelab.methods.static import active_counts
from prunelab.methods.woodfisher import WoodFisher, mean_gradients
from prunelab.steps import build_optimizer, set_learning_rate

SCHEDULE = {"begin_step": 1, "end_step": 6, "update_every": 2}
MATRIX = {"n_gradients": 40, "block_size": 20, "damping": 1e-3}


def batches_of(digits, augment=False):
    def batches(*, batch_size):
        generator = torch.Generator().manual_seed(5)
        return digits.train_batches(batch_size=batch_size, augment=augment, generator=generator)

    return batches


def build(digits, *, density=0.3, model=None, **changes):
    model = model or small_resnet()
    counts = active_counts(model, density=density, distribution="erk")
    return model, WoodFisher(model, counts, batches=batches_of(digits), **SCHEDULE | MATRIX | changes)


def slow_gradients(model, images, labels):
    """Of each image by a backward pass of its own, in double precision, by layer name."""
    double = copy.deepcopy(model).double().eval()
    weights = prunable_weights(double)
    rows = [
        torch.autograd.grad(F.cross_entropy(double(image[None].double()), label[None]), list(weights.values()))
        for image, label in zip(images, labels, strict=True)
    ]
    return {name: torch.stack(column) for name, column in zip(weights, zip(*rows, strict=True), strict=True)}


@pytest.mark.parametrize("n_averaged", [1, 4])
def test_gradients_are_those_of_each_image_or_means_of_some(n_averaged, digits):
    model = with_statistics(small_resnet())
    images, labels = next(batches_of(digits)(batch_size=8))
    found = mean_gradients(model, prunable_weights(model), images, labels, n_averaged=n_averaged)
    for name, gradients in slow_gradients(model, images, labels).items():
        expected = gradients.unflatten(0, (-1, n_averaged)).mean(dim=1).float()
        torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-5)


def let_all_learn(model):
    """Gives each parameter a gradient, as training does."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("n_averaged", [1, 4])
def test_one_pruning_is_that_of_slow_code(joint, n_averaged, digits):
    model, method = build(digits, joint=joint, n_averaged=n_averaged, begin_step=0, end_step=1, n_gradients=10)
    with_statistics(model)
    before = {name: weight.detach().double() for name, weight in copy.deepcopy(method.weights).items()}
    drawn = batches_of(digits)(batch_size=32)  # of which ten gradients of four images take two
    parts = zip(next(drawn), next(drawn), strict=True)
    images, labels = (torch.cat(part)[: 10 * n_averaged] for part in parts)
    inverses, costs = {}, {}
    for name, gradients in slow_gradients(model, images, labels).items():
        flat = gradients.unflatten(0, (-1, n_averaged)).mean(dim=1).flatten(1)
        blocks = [
            torch.linalg.inv(1e-3 * torch.eye(part.shape[1], dtype=torch.float64) + part.T @ part / 10)
            for part in flat.split(20, dim=1)
        ]
        inverses[name] = torch.block_diag(*blocks)
        costs[name] = before[name].flatten() ** 2 / (2 * inverses[name].diagonal())
    n_left = sum(method.n_active.values())
    let_all_learn(model)
    threshold = torch.cat(list(costs.values())).sort(descending=True).values[n_left - 1]
    method.after_update(1, torch.optim.SGD(model.parameters(), lr=0.1))
    for name, weight in method.weights.items():
        kept, values = costs[name] >= threshold, before[name].flatten()
        assert torch.equal(method.masks[name].flatten(), kept)
        inverse, (leaving,) = inverses[name], (~kept).nonzero(as_tuple=True)
        scaled = values[leaving] / inverse.diagonal()[leaving]
        if joint:
            scaled = torch.linalg.solve(inverse[leaving][:, leaving], values[leaving])
        expected = (values - inverse[:, leaving] @ scaled) * kept
        torch.testing.assert_close(weight.detach().flatten(), expected.float(), rtol=1e-3, atol=1e-4)
        assert (weight.detach().flatten() != values)[kept].any() or not kept.any()  # the others did move


@pytest.mark.parametrize("density", [0.05, 0.5, 1.0])
def test_total_follows_the_schedule_and_pruned_weights_stay_zero(density, digits):
    model, method = build(digits, density=density)
    size, final = sum(mask.numel() for mask in method.masks.values()), sum(method.n_active.values())
    optimizer = build_optimizer(model, momentum=0.9, weight_decay=5e-4)
    set_learning_rate(optimizer, 0.1)
    batches = batches_of(digits, augment=True)(batch_size=32)
    for step in range(8):
        before = copy.deepcopy(method.masks)
        train_step(model, optimizer, *next(batches), step, method=method)
        pruned_at = max((done for done in method.moves["step"] if done <= step + 1), default=0)
        wanted = scheduled_count(pruned_at, size=size, n_active=final, begin_step=1, end_step=6)
        assert sum(int(mask.sum()) for mask in method.masks.values()) == wanted
        assert model.training
        for name, weight in method.weights.items():
            assert not (method.masks[name] & ~before[name]).any()
            assert not weight[~method.masks[name]].any()
            assert not optimizer.state[weight]["momentum_buffer"][~method.masks[name]].any()
    assert method.moves["step"] == [1, 3, 5, 6]
    assert [sum(counts) for counts in method.moves["n_active"]][-1] == final
    # Where nothing leaves, no matrix is estimated: at the first step, and at full density.
    assert method.n_extra_images == (0 if density == 1.0 else 3 * 40)


def test_each_pruning_draws_other_images_and_leaves_the_statistics_of_batch_normalisation(digits):
    model, method = build(digits)
    before = {name: value.clone() for name, value in model.named_buffers()}
    first, second = method.inverse_fisher(), method.inverse_fisher()
    assert not torch.equal(first["conv"], second["conv"])
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


def test_weights_pruned_before_have_no_part_in_the_matrix(digits):
    _, method = build(digits)
    method.set_mask("conv", torch.arange(method.masks["conv"].numel()).view_as(method.masks["conv"]) >= 3)
    method.change_weights()
    inverse = method.inverse_fisher()["conv"][0]
    torch.testing.assert_close(inverse[:3], 1000.0 * torch.eye(len(inverse))[:3])
    assert (inverse[3, 4:] != 0).any()


def test_a_layer_without_a_gradient_stays_and_counts_in_no_total(digits):
    model = small_resnet()
    before = model.conv.weight.detach().clone()
    _, method = build(digits, model=model, density=0.5, begin_step=0, end_step=1)
    let_all_learn(model)
    model.conv.weight.grad = None
    method.after_update(1, torch.optim.SGD(model.parameters(), lr=0.1))
    assert torch.equal(model.conv.weight, before) and method.masks["conv"].all()
    wanted = sum(n for name, n in method.n_active.items() if name != "conv")
    assert sum(int(mask.sum()) for name, mask in method.masks.items() if name != "conv") == wanted


def test_a_diverged_network_is_pruned_all_the_same_and_regains_nothing(digits):
    model, method = build(digits, begin_step=0, end_step=2, update_every=1)
    let_all_learn(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method.after_update(1, optimizer)
    masks = copy.deepcopy(method.masks)
    nn.init.constant_(model.conv.weight, torch.nan)
    method.after_update(2, optimizer)
    assert sum(int(mask.sum()) for mask in method.masks.values()) == sum(method.n_active.values())
    assert not any((method.masks[name] & ~mask).any() for name, mask in masks.items())


def test_weights_whose_cost_is_lost_to_rounding_stay(digits):
    _, method = build(digits)
    name, weight = next(iter(method.weights.items()))
    inverse = torch.eye(weight.numel()).unsqueeze(0)
    inverse[0, 0, 0] = -1.0
    with pytest.warns(UserWarning, match=f"rounding loses the cost of 1 weights of {name}: take a larger damping"):
        cost = method._cost(name, inverse).flatten()
    assert cost[0] == torch.inf and torch.equal(cost[1:], weight.detach().flatten()[1:] ** 2 / 2)


def test_resumed_method_goes_on_with_the_next_images_and_its_books(digits):
    _, method = build(digits)
    method.inverse_fisher()
    _, resumed = build(digits)
    resumed.load_state_dict(copy.deepcopy(method.state_dict()))
    assert resumed.n_extra_images == 40
    assert torch.equal(next(resumed.batches)[1], next(method.batches)[1])


def test_trained_network_loses_less_than_by_magnitude(digits):
    model = small_resnet()
    settings = {"batch_size": 32, "schedule": "cosine", "momentum": 0.9, "weight_decay": 5e-4, "augment": False}
    generator = torch.Generator().manual_seed(0)
    settings |= {"learning_rate": 0.1, "eval_every": 20, "generator": generator}
    training.train(model, digits, n_epochs=20, **settings)
    model.eval()
    state, losses = copy.deepcopy(model.state_dict()), {}
    images, labels = digits.train_batches(batch_size=256, augment=False, generator=generator).current()
    for joint in (False, True):
        model.load_state_dict(state)
        _, method = build(digits, model=model, joint=joint, begin_step=0, end_step=1, n_gradients=200, damping=1e-4)
        method.after_update(1, torch.optim.SGD(model.parameters(), lr=0.1))
        losses[joint] = F.cross_entropy(model(images), labels).item()
    model.load_state_dict(state)
    weights = prunable_weights(model)
    n_left = sum(method.n_active.values())
    threshold = torch.cat([weight.abs().flatten() for weight in weights.values()]).sort(descending=True)[0][n_left - 1]
    with torch.no_grad():
        for weight in weights.values():
            weight.mul_(weight.abs() >= threshold)
    assert losses[True] < losses[False] < F.cross_entropy(model(images), labels).item()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"n_gradients": 0}, "at least 1 gradient of 1 image, got 0 of 1"),
        ({"n_averaged": 0}, "got 40 of 0"),
        ({"update_every": 0}, "update_every must be at least 1 step, got 0"),
    ],
)
def test_impossible_settings_are_refused(changes, message, digits):
    with pytest.raises(ValueError, match=message):
        build(digits, **changes)
