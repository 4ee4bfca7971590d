"""The layer that reads a pruned layer's channels: what it sees at sampled positions, and a fit of its weights."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial

import scipy.linalg
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunelab.channels.filters import named_weights

Reader = nn.Conv2d | nn.Linear


def check_readers(model: nn.Module, *, readers: Mapping[str, str], counts: Mapping[str, int]) -> None:
    """Raises ValueError unless every layer can keep its count of channels, and its reader reads them one by one.

    Args:
        model: Network to prune.
        readers: Name of a layer to prune -> name of the only layer that reads its output channels.
        counts: Channels that stay, by name of the layer to prune.
    """
    weights = named_weights(model, [*readers, *readers.values()])
    for name, reader_name in readers.items():
        n, reader = len(weights[name]), model.get_submodule(reader_name)
        if not 1 <= counts.get(name, 0) <= n:
            raise ValueError(f"layer {name!r} can keep 1 to {n} channels, got {counts.get(name)}")
        if isinstance(reader, nn.Conv2d) and (
            reader.groups != 1 or reader.padding_mode != "zeros" or isinstance(reader.padding, str)
        ):
            raise ValueError(
                f"{reader_name!r}, which reads {name!r}, must be a convolution of one group that pads a given number of"
                f" zeros, got {reader}; choose the channels of {name!r} by `filters.l1_scores` instead"
            )
        if weights[reader_name].shape[1] != n:
            raise ValueError(
                f"{reader_name!r} reads {weights[reader_name].shape[1]} channels, but {name!r} has {n}; a linear layer"
                " must read globally pooled maps, not flattened ones, and no layer several layers' channels"
            )


def sample_patches(reader: Reader, inputs: Tensor, *, positions: Tensor) -> Tensor:
    """Tells what a layer's filters see at some positions of its output.

    Args:
        reader: Convolution of one group, or a linear layer.
        inputs: Its input, (images, channels, height, width) or (images, channels).
        positions: (images, positions, 2), row and column as shares of the output's height and width, in [0, 1).
    Returns:
        (images * positions, channels, kernel size), image by image.
    """
    n_images, n_positions = positions.shape[:2]
    image = torch.arange(n_images, device=inputs.device).repeat_interleave(n_positions)
    if isinstance(reader, nn.Linear):
        return inputs[image].unsqueeze(2)
    windows = F.pad(inputs, (reader.padding[1], reader.padding[1], reader.padding[0], reader.padding[0]))
    for axis in (0, 1):  # of the image; a window for each position, as a view: only those sampled are copied
        dilation = reader.dilation[axis]
        extent = dilation * (reader.kernel_size[axis] - 1) + 1
        windows = windows.unfold(2 + axis, extent, reader.stride[axis])[..., ::dilation]
    size = torch.tensor(windows.shape[2:4], device=inputs.device)
    row, column = (positions.to(inputs.device) * size).long().flatten(0, 1).unbind(1)
    return windows[image, :, row, column].flatten(2)


@torch.no_grad()
def visit_readers(
    model: nn.Module,
    images: Tensor,
    *,
    readers: Mapping[str, str],
    positions: Tensor,
    visit: Callable[[str, Reader, Tensor], None],
) -> None:
    """Runs a batch through a network and stops before each reader for a visit, which may change its weights.

    The layers behind a reader see the changes, so that one run prunes a network from front to back, each layer on the
    activations of the network pruned so far.

    Args:
        model: Network, in evaluation mode.
        images: (images, channels, height, width).
        readers: Name of a layer to prune -> name of the only layer that reads its output channels.
        positions: As for `sample_patches`; the same shares at each reader.
        visit: Called with the name of a layer to prune, its reader, and the reader's patches.
    """

    def hook(name: str, reader: Reader, inputs: tuple[Tensor]) -> None:
        visit(name, reader, sample_patches(reader, inputs[0], positions=positions))

    with ExitStack() as hooks:
        for name, reader in readers.items():
            hooks.enter_context(model.get_submodule(reader).register_forward_pre_hook(partial(hook, name)))
        model(images)


def filters_by_channel(reader: Reader) -> Tensor:
    """Returns a layer's weights as (filters, input channels, kernel size), which is that of `sample_patches`."""
    return reader.weight.reshape(*reader.weight.shape[:2], -1)


def least_squares(gram: Tensor, cross: Tensor) -> Tensor:
    """Returns the matrix that maps inputs X to outputs Y with least squared error; of several, that of least norm.

    Args:
        gram: X'X, (n, n), float64: it squares the condition number.
        cross: X'Y, (n, m), float64.
    Returns:
        (n, m).
    """
    try:
        inverse = torch.linalg.pinv(gram, hermitian=True)
    except torch.linalg.LinAlgError:  # its divide and conquer may not converge where the rank is far below n
        inverse = torch.from_numpy(scipy.linalg.pinvh(gram.cpu().numpy())).to(gram.device)
    return inverse @ cross
