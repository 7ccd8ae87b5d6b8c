"""Gauge, shift and learning curve on zoos whose answer is known."""

import functools
from dataclasses import replace

import numpy as np
import pytest

from lorabench.ablation.copies import NONE, evaluate_copies
from lorabench.ablation.gauge import Gauge
from lorabench.ablation.learning_curve import Lead, LearningCurve, partings
from lorabench.ablation.recipes import made_so
from lorabench.ablation.shift import Shift
from lorabench.ablation.subsets import nested_order, nested_subset
from lorabench.errors import LorabenchError
from lorabench.evaluation import Arm
from lorabench.findings import Corrected, read_finding
from lorabench.report.phases import gauge as gauge_report
from lorabench.report.phases import learning_curve as curve_report
from lorabench.report.phases import shift as shift_report
from lorabench.representations.delta_spectral import DeltaSpectral
from lorabench.representations.flat import Flat
from lorabench.representations.stats import Stats
from lorabench.zoo.splits import split_zoo
from tests.ablation_findings import an_ablation, as_json
from tests.small_study import SHARES, SMALL, evaluator_of, study_of
from tests.synthetic_zoo import planted_zoo, regauged, with_layers

QUICK = functools.partial(SMALL, batch_size=32)
PLANTED = {1: [0.0, 1.0, 2.0], 2: [2.0, 0.0, 1.0], 5: [1.0, 2.0, 0.0]}
CHOSEN = {"stats": Stats, "flat": Flat, "delta_spectral": DeltaSpectral}


def two_splits(zoo, cache_dir, chosen=CHOSEN, **knobs):
    """Two splits with two members each."""
    first = evaluator_of(zoo, cache_dir, factory=QUICK, **knobs)
    other = replace(first, split=split_zoo(zoo.labels, **SHARES, seed=1), seeds=(2, 3))
    return replace(study_of(first, chosen), others=[other])


@pytest.fixture(scope="module")
def zoo():
    return planted_zoo(PLANTED, 120, modules=3)


@pytest.fixture(scope="module")
def study(zoo, tmp_path_factory):
    """Shared, and with it the members that are trained."""
    return two_splits(zoo, tmp_path_factory.mktemp("cache"))


def by_name(rows):
    return {(row.representation, row.alteration): row for row in rows}


def test_one_training_answers_for_the_adapters_as_they_are_and_for_all_copies(zoo, study):
    """As they are: what an evaluation without copies says. Copies: what the same members say of the altered zoo."""
    copied = evaluate_copies(study, {"same": lambda own, _: own, "other gauge": lambda own, _: regauged(own)})
    whole = regauged(zoo)
    for name, make in CHOSEN.items():
        found = copied.found[name]
        (plain,) = study.evaluate(name, make(), [study.all_layers()])
        assert np.array_equal(found[NONE].test, plain.test)
        assert np.array_equal(found["same"].test, plain.test)
        assert [run.metrics for run in found[NONE].runs] == [run.metrics for run in plain.runs]
        assert [run.seed for run in found[NONE].runs] == [0, 1, 2, 3]
        for number, one in enumerate(study.evaluators):
            # the members of this split, trained on untouched rows, tested on rows that are altered in place
            half = {}
            for layer, stack in zoo.layers.items():
                half[layer] = np.array(stack.read(0, len(zoo)))
            rows = one.split.test
            changed = regauged(zoo.rows(rows))
            for layer in half:
                half[layer][rows] = changed.read(layer)
            mixed = replace(one, zoo=with_layers(zoo, half, f"{number}" * 32), cache_dir=one.cache_dir / "mixed")
            (alone,) = mixed.evaluate(name, make(), [Arm("none", one.everything)])
            own = found["other gauge"].test[2 * number : 2 * number + 2]
            assert np.array_equal(own[own >= 0], alone.test.ravel())
    assert len(whole) == len(zoo)


def test_a_part_of_the_test_adapters_can_be_altered(study):
    copied = evaluate_copies(study, {"same": lambda own, _: own}, adapters=5)
    assert [len(split.test) for split in copied.study.splits] == [5, 5]
    for ours, theirs in zip(copied.study.splits, study.splits, strict=True):
        assert set(ours.test) <= set(theirs.test)
        assert np.array_equal(ours.train, theirs.train)
    assert ((copied.found["flat"]["same"].test >= 0).sum(1) == 5).all()


def test_a_method_of_the_product_is_unmoved_and_one_of_the_factors_falls(study):
    found = Gauge(condition=[1, 30, 1.0], draws=2).run(study)  # a number twice is one condition
    rows = by_name(found.ablation.rows)
    assert len(rows) == 6
    for condition in ("condition 1", "condition 30"):
        unmoved = rows["delta_spectral", condition]
        assert (unmoved.difference, unmoved.same, unmoved.holm) == (0.0, 1.0, 1.0)
        assert unmoved.accuracy == unmoved.before > 0.6
        for name in ("stats", "flat"):
            assert rows[name, condition].difference < -0.2
            assert rows[name, condition].same < 0.8
    assert [row.representation for row in found.summary] == list(CHOSEN)
    assert read_finding(as_json(found.ablation)) == found.ablation
    result = replace(an_ablation("layers", "glyphs-12"), ablation=found.ablation)
    (sheet,) = gauge_report.sheets(result, found.ablation)
    assert "verdict: unmoved, every prediction is as before: delta_spectral" in sheet.caption
    assert set(gauge_report.figures(result, found.ablation)) == {"gauge"}


def test_what_a_shift_costs(study):
    phase = Shift(storage=["float16"], rank_share=[0.5], scale=[1, 4], noise=[10])
    found = phase.run(study)
    rows = by_name(found.ablation.rows)
    assert [row.alteration for row in found.ablation.rows[:5]] == [
        "float16", "rank × 0.5", "α × 1", "α × 4", "noise of 1000 %",
    ]  # fmt: skip
    for name in CHOSEN:
        assert (rows[name, "α × 1"].difference, rows[name, "α × 1"].same) == (0.0, 1.0)
        assert rows[name, "float16"].same > 0.95
        assert rows[name, "noise of 1000 %"].difference < -0.1
    for name in ("stats", "flat"):
        assert rows[name, "α × 4"].same == 1.0, "factors do not know their scale"
    assert rows["delta_spectral", "α × 4"].difference < -0.2
    result = replace(an_ablation("layers", "glyphs-12"), ablation=found.ablation)
    matrix, every = shift_report.sheets(result, found.ablation)
    assert [row[0] for row in matrix.rows] == ["float16", "rank × 0.5", "α × 1", "α × 4", "noise of 1000 %"]
    assert len(every.rows) == 15
    worst = min((row for row in found.ablation.rows if row.representation == "stats"), key=lambda row: row.difference)
    said = next(line for line in matrix.caption if line.startswith("verdict: stats "))
    shown = any(row.holm < 0.05 and row.claimed.high < 0 for (name, _), row in rows.items() if name == "stats")
    assert said.startswith(f"verdict: stats loses by {worst.alteration}") if shown else "not shown" in said


def test_holm_is_over_the_shifts_of_a_representation(study):
    alone = replace(study, chosen={"delta_spectral": DeltaSpectral})
    own = Shift(scale=[2, 4, 8]).run(alone).ablation.rows
    p = np.array([row.claimed.p for row in own])
    order = np.argsort(p)
    expected = np.minimum(1, np.maximum.accumulate(p[order] * [3, 2, 1]))
    assert np.allclose([own[i].holm for i in order], expected)


@pytest.fixture(scope="module")
def by_recipe():
    """Adapters of three classes; where `steps` is 20 the class stands in another layer than where it is 10 or 40."""
    steps = np.array([[10.0, 20.0, 40.0][i // 3 % 3] for i in range(180)])
    base, other = (planted_zoo({layer: [-2.0, 0.0, 2.0]}, 180, modules=2) for layer in (1, 2))
    layers = {name: np.where((steps == 20)[:, None, None], other.read(name), base.read(name)) for name in base.layers}
    recipe = {"steps": steps, "pictures": np.full(180, 4.0)}
    return with_layers(replace(base, labels=replace(base.labels, recipe=recipe)), layers, "e" * 32)


def test_a_recipe_that_was_never_seen_is_not_read(by_recipe, tmp_path):
    study = two_splits(by_recipe, tmp_path, {"stats": Stats})
    found = Shift(hold_out={"steps": 20}).run(study)
    rows = by_name(found.ablation.rows)
    unseen = rows["stats", "steps 20, unseen"]
    assert unseen.before > 0.75
    assert unseen.accuracy < 0.6
    assert np.isclose(unseen.difference, unseen.accuracy - unseen.before)
    assert np.isnan(unseen.same)
    (like_others,) = Shift(hold_out={"steps": [30, 50]}).run(study).ablation.rows
    assert like_others.alteration == "steps 30 to 50, unseen"
    assert like_others.difference > unseen.difference + 0.2
    assert read_finding(as_json(found.ablation)).rows[0].alteration == "steps 20, unseen"


@pytest.mark.parametrize(
    ("hold_out", "said"),
    [
        ({"steps": 30}, r"{steps: 30}: no adapter has it in planted; steps is 10, 20, 40$"),
        ({"steps": [0, 99]}, r"{steps: \[0, 99\]}: all adapters have it in planted"),
        ({"rate": 1}, "no recipe of this name that varies; there are: steps$"),
        ({"pictures": 4}, "no recipe of this name that varies; there are: steps$"),
        ({"steps": "ten"}, "a number is needed, or a list of the lowest and the highest"),
        ({"steps": [1, 2, 3]}, "a number is needed, or a list of the lowest and the highest"),
    ],
)
def test_a_recipe_that_cannot_be_held_out_is_refused(hold_out, said, by_recipe, tmp_path):
    with pytest.raises(LorabenchError, match=rf"^ablation\.hold_out={said}" if said[0] == "{" else said):
        Shift(hold_out=hold_out).run(two_splits(by_recipe, tmp_path))


def test_a_part_that_would_be_empty_is_named(by_recipe, tmp_path):
    study = two_splits(by_recipe, tmp_path)
    split, kept = study.evaluator.split, made_so(by_recipe, "steps", 10)
    alone = replace(study.evaluator, split=replace(split, val=split.val[kept[split.val]]))
    with pytest.raises(LorabenchError, match="a split is left with no validation adapter"):
        Shift(hold_out={"steps": 10}).run(replace(study, evaluator=alone))


def test_nothing_to_shift_is_an_error(study):
    with pytest.raises(LorabenchError, match=r"^ablation=shift: nothing is shifted; give one of storage"):
        Shift().run(study)


def test_the_same_adapters_in_another_zoo(zoo, tmp_path):
    """Another start moves what reads the factors; a zoo that lacks some adapters is compared on the others."""
    study = two_splits(zoo, tmp_path)
    there = np.concatenate([study.evaluator.split.test[::2], study.others[0].split.test[1::2]])
    other = replace(regauged(zoo).rows(np.unique(there)), name="elsewhere")
    rows = by_name(Shift(other=other).run(study).ablation.rows)
    assert rows["delta_spectral", "in elsewhere"].same == 1
    assert rows["flat", "in elsewhere"].difference < -0.1
    with pytest.raises(LorabenchError, match=r"^ablation\.other: it has no test adapter of a split by its name"):
        Shift(other=zoo.rows(study.evaluator.split.train)).run(replace(study, others=()))


def test_subsets_are_nested_and_stratified_and_keep_groups_whole():
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    groups = np.arange(100) // 2
    rows = np.random.default_rng(0).permutation(100)
    before = np.empty(0, np.int64)
    for size in (6, 20, 50, 100):
        found = nested_subset(rows, labels, groups, size, seed=3)
        assert size <= len(found) < size + 2
        assert np.array_equal(found, np.unique(found))
        assert np.isin(before, found).all()
        assert (np.bincount(groups[found])[np.unique(groups[found])] == 2).all()
        shares = np.bincount(labels[found], minlength=3) / len(found)
        assert np.abs(shares - [0.6, 0.3, 0.1]).max() <= (0.35 if size == 6 else 0.1)
        assert (shares > 0).all()
        before = found
    assert np.array_equal(before, np.arange(100))
    assert not np.array_equal(nested_subset(rows, labels, groups, 20, 3), nested_subset(rows, labels, groups, 20, 4))
    assert sorted(np.concatenate(nested_order(labels, None, 0)).tolist()) == list(range(100))


def test_a_planted_signal_is_learned_with_more_adapters(tmp_path):
    faint = planted_zoo({1: [0.0, 0.4, 0.8], 2: [0.8, 0.0, 0.4]}, 240, modules=2, seed=1)
    study = two_splits(faint, tmp_path, {"delta_spectral": DeltaSpectral, "stats": Stats})
    finding = LearningCurve(sizes=[6, 120, 30]).run(study).ablation
    assert finding.sizes == [6, 30, 120]
    curve = {(row.representation, row.size): row.accuracy.mean for row in finding.curve}
    assert curve["stats", 120] > curve["stats", 6] + 0.1
    assert [(row.representation, row.against, row.size) for row in finding.leads] == [
        ("stats", "delta_spectral", size) for size in (6, 30, 120)
    ]
    for row in finding.leads:
        assert np.isclose(row.difference, curve["stats", row.size] - curve["delta_spectral", row.size])
    (whole,) = study.evaluate("stats", Stats(), [study.all_layers()])
    accuracies = [run.metrics["test_accuracy"] for run in whole.runs]
    assert np.isclose(curve["stats", 120], np.mean(accuracies)), "all of a split's training adapters"
    result = replace(an_ablation("layers", "glyphs-12"), ablation=finding)
    curves, leads = curve_report.sheets(result, finding)
    assert [row[0] for row in curves.rows] == ["6", "30", "120"]
    assert len(leads.rows) == 3
    assert read_finding(as_json(finding)) == finding


def test_sizes_are_halved_down_to_two_of_each_class(study):
    only = replace(study, chosen={"stats": Stats})
    assert LearningCurve().run(only).ablation.sizes == [7, 15, 30, 60]


@pytest.mark.parametrize(
    ("differences", "size", "ahead"),
    [
        ([0.0, 0.1, 0.2], 200, "a"),
        ([0.1, 0.0, 0.2], 400, "a"),
        ([-0.1, 0.1, 0.1], 200, "a"),
        ([-0.1, -0.1, -0.1], 100, "b"),
        ([0.1, 0.1, 0.0], None, None),
    ],
)
def test_two_part_where_all_larger_sizes_tell_them_apart(differences, size, ahead):
    leads = [
        Lead(
            difference=value, low=value, high=value, p=0.5, seeds=2, adapters=9, representation="a", against="b",
            size=count, holm=0.01 if value else 1.0, corrected=Corrected(value, value, 0.01, 0.1, 5),
        )
        for value, count in zip(differences, (100, 200, 400), strict=True)
    ]  # fmt: skip
    (found,) = partings(leads[::-1], (100, 200, 400))
    assert (found.size, found.ahead) == (size, ahead)
    (unasked,) = partings(leads, (100, 200, 400, 800))
    assert (unasked.size, unasked.ahead) == (None, None), "one of them failed at the largest"
