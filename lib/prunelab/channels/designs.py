"""Widths that need no search, as costly as a budget allows: the same share of all groups, random ones, slimming's."""

import statistics
import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from prunelab.channels.costs import N_DRAWS, Cost, check_range, first_near
from prunelab.channels.filters import keep_largest_globally
from prunelab.channels.groups import Grid, Widths
from prunelab.cost import nearest_step

_SHARE_STEPS = 256  # a share of channels is found to this fraction


def uniform(full: Widths, cost: Cost, *, budget: float) -> dict[str, int]:
    """Returns the same share of each group's channels, rounded, at least one: a width multiplier.

    Args:
        full: All channels of each group.
        cost: What a network costs.
        budget: To which the returned one's cost is nearest.
    Raises:
        ValueError: A budget below the smallest network of this kind, or above the full one.
    """
    return _nearest(lambda share: {name: max(1, round(share * n)) for name, n in full.items()}, full, cost, budget)


def slimmed(full: Widths, scores: Mapping[str, Tensor], cost: Cost, *, budget: float) -> dict[str, int]:
    """Returns how many channels are left of each group when those of smallest score, over all groups, are gone.

    Args:
        full: All channels of each group.
        scores: Of the channels of some groups, such as `slimming.gamma_scores`; the others stay whole.
        cost: What a network costs.
        budget: To which the returned one's cost is nearest.
    Raises:
        ValueError: A budget below the smallest network of this kind, or above the full one; or a score not finite.
    """
    if lost := [name for name, own in scores.items() if not own.isfinite().all()]:
        raise ValueError(f"scores must be finite, as those of {', '.join(lost)} are not; has the network diverged?")

    def left(share: float) -> dict[str, int]:
        return {name: len(kept) for name, kept in keep_largest_globally(scores, density=share).items()}

    with warnings.catch_warnings(action="ignore"):  # of shares that are tried, and leave a layer nothing
        return _nearest(left, full, cost, budget)


def _nearest(widths_at: Callable[[float], Widths], full: Widths, cost: Cost, budget: float) -> dict[str, int]:
    def at(step: int) -> dict[str, int]:
        return {**full, **widths_at(step / _SHARE_STEPS)}

    check_range(budget, cost.of(at(1)), cost.of(full))
    return at(nearest_step(budget, lambda step: cost.of(at(step)), most=_SHARE_STEPS))


def random(grid: Grid, cost: Cost, *, budget: float, generator: torch.Generator) -> dict[str, int]:
    """Draws each group's width by itself until the network costs its budget, to 1 %; errors as for `first_near`."""
    draws = grid.choices.T.gather(0, grid.spread(generator, N_DRAWS))
    return grid.widths(first_near(draws.float(), cost, budget))


def depth_tilt(widths: Widths, full: Widths) -> float:
    """Returns the mean share of channels that the last third of groups keeps, minus that of the first third."""
    shares = [widths[name] / n for name, n in full.items()]
    third = max(1, len(shares) // 3)
    return statistics.mean(shares[-third:]) - statistics.mean(shares[:third])
