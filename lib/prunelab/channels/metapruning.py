"""MetaPruning: a small network makes the weights of a network of any widths; evolution then looks for the best ones.

Source: Liu et al. 2019, arXiv:1903.10258, Sec. 3; as in liuzechun/MetaPruning.
Differs: The second linear layer of each generator has the layer's own weight as its bias, with its ordinary
    initialisation. Batch normalisation is shared by all widths and recalibrated; the authors keep one for each width.
"""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from prunelab.channels.autoslim import by_loss
from prunelab.channels.costs import Cost
from prunelab.channels.groups import Grid, Widths
from prunelab.channels.prefix import PrefixConv2d
from prunelab.channels.slimmable import Slimmable

N_HIDDEN = 8  # units of a generator
NEAR = 0.95  # candidates cost at least this share of the budget, and at most all of it
N_DRAWS = 4_000  # tried for each generation, of which those within the budget are candidates


class MetaNetwork(nn.Module):
    """A slimmable network whose convolutions get their weights from generators: W = W_0 + W_2 relu(W_1 e + b_1).

    The encoding e has the shares of its channels that the layer reads and writes.
    """

    def __init__(self, slimmable: Slimmable) -> None:
        """Args: `slimmable` has the network, which becomes a part of this one."""
        super().__init__()
        self.network, self._slimmable = slimmable.model, slimmable
        reads, writes = (
            {layer: name for name, group in slimmable.groups.items() for layer in getattr(group, side)}
            for side in ("readers", "writers")
        )
        convs = {name: module for name, module in self.network.named_modules() if isinstance(module, PrefixConv2d)}
        self._convs = {name: conv for name, conv in convs.items() if name in reads or name in writes}
        self._ends = {name: (reads.get(name), writes.get(name)) for name in self._convs}
        self.first, self.second = nn.ParameterList(), nn.ParameterList()  # in the order of the convolutions
        for conv in self._convs.values():
            weight = conv.weight.detach()
            scale = weight.std() if weight.numel() > 1 else weight.abs().max()  # one number deviates from none
            self.first.append(torch.randn(N_HIDDEN, 3))  # the last column is b_1
            self.second.append(scale / N_HIDDEN * torch.randn(weight.numel(), N_HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        layers = zip(self._convs, self.first, self.second, strict=True)
        weights = {f"{name}.weight": self._generated(name, first, second) for name, first, second in layers}
        return functional_call(self.network, weights, (x,))

    def _generated(self, name: str, first: Tensor, second: Tensor) -> Tensor:
        groups, widths, weight = self._slimmable.groups, self._slimmable.widths, self._convs[name].weight
        shares = [widths[end] / groups[end].n_channels if end else 1.0 for end in self._ends[name]]
        hidden = torch.relu(first @ weight.new_tensor([*shares, 1.0]))
        return weight + (second @ hidden).view_as(weight)


def evolve(
    grid: Grid,
    cost: Cost,
    *,
    budget: float,
    loss: Callable[[Widths], float],
    n_generations: int,
    n_candidates: int,
    generator: torch.Generator,
) -> dict[str, int]:
    """Returns the widths of the smallest loss that evolution finds within a budget.

    Each generation the better half has children: half of them are mutants, in which every group's width is drawn anew
    with probability 0.1; half are crossings, in which each group's width is one parent's or the other's.

    Args:
        grid: The widths that groups may have.
        cost: What a network costs.
        budget: At most what a candidate costs; at least it costs 95 % of that.
        loss: Of the network at given widths, on images that it was not trained on.
        n_generations: After the first, which is drawn at random.
        n_candidates: In each generation, besides those that are known already.
        generator: Of all that is random, on the CPU.
    Raises:
        ValueError: No candidate is within the budget, or no loss is finite.
    """
    losses: dict[tuple[int, ...], float] = {}
    children = grid.spread(generator, 10 * N_DRAWS)
    for _ in range(1 + n_generations):
        widths = grid.choices.T.gather(0, children)
        costs = cost(widths.float())
        fitting = children[(costs <= budget) & (costs >= NEAR * budget)]
        new = (child for child in dict.fromkeys(map(tuple, fitting.tolist())) if child not in losses)
        for candidate in itertools.islice(new, n_candidates):
            losses[candidate] = loss(grid.at(torch.tensor(candidate)))
        if not losses:
            raise ValueError(f"no widths cost {NEAR:.0%} to 100 % of the budget of {budget:,.4g}")
        parents = torch.tensor(by_loss(losses)[: max(2, n_candidates // 2)])
        children = _children(parents, grid, generator)
    return grid.at(parents[0])


def _children(parents: Tensor, grid: Grid, generator: torch.Generator) -> Tensor:
    """Draws mutants and crossings in turn, int64 (n, groups)."""
    ones, others = (parents[torch.randint(len(parents), (N_DRAWS,), generator=generator)] for _ in range(2))
    fresh = grid.drawn(generator, N_DRAWS)
    mutates, crosses = (torch.rand(fresh.shape, generator=generator) < p for p in (0.1, 0.5))
    is_mutant = (torch.arange(N_DRAWS) % 2 == 0)[:, None]
    return torch.where(is_mutant, torch.where(mutates, fresh, ones), torch.where(crosses, others, ones))
