"""Self-supervised pretraining by DINO: a student learns what its own running average says of other views of an image.

Nothing keeps the two from agreeing on one answer for all images but two forces against each other: a centre, subtracted
from the teacher's outputs, and a low temperature.

Source: Caron et al. 2021, arXiv:2104.14294, Sec. 3 and Algorithm 1; `main_dino.py` in facebookresearch/dino.
Differs: No gradient is clipped, weight decay does not grow. Temperature and frozen layer go by the step, there by the
    epoch. The teacher is in evaluation mode, with the student's statistics of batch normalisation where there are any.
    See `views` for the views.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from prunelab.cost import layer_table, total
from prunelab.methods.hooks import Hooks
from prunelab.schedules import DECAYS
from prunelab.views import N_GLOBAL, Views

STUDENT_TEMPERATURE = 0.1
CENTRE_MOMENTUM = 0.9
N_SNAPSHOTS = 100  # of the teacher's outputs in a training, for the record


class Prototypes(nn.Linear):
    """A linear layer without bias whose weight vectors, one an output, count by their direction only."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.normalize(self.weight, dim=1))


class ProjectionHead(nn.Module):
    """Three layers to a bottleneck, the direction there, and its cosines with prototypes.

    Source: `DINOHead` in facebookresearch/dino, without batch normalisation, the last layer's norms fixed to 1.
    """

    def __init__(
        self, n_features: int, *, n_hidden: int = 2048, n_bottleneck: int = 256, n_outputs: int = 65_536
    ) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            *(nn.Linear(n_features, n_hidden), nn.GELU()),
            *(nn.Linear(n_hidden, n_hidden), nn.GELU()),
            nn.Linear(n_hidden, n_bottleneck),
        )
        for layer in self.mlp[::2]:
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.prototypes = Prototypes(n_bottleneck, n_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.prototypes(F.normalize(self.mlp(x), dim=1))


class Student(nn.Module):
    """A backbone and the projection of its features.

    Attributes:
        backbone: Has `features`, which makes (n, n_features) of images of any size among those of the views.
        projection: Is left behind after the training.
    """

    def __init__(self, backbone: nn.Module, projection: ProjectionHead) -> None:
        super().__init__()
        self.backbone, self.projection = backbone, projection

    def forward(self, *images: Tensor) -> Tensor:
        """Returns outputs (n, n_outputs) for several tensors of images, each of one size, together n images."""
        return self.projection(torch.cat([self.backbone.features(each) for each in images]))


class Dino(Hooks):
    """Trains a student without labels; the objective of the training, and its hooks.

    Attributes:
        student: The network to be trained.
        teacher: Its running average.
        centre: Running mean of the teacher's outputs, (n_outputs,).
        n_batches: Done so far.
        history: Snapshots of the training, by which a collapse is seen: the `batch`; of the teacher's outputs, their
            `deviation` over images, 0 where all images have the same; of its targets, their mean `entropy`, which
            then goes to 0 or to the logarithm of their number; and the student's mean `divergence` from them.
    """

    def __init__(
        self,
        student: Student,
        views: Views,
        *,
        n_steps: int,
        momentum: float = 0.996,
        temperatures: tuple[float, float] = (0.04, 0.07),
        warm_up: float = 0.3,
        frozen: float = 0.01,
    ) -> None:
        """Args:
        student: With the values to start from, on the device of the training.
        views: Of the images that it is trained on.
        n_steps: Length of the training.
        momentum: Share of itself that a step leaves of the teacher, at first; it rises to 1 along a cosine.
        temperatures: The teacher's, at first and after its warm-up.
        warm_up: Share of the training in which it rises from one to the other.
        frozen: Share of the training before which the prototypes stay as they are.
        Raises:
            ValueError: A share or temperature that cannot be.
        """
        for name, share in (("momentum", momentum), ("warm_up", warm_up), ("frozen", frozen)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {share}")
        if min(temperatures) <= 0:
            raise ValueError(f"temperatures must be above 0, got {temperatures}")
        self.student, self.views, self.n_steps = student, views, n_steps
        self.momentum, self.temperatures = momentum, temperatures
        self.n_warm_up, self.n_frozen = round(warm_up * n_steps), round(frozen * n_steps)
        self.teacher = AveragedModel(student, multi_avg_fn=self._average).eval().requires_grad_(False)
        self.teacher.n_averaged.fill_(1)  # the values it starts with; else the first step would replace them
        prototypes = student.projection.prototypes.weight
        self.centre = torch.zeros(len(prototypes), device=prototypes.device)
        self.n_batches = 0
        self.history: list[dict] = []

    @property
    def backbone(self) -> nn.Module:
        """The teacher's, which is what the training is for."""
        return self.teacher.module.backbone

    def objective(self, model: nn.Module, images: Tensor, labels: Tensor) -> Iterator[Tensor]:
        """Yields the mean cross-entropy of each view with the teacher's targets for every other, as `steps.Objective`.

        Source: Eq. 3.
        """
        views = self.views(images)
        outputs, targets = self._teach(views[0], n_images=len(images))
        log_probabilities = F.log_softmax(model(*views).float() / STUDENT_TEMPERATURE, dim=1)
        log_probabilities = log_probabilities.unflatten(0, (-1, len(images)))  # (views, b, n_outputs)
        # A global view learns the target of the other one, a local one those of both.
        n_local = len(log_probabilities) - N_GLOBAL
        wanted = torch.cat([targets.flip(0), targets.sum(dim=0).expand(n_local, -1, -1)])
        n_pairs = N_GLOBAL * (len(log_probabilities) - 1)
        loss = -(wanted * log_probabilities).sum() / (n_pairs * len(images))
        self._observe(outputs, targets, loss.detach())
        yield loss
        self.n_batches += 1

    @torch.no_grad()
    def _teach(self, views: Tensor, *, n_images: int) -> tuple[Tensor, Tensor]:
        """Returns the teacher's outputs and targets for global views, (2, b, n_outputs) each, and moves the centre."""
        outputs = self.teacher(views).float()
        targets = F.softmax((outputs - self.centre) / self.temperature, dim=1)
        self.centre.lerp_(outputs.mean(dim=0), 1 - CENTRE_MOMENTUM)
        return outputs.unflatten(0, (-1, n_images)), targets.unflatten(0, (-1, n_images))

    @property
    def temperature(self) -> float:
        """The teacher's, for the batch in hand."""
        first, last = self.temperatures
        return last + (first - last) * max(0.0, 1 - self.n_batches / self.n_warm_up) if self.n_warm_up else last

    def _observe(self, outputs: Tensor, targets: Tensor, loss: Tensor) -> None:
        """Takes a snapshot when it is time for one, which reads numbers."""
        if self.n_batches * N_SNAPSHOTS >= len(self.history) * self.n_steps:
            entropy = torch.special.entr(targets).sum(dim=2).mean()
            numbers = {"deviation": outputs.std(dim=1).mean(), "entropy": entropy, "divergence": loss - entropy}
            self.history.append({"batch": self.n_batches} | {name: value.item() for name, value in numbers.items()})

    def change_gradients(self) -> None:
        """Leaves the prototypes without a gradient in the first steps."""
        if self.n_batches <= self.n_frozen:  # the batch in hand is counted
            self.student.projection.prototypes.weight.grad = None

    def after_update(self, step: int, optimizer: Optimizer) -> None:
        """Moves the teacher towards the student."""
        self.teacher.update_parameters(self.student)

    def _average(self, teacher: Sequence[Tensor], student: Sequence[Tensor], n_averaged: Tensor) -> None:
        done = (self.n_batches - 1) / self.n_steps
        torch._foreach_lerp_(teacher, student, (1 - self.momentum) * DECAYS["cosine"](done))

    def forward_macs(self) -> float:
        """Returns the MACs of a step's forward passes for one image; no backward pass follows the teacher's.

        As training is taken to cost three forward passes, each of the teacher's counts a third.
        """
        shape = {"in_channels": self.views.dataset.channels}
        macs = [
            n * total(layer_table(self.student, image_size=size, **shape), "macs") for n, size, _ in self.views.kinds
        ]
        return macs[0] / 3 + sum(macs)

    def state_dict(self) -> dict:
        return {
            "teacher": self.teacher.state_dict(),
            "centre": self.centre,
            "n_batches": self.n_batches,
            "history": self.history,
            "generator": self.views.generator.get_state(),
        }

    def load_state_dict(self, state: dict) -> None:
        self.teacher.load_state_dict(state["teacher"])
        self.centre.copy_(state["centre"])
        self.n_batches, self.history = state["n_batches"], state["history"]
        self.views.generator.set_state(state["generator"])
