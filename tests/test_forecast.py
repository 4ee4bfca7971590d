"""How long a plan takes: arithmetic by hand, and a measurement that measures."""

from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime

import pytest

from prunelab import forecast, recipes, records, turns
from prunelab.forecast import Calibration, Timing, Workload, plan_seconds
from prunelab.recipes import runner
from prunelab.runs import Run

SIZE = {"macs": 1000, "n_steps": 30, "n_evaluated": 200, "n_weights": 70}
WORK = Workload("lenet_300_100", 0.5, 10, 1, 8, "sgd", batch_size=16, **SIZE)


def calibration(*timings):
    return Calibration({WORK.kind: timings}, start_seconds=2.0)


def test_a_run_takes_its_steps_and_its_tests():
    assert calibration(Timing(1000, step=0.5, test=0.01)).seconds(WORK) == 30 * 0.5 + 200 * 0.01


def test_the_time_of_a_width_lies_between_the_narrowest_and_the_widest():
    # A hundred times the MACs take four times the time: ten times take twice.
    between = calibration(Timing(100, step=1.0, test=0.1), Timing(10_000, step=4.0, test=0.4))
    assert between.seconds(WORK) == pytest.approx(30 * 2.0 + 200 * 0.2)
    assert between.seconds(replace(WORK, macs=100)) == pytest.approx(30 * 1.0 + 200 * 0.1)
    assert between.seconds(replace(WORK, macs=10_000)) == pytest.approx(30 * 4.0 + 200 * 0.4)


def test_training_takes_three_passes_for_each_image():
    assert WORK.training_macs == 3 * 1000 * 30 * 16


def test_a_plan_takes_the_hours_of_a_gpu_and_the_disk_of_what_is_started_from(monkeypatch):
    monkeypatch.setattr(forecast, "H200_MACS", 400.0)
    # 3 * 1000 * 30 * 16 MACs, and 1000 * 200 for tests, of each of two runs: 3,280,000 / 400 seconds.
    assert forecast.gpu_hours([WORK, WORK]) == pytest.approx(8_200 / 3600)
    parent = Run("toy")
    children = [Run("toy", {}, seed, (parent,)) for seed in (1, 2)]
    sizes = {parent.id: WORK} | {child.id: replace(WORK, n_weights=10**9) for child in children}
    assert forecast.state_gigabytes([parent, *children], sizes) == 9 * 70 / 1e9


def test_the_pace_of_a_gpu_is_that_of_the_records_that_ship():
    spent, starts, ends = 0.0, [], []
    planned = {run.id: run for run in recipes.RIGL.plan("full")}
    for record in records.load("01_rigl"):
        made = record["provenance"]
        if "H200" in made["device"]:
            spent += runner.forecast(recipes.RIGL, planned[record["id"]]).all_macs
            starts.append(datetime.fromisoformat(made["date"]).timestamp())
            ends.append(starts[-1] + made["seconds"])
    assert pytest.approx(spent / (max(ends) - min(starts)), rel=1e-3) == forecast.H200_MACS


def test_a_plan_takes_its_share_of_all_work_or_its_longest_line():
    parent = Run("toy")
    child = Run("toy", {}, 1, (parent,))
    others = [Run("toy", {}, seed) for seed in (2, 3)]
    plan = [parent, child, *others]
    seconds = {parent.id: 10.0, child.id: 20.0, others[0].id: 5.0, others[1].id: 5.0}
    assert plan_seconds(plan, seconds, n_workers=1, start_seconds=2.0) == 42.0
    assert plan_seconds(plan, seconds, n_workers=2, start_seconds=2.0) == 32.0  # the child waits for its parent
    assert plan_seconds([child, *others], seconds, n_workers=2, start_seconds=2.0) == 22.0  # its parent is on record
    assert plan_seconds([], seconds, n_workers=2, start_seconds=2.0) == 0.0


@pytest.mark.parametrize("slots", [1, 2])
def test_networks_step_in_turn_each_on_a_stream_of_its_own_and_a_step_is_its_share_of_a_round(slots, monkeypatch):
    now, steps, entered = [0.0], [], []

    class Stream:
        def __enter__(self):
            entered.append(self)

        def __exit__(self, *_):
            pass

    @contextmanager
    def own_stream(device):
        yield Stream()

    def step(stepper, number):
        steps.append((entered[-1], stepper, number))
        now[0] += 2.0

    monkeypatch.setattr(turns, "own_stream", own_stream)
    monkeypatch.setattr(forecast.Stepper, "step", step)
    monkeypatch.setattr(forecast.time, "perf_counter", lambda: now[0])
    _, (timing,) = forecast._measure([WORK], "cpu", slots=slots, seconds=12.0)
    assert timing.step == 2.0
    n_rounds = 1 + 1 + 12 // (2 * slots)  # to warm up, to see how many there is time for, and these
    assert [number for _, _, number in steps] == [number for number in range(n_rounds) for _ in range(slots)]
    pairs = {(stream, stepper) for stream, stepper, _ in steps}
    assert len(pairs) == len({stream for stream, _ in pairs}) == len({stepper for _, stepper in pairs}) == slots
    assert [stepper for _, stepper, _ in steps] == [stepper for _, stepper, _ in steps[:slots]] * n_rounds


@pytest.mark.parametrize(
    "name, limit",
    [
        ("MEASURED_PIXELS", WORK.batch_size * WORK.image_size**2 // 4),
        ("MEASURED_MACS", WORK.batch_size * WORK.macs / 4),
    ],
)
def test_of_a_batch_that_might_not_fit_or_takes_long_a_part_is_timed_and_scaled(name, limit, monkeypatch):
    now, sizes = [0.0], []

    def step(stepper, number):
        sizes.append(stepper.batches.batch_size)
        now[0] += 2.0

    monkeypatch.setattr(forecast.Stepper, "step", step)
    monkeypatch.setattr(forecast.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(forecast, name, limit)
    _, (timing,) = forecast._measure([WORK], "cpu", slots=1, seconds=4.0)
    assert set(sizes) == {WORK.batch_size // 4} and timing.step == 8.0


@pytest.mark.slow
@pytest.mark.parametrize("slots", [2])
def test_the_widest_and_the_narrowest_of_each_kind_are_measured(slots):
    other = replace(WORK, optimizer="adam")
    widths = [replace(WORK, width=width, macs=macs) for width, macs in ((0.1, 2_000), (6.0, 60_000), (0.5, 30_000))]
    measured = forecast.calibrate([*widths, other], device="cpu", n_workers=2, slots=slots, seconds=0.6)
    assert [timing.macs for timing in measured.timings[WORK.kind]] == [2_000, 60_000]
    assert [timing.macs for timing in measured.timings[other.kind]] == [1000]
    narrow, wide = measured.timings[WORK.kind]
    assert 0 < narrow.step < wide.step and narrow.test > 0
    assert measured.start_seconds > 0


@pytest.mark.gpu
def test_on_a_gpu_networks_that_take_turns_are_measured():
    measured = forecast.calibrate([replace(WORK, model="resnet8")], device="cuda", n_workers=1, slots=8, seconds=1.0)
    ((timing,),) = measured.timings.values()
    assert timing.step > 0 and timing.test > 0
