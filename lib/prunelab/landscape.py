"""The training loss on the way from one solution to another: along a line, or a curve fitted to keep it low.

A path is a Bezier curve through parameter space. Its points are parameters by name, as `state_dict` gives them: the
two solutions, and between them no control point (a line), one (quadratic) or two (cubic). Buffers lie on no curve.

Source: Evci et al. 2020, arXiv:1911.11134, Sec. 4.4 and Fig. 6; Garipov et al. 2018, arXiv:1802.10026, Sec. 3.
Differs: Every batch is normalised by its own statistics, since running ones of neither end fit in between, where
    Garipov et al. compute them anew over the training set at each point. No dropout and no weight decay: the curve is
    fitted to the loss that is measured.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from prunelab.data.dataset import LabelledImages
from prunelab.schedules import learning_rate as learning_rate_at

State = Mapping[str, Tensor]
N_POSITIONS, N_IMAGES = 21, 2000  # at which the loss along a path is taken, and of how many training images


def point_on_curve(points: Sequence[State], position: float) -> dict[str, Tensor]:
    """Returns the point of a Bezier curve at a position.

    Args:
        points: Start, control points, end; all with the same names.
        position: In [0, 1]; t in the paper. 0 gives the start and 1 the end, exactly.
    """
    degree = len(points) - 1
    shares = [math.comb(degree, k) * position**k * (1 - position) ** (degree - k) for k in range(degree + 1)]
    return {name: sum(share * point[name] for share, point in zip(shares, points, strict=True)) for name in points[0]}


def union_masks(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns masks of what is active in either: the smallest sparse subspace that holds both solutions.

    A layer that one of them leaves unmasked has no mask.
    """
    return {layer: mask | b[layer] for layer, mask in a.items() if layer in b}


def barrier(losses: Sequence[float]) -> float:
    """Tells how far the loss on a path rises above the higher of its ends, at least 0; NaN where a loss is NaN."""
    return float(np.max(losses)) - max(losses[0], losses[-1])


@torch.no_grad()
def loss_along(
    model: nn.Module,
    start: State,
    end: State,
    dataset: LabelledImages,
    *,
    control_points: Sequence[State] = (),
    n_positions: int = N_POSITIONS,
    n_images: int = N_IMAGES,
    batch_size: int = 200,
) -> tuple[list[float], list[float]]:
    """Measures the training loss at evenly spaced positions of a path.

    Every position, on every call, sees the same images in the same batches, without augmentation.

    Args:
        model: Gives the architecture, on the data set's device; left as it is.
        start: Parameters of one solution, buffers ignored.
        end: Parameters of the other.
        dataset: Its training images are used.
        control_points: None for a line, else what `fit_curve` gives.
        n_positions: How many positions, ends included.
        n_images: Training images, chosen at random once and for all; at most all there are, and full batches only.
        batch_size: Images that share their statistics in batch normalisation.
    Returns:
        positions: From 0 to 1.
        losses: Mean cross-entropy at each.
    Raises:
        ValueError: A state that does not fit the model, fewer than two positions, or not one full batch.
    """
    if n_positions < 2:
        raise ValueError(f"n_positions must be at least 2, both ends; got {n_positions}")
    n_images = min(n_images, dataset.n_train)
    if not 1 <= batch_size <= n_images:
        raise ValueError(f"batch_size must lie in 1..{n_images}, the images used; got {batch_size}")
    points = [_parameters(model, state) for state in (start, *control_points, end)]
    # In a fixed random order: a batch of a single class would have statistics that no training ever saw.
    shuffled = dataset.train_batches(batch_size=batch_size, augment=False, generator=torch.Generator().manual_seed(0))
    batches = list(islice(shuffled, n_images // batch_size))
    model = _with_batch_statistics(model)

    positions = [i / (n_positions - 1) for i in range(n_positions)]
    on_curve = (point_on_curve(points, position) for position in positions)
    losses = [sum(_loss(model, point, *batch) for batch in batches) / len(batches) for point in on_curve]
    return positions, torch.stack(losses).tolist()


def fit_curve(
    model: nn.Module,
    start: State,
    end: State,
    dataset: LabelledImages,
    *,
    n_control_points: int,
    masks: Mapping[str, Tensor] | None,
    n_steps: int,
    batch_size: int,
    learning_rate: float,
    momentum: float,
    generator: torch.Generator,
    augment: bool = False,
) -> list[dict[str, Tensor]]:
    """Bends the line between two solutions until the mean training loss along it is low.

    Each step takes one batch at one random position and moves the control points by SGD with a cosine schedule. The
    solutions themselves stay.

    Args:
        model: Gives the architecture, on the data set's device; left as it is.
        start: Parameters of one solution, buffers ignored.
        end: Parameters of the other.
        dataset: Its training images are used.
        n_control_points: 1 for a quadratic curve, 2 for a cubic one. They start evenly spaced on the line.
        masks: By layer, bool, on the model's device; control points are zero where a mask is False, and layers without
            one are free. The `union_masks` of both solutions keep the curve in their sparse subspace, None leaves it
            the dense space.
        n_steps: Of SGD.
        batch_size: Images a step.
        learning_rate: At the first step.
        momentum: Of SGD, Nesterov's kind.
        generator: Decides positions, order of images and augmentation, on the CPU.
        augment: As in training.
    Returns:
        The control points, from start to end.
    Raises:
        ValueError: A state or mask that does not fit the model, no control point, or an impossible batch size.
    Source: Garipov et al. 2018, arXiv:1802.10026, Eq. 2.
    """
    if n_control_points < 1:
        raise ValueError(f"n_control_points must be at least 1, a line has nothing to fit; got {n_control_points}")
    start, end = _parameters(model, start), _parameters(model, end)
    pruned = {f"{layer}.weight": ~mask for layer, mask in (masks or {}).items()}
    for name, mask in pruned.items():
        if name not in start or start[name].shape != mask.shape:
            raise ValueError(f"the mask of {name}, {tuple(mask.shape)}, fits no parameter of the model")

    controls = [point_on_curve((start, end), k / (n_control_points + 1)) for k in range(1, n_control_points + 1)]
    masked = [(control[name], mask) for control in controls for name, mask in pruned.items()]
    for tensor, mask in masked:
        tensor.masked_fill_(mask, 0.0)
    free = [tensor.requires_grad_() for control in controls for tensor in control.values()]
    optimizer = torch.optim.SGD(free, momentum=momentum, nesterov=momentum > 0)
    positions = torch.rand(n_steps, generator=generator).tolist()
    batches = dataset.train_batches(batch_size=batch_size, augment=augment, generator=generator)
    model = _with_batch_statistics(model)

    for step, position in enumerate(positions):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, peak=learning_rate, n_steps=n_steps)
        optimizer.zero_grad(set_to_none=True)
        _loss(model, point_on_curve((start, *controls, end), position), *next(batches)).backward()
        for tensor, mask in masked:
            if tensor.grad is not None:  # an idle layer's has none
                tensor.grad.masked_fill_(mask, 0.0)
        optimizer.step()
    return [{name: tensor.detach() for name, tensor in control.items()} for control in controls]


def _parameters(model: nn.Module, state: State) -> dict[str, Tensor]:
    """Returns the model's parameters as a state has them, on the model's device and without its buffers."""
    expected = dict(model.named_parameters())
    known = {name for name, _ in (*model.named_buffers(), *model.named_parameters(remove_duplicate=False))}
    for name in (*expected, *(name for name in state if name not in known)):
        given, wanted = (tuple(found[name].shape) if name in found else "none" for found in (state, expected))
        if given != wanted:
            raise ValueError(f"{name} has shape {given} in a point of the curve, but {wanted} in the model")
    return {name: state[name].detach().to(parameter) for name, parameter in expected.items()}


def _with_batch_statistics(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean = module.running_var = None  # a layer without them takes the batch's, also here
    return model


def _loss(model: nn.Module, parameters: State, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(functional_call(model, parameters, images), labels)
