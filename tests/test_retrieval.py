"""Adapters of the same leaf: places in a ranking, against a slow count of all orders, and the phase on planted zoos."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lorabench.ablation.first_hit import cosines, first_hit, first_hits, first_hits_by_chance
from lorabench.ablation.retrieval import Retrieval
from lorabench.ablation.scored import leaf_groups
from lorabench.classifiers.nearest import Nearest
from lorabench.errors import LorabenchError
from lorabench.evaluation.products import inner_products
from lorabench.findings import read_finding
from lorabench.pictures import house_style, save_picture
from lorabench.report.phases.retrieval import figures, sheets
from lorabench.representations.factors import Factors
from lorabench.representations.flat import Flat
from lorabench.representations.stats import Stats
from lorabench.sheet import sheets_text
from lorabench.zoo.splits import split_zoo
from tests.ablation_findings import an_ablation, as_json
from tests.conftest import TINY_ZOO
from tests.leafy_zoo import leafy_zoo
from tests.processes import lorabench
from tests.small_study import SHARES, Broken, evaluator_of, several_splits, study_of
from tests.synthetic_zoo import planted_zoo, with_layers

CHOSEN = {"stats": Stats, "flat": Flat}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Leaves of three adapters; shared, and with it the members that are trained."""
    return several_splits(leafy_zoo(36, each=3), tmp_path_factory.mktemp("cache"), CHOSEN)


@pytest.fixture(scope="module")
def found(study):
    return Retrieval(against=["stats"]).run(study)


def slow_hits(similar, relevant):
    """By every order of those that are tied: of one query without itself."""
    orders = []
    for order in itertools.permutations(range(len(similar))):
        ranked = sorted(order, key=lambda i: -similar[i])
        place = 1 + next(k for k, i in enumerate(ranked) if relevant[i])
        orders.append((1 / place, place <= 1, place <= 5))
    return np.mean(orders, 0)


def test_places_are_the_mean_over_all_orders_of_what_is_tied():
    rng = np.random.default_rng(0)
    for size in (1, 2, 4, 6):
        for _ in range(4):
            similar = rng.integers(0, 3, size) / 2
            relevant = np.zeros(size, bool)
            relevant[rng.permutation(size)[: 1 + rng.integers(size)]] = True
            everything = np.ones((1, size), bool)
            fast = first_hits(similar[None], relevant[None], everything)[0]
            np.testing.assert_allclose(fast, slow_hits(similar, relevant))
            chance = first_hits_by_chance(relevant[None], everything)[0]
            np.testing.assert_allclose(chance, slow_hits(np.zeros(size), relevant))


def test_a_random_order_has_the_harmonic_number():
    for size in (1, 7, 500):
        wanted = sum(1 / k for k in range(1, size + 1)) / size
        np.testing.assert_allclose(first_hit(0, size, 1), (wanted, 1 / size, min(1, 5 / size)))
    assert first_hit(3, 1, 1) == (0.25, 0.0, 1.0)
    assert first_hit(5, 1, 1).in_5 == 0
    assert first_hit(0, 4, 4) == (1.0, 1.0, 1.0)


def test_who_is_no_candidate_has_no_place():
    similar, relevant = np.array([[1.0, 0.9, 0.5]]), np.array([[True, False, True]])
    candidate = np.array([[False, True, True]])
    np.testing.assert_array_equal(first_hits(similar, relevant, candidate), [[0.5, 0, 1]])


def test_a_vector_of_zeros_is_like_none_and_equal_ones_are_tied():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(6, 40))
    x[1], x[2] = 0, x[0]
    alike = cosines(x @ x.T)
    assert (alike[1] == 0).all()
    np.testing.assert_array_equal(alike[0], alike[2])
    np.testing.assert_allclose(alike[3, 4], x[3] @ x[4] / np.linalg.norm(x[3]) / np.linalg.norm(x[4]), atol=1e-9)


def test_products_are_those_of_what_members_read(study):
    """Against features that are standardised and clipped here."""
    evaluator = study.evaluator
    zoo, rows = evaluator.zoo, evaluator.split.test
    for representation in (Stats(), Flat()):
        known = [representation.features(zoo, unit, torch.device("cpu")) for unit in representation.units(zoo)]
        x = np.concatenate([one.numpy() for one in known], 1).astype(np.float64)
        train = x[evaluator.split.train]
        scale = np.where(train.std(0) <= 1e-7 * np.abs(train.mean(0)), 1, train.std(0))
        x = np.clip((x - train.mean(0)) / scale, -10, 10)[rows]
        got = inner_products(evaluator, "mine", representation, rows)
        np.testing.assert_allclose(got, x @ x.T, rtol=1e-4, atol=1e-3)


def test_products_that_do_not_fit_are_refused_before_features_are_made(study, monkeypatch):
    monkeypatch.setattr("lorabench.evaluation.products.free_memory", lambda _: 1000)
    with pytest.raises(LorabenchError, match=r"^the products of 27 adapters take 0\.0 GB .*: take a smaller data set"):
        inner_products(study.evaluator, "flat", Flat(), study.evaluator.split.test)


def test_too_many_adapters_are_refused_before_anything_is_made_of_pairs(study, monkeypatch):
    """The run ends: it is no failure of a representation among others."""
    monkeypatch.setattr("lorabench.evaluation.products.free_memory", lambda _: 1000)
    with pytest.raises(LorabenchError, match=r"^the products of 27 adapters take"):
        Retrieval().run(study)


def test_the_phase_is_a_slow_count_of_places(study, found):
    told = found.ablation
    rows = {row.representation: row for row in told.rows}
    zoo = study.zoo
    for name, make in CHOSEN.items():
        by_split, by_chance = [], []
        for one in study.evaluators:
            test = one.split.test
            alike = cosines(inner_products(one, name, make(), test))
            leaf, ranks, chances = zoo.labels.leaf[test], [], []
            for query in range(len(test)):
                others = [i for i in range(len(test)) if i != query]
                ranked = sorted(others, key=lambda i: -alike[query, i])
                ranks.append(1 / (1 + next(k for k, i in enumerate(ranked) if leaf[i] == leaf[query])))
                n, r = len(others), sum(leaf[i] == leaf[query] for i in others)
                chances.append(first_hit(0, n, int(r)).reciprocal)
            by_split.append(np.mean(ranks))
            by_chance.append(np.mean(chances))
        assert rows[name].mrr.mean == pytest.approx(np.mean(by_split))
        assert rows[name].mrr.n == 3
        assert told.chance.mrr == pytest.approx(np.mean(by_chance))
    assert told.queries == [len(one.split.test) for one in study.evaluators]
    assert told.candidates == [len(one.split.test) - 1 for one in study.evaluators]


def test_leaves_that_were_planted_are_found_and_by_whom(found):
    told = found.ablation
    rows, above = ({row.representation: row for row in part} for part in (told.rows, told.above))
    assert rows["flat"].mrr.mean > 0.9 > 2 * told.chance.mrr
    assert rows["flat"].mrr.low <= rows["flat"].mrr.mean <= rows["flat"].mrr.high
    assert above["flat"].difference == pytest.approx(rows["flat"].mrr.mean - told.chance.mrr)
    assert above["flat"].corrected.splits == 3
    assert above["flat"].holm < 0.05
    (pair,) = told.between
    assert (pair.representation, pair.against) == ("flat", "stats")
    assert pair.difference == pytest.approx(rows["flat"].mrr.mean - rows["stats"].mrr.mean)
    assert [row.representation for row in found.summary] == list(CHOSEN)
    assert read_finding(as_json(told)) == told


def test_tables_and_pictures_say_it(found, tmp_path):
    result = replace(an_ablation("layers", "glyphs-12"), ablation=found.ablation)
    text = sheets_text(sheets(result, found.ablation))
    assert "verdict: flat is above chance" in text
    assert f"{100 * found.ablation.chance.mrr:.1f}" in text
    assert "the other test adapters" in text
    with house_style():
        drawn = save_picture(figures(result, found.ablation)["retrieval"](), tmp_path / "retrieval.png")
    with Image.open(drawn) as picture:
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 20


def test_one_split_has_no_verdict(study):
    told = Retrieval().run(replace(study, others=[], chosen={"flat": Flat})).ablation
    text = sheets_text(sheets(replace(an_ablation("layers", "glyphs-12"), ablation=told), told))
    assert told.above[0].corrected is None
    assert told.above[0].low > 0
    assert "verdict" not in text
    assert "one split is no ground to call one better than another: splits=5 draws more" in text


def test_features_that_say_nothing_read_chance(tmp_path):
    zoo = leafy_zoo(12, each=2)
    constant = {name: np.ones(stack.shape, np.float32) for name, stack in zoo.layers.items()}
    told = Retrieval().run(several_splits(with_layers(zoo, constant, "0" * 32), tmp_path, {"stats": Stats})).ablation
    (row,), (above,) = told.rows, told.above
    assert row.mrr.mean == pytest.approx(told.chance.mrr)
    assert (row.hit_1.mean, row.hit_5.mean) == pytest.approx((told.chance.hit_1, told.chance.hit_5))
    assert above.difference == pytest.approx(0)


def test_one_leaf_with_several_adapters_is_enough_and_has_no_interval(tmp_path):
    zoo = leafy_zoo(24, each=1)
    split = split_zoo(zoo.labels, **SHARES)
    leaf = zoo.labels.leaf.copy()
    leaf[split.test[1]] = leaf[split.test[0]]
    zoo = replace(zoo, labels=replace(zoo.labels, leaf=leaf, group=leaf))
    told = Retrieval().run(study_of(evaluator_of(zoo, tmp_path, seeds=1, split=split), {"flat": Flat})).ablation
    assert told.queries == [2]
    assert np.isnan(told.rows[0].mrr.low)
    assert told.above[0].adapters == 2


def test_the_same_leaves_in_another_zoo_are_ranked(tmp_path):
    """The other zoo has the same adapters with less noise; the zoo's own rows are no candidates."""
    zoo = planted_zoo({}, 60, modules=2)
    rng = np.random.default_rng(3)
    layers = {name: stack.read(0, 60) + rng.normal(size=stack.shape) for name, stack in zoo.layers.items()}
    other = replace(with_layers(zoo, {k: v.astype(np.float32) for k, v in layers.items()}, "1" * 32), name="again")
    study = several_splits(zoo, tmp_path, {"flat": Flat})
    told = Retrieval(other=other).run(study).ablation
    assert told.gallery == "the same adapters in again"
    tested = [len(one.split.test) for one in study.evaluators]
    assert told.queries == told.candidates == tested
    chance = np.mean([sum(1 / k for k in range(1, n + 1)) / n for n in tested])
    assert told.chance.mrr == pytest.approx(chance)
    assert told.rows[0].mrr.mean > 2 * chance
    fewer = other.rows(np.array([i for i in range(60) if i not in study.evaluator.split.test[:3]]))
    assert Retrieval(other=fewer).run(study).ablation.queries[0] == tested[0] - 3


def test_features_of_another_zoo_are_made_once_for_all_splits(tmp_path):
    zoo = planted_zoo({}, 60, modules=1)
    other = replace(with_layers(zoo, {k: stack.read(0, 60) for k, stack in zoo.layers.items()}, "1" * 32), name="again")
    asked = []

    class Counted(Stats):
        def features(self, zoo, unit, device):
            asked.append((unit, len(zoo)))
            return super().features(zoo, unit, device)

    study = several_splits(zoo, tmp_path, {"counted": Counted})
    Retrieval(other=other).run(study)
    tested = np.unique(np.concatenate([one.split.test for one in study.evaluators]))
    units = Stats().units(zoo)
    assert sorted(asked) == sorted((unit, size) for unit in units for size in (60, 60 + len(tested)))


def test_a_method_without_features_is_a_row_that_says_so(study):
    both = replace(study, chosen={"flat": Flat, "nearest": Factors}, methods={"nearest": ("nearest", Nearest)})
    told = Retrieval(against=["nearest"]).run(both)
    flat, nearest = told.ablation.rows
    assert flat.error is None
    assert nearest.mrr is None
    assert "nearest is a classifier of factors: it names classes, and has no features" in nearest.error
    assert told.ablation.between == []
    assert told.summary[1].failed == [nearest.error]
    result = replace(an_ablation("layers", "glyphs-12"), ablation=told.ablation)
    assert nearest.error in sheets_text(sheets(result, told.ablation))


def test_the_others_are_told_of_where_one_fails(study):
    told = Retrieval().run(replace(study, chosen={"flat": Flat, "broken": Broken})).ablation
    assert [row.error for row in told.rows] == [None, "it is broken"]
    assert [row.representation for row in told.above] == ["flat"]


def test_what_is_resampled_holds_whole_leaves():
    labels = leafy_zoo(6, each=2).labels
    np.testing.assert_array_equal(leaf_groups(labels), labels.group)
    np.testing.assert_array_equal(leaf_groups(replace(labels, group=None)), labels.leaf)
    np.testing.assert_array_equal(leaf_groups(replace(labels, group=labels.leaf // 2)), labels.leaf // 2)
    np.testing.assert_array_equal(leaf_groups(replace(labels, group=np.arange(12))), labels.leaf)


def test_a_zoo_with_one_adapter_a_leaf_is_told_what_to_give(tmp_path):
    with pytest.raises(LorabenchError, match=r"no leaf of planted has two among .*: give .*dataset@ablation.other=gly"):
        Retrieval().run(study_of(evaluator_of(planted_zoo({}, 60, modules=1), tmp_path)))


def test_leaves_that_were_trained_on_are_refused(tmp_path):
    zoo = leafy_zoo(12, each=4)
    zoo = replace(zoo, labels=replace(zoo.labels, group=None))
    with pytest.raises(
        LorabenchError, match=r"there are training adapters of leaf0007, leaf0008: give target=category"
    ):
        Retrieval().run(study_of(evaluator_of(zoo, tmp_path)))


def test_options_are_held_to_what_is_there(study, tmp_path):
    with pytest.raises(LorabenchError, match=r"^ablation\.other=glyphs: a zoo is needed, chosen by dataset@ablation"):
        Retrieval(other="glyphs")
    with pytest.raises(LorabenchError, match=r"^ablation\.against=nope is none of the representations: stats, flat"):
        Retrieval(against=["nope"]).run(study)
    with pytest.raises(LorabenchError, match=r"^ablation\.other: planted and leafy have other layers"):
        Retrieval(other=planted_zoo({}, 60)).run(study)
    zoo = planted_zoo({}, 60, modules=1)
    renamed = replace(zoo, labels=replace(zoo.labels, leaf_names=("else", *zoo.labels.leaf_names[1:])))
    with pytest.raises(LorabenchError, match=r"^ablation\.other: \S+ was trained on else in planted and on "):
        Retrieval(other=renamed).run(study_of(evaluator_of(zoo, tmp_path)))
    ours = study_of(evaluator_of(zoo, tmp_path))
    without = zoo.rows(ours.evaluator.split.train)
    with pytest.raises(LorabenchError, match=r"^ablation\.other: planted has no test adapter of a split by its name"):
        Retrieval(other=without).run(ours)


@pytest.mark.slow
def test_a_run_of_the_embedded_zoo(tmp_path):
    words = ["ablation=retrieval", "dataset=glyphs_independent", "dataset@ablation.other=glyphs", *TINY_ZOO]
    words += [one.replace("dataset.", "ablation.other.") for one in [*TINY_ZOO, "dataset.training_seed=1"]]
    words += [
        "representations=[stats,delta_pca,nearest]",
        "classifier=small_mlp",
        "classifier.max_epochs=2",
        "splits=2",
    ]
    out = lorabench(*words, "num_runs=2", f"output_dir={tmp_path}", cwd=tmp_path).stdout
    assert "nearest is a classifier of factors" in out.replace("\n", " ")
    assert (tmp_path / "ablation_glyphs_independent" / "retrieval.png").exists()
