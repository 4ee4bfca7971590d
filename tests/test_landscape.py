"""The loss between two solutions: points worked out on paper, a known line, curves that keep to their subspace."""

import math

import pytest
import torch
from conftest import small_resnet
from torch import nn
from torch.nn import functional as F

from prunelab.data.batches import TrainBatches
from prunelab.data.dataset import Dataset
from prunelab.landscape import barrier, fit_curve, loss_along, point_on_curve, union_masks

FIT = {"masks": None, "n_steps": 5, "batch_size": 64, "learning_rate": 0.1, "momentum": 0.9}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def point(*values):
    return {"weight": torch.tensor(values)}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="module")
def permuted(digits):
    """A trained network, and the same one with its hidden units in another order."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    batches = TrainBatches(digits, batch_size=64, augment=False, generator=seeded())
    for _ in range(200):
        images, labels = next(batches)
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    order = torch.arange(16).roll(1)
    end = {
        "1.weight": start["1.weight"][order],
        "1.bias": start["1.bias"][order],
        "3.weight": start["3.weight"][:, order],
        "3.bias": start["3.bias"].clone(),
    }
    return model, start, end


def black_and_white(n_images=2):
    """One-pixel images, in turn white of class 0 and black of class 1: normalised, 1 and -1."""
    labels = torch.arange(n_images) % 2
    images = (255 * (1 - labels)).to(torch.uint8).view(-1, 1, 1, 1)
    return Dataset("pixels", images, labels, images, labels, ("white", "black"), False, "embedded", "")


def two_convolutional_solutions():
    model = small_resnet()
    return model, {name: value.clone() for name, value in model.state_dict().items()}, small_resnet(seed=1).state_dict()


# A = 8, B = 16, control points 4 and 0.
@pytest.mark.parametrize(
    "controls, position, expected",
    [
        ((), 0.25, 10.0),  # 3/4 A + 1/4 B
        ((4.0,), 0.5, 8.0),  # A/4 + C/2 + B/4 = 2 + 2 + 4
        ((4.0,), 0.25, 7.0),  # 9/16 A + 6/16 C + 1/16 B = 4.5 + 1.5 + 1
        ((4.0, 0.0), 0.5, 4.5),  # A/8 + 3/8 C + 3/8 D + B/8 = 1 + 1.5 + 0 + 2
        ((4.0, 0.0), 0.25, 5.3125),  # (27 A + 27 C + 9 D + B) / 64 = (216 + 108 + 0 + 16) / 64
    ],
)
def test_points_on_the_curve_by_hand(controls, position, expected):
    points = [point(8.0), *map(point, controls), point(16.0)]
    assert point_on_curve(points, position)["weight"].item() == expected


@pytest.mark.parametrize("n_controls", [0, 1, 2])
def test_curve_meets_its_ends_exactly(n_controls):
    start, *controls, end = ({"weight": torch.randn(100, generator=seeded(i))} for i in range(n_controls + 2))
    for position, expected in ((0.0, start), (1.0, end)):
        assert torch.equal(point_on_curve((start, *controls, end), position)["weight"], expected["weight"])


# With the weights of the end, a white pixel's outputs differ by log 3; so do a black one's, the other way round.
@pytest.mark.parametrize("n_images, batch_size", [(2, 2), (2, 1), (1, 1)])  # one image is normalised as all are
def test_loss_on_a_known_line(n_images, batch_size):
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
    start, end = ({"1.weight": torch.tensor([[height], [0.0]])} for height in (0.0, math.log(3)))
    positions, losses = loss_along(
        model, start, end, black_and_white(), n_positions=3, n_images=n_images, batch_size=batch_size
    )
    assert positions == [0.0, 0.5, 1.0]
    assert losses == pytest.approx([math.log(2), math.log(1 + 3**-0.5), math.log(4 / 3)])


def test_loss_bends_with_the_control_point():
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
    start = {"1.weight": torch.zeros(2, 1)}
    control = {"1.weight": torch.tensor([[2 * math.log(3)], [0.0]])}
    _, losses = loss_along(
        model, start, start, black_and_white(), control_points=[control], n_positions=3, batch_size=2
    )
    assert losses == pytest.approx([math.log(2), math.log(4 / 3), math.log(2)])


def test_loss_takes_full_batches_of_what_there_is():
    class Counts(nn.Module):
        seen = []  # noqa: RUF012 - shared with the copy that is measured

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))

        def forward(self, images):
            self.seen.append(len(images))
            return self.weight.expand(len(images), 2)

    state = {"weight": torch.zeros(2)}
    loss_along(Counts(), state, state, black_and_white(11), n_positions=2, n_images=1000, batch_size=4)
    assert Counts.seen == [4, 4] * 2
    Counts.seen.clear()
    loss_along(Counts(), state, state, black_and_white(11), n_positions=2, n_images=7, batch_size=4)
    assert Counts.seen == [4] * 2


@pytest.mark.parametrize(
    "losses, expected",
    [([1.0, 3.0, 2.0], 1.0), ([2.0, 1.0, 0.5], 0.0), ([0.5, 0.5], 0.0), ([1.0, 1.5, 4.0, 0.0], 3.0)],
)
def test_barrier_rises_above_the_higher_end(losses, expected):
    assert barrier(losses) == expected


def test_barrier_of_a_loss_that_is_not_a_number_is_none():
    assert math.isnan(barrier([1.0, math.nan, 2.0]))


def test_union_is_what_either_has_and_free_where_either_is():
    a = {"one": torch.tensor([True, True, False, False]), "two": torch.tensor([True])}
    b = {"one": torch.tensor([True, False, True, False])}
    union = union_masks(a, b)
    assert list(union) == ["one"] and union["one"].tolist() == [True, True, True, False]


@pytest.mark.parametrize("n_control_points", [1, 2])
def test_control_points_start_evenly_on_the_line(permuted, digits, n_control_points):
    model, start, end = permuted
    controls = fit_curve(
        model, start, end, digits, n_control_points=n_control_points, generator=seeded(), **FIT | {"n_steps": 0}
    )
    assert len(controls) == n_control_points
    for k, control in enumerate(controls, 1):
        for name, value in control.items():
            torch.testing.assert_close(value, start[name].lerp(end[name], k / (n_control_points + 1)))


def test_two_steps_by_hand():
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
    zero = {"1.weight": torch.zeros(2, 1)}
    settings = FIT | {"n_steps": 2, "batch_size": 2, "learning_rate": 1.0, "momentum": 0.5}
    (control,) = fit_curve(model, zero, zero, black_and_white(), n_control_points=1, generator=seeded(), **settings)

    # By symmetry the control point is (height, -height); the point at t is its share 2 t (1 - t).
    height, velocity = 0.0, 0.0
    for rate, t in zip(
        (1.0, 0.5), torch.rand(2, generator=seeded()).tolist(), strict=True
    ):  # half a cosine is half way
        share = 2 * t * (1 - t)
        gradient = -share / (1 + math.exp(2 * share * height))  # less the probability of the wrong class
        velocity = 0.5 * velocity + gradient
        height -= rate * (gradient + 0.5 * velocity)  # Nesterov's
    assert control["1.weight"].flatten().tolist() == pytest.approx([height, -height])


def test_curve_goes_round_the_barrier_between_two_orders_of_the_same_units(permuted, digits):
    model, start, end = permuted
    _, line = loss_along(model, start, end, digits, batch_size=256)
    assert line[0] == pytest.approx(line[-1]) and barrier(line) > 0.2
    controls = fit_curve(model, start, end, digits, n_control_points=1, generator=seeded(), **FIT | {"n_steps": 300})
    _, curve = loss_along(model, start, end, digits, control_points=controls, batch_size=256)
    assert curve[0] == line[0] and curve[-1] == line[-1]
    assert sum(curve) < sum(line) / 2 and barrier(curve) < barrier(line) / 2


@pytest.mark.parametrize("n_control_points", [1, 2])
def test_sparse_curve_is_zero_outside_the_union_and_moves_inside(permuted, digits, n_control_points):
    model, start, end = permuted
    a, b = ({"1": torch.rand(16, 64, generator=seeded(seed)) < 0.2} for seed in (1, 2))
    inside = union_masks(a, b)["1"]
    line = point_on_curve((start, end), 1 / (n_control_points + 1))
    for masks in ({"1": inside}, None):  # the ends are dense, so only the mask can have made the zeros
        settings = FIT | {"n_control_points": n_control_points, "masks": masks}
        controls = fit_curve(model, start, end, digits, generator=seeded(), **settings)
        assert all((control["1.weight"][~inside] == 0).all() == (masks is not None) for control in controls)
        assert not torch.equal(controls[0]["1.weight"][inside], line["1.weight"][inside])
        assert not torch.equal(controls[0]["3.weight"], line["3.weight"])


def test_batches_are_normalised_by_their_own_statistics(digits):
    model, start, end = two_convolutional_solutions()
    batch = next(TrainBatches(digits, batch_size=128, augment=False, generator=seeded()))
    with torch.no_grad():
        expected = F.cross_entropy(model.train()(batch[0]), batch[1]).item()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.fill_(1e3)
    _, losses = loss_along(model.eval(), start, end, digits, n_positions=2, n_images=128, batch_size=128)
    assert losses[0] == pytest.approx(expected, rel=1e-5)


def test_dropout_is_off(permuted, digits):
    model, start, end = permuted
    dropping = nn.Sequential(*model, nn.Dropout(0.9)).train()
    settings = {"n_positions": 3, "batch_size": 256}
    assert loss_along(dropping, start, end, digits, **settings) == loss_along(model, start, end, digits, **settings)


@pytest.mark.parametrize("training", [True, False])
def test_model_its_statistics_and_both_ends_are_left_alone(digits, training):
    model, start, end = two_convolutional_solutions()
    model.train(training)
    states = model.state_dict(), start, end
    before = [{name: value.clone() for name, value in state.items()} for state in states]
    fit_curve(model, start, end, digits, n_control_points=1, generator=seeded(), **FIT)
    loss_along(model, start, end, digits, n_positions=2, batch_size=64)
    assert all(module.training == training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    for state, old in zip((model.state_dict(), start, end), before, strict=True):
        assert state.keys() == old.keys()
        assert all(torch.equal(value, old[name]) and not value.requires_grad for name, value in state.items())


def test_control_points_are_parameters_alone(digits):
    model, start, end = two_convolutional_solutions()
    (control,) = fit_curve(model, start, end, digits, n_control_points=1, generator=seeded(), **FIT)
    assert list(control) == [name for name, _ in model.named_parameters()]
    assert not any(value.requires_grad for value in control.values())


def test_a_curve_of_a_network_with_a_shared_weight_and_an_idle_layer(digits):
    class Uneven(nn.Module):
        def __init__(self, is_shared=True):
            super().__init__()
            self.first, self.second, self.idle, self.head = (nn.Linear(64, n) for n in (64, 64, 64, 10))
            if is_shared:
                self.second.weight = self.first.weight

        def forward(self, x):
            return self.head(self.second(self.first(x.flatten(1)).relu()).relu())

    model = Uneven()
    start, end = Uneven().state_dict(), Uneven().state_dict()
    masks = {name: torch.ones(64, 64).tril() > 0 for name in ("first", "idle")}
    controls = fit_curve(model, start, end, digits, n_control_points=1, generator=seeded(), **FIT | {"masks": masks})
    assert list(controls[0]) == [name for name, _ in model.named_parameters()]
    assert all(not controls[0][f"{name}.weight"][~mask].any() for name, mask in masks.items())
    shared, plain = (loss_along(Uneven(shares), start, end, digits, n_positions=5)[1] for shares in (True, False))
    assert shared == pytest.approx(plain)


@pytest.mark.parametrize("augment", [True, False])
def test_equal_generators_give_equal_curves(permuted, digits, augment):
    def fit(seed):
        (control,) = fit_curve(*permuted, digits, n_control_points=1, generator=seeded(seed), augment=augment, **FIT)
        return control["1.weight"]

    assert torch.equal(fit(0), fit(0))
    assert not torch.equal(fit(0), fit(1))


def test_augmentation_is_as_asked(permuted, digits):
    plain, again, moved = (
        fit_curve(*permuted, digits, n_control_points=1, generator=seeded(), **FIT, **option)[0]["1.weight"]
        for option in ({}, {"augment": False}, {"augment": True})
    )
    assert torch.equal(plain, again) and not torch.equal(plain, moved)


@pytest.mark.parametrize("which", ["start", "end", "control"])
@pytest.mark.parametrize(
    "change, message",
    [
        ({"3.bias": torch.zeros(9)}, r"3\.bias has shape \(9,\) in a point of the curve, but \(10,\) in the model"),
        ({"5.weight": torch.zeros(1)}, r"5\.weight has shape \(1,\) in a point of the curve, but none in the model"),
        ({"3.bias": None}, r"3\.bias has shape none in a point of the curve, but \(10,\) in the model"),
    ],
)
def test_point_that_does_not_fit_the_model_is_refused(permuted, digits, which, change, message):
    model, start, end = permuted
    points = {"start": start, "end": end, "control": start}
    points[which] = {name: value for name, value in (points[which] | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        loss_along(model, points["start"], points["end"], digits, control_points=[points["control"]], batch_size=64)
    if which != "control":
        with pytest.raises(ValueError, match=message):
            fit_curve(model, points["start"], points["end"], digits, n_control_points=1, generator=seeded(), **FIT)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"n_positions": 1}, "n_positions must be at least 2, both ends; got 1"),
        ({"batch_size": 257}, r"batch_size must lie in 1\.\.256, the images used; got 257"),
        ({"batch_size": 64, "n_images": 63}, r"batch_size must lie in 1\.\.63, the images used; got 64"),
        ({"batch_size": 0}, r"batch_size must lie in 1\.\.256, the images used; got 0"),
    ],
)
def test_impossible_measurement_is_refused(permuted, digits, options, message):
    with pytest.raises(ValueError, match=message):
        loss_along(*permuted, digits, **options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"n_control_points": 0}, "n_control_points must be at least 1, a line has nothing to fit; got 0"),
        ({"masks": {"2": torch.ones(16, 64).bool()}}, r"the mask of 2\.weight, \(16, 64\), fits no parameter"),
        ({"masks": {"1": torch.ones(64).bool()}}, r"the mask of 1\.weight, \(64,\), fits no parameter"),
        ({"batch_size": 257}, r"batch_size must lie in 1\.\.256"),
    ],
)
def test_impossible_fit_is_refused(permuted, digits, options, message):
    with pytest.raises(ValueError, match=message):
        fit_curve(*permuted, digits, **{"n_control_points": 1, "generator": seeded()} | FIT | options)
