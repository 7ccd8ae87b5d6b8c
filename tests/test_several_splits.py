"""Several splits of one run: members, tables, differences and rankings against each split by itself."""

import functools
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from lorabench.ablation.clusters import Clusters
from lorabench.ablation.compare import Compare
from lorabench.ablation.concepts import Concepts
from lorabench.ablation.inference import corrected_t, holm
from lorabench.ablation.none import NoAblation
from lorabench.ablation.progressive import Progressive
from lorabench.ablation.study import with_holm
from lorabench.errors import LorabenchError
from lorabench.evaluation import Arm, held_out, held_out_rows, merged
from lorabench.findings import Compared, Corrected
from lorabench.report import table_text
from lorabench.representations.flat import Flat
from lorabench.representations.pca import PCA
from lorabench.representations.stats import Stats
from lorabench.results import Run, Variance, read_result
from lorabench.zoo.splits import split_zoo
from tests.ablation_findings import an_ablation, as_json, with_changes
from tests.conftest import TINY_ZOO
from tests.small_study import SHARES, SMALL, evaluator_of, run, study_of
from tests.synthetic_zoo import planted_zoo

QUICK = functools.partial(SMALL, max_epochs=6)
CHOSEN = {"stats": Stats, "flat": Flat, "pca": functools.partial(PCA, components=4)}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Three evaluators of two members each, on three splits."""
    zoo = planted_zoo({0: [0.0, 0.5, 1.0], 5: [0.6, 0.0, 0.3]}, 120, modules=3)
    first = evaluator_of(zoo, tmp_path_factory.mktemp("cache"), factory=QUICK)
    splits = [split_zoo(zoo.labels, **SHARES, seed=seed) for seed in range(3)]
    return [replace(first, split=split, seeds=(2 * i, 2 * i + 1)) for i, split in enumerate(splits)]


@pytest.fixture(scope="module")
def study(parts):
    return replace(study_of(parts[0], CHOSEN), others=parts[1:])


def test_a_merged_evaluation_holds_what_every_split_found(parts, study):
    arm = Arm("none", parts[0].everything)
    alone = [one.evaluate("stats", Stats(), [arm])[0] for one in parts]
    splits = [one.split for one in parts]
    found = merged(alone, splits)
    rows, tested = held_out_rows(splits, "test"), held_out(splits, "test")
    assert merged(alone[:1], splits[:1]) is alone[0]
    assert [(run.seed, run.split) for run in found.runs] == [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (5, 2)]
    assert study.split_of.tolist() == [0, 0, 1, 1, 2, 2]
    for number, (one, split) in enumerate(zip(alone, splits, strict=True)):
        own = slice(2 * number, 2 * number + 2)
        assert np.array_equal(rows[tested[number]], split.test)
        for name in ("test", "test_labels", "test_correct"):
            assert np.array_equal(getattr(found, name)[own][:, tested[number]], getattr(one, name))
        assert (found.test_labels[own][:, ~tested[number]] == -1).all()
        assert not found.test_correct[own][:, ~tested[number]].any()
    expected = [run.confusion for one in alone for run in one.confused(3)]
    assert [run.confusion for run in found.confused(3)] == expected


def test_differences_are_the_corrected_t_of_the_splits_own(parts, study):
    found = NoAblation(["stats"]).run(study)
    means = {name: [] for name in CHOSEN}
    for one in parts:
        for name, make in CHOSEN.items():
            (own,) = one.evaluate(name, make(), [Arm("none", one.everything)])
            means[name].append(own.test_correct.mean(1))
    between = as_json(found.ablation)["between"]
    assert [row["representation"] for row in between] == ["flat", "pca"]
    ratio = np.mean([len(one.split.test) / len(one.split.train) for one in parts])
    for row in between:
        expected = corrected_t(np.array(means[row["representation"]]) - np.array(means["stats"]), ratio)
        assert row["difference"] == pytest.approx(expected.mean)
        assert (row["corrected"]["low"], row["corrected"]["high"]) == pytest.approx(expected.interval())
        assert row["corrected"]["p"] == pytest.approx(expected.p)
        assert (row["corrected"]["splits"], row["seeds"]) == (3, 6)
        assert row["low"] < row["difference"] < row["high"]
    assert [row["holm"] for row in between] == pytest.approx(holm([row["corrected"]["p"] for row in between]))


def test_what_a_split_takes_away_is_ranked_by_its_own_validation_adapters(parts, study):
    phase = Compare("stats", "val", top_k=2, random_draws=2, worst=True, permuted=True)
    found = phase.run(replace(study, chosen={"stats": Stats}))
    arms = {arm["name"]: arm for arm in as_json(found.ablation)["arms"]}
    for number, one in enumerate(parts):
        alone = study_of(one).rank("val")
        assert set(arms["top-2"]["by_split"][number]) == set(alone.units[:2])
        assert set(arms["worst-2"]["by_split"][number]) == set(alone.units[-2:])
    stable = as_json(found.ablation)["stability"]
    assert (stable["seeds"], stable["of"]) == (3, "splits")
    assert all(len(row["per_seed"]) == 3 for row in as_json(found.ablation)["ranking"])
    permuted = next(row for row in found.summary if row.ablation == "permuted")
    assert permuted.test_accuracy.n == 6
    assert permuted.test_accuracy.mean < 0.55


def test_random_layers_come_from_all_and_are_the_same_on_every_split(study):
    found = Compare("stats", "val", 2, 15, worst=False, permuted=False).run(replace(study, chosen={"stats": Stats}))
    (random,) = (arm for arm in as_json(found.ablation)["arms"] if arm["kind"] == "random")
    assert len(random["draws"]) == 15, "every pair of six layers"
    assert {layer for draw in random["draws"] for layer in draw} == set(study.zoo.layers)


def test_one_split_is_what_it_was(parts):
    alone = study_of(parts[0], CHOSEN)
    found = NoAblation(["stats"]).run(alone)
    assert all(row["corrected"] is None for row in as_json(found.ablation)["between"])
    assert {run.split for run in found.runs} == {0}
    assert math.isnan(found.summary[0].variance.split)
    assert alone.rank("val").found("layers").stability.of == "seeds"


def test_families_are_corrected_each_by_itself():
    rows = [
        Compared(0.1, 0.0, 0.2, 0.9, 3, 9, Corrected(0.0, 0.2, p, 0.1, 3), representation=kind)
        for kind, p in (("a", 0.01), ("b", 0.02), ("a", 0.04))
    ]
    assert [row.holm for row in with_holm(rows, lambda row: row.representation)] == pytest.approx([0.02, 0.02, 0.04])
    assert [row.holm for row in with_holm(rows)] == pytest.approx([0.03, 0.04, 0.04])


def test_variance_components_are_those_that_made_the_numbers():
    rng = np.random.default_rng(0)
    values = 0.5 + 0.03 * rng.standard_normal((4000, 1)) + 0.02 * rng.standard_normal((4000, 3))
    runs = [
        Run("a", "none", 0, metrics={"test_accuracy": float(value)}, split=i)
        for i, row in enumerate(values)
        for value in row
    ]
    found = Variance.of(runs)
    assert found.split == pytest.approx(0.03**2, rel=0.1)
    assert found.member == pytest.approx(0.02**2, rel=0.1)
    assert found.member == pytest.approx(values.var(1, ddof=1).mean())
    assert found.split == pytest.approx(values.mean(1).var(ddof=1) - found.member / 3)
    single = Variance.of(runs[::3])
    assert math.isnan(single.split)
    assert single.member == pytest.approx(values[:, 0].var(ddof=1))
    assert math.isnan(Variance.of(runs[:1]).member)


@pytest.mark.parametrize(
    "phase", [Clusters("stats", "val", 0.5), Concepts("stats", "val"), Progressive("stats", "val", 3, 0, 0)]
)
def test_a_phase_of_one_split_refuses_several(phase, study):
    with pytest.raises(LorabenchError, match=rf"^ablation={phase.name} looks at one split, and splits=3: give splits"):
        phase.run(study)


@pytest.mark.slow
def test_a_run_over_splits_says_so_everywhere(tmp_path):
    words = [*TINY_ZOO, "num_runs=4", "splits=2", "representations=[stats,norms]", "classifier.max_epochs=2"]
    result = run(tmp_path, *words)
    assert [(one.seed, one.split) for one in result.runs[:4]] == [(0, 0), (1, 0), (2, 1), (3, 1)]
    assert result.split["splits"] == 2
    assert read_result(tmp_path / "results.json").summary == result.summary
    row = json.loads((tmp_path / "results.json").read_text())["ablation"]["between"][0]
    assert set(row["corrected"]) == {"low", "high", "p", "error", "splits"}
    text = " ".join(table_text(result).split())
    assert "mean ± std over 4 members on 2 splits" in text
    assert "intervals and p are the corrected resampled t over 2 splits" in text
    assert "stats: better are none; worse are none" in text
    row["corrected"] |= {"low": 0.01, "high": 0.2}
    sure = with_changes(result, between=[{**row, "difference": 0.1, "holm": 0.01}])
    assert "stats: better are norms; worse are none" in " ".join(table_text(sure).split())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["splits=0"], "^splits=0: a whole number from 1"),
        (["num_runs=3", "splits=2"], r"^num_runs=3: members are shared out evenly over splits=2; take num_runs=4"),
    ],
)
def test_splits_that_cannot_be_are_told(words, said, tmp_path):
    with pytest.raises(LorabenchError, match=said):
        run(tmp_path, *TINY_ZOO, *words)


def test_a_class_that_nothing_tests_is_told():
    result = an_ablation("top_k", "glyphs-12")
    assert "no test adapter" not in table_text(result)
    untested = {**result.split, "untested": ["Braille", "Hebrew"]}
    assert "· no test adapter of Braille, Hebrew" in " ".join(table_text(replace(result, split=untested)).split())
    many = {**result.split, "untested": [f"c{i}" for i in range(9)]}
    assert "no test adapter of c0, c1, c2, c3, c4 and 4 more" in " ".join(
        table_text(replace(result, split=many)).split()
    )


def test_the_text_has_every_metric_of_every_arm():
    result = an_ablation("compare", "glyphs-12", representations=("stats", "flat"))
    text = table_text(result)
    table = text[text.index("Every arm") :]
    header = next(line for line in table.splitlines() if "representation" in line)
    for title in ("train acc", "val acc", "test acc", "macro-F1"):
        assert title in header
    lines = table.splitlines()
    for row in result.summary:
        line = next(line for line in lines if line.split()[:2] == [row.representation, row.ablation])
        assert f"{100 * row.train_accuracy.mean:.1f}" in line
        assert f"{100 * row.test_macro_f1.mean:.1f}" in line
