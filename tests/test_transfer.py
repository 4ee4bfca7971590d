"""Measures of transfer, by hand."""

import pytest

from prunelab.transfer import errors, relative_error_increase, relative_error_increases

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
