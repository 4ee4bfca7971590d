"""Searches whose right answer is known: AutoSlim's, MetaPruning's, and widths that need none."""

import math

import pytest
import torch
from conftest import small_resnet
from torch import nn
from torch.nn import functional as F

from prunelab.channels import designs
from prunelab.channels.autoslim import greedy
from prunelab.channels.groups import Grid, Group
from prunelab.channels.metapruning import MetaNetwork, evolve
from prunelab.channels.prefix import PrefixConv2d
from prunelab.channels.slimmable import Slimmable
from prunelab.models import build_model

IMAGE = {"in_channels": 1, "image_size": 8}
TENS = Grid({name: Group(name, 10) for name in "abc"})  # widths are 1 to 10


class Product:
    """The cost of made-up networks: the sum of the products of widths that follow each other, such as ab + bc."""

    def __call__(self, widths, variances=None):
        return (widths[..., 1:] * widths[..., :-1]).sum(dim=-1)

    def of(self, widths):
        return float(self(torch.tensor([float(width) for width in widths.values()])))


class Sum(Product):
    def __call__(self, widths, variances=None):
        return widths.sum(dim=-1)


# AutoSlim.


@pytest.mark.parametrize(
    "budget, left",
    [
        (30, (10, 10, 10)),
        (29.5, (10, 10, 9)),
        (28, (10, 10, 8)),  # c costs 1, then 3, 5, 7 …, a always 4
        (27, (9, 10, 8)),
        (21, (3, 10, 8)),
        (19, (1, 10, 8)),  # a is as narrow as it gets
        (12, (1, 10, 1)),  # the last step of c costs 17, b's would 20
        (4, (1, 2, 1)),
        (3, (1, 1, 1)),
    ],
)
def test_groups_lose_a_step_where_it_hurts_least_until_the_budget_is_kept(budget, left):
    tried = []

    def loss(widths):
        tried.append(widths)
        a, b, c = (10 - width for width in widths.values())
        return 4 * a + 20 * b + c * c

    found = greedy(TENS, Sum(), budget=budget, loss=loss)
    assert found == dict(zip("abc", left, strict=True))
    assert all(1 <= width <= 10 for widths in tried for width in widths.values())
    assert (not tried) == (budget == 30)  # what keeps its budget is not judged


@pytest.mark.parametrize("budget", [2, 31, math.nan])
def test_greedy_budget_that_no_network_keeps_is_refused(budget):
    message = f"a budget of {budget} cannot be kept: the smallest network costs 3, the full one 30"
    with pytest.raises(ValueError, match=message):
        greedy(TENS, Sum(), budget=budget, loss=lambda widths: 0.0)


def test_greedy_never_takes_a_step_whose_loss_is_not_finite():
    def loss(widths):
        return math.nan if widths["a"] < 10 else -math.inf if widths["b"] < 10 else 100.0

    assert greedy(TENS, Sum(), budget=25, loss=loss) == {"a": 10, "b": 10, "c": 5}
    with pytest.raises(ValueError, match="none of 2 candidates has a finite loss; the trained network has diverged"):
        greedy(TENS, Sum(), budget=20, loss=loss)


# Evolution.


FOUR = Grid({name: Group(name, 10) for name in "abcd"})


def evolved(loss, budget, *, seed=0, n_generations=16, n_candidates=40):
    options = {"n_candidates": n_candidates, "generator": torch.Generator().manual_seed(seed)}
    return evolve(FOUR, Product(), budget=budget, loss=loss, n_generations=n_generations, **options)


@pytest.mark.parametrize("budget", [60, 120])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_evolution_finds_the_best_of_all_networks_within_the_budget(budget, seed):
    def loss(widths):
        a, b, c, d = widths.values()
        return (a - 9) ** 2 + 2 * (b - 7) ** 2 + 4 * (c - 8) ** 2 + (d - 2) ** 2

    every = torch.cartesian_prod(*[torch.arange(1, 11)] * 4)
    costs = Product()(every)
    fitting = map(FOUR.widths, every[(costs >= 0.95 * budget) & (costs <= budget)])
    best = min(map(loss, fitting))
    assert loss(evolved(loss, budget, seed=seed)) == best
    assert loss(evolved(loss, budget, seed=seed, n_generations=0, n_candidates=4)) > best


def test_each_generation_of_evolution_judges_new_networks():
    grid, tried = Grid({str(i): Group(str(i), 10) for i in range(12)}), []
    generator = torch.Generator().manual_seed(0)
    options = {"n_generations": 3, "n_candidates": 24, "generator": generator}
    evolve(grid, Sum(), budget=60, loss=lambda widths: tried.append(widths) or -widths["3"], **options)
    assert len(tried) == 4 * 24


def test_evolution_judges_no_network_outside_its_budget_and_none_twice():
    tried = []

    def loss(widths):
        tried.append(tuple(widths.values()))
        return -sum(widths.values())

    found = evolved(loss, 60)
    assert all(57 <= a * b + b * c + c * d <= 60 for a, b, c, d in tried) and tuple(found.values()) in tried
    assert len(set(tried)) == len(tried) <= 17 * 40
    before, tried[:] = tried[:], []
    assert evolved(loss, 60) == found and tried == before  # the same generator, the same candidates
    evolved(loss, 60, seed=1)
    assert tried[len(before) :] != before


def test_evolution_never_returns_a_network_whose_loss_is_not_finite():
    def loss(widths):
        return math.nan if widths["a"] > 1 else widths["b"]

    assert evolved(loss, 60)["a"] == 1
    with pytest.raises(ValueError, match="none of 40 candidates has a finite loss; the trained network has diverged"):
        evolved(lambda widths: math.nan, 60)


def test_budget_that_no_candidate_meets_is_refused():
    with pytest.raises(ValueError, match=r"no widths cost 95% to 100 % of the budget of 1\.5"):
        evolved(lambda widths: 0.0, 1.5)


# The network that makes weights.


@pytest.fixture
def meta():
    slimmable = Slimmable(small_resnet().double(), **IMAGE)
    torch.manual_seed(1)
    return MetaNetwork(slimmable).double()


def weights(meta):
    """The convolutions' generated weights, as they are used in a forward pass."""
    seen, convs = {}, {id(module): name for name, module in meta.network.named_modules()}

    def remember(conv, inputs):
        seen[convs[id(conv)]] = conv.weight

    hooks = [m.register_forward_pre_hook(remember) for m in meta.network.modules() if isinstance(m, PrefixConv2d)]
    meta(torch.ones(2, 1, 8, 8, dtype=torch.float64))
    for hook in hooks:
        hook.remove()
    return seen


def test_generated_weights_are_those_of_a_slow_formula(meta):
    slimmable = meta._slimmable
    slimmable.set({**slimmable.full, "blocks.1.conv1": 2, "blocks.1.conv2": 6})  # of 8 each
    found = weights(meta)
    for name, shares in (("conv", (1.0, 1.0)), ("blocks.1.conv1", (1.0, 0.25)), ("blocks.1.conv2", (0.25, 0.75))):
        conv, i = meta.network.get_submodule(name), list(found).index(name)
        first, second, expected = meta.first[i].tolist(), meta.second[i], conv.weight.detach().clone()
        for (read, write, bias), column in zip(first, second.T, strict=True):
            hidden = max(0.0, read * shares[0] + write * shares[1] + bias)
            expected += hidden * column.detach().view_as(expected)
        torch.testing.assert_close(found[name].detach(), expected)


def test_weights_of_a_layer_change_with_its_own_widths_and_with_no_others(meta):
    full = weights(meta)
    meta._slimmable.set({**meta._slimmable.full, "blocks.1.conv1": 3})
    narrow = weights(meta)
    changed = {name for name, weight in full.items() if not torch.equal(weight, narrow[name])}
    assert changed == {"blocks.1.conv1", "blocks.1.conv2"}  # which writes these channels, and which reads them


def test_generators_are_trained_with_the_weights_beneath_them(meta):
    meta._slimmable.set(Grid(meta._slimmable.groups).at(4))
    images = torch.randn(8, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    F.cross_entropy(meta(images), torch.arange(8)).backward()
    for name, parameter in meta.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
    assert len(meta.first) == len(meta.second) == 7


class OddNames(nn.Module):
    """Layers named as methods of a dictionary, or alike but for a dot; between single channels they have one weight."""

    def __init__(self):
        super().__init__()
        self.keys, self.get, self.a_b = (nn.Conv2d(1, 1, 1) for _ in range(3))
        self.a = nn.Module()
        self.a.b = nn.Conv2d(1, 2, 1)

    def forward(self, x):
        return self.a.b(self.a_b(self.get(self.keys(x))))


def test_layers_of_any_name_and_of_a_single_weight_get_generators_of_their_own():
    meta = MetaNetwork(Slimmable(OddNames(), **IMAGE))
    assert [second.shape for second in meta.second] == [(1, 8), (1, 8), (1, 8), (2, 8)] and len(meta.first) == 4
    assert all(parameter.isfinite().all() and parameter.any() for parameter in meta.parameters())
    assert meta(torch.ones(1, 1, 8, 8)).isfinite().all()


# Widths without a search.


@pytest.mark.parametrize(
    "budget, widths",
    [
        (64, (8, 8)),
        (16, (4, 4)),
        (1, (1, 1)),
        (15, (4, 4)),  # 9 is further away
        (12, (3, 3)),  # 16 is further away
    ],
)
def test_uniform_widths_are_the_same_share_of_all_groups_nearest_to_the_budget(budget, widths):
    assert tuple(designs.uniform({"a": 8, "b": 8}, Product(), budget=budget).values()) == widths
    assert designs.uniform({"a": 10, "b": 5}, Product(), budget=15) == {"a": 5, "b": 3}  # 5.2 and 2.6, of 52 %


@pytest.mark.parametrize("budget", [0.9, 65, math.nan])
def test_budget_of_no_uniform_and_of_no_slimmed_network_is_refused(budget):
    message = f"a budget of {budget} cannot be kept: the smallest network costs {{}}, the full one 64"
    with pytest.raises(ValueError, match=message.format(1)):
        designs.uniform({"a": 8, "b": 8}, Product(), budget=budget)
    with pytest.raises(ValueError, match=message.format(8)):  # b stays whole
        designs.slimmed({"a": 8, "b": 8}, {"a": torch.arange(8.0)}, Product(), budget=budget)


def test_scores_that_are_not_finite_are_refused():
    scores = {"a": torch.tensor([0.5, math.nan]), "b": torch.ones(2)}
    with pytest.raises(ValueError, match="scores must be finite, as those of a are not; has the network diverged"):
        designs.slimmed({"a": 2, "b": 2}, scores, Product(), budget=4)


@pytest.mark.filterwarnings("ignore:density .* leaves no channel")
def test_slimmed_widths_are_what_is_left_of_the_smallest_scores_of_all_groups():
    full = {"a": 4, "whole": 2, "b": 4}
    scores = {"a": torch.tensor([0.9, 0.2, 0.8, 0.7]), "b": torch.tensor([0.1, 0.3, 0.6, 0.15])}
    # 0.1, 0.15, 0.2 and 0.3 go first. The cost, 2a + 2b, is twice the number of those that are left.
    for budget, (a, b) in ((16, (4, 4)), (14, (4, 3)), (12, (4, 2)), (10, (3, 2)), (8, (3, 1)), (4, (1, 1))):
        assert designs.slimmed(full, scores, Product(), budget=budget) == {"a": a, "whole": 2, "b": b}


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_widths_of_a_real_network_cost_their_budget(share):
    slimmable = Slimmable(build_model("resnet20", num_classes=10, **IMAGE), **IMAGE)
    full, macs, grid = slimmable.full, slimmable.macs, Grid(slimmable.groups)
    budget = share * macs.of(full)
    assert macs.of(designs.uniform(full, macs, budget=budget)) == pytest.approx(budget, rel=0.01)
    torch.manual_seed(0)
    scores = {name: torch.rand(n) for name, n in full.items() if "conv1" in name}
    slimmed = designs.slimmed(full, scores, macs, budget=budget)
    assert macs.of(slimmed) == pytest.approx(budget, rel=0.02)
    assert {name for name in full if slimmed[name] < full[name]} <= scores.keys()
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 0, 1)]
    first, again, other = (designs.random(grid, macs, budget=budget, generator=own) for own in generators)
    assert first == again != other
    for widths in (first, other):
        assert macs.of(widths) == pytest.approx(budget, rel=0.01)
        assert all(widths[name] in grid.choices[i] for i, name in enumerate(grid.names))


def test_budget_that_no_random_network_has_is_refused():
    with pytest.raises(ValueError, match=r"none of 10,000 draws costs the budget of 1\.5 to 1%; they cost 2 to 200"):
        designs.random(TENS, Product(), budget=1.5, generator=torch.Generator().manual_seed(0))


def test_tilt_is_the_last_third_minus_the_first():
    full = dict.fromkeys("abcdefg", 10)
    assert designs.depth_tilt(dict(zip("abcdefg", (2, 4, 9, 9, 9, 8, 10), strict=True)), full) == pytest.approx(0.6)
    assert designs.depth_tilt({"a": 3}, {"a": 10}) == 0
