"""Differentiable Markov Channel Pruning: how wide each group of layers should be, learned by gradient descent.

A group's channels stay or go in steps, from the first on: step k stays with probability p_k = sigmoid(alpha_k) if step
k - 1 has stayed, so that it is retained with m_k = p_1 p_2 … p_k. The expected number of channels, and with it the
expected cost of the network, is differentiable in alpha; the loss is, by multiplying each channel with its m_k.

Source: Guo et al. 2020, arXiv:2005.03354, Sec. 3; as in Zx55/dmcp.
Differs: The budget's penalty is continuous, and relative to the budget (see `budget_penalty`). Random widths of the
    second phase are all drawn from the current probabilities, as in the paper; the released code draws most of them
    uniformly. alpha takes its step on the same batch before the weights take theirs, not after. Channels are scaled
    where they are read, once: the release scales those of an inverted residual twice. It also draws conv2 of a
    bottleneck from conv1's probabilities, and counts the gradient of a depthwise layer's cost twice.
"""

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunelab import ranks
from prunelab.channels.costs import N_DRAWS, Cost, check_budget, first_near
from prunelab.channels.groups import Grid, Widths
from prunelab.channels.slimmable import Sandwich, Slimmable, sandwich

FREE = 0.05  # a network may cost this share less than its budget without a penalty
LAST_RATE = 0.2  # of alpha at the end, as a share of its rate when it starts
N_DRAWN = 5  # networks drawn from the chains, as in the authors' code
N_SNAPSHOTS = 24  # of the probabilities, for the record


class Markov(nn.Module):
    """The chains of all groups.

    Attributes:
        alphas: Architecture parameters (groups, steps), 0 at first: every step is as likely to stay as to go.
        least: Channels that always stay (groups,).
        sizes: Channels of each step (groups, steps); in a group of few channels some are 0.
    """

    least: Tensor
    sizes: Tensor

    def __init__(self, grid: Grid) -> None:
        """Args: `grid` has the widths that each group may have."""
        super().__init__()
        self.grid = grid
        self.register_buffer("least", grid.choices[:, 0].float())
        self.register_buffer("sizes", grid.choices.diff(dim=1).float())
        self.alphas = nn.Parameter(torch.zeros_like(self.sizes))

    def retained(self) -> Tensor:
        """Returns the probability of each step to be retained, m_k (groups, steps): Eq. 3."""
        return torch.sigmoid(self.alphas).cumprod(dim=1)

    def probabilities(self) -> list[list[float]]:
        """Returns the probability of each group's steps to stay if the one before does, rounded, to be recorded."""
        return [[round(p, 4) for p in chain] for chain in torch.sigmoid(self.alphas).tolist()]

    def expected(self) -> Tensor:
        """Returns the expected channels of each group (groups,): Eq. 5."""
        return self.least + (self.sizes * self.retained()).sum(dim=1)

    def variances(self) -> Tensor:
        """Returns the variance of the channels of each group (groups,).

        Steps are nested: two are both retained as often as the later one is.
        """
        retained = self.retained()
        both = torch.minimum(retained[:, :, None], retained[:, None, :])
        covariances = both - retained[:, :, None] * retained[:, None, :]
        return (self.sizes[:, :, None] * covariances * self.sizes[:, None, :]).sum(dim=(1, 2))

    def scales(self) -> dict[str, Tensor]:
        """Returns for each channel of each group the probability that it is retained, (n_channels,): Eq. 4."""
        counts = torch.cat([self.least[:, None], self.sizes], dim=1).long()
        retained = torch.cat([torch.ones_like(self.least)[:, None], self.retained()], dim=1)
        return {
            name: own.repeat_interleave(count)
            for name, own, count in zip(self.grid.names, retained, counts, strict=True)
        }

    @torch.no_grad()
    def draw(self, generator: torch.Generator, n: int = 1) -> Tensor:
        """Draws the channels of each group along its chain (direct sampling), float (n, groups), on the CPU."""
        stays = torch.rand(n, *self.sizes.shape, generator=generator) < torch.sigmoid(self.alphas).cpu()
        return self.least.cpu() + (self.sizes.cpu() * stays.cumprod(dim=2)).sum(dim=2)

    @torch.no_grad()
    def rounded(self) -> dict[str, int]:
        """Returns the expected channels, rounded (expected sampling); they need not lie on the grid."""
        return self.grid.widths(self.expected().cpu().round())


def budget_penalty(cost: Tensor, budget: float) -> Tensor:
    """Returns how far an expected cost is from its budget, on a log scale; 0 from 95 % of it to 100 %.

    log(1 + d / 0.05), where d is the distance from that range, as a share of the budget. Outside of it the gradient is
    that of the authors' code, 1 / (d + 0.05).

    Source: Guo et al. 2020, Eq. 8, whose log|E - T| has no free range; as in the authors' code.
    Differs: The authors' penalty, in millions of MACs, jumps at the ends of the range and where |E - T| is 200.
    """
    share = cost / budget
    distance = F.relu(1 - FREE - share) + F.relu(share - 1)
    return torch.log1p(distance / FREE)


class Search(Sandwich):
    """Trains the weights by the sandwich rule, and from the second phase on alpha in turn with them.

    Attributes:
        markov: The chains.
        history: Snapshots of the second phase: the batch, and the probabilities p_k of each group's steps to stay.
    """

    def __init__(
        self,
        slimmable: Slimmable,
        cost: Cost,
        *,
        budget: float,
        n_batches: int,
        warm_up: float,
        penalty: float,
        rate: float = 0.5,
        plain: bool = False,
        label_smoothing: float = 0.0,
        generator: torch.Generator,
    ) -> None:
        """Args:
        slimmable: The network.
        cost: What it costs at given widths.
        budget: Of that cost.
        n_batches: Length of the training.
        warm_up: Share of it that is the first phase, in which the weights learn alone.
        penalty: Weight of the budget's penalty in the loss of alpha.
        rate: Learning rate of alpha at the beginning of the second phase; at its end it is a fifth of that.
        plain: Whether the weights learn at full width only.
        label_smoothing: As for `Sandwich`.
        generator: Of the random widths, on the CPU.
        Raises:
            ValueError: A budget below the smallest network, or above the full one; no batch, a warm-up that is no share
                below 1, or a negative penalty.
        """
        if n_batches < 1 or not 0 <= warm_up < 1 or not penalty >= 0:
            raise ValueError(
                "n_batches must be at least 1, warm_up lie in [0, 1), and penalty be at least 0; got"
                f" {n_batches}, {warm_up} and {penalty}"
            )
        self.grid = Grid(slimmable.groups)
        check_budget(budget, cost, self.grid)
        draw = self._plain if plain else self._sandwich
        super().__init__(slimmable, draw, label_smoothing=label_smoothing, generator=generator)
        self.cost, self.budget, self.penalty, self.rate = cost, budget, penalty, rate
        self.first, self.last = round(warm_up * n_batches), n_batches
        self.markov = Markov(self.grid).to(next(slimmable.model.parameters()).device)
        self.optimizer = torch.optim.SGD(self.markov.parameters(), lr=rate, momentum=0.9, nesterov=True)
        self.history: list[dict] = []

    def _plain(self, generator: torch.Generator) -> list[Widths]:
        return [self.slimmable.full]

    def _sandwich(self, generator: torch.Generator) -> list[Widths]:
        if self.n_batches < self.first:
            return sandwich(self.grid)(generator)
        drawn = self.markov.draw(generator, 2)
        return [self.slimmable.full, self.grid.at(0), *map(self.grid.widths, drawn)]

    def objective(self, model: nn.Module, images: Tensor, labels: Tensor) -> Iterator[Tensor]:
        """Yields the losses of the weights, then takes a step of alpha; a loss is NaN once an alpha is."""
        diverged = 0 * self.markov.alphas.detach().sum()
        yield from (loss + diverged for loss in super().objective(model, images, labels))
        if self.n_batches > self.first:
            self._step_alphas(model, images, labels)

    def _step_alphas(self, model: nn.Module, images: Tensor, labels: Tensor) -> None:
        done = (self.n_batches - self.first) / (self.last - self.first)
        decay = (1 + math.cos(math.pi * done)) / 2
        self.optimizer.param_groups[0]["lr"] = self.rate * (LAST_RATE + (1 - LAST_RATE) * decay)
        self.slimmable.set(self.slimmable.full, keeps_statistics=False)
        with self.slimmable.scaled(self.markov.scales()):
            loss = F.cross_entropy(model(images), labels)
        self.slimmable.set(self.slimmable.full)
        self.macs += self.slimmable.macs.of(self.slimmable.full)
        expected = self.cost(self.markov.expected().cpu(), self.markov.variances().cpu())
        loss = loss + self.penalty * budget_penalty(expected, self.budget).to(loss.device)
        (self.markov.alphas.grad,) = torch.autograd.grad(loss, [self.markov.alphas])
        ranks.average([self.markov.alphas.grad])
        self.optimizer.step()
        if self.n_batches >= self.first + (self.last - self.first) * (1 + len(self.history)) / N_SNAPSHOTS:
            self.history.append({"batch": self.n_batches, "probabilities": self.markov.probabilities()})

    def found(self, generator: torch.Generator) -> dict[str, dict[str, int]]:
        """Returns the widths that the search proposes, by name.

        `expected`, the expected ones, rounded; `direct_1` to `direct_5`, drawn along the chains until their cost is
        within 1 % of the budget, unless the search is too far from it; `smallest`; `largest`. Empty if alpha is NaN.
        """
        if not self.markov.alphas.isfinite().all():
            return {}
        found = {"expected": self.markov.rounded(), "smallest": self.grid.at(0), "largest": self.grid.at(-1)}
        with contextlib.suppress(ValueError):
            for i in range(N_DRAWN):
                drawn = first_near(self.markov.draw(generator, N_DRAWS), self.cost, self.budget)
                found[f"direct_{i + 1}"] = self.grid.widths(drawn)
        return found

    def state_dict(self) -> dict:
        own = {"markov": self.markov.state_dict(), "optimizer": self.optimizer.state_dict(), "history": self.history}
        return super().state_dict() | own

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.markov.load_state_dict(state["markov"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history = state["history"]
