"""WoodFisher: gradual pruning by what a weight's loss would cost, after which the other weights make up for it.

Each pruning estimates the Fisher matrix afresh from training images, ranks the weights of all layers at once by their
cost, w_q^2 / (2 [F^-1]_qq), and moves those that stay. Between prunings the masks are fixed.

Source: Singh & Alistarh 2020, arXiv:2004.14340; IST-DASLab/WoodFisher, `woodfisherblock` with joint ranking.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from prunelab import fisher
from prunelab.masks import global_masks
from prunelab.methods.gradual import GradualPruning
from prunelab.shadows import precision_of

_N_AT_ONCE = 32  # images whose gradients are held, unless one gradient takes more


def mean_gradients(
    model: nn.Module, weights: Mapping[str, Tensor], images: Tensor, labels: Tensor, *, n_averaged: int = 1
) -> dict[str, Tensor]:
    """Returns the gradients of the cross-entropy for each image, or for each few of them on average.

    Args:
        model: In evaluation mode, so that no image changes another's gradient through BatchNorm.
        weights: Its weights that the gradients are of, frozen ones too, by layer name.
        images: (k * n_averaged, c, h, w).
        labels: Class of each.
        n_averaged: Successive images that share a gradient, that of their mean loss.
    Returns:
        (k, *shape of the weight) by layer name.
    """

    names = {id(weight): name for name, weight in weights.items()}
    # Each place once: torch, left to tie them, unties what a layer of two names shares with another.
    places = {
        place: names[id(parameter)]
        for prefix, module in model.named_modules()
        for place, parameter in module.named_parameters(prefix, recurse=False)
        if id(parameter) in names
    }

    def loss(values: Mapping[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
        own = {place: values[name] for place, name in places.items()}
        return F.cross_entropy(functional_call(model, own, (images,), tie_weights=False), labels)

    values = {name: weight.detach() for name, weight in weights.items()}
    groups = (tensor.unflatten(0, (-1, n_averaged)) for tensor in (images, labels))
    return vmap(grad(loss), in_dims=(None, 0, 0))(values, *groups)


class WoodFisher(GradualPruning):
    """As gradual pruning, but the weights that leave are those that cost least by the Fisher matrix, in any layer.

    The masks have as many active weights in total as the schedule says; how many each layer has follows. A layer that
    has no gradient stays as it is, and counts in neither.

    Differs: Training images are drawn and augmented as in training, by a stream of their own. The loss has hard labels.
        The authors prune at the beginning of an epoch; we do so every so many steps, as our gradual pruning.
    """

    @classmethod
    def build(
        cls,
        model: nn.Module,
        options: Any,
        *,
        n_active: Callable[[], Mapping[str, int]],
        n_steps: int,
        batches: Callable[..., Iterator[tuple[Tensor, Tensor]]],
        **_: Any,
    ) -> "WoodFisher":
        return cls(
            model,
            n_active(),
            batches=batches,
            n_gradients=options.fisher_gradients,
            n_averaged=options.fisher_images,
            block_size=options.fisher_block,
            damping=options.fisher_damping,
            joint=options.fisher_joint,
            **cls.schedule(options, n_steps=n_steps),
        )

    def __init__(
        self,
        model: nn.Module,
        n_active: Mapping[str, int],
        *,
        batches: Callable[..., Iterator[tuple[Tensor, Tensor]]],
        n_gradients: int,
        n_averaged: int = 1,
        block_size: int,
        damping: float,
        joint: bool = False,
        **schedule: int,
    ) -> None:
        """Leaves `model` dense until `begin_step`.

        The inverse takes 4 bytes times `block_size` for each weight.

        Args:
            model: Network to train.
            n_active: Active weights in the end, by name of the layers to be sparse; only their sum counts.
            batches: As for `Static.build`.
            n_gradients: From which each pruning estimates the Fisher matrix.
            n_averaged: Images that each of these is averaged over; the authors take 1 on CIFAR-10 and 400 on ImageNet.
            block_size: As for `fisher.inverse_without_gradients`.
            damping: Likewise.
            joint: As for `fisher.pruning_update`.
            schedule: All keywords of `GradualPruning`.
        Raises:
            ValueError: No gradient, or one of no image; see `GradualPruning` and `fisher.inverse_without_gradients`.
        """
        super().__init__(model, n_active, **schedule)
        if n_gradients < 1 or n_averaged < 1:
            raise ValueError(
                f"the Fisher matrix needs at least 1 gradient of 1 image, got {n_gradients} of {n_averaged}"
            )
        self.model = model
        self.n_gradients = n_gradients
        self.n_averaged = n_averaged
        self.block_size = block_size
        self.damping = damping
        self.joint = joint
        self.batches = batches(batch_size=max(1, _N_AT_ONCE // n_averaged) * n_averaged)

    @torch.no_grad()
    def prune(self, step: int) -> None:
        """Sets all masks to what the schedule leaves at `step`, and moves the weights that stay."""
        masks = {name: self.masks[name] for name in self._learning()}
        size = sum(mask.numel() for mask in masks.values())
        n_left = self.count_at(step, size=size, n_active=sum(self.n_active[name] for name in masks))
        if n_left == sum(int(mask.sum()) for mask in masks.values()):
            return
        inverses = self.inverse_fisher()
        costs = {name: self._cost(name, inverses[name]) for name in masks}
        for name, mask in global_masks(costs, density=n_left / size, masks=masks).items():
            weight, inverse, leaving = self.weights[name], inverses[name], masks[name] & ~mask
            weight.add_(fisher.pruning_update(weight.to(inverse), inverse, leaving, joint=self.joint))
            self.set_mask(name, mask)

    def _cost(self, name: str, inverse: Tensor) -> Tensor:
        """Returns what pruning each weight of a layer costs; where that is no number, it ranks first.

        So training of a diverged network ends as it does elsewhere.
        """
        cost = fisher.pruning_cost(self.weights[name].to(inverse), inverse).nan_to_num(nan=torch.inf, posinf=torch.inf)
        if n_lost := int((is_lost := cost < 0).sum()):
            warnings.warn(f"rounding loses the cost of {n_lost} weights of {name}: take a larger damping", stacklevel=2)
        return cost.masked_fill(is_lost, torch.inf)

    @torch.no_grad()
    def inverse_fisher(self) -> dict[str, Tensor]:
        """Estimates the inverse of the Fisher matrix in blocks, by layer name, from the next training images.

        It is in single precision at least.
        """
        options = {"block_size": self.block_size, "damping": self.damping}
        inverses = {
            name: fisher.inverse_without_gradients(
                weight.detach().to(torch.promote_types(weight.dtype, torch.float32)), **options
            )
            for name, weight in self.weights.items()
        }
        n_missing, was_training = self.n_gradients, self.model.training
        self.model.eval()
        while n_missing:
            images, labels = (part[: n_missing * self.n_averaged] for part in next(self.batches))
            images = images.to(precision_of(self.model))
            gradients = mean_gradients(self.model, self.weights, images, labels, n_averaged=self.n_averaged)
            for name, gradient in gradients.items():
                inverse, masked = inverses[name], gradient * self.masks[name]
                fisher.add_gradients(inverse, masked.to(inverse), n_gradients=self.n_gradients)
            n_missing -= len(images) // self.n_averaged
            self.n_extra_images += len(images)
        self.model.train(was_training)
        return inverses

    def state_dict(self) -> dict:
        own = {"n_extra_images": self.n_extra_images, "batches": self.batches.state_dict()}
        return super().state_dict() | own

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.n_extra_images = state["n_extra_images"]
        self.batches.load_state_dict(state["batches"])
