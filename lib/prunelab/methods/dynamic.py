"""Dynamic sparse training: every so often the smallest weights leave and as many new connections enter.

SET grows them at random, SNFS and RigL where the gradient is largest, averaged over the past or not. Layers are handled
one by one: a layer's density never changes, and no weight moves to another layer.

Source: Mocanu et al. 2018, arXiv:1707.04780 (SET); Dettmers & Zettlemoyer 2019, arXiv:1907.04840 (SNFS); Evci et al.
2020, arXiv:1911.11134 (RigL); update semantics as in google-research/rigl, sparse_optimizers_base.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunelab.masks import drop_and_grow
from prunelab.methods.static import Static
from prunelab.schedules import check_decay, drop_fraction


class Dynamic(Static):
    """Masks whose connections move; subclasses say when (a hook) and where to (`grow_score`)."""

    @classmethod
    def schedule(cls, options: Any, *, n_steps: int, generator: Callable[[str], torch.Generator]) -> dict[str, Any]:
        return {
            "initial_drop_fraction": options.drop_fraction,
            "update_every": options.update_every,
            "stop_update_step": round(options.stop_update * n_steps),
            "decay": options.decay,
            "generator": generator("moves"),
        }

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

    def grow_score(self, name: str) -> Tensor:
        """Scores every weight of a layer, at least 0; the largest inactive ones become active."""
        raise NotImplementedError

    def is_due(self, step: int) -> bool:
        """Tells whether connections move now; the last step is included."""
        return self.last_update_step + self.update_every <= step <= self.stop_update_step

    @torch.no_grad()
    def move_connections(self, step: int, optimizer: Optimizer) -> None:
        """Updates every mask; dropped and new weights start from zero, and so does their momentum.

        A connection dropped and grown in the same update never left: it keeps its value and its momentum. The
        connections of a frozen layer, of which there is no gradient, stay where they are.
        """
        share = drop_fraction(
            step, initial=self.initial_drop_fraction, stop_update_step=self.stop_update_step, decay=self.decay
        )
        survival = []
        for name, weight in self.weights.items():
            if weight.grad is not None:
                mask, newborn = drop_and_grow(weight, self.grow_score(name), self.masks[name], drop_fraction=share)
                self._keep_only(mask & ~newborn, weight, optimizer)
                self.set_mask(name, mask)
            left = (self.masks[name] & self.initial_masks[name]).sum() / self.masks[name].sum()
            survival.append(left.nan_to_num(1.0))  # an emptied layer has lost none
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

    def grow_score(self, name: str) -> Tensor:
        mask = self.masks[name]
        return torch.rand(mask.shape, generator=self.generator).to(mask.device)

    def after_update(self, step: int, optimizer: Optimizer) -> None:
        if self.is_due(step):
            self.move_connections(step, optimizer)


class SparseMomentum(SparseEvolutionaryTraining):
    """SNFS: as SET, but new connections appear where the running average of the gradient is largest.

    Differs: No weight moves to another layer, as in google-research/rigl; in the paper layers of larger momentum gain
        weights from the others. The average is never divided by 1 - momentum^t, which changes no order.
    """

    @classmethod
    def schedule(cls, options: Any, **more: Any) -> dict[str, Any]:
        return super().schedule(options, **more) | {"gradient_momentum": options.gradient_momentum}

    def __init__(
        self, model: nn.Module, masks: Mapping[str, Tensor], *, gradient_momentum: float, **schedule: Any
    ) -> None:
        """Args:
            model: Network to train.
            masks: Initial mask of each sparse layer, by layer name.
            gradient_momentum: Share of the average that each batch leaves, in [0, 1); 0 is the last gradient alone.
            schedule: All keywords of `Dynamic`.
        Raises:
            ValueError: A share outside [0, 1), or see `Dynamic`.
        """
        super().__init__(model, masks, **schedule)
        if not 0.0 <= gradient_momentum < 1.0:
            raise ValueError(f"gradient_momentum must lie in [0, 1), got {gradient_momentum}")
        self.gradient_momentum = gradient_momentum
        self.averages = {name: torch.zeros_like(weight.detach()) for name, weight in self.weights.items()}

    def before_update(self, step: int, optimizer: Optimizer) -> bool:
        if gradients := self._gradients():
            averages = [self.averages[name] for name in gradients]
            torch._foreach_lerp_(averages, list(gradients.values()), 1.0 - self.gradient_momentum)
        self.n_dense_gradients += 1
        return False

    def grow_score(self, name: str) -> Tensor:
        return self.averages[name].abs()

    def state_dict(self) -> dict:
        return super().state_dict() | {"averages": self.averages}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        for name, average in state["averages"].items():
            self.averages[name].copy_(average)


class RigL(Dynamic):
    """RigL: new connections appear where the gradient of the batch is largest, *instead of* an optimizer step."""

    def grow_score(self, name: str) -> Tensor:
        return self.weights[name].grad.abs()  # dense: the gradient has not been masked yet

    def before_update(self, step: int, optimizer: Optimizer) -> bool:
        is_due = self.is_due(step)
        if is_due:
            self.move_connections(step, optimizer)
            self.n_dense_gradients += 1
        return is_due


def checked_ranks(score: object, gradient: Tensor, mask: Tensor, *, layer: str) -> Tensor:
    """Ranks of a score that a reader's function gave, or what is wrong with it.

    Ranks keep order and ties at any sign and size; a shift to positive numbers would round small differences off. A
    constant score passes where no inactive connection has a gradient: a dead layer is not the function's fault.

    Args:
        score: What was returned for the layer.
        gradient: Dense gradient of the layer.
        mask: Bool, same shape.
        layer: The layer's name, for the messages.
    Returns:
        0 for the smallest score, one more for each larger one, same shape.
    Raises:
        ValueError: No real tensor of the layer's shape, NaN or infinity in it, or one number for all inactive
            connections.
    """
    shape, where = tuple(gradient.shape), f"layer {layer!r} of shape {tuple(gradient.shape)}"
    if not isinstance(score, Tensor):
        raise ValueError(f"score returned {score!r} for {where}; return a tensor of that shape, a number a connection")
    if score.shape != shape or score.is_complex():
        raise ValueError(
            f"score returned a tensor of shape {tuple(score.shape)} and type {score.dtype} for {where}; "
            "return a real number for each connection, in the weight's shape"
        )
    score = score.to(gradient.device)
    if n_invalid := int((~score.isfinite()).sum()):
        raise ValueError(
            f"score returned NaN or infinity for {n_invalid} of {score.numel()} connections of {where}; "
            "return finite numbers, minding logarithms and divisions: inactive weights are zero"
        )
    candidates = score[~mask]
    if len(candidates) > 1 and (candidates == candidates[0]).all() and gradient[~mask].any():
        raise ValueError(
            f"score returned {candidates[0].item()} for all {len(candidates)} inactive connections of {where}; "
            "return numbers that differ, which the weight alone cannot give: inactive weights are zero"
        )
    return score.unique(return_inverse=True)[1]


class CustomGrowth(RigL):
    """RigL with a reader's own criterion: new connections appear where `score` is largest."""

    def __init__(
        self,
        model: nn.Module,
        masks: Mapping[str, Tensor],
        *,
        score: Callable[[Tensor, Tensor], Tensor],
        **schedule: Any,
    ) -> None:
        """Args:
            model: Network to train.
            masks: Initial mask of each sparse layer, by layer name.
            score: Called with copies of the weight and the dense gradient of one layer; returns a finite number, of
                any sign, for each connection. `lambda weight, gradient: gradient.abs()` is RigL.
            schedule: All keywords of `Dynamic`.
        Raises:
            ValueError: See `Dynamic`; during training, see `checked_ranks`.
        """
        super().__init__(model, masks, **schedule)
        self.score = score

    def grow_score(self, name: str) -> Tensor:
        weight = self.weights[name]
        score = self.score(weight.detach().clone(), weight.grad.clone())
        return checked_ranks(score, weight.grad, self.masks[name], layer=name)
