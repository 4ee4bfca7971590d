"""torchvision's networks for colour images of ImageNet's kind, at single widths.

Resized layers are initialised as torchvision does. Its ResNets are of version 1.5: the 3x3 convolution has the stride.
"""

from torch import nn

from prunelab.models.layers import Widths


def torchvision_resnet(
    name: str, *, num_classes: int, in_channels: int, image_size: int, width: float, widths: Widths
) -> nn.Module:
    """Builds torchvision's ResNet of that name; all convolutions of a block but its last have a width."""
    from torchvision import models  # here: it takes seconds, and most networks need none of it

    model = models.get_model(name, num_classes=num_classes)
    for block_name, block in model.named_modules():
        if isinstance(block, models.resnet.BasicBlock | models.resnet.Bottleneck):
            convs = ("conv1", "conv2") if hasattr(block, "conv3") else ("conv1",)
            _resize(block, [widths.get(f"{block_name}.{conv}", block.conv1.out_channels) for conv in convs])
    return model


def _resize(block: nn.Module, inner: list[int]) -> None:
    """Gives the convolutions of a residual block, all but the last, `inner` output channels."""
    convs = [getattr(block, f"conv{i}") for i in range(1, len(inner) + 2)]
    ins, outs = [convs[0].in_channels, *inner], [*inner, convs[-1].out_channels]
    for i, (conv, n_in, n_out) in enumerate(zip(convs, ins, outs, strict=True), start=1):
        if (n_in, n_out) != (conv.in_channels, conv.out_channels):
            resized = nn.Conv2d(n_in, n_out, conv.kernel_size, conv.stride, conv.padding, bias=False)
            nn.init.kaiming_normal_(resized.weight, mode="fan_out", nonlinearity="relu")
            setattr(block, f"conv{i}", resized)
            setattr(block, f"bn{i}", nn.BatchNorm2d(n_out))


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
    n_features, first = layers[-2] * 7 * 7, model.classifier[0]
    if n_features != first.in_features:
        model.classifier[0] = nn.Linear(n_features, first.out_features)
        nn.init.normal_(model.classifier[0].weight, std=0.01)
        nn.init.zeros_(model.classifier[0].bias)
    return model
