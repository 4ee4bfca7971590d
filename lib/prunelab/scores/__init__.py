"""Scores by name, of how much each weight matters, larger = keep: `score("snip", model, weights, batches)`."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from prunelab.scores.afr import afr_scores
from prunelab.scores.gradients import Batches, Weights
from prunelab.scores.grasp import grasp_scores
from prunelab.scores.magnitude import magnitude_scores, random_scores
from prunelab.scores.refer import refer_scores
from prunelab.scores.snip import snip_scores
from prunelab.scores.synflow import synflow_scores

SCORES: dict[str, Callable[..., dict[str, Tensor]]] = {
    "magnitude": magnitude_scores,
    "random": random_scores,
    "snip": snip_scores,
    "grasp": grasp_scores,
    "synflow": synflow_scores,
    "refer": refer_scores,
    "afr": afr_scores,
}


def score(name: str, model: nn.Module, weights: Weights, batches: Batches, **options: Any) -> dict[str, Tensor]:
    """Scores each weight of a network by the name of the score; the network stays as it is.

    Args:
        name: A key of `SCORES`.
        model: Network that the weights are of.
        weights: By layer name; `masks.prunable_weights` has all but frozen ones, which are scored as others if named.
        batches: Images and labels, on the model's device, held in a sequence.
        options: Keywords of any of the scores, so that one call serves all; a score takes those that it has.
    Returns:
        Score of each weight, by layer name.
    Raises:
        ValueError: An unknown name, or an option that no score has; else see the score.
    """
    if name not in SCORES:
        raise ValueError(f"unknown score {name!r}; there are {', '.join(SCORES)}")
    takes = {own: list(inspect.signature(function).parameters)[3:] for own, function in SCORES.items()}
    known = list(dict.fromkeys(option for own in takes.values() for option in own))
    if unknown := [option for option in options if option not in known]:
        raise ValueError(f"no score has the option {', '.join(unknown)}; there are {', '.join(known)}")
    return SCORES[name](model, weights, batches, **{own: options[own] for own in takes[name] if own in options})
