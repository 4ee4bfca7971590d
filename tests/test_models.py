"""Networks: every registered name is built and run, and known parameter counts hold."""

import pytest
import torch

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
