"""The only place that knows folders; all absolute, so nothing depends on the working directory.

A wheel has the papers' numbers, records and notebooks inside of it, in `shipped`, laid out as in a clone. Nothing is
written there: what a machine makes goes to `~/prunelab`, or where PRUNELAB_DATA says.
"""

import os
from pathlib import Path

_LIBRARY = Path(__file__).resolve().parent
_SHIPPED = _LIBRARY / "shipped"
IS_CLONE = not _SHIPPED.is_dir()
ROOT = _LIBRARY.parents[1] if IS_CLONE else _SHIPPED

# What a machine downloads, trains and draws may live elsewhere, for example on a mounted drive in Colab.
_ELSEWHERE = os.environ.get("PRUNELAB_DATA") or (None if IS_CLONE else "~/prunelab")
DATA = Path(_ELSEWHERE or ROOT / "data").expanduser().resolve()
if _ELSEWHERE:
    os.environ["PRUNELAB_DATA"] = str(DATA)  # kernels have another working directory
CACHE = DATA / "cache"
RUNS = DATA / "runs"
FIGURES = DATA / "figures" if _ELSEWHERE else ROOT / "figures"

PAPER = ROOT / "data" / "paper"
RECORDS = ROOT / "data" / "records"
NOTEBOOKS = ROOT / "notebooks"
