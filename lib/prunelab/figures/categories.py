"""Drawings over categories: settings in columns of runs, or a grid of two."""

import textwrap
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from prunelab.figures.axes import draw_grid, draw_runs, finish, is_diverged, n_seeds, ticks, with_means
from prunelab.figures.style import STYLES, is_share, label, percent, styles, written

_PLAIN = {"color": "#0072B2", "marker": "o"}
_SPAN = 0.08  # of shares: colours that span less would paint noise
_HALF = 0.22  # of a bar's width, where columns stand 1 apart


def strips(
    frame: pd.DataFrame,
    by: str,
    metric: str = "test_accuracy",
    *,
    ax: Axes,
    labels: Mapping | None = None,
) -> pd.DataFrame:
    """Draws one column of runs for each value of a column, in order of appearance; a bar is their mean.

    Args:
        frame: `records.frame`, with one run a seed for each value of `by`.
        by: Of categories or numbers.
        metric: The column drawn.
        labels: Words for values of `by`, in place of their own.
    Returns:
        One row a marker: `by`, `seed`, `status`, the metric, `mean`.
    Raises:
        ValueError: Several runs of one seed at a value, a run without a value of `by`, or one without a style.
    """
    runs = with_means(frame, metric, points=[by])
    known = styles(by, runs[by]) if by in STYLES else {}
    columns = dict(list(runs.groupby(by, sort=False)))
    for at, (value, own) in enumerate(columns.items()):
        own = own.assign(at=at + (np.arange(len(own)) - (len(own) - 1) / 2) * _HALF / len(own))
        mean = own["mean"].iloc[0]
        if pd.notna(mean):
            ax.hlines(mean, at - _HALF, at + _HALF, color="#000000", linewidth=1.8)
            above = (at, own[metric].max())
            ax.annotate(_short(mean, metric), above, (0, 7), textcoords="offset points", ha="center", fontsize=9)
        draw_runs(own, "at", metric, ax=ax, style=known.get(value, _PLAIN), size=6)
    names = _wrapped([(labels or {}).get(value, written(by, value)) for value in columns], ax)
    texts = [f"{name}\n(n={len(own)})" for name, own in zip(names, columns.values(), strict=True)]
    ticks(ax.xaxis, range(len(names)), texts)
    ax.set_xlim(-0.5, len(columns) - 0.5)
    ax.margins(y=0.12)  # room for the means
    finish(ax, x="" if by in STYLES else by, y=metric, runs=runs)  # columns with a style say what they are
    ax.grid(False, axis="x")
    return runs[[by, "seed", "status", metric, "mean"]].reset_index(drop=True)


def heat_map(frame: pd.DataFrame, x: str, y: str, metric: str = "test_accuracy", *, ax: Axes) -> pd.DataFrame:
    """Draws means over seeds in a grid of two columns' values; a cell without runs shows a dash.

    Numbers ascend, rightward and upward; categories stand in order of appearance, the first on top. A cell says
    how many of its runs diverged.

    Args:
        frame: `records.frame`, with one run a seed for each pair of values.
        x: The column whose values stand side by side.
        y: The column whose values stand one above the other.
        metric: The column averaged.
    Returns:
        One row a cell with runs: `y`, `x`, the metric's mean, `n`, `n_diverged`.
    Raises:
        ValueError: Several runs of one seed in a cell, or a run without a value of `x` or `y`.
    """
    runs = with_means(frame, metric, points=[y, x])
    across, down = _in_order(runs[x]), _in_order(runs[y])
    cells = runs.assign(lost=is_diverged(runs)).groupby([y, x], sort=False, as_index=False)
    cells = cells.agg(**{metric: ("mean", "first"), "n": ("seed", "size"), "n_diverged": ("lost", "sum")})
    means = ["–" if np.isnan(mean) else _short(mean, metric, unit="") for mean in cells[metric]]
    lost = [f"\n{n} diverged" if n else "" for n in cells["n_diverged"]]
    cells_and_texts = cells.assign(text=np.char.add(means, lost)).pivot(index=y, columns=x)
    grid, texts = (cells_and_texts[key].reindex(index=down, columns=across) for key in (metric, "text"))
    bar = {"label": f"{label(metric)} (n={n_seeds(runs, [y, x])})", "format": percent if is_share(metric) else None}
    least, most = grid.min(axis=None), grid.max(axis=None)
    widen = max(0.0, _SPAN - (most - least)) / 2 if is_share(metric) else 0.0
    draw_grid(grid, texts, ax=ax, bar=bar, linewidths=2, vmin=least - widen, vmax=most + widen)
    ax.set_facecolor("#EEEEEE")
    for row, column in np.argwhere(grid.isna()):
        ax.text(column + 0.5, row + 0.5, texts.fillna("–").iat[row, column], ha="center", va="center", fontsize=9)
    ticks(ax.xaxis, np.arange(len(across)) + 0.5, _wrapped([written(x, value) for value in across], ax))
    ticks(ax.yaxis, np.arange(len(down)) + 0.5, [written(y, value) for value in down])
    ax.set(xlabel=label(x), ylabel=label(y))
    if pd.api.types.is_numeric_dtype(runs[y]):
        ax.invert_yaxis()
    return cells


def _in_order(values: pd.Series) -> list:
    present = list(dict.fromkeys(values))
    return sorted(present) if pd.api.types.is_numeric_dtype(values) else present


def _wrapped(names: list[str], ax: Axes) -> list[str]:
    """Breaks names into lines that stand side by side below an axis: some nine letters are an inch wide."""
    grid = ax.get_gridspec()
    width = ax.figure.get_figwidth() / (grid.ncols if grid else 1)
    return [textwrap.fill(name, max(int(9.2 * width) // len(names), 8), break_long_words=False) for name in names]


def _short(mean: float, metric: str, *, unit: str = " %") -> str:
    """Writes a mean in a drawing: a share in percent with one decimal, or three digits."""
    return f"{100 * mean:.1f}{unit}" if is_share(metric) else f"{mean:#.3g}"
