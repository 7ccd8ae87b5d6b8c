"""The numbers behind `predict`, each against another way of getting it."""

import csv
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom

from lorabench.predict.answers import ask
from lorabench.predict.character import TRAITS, character, mean_traits, spans, trait_text
from lorabench.predict.conformal import Held, mean_probabilities, temperature
from lorabench.predict.novelty import Cloud
from lorabench.representations.delta_pca import DeltaPCA
from lorabench.representations.norms import Norms
from lorabench.zoo.export import export as export_zoo
from tests.leafy_zoo import leafy_zoo, model_of
from tests.synthetic_zoo import deltas, make_zoo, regauged


def test_probabilities_are_the_mean_of_softmaxes():
    logits = np.random.default_rng(0).normal(size=(3, 5, 4))
    powers = np.exp(logits / 1.7)
    expected = (powers / powers.sum(-1, keepdims=True)).mean(0)
    np.testing.assert_allclose(mean_probabilities(torch.from_numpy(logits), 1.7).numpy(), expected, rtol=1e-12)


def test_the_temperature_is_the_best_of_a_fine_grid():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 200)
    logits = torch.from_numpy(6 * (rng.normal(size=(2, 200, 3)) + 0.7 * np.eye(3)[labels]))

    def loss(warmth):
        own = mean_probabilities(logits, warmth).numpy()[np.arange(200), labels]
        return -np.log(own).mean()

    found = temperature(logits, labels)
    assert loss(found) <= min(loss(one) for one in np.geomspace(0.1, 40, 400)) + 1e-9
    assert found > 2, "logits that say too much are cooled"


@pytest.mark.parametrize("error", [0.05, 0.1, 0.3])
def test_the_quantile_of_groups_is_the_smallest_score_with_enough_weight(error):
    rng = np.random.default_rng(2)
    groups = rng.integers(0, 30, 80)
    scores = rng.uniform(size=80)
    count = len(set(groups))

    def weight_up_to(score):  # every group counts the same, and one that is not here yet lies at infinity
        shares = [np.mean(scores[groups == group] <= score) for group in set(groups)]
        return sum(shares) / (count + 1)

    enough = [score for score in np.sort(scores) if weight_up_to(score) >= 1 - error - 1e-12]
    assert Held.of(scores, groups).quantile(error) == (enough[0] if enough else math.inf)


def test_p_values_count_the_groups_that_are_as_strange():
    held = Held.of(np.array([1.0, 2.0, 3.0, 4.0]), [0, 1, 2, 3])
    np.testing.assert_allclose(held.p_values(np.array([0.0, 2.0, 2.5, 9.0])), [1.0, 0.8, 0.6, 0.2])


def test_few_groups_promise_nothing_below_what_they_can():
    held = Held.of(np.array([0.2, 0.4]), [0, 1])
    assert held.quantile(0.1) == math.inf
    assert held.sets(torch.tensor([[0.9, 0.1]], dtype=torch.float64), 0.1).all()
    assert Held.of(np.zeros(0), []).quantile(0.9) == math.inf


def test_sets_of_held_out_groups_hold_the_right_class_as_often_as_promised():
    """20 seeds; adapters of a leaf are as one, so that leaves are what is counted."""
    error, right, count = 0.1, 0.0, 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        leaf = np.repeat(np.arange(240), 2)
        labels = rng.integers(0, 4, 240)[leaf]
        logits = 2.0 * np.eye(4)[labels] + rng.normal(size=(240, 4))[leaf] + 0.3 * rng.normal(size=(480, 4))
        p = mean_probabilities(torch.from_numpy(logits)[None], 1.0)
        own = 1 - p.numpy()[np.arange(480), labels]
        known, new = leaf < 120, leaf >= 120
        sets = Held.of(own[known], leaf[known]).sets(p[torch.from_numpy(new)], error)
        right += sets[np.arange(new.sum()), labels[new]].mean() * 120
        count += 120
        assert sets.sum(1).mean() < 2.5, "sets of everything promise nothing"
    low, high = binom.ppf([0.001, 0.999], count, 1 - error)
    assert low <= right <= high + count / 121, "one group of 121 is at infinity"


@pytest.mark.slow
def test_asked_of_new_leaves_a_model_names_the_right_class_as_often_as_its_card_says(tmp_path):
    """8 seeds, through files: at least 1 - E - S, of which at most S are turned away and E miss the right class."""
    error, strangers, leaves = 0.2, 0.1, 24
    named, away, missed = [], [], []
    for seed in range(8):
        zoo, folder = leafy_zoo(40 + leaves, draw=seed, signal=0.6), tmp_path / str(seed)
        model = model_of(zoo.rows(np.arange(80)), Norms(), folder / "cache")
        new = zoo.rows(np.arange(80, len(zoo)))
        export_zoo(new, folder / "new", "kohya")
        rows = list(csv.DictReader((folder / "new" / "labels.csv").read_text().splitlines()))
        said = ask(model, [folder / "new" / row["file"] for row in rows], error, strangers)
        right = [row["category"] in one.categories for row, one in zip(rows, said, strict=True)]
        turned = [one.verdict == "unknown" and not one.why.startswith("no category") for one in said]
        named.append(np.mean(right))
        away.append(np.mean(turned))
        missed.append(np.mean([not a and not b for a, b in zip(right, turned, strict=True)]))
    for shares, bound in ((away, strangers), (missed, error)):  # the calibrating leaves are drawn too: 16 a seed
        slack = 3 * (bound * (1 - bound) * (1 / leaves + 1 / 16) / 8) ** 0.5
        assert np.mean(shares) <= bound + slack
    slack = 3 * ((error + strangers) * (1 - error - strangers) * (1 / leaves + 1 / 16) / 8) ** 0.5
    assert np.mean(named) >= 1 - error - strangers - slack
    assert np.mean(named) < 1, "a promise that costs nothing is not tested"


def test_the_cloud_is_mahalanobis_within_its_directions_and_the_rest_beside():
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(60, 5)) @ rng.normal(size=(5, 5))
    other = rng.normal(size=(7, 5)) * 3
    found = Cloud.of(torch.from_numpy(rows)).distances(torch.from_numpy(other))
    wide = (rows - rows.mean(0)) / rows.std(0)
    away = (other - rows.mean(0)) / rows.std(0)
    inverse = np.linalg.inv(np.cov(wide.T))
    np.testing.assert_allclose(np.exp(found[:, 0]), np.einsum("ni,ij,nj->n", away, inverse, away), rtol=1e-8)
    assert (np.exp(found[:, 1]) < 1e-8).all(), "five directions span all"
    flat = np.concatenate([rows[:, :2], rows[:, :1] + rows[:, 1:2]], 1)
    beside = Cloud.of(torch.from_numpy(flat)).distances(torch.from_numpy(np.array([[0.0, 0.0, 50.0]])))
    assert beside[0, 1] > 2


def test_traits_are_those_of_the_dense_matrix_and_no_gauge_changes_them():
    zoo = make_zoo(12)
    known = spans(zoo)
    found = character(zoo, known)
    for number, module in enumerate(zoo.modules):
        dense = deltas(zoo, module.name)
        energy = np.linalg.svd(dense, compute_uv=False) ** 2
        total = energy.sum(1)
        span = known[module.name]
        read, written = span.read.numpy(), span.written.numpy()
        np.testing.assert_allclose(read.T @ read, np.eye(read.shape[1]), atol=1e-10)
        parts = {
            "norm": np.log(total) / 2,
            "first": energy[:, 0] / total,
            "two": energy[:, :2].sum(1) / total,
            "read": ((dense @ read) ** 2).sum((1, 2)) / total,
            "written": ((written.T @ dense) ** 2).sum((1, 2)) / total,
        }
        expected = np.stack([parts[name] for name in TRAITS], 1)
        np.testing.assert_allclose(found[:, number], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(character(regauged(zoo), known), found, rtol=1e-3, atol=1e-4)


def test_a_module_that_is_not_there_has_no_traits():
    zoo = make_zoo(12)
    gone = replace(zoo, scale=zoo.scale * np.arange(12)[:, None].clip(0, 1).astype(np.float32))
    assert np.isnan(character(gone, spans(zoo))[0]).all()
    own = np.array([[[1.0, 0.5, 0.6, 0.7, 0.8], [np.nan] * 5], [[3.0, 0.5, 0.6, 0.7, 0.8], [np.nan] * 5]])
    np.testing.assert_array_equal(mean_traits(own), [[2.0, 0.5, 0.6, 0.7, 0.8]] * 2)
    said = trait_text(own[0, 0], np.array([1.0, 0.5, 0.6, 0.1, 0.8]), np.full(5, 0.05))
    assert said == "share of ΔW that reads what the training adapters read 0.70, where theirs is 0.10 ± 0.05"
    assert trait_text(own[0, 0], np.array([9.0, 0.5, 0.6, 0.7, 0.8]), np.full(5, 0.05)).startswith("‖ΔW‖ 2.72 a module")


def test_a_module_that_is_missing_makes_no_stranger_where_modules_differ_in_size(tmp_path):
    """What one lacks is taken for what the others have there, not for a module of the usual size."""
    zoo = leafy_zoo(60)
    zoo = replace(zoo, scale=zoo.scale * np.array([[0.1, 1.0, 10.0]], np.float32))
    model = model_of(zoo, DeltaPCA(components=8, scope="all"), tmp_path, epochs=2)
    traits = character(zoo, model.novelty.spans)
    inputs = model.inputs(zoo)
    whole = model.novelty.distances(inputs, traits)[:, 2:]
    for number in range(3):
        lacking = traits.copy()
        lacking[:, number] = np.nan
        further = model.novelty.distances(inputs, lacking)[:, 2:] - whole
        assert np.median(further.max(1)) < 0.5, number
        said = model.novelty.reason(np.array([0.0, 0.0, 9.0, 0.0]), lacking[0])
        norm = said.partition("‖ΔW‖ ")[2].partition(" a module")[0]
        assert norm == "" or 0.2 < float(norm) / np.exp(traits[0, :, 0].mean()) < 5


@pytest.mark.slow
def test_members_of_a_zoo_keep_their_promise_on_new_leaves(tmp_path):
    """20 models, each asked of leaves that it never saw; counted in leaves, since their two adapters are alike."""
    error, held_right, kept, count = 0.2, 0.0, 0.0, 0
    for seed in range(20):
        zoo = leafy_zoo(120, draw=seed, signal=0.5)
        model = model_of(zoo.rows(np.arange(160)), DeltaPCA(components=8, scope="all"), tmp_path, epochs=8)
        new = zoo.rows(np.arange(160, 240))
        inputs = model.inputs(new)
        sets = model.conformal.sets(mean_probabilities(model.logits(inputs), model.temperature), error)
        held_right += sets[np.arange(len(new)), new.labels.category].mean() * 40
        scores = model.novelty.scores(inputs, character(new, model.novelty.spans))
        kept += (scores <= model.novelty.held.quantile(0.1)).mean() * 40
        count += 40
    low, high = binom.ppf([0.001, 0.999], count, 1 - error)
    assert low <= held_right <= high + count / 33
    assert kept >= binom.ppf(0.001, count, 0.9), "no more of their kind are strangers than was said"
