"""LeNet-300-100: two hidden layers on flattened pixels.

Source: LeCun et al. 1998; as the multi-layer perceptron of Evci et al. 2020 and Frankle & Carbin 2019.
"""

from torch import nn

from prunelab.models.layers import Widths, scaled


def lenet_300_100(*, num_classes: int, in_channels: int, image_size: int, width: float, widths: Widths) -> nn.Module:
    """Builds a fully connected 300-100 network; `width` scales both hidden layers."""
    hidden_1, hidden_2 = widths.get("1", scaled(300, width)), widths.get("3", scaled(100, width))
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(in_channels * image_size**2, hidden_1),
        nn.ReLU(),
        nn.Linear(hidden_1, hidden_2),
        nn.ReLU(),
        nn.Linear(hidden_2, num_classes),
    )
