"""Networks: every registered name is built and run, and known parameter counts hold."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prunelab.channels.trace import trace
from prunelab.cost import layer_table, total
from prunelab.models import MODELS, TORCHVISION_MODELS, build_model
from prunelab.models.layers import PadChannels, Select, init_for_slimming

LARGE = {*TORCHVISION_MODELS, "vit_s4", "vit_s16", "vit_b16"}


def device_for(name):
    """Without numbers where a network is large: its shapes say enough."""
    return torch.device("meta") if name in LARGE else nullcontext()


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_built_and_takes_a_backward_pass(name):
    with device_for(name):
        model = build_model(name, num_classes=7, image_size=32)
        outputs = model(torch.randn(2, 3, 32, 32))
    assert outputs.shape == (2, 7)
    outputs.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_followed_with_its_own_layers(name):
    with device_for(name):
        model = build_model(name, num_classes=7, width=1.0 if name in TORCHVISION_MODELS else 0.25)
        followed = trace(model, in_channels=3, image_size=32).layers
    # A block that neither halves the image nor adds channels leaves its padding unused.
    unused = {n for n, module in model.named_modules() if isinstance(module, PadChannels) and module.n_new == 0}
    own = {n for n, module in model.named_modules() if isinstance(module, Select | PadChannels)}
    assert followed.keys() >= own - unused


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("vgg11_bn", "vgg16_bn")])
@pytest.mark.parametrize("image_size, in_channels, width", [(8, 1, 0.5), (16, 3, 0.1), (32, 1, 1.5)])
def test_models_take_any_image_and_width(name, image_size, in_channels, width):
    if name in ("vit_s16", "vit_b16"):
        image_size *= 2  # whose patch is 16 pixels wide
    with device_for(name):
        model = build_model(name, num_classes=3, in_channels=in_channels, image_size=image_size, width=width)
        assert model.eval()(torch.randn(1, in_channels, image_size, image_size)).shape == (1, 3)


@pytest.mark.parametrize(
    "name, n_parameters",
    [  # He et al. print 0.27, 0.46, 0.85 and 1.7 million for ResNet-20, -32, -56 and -110.
        ("resnet20", 269_722),
        ("resnet32", 464_154),
        ("resnet56", 853_018),
        ("resnet110", 1_727_962),
        # Liu et al. 2017 print 20.04, 1.70 and 1.02 million; their code's DenseNet-40 has 1.06.
        ("vgg19", 20_035_018),
        ("preresnet164", 1_703_258),
        ("densenet40", 1_059_298),
        ("densenet100_bc", 769_162),  # Huang et al. print 0.8 million
        # torchvision's documentation, for 1000 classes.
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("mobilenet_v2", 3_504_872),
        ("vgg11_bn", 132_868_840),
        ("vgg16_bn", 138_365_992),
        ("vit_b16", 86_567_656),
        ("vit_s16", 21_665_664 + 385 * 1000),  # DINO's backbone, and a head
        ("lenet_300_100", 266_610),
    ],
)
def test_known_parameter_counts(name, n_parameters):
    image = {"in_channels": 1, "image_size": 28} if name == "lenet_300_100" else {"image_size": 224}
    with torch.device("meta"):
        model = build_model(name, num_classes=1000 if name in LARGE else 10, **image)
    assert sum(parameter.numel() for parameter in model.parameters()) == n_parameters


def test_shortcut_subsamples_and_pads_new_channels_with_zeros():
    block = build_model("resnet8", num_classes=10).blocks[1]
    x = torch.randn(1, 16, 4, 4)
    out = block.shortcut(x)
    assert torch.equal(out[:, :16], x[:, :, ::2, ::2])
    assert not out[:, 16:].any() and out.shape == (1, 32, 2, 2)


def test_same_seed_gives_the_same_initial_weights():
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([parameter.flatten() for parameter in build_model("resnet8", num_classes=10).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_impossible_requests_are_refused():
    with pytest.raises(ValueError, match="unknown model 'resnet19'; there are lenet_300_100, resnet8"):
        build_model("resnet19", num_classes=10)
    with pytest.raises(ValueError, match="width must be above 0, got 0"):
        build_model("resnet8", num_classes=10, width=0)
    with pytest.raises(ValueError, match="vgg11_bn takes 3 channels at width 1, got 1 channels"):
        build_model("vgg11_bn", num_classes=10, in_channels=1)


def test_mobilenet_has_the_papers_size():
    # Howard et al. print 4.2 million parameters and 569 million multiply-adds. By hand: the weights of the stem, of the
    # 13 depthwise and 13 pointwise convolutions and of the output; scale and shift after each convolution; output bias.
    inputs = [32, 64, 128, 128, 256, 256, *[512] * 6, 1024]
    outputs = [*inputs[1:], 1024]
    sides = [112, 56, 56, 28, 28, *[14] * 6, 7, 7]  # of the image, in each block
    stem, fc = 3 * 32 * 9, 1024 * 1000
    weights = [(9 * n_in, n_in * n_out) for n_in, n_out in zip(inputs, outputs, strict=True)]
    n_parameters = stem + fc + 1000 + sum(map(sum, weights)) + 2 * (32 + sum(inputs) + sum(outputs))
    macs = stem * 112**2 + fc + sum(sum(pair) * side**2 for pair, side in zip(weights, sides, strict=True))
    assert (n_parameters, macs) == (4_231_976, 568_740_352)

    model = build_model("mobilenet_v1", num_classes=1000, image_size=224)
    assert sum(parameter.numel() for parameter in model.parameters()) == n_parameters
    assert total(layer_table(model, in_channels=3, image_size=224), "macs") == macs


@pytest.mark.parametrize("image_size, last", [(16, 2), (32, 4), (63, 8), (64, 2), (224, 7)])
def test_mobilenet_spares_small_images_two_halvings(image_size, last):
    with torch.device("meta"):
        model = build_model("mobilenet_v1", num_classes=10, image_size=image_size, width=0.25).eval()
        x = model.bn(model.conv(torch.empty(1, 3, image_size, image_size)))
        assert model.blocks(x).shape == (1, 256, last, last)


@pytest.mark.parametrize("name, macs", [("resnet18", 1.814e9), ("resnet50", 4.089e9), ("mobilenet_v2", 300e6)])
def test_known_macs_of_torchvisions_networks(name, macs):
    with torch.device("meta"):
        model = build_model(name, num_classes=1000, image_size=224)
    assert total(layer_table(model, in_channels=3, image_size=224), "macs") == pytest.approx(macs, rel=0.01)


@pytest.mark.parametrize(
    "name, early, late",
    [("resnet18", "layer1", "layer4"), ("resnet50", "layer1", "layer4"), ("mobilenet_v2", "features.2", "features.18")],
)
@pytest.mark.parametrize(
    "image_size, sides", [(16, (16, 2)), (32, (32, 4)), (63, (63, 8)), (64, (16, 2)), (224, (56, 7))]
)
def test_torchvisions_networks_spare_small_images_two_halvings(name, early, late, image_size, sides):
    found = []
    with torch.device("meta"):
        model = build_model(name, num_classes=10, image_size=image_size).eval()
        for layer in (early, late):
            model.get_submodule(layer).register_forward_hook(lambda layer, inputs, out: found.append(out.shape[2:]))
        model(torch.empty(1, 3, image_size, image_size))
    assert found == [(side, side) for side in sides]


@pytest.mark.parametrize(
    "name, first, last", [("resnet18", 32, 256), ("resnet50", 32, 1024), ("mobilenet_v2", 16, 1280)]
)
def test_width_of_torchvisions_networks_scales_every_layer(name, first, last):
    with torch.device("meta"):
        model = build_model(name, num_classes=10, width=0.5)
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert convs[0].out_channels == first and linear[-1].in_features == last


def test_mobilenets_convolutions_keep_the_variance_of_their_gradients():
    torch.manual_seed(0)
    block = build_model("mobilenet_v1", num_classes=10).blocks[-1]
    assert block.depthwise.weight.shape == (1024, 1, 3, 3) and block.pointwise.weight.shape == (1024, 1024, 1, 1)
    # A variance of 2 / fan_out; each channel goes through nine depthwise weights, or to 1024 outputs.
    assert block.depthwise.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.05)
    assert block.pointwise.weight.std().item() == pytest.approx((2 / 1024) ** 0.5, rel=0.01)


def test_separable_block_by_hand():
    block = build_model("mobilenet_v1", num_classes=10, width=1 / 32).eval().blocks[1]
    x = torch.rand(1, 2, 4, 4)
    nn.init.zeros_(block.depthwise.weight)
    block.depthwise.weight.data[:, 0, 1, 1] = torch.tensor([1.0, -1.0])  # keeps channel 0; ReLU silences channel 1
    nn.init.ones_(block.pointwise.weight)
    torch.testing.assert_close(block(x), x[:, :1].expand(-1, 4, -1, -1), rtol=1e-4, atol=0)
    block.pointwise.weight.data.fill_(-1.0)
    assert not block(x).any()


def test_stem_of_mobilenet_ends_in_a_relu():
    model = build_model("mobilenet_v1", num_classes=10).eval()
    nn.init.constant_(model.conv.weight, -1.0)
    seen = []
    model.blocks.register_forward_pre_hook(lambda blocks, inputs: seen.append(inputs[0]))
    model(torch.rand(1, 3, 32, 32))
    assert not seen[0].any()


@pytest.mark.parametrize(
    "name, n_entries, total",
    [  # What records were made with: entries of the state dict, and their sum, for seed 0 and 10 classes.
        ("lenet_300_100", 6, 7.076583),
        ("resnet8", 44, 473.161052),
        ("resnet20", 116, 1321.861411),
        ("wrn22_2", 119, 2712.460003),
        ("mobilenet_v1", 164, 21894.786216),
    ],
)
def test_initial_weights_are_those_of_the_records(name, n_entries, total):
    torch.manual_seed(0)
    state = build_model(name, num_classes=10).state_dict()
    assert len(state) == n_entries
    assert sum(values.double().sum().item() for values in state.values()) == pytest.approx(total, abs=1e-3)


def test_selection_by_hand():
    select = Select(3)
    x = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    assert torch.equal(select(x), x)
    select.indices = torch.tensor([0, 2])
    select(x).sum().backward()
    assert select(x).tolist() == [[1.0, 3.0]] and x.grad.tolist() == [[1.0, 0.0, 1.0]]
    assert list(select.state_dict()) == ["indices"] and not list(select.parameters())


def test_selection_keeps_images_channels_last():
    x = torch.rand(2, 6, 4, 5).to(memory_format=torch.channels_last)
    select = Select(6)
    select.indices = torch.tensor([1, 4, 5])
    assert torch.equal(select(x), x[:, [1, 4, 5]])
    assert select(x).is_contiguous(memory_format=torch.channels_last)


def test_padding_appends_channels_of_zeros():
    x = torch.rand(2, 3, 4, 5)
    assert torch.equal(PadChannels(2)(x), torch.cat([x, torch.zeros(2, 2, 4, 5)], dim=1))


def test_padding_by_a_negative_number_drops_the_last_channels():
    x = torch.rand(2, 3, 4, 5)
    assert torch.equal(PadChannels(-2)(x), x[:, :1])


def test_initialisation_for_slimming():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(64, 32, 3, groups=8), nn.BatchNorm2d(32), nn.Linear(32, 32), nn.BatchNorm1d(32))
    linear = model[2].weight.clone()
    init_for_slimming(model)
    # A variance of 2 / (9 * 32); the linear layer and its normalisation stay.
    assert model[0].weight.std().item() == pytest.approx((2 / 288) ** 0.5, rel=0.05)
    assert model[1].weight.unique().item() == 0.5
    assert torch.equal(model[2].weight, linear) and model[3].weight.unique().item() == 1.0


# As the authors' code lists them: channels of a convolution, M for pooling.
CONFIGURATIONS = {
    "vgg11": "64 M 128 M 256 256 M 512 512 M 512 512",
    "vgg16": "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512",
    "vgg19": "64 64 M 128 128 M 256 256 256 256 M 512 512 512 512 M 512 512 512 512",
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_vgg_computes_what_the_authors_network_does(name):
    model = build_model(name, num_classes=10).eval()
    blocks, layers = iter(model.blocks), []
    for item in CONFIGURATIONS[name].split():
        if item == "M":
            layers.append(nn.MaxPool2d(2, 2))
        else:
            block = next(blocks)
            assert block.conv.out_channels == int(item) and block.conv.bias is None
            layers += [block.conv, block.bn, nn.ReLU()]
    layers += [nn.AvgPool2d(2), nn.Flatten(), *model.hidden, model.fc]
    assert next(blocks, None) is None
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x), nn.Sequential(*layers)(x))


def test_only_vgg16_has_a_hidden_layer():
    for name in ("vgg11", "vgg19"):
        assert not len(build_model(name, num_classes=10, width=0.25).hidden)
    linear, norm, relu = build_model("vgg16", num_classes=10, width=0.25).hidden
    assert (linear.in_features, linear.out_features, norm.num_features) == (128, 128, 128)
    assert isinstance(norm, nn.BatchNorm1d) and isinstance(relu, nn.ReLU)


def test_linear_layers_of_vgg_start_small_and_without_bias():
    torch.manual_seed(0)
    model = build_model("vgg16", num_classes=100)
    for linear in (model.hidden[0], model.fc):
        assert linear.weight.std().item() == pytest.approx(0.01, rel=0.02) and not linear.bias.any()
    assert model.blocks[-1].bn.weight.unique().item() == 0.5


@pytest.mark.parametrize("image_size, last", [(8, 1), (16, 1), (28, 2), (32, 2), (64, 4)])
def test_last_maps_of_vgg_never_vanish(image_size, last):
    model = build_model("vgg11", num_classes=10, width=0.1)
    assert model.blocks(torch.rand(2, 3, image_size, image_size)).shape[2:] == (last, last)


@pytest.mark.parametrize("name, cardinality", [("preresnet20", 1), ("resnext20", 8)])
def test_bottleneck_networks_have_two_blocks_a_stage_and_the_size_worked_out(name, cardinality):
    # Two blocks in each of three stages, on 16, 32 and 64 inner channels; scale and shift of each normalisation.
    n_parameters, n_in = 3 * 16 * 9, 16
    for n in (16, 16, 32, 32, 64, 64):
        projection = n_in * 4 * n if n_in != 4 * n else 0
        n_parameters += 2 * n_in + n_in * n + 2 * n + n * n * 9 // cardinality + 2 * n + n * 4 * n + projection
        n_in = 4 * n
    n_parameters += 2 * 256 + 256 * 10 + 10
    model = build_model(name, num_classes=10)
    assert sum(parameter.numel() for parameter in model.parameters()) == n_parameters
    assert all(block.conv2.groups == cardinality for block in model.blocks)


@pytest.mark.parametrize("index, side", [(0, 8), (1, 8), (2, 4)])
def test_bottleneck_block_against_plain_functions(index, side):
    model = build_model("preresnet20", num_classes=10, width=0.25).eval()
    block = model.blocks[index]
    x = torch.randn(2, block.select.indices.numel(), 8, 8)
    block.select.indices = torch.tensor([0, 2, 3])
    block.bn1 = nn.BatchNorm2d(3).eval()
    block.conv1 = nn.Conv2d(3, block.conv1.out_channels, 1, bias=False)
    nn.init.normal_(block.bn1.running_mean)

    def activated(x, norm):
        return F.relu((x - norm.running_mean[:, None, None]) / (1 + 1e-5) ** 0.5 * norm.weight[:, None, None])

    stride = 8 // side
    out = F.conv2d(activated(x[:, [0, 2, 3]], block.bn1), block.conv1.weight)
    out = F.conv2d(activated(out, block.bn2), block.conv2.weight, stride=stride, padding=1)
    out = F.conv2d(activated(out, block.bn3), block.conv3.weight)
    # The shortcut reads the raw input, all of it.
    shortcut = x if index == 1 else F.conv2d(x, block.projection.weight, stride=stride)
    torch.testing.assert_close(block(x), out + shortcut)
    assert block(x).shape[2:] == (side, side)


@pytest.mark.parametrize("name", ["preresnet20", "densenet22"])
def test_stem_and_end_of_networks_with_selection(name):
    model = build_model(name, num_classes=10, width=0.25).eval()
    n_channels = model.select.indices.numel()
    model.select.indices = torch.arange(n_channels).flip(0)
    x = torch.randn(2, 3, 8, 8)
    features = model.blocks(F.conv2d(x, model.conv.weight, padding=1))
    features = F.relu(model.bn(features.flip(1)))
    torch.testing.assert_close(model(x), model.fc(features.mean(dim=(2, 3))))


def test_dense_layers_and_transitions_by_hand():
    model = build_model("densenet22", num_classes=10, width=1 / 6).eval()
    layer, transition = model.blocks[0], model.blocks[6]
    x = torch.rand(1, 4, 4, 4)
    layer.select.indices = torch.tensor([1])
    layer.bn = nn.BatchNorm2d(1, eps=1e-12).eval()
    layer.conv = nn.Conv2d(1, 2, 3, padding=1, bias=False)
    nn.init.zeros_(layer.conv.weight)
    layer.conv.weight.data[:, 0, 1, 1] = torch.tensor([1.0, -2.0])
    torch.testing.assert_close(layer(x), torch.cat([x, x[:, 1:2], -2 * x[:, 1:2]], dim=1))
    # 4 channels of the stem and two of each of six layers; compression 1 keeps their number. The scale is 0.5.
    assert transition.conv.weight.shape == (16, 16, 1, 1)
    x = torch.rand(1, 16, 4, 4)
    transition.conv.weight.data = torch.eye(16)[..., None, None]
    means = x.view(1, 16, 2, 2, 2, 2).mean(dim=(3, 5))
    torch.testing.assert_close(transition(x), means / 2, rtol=1e-4, atol=0)


def test_channels_of_dense_networks_worked_out():
    # DenseNet-22: 24 + 6 * 12 = 96, then 168 and 240. BC: (24 + 16 * 12) // 2 = 108, (108 + 192) // 2 = 150, 342.
    plain = build_model("densenet22", num_classes=10)
    assert [plain.blocks[i].conv.out_channels for i in (6, 13)] == [96, 168] and plain.fc.in_features == 240
    compressed = build_model("densenet100_bc", num_classes=10)
    assert [compressed.blocks[i].conv.out_channels for i in (16, 33)] == [108, 150]
    assert compressed.fc.in_features == 342
    assert compressed.blocks[0].conv1.out_channels == 48 and compressed.blocks[0].conv2.out_channels == 12
