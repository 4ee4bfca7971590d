"""Densities per layer: worked out by hand, exact in total, and against a solver that knows nothing of our loop."""

import math

import pytest
from scipy.optimize import brentq

from prunelab.density import DISTRIBUTIONS, allocate, layer_densities

# ERK scores sum(shape) / prod(shape): 30/200 = 0.15 and 14/24 = 0.5833.
TWO_LAYERS = {"a": (10, 20), "b": (2, 12)}
RESNET_LIKE = {
    "conv": (16, 3, 3, 3),
    "block.conv1": (16, 16, 3, 3),
    "block.conv2": (32, 16, 3, 3),
    "skip": (32, 16, 1, 1),
    "fc": (10, 32),
}


def test_erk_densities_by_hand():
    # Budget 0.2 * 224 = 44.8 = factor * (30 + 14), so the factor is 44.8 / 44.
    densities = layer_densities(TWO_LAYERS, 0.2, distribution="erk")
    assert densities == pytest.approx({"a": 44.8 / 44 * 0.15, "b": 44.8 / 44 * 14 / 24})


def test_saturating_layer_becomes_dense_and_the_rest_is_solved_again():
    # At 0.5 the factor would be 112 / 44 and b would exceed 1: b takes its 24, a the other 88 of 200.
    assert layer_densities(TWO_LAYERS, 0.5, distribution="erk") == pytest.approx({"a": 0.44, "b": 1.0})


def test_erdos_renyi_ignores_the_kernel():
    # Scores (8 + 4) / 32 for both: equal densities, although one kernel is 3x3.
    densities = layer_densities({"a": (8, 4, 3, 3), "b": (8, 4, 1, 1)}, 0.3, distribution="erdos_renyi")
    assert densities == pytest.approx({"a": 0.3, "b": 0.3})
    # ERK does not: (8 + 4 + 6) / 288 against (8 + 4 + 2) / 32.
    densities = layer_densities({"a": (8, 4, 3, 3), "b": (8, 4, 1, 1)}, 0.05, distribution="erk")
    assert densities["b"] / densities["a"] == pytest.approx((14 / 32) / (18 / 288))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("density", [0.02, 0.05, 0.1, 0.5, 0.9, 0.999, 1.0])
def test_densities_solve_the_saturated_equation(distribution, density):
    sizes = {name: math.prod(shape) for name, shape in RESNET_LIKE.items()}
    scores = {name: DISTRIBUTIONS[distribution](shape) for name, shape in RESNET_LIKE.items()}

    def surplus(factor):
        return sum(sizes[n] * min(1.0, factor * scores[n]) for n in sizes) - density * sum(sizes.values())

    factor = brentq(surplus, 0.0, 1.0 / min(scores.values()), xtol=1e-15) if density < 1 else math.inf
    expected = {name: min(1.0, factor * scores[name]) for name in sizes}
    assert layer_densities(RESNET_LIKE, density, distribution=distribution) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("density", [0.005, 0.02, 0.05, 0.1, 1 / 3, 0.5, 0.77, 0.999, 1.0])
def test_totals_are_exact_and_layers_stay_near_their_share(distribution, density):
    sizes = {name: math.prod(shape) for name, shape in RESNET_LIKE.items()}
    counts = allocate(RESNET_LIKE, density, distribution=distribution)
    densities = layer_densities(RESNET_LIKE, density, distribution=distribution)
    assert sum(counts.values()) == round(density * sum(sizes.values()))
    for name, n_active in counts.items():
        assert 1 <= n_active <= sizes[name]
        assert abs(n_active - densities[name] * sizes[name]) <= 1 + len(sizes) * (n_active == 1)


def test_largest_remainder_gets_the_missing_weight():
    # Wanted 0.5 * 3 = 1.5 and 0.5 * 5 = 2.5 make 4 in total: 1 + 2, and one more for the first of equal remainders.
    assert allocate({"a": (1, 3), "b": (1, 5)}, 0.5, distribution="uniform") == {"a": 2, "b": 2}
    # Wanted 1.2 and 2.8: the remainder of b is larger.
    assert allocate({"a": (1, 3), "b": (1, 7)}, 0.4, distribution="uniform") == {"a": 1, "b": 3}


def test_no_layer_is_left_without_a_weight():
    # Wanted 0.3 and 9.7 of 10: a keeps one, b gives way.
    assert allocate({"a": (1, 3), "b": (1, 97)}, 0.1, distribution="uniform") == {"a": 1, "b": 9}


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1, 90, math.nan])
def test_density_must_be_a_share(density):
    with pytest.raises(ValueError, match=r"density must lie in \(0, 1\].*90 % sparsity is density 0.1"):
        allocate(TWO_LAYERS, density, distribution="erk")


def test_unknown_distribution_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'ERK'.*uniform, erdos_renyi, erk"):
        layer_densities(TWO_LAYERS, 0.1, distribution="ERK")


def test_fewer_weights_than_layers_is_refused():
    with pytest.raises(ValueError, match="leaves 1 weights for 2 layers"):
        allocate(TWO_LAYERS, 0.004, distribution="uniform")


def test_no_layers_is_refused():
    with pytest.raises(ValueError, match="no layer to make sparse"):
        allocate({}, 0.1, distribution="uniform")
