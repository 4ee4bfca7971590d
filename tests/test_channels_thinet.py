"""ThiNet on channels worked out on paper, against slow loops, and in whole networks."""

import numpy as np
import pytest
import torch
from test_channels_readers import prune_three, three_convolutions
from torch import nn

from prunelab.channels.thinet import choose, prune, rescaling

#               channel      0    1    2    3
CONTRIBUTIONS = torch.tensor([[3.0, 1.0, -3.0, 2.0], [1.0, 1.0, -1.0, 0.0]], dtype=torch.float64)
# Squared sums: 0: 10, 1: 2, 2: 10, 3: 4, so 1 goes first. With it: 0: 20, 2: (-2, 0) 4, 3: (3, 1) 10, so 2 goes: large,
# but of opposite sign. With (-2, 0): 0: (1, 1) 2, 3: (0, 0) 0, so 3 goes. Single squares would remove 1, 3, 0.


@pytest.mark.parametrize("count, kept", [(4, [0, 1, 2, 3]), (3, [0, 2, 3]), (2, [0, 3]), (1, [0])])
def test_channels_go_whose_removal_changes_the_sum_the_least(count, kept):
    assert choose(CONTRIBUTIONS, count=count).tolist() == kept


def test_of_equal_channels_the_first_goes():
    assert choose(torch.ones(3, 4, dtype=torch.float64), count=3).tolist() == [1, 2, 3]


@pytest.mark.parametrize("n_samples, n_channels", [(1, 5), (8, 12), (50, 30)])
def test_choice_is_that_of_a_loop_over_candidates(n_samples, n_channels):
    generator = torch.Generator().manual_seed(0)
    contributions = torch.randn(n_samples, n_channels, generator=generator, dtype=torch.float64)
    left, removed = list(range(n_channels)), torch.zeros(n_samples, dtype=torch.float64)
    while len(left) > 1:
        worst = min(left, key=lambda j: (removed + contributions[:, j]).square().sum().item())
        removed += contributions[:, worst]
        left.remove(worst)
        assert choose(contributions, count=len(left)).tolist() == left


def test_factors_by_hand():
    # Samples (1, 0, 1) and (0, 2, 2): channels 0 and 1 replace all three by 2 = 2 * 1 and 4 = 2 * 2.
    contributions = torch.tensor([[1.0, 0.0, 1.0], [0.0, 2.0, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(
        rescaling(contributions, kept=torch.tensor([0, 1])), torch.full((2,), 2.0, dtype=torch.float64)
    )


def test_factors_are_those_of_numpy():
    contributions = torch.randn(40, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kept = torch.tensor([1, 2, 5, 8])
    expected = np.linalg.lstsq(contributions[:, kept].numpy(), contributions.sum(1).numpy(), rcond=None)[0]
    np.testing.assert_allclose(rescaling(contributions, kept=kept).numpy(), expected)


def test_silent_channels_go_first_and_do_not_disturb_the_factors():
    contributions = CONTRIBUTIONS.clone()
    contributions[:, 0] = 0
    assert choose(contributions, count=3).tolist() == [1, 2, 3]
    factors = rescaling(contributions, kept=torch.tensor([0, 1, 3]))
    # Channel 2 is (-3, -1), and a * (1, 1) + b * (2, 0) = (-3, -1) has a = b = -1, added to 1.
    torch.testing.assert_close(factors, torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))
    assert torch.equal(rescaling(torch.zeros_like(CONTRIBUTIONS), kept=torch.tensor([2])), torch.ones(1).double())


def test_equal_channels_share_what_the_removed_ones_leave():
    # Three equal channels, one removed: the two others take over half each.
    factors = rescaling(torch.ones(5, 3, dtype=torch.float64), kept=torch.tensor([0, 2]))
    torch.testing.assert_close(factors, torch.tensor([1.5, 1.5], dtype=torch.float64))


def test_network_that_keeps_every_channel_is_unchanged():
    model = three_convolutions()
    pruned, _ = prune_three(prune, model, {"0": 8, "3": 12, "6": 10})
    for name, value in model.state_dict().items():
        torch.testing.assert_close(pruned.state_dict()[name], value)


def test_channels_without_effect_are_removed_at_no_cost():
    model = three_convolutions()
    for layer, reader in ((0, 3), (3, 6)):
        model[layer + 1].weight.data[1::2] = model[layer + 1].bias.data[1::2] = 0  # every second channel is silent
        model[reader].weight.data[:, 1::2] = 5.0
    pruned, kept = prune_three(prune, model, {"0": 4, "3": 6, "6": 10})
    assert kept["0"].tolist() == [0, 2, 4, 6] and kept["3"].tolist() == [0, 2, 4, 6, 8, 10]
    images = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(pruned(images), model.eval()(images))


def test_layers_are_pruned_on_the_activations_of_the_pruned_network():
    # The first layer's channel 1 is all that the second layer's channel 1 reads; it is weak, and gone when the second
    # layer is looked at, whose channel 1 is then silent, while in the original network it outweighs channel 0.
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    model[0].weight.data = torch.diag(torch.tensor([1.0, 0.01]))
    model[1].weight.data = torch.eye(2)
    model[2].weight.data = torch.tensor([[1.0, 1000.0]])
    images = torch.rand(50, 2, generator=torch.Generator().manual_seed(0)) + 1
    pruned, kept = prune(
        model,
        images,
        readers={"0": "1", "1": "2"},
        counts={"0": 1, "1": 1},
        generator=torch.Generator().manual_seed(0),
    )
    assert kept["0"].tolist() == [0] and kept["1"].tolist() == [0]
    torch.testing.assert_close(pruned[2].weight.data, torch.tensor([[1.0, 0.0]]))


def test_every_filter_of_the_reader_counts():
    # The first filter reads channel 0 only, the second channel 1, ten times as strongly.
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[0].weight.data, model[1].weight.data = torch.ones(2, 1), torch.diag(torch.tensor([1.0, 10.0]))
    options = {"readers": {"0": "1"}, "counts": {"0": 1}, "generator": torch.Generator().manual_seed(0)}
    assert prune(model, torch.ones(20, 1), **options)[1]["0"].tolist() == [1]
