"""Soft Filter Pruning: at the end of every epoch the weakest filters are zeroed, and go on being trained.

Source: He et al. 2018, arXiv:1808.06866, Algorithm 1; as in he-y/soft-filter-pruning.
Differs: The fresh network is not pruned before the first epoch, as in Algorithm 1; the authors' code does. As in that
    code, biases, BatchNorm and momentum are left alone: what BatchNorm makes of a zeroed filter is its beta.
"""

from collections.abc import Mapping
from numbers import Integral

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunelab.channels.filters import keep_largest, named_weights
from prunelab.masks import largest
from prunelab.methods.hooks import Hooks


def l2_scores(weight: Tensor) -> Tensor:
    """Returns the L2 norm of each filter of a weight, (out, ...), as a tensor of shape (out,)."""
    return weight.detach().flatten(1).norm(dim=1)


class SoftFilterPruning(Hooks):
    """Now and then zeroes all filters of a layer but those of largest L2 norm; zeroed ones may grow back.

    A layer that has no gradient, be it frozen or never reached by the loss, keeps all of its filters.
    """

    def __init__(self, model: nn.Module, counts: Mapping[str, int], *, prune_every_steps: int) -> None:
        """Leaves `model` dense until the first pruning.

        Args:
            model: Network to train.
            counts: How many filters of each layer to be pruned stay, by layer name.
            prune_every_steps: Optimizer steps between two prunings, an epoch of them in the paper. The last one should
                fall on the end of training.
        Raises:
            ValueError: A layer that is not there, a count outside 1 .. filters of the layer, or an interval below 1.
        """
        if prune_every_steps < 1:
            raise ValueError(f"prune_every_steps must be at least 1, got {prune_every_steps}")
        self.weights = named_weights(model, counts)
        for name, weight in self.weights.items():
            if not isinstance(counts[name], Integral) or not 1 <= counts[name] <= len(weight):
                raise ValueError(f"layer {name!r} of {len(weight)} filters cannot keep {counts[name]} of them")
        self.counts = dict(counts)
        self.prune_every_steps = prune_every_steps

    def kept(self) -> dict[str, Tensor]:
        """Returns the indices of the filters that have the largest norms now, by layer name, ascending."""
        return keep_largest({name: l2_scores(weight) for name, weight in self.weights.items()}, self.counts)

    @torch.no_grad()
    def after_update(self, step: int, optimizer: Optimizer) -> None:
        if step % self.prune_every_steps == 0:
            for name, weight in self.weights.items():
                if weight.grad is not None:
                    weight[~largest(l2_scores(weight), self.counts[name])] = 0.0
