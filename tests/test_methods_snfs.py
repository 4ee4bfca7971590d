"""SNFS on eight weights, its average against a slow loop, and its invariants in real training."""

import copy

import pytest
import torch
from conftest import train_step
from torch import nn

from prunelab.methods.dynamic import SparseMomentum
from prunelab.methods.static import active_counts, random_masks
from prunelab.models import build_model
from prunelab.steps import build_optimizer

#                       0    1    2    3    4    5    6    7
WEIGHT = torch.tensor([0.9, -0.1, 0.5, 0.0, 0.0, -0.3, 0.0, 0.0])
MASK = torch.tensor([1, 1, 1, 0, 0, 1, 0, 0], dtype=torch.bool)
FIRST = torch.tensor([0.0, 0.0, 0.0, 0.4, -0.8, 0.0, -0.6, 0.2])
SECOND = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.9, 0.0, -0.2, 0.3])
SCHEDULE = {"initial_drop_fraction": 0.5, "update_every": 10, "stop_update_step": 30, "decay": "constant"}


def eight_weights(gradient_momentum=0.5, **changes):
    layer = nn.Linear(8, 1, bias=False)
    layer.weight.data = WEIGHT.clone().view(1, 8)
    options = SCHEDULE | {"generator": torch.Generator().manual_seed(0)} | changes
    method = SparseMomentum(
        nn.Sequential(layer), {"0": MASK.view(1, 8)}, gradient_momentum=gradient_momentum, **options
    )
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    optimizer.state[layer.weight]["momentum_buffer"] = torch.ones(1, 8)
    return layer, method, optimizer


def see(layer, method, optimizer, *gradients):
    for gradient in gradients:
        layer.weight.grad = gradient.clone().view(1, 8)
        assert not method.before_update(0, optimizer)


@pytest.mark.parametrize(
    "gradient_momentum, active",
    [
        # FIRST / 4 + SECOND / 2: 3 .1, 4 -.2 + .45 = .25, 6 -.15 - .1 = -.25, 7 .05 + .15 = .2.
        (0.5, [0, 2, 4, 6]),
        # SECOND: 4 .9, 7 .3, 6 -.2.
        (0.0, [0, 2, 4, 7]),
        # .09 * FIRST + .1 * SECOND: 3 .036, 4 -.072 + .09 = .018, 6 -.054 - .02 = -.074, 7 .018 + .03 = .048.
        (0.9, [0, 2, 6, 7]),
    ],
)
def test_new_connections_appear_where_the_average_is_largest(gradient_momentum, active):
    layer, method, optimizer = eight_weights(gradient_momentum)
    see(layer, method, optimizer, FIRST, SECOND)
    method.after_update(1, optimizer)
    # 1 and 5, the smallest, leave in every row.
    assert method.masks["0"][0].nonzero().flatten().tolist() == active
    assert torch.equal(layer.weight.data[0], torch.tensor([0.9, 0, 0.5, 0, 0, 0, 0, 0]))
    assert optimizer.state[layer.weight]["momentum_buffer"][0].tolist() == [1, 0, 1, 0, 0, 0, 0, 0]


def test_averages_by_hand():
    layer, method, optimizer = eight_weights(0.5)
    see(layer, method, optimizer, FIRST, SECOND)
    assert method.averages["0"][0].tolist() == pytest.approx([0, 0, 0, 0.1, 0.25, 0, -0.25, 0.2])
    assert method.n_dense_gradients == 2


@pytest.mark.parametrize("gradient_momentum", [0.0, 0.3, 0.9, 0.99])
@pytest.mark.parametrize("shape", [(3, 2), (4, 3, 3, 3)])
def test_averages_agree_with_a_slow_loop(gradient_momentum, shape):
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(shape[1], shape[0]) if len(shape) == 2 else nn.Conv2d(shape[1], shape[0], 3)
    mask = torch.ones(shape, dtype=torch.bool)
    options = SCHEDULE | {"generator": generator, "gradient_momentum": gradient_momentum}
    method = SparseMomentum(nn.Sequential(layer), {"0": mask}, **options)
    gradients = [torch.randn(shape, generator=generator) for _ in range(25)]
    for step, gradient in enumerate(gradients):
        layer.weight.grad = gradient.clone()
        method.before_update(step, torch.optim.SGD(layer.parameters(), lr=0.1))
    for i in range(mask.numel()):
        average = 0.0
        for gradient in gradients:
            average = gradient_momentum * average + (1 - gradient_momentum) * float(gradient.view(-1)[i])
        assert float(method.averages["0"].view(-1)[i]) == pytest.approx(average, rel=1e-4, abs=1e-6)


def test_average_of_momentum_zero_is_the_last_gradient_exactly():
    layer, method, optimizer = eight_weights(0.0)
    see(layer, method, optimizer, FIRST * 1e6, SECOND)
    assert torch.equal(method.averages["0"][0], SECOND)


def resnet(density):
    torch.manual_seed(0)
    model = build_model("resnet8", num_classes=10, width=0.5)
    generator = torch.Generator().manual_seed(0)
    masks = random_masks(model, active_counts(model, density=density, distribution="erk"), generator=generator)
    options = SCHEDULE | {"generator": generator, "update_every": 2, "stop_update_step": 6}
    method = SparseMomentum(model, masks, gradient_momentum=0.9, **options)
    optimizer = build_optimizer(model, momentum=0.9, weight_decay=5e-4)
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 0.1
    batches = [(torch.randn(8, 3, 8, 8), torch.arange(8)) for _ in range(9)]
    return model, method, optimizer, batches


def train(model, method, optimizer, batches, steps):
    for step in steps:
        assert train_step(model, optimizer, *batches[step], step, method=method)[1]


@pytest.mark.parametrize("density", [0.05, 0.5, 1.0])
def test_steps_come_first_counts_stay_and_inactive_weights_are_zero(density):
    model, method, optimizer, batches = resnet(density)
    counts = {name: int(mask.sum()) for name, mask in method.masks.items()}
    for step in range(9):
        train(model, method, optimizer, batches, [step])
        for name, weight in method.weights.items():
            mask = method.masks[name]
            assert int(mask.sum()) == counts[name]
            assert not weight[~mask].any()
            assert not optimizer.state[weight]["momentum_buffer"][~mask].any()
            assert mask.all() or method.averages[name][~mask].any()
    assert method.moves["step"] == [1, 3, 5]
    assert method.n_dense_gradients == 9


def test_training_resumed_midway_ends_in_the_same_masks_and_averages():
    model, method, optimizer, batches = resnet(0.1)
    train(model, method, optimizer, batches, range(4))
    states = copy.deepcopy([part.state_dict() for part in (model, method, optimizer)])
    train(model, method, optimizer, batches, range(4, 9))
    resumed_model, resumed, resumed_optimizer, _ = resnet(0.1)
    for part, state in zip((resumed_model, resumed, resumed_optimizer), states, strict=True):
        part.load_state_dict(state)
    train(resumed_model, resumed, resumed_optimizer, batches, range(4, 9))
    for name, mask in method.masks.items():
        assert torch.equal(resumed.masks[name], mask)
        assert torch.equal(resumed.averages[name], method.averages[name])
    assert resumed.moves == method.moves


@pytest.mark.parametrize("gradient_momentum", [-0.1, 1.0, 9])
def test_share_outside_zero_to_one_is_refused(gradient_momentum):
    with pytest.raises(ValueError, match=rf"gradient_momentum must lie in \[0, 1\), got {gradient_momentum}"):
        eight_weights(gradient_momentum)


def test_impossible_update_schedule_is_refused():
    with pytest.raises(ValueError, match="update_every must be at least 1 step"):
        eight_weights(update_every=0)
