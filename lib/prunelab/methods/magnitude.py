"""One-shot magnitude pruning of convolutions, and the random networks that are compared with it.

Source: Han et al. 2015, arXiv:1506.02626; as in Liu et al. 2019, arXiv:1810.05270, Rethinking the Value of Network
Pruning, and its code for single weights.
"""

import math
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from prunelab.density import check_density
from prunelab.masks import empty_layers, largest, prunable_weights, random_mask
from prunelab.methods.lottery import prune_smallest
from prunelab.methods.static import Static

SCOPES = ("global", "layerwise")


def conv_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the prunable weights of a model's convolutions by layer name; linear layers stay dense.

    Raises:
        ValueError: The model has no such convolution.
    Source: Liu et al. 2019, the authors' code.
    Differs: Depthwise convolutions stay dense, see `masks.prunable_weights`; the authors' networks have none.
    """
    # (out, in, kh, kw), where a linear layer's are (out, in).
    weights = {name: weight for name, weight in prunable_weights(model).items() if weight.dim() == 4}
    if not weights:
        raise ValueError(f"{type(model).__name__} has no convolution that may be pruned")
    return weights


@torch.no_grad()
def magnitude_masks(weights: Mapping[str, Tensor], *, density: float, scope: str) -> dict[str, Tensor]:
    """Returns the masks of the weights of largest magnitude.

    Args:
        weights: Trained values by layer name, from `conv_weights`.
        density: Share that stays, in (0, 1]; ties are broken by position.
        scope: `global` ranks the weights of all layers at once, `layerwise` those of each layer by themselves.
    Returns:
        Bool masks on the weights' device. `round(density * n)` are active in total, or of each layer.
    Raises:
        ValueError: A density outside (0, 1], an unknown scope, or fewer weights left than there are layers.
    Source: Han et al. 2015; the global scope is that of Liu et al. 2019.
    Differs: Every layer keeps its largest weight, in the global scope at the cost of the smallest elsewhere and with a
        warning; the authors' networks may fall apart. Counts are exact; the authors prune one weight more.
    """
    check_density(density)
    if scope not in SCOPES:
        raise ValueError(f"unknown scope {scope!r}; there are {', '.join(SCOPES)}")
    if scope == "layerwise":
        return {
            name: largest(weight.abs(), max(1, round(density * weight.numel()))) for name, weight in weights.items()
        }
    n_active = round(density * sum(weight.numel() for weight in weights.values()))
    if n_active < len(weights):
        raise ValueError(
            f"density {density} leaves {n_active} weights for {len(weights)} layers; each needs at least one"
        )
    full = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    masks = prune_smallest(weights, full, density=density)
    if emptied := empty_layers(masks):
        # Level 3 is the caller of the wrapper that no_grad is.
        warnings.warn(f"density {density} would empty {', '.join(emptied)}; one weight stays in each", stacklevel=3)
        protected = {name: weight.masked_fill(largest(weight.abs(), 1), math.inf) for name, weight in weights.items()}
        masks = prune_smallest(protected, full, density=density)
    return masks


@torch.no_grad()
def rescaled_init_(model: nn.Module, masks: Mapping[str, Tensor], *, generator: torch.Generator) -> None:
    """Draws the masked layers of a model anew, in place, from a normal distribution scaled to what is left of them.

    The standard deviation is sqrt(2 / n), where n is the number of active weights for each input channel: kh * kw *
    out for a dense convolution.

    Args:
        model: Freshly built; layers without a mask keep their values.
        masks: Bool, by layer name; inactive weights become zero.
        generator: Source of randomness, on the CPU.
    Raises:
        ValueError: A layer without any active weight; else see `static.Static`.
    Source: Liu et al. 2019, the authors' code.
    """
    for name, weight in Static(model, masks).weights.items():
        n_active = int(masks[name].sum())
        if not n_active:
            raise ValueError(f"layer {name!r} has no active weight, so there is nothing to initialise")
        deviation = math.sqrt(2 * weight.shape[1] / n_active)
        weight.copy_(deviation * torch.randn(weight.shape, generator=generator)).mul_(masks[name].to(weight.device))


def stage_patterns(masks: Mapping[str, Tensor], *, stages: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
    """Tells how dense each position of the kernels is, averaged over the layers of a stage.

    Args:
        masks: Bool (out, in, kh, kw), by layer name.
        stages: Names of the layers of each stage, whose kernels are of one size.
    Returns:
        Share of active weights at each position, float64 (kh, kw), by stage.
    Raises:
        ValueError: A layer without a mask, or a stage whose kernels are not of one size.
    Source: Liu et al. 2019, Sec. 5.
    """
    patterns = {}
    for stage, names in stages.items():
        _kernel_size(stage, names, masks)
        patterns[stage] = torch.stack([masks[name].double().mean(dim=(0, 1)) for name in names]).mean(dim=0)
    return patterns


def pattern_masks(
    weights: Mapping[str, Tensor],
    patterns: Mapping[str, Tensor],
    *,
    stages: Mapping[str, Sequence[str]],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Draws masks whose density at each position of the kernels is that of a pattern: guided sparsification.

    A layer has `round(mean of its pattern * n)` active weights, at least one. Each position gets its share of them
    rounded down, and what is missing goes to the largest remainders; which kernels are active there is drawn at random.

    Args:
        weights: (out, in, kh, kw), by layer name; only their shapes count.
        patterns: Shares (kh, kw) in [0, 1] by stage, from `stage_patterns`, of this network or another one.
        stages: Names of the layers of each stage of this network.
        generator: Source of randomness, on the CPU.
    Returns:
        Bool masks of the layers of all stages, on the CPU.
    Raises:
        ValueError: A layer that is not there, or a stage without a pattern of its kernels' size.
    Source: Liu et al. 2019, Sec. 5.
    """
    masks = {}
    for stage, names in stages.items():
        size = _kernel_size(stage, names, weights)
        found = tuple(patterns[stage].shape) if stage in patterns else "absent"
        if found != size:
            raise ValueError(f"stage {stage!r} has kernels of size {size}, but its pattern is {found}")
        for name in names:
            shape = weights[name].shape
            wanted = math.prod(shape[:2]) * patterns[stage].flatten()
            counts = wanted.floor()
            n_missing = max(1, round(float(wanted.sum()))) - int(counts.sum())
            counts += largest(wanted - counts, n_missing)
            positions = [random_mask(shape[:2], int(n), generator=generator) for n in counts.tolist()]
            masks[name] = torch.stack(positions, dim=2).view(shape)
    return masks


def _kernel_size(stage: str, names: Sequence[str], layers: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Height and width that the kernels of a stage have in common."""
    for name in names:
        if name not in layers:
            raise ValueError(f"stage {stage!r} names {name!r}, but there are only {', '.join(layers)}")
    sizes = {tuple(layers[name].shape[2:]) for name in names}
    if len(sizes) != 1:
        raise ValueError(f"stage {stage!r} must have kernels of one size, got {sorted(sizes)}")
    return sizes.pop()
