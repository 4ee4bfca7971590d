"""What a network costs: weights, multiply-accumulates (MACs), and the MACs of training it.

Convention: one MAC is one multiplication and its addition. Convolution and linear weights are counted; biases,
normalisation, activations and pooling are not. A masked weight costs nothing. These are counts, not speed: no
ordinary kernel skips the zeros.

Source: Evci et al. 2020, arXiv:1911.11134, App. H.
Differs: The authors count 2 FLOPs a MAC plus one per output element, on padded images; ratios agree to 0.001.
"""

import copy
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from prunelab.masks import layer_weights


def layer_table(
    model: nn.Module, *, in_channels: int, image_size: int, n_active: Mapping[str, int] | None = None
) -> list[dict]:
    """Lists the weights and MACs of each convolution and linear layer, for one image.

    Args:
        model: Left as it is; a copy without numbers is traced.
        in_channels: Channels of the image.
        image_size: Its height and width in pixels.
        n_active: Active weights of each masked layer; a layer that is not named is dense.
    Returns:
        One dict a layer, first layer first: `name`, `shape`, `n_weights`, `n_active`, `masked`, and `macs`, in which an
        inactive weight costs nothing.
    """
    n_active = n_active or {}
    shadow = copy.deepcopy(model).to("meta").eval()
    weights = layer_weights(shadow)
    n_positions: dict[str, int] = {}

    def count_positions(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # A weight is used once for each output position of its channel: once in a linear layer, h * w times in a
        # convolution.
        n_positions[name] = output[0].numel() // weights[name].shape[0]

    for name in weights:
        shadow.get_submodule(name).register_forward_hook(partial(count_positions, name))
    shadow(torch.empty(1, in_channels, image_size, image_size, device="meta"))
    return [
        {
            "name": name,
            "shape": list(weight.shape),
            "n_weights": weight.numel(),
            "n_active": n_active.get(name, weight.numel()),
            "masked": name in n_active,
            "macs": n_active.get(name, weight.numel()) * n_positions[name],
        }
        for name, weight in weights.items()
    ]


def total(layers: list[dict], key: str) -> int:
    """Returns the sum of one column of a layer table, such as `macs`."""
    return sum(layer[key] for layer in layers)


def _macs_with(layers: list[dict], n_active: Mapping[str, int]) -> int:
    """Returns what the network of a layer table costs with other numbers of active weights; layers not named are dense.

    In the table no layer is without an active weight.
    """
    return sum(layer["macs"] // layer["n_active"] * n_active.get(layer["name"], layer["n_weights"]) for layer in layers)


def matching_density(layers: list[dict], active_counts: Callable[[float], Mapping[str, int]], *, macs: float) -> float:
    """Finds the density at which a network costs as much as another one, to the nearest weight.

    Args:
        layers: Table of the network, from `layer_table`, at any density.
        active_counts: Active weights of each masked layer at a density: `methods.static.active_counts`, all else given.
        macs: What the other network costs, for one image.
    Returns:
        Density for `active_counts`, in (0, 1].
    Raises:
        ValueError: Too much even for the dense network, or too little for one weight in each masked layer.
    """
    dense = active_counts(1.0)
    n_weights = sum(dense.values())

    def macs_with(n_active: int) -> int:
        return _macs_with(layers, active_counts(n_active / n_weights))

    least, most = macs_with(len(dense)), macs_with(n_weights)
    if not least <= macs <= most:
        raise ValueError(f"no density costs {macs:,} MACs: this network takes {least:,} to {most:,}")
    return nearest_step(macs, macs_with, least=len(dense), most=n_weights) / n_weights


def mean_macs(layers: list[dict], active_counts: Sequence[tuple[int, Mapping[str, int]]], *, n_steps: int) -> float:
    """Averages the MACs of a forward pass over a training in which layers lose weights now and then.

    Args:
        layers: Table of the dense network, from `layer_table`.
        active_counts: From which step on how many weights of each masked layer were active; before that all were.
        n_steps: Optimizer steps of the training.
    """
    stages = [(0, {}), *active_counts]
    stops = [*(step for step, _ in active_counts), n_steps]
    spent = ((stop - step) * _macs_with(layers, n_active) for (step, n_active), stop in zip(stages, stops, strict=True))
    return sum(spent) / n_steps


def nearest_step(wanted: float, size: Callable[[int], float], *, least: int = 1, most: int) -> int:
    """Finds the step in `least`..`most` whose size is nearest to the wanted one; sizes must not fall. Ties go down."""
    above = bisect_left(range(most + 1), wanted, lo=least, hi=most, key=size)  # the first that reaches it
    return min((max(above - 1, least), above), key=lambda step: abs(size(step) - wanted))


def training_macs(
    dense_macs: float, sparse_macs: float, *, n_samples: float, n_dense_gradient_samples: float = 0
) -> float:
    """Returns the MACs of training: a forward pass, and a backward pass that costs two.

    A sample costs 3 f_S; where the gradient of every weight is needed, 2 f_S + f_D. Dense training is f_S = f_D;
    static and SET never need a dense gradient, RigL needs it on the batches of its mask updates, SNFS on all.

    Args:
        dense_macs: MACs of a dense forward pass for one image, f_D.
        sparse_macs: MACs of the masked forward pass, f_S.
        n_samples: Images processed, repetitions counted.
        n_dense_gradient_samples: How many of them needed the gradient of every weight.
    Source: Evci et al. 2020, App. H. With one update after every `update_every` steps this is its
        (3 f_S * update_every + 2 f_S + f_D) / (update_every + 1) a sample.
    """
    return 3 * sparse_macs * n_samples + (dense_macs - sparse_macs) * n_dense_gradient_samples
