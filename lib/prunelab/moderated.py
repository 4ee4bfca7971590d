"""Moderated t: differences of few replicates, whose variances are shrunk towards that of their family.

Three replicates tell little of their own variance, but rows of one metric on one network and data have much the same.
So each variance is averaged with a prior, whose own value and weight, in degrees of freedom, are estimated from all.

Sources: Smyth 2004, "Linear models and empirical Bayes methods for assessing differential expression in microarray
experiments", Sec. 6.2, as `fitFDist` and `squeezeVar` of limma have it; Benjamini & Hochberg 1995 for `adjusted`.
Differs: the prior's weight is bounded, by half the number of rows too: of few rows the variances often look as if they
were all one, and the rate of false findings, simulated with 3 replicates, would rise to 3.6 % a side. The variance of
the prior stays what it was before its weight was bounded.
"""

import numpy as np
from scipy.optimize import brentq
from scipy.special import polygamma, psi
from scipy.stats import false_discovery_control, t

MAX_PRIOR_DF = 4.0
CONFIDENCE = 0.95


def prior(variances: np.ndarray, df: np.ndarray) -> tuple[float, float]:
    """Estimates what the variances of a family have in common.

    The logarithms of variances that are drawn from one scaled F distribution have a known mean and spread. Spread
    beyond what `df` explains is that of the true variances: the less there is of it, the more the prior weighs.

    Args:
        variances: One a row, (rows,).
        df: Their degrees of freedom, (rows,).
    Returns:
        The weight of the prior in degrees of freedom, from 0 for a single row to infinity, and its variance.
    """
    if len(variances) < 2:
        return 0.0, float(np.mean(variances))
    variances = np.maximum(variances, 1e-5 * (np.median(variances) or 1.0))
    centred = np.log(variances) - psi(df / 2) + np.log(df / 2)
    excess = centred.var(ddof=1) - polygamma(1, df / 2).mean()
    if excess <= 1e-12:  # none, to the digits there are
        return np.inf, float(np.mean(variances))
    # The trigamma function of the half weight is the excess; it lies between 1/x and 1/x + 1/x^2.
    half = brentq(lambda x: polygamma(1, x) - excess, 1 / excess, (1 + np.sqrt(1 + 4 * excess)) / (2 * excess))
    return 2 * half, float(np.exp(centred.mean() + psi(half) - np.log(half)))


def shrunk(variances: np.ndarray, df: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Averages each variance of a family with the family's prior; returns them and their degrees of freedom."""
    weight, common = prior(variances, df)
    weight = min(weight, MAX_PRIOR_DF, len(variances) / 2)
    return (weight * common + df * variances) / (weight + df), weight + df


def interval(mean: np.ndarray, error: np.ndarray, df: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns both ends of the 95 % interval of means with standard errors."""
    half_width = t.ppf((1 + CONFIDENCE) / 2, df) * error
    return mean - half_width, mean + half_width


def p_value(mean: np.ndarray, margin: np.ndarray, error: np.ndarray, df: np.ndarray) -> np.ndarray:
    """Returns the two-sided probability of means at least so far from their margins if these were the truth.

    It is 1 where the error is 0: replicates without any spread say nothing of what chance does.
    """
    return 2 * t.sf(np.divide(np.abs(mean - margin), error, out=np.zeros_like(error), where=error != 0), df)


def adjusted(p: np.ndarray) -> np.ndarray:
    """Returns the smallest rates of false discovery at which rows count as found (Benjamini-Hochberg)."""
    return false_discovery_control(p)
