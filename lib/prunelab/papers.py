"""The papers' published numbers, from the files in `data/paper/`, in our words and units."""

import math
from pathlib import Path

import pandas as pd

from prunelab import paths

# What every such file has; some also have distribution, train_mult, width, init or pretraining.
COLUMNS = (
    "model", "dataset", "method", "sparsity", "target", "metric", "value",
    "std", "n", "unit", "source_id", "source", "confidence", "note",
)  # fmt: skip
_ACCURACIES = ("top1", "test_acc", "val_acc")
_OUR_NAMES = {"pruning": "gmp", "fine_tuned": "fine_tune"}
_OUR_NAMES |= {"ac/dc": "acdc", "rigl erk 1x": "rigl", "rigl erk 5x": "rigl_5x", "lth_t": "lottery"}
_OUR_NAMES |= {"dmcp": "expected", "metapruning": "evolved", "autoslim": "greedy"}
_UNITS = {"G": 1e9, "M": 1e6}  # of multiply-accumulates
_RULES = ("claims", "first_rules", "questions")  # which stand beside the numbers


def files() -> list[Path]:
    """Lists the files of published numbers, by name."""
    return sorted(path for path in paths.PAPER.glob("*.csv") if path.stem not in _RULES)


def paper_points(file: str, *, source_id: str, **filters: str | float) -> pd.DataFrame:
    """Reads published accuracies, ready to be drawn over ours.

    The same cell may stand in several sources, under different protocols, so the source must be chosen. Rows
    marked as misprints are left out.

    Args:
        file: Such as "rigl_wrn22_2_cifar10".
        source_id: Such as "author_issue8".
        filters: Values that other columns must have, in our words: `method="rigl"`, `train_mult=1`.
    Returns:
        One row a point: the file's columns, with `method` and `distribution` spelled as in records; `density`,
        `accuracy` and its `std` as shares; and `macs` where the target is a number of them, such as "1.1G".
    Raises:
        ValueError: No such file, column or value; names the ones there are.
    """
    path = paths.PAPER / f"{file}.csv"
    if path not in files():
        raise ValueError(f"no paper file {file!r}; there are {', '.join(path.stem for path in files())}")
    points = pd.read_csv(path, dtype={"note": str})
    points = points[points["metric"].isin(_ACCURACIES) & ~points["note"].fillna("").str.startswith("SUSPECT")]
    points = points.assign(
        method=points["method"].map(our_name),
        density=(1 - points["sparsity"]).round(6),
        accuracy=(points["value"] / 100).round(6),
        std=(points["std"] / 100).round(6),
        macs=points["target"].map(_macs, na_action="ignore"),
    )
    if "distribution" in points:
        points["distribution"] = points["distribution"].str.lower()
    for column, value in {"source_id": source_id, **filters}.items():
        if column not in points:
            raise ValueError(f"{path.name} has no column {column!r}; it has {', '.join(points.columns)}")
        known = points[column].drop_duplicates().tolist()
        points = points[points[column] == value]
        if points.empty:
            raise ValueError(f"{path.name} has no accuracy with {column}={value!r}; there {column} is one of {known}")
    return points.drop(columns=["sparsity", "metric", "value", "unit"]).reset_index(drop=True)


def _macs(target: str) -> float:
    number, unit = target[:-1], target[-1:]
    return float(number) * _UNITS[unit] if unit in _UNITS and number.replace(".", "", 1).isdigit() else math.nan


def our_name(method: str) -> str:
    """Returns a method's name in our words: "Small-Dense" is `small_dense`, "Pruning (Zhu & Gupta)" is `gmp`."""
    name = method.partition(" (")[0].lower().replace("-", "_")
    return _OUR_NAMES.get(name, name)
