"""What ablation finds in a zoo whose answer is known: three layers of twelve say the class, the rest is noise."""

import functools
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster
from scipy.spatial.distance import squareform
from scipy.stats import binom, kendalltau
from sklearn.metrics import recall_score

from lorabench.ablation.attribution import Attribution, _shares, integrated_gradients
from lorabench.ablation.clusters import Clusters, disagreement
from lorabench.ablation.compare import Compare, random_units
from lorabench.ablation.concepts import Concepts, halves_agreement
from lorabench.ablation.grouping import Grouping
from lorabench.ablation.layers import Layers
from lorabench.ablation.progressive import Progressive
from lorabench.ablation.redundancy import Redundancy
from lorabench.ablation.statistics import paired_difference
from lorabench.adapters.places import GROUPINGS, groups
from lorabench.classifiers import Fitted, Member, Problem
from lorabench.classifiers.linear import Linear
from lorabench.classifiers.mlp import MLP
from lorabench.classifiers.nearest import Nearest
from lorabench.errors import LorabenchError
from lorabench.evaluation import Arm, Evaluator
from lorabench.representations.delta_spectral import DeltaSpectral
from lorabench.representations.factors import Factors
from lorabench.representations.flat import Flat
from lorabench.representations.norms import Norms
from lorabench.representations.stats import Stats
from tests.ablation_findings import as_json
from tests.small_study import SMALL, evaluator_of, study_of
from tests.synthetic_zoo import planted_zoo

PLANTED = {1: [0.0, 0.4, 0.8], 6: [0.8, 0.0, 0.4], 11: [0.4, 0.8, 0.0]}
CLASSES = 3


def chance(test_adapters, members):
    """Bounds of the accuracy of members that say nothing.

    A member's right answers are binomial with p = 1/classes: what it says does not depend on a label that it cannot
    know. All `members` together leave these bounds with a probability of at most 0.001 (Bonferroni), so a mean over
    seeds, which lies between them, does too.
    """
    tail = 0.001 / (2 * members)
    count = binom(test_adapters, 1 / CLASSES)
    return count.ppf(tail) / test_adapters, count.isf(tail) / test_adapters


def all_chance(accuracies, test_adapters):
    low, high = chance(test_adapters, len(accuracies))
    return low <= min(accuracies) and max(accuracies) <= high


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def planted(cache):
    """A study of stats on a zoo with three layers of signal, three seeds, 120 test adapters."""
    return study_of(evaluator_of(planted_zoo(PLANTED, 480), cache, 3))


@pytest.fixture(scope="module")
def compared(planted):
    phase = Compare("stats", "val", top_k=3, random_draws=4, worst=True, permuted=True)
    return phase.run(planted)


@pytest.fixture(scope="module")
def noise(cache):
    return study_of(evaluator_of(planted_zoo({}, 480, seed=1), cache, 3), {"stats": Stats, "flat": Flat})


def planted_names(study):
    return {name for number, name in enumerate(study.zoo.layers) if number in PLANTED}


def difference(findings, ablation, against="none"):
    (row,) = (
        row
        for row in as_json(findings.ablation)["differences"]
        if (row["ablation"], row["against"]) == (ablation, against)
    )
    return row


def mean_of(findings, ablation):
    (row,) = (row for row in findings.summary if row.ablation == ablation)
    return row.test_accuracy.mean


# The claim itself.


@pytest.mark.parametrize("rank_on", ["val", "test"])
def test_exactly_the_planted_layers_are_on_top_and_told_from_the_rest(planted, rank_on):
    found = as_json(Layers("stats", rank_on, top_k=3).run(planted).ablation)
    assert {row["layer"] for row in found["ranking"][:3]} == planted_names(planted)
    assert set(found["top_layers"]) == planted_names(planted)
    assert [row["tied_to"] <= 3 for row in found["ranking"]] == [True] * 3 + [False] * 9
    assert found["ranking"][2]["low"] > found["ranking"][3]["high"]
    assert all_chance([row["test_accuracy"] for row in found["ranking"][3:]], 120)
    assert found["stability"]["kendall_tau"] > 0.2


def test_accuracy_falls_to_chance_when_they_go_and_stays_when_others_go(planted, compared):
    assert set(as_json(compared.ablation)["removed"]) == planted_names(planted)
    everything = mean_of(compared, "none")
    assert everything > 0.75
    by_arm = {}
    for run in compared.runs:
        by_arm.setdefault(run.ablation, []).append(run.metrics["test_accuracy"])
    assert {name: len(members) for name, members in by_arm.items()} == {
        "none": 3, "top-3": 3, "worst-3": 3, "permuted": 3, **{f"random-3/{draw}": 3 for draw in range(1, 5)},
    }  # fmt: skip
    assert all_chance(by_arm["top-3"], 120)
    (random,) = (arm for arm in as_json(compared.ablation)["arms"] if arm["kind"] == "random")
    for number, gone in enumerate(random["draws"], start=1):
        fall = everything - np.mean(by_arm[f"random-3/{number}"])
        assert fall > -0.06
        assert fall < 0.06 or set(gone) & planted_names(planted), gone
    assert abs(mean_of(compared, "worst-3") - everything) < 0.06


def test_permuted_labels_read_chance(compared):
    assert all_chance([run.metrics["test_accuracy"] for run in compared.runs if run.ablation == "permuted"], 120)


def test_only_the_loss_of_the_planted_layers_is_told_from_nothing(compared):
    for against in ("none", "random-3"):
        row = difference(compared, "top-3", against)
        assert row["high"] < -0.2  # random layers may be planted ones
        assert row["p"] < 0.01
    row = difference(compared, "worst-3")
    assert row["low"] <= 0 <= row["high"]
    assert row["p"] > 0.05
    assert difference(compared, "top-3")["difference"] == pytest.approx(
        mean_of(compared, "top-3") - mean_of(compared, "none")
    )


def test_arms_of_a_comparison_are_what_they_are_called(planted, compared):
    arms = {arm["name"]: arm for arm in as_json(compared.ablation)["arms"]}
    order = [row["layer"] for row in as_json(compared.ablation)["ranking"]]
    assert [arm["kind"] for arm in arms.values()] == ["none", "top", "random", "worst", "permuted"]
    assert arms["none"]["removed"] == arms["permuted"]["removed"] == []
    assert set(arms["top-3"]["removed"]) == set(order[:3])
    assert set(arms["worst-3"]["removed"]) == set(order[-3:])
    draws = arms["random-3"]["draws"]
    assert len(draws) == 4
    assert all(len(set(draw)) == 3 and set(draw) <= set(order) for draw in draws)
    assert len({frozenset(draw) for draw in draws}) > 1


def test_a_representation_that_cannot_see_the_signal_is_not_hurt(cache):
    """A shift of the mean raises norms in one class by less than it moves the mean; a scale would show in both."""
    study = study_of(evaluator_of(planted_zoo({1: [0.0, 0.5, -0.5]}, 480, seed=3), cache, 2), {"a": Stats, "b": Norms})
    found = Compare("stats", "val", 1, 0, worst=False, permuted=False).run(study)
    rows = {(row.representation, row.ablation): row.test_accuracy.mean for row in found.summary}
    assert rows["a", "none"] > rows["b", "none"] + 0.15
    assert all_chance([rows["a", "top-1"], rows["b", "top-1"]], 120)


def test_noise_reads_chance_everywhere(noise):
    found = Compare("stats", "val", 3, 3, worst=True, permuted=True).run(noise)
    ranking = as_json(found.ablation)["ranking"]
    accuracies = [run.metrics["test_accuracy"] for run in found.runs]
    assert len(accuracies) == 2 * 3 * 7
    assert all_chance(accuracies, 120)
    assert all_chance([row["test_accuracy"] for row in ranking], 120)
    assert all_chance([row["val_accuracy"] for row in ranking], 120)
    # Twelve pairs of an interval of 95 % each would leave out zero now and then: the boundaries are what is shown.
    assert all(row["tied_to"] > row["rank"] for row in ranking[:-1])
    assert min(row["p"] for row in as_json(found.ablation)["differences"]) > 0.01 / len(
        as_json(found.ablation)["differences"]
    )


def test_noise_ranks_by_luck_alone(noise):
    """What the validation split put on top is no better than the rest on the test split."""
    found = as_json(Layers("stats", "val", 3).run(noise).ablation)["ranking"]
    val, test = ([row[f"{part}_accuracy"] for row in found] for part in ("val", "test"))
    assert kendalltau(val, test).pvalue > 0.01
    assert all_chance([float(np.mean(test[:3]))], 120)


# Progressive removal.


@pytest.mark.slow
def test_the_curve_begins_with_all_layers_and_ends_with_one(planted):
    found = Progressive("stats", "val", points=1000, random_points=3, random_draws=2).run(planted)
    order = [row["layer"] for row in as_json(found.ablation)["ranking"]]
    curve, evaluator = as_json(found.ablation)["curve"], planted.evaluator
    assert [point["layers"] for point in curve["remove"]] == list(range(12))
    assert [point["unit"] for point in curve["remove"]] == [None, *order[:11]]
    assert [point["layers"] for point in curve["keep"]] == list(range(1, 12))
    assert curve["remove"][0]["accuracy"] == pytest.approx(mean_of(found, "none"))

    def alone(layers):
        arm = Arm("by itself", tuple(name for name in planted.zoo.layers if name in layers))
        return evaluator.evaluate("stats", Stats(), [arm])[0].test_correct.mean()

    for k in (1, 3, 11):
        assert curve["keep"][k - 1]["accuracy"] == pytest.approx(alone(order[:k]))
        assert curve["remove"][k]["accuracy"] == pytest.approx(alone(order[k:]))
    assert curve["keep"][0]["accuracy"] == pytest.approx(as_json(found.ablation)["ranking"][0]["test_accuracy"])
    assert all_chance([point["accuracy"] for point in curve["remove"][3:]], 120)
    assert min(point["accuracy"] for point in curve["keep"][2:]) > 0.8
    assert curve["remove"][0]["accuracy"] > curve["remove"][1]["accuracy"] > curve["remove"][2]["accuracy"]
    assert [point["layers"] for point in curve["random"]] == [4, 7, 11]
    assert all(point["low"] <= point["accuracy"] <= point["high"] for point in curve["random"])
    for point in (*curve["remove"], *curve["keep"]):
        assert point["low"] <= point["accuracy"] <= point["high"]


@pytest.mark.parametrize(
    ("points", "at"), [(2, [0, 11]), (3, [0, 6, 11]), (12, list(range(12))), (5, [0, 3, 6, 8, 11])]
)
def test_points_of_a_curve_are_evenly_spaced_with_both_ends(planted, points, at):
    found = as_json(Progressive("stats", "val", points, random_points=0, random_draws=3).run(planted).ablation)["curve"]
    assert [point["layers"] for point in found["remove"]] == at
    assert found["random"] == []


def test_a_curve_of_modules_stops_where_no_module_is_left(planted):
    study = study_of(planted.evaluator, {"delta": DeltaSpectral})
    found = as_json(Progressive("stats", "val", 1000, 0, 0).run(study).ablation)
    order = [row["layer"] for row in found["ranking"]]
    gone = [point["layers"] for point in found["curve"]["remove"]]
    whole = [
        k for k in range(12)
        if any(module.down in order[k:] and module.up in order[k:] for module in study.zoo.modules)
    ]  # fmt: skip
    assert gone == whole
    assert 3 < len(whole) < 12


# Groups.


@pytest.mark.parametrize("by", GROUPINGS)
def test_groups_alone_and_without_them_are_all_layers(planted, by, monkeypatch):
    asked = []
    evaluate = Evaluator.evaluate

    def heard(self, name, representation, arms, probe=None):
        asked.extend(arms)
        return evaluate(self, name, representation, arms, probe)

    monkeypatch.setattr(Evaluator, "evaluate", heard)
    found = as_json(Grouping(by, "val").run(planted).ablation)["groups"]
    arms = {arm.name: set(arm.layers) for arm in asked}
    named = groups(planted.evaluator.everything, by)
    assert {row["group"]: row["layers"] for row in found["rows"]} == {name: len(own) for name, own in named.items()}
    everything = set(planted.zoo.layers)
    assert sorted(itertools.chain(*(arms[f"only {name}"] for name in named))) == sorted(everything)
    for name in named:
        assert arms[f"without {name}"] == everything - arms[f"only {name}"]
    ranked = [row["val_accuracy"] for row in found["rows"]]
    assert ranked == sorted(ranked, reverse=True)


def test_differences_of_groups_are_those_of_the_arms(planted):
    found = Grouping("factor", "test").run(planted)
    everything = mean_of(found, "none")
    rows = as_json(found.ablation)["groups"]["rows"]
    assert {row["group"] for row in rows} == {"down", "up"}
    for row in rows:
        assert row["without"]["mean"] - everything == pytest.approx(row["lost"]["difference"])
        assert row["lost"]["low"] <= row["lost"]["difference"] <= row["lost"]["high"]
        other = next(entry for entry in rows if entry is not row)
        assert row["without"]["mean"] == pytest.approx(other["alone"]["mean"])
    assert rows[0]["alone"]["mean"] >= rows[1]["alone"]["mean"]
    assert (rows[0]["group"], rows[0]["lost"]["high"] < 0) == ("up", True)  # two of the three planted layers


def test_a_group_that_is_everything_has_no_without(cache):
    study = study_of(evaluator_of(planted_zoo({0: [0.0, 1.0, 2.0]}, 60, modules=2), cache))
    (row,) = as_json(Grouping("block", "val").run(study).ablation)["groups"]["rows"]
    assert row["layers"] == 4
    assert row["without"] is row["lost"] is None


# Redundancy.


def test_the_drop_is_the_difference_of_two_evaluated_arms(planted):
    found = as_json(Redundancy("stats", "val").run(planted).ablation)
    rows, evaluator = found["redundancy"]["rows"], planted.evaluator
    assert [row["layer"] for row in rows] == [row["layer"] for row in found["ranking"]]
    whole = evaluator.evaluate("stats", Stats(), [Arm("none", evaluator.everything)])[0].test_correct
    for row in rows:
        left = Arm("left", tuple(name for name in evaluator.everything if name != row["layer"]))
        rest = evaluator.evaluate("stats", Stats(), [left])[0].test_correct
        assert row["drop"] == pytest.approx(whole.mean() - rest.mean())
        expected = paired_difference(whole, rest)
        assert (row["low"], row["high"], row["p"]) == (expected.low, expected.high, expected.p)
    missed = {row["layer"] for row in rows if row["low"] > 0}
    assert missed
    assert missed <= planted_names(planted)
    tau = kendalltau([row["accuracy"] for row in rows], [row["drop"] for row in rows]).statistic
    assert found["redundancy"]["kendall_tau"] == pytest.approx(tau)


def test_a_copy_reads_well_alone_and_is_not_missed(cache):
    zoo = planted_zoo({1: [0.0, 0.8, 1.6]}, 300, modules=2, copies={3: 1}, seed=5)
    study = study_of(evaluator_of(zoo, cache))
    found = as_json(Redundancy("stats", "val").run(study).ablation)
    twins = {list(zoo.layers)[1], list(zoo.layers)[3]}
    assert {row["layer"] for row in found["ranking"][:2]} == twins
    arms = [study.all_layers(), study.without(twins, "neither")]
    everything, neither = (one.test_correct.mean() for one in study.evaluate("stats", Stats(), arms))
    for row in found["redundancy"]["rows"][:2]:
        assert row["accuracy"] > 0.7
        assert row["drop"] < 0.25 * (everything - neither)


# Clusters.


def loop_disagreement(predicted):
    layers = len(predicted)
    found = np.zeros((layers, layers))
    for i, j in itertools.product(range(layers), repeat=2):
        pairs = [(s, t) for s in range(len(predicted[i])) for t in range(len(predicted[j]))]
        pairs = [(s, t) for s, t in pairs if s != t or len(predicted[i]) == 1]
        found[i, j] = np.mean([np.mean(predicted[i][s] != predicted[j][t]) for s, t in pairs])
    return found


@pytest.mark.parametrize(
    ("layers", "seeds", "adapters", "classes"), [(4, 3, 11, 3), (2, 2, 5, 2), (3, 1, 7, 4), (1, 4, 1, 1)]
)
def test_disagreement_against_a_loop(layers, seeds, adapters, classes):
    predicted = np.random.default_rng(layers).integers(0, classes, (layers, seeds, adapters))
    found = disagreement(list(predicted), classes)
    np.testing.assert_allclose(found, loop_disagreement(predicted), atol=1e-12)
    np.testing.assert_array_equal(found, found.T)


def test_layers_of_one_content_are_one_cluster_and_cluster_data_agree(cache):
    zoo = planted_zoo({1: [0.0, 0.8, 1.6], 4: [1.6, 0.0, 0.8]}, 300, copies={7: 1}, seed=6)
    names = list(zoo.layers)
    study = study_of(evaluator_of(zoo, cache, 3))
    found = as_json(Clusters("stats", "val", threshold=None).run(study).ablation)["clusters"]
    cluster = dict(zip(found["layers"], found["cluster"], strict=True))
    assert found["layers"] == names
    assert cluster[names[1]] == cluster[names[7]]
    assert len({cluster[name] for name in names}) > 1
    distance = np.array(found["distance"])
    i, j = names.index(names[1]), names.index(names[7])
    others = [distance[i, k] for k in range(12) if k not in (i, j, names.index(names[4]))]
    assert distance[i, j] < min(others)
    assert sorted(found["order"]) == list(range(12))
    assert np.array(found["linkage"]).shape == (11, 4)
    assert found["cluster"] == fcluster(np.array(found["linkage"]), found["threshold"], "distance").tolist()
    assert found["threshold"] == found["between_seeds"]
    assert squareform(distance, checks=True).shape == (66,)
    everything = study.evaluator.evaluate("stats", Stats(), [Arm(name, (name,)) for name in names])
    own = [disagreement([np.concatenate([one.val, one.test], 1)], CLASSES)[0, 0] for one in everything]
    assert found["between_seeds"] == pytest.approx(np.mean(own))


@pytest.mark.parametrize(("threshold", "clusters"), [(0, 12), (1, 1)])
def test_a_threshold_of_ones_own(planted, threshold, clusters):
    found = as_json(Clusters("stats", "val", threshold).run(planted).ablation)["clusters"]
    assert found["threshold"] == threshold
    assert len(set(found["cluster"])) == clusters


def test_clusters_of_one_layer_are_refused(cache):
    zoo = planted_zoo({0: [0.0, 1.0, 2.0]}, 60, modules=1)
    study = study_of(evaluator_of(zoo.only(list(zoo.layers)[:1]), cache))
    with pytest.raises(LorabenchError, match="ablation=clusters needs at least two layers"):
        Clusters("stats", "val", 0.5).run(study)


def test_one_seed_has_no_disagreement_with_itself_to_cut_at(planted):
    alone = study_of(replace(planted.evaluator, seeds=(0,)))
    with pytest.raises(LorabenchError, match="num_runs=2"):
        Clusters("stats", "val", None).run(alone)
    assert as_json(Clusters("stats", "val", 0.5).run(alone).ablation)["clusters"]["between_seeds"] is None


def test_a_seed_that_failed_on_one_layer_is_left_out_of_the_tree(planted):
    ranking = planted.rank("val")
    ranking.evaluations[4] = replace(
        ranking.evaluations[4],
        runs=(*ranking.evaluations[4].runs[:2], replace(ranking.evaluations[4].runs[2], error="no")),
    )
    tree = Clusters("stats", "val", None)._tree(ranking, CLASSES)
    said = [np.concatenate([one.val[:2], one.test[:2]], 1) for one in ranking.evaluations]
    assert tree.between_seeds == pytest.approx(disagreement(said, CLASSES).diagonal().mean())


def test_random_sets_differ_and_are_no_more_than_there_are():
    units = list("abcdef")
    sets = random_units(units, 2, 10, 0)
    assert len({frozenset(one) for one in sets}) == 10
    assert all(len(set(one)) == 2 for one in sets)
    assert len(random_units(units, 5, 10, 0)) == 6
    assert random_units(units, 2, 10, 0) == sets != random_units(units, 2, 10, 1)
    assert random_units(units, 2, 0, 0) == []


# Concepts.


def test_concepts_live_where_they_were_planted(cache):
    """Class 0 shifts layer 1 alone, class 1 shifts layer 2 alone, class 2 nothing."""
    zoo = planted_zoo({1: [1.5, 0.0, 0.0], 2: [0.0, 1.5, 0.0]}, 300, modules=3, seed=7)
    study = study_of(evaluator_of(zoo, cache, 2))
    found = as_json(Concepts("stats", "val").run(study).ablation)["concepts"]
    names = list(zoo.layers)
    assert found["classes"] == ["c0", "c1", "c2"]
    assert (found["best"]["c0"]["layer"], found["best"]["c1"]["layer"]) == (names[1], names[2])
    assert min(found["best"][name]["recall"] for name in ("c0", "c1")) > 0.9
    labels = study.evaluator.labels[study.evaluator.split.test]
    for layer, recall in zip(found["layers"], found["recall"], strict=True):
        (one,) = study.evaluator.evaluate("stats", Stats(), [Arm(layer, (layer,))])
        by_sklearn = np.mean([recall_score(labels, said, average=None) for said in one.test], 0)
        np.testing.assert_allclose(recall, by_sklearn)
        tables = np.mean([np.diag(run.confusion) / np.sum(run.confusion, 1) for run in one.confused(3)], 0)
        np.testing.assert_allclose(recall, tables)
    row = found["layers"].index(names[1])
    assert found["best"]["c0"]["recall"] == found["recall"][row][0]
    assert found["tau_between_classes"] < found["tau_within_classes"]


def test_a_class_without_a_test_adapter_has_no_recall_and_no_best(cache):
    evaluator = evaluator_of(planted_zoo({1: [1.5, 0.0, 0.0]}, 90, modules=2), cache)
    rows = evaluator.split.test
    evaluator = replace(evaluator, split=replace(evaluator.split, test=rows[evaluator.labels[rows] != 2]))
    found = Concepts("stats", "val").run(study_of(evaluator)).ablation.concepts
    assert all(math.isnan(row[2]) and not math.isnan(row[0]) for row in found.recall)
    assert found.tau_within_classes is not None


def test_halves_of_classes_agree_as_much_as_halves_of_one_where_all_live_in_the_same_layers():
    """The order of the layers is one for all classes; only the adapters differ."""
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 10
    known = rng.uniform(0.1, 0.9, 32)
    same = rng.uniform(size=(32, 200)) < known[:, None]
    between, within = halves_agreement(same.astype(float), labels, 10)
    assert within > 0.2
    assert between == pytest.approx(within, abs=0.05)
    own = np.stack([rng.permutation(known) for _ in range(10)], 1)
    apart = rng.uniform(size=(32, 200)) < own[:, labels]
    between, within = halves_agreement(apart.astype(float), labels, 10)
    assert between < 0.1 < within
    assert halves_agreement(np.ones((3, 4)), np.arange(4), 4) == (None, None)


# Attribution.


def random_network(cls, f=10, classes=4, **architecture):
    model = cls(in_features=f, n_classes=classes, seed=0, **architecture).double().eval()
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(30, f)))
    return model.network, x, torch.arange(30) % classes


def test_integrated_gradients_add_up_to_what_the_logit_gains():
    network, x, classes = random_network(MLP, hidden=[32, 16], dropout=0.3)
    with torch.no_grad():
        gain = (network(x) - network(torch.zeros_like(x))).gather(1, classes[:, None])[:, 0]
    assert gain.abs().max() > 0.1
    wrong = {steps: (integrated_gradients(network, x, classes, steps).sum(1) - gain).abs() for steps in (2, 64, 512)}
    assert wrong[64].mean() < 1e-3  # a ReLU turns within a step: its part of the error falls as 1 / steps
    assert wrong[512].max() < 1e-3 < wrong[2].max()


def test_integrated_gradients_of_a_linear_model_are_its_terms():
    network, x, classes = random_network(Linear)
    for steps in (1, 7):
        found = integrated_gradients(network, x, classes, steps)
        torch.testing.assert_close(found, x * network.weight[classes], rtol=1e-12, atol=1e-12)


def test_shares_of_a_linear_model_by_hand():
    network, x, classes = random_network(Linear)
    labels = torch.stack([classes, classes.flip(0)])
    problem = Problem(x, labels, torch.arange(20), torch.arange(20, 30), 4, (slice(None), torch.arange(9, -1, -1)))
    factory = functools.partial(Linear)
    state = {name: value.detach() for name, value in network.state_dict().items()}
    for member, order in ((Member(0, 0, 1), list(range(10))), (Member(0, 1, 0), list(range(9, -1, -1)))):
        terms = x[20:, order] * state["weight"][labels[member.labels, 20:]]
        parts = [terms[:, :3].sum(1).abs().mean(), terms[:, 3:].sum(1).abs().mean()]
        found = _shares(Fitted(member, state), problem, {"a": 3, "b": 7}, factory, 3)
        assert found == pytest.approx({"a": float(parts[0] / sum(parts)), "b": float(parts[1] / sum(parts))})


def test_planted_layers_get_the_largest_shares(planted):
    found = as_json(Attribution("stats", "val", steps=16).run(planted).ablation)["attribution"]
    rows = found["rows"]
    assert [row["layer"] for row in rows] == list(planted.zoo.layers)
    assert {row["layer"] for row in sorted(rows, key=lambda row: -row["share"])[:3]} == planted_names(planted)
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    tau = kendalltau([row["share"] for row in rows], [row["accuracy"] for row in rows]).statistic
    assert found["kendall_tau"] == pytest.approx(tau)


def test_modules_have_shares_and_no_accuracy_beside_a_baseline_of_layers(planted):
    study = study_of(planted.evaluator, {"delta": DeltaSpectral})
    found = as_json(Attribution("stats", "val", 4).run(study).ablation)["attribution"]
    assert [row["layer"] for row in found["rows"]] == [module.name for module in planted.zoo.modules]
    assert all(row["accuracy"] is None for row in found["rows"])
    assert found["kendall_tau"] is None


def test_what_has_no_gradient_is_refused_before_anything_is_trained(planted):
    study = study_of(replace(planted.evaluator, factory=Nearest), {"factors": Factors})
    with pytest.raises(LorabenchError, match="follows gradients, and Nearest has none"):
        Attribution("stats", "val", 4).run(study)


# Members and representations that fail.


def diverging_on(width):
    """A classifier that diverges where it reads as many numbers."""

    def make(in_features, n_classes, seed):
        rate = 1e37 if in_features == width else 1e-2
        return SMALL(in_features=in_features, n_classes=n_classes, seed=seed, learning_rate=rate, max_epochs=3)

    return make


@pytest.mark.parametrize(
    "phase",
    [
        Compare("stats", "val", 1, 1, worst=True, permuted=True),
        Progressive("stats", "val", 10, 2, 2),
        Grouping("factor", "val"),
        Redundancy("stats", "val"),
        Attribution("stats", "val", 4),
        Clusters("stats", "val", None),
        Concepts("stats", "val"),
        Layers("stats", "val", 1),
    ],
    ids=lambda phase: phase.name,
)
def test_a_phase_whose_members_of_all_layers_fail_says_so(phase, cache):
    zoo = planted_zoo({1: [0.0, 0.5, 1.0]}, 60, modules=2)
    study = study_of(evaluator_of(zoo, cache, factory=diverging_on(28), resume=False))
    found = phase.run(study)
    none = next(row for row in found.summary if row.ablation == "none")
    assert len(none.failed) == 2
    assert "the validation loss became" in none.failed[0]
    assert none.test_accuracy.n == 0


def test_no_seed_that_trained_on_every_layer_is_an_error(cache):
    zoo = planted_zoo({1: [0.0, 0.5, 1.0]}, 60, modules=2)
    study = study_of(evaluator_of(zoo, cache, factory=diverging_on(7), resume=False))
    with pytest.raises(LorabenchError, match=r"no seed has trained on every layer.*lora.*the validation loss became"):
        Layers("stats", "val", 1).run(study)
