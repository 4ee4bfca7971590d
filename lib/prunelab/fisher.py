"""The empirical Fisher matrix of a layer in blocks: its inverse, and what pruning by it costs and changes.

The matrix F = damping * I + 1/n * sum of g g^T over n gradients g stands in for the Hessian of the loss of a trained
network. Only blocks along its diagonal are kept, one for each run of `size` weights of the flattened layer. The last
run may be shorter: it is filled up with weights that have no gradient, to which nothing is tied. An inverse is
(blocks, size, size).

Source: Singh & Alistarh 2020, arXiv:2004.14340 (WoodFisher); Hassibi & Stork 1992, "Second order derivatives
for network pruning: Optimal Brain Surgeon".
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def _in_blocks(values: Tensor, size: int) -> Tensor:
    """Cuts the last dimension into (blocks, size), filled up with zeros."""
    return F.pad(values, (0, -values.shape[-1] % size)).unflatten(-1, (-1, size))


def inverse_without_gradients(weight: Tensor, *, block_size: int, damping: float) -> Tensor:
    """Returns what `add_gradients` starts from, I / damping.

    Args:
        weight: Of the layer, any shape; its type and device are those of the inverse.
        block_size: Weights in a block; a smaller layer is one block.
        damping: Above 0; lambda in the paper.
    Returns:
        (blocks, size, size).
    Raises:
        ValueError: A block without a weight, or a damping that is not above 0.
    """
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1 weight, got {block_size}")
    if not damping > 0:
        raise ValueError(f"damping must be above 0, or the matrix may have no inverse; got {damping}")
    size = min(block_size, weight.numel())
    diagonal = weight.new_full((-(-weight.numel() // size), size), 1.0 / damping)
    return torch.diag_embed(diagonal)


def add_gradients(inverse: Tensor, gradients: Tensor, *, n_gradients: int) -> None:
    """Adds gradients to the matrix whose inverse is given, in place, by Woodbury's identity.

    For k gradients, the columns of G, (F + G G^T / n)^-1 = F^-1 - P (n I + G^T P)^-1 P^T with P = F^-1 G. Gradients may
    come in parts of any size: what is given is the inverse for all that came so far, without any being kept.

    Args:
        inverse: (blocks, size, size).
        gradients: Of the layer's weights, (k, ...).
        n_gradients: How many there will be in all, n.
    Source: Singh & Alistarh 2020, Sec. 3.
    Differs: k at a time, where the paper adds one: the same matrix, read and written k times less often.
    """
    columns = _in_blocks(gradients.flatten(1), inverse.shape[-1]).movedim(0, -1)  # (blocks, size, k)
    moved = inverse @ columns
    inner = columns.mT @ moved
    inner.diagonal(dim1=-2, dim2=-1).add_(n_gradients)
    # By Cholesky factors P (n I + G^T P)^-1 P^T is a product R^T R, symmetric to the last bit; NaN passes through.
    root = torch.linalg.solve_triangular(torch.linalg.cholesky_ex(inner).L, moved.mT, upper=False)
    inverse.baddbmm_(root.mT, root, alpha=-1.0)


def pruning_cost(weight: Tensor, inverse: Tensor) -> Tensor:
    """Returns how much the loss rises, to second order, if one weight alone is pruned and the others make up for it.

    The statistic w_q^2 / (2 [F^-1]_qq) of weight q, same shape as `weight`.

    Below 0 where rounding has left [F^-1]_qq so: the damping is too small beside such gradients.

    Source: Singh & Alistarh 2020, Sec. 4.
    """
    return weight**2 / (2.0 * _diagonal(weight, inverse))


def pruning_update(weight: Tensor, inverse: Tensor, pruned: Tensor, *, joint: bool = False) -> Tensor:
    """Returns by how much the weights of a layer move when some are pruned, so that the others make up for them.

    For one pruned weight q it is -w_q / [F^-1]_qq * F^-1 e_q, which takes w_q to zero and is the move of least loss
    that does. For several it is the sum of these, which overshoots where pruned weights are tied to each other, and
    takes them near zero only; `joint` solves for the pruned weights of each block together, which takes all to zero at
    the least loss. Weights pruned before are zero and have no gradients, so they stay.

    Args:
        weight: Any shape.
        inverse: (blocks, size, size).
        pruned: Bool, those that leave now; same shape.
        joint: Whether to solve jointly; the paper and its authors' code sum.
    Returns:
        Same shape; the caller sees to exact zeros.
    Source: Singh & Alistarh 2020, Sec. 4; jointly, Kurtic et al. 2022, arXiv:2203.07259 (Optimal BERT Surgeon), Sec. 3.
    """
    leaving = _in_blocks((weight * pruned).flatten(), inverse.shape[-1]).unsqueeze(-1)
    if joint:
        is_pruned = _in_blocks(pruned.flatten().to(weight.dtype), inverse.shape[-1])
        among_pruned = inverse * is_pruned.unsqueeze(-1) * is_pruned.unsqueeze(-2)
        among_pruned.diagonal(dim1=-2, dim2=-1).add_(1.0 - is_pruned)  # the others' solution is zero
        scaled = torch.linalg.solve_ex(among_pruned, leaving).result
    else:
        scaled = leaving / inverse.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
    return -(inverse @ scaled).flatten()[: weight.numel()].view_as(weight)


def _diagonal(weight: Tensor, inverse: Tensor) -> Tensor:
    """Returns [F^-1]_qq of each weight q, in the weight's shape."""
    return inverse.diagonal(dim1=-2, dim2=-1).flatten()[: weight.numel()].view_as(weight)
