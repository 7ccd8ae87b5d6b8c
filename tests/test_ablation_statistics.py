"""Bootstrap and τ against explicit resampling, exact moments, scipy and simulated truth."""

import doctest
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import bootstrap as scipy_bootstrap
from scipy.stats import kendalltau

from lorabench.ablation import statistics
from lorabench.ablation.statistics import interval, kendall_tau, paired_difference, replicates


def some_tables(arms=3, seeds=4, adapters=30, seed=0):
    """Right and wrong of arms whose seeds and adapters differ in luck and difficulty."""
    rng = np.random.default_rng(seed)
    chance = 0.55 + 0.05 * rng.normal(size=(1, seeds, 1)) + 0.2 * rng.normal(size=(1, 1, adapters))
    return rng.random((arms, seeds, adapters)) < chance + 0.1 * np.arange(arms)[:, None, None]


def by_index(correct, groups, seed_counts, group_counts):
    """One replicate, by writing the resample out row by row and column by column."""
    codes = np.unique(groups)
    rows = [s for s, count in enumerate(seed_counts) for _ in range(count)]
    columns = [
        i
        for code, count in zip(codes, group_counts, strict=True)
        for _ in range(count)
        for i in np.flatnonzero(groups == code)
    ]
    return [float(np.mean([arm[s][i] for s in rows for i in columns])) for arm in correct]


def width(low, high):
    return (high - low).item()


# ---- replicates


@pytest.mark.parametrize("grouped", [False, True])
def test_every_replicate_is_the_mean_of_its_resample_written_out(grouped):
    correct = some_tables()
    groups = np.random.default_rng(1).choice([7, 2, 40, 5, 11], 30) if grouped else np.arange(30)
    rng = np.random.default_rng(9)
    seed_counts = statistics._counts(rng, 40, 4)
    group_counts = statistics._counts(rng, 40, len(np.unique(groups)))
    found = replicates(correct, groups if grouped else None, draws=40, seed=9)
    expected = [by_index(correct, groups, *counts) for counts in zip(seed_counts, group_counts, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_the_distribution_is_that_of_drawing_seeds_and_groups_by_hand():
    correct, groups = some_tables(arms=2), np.repeat(np.arange(10), 3)
    rng = np.random.default_rng(5)
    by_hand = []
    for _ in range(4000):
        rows, picked = rng.choice(4, 4), rng.choice(10, 10)
        columns = np.concatenate([np.flatnonzero(groups == g) for g in picked])
        by_hand.append(correct[:, rows][:, :, columns].mean((1, 2)))
    expected, found = np.array(by_hand), replicates(correct, groups, draws=4000)
    levels = [0.025, 0.25, 0.5, 0.75, 0.975]
    np.testing.assert_allclose(np.quantile(found, levels, axis=0), np.quantile(expected, levels, axis=0), atol=0.015)
    assert np.corrcoef(found.T)[0, 1] == pytest.approx(np.corrcoef(expected.T)[0, 1], abs=0.05)  # columns are paired


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_variance_is_the_exact_one_of_crossed_multinomial_weights(seeds):
    adapters, draws = 12, 40_000
    table = some_tables(arms=1, seeds=seeds, adapters=adapters)[0].astype(float)
    # cov of a mean under weights: E[w wᵀ] = 11ᵀ + I − 11ᵀ/n for n multinomial draws from n
    seed_moment = np.ones((seeds, seeds)) + np.eye(seeds) - 1 / seeds
    adapter_moment = np.ones((adapters, adapters)) + np.eye(adapters) - 1 / adapters
    second = np.einsum("si,st,ij,tj->", table, seed_moment, adapter_moment, table) / table.size**2
    exact = second - table.mean() ** 2
    found = replicates(table[None], draws=draws)[:, 0]
    assert found.var() == pytest.approx(exact, rel=5 * math.sqrt(2 / draws))
    assert found.mean() == pytest.approx(table.mean(), abs=5 * math.sqrt(exact / draws))


def test_blocks_of_arms_and_draws_change_nothing(monkeypatch):
    correct, groups = some_tables(arms=5), np.arange(30) // 4
    whole = replicates(correct, groups, draws=101)
    for numbers in (1, 7 * 120, 10_000):
        monkeypatch.setattr(statistics, "_NUMBERS", numbers)
        assert np.array_equal(replicates(correct, groups, draws=101), whole)


def test_a_table_of_averaged_draws_gives_the_average_of_their_replicates():
    draws = some_tables(arms=3)
    pooled = replicates(draws.mean(0, keepdims=True), draws=50)
    np.testing.assert_allclose(pooled[:, 0], replicates(draws, draws=50).mean(1), rtol=1e-12)
    single = draws.mean(0, keepdims=True).astype(np.float32)
    np.testing.assert_allclose(replicates(single, draws=50), pooled, rtol=1e-6)


def test_calls_of_one_seed_are_paired_and_another_seed_differs():
    correct = some_tables(arms=2)
    both = replicates(correct, draws=60)
    assert np.array_equal(both[:, :1], replicates(correct[:1], draws=60))
    assert not np.array_equal(both, replicates(correct, draws=60, seed=1))


@settings(deadline=None, max_examples=40)
@given(hnp.arrays(bool, hnp.array_shapes(min_dims=3, max_dims=3, max_side=6)), st.data())
def test_group_codes_are_names_and_order_is_none(correct, data):
    adapters = correct.shape[2]
    groups = data.draw(hnp.arrays(np.int64, adapters, elements=st.integers(0, 3)))
    order = np.array(data.draw(st.permutations(range(adapters))))
    found = replicates(correct, groups, draws=20)
    assert np.array_equal(replicates(correct, 10 * groups - 7, draws=20), found, equal_nan=True)
    assert np.array_equal(replicates(correct[:, :, order], groups[order], draws=20), found, equal_nan=True)
    known = found[~np.isnan(found)]
    assert ((known >= 0) & (known <= 1)).all()
    np.testing.assert_allclose(replicates(~correct, groups, draws=20), 1 - found, atol=1e-14)


def test_adapters_in_another_order_change_the_interval_by_chance_alone():
    correct = some_tables(arms=1, adapters=80)
    order = np.random.default_rng(3).permutation(80)
    one, other = interval(replicates(correct, draws=8000)), interval(replicates(correct[:, :, order], draws=8000))
    np.testing.assert_allclose(one, other, atol=0.012)
    assert not np.array_equal(one, other)


# ---- groups


def test_copies_within_a_group_say_nothing_new_and_pass_for_news_without_groups():
    correct = some_tables(arms=1, adapters=40)
    copies, groups = np.repeat(correct, 5, axis=2), np.repeat(np.arange(40), 5)
    once = width(*interval(replicates(correct)))
    grouped = width(*interval(replicates(copies, groups)))
    independent = width(*interval(replicates(copies)))
    assert grouped == pytest.approx(once, rel=1e-12)
    assert independent < 0.75 * once


def test_groups_of_unlike_sizes_weigh_by_their_adapters():
    correct = np.array([[[True, False, False, False]]])
    found = replicates(correct, np.array([0, 1, 1, 1]), draws=4000)[:, 0]
    values, counts = np.unique(found, return_counts=True)
    np.testing.assert_array_equal(values, [0, 0.25, 1])  # both times the large group, each once, both times the small
    np.testing.assert_allclose(counts / 4000, [0.25, 0.5, 0.25], atol=0.04)


# ---- interval


def test_interval_is_the_percentiles_along_the_draws():
    values = np.random.default_rng(0).normal(size=(999, 2, 3))
    low, high = interval(values, level=0.9)
    np.testing.assert_allclose(low, np.percentile(values, 5, axis=0))
    np.testing.assert_allclose(high, np.percentile(values, 95, axis=0))
    assert [end.item() for end in interval(np.arange(101.0))] == pytest.approx([2.5, 97.5])


def test_interval_of_one_seed_is_scipys_paired_percentile_bootstrap():
    first, second = some_tables(arms=2, seeds=1, adapters=60).astype(float)
    expected = scipy_bootstrap(
        (first[0], second[0]), lambda a, b, axis: (a - b).mean(axis), paired=True, method="percentile",
        n_resamples=9999, rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    found = paired_difference(first, second, draws=9999)
    np.testing.assert_allclose([found.low, found.high], expected, atol=0.01)


def simulate(rng, seeds, adapters, lead=0.0):
    """Two arms whose expected accuracies are 0.55 + lead and 0.55, over random seeds and random adapters."""
    luck = rng.uniform(-0.08, 0.08, (2, seeds, 1))
    difficulty = rng.uniform(-0.3, 0.3, (1, 1, adapters))
    own = rng.uniform(-0.05, 0.05, (2, 1, adapters))
    chance = 0.55 + np.array([lead, 0])[:, None, None] + luck + difficulty + own
    return rng.random((2, seeds, adapters)) < chance


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(11)
    covered, widths, means = [], [], []
    for repetition in range(150):
        correct = simulate(rng, 8, 80, lead=0.05)
        low, high = interval(replicates(correct[1:], draws=400, seed=repetition))
        gain = paired_difference(*correct, draws=400, seed=repetition)
        covered.append((low[0] <= 0.55 <= high[0], gain.low <= 0.05 <= gain.high))
        widths.append((high[0] - low[0], gain.high - gain.low))
        means.append((correct[1].mean(), gain.difference))
    assert (np.mean(covered, axis=0) >= 0.88).all(), np.mean(covered, axis=0)
    # coverage of 100 % would be easy with wide intervals: hold them to the true spread of the means
    ratio = np.mean(widths, axis=0) / (2 * 1.96 * np.std(means, axis=0))
    assert ((ratio > 0.85) & (ratio < 1.6)).all(), ratio


def test_p_values_of_equal_arms_are_seldom_small():
    rng = np.random.default_rng(12)
    p = [paired_difference(*simulate(rng, 8, 60), draws=200, seed=i).p for i in range(150)]
    assert np.mean(np.array(p) < 0.05) < 0.1
    assert np.mean(np.array(p) < 0.5) > 0.2  # yet they are not all near 1


# ---- paired differences


def test_difference_against_the_replicates_of_both_arms():
    first, second = some_tables(arms=2, seed=4)
    found = paired_difference(first, second, draws=999)
    values = replicates(np.stack([first, second]), draws=999)
    gain = values[:, 0] - values[:, 1]
    assert found.difference == pytest.approx(first.mean() - second.mean(), abs=1e-15)
    np.testing.assert_allclose([found.low, found.high], np.percentile(gain, [2.5, 97.5]), atol=1e-14)
    exact = np.round(gain * first.size).astype(int)  # every replicate has as many cells as the table
    assert found.p == min(1, 2 * min((exact <= 0).sum() + 1, (exact >= 0).sum() + 1) / 1000)
    assert (found.seeds, found.adapters) == first.shape


def test_equal_arms_differ_by_exactly_zero():
    thirds = some_tables(arms=3).mean(0)
    for table in (some_tables(arms=1)[0], thirds):
        found = paired_difference(table, table.copy())
        assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_a_clear_lead_has_the_smallest_p_and_a_small_one_has_not():
    rng = np.random.default_rng(2)
    second = rng.random((5, 200)) < 0.3
    clear = paired_difference(second | (rng.random((5, 200)) < 0.4), second)
    assert clear.p == 2 / 2001
    assert 0 < clear.low < clear.difference < clear.high
    unclear = paired_difference(rng.random((5, 200)) < 0.3, second)
    assert unclear.low < 0 < unclear.high
    assert unclear.p > 0.1


def test_pairing_takes_out_what_the_arms_share():
    rng = np.random.default_rng(6)
    second = np.broadcast_to(rng.random((1, 200)) < 0.5, (6, 200))
    first = second | (rng.random((6, 200)) < 0.1)  # never worse, adapter by adapter
    paired = paired_difference(first, second)
    apart = paired_difference(first, second[:, rng.permutation(200)])
    assert apart.difference == pytest.approx(paired.difference)
    assert paired.high - paired.low < 0.5 * (apart.high - apart.low)


def test_a_group_that_carries_the_whole_lead_is_one_observation():
    second = np.zeros((3, 60), bool)
    first, groups = second.copy(), np.repeat(np.arange(6), 10)
    first[:, :10] = True
    assert paired_difference(first, second).p < 0.01
    assert paired_difference(first, second, groups).p > 0.3


@settings(deadline=None, max_examples=40)
@given(hnp.arrays(bool, st.tuples(st.just(2), st.integers(1, 4), st.integers(2, 12))))
def test_difference_changes_sign_with_its_arms(tables):
    first, second = tables
    there, back = paired_difference(first, second, draws=99), paired_difference(second, first, draws=99)
    assert there.difference == -back.difference
    np.testing.assert_allclose([there.low, there.high], [-back.high, -back.low], atol=1e-15)
    assert there.p == back.p
    assert 0.02 <= there.p <= 1
    assert there.low <= there.high


def test_one_seed_and_one_group_give_no_interval():
    table = np.array([[True, False]])
    found = paired_difference(table, ~table[:, ::-1], np.array([3, 3]))
    assert found.difference == 0
    assert all(math.isnan(value) for value in (found.low, found.high, found.p))
    one = paired_difference(np.array([[True]]), np.array([[False]]))
    assert one.difference == 1
    assert math.isnan(one.p)


def test_a_factor_of_one_level_is_not_resampled():
    seeds = some_tables(arms=1, seeds=6, adapters=9)[0]
    one_group = replicates(seeds[None], np.zeros(9, int), draws=300)[:, 0]
    per_seed = replicates(seeds.mean(1)[None, :, None], draws=300)[:, 0]
    np.testing.assert_allclose(one_group, per_seed, rtol=1e-12)
    one_seed = replicates(seeds[None, :1], draws=300)[:, 0]
    assert set(np.round(one_seed * 9, 9)) <= set(range(10))
    assert one_seed.std() > 0


@pytest.mark.parametrize("right", [True, False])
def test_all_right_and_all_wrong_have_no_spread(right):
    table = np.full((3, 20), right)
    assert (replicates(table[None], draws=50) == right).all()
    found = paired_difference(table, np.full((3, 20), not right), draws=999)
    assert {found.difference, found.low, found.high} == {1.0 if right else -1.0}
    assert found.p == 0.002


@pytest.mark.parametrize(
    ("first", "second", "groups", "message"),
    [
        (np.ones((2, 3), bool), np.ones((3, 3), bool), None, r"first is \(2, 3\), second is \(3, 3\)"),
        (np.ones((2, 3), bool), np.ones((2, 4), bool), None, r"first is \(2, 3\), second is \(2, 4\)"),
        (np.ones((2, 0), bool), np.ones((2, 0), bool), None, "at least one arm, seed and adapter"),
        (np.ones((0, 2), bool), np.ones((0, 2), bool), None, "at least one arm, seed and adapter"),
        (np.ones((2, 3), bool), np.ones((2, 3), bool), np.arange(2), "2 codes for 3 adapters"),
        (np.full((2, 3), np.nan), np.ones((2, 3), bool), None, "not finite"),
    ],
)
def test_tables_that_cannot_be_compared(first, second, groups, message):
    with pytest.raises(ValueError, match=message):
        paired_difference(first, second, groups)


# ---- Kendall's τ


def scipy_tau(scores):
    return np.array([[kendalltau(a, b).statistic for b in scores] for a in scores])


@settings(deadline=None, max_examples=60)
@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(2, 15)), elements=st.integers(0, 5).map(float)))
def test_tau_is_scipys_with_ties_and_constant_rows(scores):
    np.testing.assert_allclose(kendall_tau(scores), scipy_tau(scores), atol=1e-12)


def test_tau_of_many_units_of_float32_and_of_nan():
    scores = np.random.default_rng(0).random((5, 128))
    np.testing.assert_allclose(kendall_tau(scores), scipy_tau(scores), atol=1e-12)
    rough = scores.round(1).astype(np.float32)
    np.testing.assert_allclose(kendall_tau(rough), scipy_tau(rough), atol=1e-12)
    scores[1, 3] = np.nan
    found = kendall_tau(scores)
    assert np.isnan(found[1]).all()
    assert np.isnan(found[:, 1]).all()
    assert np.isfinite(np.delete(np.delete(found, 1, 0), 1, 1)).all()


@pytest.mark.parametrize("shape", [(3, 1), (1, 1), (2, 0)])
def test_tau_of_less_than_two_units_is_undefined(shape):
    assert np.isnan(kendall_tau(np.zeros(shape))).all()


def test_examples_of_the_docstrings():
    found = doctest.testmod(statistics)
    assert found.attempted >= 4
    assert found.failed == 0
