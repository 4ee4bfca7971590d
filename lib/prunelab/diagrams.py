"""Drawings that explain a method on a few numbers; `figures` draws records."""

from collections.abc import Mapping, Sequence
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

KEPT, DROPPED, GROWN, INACTIVE = "#0072B2", "#D55E00", "#009E73", "#D0D0D0"


def mask_update(
    weight: Sequence[float],
    grow_score: Sequence[float],
    mask: Sequence[bool],
    new_mask: Sequence[bool],
    *,
    axes: Sequence[Axes],
) -> pd.DataFrame:
    """Draws a mask update in three steps: which weights are smallest, where the score is largest, what is active then.

    Args:
        weight: Of each connection; inactive ones are 0.
        grow_score: Of each connection, at least 0.
        mask: Which are active before.
        new_mask: Which are active after.
        axes: Three, one above the other.
    Returns:
        One row a connection: `weight`, `grow_score`, `before`, `after`.
    """
    before, after = np.asarray(mask, bool), np.asarray(new_mask, bool)
    position = np.arange(len(before))
    magnitude, score = np.abs(weight), np.asarray(grow_score, float)
    drop_colors = np.where(before & after, KEPT, np.where(before, DROPPED, INACTIVE))
    grow_colors = np.where(after & ~before, GROWN, np.where(before & after, KEPT, INACTIVE))
    for ax, heights, colors, label in (
        (axes[0], magnitude, drop_colors, "1  drop the smallest\nmagnitude |w|"),
        (axes[1], score, grow_colors, "2  grow the largest\ngradient |g|"),
    ):
        ax.bar_label(ax.bar(position, heights, color=colors, width=0.7), fmt="%.1f", fontsize=8, color="#555555")
        ax.set_ylabel(label, rotation=0, ha="right", va="center")
        ax.set(xticks=[], yticks=[], ylim=(0, 1.25 * max(heights.max(), 1e-12)))
        ax.spines[["top", "right", "left"]].set_visible(False)

    for row, active, colors in ((1, before, drop_colors), (0, after, grow_colors)):
        for x in position:
            square = {"facecolor": colors[x] if active[x] else "white", "edgecolor": "#888888", "linewidth": 1}
            axes[2].scatter(x, row, s=330, marker="s", **square)
    axes[2].set_ylabel("3  the mask", rotation=0, ha="right", va="center")
    names = [f"w{x}" for x in position]
    axes[2].set(yticks=[1, 0], yticklabels=["before", "after"], ylim=(-0.6, 1.6), xticks=position, xticklabels=names)
    axes[2].yaxis.tick_right()
    axes[2].tick_params(length=0)
    axes[2].spines[:].set_visible(False)
    plt.setp(axes, xlim=(-0.6, len(position) - 0.4))
    named = {"kept": KEPT, "dropped": DROPPED, "grown": GROWN, "inactive": INACTIVE}
    handles = [axes[0].bar(0, 0, color=color, label=name) for name, color in named.items()]
    axes[0].legend(handles=handles, ncols=4, frameon=False, fontsize=8.5, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return pd.DataFrame({"weight": weight, "grow_score": score, "before": before, "after": after})


def channel_removal(
    first: Sequence[Sequence[float]],
    norm: Sequence[Sequence[float]],
    second: Sequence[Sequence[float]],
    kept: Sequence[int],
    *,
    axes: Sequence[Axes],
) -> pd.DataFrame:
    """Draws what a removed channel takes with it: a row where it is made and normalised, a column where it is read.

    Args:
        first: Weights of the layer that makes the channels, (channels, inputs).
        norm: What normalises each of them, (channels, n).
        second: Weights of the layer that reads them, (outputs, channels).
        kept: Those that stay.
        axes: Three, side by side.
    Returns:
        One row a number: `part`, `row`, `column`, `value`, `kept`.
    """
    parts = (("made: a row each", first, 0), ("normalised: a row each", norm, 0), ("read: a column each", second, 1))
    rows = []
    for ax, (part, values, side) in zip(axes, parts, strict=True):
        values = np.asarray(values, float)
        for at, value in np.ndenumerate(values):
            stays = at[side] in kept
            color = KEPT if stays else DROPPED
            ax.add_patch(
                plt.Rectangle((at[1] - 0.5, at[0] - 0.5), 1, 1, facecolor=color, edgecolor="white", alpha=0.75)
            )
            ax.text(at[1], at[0], f"{value:.1f}", ha="center", va="center", fontsize=9, color="white")
            rows.append((part.partition(":")[0], *at, value, stays))
        ax.set(
            xlim=(-0.5, values.shape[1] - 0.5), ylim=(values.shape[0] - 0.5, -0.5), aspect="equal", xticks=[], yticks=[]
        )
        ax.set_title(part, fontsize=10)
        ax.spines[:].set_visible(False)
    named = {"stays": KEPT, "goes": DROPPED}
    handles = [plt.Rectangle((0, 0), 1, 1, color=color, alpha=0.75, label=name) for name, color in named.items()]
    axes[-1].legend(
        handles=handles, frameon=False, fontsize=8.5, loc="upper center", bbox_to_anchor=(0.5, -0.05), ncols=2
    )
    return pd.DataFrame(rows, columns=["part", "row", "column", "value", "kept"])


def markov_chain(stays: Sequence[float], sizes: Sequence[int], *, axes: Sequence[Axes]) -> pd.DataFrame:
    """Draws a chain of steps that each stay if the one before does, and how likely each is to be retained.

    Args:
        stays: Probability of each step to stay if the one before has.
        sizes: Channels that are always there, then those of each step.
        axes: Two, one above the other: the chain, and the probabilities.
    Returns:
        One row a step, the first of which is what is always there: `channels`, `stays`, `retained`.
    """
    data = pd.DataFrame({"channels": sizes, "stays": [1.0, *stays]})
    data["retained"] = data["stays"].cumprod()
    top, bottom = axes
    for step, row in data.iterrows():
        top.scatter(step, 0, s=1100, facecolor=KEPT, alpha=0.35 + 0.65 * row["retained"], edgecolor="#555555", zorder=2)
        top.text(
            step,
            0,
            f"+{row['channels']:.0f}" if step else f"{row['channels']:.0f}",
            ha="center",
            va="center",
            color="white",
        )
        if step:
            arrow = {"arrowstyle": "-|>", "color": "#555555", "shrinkA": 18, "shrinkB": 18}
            top.annotate("", (step, 0), (step - 1, 0), arrowprops=arrow)
            top.text(step - 0.5, 0.16, f"$p_{{{step}}}$ = {row['stays']:.2f}", ha="center", fontsize=8.5)
            top.annotate(
                "", (step - 0.7, -0.75), (step - 0.9, -0.25), arrowprops=arrow | {"color": DROPPED, "shrinkA": 2}
            )
            top.text(step - 0.7, -0.95, f"stop: {1 - row['stays']:.2f}", ha="center", color=DROPPED, fontsize=8)
    top.set(ylim=(-1.1, 0.6), xticks=[], yticks=[])
    top.spines[:].set_visible(False)
    bars = bottom.bar(data.index, data["retained"], color=KEPT, width=0.6)
    bottom.bar_label(bars, fmt="%.3g", fontsize=8.5)
    bottom.set(ylim=(0, 1.2), yticks=[0, 1], xticks=data.index, ylabel="retained $m_k$", xlabel="step k")
    plt.setp(axes, xlim=(-0.6, len(data) - 0.4))
    return data


def sandwich(
    networks: Mapping[str, Mapping[str, int]], full: Mapping[str, int], *, axes: Sequence[Axes]
) -> pd.DataFrame:
    """Draws the networks of a slimmable step: of each group of layers the first channels, out of all.

    Args:
        networks: Widths by group, of each network by its name.
        full: All channels of each group.
        axes: As many as networks, side by side.
    Returns:
        One row a group of a network: `network`, `group`, `channels`, `of`.
    """
    groups = list(full)
    for ax, (name, widths) in zip(axes, networks.items(), strict=True):
        ax.bar(range(len(groups)), full.values(), color=INACTIVE, width=0.9)
        ax.bar(range(len(groups)), [widths[group] for group in groups], color=KEPT, width=0.9)
        ax.set(xticks=[], yticks=sorted({*full.values()}), xlabel="groups of layers, first to last")
        ax.set_title(name, fontsize=10)
        ax.spines[["top", "right", "left"]].set_visible(False)
    axes[0].set_ylabel("channels")
    rows = [(name, group, own[group], full[group]) for name, own in networks.items() for group in groups]
    return pd.DataFrame(rows, columns=["network", "group", "channels", "of"])


def kept_largest(
    scores: Mapping[str, Sequence[Sequence[float]]],
    masks: Mapping[str, Sequence[Sequence[bool]]],
    *,
    axes: Sequence[Axes],
) -> pd.DataFrame:
    """Draws the scores of one matrix of weights in several ways, with a frame around each weight that is kept.

    Args:
        scores: By name, rows of numbers.
        masks: By the same names, True where a weight is kept.
        axes: One for each name.
    Returns:
        One row a weight and name: `score`, `row`, `column`, `value`, `kept`.
    """
    rows = []
    for ax, (name, values) in zip(axes, scores.items(), strict=True):
        values, kept = np.asarray(values, float), np.asarray(masks[name], bool)
        ax.imshow(values, cmap="Greys", vmin=values.min(), vmax=2 * values.max() - values.min())
        for (row, column), value in np.ndenumerate(values):
            is_kept = bool(kept[row, column])
            ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontweight="bold" if is_kept else "normal")
            if is_kept:
                frame = {"facecolor": "none", "edgecolor": KEPT, "linewidth": 3}
                ax.add_patch(plt.Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, **frame))
            rows.append({"score": name, "row": row, "column": column, "value": value, "kept": is_kept})
        ax.set(title=name, xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    return pd.DataFrame(rows)


def pruning_costs(
    weights: Sequence[float],
    costs: Sequence[float],
    moved: Sequence[float],
    pruned: Sequence[bool],
    *,
    axes: Sequence[Axes],
) -> pd.DataFrame:
    """Draws weights, by what the loss would rise without each, and the weights after those of least cost are gone.

    Args:
        weights: Before.
        costs: Of each weight.
        moved: The weights after the pruning, 0 where pruned.
        pruned: Which go.
        axes: Three, side by side.
    Returns:
        One row a weight: `weight`, `cost`, `moved`, `pruned`.
    """
    data = pd.DataFrame({"weight": weights, "cost": costs, "moved": moved, "pruned": pruned})
    colors = np.where(data["pruned"], DROPPED, KEPT)
    titles = ("weights $w$", "rise of the loss if this one alone goes", "the weights after the pruning")
    for ax, column, title in zip(axes, ("weight", "cost", "moved"), titles, strict=True):
        ax.bar_label(ax.bar(data.index, data[column], color=colors, width=0.7), fmt="%.3g", fontsize=9)
        ax.set_title(title, fontsize=10)
        ax.set(yticks=[], xticks=data.index, xticklabels=[f"$w_{number}$" for number in data.index])
        ax.margins(y=0.15)
        ax.spines[["top", "right", "left"]].set_visible(False)
    for name, color in {"stays": KEPT, "goes": DROPPED}.items():
        axes[1].bar(0, 0, color=color, label=name)
    axes[1].legend(frameon=False, fontsize=8.5)
    return data


def transfers(panels: Mapping[str, tuple[bool, str]], *, axes: Sequence[Axes]) -> pd.DataFrame:
    """Draws a network with few connections and its head: what of it learns is coloured, what is frozen is grey.

    Args:
        panels: By title, whether the connections learn, and the name of the head, which always does. Of the first panel
            the head has few connections too.
        axes: One for each panel.
    Returns:
        One row a connection of a panel: `panel`, `layer`, `start`, `end`, `learns`.
    """
    n_layers, n_units, n_classes = 3, 5, 3
    # Some of all connections, in a fixed pattern without order.
    body = [
        (layer, unit, (2 * unit + layer + step) % n_units)
        for layer, unit, step in product(range(n_layers), range(n_units), (0, 2))
        if (unit + layer + step) % 3
    ]
    head = [(n_layers, unit, output) for unit in range(n_units) for output in range(n_classes)]
    rows = []
    for number, (ax, (title, (learns, name))) in enumerate(zip(axes, panels.items(), strict=True)):
        for layer, start, end in body + (head if number else head[::2]):
            is_head = layer == n_layers
            color = GROWN if is_head else KEPT if learns else INACTIVE
            ends = (start, end + (n_units - n_classes) / 2 * is_head)
            ax.plot((layer, layer + 1), ends, color=color, linewidth=1.6, zorder=1)
            rows.append((title, layer, start, end, learns or is_head))
        for layer in range(n_layers + 1):
            ax.scatter([layer] * n_units, range(n_units), s=70, color="white", edgecolor="#555555", zorder=2)
        ax.scatter([n_layers + 1] * n_classes, np.arange(n_classes) + 1, s=70, color="white", edgecolor=GROWN, zorder=2)
        ax.text(n_layers + 1, n_units - 0.6, name, ha="center", color=GROWN, fontsize=9)
        ax.set(xticks=[], yticks=[], xlim=(-0.4, n_layers + 1.7), ylim=(-0.5, n_units))
        ax.set_title(title, fontsize=10)
        ax.spines[:].set_visible(False)
    named = {"learns": KEPT, "frozen": INACTIVE, "head, learns": GROWN}
    handles = [axes[0].plot([], [], color=color, label=label, linewidth=2)[0] for label, color in named.items()]
    axes[len(panels) // 2].legend(
        handles=handles, frameon=False, fontsize=8.5, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 0.02)
    )
    return pd.DataFrame(rows, columns=["panel", "layer", "start", "end", "learns"])


def weight_paths(
    paths: Sequence[Sequence[float]],
    names: Sequence[str],
    *,
    ax: Axes,
    spans: Sequence[tuple[int, int]] = (),
    band: Sequence[float] | None = None,
) -> pd.DataFrame:
    """Draws the values of a few weights over the steps of training.

    Args:
        paths: The value of each weight at the start, and after each step.
        names: Of the weights.
        ax: Axes.
        spans: Steps, first and last, that are shaded.
        band: Of each step, how far from zero to shade.
    Returns:
        One row a step, from 0 on: `step`, and a column for each weight by its name.
    """
    data = pd.DataFrame(np.asarray(paths, float), columns=list(names))
    data.insert(0, "step", np.arange(len(data)))
    for name, color in zip(names, (KEPT, DROPPED, GROWN, "#CC79A7"), strict=True):
        ax.plot(data["step"], data[name], color=color, label=name)
    for first, last in spans:
        ax.axvspan(first - 0.5, last + 0.5, color="#DDDDDD", zorder=0)
    if band is not None:
        ax.fill_between(data["step"], -np.asarray(band), band, color="#DDDDDD", zorder=0)
    ax.set(xlabel="step", ylabel="weight", xlim=(-0.5, len(data) - 0.5))
    return data
