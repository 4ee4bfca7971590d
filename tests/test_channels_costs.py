"""What widths cost: the MACs of networks that are built, and expected ones by enumeration."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from prunelab import cost
from prunelab.channels.costs import Macs, check_budget, first_near
from prunelab.channels.dmcp import Markov
from prunelab.channels.groups import Grid, Group, groups_of
from prunelab.channels.trace import trace
from prunelab.models import build_model

NETWORKS = [("resnet8", 8), ("resnet20", 16), ("vgg11", 16), ("mobilenet_v1", 8), ("mobilenet_v2", 16)]
NETWORKS += [("resnet18", 16), ("resnet50", 64)]  # the latter with the stem of large images


class Tiny(nn.Module):
    """4, 3 and 5 channels; `b` reads the group that it writes."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.c, self.d, self.fc = nn.Conv2d(4, 3, 1), nn.Conv2d(3, 5, 1), nn.Linear(5, 2)

    def forward(self, x):
        x = self.a(x)
        x = self.depthwise(x + self.b(x))
        return self.fc(self.d(self.c(x)).mean(dim=(2, 3)))


def tiny_macs(a, c, d):
    """By hand, on 4x4 pixels."""
    return 16 * (9 * a + a * a + 9 * a + a * c + c * d) + 2 * d


@pytest.fixture
def tiny():
    """The network, its grid of three choices a group, its MACs, and chains with arbitrary probabilities."""
    groups = groups_of(trace(Tiny(), in_channels=1, image_size=4))
    grid = Grid(groups, n=3)
    markov = Markov(grid).double()
    nn.init.normal_(markov.alphas, generator=torch.Generator().manual_seed(0))
    return SimpleNamespace(grid=grid, markov=markov, macs=Macs(Tiny(), groups, in_channels=1, image_size=4))


def test_layers_that_share_a_weight_have_no_widths_of_their_own():
    model = Tiny()
    model.c = nn.Conv2d(4, 4, 1)
    model.d, model.fc = nn.Conv2d(4, 4, 1), nn.Linear(4, 2)
    groups = groups_of(trace(model, in_channels=1, image_size=4))
    Macs(model, groups, in_channels=1, image_size=4)
    model.d.weight = model.c.weight
    with pytest.raises(ValueError, match="layers d share the weights of others, whose widths cannot be chosen"):
        Macs(model, groups, in_channels=1, image_size=4)


@pytest.mark.parametrize("name, image_size", NETWORKS)
def test_macs_are_those_of_the_network_that_is_built_to_the_last_one(name, image_size):
    def build(widths=None):
        with torch.device("meta"):
            return build_model(name, num_classes=10, image_size=image_size, widths=widths)

    image = {"in_channels": 3, "image_size": image_size}
    groups = groups_of(trace(build(), **image))
    macs, grid = Macs(build(), groups, **image), Grid(groups)
    off_grid = {name: max(1, group.n_channels * 2 // 3) for name, group in groups.items()}
    drawn = grid.drawn(torch.Generator().manual_seed(0), 2)
    for widths in (grid.at(-1), grid.at(0), *map(grid.at, drawn), off_grid):
        assert macs.of(widths) == cost.total(cost.layer_table(build(widths), **image), "macs")


def test_macs_of_many_networks_are_worked_out_at_once(tiny):
    drawn = torch.tensor([[[4, 3, 5], [1, 1, 2]], [[2, 3, 4], [3, 2, 1]]])
    expected = [[tiny_macs(*widths) for widths in row] for row in drawn.tolist()]
    assert tiny.macs(drawn.float()).tolist() == expected
    assert tiny.macs.of({"d": 5, "a": 2, "c": 3}) == tiny_macs(2, 3, 5)


def test_expected_macs_are_the_sum_over_all_networks_times_their_probabilities(tiny):
    chains = torch.sigmoid(tiny.markov.alphas).tolist()
    total, mass = 0.0, 0.0
    for indices in itertools.product(range(3), repeat=3):
        probability = 1.0
        for index, (first, second) in zip(indices, chains, strict=True):
            probability *= [1 - first, first * (1 - second), first * second][index]
        widths = [choices[index] for index, choices in zip(indices, tiny.grid.choices.tolist(), strict=True)]
        total, mass = total + probability * tiny_macs(*widths), mass + probability
    assert mass == pytest.approx(1)
    found = tiny.macs(tiny.markov.expected(), tiny.markov.variances()).item()
    assert math.isclose(found, total, rel_tol=1e-12)
    # Without the variance of the group that is read and written by one layer, it is another number.
    assert not math.isclose(tiny.macs(tiny.markov.expected()).item(), total, rel_tol=1e-3)


def test_gradient_is_worked_out_by_hand_and_counts_a_depthwise_layer_once(tiny):
    means, variances = torch.tensor([2.5, 1.5, 4.0], requires_grad=True), torch.ones(3, requires_grad=True)
    tiny.macs(means, variances).backward()
    # Of 16 (9a + a² + 9a + ac + cd) + 2d, where the second 9a is the depthwise layer's.
    assert means.grad.tolist() == [16 * (9 + 2 * 2.5 + 9 + 1.5), 16 * (2.5 + 4.0), 16 * 1.5 + 2]
    assert variances.grad.tolist() == [16, 0, 0]  # of a² only


def test_gradient_in_alpha_is_that_of_finite_differences(tiny):
    def expected():
        return tiny.macs(tiny.markov.expected(), tiny.markov.variances())

    (gradient,) = torch.autograd.grad(expected(), [tiny.markov.alphas])
    alphas, step = tiny.markov.alphas.data.view(-1), 1e-5
    for i, slope in enumerate(gradient.flatten().tolist()):
        value = alphas[i].item()
        ends = []
        for alphas[i] in (value - step, value + step):
            ends.append(expected().item())
        alphas[i] = value
        assert (ends[1] - ends[0]) / (2 * step) == pytest.approx(slope, rel=1e-7)


@pytest.mark.parametrize("budget, first", [(100.5, 101), (98.5, 98), (50.0, 50), (300.0, 300)])
def test_first_draw_within_one_percent_is_taken(budget, first):
    draws = torch.tensor([[97.0], [101.0], [98.0], [99.0], [50.0], [300.0], [100.0]])
    # 99 and 100 come later; 97 is 1.5 % away from 98.5.
    assert first_near(draws, lambda widths: widths.double().sum(dim=1), budget).tolist() == [first]


def test_budget_outside_what_a_grid_can_cost_is_refused(tiny):
    grid = Grid({name: Group(name, n) for name, n in zip("acd", (4, 3, 5), strict=True)}, n=3)
    least, most = tiny_macs(1, 1, 2), tiny_macs(4, 3, 5)
    for budget in (least, most):
        check_budget(budget, tiny.macs, grid)
    for budget in (least - 1, most + 1):
        with pytest.raises(ValueError, match=rf"a budget of {budget:,.4g} cannot be kept: .* {least:,.4g}, .*{most:,}"):
            check_budget(budget, tiny.macs, grid)
