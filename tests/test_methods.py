"""Methods on a network of eight weights, where every value is known, and their invariants on real networks."""

from functools import partial

import numpy as np
import pytest
import torch
from conftest import build_method, train_step
from torch import nn

from prunelab.methods import METHODS
from prunelab.methods.dynamic import RigL, SparseEvolutionaryTraining
from prunelab.methods.static import Static, active_counts, full_masks, random_masks
from prunelab.models import build_model
from prunelab.steps import OPTIMIZERS, build_optimizer, set_learning_rate

#                       0    1    2    3    4    5    6    7
WEIGHT = torch.tensor([0.9, -0.1, 0.5, 0.0, 0.0, -0.3, 0.0, 0.0])
GRAD = torch.tensor([0.0, 0.0, 0.0, 0.2, -0.8, 0.0, 0.4, 0.1])
MASK = torch.tensor([1, 1, 1, 0, 0, 1, 0, 0], dtype=torch.bool)
SCHEDULE = {"initial_drop_fraction": 0.5, "update_every": 10, "stop_update_step": 30, "decay": "constant"}


def eight_weights(method_class=RigL, **changes):
    """A linear layer of eight weights under MASK, an optimizer with momentum 1 everywhere, and a gradient in place."""
    model = nn.Linear(8, 1, bias=False)
    model.weight.data = WEIGHT.clone().view(1, 8)
    options = SCHEDULE | {"generator": torch.Generator().manual_seed(0)} | changes if method_class is not Static else {}
    method = method_class(nn.Sequential(model), {"0": MASK.view(1, 8)}, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer.state[model.weight]["momentum_buffer"] = torch.ones(1, 8)
    model.weight.grad = GRAD.clone().view(1, 8)
    return model, method, optimizer


def test_static_holds_inactive_weights_at_zero():
    model = nn.Linear(8, 1, bias=False)
    nn.init.ones_(model.weight)
    method = Static(nn.Sequential(model), {"0": MASK.view(1, 8)})
    assert torch.equal(model.weight.data[0], MASK.float())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for step in range(3):
        model.weight.grad = torch.ones(1, 8)
        assert not method.before_update(step, optimizer)
        method.change_gradients()
        optimizer.step()
        method.change_weights()
        method.after_update(step + 1, optimizer)
    assert torch.equal(model.weight.data[0] != 0, MASK)
    assert torch.equal(optimizer.state[model.weight]["momentum_buffer"][0] != 0, MASK)


def test_weight_revived_by_any_other_hand_is_zeroed_after_the_step():
    model = nn.Linear(8, 1, bias=False)
    method = Static(nn.Sequential(model), {"0": MASK.view(1, 8)})
    nn.init.ones_(model.weight)
    method.change_weights()
    assert torch.equal(model.weight.data[0], MASK.float())


def test_rigl_replaces_the_step_by_the_update():
    model, method, optimizer = eight_weights()
    assert method.before_update(0, optimizer)
    # 1 and 5 leave, 4 and 6 enter at zero; the kept ones have not been stepped.
    assert torch.equal(model.weight.data[0], torch.tensor([0.9, 0, 0.5, 0, 0, 0, 0, 0]))
    assert method.masks["0"][0].nonzero().flatten().tolist() == [0, 2, 4, 6]
    assert method.n_dense_gradients == 1


def test_momentum_is_zeroed_where_connections_left_or_came_and_kept_elsewhere():
    model, method, optimizer = eight_weights()
    method.before_update(0, optimizer)
    assert optimizer.state[model.weight]["momentum_buffer"][0].tolist() == [1, 0, 1, 0, 0, 0, 0, 0]


def test_connection_dropped_and_grown_at_once_keeps_value_and_momentum():
    model, method, optimizer = eight_weights()
    model.weight.grad[0, 1] = 5.0
    method.before_update(0, optimizer)
    assert method.masks["0"][0].nonzero().flatten().tolist() == [0, 1, 2, 4]
    assert model.weight.data[0, 1] == pytest.approx(-0.1)
    assert optimizer.state[model.weight]["momentum_buffer"][0].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]


def test_updates_come_at_step_zero_then_every_interval_and_at_the_end_step():
    model, method, optimizer = eight_weights()
    updates = []
    for step in range(50):
        model.weight.grad = GRAD.clone().view(1, 8)
        if method.before_update(step, optimizer):
            updates.append(step)
            # The step counter has not advanced: the same step comes again, and is an ordinary one.
            assert not method.before_update(step, optimizer)
    assert updates == [0, 10, 20, 30] == method.moves["step"]


def test_set_steps_first_and_counts_that_step():
    _model, method, optimizer = eight_weights(SparseEvolutionaryTraining)
    assert not method.before_update(0, optimizer)
    updates = []
    for step in range(50):
        before = method.masks["0"].clone()
        method.after_update(step + 1, optimizer)
        if not torch.equal(before, method.masks["0"]) or step + 1 in method.moves["step"]:
            updates.append(step + 1)
    assert updates == [1, 11, 21] == method.moves["step"]
    assert method.n_dense_gradients == 0


def test_set_grows_anywhere_with_equal_chance():
    grown = torch.zeros(8)
    generator = torch.Generator().manual_seed(3)
    for _ in range(400):
        _, method, optimizer = eight_weights(SparseEvolutionaryTraining, generator=generator)
        method.move_connections(0, optimizer)
        grown += method.masks["0"][0]
    # 0 and 2 always stay; two of the other six come, each with chance 1/3, of which 400 draws stray by 0.024.
    assert grown[[0, 2]].tolist() == [400, 400]
    assert torch.all((grown[[1, 3, 4, 5, 6, 7]] / 400 - 1 / 3).abs() < 0.1)


def test_survival_counts_what_is_left_of_the_initial_mask():
    _, method, optimizer = eight_weights()
    method.before_update(0, optimizer)
    assert method.moves["survival"] == [[0.5]]  # 0 and 2 of four
    assert method.moves["drop_fraction"] == [0.5]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("density", [0.05, 0.5, 1.0])
def test_every_method_steps_and_keeps_its_counts(name, density):
    torch.manual_seed(0)
    model = build_model("resnet8", num_classes=10, width=0.5)
    generator = torch.Generator().manual_seed(0)
    counts = active_counts(model, density=density, distribution="erk")
    method = build_method(name, model, density=density, generator=generator, update_every=2, stop_step=4)
    if name == "lottery":  # whose first round is dense
        counts = {layer: mask.numel() for layer, mask in method.masks.items()}
    optimizer = build_optimizer(model, momentum=0.9, weight_decay=5e-4)
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 0.1
    images, labels = torch.randn(8, 3, 8, 8, generator=generator), torch.arange(8)
    step, n_batches = 0, 0
    while step < 5:
        _, stepped = train_step(model, optimizer, images, labels, step, method=method)
        step, n_batches = step + stepped, n_batches + 1
        if method is not None:
            for layer, weight in method.weights.items():
                n_active = int(method.masks[layer].sum())
                is_shrinking = name == "gmp" and step < 4 and n_active > counts[layer]
                # The layers of some divide the total among them, or are sparse as they learn.
                assert n_active == counts[layer] or is_shrinking or name in ("woodfisher", "acdc", "str")
                assert not weight[~method.masks[layer]].any()
                for slot in optimizer.state[weight].values():
                    # STR's momentum is that of W, all of which is trained: what is below the threshold may return.
                    assert slot is None or name == "str" or not slot[~method.masks[layer]].any()
    if method is not None and name != "str":
        assert sum(int(mask.sum()) for mask in method.masks.values()) == sum(counts.values())
    assert n_batches == {"rigl": 8, "snip": 6}.get(name, 5)  # RigL's updates at steps 0, 2 and 4, SNIP's one


@pytest.mark.parametrize("name", ["static", "set", "rigl"])
def test_adam_does_not_revive_inactive_weights(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    generator = torch.Generator().manual_seed(0)
    masks = random_masks(model, active_counts(model, density=0.4, distribution="erk"), generator=generator)
    options = SCHEDULE | {"generator": generator, "update_every": 2} if name != "static" else {}
    method = METHODS[name](model, masks, **options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for step in range(8):
        train_step(
            model, optimizer, torch.randn(4, 6, generator=generator), torch.tensor([0, 1, 2, 0]), step, method=method
        )
    for layer, weight in method.weights.items():
        assert not weight[~method.masks[layer]].any()
        assert not optimizer.state[weight]["exp_avg"][~method.masks[layer]].any()


class Uneven(nn.Module):
    """A frozen layer, one that never runs, two that share their weight, of which one has another name."""

    def __init__(self):
        super().__init__()
        self.frozen, self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, padding=1)
        self.idle, self.head = nn.Linear(8, 10), nn.Linear(8, 10)
        self.second.weight, self.third = self.first.weight, self.second
        self.frozen.requires_grad_(False)

    def forward(self, x):
        for layer in (self.frozen, self.first, self.second, self.third):
            x = layer(x).relu()
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_layers_that_do_not_learn_stay_and_layers_that_share_a_weight_have_one_mask(name, optimizer):
    torch.manual_seed(0)
    model = Uneven()
    frozen = model.frozen.weight.clone()
    method = build_method(
        name, model, density=0.3, generator=torch.Generator().manual_seed(0), update_every=2, stop_step=4
    )
    rule = build_optimizer(model, optimizer=optimizer, momentum=0.9, weight_decay=0.1)
    assert sum(len(group["params"]) for group in rule.param_groups) == len(list(model.parameters()))
    set_learning_rate(rule, 0.01)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    step = 0
    while step < 5:
        step += train_step(model, rule, torch.randn(8, 3, 8, 8), torch.arange(8), step, method=method)[1]
    assert torch.equal(model.frozen.weight, frozen)  # which building the method leaves alone, too
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) == (key.partition(".")[0] in ("frozen", "idle")), key
    if method is not None:
        assert list(method.masks) == ["first", "idle", "head"][: 2 if name == "lottery" else 3]
        for layer, weight in method.weights.items():
            assert not weight[~method.masks[layer]].any()
        found = {layer: int(mask.sum()) for layer, mask in method.masks.items()}
    counts = active_counts(model, density=0.3, distribution="erk")
    if name in ("static", "set", "snfs", "rigl"):
        assert found == counts
    elif name in ("snip", "gmp", "woodfisher", "acdc"):  # prune what has a gradient
        assert found.pop("idle") == model.idle.weight.numel()
        del counts["idle"]
        assert sum(found.values()) == sum(counts.values())


@pytest.mark.parametrize("method_class", [RigL, SparseEvolutionaryTraining])
def test_an_emptied_layer_stays_empty_and_has_lost_nothing(method_class):
    model, method, optimizer = eight_weights(method_class)
    method.set_mask("0", torch.zeros_like(method.masks["0"]))
    method.change_weights()
    for step in (0, 10):
        method.move_connections(step, optimizer)
    assert not model.weight.any() and not method.masks["0"].any()
    assert method.moves["survival"] == [[1.0], [1.0]]  # a record takes no NaN


def test_uniform_leaves_the_first_layer_dense_and_erk_does_not():
    model = build_model("resnet8", num_classes=10)
    generator = torch.Generator().manual_seed(0)
    uniform = random_masks(model, active_counts(model, density=0.1, distribution="uniform"), generator=generator)
    erk = random_masks(model, active_counts(model, density=0.1, distribution="erk"), generator=generator)
    assert "conv" not in uniform and "conv" in erk
    total = sum(mask.numel() for mask in uniform.values())
    assert sum(int(mask.sum()) for mask in uniform.values()) == round(0.1 * total)


def test_mask_for_another_network_is_refused():
    with pytest.raises(ValueError, match=r"mask 'nowhere' of shape \(2, 2\) fits no layer of Sequential"):
        Static(nn.Sequential(nn.Linear(2, 2)), {"nowhere": torch.ones(2, 2, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"mask '0' of shape \(3, 2\) fits no layer"):
        Static(nn.Sequential(nn.Linear(2, 2)), {"0": torch.ones(3, 2, dtype=torch.bool)})


@pytest.mark.parametrize("mask", [torch.ones(2, 2), [[True, False]] * 2, np.ones((2, 2), dtype=bool), None])
def test_mask_that_is_no_tensor_of_bools_is_refused(mask):
    with pytest.raises(ValueError, match="mask '0' must be a bool tensor, True where a weight is active; got "):
        Static(nn.Sequential(nn.Linear(2, 2)), {"0": mask})


@pytest.mark.parametrize("n", [2.5, 0, 5, "2"])
def test_count_that_a_layer_cannot_have_is_refused(n):
    with pytest.raises(ValueError, match=f"layer '0' of 4 weights cannot keep {n} of them"):
        full_masks(nn.Sequential(nn.Linear(2, 2)), {"0": n})


def test_layers_that_are_not_there_are_named_with_those_that_are():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    for act in (full_masks, partial(random_masks, generator=torch.Generator())):
        with pytest.raises(ValueError, match=r"no convolution or linear layer '1' with a weight .*; there are 0, 2$"):
            act(model, {"1": 1})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"initial_drop_fraction": 30}, "initial_drop_fraction must lie in"),
        ({"update_every": 0}, "update_every must be at least 1 step"),
        ({"decay": "sudden"}, "unknown decay 'sudden'"),
    ],
)
def test_impossible_update_schedules_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        eight_weights(RigL, **changes)
