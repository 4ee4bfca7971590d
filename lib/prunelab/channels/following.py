"""Follows channels through a forward pass, in which no number is computed: what each operation does to their names.

Every channel has a name, an integer. Each axis of a parameter has names, one a position. Other tensors have tensors of
names, of their own shape and with stride 0 along the axes on which nothing changes: an element goes when a channel that
it is named after goes. A tensor without names stays whole.

Where two tensors are added or multiplied, a name and its partner become one channel: one cannot go without the other.
What moves elements moves their names. Where a layer mixes channels into new ones, what it reads joins the names along
one axis of its weight, and what it writes takes those along the other. Channels that anything else mixes, as a softmax
over them does, are fixed: none of them can go, and the reason is kept.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunelab.channels.calls import Call, Step
from prunelab.channels.known import Known, memory_of
from prunelab.channels.names import Trace
from prunelab.channels.operations import computes, keeps_numbers, makes_numbers, numbers_of, rule_of
from prunelab.channels.spreads import core, spread
from prunelab.models.layers import PadChannels, Select
from prunelab.shadows import Shapes


class Follower(Shapes):
    """Runs the forward pass of a network without numbers, and fills a trace.

    Attributes:
        known: What is known of its tensors.
    """

    def __init__(self, model: nn.Module, trace: Trace) -> None:
        super().__init__()
        self.known = Known(model, trace)
        self._is_leaf = False

    def follow(self, images: Tensor) -> None:
        """Runs the network once, in the mode it is in; raises whatever its forward pass raises."""
        known = self.known
        names = known.trace.new(images.shape[1])
        known.trace.fix(names, "they are the images'")
        known.give(images, [spread(names, 1, images.shape)])
        hooks = [hook for name, module in known.model.named_modules() for hook in self._watched(name, module)]
        try:
            with torch.no_grad(), self:
                result = known.model(images)
        finally:
            for hook in hooks:
                hook.remove()
        for tensor in _tensors_in(result):
            known.fix(tensor, "they are the network's own output, which must stay whole")

    def _watched(self, name: str, module: nn.Module) -> Iterator[Any]:
        yield module.register_forward_pre_hook(partial(self._enter, name))
        yield module.register_forward_hook(self._leave)

    def _enter(self, name: str, module: nn.Module, _: Any) -> None:
        self.known.running.append(name)
        self.known.at = f"the start of {name!r}"
        self._is_leaf = isinstance(module, Select | PadChannels)
        if isinstance(module, PadChannels) and module.n_new < 0:
            raise ValueError("it drops channels; no stage may be narrower than the one before it")

    def _leave(self, module: nn.Module, inputs: tuple[Tensor, ...], result: Any) -> None:
        known = self.known
        name = known.running.pop()
        if self._is_leaf:
            reads = known.along(inputs[0], 1)
            writes = known.trace.new(getattr(module, "n_new", result.shape[1]))
            written = torch.cat([reads, writes]) if isinstance(module, PadChannels) else writes
            known.give(result, [spread(written, 1, result.shape)])
            known.trace.see(name, module, reads, writes)
            self._is_leaf = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence = (), kwargs: dict | None = None) -> Any:
        where = self.known.running[-1] or type(self.known.model).__name__
        self.known.at = f"{func.overloadpacket.__name__.strip('_')!r} in {where!r}"
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if not self._is_leaf:
            self._follow(Call(func, args, kwargs or {}, result))
        return result

    def _follow(self, call: Call) -> None:
        known, memory = self.known, set(map(memory_of, call.results))
        known.idle.difference_update(map(id, call.tensors))
        known.kept.append((call.tensors, call.results))
        if computes(call):
            names = [core(each).flatten() for tensor in call.tensors for each in known.of(tensor)]
            names = torch.cat([known.trace.new(0), *names])
            known.trace.steps.append(Step(call.func, numbers_of(call), names, known.at))
        if makes_numbers(call) or (keeps_numbers(call) and all(map(known.is_uniform, call.tensors))):
            is_part = call.func._schema.is_mutable and any(map(_is_part, call.results))
            known.uniform = known.uniform - memory if is_part else known.uniform | memory
            return
        if named := [tensor for tensor in call.tensors if known.of(tensor)]:
            rule_of(call)(known, call)
            if all(known.is_weight(tensor) or known.is_uniform(tensor) for tensor in call.tensors):
                known.weights.update(map(id, call.results))
        if written := known.uniform & memory:  # numbers came into it
            known.uniform -= written
            for tensor in named:
                known.fix(tensor, f"{known.at} writes them into a part of a tensor")


def _is_part(tensor: Tensor) -> bool:
    """Whether it is a view of a larger one."""
    return tensor.numel() * tensor.element_size() < tensor.untyped_storage().nbytes()


def _tensors_in(result: Any) -> Iterator[Tensor]:
    """Yields the tensors that a network gives, also those that an object of any kind holds."""
    for leaf in tree_leaves(result):
        if isinstance(leaf, Tensor):
            yield leaf
        elif hasattr(leaf, "__dict__"):
            yield from _tensors_in(list(vars(leaf).values()))
