"""Verdicts, one comparison above the other."""

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from prunelab import claims, verdicts
from prunelab.figures.axes import finish, ticks

_STYLE = {
    verdicts.REPRODUCED: {"color": "#0072B2", "marker": "o"},
    verdicts.INCONCLUSIVE: {"color": "#8C8C8C", "marker": "D"},
    verdicts.NOT_REPRODUCED: {"color": "#D55E00", "marker": "s"},
}
_INCHES = 0.31  # a row, with two lines of text
_LINE = 84  # letters of a statement
_SETTINGS = ("#000000", "#0072B2", "#E69F00", "#CC79A7", "#009E73", "#56B4E9")
_DIFFERENCE = "difference in the claimed direction, in points"
_LINEAR = 5.0  # points, beyond which the axis is logarithmic: most differences are small, some are not


def forest(judged: pd.DataFrame, *, ax: Axes) -> pd.DataFrame:
    """Draws judged claims' differences with their intervals below the question that they answer, and every replicate.

    The figure becomes as high as the claims need. Beside a difference stand those in other settings, hollow.

    Args:
        judged: `verdicts.table`.
        ax: The only axes of its figure.
    Returns:
        The rows drawn, in the words of `judged`; where there are none the figure says so.
    """
    names = judged["claim"] + judged["part"]
    is_judged = (judged["at"] == "") & (judged["verdict"] != verdicts.NOT_JUDGED)
    rows = judged[is_judged | (judged["verdict"] == verdicts.BESIDE) & names.isin(names[is_judged])]
    if rows.empty:
        return _says_nothing(rows, ax)
    asked, place, texts, heads = claims.questions(), {}, [], []
    for row in rows[rows["at"] == ""].itertuples():
        if row.claim not in (claim for claim, _ in place):
            heads.append(len(texts))
            texts.append(f"{row.claim}  {asked[row.claim]}")
        place[row.claim, row.part] = len(texts)
        texts.append(textwrap.fill(f"{row.part}  {row.statement}".replace(" %", "\u00a0%"), _LINE))
    ax.figure.set_figheight(1.6 + _INCHES * len(texts))

    drawn = rows.assign(y=[place[key] for key in zip(rows["claim"], rows["part"], strict=True)])
    drawn[["difference", "low", "high", "paper", "margin"]] *= 100
    whole, beside = drawn[drawn["at"] == ""], drawn[drawn["at"] != ""]
    for row in whole.itertuples():
        seeds = 100 * np.array(row.seeds.split(), dtype=float)
        ax.plot(seeds, [row.y] * len(seeds), ".", color=_STYLE[row.verdict]["color"], alpha=0.5, markersize=5)
    ax.plot([], [], ".", color="#8C8C8C", alpha=0.6, label="one seed")
    for verdict, style in _STYLE.items():
        own = whole[whole["verdict"] == verdict]
        ends = np.nan_to_num([own["difference"] - own["low"], own["high"] - own["difference"]])
        ax.errorbar(
            own["difference"],
            own["y"],
            xerr=ends,
            fmt=style["marker"],
            color=style["color"],
            markersize=5,
            capsize=2.5,
            label=f"{verdict} ({len(own)})",
        )
    ax.plot(beside["difference"], beside["y"], "o", mfc="none", mec="#444444", ms=5, label="in another setting")
    ax.plot(whole["paper"], whole["y"], "x", color="#000000", markersize=6, label="paper")
    ax.plot(whole["margin"], whole["y"], "|", color="#000000", markersize=11, label="margin to exceed")
    ax.axvline(0, color="#000000", linewidth=0.8)
    ticks(ax.yaxis, range(len(texts)), texts)
    for head in heads:
        ax.get_yticklabels()[head].set_fontweight("bold")
    finish(ax)
    ax.tick_params(axis="y", labelsize=7.5, length=0)
    ax.set_ylim(len(texts) - 0.4, -0.6)
    ax.set_xscale("symlog", linthresh=_LINEAR, linscale=1.5)
    shown = drawn[["difference", "low", "high", "paper"]].to_numpy()
    ax.set_xlim(1.3 * min(-1.0, np.nanmin(shown)), 1.3 * max(1.0, np.nanmax(shown)))
    reach = max(_LINEAR, np.nanmax(np.abs(shown)))
    marks = [mark for mark in (1, 2, 5, 10, 20, 50) if mark <= reach]
    marks = [*(-mark for mark in reversed(marks)), 0, *marks]
    ticks(ax.xaxis, marks, [f"{mark:+}" if mark else "0" for mark in marks])
    of_losses = "; of losses, in hundredths" * any(map(verdicts.is_loss, drawn["metric"]))
    ax.set_xlabel(f"{_DIFFERENCE} (logarithmic beyond ±5){of_losses}")
    below = (1, -0.6 / ax.figure.get_figheight())
    ax.legend(fontsize=8, frameon=False, ncols=4, loc="upper right", bbox_to_anchor=below)
    return rows


def settings(judged: pd.DataFrame, *, ax: Axes, judged_at: str = "judged") -> pd.DataFrame:
    """Draws the same comparisons in several settings, such as lengths of training: where does the sign turn?

    Args:
        judged: `verdicts.table`; of its claims those are drawn that are seen in other settings too.
        ax: The only axes of its figure, which becomes as high as the claims need.
        judged_at: What the legend calls the setting that is judged.
    Returns:
        The rows drawn, in the words of `judged`; where there are none the figure says so.
    """
    names = judged["claim"] + judged["part"]
    elsewhere = set(names[judged["verdict"] == verdicts.BESIDE])
    is_told = judged["verdict"].eq(verdicts.BESIDE) | judged["at"].eq("") & judged["difference"].notna()
    rows = judged[names.isin(elsewhere) & is_told]
    if rows.empty:
        return _says_nothing(rows, ax)
    places = {name: place for place, name in enumerate(dict.fromkeys(names[rows.index]))}
    statements = rows.groupby(names[rows.index], sort=False)["statement"].first()
    ax.figure.set_figheight(1.5 + _INCHES * len(places))
    kinds = {at: at or judged_at for at in rows["at"]}
    for number, (at, kind) in enumerate(kinds.items()):
        own = rows[rows["at"] == at]
        y = names[own.index].map(places) + (number - (len(kinds) - 1) / 2) * 0.18
        difference, low, high = (100 * own[column] for column in ("difference", "low", "high"))
        style = {"color": _SETTINGS[number % len(_SETTINGS)], "marker": "osD^vP"[number % 6]}
        ax.errorbar(difference, y, xerr=[difference - low, high - difference], linestyle="", label=kind, ms=5, **style)
    ax.axvline(0, color="#000000", linewidth=0.8)
    texts = [textwrap.fill(f"{name}  {statements[name]}".replace(" %", "\u00a0%"), _LINE) for name in places]
    ticks(ax.yaxis, range(len(texts)), texts)
    finish(ax)
    ax.tick_params(axis="y", labelsize=7.5, length=0)
    ax.set_ylim(len(texts) - 0.5, -0.5)
    ax.set_xlabel(_DIFFERENCE)
    below = (1, -0.6 / ax.figure.get_figheight())
    ax.legend(fontsize=8, frameon=False, ncols=4, loc="upper right", bbox_to_anchor=below)
    return rows


def _says_nothing(rows: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    ax.figure.set_figheight(1.2)
    ax.text(0.5, 0.5, "These records judge no claim: they need a larger profile.", ha="center", va="center")
    ax.set_axis_off()
    return rows
