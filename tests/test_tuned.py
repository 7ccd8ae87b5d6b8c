"""`classifier=tuned`: candidates against scikit-learn itself, the choice by validation rows alone."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

from lorabench.classifiers import Member, Problem, as_it_is
from lorabench.classifiers.choosing import configurations
from lorabench.classifiers.mlp import MLP
from lorabench.classifiers.tuned import CANDIDATES, Tuned
from lorabench.engines import Stacked
from lorabench.errors import LorabenchError
from tests.conftest import TINY_ZOO
from tests.small_study import run

SMALL = functools.partial(Tuned, hidden=[16], dropout=0.1, max_epochs=5, grid={"learning_rate": [1e-3, 1e-2]}, tries=2)


def rings(seed=0, n=240, classes=2):
    """Two rings, which no linear classifier tells apart; the columns 2 and 3 are blobs, which one does."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    angle, radius = rng.uniform(0, 2 * np.pi, n), 1.0 + 1.5 * labels + rng.normal(0, 0.1, n)
    inputs = np.stack([radius * np.cos(angle), radius * np.sin(angle), *(rng.normal(0, 1, (2, n)) + 3 * labels)], 1)
    order = torch.from_numpy(rng.permutation(n))
    return Problem(
        torch.from_numpy(inputs).float(), torch.from_numpy(labels)[None], order[:120], order[120:180], classes,
        (slice(0, 2), slice(2, 4)),
    ), order[180:]  # fmt: skip


def scikit_learns(name):
    kind, value = name.split()
    if kind == "nearest":
        return KNeighborsClassifier(int(value))
    c = float(value.removeprefix("C="))
    return {"logistic": LogisticRegression(C=c, max_iter=200), "svm": SVC(C=c)}[kind]


@pytest.mark.parametrize("classes", [2, 4])
def test_the_best_on_validation_is_what_is_kept(classes):
    problem, test = rings(classes=classes)
    fitted = Stacked("cpu").fit(SMALL, problem, [Member(0, 0), Member(1, 1)], as_it_is)
    for one in fitted:
        features, labels = problem.features(one.member.features).numpy(), problem.labels[0].numpy()
        accuracies = {}
        for name in CANDIDATES:
            model = scikit_learns(name).fit(features[problem.train], labels[problem.train])
            accuracies[name] = model.score(features[problem.val], labels[problem.val]), model.predict(features[test])
        best = max(accuracy for accuracy, _ in accuracies.values())
        kept = float((one.logits[problem.val].argmax(-1).numpy() == labels[problem.val]).mean())
        assert kept >= best
        first = next(said for accuracy, said in accuracies.values() if accuracy == best)
        if kept == best:
            assert np.array_equal(one.logits[test].argmax(-1).numpy(), first)
            assert one.settings == {"candidate": next(name for name, (found, _) in accuracies.items() if found == best)}
        assert one.history[one.best_epoch]["val_accuracy"] == pytest.approx(kept, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("logistic C=1", lambda model: model.coef_.size + 4),
        ("nearest 5", lambda model: 3 * model.n_samples_fit_),
        ("svm C=10", lambda model: 2 * len(model.support_) + 3 * len(model.support_) + 6),
    ],
)
def test_what_a_candidate_keeps_is_counted(name, numbers, monkeypatch):
    monkeypatch.setattr("lorabench.classifiers.tuned.CANDIDATES", {name: CANDIDATES[name]})
    problem, _ = rings(classes=4)
    lazy = functools.partial(SMALL, learning_rate=1e-9, tries=1)
    (found,) = Stacked("cpu").fit(lazy, problem, [Member(0, 0)], as_it_is)
    features, labels = problem.features(0)[problem.train].numpy(), problem.labels[0][problem.train].numpy()
    assert found.settings == {"candidate": name}
    assert found.parameters == numbers(scikit_learns(name).fit(features, labels))


def test_rings_are_told_apart_where_a_linear_reading_cannot():
    problem, test = rings()
    (found,) = Stacked("cpu").fit(SMALL, problem, [Member(0, 0)], as_it_is)
    assert (found.logits[test].argmax(-1) == problem.labels[0, test]).float().mean() > 0.95


def test_test_labels_choose_nothing_and_seeds_share_what_has_none():
    problem, test = rings()
    labels = problem.labels.clone()
    labels[0, test] = 1 - labels[0, test]
    members = [Member(0), Member(1)]
    ours, theirs = (
        Stacked("cpu").fit(SMALL, one, members, as_it_is) for one in (problem, replace(problem, labels=labels))
    )
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.logits, other.logits)
    assert [one.member for one in ours] == members
    assert torch.equal(ours[0].logits, ours[1].logits)


def test_mlps_are_those_of_their_rates_where_they_are_best(monkeypatch):
    monkeypatch.setattr("lorabench.classifiers.tuned.CANDIDATES", {"nearest 5": CANDIDATES["nearest 5"]})
    problem, _ = rings()
    settings, members = {"hidden": [32], "dropout": 0.0, "max_epochs": 60}, [Member(2, 1)]
    (found,) = Stacked("cpu").fit(
        functools.partial(Tuned, learning_rate=3e-2, grid={"learning_rate": [1e-5]}, tries=2, **settings),
        problem,
        members,
        as_it_is,
    )
    alone = [
        Stacked("cpu").fit(functools.partial(MLP, learning_rate=rate, **settings), problem, members, as_it_is)[0]
        for rate in (3e-2, 1e-5)
    ]
    slow, fast = (max(row["val_accuracy"] for row in one.history) for one in reversed(alone))
    assert slow < fast
    assert (found.logits[problem.val].argmax(-1) == problem.labels[0, problem.val]).float().mean() >= fast


def test_a_class_without_training_rows_is_never_named():
    problem, test = rings(classes=3)
    seen = problem.train[problem.labels[0, problem.train] != 2]
    (found,) = Stacked("cpu").fit(SMALL, replace(problem, train=seen), [Member(0, 1)], as_it_is)
    assert found.logits.shape == (240, 3)
    assert set(found.logits[test].argmax(-1).tolist()) <= {0, 1}


@pytest.mark.parametrize(
    ("grid", "tries", "message"),
    [
        ({"learning_rate": []}, 2, r"grid\.learning_rate=\[\]: a list of values is needed"),
        ({"learning_rate": [-1.0]}, 2, r"grid\.learning_rate=-1\.0: a number above 0 is needed"),
        ({"depth": [2]}, 2, "grid=depth: Tuned has no such setting"),
        ({"seed": [1, 2]}, 2, "grid=seed: Tuned has no such setting"),
        ({"learning_rate": [1e-3, 1e-4]}, 3, r"tries=3: the grid of Tuned makes 2 configurations"),
    ],
)
def test_a_grid_that_is_none_is_refused(grid, tries, message):
    with pytest.raises(LorabenchError, match=rf"^classifier\.{message}"):
        configurations(Tuned(in_features=2, n_classes=2, seed=0, hidden=[4], dropout=0.0, grid=grid, tries=tries))


def test_configurations_are_the_settings_and_then_the_grid_in_order():
    grid = {"hidden": [[4], [8]], "learning_rate": [1e-3, 1e-2]}
    model = Tuned(in_features=2, n_classes=2, seed=0, hidden=[4], dropout=0.0, grid=grid, tries=4)
    rest = [([4], 1e-2), ([8], 1e-3), ([8], 1e-2)]
    assert configurations(model) == [{}, *({"hidden": hidden, "learning_rate": rate} for hidden, rate in rest)]
    assert model.tried == len(CANDIDATES) + 4


@pytest.mark.slow
def test_a_run_with_tuned_members_is_whole_and_resumes(tmp_path):
    words = [
        *TINY_ZOO, "classifier=tuned", "classifier.hidden=[8]", "classifier.max_epochs=2", "num_runs=2",
        "representations=[stats,norms]", f"cache_dir={tmp_path / 'cache'}",
    ]  # fmt: skip
    first, again = run(tmp_path / "a", *words), run(tmp_path / "b", *words)
    assert first.summary == again.summary
    assert {row.classifier for row in first.summary} == {"tuned"}
    assert all(run.error is None for run in first.runs)
    assert (tmp_path / "a" / "learning_curves.png").exists()
