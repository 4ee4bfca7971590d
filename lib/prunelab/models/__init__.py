"""Networks by name: `build_model("resnet20", num_classes=10)`."""

from collections.abc import Callable, Mapping
from functools import partial

from torch import nn

from prunelab.models.densenet import DenseNet
from prunelab.models.layers import Widths
from prunelab.models.lenet import lenet_300_100
from prunelab.models.mobilenet import MobileNetV1
from prunelab.models.preresnet import PreResNet
from prunelab.models.resnet import ResNet
from prunelab.models.torchvision_models import torchvision_mobilenet, torchvision_resnet, torchvision_vgg
from prunelab.models.vgg import VGG
from prunelab.models.vit import VisionTransformer
from prunelab.models.wide_resnet import WideResNet

# For colour images, at width 1 only.
_TORCHVISION_VGGS = {"vgg11_bn": partial(torchvision_vgg, "A"), "vgg16_bn": partial(torchvision_vgg, "D")}
TORCHVISION_MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": partial(torchvision_resnet, "resnet18"),
    "resnet34": partial(torchvision_resnet, "resnet34"),
    "resnet50": partial(torchvision_resnet, "resnet50"),
    "mobilenet_v2": torchvision_mobilenet,
    **_TORCHVISION_VGGS,
}
# Every builder takes num_classes, in_channels, image_size, width and widths by keyword.
MODELS: dict[str, Callable[..., nn.Module]] = {
    "lenet_300_100": lenet_300_100,
    "resnet8": partial(ResNet, depth=8),
    "resnet20": partial(ResNet, depth=20),
    "resnet32": partial(ResNet, depth=32),
    "resnet56": partial(ResNet, depth=56),
    "resnet110": partial(ResNet, depth=110),
    "resnet8_wide_early": partial(ResNet, depth=8, stages=(32, 32, 64)),
    "resnet8_wide_late": partial(ResNet, depth=8, stages=(16, 32, 128)),
    "preresnet20": partial(PreResNet, depth=20, cardinality=1),
    "preresnet110": partial(PreResNet, depth=110, cardinality=1),
    "preresnet164": partial(PreResNet, depth=164, cardinality=1),
    "resnext20": partial(PreResNet, depth=20, cardinality=8),
    "vgg11": partial(VGG, depth=11, hidden=False),
    "vgg16": partial(VGG, depth=16, hidden=True),
    "vgg19": partial(VGG, depth=19, hidden=False),
    "densenet22": partial(DenseNet, depth=22, bottleneck=False),
    "densenet40": partial(DenseNet, depth=40, bottleneck=False),
    "densenet100_bc": partial(DenseNet, depth=100, bottleneck=True),
    "wrn22_2": partial(WideResNet, depth=22, widening=2),
    "mobilenet_v1": MobileNetV1,
    "vit_micro4": partial(VisionTransformer, dim=96, depth=4, n_heads=3, patch=4),
    "vit_s4": partial(VisionTransformer, dim=384, depth=12, n_heads=6, patch=4),
    "vit_s16": partial(VisionTransformer, dim=384, depth=12, n_heads=6, patch=16),
    "vit_b16": partial(VisionTransformer, dim=768, depth=12, n_heads=12, patch=16),
    **TORCHVISION_MODELS,
}


def build_model(
    name: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    image_size: int = 32,
    width: float = 1.0,
    widths: Mapping[str, int] | None = None,
) -> nn.Module:
    """Builds a freshly initialised network, on the CPU; the random numbers come from torch's global generator.

    Args:
        name: A key of `MODELS`.
        num_classes: Number of outputs.
        in_channels: 3 for colour, 1 for grey images.
        image_size: Height and width of the images in pixels; LeNet's inputs depend on it, the strides of MobileNets and
            the stems of torchvision's ResNets, which are others from 64 pixels on.
        width: Factor on the number of channels (or hidden units) of every layer but the output.
        widths: Output channels of layers by name (as in `named_modules`), in place of those that `width` gives, also
            more. Of layers whose output channels other layers share, the first one speaks for all: in ResNets, not
            the pre-activation ones, and in MobileNetV2. A selection of channels that is not named takes all.
    Raises:
        ValueError: Unknown name, a width that leaves no channel, or widths that the network cannot have.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; there are {', '.join(MODELS)}")
    if width <= 0:
        raise ValueError(f"width must be above 0, got {width}")
    if name in _TORCHVISION_VGGS and (in_channels != 3 or width != 1.0):
        raise ValueError(f"{name} takes 3 channels at width 1, got {in_channels} channels and width {width}")
    layers = Widths(widths or {})
    model = MODELS[name](
        num_classes=num_classes, in_channels=in_channels, image_size=image_size, width=width, widths=layers
    )
    if unknown := sorted(layers.given.keys() - layers.names):
        raise ValueError(
            f"{name} has no layers {', '.join(unknown)} that can be given a width; there are {', '.join(layers.names)}"
        )
    return model
