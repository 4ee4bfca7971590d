"""Claims of the papers, judged."""

import textwrap

import pandas as pd
from matplotlib.axes import Axes

from prunelab import claims
from prunelab.figures.axes import finish, ticks
from prunelab.figures.style import is_share, label

_VERDICT_STYLE = {
    claims.REPRODUCED: {"color": "#0072B2", "marker": "o"},
    claims.INCONCLUSIVE: {"color": "#8C8C8C", "marker": "D"},
    claims.NOT_REPRODUCED: {"color": "#D55E00", "marker": "s"},
}


def forest(judged: pd.DataFrame, *, ax: Axes, metric: str = "test_accuracy") -> pd.DataFrame:
    """Draws claims' differences with their intervals, in the order given; claims that were not judged are left out.

    Args:
        judged: `claims.table`.
        metric: The one whose claims are drawn.
    Returns:
        The rows drawn; where there are none the figure says so.
    """
    rows = claims.pooled(judged).query("metric == @metric and verdict != @claims.NOT_JUDGED").reset_index(drop=True)
    if rows.empty:
        ax.text(0.5, 0.5, "These records judge no claim: they need a larger profile.", ha="center", va="center")
        ax.set_axis_off()
        return rows
    height = ax.figure.get_figheight()
    crowded = height / len(rows) < 0.4  # inches: two lines of text would touch the next claim's
    line_length, text_size, stroke = (72, 7, 11) if crowded else (54, 8, 16)
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
    ax.plot(rows["margin"], rows.index, "|", color="#000000", markersize=stroke, label="margin to exceed")
    ax.axvline(0, color="#000000", linewidth=0.8)
    texts = (rows["claim"] + rows["part"] + "  " + rows["statement"]).str.replace(" %", "\u00a0%")
    ticks(ax.yaxis, range(len(rows)), [textwrap.fill(text, line_length) for text in texts])
    ax.invert_yaxis()
    finish(ax)
    ax.tick_params(axis="y", labelsize=text_size)
    if crowded:
        ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlabel(f"{label(metric)}, difference{' in points' if is_share(metric) else ''}")
    if is_share(metric):
        ax.xaxis.set_major_formatter(lambda share, _: f"{100 * share:+.3g}" if share else "0")
    ax.legend(fontsize=8.5, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.2, -0.65 / height))
    return rows
