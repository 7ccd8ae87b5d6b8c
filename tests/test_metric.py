"""The supervised embedding: its loss against plain loops, what it learns, and whose labels it is told."""

import functools
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lorabench.errors import LorabenchError
from lorabench.evaluation.arm import Arm
from lorabench.evaluation.latent import latent_summary
from lorabench.report import table_text
from lorabench.report.figures import drawings
from lorabench.report.latent_figures import latent_figure
from lorabench.representations.fitting import Schooling, fit_together, split_rows
from lorabench.representations.metric import Metric, MetricModule, supervised_contrast
from lorabench.representations.stats import Stats
from lorabench.zoo import Zoo
from tests.cached import cached_features
from tests.small_study import evaluator_of
from tests.synthetic_zoo import make_zoo, planted_zoo, with_layers
from tests.test_learned_report import with_learned

CPU = torch.device("cpu")
QUICK = functools.partial(Metric, epochs=12, hidden=[16], latent_dim=4, learning_rate=1e-2)


@functools.cache
def parted_zoo() -> Zoo:
    """160 adapters of two modules, each in a gauge of its own; the first module's ΔW has a direction of its class."""
    rng = np.random.default_rng(0)
    made = make_zoo(160, ((8, 7), (6, 6)), (2,))
    ways, gauges = rng.normal(size=(3, 8, 7)), rng.normal(size=(160, 2, 2))
    deltas = ways[made.labels.category] + 0.8 * rng.normal(size=(160, 8, 7))
    u, sigma, vt = (part[..., :2] if part.ndim == 2 else part for part in np.linalg.svd(deltas, full_matrices=False))
    layers = {
        made.modules[0].up: ((u[:, :, :2] * sigma[:, None]) @ gauges).astype(np.float32),
        made.modules[0].down: np.linalg.solve(gauges, vt[:, :2]).astype(np.float32),
    }
    return replace(with_layers(made, layers, "parted"), scale=np.ones_like(made.scale))


TRAIN, TEST = np.arange(110), np.arange(110, 160)


def near(representation: Metric, zoo: Zoo, classes: np.ndarray) -> float:
    """How often the nearest training adapter of a test adapter is of its class."""
    points = representation.features(zoo, zoo.modules[0].name, CPU).numpy()
    return float((classes[TRAIN][(points[TEST] @ points[TRAIN].T).argmax(1)] == classes[TEST]).mean())


@pytest.mark.parametrize("temperature", [0.1, 1])
@pytest.mark.parametrize("codes", [[0, 0, 1, 1, 2], [0, 0, 0, 0, 0], [0, 1, 2, 3, 4], [0, 1, 1, 1, 0]])
def test_the_loss_is_khoslas_by_plain_loops(codes: list[int], temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.nn.functional.normalize(torch.randn(5, 3, dtype=torch.float64, generator=generator), dim=-1)
    each = []
    for i, code in enumerate(codes):
        others = [a for a in range(5) if a != i]
        below = sum(math.exp(float(points[i] @ points[a]) / temperature) for a in others)
        shares = [
            math.log(math.exp(float(points[i] @ points[p]) / temperature) / below) for p in others if codes[p] == code
        ]
        if shares:
            each.append(-sum(shares) / len(shares))
    found = supervised_contrast(points.requires_grad_(), torch.tensor(codes), temperature)
    assert float(found.detach()) == pytest.approx(sum(each) / len(each) if each else 0.0)
    (slope,) = torch.autograd.grad(found, points)
    assert slope.isfinite().all()
    assert bool(slope.any()) == bool(each)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(supervised_contrast(points[order], torch.tensor(codes)[order], temperature), found)


def test_rows_to_stop_by_come_two_of_a_class_at_a_time() -> None:
    rng = np.random.default_rng(0)
    cases = (([50, 30, 4], 0.1, 8), ([8, 8], 0.01, 4), ([1, 1, 1, 4, 5], 0.3, 4), ([3] * 20, 0.5, 30))
    for sizes, share, held in cases:
        classes = torch.from_numpy(rng.permutation(np.repeat(np.arange(len(sizes)), sizes)))
        train, val = split_rows(3, len(classes), share, classes)
        assert sorted([*train.tolist(), *val.tolist()]) == list(range(len(classes)))
        assert len(val) == held
        counts = torch.bincount(classes[val], minlength=len(sizes))
        assert (counts % 2 == 0).all(), "pairs alone, while there are any"
        known = [int(count) for count, size in zip(counts, sizes, strict=True) if size >= held] or [0]
        assert max(known) - min(known) <= 2, "class after class"
        again = split_rows(3, len(classes), share, classes)
        assert torch.equal(again[0], train)
        assert not torch.equal(split_rows(4, len(classes), share, classes)[1], val)


def test_a_stack_learns_what_each_learns_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(60) % 3
    rows = torch.randn(2, 60, 10, dtype=torch.float64, generator=generator)
    rows[:, :, :3] += 5 * torch.nn.functional.one_hot(classes, 3)
    given = {"in_features": 10, "latent_dim": 3, "hidden": [8], "learning_rate": 1e-2}
    together, alone = ([MetricModule(seed=seed, **given).double() for seed in (1, 2)] for _ in range(2))
    schooling = Schooling(16, 15, 15, 0.2)
    found = fit_together(together, rows, schooling, classes=classes)
    for k, one in enumerate(alone):
        (course,) = fit_together([one], rows[k : k + 1], schooling, classes=classes)
        assert course.best_epoch == found[k].best_epoch
        for name, value in one.state_dict().items():
            torch.testing.assert_close(together[k].state_dict()[name], value, rtol=1e-8, atol=1e-8)
        losses = [row["val_loss"] for row in course.history]
        assert min(losses) < 0.8 * losses[0]
        held = split_rows(one.seed, 60, 0.2, classes)[1]
        with torch.no_grad():
            best = one.eval().losses(rows[k, held], classes[held])["loss"]
        assert float(best) == pytest.approx(losses[course.best_epoch], rel=1e-6)


def test_a_step_of_lightning_is_told_classes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    module = MetricModule(in_features=6, latent_dim=2, seed=0, hidden=[8]).eval()
    x, classes = torch.randn(8, 6), torch.arange(8) % 2
    wanted = supervised_contrast(module.encode(x), classes, 0.1)
    logged = {}
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: value}))
    module.validation_step([x, classes], 0)
    torch.testing.assert_close(module.training_step([x, classes], 0), wanted)
    torch.testing.assert_close(logged, {"val_loss": wanted, "train_loss": wanted})
    assert float(module.losses(x)["loss"].detach()) == 0, "each is of a class of its own"


def test_diagnostics_are_plain_loops() -> None:
    module = MetricModule(in_features=6, latent_dim=3, seed=0, hidden=[8]).double().eval()
    x, classes = torch.randn(9, 6, dtype=torch.float64), torch.arange(9) % 3
    with torch.no_grad():
        z, found = module.encode(x), module.diagnostics(x, classes)
    apart = torch.cdist(z, z).square()
    pairs = [float(apart[i, j]) for i in range(9) for j in range(9) if i != j and i % 3 == j % 3]
    right = [(apart[i] + 9.0 * (torch.arange(9) == i)).argmin() % 3 == i % 3 for i in range(9)]
    assert found["alignment"] == pytest.approx(sum(pairs) / len(pairs))
    assert found["neighbour_accuracy"] == pytest.approx(sum(map(float, right)) / 9)
    assert torch.allclose(z.norm(dim=1), torch.ones(9, dtype=torch.float64))


def test_classes_come_together_and_wrong_classes_do_not_reach_new_adapters() -> None:
    zoo = parted_zoo()
    true = zoo.labels.category
    assert near(QUICK().fit(zoo.rows(TRAIN), CPU), zoo, true) > 0.9, "without a target, of the categories"
    other = true.copy()
    other[TRAIN] = np.random.default_rng(1).permutation(other[TRAIN])
    permuted = QUICK().fit(replace(zoo.rows(TRAIN), target=other[TRAIN]), CPU)
    assert near(permuted, zoo, other) < 0.6, "chance is 0.33, of 50 adapters"


def test_labels_of_training_rows_count_and_no_others(tmp_path: Path) -> None:
    zoo = parted_zoo()
    labels = zoo.labels.category % 2
    hidden, swapped = labels.copy(), labels.copy()
    hidden[TEST] = -1
    swapped[TRAIN[:60]] = 1 - swapped[TRAIN[:60]]
    unit = zoo.modules[0].name
    found, unseen, others = (
        cached_features(QUICK(), zoo, TRAIN, tmp_path / str(i), CPU, labels=told)[unit]
        for i, told in enumerate((labels, hidden, swapped))
    )
    assert torch.equal(found, unseen)
    assert not torch.allclose(found, others, atol=1e-2)
    files = {path.name for path in (tmp_path / "0").rglob("*.safetensors")}
    assert files == {path.name for path in (tmp_path / "1").rglob("*.safetensors")}
    assert not files & {path.name for path in (tmp_path / "2").rglob("*.safetensors")}


@dataclass
class Told(Stats):
    """It remembers what it was told."""

    learns = True

    def fit(self, zoo: Zoo, device: torch.device) -> "Told":
        del device
        self.seen_ = [*getattr(self, "seen_", []), zoo.target]
        return self


@dataclass
class Supervised(Told):
    """The same, but entitled to know."""

    supervised = True


def test_a_run_tells_its_target_to_those_alone_that_learn_from_it(tmp_path: Path) -> None:
    evaluator = evaluator_of(planted_zoo({0: (0.0, 1.0, 2.0)}, 60), tmp_path, seeds=1)
    evaluator.labels = (evaluator.labels + 1) % 3
    for representation in (Told(), Supervised()):
        arms = [Arm("none", evaluator.everything), Arm("permuted", evaluator.everything, permuted=True)]
        evaluator.evaluate("told", representation, arms)
        (seen,) = representation.seen_
        if representation.supervised:
            assert np.array_equal(seen, evaluator.labels[evaluator.split.train]), "once, and the true ones"
        else:
            assert seen is None


def test_the_target_follows_its_adapters() -> None:
    zoo = replace(make_zoo(6), target=np.arange(6))
    assert zoo.rows(np.array([4, 1])).target.tolist() == [4, 1]
    assert make_zoo(6).rows(np.array([4, 1])).target is None


def test_classes_that_are_too_small_are_refused() -> None:
    zoo = make_zoo(20)
    for target, largest in (([0] * 20, "[20]"), ([0] * 17 + [1] * 3, "[17, 3]"), (list(range(20)), "[1, 1, 1]")):
        told = replace(zoo, target=np.array(target))
        with pytest.raises(LorabenchError, match="two with 4 training adapters each") as error:
            QUICK().fit(told, CPU)
        assert f"synthetic have {largest}" in str(error.value)
    with pytest.raises(LorabenchError, match=r"representation\.temperature=0"):
        QUICK(temperature=0).fit(zoo, CPU)


def test_a_report_of_what_decodes_nothing_speaks_of_neighbours() -> None:
    zoo = parted_zoo()
    fitted = QUICK().fit(zoo.rows(TRAIN), CPU)
    found = latent_summary(fitted, fitted.transform(zoo, CPU), zoo.labels.category)
    assert found["supervised"] is True
    curves = {unit: min(known["learning_curve"]) for unit, known in found["units"].items()}
    assert found["maps"][1]["unit"] == min(curves, key=lambda unit: curves[unit]) == zoo.modules[0].name
    result = with_learned({"metric": found}, "glyphs-12", [f"c{i}" for i in range(3)])
    text = table_text(result)
    assert "neighbours: share of adapters whose nearest neighbour is of their class" in text
    assert "error: of the reconstruction" not in text
    assert "reconstruction" not in drawings(result)
    title = latent_figure(result, "metric").get_suptitle()
    assert "the training knew the category of training adapters" in " ".join(title.split())
