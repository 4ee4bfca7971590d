"""Sparse Structure Selection: factors worked out on paper and by a slow loop, their places, and real training."""

import copy
from types import SimpleNamespace

import pytest
import torch
from conftest import small_resnet, train_step
from test_training import SETTINGS, Killed, kill_at
from torch import nn
from torch.nn import functional as F

from prunelab import steps, training
from prunelab.channels.selection import Selection
from prunelab.channels.surgery import load, save, shrink
from prunelab.channels.trace import trace
from prunelab.cost import layer_table
from prunelab.training import train

# Of a ResNet-8 at a quarter of its width: all 4 channels of a layer, runs of 2 of 8, and a block.
STRUCTURES = {"blocks.0.bn1": 4, "blocks.1.bn1": 4, "blocks.2.bn2": 1}


def run(dataset, *, penalty, **changes):
    model = small_resnet().to(dataset.test_labels.device)
    method = Selection(model, STRUCTURES, penalty=penalty)
    generator = torch.Generator().manual_seed(1)
    return model, method, train(model, dataset, method=method, generator=generator, **SETTINGS | changes)


def step_factors(method, gradients, *, rate):
    """One step of a method whose factors have the gradients given by layer name."""
    for name, gradient in gradients.items():
        method.factors[name].grad += gradient
    assert not method.before_update(0, SimpleNamespace(param_groups=[{"lr": rate}]))
    method.change_gradients()
    method.change_weights()


@pytest.mark.parametrize("as_rate", [float, torch.tensor])
def test_factor_falls_to_zero_and_returns(as_rate):
    method = Selection(nn.Sequential(nn.Linear(1, 1)), {"0": 1}, penalty=0.2, momentum=0.5)
    # Rate 0.5, so the threshold is 0.1.
    # gradient   shifted         thresholded   velocity                       factor
    #     1       1   - .5  =  .5        .4     .4 - 1          = -.6          .4  - .3     =  .1
    #     0.5     .1  - .25 = -.15      -.05   -.05 - .1 - .3   = -.45        -.05 - .225  <  0
    #    -1       0   + .5  =  .5        .4     .4 - 0 - .225   =  .175        .4  + .0875  =  .4875
    for gradient, factor in ((1.0, 0.1), (0.5, 0.0), (-1.0, 0.4875)):
        step_factors(method, {"0": gradient}, rate=as_rate(0.5))
        assert method.factors["0"].item() == pytest.approx(factor, abs=1e-7)
    # At a rate of 0.1 and without a gradient: .4875 - .02 = .4675; -.02 + .0875 = .0675; .4675 + .03375.
    step_factors(method, {"0": 0.0}, rate=as_rate(0.1))
    assert method.factors["0"].item() == pytest.approx(0.50125, abs=1e-7)


@pytest.mark.parametrize("penalty", [0.0, 0.3, 5.0])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_factors_step_as_in_a_slow_loop(penalty, momentum):
    generator = torch.Generator().manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(3, 8))
    structures = {"0": 6, "1": 1, "2": 4}
    method = Selection(layers, structures, penalty=penalty, momentum=momentum)
    factors = {(name, index): 1.0 for name, n in structures.items() for index in range(n)}
    velocities = dict.fromkeys(factors, 0.0)
    for step in range(30):
        rate = 0.2 / (1 + step)
        gradients = {name: torch.randn(n, generator=generator) for name, n in structures.items()}
        step_factors(method, gradients, rate=rate)
        for name, index in factors:
            old = factors[name, index]
            shifted = old - rate * gradients[name][index].item()
            threshold = rate * penalty
            near_zero = abs(shifted) <= threshold
            thresholded = 0.0 if near_zero else shifted - threshold if shifted > 0 else shifted + threshold
            velocities[name, index] = thresholded - old + momentum * velocities[name, index]
            factors[name, index] = max(0.0, thresholded + momentum * velocities[name, index])
            assert method.factors[name][index].item() == pytest.approx(factors[name, index], abs=1e-5)
    zeros = [value == 0.0 for value in factors.values()]
    assert [value == 0.0 for factors in method.factors.values() for value in factors] == zeros
    assert all(zeros) or penalty < 5.0


@pytest.mark.parametrize("n", [1, 2, 6])
def test_without_penalty_and_momentum_factors_descend_their_gradient(n):
    torch.manual_seed(0)
    layer = nn.Linear(3, 6)
    expected, factors = copy.deepcopy(layer), torch.ones(n, requires_grad=True)
    method = Selection(nn.Sequential(layer), {"0": n}, penalty=0.0, momentum=0.0)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    plain = torch.optim.SGD([*expected.parameters(), factors], lr=0.1)  # the factors are a parameter like others
    for step in range(5):
        inputs, labels = torch.randn(8, 3), torch.randint(6, (8,))
        train_step(layer, optimizer, inputs, labels, step, method=method)
        plain.zero_grad()
        F.cross_entropy(expected(inputs) * factors.repeat_interleave(6 // n), labels).backward()
        plain.step()
    torch.testing.assert_close(method.factors["0"].detach(), factors.detach())
    torch.testing.assert_close(layer.weight, expected.weight)
    assert not torch.equal(factors, torch.ones(n))


LAYERS = {
    "convolution": (lambda: nn.Conv2d(2, 6, 3), (5, 2, 4, 4)),
    "convolution without bias": (lambda: nn.Conv2d(2, 6, 3, bias=False), (5, 2, 4, 4)),
    "grouped convolution": (lambda: nn.Conv2d(6, 6, 3, groups=3), (5, 6, 4, 4)),
    "linear": (lambda: nn.Linear(4, 6), (5, 4)),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(6), (5, 6)),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(6), (5, 6, 2, 2)),
}


@pytest.mark.parametrize("layer, shape", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_each_factor_scales_its_run_of_channels_and_folds_into_the_layer(layer, shape, n):
    torch.manual_seed(0)
    model, inputs = nn.Sequential(layer()).eval(), torch.randn(shape)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    plain = model(inputs)
    method = Selection(model, {"0": n}, penalty=0.1)
    assert torch.equal(model(inputs), plain)
    method.factors["0"].data.copy_(torch.arange(n) / n)  # the first is 0
    scaled = model(inputs)
    for channel in range(6):
        torch.testing.assert_close(scaled[:, channel], plain[:, channel] * method.factors["0"][channel // (6 // n)])
    for _ in range(2):  # the second time there is nothing left to fold
        method.fold()
        assert not model[0]._forward_hooks
        torch.testing.assert_close(model(inputs), scaled, rtol=0, atol=1e-6 * plain.abs().max().item())


def test_some_structures_vanish_while_the_network_learns_and_fold_leaves_its_outputs(digits):
    model, method, result = run(digits, penalty=0.05, n_epochs=20, learning_rate=0.1)
    factors = torch.cat([factors.detach() for factors in method.factors.values()])
    assert (factors >= 0).all() and (factors == 0).any() and (factors > 0.1).any()
    assert result.curves["test_accuracy"][-1] > 0.5  # chance is 0.1
    images = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    scaled = model.eval()(images)
    method.fold()
    assert not any(module._forward_hooks for module in model.modules())
    torch.testing.assert_close(model(images), scaled, rtol=0, atol=1e-6 * scaled.abs().max().item())


def test_factors_become_exactly_zero_by_the_penalty_alone(digits):
    for penalty, n_zero in ((0.0, 0), (1.0, 9)):
        _, method, _ = run(digits, penalty=penalty)
        assert sum(int((factors == 0).sum()) for factors in method.factors.values()) == n_zero


def test_zero_factor_of_a_block_leaves_its_shortcut():
    model = small_resnet().eval()
    block, images = model.blocks[0], torch.rand(2, 4, 8, 8)
    method = Selection(model, {"blocks.0.bn2": 1}, penalty=0.1)
    nn.init.zeros_(method.factors["blocks.0.bn2"])
    assert torch.equal(block(images), images)


def test_factors_are_no_parameters_of_the_model_and_stay_the_same_tensors():
    model = small_resnet()
    parameters, state = list(model.parameters()), list(model.state_dict())
    method = Selection(model, STRUCTURES, penalty=0.1)
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert list(model.state_dict()) == state
    places = [(factors.data_ptr(), factors.grad.data_ptr()) for factors in method.factors.values()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(2):
        train_step(model, optimizer, torch.rand(16, 1, 8, 8), torch.arange(16) % 10, step, method=method)
        assert not any(factors.grad.any() for factors in method.factors.values())
    assert [(factors.data_ptr(), factors.grad.data_ptr()) for factors in method.factors.values()] == places


def test_killed_and_resumed_is_bit_for_bit_uninterrupted(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    whole_model, whole_method, whole = run(digits, penalty=0.2)
    with pytest.raises(Killed):
        run(digits, penalty=0.2, checkpoint=tmp_path / "state", report=kill_at(2 / 3))
    model, method, result = run(digits, penalty=0.2, checkpoint=tmp_path / "state")
    assert result.curves == whole.curves
    for key, value in whole_model.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key
    for key, value in whole_method.state_dict().items():
        assert torch.equal(value, method.state_dict()[key]), key


@pytest.mark.gpu
def test_on_a_gpu_captured_and_eager_steps_agree(digits, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    on_gpu = digits.to("cuda")
    _, captured, _ = run(on_gpu, penalty=0.2)
    monkeypatch.setattr(steps, "N_WARM_UP", 10**9)
    _, eager, _ = run(on_gpu, penalty=0.2)
    for name, factors in captured.factors.items():
        torch.testing.assert_close(factors, eager.factors[name], rtol=1e-3, atol=1e-4)


def test_outputs_keep_their_precision_and_fp16_is_refused():
    model = nn.Sequential(nn.Linear(2, 2))
    Selection(model, {"0": 2}, penalty=0.1)
    assert model.bfloat16()(torch.ones(1, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="selection cannot train in fp16"):
        model.half()(torch.ones(1, 2, dtype=torch.float16))


@pytest.mark.parametrize("name", ["1", "head"])
def test_layer_that_cannot_be_scaled_is_named(name):
    with pytest.raises(ValueError, match=f"Sequential has no convolution, linear or BatchNorm layer '{name}'"):
        Selection(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), {name: 1}, penalty=0.1)


def test_layers_that_share_a_parameter_are_refused_unless_they_are_one():
    layer = nn.Linear(6, 6)
    model = nn.Sequential(layer, nn.Linear(6, 6), nn.ReLU(), layer)
    Selection(copy.deepcopy(model), {"0": 2}, penalty=0.1)
    model[1].bias = layer.bias
    for name in ("0", "1"):
        with pytest.raises(ValueError, match="layers '0' and '1' share a parameter, which the factors of one would"):
            Selection(model, {name: 2}, penalty=0.1)


def test_factors_are_folded_before_the_network_is_followed_costed_or_saved(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    image, path, images = {"in_channels": 3, "image_size": 8}, tmp_path / "network", torch.randn(2, 3, 8, 8)
    save(model, path)
    method = Selection(model, {"1": 4}, penalty=0.1)
    method.factors["1"].data[:2] = 0.0
    acts = {
        "trace": lambda: trace(model, **image),
        "shrink": lambda: shrink(model, {"0": [2, 3]}, **image)(images),
        "cost": lambda: layer_table(model, **image),
        "save": lambda: save(model, path),
        "load": lambda: load(model, path).eval()(images),
    }
    for act in acts.values():
        with pytest.raises(
            ValueError, match=r"what '1' gives is scaled by factors .* call fold\(\) of the method that"
        ):
            act()
    expected = model(images)
    method.fold()
    results = {name: act() for name, act in acts.items()}
    torch.testing.assert_close(results["shrink"], expected)  # the channels that are gone were zero
    torch.testing.assert_close(results["load"], expected)


def test_frozen_layer_into_which_no_factor_can_be_folded_is_refused():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))
    Selection(model, {"0": 2}, penalty=0.1)
    with pytest.raises(ValueError, match="layer '1' is frozen, and the factors would be folded into it; let it learn"):
        Selection(model, {"1": 2}, penalty=0.1)


@pytest.mark.parametrize("n", [-1, 0, 4, 12])
def test_channels_that_do_not_split_evenly_are_refused(n):
    with pytest.raises(ValueError, match=f"6 channels of layer '0' cannot be split into {n} equal structures"):
        Selection(nn.Sequential(nn.Linear(2, 6)), {"0": n}, penalty=0.1)


@pytest.mark.parametrize(
    "structures, options, message",
    [
        ({}, {"penalty": 0.1}, "no structure of Sequential is named"),
        ({"0": 1}, {"penalty": -0.1}, "penalty must be at least 0, got -0.1"),
        ({"0": 1}, {"penalty": 0.1, "momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1.0"),
        ({"0": 1}, {"penalty": 0.1, "momentum": -0.1}, r"momentum must lie in \[0, 1\), got -0.1"),
    ],
)
def test_impossible_settings_are_refused(structures, options, message):
    with pytest.raises(ValueError, match=message):
        Selection(nn.Sequential(nn.Linear(2, 2)), structures, **options)
