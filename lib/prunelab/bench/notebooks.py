"""What whole notebooks take, with the start of their processes. It alone of the benchmark needs what executes them."""

import os
import tempfile
from pathlib import Path
from unittest import mock

from prunelab import batch
from prunelab.bench.plans import seconds


def replay_seconds() -> float:
    """Times 01_rigl from its start to its last figure, out of records."""
    return _seconds({})


def fresh_seconds() -> float:
    """Times 01_rigl with every run of `smoke` trained anew, which finds nothing that was trained or decoded before."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, PRUNELAB_DATA=folder):
        return _seconds({"profile": "smoke", "fresh": True})


def _seconds(parameters: dict) -> float:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "executed.ipynb"
        return seconds(lambda: batch.execute("01_rigl", parameters=parameters, timeout=900, output=output))
