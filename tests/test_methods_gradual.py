"""Gradual pruning: the cubic schedule by hand, eight weights on paper, and invariants in real training."""

import copy

import pytest
import torch
from conftest import train_step
from torch import nn

from prunelab.methods.gradual import GradualPruning, scheduled_count
from prunelab.methods.static import active_counts
from prunelab.models import build_model
from prunelab.steps import build_optimizer

#                       0    1    2    3    4    5    6    7
WEIGHT = torch.tensor([0.9, -0.1, 0.5, 0.7, 0.2, -0.3, 0.4, -0.6])  # by magnitude 0 3 7 2 6 5 4 1


def eight_weights(**changes):
    """Eight weights that keep one, pruned at steps 2, 4, 6 and 7; momentum 1 everywhere."""
    layer = nn.Linear(8, 1, bias=False)
    layer.weight.data = WEIGHT.clone().view(1, 8)
    options = {"begin_step": 2, "end_step": 7, "update_every": 2} | changes
    method = GradualPruning(nn.Sequential(layer), {"0": 1}, **options)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    optimizer.state[layer.weight]["momentum_buffer"] = torch.ones(1, 8)
    layer.weight.grad = torch.zeros(1, 8)
    return layer, method, optimizer


@pytest.mark.parametrize(
    "step, count",
    [
        (0, 1000),
        (99, 1000),
        (100, 1000),
        (125, 480),  # 3/4 of the time left: 100 + 900 * 27/64 = 479.7
        (150, 212),  # 100 + 900 / 8 = 212.5, rounded to even
        (175, 114),  # 100 + 900 / 64 = 114.06
        (199, 100),
        (200, 100),
        (10_000, 100),
    ],
)
def test_scheduled_count_by_hand(step, count):
    assert scheduled_count(step, size=1000, n_active=100, begin_step=100, end_step=200) == count


@pytest.mark.parametrize("density", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("size", [1, 27, 4608])
def test_schedule_is_the_formula_of_the_paper_and_never_rises(density, size):
    n_active = max(1, round(density * size))
    counts = [scheduled_count(t, size=size, n_active=n_active, begin_step=7, end_step=50) for t in range(60)]
    final_sparsity = 1 - n_active / size
    for step in range(7, 51):
        # Eq. 1 as it stands: s_f + (s_i - s_f) * (1 - (t - t0) / (n dt))^3, with s_i = 0 and n dt = 43.
        sparsity = final_sparsity + (0.0 - final_sparsity) * (1 - (step - 7) / 43) ** 3
        assert abs(counts[step] - size * (1 - sparsity)) <= 0.5 + 1e-6
    assert counts[:8] == [size] * 8 and counts[50:] == [n_active] * 10
    assert counts == sorted(counts, reverse=True)


def test_begin_at_the_end_prunes_all_at_once():
    assert [scheduled_count(t, size=8, n_active=1, begin_step=3, end_step=3) for t in (2, 3, 4)] == [8, 1, 1]


def test_smallest_weights_leave_on_schedule():
    # Steps 2, 4, 6 and 7 of 2..7: 1 + 7 * (1, 27/125, 1/125, 0) = 8, 2.512, 1.056, 1, so 8, 3, 1 and 1 are left.
    layer, method, optimizer = eight_weights()
    active = []
    for step in range(10):
        assert not method.before_update(step, optimizer)
        method.after_update(step + 1, optimizer)
        active.append(method.masks["0"][0].nonzero().flatten().tolist())
    assert active == [list(range(8))] * 3 + [[0, 3, 7]] * 2 + [[0]] * 5
    assert method.moves == {"step": [2, 4, 6, 7], "n_active": [[8], [3], [1], [1]]}
    assert layer.weight.data[0].tolist() == pytest.approx([0.9] + [0.0] * 7)
    assert method.n_dense_gradients == 0


def test_end_step_prunes_even_between_two_intervals():
    _, method, optimizer = eight_weights(begin_step=0, end_step=5, update_every=100)
    for step in range(8):
        method.after_update(step + 1, optimizer)
    assert method.moves == {"step": [5], "n_active": [[1]]}


def test_pruning_works_on_the_stepped_weights():
    layer, method, optimizer = eight_weights(begin_step=1, end_step=1)
    layer.weight.data[0, 1] = -2.0
    method.after_update(1, optimizer)
    assert method.masks["0"][0].nonzero().flatten().tolist() == [1]


def test_pruned_weights_lose_value_and_momentum_and_the_others_keep_both():
    layer, method, optimizer = eight_weights()
    method.after_update(4, optimizer)
    assert torch.equal(layer.weight.data[0], torch.tensor([0.9, 0, 0, 0.7, 0, 0, 0, -0.6]))
    assert optimizer.state[layer.weight]["momentum_buffer"][0].tolist() == [1, 0, 0, 1, 0, 0, 0, 1]


def test_weight_revived_by_any_other_hand_is_zeroed_between_two_prunings():
    layer, method, optimizer = eight_weights()
    method.after_update(4, optimizer)
    nn.init.ones_(layer.weight)
    method.change_weights()
    method.after_update(5, optimizer)
    assert torch.equal(layer.weight.data, method.masks["0"].float())


def test_pruned_weight_does_not_return_for_an_active_one_at_zero():
    layer, method, optimizer = eight_weights(end_step=12)
    method.after_update(4, optimizer)  # 1 + 7 * 0.8^3 = 4.58, so 5 are left: 0 3 7 2 6
    layer.weight.data[0] = torch.tensor([0, 0, 0, 0.0, 0, 0, 0, -0.6])  # active ones at zero by chance
    method.after_update(6, optimizer)  # 1 + 7 * 0.6^3 = 2.51, so 3
    assert method.masks["0"][0].nonzero().flatten().tolist() == [0, 2, 7]


def train(model, method, optimizer, batches, steps):
    for step in steps:
        images, labels = batches[step]
        assert train_step(model, optimizer, images, labels, step, method=method)[1]


def resnet(density):
    torch.manual_seed(0)
    model = build_model("resnet8", num_classes=10, width=0.5)
    counts = active_counts(model, density=density, distribution="erk")
    method = GradualPruning(model, counts, begin_step=1, end_step=6, update_every=2)
    optimizer = build_optimizer(model, momentum=0.9, weight_decay=5e-4)
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 0.1
    batches = [(torch.randn(8, 3, 8, 8), torch.arange(8)) for _ in range(9)]
    return model, method, optimizer, batches, counts


@pytest.mark.parametrize("density", [0.05, 0.5, 1.0])
def test_counts_follow_the_schedule_and_pruned_weights_stay_zero(density):
    model, method, optimizer, batches, counts = resnet(density)
    for step in range(9):
        before = copy.deepcopy(method.masks)
        train(model, method, optimizer, batches, [step])
        for name, weight in method.weights.items():
            mask = method.masks[name]
            assert not (mask & ~before[name]).any()
            assert not weight[~mask].any()
            assert not optimizer.state[weight]["momentum_buffer"][~mask].any()
    assert {name: int(mask.sum()) for name, mask in method.masks.items()} == counts
    assert method.moves["step"] == [1, 3, 5, 6]
    assert method.moves["n_active"][0] == [weight.numel() for weight in method.weights.values()]
    assert method.moves["n_active"][-1] == list(counts.values())


def test_training_resumed_midway_ends_in_the_same_masks_and_weights():
    model, method, optimizer, batches, _ = resnet(0.1)
    train(model, method, optimizer, batches, range(4))
    states = copy.deepcopy([part.state_dict() for part in (model, method, optimizer)])
    train(model, method, optimizer, batches, range(4, 9))
    resumed_model, resumed, resumed_optimizer, _, _ = resnet(0.1)
    for part, state in zip((resumed_model, resumed, resumed_optimizer), states, strict=True):
        part.load_state_dict(state)
    train(resumed_model, resumed, resumed_optimizer, batches, range(4, 9))
    assert resumed.moves == method.moves
    for name, mask in method.masks.items():
        assert torch.equal(resumed.masks[name], mask)
        assert torch.equal(resumed.weights[name], method.weights[name])


def test_adam_does_not_revive_pruned_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    method = GradualPruning(model, {"0": 7, "2": 5}, begin_step=1, end_step=5, update_every=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for step in range(8):
        train_step(model, optimizer, torch.randn(4, 6), torch.tensor([0, 1, 2, 0]), step, method=method)
    for name, weight in method.weights.items():
        assert int((weight != 0).sum()) == int(method.masks[name].sum()) == method.n_active[name]
        assert not optimizer.state[weight]["exp_avg_sq"][~method.masks[name]].any()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"end_step": 1}, "0 <= begin_step <= end_step and 1 <= end_step, got 2, 1"),
        ({"begin_step": -1}, "got -1, 7"),
        ({"begin_step": 0, "end_step": 0}, "got 0, 0"),
        ({"update_every": 0}, "update_every must be at least 1 step, got 0"),
    ],
)
def test_impossible_schedules_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        eight_weights(**changes)


@pytest.mark.parametrize("counts, message", [({"0": 0}, "layer '0' of 4 weights"), ({"head": 1}, "layer 'head'")])
def test_impossible_counts_are_refused(counts, message):
    with pytest.raises(ValueError, match=message):
        GradualPruning(nn.Sequential(nn.Linear(2, 2)), counts, begin_step=0, end_step=1, update_every=1)


def test_a_network_that_has_not_been_trained_yet_is_pruned_too():
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2))
    method = GradualPruning(model, {"1": 3}, begin_step=0, end_step=1, update_every=1)
    method.prune(1)
    assert int(method.masks["1"].sum()) == 3
