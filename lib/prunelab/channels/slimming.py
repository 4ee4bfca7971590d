"""Network Slimming: while a network trains, an L1 penalty pulls BatchNorm's gammas, and with them channels, to zero.

Source: Liu et al. 2017, arXiv:1708.06519, Eq. 1; as in Eric-mingjie/network-slimming.
Differs: Gamma starts where the network has it, at 1 in PyTorch; the authors' at 0.5.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from prunelab.masks import distinct
from prunelab.methods.hooks import Hooks


def _gammas(model: nn.Module, norms: Iterable[str]) -> dict[str, nn.Parameter]:
    modules = dict(model.named_modules())
    gammas = {}
    for name in norms:
        norm = modules.get(name)
        if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) or not norm.affine:
            raise ValueError(
                f"{type(model).__name__} has no BatchNorm {name!r} with a gamma, by which slimming ranks the "
                "channels of the layer before it; name a BatchNorm, or build the network with one after that layer"
            )
        gammas[name] = norm.weight
    if not gammas:
        raise ValueError(
            f"slimming needs the gammas of BatchNorm, and none of {type(model).__name__} is named; where the network "
            "has no BatchNorm, choose channels by another method"
        )
    return gammas


def gamma_scores(model: nn.Module, norms: Iterable[str]) -> dict[str, Tensor]:
    """Returns |gamma| of each channel of the named BatchNorm layers, by their name, shape (channels,).

    Args:
        model: Network, slimmed or not.
        norms: Names of BatchNorm layers.
    Raises:
        ValueError: A name that is no BatchNorm with a gamma, or no name at all.
    """
    return {name: gamma.detach().abs() for name, gamma in _gammas(model, norms).items()}


class Slimming(Hooks):
    """Trains with the loss plus penalty * sum of |gamma|: adds penalty * sign(gamma) to the gradient of each gamma."""

    def __init__(self, model: nn.Module, norms: Iterable[str], *, penalty: float) -> None:
        """Leaves `model` as it is.

        Args:
            model: Network to train.
            norms: Names of the BatchNorm layers whose gammas are penalised; one that they share is once.
            penalty: lambda in Eq. 1, at least 0; the authors' 1e-4 for VGG, 1e-5 for ResNet and DenseNet.
        Raises:
            ValueError: A negative penalty; else see `gamma_scores`.
        """
        if penalty < 0:
            raise ValueError(f"penalty must be at least 0, got {penalty}")
        self.gammas = list(distinct(_gammas(model, norms)).values())
        self.penalty = penalty

    @torch.no_grad()
    def change_gradients(self) -> None:
        """Adds the subgradient of the penalty, 0 where gamma is 0."""
        if gammas := [gamma for gamma in self.gammas if gamma.grad is not None]:  # frozen ones have none
            torch._foreach_add_([gamma.grad for gamma in gammas], torch._foreach_sign(gammas), alpha=self.penalty)
