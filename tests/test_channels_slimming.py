"""Network Slimming on gammas worked out on paper, and in real training."""

import pytest
import torch
from conftest import small_resnet, train_step
from test_training import SETTINGS, Killed, kill_at
from torch import nn
from torch.nn import functional as F

from prunelab import steps, training
from prunelab.channels.slimming import Slimming, gamma_scores
from prunelab.steps import build_optimizer, set_learning_rate
from prunelab.training import train

NORMS = ("bn", "blocks.0.bn1", "blocks.2.bn2")


def run(dataset, *, penalty, **changes):
    """Trains with a penalty, or without the method where it is None."""
    model = small_resnet().to(dataset.test_labels.device)
    method = None if penalty is None else Slimming(model, NORMS, penalty=penalty)
    generator = torch.Generator().manual_seed(1)
    return model, train(model, dataset, method=method, generator=generator, **SETTINGS | changes)


def sum_of_gammas(model):
    return sum(float(score.sum()) for score in gamma_scores(model, NORMS).values())


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d])
def test_penalty_pulls_each_gamma_towards_zero(kind):
    model = nn.Sequential(kind(4), kind(1))
    model[0].weight.data = torch.tensor([0.5, -2.0, 0.0, 1e-9])
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    Slimming(model, ["0"], penalty=0.25).change_gradients()
    # 1 + 0.25 * sign: the size of gamma does not matter, and at 0 nothing pulls.
    assert model[0].weight.grad.tolist() == [1.25, 0.75, 1.0, 1.25]
    assert model[0].bias.grad.tolist() == [1.0] * 4  # beta is free
    assert model[1].weight.grad.tolist() == [1.0]  # not named


def test_a_gamma_that_two_layers_share_is_pulled_once():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    model[1].weight = model[0].weight
    model[0].weight.grad = torch.zeros(2)
    Slimming(model, ["0", "1"], penalty=0.25).change_gradients()
    assert model[0].weight.grad.tolist() == [0.25, 0.25]


@pytest.mark.parametrize("penalty", [1e-4, 0.1, 3.0])
def test_step_is_that_of_the_penalised_loss(penalty):
    torch.manual_seed(1)
    images, labels = torch.randn(16, 1, 8, 8), torch.arange(16) % 10
    stepped, expected = small_resnet(), small_resnet()
    for model in (stepped, expected):
        optimizer = build_optimizer(model, momentum=0.9, weight_decay=5e-4)
        set_learning_rate(optimizer, 0.1)
        for step in range(3):
            if model is stepped:
                train_step(model, optimizer, images, labels, step, method=Slimming(model, NORMS, penalty=penalty))
            else:  # the penalty is in the loss, and differentiated
                optimizer.zero_grad()
                gammas = [model.get_submodule(name).weight for name in NORMS]
                loss = F.cross_entropy(model(images), labels) + penalty * sum(gamma.abs().sum() for gamma in gammas)
                loss.backward()
                optimizer.step()
    for value, wanted in zip(stepped.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-5)


def test_scores_are_magnitudes_by_name_and_hold_still():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    model[1].weight.data = torch.tensor([0.5, -2.0, 0.0])
    scores = gamma_scores(model, ["2", "1"])
    nn.init.zeros_(model[1].weight)
    assert {name: score.tolist() for name, score in scores.items()} == {"2": [1.0] * 3, "1": [0.5, 2.0, 0.0]}
    assert not any(score.requires_grad for score in scores.values())


def test_training_without_a_penalty_is_plain_training_bit_for_bit(digits):
    plain, plain_result = run(digits, penalty=None)
    model, result = run(digits, penalty=0.0)
    assert result.curves == plain_result.curves
    for key, value in plain.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key


def test_the_larger_the_penalty_the_smaller_the_gammas(digits):
    sums = [sum_of_gammas(run(digits, penalty=penalty)[0]) for penalty in (0.0, 0.01, 0.1)]
    assert sums[0] > sums[1] > sums[2]
    assert sums[2] < 0.9 * sums[0]


def test_killed_and_resumed_is_bit_for_bit_uninterrupted(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    whole_model, whole = run(digits, penalty=0.1)
    with pytest.raises(Killed):
        run(digits, penalty=0.1, checkpoint=tmp_path / "state", report=kill_at(2 / 3))
    model, result = run(digits, penalty=0.1, checkpoint=tmp_path / "state")
    assert result.curves == whole.curves
    for key, value in whole_model.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key


@pytest.mark.gpu
def test_on_a_gpu_captured_and_eager_steps_agree(digits, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    on_gpu = digits.to("cuda")
    captured, _ = run(on_gpu, penalty=0.1)
    monkeypatch.setattr(steps, "N_WARM_UP", 10**9)
    eager, _ = run(on_gpu, penalty=0.1)
    for name, score in gamma_scores(captured, NORMS).items():
        torch.testing.assert_close(score, gamma_scores(eager, NORMS)[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("optimizer", steps.OPTIMIZERS)
def test_gammas_without_a_gradient_stay(optimizer):
    norms = nn.ModuleList(nn.BatchNorm1d(3) for _ in range(3))  # one learns, one is frozen, one never runs
    norms[1].requires_grad_(False)
    rule = steps.build_optimizer(norms, optimizer=optimizer, momentum=0.9, weight_decay=0.1)
    steps.set_learning_rate(rule, 0.1)
    method = Slimming(norms, ["0", "1", "2"], penalty=0.1)
    norms[1](norms[0](torch.randn(8, 3))).pow(3).sum().backward()
    method.change_gradients()
    rule.step()
    assert [bool((norm.weight == 1).all()) for norm in norms] == [False, True, True]


@pytest.mark.parametrize("name", ["0", "1", "head"])  # a linear layer, a BatchNorm without gamma, nothing
def test_layer_that_has_no_gamma_is_named(name):
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False))
    for call in (lambda: Slimming(model, [name], penalty=0.1), lambda: gamma_scores(model, [name])):
        with pytest.raises(ValueError, match=f"Sequential has no BatchNorm '{name}' with a gamma.*name a BatchNorm"):
            call()


def test_network_without_batch_normalisation_is_refused():
    with pytest.raises(ValueError, match="none of Sequential is named; where the network has no BatchNorm, choose"):
        Slimming(nn.Sequential(nn.Linear(2, 2)), [], penalty=0.1)


def test_negative_penalty_is_refused():
    with pytest.raises(ValueError, match=r"penalty must be at least 0, got -0\.1"):
        Slimming(nn.BatchNorm1d(2), [""], penalty=-0.1)
