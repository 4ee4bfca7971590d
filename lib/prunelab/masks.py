"""Masks: which weights of a model are active. Bool tensors, True = active, one a layer."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunelab.density import check_density


def layer_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the weights of a model's convolutions and linear layers by layer name, first layer first."""
    return {name: module.weight for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}


def distinct(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns weights that layers share once, under the name of the first of these layers."""
    first = {id(weight): name for name, weight in reversed(weights.items())}
    return {name: weight for name, weight in weights.items() if first[id(weight)] == name}


def prunable_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Returns those of `layer_weights` that may be pruned: all but depthwise convolutions, which are few, stay dense.

    A weight that layers share is one, with one mask, under the first layer's name. Biases, normalisation and frozen
    weights, those that require no gradient, are never pruned.

    Raises:
        ValueError: The model has no such layer.
    Source: Evci et al. 2020, arXiv:1911.11134; mobilenetv1_model in google-research/rigl.
    """
    weights = distinct(layer_weights(model))
    weights = {name: weight for name, weight in weights.items() if not _is_depthwise(model.get_submodule(name))}
    if not weights:
        raise ValueError(f"{type(model).__name__} has no convolution or linear layer, so nothing in it can be pruned")
    if learning := {name: weight for name, weight in weights.items() if weight.requires_grad}:
        return learning
    raise ValueError(f"all layers of {type(model).__name__} are frozen, so nothing in it can be pruned: let some learn")


def _is_depthwise(layer: nn.Module) -> bool:
    """Whether each filter sees a single one of several channels."""
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1


def random_mask(shape: torch.Size | tuple[int, ...], n_active: int, *, generator: torch.Generator) -> Tensor:
    """Draws a mask with exactly `n_active` active weights, every choice of them equally likely.

    Args:
        shape: Shape of the mask.
        n_active: How many weights are active.
        generator: Source of randomness, on the CPU.
    Raises:
        ValueError: More active weights than there are.
    """
    mask = torch.zeros(shape, dtype=torch.bool)
    if not 0 <= n_active <= mask.numel():
        raise ValueError(f"a layer of {mask.numel()} weights cannot have {n_active} active ones")
    mask.view(-1)[torch.randperm(mask.numel(), generator=generator)[:n_active]] = True
    return mask


def largest(score: Tensor, n_active: int) -> Tensor:
    """Returns the mask of the `n_active` largest scores; of equal ones, the first come first."""
    mask = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
    mask[score.flatten().argsort(descending=True, stable=True)[:n_active]] = True
    return mask.view_as(score)


@torch.no_grad()
def global_masks(
    scores: Mapping[str, Tensor], *, density: float, masks: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Returns the masks of the largest scores, ranked over all layers at once.

    A layer may lose all its weights: `empty_layers` tells which do.

    Args:
        scores: Of each weight by layer name, any shapes; larger ones stay.
        density: Share of all weights that stay, in (0, 1]; ties are broken by position.
        masks: Bool, those active so far; same names and shapes. None: all are.
    Returns:
        Bool masks on the scores' device, `round(density * n)` active in total, each of them active in `masks`.
    Raises:
        ValueError: A density outside (0, 1], above the share that is active now or too small for a single weight; no
            layer at all; a score that is NaN, -inf or without numbers; masks of other layers or shapes.
    """
    check_density(density)
    if not scores:
        raise ValueError("no scores, so there is nothing to prune")
    for name, score in scores.items():
        if score.is_meta:
            raise ValueError(f"layer {name!r} has scores on the meta device, without numbers to be ranked")
        if not (score > -torch.inf).all():
            raise ValueError(f"layer {name!r} has scores that cannot be ranked: NaN or -inf")
    if masks is None:
        masks = {name: torch.ones_like(score, dtype=torch.bool) for name, score in scores.items()}
    found, wanted = ({name: tuple(value.shape) for name, value in values.items()} for values in (masks, scores))
    if found != wanted:
        differing = sorted({name for name, _ in found.items() ^ wanted.items()})
        raise ValueError(f"masks must have the layers and shapes of the scores; they differ in {', '.join(differing)}")
    ranked = [score.masked_fill(~masks[name].to(score.device), -torch.inf).flatten() for name, score in scores.items()]
    sizes = [len(score) for score in ranked]
    n_active, n_left = int(sum(mask.sum() for mask in masks.values())), round(density * sum(sizes))
    if n_left < 1:
        raise ValueError(f"density {density} leaves none of {sum(sizes)} weights")
    if n_left > n_active:
        raise ValueError(f"density {density} asks for {n_left} weights, but only {n_active} of {sum(sizes)} are left")
    parts = largest(torch.cat(ranked), n_left).split(sizes)
    return {name: part.view_as(scores[name]) for name, part in zip(scores, parts, strict=True)}


def empty_layers(masks: Mapping[str, Tensor]) -> list[str]:
    """Lists the layers in which no weight is active."""
    return [name for name, mask in masks.items() if not mask.any()]


@torch.no_grad()
def drop_and_grow(weight: Tensor, grow_score: Tensor, mask: Tensor, *, drop_fraction: float) -> tuple[Tensor, Tensor]:
    """Updates the mask of one layer; the number of active weights is unchanged.

    Drops the active weights of smallest magnitude, then activates as many weights of largest score. A dropped weight
    may win its place back: only the kept ones are excluded.

    Args:
        weight: Parameters, any shape.
        grow_score: Score of every weight, pruned ones included, at least 0; same shape. The magnitude of the dense
            gradient in RigL, random numbers in SET.
        mask: Bool, same shape; True marks an active weight.
        drop_fraction: Share of active weights to move, in [0, 1].
    Returns:
        new_mask: Bool, as many True as `mask`.
        newborn: Active now but not before; the caller zeroes these weights and their momentum.
    Raises:
        ValueError: `drop_fraction` is outside [0, 1].
    Source: Evci et al. 2020, arXiv:1911.11134, Algorithm 1; Mocanu et al. 2018, arXiv:1707.04780.
    Differs: Ties among equal magnitudes are broken by position, where the authors add noise of 1e-5.
    """
    if not 0.0 <= drop_fraction <= 1.0:
        raise ValueError(f"drop_fraction must lie in [0, 1], got {drop_fraction}")
    n_active = int(mask.sum())
    n_moved = int(drop_fraction * n_active)  # rounded down, as the authors' code does

    # Scores are at least 0, so -1 ranks below every candidate.
    drop_score = weight.abs().masked_fill(~mask, -1.0).flatten()
    kept = torch.zeros_like(drop_score, dtype=torch.bool)
    kept[drop_score.topk(n_active - n_moved).indices] = True

    candidates = grow_score.flatten().masked_fill(kept, -1.0)
    new_mask = kept.clone()
    new_mask[candidates.topk(n_moved).indices] = True
    new_mask = new_mask.view_as(mask)
    return new_mask, new_mask & ~mask
