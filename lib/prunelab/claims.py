"""What the papers assert, as comparisons over records.

`data/paper/claims.csv` holds one comparison a row; a claim with several comparisons has parts a, b, c.
Comparisons are written in columns of `records.frame`:

    better, worse    the runs compared: one cell, `method=rigl density=0.1`, or a difference of two cells,
                     `method=rigl density=0.1 - method=static density=0.1`; of costs, the larger is "better"
    where            what all these cells have in common: `distribution=erk`
    density=0.2|0.1  a list, in any of them: pairs are formed at each value
    beside           other settings of the same comparison, to be told and not judged, each a name and what stands in
                     place of `where`: `short: experiment=short density=0.1; long: experiment=long density=0.1`
    margin           what the difference must exceed: 0 for "more than", -0.01 for "at least, within a point"; with
                     a sign before it, "±0.005", the difference must not be farther from 0: "as accurate as"

`verdicts` judges them.
"""

import contextlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from prunelab import paths
from prunelab.runs import PROFILES

Cell = dict[str, tuple[str, ...]]  # column -> its value, or the listed values


@dataclass(frozen=True)
class Claim:
    """One row of `claims.csv`, parsed.

    Attributes:
        recipe: Whose runs it is about.
        better: One cell, or two whose difference is meant; each includes the conditions of `where`.
        worse: Likewise.
        listed: The columns with several values.
        beside: By their names, the same comparison in other settings.
        margins: What the difference must exceed; or the two values that it must lie between.
        paper_better: The paper's own value, NaN where none could be read.
        paper_setting: The network and the data of that value, where they are not ours.
        profile: The smallest profile that can judge it.
        needs: What it waits for, or "".
    """

    recipe: str
    id: str
    part: str
    paper: str
    statement: str
    metric: str
    better: tuple[Cell, ...]
    worse: tuple[Cell, ...]
    listed: Cell
    beside: "dict[str, Claim]"
    margins: tuple[float, ...]
    paper_better: float
    paper_worse: float
    paper_setting: str
    paper_source: str
    profile: str
    needs: str


# Of claims.csv, in this order. What is listed, in `where` or elsewhere, is found by parsing.
_COLUMN_OF = {"listed": "where", "margins": "margin"}
COLUMNS = tuple(_COLUMN_OF.get(field.name, field.name) for field in fields(Claim))


def load(path: Path | None = None) -> list[Claim]:
    """Reads all claims, from `data/paper/claims.csv` unless another path is given.

    Raises:
        ValueError: Other columns, a part that stands twice, or a row that cannot be read; names the row and the text.
    """
    path = path or paths.PAPER / "claims.csv"
    try:
        rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    except pd.errors.ParserError as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from error
    if tuple(rows.columns) != COLUMNS:
        raise ValueError(f"{path.name} has columns {', '.join(rows.columns)}; they must be {', '.join(COLUMNS)}")
    if not isinstance(rows.index, pd.RangeIndex):  # pandas takes what is too much for an index
        raise ValueError(f"{path.name} cannot be read: its rows have more fields than columns")
    if twice := sorted((rows["id"] + rows["part"])[rows.duplicated(["id", "part"])]):
        raise ValueError(f"{path.name} has {', '.join(twice)} twice")
    return [parse(row) for row in rows.to_dict("records")]


def questions() -> dict[str, str]:
    """Returns the question that each claim answers, by its id, from `data/paper/questions.csv`."""
    return dict(pd.read_csv(paths.PAPER / "questions.csv").itertuples(index=False))


def parse(row: dict[str, str]) -> Claim:
    """Reads one claim from the text of its row.

    Raises:
        ValueError: A malformed expression or number, or an unknown profile; names the row and the text.
    """
    try:
        beside = {}
        for name, where in _named(row["beside"]):
            if name in beside:
                raise ValueError(f"{name!r} stands twice in {row['beside']!r}")
            beside[name] = _parsed(row | {"where": where}, {})
        return _parsed(row, beside)
    except ValueError as error:
        raise ValueError(f"claim {row['id']} part {row['part']}: {error}") from error


def _parsed(row: dict[str, str], beside: dict[str, Claim]) -> Claim:
    where = _cell(row["where"]) if row["where"] else {}
    better, worse = (_expression(row[side], where) for side in ("better", "worse"))
    if row["profile"] not in PROFILES:
        raise ValueError(f"unknown profile {row['profile']!r}; there are {', '.join(PROFILES)}")
    parsed = {
        "better": better,
        "worse": worse,
        "listed": _listed(better + worse),
        "beside": beside,
        "margins": _margins(row["margin"]),
        "paper_better": _number(row["paper_better"]) if row["paper_better"] else math.nan,
        "paper_worse": _number(row["paper_worse"]) if row["paper_worse"] else math.nan,
    }
    return Claim(**{field.name: parsed.get(field.name, row.get(field.name)) for field in fields(Claim)})


def _named(text: str) -> list[tuple[str, str]]:
    parts = [part.strip().partition(": ") for part in text.split(";")] if text else []
    if wrong := [name for name, _, where in parts if not name or not where]:
        raise ValueError(f"cannot read {wrong[0]!r} in {text!r}; expected name: column=value")
    return [(name, where) for name, _, where in parts]


def _margins(text: str) -> tuple[float, ...]:
    bound = _number(text.removeprefix("±"))
    if not text.startswith("±"):
        return (bound,)
    if bound <= 0:
        raise ValueError(f"expected a number above 0 after ±, got {text!r}")
    return (-bound, bound)


def _number(text: str) -> float:
    with contextlib.suppress(ValueError):
        if math.isfinite(number := float(text)) and "_" not in text:
            return number
    raise ValueError(f"expected a number, got {text!r}")


def _cell(text: str) -> Cell:
    cell: Cell = {}
    for term in text.split():
        column, _, values = term.partition("=")
        listed = tuple(values.split("|"))
        if not column.isidentifier() or column in cell or "" in listed or "=" in values:
            raise ValueError(f"cannot read {term!r} in {text!r}; expected column=value or column=value|value")
        cell[column] = listed
    if not cell:
        raise ValueError("an empty expression; expected column=value or column=value|value")
    return cell


def _expression(text: str, where: Cell) -> tuple[Cell, ...]:
    cells = tuple(_cell(part) for part in text.split(" - "))
    if len(cells) > 2:
        raise ValueError(f"expected one cell or the difference of two, got {text!r}")
    if both := sorted(where.keys() & set().union(*cells)):
        raise ValueError(f"{', '.join(both)} stands in {text!r} and in where")
    return tuple(cell | where for cell in cells)


def _listed(cells: Iterable[Cell]) -> Cell:
    listed: Cell = {}
    for cell in cells:
        for column, values in cell.items():
            if len(values) > 1 and listed.setdefault(column, values) != values:
                raise ValueError(f"two lists for {column}: {'|'.join(listed[column])} and {'|'.join(values)}")
    return listed


def levels(claim: Claim) -> dict[str, list[Cell]]:
    """Returns the cells at each combination of listed values, such as "density=0.1"; at "" where none is listed.

    A cell that has a value of its own in a listed column keeps it.
    """
    combinations = (zip(claim.listed, values, strict=True) for values in product(*claim.listed.values()))
    chosen = [{column: (value,) for column, value in combination} for combination in combinations]
    cells = claim.better + claim.worse
    return {
        _text(at): [
            {column: at[column] if len(values) > 1 else values for column, values in cell.items()} for cell in cells
        ]
        for at in chosen
    }


def compared(claim: Claim, planned: pd.DataFrame) -> pd.DataFrame:
    """Finds the runs that a claim compares.

    Args:
        claim: From `load`.
        planned: `records.planned`, or `records.frame` of all that is planned.
    Returns:
        One row a pair, with its seed as index: the id of the run in each cell of `better`, then of `worse`, and
        `at`, the listed values. No rows where the plan has no pair.
    Raises:
        ValueError: A column that the runs do not have, unless the claim waits for something, or a cell that
            matches several runs of a seed.
    """
    if missing := sorted({"id", "seed"}.union(*claim.better, *claim.worse) - set(planned.columns)):
        if claim.needs:
            return pd.DataFrame()
        raise no_column(claim, missing, planned)
    runs = {at: [_by_seed(claim, cell, planned) for cell in cells] for at, cells in levels(claim).items()}
    pairs = {at: pd.concat(own, axis=1, join="inner", ignore_index=True) for at, own in runs.items()}
    return pd.concat(own.assign(at=at) for at, own in pairs.items())


def _by_seed(claim: Claim, cell: Cell, planned: pd.DataFrame) -> pd.Series:
    """Finds the ids of the runs in a cell of one value a column, one a seed."""
    chosen = np.logical_and.reduce([_equals(planned[column], value) for column, (value,) in cell.items()])
    runs = pd.Series(planned["id"].to_numpy()[chosen], planned["seed"].to_numpy()[chosen])
    if runs.index.has_duplicates:
        seed = runs.index[runs.index.duplicated()][0]
        raise ValueError(
            f"claim {claim.id} part {claim.part}: {_text(cell)} matches several runs of a seed,"
            f" of seed {seed} {', '.join(runs[seed])}; hand in the runs of one profile only, or add conditions"
        )
    return runs


def no_column(claim: Claim, missing: Iterable[str], frame: pd.DataFrame) -> ValueError:
    """Says which columns a claim needs that the runs do not have."""
    return ValueError(
        f"claim {claim.id} part {claim.part}: the runs have no column {', '.join(missing)};"
        f" they have {', '.join(frame.columns)}"
    )


def _equals(column: pd.Series, value: str) -> np.ndarray:
    """Compares numbers where `value` is one, so that 1, 1.0 and 1e0 are the same density."""
    try:
        number = float(value)
    except ValueError:
        return (column.astype(str) == value).to_numpy()
    return np.isclose(pd.to_numeric(column, errors="coerce"), number, rtol=1e-9, atol=0)


def _text(cell: Cell) -> str:
    return " ".join(f"{column}={value}" for column, (value,) in cell.items())
