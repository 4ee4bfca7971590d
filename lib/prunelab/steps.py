"""Training steps, on tensors that stay the same from step to step, so that a GPU can replay them without Python.

A step has two halves: gradients, and the update of the weights. Between and after them a method may decide, in Python,
to move connections. On a GPU each half is captured as a CUDA graph once some steps have warmed it up; whatever differs
from step to step (images, learning rate, masks) is written into the tensors that the graphs read.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from prunelab import ranks
from prunelab.data.batches import TrainBatches
from prunelab.masks import distinct, layer_weights
from prunelab.methods.hooks import Hooks
from prunelab.precision import PRECISIONS, autocast

# A generator called with a model in training mode, images and labels: the losses of a step, one or several.
Objective = Callable[[nn.Module, Tensor, Tensor], Iterator[Tensor]]

N_WARM_UP = 3  # optimizer steps before capture: momentum and workspaces must exist by then


def _sgd(groups: list[dict], momentum: float, capturable: bool, *, nesterov: bool) -> Optimizer:
    return torch.optim.SGD(groups, momentum=momentum, nesterov=nesterov and momentum > 0, fused=capturable or None)


def _adam(groups: list[dict], momentum: float, capturable: bool, *, kind: type[Optimizer]) -> Optimizer:
    return kind(groups, betas=(momentum, 0.999), fused=capturable or None, capturable=capturable)


OPTIMIZERS: dict[str, Callable[[list[dict], float, bool], Optimizer]] = {
    "sgd": partial(_sgd, nesterov=True),  # as in RigL's code
    "plain_sgd": partial(_sgd, nesterov=False),  # as in the code of Liu et al. 2019
    "adam": partial(_adam, kind=torch.optim.Adam),
    "adamw": partial(_adam, kind=torch.optim.AdamW),
}
_DECAYING_ALL = ("plain_sgd",)  # every parameter; the others' weight decay takes hold of layers' weights only


def build_optimizer(
    model: nn.Module, *, optimizer: str = "sgd", momentum: float, weight_decay: float, layer_decay: float = 1.0
) -> Optimizer:
    """Builds an optimizer by name, whose learning rate is 0 until `set_learning_rate`; on a GPU it can be captured.

    Args:
        model: Its parameters are optimized; those without a gradient in a step, as frozen ones, keep their values.
        optimizer: A key of `OPTIMIZERS`.
        momentum: Of SGD; beta_1 in Adam and AdamW, whose beta_2 is 0.999.
        weight_decay: Added to the gradient, times the weight; in Adam too. In AdamW it is decoupled: the weight is made
            smaller by its product with the learning rate.
        layer_decay: Factor on the learning rate from each of a network's `blocks` to the one before it, in (0, 1].
    Raises:
        ValueError: An unknown optimizer, or a layer decay outside its range or of a network without blocks.
    """
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {optimizer!r}; there are {', '.join(OPTIMIZERS)}")
    device = next(model.parameters()).device
    capturable = can_capture(device)
    decayed = list(model.parameters() if optimizer in _DECAYING_ALL else distinct(layer_weights(model)).values())
    ids = {id(weight) for weight in decayed}
    others = [parameter for parameter in model.parameters() if id(parameter) not in ids]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    if layer_decay != 1.0:
        groups = _by_layer(groups, layer_factors(model, layer_decay))
    groups = [group | {"lr": torch.zeros((), device=device) if capturable else 0.0} for group in groups]
    return OPTIMIZERS[optimizer]([group for group in groups if group["params"]], momentum, capturable)


def layer_factors(model: nn.Module, decay: float) -> dict[nn.Parameter, float]:
    """Returns the factor on the learning rate of each parameter.

    In a network of n blocks it is decay**(n - i) in block i, counted from 0; decay**(n + 1) in what is registered
    before the blocks, the embeddings; and 1 in what comes after them, the head.

    Args:
        model: Has a sequence of `blocks`.
        decay: In (0, 1].
    Raises:
        ValueError: A decay outside its range, or a network without blocks.
    Source: Bao et al. 2022, arXiv:2106.08254 (BEiT); `param_groups_lrd` in facebookresearch/mae.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"layer_decay must lie in (0, 1], got {decay}")
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList):
        raise ValueError(f"layer_decay={decay} needs a network with a sequence of blocks, not {type(model).__name__}")
    depth, depths = 0, dict.fromkeys(model.parameters(recurse=False), 0)
    for child in model.children():
        if child is blocks:
            for depth, block in enumerate(blocks, start=1):
                depths |= dict.fromkeys(block.parameters(), depth)
            depth += 1
        else:
            depths |= dict.fromkeys(child.parameters(), depth)
    return {parameter: decay ** (len(blocks) + 1 - depth) for parameter, depth in depths.items()}


def _by_layer(groups: list[dict], factors: Mapping[nn.Parameter, float]) -> list[dict]:
    """Splits groups of parameters into those of one factor each, which `set_learning_rate` reads."""
    return [
        group | {"params": [each for each in group["params"] if factors[each] == factor], "factor": factor}
        for group in groups
        for factor in sorted(set(factors.values()))
    ]


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Sets the rate of all parameters, times their group's `factor` where it has one; in place where it is a tensor."""
    for group in optimizer.param_groups:
        own = rate * group.get("factor", 1.0)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(own)
        else:
            group["lr"] = own


def cross_entropy(
    model: nn.Module, images: Tensor, labels: Tensor, *, label_smoothing: float = 0.0
) -> Iterator[Tensor]:
    """Yields the mean cross-entropy of a batch, the objective of ordinary training.

    Args:
        model: In training mode.
        images: (b, c, h, h).
        labels: int64 (b,).
        label_smoothing: Share of the target spread over all classes, in [0, 1).
    """
    yield F.cross_entropy(model(images), labels, label_smoothing=label_smoothing)


class Stepper:
    """Takes step after step of one training.

    Attributes:
        loss_sum: Of all losses of the batches since it was last set to zero, 0-d, on the model's device.
        n_until_capture: Optimizer steps before capture; below 0, all further steps are as they are.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        batches: TrainBatches,
        *,
        method: Hooks | None = None,
        objective: Objective = cross_entropy,
        precision: str = "fp32",
        is_static: bool = True,
    ) -> None:
        """Args:
        model: In training mode.
        optimizer: Over the model's parameters.
        batches: Where images and labels come from.
        method: Has its hooks called; None has none.
        objective: Gives the losses of a step.
        precision: A key of `precision.PRECISIONS`.
        is_static: Whether the objective does the same work each step, so that it may be captured.
        """
        self.model, self.optimizer, self.batches, self.method = model, optimizer, batches, method or Hooks()
        self.objective, self.precision = objective, precision
        self.device = next(model.parameters()).device
        self._autocast, self._norms = autocast(self.device, precision), ranks.over_all_images()
        self.loss_sum = torch.zeros((), device=self.device)
        self._compute, self._update = self._compute_gradients, self._update_weights
        # Not where ranks wait for each other: their networks are large, and would gain little.
        is_captured = is_static and can_capture(self.device) and ranks.count() == 1
        self.n_until_capture = N_WARM_UP if is_captured else -1

    def step(self, step: int) -> bool:
        """Processes the next batch, at the learning rate that the optimizer has.

        Args:
            step: Optimizer steps done so far.
        Returns:
            False where the method moved connections *instead of* stepping (RigL's Algorithm 1).
        """
        if self.n_until_capture == 0:
            self.n_until_capture = -1
            try:
                self._compute, self._update = capture(self._compute_gradients), capture(self._update_weights)
            except RuntimeError as error:  # a driver's whim must not end a training
                warnings.warn(f"steps cannot be captured here ({error}); they go on, more slowly", stacklevel=2)
        self.batches.advance()
        self._compute()
        if self.method.before_update(step, self.optimizer):  # sees dense gradients, not masked yet
            return False
        self._update()
        self.method.after_update(step + 1, self.optimizer)
        self.n_until_capture -= 1
        return True

    def _compute_gradients(self) -> None:
        """Backpropagates each loss as it comes, and adds it to the sum, which is not read: that would stall a GPU."""
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.objective(self.model, *self.batches.current())
        _, loss_scale = PRECISIONS[self.precision]
        while (loss := self._next_of(losses)) is not None:
            (loss * loss_scale).backward()
            self.loss_sum += loss.detach()
        gradients = [weight.grad for weight in self.model.parameters() if weight.grad is not None]
        if loss_scale != 1.0:  # a power of two, so nothing is rounded
            torch._foreach_mul_(gradients, 1.0 / loss_scale)
        ranks.average([*gradients, self.loss_sum])

    def _next_of(self, losses: Iterator[Tensor]) -> Tensor | None:
        """Returns the next loss, worked out in this training's precision; None after the last."""
        with self._autocast, self._norms:
            return next(losses, None)

    def _update_weights(self) -> None:
        self.method.change_gradients()
        self.optimizer.step()
        self.method.change_weights()


def can_capture(device: torch.device) -> bool:
    """Tells whether steps on a device are captured as graphs."""
    return device.type == "cuda"


def capture(work: Callable[[], None]) -> Callable[[], None]:
    """Records what `work` launches on the GPU, without running it; returns what runs it, again and again."""
    graph = torch.cuda.CUDAGraph()
    # Threads that load another training's images may allocate meanwhile.
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
        work()
    return graph.replay
