"""What each operation does to the names of channels, family by family; the tables at the end say which is which."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from prunelab.channels.calls import Call, Parting
from prunelab.channels.known import UNKNOWN, Known
from prunelab.channels.names import head_attributes
from prunelab.channels.spreads import compact, core, parted, positions, shared, spread, varying

aten = torch.ops.aten
Rule = Callable[[Known, Call], None]


def makes_numbers(call: Call) -> bool:
    """Whether an operation makes a tensor of one number throughout."""
    return call.func.overloadpacket in _FACTORIES


def keeps_numbers(call: Call) -> bool:
    """Whether an operation makes a tensor of one number throughout of others that are such."""
    return _is_pointwise(call) or call.func.overloadpacket in _MOVING | _RESHAPING


def computes(call: Call) -> bool:
    """Whether an operation makes new numbers, or moves some; others are views, or copies, which may be made of them."""
    return call.func.overloadpacket not in _VIEWING | _RESHAPING | _COPYING


def numbers_of(call: Call) -> list[float]:
    """Returns the numbers that an operation was given, but for those that are sizes and places."""
    return call.numbers if makes_numbers(call) or _is_pointwise(call) else []


def rule_of(call: Call) -> Rule:
    """Returns what is done to the names of what an operation is given; if it is not known, they are fixed."""
    return _RULES.get(call.func.overloadpacket) or (_met if _is_pointwise(call) else _mixed)


def _is_pointwise(call: Call) -> bool:
    return torch.Tag.pointwise in call.func.tags or call.func.overloadpacket in _PASSING


def _met(known: Known, call: Call) -> None:
    """Element by element: names along the same axis are joined."""
    shape = call.results[0].shape
    operands = [tensor for tensor in call.tensors if not known.is_uniform(tensor)]
    found: list[Tensor] = []
    for tensor in operands:
        others = [other for other in operands if other is not tensor]
        for names in known.of(tensor):
            names = names.expand(shape)
            if any(_is_blind(known, other, varying(names), len(shape)) for other in others):
                known.trace.fix(names, f"{known.at} sets other numbers beside each")
            else:
                found.append(names)
    met = _joined(known, found)
    if call.func.overloadpacket in (aten.mul, aten.mul_) and len({tensor.numel() for tensor in operands}) == 2:
        for names in known.of(min(operands, key=Tensor.numel)):
            known.trace.gates.update(core(names).flatten().tolist())
    changing = [names for names in met if varying(names)]
    for names in met:
        if changing and not varying(names):
            known.trace.fix(names, f"{known.at} sets one beside many")
    for names in met[1:] if not changing else ():  # each tensor has one channel
        known.trace.join(*shared(met[0], names))
    known.give(call.results[0], changing or met[:1])


def _joined(known: Known, every: Iterable[Tensor]) -> list[Tensor]:
    """Joins names of one shape that change along the same axis; returns one tensor for each."""
    met: list[Tensor] = []
    for names in every:
        partner = next((known for known in met if varying(names) & varying(known)), None)
        if partner is None:
            met.append(names)
        else:
            known.trace.join(*shared(partner, names))
    return met


def _is_blind(known: Known, other: Tensor, axes: set[int], n_axes: int) -> bool:
    """Whether a tensor has several positions along one of these axes, counted from the last, and no names there."""
    own = {axis - other.dim() for names in known.of(other) for axis in varying(names)}
    back = [axis - n_axes for axis in axes if n_axes - axis <= other.dim()]
    return any(axis not in own and other.shape[axis] > 1 for axis in back)


def _moved(known: Known, call: Call) -> None:
    """Elements are only moved, and their names with them."""
    (source, *more), results = call.args, call.results
    for names in known.of(source):
        parts = call.func(names, *more, **call.kwargs)
        for result, part in zip(results, parts if isinstance(parts, list | tuple) else [parts], strict=True):
            axis = _axis(call.option("dim"), source)
            is_whole = part.dim() == names.dim() and part.shape[axis or 0] == names.shape[axis or 0]
            if call.func.overloadpacket in _PARTING and axis in varying(names) and not is_whole:
                known.partings.append(Parting(len(known.trace.steps), core(names).flatten(), known.at))
            known.add(result, part)


def _reshaped(known: Known, call: Call) -> None:
    """Where one axis becomes several, what stands at the same place of the innermost becomes one channel.

    In an attention it is one of its heads that becomes one channel.
    """
    result, reshaped, known.shaped = call.result, [], known.at
    for names in known.of(call.args[0]):
        new = compact(names.reshape(result.shape))
        *outer, innermost = axes = sorted(varying(new)) or [0]
        if len(axes) > max(1, len(varying(names))):
            attention = known.model.get_submodule(known.running[-1])
            n_heads = next((getattr(attention, name) for name in head_attributes(attention)), 0)
            staying = next((axis for axis in reversed(outer) if result.shape[axis] == n_heads), innermost)
            for axis in {*axes} - {staying}:
                first = new.narrow(axis, 0, 1)
                known.trace.join(*shared(first.expand_as(new), new))
                new = first.expand_as(new)
            if staying != innermost:
                known.trace.attentions.setdefault(known.running[-1], core(new).flatten())
            kind = type(attention) if staying != innermost else None
            known.partings.append(Parting(len(known.trace.steps), core(names).flatten(), known.at, kind))
        reshaped.append(new)
    known.give(result, reshaped)


def _concatenated(known: Known, call: Call) -> None:
    (parts, *_), axis = call.args, _axis(call.option("dim"), call.result)
    names, shape = [], list(call.result.shape)
    for part in parts:
        first, *others = known.of(part) or (None,)
        for other in others:
            known.trace.fix(other, f"{known.at} sets other channels beside them")
        if first is None:
            first = known.trace.new(1).view([1] * part.dim()).expand(part.shape)
            known.trace.fix(first, UNKNOWN)
        names.append(first)
    changing = {axis}.union(*map(varying, names))
    cores = [
        each[tuple(slice(None) if other in changing else slice(1) for other in range(len(shape)))] for each in names
    ]
    known.give(call.result, [torch.cat(cores, dim=axis).expand(shape)])


def _halved(known: Known, call: Call) -> None:
    """Of a gated linear unit one half of the channels scales the other."""
    axis = _axis(call.option("dim"), call.args[0])
    halves = [names.chunk(2, axis) for names in known.of(call.args[0])]
    for one, other in halves:
        known.trace.join(*shared(one, other))
    known.give(call.result, [one for one, _ in halves])


def _unfolded(known: Known, call: Call) -> None:
    """Each channel is written once for each position of a window."""
    source, n_positions = call.args[0], prod(call.args[1])
    for names in known.of(source):
        if varying(names) - {1}:
            known.trace.fix(names, f"{known.at} mixes them")
    along = [names for names in known.of(source) if not varying(names) - {1}]
    rows = [positions(names, 1).flatten().repeat_interleave(n_positions) for names in along]
    known.give(call.result, [spread(each, 1, call.result.shape) for each in rows])


def _stacked(known: Known, call: Call) -> None:
    (parts, *_), axis = call.args, _axis(call.option("dim"), call.result)
    wide = [part.unsqueeze(axis) for part in parts]
    for one, part in zip(wide, parts, strict=True):
        known.give(one, [names.unsqueeze(axis) for names in known.of(part)])
    _concatenated(known, Call(aten.cat.default, (wide, axis), {}, call.result))


def _mixed_along(known: Known, axes_of: Callable[[Call], Iterable[int]], call: Call) -> None:
    """Positions along some axes are mixed; names along others stay. All else, as where to sample, stays whole."""
    source = call.args[0]
    for tensor in call.tensors[1:]:
        known.fix(tensor, f"{known.at} mixes them")
    axes = {axis % source.dim() for axis in axes_of(call)}
    staying = []
    for names in known.of(source):
        if axes & varying(names):
            known.trace.fix(names, f"{known.at} mixes them")
        else:
            staying.append(names)
    for result in call.results:
        one = tuple(slice(1) if axis in axes else slice(None) for axis in range(source.dim()))
        short = [names[one] if result.dim() == source.dim() else names[one].squeeze(tuple(axes)) for names in staying]
        known.give(result, [names.expand(result.shape) for names in short])


def _layer_normalised(known: Known, call: Call) -> None:
    _mixed_along(known, lambda call: range(-len(call.args[1]), 0), replace(call, result=call.results[:1]))


def _batch_normalised(known: Known, call: Call, n_groups: int | None = None) -> None:
    source, *own = call.tensors
    names = known.along(source, 1)
    for other in known.of(source):
        if 1 not in varying(other) and varying(other) and source.shape[1] > 1:
            known.trace.fix(other, f"{known.at} mixes them")
    if n_groups:
        known.trace.join(names.view(n_groups, -1)[:, :1], names.view(n_groups, -1))
    for tensor in own:
        known.trace.join(names, known.along(tensor, 0))
    if own:
        known.see(own[0], names, names)
    known.give(call.results[0], [spread(names, 1, source.shape)])


def _group_normalised(known: Known, call: Call) -> None:
    _batch_normalised(known, call, call.option("group"))


def _convolved(known: Known, call: Call) -> None:
    source, weight, bias, *_, is_transposed, _, n_groups = call.args
    into, out = (0, 1) if is_transposed else (1, 0)
    reads = known.along(source, 1)
    for names in known.of(source):
        if 1 not in varying(names) and varying(names) and source.shape[1] > 1:
            known.trace.fix(names, f"{known.at} mixes them")
    if n_groups == 1:
        known.trace.join(reads, known.along(weight, into))
        writes = known.along(weight, out)
    elif len(reads) == n_groups == call.result.shape[1]:  # each channel by itself
        is_one_for_all = not any(0 in varying(names) for names in known.of(weight))
        writes = reads if is_one_for_all else known.along(weight, 0)
        known.trace.join(reads, writes)
    elif is_transposed:
        known.trace.fix(reads, f"{known.at} has groups")
        known.fix(weight, f"{known.at} has groups")
        return
    else:
        writes = known.along(weight, 0)
    if bias is not None:
        known.trace.join(writes, known.along(bias, 0))
    known.see(weight, reads, writes)
    known.give(call.result, [spread(writes, 1, call.result.shape)])


def _multiplied(known: Known, call: Call) -> None:
    """A matrix product: a layer where one factor is a weight."""
    *bias, left, right = (arg for arg in call.args if isinstance(arg, Tensor))
    (from_left, of_left), (from_right, of_right) = (
        parted(known.of(factor), axis) for factor, axis in ((left, left.dim() - 1), (right, right.dim() - 2))
    )
    weight = next((factor for factor in (right, left) if known.is_weight(factor)), None)
    if weight is None or not from_left or not from_right:
        for names in (*from_left, *from_right):
            known.trace.fix(names, f"{known.at} mixes them")
    else:
        rows = [positions(names, left.dim() - 1) for names in from_left]
        rows += [positions(names, right.dim() - 2) for names in from_right]
        for other in rows:
            known.trace.join(rows[0][:, :1], other)
    if weight is not None and len(axes := known.trace.axes.get(known.owner(weight), ())) == 2:
        known.see(weight, reads=axes[1], writes=axes[0])
    names = [each.narrow(-1, 0, 1) for each in of_left] + [each.narrow(-2, 0, 1) for each in of_right]
    known.give(call.result, _joined(known, (each.expand(call.result.shape) for each in names)))
    if bias:
        _met(known, Call(call.func, (*bias, call.result), {}, call.result))


def _looked_up(known: Known, call: Call) -> None:
    """Rows are picked by indices that are not known: they stay whole, and names along other axes stay."""
    table, indices = call.args[:2]
    indices = [indices] if isinstance(indices, Tensor) else indices  # of an embedding
    zeros = [None if each is None else torch.zeros(each.shape, dtype=torch.long, device="cpu") for each in indices]
    found = []
    for names in known.of(table):
        if any(axis in varying(names) for axis, index in enumerate(zeros) if index is not None):
            known.trace.fix(names, f"{known.at} picks some of them")
        else:
            found.append(aten.index.Tensor(names, zeros).expand(call.result.shape))
    known.give(call.result, found)


def _mixed(known: Known, call: Call) -> None:
    """Whatever is not known may mix channels in any way."""
    for tensor in call.tensors:
        known.fix(tensor, f"{known.at} may mix them")


def _axis(dim: int | None, tensor: Tensor) -> int | None:
    return None if dim is None else dim % max(1, tensor.dim())


def _last(n: int) -> Callable[[Call], Iterable[int]]:
    return lambda call: range(-n, 0)


def _dims(call: Call) -> Iterable[int]:
    dim = call.option("dim")
    every = range(call.args[0].dim())
    return every if dim is None or dim == [] else (dim,) if isinstance(dim, int) else dim


_FACTORIES = {
    *(aten.empty, aten.zeros, aten.ones, aten.full, aten.scalar_tensor, aten.empty_like, aten.zeros_like),
    *(aten.ones_like, aten.full_like, aten.new_empty, aten.new_zeros, aten.new_ones, aten.new_full),
}
_PASSING = {
    *(aten.detach, aten.alias, aten.lift_fresh, aten._to_copy, aten.clone, aten.contiguous, aten.native_dropout),
    *(aten._prelu_kernel, aten.prelu, aten.hardswish, aten.hardswish_, aten.log_sigmoid_forward, aten.rsub),
    *(aten.floor_divide, aten.bernoulli, aten.bernoulli_, aten.fill_, aten.zero_, aten.copy_, aten.rrelu_with_noise),
}
_COPYING = {aten.detach, aten.alias, aten.lift_fresh, aten.clone, aten.contiguous, aten.cat, aten.stack}
_RESHAPING = {aten.view, aten._unsafe_view, aten.reshape, aten._reshape_alias}
_PARTING = {aten.slice, aten.select, aten.split, aten.split_with_sizes, aten.unbind, aten.narrow, aten.chunk}
_VIEWING = {
    *_PARTING,
    *(aten.permute, aten.transpose, aten.t, aten.squeeze, aten.unsqueeze, aten.expand, aten.unfold),
}
_MOVING = {
    *_VIEWING,
    *(aten.flip, aten.roll, aten.rot90, aten.pixel_shuffle, aten.pixel_unshuffle, aten.channel_shuffle, aten.repeat),
}
_REDUCING = {
    *(aten.mean, aten.sum, aten.amax, aten.amin, aten.max, aten.min, aten.var, aten.std, aten.var_mean, aten.prod),
    *(aten.logsumexp, aten.linalg_vector_norm, aten.norm, aten.argmax, aten.argmin, aten.cumsum, aten.index_select),
    *(aten._softmax, aten._log_softmax, aten._safe_softmax, aten.softmax, aten.log_softmax, aten.any, aten.all),
    *(aten.median, aten.nanmedian, aten.sort, aten.topk, aten.kthvalue, aten.mode, aten.aminmax, aten.cumprod),
    *(aten.cummax, aten.cummin, aten.logcumsumexp),
}
_POOLING = {
    1: (aten.avg_pool1d, aten.max_pool1d_with_indices, aten.upsample_nearest1d, aten.upsample_linear1d),
    2: (
        *(aten.avg_pool2d, aten.max_pool2d_with_indices, aten._adaptive_avg_pool2d, aten.adaptive_max_pool2d),
        *(aten.adaptive_avg_pool2d, aten.upsample_nearest2d, aten._upsample_nearest_exact2d, aten.upsample_bilinear2d),
        *(aten.upsample_bicubic2d, aten._upsample_bilinear2d_aa, aten._upsample_bicubic2d_aa, aten.reflection_pad2d),
        *(aten.replication_pad2d, aten.fractional_max_pool2d, aten.grid_sampler_2d),
    ),
    3: (aten.avg_pool3d, aten.max_pool3d_with_indices, aten._adaptive_avg_pool3d, aten.upsample_nearest3d),
}
_RULES: dict[Any, Rule] = {
    **dict.fromkeys(_MOVING, _moved),
    **dict.fromkeys(_RESHAPING, _reshaped),
    **dict.fromkeys(_REDUCING, lambda known, call: _mixed_along(known, _dims, call)),
    **{
        packet: lambda known, call, n=n: _mixed_along(known, _last(n), call)
        for n, packets in _POOLING.items()
        for packet in packets
    },
    aten.constant_pad_nd: lambda known, call: _mixed_along(known, _last(len(call.args[1]) // 2), call),
    **dict.fromkeys((aten.cat, aten.concat), _concatenated),
    aten.stack: _stacked,
    aten.glu: _halved,
    aten.im2col: _unfolded,
    **dict.fromkeys((aten.mm, aten.bmm, aten.addmm, aten.baddbmm), _multiplied),
    aten.convolution: _convolved,
    **dict.fromkeys(
        (
            *(aten.native_batch_norm, aten._native_batch_norm_legit, aten._native_batch_norm_legit_no_training),
            *(aten.cudnn_batch_norm, aten._batch_norm_with_update, aten._batch_norm_no_update),
        ),
        _batch_normalised,
    ),
    aten.native_group_norm: _group_normalised,
    aten.native_layer_norm: _layer_normalised,
    **dict.fromkeys((aten.index, aten.embedding), _looked_up),
}
