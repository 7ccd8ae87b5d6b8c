"""Where W2T looks: a run of the phase, and its numbers by hand."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

from lorabench.ablation.attention import Attention, module_attention, tau_interval
from lorabench.classifiers import Fitted, Member, Problem, build
from lorabench.classifiers.w2t import W2T
from lorabench.errors import LorabenchError
from lorabench.report.figures import drawings
from lorabench.report.tables import table_text
from lorabench.representations.delta_spectral import DeltaSpectral
from lorabench.representations.factors import Factors as Canonical
from lorabench.representations.stats import Stats
from lorabench.zoo import ModuleShape
from tests.ablation_findings import an_ablation, as_json
from tests.small_study import evaluator_of, study_of
from tests.synthetic_zoo import planted_zoo

SHAPES = (ModuleShape(2, 8, 8),) * 3
WIDTH = sum(shape.size for shape in SHAPES)
PHASE = Attention("delta_spectral", "val")


MEMBER = functools.partial(
    W2T, width=8, heads=2, head=8, dropout=0.0, sign_flips=0.0, max_epochs=3, batch_size=20, learning_rate=1e-2
)


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    zoo = planted_zoo({2: [0.0, 1.0, 2.0], 3: [1.0, 1.0, 1.0]}, 90, modules=3)
    evaluator = evaluator_of(zoo, tmp_path_factory.mktemp("cache"))
    chosen = {"w2t": functools.partial(Canonical, form="canonical")}
    study = study_of(evaluator, chosen, ("delta_spectral", DeltaSpectral))
    return replace(study, methods={"w2t": ("w2t", MEMBER)})


def test_the_phase_has_a_share_a_module_beside_its_accuracy_alone(studied):
    found = as_json(PHASE.run(studied).ablation)
    rows, names = found["attention"]["rows"], [module.name for module in studied.zoo.modules]
    assert [row["layer"] for row in rows] == names
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert all(0 < row["share"] < 1 and row["std"] > 0 for row in rows)
    alone = {row["layer"]: row["test_accuracy"] for row in found["ranking"]}
    assert [row["accuracy"] for row in rows] == [alone[name] for name in names]
    tau = kendalltau([row["share"] for row in rows], [alone[name] for name in names]).statistic
    assert found["attention"]["kendall_tau"] == pytest.approx(tau)
    assert found["tau_low"] is None or -1 <= found["tau_low"] <= found["tau_high"] <= 1


def test_the_attention_is_the_mean_over_adapters_that_were_not_trained_on():
    x = torch.randn(12, WIDTH, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, 1, 2] * 3 + [-1, 1, 2]])
    problem = Problem(x, labels, torch.arange(5), torch.arange(5, 7), 3, shapes=(SHAPES,))
    model = build(MEMBER, problem, Member(4))
    fitted = Fitted(Member(4), model.network.state_dict())
    found = module_attention(fitted, problem, {"a": 32, "b": 32, "c": 32}, MEMBER)
    expected = np.mean([model.attention(x[i : i + 1])[0].tolist() for i in (7, 8, 10, 11)], 0)
    assert found == pytest.approx(dict(zip("abc", expected, strict=True)), rel=1e-5)


def test_a_classifier_without_attention_is_refused_before_anything_is_trained(studied):
    plain = study_of(evaluator_of(studied.zoo, studied.evaluator.cache_dir), {"stats": Stats})
    with pytest.raises(
        LorabenchError, match=r"^ablation=attention draws .* MLP has none; take representations=\[w2t\]$"
    ):
        PHASE.run(plain)
    assert plain.evaluator.trained == 0


def test_the_interval_of_tau_is_that_of_the_draws():
    rng = np.random.default_rng(1)
    one, accuracy = rng.dirichlet(np.ones(6), 1), rng.uniform(size=(400, 6))
    taus = [kendalltau(one[0], row).statistic for row in accuracy]
    assert tau_interval(one, accuracy) == pytest.approx(tuple(np.quantile(taus, (0.025, 0.975))))
    assert tau_interval(np.tile(one, (3, 1)), np.tile(one, (5, 1))) == pytest.approx((1, 1))
    ends = tau_interval(np.stack([one[0], -2 * one[0]]), np.tile(one, (400, 1)))
    assert ends == pytest.approx((-1, 1)), "the members say opposite things"


def test_the_report_says_shares_tau_and_its_interval():
    result = an_ablation("attention", "glyphs-12")
    rows = as_json(result.ablation)["attention"]["rows"]
    best = max(rows, key=lambda row: row["share"])
    text = table_text(result)
    assert f"{100 * best['share']:.1f} ± 0.2" in next(line for line in text.splitlines() if best["layer"] in line)
    assert "0.31" in text
    assert "0.10 to 0.50" in " ".join(text.split())
    axes = drawings(result)["attention"]().axes[0]
    shown = np.sort(np.concatenate([one.lines[0].get_xdata() for one in axes.containers]))
    np.testing.assert_allclose(shown, np.sort([100 * row["share"] for row in rows]))
