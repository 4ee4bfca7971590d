"""Trainings that take turns give what they give alone: dropout, masks, streams, killed and resumed."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from conftest import build_method
from torch import nn

from prunelab import training, turns
from prunelab.models import build_model
from prunelab.turns import exhaust, in_turns, until_done

SETTINGS = {"n_epochs": 2, "batch_size": 64, "learning_rate": 0.05, "schedule": "cosine", "warmup_epochs": 0}
SETTINGS |= {"momentum": 0.9, "weight_decay": 5e-4, "augment": True, "eval_every": 1}
KINDS = [("dense", "wrn22_2"), ("rigl", "wrn22_2"), ("dense", "resnet8")]  # the first two have dropout


def start(name, model_name, dataset, *, seed=0, device="cpu", **changes):
    """A training before its first turn, with its model and method; seeds the global generators."""
    torch.manual_seed(seed)
    model = build_model(model_name, num_classes=10, in_channels=1, image_size=8, width=0.25)
    model = model.to(device, memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(seed)
    method = build_method(name, model, density=0.3, generator=generator, update_every=3, stop_step=6)
    generator = torch.Generator().manual_seed(seed + 1)
    options = SETTINGS | changes
    return model, training.training(model, dataset, method=method, generator=generator, **options)


def finish(model, own):
    """All numbers that a training gives."""
    result = exhaust(own)
    return {"curves": result.curves, "n_batches": result.n_batches, "state": model.state_dict()}


@pytest.fixture(scope="module")
def alone(digits):
    return [finish(*start(*kind, digits)) for kind in KINDS]


def take_turns(started, n_turns=None):
    """Takes turns, in order, until the trainings have ended or each has had its number of turns; the results."""
    results = {}
    while len(results) < len(started) and n_turns != 0:
        for place, (_, own) in enumerate(started):
            if place not in results:
                try:
                    next(own)
                except StopIteration as end:
                    results[place] = end.value
        n_turns = n_turns and n_turns - 1
    return results


def assert_as_alone(result, model, alone):
    assert (result.curves, result.n_batches) == (alone["curves"], alone["n_batches"])
    for key, value in model.state_dict().items():
        assert torch.equal(value, alone["state"][key]), key


def test_trainings_in_turn_give_the_numbers_that_they_give_alone(alone, digits):
    started = [start(*KINDS[0], digits)]
    take_turns(started, 3)
    started += [start(*kind, digits) for kind in KINDS[1:]]  # which seeds the generators again
    results = take_turns(started)
    for place, (model, _) in enumerate(started):
        assert_as_alone(results[place], model, alone[place])


class Killed(Exception):
    pass


def kill(share):
    raise Killed


def test_a_training_killed_among_others_goes_on_from_its_checkpoint(alone, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    started = [start(*KINDS[0], digits), start(*KINDS[1], digits, checkpoint=tmp_path / "state", report=kill)]
    with pytest.raises(Killed):
        take_turns(started)
    started = [started[0], start(*KINDS[1], digits, checkpoint=tmp_path / "state"), start(*KINDS[2], digits)]
    results = take_turns(started)
    assert len(results) == 3
    for place, (model, _) in enumerate(started):
        assert_as_alone(results[place], model, alone[place])


def test_a_turn_is_a_step(digits):
    model, own = start("rigl", "resnet8", digits, eval_every=2)
    before = model.fc.weight.clone()
    n_turns = sum(1 for _ in own)
    assert n_turns == 8 + 3  # of 4 an epoch, and mask updates at 0, 3 and 6
    assert not torch.equal(before, model.fc.weight)


@in_turns
def draw(model, *, n):
    numbers = []
    for _ in range(n):
        numbers.append(torch.rand(()).item())
        yield
    return numbers


def test_numbers_are_drawn_from_where_the_generator_was_at_the_call():
    model = nn.Linear(1, 1)
    torch.manual_seed(0)
    expected = torch.rand(4).tolist()
    torch.manual_seed(0)
    first = draw(model, n=3)
    torch.manual_seed(1)
    second = draw(model, n=3)
    assert exhaust(second) != expected[:3]
    assert exhaust(first) == expected[:3]
    assert torch.rand(()).item() == expected[3]  # what comes after a training goes on from there, as ever


class FakeGenerator:
    """A GPU's generator: draws advance a state that other generators may share."""

    def __init__(self, n=0):
        self.state = {"n": n}

    def clone_state(self):
        return FakeGenerator(self.state["n"])

    def graphsafe_set_state(self, other):
        self.state = other.state


def test_a_training_has_the_generator_of_its_gpu_for_itself(monkeypatch):
    default = FakeGenerator(10)
    monkeypatch.setattr(torch.cuda, "default_generators", [default])
    own = turns.GlobalGenerators(SimpleNamespace(type="cuda", index=0))
    default.state["n"] = 50  # seeded by others
    with own:
        assert default.state["n"] == 10
        default.state["n"] += 1
        captured_with = default.state
    assert default.state["n"] == 11
    default.state["n"] = 60
    with own:
        assert default.state is captured_with and captured_with["n"] == 11


def test_the_stream_is_left_before_each_pause_and_joined_at_the_end(monkeypatch):
    log = []

    @contextmanager
    def own_stream(device):
        class Stream:
            def __enter__(self):
                log.append("in")

            def __exit__(self, *_):
                log.append("out")

        try:
            yield Stream()
        finally:
            log.append("joined")

    monkeypatch.setattr(turns, "own_stream", own_stream)
    own = draw(nn.Linear(1, 1), n=1)
    next(own)
    assert log == ["in", "out"]
    exhaust(own)
    assert log == ["in", "out"] * 2 + ["joined"]
    log.clear()
    own = draw(nn.Linear(1, 1), n=2)
    next(own)
    own.close()
    assert log == ["in", "out", "joined"]


def test_nobody_waits_for_a_gpu_that_has_work(monkeypatch):
    answers = [False, False, True]
    event = SimpleNamespace(record=lambda: None, query=lambda: answers.pop(0))
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    assert len(list(until_done(SimpleNamespace(type="cuda")))) == 2
    assert list(until_done(torch.device("cpu"))) == []


@pytest.mark.gpu
def test_on_a_gpu_eight_trainings_in_turn_give_the_numbers_that_they_give_alone(digits, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    on_gpu = digits.to("cuda")
    kinds = [(*KINDS[n % 3], on_gpu) for n in range(8)]
    alone = [finish(*start(*kind, seed=seed, device="cuda")) for seed, kind in enumerate(kinds)]
    started = [start(*kind, seed=seed, device="cuda") for seed, kind in enumerate(kinds)]
    take_turns(started, 1)
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    results = take_turns(started)
    for place, (model, _) in enumerate(started):
        assert_as_alone(results[place], model, alone[place])
