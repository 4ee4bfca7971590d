"""States of unfinished runs: tensors and plain values in one file that carries its own SHA-256."""

import hashlib
import io
from pathlib import Path

import torch

from prunelab.files import atomic_write

_DIGEST_BYTES = hashlib.sha256().digest_size


class CorruptCheckpoint(ValueError):
    """The file is not what this version wrote."""


def save_checkpoint(state: dict, path: Path) -> None:
    """Writes `state` (tensors, numbers, strings, lists and dicts of them) whole or not at all."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    atomic_write(path, content + hashlib.sha256(content).digest())


def load_checkpoint(path: Path) -> dict:
    """Reads what `save_checkpoint` wrote, onto the CPU.

    Raises:
        FileNotFoundError: There is none.
        CorruptCheckpoint: Any byte of it has changed, or it is cut short. torch.load by itself would not notice.
    """
    content = Path(path).read_bytes()
    body, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        raise CorruptCheckpoint(f"{path} is damaged: its SHA-256 is not the one it was written with")
    return torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
