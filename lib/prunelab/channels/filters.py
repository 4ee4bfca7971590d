"""Scores of whole output channels, and which channels stay by them."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor, nn

from prunelab.channels.names import Trace
from prunelab.density import check_density
from prunelab.masks import largest, layer_weights


def named_weights(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter]:
    """Returns the weights of some convolution and linear layers.

    Raises:
        ValueError: A name that is no such layer.
    """
    weights = layer_weights(model)
    for name in names:
        if name not in weights:
            raise ValueError(
                f"{type(model).__name__} has no convolution or linear layer {name!r}; there are {', '.join(weights)}"
            )
    return {name: weights[name] for name in names}


@torch.no_grad()
def l1_scores(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Sums the magnitudes of each filter's weights.

    Args:
        model: Network with convolution or linear layers.
        names: Layers whose output channels are scored.
    Returns:
        Score of each output channel, by layer name.
    Raises:
        ValueError: A name that is no convolution or linear layer.
    Source: Li et al. 2017, arXiv:1608.08710, Sec. 3.1.
    """
    return {name: weight.abs().flatten(1).sum(dim=1) for name, weight in named_weights(model, names).items()}


@torch.no_grad()
def head_scores(model: nn.Module, traced: Trace) -> dict[str, Tensor]:
    """Sums the magnitudes of the weights that make the queries, keys and values of each head.

    Args:
        model: The network that was traced.
        traced: Says which attentions may lose heads; `keep_largest` and `uniform_counts` take `Trace.heads` as widths.
    Returns:
        Score of each head, by the name of its attention.
    Source: Li et al. 2017, arXiv:1608.08710, Sec. 3.1, for filters.
    """
    makers = [name for name, layer in traced.layers.items() if isinstance(layer.module, nn.Linear | nn.Conv2d)]
    magnitudes = {name: weight.abs().flatten(1).sum(dim=1) for name, weight in named_weights(model, makers).items()}
    scores = {}
    for name in traced.heads:
        heads = traced.numbered(traced.attentions[name])
        is_of = {maker: traced.numbered(traced.layers[maker].writes)[:, None] == heads for maker in makers}
        scores[name] = sum(each @ is_of[maker].to(each) for maker, each in magnitudes.items())
    return scores


def random_scores(model: nn.Module, names: Iterable[str], *, generator: torch.Generator) -> dict[str, Tensor]:
    """Draws scores at random, the control of every other choice; as for `l1_scores`, `generator` on the CPU."""
    return {
        name: torch.rand(len(weight), generator=generator).to(weight.device)
        for name, weight in named_weights(model, names).items()
    }


def uniform_counts(widths: Mapping[str, int], *, density: float) -> dict[str, int]:
    """Counts the channels that stay where every layer keeps the same share, rounded, at least one.

    Args:
        widths: Output channels by layer name.
        density: Share of channels that stay, in (0, 1].
    Returns:
        Channels that stay, by layer name.
    Raises:
        ValueError: `density` outside (0, 1].
    Source: Liu et al. 2019, arXiv:1810.05270, the uniformly pruned networks of Sec. 5.
    Differs: The official code rounds down, which keeps less than the share that was asked for; see `TARGETS`.
    """
    check_density(density)
    return {name: max(1, round(density * n)) for name, n in widths.items()}


class Target(NamedTuple):
    """A predefined target: share kept in each stage, and layers left whole where the network has `n_layers` of them."""

    n_layers: int
    densities: tuple[float, ...]
    whole: tuple[int, ...]  # positions from 0; a ResNet's block i holds the official code's layer 2 (i + 1)


TARGETS = {
    "vgg16_a": Target(13, (0.5, 1.0, 1.0, 0.5), whole=(1,)),
    "vgg16_thinet": Target(13, (0.5, 0.5, 0.5, 0.5), whole=(10, 11, 12)),  # VGG-Conv in Luo et al. 2017
    "resnet34_a": Target(16, (0.7, 0.7, 0.7, 1.0), whole=(0, 3, 6, 7, 12, 13, 14, 15)),
    "resnet34_b": Target(16, (0.5, 0.4, 0.6, 1.0), whole=(0, 3, 6, 7, 12, 13, 14, 15)),
    "resnet50_thinet30": Target(32, (0.3, 0.3, 0.3, 0.3), whole=()),  # ThiNet-30, -50 and -70
    "resnet50_thinet50": Target(32, (0.5, 0.5, 0.5, 0.5), whole=()),
    "resnet50_thinet70": Target(32, (0.7, 0.7, 0.7, 0.7), whole=()),
    "resnet56_a": Target(27, (0.9, 0.9, 0.9), whole=(7, 9, 18, 26)),
    "resnet56_b": Target(27, (0.4, 0.7, 0.9), whole=(7, 8, 9, 16, 18, 26)),
    "resnet110_a": Target(54, (0.5, 1.0, 1.0), whole=(17,)),
    "resnet110_b": Target(54, (0.5, 0.6, 0.7), whole=(17, 18, 36)),
}


def predefined_counts(target: str, widths: Mapping[str, int]) -> dict[str, int]:
    """Counts the channels that stay in each layer by one of the predefined targets.

    A stage is the layers of one width. Each layer keeps its stage's share, rounded down, at least one. The target's
    list of layers left whole holds for a network of its own depth; others, of the same family, follow the shares only.

    Args:
        target: A key of `TARGETS`.
        widths: Output channels by layer name, front to back: of every convolution of a VGG, of the first convolution
            of every block of a ResNet, and of the second where there are three.
    Returns:
        Channels that stay, by layer name, for all of `widths`.
    Raises:
        ValueError: An unknown target, or widths of another number of stages.
    Source: Li et al. 2017, arXiv:1608.08710; Liu et al. 2019, arXiv:1810.05270, and their `l1-norm-pruning` and
        `thinet` code, whose ThiNet-30 keeps 19, 38, 76 and 153 channels: 8,669,158 parameters with biases of its
        shortcuts' convolutions, 8,665,318 without, and 8,704,945 were shares rounded to the nearest.
    """
    if target not in TARGETS:
        raise ValueError(f"unknown target {target!r}; there are {', '.join(TARGETS)}")
    n_layers, densities, whole = TARGETS[target]
    stages = sorted(set(widths.values()))
    if len(stages) != len(densities):
        raise ValueError(f"target {target!r} is for layers of {len(densities)} different widths, got {stages}")
    share = dict(zip(stages, densities, strict=True))
    return {
        name: n if position in whole and len(widths) == n_layers else max(1, int(n * share[n]))
        for position, (name, n) in enumerate(widths.items())
    }


def keep_largest(scores: Mapping[str, Tensor], counts: Mapping[str, int]) -> dict[str, Tensor]:
    """Keeps the channels of largest score, layer by layer; of equal ones, the first stay.

    A layer always keeps one channel: a count below 1 counts as 1, with a warning.

    Args:
        scores: Score of each output channel, by layer name.
        counts: Channels that stay, by layer name.
    Returns:
        Ascending indices of the channels that stay, for each layer of `counts`.
    Raises:
        ValueError: A layer without scores, scores that are no numbers, not one a channel, or fewer than are to stay; a
            count that is no whole number.
    """
    kept = {}
    for name, count in counts.items():
        if name not in scores:
            raise ValueError(f"no scores for layer {name!r}; there are some for {', '.join(scores)}")
        n = len(score := _checked(name, scores[name]))
        if not isinstance(count, Integral) or isinstance(count, bool):
            raise ValueError(f"layer {name!r} must keep a whole number of channels, got {count!r}; see uniform_counts")
        if count > n:
            raise ValueError(f"layer {name!r} of {n} channels cannot keep {count} of them")
        if count < 1:
            warnings.warn(f"layer {name!r} keeps 1 channel, its best, where {count} were asked for", stacklevel=2)
        kept[name] = largest(score, max(1, count)).nonzero().flatten()
    return kept


def keep_largest_globally(scores: Mapping[str, Tensor], *, density: float) -> dict[str, Tensor]:
    """Keeps the channels of largest score of all layers together; of equal ones, the first stay.

    A layer that would lose all of its channels keeps its best one, with a warning; so much larger is then the total.

    Args:
        scores: Score of each output channel, by layer name.
        density: Share of all channels that stay, in (0, 1].
    Returns:
        Ascending indices of the channels that stay, by layer name; in total the share rounded to a whole channel.
    Raises:
        ValueError: `density` outside (0, 1], no scores, or some that are no numbers, or not one a channel.
    Source: Liu et al. 2017, arXiv:1708.06519, Sec. 3.
    Differs: The official code keeps what exceeds a threshold, so that channels of equal score stay or go together,
        and a layer may lose them all.
    """
    check_density(density)
    scores = {name: _checked(name, score) for name, score in scores.items()}
    if not scores:
        raise ValueError("no scores of any layer, so there are no channels to choose from")
    n_channels = [len(score) for score in scores.values()]
    masks = largest(torch.cat(list(scores.values())), round(density * sum(n_channels))).split(n_channels)
    emptied = [name for name, mask in zip(scores, masks, strict=True) if not mask.any()]
    if emptied:
        warnings.warn(f"density {density} leaves no channel of {', '.join(emptied)}: each keeps its best", stacklevel=2)
    return {
        name: (largest(score, 1) if name in emptied else mask).nonzero().flatten()
        for (name, score), mask in zip(scores.items(), masks, strict=True)
    }


def _checked(name: str, score: Tensor | Sequence[float]) -> Tensor:
    """Returns a layer's scores as a tensor."""
    try:
        score = torch.as_tensor(score)
    except (TypeError, ValueError, RuntimeError):  # strings, None, rows of several lengths
        found = repr(score)
    else:
        if score.is_meta:
            raise ValueError(f"layer {name!r} has scores on the meta device, without numbers to be ranked")
        if score.dim() == 1 and len(score) and not score.is_complex() and not score.isnan().any():
            return score
        found = "NaN among them" if score.isnan().any() else f"a {score.dtype} of shape {tuple(score.shape)}"
    raise ValueError(f"layer {name!r} needs one number a channel as its scores; there is {found}")
