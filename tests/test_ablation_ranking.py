"""The ranking of layers, its ties and its stability, against numpy, scipy and the paired differences themselves."""

import math
from dataclasses import asdict, fields

import numpy as np
import pytest
from scipy.stats import kendalltau

from lorabench.ablation.ranking import rank_layers, stability
from lorabench.ablation.statistics import paired_difference, replicates
from lorabench.errors import LorabenchError
from lorabench.findings import Ranked, Stability


def tables_of(rates, seeds=4, adapters=150, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random((len(rates), seeds, adapters)) < np.array(rates)[:, None, None]


def test_ranking_reads_as_the_findings_say():
    assert [field.name for field in fields(Ranked)] == [
        "layer", "rank", "accuracy", "low", "high", "std", "val_accuracy", "test_accuracy", "per_seed", "tied_to",
        "p", "holm",
    ]  # fmt: skip


@pytest.mark.parametrize("rank_on", ["val", "test"])
def test_ranking_of_layers_that_are_far_apart(rank_on):
    val, test = tables_of([0.1, 0.9, 0.5]), tables_of([0.5, 0.1, 0.9], adapters=90, seed=1)
    found = rank_layers(["a", "b", "c"], val, test, rank_on, draws=500)
    ranked = val if rank_on == "val" else test
    assert [row.layer for row in found] == (["b", "c", "a"] if rank_on == "val" else ["c", "a", "b"])
    assert [(row.rank, row.tied_to) for row in found] == [(1, 1), (2, 2), (3, 3)]
    for row in found:
        i = "abc".index(row.layer)
        assert row.per_seed == [float(np.mean(members)) for members in ranked[i]]
        assert row.accuracy == pytest.approx(np.mean(row.per_seed))
        assert row.std == pytest.approx(np.std(row.per_seed, ddof=1))
        assert (row.val_accuracy, row.test_accuracy) == (val[i].mean(), test[i].mean())
        assert row.low < row.accuracy < row.high
        expected = np.percentile(replicates(ranked[i : i + 1], draws=500), [2.5, 97.5])
        np.testing.assert_allclose([row.low, row.high], expected)


def test_ties_stop_before_the_first_layer_whose_difference_has_no_zero():
    rates = [0.3, 0.62, 0.6, 0.45, 0.58, 0.3, 0.5, 0.52]
    val, groups = tables_of(rates, seed=3), np.arange(150) // 2
    found = rank_layers([str(i) for i in range(8)], val, val, "val", groups, groups)
    for row in found:
        expected = row.rank
        for other in found[row.rank :]:
            gain = paired_difference(val[int(row.layer)], val[int(other.layer)], groups)
            if gain.low > 0 or gain.high < 0:
                break
            expected = other.rank
        assert row.tied_to == expected
    assert found[0].rank < found[0].tied_to < 8  # neither told from all nor from none
    assert found[-1].tied_to == 8


def test_a_tie_does_not_reach_past_a_layer_that_is_told_apart():
    adapter = np.arange(100)
    best = adapter < 70
    lesser = adapter < 60  # wrong wherever the best is, and on ten more: a small lead without noise
    other = (adapter >= 30) & (adapter < 88)  # worse still, but right and wrong elsewhere: a lead within noise
    val = np.stack([best, lesser, other])[:, None]
    assert paired_difference(val[0], val[1]).low > 0
    assert paired_difference(val[0], val[2]).low < 0
    assert [row.tied_to for row in rank_layers(["best", "lesser", "other"], val, val, "val")] == [1, 3, 3]


@pytest.mark.parametrize("rank_on", ["val", "test"])
def test_copies_of_an_adapter_in_its_group_leave_the_ranking_as_it_was(rank_on):
    val, test = tables_of([0.4, 0.45, 0.5], adapters=60), tables_of([0.5, 0.45, 0.4], adapters=50, seed=1)
    once = rank_layers(list("abc"), val, test, rank_on, draws=300)
    val_groups, test_groups = np.arange(60).repeat(4), np.arange(50).repeat(4)
    copies = rank_layers(list("abc"), val.repeat(4, 2), test.repeat(4, 2), rank_on, val_groups, test_groups, draws=300)
    for row, copy in zip(once, copies, strict=True):
        assert (row.layer, row.tied_to) == (copy.layer, copy.tied_to)
        assert (copy.low, copy.high, copy.std) == pytest.approx((row.low, row.high, row.std))


def test_as_many_right_answers_are_a_tie_in_the_zoos_order_however_seeds_share_them():
    right = np.array([[1, 2, 4], [4, 1, 2], [2, 4, 1], [6, 6, 6]])  # of 10: 7 in all for the first three
    val = np.arange(10) < right[:, :, None]
    found = rank_layers(["z", "y", "x", "best"], val, val, "val", draws=100)
    assert [row.layer for row in found] == ["best", "z", "y", "x"]
    assert len({row.accuracy for row in found[1:]}) == 1
    assert [row.tied_to for row in found[1:]] == [4, 4, 4]


def test_equal_layers_are_tied_to_the_last():
    val = np.repeat(tables_of([0.4]), 5, axis=0)
    assert [row.tied_to for row in rank_layers(list("abcde"), val, val, "val")] == [5] * 5


def test_many_ties_keep_the_zoos_order():
    right = np.random.default_rng(0).integers(0, 3, 200)  # so many that an unstable sort would mix them
    val = np.repeat((np.arange(4) < right[:, None])[:, None], 2, axis=1)
    found = rank_layers([str(i) for i in range(200)], val, val, "val", draws=20)
    assert [int(row.layer) for row in found] == sorted(range(200), key=lambda i: -right[i])


def test_ranking_of_one_seed_and_one_adapter():
    val = np.array([[[False]], [[True]]])
    found = rank_layers(["a", "b"], val, tables_of([0.5, 0.5], seeds=1), "val")
    assert [(row.layer, row.accuracy, row.tied_to) for row in found] == [("b", 1, 2), ("a", 0, 2)]
    assert all(math.isnan(value) for row in found for value in (row.low, row.high, row.std))
    assert stability(found) == Stability(None, None, 1)


def test_ranking_is_the_same_every_time():
    val = tables_of([0.5] * 6)
    once, again = (rank_layers(list("abcdef"), val, val, "val", draws=200) for _ in range(2))
    assert [asdict(row) for row in once] == [asdict(row) for row in again]


def test_another_split_to_rank_on_is_refused():
    val = tables_of([0.5])
    with pytest.raises(LorabenchError, match=r"^ablation\.rank_on=train: allowed are val and test$"):
        rank_layers(["a"], val, val, "train")


def test_ranking_of_tables_that_do_not_match():
    val = tables_of([0.5, 0.6])
    for layers, test in ((["a"], val), (["a", "b"], val[:, :, :0]), (["a", "b"], val[:1])):
        with pytest.raises(ValueError, match=f"{len(layers)} layers; val_correct is"):
            rank_layers(layers, val, test, "val")


def test_stability_against_scipy_over_the_pairs_of_seeds():
    val = tables_of(np.linspace(0.3, 0.6, 12), seeds=4, adapters=40)
    found = stability(rank_layers([str(i) for i in range(12)], val, val, "val", draws=50))
    pairs = [kendalltau(val[:, a].mean(1), val[:, b].mean(1)).statistic for a in range(4) for b in range(a)]
    assert found.kendall_tau == pytest.approx(np.mean(pairs))
    assert found.lowest == pytest.approx(np.min(pairs))
    assert found.seeds == 4
    assert found.lowest < found.kendall_tau < 1


def test_stability_of_a_single_layer_and_of_seeds_that_rate_all_the_same():
    none = Stability(None, None, 4)
    one = tables_of([0.5])
    assert stability(rank_layers(["a"], one, one, "val", draws=50)) == none
    flat = np.ones((3, 4, 5), bool)
    assert stability(rank_layers(list("abc"), flat, flat, "val", draws=50)) == none
    flat[:2, :2, 0] = False  # two of the four seeds have an order, the same one
    assert stability(rank_layers(list("abc"), flat, flat, "val", draws=50)) == Stability(1.0, 1.0, 4)
