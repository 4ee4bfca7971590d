"""Feature reconstruction: a LASSO chooses channels, least squares refits the layer that reads them.

Source: He et al. 2017, arXiv:1707.06168, Sec. 3.1; channel-pruning of the authors.
"""

import copy
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunelab.channels.readers import Reader, check_readers, filters_by_channel, least_squares, visit_readers
from prunelab.masks import largest


def choose(weight: Tensor, *, gram: Tensor, cross: Tensor, count: int) -> Tensor:
    """Returns the first `count` channels that a LASSO takes to rebuild a layer's outputs, one factor a channel.

    The path of solutions is followed from the strongest penalty, where no channel is used, to the first solution with
    `count` of them. Where it ends before, the first of the unused channels fill up: they are silent, or sums of others.

    Args:
        weight: The layer's weights, (filters, channels, kernel size), float64.
        gram: X'X of its inputs X, (samples, channels * kernel size), float64.
        cross: X'Y with what its outputs without bias should be, Y of (samples, filters), float64.
        count: How many channels stay.
    Returns:
        Ascending indices of the channels that stay.
    Source: He et al. 2017, Eq. 2 with the weights held fixed.
    Differs: The paper normalises each channel's weights; as in the official code, they stay as trained. That code
        searches the penalty by bisection until up to a tenth more than `count` remain, on at most 400 samples, and
        fits an intercept.
    """
    from sklearn.exceptions import ConvergenceWarning  # here: it takes seconds, and no other method needs it
    from sklearn.linear_model import lars_path_gram

    n_channels, kernel_size = weight.shape[1:]
    filters = weight.flatten(1)
    # A channel contributes its inputs times its weights to each output. Products of contributions, summed over samples
    # and filters: each of the two sums is taken on its own, over inputs and over weights, before they are multiplied.
    products = (gram * (filters.T @ filters)).view(n_channels, kernel_size, n_channels, kernel_size).sum(dim=(1, 3))
    correlation = (cross * filters.T).view(n_channels, -1).sum(dim=1)
    # The path ends at a fixed small penalty: in units of the largest one, it ends at the same place at any scale.
    unit = correlation.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # channels that are sums of others
        _, _, path = lars_path_gram(
            (correlation / unit).cpu().numpy(),
            (products / unit).cpu().numpy(),
            n_samples=1,
            max_iter=10 * n_channels,
            method="lasso",
        )
    n_used = (path != 0).sum(axis=0)
    solution = path[:, (n_used >= count).argmax() if n_used.max() >= count else -1]
    return largest(torch.from_numpy(solution).abs(), count).nonzero().flatten().to(weight.device)


def refit(weight: Tensor, *, gram: Tensor, cross: Tensor, kept: Tensor) -> Tensor:
    """Returns the weights with which the kept channels alone rebuild a layer's outputs best, in least squares.

    Args:
        weight, gram, cross: As for `choose`.
        kept: Indices of the channels that stay.
    Returns:
        Shape of `weight`; zero for removed channels.
    Source: He et al. 2017, Eq. 3.
    Differs: Where the samples leave weights open, they are those nearest to `weight`. The official code also refits
        the bias.
    """
    n_channels, kernel_size = weight.shape[1:]
    used = torch.arange(n_channels * kernel_size, device=weight.device).view(n_channels, kernel_size)[kept].flatten()
    gram, cross, filters = gram[used][:, used], cross[used], weight[:, kept].flatten(1)
    change = least_squares(gram, cross - gram @ filters.T).T
    refitted = torch.zeros_like(weight)
    refitted[:, kept] = (filters + change).view_as(weight[:, kept])
    return refitted


def prune(
    model: nn.Module,
    images: Tensor,
    *,
    readers: Mapping[str, str],
    counts: Mapping[str, int],
    generator: torch.Generator,
    n_positions: int = 10,
) -> tuple[nn.Module, dict[str, Tensor]]:
    """Chooses the channels of some layers by LASSO and refits the weights of the next layers.

    Layers are pruned in the order in which the network runs them. A reader's inputs are those of the network pruned so
    far, the outputs to rebuild those of the original network, so that errors do not add up.

    Args:
        model: Trained network; stays as it is.
        images: (images, channels, height, width), as in training, on the model's device. A fit is good for other images
            only where samples, images times positions, are several times a filter's inputs, kept channels times
            kernel size.
        readers: Name of a layer to prune -> name of the only layer that reads its output channels.
        counts: Channels that stay, by name of the layer to prune.
        generator: Source of randomness, on the CPU.
        n_positions: Samples from each image, at random positions of the reader's output.
    Returns:
        pruned: A copy of `model` in evaluation mode; its readers' weights are refitted, and zero for removed channels.
        kept: Ascending indices of the channels that stay, by name of the pruned layer.
    Raises:
        ValueError: See `readers.check_readers`.
    Differs: Samples lie at the same share of height and width at each layer.
    """
    check_readers(model, readers=readers, counts=counts)
    positions = torch.rand(len(images), n_positions, 2, generator=generator)
    pruned, outputs, kept = copy.deepcopy(model).eval(), {}, {}

    def record(name: str, reader: Reader, patches: Tensor) -> None:
        outputs[name] = patches.flatten(1).double() @ filters_by_channel(reader).flatten(1).double().T

    def visit(name: str, reader: Reader, patches: Tensor) -> None:
        inputs, weight = patches.flatten(1).double(), filters_by_channel(reader).double()
        sums = {"gram": inputs.T @ inputs, "cross": inputs.T @ outputs[name]}
        kept[name] = choose(weight, **sums, count=counts[name])
        reader.weight.copy_(refit(weight, **sums, kept=kept[name]).view_as(reader.weight))

    visit_readers(pruned, images, readers=readers, positions=positions, visit=record)  # still the original's weights
    visit_readers(pruned, images, readers=readers, positions=positions, visit=visit)
    return pruned, kept
