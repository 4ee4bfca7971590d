"""What time depends on, as `prunelab bench` measured it."""

from collections.abc import Iterable, Sequence

import pandas as pd
from matplotlib.axes import Axes

from prunelab.figures.axes import finish, ticks


def speed_curves(curves: Iterable[dict], *, axes: Sequence[Axes]) -> pd.DataFrame:
    """Draws a panel for each curve, a marker for each measured point.

    Args:
        curves: As `bench.curves` gives them: `name`, `x`, `y`, `points`.
        axes: One for each curve.
    Returns:
        One row a point: `curve`, `x`, `y`.
    """
    data = []
    for curve, ax in zip(curves, axes, strict=True):
        x, y = zip(*curve["points"], strict=True)
        ax.plot(x, y, marker="o", color="#333333")
        ax.set_xlabel(curve["x"])
        ax.set_ylabel(curve["y"])
        ticks(ax.xaxis, x, map(str, x))
        ax.set_ylim(bottom=0)
        finish(ax)
        data.append(pd.DataFrame({"curve": curve["name"], "x": x, "y": y}))
    return pd.concat(data)
