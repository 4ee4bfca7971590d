"""AutoSlim: a trained slimmable network is slimmed greedily, each time where it hurts least, until it costs its budget.

Source: Yu & Huang 2019, arXiv:1903.11728, Sec. 3.2.
Differs: The loss on held-out images decides, which is finer than their accuracy; every group of layers takes tenths of
    its channels as steps.
"""

import math
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

from prunelab.channels.costs import Cost, check_budget
from prunelab.channels.groups import Grid, Widths

T = TypeVar("T")


def greedy(grid: Grid, cost: Cost, *, budget: float, loss: Callable[[Widths], float]) -> dict[str, int]:
    """Returns the widths that are left when groups have lost step after step, each time the one whose loss is smallest.

    Args:
        grid: The widths that groups may have.
        cost: What a network costs.
        budget: At most what the returned one costs, but no more than the full one does.
        loss: Of the network at given widths, on images that it was not trained on.
    Raises:
        ValueError: A budget below the smallest network or above the full one, or no loss is finite.
    """
    check_budget(budget, cost, grid)
    choice = torch.full((len(grid.names),), grid.choices.shape[1] - 1)
    while cost.of(grid.at(choice)) > budget:
        narrower = [choice - step for step in torch.eye(len(choice), dtype=torch.int64) if (choice - step).min() >= 0]
        losses = {i: loss(grid.at(candidate)) for i, candidate in enumerate(narrower)}
        choice = narrower[by_loss(losses)[0]]
    return grid.at(choice)


def by_loss(losses: Mapping[T, float]) -> list[T]:
    """Lists candidates from the smallest loss on, without those whose loss is not finite.

    Raises:
        ValueError: None is.
    """
    finite = {candidate: loss for candidate, loss in losses.items() if math.isfinite(loss)}
    if not finite:
        raise ValueError(f"none of {len(losses)} candidates has a finite loss; the trained network has diverged")
    return sorted(finite, key=finite.__getitem__)
