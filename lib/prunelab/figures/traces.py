"""What was measured point by point: a metric over training, the loss on a path between two networks, speed."""

from collections.abc import Iterable, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from prunelab.figures.axes import draw_diverged, finish, log_steps, ticks
from prunelab.figures.means import check_one_run_a_seed
from prunelab.figures.style import styles


def curves(records: Iterable[dict], metric: str = "test_accuracy", *, ax: Axes, by: str = "method") -> pd.DataFrame:
    """Draws a metric over training: a thin line for each run, a thick one for the mean where all runs have a value.

    Args:
        records: With one run a seed for each value of `by`.
        metric: A key of their `curves`.
        by: The option that tells the lines apart.
    Returns:
        One row a point: `by`, `seed`, `status`, `epoch`, the metric.
    Raises:
        ValueError: Several runs of one seed in a line, or a value of `by` without a style.
    """
    data = _draw_runs_and_means(records, "epoch", metric, ax=ax, by=by)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    finish(ax, x="epoch", y=metric, runs=data, by=by)
    return data


def loss_paths(records: Iterable[dict], *, ax: Axes) -> pd.DataFrame:
    """Draws the training loss on paths between two networks: a thin line for each seed, a thick one for their mean.

    The axis is logarithmic where the largest loss is more than ten times the smallest.

    Args:
        records: With one run a seed for each option `path`, and `curves` of `position` and `train_loss`.
    Returns:
        One row a point: `path`, `seed`, `status`, `position`, `train_loss`.
    Raises:
        ValueError: Several runs of one seed on a path, or a path without a style.
    """
    data = _draw_runs_and_means(records, "position", "train_loss", ax=ax, by="path")
    low, high = data["train_loss"].min(), data["train_loss"].max()
    if high > 10 * low > 0:
        ax.set_yscale("log")
        losses = log_steps(low, high)
        ticks(ax.yaxis, losses, [f"{loss:g}" for loss in losses])
    finish(ax, x="position", y="train_loss", runs=data, by="path")
    return data


def speed_curves(curves: Iterable[dict], *, axes: Sequence[Axes]) -> pd.DataFrame:
    """Draws a panel for each curve, a marker for each measured point.

    Args:
        curves: As `bench.curves` gives them: `name`, `x`, `y`, `points`.
        axes: One for each curve.
    Returns:
        One row a point: `curve`, `x`, `y`.
    """
    data = []
    for curve, ax in zip(curves, axes, strict=True):
        x, y = zip(*curve["points"], strict=True)
        ax.plot(x, y, marker="o", color="#333333")
        ticks(ax.xaxis, x, map(str, x))
        ax.set_ylim(bottom=0)
        finish(ax, x=curve["x"], y=curve["y"])
        data.append(pd.DataFrame({"curve": curve["name"], "x": x, "y": y}))
    return pd.concat(data)


def _draw_runs_and_means(records: Iterable[dict], x: str, metric: str, *, ax: Axes, by: str) -> pd.DataFrame:
    points = [
        pd.DataFrame({x: record["curves"][x], metric: record["curves"][metric]}).assign(
            **{by: record["options"][by], "seed": record["seed"], "status": record["status"]}
        )
        for record in records
    ]
    data = pd.concat(points, ignore_index=True)
    data[metric] = pd.to_numeric(data[metric])
    check_one_run_a_seed(data, [by, x])
    for value, style in styles(by, data[by]).items():
        group = data[data[by] == value]
        for _, run in group.groupby("seed"):
            ax.plot(run[x], run[metric], color=style["color"], linewidth=0.8, alpha=0.4)
            draw_diverged(run.tail(1), x, metric, ax=ax, style=style)
        mean = group.pivot(index=x, columns="seed", values=metric).mean(axis=1, skipna=False)
        n = group["seed"].nunique()
        ax.plot(mean.index, mean, color=style["color"], linewidth=2, label=f"{style['label']} (n={n})")
    return data[[by, "seed", "status", x, metric]]
