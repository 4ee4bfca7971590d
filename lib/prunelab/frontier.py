"""All methods on one front: what each network costs, which are on the front, and what to pick for a budget.

A *network* is a way to spend a budget at one size, such as RigL at a density of 10 %; its replicates are seeds. What it
costs is a share of what the whole dense network costs:

    weights  those that are stored
    macs     multiply-accumulates of one image
    bytes    32 bits for each stored weight, and in a masked network one bit for each position, active or not
    time     seconds of a forward pass, measured; `data/records/bench.json` has what ships

It is on the *front* of a cost if no other network is at least as cheap and as accurate, and better in one of the two.

Claims compare kinds of networks *within* budgets: for each seed that of the kind which is the most accurate on average
over the other seeds, among those whose mean cost is at most 5 % above the budget. So none is chosen by the number that
it is judged by.
"""

import json
from collections.abc import Collection, Mapping
from itertools import product

import numpy as np
import pandas as pd

from prunelab import moderated, paths
from prunelab.runs import check_choice

COSTS = ("weights", "macs", "bytes", "time")
# What each way, an experiment of the plan, leaves: a masked network as large as before; a trained one without some of
# its channels, fine-tuned; a dense one, whole or small, that is trained from scratch.
KINDS = {
    **dict.fromkeys(("static", "snip", "set", "rigl", "gmp", "gmp_long", "magnitude"), "masked"),
    **dict.fromkeys(("l1", "slimming"), "pruned"),
    **dict.fromkeys(
        ("dense", "small_dense", "small_dense_long", "scratch_e", "scratch_b", "distilled", "dmcp"), "dense"
    ),
}
# The budgets that claims are about; a cost may exceed one by the slack, since sizes come in whole channels.
WITHIN = {"weights": (0.2, 0.1), "macs": (0.36, 0.18), "bytes": (0.13, 0.08, 0.05), "time": (1.0, 0.8)}
SLACK = 1.05
_BITS = 32  # of a weight
_N_DRAWS = 2_000


def read_times() -> tuple[pd.DataFrame, dict]:
    """Reads the times that ship, as `prunelab bench front` has measured them, and says where and with what."""
    measured = json.loads((paths.RECORDS / "bench.json").read_text())["front"]
    return pd.DataFrame(measured["times"]), measured["provenance"]


def costed(frame: pd.DataFrame, times: Mapping[str, float]) -> pd.DataFrame:
    """Returns the runs of `KINDS` with what they cost.

    Args:
        frame: `records.frame`; its experiments are ways.
        times: Time by the id of a run; NaN where there is none.
    Returns:
        The rows of `frame`, with `kind`, `network` (the way and its size) and the `COSTS` besides.
    """
    runs = frame[frame["experiment"].isin(KINDS)].copy()
    options = runs.reindex(columns=["method", "density", "budget"])
    size = options["budget"].where(runs["recipe"] == "dmcp", options["density"])
    runs["kind"] = runs["experiment"].map(KINDS)
    by_macs = runs["experiment"].str.replace("small_dense", "small_dense_macs")
    names = runs["experiment"].where(options["method"] != "small_dense_macs", by_macs)  # of two measures of size
    runs["network"] = names + size.map(" {:g}".format)
    positions = runs["n_stored_weights"].where(runs["kind"] == "masked", 0) / _BITS
    bytes_ = (runs["n_active"] + positions) / runs["n_reference_weights"]
    return runs.assign(
        weights=runs["measured_density"], macs=runs["macs_ratio"], bytes=bytes_, time=runs["id"].map(times)
    )


def networks(runs: pd.DataFrame) -> pd.DataFrame:
    """Averages the runs of each network over its seeds.

    Args:
        runs: From `costed`.
    Returns:
        By `network`: `way`, `kind`, `n` seeds, the `COSTS`, `training` (MACs spent, ancestors included, in trainings of
        the dense network), `accuracy` between `low` and `high`, its 95 % interval, with `error` and `df`. Variances are
        shrunk towards that of all networks; one of a single seed has none, and no interval.
    """
    groups = runs.groupby("network", sort=False)
    found = groups[["experiment", "kind"]].first().rename(columns={"experiment": "way"})
    found["n"] = groups.size()
    found[[*COSTS]] = groups[[*COSTS]].mean().round(9)  # a mean of equals is not always their value
    dense = runs.loc[runs["experiment"] == "dense", "training_macs"].mean()
    found["training"] = groups["total_training_macs"].mean() / dense
    found["accuracy"] = groups["test_accuracy"].mean()
    found[["error", "df"]] = np.nan
    of_several = found["n"] > 1
    if of_several.any():
        n = found.loc[of_several, "n"].to_numpy()
        variances = groups["test_accuracy"].var(ddof=1)[of_several].to_numpy()
        shrunk, df = moderated.shrunk(variances, n - 1.0)
        found.loc[of_several, "error"], found.loc[of_several, "df"] = np.sqrt(shrunk / n), df
    low, high = moderated.interval(found["accuracy"], found["error"], found["df"])
    return found.assign(low=low, high=high)


def pareto(costs: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Tells which points are on the front: no other is at least as good in both, and better in one.

    Args:
        costs: The less the better, (points,); one that is NaN is on no front.
        values: The more the better, (points,).
    Returns:
        Bool, (points,).
    """
    costs, values = np.asarray(costs, float), np.asarray(values, float)
    no_worse = (costs <= costs[:, None]) & (values >= values[:, None])  # the second index than the first
    better = (costs < costs[:, None]) | (values > values[:, None])
    return ~(no_worse & better).any(axis=1) & ~np.isnan(costs)


def share_on_front(found: pd.DataFrame, cost: str) -> pd.Series:
    """Returns in which share of draws each network is on the front of a cost.

    A draw moves each accuracy by its error times a t-distributed number: what other seeds might have given.

    Args:
        found: `networks`; those without an interval stay where they are.
        cost: One of `COSTS`.
    """
    generator = np.random.default_rng(0)
    noise = (
        generator.standard_t(found["df"].fillna(1), size=(_N_DRAWS, len(found))) * found["error"].fillna(0.0).to_numpy()
    )
    drawn = found["accuracy"].to_numpy() + noise
    return pd.Series(np.mean([pareto(found[cost], values) for values in drawn], axis=0), found.index)


def check_budgets(budgets: Mapping[str, float]) -> None:
    """Raises ValueError unless budgets are shares of one or several of `COSTS`, or "training"."""
    costs = (*COSTS, "training")
    if not budgets:
        raise ValueError(f"give a budget of one or several of {', '.join(costs)}")
    for cost, budget in budgets.items():
        check_choice("cost", cost, costs)
        if not 0 < budget <= (np.inf if cost == "training" else 1):
            raise ValueError(f"a budget is a share of what the dense network costs, such as 0.25; got {cost} {budget}")


def recommend(found: pd.DataFrame, budgets: Mapping[str, float]) -> pd.DataFrame:
    """Ranks what fits within all of some budgets: of each kind the most accurate network, the best first.

    Networks of fewer seeds than others have are left out. The best is picked by the numbers that it is shown with, so
    that its accuracy and its lead are a little too high; nothing is corrected for asking often.

    Args:
        found: `networks`.
        budgets: The most that one or several of `COSTS` may be, or "training".
    Returns:
        Rows of `networks`; `behind`, by how much the first is more accurate, and `p`, two-sided, that both are equally
        accurate; 0 and NaN in the first row.
    Raises:
        ValueError: As `check_budgets`, or a budget that no network within those before keeps to; says what the cheapest
            costs.
    """
    check_budgets(budgets)
    left = found[found["n"] == found["n"].max()]
    for cost, budget in budgets.items():
        within = left[left[cost] <= budget]
        if within.empty:
            least = (
                f"; the least, {left[cost].idxmin()}, costs {left[cost].min():.4g}" if left[cost].notna().any() else ""
            )
            raise ValueError(f"no network that is left costs at most {budget:.4g} of the {cost}{least}")
        left = within
    ranked = left.sort_values("accuracy", ascending=False, kind="stable").drop_duplicates("kind")
    best = ranked.iloc[0]
    # The variance that all share counts once: each brings the replicates of its own.
    p = moderated.p_value(
        best["accuracy"] - ranked["accuracy"].to_numpy(),
        np.float64(0),
        np.hypot(best["error"], ranked["error"].to_numpy()),
        best["df"] + ranked["n"].to_numpy() - 1,
    )
    p[0] = np.nan
    return ranked.assign(behind=best["accuracy"] - ranked["accuracy"], p=p)


def best_within(runs: pd.DataFrame) -> pd.DataFrame:
    """Lists for each kind, budget and seed the run that claims compare; see above.

    Args:
        runs: From `costed`.
    Returns:
        Their rows, with `axis`, one of `COSTS`, and `within`, the budget; none where nothing fits.
    """
    means = runs.groupby("network")[[*COSTS]].transform("mean")
    sums = runs.groupby("network")["test_accuracy"].transform("sum")
    n_others = runs.groupby("network")["test_accuracy"].transform("size") - 1
    others = ((sums - runs["test_accuracy"]) / n_others.replace(0, np.nan)).rename("others")
    chosen = []
    for axis, budgets in WITHIN.items():
        for within, kind in product(budgets, dict.fromkeys(runs["kind"])):
            fits = (means[axis] <= SLACK * within) & (runs["kind"] == kind) & others.notna()
            best = others[fits].groupby(runs["seed"]).idxmax()
            chosen.append(runs.loc[best].assign(axis=axis, within=within, experiment="within"))
    return pd.concat(chosen, ignore_index=True)


def with_best(
    frame: pd.DataFrame, planned: pd.DataFrame, times: Mapping[str, float] | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Adds to both tables the rows that claims compare within budgets, once all that is planned is on record.

    Args:
        frame: `records.frame`; its experiments are ways.
        planned: `records.planned` of the same.
        times: Time by the id of a run; those that ship unless given.
    """
    if not set(planned["id"]) <= _ids(frame):
        return frame, planned
    times = read_times()[0].set_index("id")["time"] if times is None else times
    best = best_within(costed(frame, times))
    return pd.concat([frame, best], ignore_index=True), pd.concat([planned, best], ignore_index=True)


def _ids(frame: pd.DataFrame) -> Collection[str]:
    return set(frame.get("id", ()))
