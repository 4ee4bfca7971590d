"""Channel surgery: from a network and the channels that stay to the physically smaller network.

A channel is gone when nobody reads it any more. Setting its filter to zero is not enough: the shift of batch
normalisation brings it back, and in a concatenation it is read in many places. The smaller network computes what the
larger one does when no reader has a weight for the channels that are gone.
"""

import copy
import warnings
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from prunelab.channels.prefix import ordinary
from prunelab.channels.trace import Layer, Trace, trace
from prunelab.checkpoints import load_checkpoint, save_checkpoint
from prunelab.models.layers import PadChannels, Select

# The attributes that say how large a layer is.
_SIZES: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Conv2d: ("in_channels", "out_channels", "groups"),
    nn.Linear: ("in_features", "out_features"),
    nn.BatchNorm1d: ("num_features",),
    nn.BatchNorm2d: ("num_features",),
    nn.PReLU: ("num_parameters",),
    Select: (),
    PadChannels: ("n_new",),
    nn.Identity: (),  # what is left of a block that was removed
}


def shrink(
    model: nn.Module, kept: Mapping[str, Iterable[int]], *, in_channels: int, image_size: int | tuple[int, int]
) -> nn.Module:
    """Shrinks a network to the channels that are kept: a smaller copy, of the same class, with the same state keys.

    Layers that share channels (a residual stream) lose them together, and all that reads them loses the weights it had
    for them. No layer loses all: its largest filter stays, and a warning names the layer.

    Args:
        model: Takes images (n, c, h, w); left as it is. The layers of a slimmable one become ordinary in the copy.
        kept: Indices of the output channels that stay, by layer name; the layers of `Trace.widths`, or any other whose
            channels are new ones. Layers that are not named keep theirs, if they do not share any.
        in_channels: Channels of the images.
        image_size: Their height and width in pixels; one number for both.
    Raises:
        UntraceableError: See `trace`.
        ValueError: A layer that is not there, an index it does not have, channels of the network's own output, layers
            that share channels and are to keep different ones, or groups of a convolution left unequal.
    """
    traced = trace(model, in_channels=in_channels, image_size=image_size)
    gone = _gone(traced, kept)
    smaller = ordinary(copy.deepcopy(model))
    for name, layer in traced.layers.items():
        reads, writes = (  # positions of the channels that stay
            [position for position, channel in enumerate(traced.channels(names)) if channel not in gone]
            for names in (layer.reads, layer.writes)
        )
        _cut(smaller.get_submodule(name), layer, reads, writes, name=name)
    return smaller


def without(model: nn.Module, blocks: Collection[str]) -> nn.Module:
    """Copies a network with blocks replaced by the identity, which is what a block without its branch is.

    The layers of a slimmable network become ordinary in the copy.

    Args:
        model: Left as it is.
        blocks: Names of modules whose output has the shape of their input.
    Raises:
        ValueError: A module that is not there.
    """
    smaller = ordinary(copy.deepcopy(model))
    for name in blocks:
        if name not in dict(smaller.named_modules(remove_duplicate=False)):
            raise ValueError(f"{type(model).__name__} has no module {name!r}")
        smaller.set_submodule(name, nn.Identity())
    return smaller


def save(model: nn.Module, path: Path) -> None:
    """Writes a network of any widths to one file: how large its layers are, and its state. Nothing is pickled."""
    save_checkpoint({"sizes": _sizes(without(model, [])), "state": model.state_dict()}, path)


def load(model: nn.Module, path: Path) -> nn.Module:
    """Returns the network that `save` wrote.

    Args:
        model: A network of the same kind, of other widths; left as it is.
    Raises:
        FileNotFoundError: There is no such file.
        CorruptCheckpoint: It is damaged.
        ValueError: It holds a network of another kind; names the first layer that differs.
    """
    saved = load_checkpoint(path)
    sizes, state = saved["sizes"], saved["state"]
    loaded = without(model, [name for name, size in sizes.items() if size["kind"] == nn.Identity.__name__])
    own = _sizes(loaded)
    for name in (*own, *sizes):
        here, there = (table[name]["kind"] if name in table else "nothing" for table in (own, sizes))
        if here != there:
            raise ValueError(
                f"{path} holds another network: {name!r} is {there} there and {here} in {type(model).__name__}"
            )
    for name, size in sizes.items():
        module = loaded.get_submodule(name)
        for attribute in _SIZES[type(module)]:
            setattr(module, attribute, size[attribute])
        for key, tensor in _tensors(module).items():
            other = state[f"{name}.{key}"]
            if other.dim() != tensor.dim() or other.shape[2:] != tensor.shape[2:]:
                raise ValueError(
                    f"{path} holds another network: {name}.{key} is {tuple(other.shape)} there and"
                    f" {tuple(tensor.shape)} in {type(model).__name__}"
                )
            _put(module, key, other)
    loaded.load_state_dict(state)
    return loaded


def _gone(traced: Trace, kept: Mapping[str, Iterable[int]]) -> set[int]:
    """The channels that go."""
    fixed = set(traced.channels(traced.fixed))
    wanted: dict[int, tuple[str, bool]] = {}  # channel -> who decided on it, and whether it stays
    for name, indices in kept.items():
        for channel, stays in zip(*_choices(traced, name, indices), strict=True):
            decider, decision = wanted.setdefault(channel, (name, stays))
            if decision != stays:
                raise ValueError(f"layers {decider!r} and {name!r} share channels and must keep the same ones")
            if not stays and channel in fixed:
                raise ValueError(f"the channels of {name!r} are the network's own output, which must stay whole")
    gone = {channel for channel, (_, stays) in wanted.items() if not stays}
    for layer in traced.layers.values():  # in their order: what was selected from goes before the selection
        if isinstance(layer.module, Select):
            sources = traced.channels(layer.reads[index] for index in layer.module.indices.tolist())
            gone |= {one for one, source in zip(traced.channels(layer.writes), sources, strict=True) if source in gone}
        elif layer.is_grouped:
            gone |= _read_by_groups_that_go(traced, layer, gone)
    for name, layer in traced.layers.items():
        channels = traced.channels(layer.writes)
        if layer.makes_channels and gone.issuperset(channels):
            gone -= _rescued(traced, layer, channels)
            warnings.warn(f"layer {name!r} would have lost all its channels; one stays", stacklevel=3)
    return gone


def _read_by_groups_that_go(traced: Trace, layer: Layer, gone: set[int]) -> set[int]:
    """What nobody reads any more when groups of a convolution go as a whole."""
    n_groups = layer.module.groups
    reads, writes = (traced.channels(names) for names in (layer.reads, layer.writes))
    n_in, n_out = len(reads) // n_groups, len(writes) // n_groups
    others = (other for other in traced.layers.values() if other is not layer and other.makes_channels)
    read_elsewhere = {channel for other in others for channel in traced.channels(other.reads)}
    return {
        channel
        for group in range(n_groups)
        if gone.issuperset(writes[group * n_out : (group + 1) * n_out])
        for channel in reads[group * n_in : (group + 1) * n_in]
        if channel not in read_elsewhere
    }


def _choices(traced: Trace, name: str, indices: Iterable[int]) -> tuple[list[int], list[bool]]:
    """A layer's channels, and whether each one stays."""
    if name not in traced.layers or not traced.layers[name].makes_channels:
        makers = (other for other, layer in traced.layers.items() if layer.makes_channels)
        raise ValueError(f"no layer {name!r} makes channels of its own; there are {', '.join(makers)}")
    channels, indices = traced.channels(traced.layers[name].writes), {int(index) for index in indices}
    if not indices <= set(range(len(channels))):
        raise ValueError(f"layer {name!r} has channels 0 to {len(channels) - 1}; cannot keep {sorted(indices)}")
    return channels, [index in indices for index in range(len(channels))]


def _rescued(traced: Trace, layer: Layer, channels: list[int]) -> set[int]:
    """The one channel that stays in a layer, and where it comes from."""
    if isinstance(layer.module, Select):
        return {channels[0], traced.channel(layer.reads[int(layer.module.indices[0])])}
    return {channels[int(layer.module.weight.detach().flatten(1).abs().sum(1).argmax())]}


@torch.no_grad()
def _cut(module: nn.Module, layer: Layer, reads: list[int], writes: list[int], *, name: str) -> None:
    """Takes the channels that go out of one layer; `reads` and `writes` are the positions that stay."""
    if isinstance(module, Select):
        indices = [reads.index(module.indices[k].item()) for k in writes]
        _put(module, "indices", torch.tensor(indices, device=module.indices.device))
    elif isinstance(module, PadChannels):
        module.n_new = len(writes)
    elif layer.is_grouped:
        _cut_groups(module, reads, writes, name=name)
    else:
        for key, tensor in _tensors(module).items():
            smaller = tensor[writes]
            if isinstance(module, nn.Conv2d | nn.Linear) and key == "weight" and not layer.is_depthwise:
                smaller = smaller[:, reads]
            _put(module, key, smaller)
        sizes = (len(reads), len(writes), len(writes) if layer.is_depthwise else 1)
        for attribute, size in zip(_SIZES[type(module)], sizes, strict=False):  # a norm has one, as many as it reads
            setattr(module, attribute, size)


def _cut_groups(module: nn.Conv2d, reads: list[int], writes: list[int], *, name: str) -> None:
    """The same for a convolution whose groups each read channels of their own; groups without any go as a whole."""
    n_in, n_out = module.in_channels // module.groups, module.out_channels // module.groups
    by_group = [
        (
            [read % n_in for read in reads if read // n_in == group],
            [write for write in writes if write // n_out == group],
        )
        for group in sorted({read // n_in for read in reads} | {write // n_out for write in writes})
    ]
    if len({(len(inputs), len(outputs)) for inputs, outputs in by_group}) > 1 or not all(by_group[0]):
        raise ValueError(
            f"grouped convolution {name!r} must keep as many channels in each group; it would read"
            f" {[len(inputs) for inputs, _ in by_group]} and write {[len(outputs) for _, outputs in by_group]}"
        )
    _put(module, "weight", torch.cat([module.weight[outputs][:, inputs] for inputs, outputs in by_group]))
    if module.bias is not None:
        _put(module, "bias", module.bias[writes])
    module.in_channels, module.out_channels, module.groups = len(reads), len(writes), len(by_group)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """A layer's own parameters and buffers, without single numbers such as the count of batches."""
    own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    return {key: tensor for key, tensor in own if tensor.dim()}


def _put(module: nn.Module, key: str, tensor: Tensor) -> None:
    """Replaces a parameter or buffer by one of another size."""
    old, new = getattr(module, key), tensor.detach().clone()
    setattr(module, key, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)


def _sizes(model: nn.Module) -> dict[str, dict[str, str | int]]:
    """Kind and size of every layer that has one."""
    return {
        name: {"kind": type(module).__name__}
        | {attribute: getattr(module, attribute) for attribute in _SIZES[type(module)]}
        for name, module in model.named_modules()
        if type(module) in _SIZES
    }
