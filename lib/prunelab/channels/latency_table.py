"""What a network costs in seconds, as a function of the widths of its groups: measured at a few, interpolated between.

Source: Each layer measured by itself and added up, as in the look-up tables of NetAdapt, Yang et al. 2018,
    arXiv:1804.03230.
"""

import csv
import io
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from prunelab import paths
from prunelab.channels.groups import Group, Widths
from prunelab.files import atomic_write
from prunelab.latency import N_WARM_UP, in_turn
from prunelab.masks import layer_weights
from prunelab.progress import progress_of
from prunelab.shadows import images_for, without_numbers

Cells = Mapping[tuple[int, int], float]  # seconds, by channels read and written; a depthwise layer has the same twice
_COLUMNS = ["layer", "n_in", "n_out", "seconds"]


class LatencyTable:
    """Seconds of a forward pass of a batch: the sum over layers, each bilinear in the widths that it reads and writes.

    A layer is a convolution with batch normalisation and ReLU, or a linear layer. What is in none is not counted:
    additions, pooling, padding. On a GPU each layer is waited for, as it is not in a network. So a budget is a share of
    what the table gives for the full network, not of that network's own latency.

    Attributes:
        seconds: Of each layer, its cells.
    """

    def __init__(self, seconds: Mapping[str, Cells], groups: Mapping[str, Group]) -> None:
        """Args:
        seconds: Of each layer; its cells are a grid that ends at all channels.
        groups: Of the network.
        Raises:
            ValueError: Layers or channels are not those of the network, or channels or a time are not above 0.
        """
        sides = _sides(groups)
        _check(seconds, sides)
        self.seconds, self._names = seconds, list(groups)
        n_ins, n_outs, rows = [], [], []
        for layer, cells in seconds.items():
            is_depthwise = sides[layer].is_depthwise
            n_ins.append(sorted({n_in for n_in, _ in cells}))
            n_outs.append([0] if is_depthwise else sorted({n_out for _, n_out in cells}))
            rows.append([[cells[n_in, n_in if is_depthwise else n] for n in n_outs[-1]] for n_in in n_ins[-1]])
        n = max(2, *map(len, n_ins), *map(len, n_outs))
        self._n_ins, self._n_outs = (torch.tensor([_pad(own, n) for own in side]).double() for side in (n_ins, n_outs))
        self._rows = torch.tensor([_pad([_pad(row, n) for row in own], n) for own in rows], dtype=torch.float64)
        # A fixed side has one point, and is the same at any width; the last group's will do.
        index = {None: -1} | {name: i for i, name in enumerate(groups)}
        self._reads, self._writes = (
            torch.tensor([index[group and group.name] for group in own])
            for own in zip(*((sides[layer].read, sides[layer].written) for layer in seconds), strict=True)
        )

    def __call__(self, widths: Tensor, variances: Tensor | None = None) -> Tensor:
        """Returns the seconds (...) at widths (..., groups); at a measured width the slope is that of one side.

        Variances are ignored. Where groups are random, these are the seconds at their means, not the expected seconds:
        the slope changes from cell to cell, and what that adds does not follow from means and variances.
        """
        widths = widths.double()
        i, down = _located(widths[..., self._reads], self._n_ins)
        j, along = _located(widths[..., self._writes], self._n_outs)
        layers = torch.arange(len(self._rows))
        first, second = (torch.lerp(self._rows[layers, k, j], self._rows[layers, k, j + 1], along) for k in (i, i + 1))
        return torch.lerp(first, second, down).sum(dim=-1)

    def of(self, widths: Widths) -> float:
        """Returns the seconds of a network whose groups have these widths."""
        return float(self(torch.tensor([float(widths[name]) for name in self._names])))

    @classmethod
    @torch.no_grad()
    @torch.random.fork_rng(devices=[])  # the weights of the layers are drawn
    def measured(
        cls,
        model: nn.Module,
        groups: Mapping[str, Group],
        *,
        in_channels: int,
        image_size: int,
        batch_size: int,
        n_rounds: int,
        n_points: int = 4,
    ) -> "LatencyTable":
        """Times layers like those of a network, in evaluation mode, channels last, on its device and PyTorch's threads.

        Equal layers are timed once. Rounds go over all cells in turn: a machine that slows down slows all of them.

        Args:
            model: Left as it is.
            groups: Its groups.
            in_channels: Channels of the images.
            image_size: Their height and width in pixels.
            batch_size: Images a pass.
            n_rounds: How often each cell is timed; the median counts.
            n_points: Widths of each group, from a tenth of its channels to all.
        Raises:
            ValueError: No round, or fewer than two widths.
        """
        if n_rounds < 1 or n_points < 2:
            raise ValueError(f"n_rounds must be at least 1 and n_points at least 2, got {n_rounds} and {n_points}")
        device, sides = next(model.parameters()).device, _sides(groups)

        @cache
        def noise(*shape: int) -> Tensor:
            images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
            return images.to(memory_format=torch.channels_last) if images.dim() == 4 else images

        passes, kinds = {}, defaultdict(dict)
        for name, size in _sizes(model, sides, in_channels=in_channels, image_size=image_size).items():
            layer, own = model.get_submodule(name), sides[name]
            n_out, n_in = layer.weight.shape[:2]
            n_ins, n_outs = _points(own.read, n_in, n_points), _points(own.written, n_out, n_points)
            n_features = max(1, n_in // n_ins[-1])  # of a channel, where the map is flattened
            for read, written in own.cells(n_ins, n_outs):
                block = _block(layer, read * n_features, written).to(device, memory_format=torch.channels_last).eval()
                kinds[name][read, written] = kind = f"{block} {size}"
                passes.setdefault(kind, partial(_forward, block, noise(batch_size, read * n_features, *size)))
        with progress_of(N_WARM_UP + n_rounds) as tell:
            passes["progress"] = lambda number: tell(number + 1)
            spent = in_turn(passes, n_rounds=n_rounds, n_warm_up=N_WARM_UP)
        medians = {kind: statistics.median(times) for kind, times in spent.items()}
        return cls({name: {cell: medians[kind] for cell, kind in own.items()} for name, own in kinds.items()}, groups)

    def to_csv(self, path: Path | str) -> None:
        """Writes one row a cell, seconds to 4 significant digits; the name should say what was measured, and where."""
        text = io.StringIO()
        rows = ((layer, *cell, f"{time:.4g}") for layer, cells in self.seconds.items() for cell, time in cells.items())
        csv.writer(text, lineterminator="\n").writerows([_COLUMNS, *rows])
        atomic_write(Path(path), text.getvalue())

    @classmethod
    def read(cls, path: Path | str, groups: Mapping[str, Group]) -> "LatencyTable":
        """Reads what `to_csv` wrote.

        Raises:
            ValueError: There is no such file, or it is no table of a network with these groups; says which, and why.
        """
        seconds = defaultdict(dict)
        try:
            with open(path, newline="") as file:
                text = file.read()
            header, *rows = list(csv.reader(text.splitlines())) or [[]]
            if header != _COLUMNS:
                raise ValueError(f"its first line must be {','.join(_COLUMNS)}, not {','.join(header)!r}")
            if not text.endswith("\n"):
                raise ValueError(f"its last line, {','.join([header, *rows][-1])!r}, has no end: it may be cut off")
            for layer, n_in, n_out, time in rows:
                cell = int(n_in), int(n_out)
                if cell in seconds[layer]:
                    raise ValueError(f"it has {layer!r} at {cell} twice")
                seconds[layer][cell] = float(time)
            return cls(dict(seconds), groups)
        except FileNotFoundError as error:
            raise ValueError(f"there is no {path}; write it by LatencyTable.measured(...).to_csv(...)") from error
        except ValueError as error:
            raise ValueError(f"{path} is not a latency table of this network: {error}") from error

    @classmethod
    def shipped(cls, name: str, groups: Mapping[str, Group]) -> "LatencyTable":
        """Reads a table of `data/latency/` by its name; errors as for `read`, and ValueError for an unknown name."""
        known = {path.stem: path for path in sorted((paths.ROOT / "data" / "latency").glob("*.csv"))}
        if name not in known:
            raise ValueError(f"no latency table {name!r} is shipped; there are {', '.join(known) or 'none'}")
        return cls.read(known[name], groups)


@dataclass
class _Sides:
    """The groups that a layer reads and writes, None where its channels are fixed; of a depthwise one they are one."""

    read: Group | None = None
    written: Group | None = None
    is_depthwise: bool = False

    def cells(self, n_ins: Iterable[int], n_outs: Iterable[int]) -> list[tuple[int, int]]:
        return list(zip(n_ins, n_outs, strict=False) if self.is_depthwise else product(n_ins, n_outs))


def _sides(groups: Mapping[str, Group]) -> dict[str, _Sides]:
    """Returns the sides of each layer that has a free one; padding is none, and in no table."""
    sides = defaultdict(_Sides)
    for group in groups.values():
        for layer in (*group.readers, *group.depthwise):
            sides[layer].read = group
        for layer in (*group.writers, *group.depthwise):
            sides[layer].written = group
        for layer in group.depthwise:
            sides[layer].is_depthwise = True
    pads = {layer for group in groups.values() for layer in group.pads}
    return {layer: own for layer, own in sides.items() if layer not in pads}


def _check(seconds: Mapping[str, Cells], sides: Mapping[str, _Sides]) -> None:
    """Raises ValueError unless a table is one of a network whose layers have these sides."""
    if wrong := seconds.keys() ^ sides.keys():
        raise ValueError(f"layers that only the table or only the network has: {', '.join(sorted(wrong))}")
    for layer, cells in seconds.items():
        n_ins, n_outs = (sorted(set(side)) for side in zip(*cells, strict=True))
        for column, points, group in (("n_in", n_ins, sides[layer].read), ("n_out", n_outs, sides[layer].written)):
            if points[0] < 1:
                raise ValueError(f"{column} of {layer!r} must be above 0, got {points[0]}")
            if len(points) > 1 if group is None else points[-1] != group.n_channels:
                allowed = "be one number" if group is None else f"go up to {group.n_channels}, all channels"
                raise ValueError(f"{column} of {layer!r} must {allowed}; got {', '.join(map(str, points))}")
        if set(sides[layer].cells(n_ins, n_outs)) != cells.keys():
            raise ValueError(f"the cells of {layer!r} must be a grid, got {', '.join(map(str, cells))}")
        for cell, time in cells.items():
            if not 0 < time < math.inf:
                raise ValueError(f"seconds must be above 0, got {time} for {layer!r} at {cell}")


def _sizes(model: nn.Module, layers: Iterable[str], *, in_channels: int, image_size: int) -> dict[str, tuple[int, ...]]:
    """Returns height and width of what each convolution of some layers reads, () for the linear ones."""
    sizes = {}

    def note(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sizes[name] = tuple(inputs[0].shape[2:])

    shadow = without_numbers(model)
    for name in layer_weights(shadow).keys() & layers:
        shadow.get_submodule(name).register_forward_pre_hook(partial(note, name))
    shadow(images_for(model, in_channels, image_size))
    return sizes


def _points(group: Group | None, n_fixed: int, n: int) -> list[int]:
    """Returns the channels at which a side is measured, in order."""
    shares = torch.linspace(0.1, 1, n, dtype=torch.float64)
    return [n_fixed] if group is None else (group.n_channels * shares).round().clamp(min=1).int().unique().tolist()


def _block(layer: nn.Conv2d | nn.Linear, n_in: int, n_out: int) -> nn.Module:
    """Builds a layer like another one but for its channels, and what follows a convolution."""
    has_bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        return nn.Linear(n_in, n_out, bias=has_bias)
    rest = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, n_in if layer.groups > 1 else 1, has_bias)
    return nn.Sequential(nn.Conv2d(n_in, n_out, *rest), nn.BatchNorm2d(n_out), nn.ReLU(inplace=True))


def _forward(block: nn.Module, images: Tensor, _round: int) -> None:
    block(images)
    if images.is_cuda:
        torch.cuda.synchronize(images.device)


def _pad(values: list, n: int) -> list:
    """Repeats the last of some values until there are `n`."""
    return values + values[-1:] * (n - len(values))


def _located(widths: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Finds which of the points (layers, n) precedes each width (..., layers), and the share of the way to the next."""
    first, last, layers = points[:, 0], points[:, -1], torch.arange(len(points))
    # As clamp, but the ends themselves have the slope of their cells.
    widths = torch.where(widths < first, first, torch.where(widths > last, last, widths))
    index = (widths[..., None] > points[:, 1:-1]).sum(dim=-1)
    start, stop = points[layers, index], points[layers, index + 1]
    return index, (widths - start) / (stop - start).clamp(min=1)  # a single point is 0 from its like
