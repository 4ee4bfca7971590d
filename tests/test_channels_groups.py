"""Groups of layers that share channels, in networks small enough to be followed by eye; and their widths."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prunelab.channels.groups import Grid, Group, check_widths, groups_of, leading_state
from prunelab.channels.trace import UntraceableError, trace
from prunelab.models import build_model
from prunelab.models.layers import PadChannels


class TwoStages(nn.Module):
    """A stage of 4 channels with a block of 5 inside, then one of 6 with zeros appended; 2 outputs."""

    def __init__(self, *, stem=4, inner=5, deep=6):
        super().__init__()
        self.stem, self.inner = nn.Conv2d(1, stem, 3, padding=1), nn.Conv2d(stem, inner, 1)
        self.back, self.deep = nn.Conv2d(inner, stem, 1), nn.Conv2d(stem, deep, 1, stride=2)
        self.pad, self.fc = PadChannels(deep - stem), nn.Linear(deep, 2)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.back(F.relu(self.inner(x)))
        x = self.deep(x) + self.pad(x[:, :, ::2, ::2])
        return self.fc(x.mean(dim=(2, 3)))


class Concatenated(nn.Module):
    """Two convolutions side by side, whose outputs a third one reads."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 3, 1), nn.Conv2d(5, 2, 1)

    def forward(self, x):
        return self.head(torch.cat([self.left(x), self.right(x)], dim=1))


class ReadTwice(nn.Module):
    """A convolution of 2 channels, whose maps the last layer reads flattened, and behind each other their means."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 2, 1), nn.Linear(4, 3)

    def forward(self, x):
        x = self.conv(x)
        return self.fc(torch.cat([F.max_pool2d(x, 8).flatten(1), x.mean(dim=(2, 3))], dim=1))


class AddedToConcatenation(Concatenated):
    """Two convolutions side by side, to whose outputs that of another one is added."""

    def __init__(self):
        super().__init__()
        self.both = nn.Conv2d(1, 5, 1)

    def forward(self, x):
        return self.head(torch.cat([self.left(x), self.right(x)], dim=1) + self.both(x))


TWO_STAGES = {
    "stem": Group("stem", 4, ["stem", "back"], ["inner", "deep", "pad"], pads=["pad"]),
    "inner": Group("inner", 5, ["inner"], ["back"]),
    "deep": Group("deep", 6, ["deep", "pad"], ["fc"], pads=["pad"]),
}


def groups(model, *, in_channels=1, image_size=8):
    return groups_of(trace(model, in_channels=in_channels, image_size=image_size))


def named(name, **options):
    with torch.device("meta"):
        return groups(build_model(name, num_classes=10, **options), in_channels=3, image_size=32)


def test_residual_stream_is_one_group_and_zeros_are_appended_to_the_next():
    assert groups(TwoStages()) == TWO_STAGES
    assert list(groups(TwoStages())) == ["stem", "inner", "deep"]  # first layer first


def test_resnet20_has_a_group_a_stage_and_one_inside_each_block():
    found = named("resnet20")
    inner = {f"blocks.{i}.conv1": n for i, n in enumerate([16] * 3 + [32] * 3 + [64] * 3)}
    stages = {"conv": 16, "blocks.3.conv2": 32, "blocks.6.conv2": 64}
    assert {name: group.n_channels for name, group in found.items()} == inner | stages
    assert found["conv"].writers == ["conv", *(f"blocks.{i}.conv2" for i in range(3))]
    assert found["conv"].readers == [*(f"blocks.{i}.conv1" for i in range(4)), "blocks.3.pad"]
    assert found["blocks.6.conv2"].writers == ["blocks.6.conv2", "blocks.6.pad", "blocks.7.conv2", "blocks.8.conv2"]
    assert found["blocks.6.conv2"].readers == ["blocks.7.conv1", "blocks.8.conv1", "fc"]


def test_depthwise_convolution_belongs_to_the_group_it_works_on():
    found = named("mobilenet_v2")
    block = found["features.3.conv.0.0"]
    assert block == Group(
        "features.3.conv.0.0", 144, ["features.3.conv.0.0"], ["features.3.conv.2"], ["features.3.conv.1.0"]
    )
    assert found["features.0.0"].depthwise == ["features.1.conv.0.0"]
    stage = found["features.2.conv.2"]
    assert (stage.writers, stage.depthwise) == (["features.2.conv.2", "features.3.conv.2"], [])
    assert sum(len(group.depthwise) for group in found.values()) == 17  # one a block


def test_flattened_maps_are_read_as_channels():
    vgg = named("vgg11_bn")
    assert vgg["features.25"] == Group("features.25", 512, ["features.25"], ["classifier.0"])
    assert list(vgg)[-2:] == ["classifier.0", "classifier.3"]  # not the output, classifier.6


def test_layers_that_cannot_work_on_a_prefix_are_named():
    for name, layer in (("densenet22", "blocks.0.select"), ("preresnet20", "blocks.0.select")):
        with pytest.raises(UntraceableError, match=rf"'{layer}' \(Select\) cannot work on the first channels only"):
            named(name)
    with pytest.raises(UntraceableError, match="'head' reads the channels of several layers in a row"):
        groups(Concatenated())
    with pytest.raises(UntraceableError, match=r"'fc' reads the channels .* or of one twice"):
        groups(ReadTwice())
    with pytest.raises(UntraceableError, match="'both' shares channels that are not at the same place everywhere"):
        groups(AddedToConcatenation())
    grouped = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 2, 1))
    with pytest.raises(UntraceableError, match=r"'1' \(Conv2d\) cannot work on the first channels only"):
        groups(grouped)


def test_network_without_a_free_width_is_refused():
    with pytest.raises(ValueError, match="no layer whose width is free: all its channels are its inputs or outputs"):
        groups(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"deep": None}, r"widths must name each group once, stem, inner, deep; wrong: deep$"),
        ({"fc": 2}, r"wrong: fc$"),
        ({"stem": None, "back": 4}, r"wrong: back, stem; 'back' is as wide as 'stem'$"),
        ({"pad": 2}, r"wrong: pad; 'pad' is as wide as 'deep'$"),
        ({"inner": 0}, r"the width of 'inner' must be a whole number in 1 to 5, got 0"),
        ({"deep": 7}, r"the width of 'deep' must be a whole number in 1 to 6, got 7"),
        ({"deep": 2.0}, r"the width of 'deep' must be a whole number in 1 to 6, got 2\.0"),
        ({"inner": True}, r"the width of 'inner' must be a whole number in 1 to 5, got True"),
        ({"inner": "3"}, r"the width of 'inner' must be a whole number in 1 to 5, got '3'"),
    ],
)
def test_impossible_widths_are_refused(wrong, message):
    widths = {"stem": 4, "inner": 1, "deep": 6}
    check_widths(widths, TWO_STAGES)
    wrong = {name: n for name, n in (widths | wrong).items() if n is not None}
    with pytest.raises(ValueError, match=message):
        check_widths(wrong, TWO_STAGES)


CHOICES = {  # tenths, rounded, but at least 1; 1.5 is rounded to 2
    16: [2, 3, 5, 6, 8, 10, 11, 13, 14, 16],
    32: [3, 6, 10, 13, 16, 19, 22, 26, 29, 32],
    64: [6, 13, 19, 26, 32, 38, 45, 51, 58, 64],
    3: [1, 1, 1, 1, 2, 2, 2, 2, 3, 3],
}


def test_grid_has_the_rounded_tenths_of_each_group():
    grid = Grid({str(n): Group(str(n), n) for n in CHOICES})
    assert grid.names == ["16", "32", "64", "3"] and grid.choices.tolist() == list(CHOICES.values())
    assert grid.at(0) == {"16": 2, "32": 3, "64": 6, "3": 1}
    assert grid.at(-1) == {"16": 16, "32": 32, "64": 64, "3": 3}
    assert grid.at(torch.tensor([0, -1, 4, 8])) == {"16": 2, "32": 32, "64": 32, "3": 3}
    assert grid.widths(torch.tensor([7.0, 1.0, 64.0, 2.0])) == {"16": 7, "32": 1, "64": 64, "3": 2}
    assert Grid({"a": Group("a", 16)}, n=4).choices.tolist() == [[4, 8, 12, 16]]


def test_smaller_network_takes_the_first_channels_of_every_tensor():
    def build(n, m):
        return nn.Sequential(nn.Conv2d(1, n, 3), nn.BatchNorm2d(n), nn.Flatten(), nn.Linear(4 * n, m), nn.Linear(m, 2))

    wide, narrow = build(5, 6), build(2, 3)
    wide[1].running_mean.copy_(torch.arange(5))
    wide[1].num_batches_tracked.fill_(7)
    state = wide.state_dict()
    taken = leading_state(narrow, state)
    narrow.load_state_dict(taken)
    assert torch.equal(narrow[0].weight, wide[0].weight[:2]) and torch.equal(narrow[0].bias, wide[0].bias[:2])
    assert narrow[1].running_mean.tolist() == [0, 1] and narrow[1].num_batches_tracked == 7
    assert torch.equal(narrow[3].weight, wide[3].weight[:3, :8])  # four pixels of each of two channels
    assert torch.equal(narrow[4].weight, wide[4].weight[:, :3]) and torch.equal(narrow[4].bias, wide[4].bias)
    taken["0.weight"].zero_()
    assert state["0.weight"][:2].any()  # a copy
