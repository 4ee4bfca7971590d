"""What the benchmark measures is what it says: its parts, on made-up clocks and small images."""

from contextlib import contextmanager

import pytest

from prunelab.bench import steps

GLYPHS = {"dataset": "glyphs", "n_train": 128}


def test_sides_take_turns_and_warm_up_uncounted():
    order = []
    sides = {name: (lambda step, name=name: order.append((name, step))) for name in "ab"}
    spent = steps._in_turn(sides, n_steps=2)
    assert order == [(name, step) for step in range(steps.N_WARM_UP + 2) for name in "ab"]
    assert {name: len(seconds) for name, seconds in spent.items()} == {"a": 2, "b": 2}


def test_steps_are_measured_on_a_stream_that_can_be_captured(monkeypatch):
    entered = []

    @contextmanager
    def own_stream(device):
        entered.append(device.type)
        yield
        entered.append("left")

    monkeypatch.setattr(steps, "own_stream", own_stream)
    monkeypatch.setattr(
        steps, "_in_turn", lambda sides, *, n_steps: entered.append("steps") or {"a": [1.0], "b": [1.0]}
    )
    steps._gain({})
    assert entered == ["cpu", "steps", "left"]


def test_gain_is_the_first_over_the_second(monkeypatch):
    monkeypatch.setattr(steps, "_in_turn", lambda sides, *, n_steps: {"slow": [6.0, 5.0, 9.0], "fast": [2.0]})
    assert steps._gain({}) == 3.0


def test_share_of_the_limit_counts_three_passes_of_the_batch(monkeypatch):
    # ResNet-20 at 32 pixels and one channel: a step of a second, a product of 1024^3 in as long.
    monkeypatch.setattr(steps, "_in_turn", lambda sides, *, n_steps: {"product": [1.0], "step": [1.0]})
    layers = 16 * 1024 + 6 * 16 * 16 * 1024, 16 * 32 * 256 + 5 * 32 * 32 * 256, 32 * 64 * 64 + 5 * 64 * 64 * 64
    macs = 9 * sum(layers) + 640  # of the output
    assert steps.share_of_limit(GLYPHS) == pytest.approx(3 * 128 * macs / 1024**3)


@pytest.mark.slow
def test_shares_of_a_step_are_a_whole():
    shares = steps.profile(GLYPHS)
    assert set(shares) == {*steps.OPERATIONS, "all else"}
    assert sum(shares.values()) == pytest.approx(1, abs=0.01)
    assert shares["convolution"] > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dense", "static", "rigl"])
def test_steppers_of_all_methods_step(method):
    step = steps._stepper(GLYPHS, method=method, batch_size=8)
    for number in range(3):
        step(number)
