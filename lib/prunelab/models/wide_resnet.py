"""Wide residual networks, as RigL's CIFAR-10 experiments use them.

Source: Zagoruyko & Komodakis 2016, arXiv:1605.07146; details (where the projection is fed from, dropout, Glorot
initialisation) as in google-research/rigl, cifar_resnet.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from prunelab.models.layers import Widths, conv3x3, scaled, staged

DROPOUT = 0.3


class PreactivationBlock(nn.Module):
    """BN-ReLU-conv twice, with dropout between; a 1x1 projection only where the channel count changes."""

    def __init__(self, n_in: int, n_inner: int, n_out: int, *, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(n_in), conv3x3(n_in, n_inner, stride=stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(n_inner), conv3x3(n_inner, n_out)
        self.dropout = nn.Dropout(DROPOUT)
        needs_projection = n_in != n_out or stride != 1
        self.projection = nn.Conv2d(n_in, n_out, 1, stride=stride, bias=False) if needs_projection else None

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        out = self.conv1(activated)
        out = self.conv2(self.dropout(F.relu(self.bn2(out))))
        return out + (x if self.projection is None else self.projection(activated))


class WideResNet(nn.Module):
    """Stem of 16 channels, three stages of 16, 32 and 64 times `widening`, average pooling, linear output.

    Args:
        depth: Layers with weights, projections aside, 6 n + 4.
        widening: Factor on the channels of the stages; `width` scales every layer on top of it.
    """

    def __init__(
        self,
        *,
        depth: int,
        widening: int,
        num_classes: int,
        in_channels: int,
        image_size: int,
        width: float,
        widths: Widths,
    ) -> None:
        super().__init__()
        n_in = widths.get("conv", scaled(16, width))
        self.conv = conv3x3(in_channels, n_in)
        blocks = []
        channels = [scaled(n * widening, width) for n in (16, 32, 64)]
        for n_out, stride in staged(channels, n_blocks=(depth - 4) // 6):
            n_inner = widths.get(f"blocks.{len(blocks)}.conv1", n_out)
            blocks.append(PreactivationBlock(n_in, n_inner, n_out, stride=stride))
            n_in = n_out
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(n_in)
        self.fc = nn.Linear(n_in, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.blocks(self.conv(x))))
        return self.fc(x.mean(dim=(2, 3)))
