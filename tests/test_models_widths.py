"""Widths of layers: which may be given, what they change and what they leave, and what is refused."""

import csv
import random
import re

import pytest
import torch
import torchvision
from conftest import with_statistics
from torch import nn

from prunelab import paths
from prunelab.cost import layer_table, total
from prunelab.models import MODELS, TORCHVISION_MODELS, build_model
from prunelab.models.layers import PadChannels, Select, Widths

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
    "vit_micro4": r"blocks\.\d\.mlp\.fc1",
    "resnet18": r"conv1|layer\d\.\d\.conv1|layer[234]\.0\.conv2",
    "resnet34": r"conv1|layer\d\.\d\.conv1|layer[234]\.0\.conv2",
    "resnet50": r"conv1|layer\d\.\d\.conv[12]|layer\d\.0\.conv3",
    "mobilenet_v2": r"features\.(0\.0|([2-9]|1\d)\.conv\.0\.0|1\.conv\.1|(2|4|7|11|14|17)\.conv\.2|18\.0)",
    "vgg11_bn": r"features\.\d+",
    "vgg16_bn": r"features\.\d+",
}
SMALL = [name for name in FREE if name not in TORCHVISION_MODELS]
# Networks of which every layer but the output has a width, its own or that of the first layer it shares channels with.
SHARING = [name for name in MODELS if re.match(r"resnet\d|mobilenet_v2", name)]


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


def named(name):
    """Layers that may be given a width, in the order in which a network asks about them."""
    widths = Widths({})
    with torch.device("meta"):
        MODELS[name](num_classes=10, in_channels=3, image_size=32, width=1.0, widths=widths)
    return widths.names


@pytest.mark.parametrize("name", FREE)
def test_layers_that_may_be_named_are_those_of_the_table(name):
    assert sorted(named(name)) == sorted(free_widths(name))


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


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "mobilenet_v2"])
def test_torchvisions_networks_start_as_torchvision_starts_them_from_64_pixels_on(name):
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name, num_classes=10).eval()
    torch.manual_seed(0)
    ours = build_model(name, num_classes=10, image_size=64).eval()
    states = theirs.state_dict(), ours.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(theirs(x), ours(x))


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


def test_resized_layers_of_mobilenet_v2_start_as_torchvision_starts_them():
    torch.manual_seed(0)
    model = build_model("mobilenet_v2", num_classes=10, widths={"features.2.conv.0.0": 900, "features.18.0": 640})
    depthwise = model.features[2].conv[1][0]
    assert depthwise.weight.shape == (900, 1, 3, 3)
    assert depthwise.weight.std().item() == pytest.approx((2 / 8100) ** 0.5, rel=0.03)  # torch's fan ignores groups
    linear = model.classifier[1]
    assert linear.weight.std().item() == pytest.approx(0.01, rel=0.03) and not linear.bias.any()


def test_stem_for_small_images_starts_at_its_own_fan_out():
    torch.manual_seed(0)
    stem = build_model("resnet50", num_classes=10).conv1
    assert stem.weight.std().item() == pytest.approx((2 / 576) ** 0.5, rel=0.05)  # 9 * 64; 49 * 64 at 224 pixels


@pytest.mark.parametrize("name", SHARING)
@pytest.mark.parametrize("image_size", [16, 32, 72])
def test_networks_of_any_widths_run(name, image_size):
    draw = random.Random(image_size)
    model = build_model(
        name, num_classes=5, image_size=image_size, widths={layer: draw.randint(1, 40) for layer in named(name)}
    )
    x = torch.randn(2, 3, image_size, image_size)
    for training in (True, False):
        outputs = model.train(training)(x)
        assert outputs.shape == (2, 5) and outputs.isfinite().all()


@pytest.mark.parametrize("name", ["resnet8", "resnet20", "resnet18", "resnet50", "mobilenet_v2"])
@pytest.mark.parametrize("seed", [0, 1])
def test_narrower_network_is_the_first_channels_of_the_full_one(name, seed):
    torch.manual_seed(seed)
    draw, outputs = random.Random(seed), n_outputs(build(name))
    widths = {layer: draw.randint(outputs[layer] // 4, outputs[layer]) for layer in named(name)}
    if seed == 1 and name in ("resnet8", "resnet20"):  # each stage is narrower than the one before
        last = {"resnet8": ("blocks.1.conv2", "blocks.2.conv2"), "resnet20": ("blocks.3.conv2", "blocks.6.conv2")}
        widths |= dict(zip(("conv", *last[name]), (15, 9, 4), strict=True))
    if seed == 1 and name == "mobilenet_v2":  # two stages of one width, without a shortcut from one to the other
        widths |= {"features.7.conv.2": 30, "features.11.conv.2": 30}
    full = with_statistics(build_model(name, num_classes=5)).double()
    for module in full.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)  # or little of an image would come through depthwise ones
    small = build_model(name, num_classes=5, widths=widths).double().eval()
    state = full.state_dict()
    small.load_state_dict(
        {key: state[key][tuple(slice(n) for n in value.shape)] for key, value in small.state_dict().items()}
    )
    x = torch.randn(2, 3, 16, 16, dtype=torch.double)
    expected = small(x)

    # By the full network, in which the channels beyond say nothing; what a shortcut brings is cut off as well.
    for key, module in full.named_modules():
        if isinstance(module, nn.BatchNorm2d | PadChannels):
            own = small.get_submodule(key.replace(".pad", ".bn2")).num_features

            def silence(module, inputs, output, own=own):
                return torch.cat([output[:, :own], torch.zeros_like(output[:, own:])], dim=1)

            module.register_forward_hook(silence)
    assert not torch.allclose(full(torch.randn_like(x)), expected)
    torch.testing.assert_close(full(x), expected)


def test_shortcut_into_a_narrower_stage_drops_the_last_channels():
    block = build_model("resnet8", num_classes=10, widths={"conv": 6, "blocks.1.conv2": 4}).blocks[1]
    x = torch.randn(1, 6, 4, 4)
    assert block.pad.n_new == -2 and torch.equal(block.shortcut(x), x[:, :4, ::2, ::2])


def test_first_layer_speaks_for_all_that_share_its_channels():
    resnet = build("resnet18", {"conv1": 5, "layer2.0.conv2": 7})
    assert {resnet.layer1[i].conv2.out_channels for i in (0, 1)} == {5} and resnet.bn1.num_features == 5
    assert {layer.out_channels for layer in (resnet.layer2[0].downsample[0], resnet.layer2[1].conv2)} == {7}
    assert resnet.layer1[0].conv1.out_channels == 64 and resnet.layer3[0].downsample[0].in_channels == 7

    bottleneck = build("resnet50", {"conv1": 5, "layer1.0.conv3": 7})
    assert bottleneck.layer1[0].downsample[0].weight.shape == (7, 5, 1, 1)
    assert bottleneck.layer1[2].conv3.out_channels == bottleneck.layer2[0].downsample[0].in_channels == 7

    mobilenet = build("mobilenet_v2", {"features.0.0": 5, "features.2.conv.0.0": 6, "features.2.conv.2": 7})
    assert mobilenet.features[1].conv[0][0].weight.shape == (5, 1, 3, 3)
    assert [layer.weight.shape[:2] for layer in mobilenet.features[2].modules() if isinstance(layer, nn.Conv2d)] == [
        (6, 16),
        (6, 1),
        (7, 6),
    ]
    assert mobilenet.features[3].conv[2].out_channels == mobilenet.features[4].conv[0][0].in_channels == 7

    with torch.device("meta"):
        small = build_model("resnet8", num_classes=10, widths={"conv": 5, "blocks.2.conv2": 7})
    assert [block.conv2.out_channels for block in small.blocks] == [5, 32, 7] and small.fc.in_features == 7


@pytest.mark.parametrize(
    "name, layer, first",
    [
        ("resnet8", "blocks.0.conv2", "conv"),
        ("resnet20", "blocks.4.conv2", "blocks.3.conv2"),
        ("resnet18", "layer1.1.conv2", "conv1"),
        ("resnet50", "layer1.1.conv3", "layer1.0.conv3"),
        ("resnet50", "layer2.0.downsample.0", "layer2.0.conv3"),
        ("mobilenet_v2", "features.1.conv.0.0", "features.0.0"),
        ("mobilenet_v2", "features.3.conv.1.0", "features.3.conv.0.0"),
        ("mobilenet_v2", "features.3.conv.2", "features.2.conv.2"),
    ],
)
def test_layer_that_another_one_speaks_for_is_refused_and_the_other_one_named(name, layer, first):
    with pytest.raises(ValueError, match=rf"layer '{layer}' shares its channels with '{first}', which speaks for both"):
        build(name, {layer: 3})
    assert first in named(name)


@pytest.mark.parametrize("options", [{"width": 0.1}, {"widths": {"features.7.conv.2": 24, "features.11.conv.2": 24}}])
def test_only_blocks_within_a_stage_of_mobilenet_v2_have_a_shortcut(options):
    with torch.device("meta"):
        blocks = build_model("mobilenet_v2", num_classes=10, **options).features[1:-1]
    # Seven stages of 1, 2, 3, 4, 3, 3 and 1 blocks.
    expected = [i > 0 for n in (1, 2, 3, 4, 3, 3, 1) for i in range(n)]
    assert [block.use_res_connect for block in blocks] == expected
    for block in blocks:
        depthwise = block.conv[-3][0]
        assert depthwise.groups == depthwise.in_channels == depthwise.out_channels == block.conv[-2].in_channels


# Worked out from the file, one convolution after the other. Its labels, 2.07G and 102M, are those of mmrazor, which
# converted the structures from the authors' repository; there the nearest ones are said to have 2.2G and 87M.
@pytest.mark.parametrize(
    "model, name, macs", [("ResNet-50", "resnet50", 2_194_130_032), ("MobileNetV2", "mobilenet_v2", 85_424_809)]
)
def test_structures_that_the_authors_of_dmcp_released_can_be_built(model, name, macs):
    with open(paths.PAPER / "dmcp_channels.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["model"] == model]
    layers, full = named(name), n_outputs(build(name))  # the file has them in the same order
    assert [row["unit"] for row in rows] == [f"of {full[layer]} (1.0x width)" for layer in layers]
    widths = {layer: int(row["value"]) for layer, row in zip(layers, rows, strict=True)}
    with torch.device("meta"):
        network = build_model(name, num_classes=1000, image_size=224, widths=widths)
    assert total(layer_table(network, in_channels=3, image_size=224), "macs") == macs


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
