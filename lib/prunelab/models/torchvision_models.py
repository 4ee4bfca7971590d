"""torchvision's networks for images of ImageNet's kind, at widths of their own; most for small images as well.

Resized layers are initialised as torchvision does. Its ResNets are of version 1.5: the 3x3 convolution has the stride.
"""

from collections.abc import Iterable
from itertools import pairwise

from torch import nn

from prunelab.models.layers import Widths, scaled

_FIRST_BLOCKS = (1, 2, 4, 7, 11, 14, 17)  # of each stage of MobileNetV2


def torchvision_resnet(
    name: str, *, num_classes: int, in_channels: int, image_size: int, width: float, widths: Widths
) -> nn.Module:
    """Builds torchvision's ResNet of that name.

    The first layer that writes a stage speaks for it: the last convolution of its first block; in ResNet-18 and -34 the
    stem, `conv1`, for `layer1`.

    Differs: Below 64 pixels the stem is a 3x3 convolution of stride 1, and no max pooling follows it.
    """
    from torchvision import models  # here: it takes seconds, and most networks need none of it

    model = models.get_model(name, num_classes=num_classes)
    if image_size < 64:
        model.conv1.kernel_size, model.conv1.stride, model.conv1.padding = (3, 3), (1, 1), (1, 1)
        model.maxpool = nn.Identity()
    first, n_out = "conv1", widths.get("conv1", scaled(model.conv1.out_channels, width))
    _resize([(model.conv1, model.bn1)], [in_channels, n_out])
    for block_name, block in model.named_modules():
        if not isinstance(block, models.resnet.BasicBlock | models.resnet.Bottleneck):
            continue
        numbers = (1, 2, 3) if hasattr(block, "conv3") else (1, 2)
        layers = [(getattr(block, f"conv{i}"), getattr(block, f"bn{i}")) for i in numbers]
        *names, last = [f"{block_name}.conv{i}" for i in numbers]
        *defaults, default = [scaled(conv.out_channels, width) for conv, _ in layers]
        n_in, n_inner = n_out, [*map(widths.get, names, defaults)]
        if block.downsample is None:
            widths.follow(last, first)
        else:
            first, n_out = last, widths.get(last, default)
            widths.follow(f"{block_name}.downsample.0", first)
            _resize([block.downsample], [n_in, n_out])
        _resize(layers, [n_in, *n_inner, n_out])
    if n_out != model.fc.in_features:
        model.fc = nn.Linear(n_out, num_classes)
    return model


def torchvision_mobilenet(
    *, num_classes: int, in_channels: int, image_size: int, width: float, widths: Widths
) -> nn.Module:
    """Builds torchvision's MobileNetV2; `width` is its `width_mult`, which rounds to multiples of 8 channels.

    The first layer that writes a stage speaks for it, the projection of its first block; the expansion of a block, or
    the stem for the first block, speaks for the depthwise convolution.

    Source: Sandler et al. 2018, arXiv:1801.04381, Table 2.
    Differs: Below 64 pixels, the stem and `features.2` have stride 1. Only blocks within a stage have a shortcut; in
        torchvision also the first one of a stage where its stride is 1 and a small width makes its ends equal.
    """
    from torchvision.models import mobilenetv2  # here: it takes seconds, and most networks need none of it

    model = mobilenetv2.mobilenet_v2(num_classes=num_classes, width_mult=width)
    stem, *blocks, head = model.features
    if image_size < 64:
        stem[0].stride = blocks[1].conv[1][0].stride = (1, 1)
    first, n_out = "features.0.0", widths.get("features.0.0", stem[0].out_channels)
    _resize([stem], [in_channels, n_out])
    for index, block in enumerate(blocks, start=1):
        name, n_in = f"features.{index}.conv", n_out
        *inner, project, norm = block.conv
        expands, last = len(inner) == 2, f"{name}.{len(inner)}"
        n_inner = widths.get(f"{name}.0.0", inner[0][0].out_channels) if expands else n_in
        widths.follow(f"{name}.{len(inner) - 1}.0", f"{name}.0.0" if expands else first)
        block.use_res_connect = index not in _FIRST_BLOCKS
        if block.use_res_connect:
            widths.follow(last, first)
        else:
            first, n_out = last, widths.get(last, project.out_channels)
        _resize([*inner, (project, norm)], [n_in, *(n_inner for _ in inner), n_out])
    n_in, n_out = n_out, widths.get("features.18.0", head[0].out_channels)
    _resize([head], [n_in, n_out])
    _resize_linear(model.classifier, 1, n_out)
    return model


def _resize(layers: Iterable[Iterable[nn.Module]], channels: list[int]) -> None:
    """Gives convolutions that follow each other, each with its normalisation, `channels` between them; in place.

    A depthwise one stays depthwise. Those that have the right size keep their values.
    """
    for (conv, norm, *_), (n_in, n_out) in zip(layers, pairwise(channels), strict=True):
        groups = n_out if conv.groups > 1 else 1
        if conv.weight.shape != (n_out, n_in // groups, *conv.kernel_size):
            conv.__init__(n_in, n_out, conv.kernel_size, conv.stride, conv.padding, groups=groups, bias=False)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            norm.__init__(n_out)


def _resize_linear(layers: nn.Sequential, index: int, n_in: int) -> None:
    """Gives one linear layer `n_in` inputs, unless it has as many."""
    if n_in != layers[index].in_features:
        layers[index] = nn.Linear(n_in, layers[index].out_features)
        nn.init.normal_(layers[index].weight, std=0.01)
        nn.init.zeros_(layers[index].bias)


def torchvision_vgg(
    configuration: str, *, num_classes: int, in_channels: int, image_size: int, width: float, widths: Widths
) -> nn.Module:
    """Builds torchvision's VGG network with batch normalisation; `configuration` is its letter in Table 1.

    Source: Simonyan & Zisserman 2014, arXiv:1409.1556.
    """
    from torchvision.models import vgg  # here: it takes seconds, and most networks need none of it

    layers, index = [], 0
    for layer in vgg.cfgs[configuration]:
        layers.append(layer if layer == "M" else widths.get(f"features.{index}", layer))
        index += 1 if layer == "M" else 3  # batch normalisation and ReLU follow a convolution
    model = vgg.VGG(vgg.make_layers(layers, batch_norm=True), num_classes=num_classes)
    _resize_linear(model.classifier, 0, layers[-2] * 7 * 7)
    return model
