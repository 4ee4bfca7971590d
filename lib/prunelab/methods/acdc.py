"""AC/DC: a dense network is compressed and decompressed in turn while it trains, and ends compressed.

Source: Peste et al. 2021, arXiv:2106.12379, Algorithm 1; phases and resets as in IST-DASLab/ACDC.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from prunelab.methods.lottery import prune_smallest
from prunelab.methods.static import Static, full_masks, momenta

# Shares of training at which phases begin, compressed and decompressed in turn, after a dense warm-up: the authors' 100
# epochs of ResNet-50 on ImageNet, whose last decompressed phase is twice as long as others, and 200 of ResNet-20 on
# CIFAR-10. In both a last compressed phase of 15 % tunes what is left.
PHASES: dict[str, tuple[float, ...]] = {
    "imagenet": tuple(percent / 100 for percent in (*range(10, 80, 5), 85)),
    "cifar": tuple(percent / 100 for percent in range(5, 90, 10)),
}


class AlternatingCompression(Static):
    """Masks that come and go: in compressed phases the largest weights train, in the others all do.

    At each compression the smallest weights of all layers that have a gradient leave at once. At each decompression
    they are back, at zero, and momentum starts anew, that of every parameter of the optimizer.

    Differs: The number of active weights is exact and ties are broken by position; the authors' threshold keeps or
        drops equal magnitudes together. Depthwise convolutions stay dense, see `masks.prunable_weights`.
    """

    inherits = False

    @classmethod
    def build(
        cls, model: nn.Module, options: Any, *, n_active: Callable[[], Mapping[str, int]], n_steps: int, **_: Any
    ) -> "AlternatingCompression":
        """Builds the method around a model; see `Static.build`. Phases shorter than a step vanish in its rounding.

        Raises:
            ValueError: Unknown phases.
        """
        if options.phases not in PHASES:
            raise ValueError(f"unknown phases {options.phases!r}; there are {', '.join(PHASES)}")
        starts = [max(1, round(share * n_steps)) for share in PHASES[options.phases]]
        return cls(model, n_active(), phase_starts=starts)

    def __init__(self, model: nn.Module, n_active: Mapping[str, int], *, phase_starts: Sequence[int]) -> None:
        """Leaves `model` dense until the first phase.

        Args:
            model: Network to train.
            n_active: Names the layers to be sparse; the sum of its counts, of those that have a gradient, is how many
                of their weights are active in all when compressed. Magnitude alone divides them among the layers.
            phase_starts: Optimizer steps done before each phase, compressed and decompressed in turn, the last one
                compressed; of phases that begin at one step only the last is seen.
        Raises:
            ValueError: An even number of phases, a start below 1 or before the one ahead of it, or counts that
                `static.full_masks` refuses.
        """
        super().__init__(model, full_masks(model, n_active))
        starts = list(phase_starts)
        if len(starts) % 2 == 0 or starts[0] < 1 or starts != sorted(starts):
            raise ValueError(
                "phase_starts must be an odd number of steps from 1 on, none before the one ahead of it, so that the "
                f"last phase is compressed; got {starts}"
            )
        self.phase_starts = starts
        self.n_active = dict(n_active)
        # What each change of phase left: its step, and the active weights of each layer.
        self.moves: dict[str, list] = {"step": [], "n_active": []}

    def is_compressed(self, step: int) -> bool:
        """Tells whether a compressed phase is on after `step` optimizer steps."""
        return sum(start <= step for start in self.phase_starts) % 2 == 1

    @torch.no_grad()
    def after_update(self, step: int, optimizer: Optimizer) -> None:
        if self.is_compressed(step) == self.is_compressed(step - 1):
            return
        masks = {name: torch.ones_like(mask) for name, mask in self.masks.items()}
        if self.is_compressed(step):
            learning = {name: masks[name] for name in self._learning()}
            n_left = sum(self.n_active[name] for name in learning)
            density = n_left / sum(mask.numel() for mask in learning.values())
            masks |= prune_smallest(self.weights, learning, density=density)
        else:
            for parameter in list(optimizer.state):
                for slot in momenta(parameter, optimizer):
                    slot.zero_()
        for name, weight in self.weights.items():
            self.set_mask(name, masks[name])
            self._keep_only(masks[name], weight, optimizer)
        self.moves["step"].append(step)
        self.moves["n_active"].append([int(mask.sum()) for mask in masks.values()])

    def state_dict(self) -> dict:
        return super().state_dict() | {"moves": self.moves}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.moves = state["moves"]
