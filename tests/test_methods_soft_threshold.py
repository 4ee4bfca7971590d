"""STR: the threshold on paper, gradients by finite differences and a slow loop, and the sparsity that it reaches."""

import math
from types import SimpleNamespace

import pytest
import torch
from conftest import small_resnet, train_step
from test_recipe_rigl import dense_macs, execute
from test_training import SETTINGS
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from prunelab.masks import prunable_weights
from prunelab.methods.soft_threshold import SoftThreshold, soft_threshold
from prunelab.models import build_model
from prunelab.steps import build_optimizer, set_learning_rate
from prunelab.training import train

DEFAULTS = {"start": -5.0, "decay": 5e-4, "momentum": 0.9, "count_every": 100}


def str_of(model, **changes):
    return SoftThreshold(model, prunable_weights(model), **DEFAULTS | changes)


def perceptron(dtype=torch.float64):
    """Two smooth layers, about half of whose weights lie below the threshold that s = -1.5 gives, 0.182."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)


def share_of_zeros(method):
    masks = method.masks.values()
    return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


def test_threshold_by_hand():
    #                        0.9 - .5; |-.1| < .5; exactly .5; .7 - .5
    weight = torch.tensor([0.9, -0.1, 0.5, -0.7, 0.0])
    assert soft_threshold(weight, torch.tensor(0.0)).tolist() == pytest.approx([0.4, 0.0, 0.0, -0.2, 0.0])
    quarter = torch.tensor(-math.log(3.0))  # whose sigmoid is 1 / (1 + 3)
    assert soft_threshold(weight, quarter).tolist() == pytest.approx([0.65, 0.0, 0.25, -0.45, 0.0])


def test_one_step_by_hand():
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data = torch.tensor([[0.9, -0.3, 0.5, -0.7]])
    method = SoftThreshold(nn.Sequential(layer), ["0"], start=0.0, decay=0.1, momentum=0.5, count_every=1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, weight_decay=0.2)
    assert layer.weight.tolist()[0] == pytest.approx([0.4, 0.0, 0.0, -0.2])
    # Of the effective weights 1, 2, 3, 4, so of W 1, 0, 0, 4; of s -sigmoid'(0) * (1 * 1 + 4 * -1) = 0.75.
    layer.weight.grad = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert not method.before_update(0, optimizer)
    method.change_gradients()
    assert layer.weight.grad.tolist()[0] == pytest.approx([1, 0, 0, 4])
    assert layer.weight.tolist()[0] == pytest.approx([0.9, -0.3, 0.5, -0.7])
    optimizer.step()
    method.change_weights()
    # W - .1 * (gradient + .2 * W): .9 - .118, -.3 + .006, .5 - .01, -.7 - .386; s - .1 * .75.
    assert method.latents["0"].tolist()[0] == pytest.approx([0.782, -0.294, 0.49, -1.086])
    assert method.s["0"].item() == pytest.approx(-0.075)
    threshold = 1 / (1 + math.exp(0.075))  # .4813: now .49 exceeds it
    assert layer.weight.tolist()[0] == pytest.approx(
        [0.782 - threshold, 0, 0.49 - threshold, threshold - 1.086], abs=1e-6
    )
    assert method.masks["0"].tolist() == [[True, False, True, True]]
    # Without a gradient s moves by its decay and its momentum: .5 * .75 + .1 * -.075 = .3675.
    layer.weight.grad = torch.zeros(1, 4)
    method.before_update(1, optimizer)
    method.change_gradients()
    method.change_weights()
    assert method.s["0"].item() == pytest.approx(-0.11175)


def test_gradients_of_s_and_of_weights_are_those_of_finite_differences():
    model, images, labels = perceptron(), torch.randn(7, 6, dtype=torch.float64), torch.arange(7) % 3
    start = {name: weight.detach().clone() for name, weight in prunable_weights(model).items()}
    thresholds = {"1": torch.tensor(-1.5, dtype=torch.float64), "3": torch.tensor(-1.2, dtype=torch.float64)}
    method = str_of(model)
    with torch.no_grad():
        for name, s in thresholds.items():
            method.s[name].copy_(s)
            method.weights[name].copy_(soft_threshold(start[name], s))
    assert 0.2 < share_of_zeros(method) < 0.8
    train_step(model, torch.optim.SGD(model.parameters(), lr=0.0), images, labels, 0, method=method)

    def loss(weights, thresholds):
        effective = {f"{name}.weight": soft_threshold(weights[name], thresholds[name]) for name in weights}
        return F.cross_entropy(functional_call(model, effective, images), labels).item()

    def slope(change):
        return (loss(*change(1e-6)) - loss(*change(-1e-6))) / 2e-6

    for name in start:
        expected = slope(lambda h, name=name: (start, thresholds | {name: thresholds[name] + h}))
        assert abs(expected) > 1e-4 and method.s[name].grad.item() == pytest.approx(expected, rel=1e-6, abs=1e-9)
        for index in range(start[name].numel()):
            unit = torch.zeros_like(start[name])
            unit.view(-1)[index] = 1.0
            expected = slope(lambda h, name=name, unit=unit: (start | {name: start[name] + h * unit}, thresholds))
            found = method.weights[name].grad.flatten()[index].item()
            assert found == pytest.approx(expected, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("momentum, rate", [(0.0, 0.2), (0.9, 0.02)])
def test_training_is_that_of_a_network_that_computes_its_weights_in_the_forward_pass(momentum, rate):
    """The official way: W and s are parameters of one optimizer, and autograd sees the threshold."""
    model = perceptron()
    method = str_of(model, start=-2.0, decay=0.3, momentum=momentum)
    weights = {name: latent.detach().clone().requires_grad_() for name, latent in method.latents.items()}
    thresholds = {name: torch.tensor(-2.0, dtype=torch.float64, requires_grad=True) for name in weights}
    biases = {f"{name}.bias": model.get_submodule(name).bias.detach().clone().requires_grad_() for name in weights}
    optimizer = torch.optim.SGD(
        [{"params": [layer.weight, layer.bias], "weight_decay": 0.01} for layer in (model[1], model[3])],
        lr=rate,
        momentum=momentum,
    )
    plain = torch.optim.SGD(
        [
            {"params": [*weights.values(), *biases.values()], "weight_decay": 0.01},
            {"params": list(thresholds.values()), "weight_decay": 0.3},
        ],
        lr=rate,
        momentum=momentum,
    )
    for step in range(12):
        images, labels = torch.randn(7, 6, dtype=torch.float64), torch.randint(3, (7,))
        train_step(model, optimizer, images, labels, step, method=method)
        plain.zero_grad()
        effective = {f"{name}.weight": soft_threshold(weights[name], thresholds[name]) for name in weights}
        F.cross_entropy(functional_call(model, effective | biases, images), labels).backward()
        plain.step()
        for name in weights:
            torch.testing.assert_close(method.latents[name], weights[name])
            torch.testing.assert_close(method.s[name], thresholds[name])
            assert torch.equal(model.get_submodule(name).weight, soft_threshold(method.latents[name], method.s[name]))
    assert 0.2 < share_of_zeros(method) < 0.9


@pytest.mark.parametrize("start", [-3200.0, -200.0])
def test_far_below_zero_s_has_no_gradient_and_follows_its_decay_alone(start):
    model = perceptron(torch.float32)
    method = str_of(model, start=start, decay=0.02, momentum=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for step in range(20):
        train_step(model, optimizer, torch.randn(7, 6), torch.arange(7) % 3, step, method=method)
        assert all(s.grad == 0 for s in method.s.values())
    for s in method.s.values():
        assert s.item() == pytest.approx(start * (1 - 0.5 * 0.02) ** 20, rel=1e-5)
        assert s.item() == pytest.approx(start * math.exp(-0.02 * 20 * 0.5), rel=2e-3)  # as the docstring has it
    assert share_of_zeros(method) == 0


def test_momentum_multiplies_the_way_of_s_as_the_docstring_has_it():
    method = str_of(nn.Sequential(nn.Linear(1, 1)), start=-3200.0, decay=1e-4, momentum=0.9)
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.1}])
    method.weights["0"].grad = torch.ones(1, 1)
    for step in range(5000):
        method.before_update(step, optimizer)
        method.change_gradients()
        method.change_weights()
    assert method.s["0"].item() == pytest.approx(-3200 * math.exp(-1e-4 * 5000 * 0.1 / (1 - 0.9)), rel=5e-3)


def test_at_the_usual_start_s_has_a_gradient_and_few_weights_are_zero():
    model = small_resnet()
    method = str_of(model)
    optimizer = build_optimizer(model, momentum=0.9, weight_decay=0.0)
    assert share_of_zeros(method) < 0.1
    train_step(model, optimizer, torch.randn(8, 1, 8, 8), torch.arange(8), 0, method=method)
    assert all(s.grad != 0 for s in method.s.values())


def test_a_weight_below_the_threshold_returns_when_that_falls():
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 0.3)
    method = SoftThreshold(nn.Sequential(layer), ["0"], **DEFAULTS | {"start": 0.0})
    assert layer.weight.item() == 0 and not method.masks["0"].any()
    method.s["0"].data.fill_(-3.0)
    layer.weight.grad = torch.zeros(1, 1)
    method.change_gradients()
    method.change_weights()
    assert method.masks["0"].all() and layer.weight.item() == pytest.approx(0.3 - 1 / (1 + math.exp(3)))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("start, decay", [(-5.0, 0.0), (-1.0, 0.05), (2.0, 0.0)])
def test_masks_are_the_weights_that_exceed_the_threshold(optimizer, start, decay):
    torch.manual_seed(0)
    model = build_model("resnet8", num_classes=10, width=0.5)
    method = str_of(model, start=start, decay=decay)
    rule = build_optimizer(model, optimizer=optimizer, momentum=0.9, weight_decay=5e-4)
    set_learning_rate(rule, 0.01)
    for step in range(4):
        train_step(model, rule, torch.randn(8, 3, 8, 8), torch.arange(8), step, method=method)
        for name, mask in method.masks.items():
            exceed = method.latents[name].abs() > method.s[name].sigmoid()
            assert torch.equal(mask, exceed) and torch.equal(mask, method.weights[name] != 0)
    assert start < 2.0 or share_of_zeros(method) > 0.95  # a threshold of 0.88, and training goes on


@pytest.mark.parametrize("of", ["s alone", "all, as the authors choose"])
def test_a_larger_weight_decay_gives_a_sparser_network(of, digits):
    shares, accuracies = [], []
    for decay in (5e-4, 1e-2, 2e-2):
        method = str_of(model := small_resnet(), decay=decay)
        settings = SETTINGS | {"n_epochs": 20, "learning_rate": 0.2, "eval_every": 20}
        settings["weight_decay"] = 5e-4 if of == "s alone" else decay
        result = train(model, digits, method=method, generator=torch.Generator().manual_seed(1), **settings)
        shares.append(share_of_zeros(method))
        accuracies += result.curves["test_accuracy"]
    assert shares == sorted(shares) and shares[-1] > shares[0] + 0.3, shares
    assert min(accuracies) > 0.6, accuracies  # chance is 0.1


def test_what_follows_sees_an_ordinary_masked_network():
    reached = execute(method="str", n_epochs=6, threshold_decay=0.2)
    state, metrics = reached["state"], reached["metrics"]
    assert 0.05 < metrics["measured_density"] < 0.9
    assert metrics["n_active"] == sum(int(state.model[f"{name}.weight"].count_nonzero()) for name in state.masks)
    for name, mask in state.masks.items():
        assert mask.dtype == torch.bool and torch.equal(state.model[f"{name}.weight"] != 0, mask)
    child = execute(reached, method="static", start="solution", learning_rate=1e-30)
    assert all(torch.equal(child["state"].masks[name], mask) for name, mask in state.masks.items())
    assert child["metrics"]["macs"] == metrics["macs"]
    assert state.model.keys() == child["state"].model.keys()


@pytest.mark.parametrize("update_every, steps", [(1, [1, 2, 3, 4, 5, 6]), (4, [1, 5]), (100, [1])])
def test_training_costs_what_was_counted_now_and_then(update_every, steps):
    result = execute(method="str", n_epochs=3, threshold_decay=0.2, update_every=update_every)  # 6 steps
    moves = result["moves"]
    assert moves["step"] == steps and [len(rows) for rows in moves["threshold"]] == [len(result["layers"])] * len(steps)
    per_weight = [layer["macs"] / layer["n_active"] for layer in result["layers"]]
    sparse = {
        step: sum(macs * n for macs, n in zip(per_weight, counts, strict=True))
        for step, counts in zip(steps, moves["n_active"], strict=True)
    }
    # What was counted after a step is what those after it cost; the first is taken for dense.
    expected = dense_macs() + sum(sparse[max(s for s in steps if s <= step)] for step in range(1, 6))
    assert result["metrics"]["training_macs"] == pytest.approx(64 * 3 * expected, rel=1e-4)


def test_layers_that_are_not_named_stay_dense():
    model = small_resnet()
    first = model.conv.weight.detach().clone()
    method = SoftThreshold(model, [name for name in prunable_weights(model) if name != "conv"], **DEFAULTS)
    assert "conv" not in method.masks and torch.equal(model.conv.weight, first)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"decay": -1.0}, "decay of s must be at least 0, got -1.0"),
        ({"momentum": 1.0}, r"momentum of s must lie in \[0, 1\), got 1.0"),
        ({"count_every": 0}, "count_every must be at least 1 step, got 0"),
        ({"layers": ["head"]}, "ResNet has no convolution or linear layer 'head'"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        SoftThreshold(small_resnet(), **{"layers": ["fc"]} | DEFAULTS | changes)
