"""STR: each layer learns a threshold; what of a weight exceeds it takes part, and weights below it are zero.

Source: Kusupati et al. 2020, arXiv:2002.03231, Sec. 3; as in RAIVNLab/STR.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunelab.methods.static import Dense, weights_of


def soft_threshold(weight: Tensor, s: Tensor) -> Tensor:
    """Returns sign(weight) * relu(|weight| - sigmoid(s)), the weight that takes part; same shape as `weight`."""
    return weight.sign() * (weight.abs() - s.sigmoid()).relu()


class SoftThreshold(Dense):
    """Trains weights W behind a soft threshold of each layer, sigmoid(s), which is trained too.

    Between steps the model's own weights are the effective ones, `soft_threshold(W, s)`: every reader, be it a forward
    pass, an evaluation or a child run, sees an ordinary masked network. W takes their place only while the optimizer
    steps, with the gradient that autograd carries on to it; the optimizer's weight decay is that of W. Each s, no
    parameter of the model, is trained beside it by SGD with momentum, at the optimizer's learning rate. A layer that
    has no gradient keeps its weights and its threshold.

    How many weights stay is not set: it is what the decay of s, towards a threshold of 1/2, leaves. Far below 0 s has
    no gradient, since sigmoid(s) has none; there it follows start * exp(-decay * sum of learning rates / (1 -
    momentum)). The authors' -3200 and 500,000 steps bring this exponent to 11; in a short training it may stay below 1,
    and s with it where it was. So s starts here where sigmoid(s) is below most weights, but of their size.

    Attributes:
        latents: W by layer name.
        s: By layer name, 0-d.

    Differs: In the authors' code s is a parameter of its layer like others, stepped by whichever optimizer they choose,
        and starts at -3200, or at about -100 on CIFAR by their advice (issue 2), neither of which a short training
        brings near 0. Depthwise convolutions stay dense, see `masks.prunable_weights`.
    """

    @classmethod
    def build(
        cls, model: nn.Module, options: Any, *, n_active: Callable[[], Mapping[str, int]], **_: Any
    ) -> "SoftThreshold":
        """Builds the method around a model, on the layers of `n_active`, whose counts it takes no notice of."""
        decay = options.weight_decay if options.threshold_decay is None else options.threshold_decay
        return cls(
            model,
            n_active(),
            start=options.threshold_start,
            decay=decay,
            momentum=options.momentum,
            count_every=options.update_every,
        )

    def __init__(
        self, model: nn.Module, layers: Iterable[str], *, start: float, decay: float, momentum: float, count_every: int
    ) -> None:
        """Puts the weights of `model` behind a threshold.

        Args:
            model: Network to train.
            layers: Names of those to be sparse; of layers that share a weight, the first. Frozen ones are left out.
            start: Of each s.
            decay: Added to the gradient of s, times s; at least 0.
            momentum: Of s, in [0, 1).
            count_every: Optimizer steps between two counts of the active weights, the first after step 1.
        Raises:
            ValueError: A layer that is not there, or a number out of range.
        """
        if decay < 0:
            raise ValueError(f"decay of s must be at least 0, got {decay}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum of s must lie in [0, 1), got {momentum}")
        if count_every < 1:
            raise ValueError(f"count_every must be at least 1 step, got {count_every}")
        weights = weights_of(model, layers)
        self.decay, self.momentum, self.count_every = decay, momentum, count_every
        self.weights = {name: weight for name, weight in weights.items() if weight.requires_grad}
        self.latents = {name: weight.detach().clone().requires_grad_() for name, weight in self.weights.items()}
        self.s = {name: weight.new_full((), start).requires_grad_() for name, weight in self.weights.items()}
        self._velocities = {name: torch.zeros_like(s) for name, s in self.s.items()}
        self._rate = next(model.parameters()).new_zeros(())
        # What was counted: the step, and of each layer its active weights and its threshold.
        self.moves: dict[str, list] = {"step": [], "n_active": [], "threshold": []}
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(soft_threshold(weight, self.s[name]))

    @property
    def masks(self) -> dict[str, Tensor]:
        """True where an effective weight is not zero, by layer name."""
        return {name: weight.detach() != 0 for name, weight in self.weights.items()}

    def before_update(self, step: int, optimizer: Optimizer) -> bool:
        """Notes the learning rate."""
        self._rate.fill_(optimizer.param_groups[0]["lr"])
        return False

    def change_gradients(self) -> None:
        """Carries gradients on from effective weights to W and s, and puts W where the optimizer steps."""
        for name, weight in self._learning().items():
            latent, s = self.latents[name], self.s[name]
            with torch.enable_grad():
                effective = soft_threshold(latent, s)
            weight.grad, s.grad = torch.autograd.grad(effective, (latent, s), weight.grad)
            with torch.no_grad():
                weight.copy_(latent)

    @torch.no_grad()
    def change_weights(self) -> None:
        """Takes a step of s, and puts effective weights where the optimizer stepped W."""
        for name, weight in self._learning().items():
            latent, s, velocity = self.latents[name], self.s[name], self._velocities[name]
            velocity.mul_(self.momentum).add_(s.grad + self.decay * s)
            s.sub_(self._rate * velocity)
            latent.copy_(weight)
            weight.copy_(soft_threshold(latent, s))

    def _learning(self) -> dict[str, nn.Parameter]:
        """The weights that have a gradient; frozen ones have none."""
        return {name: weight for name, weight in self.weights.items() if weight.grad is not None}

    @torch.no_grad()
    def after_update(self, step: int, optimizer: Optimizer) -> None:
        """Counts the active weights now and then, for the cost of training."""
        if (step - 1) % self.count_every == 0:
            self.moves["step"].append(step)
            self.moves["n_active"].append(torch.stack([mask.sum() for mask in self.masks.values()]).tolist())
            self.moves["threshold"].append(torch.stack([s.sigmoid() for s in self.s.values()]).tolist())

    def state_dict(self) -> dict:
        return {"latents": self.latents, "s": self.s, "velocities": self._velocities, "moves": self.moves}

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        for name in self.weights:
            self.latents[name].copy_(state["latents"][name])
            self.s[name].copy_(state["s"][name])
            self._velocities[name].copy_(state["velocities"][name])
        self.moves = state["moves"]
