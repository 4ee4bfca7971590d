"""AC/DC: the authors' phases, eight weights on paper, and invariants in real training."""

from types import SimpleNamespace

import pytest
import torch
from conftest import small_resnet, train_step
from test_recipe_rigl import dense_macs, execute
from torch import nn

from prunelab.methods.acdc import PHASES, AlternatingCompression
from prunelab.methods.static import active_counts
from prunelab.models import build_model
from prunelab.steps import build_optimizer, set_learning_rate

#                       0    1    2    3    4    5    6    7
WEIGHT = torch.tensor([0.9, -0.1, 0.5, 0.7, 0.2, -0.3, 0.4, -0.6])  # by magnitude 0 3 7 2 6 5 4 1


def eight_weights(phase_starts=(2, 4, 6), n_active=2):
    """Eight weights, two of them active when compressed, with a bias; momentum 1 everywhere."""
    layer = nn.Linear(8, 1)
    layer.weight.data = WEIGHT.clone().view(1, 8)
    method = AlternatingCompression(nn.Sequential(layer), {"0": n_active}, phase_starts=phase_starts)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    for parameter in layer.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.ones_like(parameter)
        parameter.grad = torch.zeros_like(parameter)
    return layer, method, optimizer


def active(method):
    return method.masks["0"][0].nonzero().flatten().tolist()


def built(phases, n_steps):
    """AC/DC as a run's options build it."""
    return AlternatingCompression.build(
        nn.Linear(2, 2), SimpleNamespace(phases=phases), n_active=lambda: {"": 1}, n_steps=n_steps
    )


def epochs_of(start, every, end):
    """Epochs at whose beginning a policy of the authors' acts, from the three numbers of their configuration."""
    return {epoch for epoch in range(200) if start <= epoch <= end and (epoch - start) % every == 0}


OFFICIAL = [  # epochs; those of compressions; those of decompressions
    ("imagenet", 100, epochs_of(10, 10, 71) | epochs_of(85, 20, 100), epochs_of(15, 10, 66) | epochs_of(75, 20, 86)),
    ("cifar", 200, epochs_of(10, 40, 171), epochs_of(30, 40, 151)),
]


@pytest.mark.parametrize("phases, n_epochs, compressions, decompressions", OFFICIAL)
@pytest.mark.parametrize("steps_per_epoch", [1, 5, 391, 5005])
def test_phases_are_those_of_the_authors_configurations(
    phases, n_epochs, compressions, decompressions, steps_per_epoch
):
    method = built(phases, n_epochs * steps_per_epoch)
    expected = sorted(compressions | decompressions)
    assert method.phase_starts == [steps_per_epoch * epoch for epoch in expected]
    is_compressed = False
    for epoch in range(n_epochs):
        is_compressed = epoch in compressions or (is_compressed and epoch not in decompressions)
        for step in (epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch - 1):  # an epoch's first and its last
            assert method.is_compressed(step) == is_compressed


def test_a_hundred_epochs_are_compressed_where_the_paper_says():
    compressed = [epoch for epoch in range(100) if built("imagenet", 100).is_compressed(epoch)]
    fives = [start + epoch for start in (10, 20, 30, 40, 50, 60, 70) for epoch in range(5)]
    assert compressed == [*fives, *range(85, 100)]


@pytest.mark.parametrize("phases", PHASES)
def test_training_of_any_length_begins_dense_and_ends_compressed(phases):
    for n_steps in range(1, 120):
        method = built(phases, n_steps)
        assert not method.is_compressed(0) and method.is_compressed(n_steps)


def test_weights_leave_return_at_zero_and_leave_again():
    layer, method, optimizer = eight_weights()
    assert active(method) == list(range(8))
    method.after_update(1, optimizer)
    assert active(method) == list(range(8))
    method.after_update(2, optimizer)
    assert active(method) == [0, 3]
    assert torch.equal(layer.weight.data[0], torch.tensor([0.9, 0, 0, 0.7, 0, 0, 0, 0]))
    method.after_update(3, optimizer)
    assert active(method) == [0, 3]
    method.after_update(4, optimizer)
    assert active(method) == list(range(8))
    assert torch.equal(layer.weight.data[0], torch.tensor([0.9, 0, 0, 0.7, 0, 0, 0, 0]))
    layer.weight.data[0] = torch.tensor([0.9, 0, 0, 0.1, 0, -0.8, 0, 0])  # what training makes of them
    method.after_update(5, optimizer)
    method.after_update(6, optimizer)
    assert active(method) == [0, 5]
    for step in range(7, 20):
        method.after_update(step, optimizer)
    assert active(method) == [0, 5]
    assert method.moves == {"step": [2, 4, 6], "n_active": [[2], [8], [2]]}
    assert method.n_dense_gradients == 0


def test_compression_clears_the_momentum_of_what_leaves_and_decompression_all():
    layer, method, optimizer = eight_weights()
    of_weight, of_bias = (optimizer.state[parameter]["momentum_buffer"] for parameter in (layer.weight, layer.bias))
    method.after_update(2, optimizer)
    assert of_weight[0].tolist() == [1, 0, 0, 1, 0, 0, 0, 0] and of_bias.tolist() == [1]
    method.after_update(3, optimizer)
    assert of_weight[0].tolist() == [1, 0, 0, 1, 0, 0, 0, 0]
    method.after_update(4, optimizer)
    assert not of_weight.any() and not of_bias.any()


def test_of_phases_that_begin_at_one_step_the_last_is_seen():
    _, method, optimizer = eight_weights(phase_starts=(2, 2, 2, 5, 5))
    for step in range(1, 9):
        method.after_update(step, optimizer)
    assert method.moves == {"step": [2], "n_active": [[2]]}


def test_layers_are_compressed_to_a_total_by_magnitude_alone():
    model = nn.Sequential(nn.Linear(3, 1, bias=False), nn.Linear(1, 3, bias=False))
    model[0].weight.data = torch.tensor([[0.1, -0.2, 0.3]])
    model[1].weight.data = torch.tensor([[-1.0], [0.25], [2.0]])
    method = AlternatingCompression(model, {"0": 2, "1": 1}, phase_starts=[1])
    model(torch.ones(1, 3)).sum().backward()
    method.after_update(1, torch.optim.SGD(model.parameters(), lr=0.1))
    assert method.masks["0"].tolist() == [[False, False, True]]  # .3 is third of six
    assert method.masks["1"].tolist() == [[True], [False], [True]]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_training_agrees_with_a_slow_loop(momentum):
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False))
    method = AlternatingCompression(model, {"0": 4, "1": 1}, phase_starts=[3, 6, 9])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum, weight_decay=0.05)
    values = [value for layer in model for value in layer.weight.flatten().tolist()]
    velocities, kept = [0.0] * 18, set(range(18))
    for step in range(12):
        gradients = torch.randn(18, generator=generator)
        for layer, gradient in zip(model, gradients.split([12, 6]), strict=True):
            layer.weight.grad = gradient.view_as(layer.weight).clone()
        assert not method.before_update(step, optimizer)
        method.change_gradients()
        optimizer.step()
        method.change_weights()
        method.after_update(step + 1, optimizer)
        for i in kept:
            velocities[i] = momentum * velocities[i] + gradients[i].item() + 0.05 * values[i]
            values[i] -= 0.1 * velocities[i]
        if step + 1 in (3, 9):
            kept = set(sorted(range(18), key=lambda i: -abs(values[i]))[:5])
            values = [value if i in kept else 0.0 for i, value in enumerate(values)]
        elif step + 1 == 6:
            kept, velocities = set(range(18)), [0.0] * 18
        found = [value for layer in model for value in layer.weight.flatten().tolist()]
        assert found == pytest.approx(values, abs=1e-5)


@pytest.mark.parametrize("density", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("optimizer", ["plain_sgd", "adam"])
def test_in_training_counts_are_exact_and_only_active_weights_move(density, optimizer):
    torch.manual_seed(0)
    model = build_model("resnet8", num_classes=10, width=0.5)
    counts = active_counts(model, density=density, distribution="erk")
    method = AlternatingCompression(model, counts, phase_starts=[2, 4, 6])
    rule = build_optimizer(model, optimizer=optimizer, momentum=0.9, weight_decay=5e-4)
    set_learning_rate(rule, 0.01)
    n_weights = sum(mask.numel() for mask in method.masks.values())
    for step in range(8):
        train_step(model, rule, torch.randn(8, 3, 8, 8), torch.arange(8), step, method=method)
        is_compressed = step + 1 in (2, 3, 6, 7, 8)
        n_active = sum(int(mask.sum()) for mask in method.masks.values())
        assert n_active == (round(density * n_weights) if is_compressed else n_weights)
        for name, weight in method.weights.items():
            assert not weight[~method.masks[name]].any()
        if step + 1 == 4:
            assert not any(slot.any() for state in rule.state.values() for slot in state.values() if slot.dim())
        if step + 1 == 5:  # at 0.05 two emptied layers in a row, which have no gradient, do not come back
            n_trained = sum(int(weight.count_nonzero()) for weight in method.weights.values())
            assert n_trained > (0.95 if density > 0.05 else 0.05) * n_weights


def test_a_diverged_network_is_compressed_all_the_same():
    layer, method, optimizer = eight_weights()
    layer.weight.data[0, 1] = torch.nan
    method.after_update(2, optimizer)
    assert active(method) == [0, 1]


def test_training_costs_what_each_of_its_batches_did():
    result = execute(method="acdc", n_epochs=10, density=0.2)  # 20 steps: phases from 2, 3, 4 ... 14, 15 and 17 on
    moves, layers = result["moves"], result["layers"]
    assert moves["step"] == [*range(2, 16), 17]
    macs_of_batches, macs = [], dense_macs()
    per_weight = [layer["macs"] / layer["n_active"] for layer in layers]
    for step in range(20):
        if step in moves["step"]:
            counts = moves["n_active"][moves["step"].index(step)]
            macs = sum(each * n for each, n in zip(per_weight, counts, strict=True))
        macs_of_batches.append(macs)
    assert macs_of_batches[:2] == [dense_macs()] * 2 and macs_of_batches[3] == pytest.approx(dense_macs())
    assert macs_of_batches[-1] == pytest.approx(result["metrics"]["macs"])
    assert result["metrics"]["training_macs"] == pytest.approx(64 * 3 * sum(macs_of_batches), rel=1e-4)


@pytest.mark.parametrize("starts", [[], [1, 2], [0], [3, 2, 4]])
def test_impossible_phases_are_refused(starts):
    with pytest.raises(ValueError, match="phase_starts must be an odd number of steps from 1 on"):
        eight_weights(phase_starts=starts)


def test_unknown_phases_are_refused():
    with pytest.raises(ValueError, match="unknown phases 'weekly'; there are imagenet, cifar"):
        built("weekly", 100)


@pytest.mark.parametrize("counts, message", [({"fc": 0}, "cannot keep 0"), ({"head": 1}, "layer 'head'")])
def test_impossible_counts_are_refused(counts, message):
    with pytest.raises(ValueError, match=message):
        AlternatingCompression(small_resnet(), counts, phase_starts=[1])
