"""Networks by name: `build_model("resnet20", num_classes=10)`."""

from collections.abc import Callable

from torch import nn

from prunelab.models.lenet import lenet_300_100
from prunelab.models.mobilenet import mobilenet_v1
from prunelab.models.resnet import resnet, resnet50
from prunelab.models.wide_resnet import wide_resnet

# Every builder takes num_classes, in_channels, image_size and width by keyword.
MODELS: dict[str, Callable[..., nn.Module]] = {
    "lenet_300_100": lenet_300_100,
    "resnet8": resnet(depth=8),
    "resnet20": resnet(depth=20),
    "resnet32": resnet(depth=32),
    "resnet56": resnet(depth=56),
    "resnet50": resnet50,
    "wrn22_2": wide_resnet(depth=22, widening=2),
    "mobilenet_v1": mobilenet_v1,
}


def build_model(
    name: str, *, num_classes: int, in_channels: int = 3, image_size: int = 32, width: float = 1.0
) -> nn.Module:
    """A freshly initialised network, on the CPU; the random numbers come from torch's global generator.

    Args:
        name: A key of `MODELS`.
        num_classes: Number of outputs.
        in_channels: 3 for colour, 1 for grey images.
        image_size: Height and width of the images in pixels; only LeNet's inputs and MobileNet's strides depend on it.
        width: Factor on the number of channels (or hidden units) of every layer but the output.
    Raises:
        ValueError: Unknown name, or a width that leaves no channel.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; there are {', '.join(MODELS)}")
    if width <= 0:
        raise ValueError(f"width must be above 0, got {width}")
    return MODELS[name](num_classes=num_classes, in_channels=in_channels, image_size=image_size, width=width)
