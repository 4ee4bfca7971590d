"""ReFer: a weight counts by how much the singular values of the layers' features change, to first order, without it.

Source: Nitta et al. 2024, Adaptive Feature Retention, Sec. 3.1, Eq. 2.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import scipy.linalg
import torch
from torch import Tensor, nn

from prunelab.scores.gradients import Batches, Weights, differentiable, summed_gradients

# Singular values below this share of the largest are taken for zero. A Gram matrix in double precision knows them to
# about 1e-16 of the largest's square, a relative 1e-4 here; features in single precision are not known to 1e-7.
CUTOFF = 1e-6


def _first_token(output: Tensor) -> Tensor:
    if output.dim() != 3:
        raise ValueError("no class token: they need an output of shape (images, tokens, features)")
    return output[:, 0]


def _positions_last(output: Tensor) -> Tensor:
    """(images, positions, features), from a convolution's maps too; a single vector for each image is one position."""
    if output.dim() not in (2, 3, 4):
        raise ValueError("an output must have 2 to 4 dimensions")
    if output.dim() == 4:
        output = output.flatten(2).transpose(1, 2)
    return output if output.dim() == 3 else output.unsqueeze(1)


# From a layer's output to a matrix, a row for each sample.
FEATURES: dict[str, Callable[[Tensor], Tensor]] = {
    "cls": _first_token,
    "mean": lambda output: _positions_last(output).mean(dim=1),
    "tokens": lambda output: _positions_last(output).flatten(0, 1),
}
DEFAULT_FEATURES = "cls"


def block_names(model: nn.Module) -> list[str]:
    """Lists the modules in `model.blocks`, first block first.

    Raises:
        ValueError: There are none.
    """
    blocks = getattr(model, "blocks", None)
    names = [f"blocks.{name}" for name, _ in blocks.named_children()] if isinstance(blocks, nn.Module) else []
    if not names:
        raise ValueError(f"{type(model).__name__} has no `blocks`; name the layers whose features are to be retained")
    return names


def polar_factor(matrix: Tensor) -> Tensor:
    """Returns U V^T of a matrix U S V^T, over its singular values that are not zero.

    Read from the eigenvalues of the smaller of its two Gram matrices, in double precision: (M M^T)^(-1/2) M. It is the
    same however equal singular values share their vectors, and zero for a matrix of zeros.

    Args:
        matrix: (n, d), finite.
    Returns:
        (n, d), in the matrix's precision; singular values below `CUTOFF` of the largest count as zero.
    """
    precise = matrix.double()
    wide = precise if len(precise) <= precise.shape[1] else precise.T
    gram = wide @ wide.T
    try:
        squares, vectors = torch.linalg.eigh(gram)
    except torch.linalg.LinAlgError:  # its divide and conquer may not converge where the rank is far below n
        squares, vectors = (torch.from_numpy(part).to(gram) for part in scipy.linalg.eigh(gram.cpu().numpy()))
    inverse_roots = torch.where(squares > CUTOFF**2 * squares[-1], squares.rsqrt(), 0.0)
    factor = (vectors * inverse_roots) @ (vectors.T @ wide)
    return (factor if wide is precise else factor.T).to(matrix)


def mean_singular_value(matrix: Tensor) -> Tensor:
    """Returns the mean of the min(n, d) singular values of a matrix, 0-d.

    Their sum is the product of the matrix with U V^T, summed over all entries, and U V^T is also its gradient: also
    where singular values are equal, when single ones have none; where some are zero, the subgradient of least norm. To
    be differentiated once: U V^T is held fixed.

    Args:
        matrix: (n, d), finite.
    Source: Nitta et al. 2024, Eq. 2.
    Differs: The paper divides by the number of samples n, which is the same up to d samples; more have only d.
    """
    return (polar_factor(matrix.detach()) * matrix).sum() / min(matrix.shape)


def refer_scores(
    model: nn.Module,
    weights: Weights,
    batches: Batches,
    *,
    layers: Sequence[str] | None = None,
    features: str = DEFAULT_FEATURES,
) -> dict[str, Tensor]:
    """Returns |d(sum over layers of the mean singular value of a layer's features)/dw * w| of each weight.

    By default the features are the class token of each block's output: each block adds to what the next one reads, and
    of the last one the head reads that token and no other. Each batch has feature matrices of its own, and the gradient
    is the mean over batches; labels are not looked at.

    Args:
        model: Any network; its outputs do not matter.
        weights: By layer name; frozen ones are scored too. Features must depend on each: not on the head's.
        batches: Images and labels, on the model's device; sensibly of one size, on which singular values depend.
        layers: Names of modules whose outputs are features, as in `named_modules`; one that runs several times counts
            each time. None: `block_names`.
        features: A key of `FEATURES`. `cls`: the class token, a row for each image. `mean`: the mean of the tokens, or
            of the positions of a convolution's maps, a row for each image. `tokens`: a row for each token or position.
            Vectors are one position.
    Returns:
        Score of each weight, by layer name.
    Raises:
        ValueError: Unknown layers or features; an output that has no such features, is not finite, or has one row only:
            its one singular value, the row's length, tells nothing of how images differ. Else see
            `gradients.check_weights` and `gradients.summed_gradients`.
    Source: Nitta et al. 2024, Eq. 2. The paper leaves open what a layer's output is, and how tokens enter.
    Differs: See `mean_singular_value`. Evaluation mode, see `gradients`.
    """
    layers = block_names(model) if layers is None else layers
    modules = dict(model.named_modules())
    if not layers or any(name not in modules for name in layers):
        unknown = ", ".join(repr(name) for name in layers if name not in modules) or "none"
        raise ValueError(f"layers must name modules, got {unknown}; there are {', '.join(filter(None, modules))}")
    if features not in FEATURES:
        raise ValueError(f"unknown features {features!r}; there are {', '.join(FEATURES)}")
    twin, own = differentiable(model, weights)
    terms: dict[str, Tensor] = {}

    def hook(name: str, module: nn.Module, inputs: tuple, output: Any) -> None:
        terms[name] = terms.get(name, 0.0) + mean_singular_value(_matrix(name, output, features))

    def objective(images: Tensor, _: Tensor) -> Tensor:
        terms.clear()
        twin(images)
        if silent := [name for name in layers if name not in terms]:
            raise ValueError(f"layers {', '.join(silent)} do not run when {type(model).__name__} does")
        return sum(terms.values()) / len(batches)

    for name in set(layers):
        twin.get_submodule(name).register_forward_hook(partial(hook, name))
    gradients = summed_gradients(twin, own, batches, objective)
    return {name: (gradient * own[name].detach()).abs() for name, gradient in gradients.items()}


def _matrix(name: str, output: Any, features: str) -> Tensor:
    """The features of a layer, a row for each sample."""
    if not isinstance(output, Tensor):
        raise ValueError(f"the output of layer {name!r} is {type(output).__name__}, not a tensor")
    try:
        matrix = FEATURES[features](output)
    except ValueError as error:
        raise ValueError(f"features {features!r} of layer {name!r}, of shape {tuple(output.shape)}: {error}") from None
    if not matrix.isfinite().all():
        raise ValueError(f"the output of layer {name!r} has NaN or infinite values")
    if len(matrix) < 2:
        raise ValueError(
            f"features {features!r} of layer {name!r} have one row, whose one singular value tells nothing of how"
            " images differ; each batch needs at least 2 images"
        )
    return matrix
