"""ThiNet: the channels go that the next layer misses least.

Source: Luo et al. 2017, arXiv:1707.06342, Sec. 3.2; ThiNet_Code of the authors.
"""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunelab.channels.readers import Reader, check_readers, filters_by_channel, least_squares, visit_readers


def choose(contributions: Tensor, *, count: int) -> Tensor:
    """Returns the channels left when those are removed, one after the other, whose sum changes the least.

    Each step removes the channel for which the squared sum of all removed contributions, summed over the samples, is
    smallest; of equal ones, the first. With the Gram matrix G of the contributions and the removed set T, adding
    channel j changes that sum by G_jj + 2 * (sum of G_jt over t in T).

    Args:
        contributions: (samples, channels), float64: what each channel adds to an output of the next layer.
        count: How many channels stay.
    Returns:
        Ascending indices of the channels that stay.
    Source: Luo et al. 2017, Eq. 6 and Algorithm 1.
    """
    gram = contributions.T @ contributions
    increase = gram.diagonal().clone()
    stays = torch.ones_like(increase, dtype=torch.bool)
    for _ in range(len(gram) - count):
        removed = increase.masked_fill(~stays, torch.inf).argmin()
        stays[removed] = False
        increase += 2 * gram[removed]
    return stays.nonzero().flatten()


def rescaling(contributions: Tensor, *, kept: Tensor) -> Tensor:
    """Returns the factors of the kept channels with which they replace the sum of all channels best, in least squares.

    Args:
        contributions: As for `choose`.
        kept: Indices of the channels that stay.
    Returns:
        A factor for each of `kept`.
    Source: Luo et al. 2017, Eq. 7.
    Differs: Where the samples leave the factors open (channels that are silent or alike), they are those nearest to 1;
        the authors invert the Gram matrix, which then fails.
    """
    used = contributions[:, kept]
    missing = contributions.sum(dim=1) - used.sum(dim=1)
    return 1 + least_squares(used.T @ used, used.T @ missing)


def prune(
    model: nn.Module,
    images: Tensor,
    *,
    readers: Mapping[str, str],
    counts: Mapping[str, int],
    generator: torch.Generator,
    n_positions: int = 10,
) -> tuple[nn.Module, dict[str, Tensor]]:
    """Chooses the channels of some layers by ThiNet and rescales what the next layers make of them.

    Layers are pruned in the order in which the network runs them, each on the activations of the network pruned so
    far. Each sample is an image, a position of the reader's output and one of its filters, all random.

    Args:
        model: Trained network; stays as it is.
        images: (images, channels, height, width), as in training, on the model's device.
        readers: Name of a layer to prune -> name of the only layer that reads its output channels.
        counts: Channels that stay, by name of the layer to prune.
        generator: Source of randomness, on the CPU.
        n_positions: Samples from each image.
    Returns:
        pruned: A copy of `model` in evaluation mode; its readers' weights are rescaled, and zero for removed channels.
        kept: Ascending indices of the channels that stay, by name of the pruned layer.
    Raises:
        ValueError: See `readers.check_readers`.
    Differs: The authors fine-tune for one or two epochs after each layer; here that is left to the caller, at the end.
        Samples lie at the same share of height and width at each layer.
    """
    check_readers(model, readers=readers, counts=counts)
    positions = torch.rand(len(images), n_positions, 2, generator=generator)
    pruned, kept = copy.deepcopy(model).eval(), {}

    def visit(name: str, reader: Reader, patches: Tensor) -> None:
        weight = filters_by_channel(reader)
        sampled = torch.randint(len(weight), (len(patches),), generator=generator).to(weight.device)
        contributions = (patches * weight[sampled]).sum(dim=2, dtype=torch.float64)
        kept[name] = choose(contributions, count=counts[name])
        factors = weight.new_zeros(weight.shape[1])
        factors[kept[name]] = rescaling(contributions, kept=kept[name]).to(factors)
        reader.weight.copy_((weight * factors.unsqueeze(1)).view_as(reader.weight))

    visit_readers(pruned, images, readers=readers, positions=positions, visit=visit)
    return pruned, kept
