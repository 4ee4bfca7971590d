"""Slimmable networks: any width of each group of layers is a prefix of its channels, all on the same weights.

The sandwich rule trains them: each step adds up the gradients of the largest network, the smallest and some random ones
between, all of which but the largest learn from its outputs (in-place distillation).

Source: Yu & Huang 2019, arXiv:1903.05134, Sec. 3; as in `us_runner.py` of Zx55/dmcp.
Differs: Statistics of batch normalisation are kept of one width only, the one that is judged, so that it needs no
    recalibration; there they are a mixture of all. Widths are tenths of a layer's channels, not multiples of 8.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunelab.channels.costs import Macs
from prunelab.channels.groups import Grid, Widths, check_widths, groups_of, outputs
from prunelab.channels.prefix import PREFIX, ordinary
from prunelab.channels.trace import trace
from prunelab.methods.hooks import Hooks


class Slimmable:
    """A network that computes at any widths.

    Attributes:
        model: The network.
        groups: Its groups of layers, by name.
        full: All their channels.
        macs: What it costs.
        widths: Those it computes at.
    """

    def __init__(self, model: nn.Module, *, in_channels: int, image_size: int) -> None:
        """Turns the layers of `model` into slimmable ones, in place, unless it is refused; parameters and names stay.

        Args:
            model: Takes images (n, c, h, w).
            in_channels: Channels of the images.
            image_size: Their height and width in pixels.
        Raises:
            UntraceableError, ValueError: See `trace` and `groups_of`; or a layer that has no slimmable kind.
        """
        traced = trace(model, in_channels=in_channels, image_size=image_size)
        self.model, self.groups = model, groups_of(traced)
        with_weights = (name.rpartition(".")[0] for name in traced.axes)
        modules = {name: model.get_submodule(name) for name in (*traced.layers, *with_weights)}
        for name, module in modules.items():
            is_plain = getattr(module, "padding_mode", "zeros") == "zeros"
            is_plain = is_plain and getattr(module, "affine", True) and getattr(module, "track_running_stats", True)
            if type(module) not in (*PREFIX, *PREFIX.values()) or not is_plain:
                kinds = ", ".join(kind.__name__ for kind in PREFIX)
                raise ValueError(f"{name!r} is {module}; slimmable are {kinds}, padded with zeros, with scales")
        ordinary(model)  # which may be slimmable already, and narrow
        self.macs = Macs(model, self.groups, in_channels=in_channels, image_size=image_size)
        for name, module in modules.items():
            module.__class__ = PREFIX[type(module)]  # as torch.nn.utils.parametrize does
            module.n_out = len(outputs(traced.layers[name]))
        self._norms = {norm: norm.momentum for norm in model.modules() if isinstance(norm, nn.BatchNorm2d)}
        self.full: Widths = {name: group.n_channels for name, group in self.groups.items()}
        self.set(self.full)

    def set(self, widths: Widths, *, keeps_statistics: bool = True) -> None:
        """Lets the network compute at these widths.

        Args:
            widths: Of each group.
            keeps_statistics: Whether training at them moves the running statistics of batch normalisation.
        Raises:
            ValueError: A group that is missing, a layer that is none, or a width that a group cannot have.
        """
        check_widths(widths, self.groups)
        self.widths = {name: int(width) for name, width in widths.items()}  # NumPy's are whole numbers too
        for name, group in self.groups.items():
            for writer in group.writers:
                self.model.get_submodule(writer).n_out = self.widths[name]
        for norm, momentum in self._norms.items():
            norm.momentum = momentum if keeps_statistics else 0.0

    @contextlib.contextmanager
    def scaled(self, scales: Mapping[str, Tensor]) -> Iterator[None]:
        """Multiplies what is read of each group, channel by channel, by `scales[name]`, of shape (n_channels,)."""
        hooks = [
            self.model.get_submodule(reader).register_forward_pre_hook(partial(_scale, scales[name]))
            for name, group in self.groups.items()
            for reader in group.readers
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _scale(scale: Tensor, layer: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    (x,) = inputs
    along = scale.repeat_interleave(x.shape[1] // len(scale))  # flattened maps have several features a channel
    return x * along.to(x.dtype).view(1, -1, *[1] * (x.dim() - 2))


class Sandwich(Hooks):
    """Trains a slimmable network at several widths a step; the objective of the training, and its hooks.

    Attributes:
        slimmable: The network.
        n_batches: Done so far.
        macs: Of all forward passes so far, for one image of each batch.
    """

    def __init__(
        self,
        slimmable: Slimmable,
        draw: Callable[[torch.Generator], Iterable[Widths]],
        *,
        judged: Widths | None = None,
        label_smoothing: float = 0.0,
        generator: torch.Generator,
    ) -> None:
        """Args:
        slimmable: The network.
        draw: Gives the widths of a step; what comes after the first learns its outputs in place of the labels.
        judged: Those whose statistics batch normalisation keeps, and which the network has between steps; None is all
            channels. Where a step has one width, its statistics are kept.
        label_smoothing: Of the first one's labels, in [0, 1).
        generator: Of the random widths, on the CPU.
        """
        self.slimmable, self.draw, self.generator = slimmable, draw, generator
        self.label_smoothing = label_smoothing
        self.judged = dict(judged or slimmable.full)
        self.n_batches, self.macs = 0, 0.0
        slimmable.set(self.judged)

    def objective(self, model: nn.Module, images: Tensor, labels: Tensor) -> Iterator[Tensor]:
        """Yields the loss of each width, as `steps.Objective` has it."""
        teacher, drawn = None, list(self.draw(self.generator))
        for widths in drawn:
            self.slimmable.set(widths, keeps_statistics=len(drawn) == 1 or widths == self.judged)
            logits = model(images)
            if teacher is None:
                yield F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
                teacher = logits.detach()
            else:
                yield distillation(logits, teacher)
            self.macs += self.slimmable.macs.of(widths)
        self.slimmable.set(self.judged)
        self.n_batches += 1

    def state_dict(self) -> dict:
        return {"n_batches": self.n_batches, "macs": self.macs, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict) -> None:
        self.n_batches, self.macs = state["n_batches"], state["macs"]
        self.generator.set_state(state["generator"])


def sandwich(grid: Grid, *, independent: bool = True) -> Callable[[torch.Generator], list[Widths]]:
    """Returns the sandwich rule: draws the largest widths, the smallest, and two random ones.

    Args:
        grid: The widths that groups may have.
        independent: Whether each group's width is drawn by itself, as in AutoSlim and DMCP; else all groups have the
            same share of their channels, as in Universally Slimmable networks.
    """

    def draw(generator: torch.Generator) -> list[Widths]:
        random = grid.drawn(generator, 2)
        return [grid.at(-1), grid.at(0), *map(grid.at, random if independent else random[:, :1])]

    return draw


def distillation(logits: Tensor, teacher: Tensor) -> Tensor:
    """Returns the mean Kullback-Leibler divergence of a student's class probabilities from its teacher's, (b, k)."""
    log_probabilities, targets = F.log_softmax(logits, dim=1), F.log_softmax(teacher, dim=1)
    return F.kl_div(log_probabilities, targets, reduction="batchmean", log_target=True)


@torch.no_grad()
def calibrate(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Takes the running statistics of batch normalisation anew, the mean over batches of images; leaves training mode.

    Differs: The authors' code resets its statistics with a momentum of 1, so that only the last batch counts.
    """
    norms = {norm: norm.momentum for norm in model.modules() if isinstance(norm, nn.BatchNorm2d)}
    model.train()
    for number, images in enumerate(batches, start=1):
        for norm in norms:
            norm.momentum = 1 / number
        model(images)
    model.eval()
    for norm, momentum in norms.items():
        norm.momentum = momentum
