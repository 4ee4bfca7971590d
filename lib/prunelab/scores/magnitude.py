"""Scores that look at no image: the magnitude of a weight, and chance, the control of every other score."""

import torch
from torch import Tensor, nn

from prunelab.scores.gradients import Batches, Weights, check_weights


def magnitude_scores(model: nn.Module, weights: Weights, batches: Batches = ()) -> dict[str, Tensor]:
    """Returns |w| of each weight.

    Args:
        model: Network that the weights are of.
        weights: By layer name.
        batches: Not looked at.
    Returns:
        Score of each weight, by layer name.
    Raises:
        ValueError: See `gradients.check_weights`.
    Source: Han et al. 2015, arXiv:1506.02626.
    """
    check_weights(model, weights)
    return {name: weight.detach().abs() for name, weight in weights.items()}


def random_scores(
    model: nn.Module, weights: Weights, batches: Batches = (), *, generator: torch.Generator
) -> dict[str, Tensor]:
    """Draws a score in [0, 1) for each weight; as for `magnitude_scores`, `generator` on the CPU."""
    check_weights(model, weights)
    return {name: torch.rand(weight.shape, generator=generator).to(weight.device) for name, weight in weights.items()}
