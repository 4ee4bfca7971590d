"""Networks for other runtimes."""

import copy
import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from prunelab.files import atomic_write
from prunelab.shadows import Size, images_for


def to_onnx(model: nn.Module, path: Path, *, in_channels: int, image_size: Size) -> None:
    """Writes a network as one ONNX file, whole or not at all, that takes batches of any size.

    Its input is `images`, float32 (b, c, h, h), and its output `logits`; it computes what the network does in
    evaluation mode.

    Args:
        model: Left as it is.
        path: Where the file goes; its folder is made where it is missing.
        in_channels: Channels of the images.
        image_size: Their height and width in pixels; one number for both.
    Raises:
        ImportError: The packages that it takes are not installed; says how to get them.
    """
    if not all(find_spec(package) for package in ("onnx", "onnxscript")):
        raise ImportError("ONNX files take the packages onnx and onnxscript: pip install prunelab[onnx]")
    # Of two images: the exporter takes a size of 1 for a constant.
    images = torch.zeros_like(images_for(model, in_channels, image_size), device=next(model.parameters()).device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PyTorch's, about itself
        program = torch.onnx.export(
            copy.deepcopy(model).eval(),
            (images,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
    atomic_write(path, program.model_proto.SerializeToString())
