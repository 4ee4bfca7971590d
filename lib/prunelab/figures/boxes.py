"""Boxes in an image: where things are, and where a detector finds them."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

_TRUE = {"edgecolor": "white", "linestyle": "--", "linewidth": 1.2}
_FOUND = {"edgecolor": "#d55e00", "linestyle": "-", "linewidth": 1.6}


def scene_boxes(image: ArrayLike, true: pd.DataFrame, found: pd.DataFrame, *, ax: Axes) -> pd.DataFrame:
    """Draws an image with its true boxes, dashed, and those that were found, with class and score.

    Args:
        image: (h, w, c), c is 1 or 3.
        true: One row a box of the image: `class`, `left`, `top`, `right` and `bottom` in pixels.
        found: Likewise, and `score`.
    Returns:
        The same rows, with `kind`, true or found.
    """
    height, width, _ = image.shape
    ax.imshow(image, cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0), interpolation="nearest")
    for rows, style in ((true, _TRUE), (found, _FOUND)):
        for box in rows.to_dict("records"):
            corner, sides = (box["left"], box["top"]), (box["right"] - box["left"], box["bottom"] - box["top"])
            ax.add_patch(Rectangle(corner, *sides, facecolor="none", **style))
    for box in found.to_dict("records"):
        text = f"{box['class']} {box['score']:.2f}"
        ax.text(box["left"], box["top"], text, fontsize=7, va="bottom", color="white", backgroundcolor="#d55e00b0")
    ax.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    return pd.concat([true.assign(kind="true"), found.assign(kind="found")], ignore_index=True)
