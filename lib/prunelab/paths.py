"""The only place that knows folders; all absolute, so nothing depends on the working directory."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# What a machine downloads, trains and draws may live elsewhere, for example on a mounted drive in Colab.
_ELSEWHERE = os.environ.get("PRUNELAB_DATA")
DATA = Path(_ELSEWHERE or ROOT / "data").expanduser().resolve()
if _ELSEWHERE:
    os.environ["PRUNELAB_DATA"] = str(DATA)  # kernels have another working directory
CACHE = DATA / "cache"
RUNS = DATA / "runs"
FIGURES = DATA / "figures" if _ELSEWHERE else ROOT / "figures"

PAPER = ROOT / "data" / "paper"
RECORDS = ROOT / "data" / "records"
NOTEBOOKS = ROOT / "notebooks"
