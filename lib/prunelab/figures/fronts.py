"""Fronts: what networks reach, against what they cost."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from prunelab import frontier
from prunelab.figures.axes import finish, log_steps, ticks
from prunelab.figures.style import percent, styles

_LABELS = {
    "weights": "stored weights",
    "macs": "MACs",
    "bytes": "bytes of the file",
    "time": "measured time",
    "training": "training MACs, in trainings of the dense network",
}


def fronts(found: pd.DataFrame, costs: Sequence[str], *, axes: Sequence[Axes]) -> pd.DataFrame:
    """Draws the networks of each way against each cost, and the front as a staircase.

    A marker is the mean over seeds, its bar the 95 % interval; it is full where the network is on the front in more
    than half of `frontier.share_on_front`'s draws, else hollow.

    Args:
        found: `frontier.networks`.
        costs: Of `frontier.COSTS`, or "training".
        axes: One for each cost.
    Returns:
        One row a marker: `cost`, `network`, `way`, the cost as `at`, `accuracy`, `low`, `high`, `on_front`, a share.
    """
    data = []
    for cost, ax in zip(costs, axes, strict=True):
        own = found.assign(at=found[cost], on_front=frontier.share_on_front(found, cost)).dropna(subset=["at"])
        for way, style in styles("way", own["way"]).items():
            for is_full in (True, False):
                few = own[(own["way"] == way) & ((own["on_front"] > 0.5) == is_full)]
                error = np.nan_to_num([few["accuracy"] - few["low"], few["high"] - few["accuracy"]])
                look = {"fmt": style["marker"], "color": style["color"], "markersize": 6, "linewidth": 0.7}
                ax.errorbar(few["at"], few["accuracy"], error, mfc=style["color"] if is_full else "white", **look)
            ax.plot([], [], style["marker"], color=style["color"], label=style["label"])
        front = own[frontier.pareto(own["at"], own["accuracy"])].sort_values("at")
        ax.step(front["at"], front["accuracy"], where="post", color="#000000", linewidth=0.8, zorder=0)
        ax.set_xscale("log")
        steps = log_steps(own["at"].min(), own["at"].max())
        ticks(ax.xaxis, steps, map("{:g}×".format, steps) if cost == "training" else map(percent, steps))
        finish(ax, y="test_accuracy")
        ax.set_xlabel(_LABELS[cost] + (", of the dense network" if cost in frontier.COSTS else ""))
        ax.get_legend().remove()
        columns = ["network", "way", "at", "accuracy", "low", "high", "on_front"]
        data.append(own.reset_index()[columns].assign(cost=cost))
    return pd.concat(data, ignore_index=True)


def kinds(found: pd.DataFrame, costs: Sequence[str], *, axes: Sequence[Axes]) -> pd.DataFrame:
    """Draws what the most accurate network of each kind reaches within a budget, as staircases over the budget.

    Args:
        found: `frontier.networks`; those that have fewer seeds than others are left out.
        costs: Of `frontier.COSTS`.
        axes: One for each cost.
    Returns:
        One row a step: `cost`, `kind`, `within`, `accuracy`, `network`.
    """
    data = []
    for cost, ax in zip(costs, axes, strict=True):
        own = found[found["n"] == found["n"].max()].dropna(subset=[cost])
        for kind, style in styles("kind", own["kind"]).items():
            few = own[own["kind"] == kind]
            few = few[frontier.pareto(few[cost], few["accuracy"])].sort_values(cost)
            ends = [*few[cost], max(1.0, few[cost].max())], [*few["accuracy"], few["accuracy"].max()]
            ax.step(*ends, where="post", color=style["color"], linewidth=1.8, label=style["label"])
            ax.plot(few[cost], few["accuracy"], style["marker"], color=style["color"], markersize=4)
            step = few.rename(columns={cost: "within"}).reset_index()[["kind", "within", "accuracy", "network"]]
            data.append(step.assign(cost=cost))
        ax.set_xscale("log")
        steps = log_steps(own[cost].min(), 1.0)
        ticks(ax.xaxis, steps, map(percent, steps))
        finish(ax, y="test_accuracy")
        ax.get_legend().remove()
        ax.set_xlabel(f"at most so many {_LABELS[cost]}" if cost != "time" else "at most so much measured time")
    return pd.concat(data, ignore_index=True)
