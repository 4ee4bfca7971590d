"""What is known of the tensors of a network while it runs without numbers: which channels each is named after."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from prunelab.channels.calls import Parting
from prunelab.channels.names import Trace, own_tensors
from prunelab.channels.spreads import compact, on, positions, spread

UNKNOWN = "nothing is known of where they come from"  # why they are fixed
LAYERS = nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._NormBase, nn.GroupNorm


class Known:
    """The names of tensors, and where the forward pass is.

    Attributes:
        model: The network.
        trace: What is being filled.
        running: Names of the modules that run, the innermost last.
        at: The operation that runs, and where; after an error, what raised it.
        shaped: The last operation that was told a shape, and where.
        partings: Of all axes along which channels lie.
        idle: Parameters and buffers that nothing has read, by identity.
        weights: Parameters and buffers, and what was made of them alone, by identity.
        uniform: Memory that holds one number throughout, see `memory_of`.
        kept: Tensors, so that no other takes the identity of one.
    """

    def __init__(self, model: nn.Module, trace: Trace) -> None:
        self.model, self.trace = model, trace
        self.running, self.at, self.shaped = [""], "its start", "nothing"
        self.partings: list[Parting] = []
        self.uniform: set[int] = set()
        self.kept: list[Any] = []
        self._names: dict[int, tuple[Tensor, ...]] = {}  # by identity
        own = own_tensors(model)
        self.idle = {id(tensor) for tensor in own.values() if tensor.is_floating_point()}
        self.weights = set(map(id, own.values()))
        self._owners = {memory_of(tensor): name for name, tensor in own.items()}
        for name, tensor in own.items():
            axes = trace.axes.setdefault(name, [trace.new(n) for n in tensor.shape])
            self.give(tensor, (spread(names, axis, tensor.shape) for axis, names in enumerate(axes)))

    def is_uniform(self, tensor: Tensor) -> bool:
        """Whether it holds one number throughout."""
        return memory_of(tensor) in self.uniform

    def is_weight(self, tensor: Tensor) -> bool:
        """Whether it is a parameter or a buffer, or was made of such alone."""
        return id(tensor) in self.weights

    def owner(self, tensor: Tensor) -> str | None:
        """Returns the name of the parameter or buffer that it is a view of."""
        return self._owners.get(memory_of(tensor))

    def of(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """Returns its names."""
        return self._names.get(id(tensor), ())

    def add(self, tensor: Tensor, names: Tensor) -> None:
        """Names it after more channels."""
        self._names[id(tensor)] = (*self.of(tensor), compact(names))
        self.kept.append(tensor)

    def give(self, tensor: Tensor, names: Iterable[Tensor]) -> None:
        """Names it."""
        if id(tensor) not in self._names:  # what is changed in place keeps its own, which were joined
            self._names[id(tensor)] = tuple(map(compact, names))
            self.kept.append(tensor)

    def fix(self, tensor: Tensor, why: str) -> None:
        """Makes all channels stay that it is named after."""
        for names in self.of(tensor):
            self.trace.fix(names, why)

    def along(self, tensor: Tensor, axis: int) -> Tensor:
        """Returns one name for each position of an axis; where others stand at it, they become one."""
        owner = self.owner(tensor)
        if owner and tensor.shape == tuple(map(len, self.trace.axes[owner])):
            return self.trace.axes[owner][axis]
        is_single = tensor.shape[axis] == 1 and not self.is_weight(tensor)  # all of it is at one position
        found = self.of(tensor) if is_single else on(self.of(tensor), axis)
        if not found:  # nothing of it can go
            names = self.trace.new(tensor.shape[axis])
            self.trace.fix(names, UNKNOWN)
            return names
        rows = torch.cat([positions(names, axis).expand(tensor.shape[axis], -1) for names in found], dim=1)
        self.trace.join(rows[:, :1], rows)
        return rows[:, 0]

    def see(self, weight: Tensor, reads: Tensor, writes: Tensor) -> None:
        """Lists the layer that a weight belongs to."""
        owner = (self.owner(weight) or "").rpartition(".")[0]
        for name in (self.running[-1], owner):  # a weight may belong to several
            module = self.model.get_submodule(name)
            own = map(memory_of, (*module.parameters(recurse=False), *module.buffers(recurse=False)))
            if isinstance(module, LAYERS) and memory_of(weight) in own:
                self.trace.see(name, module, reads, writes)
                return


def memory_of(tensor: Tensor) -> int:
    """Tells tensors apart that hold no numbers; a view is like the whole."""
    return tensor.untyped_storage()._cdata
