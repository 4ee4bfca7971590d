"""DeepSparse 1.8, the engine with which the paper times sparse networks on CPUs, in an environment of its own.

It is at its end of life, takes NumPy below 2 and Python below 3.12, and is never needed. Who wants it makes

    uv venv --python 3.11 .deepsparse
    uv pip install --python .deepsparse deepsparse==1.8.0

at the root of the repository, or elsewhere, with the environment variable PRUNELAB_DEEPSPARSE set to that folder.
Networks go there as ONNX files, which takes `prunelab[onnx]` here; images and outputs go as files too. The engine is
told not to report to its makers, which it would by default.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from prunelab import paths
from prunelab.export import to_onnx

TIMEOUT = 600.0  # seconds
_SCRIPT = Path(__file__).with_name("deepsparse_script.py")


class DeepSparseError(RuntimeError):
    """The engine did not run; says what was missing or what it said."""


def unavailable() -> str | None:
    """Says why DeepSparse cannot be used here; None where it can: a network of one layer has just been run."""
    try:
        found = _run()
    except DeepSparseError as error:
        return str(error)
    return None if found == {"twice": 2.0} else f"{_folder()} ran a network of one layer, but wrongly: {found}"


def through_deepsparse(model: nn.Module, sample: Tensor) -> Callable[[Tensor], tuple[Tensor, float]]:
    """Gives a network to the engine; each call starts it anew, on as many cores as PyTorch is set to use threads.

    Args:
        model: Left as it is; runs in evaluation mode.
        sample: A batch of images, float32 (b, c, h, h), of the size that the engine is to take.
    Returns:
        A function from any number of images to the network's outputs and the seconds that the engine took for them,
        without starting it, compiling the network and a first batch, as for the others of `sparse_inference`.
    Raises:
        ImportError: See `export.to_onnx`.
        DeepSparseError: When called; see `unavailable`.
    """
    batch_size, in_channels, image_size, _ = sample.shape
    folder = tempfile.TemporaryDirectory()  # lives as long as the function
    network, given, found = (Path(folder.name) / name for name in ("network.onnx", "images.npy", "features.npy"))
    to_onnx(model, network, in_channels=in_channels, image_size=image_size)

    def run(images: Tensor) -> tuple[Tensor, float]:
        np.save(Path(folder.name) / given.name, images.cpu().contiguous().numpy())
        said = _run(network, given, found, batch_size, torch.get_num_threads())
        return torch.from_numpy(np.load(found)).to(images.device), said["seconds"]

    return run


def _folder() -> Path:
    return Path(os.environ.get("PRUNELAB_DEEPSPARSE") or (paths.ROOT if paths.IS_CLONE else paths.DATA) / ".deepsparse")


def _run(*arguments: object) -> dict:
    """Runs the script in the environment; returns what it printed."""
    folder = _folder()
    python = next((path for path in (folder / "bin/python", folder / "Scripts/python.exe") if path.exists()), None)
    if python is None:
        raise DeepSparseError(f"no Python environment at {folder}; prunelab/deepsparse.py says how to make it")
    # Isolated (-I), it finds no package but its own.
    command = [str(python), "-I", str(_SCRIPT), *map(str, arguments)]
    quiet = os.environ | {"NM_DISABLE_ANALYTICS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT, env=quiet)
    except subprocess.TimeoutExpired:
        raise DeepSparseError(f"{folder} had no answer within {TIMEOUT:g} seconds; take fewer images") from None
    except OSError as error:
        raise DeepSparseError(f"{python} cannot be started: {error.strerror}; make the environment anew") from None
    *_, last = ["nothing", *done.stderr.strip().splitlines()]
    if done.returncode:
        raise DeepSparseError(
            f"{folder} ended with code {done.returncode}, and said: {last}; make the environment anew"
        )
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise DeepSparseError(
            f"{folder} gave no answer, and said: {last}; it is no environment of DeepSparse"
        ) from None
