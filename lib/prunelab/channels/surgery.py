"""Channel surgery: from a network and the channels that stay to the physically smaller network.

A channel is gone when nobody reads it any more. Setting its filter to zero is not enough: the shift of batch
normalisation brings it back, and in a concatenation it is read in many places. The smaller network computes what the
larger one does when no reader has a weight for the channels that are gone.
"""

import copy
import warnings
from collections.abc import Collection, Iterable, Mapping
from numbers import Integral
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from prunelab.channels.comparing import differing
from prunelab.channels.cutting import cut
from prunelab.channels.names import head_attributes, own_tensors
from prunelab.channels.prefix import ordinary
from prunelab.channels.trace import Layer, Trace, UntraceableError, followed, trace
from prunelab.checkpoints import load_checkpoint, save_checkpoint
from prunelab.models.layers import PadChannels, Select
from prunelab.shadows import Shapes, Size, as_given, images_for, sides, without_numbers

# The attributes that say how large a layer is.
_SIZES: dict[type[nn.Module], tuple[str, ...]] = {
    nn.modules.conv._ConvNd: ("in_channels", "out_channels", "groups"),
    nn.Linear: ("in_features", "out_features"),
    nn.modules.batchnorm._NormBase: ("num_features",),
    nn.GroupNorm: ("num_groups", "num_channels"),
    nn.PReLU: ("num_parameters",),
    PadChannels: ("n_new",),
}


@torch.inference_mode(False)
def shrink(
    model: nn.Module,
    kept: Mapping[str, Iterable[int]],
    *,
    in_channels: int,
    image_size: Size,
    traced: Trace | None = None,
) -> nn.Module:
    """Shrinks a network to the channels that are kept: a smaller copy, of the same class, with the same state keys.

    Layers that share channels (a residual stream) lose them together, and all that reads them loses the weights it had
    for them. No layer loses all: its largest filter stays, and a warning names the layer. Before it is returned, the
    smaller network runs without numbers, in evaluation and in training, on images of two sizes where the larger one
    takes both, and its channels are followed once more: they must be those that are left of the larger one's.

    Args:
        model: Takes images (n, c, h, w); left as it is. The layers of a slimmable one become ordinary in the copy.
        kept: The output channels that stay, by layer name, as indices or as one boolean for each; of the layers of
            `Trace.widths`, or of any other whose channels are new ones. Likewise the heads that stay, by the name of an
            attention of `Trace.heads`. Layers that are not named keep theirs, if they do not share any.
        in_channels: Channels of the images.
        image_size: Their height and width in pixels; one number for both.
        traced: What `trace` returned for this network and such images; None traces it anew.
    Raises:
        UntraceableError: See `trace`; or the smaller network could not run, as its forward pass has sizes written down.
        ValueError: A layer that is not there, an index it does not have, channels that are fixed, layers that share
            channels and are to keep different ones, groups of a convolution left unequal, or the trace of another
            network.
    """
    model = as_given(model)
    traced = traced or trace(model, in_channels=in_channels, image_size=image_size)
    shapes = {name: [*tensor.shape] for name, tensor in own_tensors(model).items()}
    if shapes != {name: [*map(len, axes)] for name, axes in traced.axes.items()}:
        raise ValueError(f"`traced` is of another network than this {type(model).__name__}; trace this one")
    gone = _gone(traced, kept)
    smaller = cut(model, traced, gone)
    _check(model, smaller, traced, gone, in_channels=in_channels, image_size=image_size)
    return smaller


def _check(
    model: nn.Module, smaller: nn.Module, traced: Trace, gone: set[int], *, in_channels: int, image_size: Size
) -> None:
    """Raises UntraceableError unless a smaller network runs, with the channels that are left of the larger one's."""
    shadow, (height, width) = without_numbers(smaller), sides(image_size)
    try:
        found, _ = followed(shadow, images_for(model, in_channels, image_size))
    except UntraceableError as error:
        raise UntraceableError(f"the smaller network could not run: {error}") from error
    if (place := differing(traced, gone, found)) is not None:
        raise UntraceableError(
            f"the smaller network would not compute the same: {traced.steps[place].where} would be another operation,"
            " with other numbers, or of other channels than those that are left"
        )
    for is_training, size in ((True, (height, width)), (False, (height + 32, width + 32))):
        images = images_for(model, in_channels, size)
        error = _error_of(shadow.train(is_training), images)
        if error and not _error_of(ordinary(without_numbers(model)).train(is_training), images):
            raise UntraceableError(
                f"the smaller network could not run {'in training' if is_training else f'on images of {size}'}: {error}"
            )


@torch.no_grad()
def _error_of(shadow: nn.Module, images: Tensor) -> Exception | None:
    """Returns what a network without numbers raises, None if it runs."""
    try:
        with Shapes():
            shadow(images)
    except Exception as error:
        return error
    return None


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
    """Writes a network of any widths to one file: how large its layers are, and its state. Nothing is pickled.

    Raises:
        ValueError: It has no numbers, on the meta device.
    """
    model = as_given(model)
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise ValueError(f"{type(model).__name__} is on the meta device, without numbers that could be saved")
    save_checkpoint({"sizes": _sizes(without(model, [])), "state": model.state_dict()}, path)


def load(model: nn.Module, path: Path) -> nn.Module:
    """Returns the network that `save` wrote, on the device and in the precision of a given one.

    Args:
        model: A network of the same kind, of other widths; left as it is. One without numbers, on the meta device,
            gives one on the CPU, in the file's precision.
    Raises:
        FileNotFoundError: There is no such file.
        CorruptCheckpoint: It is damaged.
        ValueError: It holds something else, or a network of another kind; names the first layer that differs.
    """
    saved = load_checkpoint(path)
    if not _is_saved(saved):
        raise ValueError(f"{path} holds no network that `surgery.save` wrote")
    sizes, state = saved["sizes"], saved["state"]
    model = as_given(model)
    loaded = without(model, [name for name, size in sizes.items() if size["kind"] == nn.Identity.__name__])
    own = _sizes(loaded)
    for name in (*own, *sizes):
        here, there = (table[name]["kind"] if name in table else "nothing" for table in (own, sizes))
        if here != there:
            raise ValueError(
                f"{path} holds another network: {name!r} is {there} there and {here} in {type(model).__name__}"
            )
        if unknown := sizes[name].keys() - own[name].keys():
            raise ValueError(f"{path} gives {name!r} what no {here} has: {', '.join(map(repr, unknown))}")
    tensors, stored = {**dict(loaded.named_parameters()), **dict(loaded.named_buffers())}, loaded.state_dict()
    replaced = {}
    for key, tensor in tensors.items():
        other = state.get(key)
        if other is None and key not in stored:  # a buffer that is not
            continue
        there = tuple(other.shape) if isinstance(other, Tensor) else None
        if there is None or len(there) != tensor.dim() or (tensor.dim() > 2 and there[2:] != tensor.shape[2:]):
            raise ValueError(
                f"{path} holds another network: {key} is {'nothing' if there is None else there} there"
                f" and {tuple(tensor.shape)} in {type(model).__name__}"
            )
        if not tensor.is_meta:
            other = other.to(tensor.device, tensor.dtype if tensor.is_floating_point() else other.dtype)
        new = other.detach().clone()
        replaced[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
    loaded = copy.deepcopy(loaded, replaced)
    for name, size in sizes.items():
        for attribute in size.keys() - {"kind"}:
            setattr(loaded.get_submodule(name), attribute, size[attribute])
    loaded.load_state_dict(state)
    return loaded


def _is_saved(content: object) -> bool:
    """Tells whether a file's content has the form that `save` gives it: sizes are above 0, but for what is padded."""
    match content:
        case {"sizes": dict(sizes), "state": dict(), **others}:
            return not others and all(
                isinstance(size, dict)
                and isinstance(size.get("kind"), str)
                and all(type(n) is int and (n > 0 or name == "n_new") for name, n in size.items() if name != "kind")
                for size in sizes.values()
            )
    return False


def _gone(traced: Trace, kept: Mapping[str, Iterable[int]]) -> set[int]:
    """The channels that go."""
    why_fixed = traced.why_fixed
    wanted: dict[int, tuple[str, int, bool]] = {}  # channel -> layer and place that decided on it, whether it stays
    for name, indices in kept.items():
        for place, (channel, stays) in enumerate(zip(*_choices(traced, name, indices), strict=True)):
            decider, first, decision = wanted.setdefault(channel, (name, place, stays))
            if decision != stays and decider == name:
                raise ValueError(f"channels {first} and {place} of layer {name!r} are one, and must both stay or go")
            if decision != stays:
                raise ValueError(f"layers {decider!r} and {name!r} share channels and must keep the same ones")
            if not stays and channel in why_fixed:
                raise ValueError(f"the channels of {name!r} cannot go: {why_fixed[channel]}")
    gone = {channel for channel, (*_, stays) in wanted.items() if not stays}
    for layer in traced.layers.values():  # in their order: what was selected from goes before the selection
        if isinstance(layer.module, Select):
            sources = traced.channels(layer.reads[layer.module.indices.cpu()])
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
    sources = traced.attentions | {
        other: layer.writes for other, layer in traced.layers.items() if layer.makes_channels
    }
    if name not in sources:
        raise ValueError(f"no layer {name!r} makes channels of its own; there are {', '.join(sources)}")
    channels = traced.channels(sources[name])
    try:
        chosen = [index.item() if isinstance(index, np.generic | Tensor) else index for index in indices]
    except (TypeError, RuntimeError):  # nothing, a number, a table
        chosen = [None]
    if len(chosen) == len(channels) and all(isinstance(index, bool) for index in chosen):
        return channels, chosen
    are_whole = all(isinstance(index, Integral) and not isinstance(index, bool) for index in chosen)
    if not are_whole or len(set(chosen)) < len(chosen) or str(getattr(indices, "dtype", "")).endswith("uint8"):
        raise ValueError(
            f"the channels that layer {name!r} keeps must be different whole numbers, or {len(channels)} booleans, one"
            f" a channel; got {indices}"
        )
    stays = set(chosen)
    if not stays <= set(range(len(channels))):
        raise ValueError(f"layer {name!r} has channels 0 to {len(channels) - 1}; cannot keep {sorted(stays)}")
    return channels, [index in stays for index in range(len(channels))]


def _rescued(traced: Trace, layer: Layer, channels: list[int]) -> set[int]:
    """The one channel that stays in a layer, and where it comes from."""
    if isinstance(layer.module, Select):
        return {channels[0], traced.channel(int(layer.reads[layer.module.indices[0]]))}
    weight = layer.module.weight.detach()
    if weight.is_meta:  # none is larger than another
        return {channels[0]}
    filters = weight.transpose(0, 1) if getattr(layer.module, "transposed", False) else weight
    return {channels[int(filters.flatten(1).abs().sum(1).argmax())]}


def _attributes(module: nn.Module) -> tuple[str, ...]:
    """Names of the attributes that say how large a layer is."""
    found = (attributes for kind, attributes in _SIZES.items() if isinstance(module, kind))
    return next(found, head_attributes(module))


def _sizes(model: nn.Module) -> dict[str, dict[str, str | int]]:
    """Kind and size of every layer that has one, or that stands where a block was removed."""
    return {
        name: {"kind": type(module).__name__} | {attribute: getattr(module, attribute) for attribute in sized}
        for name, module in model.named_modules()
        if (sized := _attributes(module)) or type(module) in (nn.Identity, Select)
    }
