"""The moderated t: against limma's numbers, and simulated where the truth is known."""

import numpy as np
import pytest

from prunelab import moderated

# squeezeVar of limma 3.54.1, to ten digits.
SPREAD = np.array([0.05, 4, 0.3, 9, 0.8, 0.02, 1.5, 0.6])
POSTERIOR = [0.2093904114, 2.4901636452, 0.3537431477, 5.3772183714, 0.6424486203, 0.1920680830, 1.0466362820]
POSTERIOR += [0.5269664313]


def test_prior_and_shrunk_variances_are_limmas():
    df = np.full(8, 2.0)
    assert moderated.prior(SPREAD, df) == pytest.approx((1.463737597, 0.4271759103), rel=1e-9)
    shrunk, total = moderated.shrunk(SPREAD, df)
    assert shrunk == pytest.approx(POSTERIOR, rel=1e-9) and total == pytest.approx(2 + 1.463737597, rel=1e-9)


def test_rows_may_have_different_numbers_of_replicates():
    df = np.array([2.0, 2, 4, 4, 2, 4, 2, 2])
    assert moderated.prior(SPREAD, df) == pytest.approx((1.313723617, 0.3418795082), rel=1e-9)
    assert moderated.shrunk(SPREAD, df)[0][3] == pytest.approx(6.8594337624, rel=1e-9)


def test_variances_that_could_be_one_give_a_prior_without_bound_and_their_mean():
    alike = np.array([0.4, 1.1, 0.7, 3.2, 0.25, 0.9, 1.6, 0.55])
    assert moderated.prior(alike, np.full(8, 2.0)) == (np.inf, pytest.approx(1.0875))


def test_a_variance_of_zero_counts_as_a_very_small_one():
    found = moderated.prior(np.array([0.0, 1, 2, 3]), np.full(4, 2.0))
    assert found == pytest.approx((0.3562893519, 0.002587500615), rel=1e-9)


@pytest.mark.parametrize("n_rows, weight", [(2, 1), (4, 2), (8, 4), (20, 4)])
def test_the_prior_weighs_four_degrees_of_freedom_at_most_and_less_among_few_rows(n_rows, weight):
    alike = np.linspace(0.9, 1.1, n_rows)
    shrunk, df = moderated.shrunk(alike, np.full(n_rows, 2.0))
    assert df == pytest.approx(2 + weight) and shrunk == pytest.approx((2 * alike + weight) / (2 + weight))


def test_a_row_alone_is_tested_by_its_own_variance():
    shrunk, df = moderated.shrunk(np.array([0.0004]), np.array([2.0]))
    assert (shrunk, df) == (np.array([0.0004]), np.array([2.0]))
    # A table of Student's t with 2 degrees of freedom: 4.303 cuts off 2.5 % a side.
    low, high = moderated.interval(np.array([0.03]), np.array([0.01]), df)
    assert (low, high) == (pytest.approx(0.03 - 0.04303, abs=1e-5), pytest.approx(0.03 + 0.04303, abs=1e-5))
    assert moderated.p_value(np.array([0.05303]), 0.01, np.array([0.01]), df) == pytest.approx(0.05, abs=1e-4)


def test_false_discoveries_are_adjusted_as_worked_out_by_hand():
    # p times m over rank, then the smallest from there on: 0.04 / 3 * 4 = 0.0533, 0.03 / 2 * 4 = 0.06 -> 0.0533.
    p = np.array([0.01, 0.04, 0.03, 1.0])
    assert moderated.adjusted(p) == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 1.0])


@pytest.mark.parametrize("n", [3, 5])
@pytest.mark.parametrize("n_rows", [4, 8, 20])
@pytest.mark.parametrize("d0", [2, np.inf])
def test_simulated_false_findings_and_coverage(n, n_rows, d0):
    """At a difference of just the margin; true variances are equal, or spread as an inverse chi-square of d0."""
    rng = np.random.default_rng(0)
    beyond, n_families = np.zeros(2), 12_000 // n_rows
    for _ in range(n_families):
        variances = np.ones(n_rows) if d0 == np.inf else d0 / rng.chisquare(d0, n_rows)
        seeds = rng.normal(size=(n_rows, n)) * np.sqrt(variances)[:, None]
        shrunk, df = moderated.shrunk(seeds.var(axis=1, ddof=1), np.full(n_rows, n - 1.0))
        low, high = moderated.interval(seeds.mean(axis=1), np.sqrt(shrunk / n), df)
        beyond += (low > 0).sum(), (high < 0).sum()
    rates = beyond / (n_families * n_rows)
    assert (rates <= 0.035).all() and 1 - rates.sum() >= 0.93
