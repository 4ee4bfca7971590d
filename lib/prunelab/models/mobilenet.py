"""MobileNet-v1: each convolution is split into one over the image and one across the channels.

Source: Howard et al. 2017, arXiv:1704.04861, Table 1, whose last stride of 2 is a misprint: the map stays 7x7.
Differs: Below 64 pixels the first two halvings, that of the stem being one, are left out: the last feature map is 4x4
    at 32 pixels and 2x2 at 16, where the paper's strides would leave a single pixel. Scaled channel counts are rounded
    to whole channels, by RigL's code to multiples of 8.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from prunelab.models.layers import PlainNet, Widths, conv3x3, scaled

CHANNELS = (32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024)  # of the stem, then of each block
HALVINGS = (0, 2, 4, 6, 12)  # layers of stride 2; the stem is 0


class SeparableBlock(nn.Module):
    """A 3x3 convolution of each channel by itself, then a 1x1 convolution across channels; BN-ReLU after both."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(n_in, n_in, 3, stride=stride, padding=1, groups=n_in, bias=False)
        self.bn1 = nn.BatchNorm2d(n_in)
        self.pointwise, self.bn2 = nn.Conv2d(n_in, n_out, 1, bias=False), nn.BatchNorm2d(n_out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.depthwise(x)), inplace=True)
        return F.relu(self.bn2(self.pointwise(x)), inplace=True)


class MobileNetV1(PlainNet):
    """13 separable blocks, for images from 8 pixels."""

    def __init__(self, *, num_classes: int, in_channels: int, image_size: int, width: float, widths: Widths) -> None:
        names = ["conv", *(f"blocks.{block}.pointwise" for block in range(len(CHANNELS) - 1))]
        channels = [widths.get(name, scaled(n, width)) for name, n in zip(names, CHANNELS, strict=True)]
        halvings = HALVINGS if image_size >= 64 else HALVINGS[2:]
        strides = [2 if layer in halvings else 1 for layer in range(len(channels))]
        conv = conv3x3(in_channels, channels[0], stride=strides[0])
        blocks = map(SeparableBlock, channels[:-1], channels[1:], strides[1:])
        super().__init__(conv, blocks, channels[-1], num_classes=num_classes)
