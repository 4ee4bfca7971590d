"""Networks that others wrote, torchvision's and timm's: what of them can be followed and removed, and how fast."""

import copy
import random
import re
import statistics
from collections import Counter
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from prunelab.bench.plans import seconds
from prunelab.channels.filters import keep_largest, l1_scores, uniform_counts
from prunelab.channels.known import UNKNOWN
from prunelab.channels.names import NORMS, Trace
from prunelab.channels.surgery import shrink
from prunelab.channels.trace import trace

TIMED = {"resnet50": "ResNet-50", "mobilenet_v2": "MobileNetV2", "densenet121": "DenseNet-121", "vgg16": "VGG-16"}
SEGMENTING = ("deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50", "fcn_resnet50", "lraspp_mobilenet_v3_large")
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
_ONE_SIZE = ("vit", "deit", "swin", "mixer", "maxvit")


def names() -> list[tuple[str, str]]:
    """Lists library and network: all that torchvision classifies with, `SEGMENTING`, and `TIMM` where timm is there."""
    from torchvision import models

    torchvision = (*models.list_models(module=models), *SEGMENTING)
    return [("torchvision", name) for name in torchvision] + [("timm", name) for name in TIMM if find_spec("timm")]


def network(library: str, name: str) -> tuple[nn.Module, dict]:
    """Builds a network in double precision, as if it had seen images, and says which images are for it."""
    torch.manual_seed(0)
    if library == "timm":
        import timm

        model = timm.create_model(name, pretrained=False)
    else:
        from torchvision.models import get_model

        others = {"weights_backbone": None} if name in SEGMENTING else {}
        others |= {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        model = get_model(name, weights=None, **others)
    for module in model.modules():
        if isinstance(module, NORMS):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 1.5)
    for parameter in model.parameters():
        if parameter.abs().max() < 1e-3:  # a scale or a head that starts at next to nothing
            nn.init.normal_(parameter, std=0.1)
    size = 224 if name.startswith(_ONE_SIZE) else 299 if name.startswith("inception") else 96
    return model.double().eval(), {"in_channels": 3, "image_size": size}


@torch.no_grad()
def compared(model: nn.Module, *, in_channels: int, image_size: int) -> tuple[dict, nn.Module]:
    """Takes a random half out of everything that may lose channels or heads, and compares the outputs.

    Args:
        model: Becomes one in which nobody reads what goes.
        in_channels: Channels of the images.
        image_size: Their height and width in pixels.
    Returns:
        A row with `parameters`, `layers` and `heads` (how many layers and attentions may lose some), `left` (the share
        of the parameters that stays), `difference` (the largest one of outputs, over the largest output) and `why`,
        where nothing may go; and the smaller network.
    Raises:
        ValueError: It is refused; see `trace` and `shrink`.
    """
    image, draw = {"in_channels": in_channels, "image_size": image_size}, random.Random(0)
    traced = trace(model, **image)
    widths = traced.widths | traced.heads
    kept = {name: sorted(draw.sample(range(n), max(1, n // 2))) for name, n in widths.items()}
    smaller = shrink(model, kept, traced=traced, **image)
    sizes = [sum(parameter.numel() for parameter in each.parameters()) for each in (model, smaller)]
    _silence(model, traced, kept)
    images = torch.randn(2, in_channels, image_size, image_size, dtype=torch.float64)
    pairs = zip(outputs(smaller(images)), outputs(model(images)), strict=True)
    row = {
        "parameters": sizes[0],
        "layers": len(traced.widths),
        "heads": len(traced.heads),
        "left": round(sizes[1] / sizes[0], 3),
        "difference": max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs),
        "why": "" if kept else _why(model, traced),
    }
    return row, smaller


def outputs(result: object) -> list[Tensor]:
    """Returns the tensors that a network gives, one or several."""
    several = result.values() if isinstance(result, dict) else result if isinstance(result, tuple) else [result]
    return [tensor for tensor in several if tensor is not None]


def surgery_ratio(name: str) -> float:
    """Times trace, choice and surgery at half of the channels, over Torch-Pruning's, which prunes a copy likewise."""
    import torch_pruning
    from torchvision.models import get_model

    model = get_model(name).eval()
    image = {"in_channels": 3, "image_size": 224}

    def ours() -> None:
        traced = trace(model, **image)
        kept = keep_largest(l1_scores(model, traced.widths), uniform_counts(traced.widths, density=0.5))
        shrink(model, kept, traced=traced, **image)

    def theirs() -> None:
        copied = copy.deepcopy(model)
        torch_pruning.pruner.MagnitudePruner(
            copied,
            torch.randn(1, 3, 224, 224),
            importance=torch_pruning.importance.MagnitudeImportance(p=1),
            pruning_ratio=0.5,
            ignored_layers=[layer for layer in copied.modules() if getattr(layer, "out_features", None) == 1000],
        ).step()

    for work in (ours, theirs):  # what is set up once
        work()
    return statistics.median(seconds(ours) / seconds(theirs) for _ in range(3))


def _silence(model: nn.Module, traced: Trace, kept: dict[str, list[int]]) -> None:
    """Takes from all that read channels the weights for those that go."""
    written = {name: layer.writes for name, layer in traced.layers.items()} | traced.attentions
    gone = {
        channel
        for name, stays in kept.items()
        for place, channel in enumerate(traced.channels(written[name]))
        if place not in stays
    }
    stays = traced.staying(gone)
    for layer in traced.layers.values():
        if layer.makes_channels and isinstance(layer.module, nn.Conv2d | nn.Linear) and not layer.is_grouped:
            layer.module.weight[:, ~stays[layer.reads]] = 0.0


def _why(model: nn.Module, traced: Trace) -> str:
    """The most frequent reason why what a convolution reads, or else what it writes, cannot go; without the place."""
    why_fixed, reasons = traced.why_fixed, Counter()
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            writes, reads, *_ = (traced.channel(int(names[0])) for names in traced.axes[f"{name}.weight"])
            why = (why_fixed.get(channel, UNKNOWN) for channel in (reads, writes))
            shared = "several layers write them together, or convolutions of several groups"
            reasons[re.sub(r" in '.*?'", "", next((each for each in why if each != UNKNOWN), shared))] += 1
    return reasons.most_common(1)[0][0]
