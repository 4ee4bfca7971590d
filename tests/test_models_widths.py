"""Widths of layers: which may be given, what they change and what they leave, and what is refused."""

import re

import pytest
import torch
import torchvision
from torch import nn

from prunelab.models import MODELS, TORCHVISION_MODELS, build_model
from prunelab.models.layers import Select, Widths

# Layers that may be given a width: one network of each kind. Of layers that share channels it is the first.
FREE = {
    "lenet_300_100": r"1|3",
    "resnet8": r"conv|blocks\.\d+\.conv1|blocks\.[12]\.conv2",
    "preresnet20": r"conv|(blocks\.\d+\.)?select|blocks\.\d+\.conv[12]",
    "resnext20": r"conv|(blocks\.\d+\.)?select|blocks\.\d+\.conv2",
    "vgg11": r"blocks\.\d+\.conv",
    "vgg16": r"blocks\.\d+\.conv|hidden\.0",
    "densenet22": r"(blocks\.\d+\.)?(select|conv)",
    "densenet100_bc": r"(blocks\.\d+\.)?(select|conv[12]?)",
    "wrn22_2": r"conv|blocks\.\d+\.conv1",
    "mobilenet_v1": r"conv|blocks\.\d+\.pointwise",
    "resnet18": r"conv1|layer\d\.\d\.conv1|layer[234]\.0\.conv2",
    "resnet34": r"conv1|layer\d\.\d\.conv1|layer[234]\.0\.conv2",
    "resnet50": r"conv1|layer\d\.\d\.conv[12]|layer\d\.0\.conv3",
    "mobilenet_v2": r"features\.(0\.0|([2-9]|1\d)\.conv\.0\.0|1\.conv\.1|(2|4|7|11|14|17)\.conv\.2|18\.0)",
    "vgg11_bn": r"features\.\d+",
    "vgg16_bn": r"features\.\d+",
}
SMALL = [name for name in FREE if name not in TORCHVISION_MODELS]


def n_outputs(model):
    """Output channels by layer name."""
    return {
        name: len(module.indices) if isinstance(module, Select) else module.weight.shape[0]
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear | Select)
    }


def build(name, widths=None, **options):
    """A network whose shapes alone count."""
    with torch.device("meta"):
        return build_model(name, num_classes=10, widths=widths, **options)


def free_widths(name):
    return {layer: n for layer, n in n_outputs(build(name)).items() if re.fullmatch(FREE[name], layer)}


@pytest.mark.parametrize("name", FREE)
def test_layers_that_may_be_named_are_those_of_the_table(name):
    widths = Widths({})
    with torch.device("meta"):
        MODELS[name](num_classes=10, in_channels=3, image_size=32, width=1.0, widths=widths)
    assert sorted(widths.names) == sorted(free_widths(name))


@pytest.mark.parametrize("name", FREE)
def test_a_networks_own_widths_change_nothing(name):
    shapes = [
        {n: value.shape for n, value in build(name, widths).state_dict().items()}
        for widths in (None, free_widths(name))
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", FREE)
def test_every_layer_takes_the_width_it_is_given_and_feeds_its_readers(name):
    widths = {layer: n // 2 for layer, n in free_widths(name).items()}
    model = build(name, widths)
    assert {layer: n for layer, n in n_outputs(model).items() if layer in widths} == widths
    # Where a layer fed readers or normalisation of another size, this would fail.
    outputs = model(torch.empty(2, 3, 32, 32, device="meta"))
    assert outputs.shape == (2, 10)
    outputs.sum().backward()


@pytest.mark.parametrize("name", FREE)
def test_layers_not_named_keep_their_widths(name):
    widths = free_widths(name)
    for layer in list(widths)[:: len(widths) // 3 + 1]:
        model = build(name, {layer: widths[layer] // 2})
        # A selection takes all it is fed, which may have become less.
        kept = {n for n in widths if n != layer and not isinstance(model.get_submodule(n), Select)}
        outputs = n_outputs(model)
        assert outputs[layer] == widths[layer] // 2
        assert {n: outputs[n] for n in kept} == {n: widths[n] for n in kept}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("image_size", [8, 16, 32])
def test_narrow_networks_take_images_of_any_size(name, image_size):
    widths = {layer: n // 4 for layer, n in free_widths(name).items()}
    model = build_model(name, num_classes=3, image_size=image_size, widths=widths)
    loss = model(torch.randn(2, 3, image_size, image_size)).square().sum()
    loss.backward()
    assert loss.isfinite() and all(parameter.grad is not None for parameter in model.parameters())


def test_width_of_one_layer_shapes_its_normalisation_and_readers():
    vgg = build("vgg11", {"blocks.0.conv": 5, "blocks.7.conv": 7})
    assert vgg.blocks[0].conv.weight.shape == (5, 3, 3, 3) and vgg.blocks[0].bn.num_features == 5
    assert vgg.blocks[1].conv.weight.shape == (128, 5, 3, 3) and vgg.fc.weight.shape == (10, 7)

    block = build("resnet8", {"blocks.1.conv1": 5}).blocks[1]
    assert block.conv1.weight.shape == (5, 16, 3, 3) and block.bn1.num_features == 5
    assert block.conv2.weight.shape == (32, 5, 3, 3) and block.pad.n_new == 16

    mobilenet = build("mobilenet_v1", {"blocks.0.pointwise": 6})
    assert mobilenet.blocks[1].depthwise.weight.shape == (6, 1, 3, 3)
    assert mobilenet.blocks[1].pointwise.weight.shape == (128, 6, 1, 1)

    # The six other layers still add 12 channels each: 24 + 5 + 5 * 12 of them; the transition puts out 96 as ever.
    dense = build("densenet22", {"blocks.0.conv": 5})
    assert dense.blocks[1].conv.weight.shape == (12, 29, 3, 3)
    assert dense.blocks[6].conv.weight.shape == (96, 89, 1, 1)

    vgg = build("vgg16_bn", {"features.0": 5, "features.40": 7})
    assert vgg.features[0].weight.shape == (5, 3, 3, 3) and vgg.features[3].weight.shape == (64, 5, 3, 3)
    assert vgg.classifier[0].weight.shape == (4096, 7 * 49)

    block = build("resnet50", {"layer2.0.conv1": 5, "layer2.0.conv2": 7}).layer2[0]
    assert [conv.weight.shape[:2] for conv in (block.conv1, block.conv2, block.conv3)] == [(5, 256), (7, 5), (512, 7)]
    assert [norm.num_features for norm in (block.bn1, block.bn2, block.bn3)] == [5, 7, 512]
    assert block.conv2.stride == (2, 2) and block.conv2.padding == (1, 1)


def test_widths_stand_in_place_of_what_width_gives():
    model = build("vgg11", {"blocks.0.conv": 40}, width=0.5)
    assert model.blocks[0].conv.out_channels == 40 and model.blocks[1].conv.out_channels == 64


@pytest.mark.parametrize(
    "n_selected, indices",
    [  # i * 8 // n_selected
        (1, [0]),
        (2, [0, 4]),
        (3, [0, 2, 5]),
        (5, [0, 1, 3, 4, 6]),
        (8, [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_selected_channels_are_spread_evenly(n_selected, indices):
    assert Widths({"select": n_selected}).select("select", 8)[0].indices.tolist() == indices


def test_selection_of_a_built_network_is_narrowed_with_its_readers():
    model = build_model("preresnet20", num_classes=10, widths={"select": 3, "blocks.2.select": 4})
    assert model.select.indices.tolist() == [0, 85, 170]
    assert model.bn.num_features == 3 and model.fc.in_features == 3
    block = model.blocks[2]
    assert block.select.indices.tolist() == [0, 16, 32, 48]
    assert block.bn1.num_features == 4 and block.conv1.in_channels == 4 and block.projection.in_channels == 64


def test_grouped_convolutions_keep_whole_groups_of_their_size():
    # Eight groups of 2 channels in the first stage, of 8 in the last.
    model = build_model("resnext20", num_classes=10, widths={"blocks.0.conv2": 6, "blocks.5.conv2": 8})
    first, last = model.blocks[0], model.blocks[5]
    assert (first.conv1.out_channels, first.conv2.groups, first.conv3.in_channels) == (6, 3, 6)
    assert first.conv2.weight.shape == (6, 2, 3, 3)
    assert (last.conv2.groups, last.conv2.weight.shape) == (1, (8, 8, 3, 3))
    with pytest.raises(ValueError, match=r"layer 'blocks.5.conv2' must keep whole groups of 8 channels, got 20"):
        build("resnext20", {"blocks.5.conv2": 20})


def test_torchvisions_networks_start_as_torchvision_starts_them():
    states = []
    for build_one in (
        torchvision.models.resnet34,
        lambda num_classes: build_model("resnet34", num_classes=num_classes, image_size=64),
    ):
        torch.manual_seed(0)
        states.append(build_one(num_classes=10).state_dict())
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_resized_convolutions_of_torchvision_start_at_their_new_fan_out():
    torch.manual_seed(0)
    block = build_model("resnet34", num_classes=10, widths={"layer4.1.conv1": 128}).layer4[1]
    # Variances of 2 / (9 * 128) and 2 / (9 * 512).
    assert block.conv1.weight.std().item() == pytest.approx((2 / 1152) ** 0.5, rel=0.01)
    assert block.conv2.weight.std().item() == pytest.approx((2 / 4608) ** 0.5, rel=0.01)


@pytest.mark.slow
def test_resized_linear_layer_of_torchvision_starts_small_and_without_bias():
    torch.manual_seed(0)
    first = build_model("vgg11_bn", num_classes=10, widths={"features.25": 8}).classifier[0]
    assert first.weight.std().item() == pytest.approx(0.01, rel=0.01) and not first.bias.any()


def test_impossible_widths_are_refused():
    with pytest.raises(
        ValueError, match=r"resnet8 has no layers blocks.0.conv3, fc that can be given a width; there are"
    ):
        build("resnet8", {"fc": 3, "blocks.0.conv3": 3, "blocks.0.conv1": 3})
    with pytest.raises(ValueError, match=r"there are conv, blocks.0.conv1, blocks.1.conv1, "):
        build("wrn22_2", {"blocks.1.conv2": 3})
    for n in (0, -1, 2.0, "3"):
        with pytest.raises(
            ValueError, match=rf"'blocks.1.conv1' must have a whole number of channels from 1 on, got {n!r}"
        ):
            build("resnet8", {"blocks.1.conv1": n})
    with pytest.raises(ValueError, match=r"layer 'blocks.1.select' cannot select 65 of 64 channels"):
        build("preresnet20", {"blocks.1.select": 65})
    for name in ("vgg11_bn", "vgg16_bn"):
        with pytest.raises(ValueError, match=rf"{name} takes 3 channels at width 1, got 3 channels and width 0.5"):
            build(name, width=0.5)
