"""Lottery tickets: which weights are left, by hand; what a ticket remembers; and to which networks it fits."""

import pytest
import torch
from conftest import train_step
from torch import nn

from prunelab.masks import prunable_weights
from prunelab.methods import lottery
from prunelab.methods.lottery import Ticket
from prunelab.models import build_model
from prunelab.steps import build_optimizer

WEIGHTS = {"a": torch.tensor([[0.9, -0.1], [0.5, 0.05]]), "b": torch.tensor([[-0.7, 0.2, -0.3, 0.0]])}
ALL = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in WEIGHTS.items()}
WITHOUT_B0 = {"a": ALL["a"], "b": torch.tensor([[False, True, True, True]])}


def positions(masks):
    return {f"{name}{i}" for name, mask in masks.items() for i in mask.flatten().nonzero().flatten().tolist()}


def network(**changes):
    return build_model(
        "lenet_300_100", **{"num_classes": 10, "in_channels": 1, "image_size": 8, "width": 0.1} | changes
    )


def all_true(model):
    return {name: torch.ones_like(w, dtype=torch.bool) for name, w in lottery.ticket_layers(model).items()}


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def is_same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# The order of all magnitudes: a0 .9, b0 .7, a2 .5, b2 .3, b1 .2, a1 .1, a3 .05, b3 0.
@pytest.mark.parametrize(
    "density, masks, left",
    [
        (1.00, ALL, {"a0", "a1", "a2", "a3", "b0", "b1", "b2", "b3"}),
        (0.75, ALL, {"a0", "a1", "a2", "b0", "b1", "b2"}),
        (0.50, ALL, {"a0", "a2", "b0", "b2"}),
        (0.25, ALL, {"a0", "b0"}),  # the largest of each layer only by chance
        (0.30, ALL, {"a0", "b0"}),  # 2.4 of 8
        (0.125, ALL, {"a0"}),  # b loses all its weights
        (0.50, WITHOUT_B0, {"a0", "a2", "b2", "b1"}),  # b0 does not return, though its value is large
        (0.875, WITHOUT_B0, {"a0", "a1", "a2", "a3", "b1", "b2", "b3"}),  # b3 is zero but not pruned
    ],
)
def test_largest_weights_of_all_layers_are_left(density, masks, left):
    assert positions(lottery.prune_smallest(WEIGHTS, masks, density=density)) == left


def test_weights_of_a_diverged_network_are_pruned_all_the_same():
    weights = WEIGHTS | {"b": torch.tensor([[torch.nan, 0.2, -torch.inf, 0.0]])}
    assert positions(lottery.prune_smallest(weights, ALL, density=0.375)) == {"a0", "b0", "b2"}


def test_weights_of_one_size_leave_from_the_back():
    weights = {"a": torch.full((2, 50), -0.5), "b": torch.full((100,), 0.5)}
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    left = lottery.prune_smallest(weights, masks, density=0.6)
    assert left["a"].all() and left["b"].nonzero().flatten().tolist() == list(range(20))


@pytest.mark.parametrize("density", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("shapes", [[(7,), (3, 5)], [(8, 3, 3, 3), (10, 8), (1, 1)]])
def test_rounds_nest_with_exact_counts_and_agree_with_a_sorted_list(shapes, density):
    generator = torch.Generator().manual_seed(0)
    weights = {str(i): torch.randn(shape, generator=generator) for i, shape in enumerate(shapes)}
    old = {name: torch.rand(w.shape, generator=generator) < 0.8 for name, w in weights.items()}
    size, n_active = sum(m.numel() for m in old.values()), sum(int(m.sum()) for m in old.values())
    new = lottery.prune_smallest(weights, old, density=density * n_active / size)
    assert list(new) == list(old) and not any((new[name] & ~old[name]).any() for name in old)
    ranked = sorted(
        ((-abs(value), name, i) for name, w in weights.items() for i, value in enumerate(w.flatten().tolist())
         if old[name].flatten()[i]),
    )  # fmt: skip
    assert positions(new) == {f"{name}{i}" for _, name, i in ranked[: round(density * n_active)]}


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1, 90])
def test_percentage_is_no_density(density):
    with pytest.raises(ValueError, match=r"density must lie in \(0, 1\]"):
        lottery.prune_smallest(WEIGHTS, ALL, density=density)


def test_round_cannot_have_more_weights_than_are_left():
    with pytest.raises(ValueError, match=r"density 1.0 asks for 8 weights, but only 7 of 8 are left"):
        lottery.prune_smallest(WEIGHTS, WITHOUT_B0, density=1.0)


def test_shuffled_masks_keep_the_count_of_each_layer_and_follow_the_generator_alone():
    generator = torch.Generator().manual_seed(0)
    masks = {"a": torch.rand(30, 20, generator=generator) < 0.1, "b": torch.rand(10, 5, generator=generator) < 0.5}
    torch.manual_seed(0)
    first = lottery.shuffled(masks, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(1)
    again = lottery.shuffled(masks, generator=torch.Generator().manual_seed(1))
    other = lottery.shuffled(masks, generator=torch.Generator().manual_seed(2))
    for name, mask in masks.items():
        assert first[name].shape == mask.shape and int(first[name].sum()) == int(mask.sum())
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], mask) and not torch.equal(first[name], other[name])


@pytest.mark.parametrize("name, output", [("lenet_300_100", "5"), ("resnet8", "fc"), ("mobilenet_v1", "fc")])
def test_ticket_holds_all_layers_but_the_output(name, output):
    model = build_model(name, num_classes=10, width=0.25, image_size=16)
    layers = lottery.ticket_layers(model)
    assert [*layers, output] == list(prunable_weights(model))
    assert all(weight is model.get_parameter(f"{layer}.weight") for layer, weight in layers.items())


def test_single_layer_holds_no_ticket():
    with pytest.raises(ValueError, match="Sequential has no prunable layer besides its output, so it holds no ticket"):
        lottery.ticket_layers(nn.Sequential(nn.Linear(2, 2)))


def test_all_values_move_into_the_same_network():
    torch.manual_seed(0)
    source, target = (build_model("resnet8", num_classes=10, width=0.25) for _ in range(2))
    source.bn.running_mean.fill_(3.0)
    assert not is_same(state(source), state(target))
    lottery.load_values(target, source.state_dict())
    assert is_same(state(source), state(target))
    with torch.no_grad():
        target.conv.weight.zero_()
    assert source.conv.weight.any()  # a copy


def test_output_for_other_classes_stays_as_it_is():
    torch.manual_seed(0)
    source, target = network(), network(num_classes=4)
    before = state(target)
    lottery.load_values(target, source.state_dict())
    after = state(target)
    for name in before:
        assert torch.equal(after[name], (before if name in ("5.weight", "5.bias") else source.state_dict())[name])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"width": 0.2}, r"1.weight is \(30, 64\) in the ticket and \(60, 64\) in Sequential; model, width"),
        ({"in_channels": 3}, r"1.weight is \(30, 64\) in the ticket and \(30, 192\)"),
        ({"image_size": 10}, r"1.weight is \(30, 64\) in the ticket and \(30, 100\)"),
        ({"name": "resnet8"}, r"conv.weight is absent in the ticket and \(2, 1, 3, 3\) in ResNet"),
        ({"num_classes": 4, "width": 0.2}, "1.weight is"),
    ],
)
def test_ticket_for_another_network_names_the_first_layer_and_changes_nothing(changes, message):
    ticket = network().state_dict()
    options = {"name": "lenet_300_100", "num_classes": 10, "in_channels": 1, "image_size": 8, "width": 0.1} | changes
    target = build_model(options.pop("name"), **options)
    before = state(target)
    with pytest.raises(ValueError, match=f"^a ticket for another network: {message}"):
        lottery.load_values(target, ticket)
    assert is_same(before, state(target))


def test_layer_that_the_network_lacks_is_named():
    target = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    ticket = target.state_dict() | {"7.weight": torch.zeros(2, 2)}
    with pytest.raises(ValueError, match=r"7.weight is \(2, 2\) in the ticket and absent in Sequential"):
        lottery.load_values(target, ticket)


def test_first_values_are_remembered_as_they_were_before_the_mask():
    model = network()
    values = state(model)
    masks = {name: torch.rand(m.shape, generator=torch.Generator().manual_seed(0)) < 0.5
             for name, m in all_true(model).items()}  # fmt: skip
    method = Ticket(model, masks, rewind_steps=0)
    assert not model.state_dict()["1.weight"][~masks["1"]].any()
    assert is_same(method.start, values)
    train(model, method, 3)
    assert is_same(method.start, values)


def train(model, method, n_steps, *, first=0, optimizer=None):
    """Steps on fixed images; returns the values after each, and the optimizer."""
    if optimizer is None:
        optimizer = build_optimizer(model, momentum=0.9, weight_decay=5e-4)
        for group in optimizer.param_groups:
            group["lr"] = 0.1
    generator = torch.Generator().manual_seed(0)
    after = []
    for step in range(first, first + n_steps):
        images = torch.randn(8, 1, 8, 8, generator=generator)
        _, stepped = train_step(model, optimizer, images, torch.arange(8), step, method=method)
        assert stepped
        after.append(state(model))
    return after, optimizer


@pytest.mark.parametrize("rewind_steps", [1, 3, 5])
def test_values_of_exactly_the_rewind_step_are_remembered(rewind_steps):
    torch.manual_seed(0)
    model = build_model("resnet8", num_classes=10, in_channels=1, width=0.25)
    first = state(model)
    method = Ticket(model, all_true(model), rewind_steps=rewind_steps)
    assert is_same(method.start, first)  # until then
    after, _ = train(model, method, 5)
    assert [is_same(method.start, values) for values in after] == [step == rewind_steps for step in range(1, 6)]


@pytest.mark.parametrize("density", [0.05, 0.5, 1.0])
def test_pruned_weights_stay_zero_and_the_mask_as_it_is(density):
    torch.manual_seed(0)
    model = network()
    masks = lottery.prune_smallest(lottery.ticket_layers(model), all_true(model), density=density)
    method = Ticket(model, masks, rewind_steps=0)
    after, optimizer = train(model, method, 5)
    for name, mask in masks.items():
        assert torch.equal(method.masks[name], mask)
        assert not any(values[f"{name}.weight"][~mask].any() for values in after)
        assert not optimizer.state[method.weights[name]]["momentum_buffer"][~mask].any()
        assert (after[0][f"{name}.weight"] != after[-1][f"{name}.weight"])[mask].any()


def test_resumed_training_has_the_memory_of_the_interrupted_one(tmp_path):
    torch.manual_seed(0)
    model = network()
    method = Ticket(model, all_true(model), rewind_steps=2)
    train(model, method, 3)
    torch.save(method.state_dict(), tmp_path / "state")
    resumed = Ticket(network(), all_true(model), rewind_steps=2)
    assert not is_same(resumed.start, method.start)
    resumed.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert is_same(resumed.start, method.start)
    train(resumed.model, resumed, 2, first=3)  # past the step at which values are remembered
    assert is_same(resumed.start, method.start)


def test_training_resumed_before_the_rewind_step_still_remembers_it():
    torch.manual_seed(0)
    model = network()
    method = Ticket(model, all_true(model), rewind_steps=4)
    first = method.start
    _, optimizer = train(model, method, 2)
    again = Ticket(model, all_true(model), rewind_steps=4)
    again.load_state_dict(method.state_dict())
    assert is_same(again.start, first)
    after, _ = train(model, again, 3, first=2, optimizer=optimizer)
    assert [is_same(again.start, values) for values in after] == [False, True, False]


def test_rewinding_before_the_start_is_refused():
    with pytest.raises(ValueError, match="rewind_steps must be at least 0, got -1"):
        Ticket(network(), {}, rewind_steps=-1)
