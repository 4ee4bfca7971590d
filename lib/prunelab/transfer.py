"""Measures of how well networks transfer to other tasks, against a dense network that transfers to the same ones.

Source: Iofinova et al. 2022, arXiv:2111.13445; as in `data/paper`, dense errors stand for the difficulty of tasks.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import linregress

from prunelab import moderated


def against_dense(frame: pd.DataFrame, *, within: Sequence[str] = ("seed",)) -> pd.DataFrame:
    """Sets the accuracies of networks beside those of the dense network on the same tasks.

    Args:
        frame: One row a network and task: `upstream`, `dataset`, `test_accuracy`, NaN where it has diverged, and the
            columns `within`.
        within: What a network shares with the dense one that it is compared with.
    Returns:
        The rows of all but the dense networks with `lead`, by how much the accuracy is larger than the dense one's;
        `difficulty`, the dense error; and `increase`, by how much the error is larger than the dense one's, as a share
        of that: the paper's relative error increase, NaN where the dense network makes no error.
    Raises:
        ValueError: A network without a dense one, or several dense ones for one; an accuracy that is no share.
    """
    keys, is_dense = [*within, "dataset"], frame["upstream"] == "dense"
    dense = frame.loc[is_dense, [*keys, "test_accuracy"]].rename(columns={"test_accuracy": "dense_accuracy"})
    rows = frame[~is_dense].merge(dense, on=keys, how="left", indicator="of")
    if dense.duplicated(keys).any() or (rows["of"] != "both").any():
        raise ValueError(f"each network needs one dense network with the same {', '.join(keys)}")
    accuracy, of_dense = (rows[name].astype(float) for name in ("test_accuracy", "dense_accuracy"))
    for column in (accuracy, of_dense):
        if not (is_share := column.between(0, 1) | column.isna()).all():
            task, value = rows.loc[~is_share, "dataset"].iloc[0], column[~is_share].iloc[0]
            raise ValueError(f"the accuracy on {task!r} must be a share in [0, 1], got {value}")
    lead, difficulty = accuracy - of_dense, 1 - of_dense
    increase = -lead / difficulty.where(difficulty > 0)
    return rows.drop(columns=["of", "dense_accuracy"]).assign(lead=lead, difficulty=difficulty, increase=increase)


def against_method(beside: pd.DataFrame, upstream: str, *, within: Sequence[str] = ("density",)) -> pd.DataFrame:
    """Sets the measures of networks beside those of one method, in place of the dense network, on the same tasks.

    Args:
        beside: `against_dense`.
        upstream: The method.
        within: What a network shares with the one of this method that it is compared with.
    Returns:
        The rows of other methods that have one to be compared with, their `increase` and `lead` less its own.
    Raises:
        ValueError: Several networks of this method for one.
    """
    keys, is_it = [*within, "dataset"], beside["upstream"] == upstream
    if beside[is_it].duplicated(keys).any():
        raise ValueError(f"each network needs one of {upstream} with the same {', '.join(keys)}")
    rows = beside[~is_it].merge(beside.loc[is_it, [*keys, "increase", "lead"]], on=keys, suffixes=("", "_of_it"))
    less = {name: rows[name] - rows[f"{name}_of_it"] for name in ("increase", "lead")}
    return rows.drop(columns=[f"{name}_of_it" for name in less]).assign(**less)


def seed_intervals(beside: pd.DataFrame, dense: pd.DataFrame) -> pd.DataFrame:
    """Gives each increase of published means the interval that the seeds of both networks leave.

    To first order, with the seeds of one network independent of the other's.

    Args:
        beside: `against_dense`, with the deviation between seeds, `std`, and their number, `n`.
        dense: The same of the dense network, one row a task: `dataset`, `std`, `n`.
    Returns:
        The rows with `mean`, the increase, between `low` and `high`, the 95 % interval; NaN where no network has two
        seeds.
    """
    of_task = dense.set_index("dataset").loc[beside["dataset"]].set_index(beside.index)
    of_dense = (1 + beside["increase"]) * of_task["std"] / of_task["n"] ** 0.5  # its seeds move the ratio too
    error = np.hypot(beside["std"] / beside["n"] ** 0.5, of_dense) / beside["difficulty"]
    low, high = moderated.interval(beside["increase"], error, beside["n"] + of_task["n"] - 2)
    return beside.assign(mean=beside["increase"], low=low, high=high)


def over_tasks(
    beside: pd.DataFrame, measure: str = "increase", *, by: Sequence[str] = ("upstream", "density")
) -> pd.DataFrame:
    """Averages over tasks, with the interval of a mean over other tasks of the same kind.

    Tasks are the units: the seeds of one are averaged first, so the interval says nothing of networks trained anew.

    Args:
        beside: `against_dense`, with two tasks or more for each network; those without a number are left out.
        measure: Its column.
        by: The columns that tell networks apart.
    Returns:
        One row a network: the columns `by`; `mean`, between `low` and `high`, the 95 % interval; `p`, two-sided, of a
        mean at least so far from 0 if that were the truth; and `n`, the tasks.
    """
    of_tasks = beside.groupby([*by, "dataset"], sort=False)[measure].mean().dropna()
    found = of_tasks.groupby(list(by), sort=False).agg(["mean", "sem", "size"]).reset_index()
    mean, error, n = (found[name].to_numpy() for name in ("mean", "sem", "size"))
    low, high = moderated.interval(mean, error, n - 1)
    p = moderated.p_value(mean, np.zeros_like(mean), error, n - 1)
    return found.drop(columns=["sem", "size"]).assign(low=low, high=high, p=p, n=n)


def trends(
    beside: pd.DataFrame,
    measure: str = "increase",
    *,
    along: str = "difficulty",
    by: Sequence[str] = ("upstream", "density"),
) -> pd.DataFrame:
    """Fits a line through the tasks of each network, by least squares.

    Args:
        beside: `against_dense`, with three tasks or more for each network; seeds of a task are averaged first, tasks
            without a number left out.
        measure: The column that the line explains.
        along: The column that it explains it by; where that is 1 on some tasks and 0 on the others, the slope is the
            difference of their means, and its interval that of a t test with one variance.
        by: The columns that tell networks apart.
    Returns:
        One row a network: the columns `by`; `mean`, the slope, between `low` and `high`, the 95 % interval; `p`,
        two-sided, of a slope at least so far from 0 if that were the truth; and `n`, the tasks.
    """
    of_tasks = beside.groupby([*by, "dataset"], sort=False, as_index=False)[[along, measure]].mean().dropna()
    rows = []
    for network, own in of_tasks.groupby(list(by), sort=False):
        line = linregress(own[along].astype(float), own[measure])
        ends = moderated.interval(line.slope, line.stderr, len(own) - 2)
        rows.append((*network, line.slope, *ends, line.pvalue, len(own)))
    return pd.DataFrame(rows, columns=[*by, "mean", "low", "high", "p", "n"])


def slopes(beside: pd.DataFrame) -> pd.DataFrame:
    """Tells how the error increase of each method goes with difficulty, and whether one task alone makes it so.

    Args:
        beside: `against_dense`, of four tasks or more.
    Returns:
        `trends` for ten points more of dense error, by `upstream`, twice: `tasks` is "all", or "without the easiest".
    """
    tens = beside.assign(tens=10 * beside["difficulty"])
    easiest = tens.loc[tens["difficulty"].idxmin(), "dataset"]
    parts = {"all": tens, "without the easiest": tens[tens["dataset"] != easiest]}
    found = [trends(rows, along="tens", by=["upstream"]).assign(tasks=tasks) for tasks, rows in parts.items()]
    return pd.concat(found, ignore_index=True)


def turned(linear: pd.DataFrame, full: pd.DataFrame, *, upstream: str, over: str) -> pd.DataFrame:
    """Averages over tasks how much a method's lead over another grows from linear to full transfer.

    Args:
        linear: `against_dense` of linear transfer, each network with its `density` and `seed`.
        full: The same of full transfer, on the same tasks, two or more.
        upstream: The method.
        over: The other one.
    Returns:
        One row, as of `over_tasks`.
    """
    leads = [against_method(beside, over, within=("density", "seed")) for beside in (linear, full)]
    before, after = (own[own["upstream"] == upstream].groupby("dataset", sort=False)["lead"].mean() for own in leads)
    return over_tasks((after - before).reset_index().assign(upstream=upstream), "lead", by=["upstream"])
