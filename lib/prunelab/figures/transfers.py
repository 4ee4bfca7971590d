"""How networks do on other tasks beside a dense one: by task, by difficulty, and by the kind of transfer."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from prunelab.figures.axes import finish, ticks
from prunelab.figures.style import label, name, percent, styles

_TRANSFERS = ("linear", "full")
_SHIFT = 0.13  # between methods in a row


def leads_by_task(beside: pd.DataFrame, *, ax: Axes) -> pd.DataFrame:
    """Draws by how many points each method is ahead of the dense network, one row a task, the first on top.

    Args:
        beside: `transfer.against_dense`; a small marker is a row, a large one the mean of a method and task.
    Returns:
        One row a small marker: `upstream`, `dataset`, `lead`, `mean`.
    """
    tasks = list(dict.fromkeys(beside["dataset"]))
    data = beside.assign(mean=beside.groupby(["upstream", "dataset"])["lead"].transform("mean"))
    known = styles("upstream", data["upstream"])
    for number, (method, style) in enumerate(known.items()):
        own = data[data["upstream"] == method]
        rows = own["dataset"].map(tasks.index) + _SHIFT * (number - (len(known) - 1) / 2)
        look = {"marker": style["marker"], "color": style["color"], "linestyle": ""}
        ax.plot(own["lead"], rows, markersize=3.5, alpha=0.4, **look)
        ax.plot(own["mean"], rows, markersize=7, label=style["label"], **look)
    ax.axvline(0, color="#000000", linewidth=0.8)
    finish(ax)
    ticks(ax.yaxis, range(len(tasks)), [name(task) for task in tasks])
    ax.set(xlabel="points over the dense network", ylim=(len(tasks) - 0.4, -0.6))
    ax.xaxis.set_major_formatter(_points)
    return data[["upstream", "dataset", "lead", "mean"]].reset_index(drop=True)


def error_trends(beside: pd.DataFrame, *, ax: Axes) -> pd.DataFrame:
    """Draws the relative error increase of each method against how difficult tasks are, with a line of least squares.

    Args:
        beside: `transfer.against_dense`; a marker is the mean of a method and task.
    Returns:
        One row a marker: `upstream`, `dataset`, `difficulty`, `increase`, and of the method's line `slope`, the
        increase from no error to nothing but errors.
    """
    keys = ["upstream", "dataset"]
    data = beside.groupby(keys, sort=False, as_index=False)[["difficulty", "increase"]].mean()
    data["slope"] = np.nan
    for method, style in styles("upstream", data["upstream"]).items():
        own = data[data["upstream"] == method]
        look = {"color": style["color"], "label": style["label"]}
        ax.plot(own["difficulty"], own["increase"], style["marker"], markersize=5, alpha=0.7, **look)
        if own["difficulty"].nunique() > 1:
            slope, level = np.polyfit(own["difficulty"], own["increase"], 1)
            ends = np.array([own["difficulty"].min(), own["difficulty"].max()])
            ax.plot(ends, level + slope * ends, color=style["color"], linewidth=1.5)
            data.loc[own.index, "slope"] = slope
    ax.axhline(0, color="#000000", linewidth=0.8)
    finish(ax)
    ax.set(xlabel="error of the dense network", ylabel="error increase, relative to dense")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(percent)
    return data


def turn(means: pd.DataFrame, *, ax: Axes) -> pd.DataFrame:
    """Draws by how many points methods are ahead of the dense network, on the left linear, on the right full transfer.

    Args:
        means: By method, columns `linear` and `full`; shares.
    Returns:
        The same, one row a method: `upstream`, `linear`, `full`.
    """
    for method, style in styles("upstream", means.index).items():
        own = means.loc[method, list(_TRANSFERS)]
        ax.plot((0, 1), own, marker=style["marker"], color=style["color"], linewidth=1.8)
        ax.annotate(style["label"], (1, own["full"]), (9, 0), textcoords="offset points", va="center", fontsize=8.5)
    ax.axhline(0, color="#000000", linewidth=0.8)
    finish(ax)
    ticks(ax.xaxis, (0, 1), _TRANSFERS)
    ax.set(xlim=(-0.15, 1.7), ylabel="points over the dense network")
    ax.yaxis.set_major_formatter(_points)
    return means.rename_axis("upstream").reset_index()


def agreement(runs: pd.DataFrame, x: str, y: str, *, ax: Axes) -> pd.DataFrame:
    """Draws one share against another, a marker a run, with the line on which both are equal.

    Args:
        runs: `upstream` and both columns.
    Returns:
        These three.
    """
    data = runs[["upstream", x, y]].reset_index(drop=True)
    for method, style in styles("upstream", data["upstream"]).items():
        own = data[data["upstream"] == method]
        ax.plot(own[x], own[y], linestyle="", markersize=6, alpha=0.8, **style)
    ends = [data[[x, y]].min().min(), data[[x, y]].max().max()]
    ax.plot(ends, ends, color="#999999", linewidth=0.8, zorder=0)
    finish(ax, x=x, y=y)
    ax.set_xlabel(label(x))
    ax.xaxis.set_major_formatter(percent)
    return data


def _points(share: float, _position: int | None = None) -> str:
    return f"{100 * share:g}"
