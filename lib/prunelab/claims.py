"""What the papers assert, as comparisons over records, and the rule that judges them.

`data/paper/claims.csv` holds one comparison a row; a claim with several comparisons has parts a, b, c.
Comparisons are written in columns of `records.frame`:

    better, worse    the runs compared: one cell, `method=rigl density=0.1`, or a difference of two cells,
                     `method=rigl density=0.1 - method=static density=0.1`; of costs, the larger is "better"
    where            what all these cells have in common: `distribution=erk`
    density=0.2|0.1  a list, in any of them: pairs are formed at each value
    margin           what the difference must exceed: 0 for "more than", -0.01 for "at least, within a point"

The rule: the difference metric(better) - metric(worse) is taken within each seed, at each listed value. A
bootstrap over seeds gives the 95 % interval of its mean. The claim is `reproduced` if the interval lies above
the margin, `not reproduced` if it lies below, else `inconclusive`; so it is with fewer than three seeds at a
listed value. Diverged runs count with the accuracy they have. Which runs are compared is read off the plan: while
one of them is not on record the claim is `not judged`, and each listed value is judged by itself.
"""

import contextlib
import math
import textwrap
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from prunelab import paths
from prunelab.runs import PROFILES

REPRODUCED = "reproduced"
NOT_REPRODUCED = "not reproduced"
INCONCLUSIVE = "inconclusive"
NOT_JUDGED = "not judged"

MIN_SEEDS = 3
CONFIDENCE = 0.95
N_RESAMPLES = 10_000

Cell = dict[str, tuple[str, ...]]  # column -> its value, or the listed values


@dataclass(frozen=True)
class Claim:
    """One row of `claims.csv`, parsed.

    Attributes:
        recipe: Whose runs it is about.
        better: One cell, or two whose difference is meant; each includes the conditions of `where`.
        worse: Likewise.
        listed: The columns with several values.
        paper_better: The paper's own value, NaN where none could be read.
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
    margin: float
    paper_better: float
    paper_worse: float
    paper_source: str
    profile: str
    needs: str


# Of claims.csv, in this order. What is listed, in `where` or elsewhere, is found by parsing.
COLUMNS = tuple("where" if field.name == "listed" else field.name for field in fields(Claim))


@dataclass(frozen=True)
class Verdict:
    """What the records say about one claim; by default that they do not judge it.

    Attributes:
        difference: Mean over all pairs, between `low` and `high`; all NaN where there is no pair.
        n_seeds: Seeds with a pair, at the listed value where they are fewest.
        verdict: One of the four words above.
        reason: Why it is not judged, or could not be decided whatever the values; else "".
    """

    difference: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n_seeds: int = 0
    n_pairs: int = 0
    verdict: str = NOT_JUDGED
    reason: str = ""


def load(path: Path | None = None) -> list[Claim]:
    """Reads all claims, from `data/paper/claims.csv` unless another path is given.

    Raises:
        ValueError: Other columns, or a row that cannot be read; names the row and the text.
    """
    path = path or paths.PAPER / "claims.csv"
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    if tuple(rows.columns) != COLUMNS:
        raise ValueError(f"{path.name} has columns {', '.join(rows.columns)}; they must be {', '.join(COLUMNS)}")
    return [parse(row) for row in rows.to_dict("records")]


def parse(row: dict[str, str]) -> Claim:
    """Reads one claim from the text of its row.

    Raises:
        ValueError: A malformed expression or number, or an unknown profile; names the row and the text.
    """
    try:
        where = _cell(row["where"]) if row["where"] else {}
        better, worse = (_expression(row[side], where) for side in ("better", "worse"))
        _check_profile(row["profile"])
        parsed = {
            "better": better,
            "worse": worse,
            "listed": _listed(better + worse),
            "margin": _number(row["margin"]),
            "paper_better": _number(row["paper_better"]) if row["paper_better"] else math.nan,
            "paper_worse": _number(row["paper_worse"]) if row["paper_worse"] else math.nan,
        }
        return Claim(**{column: row[column] for column in COLUMNS if column != "where"} | parsed)
    except ValueError as error:
        raise ValueError(f"claim {row['id']} part {row['part']}: {error}") from error


def _check_profile(profile: str) -> None:
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}; there are {', '.join(PROFILES)}")


def _number(text: str) -> float:
    with contextlib.suppress(ValueError):
        if math.isfinite(number := float(text)):
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


def judge(
    claim: Claim, frame: pd.DataFrame, *, planned: pd.DataFrame | None = None, profile: str | None = None
) -> Verdict:
    """Applies the rule to one claim.

    Args:
        claim: From `load`.
        frame: `records.frame` of the runs of one profile.
        planned: `records.planned` of the same profile; None where `frame` has all that is planned.
        profile: That profile; a claim is not judged on a smaller one than its own. None judges what there is.
    Raises:
        ValueError: An unknown profile, a column that the runs do not have, or a cell that matches several
            runs of a seed.
    """
    return _whole_and_levels(claim, frame, frame if planned is None else planned, profile)[""]


def _whole_and_levels(
    claim: Claim, frame: pd.DataFrame, planned: pd.DataFrame, profile: str | None
) -> dict[str, Verdict]:
    """Judges a part, at "", and where it cannot be judged each listed value that is planned, if one of them can."""
    if profile is not None:
        _check_profile(profile)
    too_small = profile is not None and PROFILES.index(profile) < PROFILES.index(claim.profile)
    pairs = pd.DataFrame() if too_small or planned.empty else compared(claim, planned)
    if pairs.empty:
        is_elsewhere = too_small or profile is None
        lacking = f"of profile {claim.profile}" if is_elsewhere else f"that profile {profile} does not plan"
        return {"": Verdict(reason=f"needs {claim.needs or f'runs {lacking}'}")}
    whole = _judge_pairs(claim, pairs, frame)
    unplanned = [at for at in _levels(claim) if at not in set(pairs["at"])]
    if unplanned and whole.verdict != NOT_JUDGED:  # less than what the claim says
        whole = Verdict(reason=f"no runs are planned at {', '.join(unplanned)}")
    if whole.verdict != NOT_JUDGED:
        return {"": whole}
    by_level = {at: _judge_pairs(claim, own, frame) for at, own in pairs.groupby("at", sort=False) if at}
    is_judged = any(verdict.verdict != NOT_JUDGED for verdict in by_level.values())
    return {"": whole} | (by_level if is_judged else {})


def _judge_pairs(claim: Claim, pairs: pd.DataFrame, frame: pd.DataFrame) -> Verdict:
    ids = set(pairs.drop(columns="at").to_numpy().flat)
    if missing := ids.difference(frame.get("id", ())):
        return Verdict(reason=f"{len(missing)} of {len(ids)} runs not recorded")

    differences = _differences(claim, pairs, frame)
    low, high = interval(differences, pairs.index)
    counts = pairs["at"].value_counts()
    fewest, n_seeds = counts.idxmin(), int(counts.min())
    reason = ""
    if np.isnan(differences).any():
        reason = f"a diverged run has no {claim.metric}"
    elif n_seeds < MIN_SEEDS:
        reason = f"{n_seeds} of {MIN_SEEDS} seeds" + (f" at {fewest}" if fewest else "")
    is_open = reason or low <= claim.margin <= high
    verdict = INCONCLUSIVE if is_open else REPRODUCED if low > claim.margin else NOT_REPRODUCED
    return Verdict(float(differences.mean()), low, high, n_seeds, len(differences), verdict, reason)


def interval(differences: Iterable[float], seeds: Iterable[int]) -> tuple[float, float]:
    """Returns the percentile bootstrap of a mean over pairs, in which whole seeds are drawn.

    All pairs of a seed share its initialisation and the order of its data, so they are drawn together.

    Args:
        differences: One a pair.
        seeds: The seed of each pair.
    Returns:
        Both ends of the interval, always the same for the same pairs. With three seeds they are the lowest
        and the highest seed's mean: one seed drawn three times is 1 in 27, more than the 2.5 % cut off.
    """
    _, of_seed = np.unique(list(seeds), return_inverse=True)
    sums, counts = np.bincount(of_seed, weights=list(differences)), np.bincount(of_seed)
    draws = np.random.default_rng(0).integers(len(sums), size=(N_RESAMPLES, len(sums)))
    means = sums[draws].sum(axis=1) / counts[draws].sum(axis=1)
    return tuple(np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]).tolist())


def _levels(claim: Claim) -> dict[str, list[Cell]]:
    """Returns the cells at each combination of listed values, such as "density=0.1"; at "" where none is listed."""
    combinations = (zip(claim.listed, values, strict=True) for values in product(*claim.listed.values()))
    chosen = [{column: (value,) for column, value in combination} for combination in combinations]
    cells = claim.better + claim.worse
    return {_text(at): [cell | {column: at[column] for column in cell.keys() & at} for cell in cells] for at in chosen}


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
        raise _no_column(claim, missing, planned)
    runs = {at: [_by_seed(claim, cell, planned) for cell in cells] for at, cells in _levels(claim).items()}
    pairs = {at: pd.concat(own, axis=1, join="inner", ignore_index=True) for at, own in runs.items()}
    return pd.concat(own.assign(at=at) for at, own in pairs.items())


def _by_seed(claim: Claim, cell: Cell, planned: pd.DataFrame) -> pd.Series:
    """Finds the ids of the runs in a cell of one value a column, one a seed."""
    chosen = np.logical_and.reduce([_equals(planned[column], value) for column, (value,) in cell.items()])
    runs = pd.Series(planned["id"].to_numpy()[chosen], planned["seed"].to_numpy()[chosen])
    if runs.index.has_duplicates:
        raise ValueError(
            f"claim {claim.id} part {claim.part}: {_text(cell)} matches several runs of a seed;"
            " hand in the runs of one profile only, or add conditions"
        )
    return runs


def _differences(claim: Claim, pairs: pd.DataFrame, frame: pd.DataFrame) -> np.ndarray:
    """Takes better - worse of each pair, where each may itself be the difference of two cells."""
    if claim.metric not in frame:
        raise _no_column(claim, [claim.metric], frame)
    metric = frame[["id", claim.metric]].drop_duplicates("id").set_index("id")[claim.metric]
    sides = pairs.drop(columns="at").apply(lambda ids: ids.map(metric))
    signs = [1, -1][: len(claim.better)] + [-1, 1][: len(claim.worse)]
    return sides.to_numpy(float) @ np.array(signs)


def _no_column(claim: Claim, missing: Iterable[str], frame: pd.DataFrame) -> ValueError:
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


def overall(verdicts: Iterable[str]) -> str:
    """Returns the verdict on a claim from those on its parts: all that are judged must be reproduced."""
    found = set(verdicts)
    return next((verdict for verdict in (NOT_REPRODUCED, INCONCLUSIVE, REPRODUCED) if verdict in found), NOT_JUDGED)


def table(
    frame: pd.DataFrame, prefix: str = "", *, planned: pd.DataFrame | None = None, profile: str | None = None
) -> pd.DataFrame:
    """Judges the claims about the recipes in a plan, or those of one paper, or one claim, one row a part.

    A part that pools listed values and cannot be judged, while one of these can, has a row for each of them too.

    Args:
        frame: `records.frame` of the runs of one profile.
        prefix: A claim's id, such as "RigL-C1", or what stands before its number, "RigL"; "" is all
            of them.
        planned: See `judge`; where it is empty, all claims are listed.
        profile: See `judge`.
    Returns:
        `claim`, `part`, `at` (the listed value, "" for the part as a whole), `statement`, `metric`, `paper` (the
        difference found there), `margin`, and the fields of `Verdict`.
    Raises:
        ValueError: There are no such claims; also see `judge`.
    """
    claims = load()
    chosen = [claim for claim in claims if prefix in ("", claim.id, claim.id.partition("-")[0])]
    if not chosen:
        known = ", ".join(dict.fromkeys(claim.id for claim in claims))
        raise ValueError(f"no claims {prefix!r}; there are {known}")
    planned = frame if planned is None else planned
    if "recipe" in planned:
        chosen = [claim for claim in chosen if claim.recipe in set(planned["recipe"])]
    return pd.DataFrame(
        {
            "claim": claim.id,
            "part": claim.part,
            "at": at,
            "statement": claim.statement,
            "metric": claim.metric,
            "paper": claim.paper_better - claim.paper_worse,
            "margin": claim.margin,
        }
        | asdict(verdict)
        for claim in chosen
        for at, verdict in _whole_and_levels(claim, frame, planned, profile).items()
    )


def pooled(judged: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows of `table` that count: the parts as wholes, without those on single listed values."""
    return judged[judged["at"] == ""].drop(columns="at")


def summary(judged: pd.DataFrame) -> pd.DataFrame:
    """Returns one row a claim of what `table` gave: its parts, those judged, and the verdict on the whole."""
    by_claim = pooled(judged).groupby("claim", sort=False)["verdict"]
    return by_claim.agg(
        n_parts="size",
        n_judged=lambda verdicts: (verdicts != NOT_JUDGED).sum(),
        verdict=overall,
    ).reset_index()


def tally(judged: pd.DataFrame) -> str:
    """Says how many parts in `table` have which verdict."""
    verdicts = list(pooled(judged)["verdict"])
    words = (REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE, NOT_JUDGED)
    return f"of {len(verdicts)} comparisons " + ", ".join(f"{verdicts.count(word)} are {word}" for word in words)


def report(judged: pd.DataFrame) -> str:
    """Writes the judged rows of `table` as plain text, one line a comparison, and below what the others wait for."""
    names = judged["claim"] + judged["part"]
    is_told = (judged["verdict"] != NOT_JUDGED) | names.isin(names[judged["at"] != ""])  # or some level has a verdict
    lines = [f"{'claim':10} {'verdict':15} {'difference, 95 %':25} statement"]
    for row in judged[is_told].itertuples():
        name, statement = ("", f"  at {row.at}") if row.at else (row.claim + row.part, row.statement)
        found = row.reason if row.verdict == NOT_JUDGED else _difference(row)
        lines.append(f"{name:10} {row.verdict:15} {found:25} {statement}")
    for reason, waiting in names[~is_told].groupby(judged["reason"], sort=False):
        lines += ["", f"{NOT_JUDGED}, {reason}:", textwrap.fill(", ".join(waiting), 100)]
    return "\n".join(lines)


def markdown(judged: pd.DataFrame) -> str:
    """Writes the judged rows of `table` for a page of text, one line a comparison."""
    lines = ["| claim | comparison | difference, 95 % interval | paper | verdict |", "|---|---|---|---|---|"]
    for row in pooled(judged).query("verdict != @NOT_JUDGED").itertuples():
        paper = "" if math.isnan(row.paper) else _written(row.paper, row.metric)
        lines.append(f"| {row.claim}{row.part} | {row.statement} | {_difference(row)} | {paper} | {row.verdict} |")
    return "\n".join(lines)


def _difference(row: NamedTuple) -> str:
    low, high = _written(row.low, row.metric), _written(row.high, row.metric)
    return f"{_written(row.difference, row.metric)} [{low}, {high}]" + (" of loss" if _is_loss(row.metric) else "")


def _written(value: float, metric: str) -> str:
    """Writes a share in points, a loss as it is."""
    return f"{value:+.3f}" if _is_loss(metric) else f"{100 * value:+.1f}"


def _is_loss(metric: str) -> bool:
    return metric in ("train_loss", "loss_barrier")
