"""Schedules at the points whose values are known."""

import itertools

import pytest

from prunelab.schedules import DECAYS, LEARNING_RATES, check_decay, drop_fraction, learning_rate


@pytest.mark.parametrize(
    "decay, halfway", [("cosine", 0.15), ("constant", 0.3), ("linear", 0.15), ("inverse_power", 0.3 / 8)]
)
def test_drop_fraction_at_start_middle_and_end(decay, halfway):
    def at(step):
        return drop_fraction(step, initial=0.3, stop_update_step=1000, decay=decay)

    assert at(0) == pytest.approx(0.3)
    assert at(500) == pytest.approx(halfway)
    assert at(1000) == pytest.approx(0.3 if decay == "constant" else 0.0)


def test_drop_fraction_of_a_training_without_updates_is_its_end_value():
    assert drop_fraction(0, initial=0.3, stop_update_step=0) == pytest.approx(0.0)


def test_warm_up_rises_to_the_peak_and_cosine_falls_from_it():
    rates = [learning_rate(step, peak=0.4, n_steps=12, warmup_steps=4) for step in range(12)]
    assert rates[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])
    assert rates[8] == pytest.approx(0.2)  # half of the remaining eight steps
    assert all(earlier > later for earlier, later in itertools.pairwise(rates[4:]))


def test_step_schedule_divides_by_five_at_its_milestones():
    rates = [learning_rate(step, peak=1.0, n_steps=10, schedule="step") for step in range(10)]
    assert rates == pytest.approx([1, 1, 1, 0.2, 0.2, 0.2, 0.04, 0.04, 0.04, 0.008])


@pytest.mark.parametrize(
    "schedule, n_steps, expected",
    [("halves", 8, [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]), ("thirds", 6, [1, 1, 0.1, 0.1, 0.01, 0.01])],
)
def test_rethinkings_schedules_divide_by_ten_twice(schedule, n_steps, expected):
    rates = [learning_rate(step, peak=1.0, n_steps=n_steps, schedule=schedule) for step in range(n_steps)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("shapes", [DECAYS, LEARNING_RATES])
def test_every_shape_starts_at_one_and_never_rises(shapes):
    for shape in shapes.values():
        values = [shape(k / 50) for k in range(51)]
        assert values[0] == 1.0
        assert all(later <= earlier for earlier, later in itertools.pairwise(values))


def test_unknown_names_and_impossible_warm_up_are_refused():
    with pytest.raises(ValueError, match="unknown decay 'cos'; there are cosine"):
        check_decay("cos")
    with pytest.raises(ValueError, match="unknown learning-rate schedule 'cos'; there are cosine"):
        learning_rate(0, peak=0.1, n_steps=10, schedule="cos")
    with pytest.raises(ValueError, match="warm-up of 10 steps does not fit into training of 10 steps"):
        learning_rate(0, peak=0.1, n_steps=10, warmup_steps=10)
