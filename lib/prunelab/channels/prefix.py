"""The layers of slimmable networks: each works on a prefix of its channels, however many it is given.

What a layer needs to know is how many channels it writes; how many it reads, it sees.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from prunelab.models.layers import PadChannels


class PrefixConv2d(nn.Conv2d):
    """A convolution of however many channels it is given into the first `n_out`; a depthwise one, of each by itself."""

    n_out: int

    def forward(self, x: Tensor) -> Tensor:
        n_in = x.shape[1]
        weight, groups = (self.weight[: self.n_out, :n_in], 1) if self.groups == 1 else (self.weight[:n_in], n_in)
        bias = None if self.bias is None else self.bias[: len(weight)]
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, groups)


class PrefixLinear(nn.Linear):
    """A linear layer of however many features it is given into the first `n_out`."""

    n_out: int

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(
            x, self.weight[: self.n_out, : x.shape[1]], None if self.bias is None else self.bias[: self.n_out]
        )


class PrefixBatchNorm2d(nn.BatchNorm2d):
    """Normalises however many channels it is given, by the first of its scales, shifts and statistics.

    A momentum of 0 leaves the statistics as they are; batches are not counted.
    """

    def forward(self, x: Tensor) -> Tensor:
        mean, var, weight, bias = (
            tensor[: x.shape[1]] for tensor in (self.running_mean, self.running_var, self.weight, self.bias)
        )
        return F.batch_norm(x, mean, var, weight, bias, self.training, self.momentum, self.eps)


class PrefixPadChannels(PadChannels):
    """Appends zeros to however many channels it is given, up to `n_out`; drops the last where these are fewer."""

    n_out: int

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, 0, 0, self.n_out - x.shape[1]))


PREFIX: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: PrefixConv2d,
    nn.Linear: PrefixLinear,
    nn.BatchNorm2d: PrefixBatchNorm2d,
    PadChannels: PrefixPadChannels,
}
_ORDINARY = {prefix: kind for kind, prefix in PREFIX.items()}


def ordinary(model: nn.Module) -> nn.Module:
    """Makes the slimmable layers of a network ordinary ones, of all their channels, in place; returns the network."""
    for module in model.modules():
        if type(module) in _ORDINARY:
            module.__class__ = _ORDINARY[type(module)]
    return model
