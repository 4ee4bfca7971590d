"""Markov channel pruning: chains worked out on paper, and searches that end at their budget."""

import math

import pytest
import torch
from conftest import small_resnet
from test_training import SETTINGS, Killed, kill_at
from torch import nn

from prunelab import training
from prunelab.channels.dmcp import Markov, Search, budget_penalty
from prunelab.channels.groups import Grid, Group
from prunelab.channels.slimmable import Slimmable, sandwich
from prunelab.training import train

#  a has 4 channels that stay, and three steps of 4; the steps of b are of 1, 0 and 1 channel: 1, 2, 2, 3.
GRID = Grid({"a": Group("a", 16), "b": Group("b", 3)}, n=4)


def chains(*probabilities):
    """Chains of these probabilities to stay, for each group."""
    markov = Markov(GRID)
    markov.alphas.data = torch.logit(torch.tensor(probabilities))
    return markov


def tiny(seed=0):
    """A slimmable network of 20 and 40 channels, of 2x2 pixels, which the last layer reads one by one."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 20, 3), nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 40, 1), nn.BatchNorm2d(40), nn.ReLU()]
    return Slimmable(nn.Sequential(*layers, nn.Flatten(), nn.Linear(160, 5)), in_channels=1, image_size=4)


def search(slimmable, *, share=0.25, n_batches=8, **changes):
    budget = share * slimmable.macs.of(slimmable.full)
    options = {"warm_up": 0.5, "penalty": 0.1, "generator": torch.Generator().manual_seed(0)} | changes
    return Search(slimmable, slimmable.macs, budget=budget, n_batches=n_batches, **options)


def batch():
    generator = torch.Generator().manual_seed(5)
    return torch.randn(20, 1, 4, 4, generator=generator), torch.arange(20) % 5


def searched(*, n_batches, n=None, **options):
    """A search after `n` of its batches; the weights stay, and only the chains learn."""
    method = search(tiny(), n_batches=n_batches, **options)
    for _ in range(n_batches if n is None else n):
        assert all(loss.isfinite() for loss in method.objective(method.slimmable.model.train(), *batch()))
    return method


def run(dataset, *, n_epochs=3, **changes):
    """Trains and searches; four steps an epoch."""
    slimmable = Slimmable(small_resnet(), in_channels=1, image_size=8)
    method = search(slimmable, n_batches=4 * n_epochs, rate=2.0, **changes.pop("options", {}))
    changes |= {"method": method, "objective": method.objective, "is_static": False, "n_epochs": n_epochs}
    generator = torch.Generator().manual_seed(1)
    return method, train(slimmable.model, dataset, generator=generator, **SETTINGS | changes)


# The chains.


def test_chains_are_those_worked_out_on_paper():
    markov = Markov(GRID)  # every step stays with probability 0.5, if the one before has
    assert markov.retained().tolist() == [[0.5, 0.25, 0.125]] * 2
    assert markov.expected().tolist() == [4 + 4 * 0.875, 1 + 0.5 + 0.125]
    # Of a, 0 to 3 steps stay with probabilities 1/2, 1/4, 1/8 and 1/8: their mean is 7/8, that of their squares 15/8.
    # The widths of b are 1, 2 and 3 with probabilities 1/2, 3/8 and 1/8: 13/8 and 25/8.
    assert markov.variances().tolist() == [16 * (15 / 8 - (7 / 8) ** 2), 25 / 8 - (13 / 8) ** 2]
    scales = {name: scale.tolist() for name, scale in markov.scales().items()}
    assert scales == {"a": [1.0] * 4 + [0.5] * 4 + [0.25] * 4 + [0.125] * 4, "b": [1.0, 0.5, 0.125]}
    assert markov.rounded() == {"a": 8, "b": 2}  # from 7.5 and 1.625
    assert markov.probabilities() == [[0.5] * 3] * 2


def test_each_chain_has_probabilities_of_its_own():
    markov = chains([0.9, 0.5, 0.2], [0.1, 0.7, 1.0])
    assert markov.retained().flatten().tolist() == pytest.approx([0.9, 0.45, 0.09, 0.1, 0.07, 0.07])
    assert markov.expected().tolist() == pytest.approx([4 + 4 * 1.44, 1 + 0.1 + 0.07])
    assert markov.rounded() == {"a": 10, "b": 1}  # 10 lies beside the grid of 4, 8, 12 and 16


def test_drawn_widths_are_prefixes_as_frequent_as_the_chains_say():
    markov = chains([0.9, 0.5, 0.2], [0.1, 0.7, 0.4])
    drawn = markov.draw(torch.Generator().manual_seed(0), 20_000)
    assert set(drawn[:, 0].tolist()) == {4, 8, 12, 16} and set(drawn[:, 1].tolist()) == {1, 2, 3}
    retained = markov.retained()
    for width, probability in zip((8, 12, 16), retained[0].tolist(), strict=True):
        assert (drawn[:, 0] >= width).double().mean().item() == pytest.approx(probability, abs=0.01)
    for width, probability in ((2, retained[1, 0]), (3, retained[1, 2])):
        assert (drawn[:, 1] >= width).double().mean().item() == pytest.approx(probability.item(), abs=0.01)
    assert drawn.mean(dim=0).tolist() == pytest.approx(markov.expected().tolist(), rel=0.01)
    assert drawn.var(dim=0).tolist() == pytest.approx(markov.variances().tolist(), rel=0.05)
    assert drawn.T.corrcoef()[0, 1].abs() < 0.02  # groups are independent


# The budget.


@pytest.mark.parametrize(
    "cost, penalty",
    [  # of a budget of 200: free from 190 to 200, then log(1 + d / 0.05)
        (190.0, 0.0),
        (195.0, 0.0),
        (200.0, 0.0),
        (180.0, math.log(2)),
        (100.0, math.log(10)),
        (0.0, math.log(20)),
        (210.0, math.log(2)),
        (400.0, math.log(21)),
    ],
)
def test_penalty_is_the_logarithm_of_the_distance_from_the_free_range(cost, penalty):
    assert budget_penalty(torch.tensor(cost, dtype=torch.float64), 200.0).item() == pytest.approx(penalty, abs=1e-12)


def test_penalty_is_continuous_and_its_gradient_bounded():
    costs = torch.linspace(0, 1000, 10_001, dtype=torch.float64, requires_grad=True)
    penalties = budget_penalty(costs, 200.0)
    (gradients,) = torch.autograd.grad(penalties.sum(), [costs])
    assert penalties.diff().abs().max() < 0.011  # for steps of 0.1, at most 0.1 / 200 / 0.05 each
    assert gradients.abs().max() <= 1 / (0.05 * 200) + 1e-12
    assert (gradients[costs < 189.9] < 0).all() and (gradients[costs > 200.1] > 0).all()
    assert not gradients[(costs > 190.1) & (costs < 199.9)].any()


@pytest.mark.parametrize("probability", [0.2, 0.9])
def test_penalty_alone_drives_the_expected_cost_into_the_free_range_from_both_sides(probability):
    markov = chains(*[[probability] * 3] * 2)
    costs = []
    for _ in range(1_000):
        cost = markov.expected().prod()
        costs.append(cost.item())
        (gradient,) = torch.autograd.grad(budget_penalty(cost, 24.0), [markov.alphas])
        markov.alphas.data -= 0.05 * gradient
    assert abs(costs[0] - 24) > 10 and abs(costs[1] - 24) < abs(costs[0] - 24)
    assert 0.95 * 24 < costs[-1] <= 24


@pytest.mark.parametrize("share", [0.001, 1.001])
def test_budget_that_no_widths_have_is_refused_with_what_they_cost(share):
    slimmable = tiny()
    # 36 a + 4 ab + 20 b for a = 2 and b = 4, and for all, 20 and 40.
    assert (slimmable.macs.of(Grid(slimmable.groups).at(0)), slimmable.macs.of(slimmable.full)) == (184, 4720)
    message = rf"a budget of {share * 4720:,.4g} cannot be kept: the smallest network costs 184, the full one 4,720"
    with pytest.raises(ValueError, match=message):
        search(slimmable, share=share)


@pytest.mark.parametrize("option, value", [("n_batches", 0), ("warm_up", 1.0), ("warm_up", -0.1), ("penalty", -0.5)])
def test_search_without_batches_or_with_an_impossible_share_or_penalty_is_refused(option, value):
    with pytest.raises(ValueError, match=rf"n_batches must be .* and penalty be at least 0; got .*{value}"):
        search(tiny(), **{option: value})


# The search.


@pytest.mark.parametrize("budget", [912, 2936])  # of the 4,720 of all; what 8 and 12 channels cost, and 14 and 32
def test_search_reaches_its_budget(budget):
    method = searched(share=budget / 4720, n_batches=300, warm_up=0.1, penalty=0.5)
    expected = method.slimmable.macs(method.markov.expected(), method.markov.variances()).item()
    assert expected == pytest.approx(budget, rel=0.1)
    found = method.found(torch.Generator().manual_seed(0))
    assert list(found) == ["expected", "smallest", "largest", *(f"direct_{i}" for i in range(1, 6))]
    assert found["smallest"] == {"0": 2, "3": 4} and found["largest"] == {"0": 20, "3": 40}
    assert found["expected"] == method.markov.rounded()
    for i in range(1, 6):
        assert method.slimmable.macs.of(found[f"direct_{i}"]) == pytest.approx(budget, rel=0.01)
        assert all(width in method.grid.choices[j] for j, width in enumerate(found[f"direct_{i}"].values()))
    assert len(method.history) == 24 and method.history[-1]["batch"] == 300
    assert method.history[-1]["probabilities"] == method.markov.probabilities()


def test_search_far_from_its_budget_proposes_no_drawn_networks():
    method = search(tiny(), share=0.9)
    nn.init.constant_(method.markov.alphas, -20.0)
    assert list(method.found(torch.Generator().manual_seed(0))) == ["expected", "smallest", "largest"]


def test_chains_stay_as_they_were_while_weights_warm_up_and_take_a_step_a_batch_after_that():
    assert not searched(n_batches=8, n=4).markov.alphas.any()
    method = searched(n_batches=8, n=5)
    assert method.markov.alphas.all()
    # Rates fall from 0.5 to 0.1 along half a cosine; the last of four steps has the last of them.
    assert method.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 + 0.4 * (1 + math.cos(math.pi / 4)) / 2)
    assert searched(n_batches=8).optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
    assert not searched(n_batches=8, warm_up=0.99).markov.alphas.any()
    assert [entry["batch"] for entry in searched(n_batches=8).history] == [5, 6, 7, 8]


def test_widths_are_uniform_at_first_and_then_drawn_along_the_chains():
    method = search(tiny())
    assert method.draw(torch.Generator().manual_seed(7)) == sandwich(method.grid)(torch.Generator().manual_seed(7))
    method.n_batches = 4
    for alpha, widths in ((-50.0, {"0": 2, "3": 4}), (50.0, {"0": 20, "3": 40})):
        nn.init.constant_(method.markov.alphas, alpha)
        assert method.draw(method.generator) == [method.slimmable.full, method.grid.at(0), widths, widths]


def test_plain_search_trains_at_full_width_only():
    for n_batches in (0, 6):
        method = search(tiny(), plain=True)
        method.n_batches = n_batches
        assert method.draw(method.generator) == [method.slimmable.full]
    method = searched(n_batches=8, plain=True)
    assert method.markov.alphas.all()
    # Of twelve passes eight are the weights', and four those of the chains.
    assert method.macs == 12 * method.slimmable.macs.of(method.slimmable.full)


def test_step_of_the_chains_is_that_of_the_scaled_loss_and_leaves_the_weights_alone():
    method = search(tiny(), warm_up=0.0, share=0.3)
    model, markov, (images, labels) = method.slimmable.model.train(), method.markov, batch()
    nn.init.normal_(markov.alphas)
    scale = markov.scales()
    hidden = model[2](model[1](model[0](images))) * scale["0"].view(-1, 1, 1)
    hidden = model[5](model[4](model[3](hidden))) * scale["3"].view(-1, 1, 1)
    logits = model[7](model[6](hidden))
    a, b = markov.expected()
    loss = nn.functional.cross_entropy(logits, labels)
    loss = loss + 0.1 * budget_penalty(36 * a + 4 * a * b + 20 * b, method.budget)
    (wanted,) = torch.autograd.grad(loss, [markov.alphas])

    statistics = [b.clone() for b in (model[1].running_mean, model[4].running_var)]
    method._step_alphas(model, images, labels)
    torch.testing.assert_close(markov.alphas.grad, wanted)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(model[1].running_mean, statistics[0]) and torch.equal(model[4].running_var, statistics[1])
    assert method.slimmable.widths == method.slimmable.full and model[1].momentum == 0.1


def test_loss_is_nan_once_a_chain_is():
    method = search(tiny())
    method.markov.alphas.data[0, 3] = math.nan
    assert all(loss.isnan() for loss in method.objective(method.slimmable.model.train(), *batch()))


def test_training_without_widths_or_steps_of_the_chains_is_plain_training_bit_for_bit(digits):
    method, result = run(digits, options={"plain": True, "warm_up": 0.99})
    plain = small_resnet()
    generator = torch.Generator().manual_seed(1)
    assert train(plain, digits, generator=generator, **SETTINGS).curves == result.curves
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, method.slimmable.model.get_parameter(name)), name


def test_killed_and_resumed_is_bit_for_bit_uninterrupted(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    whole_method, whole = run(digits)
    for share in (1 / 3, 2 / 3):  # killed while the weights learn alone, and while the chains learn
        with pytest.raises(Killed):
            run(digits, checkpoint=tmp_path / "state", report=kill_at(share))
    method, result = run(digits, checkpoint=tmp_path / "state")
    assert result.curves == whole.curves and method.markov.alphas.any()
    for key, value in whole_method.slimmable.model.state_dict().items():
        assert torch.equal(value, method.slimmable.model.state_dict()[key]), key
    assert torch.equal(method.markov.alphas, whole_method.markov.alphas)
    assert method.history == whole_method.history and method.macs == whole_method.macs
    found, wanted = (own.found(torch.Generator().manual_seed(0)) for own in (method, whole_method))
    assert found == wanted
