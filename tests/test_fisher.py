"""The inverse Fisher matrix against a direct inverse, two and three weights on paper, and quadratic losses."""

import pytest
import torch

from prunelab import fisher

DOUBLE = torch.float64


def inverse_of(gradients, *, block_size, damping, parts=None):
    """What `add_gradients` makes of all gradients, in parts of given sizes; one by one, as the paper, by default."""
    inverse = fisher.inverse_without_gradients(gradients[0], block_size=block_size, damping=damping)
    for part in gradients.split(parts or 1):
        fisher.add_gradients(inverse, part, n_gradients=len(gradients))
    return inverse


def direct_blocks(gradients, *, block_size, damping):
    """The blocks of the matrix, each summed and inverted by itself in double precision."""
    flat = gradients.double().flatten(1)
    blocks = []
    for start in range(0, flat.shape[1], block_size):
        part = flat[:, start : start + block_size]
        matrix = damping * torch.eye(part.shape[1], dtype=DOUBLE)
        for gradient in part:
            matrix += torch.outer(gradient, gradient) / len(gradients)
        blocks.append(torch.linalg.inv(matrix))
    return blocks


def draw(*shape, seed=0, dtype=DOUBLE):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("shape", [(1,), (10,), (4, 3, 2, 2)])
@pytest.mark.parametrize("block_size", [1, 5, 7, 48, 1000])  # a weight each, several, one uneven, one, beyond the layer
@pytest.mark.parametrize("parts", [[1] * 20, [20], [7, 7, 6]])
def test_inverse_is_the_direct_one_of_each_block(shape, block_size, parts):
    gradients = draw(20, *shape)
    inverse = inverse_of(gradients, block_size=block_size, damping=1e-2, parts=parts)
    expected = direct_blocks(gradients, block_size=block_size, damping=1e-2)
    assert inverse.shape[:2] == (len(expected), min(block_size, gradients[0].numel()))
    for block, direct in zip(inverse, expected, strict=True):
        n = len(direct)  # the last block is filled up with weights to which nothing is tied
        torch.testing.assert_close(block[:n, :n], direct, rtol=1e-9, atol=1e-9)
        assert not block[:n, n:].any() and not block[n:, :n].any()
        assert torch.equal(block, block.T)


@pytest.mark.parametrize("damping", [1e-5, 1e-3])
def test_single_precision_suffices_at_the_damping_of_the_authors(damping):
    # A few strong directions and many weak ones, as a network's gradients have.
    gradients = draw(200, 5) @ draw(5, 60, seed=1) * 0.1 + 0.001 * draw(200, 60, seed=2)
    inverse = inverse_of(gradients.float(), block_size=25, damping=damping, parts=32)
    for block, direct in zip(inverse, direct_blocks(gradients, block_size=25, damping=damping), strict=True):
        block = block[: len(direct), : len(direct)].double()
        assert (block - direct).abs().max() < 1e-5 * direct.abs().max()
        assert ((block.diagonal() - direct.diagonal()).abs() < 1e-3 * direct.diagonal()).all()


def test_weights_without_gradients_are_tied_to_none():
    gradients = draw(9, 6)
    gradients[:, [1, 4]] = 0.0  # pruned before
    inverse = inverse_of(gradients, block_size=6, damping=0.5)[0]
    for q in (1, 4):
        assert torch.equal(inverse[q], 2.0 * torch.eye(6, dtype=DOUBLE)[q])


# Two weights whose gradients go together: F = I + (1, 1)(1, 1)^T = (2 1; 1 2), whose inverse is (2 -1; -1 2) / 3.
PAIR = torch.ones(1, 2, dtype=DOUBLE)


def test_two_weights_by_hand():
    weight = torch.tensor([1.0, 3.0], dtype=DOUBLE)
    inverse = inverse_of(PAIR, block_size=2, damping=1.0)
    torch.testing.assert_close(inverse[0], torch.tensor([[2.0, -1.0], [-1.0, 2.0]], dtype=DOUBLE) / 3)
    # w^2 / (2 * 2/3): 3/4 and 27/4. The first leaves, and the second makes up for it: -1 / (2/3) * (2, -1) / 3.
    torch.testing.assert_close(fisher.pruning_cost(weight, inverse), torch.tensor([0.75, 6.75], dtype=DOUBLE))
    pruned = torch.tensor([True, False])
    for joint in (False, True):
        update = fisher.pruning_update(weight, inverse, pruned, joint=joint)
        torch.testing.assert_close(update, torch.tensor([-1.0, 0.5], dtype=DOUBLE))
    # Blocks of one weight know nothing of each other: half the weight squared times 2, and no move.
    alone = inverse_of(PAIR, block_size=1, damping=1.0)
    torch.testing.assert_close(fisher.pruning_cost(weight, alone), torch.tensor([1.0, 9.0], dtype=DOUBLE))
    assert fisher.pruning_update(weight, alone, pruned).tolist() == [-1.0, 0.0]


def test_three_weights_by_hand_where_the_larger_one_costs_less():
    # F = diag(1 + 12/3, 1 + 3/3, 1): of the weights 1, 1.5 and 2 the first costs 5/2, the second 9/4, the third 2.
    gradients = torch.tensor([[12.0, 0, 0], [0, 3.0, 0], [0, 0, 0]], dtype=DOUBLE).sqrt()
    weight = torch.tensor([1.0, 1.5, 2.0], dtype=DOUBLE)
    inverse = inverse_of(gradients, block_size=3, damping=1.0)
    torch.testing.assert_close(fisher.pruning_cost(weight, inverse), torch.tensor([2.5, 2.25, 2.0], dtype=DOUBLE))


def test_summed_update_overshoots_where_pruned_weights_are_tied_and_the_joint_one_does_not():
    weight = torch.tensor([1.0, 3.0], dtype=DOUBLE)
    inverse = inverse_of(PAIR, block_size=2, damping=1.0)
    pruned = torch.tensor([True, True])
    # (-1, 1/2) alone for the first, (3/2, -3) for the second.
    summed = fisher.pruning_update(weight, inverse, pruned)
    torch.testing.assert_close(summed, torch.tensor([0.5, -2.5], dtype=DOUBLE))
    torch.testing.assert_close(fisher.pruning_update(weight, inverse, pruned, joint=True), -weight)


def quadratic(seed, n=12):
    """A loss 1/2 (w - w*)^T F (w - w*) of which F is the Fisher matrix too; its minimum w*, and the inverse."""
    gradients = draw(40, 3, seed=seed) @ draw(3, n, seed=seed + 100) + 0.3 * draw(40, n, seed=seed + 200)
    matrix = 0.01 * torch.eye(n, dtype=DOUBLE) + gradients.T @ gradients / len(gradients)
    best = draw(n, seed=seed + 300)
    inverse = inverse_of(gradients, block_size=n, damping=0.01, parts=16)
    return (lambda weight: 0.5 * (weight - best) @ matrix @ (weight - best)), best, inverse


@pytest.mark.parametrize("seed", range(5))
def test_cost_is_what_the_loss_rises_by_when_one_weight_leaves(seed):
    loss, weight, inverse = quadratic(seed)
    for q, cost in enumerate(fisher.pruning_cost(weight, inverse)):
        pruned = torch.arange(len(weight)) == q
        moved = weight + fisher.pruning_update(weight, inverse, pruned)
        assert abs(moved[q]) < 1e-12
        assert loss(moved) == pytest.approx(cost.item())
        assert loss(moved) <= loss(weight * ~pruned)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n_pruned", [2, 4])  # of more, which cost most together is not told by each alone
def test_pruning_by_cost_loses_less_than_pruning_by_magnitude(seed, n_pruned):
    loss, weight, inverse = quadratic(seed)
    smallest = torch.zeros_like(weight, dtype=torch.bool)
    smallest[weight.abs().argsort()[:n_pruned]] = True
    cheapest = torch.zeros_like(smallest)
    cheapest[fisher.pruning_cost(weight, inverse).argsort()[:n_pruned]] = True
    joint = weight + fisher.pruning_update(weight, inverse, cheapest, joint=True)
    assert joint[cheapest].abs().max() < 1e-10
    assert loss(joint) < loss(weight * ~smallest)
    # It is the least loss of all weights that are zero there: no gradient is left among the others.
    leaf = joint.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    assert gradient[~cheapest].abs().max() < 1e-9
    summed = (weight + fisher.pruning_update(weight, inverse, cheapest)) * ~cheapest
    assert loss(joint) <= loss(summed)


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("block_size", [4, 5, 12, 100])
def test_update_is_the_sum_or_the_solution_block_by_block(joint, block_size):
    gradients, weight = draw(30, 3, 4), draw(3, 4, seed=1)
    pruned = draw(3, 4, seed=2) > 0
    inverse = inverse_of(gradients, block_size=block_size, damping=0.1)
    expected = []
    blocks = direct_blocks(gradients, block_size=block_size, damping=0.1)
    parts = (values.flatten().split(block_size) for values in (weight, pruned))
    for block, values, leaving in zip(blocks, *parts, strict=True):
        update, indices = torch.zeros_like(values), leaving.nonzero().flatten()
        if joint:
            solved = torch.linalg.solve(block[indices][:, indices], values[indices])
            update -= block[:, indices] @ solved
        else:
            for q in indices:
                update -= values[q] / block[q, q] * block[:, q]
        expected.append(update)
    update = fisher.pruning_update(weight, inverse, pruned, joint=joint)
    torch.testing.assert_close(update, torch.cat(expected).view(3, 4))


def test_pruning_nothing_moves_nothing():
    weight = draw(7)
    inverse = inverse_of(draw(5, 7), block_size=4, damping=0.1)
    for joint in (False, True):
        assert not fisher.pruning_update(weight, inverse, torch.zeros(7, dtype=torch.bool), joint=joint).any()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"block_size": 0}, "block_size must be at least 1 weight, got 0"),
        ({"damping": 0.0}, "damping must be above 0, .* got 0.0"),
        ({"damping": float("nan")}, "damping must be above 0, .* got nan"),
    ],
)
def test_impossible_matrices_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        fisher.inverse_without_gradients(torch.ones(3), **{"block_size": 2, "damping": 1.0} | changes)
