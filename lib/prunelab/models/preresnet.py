"""Pre-activation ResNets for small images whose bottleneck blocks select the channels they read; and a ResNeXt of them.

Source: He et al. 2016, arXiv:1603.05027; channel selection as in Network Slimming, Liu et al. 2017, arXiv:1708.06519,
and its authors' code; grouped convolutions, Xie et al. 2017, arXiv:1611.05431, as Huang & Wang 2018, arXiv:1707.01213,
prune them.
Differs: `layers.Select` stands before the batch normalisation. The ResNeXt too is a pre-activation network whose blocks
    put out four times the channels of their 3x3 convolution; those of Huang & Wang normalise last and put out twice.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from prunelab.models.layers import SelectiveNet, Widths, conv3x3, scaled, staged

EXPANSION = 4


class Bottleneck(nn.Module):
    """BN-ReLU-conv three times: 1x1, 3x3, 1x1; a projection of the raw input only where its shape changes.

    With groups, `conv1` is as wide as `conv2`, by a number of whole groups, which keep their size.
    """

    def __init__(self, n_in: int, n_inner: int, *, stride: int, cardinality: int, name: str, widths: Widths) -> None:
        super().__init__()
        n_out = EXPANSION * n_inner
        self.select, n_selected = widths.select(f"{name}.select", n_in)
        n_2 = widths.get(f"{name}.conv2", n_inner)
        if cardinality == 1:
            n_1, n_groups = widths.get(f"{name}.conv1", n_inner), 1
        else:
            n_per_group = n_inner // cardinality
            if n_2 % n_per_group:
                raise ValueError(f"layer '{name}.conv2' must keep whole groups of {n_per_group} channels, got {n_2}")
            n_1, n_groups = n_2, n_2 // n_per_group
        self.bn1, self.conv1 = nn.BatchNorm2d(n_selected), nn.Conv2d(n_selected, n_1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_1)
        self.conv2 = nn.Conv2d(n_1, n_2, 3, stride=stride, padding=1, groups=n_groups, bias=False)
        self.bn3, self.conv3 = nn.BatchNorm2d(n_2), nn.Conv2d(n_2, n_out, 1, bias=False)
        needs_projection = n_in != n_out or stride != 1
        self.projection = nn.Conv2d(n_in, n_out, 1, stride=stride, bias=False) if needs_projection else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.relu(self.bn1(self.select(x)), inplace=True))
        out = self.conv2(F.relu(self.bn2(out), inplace=True))
        out = self.conv3(F.relu(self.bn3(out), inplace=True))
        return out + (x if self.projection is None else self.projection(x))


class PreResNet(SelectiveNet):
    """Three stages of bottleneck blocks, for images from 8 pixels.

    Args:
        depth: Layers with weights, projections aside, 9 n + 2.
        cardinality: Groups of each 3x3 convolution.
    """

    def __init__(
        self,
        *,
        depth: int,
        cardinality: int,
        num_classes: int,
        in_channels: int,
        image_size: int,
        width: float,
        widths: Widths,
    ) -> None:
        n_in = widths.get("conv", scaled(16, width))
        conv, blocks = conv3x3(in_channels, n_in), []
        channels = [cardinality * scaled(n // cardinality, width) for n in (16, 32, 64)]
        for n_inner, stride in staged(channels, n_blocks=(depth - 2) // 9):
            name = f"blocks.{len(blocks)}"
            blocks.append(Bottleneck(n_in, n_inner, stride=stride, cardinality=cardinality, name=name, widths=widths))
            n_in = EXPANSION * n_inner
        super().__init__(conv, blocks, n_in, num_classes=num_classes, widths=widths)
