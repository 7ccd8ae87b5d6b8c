"""Factors as a representation, and methods: classifiers of factors side by side with features read by another."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lorabench.ablation.none import NoAblation
from lorabench.classifiers import probe
from lorabench.classifiers.choosing import configurations
from lorabench.classifiers.factors import split
from lorabench.classifiers.gl_net import GLNet
from lorabench.classifiers.mlp import MLP
from lorabench.classifiers.nearest import Nearest
from lorabench.conf_dir import conf_dir
from lorabench.configs import chosen_and_resolved, make, make_representation
from lorabench.errors import LorabenchError
from lorabench.evaluation import Arm
from lorabench.report import table_text
from lorabench.report.comparison import cells_of
from lorabench.representations.factors import Factors, canonical
from lorabench.representations.stats import Stats
from lorabench.zoo import ModuleShape
from lorabench.zoo.splits import split_zoo
from tests.conftest import TINY_ZOO
from tests.small_study import SHARES, SMALL, Recorded, evaluator_of, run, study_of
from tests.synthetic_zoo import deltas, make_zoo, planted_zoo, regauged

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def zoo():
    return planted_zoo({0: [0.0, 2.0, -2.0], 1: [2.0, 2.0, 2.0]}, 90, modules=3)


@pytest.mark.parametrize("sign", ["largest", "mass"])
def test_the_canonical_form_is_the_decomposition_of_numpy(sign):
    zoo = make_zoo(9)
    representation = Factors("canonical", sign)
    for module in zoo.modules:
        (_, r, d_in), (_, d_out, _) = (zoo.layers[name].shape for name in (module.down, module.up))
        found = representation.features(zoo, module.name, CPU)
        ((down, up),) = split(found.double(), [ModuleShape(r, d_in, d_out)])
        for row, delta in enumerate(deltas(zoo, module.name)):
            left, sigma, right = np.linalg.svd(delta)
            for one in range(r):
                known = one < zoo.rank[row, zoo.module_index(module.name)]
                u, v = left[:, one], right[one]
                decides = u[np.abs(u).argmax()] if sign == "largest" else np.sum(np.sign(u) * u**2)
                turn = np.sign(decides) if known else 0
                np.testing.assert_allclose(up[row, :, one], turn * sigma[one] * u, atol=2e-5)
                np.testing.assert_allclose(down[row, one], turn * v, atol=2e-5)


def test_raw_factors_are_those_of_the_zoo_with_the_scale_in_up():
    zoo = make_zoo(9)
    for column, module in enumerate(zoo.modules):
        (_, r, d_in), (_, d_out, _) = (zoo.layers[name].shape for name in (module.down, module.up))
        ((down, up),) = split(Factors().features(zoo, module.name, CPU), [ModuleShape(r, d_in, d_out)])
        assert np.array_equal(down, zoo.layers[module.down].read(0, 9))
        expected = zoo.layers[module.up].read(0, 9) * zoo.scale[:, column, None, None]
        np.testing.assert_allclose(up, expected, rtol=1e-6)


def test_the_word_of_factors_on_the_gauge_is_kept_in_both_forms():
    zoo = make_zoo(24)
    for representation in (Factors("raw"), Factors("canonical", "largest"), Factors("canonical", "mass")):
        for unit, features in representation.transform(zoo, CPU).items():
            other = representation.features(regauged(zoo), unit, CPU)
            assert torch.allclose(features, other, rtol=1e-3, atol=1e-3) == representation.gauge_invariant


def test_equal_singular_values_and_zeros_have_a_finite_form():
    down, up = torch.eye(3)[None].repeat(2, 1, 1), torch.eye(3)[None].repeat(2, 1, 1)
    up[1] = 0
    for factor in canonical(down, up):
        assert torch.isfinite(factor).all()
    found, right = canonical(down, up)
    torch.testing.assert_close((right @ found)[0], torch.eye(3).double())
    assert not found[1].any()


def test_factors_are_not_standardised_in_memory_or_in_a_file(zoo, tmp_path):
    for memory_gb in (None, 5e-5):
        engine = Recorded()
        engine.memory_gb = memory_gb
        evaluator = evaluator_of(zoo, tmp_path, 1, engine, factory=functools.partial(GLNet, max_epochs=1, width=4))
        arms = [Arm("none", evaluator.everything), Arm("two", evaluator.everything[2:])]
        found = evaluator.evaluate("gl_net", Factors(), arms)
        assert all(run.error is None for one in found for run in one.runs)
        assert bool(evaluator.streams) == (memory_gb is not None)
        shape = ModuleShape(2, 8, 8)
        for problem, members in engine.calls:
            for member in members:
                assert set(problem.shapes[member.features]) == {shape}
                assert problem.width(member.features) == shape.size * len(problem.shapes[member.features])
        if memory_gb is None:
            expected = torch.cat(list(Factors().transform(zoo, CPU).values()), 1)
            assert torch.equal(engine.calls[0][0].features(0), expected)


METHODS = {
    "gl_net": ("gl_net", functools.partial(GLNet, max_epochs=3, width=4, head=8)),
    "nearest": ("nearest", functools.partial(Nearest, k=3, grid={"k": [1]}, tries=2)),
}


@pytest.fixture(scope="module")
def found(zoo, tmp_path_factory):
    first = evaluator_of(zoo, tmp_path_factory.mktemp("cache"), factory=functools.partial(SMALL, max_epochs=4))
    second = replace(first, split=split_zoo(zoo.labels, **SHARES, seed=1), seeds=(2, 3))
    chosen = {"stats": Stats, "gl_net": Factors, "nearest": Factors}
    study = replace(study_of(first, chosen), others=[second], methods=METHODS)
    return study, NoAblation(controls=True).run(study)


def test_one_table_holds_features_and_methods_member_by_member(found):
    _, findings = found
    rows = {row.representation: row for row in findings.summary}
    assert {name: row.classifier for name, row in rows.items()} == {
        "stats": "mlp", "gl_net": "gl_net", "nearest": "nearest",
    }  # fmt: skip
    assert {name: row.gauge_invariant for name, row in rows.items()} == {
        "stats": False, "gl_net": True, "nearest": True,
    }  # fmt: skip
    assert (rows["nearest"].tries, rows["gl_net"].tries) == (2, 1)
    assert all(row.test_accuracy.n == 4 and row.parameters > 0 and row.seconds > 0 for row in rows.values())
    between = {row.representation: row for row in findings.ablation.between}
    assert set(between) == {"gl_net", "nearest"}
    gap = rows["nearest"].test_accuracy.mean - rows["stats"].test_accuracy.mean
    assert between["nearest"].difference == pytest.approx(gap)
    assert {row.representation for row in findings.ablation.controls.above} == set(rows)
    assert [row.name for row in findings.ablation.controls.rows][-1] != "ceiling", "this zoo has no pictures"
    settings = [run.settings for run in findings.runs if run.representation == "nearest"]
    assert all(one in ({}, {"k": 1}) for one in settings)


def test_members_are_kept_apart_by_classifier_and_found_again(found):
    study, findings = found
    study.evaluator.tally.clear()
    again = NoAblation(controls=True).run(replace(study))
    assert study.evaluator.trained == 0
    assert study.evaluator.taken > 0
    assert again.summary == findings.summary
    assert [row.seconds for row in again.summary] == [row.seconds for row in findings.summary]


def test_a_run_of_factors_by_one_classifier_has_controls_that_it_can_read(zoo, tmp_path):
    evaluator = evaluator_of(zoo, tmp_path, 1, factory=Nearest)
    findings = NoAblation(controls=True).run(study_of(evaluator, {"factors": Factors}, ("factors", Factors)))
    assert [row.name for row in findings.ablation.controls.rows] == ["permuted labels", "chance"]
    assert all(row.error is None for row in findings.ablation.controls.rows)
    assert findings.summary[0].test_accuracy.mean > 0.8, "planted"


def test_a_method_ranks_modules_by_its_own_classifier(zoo, tmp_path):
    study = replace(study_of(evaluator_of(zoo, tmp_path), baseline=("nearest", Factors)), methods=METHODS)
    ranking = study.rank("val")
    assert ranking.rows[0].layer == zoo.modules[0].name


def test_the_mlp_reads_raw_factors_as_they_are(zoo, tmp_path):
    factory = functools.partial(MLP, hidden=[8], dropout=0.0, max_epochs=3)
    (one,) = evaluator_of(zoo, tmp_path, 1, factory=factory).evaluate(
        "factors", Factors(), [Arm("none", tuple(zoo.layers))]
    )
    assert one.features == 3 * 2 * 16
    assert one.runs[0].error is None


def chosen_of(*overrides):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", list(overrides), return_hydra_config=True)
        names = dict(cfg.hydra.runtime.choices)
        OmegaConf.set_struct(cfg, False)
        del cfg["hydra"]
        OmegaConf.set_struct(cfg, True)
        return chosen_and_resolved(cfg, names)


def test_a_classifier_that_reads_factors_is_an_entry_like_a_representation():
    chosen, resolved = chosen_of(
        "representations=[stats,gl_net,{gl_net:{layers:2}},{nearest:{tries:1}}]", "classifier.tries=3",
        "classifier.grid={learning_rate:[1e-2,1e-4]}",
    )  # fmt: skip
    assert list(chosen) == ["stats", "gl_net", "gl_net-layers-2", "nearest-tries-1"]
    assert [one.classifier.tries for one in list(chosen.values())[1:]] == [3, 3, 1]
    assert chosen["gl_net-layers-2"].classifier.layers == 2
    assert make_representation(chosen["gl_net"]) == Factors()
    assert resolved["representations"]["gl_net"]["classifier"]["_target_"].endswith("GLNet")
    assert "classifier" not in resolved["representations"]["stats"]


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["arena", "arena_quick"])
def test_every_row_of_the_arena_has_as_many_tries(experiment):
    chosen, resolved = chosen_of(f"experiment={experiment}")
    methods = [OmegaConf.to_container(one.classifier) for one in chosen.values() if "classifier" in one]
    assert len(methods) >= 3
    counts = {len(configurations(probe(make(OmegaConf.create(one))))) for one in (resolved["classifier"], *methods)}
    assert counts == {resolved["classifier"]["tries"]}
    assert len(chosen) == len(resolved["representations"])
    assert resolved["ablation"]["against"][0] in chosen


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["representation=stats", "classifier=gl_net"],
            "gl_net reads the factors of modules, and representation=stats",
        ),
        (["representations=[mlp]"], "there is no representation mlp; there are .*stats.*, gl_net"),
        (["representations=[{gl_net:{depth:2}}]"], "gl_net has no option depth; it has .*layers"),
        (["representations=[{gl_net:{layers:0}}]"], "gl_net: layers=0: a whole number from 1 to 8 is needed"),
    ],
)
def test_what_cannot_be_read_is_told_before_the_data_set(overrides, message):
    with pytest.raises(LorabenchError, match=message):
        chosen_of(*overrides)


@pytest.mark.slow
def test_a_run_with_methods_is_shown_in_one_table_and_resumes(tmp_path):
    words = [
        *TINY_ZOO, "classifier=small_mlp", "classifier.max_epochs=2", "num_runs=2", f"cache_dir={tmp_path / 'cache'}",
        "representations=[stats,{gl_net:{max_epochs:2}},nearest,{vote:{spectra:invariant}}]",
    ]  # fmt: skip
    first, again = run(tmp_path / "a", *words), run(tmp_path / "b", *words)
    assert first.summary == again.summary
    assert [row.classifier for row in first.summary] == ["small_mlp", "gl_net", "nearest", "vote"]
    assert {cell.classifier for cell in cells_of(first)} == {"small_mlp"}, "one column of a comparison"
    text = table_text(first)
    assert "classifier" in text
    assert "parameters" in text
