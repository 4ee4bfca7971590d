"""ResNets for small images (depth 8, 20, 32, 56, 110).

Source: He et al. 2016, arXiv:1512.03385, Sec. 4.2: three stages of 16, 32 and 64 channels, parameter-free shortcuts
(option A): subsampled, padded with zeros. Where a later stage is narrower, they drop the last channels.
Differs: In the code of Liu et al. 2019, arXiv:1810.05270, such a shortcut pads means of 2x2 pixels, detached (`x.data`
    in `downsample_basic_block` of `l1-norm-pruning`), and no gradient flows back through it; here the gradient does.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from prunelab.models.layers import PadChannels, PlainNet, Widths, conv3x3, scaled, staged


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around which the input is passed on, subsampled and zero-padded where shapes change."""

    def __init__(self, n_in: int, n_inner: int, n_out: int, *, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3x3(n_in, n_inner, stride=stride), nn.BatchNorm2d(n_inner)
        self.conv2, self.bn2 = conv3x3(n_inner, n_out), nn.BatchNorm2d(n_out)
        self.stride, self.pad = stride, PadChannels(n_out - n_in)

    def shortcut(self, x: Tensor) -> Tensor:
        if self.stride == 1 and self.pad.n_new == 0:
            return x
        return self.pad(x[:, :, :: self.stride, :: self.stride])

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x), inplace=True)


class ResNet(PlainNet):
    """Three stages of basic blocks, for images from 8 pixels.

    Args:
        depth: Layers with weights, 6 n + 2.
        stages: Channels of each at width 1. The first layer that writes a stage speaks for it: the stem, `conv`, for
            the first stage, and `conv2` of the first block for the others.
    """

    def __init__(
        self,
        *,
        depth: int,
        stages: tuple[int, ...] = (16, 32, 64),
        num_classes: int,
        in_channels: int,
        image_size: int,
        width: float,
        widths: Widths,
    ) -> None:
        channels = [scaled(n, width) for n in stages]
        first, n_out = "conv", widths.get("conv", channels[0])
        conv, blocks = conv3x3(in_channels, n_out), []
        for n, stride in staged(channels, n_blocks=(depth - 2) // 6):
            name, n_in = f"blocks.{len(blocks)}", n_out
            n_inner = widths.get(f"{name}.conv1", n)
            if stride > 1:  # a stage begins
                first, n_out = f"{name}.conv2", widths.get(f"{name}.conv2", n)
            else:
                widths.follow(f"{name}.conv2", first)
            blocks.append(BasicBlock(n_in, n_inner, n_out, stride=stride))
        super().__init__(conv, blocks, n_out, num_classes=num_classes)
