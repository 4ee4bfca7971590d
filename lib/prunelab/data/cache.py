"""Decoded images on disk: one file for each data set and size, checked by hash whenever it is read."""

import io
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock

from prunelab import files
from prunelab.data.dataset import Images

_FORMAT = 1  # counts up when decoding or this file's layout changes


class Entry(NamedTuple):
    """Images, and where they come from."""

    images: Images
    source: str
    sha256: str


def read(path: Path, *, key: str | None) -> Entry | None:
    """Returns what `write` put there, or None where there is nothing, it is damaged, or its source has changed since.

    Args:
        path: Of the cache file.
        key: What it must have been written with; None takes it as it is.
    """
    try:
        with path.open("rb") as file:
            header, content = file.readline(), file.read()
        if header != _header(content):
            return None
        state = torch.load(io.BytesIO(content), weights_only=True)
        if state["format"] != _FORMAT or key not in (None, state["key"]):
            return None
        images = Images(**state["tensors"], class_names=tuple(state["class_names"]))
        return Entry(images, state["source"], state["sha256"])
    except (OSError, EOFError, RuntimeError, LookupError, TypeError, ValueError, pickle.UnpicklingError):
        return None


def write(path: Path, entry: Entry, *, key: str | None) -> None:
    """Keeps the images for the next time; where that is impossible it warns, once, and all goes on."""
    tensors = dict(vars(entry.images))
    class_names = list(tensors.pop("class_names"))
    state = {
        "format": _FORMAT,
        "key": key,
        "source": entry.source,
        "sha256": entry.sha256,
        "class_names": class_names,
        "tensors": tensors,
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    try:
        files.atomic_write(path, _header(content) + content)
    except OSError as error:
        reason = error.strerror or error  # that of all files of the folder, so it is told once
        _warn_once(f"decoded images cannot be kept in {path.parent} and will be decoded again: {reason}")


@contextmanager
def building(path: Path) -> Iterator[None]:
    """Lets one process build what several want; where no lock can be made, each builds its own."""
    lock = FileLock(path)
    with suppress(OSError, NotImplementedError):  # a read-only folder, or a network drive without locks
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _header(content: bytes) -> bytes:
    return files.sha256(content).encode() + b"\n"


@cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=5)
