"""Networks: every registered name is built and run, and known parameter counts hold."""

import pytest
import torch
from torch import nn

from prunelab.cost import layer_table, total
from prunelab.models import MODELS, build_model


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_built_and_takes_a_backward_pass(name):
    model = build_model(name, num_classes=7, image_size=32)
    outputs = model(torch.randn(2, 3, 32, 32))
    assert outputs.shape == (2, 7)
    outputs.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", [name for name in MODELS if name != "resnet50"])
@pytest.mark.parametrize("image_size, in_channels, width", [(8, 1, 0.5), (16, 3, 0.1), (32, 1, 1.5)])
def test_models_take_any_image_and_width(name, image_size, in_channels, width):
    model = build_model(name, num_classes=3, in_channels=in_channels, image_size=image_size, width=width)
    assert model.eval()(torch.randn(1, in_channels, image_size, image_size)).shape == (1, 3)


@pytest.mark.parametrize(
    "name, n_parameters",
    [  # He et al. print 0.27, 0.46 and 0.85 million for ResNet-20, -32 and -56.
        ("resnet20", 269_722),
        ("resnet32", 464_154),
        ("resnet56", 853_018),
        ("resnet50", 25_557_032),
        ("lenet_300_100", 266_610),
    ],
)
def test_known_parameter_counts(name, n_parameters):
    image = {"in_channels": 1, "image_size": 28} if name == "lenet_300_100" else {}
    model = build_model(name, num_classes=1000 if name == "resnet50" else 10, **image)
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
    with pytest.raises(ValueError, match="unknown model 'resnet18'; there are lenet_300_100, resnet8"):
        build_model("resnet18", num_classes=10)
    with pytest.raises(ValueError, match="width must be above 0, got 0"):
        build_model("resnet8", num_classes=10, width=0)
    with pytest.raises(ValueError, match="resnet50 takes 3 channels at width 1, got 1 channels"):
        build_model("resnet50", num_classes=10, in_channels=1)


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
