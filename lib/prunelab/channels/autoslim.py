"""AutoSlim: a trained slimmable network is slimmed greedily, each time where it hurts least, until it costs its budget.

Source: Yu & Huang 2019, arXiv:1903.11728, Sec. 3.2.
Differs: The loss on held-out images decides, which is finer than their accuracy; every group of layers takes tenths of
    its channels as steps.
"""

from collections.abc import Callable

import torch

from prunelab.channels.costs import Cost
from prunelab.channels.groups import Grid, Widths


def greedy(grid: Grid, cost: Cost, *, budget: float, loss: Callable[[Widths], float]) -> dict[str, int]:
    """Returns the widths that are left when groups have lost step after step, each time the one whose loss is smallest.

    Args:
        grid: The widths that groups may have.
        cost: What a network costs.
        budget: At most what the returned one costs.
        loss: Of the network at given widths, on images that it was not trained on.
    Raises:
        ValueError: A budget below the smallest network.
    """
    choice = torch.full((len(grid.names),), grid.choices.shape[1] - 1)
    while cost.of(grid.at(choice)) > budget:
        narrower = [choice - step for step in torch.eye(len(choice), dtype=torch.int64) if (choice - step).min() >= 0]
        if not narrower:
            raise ValueError(f"a budget of {budget:,.4g} is below the smallest network's {cost.of(grid.at(0)):,.4g}")
        choice = min(narrower, key=lambda candidate: loss(grid.at(candidate)))
    return grid.at(choice)
