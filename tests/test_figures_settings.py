"""Figures that compare settings, paths and pixels: what they draw and return, worked out by hand."""

from itertools import pairwise

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from prunelab import figures


@pytest.fixture
def ax():
    fig, ax = plt.subplots(figsize=figures.SIZE)
    yield ax
    fig.draw_without_rendering()  # whatever was drawn can be rendered
    plt.close(fig)


def table(columns, *rows):
    """Runs as `records.frame` has them; all finished unless a column `status` says more."""
    frame = pd.DataFrame(rows, columns=columns.split())
    return frame if "status" in frame else frame.assign(status="finished")


def labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def texts(ax):
    return [text.get_text() for text in ax.texts]


def hollow(ax):
    return [line for line in ax.lines if line.get_markerfacecolor() == "none" and len(line.get_xdata())]


def points_of(ax, color):
    """Drawn points of one colour, line by line."""
    return [line.get_xydata().round(9).tolist() for line in ax.lines if line.get_color() == color]


LONGER = table(
    "method train_multiplier density seed test_accuracy",
    ("dense", 1, 1.0, 0, 0.80),
    ("dense", 1, 1.0, 1, 0.82),
    ("rigl", 5, 0.1, 0, 0.76),
    ("rigl", 5, 0.1, 1, 0.78),
    ("rigl", 1, 0.1, 0, 0.70),
    ("rigl", 1, 0.1, 1, 0.72),
    ("rigl", 2, 0.1, 0, 0.73),
)


def test_runs_and_means_stand_at_the_values_of_the_column(ax):
    data = figures.metric_vs(LONGER, "train_multiplier", ax=ax, reference="dense")
    line, markers, _ = points_of(ax, figures.METHOD_STYLE["rigl"]["color"])
    assert line == [[1, 0.71], [2, 0.73], [5, 0.77]]
    assert sorted(markers) == [[1, 0.70], [1, 0.72], [2, 0.73], [5, 0.76], [5, 0.78]]
    (level, _), *_ = points_of(ax, figures.METHOD_STYLE["dense"]["color"])
    assert level == [0, 0.81]
    assert list(data) == ["kind", "method", "train_multiplier", "seed", "status", "test_accuracy", "mean"]
    assert data["kind"].tolist() == ["run"] * 5 + ["reference"] * 2
    assert data["mean"].round(9).tolist() == [0.77, 0.77, 0.71, 0.71, 0.73, 0.81, 0.81]
    assert legend(ax) == ["RigL (n=1 to 2)", "dense (n=2)"]


def test_ticks_of_a_column_stand_at_its_values_on_a_logarithmic_axis(ax):
    figures.metric_vs(LONGER, "train_multiplier", ax=ax, reference="dense")
    assert ax.get_xscale() == "log" and ax.get_xlabel() == "length of training"
    assert ax.get_xticks().tolist() == [1, 2, 5] and labels(ax.xaxis) == ["1×", "2×", "5×"]
    assert not len(ax.get_xticks(minor=True))


def test_column_that_reaches_zero_has_a_linear_axis_and_plain_ticks(ax):
    frame = LONGER[LONGER["method"] == "rigl"].assign(momentum=[0.5, 0.5, 0.0, 0.0, 0.9])
    figures.metric_vs(frame, "momentum", ax=ax)
    assert ax.get_xscale() == "linear" and labels(ax.xaxis) == ["0", "0.5", "0.9"]


def test_lines_by_density_say_how_many_weights_are_left(ax):
    frame = LONGER[LONGER["method"] == "rigl"]
    figures.metric_vs(
        pd.concat([frame.assign(density=0.211), frame.assign(density=0.036)]), "train_multiplier", ax=ax, by="density"
    )
    assert legend(ax) == ["3.6 % (n=1 to 2)", "21.1 % (n=1 to 2)"]
    assert ax.get_legend().get_title().get_text() == "weights left"


def test_mixed_runs_and_missing_values_are_refused(ax):
    mixed = pd.concat([LONGER, LONGER.assign(density=0.2)])
    with pytest.raises(ValueError, match="several runs at method rigl, train_multiplier 5, seed 0"):
        figures.metric_vs(mixed, "train_multiplier", ax=ax, reference="dense")
    with pytest.raises(ValueError, match="several runs at method rigl, seed 0"):
        figures.strips(LONGER, "method", ax=ax)
    with pytest.raises(ValueError, match=r"several runs at density 0\.1, method rigl, seed 0"):
        figures.heat_map(LONGER, "method", "density", ax=ax)
    partly = LONGER.assign(update_every=[None, None, 100, 100, 10, 10, 10])
    draws = (figures.metric_vs, figures.strips, lambda frame, x, *, ax: figures.heat_map(frame, x, "method", ax=ax))
    for draw in draws:
        with pytest.raises(ValueError, match="update_every is missing in 2 of 7 runs"):
            draw(partly, "update_every", ax=ax)


STARTS = table(
    "start seed test_accuracy status",
    ("ticket", 0, 0.70, "finished"),
    ("ticket", 1, 0.74, "finished"),
    ("fresh", 0, 0.60, "finished"),
    ("fresh", 1, 0.20, "diverged"),
    ("shuffled", 0, 0.50, "finished"),
    ("shuffled", 1, None, "diverged"),
)


def test_each_setting_is_a_column_with_its_mean_in_order_of_appearance(ax):
    data = figures.strips(STARTS, "start", ax=ax)
    assert labels(ax.xaxis) == ["ticket\n(n=2)", "from scratch\n(n=2)", "random mask\n(n=2)"]
    assert texts(ax) == ["72.0 %", "40.0 %"]
    bars = [bar.get_segments()[0][:, 1].tolist() for bar in ax.collections]
    assert bars == [pytest.approx([0.72] * 2), pytest.approx([0.4] * 2)]
    (dots,) = points_of(ax, figures.START_STYLE["ticket"]["color"])
    assert [y for _, y in dots] == [0.70, 0.74] and np.mean([x for x, _ in dots]) == pytest.approx(0)
    assert data.to_dict("list")["start"] == ["ticket"] * 2 + ["fresh"] * 2 + ["shuffled"] * 2
    assert data["mean"].tolist() == pytest.approx([0.72, 0.72, 0.4, 0.4, np.nan, np.nan], nan_ok=True)
    assert list(data) == ["start", "seed", "status", "test_accuracy", "mean"]


def test_diverged_runs_of_a_setting_are_hollow_and_on_the_edge_without_a_value(ax):
    figures.strips(STARTS, "start", ax=ax)
    valued, lost = hollow(ax)
    assert valued.get_ydata().tolist() == [0.20]
    assert lost.get_ydata().tolist() == [0.0] and lost.get_transform() == ax.get_xaxis_transform()
    assert [line.get_ydata().tolist() for line in ax.lines if len(line.get_xdata()) and line not in (valued, lost)] == [
        [0.70, 0.74],
        [0.60],
        [0.50],
    ]
    assert legend(ax) == ["diverged"]
    ax.clear()
    figures.strips(STARTS.head(2), "start", ax=ax)
    assert ax.get_legend() is None and not hollow(ax)


def test_settings_are_named_by_the_caller_or_as_they_are(ax):
    frame = table("momentum seed test_loss", (0.9, 0, 1.1), (0.0, 0, 1.25))
    figures.strips(frame, "momentum", "test_loss", ax=ax, labels={0.0: "this batch only"})
    assert labels(ax.xaxis) == ["0.9\n(n=1)", "this batch only\n(n=1)"]
    assert texts(ax) == ["1.10", "1.25"] and ax.get_ylabel() == "test loss"
    assert [line.get_xdata().tolist() for line in ax.lines] == [[0], [1]]


@pytest.mark.parametrize("n_panels", [1, 2, 3])
def test_names_side_by_side_do_not_touch_in_narrow_panels(n_panels):
    fig, axes = plt.subplots(1, n_panels, figsize=(14, 4), layout="constrained", squeeze=False)
    rows = [
        (name, 0, 0.5) for name in ("large network", "fine-tuned", "Scratch-E (same epochs)", "Scratch-B (same MACs)")
    ]
    figures.strips(table("setting seed test_accuracy", *rows), "setting", ax=axes[0, -1])
    fig.draw_without_rendering()
    boxes = [label.get_window_extent() for label in axes[0, -1].get_xticklabels()]
    assert len(boxes) == 4 and all(left.x1 < right.x0 for left, right in pairwise(boxes))
    plt.close(fig)


def test_unknown_start_is_named_with_the_known_ones(ax):
    with pytest.raises(ValueError, match="no style for start sesame; there are fresh, shuffled"):
        figures.strips(STARTS.replace("fresh", "sesame"), "start", ax=ax)


GRID = table(
    "update_every drop_fraction seed test_accuracy status",
    (100, 0.5, 0, 0.70, "finished"),
    (100, 0.5, 1, 0.71, "finished"),
    (50, 0.5, 0, 0.60, "finished"),
    (50, 0.5, 1, 0.10, "diverged"),
    (100, 0.3, 0, 0.50, "finished"),
    (100, 0.3, 1, None, "diverged"),
)


def test_grid_of_numbers_ascends_and_says_what_is_missing_or_diverged(ax):
    data = figures.heat_map(GRID, "update_every", "drop_fraction", ax=ax)
    assert labels(ax.xaxis) == ["50", "100"] and labels(ax.yaxis) == ["0.3", "0.5"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("steps between updates", "share that moves at first")
    assert {text.get_position(): text.get_text() for text in ax.texts} == {
        (0.5, 0.5): "–",
        (1.5, 0.5): "–\n1 diverged",
        (0.5, 1.5): "35.0\n1 diverged",
        (1.5, 1.5): "70.5",
    }
    bottom, top = ax.get_ylim()
    assert bottom < top
    assert data.to_dict("list") == {
        "drop_fraction": [0.5, 0.5, 0.3],
        "update_every": [100, 50, 100],
        "test_accuracy": pytest.approx([0.705, 0.35, np.nan], nan_ok=True),
        "n": [2, 2, 2],
        "n_diverged": [0, 1, 1],
    }
    bar = ax.figure.axes[1]
    assert bar.get_ylabel() == "test accuracy (n=2)" and "40 %" in labels(bar.yaxis)


def test_grid_of_categories_keeps_their_order_with_the_first_on_top(ax):
    frame = table(
        "source target seed test_loss", ("b", "z", 0, 1.0), ("b", "y", 0, 2.0), ("a", "z", 0, 3.0), ("a", "y", 0, 4.0)
    )
    figures.heat_map(frame, "target", "source", "test_loss", ax=ax)
    assert labels(ax.xaxis) == ["z", "y"] and labels(ax.yaxis) == ["b", "a"]
    assert texts(ax) == ["1.00", "2.00", "3.00", "4.00"]
    (mesh,) = ax.collections
    assert mesh.get_array().tolist() == [[1, 2], [3, 4]]
    bottom, top = ax.get_ylim()
    assert bottom > top


def test_numbers_in_a_grid_contrast_with_their_cells(ax):
    frame = table("x y seed test_loss", *((x, 0, 0, float(x)) for x in range(12)))
    figures.heat_map(frame, "x", "y", "test_loss", ax=ax)
    (mesh,) = ax.collections
    for text, color in zip(ax.texts, mesh.to_rgba(np.arange(12.0)), strict=True):
        lightness, background = (np.dot(rgb, (0.2126, 0.7152, 0.0722)) for rgb in (to_rgb(text.get_color()), color[:3]))
        assert abs(lightness - background) > 0.4


@pytest.mark.parametrize("counts", [[5, 6, 7, 8], np.array([[5, 6], [7, 8]])])
def test_pixels_lie_row_by_row_and_colors_start_at_zero(ax, counts):
    data = figures.pixel_map(counts, ax=ax)
    (picture,) = ax.images
    assert picture.get_array().tolist() == [[5, 6], [7, 8]]
    assert picture.get_clim() == (0, 8)
    assert data.to_dict("list") == {"row": [0, 0, 1, 1], "column": [0, 1, 0, 1], "connections": [5, 6, 7, 8]}
    assert ax.figure.axes[1].get_ylabel() == "connections of the pixel"


@pytest.mark.parametrize("counts", [[], [1, 2, 3]])
def test_pixels_that_fill_no_square_are_refused(ax, counts):
    with pytest.raises(ValueError, match=f"must fill a square .* got {len(counts)}"):
        figures.pixel_map(counts, ax=ax)


def path_record(path, seed, losses, status="finished"):
    curves = {"position": [0.0, 0.5, 1.0], "train_loss": losses}
    return {"options": {"path": path}, "seed": seed, "status": status, "curves": curves}


def test_path_has_a_thin_line_a_seed_and_a_thick_mean(ax):
    records = [path_record("line", 0, [0.2, 1.0, 0.2]), path_record("line", 1, [0.4, 1.4, 0.2])]
    data = figures.loss_paths(records, ax=ax)
    thin, other, mean = ax.lines
    assert thin.get_ydata().tolist() == [0.2, 1.0, 0.2] and other.get_ydata().tolist() == [0.4, 1.4, 0.2]
    assert mean.get_xdata().tolist() == [0, 0.5, 1] and mean.get_ydata() == pytest.approx([0.3, 1.2, 0.2])
    assert thin.get_linewidth() < mean.get_linewidth()
    assert legend(ax) == ["straight line (n=2)"] and ax.get_yscale() == "linear"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("position on the path", "training loss")
    assert list(data) == ["path", "seed", "status", "position", "train_loss"] and len(data) == 6


@pytest.mark.parametrize(
    "losses, scale", [([0.1, 1.0, 0.2], "linear"), ([0.1, 1.1, 0.2], "log"), ([0, 1, 0], "linear")]
)
def test_loss_axis_is_logarithmic_over_more_than_a_factor_of_ten(ax, losses, scale):
    figures.loss_paths([path_record("cubic_sparse", 0, losses)], ax=ax)
    assert ax.get_yscale() == scale
    if scale == "log":
        assert labels(ax.yaxis) == ["0.1", "0.2", "0.5", "1"]


def test_paths_unknown_or_told_twice_are_refused_and_lost_losses_are_hollow(ax):
    with pytest.raises(ValueError, match="no style for path detour; there are line, quadratic_sparse"):
        figures.loss_paths([path_record("detour", 0, [1, 2, 3])], ax=ax)
    with pytest.raises(ValueError, match=r"several runs at path line, position 0\.0, seed 0"):
        figures.loss_paths([path_record("line", 0, [1, 2, 3])] * 2, ax=ax)
    figures.loss_paths([path_record("line", 0, [1, 2, None], status="diverged")], ax=ax)
    assert len(hollow(ax)) == 1 and legend(ax) == ["straight line (n=1)", "diverged"]


def test_curves_by_density_say_how_many_weights_are_left(ax):
    records = [
        {
            "options": {"density": density},
            "seed": 0,
            "status": "finished",
            "curves": {"epoch": [1], "test_accuracy": [1]},
        }
        for density in (1.0, 0.1)
    ]
    figures.curves(records, ax=ax, by="density")
    assert legend(ax) == ["10 % (n=1)", "100 % (n=1)"]
    assert ax.get_legend().get_title().get_text() == "weights left"


@pytest.mark.parametrize("values, limits", [((0.48, 0.50), (0.45, 0.53)), ((0.1, 0.9), (0.1, 0.9))])
def test_colours_of_a_grid_do_not_paint_noise(ax, values, limits):
    frame = table("x y seed test_accuracy", *((x, 0, 0, value) for x, value in enumerate(values)))
    figures.heat_map(frame, "x", "y", ax=ax)
    assert ax.collections[0].get_clim() == pytest.approx(limits)
