"""Figures as files, and in a notebook as pictures with words."""

import base64
import io
import re
from collections.abc import Iterable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from prunelab import paths
from prunelab.files import atomic_write

SIZE = (7.5, 4.5)  # inches: the width of a notebook's column
_DPI = 110  # more than a notebook shows, for sharp screens
_SHOWN_DPI = 100


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
    stem = _stem(notebook, profile, name, alt)
    _settle(fig)
    png = _png(fig)
    atomic_write(stem.with_suffix(".png"), png)
    atomic_write(stem.with_suffix(".svg"), _svg(fig))
    numbers = data.map(_rounded, na_action="ignore")
    atomic_write(stem.with_suffix(".csv"), numbers.to_csv(index=False, lineterminator="\n"))
    plt.close(fig)
    _show(png, alt, width=round(fig.get_figwidth() * _SHOWN_DPI))


def save_animation(frames: Iterable[Figure], notebook: str, profile: str, name: str, *, alt: str) -> None:
    """Writes figures of one size as an animated PNG, half a second each, and closes them; as for `save_figure`."""
    stem, pictures = _stem(notebook, profile, name, alt), []
    for fig in frames:
        _settle(fig)
        pictures.append(Image.open(io.BytesIO(_png(fig))))
        width = round(fig.get_figwidth() * _SHOWN_DPI)
        plt.close(fig)
    buffer = io.BytesIO()
    first, *others = pictures
    first.save(buffer, "PNG", save_all=True, append_images=others, duration=500, loop=0)
    atomic_write(stem.with_suffix(".png"), buffer.getvalue())
    _show(buffer.getvalue(), alt, width=width)


def _stem(notebook: str, profile: str, name: str, alt: str) -> Path:
    """Returns the path of a figure's files, without ending; errors as for `save_figure`."""
    for part in (notebook, profile, name):
        if not re.fullmatch(r"\w+", part, re.ASCII):
            raise ValueError(f"names of figures and folders have letters, digits and underscores only; got {part!r}")
    if not alt.strip():
        raise ValueError("alt must say in words what the figure shows")
    return paths.FIGURES / notebook / profile / name


def _rounded(value: object) -> object:
    """Writes a fraction as files have it: processors differ in the last digits, and in all where shares cancel out."""
    if not isinstance(value, float | np.floating):
        return value
    rounded = round(float(value), 14) if abs(value) < 1e-3 else float(f"{value:.12g}")
    return repr(rounded + 0.0)  # and never -0.0


def _settle(fig: Figure) -> None:
    """Ends the layout, whose solver leaves noise in the last digits: equal figures shall give equal bytes."""
    fig.set_dpi(_DPI)  # text is not equally wide at all resolutions
    if engine := fig.get_layout_engine():
        engine.execute(fig)
    fig.set_layout_engine(None)  # for one called "none" savefig would draw twice
    for ax in fig.axes:
        ax.set_position([round(edge, 6) for edge in ax.get_position(original=True).bounds])


def _png(fig: Figure) -> bytes:
    """Returns a picture with a palette, a quarter of the size of one without: notebooks carry their figures in git."""
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    # An octree keeps rare colours, such as that of a method with three markers.
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    picture = picture.quantize(method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _svg(fig: Figure) -> bytes:
    buffer = io.BytesIO()
    with plt.rc_context({"svg.hashsalt": "prunelab"}):
        fig.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _show(png: bytes, alt: str, *, width: int) -> None:
    from IPython import get_ipython
    from IPython.display import display

    if get_ipython() is not None:
        output = {"image/png": base64.b64encode(png).decode(), "text/plain": alt}
        display(output, metadata={"image/png": {"alt": alt, "width": width}}, raw=True)
