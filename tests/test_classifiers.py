"""A stack of members gives what `pl.Trainer` gives one by one; metrics, dropout and checkpoints."""

import functools
import math
import queue
from dataclasses import dataclass, replace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import ListConfig
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, roc_auc_score

from lorabench.classifiers import (
    Classifier,
    Member,
    Problem,
    as_it_is,
    build,
    class_of,
    confusion,
    fit_members,
    probe,
    scores,
)
from lorabench.classifiers.dense import DenseNetwork
from lorabench.classifiers.factors import FactorClassifier
from lorabench.classifiers.linear import Linear
from lorabench.classifiers.members import _train, _Work, kept_a_row
from lorabench.classifiers.mlp import MLP
from lorabench.classifiers.stack import MemberStack
from lorabench.conf_dir import conf_dir
from lorabench.configs import make
from lorabench.data import FeatureData
from lorabench.engines import Lightning, Stacked
from lorabench.errors import LorabenchError
from lorabench.training import Adam, Schedule, SeededDropout, draw_keys, epoch_order, set_keys
from lorabench.zoo import ModuleShape

# Lightning advises a logger and worker processes; the data lie on the device already.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(does not have many workers|lightning_utilities|LeafSpec|callbacks used to create).*"
)


@dataclass
class Planted:
    problem: Problem
    test: torch.Tensor


def planted(n=120, f=12, classes=3, strength=2.0, seed=0, dtype=torch.float32):
    """Classes raise one feature each; the feature sets are all, the first half, the second half, and every other."""
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(np.arange(n) % classes)
    x = torch.from_numpy(rng.normal(size=(n, f)))
    x[torch.arange(n), labels] += strength
    rows = torch.from_numpy(rng.permutation(n))
    train, val, test = rows[: n * 7 // 10], rows[n * 7 // 10 : n * 8 // 10], rows[n * 8 // 10 :]
    other = torch.from_numpy(rng.permutation(labels.numpy()))
    sets = (slice(None), slice(0, f // 2), slice(f // 2, f), torch.arange(0, f, 2), torch.arange(1, f, 2))
    half = ModuleShape(1, 2, f // 2 - 2)  # where classifiers read factors, every half of the features is a module
    shapes = ((half, half), *[(half,)] * 4)
    return Planted(Problem(x.to(dtype), torch.stack([labels, other]), train, val, classes, sets, shapes), test)


def fit(engine, factory, problem, seeds):
    return engine.fit(factory, problem, [Member(seed) for seed in seeds], as_it_is)


class Branched(Classifier):
    """A network that is no plain stack of layers: trained by autograd."""

    def build(self):
        return Residual(self.in_features, self.n_classes)


class Residual(torch.nn.Module):
    def __init__(self, f, classes):
        super().__init__()
        self.inner, self.drop = torch.nn.Linear(f, f), SeededDropout(0.2)
        self.outer = torch.nn.Linear(f, classes)
        self.gain = torch.nn.Parameter(torch.tensor([0.25, 0.75]))  # its gradient comes with a stride of 0

    def forward(self, x):
        return self.outer(x * self.gain.sum() + self.drop(torch.tanh(self.inner(x))))


def of_yaml(stem):
    """What a yaml makes, small; a new one needs no line here."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        found = compose(f"classifier/{stem}").classifier
    small = {"hidden": [32, 16], "head": 8, "probes": 3, "features": 4, "encoding": 5, "width": 8}  # few weights
    small |= {"tries": 1}  # and one configuration where several are tried
    return make(
        found, **{key: value for key, value in small.items() if isinstance(found.get(key), type(value) | ListConfig)}
    )


STEMS = sorted(path.stem for path in (conf_dir() / "classifier").glob("*.yaml"))
MEMBERS = {"branched": functools.partial(Branched), **{stem: of_yaml(stem) for stem in STEMS}}
STEPPED = [kind for kind, factory in MEMBERS.items() if any(True for _ in probe(factory).parameters())]
"""Those that are trained in steps."""


@pytest.mark.parametrize("stem", STEMS)
def test_yaml_and_module_share_a_stem(stem):
    found = MEMBERS[stem].func
    assert found.__module__ == f"lorabench.classifiers.{stem}"
    assert issubclass(found, Classifier)
    assert found.__doc__


@pytest.mark.slow
@pytest.mark.parametrize("stop_on", ["loss", "accuracy"])
@pytest.mark.parametrize("kind", MEMBERS)
def test_a_stack_gives_what_the_trainer_gives_one_by_one(kind, stop_on):
    """In float64, over the whole run (plateaus, early stops, best weights included), to 1e-9.

    Networks of factors to 1e-7: they divide by norms, where the order of sums tells earlier.
    """
    problem = planted(strength=1.0, dtype=torch.float64).problem
    settings = {"max_epochs": 60, "patience": 8, "plateau_patience": 2, "learning_rate": 2e-2}
    factory = functools.partial(MEMBERS[kind], **settings, stop_on=stop_on)
    # Several seeds, feature sets of one and of other lengths, and other labels.
    members = [Member(3), Member(11), Member(4, 1), Member(4, 2), Member(4, 3, 1)]
    together = Stacked("cpu").fit(factory, problem, members, as_it_is)
    alone = Lightning("cpu").fit(factory, problem, members, as_it_is)
    for stacked, single in zip(together, alone, strict=True):
        assert stacked.best_epoch == single.best_epoch
        assert len(stacked.history) == len(single.history)
        for ours, theirs in zip(stacked.history, single.history, strict=True):
            # Lightning logs its means in float32.
            assert ours == pytest.approx(theirs, rel=1e-5)
        close = 1e-7 if issubclass(class_of(factory), FactorClassifier) else 1e-9
        torch.testing.assert_close(stacked.logits, single.logits, rtol=close, atol=close)
        assert stacked.state.keys() == single.state.keys()
        for name, value in stacked.state.items():
            torch.testing.assert_close(value, single.state[name], rtol=close, atol=close)
    if kind not in STEPPED:
        return
    assert len({fitted.best_epoch for fitted in together}) > 1, "the members should differ for this test to bite"
    assert any(row["learning_rate"] < settings["learning_rate"] for f in together for row in f.history)


def test_in_float32_members_of_a_stack_agree_with_the_trainer_to_rounding():
    problem = planted().problem
    factory = functools.partial(MEMBERS["mlp"], max_epochs=10)
    together, alone = (fit(engine("cpu"), factory, problem, [0, 1]) for engine in (Stacked, Lightning))
    for stacked, single in zip(together, alone, strict=True):
        torch.testing.assert_close(stacked.logits, single.logits, rtol=1e-3, atol=1e-3)
        assert torch.equal(stacked.logits.argmax(-1), single.logits.argmax(-1))


def test_two_layers_by_two_seeds_are_the_same_together_and_one_by_one():
    """To 1e-9 in float64, although members stop in different epochs; one stack as on a GPU, or a member a lane."""
    problem = planted(dtype=torch.float64).problem
    members = [Member(seed, half) for half in (1, 2) for seed in (0, 1)]
    settings = {"max_epochs": 40, "patience": 3, "learning_rate": 1e-2, "plateau_patience": 1}
    for kind in ("mlp", "branched"):
        factory = functools.partial(MEMBERS[kind], **settings)
        alone = [fit_members(factory, problem, [member], as_it_is)[0] for member in members]
        assert len({len(f.history) for f in alone}) > 1
        models = [factory(in_features=problem.width(m.features), n_classes=3, seed=m.seed).double() for m in members]
        kept = {}
        work = _Work(factory, problem, members, queue.SimpleQueue(), kept.__setitem__, None)
        _train(MemberStack(models, members, problem), range(4), work)
        for found in ([kept[i] for i in range(4)], fit_members(factory, problem, members, as_it_is)):
            for ours, theirs in zip(found, alone, strict=True):
                assert (ours.member, ours.best_epoch) == (theirs.member, theirs.best_epoch)
                torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("memory", "stacks"), [(1, [1] * 6), (10**9, [4, 2])])
def test_a_stack_takes_as_many_members_as_its_memory_holds_and_one_width(memory, stacks, lanes, monkeypatch):
    """On one lane: two sets of six features by two seeds, and twelve features by two."""
    problem = planted().problem
    members = [Member(s, number) for number in (1, 0, 2) for s in (0, 1)]
    made = []

    class Counted(MemberStack):
        def __init__(self, models, members, problem):
            made.append(len(models))
            super().__init__(models, members, problem)

    monkeypatch.setattr("lorabench.classifiers.members.MemberStack", Counted)
    lanes(1)
    found = fit_members(functools.partial(Branched, max_epochs=2), problem, members, as_it_is, memory=memory)
    assert [fitted.member for fitted in found] == members
    assert made == stacks


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_a_step_keeps_of_a_row_is_counted(dtype):
    """Of linear, ReLU, linear: what enters either product; the ReLU's outcome is what enters the second."""
    model = MLP(in_features=12, n_classes=3, seed=0, hidden=[7], dropout=0.0).to(dtype)
    assert kept_a_row(model, 12, dtype) == (12 + 7) * dtype.itemsize


def test_a_member_is_the_same_to_the_bit_whatever_else_is_trained():
    """What an interrupted run has left may be one member, or many: its results must not show that."""
    problem = planted(n=990).problem
    factory = functools.partial(MLP, hidden=[512, 512, 512], dropout=0.3, max_epochs=3)
    together = fit_members(factory, problem, [Member(seed) for seed in range(3)], as_it_is)
    (alone,) = fit_members(factory, problem, [Member(1)], as_it_is)
    assert torch.equal(together[1].logits, alone.logits)
    assert together[1].history == alone.history


def test_what_finish_drops_is_not_kept():
    problem = planted().problem
    factory = functools.partial(MEMBERS["mlp"], max_epochs=2)
    found = fit_members(factory, problem, [Member(4), Member(2)], lambda number, fitted: (number, fitted.member.seed))
    assert found == [(0, 4), (1, 2)]


def test_planted_signal_is_found_and_noise_is_not():
    for data, low, high in ((planted(n=300), 0.6, 1.0), (planted(n=300, strength=0.0), 0.15, 0.5)):
        for fitted in fit(Stacked("cpu"), functools.partial(MEMBERS["mlp"], max_epochs=60), data.problem, [0, 1]):
            accuracy = (fitted.logits.argmax(-1) == data.problem.labels[0])[data.test].float().mean()
            assert low <= accuracy <= high


def test_best_weights_are_copies_of_the_best_epoch():
    problem = planted(strength=1.0).problem
    factory = functools.partial(MEMBERS["mlp"], max_epochs=50, learning_rate=1e-2)
    fitted = fit(Stacked("cpu"), factory, problem, [0])[0]
    losses = [row["val_loss"] for row in fitted.history]
    assert fitted.best_epoch == losses.index(min(losses)) < len(losses) - 1
    model = MEMBERS["mlp"](in_features=12, n_classes=3, seed=99)
    model.network.load_state_dict(fitted.state)
    model.eval()
    with torch.no_grad():
        logits = model(problem.inputs)
        loss = torch.nn.functional.cross_entropy(logits[problem.val], problem.labels[0, problem.val])
    torch.testing.assert_close(logits, fitted.logits, rtol=1e-5, atol=1e-5)
    assert float(loss) == pytest.approx(min(losses), rel=1e-5)


def test_on_accuracy_a_member_keeps_the_first_epoch_of_the_best_and_waits_for_a_better_one():
    problem = planted(strength=1.0).problem
    settings = {"max_epochs": 200, "patience": 6, "learning_rate": 2e-2}
    fitted = fit(Stacked("cpu"), functools.partial(MEMBERS["mlp"], **settings, stop_on="accuracy"), problem, range(4))
    by_loss = fit(Stacked("cpu"), functools.partial(MEMBERS["mlp"], **settings), problem, range(4))
    for one in fitted:
        best, kept, waited = -1.0, -1, 0
        for epoch, row in enumerate(one.history):  # a plain loop, as it would be written by hand
            better = row["val_accuracy"] > best
            best, kept, waited = (row["val_accuracy"], epoch, 0) if better else (best, kept, waited + 1)
            assert (waited == 6) == (epoch + 1 == len(one.history))
        assert one.best_epoch == kept
        predicted = one.logits.argmax(-1)[problem.val]
        assert accuracy_score(problem.labels[0, problem.val], predicted) == pytest.approx(best)
    assert [one.best_epoch for one in fitted] != [one.best_epoch for one in by_loss]


def test_what_epochs_are_judged_by_is_loss_or_accuracy():
    with pytest.raises(LorabenchError, match=r"classifier\.stop_on=f1: allowed are loss and accuracy"):
        MEMBERS["linear"](in_features=1, n_classes=2, seed=0, stop_on="f1")


def test_a_diverged_member_is_reported_and_the_others_go_on():
    problem = planted().problem
    broken = replace(problem, inputs=torch.where(torch.arange(12) < 6, problem.inputs, float("nan")))
    factory = functools.partial(MEMBERS["mlp"], max_epochs=3)
    fitted = fit_members(factory, broken, [Member(0, 1), Member(7, 2)], as_it_is)
    assert fitted[0].error is None
    assert "seed 7" in fitted[1].error


def test_an_error_in_one_lane_ends_the_others(lanes):
    class Wrong(Linear):
        def build(self):
            if self.seed == 3:
                raise LorabenchError("no network for seed 3")
            return super().build()

    lanes(2)
    endless = functools.partial(Wrong, max_epochs=10**9, patience=10**9)
    with pytest.raises(LorabenchError, match="seed 3"):
        fit_members(endless, planted().problem, [Member(0), Member(3)], as_it_is)


@pytest.fixture
def lanes():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_closed_form_gradients_are_autograds_for_one_member_and_for_a_stack(dropout):
    """The stacked form is what a GPU runs; a CPU runs member by member."""
    generator = torch.Generator().manual_seed(0)
    seeds, step, n = torch.tensor([3, 8, 5]), 7, 9
    models = [MLP(in_features=6, n_classes=4, seed=int(s), hidden=[5, 8, 8], dropout=dropout) for s in seeds]
    networks = [model.network.double() for model in models]
    dense = DenseNetwork.of(networks[0])
    params, _ = torch.func.stack_module_state(networks)
    params = {name: p.detach() for name, p in params.items()}
    x = torch.randn(3, n, 6, dtype=torch.float64, generator=generator)
    y = torch.randint(0, 4, (3, n), generator=generator)
    masks = [None if m is None else m[0] for m in dense.masks(params, n, draw_keys(seeds, [step], range(3)))]
    target = -torch.nn.functional.one_hot(y, 4).double() / n
    logits, grads = dense.gradients(params, x, target, masks)
    for k, network in enumerate(networks):
        set_keys(network, int(seeds[k]), step)
        said = network.train()(x[k])
        torch.nn.functional.cross_entropy(said, y[k]).backward()
        single, alone = dense.gradients(
            {name: p[k] for name, p in params.items()}, x[k], target[k], [None if m is None else m[k] for m in masks]
        )
        torch.testing.assert_close(logits[k], said.detach())
        torch.testing.assert_close(single, said.detach())
        for name, parameter in network.named_parameters():
            torch.testing.assert_close(grads[name][k], parameter.grad)
            torch.testing.assert_close(alone[name], parameter.grad)
        torch.testing.assert_close(dense.logits(params, x)[k], network.eval()(x[k]).detach())


def test_adam_moves_every_member_at_its_own_rate_as_torchs_does():
    generator = torch.Generator().manual_seed(0)
    params = {"w": torch.randn(3, 4, 5, dtype=torch.float64, generator=generator), "b": torch.zeros(3, 5).double()}
    alone = [[p[k].clone().requires_grad_() for p in params.values()] for k in range(3)]
    rates = torch.tensor([1e-3, 5e-4, 1e-3], dtype=torch.float64)
    optimizers = [torch.optim.Adam(ps, lr=float(rate)) for ps, rate in zip(alone, rates, strict=True)]
    ours = Adam(params, torch.full((3,), 1e-3, dtype=torch.float64))
    for step in range(7):
        if step == 3:  # the rates part
            for optimizer, rate in zip(optimizers, rates, strict=True):
                optimizer.param_groups[0]["lr"] = float(rate)
            ours.set_rates(rates)
        elif step < 3:
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = 1e-3
        grads = {name: torch.randn(p.shape, dtype=torch.float64, generator=generator) for name, p in params.items()}
        ours.step(params, grads)
        for k, optimizer in enumerate(optimizers):
            for p, grad in zip(alone[k], grads.values(), strict=True):
                p.grad = grad[k]
            optimizer.step()
    for k in range(3):
        for name, p in zip(params, alone[k], strict=True):
            torch.testing.assert_close(params[name][k], p.detach(), rtol=1e-9, atol=1e-12)


def test_only_plain_networks_are_taken_for_dense():
    linear, relu = torch.nn.Linear(3, 3), torch.nn.ReLU()
    assert DenseNetwork.of(linear) is not None
    assert DenseNetwork.of(torch.nn.Sequential(linear, relu, SeededDropout(0.1), torch.nn.Linear(3, 2))).relu == (
        True,
        False,
    )
    for other in (
        torch.nn.Sequential(linear, relu),
        torch.nn.Sequential(linear, torch.nn.Linear(3, 2)),
        torch.nn.Sequential(relu, linear),
        torch.nn.Sequential(linear, torch.nn.Tanh(), torch.nn.Linear(3, 2)),
        torch.nn.Sequential(linear, relu, torch.nn.Dropout(0.1), torch.nn.Linear(3, 2)),
        torch.nn.Linear(3, 3, bias=False),
    ):
        assert DenseNetwork.of(other) is None, other


def test_networks_with_buffers_of_their_own_keep_them():
    class Fourier(torch.nn.Module):
        def __init__(self, f, classes):
            super().__init__()
            self.register_buffer("waves", torch.randn(f, 8))
            self.outer = torch.nn.Linear(8, classes)

        def forward(self, x):
            return self.outer(torch.cos(x @ self.waves))

    class Random(Classifier):
        def build(self):
            return Fourier(self.in_features, self.n_classes)

    problem = planted().problem
    factory = functools.partial(Random, max_epochs=3)
    together, alone = (fit(engine("cpu"), factory, problem, [0, 1, 2]) for engine in (Stacked, Lightning))
    for stacked, single in zip(together, alone, strict=True):
        torch.testing.assert_close(stacked.logits, single.logits, rtol=1e-4, atol=1e-4)
        assert stacked.state.keys() == single.state.keys()


@pytest.mark.parametrize("stop_on", ["loss", "accuracy"])
def test_both_engines_report_divergence_alike(stop_on):
    problem = planted().problem
    problem.inputs[:] = float("nan")
    factory = functools.partial(MEMBERS["linear"], max_epochs=3, stop_on=stop_on)
    for engine in (Stacked("cpu"), Lightning("cpu")):
        (fitted,) = fit(engine, factory, problem, [5])
        assert "seed 5: the validation loss became nan in epoch 0" in fitted.error
        assert len(fitted.history) == 1


def test_confident_scores_do_not_tie():
    margins = torch.tensor([20.0, 25.0, 30.0, 40.0])
    logits = torch.stack([margins, torch.zeros(4)], 1)
    assert float(scores(logits, torch.tensor([1, 1, 0, 0]), 2)["auroc"]) == 1.0


@pytest.mark.parametrize(("on", "mode"), [("loss", "min"), ("accuracy", "max")])
def test_schedule_is_torchs_plateau_and_lightnings_early_stop(on, mode):
    rng = np.random.default_rng(0)
    judged = np.abs(rng.normal(1, 0.3, size=(80, 4))).cumsum(0)[::-1].copy() / 40 + rng.normal(0, 0.05, (80, 4))
    if on == "accuracy":  # of twenty rows: many are equal, and some are none
        judged = np.round(20 * np.clip(1 - judged, 0, 1)) / 20
    schedule = Schedule(torch.full((4,), 0.1, dtype=torch.float64), 0.5, 2, 5, on)
    optimizers = [torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1) for _ in range(4)]
    plateaus = [torch.optim.lr_scheduler.ReduceLROnPlateau(o, mode=mode, factor=0.5, patience=2) for o in optimizers]
    stops = [pl.callbacks.EarlyStopping(f"val_{on}", patience=5, mode=mode) for _ in range(4)]
    stopped = set()
    for row in judged:
        _, stop = schedule.update(torch.from_numpy(row))
        for k in range(4):
            plateaus[k].step(row[k])
            assert float(schedule.rates[k]) == optimizers[k].param_groups[0]["lr"]
            theirs, _ = stops[k]._evaluate_stopping_criteria(torch.tensor(row[k]))
            assert bool(stop[k]) == theirs
            stopped |= {k} if theirs else set()
    assert stopped, "no schedule stopped: the test cannot fail"


def test_dropout_keeps_the_asked_share_and_the_mean():
    layer = SeededDropout(0.3)
    x = torch.ones(64, 512)
    masks = []
    for step in range(20):
        set_keys(layer, seed=5, step=step)
        out = layer(x)
        assert out.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
        masks.append(out > 0)
    kept = torch.stack(masks).double()
    total = kept.numel()
    assert float(kept.mean()) == pytest.approx(0.7, abs=4 * math.sqrt(0.21 / total))
    # Independent over steps and over neighbours: correlations within four standard errors of zero.
    centred = kept.reshape(20, -1) - 0.7
    correlation = (centred @ centred.T) / centred.shape[1] / 0.21
    off = correlation[~torch.eye(20, dtype=torch.bool)]
    assert float(off.abs().max()) < 5 / math.sqrt(centred.shape[1])
    neighbours = (centred[:, 1:] * centred[:, :-1]).mean() / 0.21
    assert abs(float(neighbours)) < 4 / math.sqrt(total)
    halves = centred[:, : centred.shape[1] // 2] * centred[:, centred.shape[1] // 2 :]
    assert abs(float(halves.mean() / 0.21)) < 4 / math.sqrt(total / 2)


def test_dropout_keys_differ_by_seed_step_and_layer():
    keys = {int(key) for step in range(50) for key in draw_keys(torch.arange(20), [step], range(3)).flatten()}
    assert len(keys) == 50 * 3 * 20


def test_dropout_is_silent_in_evaluation_and_refuses_nonsense():
    x = torch.randn(3, 4)
    assert SeededDropout(0.5).eval()(x) is x
    with pytest.raises(LorabenchError, match=r"p=1\.0: a number from 0 to 0\.9999"):
        SeededDropout(1.0)


def test_epoch_order_is_a_permutation_of_its_seed_and_epoch():
    assert sorted(epoch_order(1, 2, 50).tolist()) == list(range(50))
    assert epoch_order(1, 2, 50).tolist() == epoch_order(1, 2, 50).tolist()
    assert epoch_order(1, 2, 50).tolist() != epoch_order(1, 3, 50).tolist()
    assert epoch_order(1, 2, 50).tolist() != epoch_order(2, 2, 50).tolist()


def test_building_a_member_leaves_the_random_state_alone_and_follows_its_seed():
    before = torch.random.get_rng_state()
    one, two, other = (MEMBERS["mlp"](in_features=5, n_classes=3, seed=s) for s in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(next(one.parameters()), next(other.parameters()))


def test_scores_are_scikit_learns():
    rng = np.random.default_rng(1)
    labels, logits = rng.integers(0, 4, 60), rng.normal(size=(60, 4)) + np.eye(4)[rng.integers(0, 4, 60)]
    found = scores(torch.from_numpy(logits), torch.from_numpy(labels), 4)
    predicted = logits.argmax(1)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert float(found["accuracy"]) == pytest.approx(accuracy_score(labels, predicted))
    assert float(found["macro_f1"]) == pytest.approx(f1_score(labels, predicted, average="macro"))
    area = np.mean([roc_auc_score(labels == c, probabilities[:, c]) for c in range(4)])
    assert float(found["auroc"]) == pytest.approx(area, abs=1e-6)
    table = confusion(torch.from_numpy(predicted), torch.from_numpy(labels), 4)
    assert table.tolist() == confusion_matrix(labels, predicted).tolist()


def test_scores_leave_out_classes_that_do_not_occur():
    logits = torch.eye(5)[[0, 1, 2, 0]] * 4
    labels = torch.tensor([0, 1, 2, 1])
    found = scores(logits, labels, 5)
    expected = f1_score([0, 1, 2, 1], [0, 1, 2, 0], average="macro")
    assert float(found["macro_f1"]) == pytest.approx(expected)
    assert 0 <= float(found["auroc"]) <= 1
    assert math.isnan(float(scores(logits, torch.zeros(4, dtype=torch.long), 5)["auroc"]))


@pytest.mark.parametrize("kind", STEPPED)
def test_checkpoints_round_trip_under_weights_only_loading(kind, tmp_path):
    planted_ = planted()
    data = FeatureData(planted_.problem, Member(0), test=planted_.test)
    model = build(functools.partial(MEMBERS[kind], max_epochs=2), planted_.problem, Member(1))
    trainer = pl.Trainer(
        max_epochs=2, logger=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        accelerator="cpu", num_sanity_val_steps=0,
        callbacks=[pl.callbacks.ModelCheckpoint(tmp_path, filename="best", monitor="val_loss")],
    )  # fmt: skip
    trainer.fit(model, data)
    path = tmp_path / "best.ckpt"
    torch.load(path, weights_only=True)
    again = type(model).load_from_checkpoint(path, weights_only=True)
    assert dict(again.hparams) == dict(model.hparams)
    tested = trainer.test(model, data, ckpt_path="best", verbose=False, weights_only=True)[0]
    expected = scores(again.eval()(data.inputs[planted_.test]), data.labels[planted_.test], 3)
    assert tested == pytest.approx({f"test_{name}": float(value) for name, value in expected.items()}, abs=1e-6)
    trainer = pl.Trainer(
        max_epochs=4, logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
        num_sanity_val_steps=0, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(model, data, ckpt_path=path, weights_only=True)
    assert trainer.current_epoch == 4
