"""How wide layers are: found widths side by side, and how likely a search thinks each of them."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from prunelab.figures.style import DESIGN_STYLE, palette, percent

_CMAP = "Blues"  # darker is likelier, as in diagrams.markov_chain


def width_shares(shares: pd.DataFrame, *, ax: Axes) -> pd.DataFrame:
    """Draws the share of its channels that each group of layers keeps: means over seeds, and a dot a seed.

    Args:
        shares: One row a group of a network: `design`, `seed`, `group`, `share`; groups in their order.
    Returns:
        The same rows.
    """
    groups, of = list(dict.fromkeys(shares["group"])), list(dict.fromkeys(shares["design"]))
    styles = DESIGN_STYLE if set(of) <= DESIGN_STYLE.keys() else palette(of)
    for design in of:
        own = shares[shares["design"] == design]
        style = {key: styles[design][key] for key in ("color", "marker")}
        means = own.groupby("group", sort=False)["share"].mean()
        ax.plot(
            [groups.index(group) for group in means.index], means, label=styles[design]["label"], markersize=5, **style
        )
        if own["seed"].nunique() > 1:
            at = own["group"].map(groups.index)
            ax.plot(at, own["share"], linestyle="", markersize=3, alpha=0.5, **style)
    ax.set(ylim=(0, 1.04), ylabel="channels kept", xlabel="groups of layers, first to last")
    ax.set_xticks(range(len(groups)), groups, rotation=90, fontsize=8)
    ax.yaxis.set_major_formatter(percent)
    ax.legend(frameon=False, fontsize=8.5)
    return shares


def retained(probabilities: Sequence[Sequence[float]], groups: Sequence[str], *, ax: Axes) -> pd.DataFrame:
    """Draws how likely each step of channels is to be retained, one row a group, on a colour scale from 0 to 1.

    Args:
        probabilities: Of each group's steps to stay if the one before does, as a search records them.
        groups: Their names.
    Returns:
        One row a step: `group`, `step`, `retained`.
    """
    grid = np.cumprod(np.asarray(probabilities, float), axis=1)
    ax.imshow(grid, aspect="auto", vmin=0, vmax=1, cmap=_CMAP, interpolation="nearest")
    ax.set(xlabel="step of channels")
    ax.set_xticks(range(grid.shape[1]), range(1, grid.shape[1] + 1), fontsize=7)
    ax.set_yticks(range(len(groups)), groups, fontsize=7)
    ax.tick_params(length=0)
    rows = [(group, step + 1, grid[at, step]) for at, group in enumerate(groups) for step in range(grid.shape[1])]
    return pd.DataFrame(rows, columns=["group", "step", "retained"])


def retained_over_time(history: Sequence[Mapping], groups: Sequence[str], *, axes: Sequence[Axes]) -> pd.DataFrame:
    """Draws `retained` at moments of a search, evenly spaced from its first snapshot to its last, with a colour bar.

    Args:
        history: Snapshots as a search records them: `batch` and `probabilities`.
        groups: Names of the groups.
        axes: One for each moment.
    Returns:
        One row a step at a moment: `batch`, `group`, `step`, `retained`.
    Raises:
        ValueError: There is no snapshot, as of a search whose chains never learned.
    """
    if not history:
        raise ValueError("history has no snapshot to draw; the chains of this search never learned")
    moments = np.linspace(0, len(history) - 1, len(axes)).round().astype(int)
    drawn = []
    for ax, moment in zip(axes, moments, strict=True):
        snapshot = history[moment]
        drawn.append(retained(snapshot["probabilities"], groups, ax=ax).assign(batch=snapshot["batch"]))
        ax.set_title(f"after {snapshot['batch']:,} batches", fontsize=9)
        ax.set_yticks(ax.get_yticks() if ax is axes[0] else [])
    image = plt.cm.ScalarMappable(plt.Normalize(0, 1), _CMAP)
    axes[0].figure.colorbar(image, ax=list(axes), label="probability to be retained", format=percent)
    return pd.concat(drawn, ignore_index=True)
