"""What a call of `shrink_to` asks for: whether it can be had, and whether its folder was asked for the same before."""

import copy
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from prunelab import files
from prunelab.channels import surgery
from prunelab.channels.timed import Found
from prunelab.data import LabelledImages
from prunelab.data.folders import sha256_of_files
from prunelab.models.named import named_network
from prunelab.shadows import as_given, images_for, without_numbers

_UNITS = {"ms": 1e-3, "s": 1.0, "%": 0.01}


def parsed(latency: str) -> tuple[float, bool]:
    """Reads a latency: seconds, or a share and True.

    Raises:
        ValueError: It is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|%)", str(latency), re.ASCII)
    if not match or not float(match[1]):
        raise ValueError(f"latency must be a time or a share above 0, such as 5ms, 0.8s or 50%; got {latency!r}")
    return float(match[1]) * _UNITS[match[2]], match[2] == "%"


def check_whole(**numbers: int) -> None:
    """Raises ValueError unless all are whole numbers above 0."""
    for name, number in numbers.items():
        if type(number) is not int or number < 1:
            raise ValueError(f"{name} must be a whole number from 1 on; got {number!r}")


@torch.random.fork_rng(devices=[])
def network_for(model: str | nn.Module, weights: str, dataset: LabelledImages, *, is_trained: bool) -> nn.Module:
    """Returns the network to start from, on the device of the images; of a given one it is a copy.

    Args:
        model: As for `shrink_to`.
        weights: As for `shrink_to`.
        dataset: Its images and classes.
        is_trained: Whether the weights must come with outputs for these classes.
    Raises:
        ValueError: It cannot be trained, or not on these images.
        FileNotFoundError: No weights.
    """
    torch.manual_seed(0)
    if is_trained and weights == "none":
        raise ValueError("a network that was trained on these images has weights: name their file instead of 'none'")
    if isinstance(model, str):
        is_ours = weights.endswith(".prunelab")
        network = named_network(
            model,
            num_classes=dataset.num_classes,
            image_size=dataset.image_size,
            weights="none" if is_ours else weights,
            may_replace_head=not is_trained,
        )
        network = surgery.load(network, Path(weights)) if is_ours else network
    elif isinstance(model, nn.Module):
        network = as_given(model)
        _check_numbers(network)
    else:
        raise ValueError(f"model must be the name of a network, or a torch.nn.Module; got {model!r}")
    _check_outputs(network, dataset)
    return copy.deepcopy(network).to(dataset.device, memory_format=torch.channels_last)


def _check_numbers(network: nn.Module) -> None:
    """Raises ValueError unless a network has numbers that can be trained."""
    own = [each for each in network.parameters() if each.is_floating_point()]
    if {each.dtype for each in own} != {torch.float32} or not any(each.requires_grad for each in own):
        raise ValueError(
            f"{type(network).__name__} needs parameters in float32, some of which require gradients, to be trained; "
            "call float() and requires_grad_() on it first"
        )
    if any(each.is_meta for each in own):
        raise ValueError(
            f"{type(network).__name__} is on the meta device, without numbers; call to_empty() on it first"
        )


@torch.no_grad()
def _check_outputs(network: nn.Module, dataset: LabelledImages) -> None:
    """Raises ValueError unless a network gives a number a class, in evaluation and in training."""
    images = images_for(network, dataset.channels, dataset.image_size)
    wanted = (len(images), dataset.num_classes)
    for is_training in (False, True):
        try:
            outputs = without_numbers(network).train(is_training)(images)
        except Exception as error:  # networks meet such images with errors of many kinds
            found = f"fails ({first_line(error)})"
        else:
            found = f"gives {tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__}"
        if found != f"gives {wanted}":
            mode, classes = "training" if is_training else "evaluation", ", ".join(dataset.class_names[:5])
            raise ValueError(
                f"{type(network).__name__} {found} for images {tuple(images.shape)} in {mode}; it must give one tensor "
                f"{wanted}, a number for each of {dataset.num_classes} classes: {classes}"
            )


def first_line(error: Exception) -> str:
    """Returns the first line of what an error says, or else its kind."""
    return (str(error) or type(error).__name__).splitlines()[0]


def sha256(network: nn.Module, *, is_new: bool) -> str:
    """Returns what tells networks apart: names and shapes, and where the values are not new ones, the values."""
    state = network.state_dict().items()
    if is_new:
        return sha256_of_files((name, str(tuple(value.shape)).encode()) for name, value in state)
    values = ((name, value.detach().cpu().reshape(-1)) for name, value in state)
    return sha256_of_files((name, value.view(torch.uint8).numpy().tobytes()) for name, value in values)


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Holds a folder, which is made where it is missing, so that no other call writes into it.

    Raises:
        OSError: Nothing can be written into it.
        RuntimeError: Another call holds it.
    """
    files.require_folder(out, instead="choose another folder, with --out")
    try:
        with FileLock(out / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise RuntimeError(f"another call is writing to {out}; wait for it") from error


def claim(out: Path, options: dict[str, Any]) -> None:
    """Gives a folder to images and options; it is taken from others where nothing came of them.

    Raises:
        FileExistsError: It holds networks or reports of others.
        ValueError: The file that tells whose they are is damaged.
    """
    path = out / "options.json"
    is_used = any(each.suffix in (".prunelab", ".checkpoint", ".json") for each in out.iterdir() if each != path)
    before = read(path) if path.exists() and is_used else options
    if other := [f"{name} {before.get(name)}, not {own}" for name, own in options.items() if before.get(name) != own]:
        raise FileExistsError(f"{out} is of calls with {'; '.join(other)}: remove it, or choose another folder")
    files.atomic_write(path, json.dumps(options, indent=1))


def found_in(path: Path, asked: dict[str, Any]) -> Found | None:
    """Returns what a search found; None if it was for something else, is damaged or not there."""
    with suppress(FileNotFoundError, ValueError):
        if (content := read(path)).get("asked") == asked:
            return Found(*content["found"])
    return None


def read(path: Path) -> dict[str, Any]:
    """Reads what a call before this one wrote.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged.
    """
    try:
        if isinstance(content := json.loads(path.read_text()), dict):
            return content
        raise ValueError(f"it holds a {type(content).__name__}")
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); remove it") from error
