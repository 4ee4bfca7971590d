"""Means over seeds, of runs that differ in nothing else."""

import pandas as pd


def with_means(frame: pd.DataFrame, metric: str, *, points: list[str]) -> pd.DataFrame:
    """Returns the runs, each with the mean over the seeds at its point.

    Args:
        frame: `records.frame`, with one run a seed at each point.
        metric: Its column, which becomes numeric.
        points: The columns that make a point.
    Raises:
        ValueError: Several runs of one seed at a point, or a run without a value in one of `points`.
    """
    for column in points:
        if n_missing := frame[column].isna().sum():
            raise ValueError(f"{column} is missing in {n_missing} of {len(frame)} runs; leave those out")
    check_one_run_a_seed(frame, points)
    frame = frame.assign(**{metric: pd.to_numeric(frame[metric])})
    means = frame.groupby(points)[metric].transform(lambda values: values.mean(skipna=False))
    return frame.assign(mean=means)


def check_one_run_a_seed(frame: pd.DataFrame, points: list[str]) -> None:
    """Raises ValueError, naming the first point at which a seed has several runs."""
    repeated = frame[frame.duplicated([*points, "seed"])]
    if len(repeated):
        at = ", ".join(f"{column} {repeated.iloc[0][column]}" for column in [*points, "seed"])
        raise ValueError(f"several runs at {at}: their mean would mix them; hand in fewer, or tell them apart by=...")


def n_seeds(runs: pd.DataFrame, points: str | list[str]) -> str:
    """Returns the seeds a point, as legends write them: "3", or "2 to 3"."""
    n = runs.groupby(points)["seed"].nunique()
    return f"{n.min()}" if n.min() == n.max() else f"{n.min()} to {n.max()}"
