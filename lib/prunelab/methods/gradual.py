"""Gradual magnitude pruning: a dense network loses its smallest weights during training, many at first, few at the end.

Source: Zhu & Gupta 2017, arXiv:1710.01878.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from prunelab.masks import largest
from prunelab.methods.static import Static, full_masks


def scheduled_count(step: int, *, size: int, n_active: int, begin_step: int, end_step: int) -> int:
    """Counts the active weights of a layer at `step`: falls from `size` to `n_active` as the cube of the time left.

    Args:
        step: Optimizer steps done so far.
        size: Weights of the layer.
        n_active: Active weights in the end.
        begin_step: All weights are active up to this step.
        end_step: `n_active` weights are active from this step on.
    Returns:
        A count in [`n_active`, `size`], rounded.
    Source: Zhu & Gupta 2017, Eq. 1 with an initial sparsity of 0.
    """
    if step < begin_step:
        return size
    if step >= end_step:
        return n_active
    time_left = (end_step - step) / (end_step - begin_step)
    return n_active + round((size - n_active) * time_left**3)


class GradualPruning(Static):
    """Masks that shrink: every so often, after the optimizer step, each layer's smallest weights leave.

    Differs: A pruned weight stays pruned; in the authors' library it keeps its value, with which it may return.
    """

    inherits = False

    @classmethod
    def build(
        cls, model: nn.Module, options: Any, *, n_active: Callable[[], Mapping[str, int]], n_steps: int, **_: Any
    ) -> "GradualPruning":
        return cls(model, n_active(), **cls.schedule(options, n_steps=n_steps))

    @classmethod
    def schedule(cls, options: Any, *, n_steps: int, **_: Any) -> dict[str, Any]:
        return {
            "begin_step": round(options.begin_pruning * n_steps),
            "end_step": round(options.stop_update * n_steps),
            "update_every": options.update_every,
        }

    def __init__(
        self, model: nn.Module, n_active: Mapping[str, int], *, begin_step: int, end_step: int, update_every: int
    ) -> None:
        """Leaves `model` dense until `begin_step`.

        Args:
            model: Network to train.
            n_active: Active weights in the end of each layer to be sparse, by layer name.
            begin_step: Optimizer steps before pruning sets in.
            end_step: Step of the last pruning, after which exactly `n_active` weights are left.
            update_every: Optimizer steps between two prunings.
        Raises:
            ValueError: Steps out of order, an end before the first step, fewer than one step between prunings, or
                counts that `static.full_masks` refuses.
        """
        super().__init__(model, full_masks(model, n_active))
        if begin_step < 0 or end_step < max(begin_step, 1):
            raise ValueError(
                f"pruning needs 0 <= begin_step <= end_step and 1 <= end_step, got {begin_step}, {end_step}"
            )
        if update_every < 1:
            raise ValueError(f"update_every must be at least 1 step, got {update_every}")
        self.n_active = dict(n_active)
        self.begin_step = begin_step
        self.end_step = end_step
        self.update_every = update_every
        # What each pruning left: its step, and the active weights of each layer.
        self.moves: dict[str, list] = {"step": [], "n_active": []}

    def is_due(self, step: int) -> bool:
        """Tells whether weights leave now; the last step is included, whatever the interval."""
        on_time = (step - self.begin_step) % self.update_every == 0
        return step == self.end_step or (self.begin_step <= step < self.end_step and on_time)

    def count_at(self, step: int, *, size: int, n_active: int) -> int:
        """Counts how many of `size` weights, `n_active` of which stay in the end, are active from `step` on."""
        return scheduled_count(step, size=size, n_active=n_active, begin_step=self.begin_step, end_step=self.end_step)

    def prune(self, step: int) -> None:
        """Sets the mask of each layer that has a gradient to what the schedule leaves at `step`."""
        for name in self._learning():
            weight = self.weights[name]
            n_left = self.count_at(step, size=weight.numel(), n_active=self.n_active[name])
            # -1 ranks pruned weights below active ones, which may be zero too.
            self.set_mask(name, largest(weight.abs().masked_fill(~self.masks[name], -1.0), n_left))

    @torch.no_grad()
    def after_update(self, step: int, optimizer: Optimizer) -> None:
        if not self.is_due(step):
            return
        self.prune(step)
        for name, weight in self.weights.items():
            self._keep_only(self.masks[name], weight, optimizer)
        self.moves["step"].append(step)
        self.moves["n_active"].append([int(mask.sum()) for mask in self.masks.values()])

    def state_dict(self) -> dict:
        return super().state_dict() | {"moves": self.moves}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.moves = state["moves"]
