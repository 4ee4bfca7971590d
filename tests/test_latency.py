"""Latency by a clock that only the networks move, and the bytes of a file."""

import copy

import pytest
import torch
from torch import nn

from prunelab import latency
from prunelab.latency import N_WARM_UP, Latency, compare, measure, n_bytes
from prunelab.models import build_model

IMAGES = {"batch_size": 2, "in_channels": 3, "image_size": 8}


class Clock:
    """Stands still but for the networks, whose passes it lists."""

    def __init__(self):
        self.now, self.passes = 0.0, []

    def network(self, name, seconds):
        """A network whose n-th forward pass takes the n-th of `seconds`."""
        left = iter(seconds)

        def hook(module, inputs, output):  # a function, so that copies of the network move this very clock
            self.passes.append(name)
            self.now += next(left)

        network = nn.Conv2d(3, 2, 3)
        network.register_forward_hook(hook)
        return network


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(latency.time, "perf_counter", lambda: clock.now)
    return clock


def test_seconds_are_those_of_each_round_without_the_warm_up(clock):
    network = clock.network("net", [100.0] * N_WARM_UP + [4.0, 1.0, 2.0])
    assert measure(network, **IMAGES, n_rounds=3) == Latency((4.0, 1.0, 2.0))
    assert len(clock.passes) == N_WARM_UP + 3


def test_networks_take_turns_and_each_has_its_own_seconds(clock):
    dense = clock.network("dense", [100.0] * N_WARM_UP + [8.0, 4.0])
    shrunken = clock.network("shrunken", [100.0] * N_WARM_UP + [2.0, 3.0])
    measured = compare({"dense": dense, "shrunken": shrunken}, **IMAGES, n_rounds=2)
    assert measured == {"dense": Latency((8.0, 4.0)), "shrunken": Latency((2.0, 3.0))}
    assert clock.passes == ["dense", "shrunken"] * (N_WARM_UP + 2)


def test_spread_has_the_quartiles():
    # Sorted 1 2 4 8 16: the median is the third, the quartiles are the second and the fourth.
    assert Latency((16.0, 1.0, 4.0, 8.0, 2.0)).spread() == (2.0, 4.0, 8.0)
    # Of 1 3 the quartiles lie a quarter of the way in.
    assert Latency((3.0, 1.0)).spread() == (1.5, 2.0, 2.5)


def test_ratios_are_taken_within_rounds():
    # 4/2 6/1 50/10 12/4 20/5 are 2 6 5 3 4: quartiles 3 4 5. The ratio of the medians would be 12 / 4.
    dense, shrunken = Latency((4.0, 6.0, 50.0, 12.0, 20.0)), Latency((2.0, 1.0, 10.0, 4.0, 5.0))
    assert shrunken.speed_up_over(dense) == (3.0, 4.0, 5.0)


def test_speed_up_over_itself_is_one():
    assert Latency((3.0, 1.0, 7.0)).speed_up_over(Latency((3.0, 1.0, 7.0))) == (1.0, 1.0, 1.0)


def test_latencies_of_different_measurements_are_not_compared():
    with pytest.raises(ValueError, match="zip"):
        Latency((1.0, 2.0)).speed_up_over(Latency((1.0, 2.0, 3.0)))


@pytest.mark.parametrize("is_training", [True, False])
def test_network_runs_on_a_copy_in_evaluation_mode_and_channels_last(is_training):
    seen = []
    model = build_model("resnet8", num_classes=10, width=0.25).train(is_training)
    model.conv.register_forward_hook(
        lambda module, inputs, output: seen.append((inputs[0], module, torch.is_grad_enabled()))
    )
    before, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    measured = measure(model, **IMAGES, n_rounds=2)
    assert len(measured.seconds) == 2 and min(measured.seconds) > 0
    assert model.training == model.bn.training == is_training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.conv.weight.is_contiguous()
    for images, module, has_gradients in seen:
        assert images.shape[0] == 2 and images.std() > 0
        assert images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
        assert module.weight.is_contiguous(memory_format=torch.channels_last)
        assert not module.training and not has_gradients


def test_number_of_threads_is_left_to_the_caller():
    seen = []
    model = nn.Conv2d(3, 2, 3)
    model.register_forward_hook(lambda module, inputs, output: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        measure(model, **IMAGES, n_rounds=2)
        assert set(seen) == {2} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("n_rounds", [-1, 0, 1])
def test_single_round_has_no_spread(n_rounds):
    with pytest.raises(ValueError, match=f"n_rounds must be at least 2, a single one has no spread; got {n_rounds}"):
        measure(nn.Conv2d(3, 2, 3), **IMAGES, n_rounds=n_rounds)


@pytest.mark.gpu
def test_gpu_is_waited_for():
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.randn(4096, 4096, device="cuda"))

        def forward(self, images):
            product = self.factor
            for _ in range(10):
                product = product @ self.factor
            return product

    # 10 products of 2 * 4096^3 FLOP each, which no GPU does in a millisecond; launching them takes less.
    assert min(measure(Product(), **IMAGES, n_rounds=3).seconds) > 1e-3


@pytest.mark.parametrize("name", ["resnet8", "lenet_300_100"])
def test_bytes_are_those_of_the_file_on_disk(tmp_path, name):
    model = build_model(name, num_classes=10, image_size=8)
    path = tmp_path / "archive.pt"  # the name that PyTorch gives to what has none, and writes into the file
    torch.save(model.state_dict(), path)
    assert n_bytes(model) == path.stat().st_size


def test_bytes_follow_the_numbers_and_not_the_zeros():
    wide, narrow = (nn.Linear(1024, n, bias=False) for n in (64, 32))
    assert n_bytes(wide) - n_bytes(narrow) == 32 * 1024 * 4
    with torch.no_grad():
        zeroed = copy.deepcopy(wide)
        zeroed.weight[:32] = 0
    assert n_bytes(zeroed) == n_bytes(wide)
