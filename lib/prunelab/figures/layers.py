"""Layer by layer: how dense they are, how their connections move, which pixels the first one sees."""

import math
from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from numpy.typing import ArrayLike

from prunelab.figures.axes import draw_grid, finish, ticks
from prunelab.figures.style import DISTRIBUTION_STYLE, METHOD_STYLE, PRUNING_STYLE, palette, percent


def layer_densities(densities: Mapping[str, Mapping[str, float]], *, ax: Axes, metric: str = "density") -> pd.DataFrame:
    """Draws how dense each layer is, first layer first.

    Args:
        densities: Of each layer by name, for one or more distributions, methods, ways of pruning or other labels.
        metric: What the densities are shares of: `density` of weights, `channel_density` of channels.
    Returns:
        One row a point: `of`, `layer`, and the metric.
    """
    fullest_first = sorted(densities.values(), key=len, reverse=True)  # uniform leaves the first layer out
    layers = list(dict.fromkeys(layer for own in fullest_first for layer in own))
    known = PRUNING_STYLE | METHOD_STYLE | DISTRIBUTION_STYLE
    styles = known if densities.keys() <= known.keys() else palette(list(densities))
    for label, own in densities.items():
        at, drawn = zip(*sorted((layers.index(layer), density) for layer, density in own.items()), strict=True)
        ax.plot(at, drawn, linewidth=1.2, markersize=5, **styles[label])
    ax.set_ylim(0, 1.04)
    ticks(ax.xaxis, range(len(layers)), layers)
    ax.tick_params(axis="x", labelrotation=90 if len(layers) > 6 else 0)
    finish(ax, y=metric)
    rows = [(label, layer, density) for label, own in densities.items() for layer, density in own.items()]
    return pd.DataFrame(rows, columns=["of", "layer", metric])


def measured_densities(record: dict) -> dict[str, float]:
    """Returns the density of each layer of a trained network that has weights, for `layer_densities`."""
    return {layer["name"]: layer["n_active"] / layer["n_weights"] for layer in record["layers"] if layer["n_weights"]}


def mask_survival(record: dict, *, ax: Axes) -> pd.DataFrame:
    """Draws the share of a layer's active connections that were active at the start, over training; one line a layer.

    Args:
        record: Of a run whose connections move.
    Returns:
        One row a point: `step`, `layer`, `survival`.
    Raises:
        ValueError: Nothing moves in this run.
    """
    if not record.get("moves"):
        raise ValueError(f"run {record['id']} ({record['options']['method']}) moves no connections")
    layers = [layer["name"] for layer in record["layers"] if layer["masked"]]
    steps, survival = record["moves"]["step"], np.array(record["moves"]["survival"])
    colors = ListedColormap(plt.get_cmap("viridis")(np.linspace(0, 0.92, len(layers))))
    for number in range(len(layers)):
        ax.plot(steps, survival[:, number], color=colors(number), linewidth=1.5)
    norm = BoundaryNorm(np.arange(len(layers) + 1) - 0.5, len(layers))
    bar = ax.figure.colorbar(plt.cm.ScalarMappable(norm, colors), ax=ax, pad=0.02, ticks=range(len(layers)))
    bar.ax.set_yticklabels(layers, fontsize=8 if len(layers) <= 15 else 6)
    bar.ax.invert_yaxis()
    bar.ax.tick_params(length=0, which="both")
    bar.outline.set_visible(False)
    ax.set_ylim(0, 1.04)
    finish(ax, x="step", y="survival")
    return (
        pd.DataFrame(survival, columns=layers, index=pd.Index(steps, name="step"))
        .melt(var_name="layer", value_name="survival", ignore_index=False)
        .reset_index()
    )


def pixel_map(counts: ArrayLike, *, ax: Axes, most: int | None = None) -> pd.DataFrame:
    """Draws the connections that leave each pixel of a square picture, as that picture.

    Args:
        counts: One for each pixel, row by row.
        most: The brightest count, where several maps are to be compared.
    Returns:
        One row a pixel: `row`, `column`, `connections`.
    Raises:
        ValueError: The counts fill no square.
    """
    counts = np.asarray(counts)
    side = math.isqrt(counts.size)
    if side**2 != counts.size or not side:
        raise ValueError(f"counts must fill a square picture, such as 784 for 28 x 28; got {counts.size}")
    counts = counts.reshape(side, side)
    picture = ax.imshow(counts, cmap="viridis", vmin=0, vmax=most, interpolation="nearest")
    bar = ax.figure.colorbar(picture, ax=ax, pad=0.02, label="connections of the pixel")
    bar.ax.tick_params(labelsize=9)
    bar.outline.set_visible(False)
    ax.set_axis_off()
    rows = [(row, column, n) for (row, column), n in np.ndenumerate(counts)]
    return pd.DataFrame(rows, columns=["row", "column", "connections"])


def kernel_patterns(patterns: Mapping[str, ArrayLike], *, ax: Axes) -> pd.DataFrame:
    """Draws how dense each position of the kernels is, one small picture a stage.

    Args:
        patterns: Share of active weights at each position, (kh, kw), by stage; all of one size.
    Returns:
        One row a position: `stage`, `row`, `column`, `density`.
    """
    pictures = {stage: np.asarray(pattern, dtype=float) for stage, pattern in patterns.items()}
    height, width = next(iter(pictures.values())).shape
    gap = np.full((height, 1), np.nan)
    strip = np.hstack([part for picture in pictures.values() for part in (picture, gap)])[:, :-1]
    texts = np.vectorize("{:.0f}".format)(100 * strip)
    draw_grid(strip, texts, ax=ax, bar={"label": "weights left", "format": percent}, vmin=0, square=True)
    ticks(ax.xaxis, [number * (width + 1) + width / 2 for number in range(len(pictures))], list(pictures))
    return pd.DataFrame(
        [
            (stage, row, column, density)
            for stage, picture in pictures.items()
            for (row, column), density in np.ndenumerate(picture)
        ],
        columns=["stage", "row", "column", "density"],
    )
