"""Static sparse training: a random mask, fixed before the first step. Also the base of the dynamic methods.

Source: `scratch` in google-research/rigl; Evci et al. 2020, arXiv:1911.11134, Sec. 4 ("Static").
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunelab.density import allocate
from prunelab.masks import distinct, layer_weights, prunable_weights, random_mask
from prunelab.methods.hooks import Hooks

FIRST_LAYERS = ("by_distribution", "dense")


def active_counts(
    model: nn.Module, *, density: float, distribution: str, first_layer: str = "by_distribution"
) -> dict[str, int]:
    """Counts the weights of each masked layer that are active; frozen layers stay dense, outside the budget.

    Uniform leaves the first layer dense, without a mask and outside the budget; Erdős–Rényi and ERK mask every layer.
    With `first_layer="dense"` they too leave out the first one.

    Args:
        model: Network with convolution or linear layers.
        density: Share of the masked layers' weights that stay, in (0, 1].
        distribution: `uniform`, `erdos_renyi` or `erk`.
        first_layer: One of `FIRST_LAYERS`.
    Returns:
        Active weights by layer name; a layer that stays dense is not in it.
    Raises:
        ValueError: An unknown `first_layer`; else see `density.allocate` and `masks.prunable_weights`.
    Source: Evci et al. 2020, Sec. 3 (1) and App. K.
    """
    if first_layer not in FIRST_LAYERS:
        raise ValueError(f"unknown first_layer {first_layer!r}; there are {', '.join(FIRST_LAYERS)}")
    shapes = {name: tuple(weight.shape) for name, weight in prunable_weights(model).items()}
    if first_layer == "dense" or (distribution == "uniform" and len(shapes) > 1):
        del shapes[next(iter(shapes))]
    return allocate(shapes, density, distribution=distribution)


def initial_masks(model: nn.Module, *, generator: torch.Generator, **allocation: Any) -> dict[str, Tensor]:
    """Draws masks for a fresh model, by layer name; `allocation` as for `active_counts`, `generator` on the CPU."""
    return random_masks(model, active_counts(model, **allocation), generator=generator)


def random_masks(model: nn.Module, n_active: Mapping[str, int], *, generator: torch.Generator) -> dict[str, Tensor]:
    """Draws masks with given numbers of active weights, by layer name; `generator` on the CPU."""
    weights = weights_of(model, n_active)
    return {name: random_mask(weights[name].shape, n, generator=generator) for name, n in n_active.items()}


def weights_of(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter]:
    """Returns the weights of some layers; a weight that layers share is known by the first.

    Raises:
        ValueError: A name that is no such layer.
    """
    weights = distinct(layer_weights(model))
    for name in names:
        if name not in weights:
            raise ValueError(
                f"{type(model).__name__} has no convolution or linear layer {name!r} with a weight of its own;"
                f" there are {', '.join(weights)}"
            )
    return {name: weights[name] for name in names}


def full_masks(model: nn.Module, n_active: Mapping[str, int]) -> dict[str, Tensor]:
    """Returns all-True masks, for methods that start dense.

    Args:
        model: Network with convolution or linear layers.
        n_active: How many weights of each layer the method will keep, by layer name; only checked here.
    Raises:
        ValueError: A layer that is not there, or a count outside 1 .. size of the layer.
    """
    weights = weights_of(model, n_active)
    for name, n in n_active.items():
        if not isinstance(n, Integral) or not 1 <= n <= weights[name].numel():
            raise ValueError(f"layer {name!r} of {weights[name].numel()} weights cannot keep {n} of them")
    return {name: torch.ones(weights[name].shape, dtype=torch.bool) for name in n_active}


def momenta(parameter: nn.Parameter, optimizer: Optimizer) -> list[Tensor]:
    """Lists what an optimizer gathers of a parameter's gradients, element by element; nothing before its first step."""
    slots = optimizer.state[parameter].values()
    return [slot for slot in slots if isinstance(slot, Tensor) and slot.shape == parameter.shape]


class Dense(Hooks):
    """No mask at all: `build` gives no hooks.

    Attributes:
        inherits: Whether a run may take its mask from a parent; otherwise the method chooses its own.
        matched: Column of the layer table in which a narrower dense network equals a masked one of the given density;
            None leaves the network as wide as it is.
    """

    inherits = False
    matched: str | None = None

    @classmethod
    def build(cls, model: nn.Module, options: Any, **_: Any) -> Hooks | None:
        """Builds the method around a model, as the options of a run say; see `Static.build`."""
        return None


class SmallDense(Dense):
    """A narrower dense network with as many weights as a masked one."""

    matched = "n_active"


class SmallDenseMacs(Dense):
    """A narrower dense network with as many MACs as a masked one."""

    matched = "macs"


class Static(Dense):
    """Holds the weights of a model to fixed masks.

    Inactive weights are stored as zeros, so the model runs unchanged and its gradients are those of all weights. A mask
    is changed by `set_mask`, in place: a GPU reads the same tensors at every step. The mask of a layer that has no
    gradient, be it frozen or never reached by the loss, does not change.
    """

    inherits = True

    @classmethod
    def build(
        cls,
        model: nn.Module,
        options: Any,
        *,
        masks: Mapping[str, Tensor] | None,
        n_active: Callable[[], Mapping[str, int]],
        n_epochs: int,
        n_steps: int,
        generator: Callable[[str], torch.Generator],
        batches: Callable[..., Iterator[tuple[Tensor, Tensor]]],
        **own: Any,
    ) -> "Static":
        """Builds the method around a model, as the options of a run say.

        Args:
            model: With the values to start from.
            options: Has an attribute for each option that the method takes.
            masks: Taken from a parent; None lets the method choose its own.
            n_active: Gives the active weights of each layer to be sparse, for a method that chooses among them.
            n_epochs: Epochs of the whole training.
            n_steps: Its optimizer steps.
            generator: Gives the generator of a random stream, by its name.
            batches: Called with a `batch_size`; gives training batches without end, and with a state, for a method that
                needs images of its own.
            own: Keywords of the method that no option holds.
        """
        if masks is None:
            masks = random_masks(model, n_active(), generator=generator("masks"))
        return cls(model, masks, **cls.schedule(options, n_steps=n_steps, generator=generator), **own)

    @classmethod
    def schedule(cls, options: Any, *, n_steps: int, generator: Callable[[str], torch.Generator]) -> dict[str, Any]:
        """Returns the keywords of the method that follow from a run's options; arguments as for `build`."""
        return {}

    @classmethod
    def inherit(
        cls, masks: Mapping[str, Tensor], trained: Mapping[str, Tensor], *, density: float
    ) -> dict[str, Tensor]:
        """Returns the masks to begin with, from those of a parent and its trained weights, by layer name."""
        return dict(masks)

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        """Zeroes the inactive weights of `model`, which keeps running as it is.

        Args:
            model: Its device is where the masks will be.
            masks: Bool mask for each layer to be sparse, by layer name; for layers that share a weight, by the first.
        Raises:
            ValueError: A mask for a layer that is not there, of another shape, or not of bools.
        """
        weights = distinct(layer_weights(model))
        for name, mask in masks.items():
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
                found = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
                raise ValueError(f"mask {name!r} must be a bool tensor, True where a weight is active; got {found}")
            if name not in weights or weights[name].shape != mask.shape:
                raise ValueError(f"mask {name!r} of shape {tuple(mask.shape)} fits no layer of {type(model).__name__}")
        self.weights = {name: weights[name] for name in masks}
        self.masks = {name: mask.clone().to(weights[name].device) for name, mask in masks.items()}
        # The masks as numbers that lie in memory as the weights do, which multiply several times as fast as bools.
        self._factors = {
            name: torch.empty_like(weight.detach()).copy_(self.masks[name]) for name, weight in self.weights.items()
        }
        self.change_weights()

    @torch.no_grad()
    def change_gradients(self) -> None:
        """Removes the gradients of inactive weights, so that no momentum gathers there."""
        if gradients := self._gradients():
            torch._foreach_mul_(list(gradients.values()), [self._factors[name] for name in gradients])

    @torch.no_grad()
    def change_weights(self) -> None:
        """Zeroes inactive weights."""
        torch._foreach_mul_(list(self.weights.values()), list(self._factors.values()))

    def set_mask(self, name: str, mask: Tensor) -> None:
        """Puts new values into the mask of a layer, in place; its weights are left to the caller."""
        self.masks[name].copy_(mask)
        self._factors[name].copy_(mask)

    def _gradients(self) -> dict[str, Tensor]:
        """Gradients of the masked layers, by name, that have one."""
        return {name: weight.grad for name, weight in self.weights.items() if weight.grad is not None}

    def _learning(self) -> list[str]:
        """Names of the masked layers that have a gradient; before the first step, of those that are to have one."""
        return list(self._gradients()) or [name for name, weight in self.weights.items() if weight.requires_grad]

    @torch.no_grad()
    def _keep_only(self, kept: Tensor, weight: nn.Parameter, optimizer: Optimizer) -> None:
        """Zeroes a weight and its momentum wherever `kept` is False."""
        weight.mul_(kept)
        for slot in momenta(weight, optimizer):
            slot.mul_(kept)

    def state_dict(self) -> dict:
        return {"masks": self.masks, "n_dense_gradients": self.n_dense_gradients}

    def load_state_dict(self, state: dict) -> None:
        for name, mask in state["masks"].items():
            self.set_mask(name, mask)
        self.n_dense_gradients = state["n_dense_gradients"]
