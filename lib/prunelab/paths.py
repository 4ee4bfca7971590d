"""The only place that knows folders; all absolute, so nothing depends on the working directory."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# What a machine downloads or trains may live elsewhere, for example on a mounted drive in Colab.
DATA = Path(os.environ.get("PRUNELAB_DATA") or ROOT / "data").resolve()
CACHE = DATA / "cache"
RUNS = DATA / "runs"

PAPER = ROOT / "data" / "paper"
RECORDS = ROOT / "data" / "records"
FIGURES = ROOT / "figures"
NOTEBOOKS = ROOT / "notebooks"
