"""Lines through means over seeds, one marker a run: a metric against sparsity, a cost or another column."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from prunelab.figures.axes import add_to_legend, draw_runs, finish, log_steps, sparsity_axis, ticks
from prunelab.figures.means import n_seeds, with_means
from prunelab.figures.style import METHOD_STYLE, percent, styles, written


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
        reference: A method drawn as a level: its mean, and the range of its seeds.
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


def published(points: pd.DataFrame, *, ax: Axes, reference: str | None = None) -> pd.DataFrame:
    """Draws a paper's accuracies against sparsity, one line a method, with its standard deviations as bars.

    Args:
        points: `papers.paper_points`, one row for each method and density.
        reference: A method drawn as a level.
    Returns:
        The points that were drawn.
    Raises:
        ValueError: Two values for one point, or a method without a style.
    """
    drawn = points[points["method"].isin(METHOD_STYLE)]
    if drawn.duplicated(["method", "density"]).any():
        raise ValueError("several published values for one method and density; choose by source and length of training")
    for method, style in styles("method", drawn["method"]).items():
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


def _draw_lines_and_level(
    frame: pd.DataFrame, x: str, metric: str, *, ax: Axes, by: str, reference: str | None
) -> pd.DataFrame:
    is_level = frame["method"] == reference
    data = _draw_lines(frame[~is_level], x, metric, ax=ax, by=by, point=x).assign(kind="run")
    if is_level.any():
        data = pd.concat([data, _draw_level(frame[is_level], metric, ax=ax).assign(kind="reference")])
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


def _draw_level(frame: pd.DataFrame, metric: str, *, ax: Axes) -> pd.DataFrame:
    runs = with_means(frame, metric, points=["method"])
    style = METHOD_STYLE[runs["method"].iloc[0]]
    named = f"{style['label']} (n={len(runs)})"
    ax.axhspan(runs[metric].min(), runs[metric].max(), color=style["color"], alpha=0.12, linewidth=0)
    ax.axhline(runs["mean"].iloc[0], color=style["color"], linestyle="--", linewidth=1.5, label=named)
    return runs
