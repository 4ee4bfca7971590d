"""Drawings of records. They neither train nor change a number, and each returns the numbers it drew.

They draw into axes that the caller made and titles:

    fig, ax = plt.subplots(figsize=figures.SIZE, layout="constrained")
    data = figures.metric_vs_sparsity(frame, ax=ax)
    figures.save_figure(fig, "01_rigl", profile, "accuracy_vs_sparsity", data=data, alt="...")

A line joins means over seeds and a marker is one run. A hollow marker is a run that diverged; it counts in
its mean. Where a diverged run has no value its mean has none either, and its marker stands on the lower edge.
"""

import base64
import io
import re
import textwrap
from collections.abc import Iterable, Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator
from PIL import Image

from prunelab import claims, paths
from prunelab.files import atomic_write

SIZE = (7.5, 4.5)  # inches: the width of a notebook's column
_DPI = 130  # more than a notebook shows, for sharp screens
_SHOWN_DPI = 100

# Okabe and Ito's colours, which colour-blind readers can tell apart; markers differ as well.
METHOD_STYLE: dict[str, dict[str, str]] = {
    "dense": {"color": "#000000", "marker": "P", "label": "dense"},
    "small_dense": {"color": "#8C8C8C", "marker": "s", "label": "small dense (same parameters)"},
    "small_dense_macs": {"color": "#CC79A7", "marker": "D", "label": "small dense (same MACs)"},
    "static": {"color": "#E69F00", "marker": "v", "label": "static"},
    "set": {"color": "#009E73", "marker": "^", "label": "SET"},
    "rigl": {"color": "#0072B2", "marker": "o", "label": "RigL"},
}
DISTRIBUTION_STYLE: dict[str, dict[str, str]] = {
    "uniform": {"color": "#E69F00", "marker": "s", "label": "uniform"},
    "erdos_renyi": {"color": "#009E73", "marker": "^", "label": "Erdős–Rényi"},
    "erk": {"color": "#0072B2", "marker": "o", "label": "ERK"},
}
_STYLES = {"method": METHOD_STYLE, "distribution": DISTRIBUTION_STYLE}
_VERDICT_STYLE = {
    claims.REPRODUCED: {"color": "#0072B2", "marker": "o"},
    claims.INCONCLUSIVE: {"color": "#8C8C8C", "marker": "D"},
    claims.NOT_REPRODUCED: {"color": "#D55E00", "marker": "s"},
}
_LABELS = {
    "train_loss": "training loss",
    "density": "density of the layer",
    "survival": "initial connections still active",
    "macs_ratio": "inference MACs, relative to dense",
    "training_macs_ratio": "training MACs, relative to dense",
}


def save_figure(fig: Figure, notebook: str, profile: str, name: str, *, data: pd.DataFrame, alt: str) -> None:
    """Writes a figure to `figures/<notebook>/<profile>/` as PNG, SVG and CSV, and closes it.

    A notebook shows the PNG, with `alt` as its text. Equal figures give equal bytes.

    Args:
        fig: With a size and a title.
        notebook: Stem of the notebook, such as "01_rigl".
        profile: Whose records are drawn.
        name: Of the files, without ending.
        data: The plotted numbers.
        alt: The figure in words, for who cannot see it; the same whatever the numbers are.
    Raises:
        ValueError: A name that is not of letters, digits and underscores, or no words.
    """
    for part in (notebook, profile, name):
        if not re.fullmatch(r"\w+", part, re.ASCII):
            raise ValueError(f"names of figures and folders have letters, digits and underscores only; got {part!r}")
    if not alt.strip():
        raise ValueError("alt must say in words what the figure shows")
    stem = paths.FIGURES / notebook / profile / name
    png = _few_colors(_bytes(fig, "png", dpi=_DPI, metadata={"Software": None}))
    with plt.rc_context({"svg.hashsalt": "prunelab"}):
        svg = _bytes(fig, "svg", metadata={"Date": None, "Creator": None})
    atomic_write(stem.with_suffix(".png"), png)
    atomic_write(stem.with_suffix(".svg"), svg)
    atomic_write(stem.with_suffix(".csv"), data.to_csv(index=False, lineterminator="\n"))
    plt.close(fig)
    _show(png, alt, width=round(fig.get_figwidth() * _SHOWN_DPI))


def _bytes(fig: Figure, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    fig.savefig(buffer, format=kind, **options)
    return buffer.getvalue()


def _few_colors(png: bytes) -> bytes:
    """The same picture with a palette, a quarter of the size: notebooks carry their figures in git."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as picture:
        picture.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _show(png: bytes, alt: str, *, width: int) -> None:
    from IPython import get_ipython
    from IPython.display import display

    if get_ipython() is not None:
        output = {"image/png": base64.b64encode(png).decode(), "text/plain": alt}
        display(output, metadata={"image/png": {"alt": alt, "width": width}}, raw=True)


def metric_vs_sparsity(
    frame: pd.DataFrame,
    metric: str = "test_accuracy",
    *,
    ax: Axes,
    by: str = "method",
    reference: str | None = None,
) -> pd.DataFrame:
    """A metric against sparsity, spaced so that each halving of the density is a step of the same width.

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
    levels = frame[frame["method"] == reference]
    runs = _with_means(frame[frame["method"] != reference], metric, by=by)
    drawn = [runs.assign(kind="run")]
    styles = _styles(by, runs[by])
    for value, style in styles.items():
        _draw_line(runs[runs[by] == value], "density", metric, ax=ax, style=style)
    if len(levels):
        drawn.append(_draw_level(levels, metric, ax=ax).assign(kind="reference"))
    data = pd.concat(drawn)
    _sparsity_axis(ax, runs["density"])
    _metric_axis(ax, metric)
    _finish(ax, diverged=(data["status"] == "diverged").any(), legend_at="lower left")
    return data[["kind", by, "density", "seed", "status", metric, "mean"]].reset_index(drop=True)


def published(points: pd.DataFrame, *, ax: Axes, reference: str | None = None) -> pd.DataFrame:
    """A paper's accuracies against sparsity, one line a method, with its standard deviations as bars.

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
    for method, style in _styles("method", drawn["method"]).items():
        own = drawn[drawn["method"] == method].sort_values("density")
        if method == reference:
            ax.axhline(
                own["accuracy"].item(), color=style["color"], linestyle="--", linewidth=1.5, label=style["label"]
            )
        else:
            ax.errorbar(own["density"], own["accuracy"], own["std"], capsize=2, markersize=5, linewidth=1.8, **style)
    _sparsity_axis(ax, drawn.loc[drawn["method"] != reference, "density"])
    _metric_axis(ax, "test_accuracy")
    _finish(ax, legend_at="lower left")
    return drawn


def metric_vs_cost(
    frame: pd.DataFrame,
    x: str = "training_macs_ratio",
    metric: str = "test_accuracy",
    *,
    ax: Axes,
    by: str = "method",
) -> pd.DataFrame:
    """A metric against what it cost, on a logarithmic axis; lines join the densities of one method.

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
    runs = _with_means(frame, metric, by=by)
    for value, style in _styles(by, runs[by]).items():
        _draw_line(runs[runs[by] == value], x, metric, ax=ax, style=style)
    ax.set_xscale("log")
    ax.set_xlabel(_label(x))
    low, high = runs[x].min(), runs[x].max()
    costs = MaxNLocator(5).tick_values(low, high)
    if high > 3 * low:
        steps = (digit * 10.0**power for power in range(-4, 4) for digit in (1, 2, 5))
        costs = [step for step in steps if low / 1.3 <= step <= high * 1.3]
    _ticks(ax.xaxis, costs, [_percent(cost) for cost in costs])
    _metric_axis(ax, metric)
    _finish(ax, diverged=(runs["status"] == "diverged").any())
    return runs[[by, "density", "seed", "status", x, metric, "mean"]].reset_index(drop=True)


def curves(records: Iterable[dict], metric: str = "test_accuracy", *, ax: Axes, by: str = "method") -> pd.DataFrame:
    """A metric over training: a thin line for each run, a thick one for the mean where all runs have a value.

    Args:
        records: With one run a seed for each value of `by`.
        metric: A key of their `curves`.
        by: The option that tells the lines apart.
    Returns:
        One row a point: `by`, `seed`, `epoch`, the metric.
    Raises:
        ValueError: Several runs of one seed in a line, or a value of `by` without a style.
    """
    points = [
        pd.DataFrame({"epoch": record["curves"]["epoch"], metric: record["curves"][metric]}).assign(
            **{by: record["options"][by], "seed": record["seed"], "status": record["status"]}
        )
        for record in records
    ]
    data = pd.concat(points, ignore_index=True)
    data[metric] = pd.to_numeric(data[metric])
    _check_one_run_a_seed(data, [by, "epoch"])
    for value, style in _styles(by, data[by]).items():
        group = data[data[by] == value]
        for _, run in group.groupby("seed"):
            ax.plot(run["epoch"], run[metric], color=style["color"], linewidth=0.8, alpha=0.4)
            if run["status"].iloc[0] == "diverged":
                _draw_diverged(run.tail(1), "epoch", metric, ax=ax, style=style)
        mean = group.pivot(index="epoch", columns="seed", values=metric).mean(axis=1, skipna=False)
        n = group["seed"].nunique()
        ax.plot(mean.index, mean, color=style["color"], linewidth=2, label=f"{style['label']} (n={n})")
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _metric_axis(ax, metric)
    _finish(ax, diverged=(data["status"] == "diverged").any())
    return data[[by, "seed", "status", "epoch", metric]]


def layer_densities(densities: Mapping[str, Mapping[str, float]], *, ax: Axes) -> pd.DataFrame:
    """How dense each layer is, first layer first.

    Args:
        densities: Of each layer by name, for one or more distributions, methods or other labels.
    Returns:
        One row a point: `of`, `layer`, `density`.
    """
    fullest_first = sorted(densities.values(), key=len, reverse=True)  # uniform leaves the first layer out
    layers = list(dict.fromkeys(layer for own in fullest_first for layer in own))
    known = METHOD_STYLE | DISTRIBUTION_STYLE
    styles = known if densities.keys() <= known.keys() else _palette(list(densities))
    for label, own in densities.items():
        drawn = [layer for layer in layers if layer in own]
        at = [layers.index(layer) for layer in drawn]
        ax.plot(at, [own[layer] for layer in drawn], linewidth=1.2, markersize=5, **styles[label])
    ax.set_ylim(0, 1.04)
    _ticks(ax.xaxis, range(len(layers)), layers)
    ax.tick_params(axis="x", labelrotation=90 if len(layers) > 6 else 0)
    _metric_axis(ax, "density")
    _finish(ax)
    rows = [(label, layer, density) for label, own in densities.items() for layer, density in own.items()]
    return pd.DataFrame(rows, columns=["of", "layer", "density"])


def measured_densities(record: dict) -> dict[str, float]:
    """Density of each layer of a trained network, for `layer_densities`."""
    return {layer["name"]: layer["n_active"] / layer["n_weights"] for layer in record["layers"]}


def mask_survival(record: dict, *, ax: Axes) -> pd.DataFrame:
    """Share of a layer's active connections that were active at the start, over training; one line a layer.

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
    ax.set_xlabel("step")
    ax.set_ylim(0, 1.04)
    _metric_axis(ax, "survival")
    _finish(ax)
    return (
        pd.DataFrame(survival, columns=layers, index=pd.Index(steps, name="step"))
        .melt(var_name="layer", value_name="survival", ignore_index=False)
        .reset_index()
    )


def forest(judged: pd.DataFrame, *, ax: Axes, metric: str = "test_accuracy") -> pd.DataFrame:
    """Claims' differences with their intervals, in the order given; claims that were not judged are left out.

    Args:
        judged: `claims.table`.
        metric: The one whose claims are drawn.
    Returns:
        The rows drawn; where there are none the figure says so.
    """
    rows = judged[(judged["metric"] == metric) & (judged["verdict"] != claims.NOT_JUDGED)].reset_index(drop=True)
    if rows.empty:
        ax.text(0.5, 0.5, "These records judge no claim: they need a larger profile.", ha="center", va="center")
        ax.set_axis_off()
        return rows
    for verdict, style in _VERDICT_STYLE.items():
        own = rows[rows["verdict"] == verdict]
        ax.errorbar(
            own["difference"],
            own.index,
            xerr=[own["difference"] - own["low"], own["high"] - own["difference"]],
            fmt=style["marker"],
            color=style["color"],
            capsize=3,
            label=f"{verdict} ({len(own)})",
        )
    ax.plot(rows["paper"], rows.index, "x", color="#000000", markersize=6, label="paper")
    ax.plot(rows["margin"], rows.index, "|", color="#000000", markersize=16, label="margin to exceed")
    ax.axvline(0, color="#000000", linewidth=0.8)
    texts = [f"{row.claim}{row.part}  {row.statement}" for row in rows.itertuples()]
    _ticks(ax.yaxis, range(len(rows)), [textwrap.fill(text.replace(" %", "\u00a0%"), 54) for text in texts])
    ax.invert_yaxis()
    _finish(ax)
    ax.tick_params(axis="y", labelsize=8)
    ax.set_xlabel(_label(metric) + ", difference")
    if _is_share(metric):
        ax.set_xlabel(_label(metric) + ", difference in points")
        ax.xaxis.set_major_formatter(lambda share, _: f"{100 * share:+.3g}" if share else "0")
    ax.legend(fontsize=8.5, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.2, -0.1))
    return rows


def _with_means(frame: pd.DataFrame, metric: str, *, by: str) -> pd.DataFrame:
    """The runs, each with the mean over the seeds at its point."""
    points = [by, "density"]
    _check_one_run_a_seed(frame, points)
    frame = frame.assign(**{metric: pd.to_numeric(frame[metric])})
    means = frame.groupby(points)[metric].transform(lambda values: values.mean(skipna=False))
    return frame.assign(mean=means)


def _check_one_run_a_seed(frame: pd.DataFrame, points: list[str]) -> None:
    repeated = frame[frame.duplicated([*points, "seed"])]
    if len(repeated):
        at = ", ".join(f"{column} {repeated.iloc[0][column]}" for column in [*points, "seed"])
        raise ValueError(f"several runs at {at}: their mean would mix them; hand in fewer, or tell them apart by=...")


def _styles(by: str, values: Iterable) -> dict:
    """How to draw each value present, in the order of drawing."""
    present = list(dict.fromkeys(values))
    if by not in _STYLES:
        return _palette(sorted(present))
    if unknown := sorted(set(present) - _STYLES[by].keys()):
        raise ValueError(f"no style for {by} {', '.join(unknown)}; there are {', '.join(_STYLES[by])}")
    return {value: style for value, style in _STYLES[by].items() if value in present}


def _palette(values: list) -> dict:
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.85, len(values)))
    return {
        value: {"color": color, "marker": "osD^vP"[number % 6], "label": str(value)}
        for number, (value, color) in enumerate(zip(values, colors, strict=True))
    }


def _draw_line(runs: pd.DataFrame, x: str, metric: str, *, ax: Axes, style: dict) -> None:
    means = runs.groupby("density").agg(x=(x, "mean"), y=("mean", "first"))
    color, marker = style["color"], style["marker"]
    ax.plot(means["x"], means["y"], color=color, linewidth=1.8)
    finished = runs[runs["status"] != "diverged"]
    ax.plot(finished[x], finished[metric], marker, color=color, markersize=5, alpha=0.7, markeredgewidth=0)
    _draw_diverged(runs[runs["status"] == "diverged"], x, metric, ax=ax, style=style)
    n = runs.groupby("density")["seed"].nunique()
    seeds = f"{n.min()}" if n.min() == n.max() else f"{n.min()} to {n.max()}"
    label = f"{style['label']} (n={seeds})"
    _add_to_legend(ax, color=color, marker=marker, markersize=5, linewidth=1.8, label=label)


def _add_to_legend(ax: Axes, **style) -> None:
    # A line without points still has markers' extent, at the figure's corner, and would push the axes there.
    ax.plot([], [], **style)[0].set_in_layout(False)


def _draw_diverged(runs: pd.DataFrame, x: str, metric: str, *, ax: Axes, style: dict) -> None:
    hollow = {"color": style["color"], "marker": style["marker"], "markersize": 8, "linestyle": ""}
    hollow["markerfacecolor"] = "none"
    valued, lost = runs[runs[metric].notna()], runs[runs[metric].isna()]
    if len(valued):
        ax.plot(valued[x], valued[metric], **hollow)
    if len(lost):
        ax.plot(lost[x], np.zeros(len(lost)), transform=ax.get_xaxis_transform(), clip_on=False, **hollow)


def _draw_level(runs: pd.DataFrame, metric: str, *, ax: Axes) -> pd.DataFrame:
    _check_one_run_a_seed(runs, ["method"])
    style = METHOD_STYLE[runs["method"].iloc[0]]
    values = pd.to_numeric(runs[metric])
    mean = values.mean(skipna=False)
    ax.axhspan(values.min(), values.max(), color=style["color"], alpha=0.12, linewidth=0)
    ax.axhline(mean, color=style["color"], linestyle="--", linewidth=1.5, label=f"{style['label']} (n={len(runs)})")
    return runs.assign(mean=mean)


def _ticks(axis: Axis, positions: Iterable[float], labels: Iterable[str]) -> None:
    axis.set_major_locator(FixedLocator(list(positions)))
    axis.set_major_formatter(FixedFormatter(list(labels)))
    axis.set_minor_locator(NullLocator())


def _sparsity_axis(ax: Axes, densities: Iterable[float]) -> None:
    ax.set_xscale("log")
    ax.set_xlabel("sparsity")
    marked = sorted(set(densities))
    _ticks(ax.xaxis, marked, [_percent(1 - density) for density in marked])
    ax.invert_xaxis()


def _is_share(metric: str) -> bool:
    return metric.endswith(("accuracy", "density", "ratio", "survival"))


def _percent(share: float, _position: int | None = None) -> str:
    return f"{100 * share:.4g} %"


def _label(metric: str) -> str:
    return _LABELS.get(metric, metric.replace("_", " "))


def _metric_axis(ax: Axes, metric: str) -> None:
    ax.set_ylabel(_label(metric))
    if _is_share(metric):
        ax.yaxis.set_major_formatter(_percent)


def _finish(ax: Axes, *, diverged: bool = False, legend_at: str = "best") -> None:
    """What all drawings share: a light grid, and a legend, which explains hollow markers."""
    if diverged:
        hollow = {"color": "#555555", "marker": "o", "markersize": 8, "markerfacecolor": "none", "linestyle": ""}
        _add_to_legend(ax, **hollow, label="diverged")
    ax.grid(True, color="#E6E6E6", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=9, color="#999999")
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=8.5, frameon=False, loc=legend_at)
