"""What the scores by gradients share: a copy to differentiate, and gradients summed over batches.

Every score leaves the given model as it is. It works on a copy in evaluation mode, in which what it finds of an image
does not depend on the others in its batch: dropout is off, and BatchNorm takes its running statistics, which in a
freshly built network are 0 and 1.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Batches = Sequence[tuple[Tensor, Tensor]]  # images and labels, on the model's device
Weights = Mapping[str, nn.Parameter]  # by layer name


def check_weights(model: nn.Module, weights: Weights) -> None:
    """Raises ValueError unless `weights` are different parameters of `model`, at least one, and finite numbers."""
    if not weights:
        raise ValueError(f"no weights of {type(model).__name__} to score; masks.prunable_weights(model) has all")
    parameters = {id(parameter) for parameter in model.parameters()}
    names: dict[int, str] = {}
    for name, weight in weights.items():
        if id(weight) not in parameters:
            raise ValueError(f"the weight of layer {name!r} is no parameter of {type(model).__name__}")
        if id(weight) in names:
            raise ValueError(f"layers {names[id(weight)]!r} and {name!r} share one weight; name one of them")
        if weight.is_meta:
            raise ValueError(f"layer {name!r} has weights on the meta device, without numbers to be scored")
        if not weight.isfinite().all():
            raise ValueError(f"layer {name!r} has weights that are NaN or infinite")
        names[id(weight)] = name


def check_batches(batches: Batches) -> None:
    """Raises ValueError unless there is a batch, each has as many labels as images, at least one, and torch records."""
    if torch.is_inference_mode_enabled():
        raise ValueError("scores need gradients, which torch.inference_mode() rules out: call them outside of it")
    if not isinstance(batches, Sequence) or not batches:
        raise ValueError(f"batches must be a sequence of at least one (images, labels), got {type(batches).__name__}")
    for i, (images, labels) in enumerate(batches):
        if not 0 < len(images) == len(labels):
            raise ValueError(f"batch {i} must have a label for each of its images, got {len(labels)} for {len(images)}")


def copied(model: nn.Module, weights: Weights) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """Copies a model, and returns with it the copy's own weights, by the same names.

    Raises:
        ValueError: See `check_weights`.
    """
    check_weights(model, weights)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    twin = copy.deepcopy(model)
    return twin, {name: twin.get_parameter(names[id(weight)]) for name, weight in weights.items()}


def differentiable(model: nn.Module, weights: Weights) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """Copies a model into evaluation mode, with gradients of the given weights, frozen ones too, and of nothing else.

    Raises:
        ValueError: See `check_weights`.
    """
    twin, own = copied(model, weights)
    twin.eval().requires_grad_(False)
    for weight in own.values():
        weight.requires_grad_()
    return twin, own


def summed_loss(model: nn.Module, images: Tensor, labels: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Sums the cross-entropy of a batch over its images.

    Args:
        model: Returns logits, (images, classes).
        images: As the model takes them.
        labels: Class of each image.
        temperature: Divides the logits.
    Raises:
        ValueError: Other outputs than logits, or a label that is none of their classes.
    """
    logits = model(images)
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"{type(model).__name__} must return logits, (images, classes), got {found}")
    smallest, largest = labels.min().item(), labels.max().item()
    if smallest < 0 or largest >= logits.shape[1]:
        raise ValueError(
            f"labels must lie in 0 .. {logits.shape[1] - 1}, the outputs of {type(model).__name__};"
            f" got {smallest} .. {largest}"
        )
    return F.cross_entropy(logits / temperature, labels, reduction="sum")


def summed_gradients(
    model: nn.Module, weights: Weights, batches: Batches, objective: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, Tensor]:
    """Sums over batches the gradients of an objective; only one batch's activations are held at a time.

    Args:
        model: From `differentiable`.
        weights: Its own weights, by layer name.
        batches: Images and labels.
        objective: Called with a batch; returns a 0-d tensor.
    Returns:
        Gradient for each weight by layer name, in single precision at least.
    Raises:
        ValueError: An objective or a gradient that is not finite, with the layer where it began, or a layer that no
            objective depends on: a score of zero would prune it whole.
    """
    check_batches(batches)
    sums: dict[str, Tensor] = {}
    for i, (images, labels) in enumerate(batches):
        with torch.enable_grad():
            value = objective(images, labels)
        if not value.isfinite():
            raise ValueError(f"the objective of batch {i} is {value.item()}: {_where_it_began(model, images)}")
        if not value.requires_grad:
            continue
        gradients = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
        for name, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                precise = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
                sums[name] = sums[name] + precise if name in sums else precise
    if idle := [name for name in weights if name not in sums]:
        raise ValueError(f"what is measured does not depend on the weights of {', '.join(idle)}; leave them out")
    for name, gradient in sums.items():
        if not gradient.isfinite().all():
            raise ValueError(f"layer {name!r} has gradients that are NaN or infinite")
    return {name: sums[name] for name in weights}


@torch.no_grad()
def _where_it_began(model: nn.Module, images: Tensor) -> str:
    """Names the first layer whose output is not finite."""
    if not images.isfinite().all():
        return "the images have NaN or infinite values"
    found: list[str] = []

    def hook(name: str, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        if isinstance(output, Tensor) and not output.isfinite().all():
            found.append(name)

    hooks = [module.register_forward_hook(partial(hook, name)) for name, module in model.named_modules() if name]
    model(images)
    for handle in hooks:
        handle.remove()
    return f"the output of layer {found[0]!r} is the first that is not finite" if found else "every layer's is finite"
