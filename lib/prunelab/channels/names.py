"""The names of a network's channels: which layer reads and writes which, and which are one."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from prunelab.channels.calls import Step
from prunelab.models.layers import PadChannels, Select

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
# How attentions call the number of their heads, and what they compute from it.
HEADS, SPANS = ("num_heads", "n_heads", "num_attention_heads", "heads"), ("attn_dim", "all_head_size", "inner_dim")


def head_attributes(module: nn.Module) -> tuple[str, ...]:
    """Returns the names of a module's attributes that say how many heads it has."""
    found = [name for name in (*HEADS, *SPANS) if isinstance(getattr(module, name, None), int)]
    return tuple(found) if set(found) & set(HEADS) else ()


@dataclass
class Layer:
    """What one layer reads and writes.

    Attributes:
        module: The layer, in the network that was traced.
        reads: Name of each input channel, int64 (in,).
        writes: Name of each output channel; of `PadChannels` the new ones only, int64 (out,).
    """

    module: nn.Module
    reads: Tensor
    writes: Tensor

    @property
    def is_depthwise(self) -> bool:
        """Whether it is a convolution of each channel by itself."""
        return self._n_groups == len(self.reads) == len(self.writes) > 1

    @property
    def is_grouped(self) -> bool:
        """Whether it is a convolution of several groups of channels, each of which makes new ones."""
        return self._n_groups > 1 and not self.is_depthwise

    @property
    def makes_channels(self) -> bool:
        """Whether its output channels are new ones, not those it reads."""
        return isinstance(self.module, nn.modules.conv._ConvNd | nn.Linear | Select) and not self.is_depthwise

    @property
    def _n_groups(self) -> int:
        return self.module.groups if isinstance(self.module, nn.modules.conv._ConvNd) else 1


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Returns the distinct parameters and buffers of a network that have axes, by name."""
    return {name: tensor for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.dim()}


def _tensor_of(names: Iterable[int]) -> Tensor:
    return torch.tensor(list(names), dtype=torch.long, device="cpu")


@dataclass
class Trace:
    """The channels of a network.

    Attributes:
        layers: Convolutions, linear layers, normalisations, selections and paddings, by name, as they first run.
        axes: The names of each position along each axis of the parameters and buffers, by their name.
        fixed: Channels that cannot go, such as those of the images and of the outputs, each with the reason.
        attentions: Names of the heads of each attention, int64 (heads,), by the name of its module.
        steps: All operations.
        gates: Names of what images of channels are multiplied by, as in squeeze and excitation; these follow them.
    """

    layers: dict[str, Layer] = field(default_factory=dict)
    axes: dict[str, list[Tensor]] = field(default_factory=dict)
    fixed: dict[int, str] = field(default_factory=dict)
    attentions: dict[str, Tensor] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    gates: set[int] = field(default_factory=set)
    _n_names: int = 0
    _joined: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _found: Tensor | None = None  # the channel of each name

    def new(self, n: int) -> Tensor:
        """Gives names to `n` more channels."""
        self._n_names, self._found = self._n_names + n, None
        return torch.arange(self._n_names - n, self._n_names, device="cpu")

    def join(self, one: Tensor, other: Tensor) -> None:
        """Makes each channel and its partner one; shapes may be broadcast."""
        if one is not other:
            one, other = torch.broadcast_tensors(one, other)
            self._joined.append((one.flatten(), other.flatten()))
            self._found = None

    def fix(self, names: Tensor, why: str) -> None:
        """Makes channels stay."""
        once = tuple(slice(None) if step else slice(1) for step in names.stride())  # what is repeated
        for name in names[once].unique().tolist():
            self.fixed.setdefault(name, why)

    def see(self, name: str, module: nn.Module, reads: Tensor, writes: Tensor) -> None:
        """Lists a layer; of one that runs again, both times are the same."""
        layer = self.layers.setdefault(name, Layer(module, reads, writes))
        self.join(layer.reads, reads)
        self.join(layer.writes, writes)

    @property
    def every(self) -> Tensor:
        """All names."""
        return torch.arange(self._n_names, device="cpu")

    def numbered(self, names: Tensor) -> Tensor:
        """Returns the channel that each name stands for, as a tensor of the same shape."""
        if self._found is None:
            one, other = map(torch.cat, zip(*self._joined, strict=True)) if self._joined else ([], [])
            graph = coo_array((np.ones(len(one), dtype=bool), (one, other)), shape=(self._n_names, self._n_names))
            self._found = torch.from_numpy(connected_components(graph, directed=False)[1]).long()
        return self._found[names]

    def channels(self, names: Iterable[int] | Tensor) -> list[int]:
        """Returns the channel that each name stands for."""
        return self.numbered(names if isinstance(names, Tensor) else _tensor_of(names)).tolist()

    def staying(self, gone: Collection[int]) -> Tensor:
        """Returns for each name, as booleans, whether its channel is none of those that go."""
        stays = torch.ones(self._n_names, dtype=torch.bool, device="cpu")
        stays[_tensor_of(gone)] = False
        return stays[self.numbered(self.every)]

    def channel(self, name: int) -> int:
        """Returns the channel that a name stands for."""
        return self.channels([name])[0]

    def are_fixed(self, names: Tensor) -> bool:
        """Whether none of the channels can go."""
        return set(self.channels(self.fixed)).issuperset(self.channels(names))

    def names_of(self, module: str) -> Tensor:
        """Returns the names along all axes of a module's own parameters and buffers."""
        own = (axes for name, axes in self.axes.items() if name.rpartition(".")[0] == module)
        return torch.cat([_tensor_of(()), *chain.from_iterable(own)])

    @property
    def why_fixed(self) -> dict[int, str]:
        """The first reason why each channel that is fixed is so."""
        return dict(zip(reversed(self.channels(self.fixed)), reversed(self.fixed.values()), strict=True))

    @property
    def widths(self) -> dict[str, int]:
        """Channels of each layer that may lose some by itself, any of them, first layer first.

        These are convolutions, linear layers and selections whose output nothing else is added to and which is not the
        network's. Left out is what convolutions of several groups read and write, as each group must keep as many, and
        what transposed ones write, and those of one or three dimensions, which `filters` has no scores for.
        """
        grouped = {
            channel
            for layer in self.layers.values()
            if layer.is_grouped
            for channel in self.channels(torch.cat([layer.reads, layer.writes]))
        }
        return {
            name: n
            for name, n in self.own_widths.items()
            if isinstance(self.layers[name].module, nn.Conv2d | nn.Linear | Select)
            and grouped.isdisjoint(channels := self.channels(self.layers[name].writes))
            and len(set(channels)) == n
        }

    @property
    def heads(self) -> dict[str, int]:
        """Heads of each attention that may lose some, whole ones, by the name of its module, first one first.

        A module is taken for an attention if it has a number of heads, under a name of `HEADS`, and takes an axis of as
        many apart. Those that compute the channels of a head from those of a token, as `nn.MultiheadAttention`, cannot
        have fewer heads.
        """
        taken, found = set(self.channels(self.fixed)), {}
        for name, names in self.attentions.items():  # of those that share a layer the first
            channels = set(self.channels(names))
            if len(channels) == len(names) and taken.isdisjoint(channels):
                found[name] = len(names)
            taken |= channels
        return found

    @property
    def own_widths(self) -> dict[str, int]:
        """Channels of each layer that only gates write besides, those of convolutions of several groups included.

        Those that make up heads are not.
        """
        writers: dict[int, set[str]] = {}
        makers = {
            name: layer
            for name, layer in self.layers.items()
            if (layer.makes_channels or isinstance(layer.module, PadChannels))
            and not self.gates.issuperset(layer.writes.tolist())
        }
        for name, layer in makers.items():
            for channel in self.channels(layer.writes):
                writers.setdefault(channel, set()).add(name)
        grouped = (layer.reads for layer in self.layers.values() if layer.is_grouped)
        bound = set(self.channels(self.fixed)).union(*map(self.channels, (*grouped, *self.attentions.values())))
        return {
            name: len(layer.writes)
            for name, layer in makers.items()
            if layer.makes_channels
            and all(writers[channel] == {name} and channel not in bound for channel in self.channels(layer.writes))
        }

    def readers(self, name: str) -> list[str]:
        """Returns the convolutions, linear layers and selections that read a layer's output, first one first."""
        written = set(self.channels(self.layers[name].writes))
        return [
            other
            for other, layer in self.layers.items()
            if layer.makes_channels and not written.isdisjoint(self.channels(layer.reads))
        ]

    def norm(self, name: str) -> str | None:
        """Returns the batch normalisation of exactly a layer's output channels; None where there is none."""
        written = self.channels(self.layers[name].writes)
        return next(
            (
                other
                for other, layer in self.layers.items()
                if isinstance(layer.module, NORMS) and self.channels(layer.writes) == written
            ),
            None,
        )
