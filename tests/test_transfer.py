"""Measures of transfer, by hand."""

import pandas as pd
import pytest

from prunelab.transfer import against_dense, errors, relative_error_increase, relative_error_increases

DENSE = {"cars": 0.5, "pets": 0.9, "dtd": 0.75}


def test_errors_are_what_accuracies_leave():
    assert errors(DENSE) == pytest.approx({"cars": 0.5, "pets": 0.1, "dtd": 0.25})


def test_relative_error_increase_by_hand():
    # Errors 0.6, 0.1 and 0.2 instead of 0.5, 0.1 and 0.25: 20 % more, as many, 20 % less.
    own = {"dtd": 0.8, "cars": 0.4, "pets": 0.9}
    increases = relative_error_increases(own, DENSE)
    assert increases == pytest.approx({"cars": 0.2, "pets": 0.0, "dtd": -0.2})
    assert list(increases) == list(DENSE)
    assert relative_error_increase(own, DENSE) == pytest.approx(0.0)
    # The mean of ratios, not the ratio of means: an easy task counts as much as a hard one.
    assert relative_error_increase({"easy": 0.98, "hard": 0.5}, {"easy": 0.99, "hard": 0.5}) == pytest.approx(0.5)


def test_dense_network_has_no_increase_over_itself():
    assert set(relative_error_increases(DENSE, DENSE).values()) == {0.0}


@pytest.mark.parametrize(
    "own, dense, message",
    [
        ({"cars": 0.5}, DENSE, "accuracies on the same tasks, one or more; got cars and cars, pets, dtd"),
        ({}, {}, "got none and none"),
        ({"cars": 50.0}, {"cars": 0.4}, r"the accuracy on 'cars' must be a share in \[0, 1\], got 50.0"),
        ({"cars": 0.5}, {"cars": float("nan")}, "must be a share"),
        ({"cars": 0.5}, {"cars": 1.0}, "the dense network has no error on cars"),
    ],
)
def test_what_cannot_be_compared_is_refused(own, dense, message):
    with pytest.raises(ValueError, match=message):
        relative_error_increase(own, dense)


def frame(rows):
    return pd.DataFrame(rows, columns=["upstream", "dataset", "seed", "test_accuracy"])


def test_networks_stand_beside_the_dense_one_of_their_seed_and_task():
    rows = [("dense", "cars", 0, 0.5), ("gmp", "cars", 0, 0.4), ("dense", "cars", 1, 0.75), ("gmp", "cars", 1, 0.8)]
    beside = against_dense(frame(rows))
    assert beside["upstream"].tolist() == ["gmp", "gmp"] and beside["seed"].tolist() == [0, 1]
    assert beside["lead"].tolist() == pytest.approx([-0.1, 0.05])
    assert beside["difficulty"].tolist() == pytest.approx([0.5, 0.25])
    assert beside["increase"].tolist() == pytest.approx([0.2, -0.2])


def test_increases_of_a_table_are_those_of_accuracies_by_task():
    own = {"cars": 0.4, "pets": 0.9, "dtd": 0.8}
    rows = [(name, task, 0, at[task]) for name, at in (("dense", DENSE), ("gmp", own)) for task in DENSE]
    beside = against_dense(frame(rows)).set_index("dataset")["increase"]
    assert beside.to_dict() == pytest.approx(relative_error_increases(own, DENSE))


@pytest.mark.parametrize(
    "rows", [[("gmp", "cars", 0, 0.4)], [("dense", "cars", 0, 0.4)] * 2 + [("gmp", "cars", 0, 0.4)]]
)
def test_a_network_without_one_dense_network_is_refused(rows):
    with pytest.raises(ValueError, match="each network needs one dense network with the same seed, dataset"):
        against_dense(frame(rows))
