"""What whole notebooks take, with the start of their processes. It alone of the benchmark needs what executes them."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prunelab import batch
from prunelab.bench.plans import seconds


def replay_seconds() -> float:
    """From the start of 01_rigl to its last figure, out of records."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "replayed.ipynb"
        return seconds(lambda: batch.execute("01_rigl", parameters={}, timeout=600, output=output))


def fresh_seconds() -> float:
    """01_rigl with every run of `smoke` trained anew."""
    parameters = {"profile": "smoke", "fresh": True}
    with tempfile.TemporaryDirectory() as folder, _data_in(folder):
        output = Path(folder) / "fresh.ipynb"
        return seconds(lambda: batch.execute("01_rigl", parameters=parameters, timeout=900, output=output))


@contextmanager
def _data_in(folder: str) -> Iterator[None]:
    """Lets notebooks find nothing that this machine has trained or decoded before."""
    before = os.environ.get("PRUNELAB_DATA")
    os.environ["PRUNELAB_DATA"] = folder
    try:
        yield
    finally:
        del os.environ["PRUNELAB_DATA"]
        if before is not None:
            os.environ["PRUNELAB_DATA"] = before
