"""Networks for a reader's photographs, by name: torchvision's classifiers and those of this library."""

import re
import textwrap
from pathlib import Path

from torch import nn

from prunelab import paths
from prunelab.models import MODELS, build_model, pretrained
from prunelab.runs import check_choice

_SEVERAL_OUTPUTS = {"googlenet", "inception_v3"}  # in training
_DENSENETS = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d)")  # as torchvision's files call their layers


def names() -> list[str]:
    """Lists the networks there are, in the order of the alphabet."""
    from torchvision import models  # here: it takes seconds, and most work needs none of it

    return sorted({*MODELS, *models.list_models(module=models)} - _SEVERAL_OUTPUTS)


def named_network(
    name: str, *, num_classes: int, image_size: int, weights: str, may_replace_head: bool = True
) -> nn.Module:
    """Builds a network for colour images, on the CPU; new values come from torch's global generator.

    Where both have it, it is this library's, whose ResNets and MobileNetV2 have another stem below 64 pixels.

    Args:
        name: One of `names()`.
        num_classes: Number of outputs.
        image_size: Height and width of the images in pixels.
        weights: "none" for new values; "imagenet" for torchvision's, from `paths.DATA`, the cache or its site; or the
            path of a file that holds a state, `paths.DATA` if not here.
        may_replace_head: Whether a head with another number of outputs is left aside: the network keeps its new one.
    Raises:
        ValueError: An unknown name, or weights that are damaged, another network's, or without a head that must be.
        pretrained.WeightsNotFoundError: Neither on this machine nor within reach.
    """
    from torchvision import models

    check_choice("model", name, names())
    network = (
        build_model(name, num_classes=num_classes, image_size=image_size)
        if name in MODELS
        else models.get_model(name, num_classes=num_classes)
    )
    if weights != "none":
        path, sha256 = _find(name, weights)
        state = {_DENSENETS.sub(r"\1\2", key): value for key, value in pretrained.unpacked(path, sha256=sha256).items()}
        own = network.state_dict()
        head = {key: own[key] for key in own if key.startswith([*own][-1].rpartition(".")[0] + ".")}  # registered last
        if any(getattr(state.get(key), "shape", None) != value.shape for key, value in head.items()):
            if not may_replace_head:
                raise ValueError(f"{path} has no head for {num_classes} classes: it was not trained on these images")
            state |= head
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            inner = [key for key, value in state.items() if isinstance(value, dict)]
            hint = f"the state may be what it holds as {' or '.join(inner)}: save that alone; " if inner else ""
            raise ValueError(
                f"{path} does not hold the weights of {name} for images of {image_size} pixels: "
                f"{textwrap.shorten(str(error), 400)}; {hint}with weights 'none' it starts from new ones"
            ) from error
    return network


def _find(name: str, weights: str) -> tuple[Path, str]:
    """Returns the file of weights, and the first digits of its SHA-256 where they are known."""
    from torchvision import models

    instead = "choose the weights 'none', which trains the network from new ones"
    if weights == "imagenet":
        if name not in models.list_models():
            raise ValueError(f"torchvision has no weights of {name}; {instead}")
        release = pretrained.Release(name, str(models.get_model_weights(name).DEFAULT))
        return pretrained.fetch(release, f"of {name}", instead=instead), release.sha256
    for path in (Path(weights), paths.DATA / weights):
        if path.is_file():
            return path, ""
    raise pretrained.WeightsNotFoundError(
        f"there is no file {weights}, nor in {paths.DATA}; name one, or 'imagenet' for torchvision's, or {instead}"
    )
