"""Drawings that explain a method on a few numbers."""

import matplotlib.pyplot as plt
import pytest

from prunelab import diagrams


@pytest.fixture
def axes():
    fig, axes = plt.subplots(1, 3)
    yield axes
    plt.close(fig)


def test_a_removed_channel_takes_its_rows_and_the_column_that_reads_it(axes):
    first, norm, second = [[1, 2], [3, 4], [5, 6]], [[0.1], [0.2], [0.3]], [[7, 8, 9], [10, 11, 12]]
    data = diagrams.channel_removal(first, norm, second, [0, 2], axes=axes)
    assert len(data) == 6 + 3 + 6
    assert data.loc[~data["kept"], "value"].tolist() == [3, 4, 0.2, 8, 11]
    colors = [patch.get_facecolor() for ax in axes for patch in ax.patches]
    gone = plt.matplotlib.colors.to_rgba(diagrams.DROPPED, 0.75)
    assert [color == gone for color in colors] == (~data["kept"]).tolist()
    assert [ax.get_title().partition(":")[0] for ax in axes] == ["made", "normalised", "read"]


def test_a_chain_retains_what_all_its_steps_let_stay(axes):
    data = diagrams.markov_chain([0.9, 0.5], [4, 3, 2], axes=axes[:2])
    assert data["channels"].tolist() == [4, 3, 2] and data["retained"].tolist() == [1, 0.9, 0.45]
    assert [bar.get_height() for bar in axes[1].patches] == [1, 0.9, 0.45]
    texts = [text.get_text() for text in axes[0].texts]
    assert {"stop: 0.10", "stop: 0.50", "$p_{2}$ = 0.50", "+3"} <= set(texts)


def test_a_sandwich_is_drawn_as_first_channels_out_of_all(axes):
    networks = {"largest": {"a": 4, "b": 8}, "smallest": {"a": 1, "b": 1}, "random": {"a": 3, "b": 2}}
    data = diagrams.sandwich(networks, {"a": 4, "b": 8}, axes=axes)
    assert data["channels"].tolist() == [4, 8, 1, 1, 3, 2] and data["of"].tolist() == [4, 8] * 3
    heights = [[bar.get_height() for bar in ax.patches] for ax in axes]
    assert heights == [[4, 8, 4, 8], [4, 8, 1, 1], [4, 8, 3, 2]]


def test_kept_weights_have_a_frame_and_all_have_their_score(axes):
    scores = {"one": [[0.5, 0.25]], "other": [[0.0, 3.0]]}
    data = diagrams.kept_largest(scores, {"one": [[True, False]], "other": [[False, True]]}, axes=axes[:2])
    assert data[["score", "column", "value", "kept"]].values.tolist() == [
        ["one", 0, 0.5, True],
        ["one", 1, 0.25, False],
        ["other", 0, 0.0, False],
        ["other", 1, 3.0, True],
    ]
    assert [[text.get_text() for text in ax.texts] for ax in axes[:2]] == [["0.50", "0.25"], ["0.00", "3.00"]]
    assert [[frame.get_x() for frame in ax.patches] for ax in axes[:2]] == [[-0.46], [0.54]]


def test_pruned_weights_are_coloured_in_all_three_panels(axes):
    data = diagrams.pruning_costs([1.0, 0.5], [0.1, 0.4], [0.0, 0.7], [True, False], axes=axes)
    assert data.values.tolist() == [[1.0, 0.1, 0.0, True], [0.5, 0.4, 0.7, False]]
    heights = [[bar.get_height() for bar in ax.patches[:2]] for ax in axes]
    assert heights == [[1.0, 0.5], [0.1, 0.4], [0.0, 0.7]]
    wanted = [plt.matplotlib.colors.to_rgba(color) for color in (diagrams.DROPPED, diagrams.KEPT)]
    assert all([bar.get_facecolor() for bar in ax.patches[:2]] == wanted for ax in axes)


def test_a_frozen_body_is_grey_and_heads_always_learn(axes):
    data = diagrams.transfers({"frozen": (False, "new"), "free": (True, "new")}, axes=axes[:2])
    learning = data.groupby(["panel", "layer"])["learns"].agg(["all", "any"])
    assert not learning.loc["frozen"].loc[:2, "any"].any() and learning.loc["frozen"].loc[3, "all"]
    assert learning.loc["free", "all"].all()
    colors = [{line.get_color() for line in ax.lines if len(line.get_xdata())} for ax in axes[:2]]
    assert colors[1] == {diagrams.KEPT, diagrams.GROWN} and diagrams.INACTIVE in colors[0]
    heads = data[data["layer"] == 3].groupby("panel", sort=False).size()
    assert heads.tolist() == [8, 15]  # five units to three classes; only a new head is dense
    assert not data.duplicated().any()


def test_paths_of_weights_have_a_row_for_each_step(axes):
    paths = [[1, 2, 3, 4], [0, 2, 0, 4], [1, 1, 1, 1]]
    data = diagrams.weight_paths(paths, "abcd", ax=axes[0], spans=[(2, 3)], band=[0.1, 0.2, 0.3])
    assert data["step"].tolist() == [0, 1, 2] and data[list("abcd")].values.tolist() == paths
    assert [list(line.get_ydata()) for line in axes[0].lines] == [list(column) for column in zip(*paths, strict=True)]
    (span,) = axes[0].patches
    assert (span.get_x(), span.get_width()) == (1.5, 2)
    assert axes[0].collections[0].get_paths()[0].vertices[:, 1].min() == -0.3
