"""Follows channels through a forward pass, in which no number is computed: what each operation does to their names.

Every channel has a name, an integer. Each axis of a parameter has names, one a position. Other tensors have tensors of
names, of their own shape and with stride 0 along the axes on which nothing changes: an element goes when a channel that
it is named after goes. A tensor without names stays whole.

Where two tensors are added or multiplied, a name and its partner become one channel: one cannot go without the other.
What moves elements moves their names. Where a layer mixes channels into new ones, what it reads joins the names along
one axis of its weight, and what it writes takes those along the other. Channels that anything else mixes, as a softmax
over them does, are fixed: none of them can go, and the reason is kept.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunelab.channels.names import Trace
from prunelab.models.layers import PadChannels, Select
from prunelab.shadows import Shapes

aten = torch.ops.aten


@dataclass(frozen=True)
class Call:
    """An operation, what it was given, and what it gave."""

    func: Any
    args: Sequence[Any]
    kwargs: dict[str, Any]
    result: Any

    @cached_property
    def tensors(self) -> list[Tensor]:
        """All tensors that it was given."""
        return _tensors((*self.args, *self.kwargs.values()))

    @cached_property
    def results(self) -> list[Tensor]:
        """All tensors that it gave."""
        return _tensors((self.result,))

    def option(self, name: str) -> Any:
        """Returns an argument, given by place or by name; None where the operation has none of this name."""
        for place, argument in enumerate(self.func._schema.arguments):
            if argument.name == name:
                return self.args[place] if place < len(self.args) else self.kwargs.get(name, argument.default_value)
        return None


class Parting(NamedTuple):
    """An axis along which channels lie was taken apart, perhaps by numbers that only fit the network as it is.

    Attributes:
        n_layers: How many layers had run before.
        names: The channels.
        where: The operation and the module.
    """

    n_layers: int
    names: Tensor
    where: str


class Follower(Shapes):
    """Runs the forward pass of a network without numbers, and fills a trace.

    Attributes:
        running: Names of the modules that run, the innermost last.
        at: The operation that runs, and where; after an error, what raised it.
        shaped: The last operation that was told a shape, and where.
        partings: Of all axes along which channels lie.
    """

    def __init__(self, model: nn.Module, trace: Trace) -> None:
        super().__init__()
        self.model, self.trace = model, trace
        self.running, self.at, self.shaped = [""], "its start", "nothing"
        self.partings: list[Parting] = []
        self._names: dict[int, tuple[Tensor, ...]] = {}  # by the identity of a tensor
        self._kept: list[Any] = []  # tensors, so that no other takes the identity of one
        self._uniform: set[int] = set()  # memory that holds one number throughout
        self._weights: set[int] = set()  # parameters and buffers, and what was made of them alone
        self._is_leaf = False
        own = trace.own_tensors(model)
        self.idle = {id(tensor) for tensor in own.values() if tensor.is_floating_point()}
        self._owners = {_memory(tensor): name for name, tensor in own.items()}
        for name, tensor in own.items():
            self._give(tensor, (_spread(names, axis, tensor.shape) for axis, names in enumerate(trace.axes[name])))
            self._weights.add(id(tensor))

    def follow(self, images: Tensor) -> None:
        """Runs the network once, in the mode it is in; raises whatever its forward pass raises."""
        names = self.trace.new(images.shape[1])
        self.trace.fix(names, "they are the images'")
        self._give(images, [_spread(names, 1, images.shape)])
        hooks = [hook for name, module in self.model.named_modules() for hook in self._watched(name, module)]
        try:
            with torch.no_grad(), self:
                result = self.model(images)
        finally:
            for hook in hooks:
                hook.remove()
        for tensor in filter(torch.is_tensor, tree_leaves(result)):
            self._fix(tensor, "they are the network's own output, which must stay whole")

    def _watched(self, name: str, module: nn.Module) -> Iterator[Any]:
        yield module.register_forward_pre_hook(partial(self._enter, name))
        yield module.register_forward_hook(self._leave)

    def _enter(self, name: str, module: nn.Module, _: Any) -> None:
        self.running.append(name)
        self.at = f"the start of {name!r}"
        self._is_leaf = isinstance(module, Select | PadChannels)
        if isinstance(module, PadChannels) and module.n_new < 0:
            raise ValueError("it drops channels; no stage may be narrower than the one before it")

    def _leave(self, module: nn.Module, inputs: tuple[Tensor, ...], result: Any) -> None:
        name = self.running.pop()
        if self._is_leaf:
            self._is_leaf, reads = False, self._along(inputs[0], 1)
            writes = self.trace.new(getattr(module, "n_new", result.shape[1]))
            written = torch.cat([reads, writes]) if isinstance(module, PadChannels) else writes
            self._give(result, [_spread(written, 1, result.shape)])
            self.trace.see(name, module, reads, writes)

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence = (), kwargs: dict | None = None) -> Any:
        self.at = self._here(func)
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if not self._is_leaf:
            self._follow(Call(func, args, kwargs or {}, result))
        return result

    def _follow(self, call: Call) -> None:
        packet, tensors = call.func.overloadpacket, call.tensors
        is_pointwise = torch.Tag.pointwise in call.func.tags or packet in _PASSING
        named = [tensor for tensor in tensors if self._names.get(id(tensor))]
        self.idle.difference_update(map(id, tensors))
        self._kept.append((tensors, call.results))
        if packet in _FACTORIES or (
            (is_pointwise or packet in _MOVING | _RESHAPING)
            and all(_memory(tensor) in self._uniform for tensor in tensors)
        ):
            self._uniform.update(map(_memory, call.results))
            return
        if named:
            rule = _RULES.get(packet) or (Follower._met if is_pointwise else Follower._mixed)
            rule(self, call)
            if self._weights.issuperset(id(tensor) for tensor in tensors if _memory(tensor) not in self._uniform):
                self._weights.update(map(id, call.results))
        if written := self._uniform.intersection(map(_memory, call.results)):  # numbers came into it
            self._uniform -= written
            for tensor in named:
                self._fix(tensor, f"{self.at} writes them into a part of a tensor")

    # What tensors are named.

    def _give(self, tensor: Tensor, names: Iterable[Tensor]) -> None:
        if id(tensor) not in self._names:  # what is changed in place keeps its own, which were joined
            self._names[id(tensor)] = tuple(map(_compact, names))
            self._kept.append(tensor)

    def _of(self, tensor: Tensor | None) -> tuple[Tensor, ...]:
        return self._names.get(id(tensor), ())

    def _fix(self, tensor: Tensor, why: str) -> None:
        for names in self._of(tensor):
            self.trace.fix(names, why)

    def _here(self, func: Any) -> str:
        return f"{func.overloadpacket.__name__.strip('_')!r} in {self.running[-1] or type(self.model).__name__!r}"

    def _along(self, tensor: Tensor, axis: int) -> Tensor:
        """Returns one name for each position of an axis; where others stand at it, they become one."""
        owner = self._owners.get(_memory(tensor))
        if owner and tensor.shape == tuple(map(len, self.trace.axes[owner])):
            return self.trace.axes[owner][axis]
        is_single = tensor.shape[axis] == 1 and id(tensor) not in self._weights  # all of it is at one position
        found = self._of(tensor) if is_single else _on(self._of(tensor), axis)
        if not found:  # nothing of it can go
            names = self.trace.new(tensor.shape[axis])
            self.trace.fix(names, "nothing is known of where they come from")
            return names
        rows = torch.cat([_rows(names, axis).expand(tensor.shape[axis], -1) for names in found], dim=1)
        self.trace.join(rows[:, :1], rows)
        return rows[:, 0]

    def _see(self, weight: Tensor, reads: Tensor, writes: Tensor) -> None:
        """Lists the layer that a weight belongs to."""
        owner = self._owners.get(_memory(weight), "").rpartition(".")[0]
        for name in (self.running[-1], owner):  # a weight may belong to several
            module = self.model.get_submodule(name)
            own = map(_memory, (*module.parameters(recurse=False), *module.buffers(recurse=False)))
            if isinstance(module, _LAYERS) and _memory(weight) in own:
                self.trace.see(name, module, reads, writes)
                return

    # What operations do to names, family by family.

    def _met(self, call: Call) -> None:
        """Element by element: names along the same axis are joined."""
        shape = call.results[0].shape
        operands = [tensor for tensor in call.tensors if _memory(tensor) not in self._uniform]
        met: list[Tensor] = []
        for tensor in operands:
            others = [other for other in operands if other is not tensor]
            for names in self._of(tensor):
                names, axes = names.expand(shape), _varying(names.expand(shape))
                partner = next((known for known in met if axes & _varying(known)), None)
                if any(self._is_blind(other, axes, len(shape)) for other in others):
                    self.trace.fix(names, f"{self.at} sets other numbers beside each")
                elif partner is None:
                    met.append(names)
                else:
                    self.trace.join(*_shared(partner, names))
        if call.func.overloadpacket in (aten.mul, aten.mul_) and len({tensor.numel() for tensor in operands}) == 2:
            for names in self._of(min(operands, key=Tensor.numel)):
                self.trace.gates.update(_core(names).flatten().tolist())
        changing = [names for names in met if _varying(names)]
        for names in met:
            if changing and not _varying(names):
                self.trace.fix(names, f"{self.at} sets one beside many")
        for names in met[1:] if not changing else ():  # each tensor has one channel
            self.trace.join(*_shared(met[0], names))
        self._give(call.results[0], changing or met[:1])

    def _is_blind(self, other: Tensor, axes: set[int], n_axes: int) -> bool:
        """Whether a tensor has several positions along one of these axes, counted from the last, and no names there."""
        own = {axis - other.dim() for names in self._of(other) for axis in _varying(names)}
        back = [axis - n_axes for axis in axes if n_axes - axis <= other.dim()]
        return any(axis not in own and other.shape[axis] > 1 for axis in back)

    def _moved(self, call: Call) -> None:
        """Elements are only moved, and their names with them."""
        (source, *more), results = call.args, call.results
        for names in self._of(source):
            parts = call.func(names, *more, **call.kwargs)
            for result, part in zip(results, parts if isinstance(parts, list | tuple) else [parts], strict=True):
                axis = _axis(call.option("dim"), source)
                is_whole = part.dim() == names.dim() and part.shape[axis or 0] == names.shape[axis or 0]
                if call.func.overloadpacket in _PARTING and axis in _varying(names) and not is_whole:
                    self.partings.append(Parting(len(self.trace.layers), _core(names).flatten(), self.at))
                self._names[id(result)] = (*self._of(result), _compact(part))
        self._kept.append(results)

    def _reshaped(self, call: Call) -> None:
        """Where one axis becomes several, what stands at the same place of each outer part becomes one channel."""
        result, reshaped, self.shaped = call.result, [], self.at
        for names in self._of(call.args[0]):
            new = _compact(names.reshape(result.shape))
            *outer, _ = axes = sorted(_varying(new)) or [0]
            if len(axes) > max(1, len(_varying(names))):
                self.partings.append(Parting(len(self.trace.layers), _core(names).flatten(), self.at))
                for axis in outer:
                    first = new.narrow(axis, 0, 1)
                    self.trace.join(*_shared(first.expand_as(new), new))
                    new = first.expand_as(new)
            reshaped.append(new)
        self._give(result, reshaped)

    def _concatenated(self, call: Call) -> None:
        (parts, *_), axis = call.args, _axis(call.option("dim"), call.result)
        names, shape = [], list(call.result.shape)
        for part in parts:
            first, *others = self._of(part) or (None,)
            for other in others:
                self.trace.fix(other, f"{self.at} sets other channels beside them")
            if first is None:
                first = self.trace.new(1).view([1] * part.dim()).expand(part.shape)
                self.trace.fix(first, "nothing is known of where they come from")
            names.append(first)
        changing = {axis}.union(*map(_varying, names))
        cores = [
            each[tuple(slice(None) if other in changing else slice(1) for other in range(len(shape)))] for each in names
        ]
        self._give(call.result, [torch.cat(cores, dim=axis).expand(shape)])

    def _stacked(self, call: Call) -> None:
        (parts, *_), axis = call.args, _axis(call.option("dim"), call.result)
        wide = [part.unsqueeze(axis) for part in parts]
        for one, part in zip(wide, parts, strict=True):
            self._give(one, [names.unsqueeze(axis) for names in self._of(part)])
        self._concatenated(Call(aten.cat.default, (wide, axis), {}, call.result))

    def _mixed_along(self, axes_of: Callable[[Call], Iterable[int]], call: Call) -> None:
        """Positions along some axes are mixed; names along others stay."""
        source = call.args[0]
        axes = {axis % source.dim() for axis in axes_of(call)}
        staying = []
        for names in self._of(source):
            if axes & _varying(names):
                self.trace.fix(names, f"{self.at} mixes them")
            else:
                staying.append(names)
        for result in call.results:
            one = tuple(slice(1) if axis in axes else slice(None) for axis in range(source.dim()))
            short = [
                names[one] if result.dim() == source.dim() else names[one].squeeze(tuple(axes)) for names in staying
            ]
            self._give(result, [names.expand(result.shape) for names in short])

    def _layer_normalised(self, call: Call) -> None:
        for weight in call.tensors[1:]:
            self._fix(weight, f"{self.at} mixes them")
        self._mixed_along(lambda call: range(-len(call.args[1]), 0), replace(call, result=call.results[:1]))

    def _batch_normalised(self, call: Call, n_groups: int | None = None) -> None:
        source, *own = call.tensors
        names = self._along(source, 1)
        for other in self._of(source):
            if 1 not in _varying(other) and _varying(other) and source.shape[1] > 1:
                self.trace.fix(other, f"{self.at} mixes them")
        if n_groups:
            self.trace.join(names.view(n_groups, -1)[:, :1], names.view(n_groups, -1))
        for tensor in own:
            self.trace.join(names, self._along(tensor, 0))
        if own:
            self._see(own[0], names, names)
        self._give(call.results[0], [_spread(names, 1, source.shape)])

    def _group_normalised(self, call: Call) -> None:
        self._batch_normalised(call, call.option("group"))

    def _convolved(self, call: Call) -> None:
        source, weight, bias, *_, is_transposed, _, n_groups = call.args
        into, out = (0, 1) if is_transposed else (1, 0)
        reads = self._along(source, 1)
        for names in self._of(source):
            if 1 not in _varying(names) and _varying(names) and source.shape[1] > 1:
                self.trace.fix(names, f"{self.at} mixes them")
        if n_groups == 1:
            self.trace.join(reads, self._along(weight, into))
            writes = self._along(weight, out)
        elif len(reads) == n_groups == call.result.shape[1]:  # each channel by itself
            writes = self._along(weight, 0)
            self.trace.join(reads, writes)
        elif is_transposed:
            self.trace.fix(reads, f"{self.at} has groups")
            self._fix(weight, f"{self.at} has groups")
            return
        else:
            writes = self._along(weight, 0)
        if bias is not None:
            self.trace.join(writes, self._along(bias, 0))
        self._see(weight, reads, writes)
        self._give(call.result, [_spread(writes, 1, call.result.shape)])

    def _multiplied(self, call: Call) -> None:
        """A matrix product: a layer where one factor is a weight."""
        *bias, left, right = (arg for arg in call.args if isinstance(arg, Tensor))
        (from_left, of_left), (from_right, of_right) = (
            _parted(self._of(factor), axis) for factor, axis in ((left, left.dim() - 1), (right, right.dim() - 2))
        )
        weight = next((factor for factor in (right, left) if id(factor) in self._weights), None)
        if weight is None or not from_left or not from_right:
            for names in (*from_left, *from_right):
                self.trace.fix(names, f"{self.at} mixes them")
        else:
            rows = [_rows(names, left.dim() - 1) for names in from_left]
            rows += [_rows(names, right.dim() - 2) for names in from_right]
            for other in rows:
                self.trace.join(rows[0][:, :1], other)
        if weight is not None and len(axes := self.trace.axes.get(self._owners.get(_memory(weight)), ())) == 2:
            self._see(weight, reads=axes[1], writes=axes[0])
        names = [each.narrow(-1, 0, 1) for each in of_left] + [each.narrow(-2, 0, 1) for each in of_right]
        self._give(call.result, [each.expand(call.result.shape) for each in names])
        if bias:
            self._met(Call(call.func, (*bias, call.result), {}, call.result))

    def _looked_up(self, call: Call) -> None:
        """Rows are picked by indices that are not known: they stay whole, and names along other axes stay."""
        table, indices = call.args[:2]
        indices = [indices] if isinstance(indices, Tensor) else indices  # of an embedding
        zeros = [None if each is None else torch.zeros(each.shape, dtype=torch.long, device="cpu") for each in indices]
        found = []
        for names in self._of(table):
            if any(axis in _varying(names) for axis, index in enumerate(zeros) if index is not None):
                self.trace.fix(names, f"{self.at} picks some of them")
            else:
                found.append(aten.index.Tensor(names, zeros).expand(call.result.shape))
        self._give(call.result, found)

    def _mixed(self, call: Call) -> None:
        """Whatever is not known may mix channels in any way."""
        for tensor in call.tensors:
            self._fix(tensor, f"{self.at} may mix them")


def _tensors(given: Iterable[Any]) -> list[Tensor]:
    """Picks the tensors out of arguments, which may be lists."""
    each = chain.from_iterable(one if isinstance(one, list | tuple) else (one,) for one in given)
    return [one for one in each if isinstance(one, Tensor)]


def _memory(tensor: Tensor) -> int:
    """Tells tensors apart that hold no numbers; a view is like the whole."""
    return tensor.untyped_storage()._cdata


def _axis(dim: int | None, tensor: Tensor) -> int | None:
    return None if dim is None else dim % max(1, tensor.dim())


def _varying(names: Tensor) -> set[int]:
    """Returns the axes along which names change."""
    return {axis for axis, (n, step) in enumerate(zip(names.shape, names.stride(), strict=True)) if n > 1 and step}


def _core(names: Tensor) -> Tensor:
    """Takes the first position of each axis along which names do not change."""
    axes = _varying(names)
    return names[tuple(slice(None) if axis in axes else slice(1) for axis in range(names.dim()))]


def _compact(names: Tensor) -> Tensor:
    """Gives stride 0 to each axis along which names do not change."""
    for axis in _varying(names):
        first = names.narrow(axis, 0, 1)
        if torch.equal(names, first.expand_as(names)):
            names = first.expand_as(names)
    return names


def _spread(names: Tensor, axis: int, shape: Sequence[int]) -> Tensor:
    """Lays names along one axis of a shape."""
    return names.view([-1 if other == axis else 1 for other in range(len(shape))]).expand(shape)


def _rows(names: Tensor, axis: int) -> Tensor:
    """Returns the names that stand at each position of an axis, (n, others)."""
    core = _core(names).movedim(axis, 0)
    return core.reshape(len(core), -1)


def _shared(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Leaves out the axes along which neither changes."""
    axes = _varying(one) | _varying(other)
    index = tuple(slice(None) if axis in axes else slice(1) for axis in range(one.dim()))
    return one[index], other[index]


def _parted(names: tuple[Tensor, ...], axis: int) -> tuple[list[Tensor], list[Tensor]]:
    """Tells the names along an axis, and the others."""
    along = _on(names, axis)
    return along, [each for each in names if all(each is not other for other in along)]


def _on(names: tuple[Tensor, ...], axis: int) -> list[Tensor]:
    """Returns the names that change along an axis; where none does, the last of those that do not change at all."""
    return [each for each in names if axis in _varying(each)] or [each for each in names if not _varying(each)][-1:]


def _last(n: int) -> Callable[[Call], Iterable[int]]:
    return lambda call: range(-n, 0)


def _dims(call: Call) -> Iterable[int]:
    dim = call.option("dim")
    every = range(call.args[0].dim())
    return every if dim is None or dim == [] else (dim,) if isinstance(dim, int) else dim


_LAYERS = nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._NormBase, nn.GroupNorm
_FACTORIES = {
    *(aten.empty, aten.zeros, aten.ones, aten.full, aten.scalar_tensor, aten.empty_like, aten.zeros_like),
    *(aten.ones_like, aten.full_like, aten.new_empty, aten.new_zeros, aten.new_ones, aten.new_full),
}
_PASSING = {
    *(aten.detach, aten.alias, aten.lift_fresh, aten._to_copy, aten.clone, aten.contiguous, aten.native_dropout),
    *(aten._prelu_kernel, aten.prelu, aten.hardswish, aten.hardswish_, aten.log_sigmoid_forward, aten.rsub),
    *(aten.floor_divide, aten.bernoulli, aten.bernoulli_, aten.fill_, aten.zero_, aten.copy_),
}
_RESHAPING = {aten.view, aten._unsafe_view, aten.reshape, aten._reshape_alias}
_PARTING = {aten.slice, aten.select, aten.split, aten.split_with_sizes, aten.unbind, aten.narrow, aten.chunk}
_MOVING = {
    *_PARTING,
    *(aten.permute, aten.transpose, aten.t, aten.squeeze, aten.unsqueeze, aten.expand, aten.flip, aten.roll),
    *(aten.pixel_shuffle, aten.pixel_unshuffle, aten.channel_shuffle, aten.repeat, aten.unfold),
}
_REDUCING = {
    *(aten.mean, aten.sum, aten.amax, aten.amin, aten.max, aten.min, aten.var, aten.std, aten.var_mean, aten.prod),
    *(aten.logsumexp, aten.linalg_vector_norm, aten.norm, aten.argmax, aten.argmin, aten.cumsum, aten.index_select),
    *(aten._softmax, aten._log_softmax, aten._safe_softmax, aten.softmax, aten.log_softmax, aten.any, aten.all),
}
_POOLING = {
    1: (aten.avg_pool1d, aten.max_pool1d_with_indices, aten.upsample_nearest1d, aten.upsample_linear1d),
    2: (
        *(aten.avg_pool2d, aten.max_pool2d_with_indices, aten._adaptive_avg_pool2d, aten.adaptive_max_pool2d),
        *(aten.adaptive_avg_pool2d, aten.upsample_nearest2d, aten._upsample_nearest_exact2d, aten.upsample_bilinear2d),
        *(aten.upsample_bicubic2d, aten._upsample_bilinear2d_aa, aten._upsample_bicubic2d_aa, aten.reflection_pad2d),
        *(aten.replication_pad2d, aten.fractional_max_pool2d),
    ),
    3: (aten.avg_pool3d, aten.max_pool3d_with_indices, aten._adaptive_avg_pool3d, aten.upsample_nearest3d),
}
# What becomes of names, by the operation; what has no rule and is not element by element fixes what it is given.
_RULES: dict[Any, Callable[[Follower, Call], None]] = {
    **dict.fromkeys(_MOVING, Follower._moved),
    **dict.fromkeys(_RESHAPING, Follower._reshaped),
    **dict.fromkeys(_REDUCING, lambda self, call: self._mixed_along(_dims, call)),
    **{
        packet: lambda self, call, n=n: self._mixed_along(_last(n), call)
        for n, packets in _POOLING.items()
        for packet in packets
    },
    aten.constant_pad_nd: lambda self, call: self._mixed_along(_last(len(call.args[1]) // 2), call),
    **dict.fromkeys((aten.cat, aten.concat), Follower._concatenated),
    aten.stack: Follower._stacked,
    **dict.fromkeys((aten.mm, aten.bmm, aten.addmm, aten.baddbmm), Follower._multiplied),
    aten.convolution: Follower._convolved,
    **dict.fromkeys(
        (
            *(aten.native_batch_norm, aten._native_batch_norm_legit, aten._native_batch_norm_legit_no_training),
            *(aten.cudnn_batch_norm, aten._batch_norm_with_update, aten._batch_norm_no_update),
        ),
        Follower._batch_normalised,
    ),
    aten.native_group_norm: Follower._group_normalised,
    aten.native_layer_norm: Follower._layer_normalised,
    **dict.fromkeys((aten.index, aten.embedding), Follower._looked_up),
}
