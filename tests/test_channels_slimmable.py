"""Slimmable networks compute as those that are built at their widths; the sandwich rule, gradient by gradient."""

import copy
import math

import numpy as np
import pytest
import torch
from conftest import small_resnet, with_statistics
from test_channels_groups import TwoStages
from torch import nn
from torch.nn import functional as F

from prunelab.channels.groups import Grid, Group, leading_state
from prunelab.channels.slimmable import Sandwich, Slimmable, calibrate, distillation, sandwich
from prunelab.channels.surgery import load, save, shrink
from prunelab.channels.trace import trace
from prunelab.models import build_model

IMAGE = {"in_channels": 1, "image_size": 8}
# And the factor on their channels; the small one's convolutions have biases.
NETWORKS = {"resnet8": 0.5, "mobilenet_v2": 0.35, "vgg11": 0.125, "two_stages": 1.0}
EACH = pytest.mark.parametrize("name", NETWORKS)
BUFFERS = ("running_mean", "running_var")


def build(name, widths=None):
    torch.manual_seed(0)
    if name == "two_stages":
        return TwoStages(**widths or {})
    return build_model(name, num_classes=10, width=NETWORKS[name], widths=widths, **IMAGE)


def slimmable(name, *, dtype=torch.float64):
    """A network whose statistics are not those it starts with, and whose depthwise layers let images through."""
    model = with_statistics(build(name))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    net = Slimmable(model, **IMAGE)
    model.to(dtype)
    return net


def images(n=8, *, dtype=torch.float64, seed=0):
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def computed(model, x, *, train):
    """Outputs, gradients and statistics; dropout drops the same."""
    model.train(train).zero_grad()
    torch.manual_seed(1)
    outputs = model(x)
    outputs.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return outputs, gradients, {name: b.clone() for name, b in model.named_buffers() if name.endswith(BUFFERS)}


def widths_of(net):
    """Drawn ones, and others beside the grid, among which later stages of a ResNet are narrower than earlier ones."""
    generator = torch.Generator().manual_seed(0)
    drawn = [Grid(net.groups).at(row) for row in Grid(net.groups).drawn(generator, 2)]
    falling = {name: max(1, net.groups[name].n_channels // (i + 1)) for i, name in enumerate(net.full)}
    return [*drawn, falling]


@EACH
@pytest.mark.parametrize("train", [True, False])
def test_at_full_width_it_is_the_ordinary_network_bit_for_bit(name, train):
    ordinary, x = with_statistics(build(name)), images(dtype=torch.float32)
    keys, wanted = list(ordinary.state_dict()), computed(copy.deepcopy(ordinary), x, train=train)
    net = Slimmable(ordinary, **IMAGE)
    assert net.model is ordinary and list(ordinary.state_dict()) == keys
    found = computed(net.model, x, train=train)
    assert torch.equal(found[0], wanted[0])
    for own, its in zip(found[1:], wanted[1:], strict=True):
        assert own.keys() == its.keys() and all(torch.equal(own[name], its[name]) for name in its)


@EACH
@pytest.mark.parametrize("train", [True, False])
def test_at_any_widths_it_is_the_network_that_is_built_with_its_first_channels(name, train):
    net = slimmable(name)
    for widths in widths_of(net):
        small = build(name, widths).double()
        small.load_state_dict(leading_state(small, net.model.state_dict()))
        before = {name: b.clone() for name, b in net.model.named_buffers()}
        net.set(widths)
        outputs, gradients, statistics = computed(net.model, images(), train=train)
        wanted, its_gradients, its_statistics = computed(small, images(), train=train)
        torch.testing.assert_close(outputs, wanted)
        for tensors, its, beyond in (
            (gradients, its_gradients, {name: torch.zeros_like(g) for name, g in gradients.items()}),
            (statistics, its_statistics, before),  # channels that are not there move nothing
        ):
            for key, tensor in tensors.items():
                expected = beyond[key].clone()
                expected[tuple(slice(n) for n in its[key].shape)] = its[key]
                torch.testing.assert_close(tensor, expected, msg=lambda text, key=key: f"{key}: {text}")


def test_widths_may_be_numbers_of_numpy():
    net = slimmable("two_stages")
    net.set({name: np.int64(3) for name in net.full})
    assert net.model(images()).isfinite().all() and {type(width) for width in net.widths.values()} == {int}


@EACH
def test_scales_that_are_ones_then_zeros_are_widths(name):
    net = slimmable(name)
    for widths in widths_of(net):
        masks = {name: (torch.arange(n) < widths[name]).double() for name, n in net.full.items()}
        with torch.no_grad():
            net.set(net.full)
            with net.scaled(masks):
                scaled = net.model(images())
            again = net.model(images())  # the scales are gone
            net.set(widths)
            torch.testing.assert_close(scaled, net.model(images()))
        assert not torch.allclose(scaled, again)


def test_scales_multiply_each_channel_once():
    layers = [nn.Conv2d(*ends, 1, groups=n, bias=False) for ends, n in (((1, 2), 1), ((2, 2), 2), ((2, 1), 1))]
    net = Slimmable(nn.Sequential(*layers), in_channels=1, image_size=1)
    for layer in layers:
        nn.init.ones_(layer.weight)
    scale = torch.tensor([0.5, 0.25], requires_grad=True)
    with net.scaled({"0": scale}):
        net.model(torch.ones(1, 1, 1, 1)).backward()
    assert scale.grad.tolist() == [1, 1]  # of their sum: what the depthwise layer reads is not scaled


def test_copy_has_widths_and_values_of_its_own():
    net = slimmable("resnet8")
    model, other = copy.deepcopy((net.model, net))
    assert other.model is model
    wanted = net.model(images())
    other.set(Grid(net.groups).at(0))
    nn.init.zeros_(model.fc.weight)
    assert torch.equal(net.model(images()), wanted) and net.widths == net.full
    assert not torch.equal(model(images()), wanted)


@EACH
def test_slimmable_network_is_traced_shrunk_saved_and_made_slimmable_like_an_ordinary_one(name, tmp_path):
    net, x = slimmable(name, dtype=torch.float32), images(dtype=torch.float32)
    net.model.eval()
    wanted = net.model(x)
    narrow = Grid(net.groups).at(2)
    net.set(narrow)
    traced, its = trace(net.model, **IMAGE), trace(build(name), **IMAGE)
    assert traced.widths == its.widths and list(traced.layers) == list(its.layers)
    layer, n = next(iter(its.widths.items()))
    ordinary = build(name)
    ordinary.load_state_dict(net.model.state_dict())
    small, expected = (shrink(model, {layer: range(n // 2)}, **IMAGE) for model in (net.model, ordinary))
    assert torch.equal(small.eval()(x), expected.eval()(x)) and net.widths == narrow
    save(net.model, tmp_path / "net")
    for model in (build(name), net.model, small):
        assert torch.equal(load(model, tmp_path / "net").eval()(x), wanted)
    again = Slimmable(net.model, **IMAGE)
    assert again.macs.of(narrow) == net.macs.of(narrow) and torch.equal(net.model(x), wanted)


def test_refused_network_is_left_as_it_was():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.PReLU(2), nn.Conv2d(2, 2, 1))
    with pytest.raises(ValueError, match="'2' is PReLU"):
        Slimmable(model, **IMAGE)
    assert [type(layer) for layer in model] == [nn.Conv2d, nn.BatchNorm2d, nn.PReLU, nn.Conv2d]


def test_layers_that_have_no_slimmable_kind_are_named():
    with pytest.raises(ValueError, match=r"'hidden.1' is BatchNorm1d\(64.*slimmable are Conv2d, Linear, BatchNorm2d"):
        Slimmable(build_model("vgg16", num_classes=10, width=0.125, **IMAGE), **IMAGE)
    mirrored = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), nn.Conv2d(2, 2, 1))
    with pytest.raises(ValueError, match="'0' is Conv2d"):
        Slimmable(mirrored, **IMAGE)
    with pytest.raises(ValueError, match="the width of 'stem' must be a whole number in 1 to 4, got 5"):
        net = Slimmable(TwoStages(), **IMAGE)
        net.set({**net.full, "stem": 5})


# The sandwich rule.


def trained(draw, **options):
    """A slimmable network, and the rule that trains it."""
    net = Slimmable(small_resnet().double(), **IMAGE)
    return net, Sandwich(net, draw(net), generator=torch.Generator().manual_seed(3), **options)


def by_sandwich(net):
    return sandwich(Grid(net.groups))


def batch():
    return images(16), torch.arange(16) % 10


def test_a_step_has_the_largest_the_smallest_and_two_random_widths():
    grid = Grid({"a": Group("a", 20), "b": Group("b", 10)})
    random = []
    for seed in range(30):
        largest, smallest, *others = sandwich(grid)(torch.Generator().manual_seed(seed))
        assert largest == {"a": 20, "b": 10} and smallest == {"a": 2, "b": 1} and len(others) == 2
        random += [tuple(widths.values()) for widths in others]
    assert {a for a, _ in random} == set(range(2, 21, 2)) and {b for _, b in random} == set(range(1, 11))
    assert any(a != 2 * b for a, b in random)
    for seed in range(30):
        _, _, *others = sandwich(grid, independent=False)(torch.Generator().manual_seed(seed))
        assert all(widths["a"] == 2 * widths["b"] for widths in others)
        random.append(others[0] != others[1])
    assert True in random


def test_gradients_are_the_sum_of_four_separate_backward_passes_none_of_which_reaches_the_teacher():
    net, rule = trained(by_sandwich)
    other, (x, labels) = copy.deepcopy(net), batch()
    largest, *others = by_sandwich(other)(torch.Generator().manual_seed(3))
    net.model.train()
    losses = []
    for loss in rule.objective(net.model, x, labels):
        loss.backward()
        losses.append(loss.item())

    sums, teacher = {}, None
    for widths in (largest, *others):
        other.set(widths)
        other.model.train().zero_grad()
        outputs = other.model(x)
        teacher = outputs.detach().softmax(1) if teacher is None else teacher
        divergence = (teacher * (teacher.log() - outputs.log_softmax(1))).sum() / 16
        loss = F.cross_entropy(outputs, labels) if widths is largest else divergence
        loss.backward()
        assert loss.item() == pytest.approx(losses.pop(0))
        for name, parameter in other.model.named_parameters():
            sums[name] = sums.get(name, 0) + parameter.grad
    for name, parameter in net.model.named_parameters():
        torch.testing.assert_close(parameter.grad, sums[name])
    assert not losses and rule.n_batches == 1
    assert rule.macs == sum(map(net.macs.of, (largest, *others)))


@pytest.mark.parametrize("judged", ["largest", "smallest", "neither"])
def test_only_the_judged_widths_move_the_statistics(judged):
    ordinary, (x, labels) = Slimmable(small_resnet().double(), **IMAGE), batch()
    grid = Grid(ordinary.groups)
    widths = {"largest": grid.at(-1), "smallest": grid.at(0), "neither": {**ordinary.full, "conv": 3}}[judged]
    net, rule = trained(by_sandwich, judged=widths)
    net.model.train()
    for loss in rule.objective(net.model, x, labels):
        loss.backward()
    assert net.widths == rule.judged == widths  # and it is tested at them
    if judged != "neither":
        ordinary.set(widths)
        ordinary.model.train()(x)
    for name, value in ordinary.model.named_buffers():
        assert torch.equal(net.model.get_buffer(name), value), name


def test_statistics_of_a_single_width_a_step_are_kept():
    net, rule = trained(lambda net: lambda generator: [Grid(net.groups).at(0)])
    list(rule.objective(net.model.train(), *batch()))
    assert net.model.bn.running_mean[0] != 0 and net.model.bn.running_mean[1] == 0
    assert net.widths == net.full


def test_resumed_rule_draws_what_it_would_have_drawn():
    (net, rule), (_, other) = trained(by_sandwich), trained(by_sandwich)
    for _ in range(2):
        list(rule.objective(net.model, *batch()))
    other.load_state_dict(copy.deepcopy(rule.state_dict()))
    assert (other.n_batches, other.macs) == (2, rule.macs) and rule.macs > 0
    assert rule.draw(rule.generator) == other.draw(other.generator)


def test_distillation_is_the_divergence_of_a_slow_formula():
    student = torch.tensor([[0.0, 1.0, 3.0], [2.0, 2.0, -1.0]])
    teacher = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.5, 1.0]])
    total = 0.0
    for own, its in zip(student.tolist(), teacher.tolist(), strict=True):
        q, p = ([math.exp(v) / sum(map(math.exp, row)) for v in row] for row in (own, its))
        total += sum(p_k * math.log(p_k / q_k) for p_k, q_k in zip(p, q, strict=True))
    assert distillation(student, teacher).item() == pytest.approx(total / 2)
    assert distillation(teacher, teacher).item() == pytest.approx(0, abs=1e-6)


def test_statistics_taken_anew_are_the_means_over_all_batches():
    model = nn.Sequential(nn.BatchNorm2d(1, momentum=0.3), nn.BatchNorm2d(1, momentum=0.7, affine=False))
    model[0].running_mean.fill_(100.0)
    batches = [torch.tensor(row).view(-1, 1, 1, 1) for row in ([0.0, 2.0], [4.0, 10.0], [1.0, 1.0])]
    # Means 1, 7 and 1; variances of both pixels, divided by one, 2, 18 and 0.
    for n, mean, variance in ((2, 4.0, 10.0), (3, 3.0, 20 / 3), (1, 1.0, 2.0)):
        calibrate(model, batches[:n])
        assert model[0].running_mean.item() == pytest.approx(mean)
        assert model[0].running_var.item() == pytest.approx(variance)
    assert [norm.momentum for norm in model] == [0.3, 0.7]
