"""How many weights each layer keeps: uniform, Erdős–Rényi and Erdős–Rényi-Kernel.

`density` is the share of weights that stay, in (0, 1]; sparsity is 1 - density.

Source: Mocanu et al. 2018, arXiv:1707.04780 (Erdős–Rényi); Evci et al. 2020, arXiv:1911.11134, Sec. 3 (1) and App. K.
"""

import math
from collections.abc import Callable, Mapping

Shape = tuple[int, ...]


# Raw score of a layer by the shape of its weights, (out, in) or (out, in, kh, kw).
DISTRIBUTIONS: dict[str, Callable[[Shape], float]] = {
    "uniform": lambda shape: 1.0,
    "erdos_renyi": lambda shape: sum(shape[:2]) / math.prod(shape[:2]),  # the kernel size plays no part
    "erk": lambda shape: sum(shape) / math.prod(shape),
}


def check_density(density: float) -> None:
    """Raises ValueError unless `density` is a share in (0, 1]."""
    if not 0.0 < density <= 1.0:
        raise ValueError(
            f"density must lie in (0, 1], the share of weights kept; got {density} (90 % sparsity is density 0.1)"
        )


def layer_densities(shapes: Mapping[str, Shape], density: float, *, distribution: str) -> dict[str, float]:
    """Returns the density of each layer such that the network as a whole has `density`.

    A layer's density is proportional to its raw score, 1 for uniform and a falling function of its size for
    Erdős–Rényi and ERK. Where that would exceed 1 the layer becomes dense and the factor is solved again over the
    others, until none exceeds 1: the exact solution of sum(n * min(1, factor * score)) = density * sum(n).

    Args:
        shapes: Weight shape of each layer that is to be sparse, (out, in) or (out, in, kh, kw).
        density: Share of all these weights that stay, in (0, 1].
        distribution: A key of `DISTRIBUTIONS`.
    Returns:
        Density of each layer, in (0, 1].
    Raises:
        ValueError: `density` outside (0, 1], an unknown distribution, or no layer at all.
    Source: Evci et al. 2020, App. K.
    """
    check_density(density)
    if distribution not in DISTRIBUTIONS:
        raise ValueError(f"unknown distribution {distribution!r}; there are {', '.join(DISTRIBUTIONS)}")
    if not shapes:
        raise ValueError("no layer to make sparse: the model has no convolution or linear weights to prune")

    scores = {name: DISTRIBUTIONS[distribution](shape) for name, shape in shapes.items()}
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    budget = density * sum(sizes.values())
    dense: set[str] = set()
    while True:
        rest = [name for name in shapes if name not in dense]
        if not rest:
            return dict.fromkeys(shapes, 1.0)
        factor = (budget - sum(sizes[name] for name in dense)) / sum(sizes[name] * scores[name] for name in rest)
        saturated = {name for name in rest if factor * scores[name] > 1.0}
        if not saturated:
            return {name: 1.0 if name in dense else factor * scores[name] for name in shapes}
        dense |= saturated


def allocate(shapes: Mapping[str, Shape], density: float, *, distribution: str) -> dict[str, int]:
    """Returns the number of active weights of each layer; their sum is the request rounded to a whole weight.

    Each layer gets its share rounded down, at least one; what is missing goes to the layers with the largest
    remainders.

    Args: as for `layer_densities`.
    Returns:
        Active weights of each layer, between 1 and its size.
    Raises:
        ValueError: as for `layer_densities`, or fewer weights requested than there are layers.
    Differs: The authors round each layer by itself (zeros are floor(sparsity * n)), so that their totals drift by up
        to one weight a layer.
    """
    densities = layer_densities(shapes, density, distribution=distribution)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    n_total = round(density * sum(sizes.values()))
    if n_total < len(shapes):
        raise ValueError(
            f"density {density} leaves {n_total} weights for {len(shapes)} layers; each needs at least one"
        )

    wanted = {name: densities[name] * sizes[name] for name in shapes}
    n_active = {name: max(1, min(sizes[name], math.floor(wanted[name]))) for name in shapes}
    # Positive while weights are missing, negative where the minimum of one a layer took too many.
    missing = n_total - sum(n_active.values())
    change = 1 if missing > 0 else -1
    by_remainder = sorted(shapes, key=lambda name: change * (n_active[name] - wanted[name]))
    while missing:
        for name in by_remainder:
            if missing and 1 <= n_active[name] + change <= sizes[name]:
                n_active[name] += change
                missing -= change
    return n_active
