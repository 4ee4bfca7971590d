"""Linear probes: how well a linear layer on the features of a frozen network tells the classes of a task apart.

Many of them, with different seeds, learning rates or labels, are trained at once: their weights are one tensor, and a
step is one product for all. What one of them comes to does not depend on the others.

Source: Iofinova et al. 2022, arXiv:2111.13445, linear finetuning; `finetune_pre_extracted_features.py` in
IST-DASLab/sparse-imagenet-transfer.
Differs: Batches are full ones only, as in `training`; there the last of a pass may be short. Accuracy is the last one;
they track the best on test images beside it.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from prunelab.schedules import learning_rate
from prunelab.training import Metric, mean_per_class, top_1
from prunelab.turns import exhaust, until_done

METRICS: dict[str, Metric] = {"top_1": top_1, "mean_per_class": mean_per_class}


@dataclass(frozen=True)
class Probes:
    """Trained probes.

    Attributes:
        weights: (probes, classes, d + 1); the last column holds the biases.
        seconds: That their training took, all in all.
    """

    weights: Tensor
    seconds: float

    def accuracies(self, features: Tensor, labels: Tensor) -> dict[str, list[float | None]]:
        """Tests each probe.

        Args:
            features: Of the test images, (n, d).
            labels: int64 (n,), or those of each probe, (probes, n).
        Returns:
            By name of `METRICS` the accuracy of each probe; None where it has diverged.
        Raises:
            ValueError: Shapes that do not go together, features that are no numbers, or labels of no class.
        """
        n_probes, num_classes, _ = self.weights.shape
        _check(features, labels, n_probes=n_probes, num_classes=num_classes)
        found: dict[str, list[float | None]] = {name: [] for name in METRICS}
        for weight, own in zip(self.weights, labels.expand(n_probes, -1), strict=True):
            is_correct = F.linear(features, weight[:, :-1], weight[:, -1]).argmax(dim=1) == own
            counts = [part.bincount(minlength=num_classes).cpu() for part in (own[is_correct], own)]
            for name, metric in METRICS.items():
                found[name].append(metric(*counts) if weight.isfinite().all() else None)
        return found


def train_probes(
    features: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    generators: Sequence[torch.Generator],
    learning_rates: Sequence[float],
    n_epochs: int,
    batch_size: int,
    momentum: float,
    weight_decay: float,
    schedule: str,
) -> Probes:
    """Trains linear layers on given features by cross-entropy, all at once.

    Args:
        features: Of the training images, float32 (n, d); or those of several passes, (passes, n, d), of which epoch
            after epoch takes the next one, and after the last the first.
        labels: int64, one for each of the features, (n,) or (passes, n); or those of each probe, with one more
            dimension in front, (probes, n) or (probes, passes, n).
        num_classes: Outputs of each probe.
        generators: One a probe, on the CPU: draw its first weights, as torch's linear layers do, and order its batches.
        learning_rates: Peak of each probe.
        n_epochs: Passes over the features.
        batch_size: Of each probe.
        momentum: Of SGD.
        weight_decay: Added to the gradient, times the weight; of biases too.
        schedule: A key of `schedules.LEARNING_RATES`.
    Raises:
        ValueError: Not one generator and one learning rate a probe, shapes that do not go together, features that are
            no numbers, labels of no class, an impossible size of batches, or an unknown schedule.
    """
    n_probes = len(generators)
    if not 1 <= n_probes == len(learning_rates):
        raise ValueError(f"each probe needs a generator and a rate, got {n_probes} and {len(learning_rates)}")
    _check(features, labels, n_probes=n_probes, num_classes=num_classes)
    *_, n, d = features.shape
    if not 1 <= batch_size <= n:
        raise ValueError(f"batch_size must lie in 1..{n}, the number of training images; got {batch_size}")
    # A feature that is always 1 makes a weight of each bias.
    rows, device = F.pad(features.reshape(-1, d), (0, 1), value=1.0), features.device
    labels = labels.expand(n_probes, *features.shape[:-1]).reshape(n_probes, -1)
    bound = d**-0.5
    weights = torch.stack(
        [torch.empty(num_classes, d + 1).uniform_(-bound, bound, generator=own) for own in generators]
    )
    weights, rates = weights.to(device), torch.tensor(learning_rates, device=device).view(-1, 1, 1)
    velocity, minus_one = torch.zeros_like(weights), -torch.ones(n_probes, 1, batch_size, device=device)
    n_batches, started = n // batch_size, time.monotonic()
    for epoch in range(n_epochs):
        order = torch.stack([torch.randperm(n, generator=own)[: n_batches * batch_size] for own in generators])
        order = order.to(device) + epoch * n % len(rows)  # of all passes' rows those of this one
        batches = (part.split(batch_size, dim=1) for part in (order, labels.gather(1, order)))
        for batch, (index, own) in enumerate(zip(*batches, strict=True)):
            step = epoch * n_batches + batch
            share = learning_rate(step, peak=1.0, n_steps=n_epochs * n_batches, schedule=schedule)
            inputs = rows.index_select(0, index.flatten()).view(n_probes, batch_size, d + 1)
            # Of the cross-entropy by the outputs, (probes, classes, images): probabilities, less 1 at the label.
            slopes = (weights @ inputs.mT).softmax(dim=1).scatter_add_(1, own.unsqueeze(1), minus_one)
            gradient = torch.baddbmm(weights, slopes, inputs, beta=weight_decay, alpha=1 / batch_size)
            velocity.mul_(momentum).add_(gradient)
            weights.addcmul_(velocity, rates, value=-share)
    exhaust(until_done(device))
    return Probes(weights, time.monotonic() - started)


def _check(features: Tensor, labels: Tensor, *, n_probes: int, num_classes: int) -> None:
    """Raises ValueError unless features and labels go together."""
    each = tuple(features.shape[:-1])
    if tuple(labels.shape) not in (each, (n_probes, *each)):
        raise ValueError(
            f"features of shape {tuple(features.shape)} need labels of shape {each}, or {(n_probes, *each)} where each"
            f" probe has its own; got {tuple(labels.shape)}"
        )
    if not features.isfinite().all():
        raise ValueError("features have NaN or infinite values; the network that they are of has diverged")
    if not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(f"labels must lie in 0..{num_classes - 1}, got {int(labels.min())}..{int(labels.max())}")
