"""Units of a perceptron: who is cut off, what the rest takes, by hand and by the paper's Table 2."""

import itertools
import math

import pandas as pd
import pytest
import torch

from prunelab import paths, perceptron


def mask(n_out, n_in, *connections):
    """A mask of the given (to, from) connections alone."""
    result = torch.zeros(n_out, n_in, dtype=torch.bool)
    for connection in connections:
        result[connection] = True
    return result


def full(*widths):
    return [torch.ones(above, below, dtype=torch.bool) for below, above in itertools.pairwise(widths)]


def numbers(alive):
    return [layer.nonzero().flatten().tolist() for layer in alive]


# Inputs i, hidden units h and g, outputs o; one path goes all the way: i0 - h0 - g0 - o0.
#   i1 - h1 - g1        g1 leads nowhere, so h1 leads nowhere, so i1 is unused
#        h2 - g2 - o1   nothing enters h2, so nothing but a constant enters g2, and o1
#   i2 - h3             h3 leads nowhere; i0 goes there too
CHAINS = [
    mask(4, 3, (0, 0), (1, 1), (3, 0), (3, 2)),
    mask(3, 4, (0, 0), (1, 1), (2, 2)),
    mask(2, 3, (0, 0), (1, 2)),
]


def test_death_of_a_unit_spreads_up_and_down():
    assert numbers(perceptron.surviving(CHAINS)) == [[0], [0], [0], [0, 1]]


@pytest.mark.parametrize(
    "masks, alive",
    [
        (full(3, 4, 2), [[0, 1, 2], [0, 1, 2, 3], [0, 1]]),
        ([mask(2, 3, (1, 2))], [[2], [0, 1]]),  # outputs survive, connected or not
        ([mask(2, 3, (0, 0), (1, 1)), mask(1, 2)], [[], [], [0]]),  # a layer without connections stops everything
        ([mask(2, 2, (0, 0)), mask(1, 2, (0, 1))], [[], [], [0]]),  # two halves that do not meet
    ],
)
def test_who_survives_in_small_networks(masks, alive):
    assert numbers(perceptron.surviving(masks)) == alive


def test_masks_are_left_as_they_are():
    before = [m.clone() for m in CHAINS]
    perceptron.compact_table(CHAINS)
    assert all(torch.equal(*pair) for pair in zip(before, CHAINS, strict=True))


def on_a_path(masks):
    """Slow reference: walks every sequence of units, one a layer, and keeps those of whole paths."""
    widths = [masks[0].shape[1], *(len(m) for m in masks)]
    found = [set() for _ in widths]
    for path in itertools.product(*map(range, widths)):
        if all(m[above, below] for m, (below, above) in zip(masks, itertools.pairwise(path), strict=True)):
            for own, unit in zip(found, path, strict=True):
                own.add(unit)
    found[-1] = set(range(widths[-1]))
    return [sorted(own) for own in found]


@pytest.mark.parametrize("density", [0.1, 0.2, 0.3, 0.6])
def test_random_networks_keep_the_units_that_lie_on_a_path(density):
    generator = torch.Generator().manual_seed(round(100 * density))
    n_dead = 0
    for _ in range(10):
        masks = [torch.rand(m.shape, generator=generator) < density for m in full(6, 5, 4, 5, 2)]
        alive = numbers(perceptron.surviving(masks))
        assert alive == on_a_path(masks)
        # All connections between survivors count, and no other.
        between = sum(
            int(m[above][:, below].sum()) for m, (below, above) in zip(masks, itertools.pairwise(alive), strict=True)
        )
        assert perceptron.compact_table(masks)["n_weights"] == between
        n_dead += 20 - sum(map(len, alive[:-1]))
    assert n_dead > 0


@pytest.mark.parametrize(
    "masks, table",
    [
        # Three weights, four biases; matrices of 1 x 1, 1 x 1 and 2 x 1 positions.
        (CHAINS, {"n_weights": 3, "n_positions": 4, "n_bytes": 4 * 7 + 1}),
        # 12 + 8 weights, as many positions, 4 + 2 biases; 20 bits are 3 bytes.
        (full(3, 4, 2), {"n_weights": 20, "n_positions": 20, "n_bytes": 4 * 26 + 3}),
        (full(4, 2), {"n_weights": 8, "n_positions": 8, "n_bytes": 4 * 10 + 1}),
        ([mask(2, 3, (0, 0)), mask(1, 2)], {"n_weights": 0, "n_positions": 0, "n_bytes": 4}),
    ],
)
def test_what_is_left_when_dead_units_are_cut_off(masks, table):
    assert perceptron.compact_table(masks) == table


def reported_bytes(architecture):
    rows = pd.read_csv(paths.PAPER / "rigl_mlp_structured_mnist.csv")
    (value,) = rows[(rows["metric"] == "size") & (rows["target"] == architecture)]["value"]
    return value


@pytest.mark.parametrize("architecture", ["245-160-55", "266-88-33", "97-71-33"])
def test_bytes_of_weights_and_biases_are_the_papers(architecture):
    # Of dense networks, which need no bit for a position.
    table = perceptron.compact_table(full(*map(int, architecture.split("-")), 10))
    assert table["n_bytes"] - math.ceil(table["n_positions"] / 8) == reported_bytes(architecture)


def test_bytes_of_the_papers_sparse_network_are_what_it_reports():
    # 408 of 784 pixels, 100 of 300 and 69 of 100 units survive; 6,287 weights are the 12.6 KFLOPs of an inference.
    masks = [torch.zeros_like(m) for m in full(784, 300, 100, 10)]
    for m, (below, above) in zip(masks, itertools.pairwise((408, 100, 69, 10)), strict=True):
        for k in range(max(below, above)):  # every unit has a connection
            m[k % above, k % below] = True
    first = masks[0][:100, :408]
    free = (~first).nonzero()[: 6287 - sum(int(m.sum()) for m in masks)]
    first[free[:, 0], free[:, 1]] = True

    assert [len(layer) for layer in numbers(perceptron.surviving(masks))] == [408, 100, 69, 10]
    table = perceptron.compact_table(masks)
    assert table["n_weights"] == 6287 and table["n_positions"] == 40_800 + 6_900 + 690
    assert table["n_bytes"] == 4 * (6287 + 179) + 6049
    assert table["n_bytes"] == pytest.approx(reported_bytes("408-100-69"), abs=4)


# Four of the sixteen pixels are used; the central square holds 3 + 1 of the seven connections.
GREY = [
    0, 1, 0, 0,
    2, 3, 0, 0,
    0, 0, 1, 0,
    0, 0, 0, 0,
]  # fmt: skip
# One in the centre, one in a corner.
THIRD = [
    0, 0, 0, 0,
    0, 0, 1, 0,
    0, 0, 0, 0,
    0, 0, 0, 1,
]  # fmt: skip


@pytest.mark.parametrize(
    "connections, used, central",
    [
        (GREY, 4 / 16, 4 / 7),
        (GREY + [0] * 16 + THIRD, 6 / 48, 5 / 9),
        ([5] * 16, 1.0, 1 / 4),  # as its area
    ],
)
def test_shares_of_inputs_by_hand(connections, used, central):
    shares = perceptron.input_shares(connections, image_size=4)
    assert shares == {"input_share": pytest.approx(used), "central_share": pytest.approx(central)}


@pytest.mark.parametrize("image_size", [8, 28])
def test_central_square_is_half_as_high_and_wide(image_size):
    for row, column in itertools.product(range(image_size), repeat=2):
        connections = [0] * image_size**2
        connections[row * image_size + column] = 2
        is_central = all(image_size // 4 <= k < 3 * image_size // 4 for k in (row, column))
        assert perceptron.input_shares(connections, image_size=image_size)["central_share"] == is_central
