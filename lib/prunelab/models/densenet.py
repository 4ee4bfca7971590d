"""DenseNets for small images: each layer appends its few new channels to all that came before.

Source: Huang et al. 2017, arXiv:1608.06993, Sec. 3 and 4.2; stem of twice the growth and channel selection as in the
code of Network Slimming, Liu et al. 2017, arXiv:1708.06519.
Differs: `layers.Select` stands before the batch normalisation. No dropout. Batch normalisation is initialised as there,
    to 0.5, by the paper to 1. The network of 100 layers is the paper's DenseNet-BC, of 0.77 million parameters; in the
    code of Liu et al. 2019, arXiv:1810.05270, DenseNet-BC-100 halves channels but has no bottlenecks, and 4.07 million.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunelab.models.layers import SelectiveNet, Widths, conv3x3, scaled


class DenseLayer(nn.Module):
    """BN-ReLU-conv on selected channels; the input and the new channels after it are put out."""

    def __init__(self, n_in: int, growth: int, *, name: str, widths: Widths) -> None:
        super().__init__()
        self.select, n_selected = widths.select(f"{name}.select", n_in)
        n_new = widths.get(f"{name}.conv", growth)
        self.bn, self.conv = nn.BatchNorm2d(n_selected), conv3x3(n_selected, n_new)
        self.n_out = n_in + n_new

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.bn(self.select(x)), inplace=True))], dim=1)


class BottleneckLayer(nn.Module):
    """A dense layer whose 3x3 convolution reads four times `growth` channels, made by a 1x1 convolution."""

    def __init__(self, n_in: int, growth: int, *, name: str, widths: Widths) -> None:
        super().__init__()
        self.select, n_selected = widths.select(f"{name}.select", n_in)
        n_inner, n_new = widths.get(f"{name}.conv1", 4 * growth), widths.get(f"{name}.conv2", growth)
        self.bn1, self.conv1 = nn.BatchNorm2d(n_selected), nn.Conv2d(n_selected, n_inner, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(n_inner), conv3x3(n_inner, n_new)
        self.n_out = n_in + n_new

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv1(F.relu(self.bn1(self.select(x)), inplace=True))
        return torch.cat([x, self.conv2(F.relu(self.bn2(new), inplace=True))], dim=1)


class Transition(nn.Module):
    """BN-ReLU-conv, 1x1, on selected channels, then 2x2 means."""

    def __init__(self, n_in: int, n_out: int, *, name: str, widths: Widths) -> None:
        super().__init__()
        self.select, n_selected = widths.select(f"{name}.select", n_in)
        self.n_out = widths.get(f"{name}.conv", n_out)
        self.bn, self.conv = nn.BatchNorm2d(n_selected), nn.Conv2d(n_selected, self.n_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.bn(self.select(x)), inplace=True)), 2)


class DenseNet(SelectiveNet):
    """Three stages of dense layers of growth 12, transitions between them; for images from 8 pixels.

    Args:
        depth: Layers with weights: 3 n + 4, or 6 n + 4 with bottlenecks.
        bottleneck: Whether it is a DenseNet-BC: a 1x1 convolution in each layer, channels halved by each transition.
        width: Scales growth and stem.
    """

    def __init__(
        self,
        *,
        depth: int,
        bottleneck: bool,
        num_classes: int,
        in_channels: int,
        image_size: int,
        width: float,
        widths: Widths,
    ) -> None:
        layer, n_convs, compression = (BottleneckLayer, 2, 0.5) if bottleneck else (DenseLayer, 1, 1.0)
        growth = scaled(12, width)
        n_default = 2 * growth  # channels so far, were no widths given: a transition that is not named keeps its own
        n_in = widths.get("conv", n_default)
        conv, blocks = conv3x3(in_channels, n_in), []
        for stage in range(3):
            if stage > 0:
                n_default = int(n_default * compression)
                blocks.append(Transition(n_in, n_default, name=f"blocks.{len(blocks)}", widths=widths))
                n_in = blocks[-1].n_out
            for _ in range((depth - 4) // (3 * n_convs)):
                blocks.append(layer(n_in, growth, name=f"blocks.{len(blocks)}", widths=widths))
                n_in = blocks[-1].n_out
                n_default += growth
        super().__init__(conv, blocks, n_in, num_classes=num_classes, widths=widths)
