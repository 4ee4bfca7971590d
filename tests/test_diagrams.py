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
