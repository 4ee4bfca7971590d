"""What a network costs as a function of the widths of its groups, differentiable: MACs, exactly; and budgets."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from prunelab import cost
from prunelab.channels.groups import Grid, Group, Widths
from prunelab.masks import layer_weights

TOLERANCE = 0.01  # distance from its budget, as a share of it, at which a network is as costly
N_DRAWS = 10_000  # among which one within the tolerance is looked for


class Cost(Protocol):
    """A cost to keep to. Widths are float (..., groups), in the order of the groups; costs are (...), in one unit."""

    def __call__(self, widths: Tensor, variances: Tensor | None = None) -> Tensor: ...

    def of(self, widths: Widths) -> float: ...


class Macs:
    """MACs of one image: over all layers, the sum of a coefficient times the width read times the width written.

    The images and the outputs have fixed widths, which are in the coefficients; a depthwise layer has one width.
    """

    def __init__(self, model: nn.Module, groups: Mapping[str, Group], *, in_channels: int, image_size: int) -> None:
        """Args:
            model: At full width; left as it is.
            groups: Its groups.
            in_channels: Channels of the images.
            image_size: Their height and width in pixels.
        Raises:
            ValueError: Layers share a weight, which has the widths of one place in the network only.
        """
        self._names = list(groups)
        widths = [group.n_channels for group in groups.values()]
        reads = {layer: i for i, group in enumerate(groups.values()) for layer in (*group.readers, *group.depthwise)}
        writes = {layer: i for i, group in enumerate(groups.values()) for layer in group.writers}
        table = cost.layer_table(model, in_channels=in_channels, image_size=image_size)
        if sharing := layer_weights(model).keys() - {row["name"] for row in table}:
            raise ValueError(
                f"layers {', '.join(sorted(sharing))} share the weights of others, whose widths cannot be chosen by"
                " themselves; give them weights of their own"
            )
        # A width that is fixed, or that a depthwise layer has not, is the 1 at the end.
        self._reads, self._writes = (
            torch.tensor([side.get(row["name"], len(groups)) for row in table]) for side in (reads, writes)
        )
        full = torch.tensor([*widths, 1], dtype=torch.float64)
        macs = torch.tensor([row["macs"] for row in table], dtype=torch.float64)
        self._coefficients = macs / (full[self._reads] * full[self._writes])

    def __call__(self, widths: Tensor, variances: Tensor | None = None) -> Tensor:
        """Returns the MACs at given widths; or the expected ones, where groups are random and independent.

        The expected product of two groups' widths is that of their means; where a layer reads the group that it writes,
        the variance adds to it.

        Args:
            widths: Float (..., groups); or their means.
            variances: Of the widths, in the same shape; None where they are given.
        """
        one = widths.new_ones(*widths.shape[:-1], 1)
        means = torch.cat([widths, one], dim=-1).double()  # exact up to 2^53
        products = means[..., self._reads] * means[..., self._writes]
        if variances is not None:
            own = torch.cat([variances, 0 * one], dim=-1).double()
            products = products + own[..., self._reads] * (self._reads == self._writes)
        return products @ self._coefficients

    def of(self, widths: Widths) -> float:
        """Returns the MACs of a network whose groups have these widths."""
        return float(self(torch.tensor([float(widths[name]) for name in self._names])))


def first_near(draws: Tensor, cost: Cost, budget: float) -> Tensor:
    """Returns the first of some random widths, float (n, groups), whose cost is within 1 % of the budget.

    Raises:
        ValueError: There is none.
    """
    costs = cost(draws)
    near = ((costs / budget - 1).abs() <= TOLERANCE).nonzero().flatten()
    if not len(near):
        raise ValueError(
            f"none of {len(draws):,} draws costs the budget of {budget:,.4g} to {TOLERANCE:.0%}; they cost"
            f" {float(costs.min()):,.4g} to {float(costs.max()):,.4g}"
        )
    return draws[near[0]]


def check_budget(budget: float, cost: Cost, grid: Grid) -> None:
    """Raises ValueError unless the smallest network of a grid costs the budget or less, and the full one no less."""
    check_range(budget, *(cost.of(grid.at(index)) for index in (0, -1)))


def check_range(budget: float, least: float, most: float) -> None:
    """Raises ValueError unless a budget lies between what the smallest network costs and what the full one does."""
    if not least <= budget <= most:
        raise ValueError(
            f"a budget of {budget:,.4g} cannot be kept: the smallest network costs {least:,.4g}, the full one"
            f" {most:,.4g}"
        )
