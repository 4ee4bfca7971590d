"""Which units of a sparse multi-layer perceptron are left, and what the network without the others takes.

Source: Evci et al. 2020, arXiv:1911.11134, Table 2 and Fig. 7.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor


def surviving(masks: list[Tensor]) -> list[Tensor]:
    """Units through which a signal can pass from the input to the output; output units always survive.

    A hidden unit without a connection from a surviving unit below, or to one above, does nothing (a constant aside)
    and is removed, which may leave others without one; so until nothing changes.

    Args:
        masks: Bool, (out, in), of each layer from the first to the output.
    Returns:
        Bool, for the inputs and the units of each layer.
    """
    alive = [torch.ones(masks[0].shape[1], dtype=torch.bool), *(torch.ones(len(m), dtype=torch.bool) for m in masks)]
    while True:
        before = list(alive)
        for layer, mask in enumerate(masks):
            used = mask & alive[layer + 1][:, None] & alive[layer]
            alive[layer] = alive[layer] & used.any(dim=0)
            if layer + 1 < len(masks):
                alive[layer + 1] = alive[layer + 1] & used.any(dim=1)
        if all(torch.equal(*pair) for pair in zip(before, alive, strict=True)):
            return alive


def compact_table(masks: list[Tensor]) -> dict[str, int]:
    """Tells what is left when dead units are cut off.

    Returns:
        `n_weights` between surviving units, which are also the MACs of an inference, `n_positions` of the smaller
        weight matrices, and `n_bytes`: four for each weight and bias, and a bit for each position.
    """
    alive = surviving(masks)
    n_weights = sum(
        int((m & above[:, None] & below).sum()) for m, below, above in zip(masks, alive[:-1], alive[1:], strict=True)
    )
    widths = [int(units.sum()) for units in alive]
    n_positions = sum(below * above for below, above in pairwise(widths))
    n_bytes = 4 * (n_weights + sum(widths[1:])) + math.ceil(n_positions / 8)
    return {"n_weights": n_weights, "n_positions": n_positions, "n_bytes": n_bytes}


def input_shares(connections: list[int], *, image_size: int) -> dict[str, float]:
    """Tells where the first layer's connections go.

    Args:
        connections: Of each input, channel by channel, row by row.
        image_size: Height and width of the image in pixels.
    Returns:
        `input_share` of the inputs that have a connection, and `central_share` of all connections that start in the
        central square of half the image's height and width, a quarter of its area.
    """
    counts = torch.tensor(connections).view(-1, image_size, image_size)
    edge = image_size // 4
    central = counts[:, edge : image_size - edge, edge : image_size - edge]
    return {
        "input_share": float((counts > 0).float().mean()),
        "central_share": float(central.sum() / counts.sum()),
    }
