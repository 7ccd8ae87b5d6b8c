"""The ranking by folds without test adapters, what goes with depth, and the verdict that follows from the numbers."""

import functools
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from lorabench.ablation.compare import Compare
from lorabench.ablation.crossed import Crossed, crossed
from lorabench.ablation.depth import depth_correlations, spearman
from lorabench.ablation.inference import CorrectedT
from lorabench.ablation.layers import Layers
from lorabench.ablation.verdict import as_t, verdict
from lorabench.errors import LorabenchError
from lorabench.evaluation import Arm
from lorabench.report import table_text
from lorabench.representations.norms import Norms
from lorabench.representations.stats import Stats
from lorabench.zoo.splits import fold_splits, split_zoo
from tests.ablation_findings import an_ablation, as_json, with_changes
from tests.small_study import SHARES, SMALL, evaluator_of, study_of
from tests.synthetic_zoo import planted_zoo

QUICK = functools.partial(SMALL, max_epochs=8)
PLANTED = {0: [0.0, 0.5, 1.0], 5: [0.6, 0.0, 0.3]}


def splits_of(zoo, cache, count, each=1):
    first = evaluator_of(zoo, cache, factory=QUICK)
    return [
        replace(first, split=split_zoo(zoo.labels, **SHARES, seed=i), seeds=tuple(range(each * i, each * (i + 1))))
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Three evaluators of two members each, on three splits."""
    return splits_of(planted_zoo(PLANTED, 120, modules=3), tmp_path_factory.mktemp("cache"), 3, 2)


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("grouped", [False, True])
def test_every_adapter_outside_the_test_rows_is_tested_in_one_fold(count, grouped):
    rng = np.random.default_rng(count)
    codes = rng.permutation(np.repeat(np.arange(3), 60))
    groups = codes * 100 + rng.integers(0, 12, len(codes)) if grouped else None
    test = np.sort(rng.choice(180, 30, replace=False))
    rest = np.setdiff1d(np.arange(180), test)
    split = split_zoo(planted_zoo({}, 180, modules=1).labels, **SHARES)
    split = replace(split, train=rest[:100], val=rest[100:], test=test)
    found = fold_splits(codes, groups, split, count, seed=1)
    assert np.array_equal(np.sort(np.concatenate([one.test for one in found])), rest)
    for one in found:
        parts = (one.train, one.val, one.test)
        assert np.array_equal(np.sort(np.concatenate(parts)), rest), "no test adapter of the split"
        assert len(one.val) / (len(one.train) + len(one.val)) == pytest.approx(50 / 150, abs=0.1)
        for part in parts:
            assert set(codes[part]) == {0, 1, 2}
        if groups is not None:
            of_parts = [set(groups[part]) for part in parts]
            assert not any(a & b for i, a in enumerate(of_parts) for b in of_parts[:i])


def test_groups_that_are_the_classes_are_ignored():
    codes = np.repeat(np.arange(4), 20)
    split = split_zoo(planted_zoo({}, 80, modules=1).labels, **SHARES)
    found = fold_splits(codes, codes, split, 2, seed=0)
    assert all(set(codes[one.train]) == set(codes[one.test]) for one in found)


@pytest.mark.parametrize("count", [1, 60])
def test_too_many_folds_are_refused(count):
    zoo = planted_zoo({}, 60, modules=1)
    split = split_zoo(zoo.labels, **SHARES)
    with pytest.raises(LorabenchError, match=rf"^folds={count}: 2 to \d+ are possible; .*folds=1 ranks on the valid"):
        fold_splits(zoo.labels.category, None, split, count, seed=0)


def test_a_units_table_is_that_of_members_trained_on_the_other_folds(parts):
    arms = [Arm(layer, (layer,)) for layer in parts[0].everything]
    found = crossed(parts, "stats", Stats(), arms, folds=2)
    rows = np.unique(np.concatenate([np.r_[one.split.train, one.split.val] for one in parts]))
    assert found.correct.shape == (6, 3, len(rows))
    for number, one in enumerate(parts):
        known = np.isin(rows, np.r_[one.split.train, one.split.val])
        assert np.array_equal(found.cells[number], known)
        expected = np.zeros((6, len(rows)))
        for fold in fold_splits(one.labels, one.zoo.labels.group, one.split, 2, one.seeds[0]):
            alone = replace(one, split=fold, resume=False)
            for unit, of_arm in enumerate(alone.evaluate("stats", Stats(), arms)):
                expected[unit, np.searchsorted(rows, fold.test)] = of_arm.test_correct.mean(0)
        np.testing.assert_array_equal(found.correct[:, number], expected)


def test_the_ranking_by_folds_never_sees_a_test_label(parts):
    one = parts[0]
    labels = one.labels.copy()
    labels[one.split.test] = np.random.default_rng(0).permutation(labels[one.split.test])
    honest, blind = (replace(study_of(each), folds=3).rank("val") for each in (one, replace(one, labels=labels)))
    assert [row.per_seed for row in honest.rows] == [row.per_seed for row in blind.rows]
    assert honest.units == blind.units
    assert [row.test_accuracy for row in honest.rows] != [row.test_accuracy for row in blind.rows]


def test_planted_layers_are_on_top_and_folds_are_told(parts):
    study = replace(study_of(parts[0]), others=parts[1:], folds=2)
    found = as_json(Layers("stats", "val", top_k=2).run(study).ablation)
    planted = {study.evaluator.everything[i] for i in PLANTED}
    assert set(found["top_layers"]) == planted
    assert found["folds"] == 2
    for row in found["ranking"][2:]:
        assert row["p"] <= row["holm"] <= 1
        assert row["holm"] < 0.05
    assert found["ranking"][0]["p"] == 1


def test_folds_do_not_touch_the_published_protocol(parts):
    study = study_of(parts[0])
    plain, folded = (replace(study, folds=folds).rank("test").found("layers") for folds in (1, 3))
    assert plain == folded
    assert folded.folds == 1


SURE, NONE, WIDE = CorrectedT(-0.2, 0.01, 4), CorrectedT(0.0, 0.005, 4), CorrectedT(-0.04, 0.03, 4)
ONE_SPLIT = CorrectedT(-0.2, float("nan"), 0)
CALM = [-0.01] * 20


@pytest.mark.parametrize(
    ("fall", "fall_p", "beside", "drawn", "expected"),
    [
        (SURE, 0.001, SURE, CALM, "localised"),
        (SURE, 0.001, NONE, [-0.2] * 20, "distributed"),
        (SURE, 0.001, WIDE, [-0.2] * 20, "undecided"),
        (SURE, 0.2, SURE, CALM, "undecided"),
        (SURE, 0.001, SURE, CALM[:3], "undecided"),
        (SURE, 0.001, CorrectedT(float("nan"), float("nan"), 0), [], "undecided"),
        (CorrectedT(0.2, 0.01, 4), 0.001, SURE, CALM, "undecided"),
        (NONE, 0.9, NONE, CALM, "redundant"),
        (NONE, 0.9, NONE, [], "redundant"),
        (WIDE, 0.2, WIDE, CALM, "undecided"),
        (ONE_SPLIT, float("nan"), ONE_SPLIT, CALM, "undecided"),
    ],
)
def test_a_verdict_follows_from_its_tests(fall, fall_p, beside, drawn, expected):
    found = verdict("stats", fall, fall_p, beside, drawn, 0.03)
    assert found.verdict == expected
    if expected == "redundant":
        low, high = fall.interval(0.9)
        assert -0.03 < low < high < 0.03
    assert (found.more is None) == (expected != "undecided")


def test_how_much_more_data_goes_by_the_square_of_the_interval():
    low, high = WIDE.interval(0.9)
    assert verdict("stats", WIDE, 0.2, WIDE, CALM, 0.03).more == pytest.approx(((high - low) / 0.06) ** 2)
    assert np.isnan(verdict("stats", ONE_SPLIT, 0.2, ONE_SPLIT, CALM, 0.03).more)
    assert as_t(None).interval()[0] != as_t(None).interval()[0]


def comparison(zoo, cache, representations, **options):
    parts = splits_of(zoo, cache, 4)
    study = replace(study_of(parts[0], representations), others=parts[1:], folds=2)
    options = {"top_k": 2, "random_draws": 20, "worst": False, "permuted": False, "margin": 0.1} | options
    found = as_json(Compare("stats", "val", **options).run(study).ablation)
    return {row["representation"]: row for row in found["verdicts"]}, found


@pytest.mark.slow
def test_two_planted_layers_of_sixteen_are_localised(tmp_path):
    zoo = planted_zoo({1: [0.0, 0.7, 1.4], 6: [1.4, 0.0, 0.7]}, 240, modules=8)
    found, data = comparison(zoo, tmp_path, {"stats": Stats})
    assert found["stats"]["verdict"] == "localised"
    assert found["stats"]["draws"] == 20
    assert found["stats"]["random_p"] == pytest.approx(1 / 21)
    (random,) = (arm for arm in data["arms"] if arm["kind"] == "random")
    assert len(random["draws"]) == 20


@pytest.mark.slow
def test_a_signal_in_all_layers_is_redundant(tmp_path):
    signal = {layer: [0.0, 0.7, 1.4] for layer in range(8)}
    found, _ = comparison(planted_zoo(signal, 240, modules=4), tmp_path, {"stats": Stats, "norms": Norms})
    assert found["stats"]["verdict"] == "redundant"
    assert found["stats"]["equivalence_p"] < 0.05


@pytest.mark.parametrize("margin", [0.0, 1.0, -0.1])
def test_a_margin_that_is_no_share_is_refused(margin, parts):
    with pytest.raises(LorabenchError, match=r"^ablation\.margin=.*: a number between 0 and 1 is needed"):
        Compare("stats", "val", 2, 20, worst=False, permuted=False, margin=margin).run(study_of(parts[0]))


def test_spearman_is_scipys():
    rng = np.random.default_rng(0)
    values, against = rng.integers(0, 5, (30, 9)) / 5, rng.integers(0, 4, 9)
    expected = [spearmanr(row, against).statistic for row in values]
    np.testing.assert_allclose(spearman(values, against), expected)
    assert np.isnan(spearman(np.ones((1, 9)), against)).all()


def test_depth_is_that_of_blocks_by_factor_and_projection():
    modules = [f"unet.transformer_blocks.{block}.attn1.{part}" for block in range(6) for part in ("to_q", "to_k")]
    layers = [f"{module}.lora.{side}.weight" for module in modules for side in ("down", "up")]
    rng = np.random.default_rng(1)
    rates = np.array([0.1 + 0.13 * (i // 4) if i % 2 else 0.8 - 0.13 * (i // 4) for i in range(24)])
    correct = rng.random((24, 3, 300)) < rates[:, None, None]
    found = {row.layers: row for row in depth_correlations(layers, Crossed(correct, None, None))}
    assert set(found) == {"all", "down", "up", "q", "k"}
    assert found["up"].rho > 0.9
    assert found["down"].rho < -0.9
    assert found["all"].low < 0 < found["all"].high
    depth = np.repeat(np.arange(6), 4)
    for name, index in (
        ("all", np.arange(24)),
        ("up", np.arange(1, 24, 2)),
        ("q", np.flatnonzero(np.arange(24) % 4 < 2)),
    ):
        expected = spearmanr(correct.mean((1, 2))[index], depth[index]).statistic
        assert found[name].rho == pytest.approx(expected)
        assert found[name].count == len(index)
        assert found[name].low <= found[name].rho + 1e-9
    assert depth_correlations(layers[:8], Crossed(correct[:8], None, None)) == [], "two blocks"


def test_the_table_of_layers_says_each_p_under_its_name():
    result = an_ablation("layers", "glyphs-12")
    rows = [{**row, "p": 0.123, "holm": 0.456} for row in as_json(result.ablation)["ranking"]]
    text = table_text(with_changes(result, ranking=rows, folds=3))
    header = next(line for line in text.splitlines() if line.lstrip().startswith("rank"))
    line = next(line for line in text.splitlines() if rows[0]["layer"] in line)
    assert "cv acc [95 %]" in header
    for name, value in (("acc   p", "0.123"), ("p, Holm", "0.456")):
        edge = re.search(re.escape(name).replace(r"\ \ \ ", r"\s+"), header).end()
        assert line.index(value) + len(value) == edge, "columns of numbers end on the right"
    assert "ranked on cross-validated (3 folds, no test adapters) accuracy" in " ".join(text.split())
