"""Which layers share which channels, read off the graph of a network's forward pass by torch.fx.

Every output channel of a layer has a name of its own, which is carried along the graph to whoever reads it. Where two
tensors are added or multiplied, a channel of one and its partner become the same channel: one cannot go without the
other. So a residual stream is one set of channels that many layers write, a concatenation is a row of channels of
several layers, and what a layer reads is a list of names.
"""

import copy
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from prunelab.channels.prefix import ordinary
from prunelab.models.layers import PadChannels, Select

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
# Each output of these belongs to one input channel, which stays the same channel. A method goes by its name.
_PASSING_MODULES = (
    *(nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Sigmoid, nn.Tanh, nn.Hardswish),
    *(nn.Hardsigmoid, nn.Dropout, nn.Dropout2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Upsample),
)
_PASSING = {
    *(F.relu, F.relu6, F.leaky_relu, F.elu, F.silu, F.gelu, F.sigmoid, F.tanh, F.hardswish, F.hardsigmoid, F.dropout),
    *(F.dropout2d, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.interpolate, torch.relu, torch.sigmoid),
    *(torch.tanh, torch.clone),
    *("relu", "relu_", "sigmoid", "tanh", "contiguous", "clone", "float", "half", "to", "detach"),
}
_JOINING = {
    *(operator.add, operator.iadd, operator.sub, operator.mul, operator.imul, torch.add, torch.sub, torch.mul),
    *("add", "add_", "sub", "sub_", "mul", "mul_"),
}


class UntraceableError(ValueError):
    """A network whose channels cannot be followed; says which operation is in the way, and what to do."""


@dataclass
class Layer:
    """What one layer reads and writes.

    Attributes:
        module: The layer, in the network that was traced.
        reads: Name of each input channel.
        writes: Name of each output channel; of `PadChannels` the new ones only.
    """

    module: nn.Module
    reads: list[int]
    writes: list[int]

    @property
    def is_depthwise(self) -> bool:
        """Whether it is a convolution of each channel by itself."""
        module = self.module
        return isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels > 1

    @property
    def is_grouped(self) -> bool:
        """Whether it is a convolution of several groups of channels, each of which makes new ones."""
        return isinstance(self.module, nn.Conv2d) and self.module.groups > 1 and not self.is_depthwise

    @property
    def makes_channels(self) -> bool:
        """Whether its output channels are new ones, not those it reads."""
        return isinstance(self.module, nn.Conv2d | nn.Linear | Select) and not self.is_depthwise


@dataclass
class Trace:
    """The channels of a network.

    Attributes:
        layers: Those with parameters or sizes, by name, in the order in which they run.
        fixed: Channels that cannot go: of the images and of the outputs.
    """

    layers: dict[str, Layer] = field(default_factory=dict)
    fixed: set[int] = field(default_factory=set)
    _same: list[int] = field(default_factory=list)  # for each name an older one of the same channel, or itself

    def new(self, n: int) -> list[int]:
        """Gives names to `n` more channels."""
        names = list(range(len(self._same), len(self._same) + n))
        self._same += names
        return names

    def channel(self, name: int) -> int:
        """Returns the channel that a name stands for: the oldest of its names."""
        while self._same[name] != name:
            self._same[name] = self._same[self._same[name]]
            name = self._same[name]
        return name

    def channels(self, names: Iterable[int]) -> list[int]:
        """Returns the `channel` of each."""
        return [self.channel(name) for name in names]

    def join(self, left: Iterable[int], right: Iterable[int]) -> None:
        """Makes each channel and its partner one."""
        for one, other in zip(left, right, strict=True):
            oldest, youngest = sorted((self.channel(one), self.channel(other)))
            self._same[youngest] = oldest

    @property
    def widths(self) -> dict[str, int]:
        """Channels of each layer that may lose some by itself, first layer first.

        These are convolutions, linear layers and selections whose output nothing else is added to, and which is not
        the network's. A grouped convolution may lose whole groups, and with them what they read.
        """
        writers: dict[int, set[str]] = {}
        for name, layer in self.layers.items():
            if layer.makes_channels or isinstance(layer.module, PadChannels):
                for channel in self.channels(layer.writes):
                    writers.setdefault(channel, set()).add(name)
        grouped = (name for layer in self.layers.values() if layer.is_grouped for name in layer.reads)
        bound = {*self.channels(self.fixed), *self.channels(grouped)}
        return {
            name: len(layer.writes)
            for name, layer in self.layers.items()
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


def trace(model: nn.Module, *, in_channels: int, image_size: int | tuple[int, int]) -> Trace:
    """Follows the channels of a network through one forward pass, in which no number is computed.

    Args:
        model: Takes images (n, c, h, w); left as it is. A slimmable one is followed at all its channels.
        in_channels: Channels of the images.
        image_size: Their height and width in pixels; one number for both.
    Raises:
        UntraceableError: The forward pass depends on values, or has an operation that channels cannot be followed
            through.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    shadow = ordinary(copy.deepcopy(model)).to("meta").eval()
    try:
        graph = _Tracer().trace(shadow)
    except (fx.proxy.TraceError, TypeError) as error:
        raise UntraceableError(
            f"the forward pass of {type(model).__name__} cannot be traced: {error}. Its course must not depend on the"
            " values or sizes of tensors; move such a part into a module of torch.nn, or out of the network"
        ) from error
    follower = _Follower(model, fx.GraphModule(shadow, graph))
    follower.run(torch.empty(1, in_channels, height, width, device="meta"))
    return follower.trace


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, Select | PadChannels) or super().is_leaf_module(module, name)


class _Follower(fx.Interpreter):
    """Runs a graph on tensors without numbers, and beside it with the names of their channels along dimension 1."""

    def __init__(self, model: nn.Module, graph: fx.GraphModule) -> None:
        super().__init__(graph, garbage_collect_values=False)
        self.extra_traceback = False  # an error says itself where it happened
        self.model, self.trace = model, Trace()
        self.names: dict[fx.Node, list[int] | None] = {}  # None: no tensor with channels

    def run_node(self, node: fx.Node) -> Tensor:
        value = super().run_node(node)
        follow = getattr(self, f"_follow_{node.op}")
        self.names[node] = follow(node, value) if isinstance(value, Tensor) or node.op == "output" else None
        return value

    def _refuse(self, node: fx.Node, what: str) -> UntraceableError:
        target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        return UntraceableError(
            f"channels of {type(self.model).__name__} cannot be followed through {target!r}, at {node.format_node()}: "
            + what
        )

    def _inputs(self, node: fx.Node) -> list[list[int]]:
        """Names of all tensors that an operation takes."""
        return [names for other in node.all_input_nodes if (names := self.names[other]) is not None]

    def _follow_placeholder(self, node: fx.Node, value: Tensor) -> list[int]:
        names = self.trace.new(value.shape[1])
        self.trace.fixed.update(names)
        return names

    def _follow_output(self, node: fx.Node, value: object) -> None:
        self.trace.fixed.update(*self._inputs(node))

    def _follow_get_attr(self, node: fx.Node, value: Tensor) -> None:
        raise self._refuse(node, "a tensor of the network itself; put it into a module of torch.nn")

    def _follow_call_module(self, node: fx.Node, value: Tensor) -> list[int]:
        module, (reads, *_) = self.model.get_submodule(node.target), self._inputs(node)
        if isinstance(module, _PASSING_MODULES) or (isinstance(module, nn.PReLU) and module.num_parameters == 1):
            return reads
        if isinstance(module, nn.Flatten):
            return self._flattened(node, [reads], value)
        if isinstance(module, nn.Linear) and value.dim() != 2:
            raise self._refuse(node, "a linear layer must read (images, features); flatten or pool before it")
        if not isinstance(module, (*NORMS, nn.PReLU, PadChannels, nn.Conv2d, nn.Linear, Select)):
            raise self._refuse(
                node,
                f"{type(module).__name__} may mix channels; use one of Conv2d, Linear, BatchNorm, or a pooling or"
                " activation layer that works on each channel by itself",
            )
        layer = Layer(module, reads, writes=reads)
        if isinstance(module, PadChannels):
            if module.n_new < 0:
                raise self._refuse(node, "it drops channels; no stage may be narrower than the one before it")
            layer.writes = self.trace.new(module.n_new)
        elif layer.makes_channels:
            layer.writes = self.trace.new(value.shape[1])
        if (earlier := self.trace.layers.setdefault(node.target, layer)) is not layer:  # a layer that is used again
            self.trace.join(earlier.reads, layer.reads)
            self.trace.join(earlier.writes, layer.writes)
        return [*reads, *layer.writes] if isinstance(module, PadChannels) else layer.writes

    def _follow_operation(self, node: fx.Node, value: Tensor) -> list[int]:
        if node.target not in self._OPERATIONS:
            raise self._refuse(
                node, "an operation that is not known to keep channels apart; replace it, or leave it out"
            )
        return self._OPERATIONS[node.target](self, node, self._inputs(node), value)

    _follow_call_function = _follow_call_method = _follow_operation

    def _passed(self, node: fx.Node, inputs: list[list[int]], value: Tensor) -> list[int]:
        return inputs[0]

    def _joined(self, node: fx.Node, inputs: list[list[int]], value: Tensor) -> list[int]:
        first, *others = inputs
        for other in others:
            if len(other) != len(first):
                raise self._refuse(node, f"{len(first)} channels meet {len(other)}")
            self.trace.join(first, other)
        return first

    def _concatenated(self, node: fx.Node, inputs: list[list[int]], value: Tensor) -> list[int]:
        names = [name for names in inputs for name in names]
        if len(names) != value.shape[1]:
            raise self._refuse(node, "only channels, dimension 1, may be concatenated")
        return names

    def _padded(self, node: fx.Node, inputs: list[list[int]], value: Tensor) -> list[int]:
        if len(node.kwargs.get("pad", *node.args[1:2])) > 4:  # width and height come first
            raise self._refuse(node, "it appends channels; use prunelab.models.layers.PadChannels")
        return inputs[0]

    def _flattened(self, node: fx.Node, inputs: list[list[int]], value: Tensor) -> list[int]:
        """Makes each channel a run of as many features as it had positions."""
        reads = inputs[0]
        if value.dim() != 2 or value.shape[1] % len(reads) or value.shape[0] != 1:
            raise self._refuse(
                node, "only (images, channels, height, width) into (images, features) keeps channels apart"
            )
        return [name for name in reads for _ in range(value.shape[1] // len(reads))]

    def _sliced(self, node: fx.Node, inputs: list[list[int]], value: Tensor) -> list[int]:
        index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        if any(part != slice(None) for part in index[:2]) or not all(isinstance(part, slice) for part in index):
            raise self._refuse(node, "channels are picked by position; use prunelab.models.layers.Select")
        return inputs[0]

    def _pooled(self, node: fx.Node, inputs: list[list[int]], value: Tensor) -> list[int]:
        if value.dim() < 2 or value.shape[1] != len(inputs[0]):
            raise self._refuse(node, "only height and width may be averaged")
        return inputs[0]

    # What becomes of the channels, by the function or by the name of the method that is called.
    _OPERATIONS: ClassVar[dict[Callable | str, Callable[..., list[int]]]] = {
        **dict.fromkeys(_PASSING, _passed),
        **dict.fromkeys(_JOINING, _joined),
        **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), _concatenated),
        **dict.fromkeys((torch.flatten, "flatten", "view", "reshape"), _flattened),
        **dict.fromkeys((torch.mean, "mean"), _pooled),
        operator.getitem: _sliced,
        F.pad: _padded,
    }
