"""One-shot pruning in rounds: prune a little, score what is left anew, and again.

Source: Tanaka et al. 2020, arXiv:2006.05467, Algorithm 1; de Jorge et al. 2021, arXiv:2006.09081.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from prunelab.density import check_density
from prunelab.masks import global_masks
from prunelab.scores.gradients import Batches, Weights, copied

Score = Callable[[nn.Module, Weights, Batches], dict[str, Tensor]]


def prune_in_rounds(
    score: Score, model: nn.Module, weights: Weights, batches: Batches, *, density: float, n_rounds: int = 1
) -> dict[str, Tensor]:
    """Returns the masks left after rounds of scoring, each on the network that the round before has left.

    After round k a share of density ** (k / n_rounds) is left, by one threshold over all layers: each round prunes the
    same share of what there is. Pruned weights are zero in the rounds to come, and do not return.

    Args:
        score: Any of `SCORES`, with its options bound by `functools.partial`, or a function of one's own.
        model: Stays as it is.
        weights: By layer name.
        batches: Images and labels, on the model's device.
        density: Share of the weights that stay, in (0, 1].
        n_rounds: 1 prunes in one shot; SynFlow's authors take 100.
    Returns:
        Bool masks by layer name, `round(density * n)` active in total; a layer may be empty, see `masks.empty_layers`.
    Raises:
        ValueError: A number of rounds below 1; else see `masks.global_masks` and `score`.
    """
    check_density(density)
    if n_rounds < 1:
        raise ValueError(f"n_rounds must be at least 1, got {n_rounds}")
    pruned, own = copied(model, weights)
    masks: dict[str, Tensor] | None = None
    for k in range(1, n_rounds + 1):
        masks = global_masks(score(pruned, own, batches), density=density ** (k / n_rounds), masks=masks)
        with torch.no_grad():
            for name, weight in own.items():
                weight.mul_(masks[name])
    return masks
