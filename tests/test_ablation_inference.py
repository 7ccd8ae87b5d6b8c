"""The corrected t, Holm, equivalence and permutation p against scipy, formulas written out, and simulated truth."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lorabench.ablation.inference import CorrectedT, corrected_t, holm, permutation_p
from lorabench.ablation.statistics import paired_difference, replicates
from tests.bench.coverage import coverage


def some_differences(splits=5, members=3, seed=0):
    return np.random.default_rng(seed).normal(0.02, 0.03, (splits, members))


def test_without_a_correction_it_is_the_t_test_of_the_splits_means():
    differences = some_differences()
    expected = stats.ttest_1samp(differences.mean(1), 0)
    found = corrected_t(differences, 1e-300)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.interval(0.9) == pytest.approx(tuple(expected.confidence_interval(0.9)))


def test_the_correction_is_that_of_the_paper():
    differences, ratio = some_differences(splits=10, members=1), 0.2 / 0.7
    found = corrected_t(differences, ratio)
    statistic = differences.mean() / math.sqrt((1 / 10 + ratio) * differences.var(ddof=1))
    assert found.freedom == 9
    assert found.p == pytest.approx(2 * stats.t.sf(abs(statistic), 9))
    assert found.mean == pytest.approx(differences.mean())


def test_a_member_that_failed_is_left_out_of_its_split():
    differences = some_differences()
    differences[1, 2] = np.nan
    by_hand = differences.copy()
    by_hand[1, 2] = differences[1, :2].mean()
    found, expected = corrected_t(differences, 0.3), corrected_t(by_hand, 0.3)
    assert (found.mean, found.error) == pytest.approx((expected.mean, expected.error))


def test_one_split_has_no_interval_and_equal_splits_no_width():
    alone = corrected_t(some_differences(splits=1), 0.3)
    assert [math.isnan(value) for value in (*alone.interval(), alone.p, alone.equivalence(0.1))] == [True] * 4
    same = corrected_t(np.full((3, 1), 0.1), 0.3)
    assert same.interval() == pytest.approx((0.1, 0.1))
    assert (same.p, same.equivalence(0.2), same.equivalence(0.05)) == (0, 0, 1)
    assert corrected_t(np.zeros((3, 2)), 0.3).p == 1


@pytest.mark.parametrize(
    ("differences", "ratio", "message"),
    [
        (np.empty((0, 2)), 0.3, "every split needs a member"),
        (np.array([[0.1], [np.nan]]), 0.3, "every split needs a member"),
        (np.zeros((2, 2)), 0.0, "a ratio above 0"),
    ],
)
def test_what_cannot_be_tested_is_refused(differences, ratio, message):
    with pytest.raises(ValueError, match=message):
        corrected_t(differences, ratio)


@settings(deadline=None, max_examples=60)
@given(st.floats(-0.1, 0.1), st.floats(0.001, 0.1), st.integers(1, 9), st.floats(0.01, 0.2))
def test_equivalence_is_two_one_sided_tests_and_the_interval_within_the_margin(mean, error, freedom, margin):
    found = CorrectedT(mean, error, freedom)
    below = stats.t.sf((mean + margin) / error, freedom)
    above = stats.t.cdf((mean - margin) / error, freedom)
    assert found.equivalence(margin) == pytest.approx(max(below, above))
    low, high = found.interval(0.9)
    if abs(found.equivalence(margin) - 0.05) > 1e-9:
        assert (found.equivalence(margin) < 0.05) == (-margin < low and high < margin)


@pytest.mark.parametrize("margin", [0.0, -0.1, math.nan])
def test_a_margin_of_nothing_is_refused(margin):
    with pytest.raises(ValueError, match="margin="):
        CorrectedT(0.0, 0.1, 4).equivalence(margin)


def _closed(p: list[float]) -> list[float]:
    """Holm as a closed test: the largest Bonferroni p of all subsets that hold a hypothesis."""
    n = range(len(p))
    subsets = [s for size in n for s in itertools.combinations(n, size + 1)]
    return [max(min(1.0, len(s) * min(p[j] for j in s)) for s in subsets if i in s) for i in n]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(0, 1), max_size=6))
def test_holm_is_the_closed_bonferroni_test(p):
    assert holm(p) == pytest.approx(_closed(p))


def test_holm_leaves_out_what_is_not_known():
    assert holm([]) == []
    found = holm([math.nan, 0.01, 0.2])
    assert math.isnan(found[0])
    assert found[1:] == pytest.approx([0.02, 0.2])


def test_a_permutation_p_is_uniform_under_the_null():
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(4000, 20))
    found = np.array([permutation_p(float(one[0]), one[1:].tolist()) for one in draws])
    assert found.min() == pytest.approx(1 / 20)
    for level in (0.05, 0.2, 0.5):
        assert (found <= level + 1e-9).mean() == pytest.approx(level, abs=4 * math.sqrt(level * (1 - level) / 4000))
    assert permutation_p(0.1, [0.1 + 1e-15, 0.0]) == pytest.approx(2 / 3)
    assert math.isnan(permutation_p(0.1, []))


# ---- the bootstrap over splits that test other adapters


def test_cells_that_are_not_tested_count_nowhere():
    rng = np.random.default_rng(0)
    correct, tested = rng.random((2, 3, 30)) < 0.5, rng.random((3, 30)) < 0.4
    groups = np.arange(30) // 2
    found = replicates(correct, groups, draws=50, tested=tested)
    assert np.array_equal(found, replicates(correct | ~tested, groups, draws=50, tested=tested), equal_nan=True)
    assert np.array_equal(replicates(correct, groups, draws=50), replicates(correct, groups, 50, 0, tested | True))
    gain = paired_difference(correct[0], correct[1], groups, tested=tested)
    assert gain.difference == pytest.approx((correct[0] * 1.0 - correct[1])[tested].mean())
    by_hand = found[:, 0] - found[:, 1]
    assert np.nanmean(by_hand) == pytest.approx(gain.difference, abs=0.05)


def test_coverage_of_a_small_simulation():
    found = coverage(splits=5, members=2, signal=0.6, trials=40, seed=1)
    assert found["corrected_t"] > 0.8
    assert found["bootstrap"] > 0.6
    assert math.isnan(coverage(splits=1, members=3, signal=0.0, trials=2, seed=1)["corrected_t"])
