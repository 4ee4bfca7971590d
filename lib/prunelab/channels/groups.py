"""Layers that must be as wide as each other, because they write the same channels; and the widths they may have.

A residual stream is one group, written by the last convolution of each of its blocks; inside a block there are others.
The widths of a network are then one number a group, and a smaller network has the first channels of each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral

import torch
from torch import Tensor, nn

from prunelab.channels.trace import Layer, Trace, UntraceableError
from prunelab.models.layers import PadChannels, Select

Widths = Mapping[str, int]  # channels of each group, by its name


@dataclass(frozen=True)
class Group:
    """Channels that come and go together.

    Attributes:
        name: The first layer that writes them, by which networks are built with `widths`.
        n_channels: How many there are.
        writers: The layers that make them, or pad others to as many; first layer first.
        readers: The layers that mix them into others, or pad them; first layer first.
        depthwise: The convolutions that work on each of them by itself.
        pads: Those of the writers and readers that are `PadChannels`.
    """

    name: str
    n_channels: int
    writers: list[str] = field(default_factory=list)
    readers: list[str] = field(default_factory=list)
    depthwise: list[str] = field(default_factory=list)
    pads: list[str] = field(default_factory=list)


def groups_of(traced: Trace) -> dict[str, Group]:
    """Lists the groups of a network whose width is free, by name, first layer first.

    Raises:
        UntraceableError: A layer that cannot read a prefix of what it reads: of several groups in a row, of one twice,
            or by groups; or one whose channels are added to others in a row.
        ValueError: No group's width is free.
    """
    fixed = set(traced.channels(traced.fixed))
    found: dict[tuple[int, ...], Group] = {}
    for name, layer in traced.layers.items():
        if layer.is_grouped or isinstance(layer.module, Select):
            raise UntraceableError(
                f"{name!r} ({type(layer.module).__name__}) cannot work on the first channels only; a slimmable network"
                " needs ordinary and depthwise convolutions, without selections"
            )
        written = tuple(traced.channels(outputs(layer)))  # a group is the row of its channels
        if _mixes(layer) and fixed.isdisjoint(written):
            found.setdefault(written, Group(name, len(written))).writers.append(name)
    places: dict[int, int] = {}  # appended zeros leave each channel at its own
    for written, group in found.items():
        if any(places.setdefault(channel, place) != place for place, channel in enumerate(written)):
            raise UntraceableError(
                f"{group.name!r} shares channels that are not at the same place everywhere, so that a prefix of some is"
                " no prefix of others; what is added to a concatenation cannot be slimmed"
            )
    for name, layer in traced.layers.items():
        all_read = traced.channels(layer.reads)
        read = tuple(dict.fromkeys(all_read))
        if (_mixes(layer) or layer.is_depthwise) and not fixed.issuperset(read):
            n_times = len(all_read) // len(read)  # a flattened map has each channel once a position
            if read not in found or all_read != [channel for channel in read for _ in range(n_times)]:
                raise UntraceableError(
                    f"{name!r} reads the channels of several layers in a row, or of one twice, of which a prefix is no"
                    " prefix of each; concatenations cannot be slimmed"
                )
            (found[read].depthwise if layer.is_depthwise else found[read].readers).append(name)
    if not found:
        raise ValueError("the network has no layer whose width is free: all its channels are its inputs or outputs")
    for group in found.values():
        named = dict.fromkeys((*group.writers, *group.readers))
        group.pads.extend(name for name in named if isinstance(traced.layers[name].module, PadChannels))
    return {group.name: group for group in found.values()}


def _mixes(layer: Layer) -> bool:
    return layer.makes_channels or isinstance(layer.module, PadChannels)


def outputs(layer: Layer) -> Tensor:
    """Returns the names of all output channels, those that are passed on included."""
    return torch.cat([layer.reads, layer.writes]) if isinstance(layer.module, PadChannels) else layer.writes


class Grid:
    """The widths that each group may have: a tenth, two tenths … of its channels, rounded, at least 1.

    Attributes:
        names: Of the groups.
        choices: int64 (groups, n), from the narrowest to all channels.

    Differs: Guo et al. 2020 take steps of `int(C / 10)` channels and leave the rest to the narrowest width, which is
        then 7 of 16 channels; the rounded tenths are 2 to 16.
    """

    def __init__(self, groups: Mapping[str, Group], *, n: int = 10) -> None:
        """Args:
        groups: Of `groups_of`.
        n: Choices of each group.
        """
        self.names = list(groups)
        channels = torch.tensor([group.n_channels for group in groups.values()])
        shares = torch.arange(1, n + 1) / n
        self.choices = (channels[:, None] * shares).round().clamp(min=1).long()

    def widths(self, of_groups: Tensor | Sequence[int]) -> dict[str, int]:
        """Names a vector of widths, one a group."""
        return dict(zip(self.names, map(int, of_groups), strict=True))

    def at(self, indices: Tensor | int) -> dict[str, int]:
        """Returns the widths of the choices with these indices, (groups,) or one for all; -1 is the last."""
        indices = torch.as_tensor(indices).expand(len(self.names)) % self.choices.shape[1]
        return self.widths(self.choices.gather(1, indices[:, None]).flatten())

    def drawn(self, generator: torch.Generator, n: int = 1) -> Tensor:
        """Draws indices of choices, each group's independently, int64 (n, groups)."""
        return torch.randint(self.choices.shape[1], (n, len(self.names)), generator=generator)

    def spread(self, generator: torch.Generator, n: int) -> Tensor:
        """Draws as `drawn`, but tilts each network as a whole, from narrow to wide; `drawn` gives few at either end."""
        tilt = 4 ** (2 * torch.rand(n, 1, generator=generator) - 1)  # from a quarter to four
        n_choices = self.choices.shape[1]
        return (n_choices * torch.rand(n, len(self.names), generator=generator) ** tilt).long().clamp(max=n_choices - 1)


def check_widths(widths: Widths, groups: Mapping[str, Group]) -> None:
    """Raises ValueError unless each group, and nothing else, has a whole width from 1 to all of its channels."""
    if widths.keys() != groups.keys():
        strangers = sorted(widths.keys() ^ groups.keys())
        writers = {writer: group.name for group in groups.values() for writer in group.writers}
        hints = [f"{name!r} is as wide as {writers[name]!r}" for name in strangers if name in writers.keys() - groups]
        raise ValueError(
            f"widths must name each group once, {', '.join(groups)}; wrong: {', '.join(strangers)}"
            + "".join(f"; {hint}" for hint in hints)
        )
    for name, width in widths.items():
        n = groups[name].n_channels
        if not isinstance(width, Integral) or isinstance(width, bool) or not 1 <= width <= n:
            raise ValueError(f"the width of {name!r} must be a whole number in 1 to {n}, got {width!r}")


def leading_state(smaller: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the state of a narrower network that computes with the first channels of a wider one's `state`."""
    return {
        name: state[name][tuple(slice(n) for n in tensor.shape)].clone()
        for name, tensor in smaller.state_dict().items()
    }
