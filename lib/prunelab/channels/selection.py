"""Sparse Structure Selection: factors scale channels, groups or blocks, and some are trained to be exactly zero.

Source: Huang & Wang 2018, arXiv:1707.01213, Eq. 10-12; as in TuSimple/sparse-structure-selection.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunelab import ranks
from prunelab.methods.hooks import Hooks
from prunelab.shadows import Scaling


def _along(factors: Tensor, tensor: Tensor, *, dim: int) -> Tensor:
    """Factors in a shape that multiplies `tensor`: each for a run of equally many channels along `dim`."""
    return factors.repeat_interleave(tensor.shape[dim] // len(factors)).view(-1, *[1] * (tensor.dim() - 1 - dim))


def _scale(factors: Tensor, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    if output.dtype == torch.float16:
        raise ValueError(
            "selection cannot train in fp16, which scales the loss and so its factors' gradients; use bf16"
        )
    return output * _along(factors, output, dim=1).to(output.dtype)


def _check_parameters(modules: Mapping[str, nn.Module], names: Iterable[str]) -> None:
    """Raises ValueError where factors would be folded into a parameter that is frozen, or another layer's too."""
    owners: dict[int, list[str]] = {}
    for name, module in modules.items():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    for name in names:
        for parameter in modules[name].parameters():
            if not parameter.requires_grad:
                raise ValueError(
                    f"layer {name!r} is frozen, and the factors would be folded into it; let it learn, or name others"
                )
            if len(sharing := owners[id(parameter)]) > 1:
                raise ValueError(
                    f"layers {' and '.join(map(repr, sharing))} share a parameter, which the factors of one would scale"
                    " for all; give each its own, or name none of them"
                )


class Selection(Hooks):
    """Multiplies the outputs of layers by factors, which start at 1 and are trained with an L1 penalty.

    The optimizer trains the weights as ever. The factors, no parameters of the model, are trained beside it, at its
    learning rate, by accelerated proximal gradient: shifted = factor - rate * gradient; thresholded = shifted, moved
    towards 0 by up to rate * penalty; velocity = thresholded - factor + momentum * velocity; factor = thresholded +
    momentum * velocity, or 0 where that is negative.

    Attributes:
        factors: At least 0, by layer name, shape (structures,); where one is 0, its structure can be removed.

    Differs: Negative factors become 0, as in the authors' code; Eq. 12 keeps them.
    """

    def __init__(
        self, model: nn.Module, structures: Mapping[str, int], *, penalty: float, momentum: float = 0.9
    ) -> None:
        """Hooks the factors into `model`, which computes what it did.

        Args:
            model: Network to train.
            structures: How many factors the output of a layer has, by the name of a Conv2d, Linear or BatchNorm, each
                for a run of equally many channels: 1 for a block, whose branch ends in that layer; as many as there
                are groups in a grouped convolution, or channels.
            penalty: gamma in the paper, at least 0.
            momentum: mu in the paper, in [0, 1).
        Raises:
            ValueError: No structure, a layer that is not there or cannot be scaled, is frozen, or shares a parameter
                with another one, a number of structures that does not divide its channels, or a penalty or momentum
                out of range.
        """
        if penalty < 0:
            raise ValueError(f"penalty must be at least 0, got {penalty}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {momentum}")
        if not structures:
            raise ValueError(f"no structure of {type(model).__name__} is named; selection needs one to scale")
        modules = dict(model.named_modules())
        for name, n in structures.items():
            if not isinstance(modules.get(name), nn.Conv2d | nn.Linear | nn.BatchNorm1d | nn.BatchNorm2d):
                raise ValueError(f"{type(model).__name__} has no convolution, linear or BatchNorm layer {name!r}")
            n_channels = len(modules[name].weight)
            if n < 1 or n_channels % n:
                raise ValueError(f"{n_channels} channels of layer {name!r} cannot be split into {n} equal structures")
        _check_parameters(modules, structures)
        self.penalty, self.momentum = penalty, momentum
        self._layers = {name: modules[name] for name in structures}

        # One vector holds the factors of all layers, so that few operations update them; those of a layer are a view.
        self._factors = torch.ones(sum(structures.values()), device=next(model.parameters()).device)
        self._gradient, self._velocity = torch.zeros_like(self._factors), torch.zeros_like(self._factors)
        self._rate = self._factors.new_zeros(())
        sizes = list(structures.values())
        self.factors = {
            name: nn.Parameter(part) for name, part in zip(structures, self._factors.split(sizes), strict=True)
        }
        for factors, part in zip(self.factors.values(), self._gradient.split(sizes), strict=True):
            factors.grad = part
        self._hooks = {
            name: layer.register_forward_hook(Scaling(_scale, self.factors[name]))
            for name, layer in self._layers.items()
        }

    def before_update(self, step: int, optimizer: Optimizer) -> bool:
        """Notes the learning rate."""
        ranks.average([self._gradient])
        self._rate.fill_(optimizer.param_groups[0]["lr"])
        return False

    @torch.no_grad()
    def change_weights(self) -> None:
        """Takes a step of the factors."""
        shifted = self._factors - self._rate * self._gradient  # Eq. 10
        thresholded = shifted.sign() * (shifted.abs() - self._rate * self.penalty).clamp(min=0)
        self._velocity.mul_(self.momentum).add_(thresholded - self._factors)  # Eq. 11
        self._factors.copy_((thresholded + self.momentum * self._velocity).clamp(min=0))  # Eq. 12
        self._gradient.zero_()

    @torch.no_grad()
    def fold(self) -> None:
        """Multiplies the factors into the layers' own parameters, and unhooks them: the network computes the same."""
        for name, hook in self._hooks.items():
            hook.remove()
            for parameter in self._layers[name].parameters():
                parameter.mul_(_along(self.factors[name], parameter, dim=0))
        self._hooks.clear()

    def state_dict(self) -> dict:
        return {"factors": self._factors, "velocity": self._velocity}

    def load_state_dict(self, state: dict) -> None:
        self._factors.copy_(state["factors"])
        self._velocity.copy_(state["velocity"])
