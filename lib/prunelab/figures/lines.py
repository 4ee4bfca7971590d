"""Lines: a metric against sparsity, a cost or another column, over training, and on a path between two networks."""

from collections.abc import Iterable, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from prunelab.figures.axes import (
    add_to_legend,
    check_one_run_a_seed,
    draw_diverged,
    draw_runs,
    finish,
    log_steps,
    n_seeds,
    sparsity_axis,
    ticks,
    with_means,
)
from prunelab.figures.style import STYLES, percent, styles, written


def metric_vs_sparsity(
    frame: pd.DataFrame,
    metric: str = "test_accuracy",
    *,
    ax: Axes,
    by: str = "method",
    reference: str | None = None,
) -> pd.DataFrame:
    """Draws a metric against sparsity, spaced so that each halving of the density is a step of the same width.

    Args:
        frame: `records.frame`, with one run a seed for each value of `by` and density.
        metric: Its column.
        by: The column that tells the lines apart.
        reference: A method, upstream where lines are told apart by that, drawn as a level: its mean, and the range of
            its seeds.
    Returns:
        One row a marker: `kind` (run or reference), `by`, `density`, `seed`, `status`, the metric, `mean`.
    Raises:
        ValueError: Several runs of one seed at a point, or a value of `by` without a style.
    """
    data = _draw_lines_and_level(frame, "density", metric, ax=ax, by=by, reference=reference)
    sparsity_axis(ax, data.loc[data["kind"] == "run", "density"])
    finish(ax, x="sparsity", y=metric, runs=data, by=by, legend_at="lower left")
    return data


def metric_vs(
    frame: pd.DataFrame,
    x: str,
    metric: str = "test_accuracy",
    *,
    ax: Axes,
    by: str = "method",
    reference: str | None = None,
) -> pd.DataFrame:
    """Draws a metric against a numeric column of few values, each with a tick; the axis is logarithmic above zero.

    Args:
        frame: `records.frame`, with one run a seed for each value of `by` and `x`.
        x: Such as `train_multiplier`.
        metric: The column drawn against it.
        by: The column that tells the lines apart.
        reference: A method drawn as a level: its mean, and the range of its seeds.
    Returns:
        One row a marker: `kind` (run or reference), `by`, `x`, `seed`, `status`, the metric, `mean`.
    Raises:
        ValueError: See `metric_vs_sparsity`; also a run without a value of `x`.
    """
    data = _draw_lines_and_level(frame, x, metric, ax=ax, by=by, reference=reference)
    marked = sorted(data.loc[data["kind"] == "run", x].unique())
    if marked[0] > 0:
        ax.set_xscale("log")
    ticks(ax.xaxis, marked, [written(x, value) for value in marked])
    finish(ax, x=x, y=metric, runs=data, by=by)
    return data


def metric_vs_cost(
    frame: pd.DataFrame,
    x: str = "training_macs_ratio",
    metric: str = "test_accuracy",
    *,
    ax: Axes,
    by: str = "method",
) -> pd.DataFrame:
    """Draws a metric against what it cost, on a logarithmic axis; lines join the densities of one method.

    Args:
        frame: `records.frame`, with one run a seed for each value of `by` and density.
        x: A column of costs relative to dense.
        metric: The column drawn against it.
        by: The column that tells the lines apart.
    Returns:
        One row a marker: `by`, `density`, `seed`, `status`, the cost and the metric, `mean`.
    Raises:
        ValueError: See `metric_vs_sparsity`.
    """
    runs = _draw_lines(frame, x, metric, ax=ax, by=by, point="density")
    ax.set_xscale("log")
    low, high = runs[x].min(), runs[x].max()
    costs = log_steps(low, high) if high > 3 * low else MaxNLocator(5).tick_values(low, high)
    ticks(ax.xaxis, costs, [percent(cost) for cost in costs])
    finish(ax, x=x, y=metric, runs=runs, by=by)
    return runs[[by, "density", "seed", "status", x, metric, "mean"]].reset_index(drop=True)


def published(points: pd.DataFrame, *, ax: Axes, by: str = "method", reference: str | None = None) -> pd.DataFrame:
    """Draws a paper's accuracies against sparsity, one line a method, with its standard deviations as bars.

    Args:
        points: `papers.paper_points`, one row for each method and density.
        by: What the paper's methods are to us, a key of `STYLES`; others are left out.
        reference: A method drawn as a level.
    Returns:
        The points that were drawn.
    Raises:
        ValueError: Two values for one point, or a method without a style.
    """
    drawn = points[points["method"].isin(STYLES[by])]
    if drawn.duplicated(["method", "density"]).any():
        raise ValueError("several published values for one method and density; choose by source and length of training")
    for method, style in styles(by, drawn["method"]).items():
        own = drawn[drawn["method"] == method].sort_values("density")
        if method == reference:
            ax.axhline(
                own["accuracy"].item(), color=style["color"], linestyle="--", linewidth=1.5, label=style["label"]
            )
        else:
            ax.errorbar(own["density"], own["accuracy"], own["std"], capsize=2, markersize=5, linewidth=1.8, **style)
    sparsity_axis(ax, drawn.loc[drawn["method"] != reference, "density"])
    finish(ax, x="sparsity", y="test_accuracy", legend_at="lower left")
    return drawn


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


def _draw_lines_and_level(
    frame: pd.DataFrame, x: str, metric: str, *, ax: Axes, by: str, reference: str | None
) -> pd.DataFrame:
    column = "upstream" if by == "upstream" else "method"
    is_level = frame[column] == reference
    data = _draw_lines(frame[~is_level], x, metric, ax=ax, by=by, point=x).assign(kind="run")
    if is_level.any():
        data = pd.concat([data, _draw_level(frame[is_level], column, metric, ax=ax).assign(kind="reference")])
    return data[["kind", by, x, "seed", "status", metric, "mean"]].reset_index(drop=True)


def _draw_lines(frame: pd.DataFrame, x: str, metric: str, *, ax: Axes, by: str, point: str) -> pd.DataFrame:
    """Draws the runs, and for each value of `by` a line through the means at each value of the column `point`."""
    runs = with_means(frame, metric, points=[by, point])
    for value, style in styles(by, runs[by]).items():
        own = runs[runs[by] == value]
        means = own.groupby(point).agg(x=(x, "mean"), y=("mean", "first"))
        line = {"color": style["color"], "linewidth": 1.8}
        ax.plot(means["x"], means["y"], **line)
        draw_runs(own, x, metric, ax=ax, style=style, size=5)
        named = f"{style['label']} (n={n_seeds(own, point)})"
        add_to_legend(ax, **line, marker=style["marker"], markersize=5, label=named)
    return runs


def _draw_level(frame: pd.DataFrame, column: str, metric: str, *, ax: Axes) -> pd.DataFrame:
    runs = with_means(frame, metric, points=[column])
    style = STYLES[column][runs[column].iloc[0]]
    named = f"{style['label']} (n={len(runs)})"
    ax.axhspan(runs[metric].min(), runs[metric].max(), color=style["color"], alpha=0.12, linewidth=0)
    ax.axhline(runs["mean"].iloc[0], color=style["color"], linestyle="--", linewidth=1.5, label=named)
    return runs


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
