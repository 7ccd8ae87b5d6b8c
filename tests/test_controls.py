"""Controls and the ceiling: what they read, against dense matrices, and what is said of representations beside them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.dummy import DummyClassifier

from lorabench.ablation.none import NoAblation
from lorabench.errors import LorabenchError
from lorabench.evaluation.chance import chance, majority
from lorabench.report import table_text
from lorabench.report.figures import drawings
from lorabench.representations.controls import Ceiling, DeltaNorm, Recipe
from lorabench.zoo import Stack
from lorabench.zoo.splits import Split
from tests.ablation_findings import as_json
from tests.conftest import TINY_ZOO
from tests.small_study import evaluator_of, run, study_of
from tests.synthetic_zoo import deltas, make_zoo, planted_zoo, regauged

CPU = torch.device("cpu")


def test_norms_are_those_of_dense_updates_and_no_gauge_changes_them():
    zoo = make_zoo()
    by_hand = np.stack([np.linalg.norm(deltas(zoo, module.name), axis=(1, 2)) for module in zoo.modules], 1)
    for one in (zoo, regauged(zoo)):
        found = DeltaNorm(by_module=True).transform(one, CPU)["all"]
        np.testing.assert_allclose(found, by_hand, rtol=1e-5)
        total = DeltaNorm().transform(one, CPU)["all"]
        np.testing.assert_allclose(total[:, 0], np.linalg.norm(by_hand, axis=1), rtol=1e-5)
    assert len(DeltaNorm(by_module=True).feature_names(zoo, "all")) == len(zoo.modules)


def test_chance_is_the_accuracy_of_naming_the_most_frequent_training_class():
    labels = np.random.default_rng(0).integers(0, 4, 60)
    split = Split(np.arange(30), np.arange(30, 40), np.arange(40, 60))
    dummy = DummyClassifier(strategy="most_frequent").fit(labels[split.train], labels[split.train])
    assert majority(labels, split) == dummy.predict([0])[0]
    assert chance(labels, split) == dummy.score(labels[split.test], labels[split.test])


def test_the_recipe_is_rank_scale_and_presence():
    zoo = make_zoo()
    zoo = replace(zoo, rank=np.where(np.arange(len(zoo))[:, None] == 0, 0, zoo.rank))
    found = Recipe().transform(zoo, CPU)["all"].numpy()
    assert found.shape[1] == len(Recipe().feature_names(zoo, "all"))
    there = zoo.rank > 0  # what is missing has no scale, whatever the store holds
    np.testing.assert_allclose(found, np.concatenate([zoo.rank, zoo.scale * there, there], 1))


def with_ceiling(zoo):
    """Pictures that tell the class."""
    pictures = np.random.default_rng(0).normal(size=(len(zoo), 4, 3)).astype(np.float32) * 0.1
    pictures[np.arange(len(zoo)), zoo.labels.category] += 1
    return replace(zoo, ceiling=Stack((pictures,)))


def test_the_ceiling_is_the_zoos_own():
    zoo = make_zoo()
    assert not Ceiling().known(zoo)
    with pytest.raises(LorabenchError, match="synthetic does not say what its adapters were trained on"):
        Ceiling().transform(zoo, CPU)
    known = with_ceiling(zoo)
    assert Ceiling().known(known)
    found = Ceiling().transform(known, CPU)["all"]
    np.testing.assert_array_equal(found, known.ceiling.read(0, len(known)).reshape(len(known), -1))
    picked = known.rows(np.array([3, 1])).only(list(known.layers)[:2])
    np.testing.assert_array_equal(Ceiling().transform(picked, CPU)["all"], found[[3, 1]])


@pytest.mark.parametrize("signal", [{0: [0.7, -0.7]}, {}], ids=["signal", "noise"])
def test_a_representation_is_above_the_best_control_only_where_there_is_something(signal, tmp_path):
    zoo = with_ceiling(planted_zoo(signal, 240, classes=2, modules=2))  # as large an update in either class
    found = NoAblation(controls=True).run(study_of(evaluator_of(zoo, tmp_path, 3))).ablation
    found = as_json(found)["controls"]
    rows = {row["name"]: row for row in found["rows"]}
    assert set(rows) == {"recipe", "norm", "norm by module", "permuted labels", "chance", "ceiling"}
    assert [name for name, row in rows.items() if row["kind"] == "ceiling"] == ["ceiling"]
    assert rows["ceiling"]["accuracy"]["mean"] > 0.9
    assert rows["chance"]["accuracy"]["mean"] == pytest.approx(1 / 2, abs=0.02)
    assert rows["chance"]["accuracy"]["std"] == 0
    for name in ("recipe", "permuted labels"):
        assert rows[name]["accuracy"]["mean"] < 0.65
    (above,) = found["above"]
    assert above["best"] == max(
        (name for name in rows if name != "ceiling"), key=lambda name: rows[name]["accuracy"]["mean"]
    )
    assert above["above"] is bool(signal)


@pytest.mark.slow
def test_a_comparison_shows_its_controls(tmp_path):
    words = [*TINY_ZOO, "num_runs=4", "splits=2", "representation=stats", "classifier.max_epochs=2"]
    result = run(tmp_path, *words)
    text = " ".join(table_text(result).split())
    assert "Controls and ceiling: the same classifier, members and splits" in text
    assert "stats is not shown to read the category above the best control" in text
    assert json.loads((tmp_path / "results.json").read_text())["ablation"]["controls"]["rows"]
    axes = drawings(result)["accuracy"]().axes[0]
    assert any("best control" in str(line.get_label()) for line in axes.get_lines())
    without = run(tmp_path / "without", *words, "ablation.controls=false")
    assert without.ablation.controls is None
    assert without.summary == result.summary
