"""Arms of an evaluator: what their members read and learn, against each arm by itself."""

import functools
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, roc_auc_score

from lorabench.data import CLIP
from lorabench.engines import Lightning
from lorabench.errors import LorabenchError
from lorabench.evaluation import Arm, Probe
from lorabench.representations.delta_pca import DeltaPCA
from lorabench.representations.delta_spectral import DeltaSpectral
from lorabench.representations.flat import Flat
from lorabench.representations.pca import PCA
from lorabench.representations.stats import Stats
from tests.small_study import SMALL, Recorded, evaluator_of
from tests.synthetic_zoo import planted_zoo

SIGNAL = {0: [0.0, 0.4, 0.8], 3: [0.8, 0.0, 0.4], 4: [0.3, 0.0, 0.3]}
MAKERS = {
    "stats": Stats,
    "flat": Flat,
    "pca": functools.partial(PCA, components=5),
    "pca of all": functools.partial(PCA, components=5, scope="all"),
    "delta_spectral": DeltaSpectral,
    "delta_pca": functools.partial(DeltaPCA, components=4),
    "delta_pca of all": functools.partial(DeltaPCA, components=4, scope="all"),
}
QUICK = functools.partial(SMALL, max_epochs=6)


@pytest.fixture(scope="module")
def zoo():
    return planted_zoo(SIGNAL, 90, modules=3)


def arms_of(zoo):
    """All, without one end or the middle, here and there, a module, a layer, every second one, nothing."""
    layers = list(zoo.layers)
    standing = {
        "none": layers, "first": layers[1:], "middle": layers[:2] + layers[4:], "scattered": [layers[0], *layers[2:5]],
        "module": layers[:2], "one": layers[3:4], "downs": layers[::2], "nothing": [],
    }  # fmt: skip
    return [Arm(name, tuple(left)) for name, left in standing.items()]


def read_by_itself(representation, zoo, layers, train):
    """Units and standardised features of a zoo that never had another layer, by numpy."""
    left = zoo.only(layers)
    representation.fit(left.rows(train), torch.device("cpu"))
    found = representation.transform(left, torch.device("cpu"))
    joined = np.concatenate([values.double().numpy() for values in found.values()], 1)
    mean, std = joined[train].mean(0), joined[train].std(0)
    return tuple(found), (joined - mean) / np.where(std <= 1e-7 * np.abs(mean), 1.0, std)


def same(first, second):
    """Whether two evaluations hold the same numbers."""
    return all(
        np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b
        for a, b in ((getattr(first, f.name), getattr(second, f.name)) for f in fields(first))
    )


@pytest.mark.parametrize("name", MAKERS)
def test_an_arm_reads_what_the_representation_makes_of_its_layers_alone(name, zoo, tmp_path):
    engine, arms = Recorded(), arms_of(zoo)
    evaluator = evaluator_of(zoo, tmp_path, engine=engine, factory=QUICK)
    found = evaluator.evaluate(name, MAKERS[name](), arms)
    assert [one.arm for one in found] == arms
    ((problem, members),) = engine.calls
    members = iter(members)
    modules = {"one", "downs"} if name.startswith("delta") else set()
    assert {one.arm.name for one in found if one.error} == modules | {"nothing"}
    for one in found:
        if one.error:
            assert (one.runs, one.units, one.features, one.probes) == ((), (), 0, ())
            assert one.test_correct.size == one.val.size == 0
            continue
        units, expected = read_by_itself(MAKERS[name](), zoo, one.arm.layers, evaluator.split.train)
        assert one.units == units
        assert one.features == expected.shape[1]
        for seed in evaluator.seeds:
            member = next(members)
            assert (member.seed, member.labels) == (seed, 0)
            found = problem.features(member.features).numpy()
            np.testing.assert_allclose(found, np.clip(expected, -CLIP, CLIP), rtol=1e-5, atol=1e-5)
    assert next(members, None) is None


def test_a_module_goes_with_the_first_of_its_layers(zoo, tmp_path):
    evaluator = evaluator_of(zoo, tmp_path, seeds=1, factory=QUICK)
    arms = [Arm(f"without {layer}", tuple(name for name in zoo.layers if name != layer)) for layer in zoo.layers]
    for number, one in enumerate(evaluator.evaluate("delta", DeltaSpectral(), arms)):
        assert one.units == tuple(module.name for i, module in enumerate(zoo.modules) if i != number // 2)


@pytest.mark.parametrize("name", ["stats", "pca of all", "delta_pca"])
def test_arms_together_give_exactly_what_each_gives_alone(name, zoo, tmp_path):
    arms = [*arms_of(zoo), Arm("permuted", tuple(zoo.layers), permuted=True)]
    together = evaluator_of(zoo, tmp_path, factory=QUICK, resume=False).evaluate(name, MAKERS[name](), arms)
    for one, arm in zip(together, arms, strict=True):
        alone = evaluator_of(zoo, tmp_path, factory=QUICK, resume=False)
        assert same(one, alone.evaluate(name, MAKERS[name](), [arm])[0]), arm.name
        assert alone.taken == 0


def test_the_order_of_arms_is_of_no_account(zoo, tmp_path):
    arms = arms_of(zoo)
    one_way, other_way = (
        evaluator_of(zoo, tmp_path, factory=QUICK, resume=False).evaluate("stats", Stats(), wanted)
        for wanted in (arms, arms[::-1])
    )
    assert all(same(a, b) for a, b in zip(one_way, other_way[::-1], strict=True))


def test_a_representation_without_a_unit_in_the_whole_zoo_is_an_error(zoo, tmp_path):
    evaluator = evaluator_of(zoo.only(list(zoo.layers)[::2]), tmp_path)
    with pytest.raises(LorabenchError, match="needs a module, and planted has none left: 3 layers in 0 modules"):
        evaluator.evaluate("delta", DeltaSpectral(), [Arm("none", evaluator.everything)])
    (found,) = evaluator.evaluate("delta", DeltaSpectral(), [Arm("some", evaluator.everything[:2])])
    assert "needs a module" in found.error


def test_numbers_of_a_run_are_those_of_its_predictions(zoo, tmp_path):
    engine = Recorded()
    evaluator = evaluator_of(zoo, tmp_path, engine=engine, factory=QUICK)
    arms = [Arm("none", evaluator.everything), Arm("permuted", evaluator.everything, permuted=True)]
    for one in evaluator.evaluate("stats", Stats(), arms):
        for seed, run in zip(evaluator.seeds, one.confused(3), strict=True):
            labels = evaluator.permuted(seed) if one.arm.permuted else evaluator.labels
            true, said = labels[evaluator.split.test], one.test[seed]
            assert (run.representation, run.ablation, run.seed, run.error) == ("stats", one.arm.name, seed, None)
            assert run.metrics["test_accuracy"] == pytest.approx(accuracy_score(true, said))
            assert run.metrics["test_macro_f1"] == pytest.approx(f1_score(true, said, average="macro"))
            assert run.confusion == confusion_matrix(true, said, labels=range(3)).tolist()
            assert np.array_equal(one.test_correct[seed], true == said)
            val = labels[evaluator.split.val]
            assert run.metrics["val_accuracy"] == pytest.approx(accuracy_score(val, one.val[seed]))
            assert run.metrics["val_macro_f1"] == pytest.approx(f1_score(val, one.val[seed], average="macro"))
            assert np.array_equal(one.val_correct[seed], val == one.val[seed])
            best = min(range(run.epochs), key=lambda epoch: run.history[epoch]["val_loss"])
            assert run.best_epoch == best
            assert run.history[best]["val_accuracy"] == pytest.approx(run.metrics["val_accuracy"])
            assert 0 <= run.metrics["test_auroc"] <= 1


def test_auroc_is_that_of_the_logits(zoo, tmp_path):
    evaluator, seen = evaluator_of(zoo, tmp_path, factory=QUICK), {}

    def measure(fitted, problem, widths):
        seen[fitted.member.seed] = fitted.logits.double().softmax(-1).numpy()
        return {}

    (found,) = evaluator.evaluate("stats", Stats(), [Arm("none", evaluator.everything)], Probe("peek", measure))
    rows = evaluator.split.test
    for run in found.runs:
        expected = roc_auc_score(evaluator.labels[rows], seen[run.seed][rows], multi_class="ovr", average="macro")
        assert run.metrics["test_auroc"] == pytest.approx(expected)


def test_permuted_labels_keep_the_classes_of_every_part_and_differ_by_seed(zoo, tmp_path):
    evaluator = evaluator_of(zoo, tmp_path)
    first, second = evaluator.permuted(0), evaluator.permuted(1)
    assert np.array_equal(first, evaluator.permuted(0))
    for rows in vars(evaluator.split).values():
        for found in (first, second):
            assert np.array_equal(np.bincount(found[rows]), np.bincount(evaluator.labels[rows]))
            # Chance agreement is a third of the rows.
            assert 0.05 < np.mean(found[rows] == evaluator.labels[rows]) < 0.7
        assert not np.array_equal(first[rows], second[rows])
    labels = replace_outside(evaluator)
    assert np.array_equal(np.flatnonzero(labels.permuted(0) == -1), np.flatnonzero(labels.labels == -1))


def replace_outside(evaluator):
    """The same with one adapter outside the split."""
    labels = evaluator.labels.copy()
    labels[evaluator.split.test[0]] = -1
    return replace(evaluator, labels=labels, split=replace(evaluator.split, test=evaluator.split.test[1:]))


def test_permuted_members_learn_stop_by_and_are_tested_on_their_own_permutation(zoo, tmp_path):
    engine = Recorded()
    evaluator = evaluator_of(zoo, tmp_path, seeds=3, engine=engine, factory=QUICK)
    everything = evaluator.everything
    found = evaluator.evaluate(
        "stats", Stats(), [Arm("none", everything), Arm("permuted", everything, True), Arm("one", everything[:1], True)]
    )
    ((problem, members),) = engine.calls
    for one, three in zip(found, (members[:3], members[3:6], members[6:]), strict=True):
        for seed, member in enumerate(three):
            labels = evaluator.permuted(seed) if one.arm.permuted else evaluator.labels
            assert member.seed == seed
            assert np.array_equal(problem.labels[member.labels].numpy(), labels)
            assert np.array_equal(one.test_correct[seed], one.test[seed] == labels[evaluator.split.test])
            assert np.array_equal(one.val_correct[seed], one.val[seed] == labels[evaluator.split.val])
    assert found[0].test_correct.mean() > 0.6 > found[1].test_correct.mean()


def test_a_probe_sees_every_trained_member_and_the_widths_of_its_units(zoo, tmp_path):
    arms = [Arm("none", tuple(zoo.layers)), Arm("some", tuple(zoo.layers)[1:4])]

    def measure(fitted, problem, widths):
        x = problem.features(fitted.member.features)
        assert sum(widths.values()) == x.shape[1]
        assert fitted.state["0.weight"].shape == (32, x.shape[1])
        return {unit: float(width) for unit, width in widths.items()}

    for one in evaluator_of(zoo, tmp_path).evaluate("stats", Stats(), arms, Probe("widths", measure)):
        assert one.probes == (dict.fromkeys(one.arm.layers, 7.0),) * 2


def test_only_curves_of_all_layers_and_true_labels_are_told(zoo, tmp_path):
    told = []
    evaluator = evaluator_of(zoo, tmp_path, factory=QUICK, on_curves=lambda name, runs: told.append((name, len(runs))))
    everything = evaluator.everything
    arms = [Arm("permuted", everything, True), Arm("some", everything[1:]), Arm("none", everything)]
    evaluator.evaluate("stats", Stats(), arms)
    assert told == [("stats", 2)]
    assert {"features/stats", "training/stats"} <= set(evaluator.clock.seconds)


def test_the_reference_trainer_refuses_features_larger_than_memory_before_they_are_made(zoo, tmp_path, monkeypatch):
    monkeypatch.setattr("lorabench.evaluation.evaluator.free_memory", lambda _device: 1000)
    evaluator = evaluator_of(zoo, tmp_path, engine=Lightning("cpu"))
    with pytest.raises(LorabenchError, match=r"representation=flat makes 96 numbers of each of 90.*trainer=stacked"):
        evaluator.evaluate("flat", Flat(), [Arm("none", evaluator.everything), Arm("first", evaluator.everything[1:])])
    assert not list(tmp_path.rglob("*.safetensors"))


def test_members_that_diverge_are_told_and_have_no_prediction(zoo, tmp_path):
    factory = functools.partial(SMALL, learning_rate=1e37)
    (found,) = evaluator_of(zoo, tmp_path, factory=factory).evaluate("stats", Stats(), [Arm("none", tuple(zoo.layers))])
    assert all("the validation loss became" in run.error for run in found.runs)
    assert (found.test == -1).all()
    assert not found.test_correct.any()
    assert not found.val_correct.any()


@pytest.mark.filterwarnings("ignore:.*(does not have many workers|LeafSpec|lightning_utilities).*")
def test_both_engines_say_the_same_of_every_arm(zoo, tmp_path):
    arms = [Arm("module", tuple(zoo.layers)[2:4]), Arm("permuted", tuple(zoo.layers), permuted=True)]
    together = evaluator_of(zoo, tmp_path, factory=QUICK).evaluate("stats", Stats(), arms)
    alone = evaluator_of(zoo, tmp_path, engine=Lightning("cpu"), factory=QUICK).evaluate("stats", Stats(), arms)
    for ours, theirs in zip(together, alone, strict=True):
        assert np.mean(ours.test == theirs.test) > 0.98  # rounding may turn one
        assert [run.best_epoch for run in ours.runs] == [run.best_epoch for run in theirs.runs]
