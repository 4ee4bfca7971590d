"""What is looked at in a pretrained network before it is trained on: its matrices, its features, its scores."""

import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunelab.masks import empty_layers, global_masks, prunable_weights
from prunelab.scores.gradients import copied
from prunelab.scores.refer import block_names

N_QUANTILES = 101  # of a score's logarithm
_PARTS = {"attn.qkv": ("q", "k", "v"), "attn.proj": ("proj",), "mlp.fc1": ("fc1",), "mlp.fc2": ("fc2",)}


def block_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the weights of the linear layers inside of the blocks, by layer name: those that are pruned.

    Raises:
        ValueError: There are none.
    """
    weights = {name: weight for name, weight in prunable_weights(model).items() if name.startswith("blocks.")}
    if not weights:
        raise ValueError(f"{type(model).__name__} has no linear layers inside of blocks")
    return weights


def fit_head(model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], *, n_steps: int = 50) -> None:
    """Fits the head to the features of some images, by L-BFGS, everything else as it is."""
    model.eval()
    with torch.no_grad():
        features = torch.cat([model.features(images) for images, _ in batches]).float()
    labels = torch.cat([labels for _, labels in batches])
    optimizer = torch.optim.LBFGS(model.head.parameters(), max_iter=n_steps, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        penalty = 1e-4 * model.head.weight.square().sum()
        value = F.cross_entropy(model.head(features), labels) + penalty
        value.backward()
        return value

    optimizer.step(loss)
    model.zero_grad()


def matrices(masks: Mapping[str, Tensor]) -> list[dict]:
    """Counts the weights of each block's matrices: those of queries, keys and values apart.

    Returns:
        One dict a matrix: `block`, `matrix`, `n_weights`, `n_active`.
    """
    rows = []
    for name, mask in masks.items():
        _, block, kind = name.split(".", 2)
        for matrix, part in zip(_PARTS[kind], mask.chunk(len(_PARTS[kind])), strict=True):
            row = {"block": int(block), "matrix": matrix, "n_weights": part.numel(), "n_active": int(part.sum())}
            rows.append(row)
    return rows


def look_at(
    model: nn.Module,
    weights: Mapping[str, nn.Parameter],
    batches: Sequence[tuple[Tensor, Tensor]],
    ways: Mapping[str, Callable[..., dict[str, Tensor]]],
    *,
    density: float,
) -> dict:
    """Scores a network in every way, prunes a copy of it by each, and trains nothing.

    Args:
        model: Pretrained.
        weights: That are scored.
        batches: Images and labels.
        ways: Scores by name.
        density: Share of the weights that stay.
    Returns:
        `looks`: of each way, and of the whole network under the name "", the singular values of its blocks' features;
        of each way also `matrices`, `emptied`, `log_quantiles` of its scores' magnitudes, and the share of the
        weights it keeps that each other way keeps, `agree`; and the record's `metrics` and `seconds`.
    """
    started = time.monotonic()
    scores = {name: score(model, weights, batches) for name, score in ways.items()}
    masks = {name: global_masks(found, density=density) for name, found in scores.items()}
    kept = {name: torch.cat([mask.flatten() for mask in own.values()]) for name, own in masks.items()}
    n_kept = int(next(iter(kept.values())).sum())
    looks = [{"score": "", "singular_values": _singular_values(model, weights, batches, None)}]
    for name, own in masks.items():
        found = torch.cat([value.flatten() for value in scores[name].values()]).abs().double()
        looks.append(
            {
                "score": name,
                "singular_values": _singular_values(model, weights, batches, own),
                "matrices": matrices(own),
                "emptied": empty_layers(own),
                "agree": {other: int((kept[name] & kept[other]).sum()) / n_kept for other in kept},
                "log_quantiles": _log_quantiles(found),
            }
        )
    return {"looks": looks, "metrics": {}, "curves": {}, "seconds": time.monotonic() - started}


def _log_quantiles(values: Tensor) -> list[float]:
    """Evenly spaced quantiles of the decimal logarithms of values that are not zero, three digits each."""
    logarithms = values[values > 0].log10()
    at = torch.linspace(0, 1, N_QUANTILES, dtype=values.dtype, device=values.device)
    index = (at * (len(logarithms) - 1)).round().long()
    return [round(value, 3) for value in logarithms.sort().values[index].tolist()]


@torch.no_grad()
def _singular_values(
    model: nn.Module,
    weights: Mapping[str, nn.Parameter],
    batches: Sequence[tuple[Tensor, Tensor]],
    masks: Mapping[str, Tensor] | None,
) -> dict[str, list[float]]:
    """Singular values of the class tokens behind each block, over all images, of the network or what masks leave."""
    twin, own = copied(model, weights)
    for name, mask in (masks or {}).items():
        own[name].mul_(mask)
    tokens: dict[str, list[Tensor]] = {name: [] for name in block_names(twin)}
    for name, found in tokens.items():
        twin.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, found=found: found.append(output[:, 0].double())
        )
    twin.eval()
    for images, _ in batches:
        twin(images)
    return {
        name: [float(f"{value:.4g}") for value in torch.linalg.svdvals(torch.cat(found)).tolist()]
        for name, found in tokens.items()
    }
