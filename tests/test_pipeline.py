"""From configuration to result, in this process."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from lorabench import pipeline
from lorabench.conf_dir import conf_dir
from lorabench.errors import LorabenchError
from lorabench.results import read_result
from tests.conftest import TINY_ZOO
from tests.hub_schema import small_modules, write_hub

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*(does not have many workers|LeafSpec).*"),
]


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory):
    return write_hub(tmp_path_factory.mktemp("hub") / "set", 90, small_modules(2))


def run(folder, *overrides):
    folder.mkdir(parents=True, exist_ok=True)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", list(overrides))
        words = dict(word.split("=", 1) for word in overrides)
        groups = ("dataset", "representation", "classifier", "ablation", "trainer", "experiment")
        choices = {group: words[group] for group in groups if group in words}
        names = {"dataset": "glyphs", "representation": "spectral", "classifier": "mlp", "ablation": "none", **choices}
        return pipeline.run(cfg, folder, names)


def test_the_same_configuration_gives_the_same_result_with_and_without_the_cache(tmp_path, hub_folder):
    words = ["dataset=1k", f"dataset.path={hub_folder}", "representation=spectral", "num_runs=2"]
    runs = [
        run(tmp_path / name, *words, f"cache_dir={tmp_path / cache}")
        for name, cache in (("first", "a"), ("cached", "a"), ("afresh", "b"))
    ]
    assert runs[0].runs == runs[1].runs == runs[2].runs
    assert runs[0].summary == runs[1].summary
    stored = read_result(tmp_path / "first" / "results.json")
    assert stored.summary == runs[0].summary


def test_a_planted_category_is_read_and_shuffled_labels_are_not(tmp_path, hub_folder, monkeypatch):
    """The fake set shifts the mean of every layer by its category."""
    words = ["dataset=1k", f"dataset.path={hub_folder}", "representation=stats", "num_runs=3"]
    found = run(tmp_path / "planted", *words).summary[0]
    assert found.test_accuracy.mean > 0.7
    assert found.features == 7 * 4
    assert found.test_auroc.mean > found.test_accuracy.mean
    true = pipeline._classes

    def shuffled(*arguments):
        target = true(*arguments)
        return dataclasses.replace(target, codes=np.random.default_rng(0).permutation(target.codes))

    monkeypatch.setattr(pipeline, "_classes", shuffled)
    # 18 test adapters and three classes: 1/3 within three standard errors of the mean over seeds.
    assert run(tmp_path / "shuffled", *words).summary[0].test_accuracy.mean < 0.6


def test_both_engines_give_the_same_table(tmp_path):
    words = [*TINY_ZOO, "representation=stats", "num_runs=2", "classifier.max_epochs=8"]
    together = run(tmp_path / "stacked", *words)
    alone = run(tmp_path / "lightning", "trainer=lightning", *words)
    for ours, theirs in zip(together.runs, alone.runs, strict=True):
        assert ours.confusion == theirs.confusion
        assert ours.best_epoch == theirs.best_epoch
        # Rounding may swap two test scores of the ranking that AUROC is.
        assert ours.metrics == pytest.approx(theirs.metrics, abs=5e-3)


def test_what_fails_is_reported_as_failed_and_the_others_go_on(tmp_path, monkeypatch):
    from lorabench.representations.norms import Norms

    def broken(*_args, **_options):
        raise LorabenchError("no norms today")

    monkeypatch.setattr(Norms, "features", broken)
    words = [*TINY_ZOO, "num_runs=2", "classifier.max_epochs=2", f"cache_dir={tmp_path / 'cache'}"]
    result = run(tmp_path / "several", "representations=[stats,norms]", *words)
    assert result.summary[1].failed == ["no norms today"]
    assert result.summary[1].test_accuracy.n == 0
    assert result.summary[0].test_accuracy.n == 2
    with pytest.raises(LorabenchError, match="no norms today"):
        run(tmp_path / "alone", "representation=norms", *words)
    assert json.loads((tmp_path / "alone" / "status.json").read_text())["status"] == "failed"


def test_a_unit_larger_than_memory_is_refused_before_it_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr("lorabench.evaluation.evaluator.free_memory", lambda _device: 1000)
    with pytest.raises(LorabenchError, match="representation=flat makes 128 numbers of unet"):
        run(tmp_path / "run", "representation=flat", *TINY_ZOO, "num_runs=1")


def test_the_result_says_what_was_done(tmp_path):
    result = run(tmp_path / "run", "representation=delta_spectral", *TINY_ZOO, "num_runs=2", "classifier.max_epochs=2")
    assert result.dataset["adapters"] == sum(result.dataset["categories"].values())
    assert result.split["train"] + result.split["val"] + result.split["test"] == result.dataset["adapters"]
    assert result.config["dataset"]["rank"] == 4
    assert list(result.config["representations"]) == ["delta_spectral"]
    assert "representation" not in result.config
    assert {"zoo", "features/delta_spectral", "training/delta_spectral"} <= set(result.seconds)
    assert 0 < result.chance < 1
    for entry in result.runs:
        table = np.array(entry.confusion)
        assert table.sum() == result.split["test"]
        assert np.trace(table) / table.sum() == pytest.approx(entry.metrics["test_accuracy"])
        assert all(0 <= value <= 1 or math.isnan(value) for value in entry.metrics.values())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["num_runs=0"], "num_runs=0: a whole number from 1"),
        ([*TINY_ZOO, "target=color"], "target=color: allowed are category, leaf, pictures, steps, samples"),
        (["dataset=folder"], "dataset.path has no value"),
        (["dataset=1k", "dataset.path=nowhere"], "nowhere"),
        ([*TINY_ZOO, "trainer.device=tpu"], "allowed are auto, cpu and cuda"),
        ([*TINY_ZOO, "target=leaf"], "1 adapter"),
        ([*TINY_ZOO, "split.test=0.9"], "split"),
        ([*TINY_ZOO, "representations=[]"], "representations=\\[\\]: name at least one"),
        ([*TINY_ZOO, "representations=[{stats:3}]"], "representations"),
        ([*TINY_ZOO, "representations=stats"], "representations=stats: name at least one in a list"),
        ([*TINY_ZOO, "representations=[{stats:{onn:delta}}]"], "stats has no option onn; it has on"),
        ([*TINY_ZOO, "representations=[{pca:{components:many}}]"], "components=many: a whole number from 1 is needed"),
        ([*TINY_ZOO, "representations=[{stats:{on:zz}},stats]"], "stats: on=zz: allowed are factors and delta"),
        (
            [*TINY_ZOO, "representations=[{contrastive:{views:gauge}},{contrastive:{views:gauge,alpha:2}}]"],
            "nothing could be evaluated",
        ),
        ([*TINY_ZOO, "classifier.learning_rate=abc"], "classifier.learning_rate=abc: a number above 0 is needed"),
        ([*TINY_ZOO, "classifier.hidden=3"], "classifier.hidden=3: a list of whole numbers from 1 is needed"),
        ([*TINY_ZOO, "classifier.hidden=[3,a]"], "a list of whole numbers from 1 is needed"),
        ([*TINY_ZOO, "classifier.batch_size=2.5"], "classifier.batch_size=2.5: a whole number from 1 is needed"),
        ([*TINY_ZOO, "classifier.plateau_factor=2"], "plateau_factor=2"),
        ([*TINY_ZOO, "split.train=abc"], "split.train=abc: a number is needed"),
        ([*TINY_ZOO, "num_runs=null"], "num_runs=None: a whole number from 1 is needed"),
        ([*TINY_ZOO, "seed=99999999999999999999"], "seed=99999999999999999999: a whole number from 0"),
        ([*TINY_ZOO, "classifier.learning_rate=1e37", "representation=stats"], "the validation loss became"),
        ([*TINY_ZOO, "trainer=lightning", "classifier.learning_rate=1e37", "num_runs=1"], "the validation loss became"),
        ([*TINY_ZOO, "classifier.batch_size=0"], "batch_size=0"),
        ([*TINY_ZOO, "classifier.dropout=1.5"], "dropout=1.5"),
        ([*TINY_ZOO, "classifier.learning_rate=-0.1"], "learning_rate=-0.1"),
        ([*TINY_ZOO, "classifier.max_epochs=0"], "max_epochs=0"),
        ([*TINY_ZOO, "representation=pca", "representation.components=0"], "components"),
        ([*TINY_ZOO, "representation.on=gamma"], "representation.on=gamma: allowed are factors and delta"),
    ],
)
def test_a_users_mistake_is_one_clear_message(words, said, tmp_path):
    with pytest.raises(LorabenchError, match=said):
        run(tmp_path / "run", *words)
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "failed"
