"""Figures: they draw what they are given, unchanged, and write files that are the same every time."""

import xml.etree.ElementTree as ElementTree
from itertools import combinations, pairwise

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from prunelab import figures, frontier, papers, paths, verdicts
from prunelab.methods import METHODS
from prunelab.recipes.dmcp.plan import DESIGNS
from prunelab.recipes.prunings import PRUNINGS
from prunelab.recipes.rethinking.plan import TRAININGS
from prunelab.recipes.transfer.plan import FULL, SMALL, SMOKE, UPSTREAM
from prunelab.scores import SCORES

DENSITIES = (0.2, 0.1, 0.05, 0.02)


def record_frame():
    """Stand-in records: three seeds of dense, static and rigl."""
    rows = [
        {"method": "dense", "density": 1.0, "seed": seed, "test_accuracy": 0.90 + 0.001 * seed} for seed in range(3)
    ]
    for method, loss in (("static", 0.04), ("rigl", 0.02)):
        for step, density in enumerate(DENSITIES):
            for seed in range(3):
                accuracy = 0.88 - loss * step + 0.004 * seed
                rows.append({"method": method, "density": density, "seed": seed, "test_accuracy": accuracy})
    frame = pd.DataFrame(rows).assign(distribution="erk", status="finished")
    return frame.assign(training_macs_ratio=frame["density"] * 2 + 0.01 * frame["seed"])


FRAME = record_frame()


@pytest.fixture
def ax():
    fig, ax = plt.subplots(figsize=figures.SIZE)
    yield ax
    plt.close(fig)


def points(ax):
    """All points drawn in data coordinates, by (x, y)."""
    return {
        (round(float(x), 9), round(float(y), 9)) for line in ax.lines for x, y in zip(*line.get_data(), strict=True)
    }


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def hollow(ax):
    return [line for line in ax.lines if line.get_markerfacecolor() == "none" and len(line.get_xdata())]


def labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def test_every_method_has_a_style_and_every_style_a_method():
    assert figures.METHOD_STYLE.keys() == METHODS.keys()
    assert figures.PRUNING_STYLE.keys() == PRUNINGS.keys()
    assert figures.TRAINING_STYLE.keys() == set(TRAININGS)
    ours = {design.partition("_")[0] for design in DESIGNS} - {"smallest", "largest"}
    assert figures.DESIGN_STYLE.keys() == ours | {"latency", "dense"}
    assert figures.SCORE_STYLE.keys() == SCORES.keys() | {"dense"}
    assert figures.UPSTREAM_STYLE.keys() == UPSTREAM.keys()
    assert figures.WAY_STYLE.keys() == frontier.KINDS.keys()
    assert figures.KIND_STYLE.keys() == set(frontier.KINDS.values())


ALL_STYLES = [
    figures.METHOD_STYLE,
    figures.DISTRIBUTION_STYLE,
    figures.START_STYLE,
    figures.PATH_STYLE,
    figures.TRAINING_STYLE,
    figures.DESIGN_STYLE,
    figures.SCORE_STYLE,
    figures.UPSTREAM_STYLE,
]


@pytest.mark.parametrize("styles", ALL_STYLES)
def test_no_two_lines_share_a_color_a_marker_or_a_name(styles):
    for key in ("color", "marker", "label"):
        assert len({style[key] for style in styles.values()}) == len(styles)


def test_no_two_ways_of_pruning_share_a_color_and_a_marker_or_a_name():
    styles = figures.PRUNING_STYLE.values()
    assert len({style["label"] for style in styles}) == len(styles)
    assert len({(style["color"], style["marker"]) for style in styles}) == len(styles)


def luminance(color):
    return float(np.dot([0.2126, 0.7152, 0.0722], to_rgb(color)))


@pytest.mark.parametrize("styles", [*ALL_STYLES, figures.PRUNING_STYLE])
def test_lines_stand_out_from_white(styles):
    for style in styles.values():
        assert luminance(style["color"]) < 0.7


# Machado et al. 2009, doi:10.1109/TVCG.2009.113: linear RGB as it is seen, without red, and without green.
SIGHTS = [
    np.eye(3),
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
]
XYZ = np.array([[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]])


def lab(color, sight):
    """A colour as CIE 1976 L*a*b* has it, where distances are about as they look; white is 100, 0, 0."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    share = XYZ @ np.clip(np.array(sight) @ linear, 0, 1) / XYZ.sum(axis=1)
    x, y, z = np.where(share > 0.008856, np.cbrt(share), 7.787 * share + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("styles, least", [*((styles, 8) for styles in ALL_STYLES[:-1]), (figures.UPSTREAM_STYLE, 20)])
def test_colour_blind_readers_can_tell_colors_apart(styles, least):
    assert lab("white", SIGHTS[0]) == pytest.approx([100, 0, 0], abs=0.01)
    for one, other in combinations((style["color"] for style in styles.values()), 2):
        assert min(np.linalg.norm(lab(one, sight) - lab(other, sight)) for sight in SIGHTS) > least, (one, other)


def test_every_run_and_every_mean_is_drawn_unchanged(ax):
    data = figures.metric_vs_sparsity(FRAME, ax=ax, reference="dense")
    sparse = FRAME[FRAME["method"] != "dense"]
    runs = {(row.density, round(row.test_accuracy, 9)) for row in sparse.itertuples()}
    means = sparse.groupby(["method", "density"])["test_accuracy"].mean()
    drawn = points(ax)
    assert runs <= drawn
    assert {(density, round(mean, 9)) for (_, density), mean in means.items()} <= drawn
    merged = data[data["kind"] == "run"].merge(sparse, on=["method", "density", "seed"], suffixes=("", "_given"))
    assert len(merged) == len(sparse)
    assert (merged["test_accuracy"] == merged["test_accuracy_given"]).all()


def test_many_densities_get_few_ticks_from_the_sparsest_on(ax):
    densities = [round(0.8**n, 3) for n in range(19)]
    rounds = pd.DataFrame({"density": densities, "method": "rigl", "seed": 0, "status": "finished"})
    figures.metric_vs_sparsity(rounds.assign(test_accuracy=0.9), ax=ax)
    assert ax.get_xticks().tolist() == sorted(densities)[::3]


def test_sparsity_axis_runs_right_in_percent(ax):
    figures.metric_vs_sparsity(FRAME, ax=ax, reference="dense")
    assert sorted(zip(ax.get_xticks(), labels(ax.xaxis), strict=True)) == [
        (0.02, "98 %"),
        (0.05, "95 %"),
        (0.1, "90 %"),
        (0.2, "80 %"),
    ]
    left, right = ax.get_xlim()
    assert left > right
    assert "%" in ax.yaxis.get_major_formatter()(0.875) and "87.5" in ax.yaxis.get_major_formatter()(0.875)
    assert legend(ax) == ["static (n=3)", "RigL (n=3)", "dense (n=3)"]


def test_reference_is_a_level_at_its_mean(ax):
    data = figures.metric_vs_sparsity(FRAME, ax=ax, reference="dense")
    level = [line for line in ax.lines if line.get_label() == "dense (n=3)"]
    assert level[0].get_ydata() == pytest.approx([0.901, 0.901])
    assert data.loc[data["kind"] == "reference", "test_accuracy"].tolist() == [0.90, 0.901, 0.902]


TRAINED = FRAME.replace({"method": {"static": "woodfisher"}})
CARRIED = TRAINED.rename(columns={"method": "upstream"})


def test_carried_networks_look_as_their_method_does(ax):
    looks = []
    for frame, by in ((TRAINED, "method"), (CARRIED, "upstream")):
        ax.clear()
        data = figures.metric_vs_sparsity(frame, ax=ax, by=by, reference="dense")
        assert data[by].value_counts().to_dict() == {"woodfisher": 12, "rigl": 12, "dense": 3}
        assert set(legend(ax)) == {"WoodFisher (n=3)", "RigL (n=3)", "dense (n=3)"}
        named = [line for line in ax.lines if line.get_label() in legend(ax)]
        looks.append({line.get_label(): (line.get_color(), line.get_marker()) for line in named})
    assert looks[0] == looks[1] and len(set(looks[0].values())) == 3


def test_columns_of_carried_networks_have_their_styles(ax):
    rows = [(name, seed, 0.1) for name in UPSTREAM for seed in (0, 1)]
    frame = pd.DataFrame(rows, columns=["upstream", "seed", "dead_filters"]).assign(status="finished")
    figures.strips(frame, "upstream", "dead_filters", ax=ax)
    drawn = {(line.get_color(), line.get_marker()) for line in ax.lines}
    assert drawn == {(style["color"], style["marker"]) for style in figures.UPSTREAM_STYLE.values()}
    names = [" ".join(text.split()) for text in labels(ax.xaxis)]
    assert names[6:] == ["LTH-T (n=2)", "RigL (5×) (n=2)", "L1 norm (n=2)", "Network Slimming (n=2)"]


@pytest.mark.parametrize(
    "metric, words",
    [
        ("dead_filters", "filters without a weight"),
        ("dead_inputs", "dead input channels"),
        ("validation_accuracy", "accuracy on held-out images"),
        ("mean_average_precision", "mean average precision"),
    ],
)
def test_shares_that_transfers_record_are_in_words_and_percent(ax, metric, words):
    carried = CARRIED.rename(columns={"test_accuracy": metric})
    figures.metric_vs_sparsity(carried, metric, ax=ax, by="upstream", reference="dense")
    assert ax.get_ylabel() == words and ax.yaxis.get_major_formatter()(0.5) == "50 %"


@pytest.mark.parametrize("profile", [SMOKE, SMALL, FULL])
def test_every_task_has_a_name_of_its_own(profile):
    tasks = [task["dataset"] for task in profile.tasks]
    names = [figures.name(task) for task in tasks]
    assert len(set(names)) == len(names)
    assert all(name != task or task == "digits" for name, task in zip(names, tasks, strict=True))


def test_legend_counts_the_seeds_there_are(ax):
    figures.metric_vs_sparsity(FRAME.drop(FRAME.index[-1]), ax=ax)
    assert "RigL (n=2 to 3)" in legend(ax)


def test_diverged_run_is_hollow_and_counts_in_the_mean(ax):
    frame = FRAME.copy()
    frame.loc[frame.index[-1], ["test_accuracy", "status"]] = [0.10, "diverged"]
    data = figures.metric_vs_sparsity(frame, ax=ax)
    (marker,) = hollow(ax)
    assert marker.get_xydata().tolist() == [[0.02, 0.10]]
    mean = data[(data["method"] == "rigl") & (data["density"] == 0.02)]["mean"]
    assert mean.tolist() == pytest.approx([np.mean([0.82, 0.824, 0.10])] * 3)
    assert "diverged" in legend(ax)


def test_diverged_run_without_a_value_stands_on_the_edge_and_takes_the_mean_along(ax):
    frame = FRAME.copy()
    frame.loc[frame.index[-1], ["test_accuracy", "status"]] = [None, "diverged"]
    data = figures.metric_vs_sparsity(frame, ax=ax)
    (marker,) = hollow(ax)
    assert marker.get_xydata().tolist() == [[0.02, 0.0]]
    assert marker.get_transform() == ax.get_xaxis_transform()
    assert data[(data["method"] == "rigl") & (data["density"] == 0.02)]["mean"].isna().all()


def test_no_run_diverged_no_hollow_marker(ax):
    figures.metric_vs_sparsity(FRAME, ax=ax)
    assert not hollow(ax) and "diverged" not in legend(ax)


def test_mixed_runs_are_refused_instead_of_averaged(ax):
    mixed = pd.concat([FRAME, FRAME.assign(distribution="uniform")])
    for draw in (figures.metric_vs_sparsity, figures.metric_vs_cost):
        with pytest.raises(ValueError, match=r"several runs at method dense, density 1\.0, seed 0"):
            draw(mixed, ax=ax)
    rigl = mixed[mixed["method"] == "rigl"]
    assert len(figures.metric_vs_sparsity(rigl, ax=ax, by="distribution")) == 24


def test_unknown_method_is_named_with_the_known_ones(ax):
    with pytest.raises(ValueError, match=r"no style for method snup; there are dense, small_dense"):
        figures.metric_vs_sparsity(FRAME.replace({"method": {"rigl": "snup"}}), ax=ax)


def test_other_options_get_colors_in_their_order(ax):
    swept = FRAME[FRAME["method"] == "rigl"].assign(update_every=100)
    swept = pd.concat([swept.assign(update_every=1000), swept])
    figures.metric_vs_sparsity(swept, ax=ax, by="update_every")
    assert legend(ax) == ["100 (n=3)", "1000 (n=3)"]
    assert ax.get_legend().get_title().get_text() == "steps between updates"


@pytest.mark.parametrize("n, beside", [(7, False), (8, True)])
def test_long_legend_stands_beside_the_lines(ax, n, beside):
    rigl = FRAME[FRAME["method"] == "rigl"]
    figures.metric_vs_sparsity(pd.concat([rigl.assign(width=width) for width in range(n)]), ax=ax, by="width")
    ax.figure.draw_without_rendering()
    assert (ax.get_legend().get_window_extent().x0 >= ax.bbox.x1) == beside


def test_published_points_are_drawn_beside_with_the_papers_own_spread(ax):
    points = papers.paper_points("rigl_resnet50_imagenet", source_id="paper_fig2", distribution="uniform", train_mult=1)
    drawn = figures.published(points, ax=ax)
    assert set(drawn["method"]) == {"static", "snip", "set", "rigl", "gmp"}
    assert legend(ax) == ["static", "SNIP", "SET", "RigL", "gradual pruning"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["90 %", "80 %"]
    (rigl,) = drawn.loc[(drawn["method"] == "rigl") & (drawn["density"] == 0.1), "accuracy"]
    assert rigl == 0.72


def test_published_points_are_drawn_by_what_they_are_to_us(ax):
    points = papers.paper_points("afr_table2", source_id="paper_tab2", dataset="CIFAR-10")
    assert set(figures.published(points, ax=ax, by="score")["method"]) == {"snip", "refer", "afr"}


def test_published_points_of_two_sources_are_not_mixed(ax):
    points = papers.paper_points("rigl_resnet50_imagenet", source_id="paper_fig2", method="rigl")
    with pytest.raises(ValueError, match="several published values for one method and density"):
        figures.published(points, ax=ax)


def test_cost_axis_is_in_percent_of_dense_training(ax):
    data = figures.metric_vs_cost(FRAME, ax=ax)
    assert labels(ax.xaxis) == ["5 %", "10 %", "20 %", "50 %", "100 %", "200 %"]
    assert ax.get_xlabel() == "training MACs, relative to dense"
    lines = [line for line in ax.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 4]
    assert lines[1].get_xdata() == pytest.approx([2 * density + 0.01 for density in sorted(DENSITIES)])
    assert len(data) == len(FRAME) and (data["training_macs_ratio"] == FRAME["training_macs_ratio"]).all()


def run_record(method, seed, accuracies, status="finished"):
    epochs = list(range(1, len(accuracies) + 1))
    curves = {"epoch": epochs, "test_accuracy": accuracies}
    return {"options": {"method": method}, "seed": seed, "status": status, "curves": curves}


def test_curves_show_each_run_and_the_mean_where_all_runs_go_on(ax):
    runs = [run_record("rigl", 0, [0.2, 0.4, 0.6]), run_record("rigl", 1, [0.4, 0.1], status="diverged")]
    data = figures.curves(runs, ax=ax)
    (mean,) = [line for line in ax.lines if line.get_label() == "RigL (n=2)"]
    assert mean.get_ydata() == pytest.approx([0.3, 0.25, np.nan], nan_ok=True)
    assert [line.get_xydata().tolist() for line in hollow(ax)] == [[[2, 0.1]]]
    assert data["test_accuracy"].tolist() == [0.2, 0.4, 0.6, 0.4, 0.1]
    with pytest.raises(ValueError, match="several runs at method rigl, epoch 1, seed 0"):
        figures.curves([runs[0], runs[0]], ax=ax)


def test_layers_stay_in_the_order_of_the_network(ax):
    densities = {"uniform": {"conv2": 0.1, "fc": 0.1}, "erk": {"conv1": 1.0, "conv2": 0.05, "fc": 0.4}}
    data = figures.layer_densities(densities, ax=ax)
    assert labels(ax.xaxis) == ["conv1", "conv2", "fc"]
    assert points(ax) == {(1, 0.1), (2, 0.1), (0, 1.0), (1, 0.05), (2, 0.4)}
    assert data.to_dict("list") == {
        "of": ["uniform", "uniform", "erk", "erk", "erk"],
        "layer": ["conv2", "fc", "conv1", "conv2", "fc"],
        "density": [0.1, 0.1, 1.0, 0.05, 0.4],
    }
    assert legend(ax) == ["uniform", "ERK"]


def test_shares_of_channels_are_called_so(ax):
    data = figures.layer_densities({"slimming": {"a": 0.5}, "guided": {"a": 0.25}}, ax=ax, metric="channel_density")
    assert ax.get_ylabel() == "channels of the layer that stay"
    assert data["channel_density"].tolist() == [0.5, 0.25] and legend(ax) == ["Network Slimming", "guided widths"]


def test_kernel_patterns_stand_side_by_side(ax):
    patterns = {"first": [[0.1, 0.2], [0.3, 0.4]], "last": [[0.5, 0.6], [0.7, 0.8]]}
    data = figures.kernel_patterns(patterns, ax=ax)
    (picture,) = ax.collections
    drawn = picture.get_array().filled(-1.0)
    assert drawn.tolist() == [[0.1, 0.2, -1.0, 0.5, 0.6], [0.3, 0.4, -1.0, 0.7, 0.8]]  # a gap between the stages
    assert [text.get_text() for text in ax.texts] == ["10", "20", "50", "60", "30", "40", "70", "80"]
    assert labels(ax.xaxis) == ["first", "last"]
    assert data.iloc[-1].to_dict() == {"stage": "last", "row": 1, "column": 1, "density": 0.8}


def test_measured_densities_are_shares_of_each_layers_weights():
    layers = [
        {"name": "conv1", "n_weights": 10, "n_active": 10},
        {"name": "attention", "n_weights": 0, "n_active": 0},  # products alone, without a density
        {"name": "emptied", "n_weights": 5, "n_active": 0},
        {"name": "fc", "n_weights": 40, "n_active": 10},
    ]
    assert figures.measured_densities({"layers": layers}) == {"conv1": 1.0, "emptied": 0.0, "fc": 0.25}


MOVING = {
    "id": "abc",
    "options": {"method": "rigl"},
    "layers": [{"name": name, "masked": name != "bn"} for name in ("conv1", "bn", "fc")],
    "moves": {"step": [0, 10], "drop_fraction": [0.3, 0.2], "survival": [[0.7, 0.9], [0.5, 0.8]]},
}


def test_survival_has_a_line_for_each_masked_layer(ax):
    data = figures.mask_survival(MOVING, ax=ax)
    assert [line.get_xydata().tolist() for line in ax.lines] == [[[0, 0.7], [10, 0.5]], [[0, 0.9], [10, 0.8]]]
    assert data[data["layer"] == "fc"].to_dict("list") == {
        "step": [0, 10],
        "layer": ["fc", "fc"],
        "survival": [0.9, 0.8],
    }
    with pytest.raises(ValueError, match=r"run abc \(static\) moves no connections"):
        figures.mask_survival(MOVING | {"options": {"method": "static"}, "moves": {}}, ax=ax)


def judged():
    columns = ["claim", "part", "at", "statement", "metric", "paper", "margin", "difference", "low", "high"]
    columns += ["seeds", "verdict"]
    nan, seeds = np.nan, "+0.0100 +0.0300 +0.0500"
    rows = [
        ["RigL-C1", "a", "", "RigL wins.", "test_accuracy", 0.024, 0.0, 0.03, 0.01, 0.04, seeds, verdicts.REPRODUCED],
        ["RigL-C1", "a", "5x", "RigL wins.", "test_accuracy", 0.024, 0.0, 0.5, 0.4, 0.6, "", verdicts.BESIDE],
        ["RigL-C1", "b", "", "SET wins.", "loss_barrier", nan, 0, -0.2, -0.3, -0.1, seeds, verdicts.NOT_REPRODUCED],
        ["RigL-C4", "e", "", "ERK costs more.", "macs_ratio", 0.11, 0.0, 0.2, nan, nan, "", verdicts.REPRODUCED],
        ["RigL-C9", "a", "", "Wait.", "test_accuracy", 0.006, 0.0, nan, nan, nan, "", verdicts.NOT_JUDGED],
        ["RigL-C9", "a", "density=0.1", "Wait.", "test_accuracy", 0.006, 0.0, 0.1, 0.1, 0.1, "", verdicts.REPRODUCED],
    ]
    return pd.DataFrame(rows, columns=columns)


def test_forest_shows_judged_claims_below_their_questions_with_interval_paper_and_margin(ax):
    rows = figures.forest(judged(), ax=ax)
    assert rows["part"].tolist() == ["a", "a", "b", "e"] and rows["at"].tolist() == ["", "5x", "", ""]
    texts = labels(ax.yaxis)
    assert texts[1:3] == ["a  RigL wins.", "b  SET wins."] and texts[4:] == ["e  ERK costs more."]
    assert texts[0].startswith("RigL-C1  ") and texts[3] == "RigL-C4  How should connections be shared out over layers?"
    # Points, or hundredths of a loss; the second claim stands on the third line, below its question.
    assert {(3, 1), (-20, 2), (20, 4), (2.4, 1), (50, 1), (1, 1), (5, 1)} <= {(round(x, 9), y) for x, y in points(ax)}
    bars = [segment[:, 0] for bar in ax.collections for segment in bar.get_segments()]
    assert sorted(np.round(bars, 9).tolist()) == [[-30, -10], [1, 4], [20, 20]]
    assert {"reproduced (2)", "not reproduced (1)", "inconclusive (0)", "one seed"} < set(legend(ax))


def test_texts_of_many_claims_do_not_touch():
    long = judged().iloc[[0]].assign(statement="Of claims as long as the longest of the papers this is one. " * 2)
    for n in (1, 17, 60):
        fig, ax = plt.subplots(figsize=(11, 5), layout="constrained")
        figures.forest(pd.concat([long.assign(part=str(part)) for part in range(n)]), ax=ax)
        fig.draw_without_rendering()
        boxes = [label.get_window_extent() for label in ax.get_yticklabels()]
        assert len(boxes) == n + 1
        assert all(upper.y0 >= lower.y1 for upper, lower in pairwise(boxes))
        plt.close(fig)


def test_settings_stand_beside_each_other_for_claims_that_have_several(ax):
    rows = figures.settings(judged(), ax=ax, judged_at="1x")
    assert rows[["part", "at"]].to_numpy().tolist() == [["a", ""], ["a", "5x"]]
    assert labels(ax.yaxis) == ["RigL-C1a  RigL wins."] and legend(ax) == ["1x", "5x"]
    assert {round(x) for x, _ in points(ax)} >= {3, 50}
    assert figures.settings(judged().iloc[2:], ax=ax).empty


def test_forest_without_a_judged_claim_says_so_in_little_room(ax):
    assert figures.forest(judged().iloc[4:], ax=ax).empty
    assert "judge no claim" in ax.texts[0].get_text() and ax.figure.get_figheight() < 1.5


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "FIGURES", tmp_path)
    return tmp_path / "01_rigl" / "small"


def save(name="accuracy", **options):
    fig, ax = plt.subplots(figsize=(5, 3), layout="constrained")
    data = figures.metric_vs_sparsity(FRAME, ax=ax, reference="dense")
    options = {"data": data, "alt": "Accuracy falls with sparsity."} | options
    figures.save_figure(fig, "01_rigl", "small", name, **options)
    return fig, data


def test_saved_figure_is_three_files_drawn_once_each_and_closed(folder, capsys, monkeypatch):
    drawn, draw = [], Figure.draw
    monkeypatch.setattr(Figure, "draw", lambda fig, renderer: (drawn.append(renderer), draw(fig, renderer)))
    fig, data = save()
    assert len(drawn) == 2, "as PNG and as SVG; the layout needs no drawing"
    assert sorted(path.name for path in folder.iterdir()) == ["accuracy.csv", "accuracy.png", "accuracy.svg"]
    assert Image.open(folder / "accuracy.png").size == (550, 330)
    assert ElementTree.parse(folder / "accuracy.svg").getroot().tag.endswith("svg")
    written = pd.read_csv(folder / "accuracy.csv")
    pd.testing.assert_frame_equal(written, data, check_dtype=False, rtol=1e-11, atol=0)
    assert not plt.fignum_exists(fig.number)
    assert capsys.readouterr().out == ""


def test_panels_share_a_legend_unless_one_says_more():
    fig, axes = plt.subplots(1, 4)
    for ax, names in zip(axes, ("ab", "b", "", "bc"), strict=True):
        for name in names:
            ax.plot([0, 1], label=name)
        if names:
            ax.legend()
    figures.one_legend(axes)
    assert [ax.get_legend() is not None for ax in axes] == [True, False, False, True]
    plt.close(fig)


def test_no_text_is_cut_off_at_the_edge(folder):
    fig, ax = plt.subplots(figsize=(10, 3), layout="constrained")
    text = "From scratch, a VGG that slimming designed is more accurate than"
    ax.set(title="Wide", yticks=range(9), yticklabels=[text] * 9)
    ax.tick_params(labelsize=7)
    figures.save_figure(fig, "01_rigl", "small", "wide", data=FRAME, alt="Nine long texts.")
    left_edge = np.asarray(Image.open(folder / "wide.png").convert("L"))[:, 0]
    assert (left_edge > 200).all()


def test_equal_figures_give_equal_bytes_whatever_the_last_digits_in_which_processors_differ(folder):
    def table(third, level, small):
        mixed = pd.Series(["none", third, None, True], dtype=object)
        means = [third, level, small, 0.037104677618449]  # which must not be rounded twice
        return pd.DataFrame({"mean": means, "mixed": mixed, "n": [1, 2, 3, 10**17 + 1]})

    save(data=table(1 / 3, 0.0, 0.9 - 0.8999))
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    save(data=table(np.nextafter(1 / 3, 1), 0.3 - (0.1 + 0.2), 0.0001))  # a difference of -6e-17
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    rows = [
        "mean,mixed,n",
        "0.333333333333,none,1",
        "0.0,0.333333333333,2",
        "0.0001,,3",
        "0.0371046776184,True,100000000000000001",
    ]
    assert first["accuracy.csv"].decode().splitlines() == rows
    assert b"<dc:date>" not in first["accuracy.svg"]


def test_notebook_shows_the_picture_with_its_words(folder, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.get_ipython", lambda: object())
    monkeypatch.setattr("IPython.display.display", lambda *given, **options: shown.append((given, options)))
    save()
    (((output,), options),) = shown
    assert output.keys() == {"image/png", "text/plain"}
    assert output["text/plain"] == "Accuracy falls with sparsity."
    assert options["metadata"]["image/png"] == {"alt": "Accuracy falls with sparsity.", "width": 500}
    assert options["raw"] is True


@pytest.mark.parametrize("name", ["../accuracy", "a b", "", "a/b", "größe"])
def test_names_that_are_no_plain_words_are_refused(folder, name):
    with pytest.raises(ValueError, match="letters, digits and underscores only"):
        save(name)
    assert not folder.exists()


def test_figure_without_words_is_refused(folder):
    with pytest.raises(ValueError, match="alt must say"):
        save(alt=" ")


def test_animation_is_one_png_of_several_pictures(folder):
    def drawn():
        for height in (1, 2, 3):
            fig, ax = plt.subplots(figsize=(3, 2))
            ax.bar([0], [height])
            ax.set(title="Grows", ylim=(0, 3))
            yield fig

    before = plt.get_fignums()
    figures.save_animation(drawn(), "01_rigl", "small", "grows", alt="A bar grows.")
    first = (folder / "grows.png").read_bytes()
    assert Image.open(folder / "grows.png").n_frames == 3 and plt.get_fignums() == before
    figures.save_animation(drawn(), "01_rigl", "small", "grows", alt="A bar grows.")
    assert (folder / "grows.png").read_bytes() == first
    with pytest.raises(ValueError, match="letters, digits and underscores"):
        figures.save_animation(drawn(), "01_rigl", "small", "../grows", alt="A bar grows.")


def test_width_shares_are_means_over_seeds_and_a_dot_a_seed(ax):
    rows = [("uniform", 0, "a", 0.5), ("uniform", 0, "b", 0.4), ("expected", 0, "a", 0.2), ("expected", 1, "a", 0.4)]
    shares = pd.DataFrame(rows, columns=["design", "seed", "group", "share"])
    assert figures.width_shares(shares, ax=ax) is shares
    assert points(ax) == {(0, 0.5), (1, 0.4), (0, 0.3), (0, 0.2), (0, 0.4)}
    assert legend(ax) == ["uniform widths", "DMCP"] and labels(ax.xaxis) == ["a", "b"]


def test_probabilities_to_stay_are_drawn_as_those_to_be_retained(ax):
    data = figures.retained([[0.5, 0.5], [1.0, 0.25]], ["a", "b"], ax=ax)
    assert data["retained"].tolist() == [0.5, 0.25, 1.0, 0.25]
    (image,) = ax.images
    assert image.get_array().tolist() == [[0.5, 0.25], [1.0, 0.25]] and image.get_clim() == (0, 1)


def test_moments_of_a_search_are_spread_from_the_first_to_the_last():
    history = [{"batch": 10 * i, "probabilities": [[i / 10]]} for i in range(1, 8)]
    fig, axes = plt.subplots(1, 3)
    data = figures.retained_over_time(history, ["a"], axes=axes)
    assert data[["batch", "retained"]].values.tolist() == [[10, 0.1], [40, 0.4], [70, 0.7]]
    assert [ax.get_title() for ax in axes] == ["after 10 batches", "after 40 batches", "after 70 batches"]
    with pytest.raises(ValueError, match="history has no snapshot to draw"):
        figures.retained_over_time([], ["a"], axes=axes)
    plt.close(fig)


def test_boxes_of_a_scene_are_drawn_where_they_are_and_those_found_are_named(ax):
    sides = ["left", "top", "right", "bottom"]
    true = pd.DataFrame([("3", 1, 2, 5, 8)], columns=["class", *sides])
    found = pd.DataFrame([("8", 1, 2, 4, 8, 0.5), ("3", 6, 0, 9, 3, 0.25)], columns=["class", *sides, "score"])
    data = figures.scene_boxes(np.zeros((10, 12, 1), dtype=np.uint8), true, found, ax=ax)
    assert data[["class", "kind"]].values.tolist() == [["3", "true"], ["8", "found"], ["3", "found"]]
    drawn = [(*box.get_xy(), box.get_width(), box.get_height(), box.get_linestyle()) for box in ax.patches]
    assert drawn == [(1, 2, 4, 6, "--"), (1, 2, 3, 6, "-"), (6, 0, 3, 3, "-")]
    assert [text.get_text() for text in ax.texts] == ["8 0.50", "3 0.25"]
    assert ax.get_xlim() == (0, 12) and ax.get_ylim() == (10, 0)
    figures.scene_boxes(np.zeros((10, 12, 3), dtype=np.uint8), true, found.iloc[:0], ax=ax)  # where nothing is found
    assert len(ax.patches) == 4


def beside(*leads):
    """Two tasks of errors 0.5 and 0.25, and by how much each of two seeds of RigL and GMP is ahead of dense."""
    keys = [("rigl", "cifar10"), ("rigl", "glyphs:greek"), ("gmp", "cifar10"), ("gmp", "glyphs:greek")]
    rows = [
        {"upstream": upstream, "dataset": task, "seed": seed, "lead": lead, "difficulty": at, "increase": -lead / at}
        for (upstream, task), lead in zip(keys, leads, strict=True)
        for seed, at in ((0, 0.5 if task == "cifar10" else 0.25), (1, 0.5 if task == "cifar10" else 0.25))
    ]
    return pd.DataFrame(rows)


def test_leads_stand_in_a_row_for_each_task(ax):
    rows = beside(0.1, 0.2, -0.1, 0.0)
    rows.loc[0, "lead"] = 0.3  # one seed of RigL on CIFAR-10; the other has 0.1
    data = figures.leads(rows, ax=ax)
    assert data["mean"].tolist() == pytest.approx([0.2] * 4 + [-0.1] * 2 + [0.0] * 2)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["CIFAR-10", "Greek letters"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first task is on top
    means = {line.get_label(): line.get_xdata().tolist() for line in ax.lines if line.get_markersize() == 7}
    assert means.pop("RigL") == pytest.approx([0.2] * 4)
    assert means == {"gradual pruning": [-0.1, -0.1, 0.0, 0.0]}


def test_trends_have_the_slope_of_least_squares(ax):
    data = figures.error_trends(beside(-0.1, 0.0, 0.05, 0.05), ax=ax)
    # RigL: 0 at 0.25, 0.2 at 0.5; gradual pruning: -0.2 at 0.25, -0.1 at 0.5.
    assert dict(zip(data["upstream"], data["slope"], strict=True)) == pytest.approx({"rigl": 0.8, "gmp": 0.4})
    lines = [line for line in ax.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 2]
    ends = sorted([value for value in line.get_ydata()] for line in lines if line.get_color() != "#000000")
    assert ends == [pytest.approx([-0.2, -0.1]), pytest.approx([0.0, 0.2])]


def found_of(*means):
    """Means of RigL and of gradual pruning at places 1 and 2, with intervals from 0.1 below to 0.3 above."""
    keys = [("rigl", 1.0), ("rigl", 2.0), ("gmp", 1.0), ("gmp", 2.0)]
    rows = [(*key, mean, mean - 0.1, mean + 0.3) for key, mean in zip(keys, means, strict=True)]
    return pd.DataFrame(rows, columns=["upstream", "place", "mean", "low", "high"])


@pytest.mark.parametrize("is_lying", [False, True])
def test_intervals_reach_from_low_to_high_with_methods_side_by_side(ax, is_lying):
    rows = found_of(0.1, 0.2, 0.4, 0.3)
    data = figures.intervals(rows, "place", ax=ax, step=0.2, is_lying=is_lying)
    assert data.equals(rows)
    drawn = {each.get_label(): each for each in ax.containers}
    assert list(drawn) == ["gradual pruning", "RigL"]
    for label, means, shift in (("gradual pruning", [0.4, 0.3], -0.1), ("RigL", [0.1, 0.2], 0.1)):
        line, _, (bars,) = drawn[label]
        places, values = line.get_data()[:: -1 if is_lying else 1]
        assert list(values) == means and list(places) == pytest.approx([1 + shift, 2 + shift])
        ends = [[point[0 if is_lying else 1] for point in bar] for bar in bars.get_segments()]
        assert ends == [pytest.approx([mean - 0.1, mean + 0.3]) for mean in means]
        assert line.get_linestyle() == ("None" if is_lying else "-")


def test_intervals_take_looks_of_other_methods_too(ax):
    rows = found_of(0.1, 0.2, 0.4, 0.3).replace("gmp", "m_fac")
    with pytest.raises(ValueError, match="no look for m_fac; there are dense, gmp"):
        figures.intervals(rows, "place", ax=ax)
    looks = {"m_fac": {"color": "#E69F00", "marker": "v", "label": "M-FAC"}, "rigl": figures.UPSTREAM_STYLE["rigl"]}
    figures.intervals(rows, "place", ax=ax, looks=looks, is_hollow=True)
    assert [each.get_label() for each in ax.containers] == ["M-FAC", "RigL"]
    assert {each[0].get_markerfacecolor() for each in ax.containers} == {"white"}


def test_a_method_on_one_task_has_no_trend(ax):
    data = figures.error_trends(beside(0.1, 0.2, -0.1, 0.0).query("dataset == 'cifar10'"), ax=ax)
    assert data["slope"].isna().all()


def test_a_turn_joins_both_transfers_of_each_method(ax):
    means = pd.DataFrame({"linear": {"rigl": 0.01, "gmp": -0.02}, "full": {"rigl": -0.01, "gmp": 0.0}})
    data = figures.turn(means, ax=ax)
    assert data.values.tolist() == [["rigl", 0.01, -0.01], ["gmp", -0.02, 0.0]]
    assert sorted(line.get_ydata().tolist() for line in ax.lines[:2]) == [[-0.02, 0.0], [0.01, -0.01]]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["linear", "full"]


def test_leads_may_stand_in_rows_of_networks(ax):
    rows = beside(0.1, 0.2, -0.1, 0.0).assign(network=["small"] * 4 + ["large"] * 4)
    data = figures.leads(rows, ax=ax, by="network")
    assert list(data) == ["upstream", "network", "lead", "mean"]
    assert data["mean"].tolist() == pytest.approx([0.15] * 4 + [-0.05] * 4)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["small", "large"]


@pytest.mark.parametrize("are_alike", [True, False])
def test_a_scatter_draws_every_run_and_perhaps_the_line_of_equals(ax, are_alike):
    x, y = "upstream_accuracy", "validation_accuracy"
    runs = pd.DataFrame({"upstream": ["rigl", "gmp"], x: [0.2, 0.3], y: [0.25, 0.1]})
    data = figures.scatter(runs, x, y, ax=ax, are_alike=are_alike)
    assert data.equals(runs)
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines]
    assert drawn == [([0.3], [0.1]), ([0.2], [0.25])] + [([0.1, 0.3], [0.1, 0.3])] * are_alike
    assert ax.get_xlabel() == "upstream test accuracy" and ax.get_ylabel() == "accuracy on held-out images"


def test_dead_filters_are_summed_over_records_and_the_output_layer_is_left_out(ax):
    def record(*dead):
        rows = zip(("conv", "block", "fc"), (*dead, 0), (4, 8, 0), strict=True)
        return {"channels": [{"layer": name, "n_dead_filters": n, "n_filters": of} for name, n, of in rows]}

    data = figures.dead_by_layer({"acdc": [record(1, 4), record(2, 0)], "gmp": [record(0, 8)]}, ax=ax)
    assert data.values.tolist() == [
        ["gmp", "conv", 0.0],
        ["gmp", "block", 1.0],
        ["acdc", "conv", 0.375],
        ["acdc", "block", 0.25],
    ]
    assert [line.get_ydata().tolist() for line in ax.lines] == [[0.0, 1.0], [0.375, 0.25]]
