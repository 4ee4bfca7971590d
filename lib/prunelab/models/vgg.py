"""VGG networks for small images (depth 11, 16, 19), with batch normalisation.

Source: Simonyan & Zisserman 2014, arXiv:1409.1556, Table 1; for small images as in the code of Liu et al. 2019,
arXiv:1810.05270: no bias beside batch normalisation, no pooling after the last stage, one linear layer at the end
(Network Slimming), or two (L1-norm pruning, depth 16 only).
Differs: The last maps are averaged whole, which are 2x2 at 32 pixels as there. Pooling rounds sizes up, so that it
    leaves a single pixel as it is and images may be small.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from prunelab.models.layers import Widths, conv3x3, init_for_slimming, scaled

CHANNELS = (64, 128, 256, 512, 512)  # of each stage
N_CONVS = {11: (1, 1, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}  # in each stage, by depth


class ConvBlock(nn.Module):
    """Conv-BN-ReLU, on 2x2 maxima of the input where a stage begins."""

    def __init__(self, n_in: int, n_out: int, *, halve: bool) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2, ceil_mode=True) if halve else nn.Identity()
        self.conv, self.bn = conv3x3(n_in, n_out), nn.BatchNorm2d(n_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(self.pool(x))), inplace=True)


class VGG(nn.Module):
    """Five stages of 3x3 convolutions, global average pooling, perhaps a hidden layer, linear output.

    Args:
        depth: 11, 16 or 19 layers, of which here fewer are linear.
        hidden: Whether a layer of 512 units stands before the output.
    """

    def __init__(
        self,
        *,
        depth: int,
        hidden: bool,
        num_classes: int,
        in_channels: int,
        image_size: int,
        width: float,
        widths: Widths,
    ) -> None:
        super().__init__()
        blocks, n_in = [], in_channels
        for stage, (n_channels, n_convs) in enumerate(zip(CHANNELS, N_CONVS[depth], strict=True)):
            for block in range(n_convs):
                n_out = widths.get(f"blocks.{len(blocks)}.conv", scaled(n_channels, width))
                blocks.append(ConvBlock(n_in, n_out, halve=stage > 0 and block == 0))
                n_in = n_out
        self.blocks = nn.Sequential(*blocks)
        self.hidden = nn.Sequential()
        if hidden:
            n_hidden = widths.get("hidden.0", scaled(512, width))
            self.hidden.extend([nn.Linear(n_in, n_hidden), nn.BatchNorm1d(n_hidden), nn.ReLU(inplace=True)])
            n_in = n_hidden
        self.fc = nn.Linear(n_in, num_classes)
        init_for_slimming(self)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.hidden(self.blocks(x).mean(dim=(2, 3))))
