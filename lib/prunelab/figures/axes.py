"""What drawings have in common: means over seeds, axes, legends, and how a diverged run is drawn."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator
from numpy.typing import ArrayLike

from prunelab.figures.style import is_share, label, legend_title, percent

_HOLLOW = {"color": "#555555", "marker": "o", "markersize": 8, "markerfacecolor": "none", "linestyle": ""}


def ticks(axis: Axis, positions: Iterable[float], labels: Iterable[str]) -> None:
    """Sets exactly these ticks, and no smaller ones between."""
    axis.set_major_locator(FixedLocator(list(positions)))
    axis.set_major_formatter(FixedFormatter(list(labels)))
    axis.set_minor_locator(NullLocator())


def log_steps(low: float, high: float) -> list[float]:
    """Returns ticks of a logarithmic axis, from about `low` to about `high`: 1, 2, 5, 10; more where these are near."""
    digits = (1, 2, 5) if high > 5 * low else (1, 1.5, 2, 3, 4, 5, 6, 8)
    steps = (digit * 10.0**power for power in range(-9, 9) for digit in digits)
    return [step for step in steps if low / 1.3 <= step <= high * 1.3]


def sparsity_axis(ax: Axes, densities: Iterable[float]) -> None:
    """Marks each density, or some where there are many, as sparsity; a halving of density takes the same width."""
    ax.set_xscale("log")
    marked = sorted(set(densities))
    marked = marked[:: 1 + len(marked) // 8]  # from the sparsest on
    ticks(ax.xaxis, marked, [percent(1 - density) for density in marked])
    ax.invert_xaxis()


def with_means(frame: pd.DataFrame, metric: str, *, points: list[str]) -> pd.DataFrame:
    """Returns the runs, each with the mean over the seeds at its point.

    Args:
        frame: `records.frame`, with one run a seed at each point.
        metric: Its column, which becomes numeric.
        points: The columns that make a point.
    Raises:
        ValueError: Several runs of one seed at a point, or a run without a value in one of `points`.
    """
    for column in points:
        if n_missing := frame[column].isna().sum():
            raise ValueError(f"{column} is missing in {n_missing} of {len(frame)} runs; leave those out")
    check_one_run_a_seed(frame, points)
    frame = frame.assign(**{metric: pd.to_numeric(frame[metric])})
    means = frame.groupby(points)[metric].transform(lambda values: values.mean(skipna=False))
    return frame.assign(mean=means)


def check_one_run_a_seed(frame: pd.DataFrame, points: list[str]) -> None:
    """Raises ValueError, naming the first point at which a seed has several runs."""
    repeated = frame[frame.duplicated([*points, "seed"])]
    if len(repeated):
        at = ", ".join(f"{column} {repeated.iloc[0][column]}" for column in [*points, "seed"])
        raise ValueError(f"several runs at {at}: their mean would mix them; hand in fewer, or tell them apart by=...")


def n_seeds(runs: pd.DataFrame, points: str | list[str]) -> str:
    """Returns the seeds a point, as legends write them: "3", or "2 to 3"."""
    n = runs.groupby(points)["seed"].nunique()
    return f"{n.min()}" if n.min() == n.max() else f"{n.min()} to {n.max()}"


def is_diverged(runs: pd.DataFrame) -> pd.Series:
    """Tells of each run whether it diverged."""
    return runs["status"] == "diverged"


def draw_runs(runs: pd.DataFrame, x: str, metric: str, *, ax: Axes, style: dict, size: float) -> None:
    """Draws a marker for each run, hollow for one that diverged."""
    finished = runs[~is_diverged(runs)]
    dots = {"color": style["color"], "markersize": size, "alpha": 0.7, "markeredgewidth": 0}
    ax.plot(finished[x], finished[metric], style["marker"], **dots)
    draw_diverged(runs, x, metric, ax=ax, style=style)


def draw_diverged(runs: pd.DataFrame, x: str, metric: str, *, ax: Axes, style: dict) -> None:
    """Draws a hollow marker for each run that diverged, on the lower edge for one without a value."""
    hollow = _HOLLOW | {"color": style["color"], "marker": style["marker"]}
    runs = runs[is_diverged(runs)]
    valued, lost = runs[runs[metric].notna()], runs[runs[metric].isna()]
    if len(valued):
        ax.plot(valued[x], valued[metric], **hollow)
    if len(lost):
        ax.plot(lost[x], np.zeros(len(lost)), transform=ax.get_xaxis_transform(), clip_on=False, **hollow)


def draw_grid(values: ArrayLike, texts: ArrayLike, *, ax: Axes, bar: dict, **options) -> None:
    """Draws a coloured cell with its text for each value, the first row on top; missing values (NaN) get neither."""
    import seaborn  # takes as long to import as two figures to draw

    options |= {"annot": texts, "fmt": "", "cmap": "viridis", "cbar_kws": {"pad": 0.02} | bar}
    seaborn.heatmap(values, annot_kws={"fontsize": 9}, xticklabels=False, yticklabels=False, ax=ax, **options)
    ax.tick_params(length=0, labelsize=9)
    ax.collections[0].colorbar.ax.tick_params(labelsize=9)


def add_to_legend(ax: Axes, **style) -> None:
    """Adds a legend's entry that nothing in the drawing has by itself."""
    # A line without points still has markers' extent, at the figure's corner, and would push the axes there.
    ax.plot([], [], **style)[0].set_in_layout(False)


def finish(
    ax: Axes,
    *,
    x: str = "",
    y: str = "",
    runs: pd.DataFrame | None = None,
    by: str | None = None,
    legend_at: str = "best",
) -> None:
    """Adds what all drawings share: names of the axes, a light grid, and a legend, which explains hollow markers.

    Args:
        ax: With everything drawn.
        x: The column along the horizontal axis.
        y: The column along the vertical axis, which is in percent where it is a share.
        runs: Those drawn, where some may have diverged.
        by: The column whose values the legend names.
        legend_at: A place of matplotlib's, for a legend that is not too long.
    """
    ax.set(xlabel=label(x), ylabel=label(y))
    if is_share(y):
        ax.yaxis.set_major_formatter(percent)
    if runs is not None and is_diverged(runs).any():
        add_to_legend(ax, **_HOLLOW, label="diverged")
    ax.grid(True, color="#E6E6E6", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=9, color="#999999")
    if n_entries := len(ax.get_legend_handles_labels()[0]):
        # A long one would cover the lines.
        place = {"loc": legend_at} if n_entries <= 7 else {"loc": "upper left", "bbox_to_anchor": (1, 1)}
        ax.legend(fontsize=8.5, frameon=False, title=legend_title(by), title_fontsize=8.5, **place)


def one_legend(axes: Iterable[Axes]) -> None:
    """Removes, of the legends of panels, those that say nothing new."""
    said: set[str] = set()
    for ax in axes:
        if legend := ax.get_legend():
            texts = {text.get_text() for text in legend.get_texts()}
            if texts <= said:
                legend.remove()
            said |= texts
