"""Verdicts on claims, by one rule.

The difference better - worse of a comparison is taken within each seed, averaged over what it lists. Its replicates are
the outermost random units: where several runs start from one parent, they count as one. The variance that these few
show is shrunk towards that of all rows of one metric, network, data and length (`moderated`); a family of fewer than
eight rows shares with the other small ones of its metric. The difference is tested against the margin, two-sided, and
the false discovery rate over all rows that a notebook plans at a profile is held at 5 %: a row is `reproduced` or
`not reproduced`, whichever side it lies on, where q is at most 0.05, and else `inconclusive`; so it is with fewer than
three replicates. "As accurate as" is reproduced between its margins. Beside q stands the 95 % interval of each
difference by itself. Diverged runs count with the accuracy they have. A cost that all replicates agree on was fixed by
options: its sign is arithmetic, and it has neither interval nor q.

Which runs are compared is read off the plan: while one of them is not on record the claim is `not judged`, and counts
in the adjustment as if it had been found by chance; or, where a listed value can be judged, each of these counts.
"""

import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd

from prunelab import claims, moderated, paths
from prunelab.claims import Claim
from prunelab.runs import PROFILES

REPRODUCED = "reproduced"
NOT_REPRODUCED = "not reproduced"
INCONCLUSIVE = "inconclusive"
NOT_JUDGED = "not judged"
WORDS = (REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE, NOT_JUDGED)
BESIDE = "beside"  # in place of a verdict: the same comparison in another setting

MIN_SEEDS = 3
MAX_Q = 0.05
_MIN_FAMILY = 8
_NETWORK = ("model", "width", "dataset", "image_size")
_IMAGES = _NETWORK.index("dataset")
_LENGTH = ("n_train", "n_epochs", "train_multiplier")
_COSTS = (
    *("macs", "macs_ratio", "training_macs", "training_macs_ratio", "total_training_macs"),
    *("n_active", "n_stored_weights", "n_bytes"),
)


@dataclass(frozen=True)
class _Measured:
    """What records say about a comparison, by default nothing.

    Attributes:
        by_seed: The difference in each replicate.
        by_level: Its mean at each listed value.
        weight: Sum of the squared coefficients of all runs: the variance of `by_seed` in units of a run's.
        network: The networks and images compared, as options have them.
        length: Likewise, of their training: with the network and the metric, whose rows have like variances.
        n_epochs: Of the longest of them; 0 where unknown.
        reason: Why it cannot be judged, or not decided whatever the values; else "".
        is_recorded: Whether the runs are on record.
    """

    by_seed: dict[int, float] = field(default_factory=dict)
    by_level: dict[str, float] = field(default_factory=dict)
    weight: float = 1.0
    network: tuple = ()
    length: tuple = ()
    n_epochs: float = 0.0
    reason: str = ""
    is_recorded: bool = False


class _Row(NamedTuple):
    claim: Claim
    at: str
    measured: _Measured
    is_beside: bool = False
    is_counted: bool = True  # in the adjustment


def table(
    frame: pd.DataFrame,
    prefix: str = "",
    *,
    planned: pd.DataFrame | None = None,
    profile: str | None = None,
    recipe: str | None = None,
    of: Iterable[Claim] | None = None,
) -> pd.DataFrame:
    """Judges the claims about the recipes in a plan, or about one of them, one row a part.

    A part that pools listed values and cannot be judged, while one of these can, has a row for each of them too; one
    that is to be seen in other settings has a row for each of these, whose verdict is `BESIDE`.

    Args:
        frame: `records.frame` of the runs of one profile.
        prefix: Returns only the rows of one claim, such as "RigL-C1", or of what stands before its number, "RigL".
        planned: `records.planned` of the same profile; None where `frame` has all that is planned. Where it is empty,
            all claims are listed.
        profile: That profile; a claim is not judged on a smaller one than its own. None judges what there is.
        recipe: Whose claims; needed where a plan lists the parents of its runs, which are another recipe's.
        of: The claims; those of `claims.load` unless given.
    Returns:
        `claim`, `part`, `at` (the listed value or other setting, "" for the part as a whole), `statement`, `metric`;
        `paper` (the difference found there) and `paper_setting`; `margin`, the nearest; `difference`, between `low` and
        `high`; `n_seeds`, `p`, `q`; `seeds`, `levels` and `remarks`, text; `verdict`; `reason`, why it is not judged,
        or could not be decided.
    Raises:
        ValueError: There are no such claims, an unknown profile, a column that the runs do not have, or a cell that
            matches several runs of a seed.
    """
    known = claims.load() if of is None else list(of)
    ids = list(dict.fromkeys(claim.id for claim in known))
    chosen = [name for name in ids if prefix in ("", name, name.partition("-")[0])]
    if not chosen:
        raise ValueError(f"no claims {prefix!r}; there are {', '.join(ids)}")
    if profile not in (None, *PROFILES):
        raise ValueError(f"unknown profile {profile!r}; there are {', '.join(PROFILES)}")
    planned = frame if planned is None else planned
    if recipe or "recipe" in planned:
        recipes = {recipe} if recipe else set(planned["recipe"])
        known = [claim for claim in known if claim.recipe in recipes]
    rows = [row for claim in known for row in _rows(claim, frame, planned, profile)]
    judged = _judged(rows)
    return judged[judged["claim"].isin(chosen)].reset_index(drop=True)


def _rows(claim: Claim, frame: pd.DataFrame, planned: pd.DataFrame, profile: str | None) -> Iterator[_Row]:
    """Measures a part, where it cannot be judged each listed value if one of them can, and its other settings."""
    too_small = profile is not None and PROFILES.index(profile) < PROFILES.index(claim.profile)
    pairs = pd.DataFrame() if too_small or planned.empty else claims.compared(claim, planned)
    if pairs.empty:
        is_elsewhere = too_small or profile is None
        lacking = f"of profile {claim.profile}" if is_elsewhere else f"that profile {profile} does not plan"
        waits = _Measured(reason=f"needs {claim.needs or f'runs {lacking}'}")
        yield _Row(claim, "", waits, is_counted=False)
        return
    whole = _measured(claim, pairs, frame, planned)
    unplanned = [at for at in claims.levels(claim) if at not in set(pairs["at"])]
    if unplanned and whole.is_recorded:  # less than what the claim says
        whole = _Measured(reason=f"no runs are planned at {', '.join(unplanned)}")
    by_level = {}
    if not whole.is_recorded:
        by_level = {at: _measured(claim, own, frame, planned) for at, own in pairs.groupby("at", sort=False) if at}
    shows_levels = any(measured.is_recorded for measured in by_level.values())
    yield _Row(claim, "", whole, is_counted=not (unplanned or shows_levels))
    if shows_levels:
        yield from (_Row(claim, at, measured) for at, measured in by_level.items())
    for name, other in claim.beside.items():
        pairs = claims.compared(other, planned)
        if len(pairs) and (measured := _measured(other, pairs, frame, planned)).is_recorded:
            yield _Row(claim, name, measured, is_beside=True, is_counted=False)


def _measured(claim: Claim, pairs: pd.DataFrame, frame: pd.DataFrame, planned: pd.DataFrame) -> _Measured:
    cells = pairs.drop(columns="at")
    ids = set(cells.to_numpy().flat)
    if missing := ids.difference(frame.get("id", ())):
        return _Measured(reason=f"{len(missing)} of {len(ids)} runs not recorded")
    if claim.metric not in frame:
        raise claims.no_column(claim, [claim.metric], frame)
    if not pd.api.types.is_numeric_dtype(frame[claim.metric]):
        raise ValueError(f"claim {claim.id} part {claim.part}: {claim.metric} of the runs is no number")
    metric = frame[["id", claim.metric]].drop_duplicates("id").set_index("id")[claim.metric]
    plan = planned[planned["id"].isin(ids)].drop_duplicates("id").set_index("id")

    signs = np.array([1, -1][: len(claim.better)] + [-1, 1][: len(claim.worse)])
    differences = cells.apply(lambda own: own.map(metric)).to_numpy(float) @ signs
    at_all = cells.index.value_counts() == pairs["at"].nunique()  # seeds with a pair at each listed value
    is_whole = cells.index.map(at_all).to_numpy(bool)
    seeds, differences, cells = cells.index[is_whole], differences[is_whole], cells[is_whole]
    replicates = seeds.to_numpy()
    if "replicate" in plan:  # of the side that has fewest: what starts from one parent is no more than one
        of_cells = [own.map(plan["replicate"]).to_numpy() for _, own in cells.items()]
        replicates = min(of_cells, key=lambda own: len(set(own)))
    by_seed = _means(differences, replicates)
    reason, weight = "", _weight(cells, signs, replicates)
    if np.isnan(differences).any():
        reason = f"a diverged run has no {claim.metric}"
    elif not weight:
        reason = "it compares runs with themselves"
    elif len(by_seed) < MIN_SEEDS:
        reason = f"{len(by_seed)} of {MIN_SEEDS} seeds"
    return _Measured(
        dict(sorted(by_seed.items())),
        {at: mean for at, mean in _means(differences, pairs["at"].to_numpy()[is_whole]).items() if at},
        weight,
        *(tuple(frozenset(plan[name].map(str)) for name in names if name in plan) for names in (_NETWORK, _LENGTH)),
        n_epochs=(plan["n_epochs"] * plan.get("train_multiplier", 1.0)).max() if "n_epochs" in plan else 0.0,
        reason=reason,
        is_recorded=True,
    )


def _means(differences: np.ndarray, by: np.ndarray) -> dict:
    """Averages differences that have the same value of `by`; a mean over NaN is NaN."""
    return {key: differences[by == key].mean() for key in dict.fromkeys(by)}


def _weight(cells: pd.DataFrame, signs: np.ndarray, replicates: np.ndarray) -> float:
    """Returns the sum over a replicate's runs of their squared coefficients: a run in several cells has their sum."""
    coefficients = pd.DataFrame({"id": cells.to_numpy().flat, "replicate": np.repeat(replicates, len(signs))})
    n_pairs = coefficients.groupby("replicate")["id"].transform("size") / len(signs)
    coefficients["of"] = np.tile(signs, len(cells)) / n_pairs
    return float((coefficients.groupby(["replicate", "id"])["of"].sum() ** 2).groupby("replicate").sum().mean())


def _judged(rows: list[_Row]) -> pd.DataFrame:
    """Applies the rule to all rows together."""
    found = pd.DataFrame([_described(row) for row in rows])
    values = [np.array(list(row.measured.by_seed.values())) for row in rows]
    n = np.array([len(own) for own in values])
    difference = np.array([own.mean() if len(own) else math.nan for own in values])
    variance = np.array([own.var(ddof=1) if len(own) >= MIN_SEEDS else math.nan for own in values])
    margin = np.array([_nearest(row.claim.margins, d) for row, d in zip(rows, difference, strict=True)])
    is_fixed = np.array([row.claim.metric in _COSTS for row in rows]) & (variance <= (1e-9 * difference) ** 2)
    weight = np.array([row.measured.weight for row in rows])
    is_tested = np.isfinite(variance) & ~is_fixed & (weight > 0)  # a run is not compared with itself

    error, df = np.full((2, len(rows)), math.nan)
    for own in _families(rows, is_tested):
        shrunk, df[own] = moderated.shrunk(variance[own] / weight[own], n[own] - 1)
        error[own] = np.sqrt(shrunk * weight[own] / n[own])
    p = moderated.p_value(difference, margin, error, df)
    q = np.full(len(rows), math.nan)
    is_counted = ~is_fixed & [row.is_counted for row in rows]
    if is_counted.any():
        q[is_counted] = moderated.adjusted(np.nan_to_num(p[is_counted], nan=1.0))
    low, high = moderated.interval(difference, error, df)
    return found.assign(
        margin=margin,
        difference=difference,
        low=low,
        high=high,
        n_seeds=n,
        p=p,
        q=np.where(is_tested, q, math.nan),
        seeds=[" ".join(f"{value:+.4f}" for value in own) for own in values],
        levels=[", ".join(f"{at} {d:+.4f}" for at, d in row.measured.by_level.items()) for row in rows],
        remarks=list(_remarks(rows, difference)),
        verdict=[_verdict(*each) for each in zip(rows, difference, is_fixed | (q <= MAX_Q), strict=True)],
        reason=[row.measured.reason for row in rows],
    )


def _nearest(margins: tuple[float, ...], difference: float) -> float:
    return min(margins, key=lambda margin: abs(difference - margin))


def _described(row: _Row) -> dict:
    claim = row.claim
    return {
        "claim": claim.id,
        "part": claim.part,
        "at": row.at,
        "statement": claim.statement,
        "metric": claim.metric,
        "paper": claim.paper_better - claim.paper_worse,
        "paper_setting": claim.paper_setting,
    }


def _families(rows: list[_Row], is_tested: np.ndarray) -> list[np.ndarray]:
    """Returns the indices of rows whose variances are like: of one family, or of a metric's small families."""
    keys = {
        i: (rows[i].claim.metric, rows[i].measured.network, rows[i].measured.length) for i in np.flatnonzero(is_tested)
    }
    sizes = Counter(keys.values())
    members: dict[tuple, list[int]] = {}
    for i, key in keys.items():
        members.setdefault(key if sizes[key] >= _MIN_FAMILY else key[:1], []).append(i)
    return [np.array(own) for own in members.values()]


def _verdict(row: _Row, difference: float, is_decided: bool) -> str:
    if row.is_beside:
        return BESIDE
    if not row.measured.is_recorded:
        return NOT_JUDGED
    if row.measured.reason or not is_decided:
        return INCONCLUSIVE
    lower, *upper = row.claim.margins
    return REPRODUCED if lower < difference < min(upper, default=math.inf) else NOT_REPRODUCED


def _remarks(rows: list[_Row], difference: np.ndarray) -> Iterator[str]:
    """Says of each part what its one number hides: a short training, levels or settings that point the other way."""
    longest: dict[tuple, float] = {}  # of the comparisons that are shown at several lengths, by network and by images
    for row in rows:
        if row.claim.beside and not row.is_beside:
            for of in _alike(row):
                longest[of] = max(row.measured.n_epochs, longest.get(of, 0.0))
    for row, own in zip(rows, difference, strict=True):
        measured, remarks = row.measured, []
        if not row.at and measured.is_recorded:
            of_network, of_images = _alike(row)
            if measured.n_epochs < longest.get(of_network, longest.get(of_images, 0.0) / 2):
                remarks.append(f"short, {measured.n_epochs:g} epochs")
            if {-1.0, 1.0} <= set(np.sign(list(measured.by_level.values()))):
                remarks.append(f"opposite ways: {_listed(measured.by_level, row.claim.metric)}")
            beside = {
                other.at: d for other, d in zip(rows, difference, strict=True) if other.is_beside and other[0] is row[0]
            }
            if turned := {at: d for at, d in beside.items() if np.sign(round(d, 3)) == -np.sign(round(own, 3)) != 0}:
                remarks.append(f"the sign turns: {_listed(turned, row.claim.metric)}")
        yield "; ".join(remarks)


def _alike(row: _Row) -> tuple[tuple, tuple]:
    """Returns what rows of the same metric and network have in common, and rows of the same metric and images."""
    metric, network = row.claim.metric, row.measured.network
    return (metric, *network), (metric, *network[_IMAGES:])


def _listed(differences: dict[str, float], metric: str) -> str:
    return ", ".join(f"{_written(d, metric)} at {at}" for at, d in differences.items())


def pooled(judged: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows of `table` that count: the parts as wholes."""
    return judged[judged["at"] == ""].drop(columns="at")


def summary(judged: pd.DataFrame) -> pd.DataFrame:
    """Counts of each claim in `table` the parts with each verdict."""
    rows = pooled(judged)
    counts = rows.groupby("claim", sort=False)["verdict"].value_counts().unstack(fill_value=0)
    return (
        counts.reindex(index=rows["claim"].unique(), columns=WORDS, fill_value=0)
        .rename_axis(columns=None)
        .reset_index()
    )


def tally(judged: pd.DataFrame) -> str:
    """Says how many parts in `table` have which verdict."""
    counts = pooled(judged)["verdict"].value_counts()
    return f"of {counts.sum()} comparisons " + ", ".join(f"{counts.get(word, 0)} are {word}" for word in WORDS)


def points(judged: pd.DataFrame, *names: str, at: str = "") -> list[float]:
    """Returns the differences of parts, such as "RigL-C1a", in points as written, for texts that quote them."""
    rows = judged[judged["at"] == at]
    found = dict(zip(rows["claim"] + rows["part"], rows["difference"], strict=True))
    return [round(100 * found[name], 1) for name in names]


def named(judged: pd.DataFrame, verdict: str) -> set[str]:
    """Returns the names of the parts that have a verdict."""
    rows = pooled(judged).query("verdict == @verdict")
    return set(rows["claim"] + rows["part"])


def changed(judged: pd.DataFrame) -> pd.DataFrame:
    """Lists the parts that the earlier rule judged otherwise: `claim`, and by either rule the verdict and interval."""
    earlier = pd.read_csv(paths.RECORDS / "earlier_verdicts.csv").set_index("claim")
    rows = []
    for row in pooled(judged).itertuples():
        name = row.claim + row.part
        if name in earlier.index and earlier.at[name, "verdict"] != row.verdict:
            before = earlier.assign(metric=row.metric).loc[name]
            rows.append((name, before["verdict"], difference(before), row.verdict, difference(row)))
    return pd.DataFrame(rows, columns=["claim", "earlier", "earlier interval", "now", "interval"])


def report(judged: pd.DataFrame) -> str:
    """Writes the judged rows of `table` as plain text, one line a comparison, and below what the others wait for."""
    names = judged["claim"] + judged["part"]
    is_told = (judged["verdict"] != NOT_JUDGED) | names.isin(names[judged["at"] != ""])  # or some level has a verdict
    lines = [f"{'claim':10} {'verdict':15} {'difference, 95 %':22} {'q':6} statement"]
    for row in judged[is_told].itertuples():
        name, statement = ("", f"  at {row.at}") if row.at else (row.claim + row.part, row.statement)
        found = difference(row)
        word = "" if row.verdict == BESIDE else row.verdict
        lines.append(f"{name:10} {word:15} {found:22} {significance(row):6} {statement}")
        lines += [f"{'':58}{row.remarks}"] if row.remarks else []
    for reason, waiting in names[~is_told].groupby(judged["reason"], sort=False):
        lines += ["", f"{NOT_JUDGED}, {reason}:", textwrap.fill(", ".join(waiting), 100, break_on_hyphens=False)]
    return "\n".join(lines)


def markdown(judged: pd.DataFrame) -> str:
    """Writes the judged rows of `table` for a page of text, one line a comparison with its other settings."""
    names = judged["claim"] + judged["part"]
    lines = [
        "| claim | verdict | comparison | difference, 95 % interval | q | in other settings | paper |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in judged[~judged["verdict"].isin([NOT_JUDGED, BESIDE])].itertuples():
        others = judged[(names == row.claim + row.part) & (judged["verdict"] == BESIDE) & (row.at == "")]
        beside = [f"{other.at} {difference(other)}" for other in others.itertuples()]
        beside += [row.remarks] if row.remarks else []
        statement = f"{row.statement} Here at {row.at}." if row.at else row.statement
        cells = (row.verdict, statement, difference(row), significance(row), "; ".join(beside), paper(row))
        lines.append(f"| {row.claim}{row.part} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def difference(row: NamedTuple) -> str:
    """Writes a row's difference with its interval, a share in points, a loss as it is; or why there is none."""
    if math.isnan(row.difference):
        return row.reason
    ends = (_written(end, row.metric) for end in (row.low, row.high))
    interval = "" if math.isnan(row.low) else f" [{', '.join(ends)}]"
    return _written(row.difference, row.metric) + interval + (" of loss" if is_loss(row.metric) else "")


def starred(found: pd.DataFrame) -> list[str]:
    """Writes means of shares with their intervals in percent, and a star where q, over all these rows, is small enough.

    Args:
        found: One row a mean, as `transfer.over_tasks` and `transfer.trends` give them: `mean`, `low`, `high`, `p`.
    Returns:
        One text a row, such as "-2.0 [-3.1, -0.9]*".
    """
    stars = np.where(moderated.adjusted(found["p"]) <= MAX_Q, "*", "")
    ends = (100 * found[["mean", "low", "high"]].to_numpy()).round(1) + 0.0  # a rounded zero has no sign of its own
    return ["{:+.1f} [{:+.1f}, {:+.1f}]{}".format(*row, star) for row, star in zip(ends, stars, strict=True)]


def significance(row: NamedTuple) -> str:
    """Writes a row's q, or nothing where it has none."""
    return "" if math.isnan(row.q) else "<0.001" if row.q < 0.001 else f"{row.q:.3f}"


def paper(row: NamedTuple) -> str:
    """Writes the difference that the paper found, and where, if it gives one."""
    if math.isnan(row.paper):
        return ""
    return _written(row.paper, row.metric) + (f" ({row.paper_setting})" if row.paper_setting else "")


def _written(value: float, metric: str) -> str:
    digits, value = (3, value) if is_loss(metric) else (1, 100 * value)
    return f"{round(value, digits) + 0.0:+.{digits}f}"  # a rounded zero has no sign of its own


def is_loss(metric: str) -> bool:
    """Tells losses from shares, which are told in points."""
    return metric in ("train_loss", "loss_barrier")
