"""What the networks share: channel counts, and layers."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def scaled(n_channels: int, width: float) -> int:
    """Returns a channel count times a width factor, rounded, at least 1."""
    return max(1, round(n_channels * width))


def conv3x3(n_in: int, n_out: int, *, stride: int = 1) -> nn.Conv2d:
    """Builds a 3x3 convolution that keeps the image size (at stride 1), without bias: normalisation follows it."""
    return nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False)


def staged(channels: Iterable[int], *, n_blocks: int) -> list[tuple[int, int]]:
    """Lists channels and stride of each block, `n_blocks` a stage; stages but the first begin with a stride of 2."""
    return [(n_out, 2 if stage > 0 and i == 0 else 1) for stage, n_out in enumerate(channels) for i in range(n_blocks)]


class Select(nn.Module):
    """Picks the channels, out of all that it is fed, which the layer after it reads; at first every one.

    Source: Liu et al. 2017, arXiv:1708.06519, Sec. 3 ("channel selection layer").
    Differs: Holds indices as a buffer, where the official code counts a vector of ones and zeros as a parameter. Stands
        before the batch normalisation, not after it, so that the statistics of unused channels are not even computed.
    """

    indices: Tensor

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.register_buffer("indices", torch.arange(n_channels))

    def forward(self, x: Tensor) -> Tensor:
        # From the last of a view's dimensions, so that images stay channels_last in memory; from 1 they would not.
        return x.movedim(1, -1).index_select(-1, self.indices).movedim(-1, 1)


class PadChannels(nn.Module):
    """Appends `n_new` channels of zeros to images; a negative number drops the last ones instead."""

    def __init__(self, n_new: int) -> None:
        super().__init__()
        self.n_new = n_new

    def forward(self, x: Tensor) -> Tensor:
        # F.pad counts dimensions from the last: width, height, then channels.
        return F.pad(x, (0, 0, 0, 0, 0, self.n_new))


class Widths:
    """Numbers of output channels by layer name: those given, and for every other layer what its network proposes.

    A network asks about layers whose output channels no other layer shares; of layers whose output channels other
    layers share, it asks, if at all, about the first one in order of execution, which speaks for all. `names` lists
    what it asked about.
    """

    def __init__(self, given: Mapping[str, int]) -> None:
        self.given = given
        self.names: list[str] = []

    def get(self, name: str, default: int) -> int:
        """Returns the output channels of layer `name`.

        Raises:
            ValueError: The number given is not a whole one from 1 on.
        """
        self.names.append(name)
        n_channels = self.given.get(name, default)
        if not isinstance(n_channels, int) or n_channels < 1:
            raise ValueError(f"layer {name!r} must have a whole number of channels from 1 on, got {n_channels!r}")
        return n_channels

    def follow(self, name: str, first: str) -> None:
        """Raises ValueError if a number is given for layer `name`: it shares the channels of `first`."""
        if name in self.given:
            raise ValueError(f"layer {name!r} shares its channels with {first!r}, which speaks for both; name that one")

    def select(self, name: str, n_channels: int) -> tuple[Select, int]:
        """Gives layer `name`, which selects channels, and how many.

        These are all of `n_channels`, or the number given, k, spread evenly: i * n_channels // k.

        Raises:
            ValueError: As for `get`, or more channels are to be selected than there are.
        """
        n_selected = self.get(name, n_channels)
        if n_selected > n_channels:
            raise ValueError(f"layer {name!r} cannot select {n_selected} of {n_channels} channels")
        select = Select(n_channels)
        select.indices = torch.arange(n_selected) * n_channels // n_selected
        return select, n_selected


class PlainNet(nn.Module):
    """Stem with BN-ReLU, blocks that end in one, global average pooling, linear output; convolutions drawn for ReLU."""

    def __init__(self, conv: nn.Conv2d, blocks: Iterable[nn.Module], n_out: int, *, num_classes: int) -> None:
        """Args:
        conv: The stem.
        blocks: What follows it.
        n_out: Channels that the last block puts out.
        num_classes: Number of outputs.
        """
        super().__init__()
        self.conv, self.bn = conv, nn.BatchNorm2d(conv.out_channels)
        self.blocks, self.fc = nn.Sequential(*blocks), nn.Linear(n_out, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # torch's fan_out ignores groups; a depthwise filter has as many inputs as outputs.
                mode = "fan_in" if module.groups > 1 else "fan_out"
                nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn(self.conv(x)), inplace=True))
        return self.fc(x.mean(dim=(2, 3)))


class SelectiveNet(nn.Module):
    """Stem, pre-activation blocks, channel selection, BN-ReLU, global average pooling, linear output."""

    def __init__(
        self, conv: nn.Conv2d, blocks: Iterable[nn.Module], n_out: int, *, num_classes: int, widths: Widths
    ) -> None:
        """Args: as for `PlainNet`; `widths` may name `select`. Initialised by `init_for_slimming`."""
        super().__init__()
        self.conv, self.blocks = conv, nn.Sequential(*blocks)
        self.select, n_selected = widths.select("select", n_out)
        self.bn, self.fc = nn.BatchNorm2d(n_selected), nn.Linear(n_selected, num_classes)
        init_for_slimming(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.select(self.blocks(self.conv(x)))), inplace=True)
        return self.fc(x.mean(dim=(2, 3)))


def init_for_slimming(model: nn.Module) -> None:
    """Draws convolutions from N(0, 2 / (kernel area * output channels)), groups or not; sets scales of BN to 0.5.

    Source: Liu et al. 2017, arXiv:1708.06519, Sec. 4.2, for the scales; the authors' code for the convolutions.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 0.5)
