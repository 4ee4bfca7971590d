"""The training loop. It knows no method: what a method does, it does in the hooks of `methods.hooks.Hooks`."""

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunelab import ranks
from prunelab.checkpoints import CorruptCheckpoint, load_checkpoint, save_checkpoint
from prunelab.data.batches import LabelledImages
from prunelab.methods.hooks import Hooks
from prunelab.precision import autocast
from prunelab.schedules import learning_rate as learning_rate_at
from prunelab.steps import Objective, Stepper, build_optimizer, cross_entropy, set_learning_rate
from prunelab.turns import Turns, exhaust, in_turns, until_done

# Of each channel at a time: activations that still fit into a processor's cache; enough work for a whole GPU.
EVALUATION_PIXELS = {"cpu": 128_000, "cuda": 4_000_000}
CHECKPOINT_FORMAT = 3  # counts up when what a state holds changes
CHECKPOINT_SECONDS = 10.0  # at most this much training is lost when a run is killed, evaluations permitting,
CHECKPOINT_SHARE = 0.05  # unless more than this share of the time went into saving: then it is saved less often

# Called with how many images of each class were classified correctly and how many there are, int64 (classes,); a share.
Metric = Callable[[Tensor, Tensor], float]


@dataclass
class Result:
    """What training gives.

    Attributes:
        curves: One entry an evaluation: `epoch`, `train_loss` (mean since the last one), `test_loss`, `test_accuracy`
            (what the metric makes of it).
        n_steps: Optimizer steps done.
        n_batches: Batches processed; more than `n_steps` where mask updates took the place of steps.
        n_batches_tested: Those before the last evaluation.
        seconds: Time spent, earlier attempts of a resumed run included, and others' turns.
        diverged: The loss stopped being finite, and training with it.
    """

    curves: dict[str, list[float]] = field(
        default_factory=lambda: {"epoch": [], "train_loss": [], "test_loss": [], "test_accuracy": []}
    )
    n_steps: int = 0
    n_batches: int = 0
    n_batches_tested: int = 0
    seconds: float = 0.0
    diverged: bool = False


def top_1(n_correct: Tensor, n_images: Tensor) -> float:
    """Returns the share of all images that are classified correctly; arguments as for `Metric`."""
    return int(n_correct.sum()) / int(n_images.sum())


def mean_per_class(n_correct: Tensor, n_images: Tensor) -> float:
    """Returns the share of correct images averaged over the classes that have any; arguments as for `Metric`."""
    has_images = n_images > 0
    return float((n_correct[has_images].double() / n_images[has_images]).mean())


def evaluate(
    model: nn.Module, dataset: LabelledImages, *, precision: str = "fp32", metric: Metric = top_1
) -> tuple[float, float]:
    """Tests a model on the whole test set.

    Args:
        model: On the data set's device; left in the mode it was in.
        dataset: Its test images are used, in order.
        precision: A key of `precision.PRECISIONS`.
        metric: Makes one number of the images classified correctly.
    Returns:
        loss: Mean cross-entropy, without label smoothing.
        accuracy: What the metric gives, the share of test images classified correctly by default, in [0, 1].
    """
    return _read(_test(model, dataset, precision=precision), metric)


@torch.no_grad()
def _test(model: nn.Module, dataset: LabelledImages, *, precision: str) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the sum of losses, and images of each class, those classified correctly and all; nothing is read yet."""
    was_training = model.training
    model.eval()
    device = dataset.device
    loss_sum = torch.zeros((), device=device)
    n_correct, n_images = torch.zeros(2, dataset.num_classes, dtype=torch.int64, device=device)
    batch_size = max(1, EVALUATION_PIXELS[device.type] // dataset.image_size**2)
    for images, labels in dataset.test_batches(batch_size=batch_size):
        with autocast(device, precision):
            outputs = model(images).float()
        loss_sum += F.cross_entropy(outputs, labels, reduction="sum")
        n_correct.scatter_add_(0, labels, (outputs.argmax(dim=1) == labels).long())
        n_images.scatter_add_(0, labels, torch.ones_like(labels))
    model.train(was_training)
    return loss_sum, n_correct, n_images


def _read(totals: tuple[Tensor, Tensor, Tensor], metric: Metric) -> tuple[float, float]:
    loss_sum, n_correct, n_images = (total.cpu() for total in totals)
    return float(loss_sum) / int(n_images.sum()), metric(n_correct, n_images)


def train(model: nn.Module, dataset: LabelledImages, **options: Any) -> Result:
    """Trains a model from beginning to end: all turns of `training`, whose arguments and errors these are."""
    return exhaust(training(model, dataset, **options))


@in_turns
def training(
    model: nn.Module,
    dataset: LabelledImages,
    *,
    n_epochs: int,
    batch_size: int,
    learning_rate: float,
    optimizer: str = "sgd",
    schedule: str,
    warmup_epochs: int = 0,
    momentum: float,
    weight_decay: float,
    layer_decay: float = 1.0,
    augment: bool,
    eval_every: int,
    generator: torch.Generator,
    method: Hooks | None = None,
    objective: Objective | None = None,
    is_static: bool = True,
    label_smoothing: float = 0.0,
    metric: Metric = top_1,
    precision: str = "fp32",
    checkpoint: Path | None = None,
    report: Callable[[float], None] = lambda share: None,
) -> Turns[Result]:
    """Trains a model, method or none, and evaluates it now and then, after the last step above all.

    A turn ends after a step; several trainings may take turns in one thread, see `turns`. As one of several `ranks` it
    takes its part of each batch and of the test images, and gives what all others give.

    An epoch is `len(train set) // batch_size` optimizer steps. Killed at any moment, a call with the same arguments
    and `checkpoint` goes on from the step saved there last, in the middle of an epoch too, and gives, on a CPU, bit for
    bit the uninterrupted result: the state holds weights, masks, momentum, all generators, the order of images, the
    place in it and the step.

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
        layer_decay: As for `build_optimizer`.
        augment: Random crops, and flips where the data set allows them.
        eval_every: Epochs between two evaluations.
        generator: Orders and augments the images, on the CPU.
        method: Has its hooks called; None has none.
        objective: Gives the losses of a step; None is cross-entropy.
        is_static: Whether it does the same work each step, which a GPU then replays.
        label_smoothing: Of that cross-entropy, in [0, 1).
        metric: Makes `test_accuracy` of the images classified correctly.
        precision: A key of `precision.PRECISIONS`.
        checkpoint: File for the state; None keeps none.
        report: Called after each evaluation, and whenever the state is due to be saved between two, with the share of
            training done, in [0, 1].
    Returns:
        In the end, the result.
    Raises:
        ValueError: A batch larger than the training set, label smoothing beside an objective, an impossible schedule,
            an unknown optimizer or precision, or a layer decay that the network cannot have; of several ranks, images
            that are not streamed, or a batch that cannot be divided equally.
        RuntimeError: Ranks have come apart.
    """
    steps_per_epoch = dataset.n_train // batch_size
    if steps_per_epoch < 1:
        raise ValueError(f"batch_size {batch_size} exceeds the {dataset.n_train} training images")
    if ranks.count() > 1:
        dataset = dataset.shared(ranks.number(), ranks.count())
    n_steps, warmup_steps = n_epochs * steps_per_epoch, warmup_epochs * steps_per_epoch
    model = model.to(memory_format=torch.channels_last)
    optim = build_optimizer(
        model, optimizer=optimizer, momentum=momentum, weight_decay=weight_decay, layer_decay=layer_decay
    )
    batches = dataset.train_batches(batch_size=batch_size, augment=augment, generator=generator)
    method = method or Hooks()
    if objective and label_smoothing:
        raise ValueError("label_smoothing is that of the default objective; smooth the labels in the given one")
    objective = objective or partial(cross_entropy, label_smoothing=label_smoothing)
    stepper = Stepper(
        model, optim, batches, method=method, objective=objective, precision=precision, is_static=is_static
    )
    result = _restore(checkpoint, stepper) if checkpoint else Result()

    rate_at = partial(
        learning_rate_at, peak=learning_rate, n_steps=n_steps, warmup_steps=warmup_steps, schedule=schedule
    )
    started, due = time.monotonic() - result.seconds, time.monotonic() + CHECKPOINT_SECONDS

    def save() -> None:
        nonlocal due
        before = time.monotonic()
        result.seconds = before - started
        if checkpoint and ranks.number() == 0:
            save_checkpoint(_state(result, stepper), checkpoint)
        after = time.monotonic()
        due = after + max(CHECKPOINT_SECONDS, (after - before) / CHECKPOINT_SHARE)

    while result.n_steps < n_steps and not result.diverged:
        model.train()
        stop = min(n_steps, (len(result.curves["epoch"]) + 1) * eval_every * steps_per_epoch)
        while result.n_steps < stop:
            set_learning_rate(optim, rate_at(result.n_steps))
            result.n_steps += stepper.step(result.n_steps)
            result.n_batches += 1
            if result.n_steps < stop and time.monotonic() >= due:
                yield from until_done(stepper.device)
                save()
                report(result.n_steps / n_steps)
            yield

        totals = tuple(map(ranks.add_up, _test(model, dataset, precision=precision)))
        ranks.check_equal([*model.state_dict().values(), *method.masks.values()])
        yield from until_done(stepper.device)
        train_loss = float(stepper.loss_sum) / (result.n_batches - result.n_batches_tested)
        test_loss, test_accuracy = _read(totals, metric)
        stepper.loss_sum.zero_()
        result.n_batches_tested = result.n_batches
        result.diverged = not math.isfinite(train_loss)
        for key, value in (
            ("epoch", result.n_steps // steps_per_epoch),
            ("train_loss", train_loss),
            ("test_loss", test_loss),
            ("test_accuracy", test_accuracy),
        ):
            result.curves[key].append(value)
        if time.monotonic() >= due:
            save()
        report(result.n_steps / n_steps)
    result.seconds = time.monotonic() - started
    return result


def _state(result: Result, stepper: Stepper) -> dict:
    return {
        "format": CHECKPOINT_FORMAT,
        "result": vars(result),
        "loss_sum": stepper.loss_sum,
        "model": stepper.model.state_dict(),
        "optimizer": stepper.optimizer.state_dict(),
        "batches": stepper.batches.state_dict(),
        "method": stepper.method.state_dict(),
        "generators": {  # dropout draws from them
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
        },
    }


def _restore(checkpoint: Path, stepper: Stepper) -> Result:
    try:
        state = load_checkpoint(checkpoint)
        if state["format"] != CHECKPOINT_FORMAT:
            raise CorruptCheckpoint(
                f"{checkpoint} has format {state['format']}, this version reads {CHECKPOINT_FORMAT}"
            )
    except FileNotFoundError:
        return Result()
    except CorruptCheckpoint as error:
        warnings.warn(f"{error}; this run starts again from its beginning", stacklevel=2)
        return Result()
    stepper.loss_sum.copy_(state["loss_sum"])
    stepper.model.load_state_dict(state["model"])
    # Its groups stay, and with them the tensor of the learning rate, where the graphs of a GPU read it.
    own_groups = {"param_groups": stepper.optimizer.state_dict()["param_groups"]}
    stepper.optimizer.load_state_dict(state["optimizer"] | own_groups)
    stepper.batches.load_state_dict(state["batches"])
    stepper.method.load_state_dict(state["method"])
    torch.set_rng_state(state["generators"]["cpu"])
    if state["generators"]["cuda"] is not None and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["generators"]["cuda"])
    return Result(**state["result"])
