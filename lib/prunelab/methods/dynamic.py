"""Dynamic sparse training: every so often the smallest weights leave and as many new connections enter.

SET grows them at random, RigL where the gradient is largest. Layers are handled one by one: a layer's density never
changes, and no weight moves to another layer.

Source: Mocanu et al. 2018, arXiv:1707.04780 (SET); Evci et al. 2020, arXiv:1911.11134 (RigL); update semantics as in
google-research/rigl, sparse_optimizers_base.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunelab.masks import drop_and_grow
from prunelab.methods.static import Static
from prunelab.schedules import check_decay, drop_fraction


class Dynamic(Static):
    """Masks whose connections move; subclasses say when (a hook) and where to (`grow_score`)."""

    def __init__(
        self,
        model: nn.Module,
        masks: Mapping[str, Tensor],
        *,
        initial_drop_fraction: float,
        update_every: int,
        stop_update_step: int,
        decay: str,
        generator: torch.Generator,
    ) -> None:
        """Args:
            model: Network to train.
            masks: Initial mask of each sparse layer, by layer name.
            initial_drop_fraction: Share of the active weights that move at step 0, in [0, 1]; alpha.
            update_every: Optimizer steps between two updates; Delta-T.
            stop_update_step: No update later than this step; T_end.
            decay: How the share falls, a key of `schedules.DECAYS`.
            generator: Source of SET's randomness, on the CPU.
        Raises:
            ValueError: A share outside [0, 1], fewer than one step between updates, an unknown decay.
        """
        super().__init__(model, masks)
        if not 0.0 <= initial_drop_fraction <= 1.0:
            raise ValueError(f"initial_drop_fraction must lie in [0, 1], got {initial_drop_fraction}")
        if update_every < 1:
            raise ValueError(f"update_every must be at least 1 step, got {update_every}")
        check_decay(decay)
        self.initial_drop_fraction = initial_drop_fraction
        self.update_every = update_every
        self.stop_update_step = stop_update_step
        self.decay = decay
        self.generator = generator
        self.last_update_step = -update_every  # so the first update is at step 0
        self.initial_masks = {name: mask.clone() for name, mask in self.masks.items()}
        # What each update did: its step, the share moved, and of each layer the share of initial connections left.
        self.moves: dict[str, list] = {"step": [], "drop_fraction": [], "survival": []}

    def grow_score(self, weight: nn.Parameter) -> Tensor:
        """Score of every weight of a layer, at least 0; the largest inactive ones become active."""
        raise NotImplementedError

    def is_due(self, step: int) -> bool:
        """Whether connections move now; the last step is included."""
        return self.last_update_step + self.update_every <= step <= self.stop_update_step

    @torch.no_grad()
    def move_connections(self, step: int, optimizer: Optimizer) -> None:
        """Updates every mask; dropped and new weights start from zero, and so does their momentum.

        A connection dropped and grown in the same update never left: it keeps its value and its momentum.
        """
        share = drop_fraction(
            step, initial=self.initial_drop_fraction, stop_update_step=self.stop_update_step, decay=self.decay
        )
        survival = []
        for name, weight in self.weights.items():
            mask, newborn = drop_and_grow(weight, self.grow_score(weight), self.masks[name], drop_fraction=share)
            stayed = mask & ~newborn
            weight.mul_(stayed)
            for slot in optimizer.state[weight].values():
                if isinstance(slot, Tensor) and slot.shape == weight.shape:
                    slot.mul_(stayed)
            self.masks[name].copy_(mask)
            survival.append((mask & self.initial_masks[name]).sum() / mask.sum())
        self.moves["step"].append(step)
        self.moves["drop_fraction"].append(share)
        self.moves["survival"].append(torch.stack(survival).tolist())
        self.last_update_step = step

    def state_dict(self) -> dict:
        return super().state_dict() | {
            "initial_masks": self.initial_masks,
            "last_update_step": self.last_update_step,
            "moves": self.moves,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        for name, mask in state["initial_masks"].items():
            self.initial_masks[name].copy_(mask)
        self.last_update_step = state["last_update_step"]
        self.moves = state["moves"]
        self.generator.set_state(state["generator"])


class SparseEvolutionaryTraining(Dynamic):
    """SET: new connections are drawn at random, after the optimizer step."""

    def grow_score(self, weight: nn.Parameter) -> Tensor:
        return torch.rand(weight.shape, generator=self.generator).to(weight.device)

    def after_update(self, step: int, optimizer: Optimizer) -> None:
        super().after_update(step, optimizer)
        if self.is_due(step):
            self.move_connections(step, optimizer)


class RigL(Dynamic):
    """RigL: new connections appear where the gradient of the batch is largest, *instead of* an optimizer step."""

    def grow_score(self, weight: nn.Parameter) -> Tensor:
        return weight.grad.abs()  # dense: the gradient has not been masked yet

    def before_update(self, step: int, optimizer: Optimizer) -> bool:
        if not self.is_due(step):
            return False
        self.move_connections(step, optimizer)
        self.n_dense_gradients += 1
        return True
