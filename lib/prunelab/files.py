"""Files that appear whole or not at all, and the hash that tells whether they are still what was written."""

import hashlib
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_DOWNLOAD_TIMEOUT = 30  # seconds without a byte


def atomic_write(path: Path, content: bytes | str) -> None:
    """Writes a file so that readers see the old content or the new, never a part.

    The folder is made where it is missing. On any failure the old file stands and nothing is left beside it.

    Args:
        path: Where the file goes.
        content: Bytes, or text to be encoded as UTF-8.
    Raises:
        OSError: The folder is read-only or the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner reads
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def require_folder(folder: Path, *, instead: str = "set PRUNELAB_DATA to another folder") -> None:
    """Makes a folder, and sure that files can be written into it.

    Args:
        folder: Where files go.
        instead: What the error advises to do where it cannot be.
    Raises:
        OSError: They cannot; says which folder, why, and what to do.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(f"nothing can be written into {folder} ({error.strerror}); allow it, or {instead}") from error


def sha256(source: Path | bytes) -> str:
    """Returns the SHA-256 of a file's content, or of bytes, in hexadecimal."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    with open(source, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def download_timeout() -> Iterator[None]:
    """Ends downloads that stand still; torch and torchvision set no limit, and would wait forever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
