"""Lottery tickets: train, prune the smallest weights, rewind those that are left, and train again.

A ticket is a mask together with the values its weights had early in training, at step 0 or a little later. Iterative
magnitude pruning finds it in rounds; each round is a run whose parent is the round before.

Source: Frankle & Carbin 2019, arXiv:1803.03635; Frankle et al. 2020, arXiv:1912.05671 (rewinding to a later step);
global pruning as in facebookresearch/open_lth.
Differs: The output layer always stays dense, so that a ticket can move to data with other classes; open_lth prunes it
in ResNets. A rewound network trains for the whole schedule; open_lth goes on from the step it was rewound to.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunelab.masks import distinct, global_masks, layer_weights, prunable_weights, random_mask
from prunelab.methods.static import Static


def ticket_layers(model: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the weights that a ticket is made of: all prunable ones but the output layer's.

    Raises:
        ValueError: The model has no layer besides its output.
    """
    weights = prunable_weights(model)
    weights.pop(_output_layer(model), None)
    if not weights:
        raise ValueError(f"{type(model).__name__} has no prunable layer besides its output, so it holds no ticket")
    return weights


def _output_layer(model: nn.Module) -> str:
    return list(distinct(layer_weights(model)))[-1]


def prune_smallest(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor], *, density: float) -> dict[str, Tensor]:
    """Returns the masks of the largest active weights in magnitude, ranked over all layers at once.

    Args:
        weights: Trained values by layer name.
        masks: Bool, those active so far; same names and shapes.
        density: Share of all weights that stay, in (0, 1]; ties are broken by position.
    Returns:
        Bool masks, `round(density * n)` active in total, each of them active in `masks`.
    Raises:
        ValueError: See `masks.global_masks`.
    """
    # A diverged network has weights that are no numbers: they rank first, and what inherits them diverges too.
    magnitudes = {name: weights[name].abs().nan_to_num(nan=torch.inf, posinf=torch.inf) for name in masks}
    return global_masks(magnitudes, density=density, masks=masks)


def shuffled(masks: Mapping[str, Tensor], *, generator: torch.Generator) -> dict[str, Tensor]:
    """Draws masks at random with as many active weights in each layer as the given ones."""
    return {name: random_mask(mask.shape, int(mask.sum()), generator=generator) for name, mask in masks.items()}


def load_values(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copies a ticket's values into a model; an output layer for other classes stays as the model has it.

    Args:
        model: Changed in place.
        values: A state dict of the network that the ticket was found in.
    Raises:
        ValueError: They are of another network; names the first layer that differs.
    """
    own = model.state_dict()
    output = _output_layer(model)
    fitting = {name: value for name, value in values.items() if name in own and own[name].shape == value.shape}
    for name in (*own, *values):  # in their order, so that the first is named
        if name not in fitting and name.rpartition(".")[0] != output:
            found, wanted = (tuple(state[name].shape) if name in state else "absent" for state in (values, own))
            raise ValueError(
                f"a ticket for another network: {name} is {found} in the ticket and {wanted} in {type(model).__name__};"
                " model, width, channels and image size must be those it was found with"
            )
    model.load_state_dict(fitting, strict=False)


class Ticket(Static):
    """Trains under the mask of one round, and remembers the values to which later rounds rewind."""

    @classmethod
    def build(
        cls,
        model: nn.Module,
        options: Any,
        *,
        masks: Mapping[str, Tensor] | None,
        n_epochs: int,
        n_steps: int,
        **_: Any,
    ) -> "Ticket":
        """Builds one round; the first is dense, and remembers the values that all later ones rewind to.

        Raises:
            ValueError: Rewinding past the end of training, or a first round that is not dense.
        """
        if not 0 <= options.rewind_epochs <= n_epochs:
            raise ValueError(
                f"cannot rewind to epoch {options.rewind_epochs:g}: training has {n_epochs};"
                " rewind_epochs must lie between 0 and that"
            )
        if masks is not None:
            return cls(model, masks, rewind_steps=0)
        if options.density < 1.0:
            raise ValueError("the first round of a lottery is dense: density 1.0; later rounds have a parent")
        masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in ticket_layers(model).items()}
        return cls(model, masks, rewind_steps=round(options.rewind_epochs * n_steps / n_epochs))

    @classmethod
    def inherit(
        cls, masks: Mapping[str, Tensor], trained: Mapping[str, Tensor], *, density: float
    ) -> dict[str, Tensor]:
        """Returns what pruning leaves of a parent's masks."""
        return prune_smallest(trained, masks, density=density)

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor], *, rewind_steps: int) -> None:
        """Args:
            model: With the values that this round starts from.
            masks: Of this round, by layer name; all True in the first.
            rewind_steps: Optimizer steps after which the values are remembered; 0 remembers where training starts.
        Raises:
            ValueError: A step below 0; see `Static`.
        """
        if rewind_steps < 0:
            raise ValueError(f"rewind_steps must be at least 0, got {rewind_steps}")
        self.model, self.rewind_steps = model, rewind_steps
        self._remember()  # before the mask zeroes any value
        super().__init__(model, masks)

    def _remember(self) -> None:
        self.start = {name: value.clone() for name, value in self.model.state_dict().items()}

    def after_update(self, step: int, optimizer: Optimizer) -> None:
        if step == self.rewind_steps:
            self._remember()

    def state_dict(self) -> dict:
        return super().state_dict() | {"start": self.start}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.start = {name: value.to(self.start[name].device) for name, value in state["start"].items()}
