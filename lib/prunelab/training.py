"""The training loop. It knows no method: what a method does, it does in the three hooks of `methods.static.Static`."""

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from prunelab.checkpoints import CorruptCheckpoint, load_checkpoint, save_checkpoint
from prunelab.data.batches import TrainBatches, test_batches
from prunelab.data.dataset import Dataset
from prunelab.masks import layer_weights
from prunelab.methods.static import Static
from prunelab.schedules import learning_rate as learning_rate_at

EVALUATION_PIXELS = 128_000  # of each channel at a time: activations that still fit into a processor's cache
CHECKPOINT_FORMAT = 1  # counts up when what a state holds changes
CHECKPOINT_SECONDS = 10.0  # at most this much training is lost when a run is killed, evaluations permitting
OPTIMIZERS: dict[str, Callable[[list[dict], float], Optimizer]] = {
    "sgd": lambda groups, momentum: torch.optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=momentum > 0),
    "adam": lambda groups, momentum: torch.optim.Adam(groups, lr=0.0, betas=(momentum, 0.999)),
}


@dataclass
class Result:
    """What training gives.

    Attributes:
        curves: One entry an evaluation: `epoch`, `train_loss` (mean since the last one), `test_loss`, `test_accuracy`.
        n_steps: Optimizer steps done.
        n_batches: Batches processed; more than `n_steps` where mask updates took the place of steps.
        seconds: Time spent, earlier attempts of a resumed run included.
        diverged: The loss stopped being finite, and training with it.
    """

    curves: dict[str, list[float]] = field(
        default_factory=lambda: {"epoch": [], "train_loss": [], "test_loss": [], "test_accuracy": []}
    )
    n_steps: int = 0
    n_batches: int = 0
    seconds: float = 0.0
    diverged: bool = False


def train_step(
    model: nn.Module,
    optimizer: Optimizer,
    images: Tensor,
    labels: Tensor,
    step: int,
    *,
    method: Static | None = None,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, bool]:
    """Processes one batch.

    Args:
        model: In training mode.
        optimizer: Over the model's parameters.
        images: Float, (batch, channels, height, width).
        labels: Class indices, (batch,).
        step: Optimizer steps done so far.
        method: Holds the masks; None trains dense.
        label_smoothing: Share of the target spread over all classes, in [0, 1).
    Returns:
        loss: Mean loss of the batch, 0-d, on the model's device.
        stepped: False where the method moved connections *instead of* stepping (RigL's Algorithm 1).
    """
    loss = F.cross_entropy(model(images), labels, label_smoothing=label_smoothing)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if method is None:
        optimizer.step()
    elif method.before_update(step, optimizer):  # sees the dense gradients, before they are masked
        return loss.detach(), False
    else:
        method.mask_gradients()
        optimizer.step()
        method.after_update(step + 1, optimizer)
    return loss.detach(), True  # no .item(): reading it would stall a GPU on every step


@torch.no_grad()
def evaluate(model: nn.Module, dataset: Dataset) -> tuple[float, float]:
    """Mean loss and accuracy over the whole test set.

    Args:
        model: On the data set's device; left in the mode it was in.
        dataset: Its test images are used, in order.
    Returns:
        loss: Mean cross-entropy, without label smoothing.
        accuracy: Share of test images classified correctly, in [0, 1].
    """
    was_training = model.training
    model.eval()
    loss_sum = torch.zeros((), device=dataset.test_labels.device)
    n_correct = torch.zeros((), device=dataset.test_labels.device)
    batch_size = max(1, EVALUATION_PIXELS // dataset.image_size**2)
    for images, labels in test_batches(dataset, batch_size=batch_size):
        outputs = model(images)
        loss_sum += F.cross_entropy(outputs, labels, reduction="sum")
        n_correct += (outputs.argmax(dim=1) == labels).sum()
    model.train(was_training)
    n_images = len(dataset.test_labels)
    return float(loss_sum) / n_images, float(n_correct) / n_images


def build_optimizer(model: nn.Module, *, optimizer: str = "sgd", momentum: float, weight_decay: float) -> Optimizer:
    """SGD with Nesterov momentum, or Adam; weight decay on convolution and linear weights only, as RigL's code has it.

    The learning rate is set before each step by `train`.

    Args:
        model: Its parameters are optimized.
        optimizer: A key of `OPTIMIZERS`.
        momentum: Nesterov's in SGD, beta_1 in Adam, whose beta_2 is 0.999.
        weight_decay: Added to the gradient, times the weight; in Adam too, where it is not decoupled.
    Raises:
        ValueError: An unknown optimizer.
    """
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {optimizer!r}; there are {', '.join(OPTIMIZERS)}")
    decayed = list(layer_weights(model).values())
    ids = {id(weight) for weight in decayed}
    others = [parameter for parameter in model.parameters() if id(parameter) not in ids]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return OPTIMIZERS[optimizer]([group for group in groups if group["params"]], momentum)


def train(
    model: nn.Module,
    dataset: Dataset,
    *,
    n_epochs: int,
    batch_size: int,
    learning_rate: float,
    optimizer: str = "sgd",
    schedule: str,
    warmup_epochs: int,
    momentum: float,
    weight_decay: float,
    label_smoothing: float,
    augment: bool,
    eval_every: int,
    generator: torch.Generator,
    method: Static | None = None,
    checkpoint: Path | None = None,
    report: Callable[[float], None] = lambda share: None,
) -> Result:
    """Trains a model, method or none, and evaluates it now and then, after the last step above all.

    An epoch is `len(train set) // batch_size` optimizer steps. Killed at any moment, a call with the same arguments
    and `checkpoint` goes on from the last evaluation saved there and gives, on a CPU, bit for bit the uninterrupted
    result: the state holds weights, masks, momentum, all generators, the order of images and the step.

    Args:
        model: On the data set's device; changed in place.
        dataset: Images on that device.
        n_epochs: Passes over the training set.
        batch_size: Images a step.
        learning_rate: Peak value.
        optimizer: A key of `OPTIMIZERS`.
        schedule: A key of `schedules.LEARNING_RATES`.
        warmup_epochs: Length of the linear rise of the learning rate.
        momentum: As for `build_optimizer`.
        weight_decay: As for `build_optimizer`.
        label_smoothing: In [0, 1).
        augment: Random crops, and flips where the data set allows them.
        eval_every: Epochs between two evaluations.
        generator: Orders and augments the images, on the CPU.
        method: Holds the masks; None trains dense.
        checkpoint: File for the state; None keeps none.
        report: Called after each evaluation with the share of training done, in (0, 1].
    Raises:
        ValueError: A batch larger than the training set, an impossible schedule, or an unknown optimizer.
    """
    steps_per_epoch = len(dataset.train_labels) // batch_size
    if steps_per_epoch < 1:
        raise ValueError(f"batch_size {batch_size} exceeds the {len(dataset.train_labels)} training images")
    n_steps, warmup_steps = n_epochs * steps_per_epoch, warmup_epochs * steps_per_epoch
    model = model.to(memory_format=torch.channels_last)
    stepper = build_optimizer(model, optimizer=optimizer, momentum=momentum, weight_decay=weight_decay)
    batches = TrainBatches(dataset, batch_size=batch_size, augment=augment, generator=generator)
    result = Result()
    if checkpoint is not None:
        result = _restore(checkpoint, model, stepper, batches, method) or result

    started, saved = time.monotonic() - result.seconds, time.monotonic()
    while result.n_steps < n_steps and not result.diverged:
        model.train()
        loss_sum, n_batches_before = torch.zeros((), device=dataset.train_labels.device), result.n_batches
        stop = min(n_steps, result.n_steps + eval_every * steps_per_epoch)
        while result.n_steps < stop:
            rate = learning_rate_at(
                result.n_steps, peak=learning_rate, n_steps=n_steps, warmup_steps=warmup_steps, schedule=schedule
            )
            for group in stepper.param_groups:
                group["lr"] = rate
            images, labels = next(batches)
            loss, stepped = train_step(
                model, stepper, images, labels, result.n_steps, method=method, label_smoothing=label_smoothing
            )
            loss_sum += loss
            result.n_batches += 1
            result.n_steps += stepped

        train_loss = float(loss_sum) / (result.n_batches - n_batches_before)
        test_loss, test_accuracy = evaluate(model, dataset)
        result.diverged = not math.isfinite(train_loss)
        for key, value in (
            ("epoch", result.n_steps // steps_per_epoch),
            ("train_loss", train_loss),
            ("test_loss", test_loss),
            ("test_accuracy", test_accuracy),
        ):
            result.curves[key].append(value)
        result.seconds = time.monotonic() - started
        if checkpoint is not None and time.monotonic() - saved > CHECKPOINT_SECONDS:
            save_checkpoint(_state(result, model, stepper, batches, method), checkpoint)
            saved = time.monotonic()
        report(result.n_steps / n_steps)
    return result


def _state(
    result: Result, model: nn.Module, optimizer: Optimizer, batches: TrainBatches, method: Static | None
) -> dict:
    return {
        "format": CHECKPOINT_FORMAT,
        "result": vars(result),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "batches": batches.state_dict(),
        "method": method.state_dict() if method else None,
        "torch_rng": torch.get_rng_state(),  # dropout draws from it
    }


def _restore(
    checkpoint: Path, model: nn.Module, optimizer: Optimizer, batches: TrainBatches, method: Static | None
) -> Result | None:
    try:
        state = load_checkpoint(checkpoint)
        if state["format"] != CHECKPOINT_FORMAT:
            raise CorruptCheckpoint(
                f"{checkpoint} has format {state['format']}, this version reads {CHECKPOINT_FORMAT}"
            )
    except FileNotFoundError:
        return None
    except CorruptCheckpoint as error:
        warnings.warn(f"{error}; this run starts again from its beginning", stacklevel=3)
        return None
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    batches.load_state_dict(state["batches"])
    if method:
        method.load_state_dict(state["method"])
    torch.set_rng_state(state["torch_rng"])
    return Result(**state["result"])
