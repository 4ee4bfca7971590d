"""What operations do to channels, each by a network of two layers in which half of the channels of the first go."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

from prunelab.channels.surgery import load, save, shrink
from prunelab.channels.trace import UntraceableError, trace
from prunelab.cost import layer_table

IMAGE = {"in_channels": 3, "image_size": 8}


class Net(nn.Module):
    """Eight channels, something that is done to them, and what reads them."""

    def __init__(self, between, reader=None, **modules):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.reader = nn.Conv2d(3, 8, 3, padding=1), reader or nn.Conv2d(8, 4, 1)
        self.between = between
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.reader(self.between(self, self.conv(x)))


def pooled(x):
    return F.adaptive_avg_pool2d(x, 1)


def squeezed(net, x):
    n, c, _, _ = x.shape
    return x * net.gate(pooled(x).view(n, c)).view(n, c, 1, 1)


def gate():
    return nn.Sequential(nn.Linear(8, 2), nn.ReLU(), nn.Linear(2, 8), nn.Sigmoid())


TOKENS = nn.Linear(8, 4)
KEPT = {
    "a pointwise operation": (lambda net, x: F.mish(x / 2 + 1).clamp(-1, 1), None, {}),
    "softplus, hardtanh": (lambda net, x: F.hardtanh(F.softplus(x)), None, {}),
    "zero padding, both pools": (lambda net, x: F.max_pool2d(F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 2), 2), None, {}),
    "max with indices": (lambda net, x: F.adaptive_max_pool2d(x, 2, return_indices=True)[0], None, {}),
    "twice the same": (lambda net, x: torch.cat([x, x], 1), nn.Conv2d(16, 4, 1), {}),
    "two pools": (lambda net, x: torch.cat([pooled(x), F.adaptive_max_pool2d(x, 1)], 1), nn.Conv2d(16, 4, 1), {}),
    "flattened": (lambda net, x: x.flatten(1), nn.Linear(8 * 64, 4), {}),
    "squeezed": (lambda net, x: pooled(x).squeeze(-1).squeeze(-1), nn.Linear(8, 4), {}),
    "tokens": (lambda net, x: x.flatten(2).transpose(1, 2), TOKENS, {}),
    "channels last": (lambda net, x: x.permute(0, 2, 3, 1), TOKENS, {}),
    "means": (lambda net, x: x.mean((2, 3)), TOKENS, {}),
    "sum of positions": (lambda net, x: torch.einsum("nchw->nc", x), TOKENS, {}),
    "halves, by their shape": (lambda net, x: torch.cat(x.flip(2).chunk(2, 3), 2), None, {}),
    "scaled by a parameter": (lambda net, x: x * net.scale, None, {}),
    "instance normalisation": (lambda net, x: F.instance_norm(x), None, {}),
    "a normalisation that learns": (lambda net, x: net.norm(x), None, {"norm": nn.InstanceNorm2d(8, affine=True)}),
    "one slope a channel": (lambda net, x: net.act(x), None, {"act": nn.PReLU(8)}),
    "stacked": (lambda net, x: torch.stack([x, -x]).sum(0), None, {}),
    "rolled, enlarged": (lambda net, x: F.interpolate(x.roll(1, 2), scale_factor=2), None, {}),
    "normalised in training": (lambda net, x: net.norm(x), None, {"norm": nn.BatchNorm2d(8)}),
    "transposed": (lambda net, x: net.up(x), nn.Conv2d(8, 4, 1), {"up": nn.ConvTranspose2d(8, 8, 2, 2)}),
    "log-probabilities of what comes out": (lambda net, x: x, nn.Sequential(nn.Conv2d(8, 4, 1), nn.LogSoftmax(1)), {}),
    "dropped in training": (lambda net, x: F.dropout2d(F.dropout(x, 0.5, net.training), 0.5, net.training), None, {}),
}


def silenced(net, kept):
    """A copy whose readers have no weight for the channels of `conv` that go; each stands at several places."""
    net, traced = copy.deepcopy(net), trace(net, **IMAGE)
    written = traced.channels(traced.layers["conv"].writes)
    gone = {channel for place, channel in enumerate(written) if place not in kept}
    for name in traced.readers("conv"):
        is_gone = torch.tensor([channel in gone for channel in traced.channels(traced.layers[name].reads)])
        weight = net.get_submodule(name).weight.data
        (weight if isinstance(net.get_submodule(name), nn.ConvTranspose2d) else weight.transpose(0, 1))[is_gone] = 0.0
    return net


@pytest.mark.parametrize("name", KEPT)
def test_channels_stay_apart(name, tmp_path):
    between, reader, modules = KEPT[name]
    net = Net(between, copy.deepcopy(reader), **copy.deepcopy(modules)).eval()
    if name == "scaled by a parameter":
        net.scale = nn.Parameter(torch.rand(8, 1, 1))
    assert trace(net, **IMAGE).widths["conv"] == 8
    kept, x = [0, 2, 3, 7], torch.randn(2, 3, 8, 8)
    smaller = shrink(net, {"conv": kept}, **IMAGE)
    assert smaller.conv.out_channels == 4
    torch.testing.assert_close(smaller(x), silenced(net, kept)(x))
    save(smaller, tmp_path / "net")
    assert torch.equal(load(net, tmp_path / "net").eval()(x), smaller(x))
    smaller.train()(x).sum().backward()


def test_squeeze_and_excitation_by_linear_layers_loses_what_it_gates():
    net, x = Net(squeezed, gate=gate()).eval(), torch.randn(2, 3, 8, 8)
    assert trace(net, **IMAGE).widths == {"conv": 8, "gate.0": 2}
    smaller = shrink(net, {"conv": [0, 2, 3, 7]}, **IMAGE)  # the layer that makes the gates goes along
    assert (smaller.gate[0].in_features, smaller.gate[2].out_features) == (4, 4)
    torch.testing.assert_close(smaller(x), silenced(net, [0, 2, 3, 7])(x))


def test_shuffled_channels_go_with_those_at_the_same_place_of_each_group():
    def shuffle(net, x):
        return x.view(len(x), 2, -1, *x.shape[2:]).transpose(1, 2).flatten(1, 2)

    net, x = Net(shuffle).eval(), torch.randn(2, 3, 8, 8)
    assert "conv" not in trace(net, **IMAGE).widths  # which cannot lose any four
    smaller = shrink(net, {"conv": [1, 3, 5, 7]}, **IMAGE)  # 1 and 5 are one, 3 and 7
    torch.testing.assert_close(smaller(x), silenced(net, [1, 3, 5, 7])(x))
    with pytest.raises(ValueError, match="are one, and must both stay or go"):
        shrink(net, {"conv": [0, 1, 2, 3]}, **IMAGE)


def test_pixel_shuffle_makes_channels_of_blocks():
    net, x = Net(lambda net, x: F.pixel_shuffle(x, 2), nn.Conv2d(2, 4, 1)).eval(), torch.randn(2, 3, 8, 8)
    smaller = shrink(net, {"conv": [4, 5, 6, 7]}, **IMAGE)
    assert smaller.reader.in_channels == 1
    net.reader.weight.data[:, 0] = 0.0
    torch.testing.assert_close(smaller(x), net(x))


def test_groups_of_a_normalisation_go_whole():
    net, x = Net(lambda net, x: net.norm(x), norm=nn.GroupNorm(4, 8)).eval(), torch.randn(2, 3, 8, 8)
    smaller = shrink(net, {"conv": [0, 1, 6, 7]}, **IMAGE)
    assert (smaller.norm.num_groups, smaller.norm.num_channels) == (2, 4)
    torch.testing.assert_close(smaller(x), silenced(net, [0, 1, 6, 7])(x))


def test_depth_of_a_stochastic_network_and_its_heads_in_training_are_followed():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.body, self.fc = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 2)
            self.aux = nn.Linear(8, 2)

        def forward(self, x):
            x = self.stem(x)
            keep = x.new_empty(len(x), 1, 1, 1).bernoulli_(0.5) if self.training else 1
            y = self.fc((x + keep * self.body(x)).mean((2, 3)))
            return (y, self.aux(x.mean((2, 3)))) if self.training else y

    smaller = shrink(Net(), {"stem": [0, 5, 6]}, **IMAGE)
    assert smaller.body.out_channels == smaller.aux.in_features == 3
    assert [y.shape for y in smaller.train()(torch.randn(2, 3, 8, 8))] == [(2, 2), (2, 2)]


def test_a_transposed_convolution_keeps_its_largest_filter_and_is_left_out_of_widths():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 4, 2, 2), nn.Conv2d(4, 2, 1))
    net[1].weight.data[:, 2] = 9.0  # of eight channels into four
    assert trace(net, **IMAGE).widths == {"0": 8}  # which filters.l1_scores can score
    with pytest.warns(UserWarning, match="layer '1' would have lost all its channels"):
        smaller = shrink(net, {"1": []}, **IMAGE)
    assert torch.equal(smaller[1].weight, net[1].weight[:, [2]])


def test_sizes_that_are_written_down_are_named_before_a_network_is_returned():
    net = Net(lambda net, x: x.view(-1, 8 * 64), nn.Linear(8 * 64, 4))
    with pytest.raises(UntraceableError, match=r"the smaller network could not run: .*at 'view' in 'Net'"):
        shrink(net, {"conv": [0, 1]}, **IMAGE)


def test_a_shared_weight_is_still_shared():
    net = Net(lambda net, x: x * net.again(x).mean(1, keepdim=True), again=nn.Conv2d(8, 4, 1, bias=False))
    net.again.weight = net.reader.weight
    smaller = shrink(net, {"conv": [1, 2]}, **IMAGE)
    assert smaller.again.weight is smaller.reader.weight and smaller.again.in_channels == 2


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_networks_are_unwrapped(wrap):
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    assert trace(wrap(net), **IMAGE).widths == {"0": 8}
    assert type(shrink(wrap(net), {"0": [1]}, **IMAGE)) is nn.Sequential


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


@pytest.mark.parametrize(
    "make, name, remedy",
    [
        (lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5), "weight", "prune.remove"),
        (lambda layer: prune.random_structured(layer, "weight", amount=0.5, dim=1), "weight", "prune.remove"),
        (lambda layer: prune.custom_from_mask(layer, "bias", torch.ones(4)), "bias", "prune.remove"),
        (lambda layer: prune.identity(layer, "weight"), "weight", "prune.remove"),
        (parametrizations.weight_norm, "weight", "parametrize.remove_parametrizations"),
        (parametrizations.spectral_norm, "weight", "parametrize.remove_parametrizations"),
        (parametrizations.orthogonal, "weight", "parametrize.remove_parametrizations"),
        (
            lambda layer: parametrize.register_parametrization(layer, "bias", Doubled()),
            "bias",
            "parametrize.remove_parametrizations",
        ),
        (nn.utils.spectral_norm, "weight", "remove_spectral_norm"),
        pytest.param(
            nn.utils.weight_norm,
            "weight",
            "remove_weight_norm",
            marks=pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning"),
        ),
    ],
)
def test_weights_that_are_made_of_others_are_refused_with_what_to_call(make, name, remedy):
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1))
    make(net[1])
    net(torch.ones(1, 3, 8, 8))  # after which old norms and masks hold what they made, with its history
    message = f"the {name} of '1' is no parameter .*; call torch.nn.utils.{remedy} on it first"
    for act in (lambda: shrink(net, {"0": [0]}, **IMAGE), lambda: save(net, "nowhere")):
        with pytest.raises(ValueError, match=message):
            act()
    wanted = {"0": 24 * 64, "1": 32 * 64}  # costs are known all the same
    assert {row["name"]: row["macs"] for row in layer_table(net, **IMAGE)}.items() >= wanted.items()


def test_weights_are_cut_once_the_masks_are_made_permanent():
    net, x = Net(lambda net, x: x).eval(), torch.randn(2, 3, 8, 8)
    prune.ln_structured(net.reader, "weight", amount=0.5, n=1, dim=1)
    prune.remove(net.reader, "weight")
    kept = net.reader.weight.detach().flatten(2).abs().sum((0, 2)) > 0
    torch.testing.assert_close(shrink(net, {"conv": kept}, **IMAGE)(x), net(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_precision_and_device_stay(dtype, tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)).to(dtype)
    smaller = shrink(net, {"0": [0, 3]}, in_channels=3, image_size=(8, 12))
    assert {parameter.dtype for parameter in smaller.parameters()} == {dtype}
    save(smaller, tmp_path / "net")
    loaded = load(net.float(), tmp_path / "net")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    without_numbers = load(copy.deepcopy(net).to("meta"), tmp_path / "net")
    assert {(parameter.dtype, parameter.device.type) for parameter in without_numbers.parameters()} == {(dtype, "cpu")}
    with torch.device("meta"):
        assert trace(nn.Conv2d(3, 8, 1), **IMAGE).widths == {}


def test_kept_channels_may_be_booleans_and_nothing_else_but_numbers():
    net, mask = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)), torch.tensor([False, True, False, True])
    for kept in (mask, mask.tolist(), mask.numpy(), [1, 3], torch.tensor([1, 3])):
        assert torch.equal(shrink(net, {"0": kept}, **IMAGE)[0].weight, net[0].weight[[1, 3]])
    for kept in ([0.5, 1.7], [True, False], ["a"]):
        with pytest.raises(ValueError, match="that layer '0' keeps must be different whole numbers, or 4 booleans"):
            shrink(net, {"0": kept}, **IMAGE)
