"""Tables of made-up seconds, worked out on paper; and measured ones, of whose seconds only the sign is sure."""

import copy
import itertools

import pytest
import torch
from conftest import small_resnet
from torch import nn

from prunelab import paths
from prunelab.channels import latency_table
from prunelab.channels.costs import check_budget
from prunelab.channels.dmcp import Markov, budget_penalty
from prunelab.channels.groups import Grid, Group, groups_of
from prunelab.channels.latency_table import LatencyTable
from prunelab.channels.slimmable import Slimmable
from prunelab.channels.trace import trace
from prunelab.masks import layer_weights
from prunelab.models import build_model

# Images of 3 channels -> a, up to 4 channels -> b, up to 8.
GROUPS = {"a": Group("a", 4, writers=["a"], readers=["b"]), "b": Group("b", 8, writers=["b"])}
SECONDS = {
    "a": {(3, 1): 1.0, (3, 2): 2.0, (3, 4): 6.0},
    "b": {(2, 4): 1.0, (2, 8): 2.0, (4, 4): 4.0, (4, 8): 9.0},
}
CSV = """layer,n_in,n_out,seconds
a,3,1,1
a,3,2,2
a,3,4,6
b,2,4,1
b,2,8,2
b,4,4,4
b,4,8,9
"""


@pytest.fixture
def table():
    return LatencyTable(SECONDS, GROUPS)


@pytest.mark.parametrize(
    "a, b, seconds",
    [
        (3.0, 6.0, 4 + (1 + 2 + 4 + 9) / 4),  # half way in both
        (2.5, 5.0, 3 + 2.25),  # a quarter: b takes 1.25 at 2 channels, 5.25 at 4
        (1.5, 6.0, 1.5 + 1.5),  # b is not measured below 2 channels: there as at 2
        (0.5, 1.0, 1 + 1),  # before the first points
        (9.0, 9.0, 6 + 9),  # beyond the last
    ],
)
def test_seconds_are_bilinear_between_points_and_constant_beyond(table, a, b, seconds):
    assert table(torch.tensor([a, b])).item() == pytest.approx(seconds, rel=1e-12)
    assert table.of({"b": b, "a": a}) == pytest.approx(seconds, rel=1e-12)


def test_seconds_are_exact_at_measured_points():
    table = LatencyTable({"a": SECONDS["a"], "b": {cell: 0.1 * s for cell, s in SECONDS["b"].items()}}, GROUPS)
    for a, b in itertools.product((2, 4), (4, 8)):
        assert table.of({"a": a, "b": b}) == SECONDS["a"][3, a] + 0.1 * SECONDS["b"][a, b]


def test_many_widths_at_once_are_those_one_by_one(table):
    widths = 9 * torch.rand(2, 50, 2, generator=torch.Generator().manual_seed(0))
    costs = table(widths)
    assert costs.shape == (2, 50)
    assert costs.flatten().tolist() == [table(own).item() for own in widths.flatten(0, 1)]


def test_variances_change_nothing(table):
    widths = torch.tensor([3.0, 6.0])
    assert table(widths, torch.tensor([1.0, 2.0])) == table(widths)


def test_width_that_is_no_number_has_no_seconds(table):
    assert table(torch.tensor([3.0, float("nan")])).isnan()


def test_gradient_is_the_slope(table):
    widths = torch.tensor([[3.0, 6.0], [1.5, 5.0], [2.1, 7.9]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(table, widths)
    (slopes,) = torch.autograd.grad(table(widths).sum(), widths)
    # a: 2 of layer a, (4 + 9 - 1 - 2) / 2 / 2 of layer b. b: half way from 1/4 to 5/4.
    assert slopes[0].tolist() == [2 + 2.5, 0.75]
    assert slopes[1].tolist() == [1, 0.25]


@pytest.mark.parametrize("a, slope", [(2.0, 1 + 3.5), (4.0, 2 + 3.5), (4.1, 0.0), (0.9, 0.0)])
def test_slope_at_a_point_is_that_of_one_cell_and_none_beyond(table, a, slope):
    widths = torch.tensor([a, 8.0], requires_grad=True)
    table(widths).backward()
    assert widths.grad[0] == slope  # at 2 channels layer b begins, with a slope of (9 - 2) / 2


def test_depthwise_layer_has_one_axis():
    groups = {"a": Group("a", 4, writers=["a"], depthwise=["deep"])}
    table = LatencyTable({"a": {(3, 4): 1.0}, "deep": {(2, 2): 1.0, (4, 4): 4.0}}, groups)
    assert [table.of({"a": width}) for width in (1, 2, 3, 4)] == [2, 2, 3.5, 5]
    with pytest.raises(ValueError, match=r"the cells of 'deep' must be a grid, got \(2, 2\), \(2, 4\), \(4, 4\)"):
        LatencyTable({"a": {(3, 4): 1.0}, "deep": {(2, 2): 1.0, (2, 4): 1.0, (4, 4): 4.0}}, groups)


def test_table_survives_its_file(tmp_path, table):
    table.to_csv(tmp_path / "new" / "table.csv")
    assert (tmp_path / "new" / "table.csv").read_text() == CSV
    assert LatencyTable.read(tmp_path / "new" / "table.csv", GROUPS).seconds == SECONDS


def test_seconds_are_written_to_four_digits(tmp_path):
    LatencyTable({"a": {(3, 4): 0.000123456}, "b": {(4, 8): 1 / 3}}, GROUPS).to_csv(tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text().splitlines()[1:] == ["a,3,4,0.0001235", "b,4,8,0.3333"]


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("layer,n_in", "name,n_in", "its first line must be layer,n_in,n_out,seconds, not 'name,n_in,n_out,seconds'"),
        (CSV, "", "its first line must be layer,n_in,n_out,seconds, not ''"),
        (CSV, "layer,n_in,n_out,seconds\n", "layers that only the table or only the network has: a, b"),
        (CSV[CSV.index("b") :], "", "layers that only the table or only the network has: b"),
        ("a,3", "c,3", "layers that only the table or only the network has: a, c"),
        ("b,4,8,9", "b,4,8,9\nc,1,1,1", "layers that only the table or only the network has: c"),
        ("a,3,2,2", "a,3,2,nan", r"seconds must be above 0, got nan for 'a' at \(3, 2\)"),
        ("a,3,2,2", "a,3,2,0", r"seconds must be above 0, got 0.0 for 'a'"),
        ("a,3,2,2", "a,3,2,-1", r"seconds must be above 0, got -1.0 for 'a'"),
        ("a,3,2,2", "a,3,2,inf", r"seconds must be above 0, got inf for 'a'"),
        ("a,3,2,2", "a,3,2,fast", "could not convert string to float: 'fast'"),
        ("a,3,2,2", "a,3,2", "not enough values to unpack"),
        ("a,3,4,6\n", "", "n_out of 'a' must go up to 4, all channels; got 1, 2"),
        ("a,3,2,2", "a,5,2,2", "n_in of 'a' must be one number; got 3, 5"),
        ("b,2,8,2\n", "", r"the cells of 'b' must be a grid, got \(2, 4\), \(4, 4\), \(4, 8\)"),
        ("b,2,8,2\n", "b,2,8,2\nb,2,8,7\n", r"it has 'b' at \(2, 8\) twice"),
        ("a,3,1,1", "a,3,0,1", "n_out of 'a' must be above 0, got 0"),
        ("b,2,8,2\n", "b,2,8,2\nb,-2,4,1\nb,-2,8,1\n", "n_in of 'b' must be above 0, got -2"),
        ("b,4,8,9\n", "b,4,8,9", "its last line, 'b,4,8,9', has no end: it may be cut off"),
    ],
)
def test_bad_file_is_refused_with_its_name_and_why(tmp_path, old, new, message):
    path = tmp_path / "bad.csv"
    path.write_text(CSV.replace(old, new))
    with pytest.raises(ValueError, match=rf"bad\.csv is not a latency table of this network: {message}"):
        LatencyTable.read(path, GROUPS)


def test_missing_file_says_how_to_measure(tmp_path):
    with pytest.raises(ValueError, match=r"there is no .*none\.csv; write it by LatencyTable\.measured"):
        LatencyTable.read(tmp_path / "none.csv", GROUPS)


def test_shipped_tables_go_by_name(tmp_path, monkeypatch, table):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    with pytest.raises(ValueError, match="no latency table 'one' is shipped; there are none"):
        LatencyTable.shipped("one", GROUPS)
    for name in ("two", "one"):
        table.to_csv(tmp_path / "data" / "latency" / f"{name}.csv")
    assert LatencyTable.shipped("one", GROUPS).seconds == SECONDS
    with pytest.raises(ValueError, match=r"no latency table '\.\./one' is shipped; there are one, two"):
        LatencyTable.shipped("../one", GROUPS)


def flattened():
    """A network whose linear layer reads 4 positions of each channel."""
    convs = [nn.Conv2d(1, 12, 3, stride=4, padding=1), nn.ReLU(), nn.Conv2d(12, 6, 1)]
    return nn.Sequential(*convs, nn.Flatten(), nn.Linear(24, 10))


def mobilenet():
    return build_model("mobilenet_v1", num_classes=10, in_channels=1, image_size=8, width=0.1)


IMAGES = {"in_channels": 1, "image_size": 8}
NETWORKS = pytest.mark.parametrize("build", [small_resnet, mobilenet, flattened], ids=lambda build: build.__name__)


@NETWORKS
def test_measured_table_has_every_layer_and_reads_back(tmp_path, build):
    model = build()
    groups = groups_of(trace(model, **IMAGES))
    state, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    table = LatencyTable.measured(model, groups, **IMAGES, batch_size=2, n_rounds=2, n_points=3)
    assert table.seconds.keys() == layer_weights(model).keys()
    assert min(time for cells in table.seconds.values() for time in cells.values()) > 0
    grid = Grid(groups)
    assert table.of(grid.at(0)) > 0 and table.of(grid.at(-1)) > 0
    assert torch.equal(torch.get_rng_state(), random_state) and model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    table.to_csv(tmp_path / "table.csv")
    again = LatencyTable.read(tmp_path / "table.csv", groups)
    assert again.of(grid.at(4)) == pytest.approx(table.of(grid.at(4)), rel=1e-3)


def macs_as_seconds(passes, *, n_rounds, n_warm_up):
    """Stands in for `latency.in_turn`; a cell takes the MACs of an image, between rounds that were disturbed."""

    def macs(side):
        block, images, *_ = side.args
        (layer,) = [module for module in block.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
        return layer.weight.numel() * layer(images)[0].numel() / layer.weight.shape[0]

    passes.pop("progress")(0)
    return {kind: [0.0, macs(side), 1e9] for kind, side in passes.items()}


@pytest.mark.parametrize("n_points", [2, 4])
@NETWORKS
def test_with_macs_as_seconds_the_table_is_that_of_macs(monkeypatch, build, n_points):
    monkeypatch.setattr(latency_table, "in_turn", macs_as_seconds)
    slimmable = Slimmable(build(), **IMAGES)
    groups, grid = slimmable.groups, Grid(slimmable.groups)
    slimmable.set(grid.at(3))  # a network is measured at all its widths, whichever it has
    table = LatencyTable.measured(slimmable.model, groups, **IMAGES, batch_size=2, n_rounds=3, n_points=n_points)
    drawn = grid.choices.gather(1, grid.drawn(torch.Generator().manual_seed(0), n=20).T).T.double()
    # MACs are bilinear; so the table is exact wherever it has points around.
    torch.testing.assert_close(table(drawn), slimmable.macs(drawn))


def test_budget_in_seconds_moves_alpha(monkeypatch):
    monkeypatch.setattr(latency_table, "in_turn", macs_as_seconds)
    model = small_resnet()
    groups = groups_of(trace(model, **IMAGES))
    table = LatencyTable.measured(model, groups, **IMAGES, batch_size=2, n_rounds=3)
    grid = Grid(groups)
    budget = 0.3 * table.of(grid.at(-1))
    check_budget(budget, table, grid)
    markov = Markov(grid)
    nn.init.constant_(markov.alphas, 2.0)
    budget_penalty(table(markov.expected(), markov.variances()), budget).backward()
    assert (markov.alphas.grad >= 0).all() and (markov.alphas.grad.sum(dim=1) > 0).all()  # too slow: fewer channels


def test_equal_layers_are_timed_once_in_evaluation_mode_and_channels_last(monkeypatch):
    seen = {}

    def in_turn(passes, **options):
        seen.update(passes)
        return macs_as_seconds(passes, **options)

    monkeypatch.setattr(latency_table, "in_turn", in_turn)
    model = build_model("resnet8", num_classes=10)
    groups = groups_of(trace(model, in_channels=3, image_size=8))
    options = {"in_channels": 3, "image_size": 8, "batch_size": 2, "n_rounds": 3, "n_points": 2}
    table = LatencyTable.measured(model, groups, **options)
    assert table.seconds["blocks.0.conv1"].keys() == {(2, 2), (2, 16), (16, 2), (16, 16)}
    assert table.seconds["conv"].keys() == {(3, 2), (3, 16)} and table.seconds["fc"].keys() == {(6, 10), (64, 10)}
    # The stem and the output 2 each, the two convolutions of the first block 4 together, the other four 4 each.
    assert len(seen) - 1 == 2 + 2 + 4 + 4 * 4
    for kind, side in seen.items():
        if kind != "progress":
            block, images, *_ = side.args
            assert not block.training and images.std() > 0 and len(images) == 2
            if images.dim() == 4:
                conv, norm, _ = block
                assert isinstance(norm, nn.BatchNorm2d) and norm.num_features == conv.out_channels
                assert images.is_contiguous(memory_format=torch.channels_last)
                assert conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_table_of_a_shallower_network_is_refused(monkeypatch):
    monkeypatch.setattr(latency_table, "in_turn", macs_as_seconds)
    models = [build_model(name, num_classes=10, in_channels=1, width=0.25) for name in ("resnet8", "resnet20")]
    shallow, deep = (groups_of(trace(model, **IMAGES)) for model in models)
    table = LatencyTable.measured(models[0], shallow, **IMAGES, batch_size=1, n_rounds=3)
    with pytest.raises(ValueError, match="only the network has: blocks"):
        LatencyTable(table.seconds, deep)


def test_shipped_table_without_one_of_its_layers_is_refused():
    model = build_model("resnet20", num_classes=10)
    groups = groups_of(trace(model, in_channels=3, image_size=16))
    table = LatencyTable.shipped("resnet20_16px_cpu", groups)
    for lost in table.seconds:
        with pytest.raises(ValueError, match=rf"only the network has: {lost}$"):
            LatencyTable({layer: cells for layer, cells in table.seconds.items() if layer != lost}, groups)


@pytest.mark.parametrize("wrong", [{"n_rounds": 0}, {"n_points": 1}])
def test_too_few_rounds_or_points_are_refused(wrong):
    with pytest.raises(ValueError, match="n_rounds must be at least 1 and n_points at least 2, got"):
        LatencyTable.measured(flattened(), {}, **IMAGES, batch_size=1, **{"n_rounds": 2, "n_points": 2} | wrong)


@pytest.mark.gpu
def test_measures_on_the_device_of_the_model():
    model = small_resnet()
    groups = groups_of(trace(model, **IMAGES))
    table = LatencyTable.measured(model.cuda(), groups, **IMAGES, batch_size=2, n_rounds=2)
    assert table.of(Grid(groups).at(-1)) > 0
