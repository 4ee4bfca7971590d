"""How networks do on other tasks beside a dense one: by task, by difficulty, and by the kind of transfer."""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from prunelab.figures.axes import finish, ticks
from prunelab.figures.style import UPSTREAM_STYLE, name, percent, styles

_TRANSFERS = ("linear", "full")
_SHIFT = 0.13  # between methods in a row
_LINE = 0.055  # height of a line of text, as a share of the axes'


def leads(beside: pd.DataFrame, *, ax: Axes, by: str = "dataset") -> pd.DataFrame:
    """Draws by how many points each method is ahead of the dense network, one row a task, the first on top.

    Args:
        beside: `transfer.against_dense`; a small marker is a row, a large one the mean of a method and task.
        by: The column whose values are the rows, in place of tasks.
    Returns:
        One row a small marker: `upstream`, `by`, `lead`, `mean`.
    """
    tasks = list(dict.fromkeys(beside[by]))
    data = beside.assign(mean=beside.groupby(["upstream", by])["lead"].transform("mean"))
    known = styles("upstream", data["upstream"])
    for number, (method, style) in enumerate(known.items()):
        own = data[data["upstream"] == method]
        rows = own[by].map(tasks.index) + _SHIFT * (number - (len(known) - 1) / 2)
        look = {"marker": style["marker"], "color": style["color"], "linestyle": ""}
        ax.plot(own["lead"], rows, markersize=3.5, alpha=0.4, **look)
        ax.plot(own["mean"], rows, markersize=7, label=style["label"], **look)
    ax.axvline(0, color="#000000", linewidth=0.8)
    finish(ax)
    ticks(ax.yaxis, range(len(tasks)), [name(task) for task in tasks])
    ax.set(xlabel="points over the dense network", ylim=(len(tasks) - 0.4, -0.6))
    ax.xaxis.set_major_formatter(_points)
    return data[["upstream", by, "lead", "mean"]].reset_index(drop=True)


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


def intervals(
    found: pd.DataFrame,
    at: str,
    *,
    ax: Axes,
    step: float = 0.0,
    is_lying: bool = False,
    is_hollow: bool = False,
    looks: Mapping[str, Mapping] = UPSTREAM_STYLE,
) -> pd.DataFrame:
    """Draws means with their intervals, one marker each, those of methods side by side.

    Args:
        found: Of networks, as `transfer.over_tasks` and `transfer.trends` give them: `upstream`, `mean`, `low`, `high`.
        at: The column with their places on the other axis.
        step: Between the markers of methods at one place.
        is_lying: Whether intervals lie, in rows; else they stand, and a line joins those of a method.
        is_hollow: Whether markers are.
        looks: How each method is drawn, in the order of drawing.
    Returns:
        The rows drawn: `upstream`, `at`, `mean`, `low`, `high`.
    Raises:
        ValueError: A method without a look.
    """
    present = set(found["upstream"])
    if unknown := sorted(present - looks.keys()):
        raise ValueError(f"no look for {', '.join(unknown)}; there are {', '.join(looks)}")
    methods = [method for method in looks if method in present]
    bars, mean = ("xerr", ax.xaxis) if is_lying else ("yerr", ax.yaxis)
    for number, method in enumerate(methods):
        own = found[found["upstream"] == method].sort_values(at)
        places = own[at] + step * (number - (len(methods) - 1) / 2)
        ends = np.array([own["mean"] - own["low"], own["high"] - own["mean"]])
        look = {"linestyle": "" if is_lying else "-", "linewidth": 1.2, "capsize": 2, "markersize": 5.5}
        look |= {"markerfacecolor": "white"} if is_hollow else {}
        ax.errorbar(
            *((own["mean"], places) if is_lying else (places, own["mean"])), **{bars: ends}, **looks[method] | look
        )
    (ax.axvline if is_lying else ax.axhline)(0, color="#000000", linewidth=0.8)
    finish(ax)
    mean.set_major_formatter(percent)
    return found[["upstream", at, "mean", "low", "high"]].reset_index(drop=True)


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
    ax.axhline(0, color="#000000", linewidth=0.8)
    low, high = ax.get_ylim()
    height = low
    for method, end in means["full"].sort_values().items():  # no name over another
        height = max(height + _LINE * (high - low), end)
        style = UPSTREAM_STYLE[method]
        ax.text(1.07, height, style["label"], va="center", fontsize=8.5, color=style["color"])
    finish(ax)
    ticks(ax.xaxis, (0, 1), _TRANSFERS)
    ax.set(xlim=(-0.15, 1.7), ylabel="points over the dense network")
    ax.yaxis.set_major_formatter(_points)
    return means.rename_axis("upstream").reset_index()


def scatter(runs: pd.DataFrame, x: str, y: str, *, ax: Axes, are_alike: bool = False) -> pd.DataFrame:
    """Draws one share against another, a marker a run, in the colour of its method.

    Args:
        runs: `upstream` and both columns.
        are_alike: Whether both measure the same; draws the line on which they are equal.
    Returns:
        These three.
    """
    data = runs[["upstream", x, y]].reset_index(drop=True)
    for method, style in styles("upstream", data["upstream"]).items():
        own = data[data["upstream"] == method]
        ax.plot(own[x], own[y], linestyle="", markersize=6, alpha=0.8, **style)
    if are_alike:
        ends = [data[[x, y]].min().min(), data[[x, y]].max().max()]
        ax.plot(ends, ends, color="#999999", linewidth=0.8, zorder=0)
    finish(ax, x=x, y=y)
    ax.xaxis.set_major_formatter(percent)
    return data


def dead_by_layer(inspected: Mapping[str, Iterable[dict]], *, ax: Axes) -> pd.DataFrame:
    """Draws the share of filters that have no weight, layer by layer, first layer first.

    Args:
        inspected: By method, records with `channels`; those of a method are summed up.
    Returns:
        One row a point: `upstream`, `layer`, `dead_filters`.
    """
    rows = []
    for method, style in styles("upstream", inspected).items():
        channels = pd.concat(pd.DataFrame(record["channels"]) for record in inspected[method])
        counts = channels.groupby("layer", sort=False)[["n_dead_filters", "n_filters"]].sum().query("n_filters > 0")
        shares = counts["n_dead_filters"] / counts["n_filters"]
        ax.plot(range(len(shares)), shares, linewidth=1.2, markersize=5, **style)
        rows.append(shares.rename("dead_filters").reset_index().assign(upstream=method))
    finish(ax, y="dead_filters")
    ax.set_xlabel("convolution, first to last")
    return pd.concat(rows, ignore_index=True)[["upstream", "layer", "dead_filters"]]


def _points(share: float, _position: int | None = None) -> str:
    return f"{100 * share:g}"
