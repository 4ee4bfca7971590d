"""What the convolutional networks share."""

from torch import nn


def scaled(n_channels: int, width: float) -> int:
    """A channel count times a width factor, rounded, at least 1."""
    return max(1, round(n_channels * width))


def conv3x3(n_in: int, n_out: int, *, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps the image size (at stride 1), without bias: normalisation follows it."""
    return nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False)
