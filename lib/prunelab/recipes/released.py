"""Networks that others have trained or made sparse, read from their files: states that our runs can start from.

Source: `load_checkpoint` in IST-DASLab/sparse-imagenet-transfer, and what it meets there: networks in `models`, layers
in `utils/masking_utils.py`; Kusupati et al. 2020, arXiv:2002.03231, for STR's files.
Differs: There a file without masks gets masks of ones, so that full fine-tuning makes it dense; here zeros stay. RigL's
network pools after its stem in windows that lie one pixel further than ours, and was trained on images that were
resized by bicubic interpolation: neither is in its file, and both are as everywhere here.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from prunelab import files, paths
from prunelab.masks import prunable_weights
from prunelab.methods.soft_threshold import soft_threshold
from prunelab.models import build_model, pretrained
from prunelab.models.trunk import head_of, misfit
from prunelab.recipes.recipe import State

_WRAPPINGS = ("model_state_dict", "state_dict", "model")
# What others call layers, and what we do, one after the other.
_NAMES = {
    r"(^|\.)module\.": r"\1",  # of networks that were trained on several GPUs
    r"\._layer\.": ".",  # the paper's wrapper around a layer with a mask
    r"\._(weight|bias)_mask$": r".\1_mask",
    r"\.(weight|bias)_orig$": r".\1",  # torch.nn.utils.prune
    r"^initial_conv\.conv\.": "conv1.",  # RigL's ResNet-50, from here on
    r"^initial_conv\.bn\.": "bn1.",
    r"\.block\.(\d+)\.": r".\1.",
    r"\.shortcut\.conv\.": ".downsample.0.",
    r"\.shortcut\.bn\.": ".downsample.1.",
    r"\.conv(\d)\.conv\.": r".conv\1.",
    r"\.conv(\d)\.bn\.": r".bn\1.",
}
_MASK = re.compile(r"(\.weight)?[._]mask$")
_THRESHOLD = ".sparseThreshold"


class Checkpoint(NamedTuple):
    """What a file holds, on the CPU.

    Args:
        model: State of our network.
        masks: Bool, True where a weight is active, by layer name; a layer of which all weights are has none.
        num_classes: Outputs of the network.
    """

    model: dict[str, Tensor]
    masks: dict[str, Tensor]
    num_classes: int


def read_checkpoint(path: Path, *, model: str, width: float = 1.0, sha256: str = "") -> Checkpoint:
    """Reads a network from a file that torch.save wrote: a state, alone, or under a usual name beside plain values.

    Its layers are named as ours are, torchvision's in a ResNet of ImageNet; or as in networks that were trained on
    several GPUs, in files of the paper's authors, of torch.nn.utils.prune, of STR or of RigL. STR's thresholds are
    applied to its weights, and its head, a 1x1 convolution without biases, becomes a linear layer.

    A weight is inactive, and zero, where a mask beside it says so. A layer that has no such mask, or one of ones only,
    gets its mask from its zeros. That holds for the head too.

    Args:
        path: Of the file.
        model: A key of `models.MODELS`, for images like `pretrained.IMAGE`.
        width: Factor on its channels.
        sha256: Of the file, or its first digits; empty compares only the checksums in the file, which tell damage, but
            not another's weights.
    Raises:
        ValueError: The file is another one, damaged, holds objects that would run code, another network, or masks that
            do not fit.
        FileNotFoundError: There is nothing at `path`.
    """
    state = _renamed(path, _innermost(pretrained.unpacked(path, sha256=sha256)))
    network = _network(model, width=width, num_classes=1)
    head = head_of(network)
    rows = state.get(f"{head}.weight")
    num_classes = len(rows) if isinstance(rows, Tensor) and rows.dim() > 1 else 1
    network = _network(model, width=width, num_classes=num_classes)
    own = network.state_dict()
    state, stored = _without_masks(_thresholded(state))
    if isinstance(rows, Tensor) and rows.dim() == 4:
        state = {f"{head}.bias": torch.zeros(num_classes)} | state
    state = {name: _as_linear(value, own.get(name)) for name, value in pretrained.with_counts(state, own).items()}
    if wrong := misfit(state, own):
        raise ValueError(f"{path} holds no {model} of width {width:g}: {wrong}")
    masks = {}
    for layer, weight in prunable_weights(network).items():
        weight_name = f"{layer}.weight"
        mask = state[weight_name] != 0
        if layer in stored:
            mask = _checked(path, layer, _as_linear(stored.pop(layer), weight), weight)
            state[weight_name] = state[weight_name] * mask
        if not mask.all():
            masks[layer] = mask
    if stored:
        raise ValueError(f"{path} has masks for what {model} has not, or not prunes: {', '.join(sorted(stored)[:3])}")
    return Checkpoint(state, masks, num_classes)


def state_of_checkpoint(checkpoint: str, *, model: str, width: float = 1.0) -> State:
    """Returns a released network as the state of a run, so that it can be the parent of others.

    What its training has cost is unknown, and 0 there. Its `options` have the SHA-256 of the file.

    Args:
        checkpoint: A key of `pretrained.RELEASES`, which are dense; or the path of a file that `read_checkpoint` reads,
            from `paths.DATA` unless it is absolute.
        model: As for `read_checkpoint`.
        width: Likewise.
    Raises:
        ValueError: As for `read_checkpoint`, or released weights of another network.
        pretrained.WeightsNotFoundError: No file, and no download of it.
    """
    release = pretrained.RELEASES.get(checkpoint)
    if release is None:
        path = paths.DATA / checkpoint
        if not path.is_file():
            raise pretrained.WeightsNotFoundError(
                f"there is no checkpoint {path}; put the file there, or name one of {', '.join(pretrained.RELEASES)}"
            )
        found = read_checkpoint(path, model=model, width=width)
    else:
        if (release.model, 1.0) != (model, width):
            raise ValueError(f"{checkpoint} is a {release.model} of width 1, not a {model} of width {width:g}")
        path = pretrained.find(checkpoint)
        found = Checkpoint(pretrained.read(checkpoint, path), {}, release.num_classes or 0)
    options = {"model": model, "width": width, "checkpoint": checkpoint, "sha256": files.sha256(path)}
    return State(**found._asdict(), options=options, training_macs=0.0)


def _network(model: str, *, width: float, num_classes: int) -> nn.Module:
    """Builds our network without numbers."""
    with torch.device("meta"):
        return build_model(model, num_classes=num_classes, width=width, **pretrained.IMAGE)


def _innermost(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the state that is wrapped in what a file holds."""
    while inner := next((content[name] for name in _WRAPPINGS if isinstance(content.get(name), Mapping)), None):
        content = inner
    return content


def _renamed(path: Path, state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a state by our names of layers."""
    found: dict[str, Any] = {}
    for name, value in state.items():
        own = str(name)
        for theirs, ours in _NAMES.items():
            own = re.sub(theirs, ours, own)
        if own in found:
            raise ValueError(f"{path} has several entries that are {own} here, one of them {name}")
        found[own] = value
    return found


def _thresholded(state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a state with the weights that take part in STR, in place of those behind a threshold."""
    found = dict(state)
    for name, s in state.items():
        weight_name = name.removesuffix(_THRESHOLD) + ".weight"
        if name.endswith(_THRESHOLD) and weight_name in state and isinstance(s, Tensor) and s.numel() == 1:
            found[weight_name] = soft_threshold(found[weight_name], found.pop(name).squeeze())
    return found


def _without_masks(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Parts a state from its masks, by layer name; of those that are ones only, nothing is left."""
    masks = {name: value for name, value in state.items() if _MASK.search(name) and isinstance(value, Tensor)}
    rest = {name: value for name, value in state.items() if name not in masks}
    return rest, {_MASK.sub("", name): mask for name, mask in masks.items() if not (mask == 1).all()}


def _as_linear(value: Any, own: Tensor | None) -> Any:
    """Returns the weight of a 1x1 convolution, or its mask, as that of a linear layer, where ours is one."""
    is_conv = isinstance(value, Tensor) and value.dim() == 4 and value.shape[2:] == (1, 1)
    return value.flatten(1) if is_conv and own is not None and own.dim() == 2 else value


def _checked(path: Path, layer: str, mask: Tensor, weight: Tensor) -> Tensor:
    """Returns a stored mask as bool."""
    if mask.shape != weight.shape:
        raise ValueError(
            f"{path}: the mask of {layer} has shape {tuple(mask.shape)}, but its weight {tuple(weight.shape)}"
        )
    if not ((mask == 0) | (mask == 1)).all():
        raise ValueError(f"{path}: the mask of {layer} has values other than 0 and 1")
    return mask == 1
