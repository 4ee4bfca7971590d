"""Channel surgery: the smaller network computes what the larger one does when the channels that go say nothing."""

import copy
import random

import pytest
import torch
from conftest import with_statistics
from torch import nn
from torch.nn import functional as F

from prunelab.channels.surgery import load, save, shrink, without
from prunelab.channels.trace import UntraceableError, trace
from prunelab.checkpoints import CorruptCheckpoint, load_checkpoint, save_checkpoint
from prunelab.models import MODELS, TORCHVISION_MODELS, build_model
from prunelab.models.layers import PadChannels, Select
from prunelab.recipes.recipe import State

IMAGE = {"in_channels": 3, "image_size": 8}
HEAVY = {"resnet110", "preresnet110", "preresnet164", "densenet100_bc", *TORCHVISION_MODELS}
NETWORKS = [
    pytest.param(name, marks=[pytest.mark.slow] if name in HEAVY else [])
    for name in MODELS
    if not name.startswith("vit_")  # whose channels cannot be followed
]
# A VGG of torchvision's has 130 million weights, mostly behind its convolutions; one test of them is enough.
MOST = [each for each in NETWORKS if each.values[0] not in ("vgg11_bn", "vgg16_bn")]


def network(name, **options):
    """A network of any name whose batch normalisations have seen numbers, in evaluation mode."""
    torch.manual_seed(0)
    # Torchvision's at their own width, on images that survive their halvings; ResNeXt with groups of several channels.
    image_size, width = (32, 1.0) if name in TORCHVISION_MODELS else (16, 1.0 if name == "resnext20" else 0.25)
    model = build_model(name, num_classes=5, image_size=image_size, width=width, **options)
    return with_statistics(model), {"in_channels": 3, "image_size": image_size}


def some(model, image, *, share=0.6, seed=0):
    """A random part of each layer's channels, at least one; of grouped convolutions whole groups."""
    draw = random.Random(seed)
    traced = trace(model, **image)
    kept = {name: sorted(draw.sample(range(n), max(1, round(share * n)))) for name, n in traced.own_widths.items()}
    for name, layer in traced.layers.items():
        if layer.is_grouped:
            n = len(layer.writes) // layer.module.groups
            kept[name] = [
                n * group + i for group in sorted(draw.sample(range(layer.module.groups), 5)) for i in range(n)
            ]
    return kept


def silenced(model, kept, image):
    """Outputs of the larger network in which readers see zeros instead of the channels that are not kept.

    Independent of the surgery's bookkeeping by names: it follows values. Channels to go are marked by NaN where they
    are made; whatever reads a NaN reads zero in its place.
    """
    hooks, widths = [], trace(model, **image).own_widths
    for name, indices in kept.items():
        module = model.get_submodule(name)
        gone = sorted(set(range(widths[name])) - set(indices))

        def mark(module, inputs, output, gone=gone):
            output = output.clone()
            output[:, gone] = torch.nan
            return output

        hooks.append(module.register_forward_hook(mark))
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            depthwise = isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels
            if not depthwise:
                hooks.append(module.register_forward_pre_hook(lambda module, inputs: (inputs[0].nan_to_num(0.0),)))
    x = torch.randn(3, 3, image["image_size"], image["image_size"])
    outputs = model(x)
    for hook in hooks:
        hook.remove()
    return x, outputs


@pytest.mark.parametrize("name", NETWORKS)
def test_smaller_network_computes_what_the_silenced_one_does(name):
    model, image = network(name)
    kept = some(model, image)
    x, expected = silenced(model, kept, image)
    smaller = shrink(model, kept, **image)
    assert torch.isfinite(expected).all()
    torch.testing.assert_close(smaller(x), expected, rtol=1e-4, atol=1e-5)
    for layer, n_left in trace(smaller, **image).own_widths.items():  # what a selection picked from may be gone as well
        selects = isinstance(model.get_submodule(layer), Select)
        assert n_left <= len(kept[layer]) if selects else n_left == len(kept[layer])
    before, after = (sum(parameter.numel() for parameter in network.parameters()) for network in (model, smaller))
    assert after < before
    assert type(smaller) is type(model) and smaller.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("name", MOST)
def test_network_built_with_the_widths_takes_the_state_and_gives_the_same_outputs(name):
    model, image = network(name)
    smaller = shrink(model, some(model, image, seed=1), **image)
    built, _ = network(name, widths=trace(smaller, **image).own_widths)
    built.load_state_dict(smaller.state_dict())
    x = torch.randn(2, 3, image["image_size"], image["image_size"])
    assert torch.equal(built.eval()(x), smaller(x))


@pytest.mark.parametrize("name", MOST)
def test_saved_and_loaded_network_gives_the_same_outputs(name, tmp_path):
    model, image = network(name)
    smaller = shrink(model, some(model, image, seed=2), **image)
    save(smaller, str(tmp_path / "network"))  # as the README writes it
    loaded = load(model, str(tmp_path / "network")).eval()
    x = torch.randn(2, 3, image["image_size"], image["image_size"])
    assert torch.equal(loaded(x), smaller(x))
    smaller.train()(x).sum().backward()  # and it still trains


def test_units_of_a_transformers_perceptrons_go():
    model, image = build_model("vit_micro4", num_classes=5, image_size=16), {"in_channels": 3, "image_size": 16}
    kept = some(model, image)
    assert kept and all("mlp" in name for name in kept)  # heads, and the stream that layer norms mix, stay
    smaller, x = shrink(model.eval(), kept, **image), torch.randn(2, 3, 16, 16)
    for name, indices in kept.items():
        gone = [unit for unit in range(model.get_submodule(name).out_features) if unit not in indices]
        model.get_submodule(name.replace("fc1", "fc2")).weight.data[:, gone] = 0.0
    torch.testing.assert_close(smaller(x), model(x), rtol=1e-4, atol=1e-5)


def test_two_layers_by_hand():
    # Three hidden units, of which the first and the last stay: 1*1 - 2*4 = -7 and, with both biases, ReLU(3+1) = 4.
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1))
    model[1].weight.data = torch.tensor([[1.0], [5.0], [3.0]])
    model[1].bias.data = torch.tensor([0.0, 7.0, 1.0])
    model[3].weight.data = torch.tensor([[1.0, 9.0, -2.0]])
    model[3].bias.data.zero_()
    smaller = shrink(model, {"1": [0, 2]}, in_channels=1, image_size=1)
    assert smaller[1].weight.tolist() == [[1.0], [3.0]] and smaller[1].bias.tolist() == [0.0, 1.0]
    assert smaller[3].weight.tolist() == [[1.0, -2.0]]
    assert smaller(torch.ones(1, 1, 1, 1)).item() == -7.0
    assert (smaller[1].out_features, smaller[3].in_features) == (2, 2)
    assert model[1].weight.shape == (3, 1)  # the larger one is left as it is


def test_flattened_channel_takes_all_its_positions_along():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(2 * 4, 1))
    model[2].weight.data = torch.arange(8.0).view(1, 8)  # four positions of channel 0, then four of channel 1
    smaller = shrink(model, {"0": [1]}, in_channels=3, image_size=2)
    assert smaller[2].weight.tolist() == [[4.0, 5.0, 6.0, 7.0]]


class Residual(nn.Module):
    """A stem and a branch of two convolutions that is added to it."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.outer = (nn.Conv2d(n_in, n_out, 1) for n_in, n_out in ((3, 4), (4, 5), (5, 4)))
        self.norm, self.fc = nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x):
        x = self.stem(x)
        x = F.relu(self.norm(x + self.outer(F.relu(self.inner(x)))))
        return self.fc(x.mean(dim=(2, 3)))


def test_residual_stream_loses_a_channel_in_all_its_layers():
    model = Residual().eval()
    assert trace(model, **IMAGE).widths == {"inner": 5}
    smaller = shrink(model, {"outer": [0, 3], "inner": [1, 2, 4]}, **IMAGE)  # the stem goes along
    shapes = {name: tuple(value.shape) for name, value in smaller.named_parameters() if name.endswith("weight")}
    assert shapes == {
        "stem.weight": (2, 3, 1, 1),
        "inner.weight": (3, 2, 1, 1),
        "outer.weight": (2, 3, 1, 1),
        "norm.weight": (2,),
        "fc.weight": (2, 2),
    }
    assert torch.equal(smaller.stem.weight, model.stem.weight[[0, 3]])
    assert torch.equal(smaller.fc.weight, model.fc.weight[:, [0, 3]])
    model.inner.weight.data[[0, 3]] = model.inner.bias.data[[0, 3]] = 0.0
    model.fc.weight.data[:, [1, 2]] = 0.0
    model.inner.weight.data[:, [1, 2]] = 0.0
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(smaller(x), model(x))
    shrink(model, {"outer": [0, 3], "stem": [0, 3]}, **IMAGE)
    with pytest.raises(ValueError, match="layers 'outer' and 'stem' share channels and must keep the same ones"):
        shrink(model, {"outer": [0, 3], "stem": [0, 2]}, **IMAGE)


class Concatenated(nn.Module):
    """A dense layer: its input stands before its output."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 3, 1)
        self.norm, self.last = nn.BatchNorm2d(5), nn.Conv2d(5, 2, 1)

    def forward(self, x):
        x = self.first(x)
        return self.last(self.norm(torch.cat([x, self.second(x)], dim=1))).mean(dim=(2, 3))


def test_channel_of_a_concatenation_goes_at_every_position():
    model = Concatenated().eval()
    smaller = shrink(model, {"first": [1], "second": [0, 2]}, **IMAGE)
    assert torch.equal(smaller.second.weight, model.second.weight[[0, 2]][:, [1]])
    assert torch.equal(smaller.last.weight, model.last.weight[:, [1, 2, 4]])  # 1 of the first; 2 + 0 and 2 + 2
    assert smaller.norm.num_features == 3


def test_zeroed_filter_is_not_a_removed_one():
    # The shift of the normalisation brings a zeroed channel back to its readers: they see ReLU(0 * 1 + 2) = 2.
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 1, 1, bias=False)
    ).eval()
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    model[1].bias.data.fill_(2.0)
    smaller = shrink(model, {"0": [0]}, in_channels=1, image_size=1)
    model[0].weight.data[1] = 0.0
    x = torch.ones(1, 1, 1, 1)
    assert (model(x) - smaller(x)).item() == pytest.approx(2.0)
    model[1].bias.data[1] = 0.0
    torch.testing.assert_close(model(x), smaller(x))


def test_depthwise_convolution_loses_what_it_reads():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)
    ).eval()
    assert list(trace(model, **IMAGE).widths) == ["0"]
    smaller = shrink(model, {"0": [1, 3]}, **IMAGE)
    assert torch.equal(smaller[1].weight, model[1].weight[[1, 3]])
    assert (smaller[1].groups, smaller[1].in_channels, smaller[1].out_channels) == (2, 2, 2)
    assert torch.equal(smaller[3].weight, model[3].weight[:, [1, 3]])
    x = torch.randn(1, 3, 8, 8)
    model[3].weight.data[:, [0, 2]] = 0.0
    torch.testing.assert_close(smaller(x), model(x))


def test_groups_shrink_alike_or_go_whole():
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=3), nn.ReLU(), nn.Conv2d(6, 2, 1)).eval()
    x = torch.randn(1, 3, 8, 8)
    for kept, n_groups in (({"0": [0, 3, 4], "1": [1, 2, 5]}, 3), ({"1": [0, 1, 4, 5]}, 2)):  # half of each; two whole
        expected = zeroed(model, kept)(x)
        smaller = shrink(model, kept, **IMAGE)
        assert smaller[1].groups == n_groups and smaller[0].out_channels == len(kept["1"])
        torch.testing.assert_close(smaller(x), expected)
    with pytest.raises(ValueError, match=r"'1' must keep as many channels in each group; it would read \[1, 2, 2\]"):
        shrink(model, {"0": [0, 2, 3, 4, 5]}, **IMAGE)


def zeroed(model, kept):
    """A copy in which the filters that are not kept are zero, as their ReLU is then: nothing is normalised."""
    model = copy.deepcopy(model)
    for name, indices in kept.items():
        gone = sorted(set(range(model[int(name)].out_channels)) - set(indices))
        model[int(name)].weight.data[gone] = model[int(name)].bias.data[gone] = 0.0
    return model


def test_selection_points_to_the_same_channels_when_others_before_them_go():
    model = nn.Sequential(nn.Conv2d(3, 5, 1), Select(5), nn.Conv2d(5, 2, 1)).eval()
    model[1].indices = torch.tensor([4, 0, 2, 3, 1])
    x = torch.randn(1, 3, 8, 8)
    smaller = shrink(model, {"0": [0, 2, 4], "1": [0, 2, 3]}, **IMAGE)  # of the selection stay 4, 2 and 3; 3 is gone
    assert smaller[1].indices.tolist() == [2, 1]  # 4 and 2, now in third and second place
    expected = F.conv2d(model[0](x)[:, [4, 2]], model[2].weight[:, [0, 2]], model[2].bias)
    torch.testing.assert_close(smaller(x), expected)


class Padded(nn.Module):
    """ResNet's shortcut without parameters: two channels become four."""

    def __init__(self):
        super().__init__()
        self.stem, self.branch, self.pad, self.last = (
            nn.Conv2d(3, 2, 1),
            nn.Conv2d(2, 4, 1),
            PadChannels(2),
            nn.Conv2d(4, 1, 1),
        )

    def forward(self, x):
        x = self.stem(x)
        return self.last(self.branch(x) + self.pad(x))


def test_padding_shrinks_with_the_channels_that_are_added_to_it():
    model = Padded()
    smaller = shrink(model, {"branch": [1, 3]}, **IMAGE)  # one of the two old channels, one of the two new ones
    assert smaller.pad.n_new == 1 and smaller.stem.out_channels == 1
    x = torch.randn(1, 3, 8, 8)
    model.last.weight.data[:, [0, 2]] = 0.0
    model.branch.weight.data[:, 0] = 0.0
    torch.testing.assert_close(smaller(x), model(x))
    assert shrink(model, {"branch": [0, 1]}, **IMAGE).pad.n_new == 0


def test_no_layer_is_emptied_and_a_warning_names_it():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    model[0].weight.data[2] = 9.0
    with pytest.warns(UserWarning, match="layer '0' would have lost all its channels; one stays"):
        smaller = shrink(model, {"0": []}, **IMAGE)
    assert torch.equal(smaller[0].weight, model[0].weight[[2]])  # the largest filter
    selected = nn.Sequential(nn.Conv2d(3, 4, 1), Select(4), nn.Conv2d(4, 2, 1))
    selected[1].indices = torch.tensor([1, 2])
    selected[2] = nn.Conv2d(2, 2, 1)
    with pytest.warns(UserWarning, match="layer '1' would have lost"):
        smaller = shrink(selected, {"0": [0]}, **IMAGE)  # nothing would be left to select
    assert smaller[1].indices.tolist() == [1] and smaller[0].out_channels == 2


def test_blocks_become_the_identity_and_are_saved_as_such(tmp_path):
    model, image = network("preresnet20")
    smaller = without(model, ["blocks.1"])
    x = torch.randn(2, 3, 16, 16)
    assert isinstance(smaller.blocks[1], nn.Identity) and not isinstance(model.blocks[1], nn.Identity)
    model.blocks[1].conv3.weight.data.zero_()
    torch.testing.assert_close(smaller(x), model(x))
    save(shrink(smaller, some(smaller, image), **image), tmp_path / "network")
    assert isinstance(load(model, tmp_path / "network").blocks[1], nn.Identity)
    with pytest.raises(ValueError, match=r"has no module 'blocks\.99'"):
        without(model, ["blocks.99"])


def test_bad_requests_are_refused_by_name():
    model = Residual()
    with pytest.raises(
        ValueError, match="no layer 'innner' makes channels of its own; there are stem, inner, outer, fc"
    ):
        shrink(model, {"innner": [0]}, **IMAGE)
    with pytest.raises(ValueError, match="no layer 'norm' makes channels of its own"):
        shrink(model, {"norm": [0]}, **IMAGE)
    with pytest.raises(ValueError, match=r"layer 'inner' has channels 0 to 4; cannot keep \[0, 5\]"):
        shrink(model, {"inner": [0, 5]}, **IMAGE)
    with pytest.raises(ValueError, match="the channels of 'fc' cannot go: they are the network's own output"):
        shrink(model, {"fc": [0]}, **IMAGE)


def test_file_of_another_network_or_a_damaged_one_is_refused(tmp_path):
    path = tmp_path / "network"
    model, _ = network("resnet8")
    save(model, path)
    with pytest.raises(ValueError, match=r"holds another network: 'blocks\.3\.conv1' is nothing there and Conv2d"):
        load(network("resnet20")[0], path)
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3))
    save(other, path)
    with pytest.raises(ValueError, match=r"0\.weight is \(4, 3, 3, 3\) there and \(4, 3, 1, 1\) in Sequential"):
        load(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 3)), path)
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptCheckpoint, match="is damaged"):
        load(other, path)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda saved: saved["sizes"]["0"].update(forward=1), "gives '0' what no Conv2d has: 'forward'"),
        *(
            (lambda saved, n=n: saved["sizes"]["0"].update(out_channels=n), "holds no network that `surgery.save`")
            for n in (0, -4, 4.0, True, "4", None, [4], torch.tensor(4))
        ),
        (lambda saved: saved["sizes"]["0"].pop("kind"), "holds no network"),
        (lambda saved: saved["sizes"]["0"].update(kind=3), "holds no network"),
        (lambda saved: saved["sizes"]["0"].update(kind="Linear"), "'0' is Linear there and Conv2d in Sequential"),
        (lambda saved: saved["sizes"].update({"0": [4]}), "holds no network"),
        (lambda saved: saved["sizes"].update(forward={"kind": "Conv2d"}), "'forward' is Conv2d there and nothing in"),
        (lambda saved: saved.update(sizes=["0"]), "holds no network"),
        (lambda saved: saved.update(state=[]), "holds no network"),
        (lambda saved: saved.update(forward=1), "holds no network"),
        (lambda saved: saved["state"].update({"0.weight": 4}), r"0\.weight is nothing there and \(4, 3, 1, 1\) in"),
        (lambda saved: saved.update(vars(State({}, 2, {}, 0.0))), "holds no network"),
    ],
)
def test_whole_file_with_another_content_is_refused_by_name_and_sets_nothing(change, message, tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    save(model, tmp_path / "network")
    saved = load_checkpoint(tmp_path / "network")
    change(saved)
    save_checkpoint(saved, tmp_path / "network")
    with pytest.raises(ValueError, match=message):
        load(model, tmp_path / "network")


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    "model, message",
    [
        (Branching(), "the forward pass of Branching cannot be traced: .* must not depend on the values"),
        (
            nn.Sequential(nn.Conv2d(3, 4, 1), PadChannels(-1)),
            "it drops channels; no stage may be .*at the start of '1'",
        ),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(5, 4, 1)), "cannot be traced: .*in '1'"),
    ],
)
def test_network_that_cannot_run_without_numbers_says_where_and_what_to_do(model, message):
    with pytest.raises(UntraceableError, match=message):
        trace(model, **IMAGE)


class Then(nn.Module):
    """A convolution of eight channels, something, and what reads it."""

    def __init__(self, then, reader=None):
        super().__init__()
        self.conv, self.then, self.reader = nn.Conv2d(3, 8, 1), then, reader or nn.Conv2d(8, 2, 1)

    def forward(self, x):
        return self.reader(self.then(self.conv(x)))


@pytest.mark.parametrize(
    "then, reader, reason",
    [
        (lambda x: x.softmax(1), None, "'softmax' in 'Then' mixes them"),
        (lambda x: x.sort(1).values, None, "'sort' in 'Then' mixes them"),
        (lambda x: x * torch.arange(8, device=x.device).view(1, 8, 1, 1), None, "sets other numbers beside each"),
        (lambda x: F.pad(x, (0, 0, 0, 0, 0, 1))[:, 1:], None, "'constant_pad_nd' in 'Then' mixes them"),
        (lambda x: x[:, :4], nn.Conv2d(4, 2, 1), "'slice' in 'Then' takes them apart by numbers that are written down"),
        (lambda x: x.split([3, 5], 1)[1], nn.Conv2d(5, 2, 1), "'split_with_sizes' in 'Then' takes them apart"),
        (lambda x: x, nn.Linear(8, 2), None),  # along the width of an image: channels are another axis
    ],
)
def test_channels_that_cannot_go_have_a_reason(then, reader, reason):
    model = Then(then, reader)
    traced = trace(model, **IMAGE)
    reasons = {traced.why_fixed.get(channel) for channel in traced.channels(traced.layers["conv"].writes)}
    assert "conv" not in traced.widths
    if reason:
        assert len(reasons) == 1 and reason in reasons.pop()
        with pytest.raises(ValueError, match="the channels of 'conv' cannot go: "):
            shrink(model, {"conv": [0]}, **IMAGE)


def test_layer_that_is_used_twice_keeps_the_same_channels_both_times():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.again, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 2)

        def forward(self, x):
            return self.fc(self.again(self.again(self.stem(x))).mean(dim=(2, 3)))

    model = Twice()
    smaller = shrink(model, {"again": [0, 2]}, **IMAGE)
    assert smaller.stem.out_channels == smaller.again.in_channels == smaller.again.out_channels == 2
    assert smaller(torch.randn(1, 3, 8, 8)).shape == (1, 2)


def test_readers_and_norms_are_those_of_the_block():
    model, image = network("resnet8")
    traced = trace(model, **image)
    assert traced.readers("blocks.0.conv1") == ["blocks.0.conv2"] and traced.norm("blocks.0.conv1") == "blocks.0.bn1"
    assert traced.readers("blocks.2.conv2") == [
        "blocks.0.conv1",
        "blocks.1.conv1",
        "blocks.2.conv1",
        "fc",
    ]  # the stream
    assert traced.norm("fc") is None


def test_trace_of_another_network_is_refused():
    small, large = (nn.Sequential(nn.Conv2d(3, n, 1), nn.Conv2d(n, 2, 1)) for n in (4, 5))
    traced = trace(small, in_channels=3, image_size=4)
    with pytest.raises(ValueError, match="of another network than this Sequential"):
        shrink(large, {"0": [0]}, in_channels=3, image_size=4, traced=traced)
