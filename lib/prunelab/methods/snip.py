"""SNIP: the first batch decides which connections stay; everything after is static sparse training.

Source: Lee et al. 2019, arXiv:1810.02340, Eq. 4-6; as in google-research/rigl.
Differs: Each layer keeps its share of a given distribution, as in Evci et al. 2020; the paper ranks all layers at once.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from prunelab.masks import largest
from prunelab.methods.static import Static, full_masks


class Snip(Static):
    """SNIP: after one batch each layer keeps the weights of largest |gradient * weight|; that batch is not stepped.

    A frozen layer, of which there is no gradient, stays dense.
    """

    inherits = False

    @classmethod
    def build(cls, model: nn.Module, options: Any, *, n_active: Callable[[], Mapping[str, int]], **_: Any) -> "Snip":
        return cls(model, n_active())

    def __init__(self, model: nn.Module, n_active: Mapping[str, int]) -> None:
        """Leaves `model` dense until the first batch.

        Args:
            model: Network to train.
            n_active: Active weights of each layer to be sparse, by layer name.
        Raises:
            ValueError: See `static.full_masks`.
        """
        super().__init__(model, full_masks(model, n_active))
        self.n_active = dict(n_active)

    @torch.no_grad()
    def before_update(self, step: int, optimizer: Optimizer) -> bool:
        if self.n_dense_gradients:  # the one it needs; saved with the masks, so a resumed run does not prune again
            return False
        for name, gradient in self._gradients().items():
            # The gradient is that of the whole batch: the magnitude of a sum over images, not a sum of magnitudes.
            self.set_mask(name, largest((gradient * self.weights[name]).abs(), self.n_active[name]))
        self.change_weights()
        self.n_dense_gradients += 1
        return True
