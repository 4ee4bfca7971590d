"""Networks that others wrote: followed, shrunk, and the same numbers come out; of timm's where it is installed."""

import copy
import random
from importlib.util import find_spec

import pytest
import torch
from conftest import with_statistics
from torch import nn
from torchvision.models import get_model

from prunelab.channels.surgery import load, save, shrink
from prunelab.channels.trace import trace

TORCHVISION = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3"),
    *("maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18"),
    *("resnet50", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11_bn"),
    *("vgg16", "vit_b_32", "wide_resnet50_2", "fcn_resnet50", "deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50"),
    "lraspp_mobilenet_v3_large",
)
TIMM = (
    *("resnet18", "resnet26d", "resnet50", "resnet50d", "resnext50_32x4d", "seresnet50", "ecaresnet50d", "skresnet18"),
    *("resnest14d", "res2net50_26w_4s", "resnetv2_50", "resnetv2_50x1_bit", "wide_resnet50_2", "gernet_s"),
    *("regnetx_002", "regnety_002", "regnetz_b16", "mobilenetv2_100", "mobilenetv3_small_100", "mobilenetv3_large_100"),
    *("mobilenetv4_conv_small", "mobileone_s0", "efficientnet_b0", "efficientnet_lite0", "tf_efficientnet_b0"),
    *("tf_efficientnetv2_s", "mixnet_s", "mnasnet_100", "fbnetc_100", "spnasnet_100", "semnasnet_100", "lcnet_050"),
    *("tinynet_e", "ghostnet_100", "hardcorenas_a", "rexnet_100", "densenet121", "dla34", "dpn68", "vgg11_bn", "vgg16"),
    *("inception_v3", "inception_v4", "xception41", "nasnetalarge", "hrnet_w18_small", "cspresnet50", "cspdarknet53"),
    *("darknet53", "vovnet39a", "ese_vovnet19b_dw", "selecsls42b", "repvgg_a0", "convnext_atto", "convnextv2_atto"),
    *("poolformer_s12", "vit_tiny_patch16_224", "deit_tiny_patch16_224", "swin_tiny_patch4_window7_224"),
    "mixer_s32_224",
)
FIXED_SIZE = ("vit", "deit", "swin", "mixer", "maxvit")
QUICK = ("mobilenet_v3_small", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1")


def network(library, name):
    """A network of either library with statistics that are not those of its start, and images for it."""
    torch.manual_seed(0)
    if library == "timm":
        model = pytest.importorskip("timm").create_model(name, pretrained=False)
    else:
        others = {"weights_backbone": None} if name.startswith(("fcn", "deeplab", "lraspp")) else {}
        others |= {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        model = get_model(name, weights=None, **others)
    size = 224 if name.startswith(FIXED_SIZE) else 299 if name.startswith("inception") else 96
    return with_statistics(model).double(), {"in_channels": 3, "image_size": size}


def silenced(model, traced, kept):
    """A copy in which nobody has a weight for the channels that go."""
    written = {name: layer.writes for name, layer in traced.layers.items()} | traced.attentions
    gone = {
        channel
        for name, stays in kept.items()
        for place, channel in enumerate(traced.channels(written[name]))
        if place not in stays
    }
    model = copy.deepcopy(model)
    for name, layer in traced.layers.items():
        if layer.makes_channels and isinstance(layer.module, nn.Conv2d | nn.Linear) and not layer.is_grouped:
            is_gone = torch.tensor([channel in gone for channel in traced.channels(layer.reads)])
            model.get_submodule(name).weight.data[:, is_gone] = 0.0
    return model


def outputs(result):
    tensors = result.values() if isinstance(result, dict) else result if isinstance(result, tuple) else [result]
    return [tensor for tensor in tensors if tensor is not None]


def check(library, name, path):
    model, image = network(library, name)
    traced, draw = trace(model, **image), random.Random(0)
    widths = traced.widths | traced.heads
    kept = {layer: sorted(draw.sample(range(n), max(1, n // 2))) for layer, n in widths.items()}
    smaller = shrink(model, kept, traced=traced, **image)
    x = torch.randn(2, 3, image["image_size"], image["image_size"], dtype=torch.float64)
    with torch.no_grad():
        for one, other in zip(outputs(smaller(x)), outputs(silenced(model, traced, kept)(x)), strict=True):
            assert (one - other).abs().max() <= 1e-7 * other.abs().max()  # in single precision rounding adds up
    if kept:
        save(smaller, path)
        assert torch.equal(outputs(load(model, path).eval()(x))[0], outputs(smaller(x))[0])


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in TORCHVISION]
)
def test_networks_of_torchvision_are_followed(name, tmp_path):
    check("torchvision", name, tmp_path / "network")


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("timm"), reason="timm is not installed")
@pytest.mark.parametrize("name", TIMM)
def test_networks_of_timm_are_followed(name, tmp_path):
    check("timm", name, tmp_path / "network")
