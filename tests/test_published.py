"""`experiment=published`: the origin's protocol on a small zoo, its keys beside ours, and the mark of what it is."""

import json
import statistics
from pathlib import Path

import datasets
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lorabench.conf_dir import conf_dir
from lorabench.configs import deviations, representation_configs
from lorabench.errors import LorabenchError
from lorabench.published import protocol_mark, published_results
from lorabench.report import table_text
from lorabench.results import PUBLISHED, Result, Run, read_result
from tests.ablation_findings import as_json
from tests.hub_schema import small_modules, write_hub
from tests.small_study import run

MOMENTS = "{kurtosis: raw, std: sample}"
CHOSEN = ["flat", "stats-kurtosis-raw-std-sample", "coupling-lengths-pad"]
SMALL = [
    "experiment=published", "num_runs=2", "top_k=2",
    f"representations=[flat,{{stats: {MOMENTS}}},{{coupling: {{lengths: pad}}}}]",
]  # fmt: skip
METRICS_BEHIND = ("val_accuracy", "test_accuracy", "val_macro_f1", "test_macro_f1")
MARK = protocol_mark([])


@pytest.fixture(scope="module")
def copy_of_a_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifteen leaves of eight adapters each, in the hub's schema."""
    return write_hub(tmp_path_factory.mktemp("hub") / "set", 120, small_modules(6), categories=3, per_leaf=8)


@pytest.fixture(scope="module", params=["category", "leaf"])
def done(
    request: pytest.FixtureRequest, copy_of_a_set: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Result, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    return run(folder, *SMALL, f"dataset.path={copy_of_a_set}", f"target={request.param}"), folder


@pytest.mark.slow
def test_the_rows_are_split_as_the_origin_splits_them(done, copy_of_a_set):
    result, _ = done
    rows = datasets.load_from_disk(str(copy_of_a_set))
    outer = rows.train_test_split(test_size=0.3, seed=42)
    inner = outer["test"].train_test_split(test_size=0.67, seed=42)
    sizes = {"train": len(outer["train"]), "val": len(inner["train"]), "test": len(inner["test"])}
    assert {part: result.split[part] for part in sizes} == sizes
    label = "category_name" if result.target == "category" else "leaf_id"
    tested = [result.classes.index(name) for name in inner["test"][label]]
    for one in result.runs:  # the classes of the test rows are the rows of every confusion matrix
        assert [sum(row) for row in one.confusion] == [tested.count(code) for code in range(len(result.classes))]
    assert set(outer["train"]["leaf_id"]) & set(inner["test"]["leaf_id"])


def test_layers_are_ranked_and_epochs_judged_as_the_origin_does(done):
    result, folder = done
    ranking = as_json(result.ablation)["ranking"]
    assert [row["accuracy"] for row in ranking] == [row["test_accuracy"] for row in ranking]
    assert sorted({one.seed for one in result.runs}) == [42, 43]
    for one in result.runs:
        judged = [row["val_accuracy"] for row in one.history]
        assert one.best_epoch == judged.index(max(judged))
    top = json.loads((folder / "top_layers.json").read_text())
    assert [row["layer"] for row in top] == result.published["top_layers"]


def test_results_json_has_the_origins_keys_beside_ours(done):
    result, folder = done
    stored = json.loads((folder / "results.json").read_text())
    assert set(PUBLISHED) <= set(stored)
    assert {"summary", "runs", "ablation", "schema"} <= set(stored)
    assert "published" not in stored
    assert (stored["top_k_ablated"], stored["num_runs"], len(stored["top_layers"])) == (2, 2, 2)
    again = read_result(folder / "results.json")
    assert again.published == result.published == {key: stored[key] for key in PUBLISHED}
    kinds = (("baseline_results", "none", "_baseline", 0), ("ablation_results", "top-2", "", 2))
    names = dict(zip(("val_acc", "test_acc", "val_f1", "test_f1"), METRICS_BEHIND, strict=True))
    for key, ablation, suffix, gone in kinds:
        assert [row["representation"] for row in stored[key]] == [f"{name}{suffix}" for name in CHOSEN]
        for name, row in zip(CHOSEN, stored[key], strict=True):
            own = [one for one in result.runs if (one.representation, one.ablation) == (name, ablation)]
            assert len(own) == 2
            assert (row["num_layers"], row["num_ablated"]) == (12 - gone, gone)
            for short, metric in names.items():
                values = [one.metrics[metric] for one in own]
                assert row[f"{short}_mean"] == pytest.approx(statistics.fmean(values))
                assert row[f"{short}_std"] == pytest.approx(statistics.pstdev(values))
            assert len(row) == 3 + 2 * len(names)


def test_the_run_says_what_it_is(done):
    result, folder = done
    assert MARK.startswith("the published protocol: ungrouped split")
    assert MARK.endswith("its test accuracies are too high")
    assert result.published["protocol"] == MARK
    text = " ".join((folder / "results.txt").read_text().split())
    assert MARK in text
    assert "RANKED ON THE TEST SPLIT (the published protocol)" in text


@pytest.mark.slow
def test_another_run_has_neither_the_keys_nor_the_mark(copy_of_a_set, tmp_path):
    words = [f"dataset.path={copy_of_a_set}", "published_keys=false", "num_runs=1"]
    result = run(tmp_path, *SMALL, *words)
    assert result.published == {}
    assert not set(PUBLISHED) & set(json.loads((tmp_path / "results.json").read_text()))
    assert "the published protocol:" not in table_text(result)
    assert read_result(tmp_path / "results.json").published == {}


@pytest.mark.slow
def test_a_run_under_these_keys_by_another_protocol_says_in_what_it_differs(copy_of_a_set, tmp_path):
    words = ["ablation.rank_on=val", "split.grouped=true", "split.stratified=true", "folds=2", "num_runs=1"]
    words += ["classifier.hidden=[8]", "classifier.max_epochs=5"]
    result = run(tmp_path, *SMALL, *words, f"dataset.path={copy_of_a_set}")
    said = result.published["protocol"]
    assert said.startswith("the published keys, but not the published protocol: ")
    assert "ablation.rank_on=val" in said
    assert said in " ".join((tmp_path / "results.txt").read_text().split())


def test_keys_of_a_comparison_need_one(copy_of_a_set, tmp_path):
    with pytest.raises(LorabenchError, match=r"published_keys=true .* give ablation=compare or top_k"):
        run(tmp_path, "published_keys=true", "dataset=hub", f"dataset.path={copy_of_a_set}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["num_runs=2", "top_k=3", "target=leaf", "dataset=glyphs"], []),
        (["classifier.stop_on=loss"], ["classifier.stop_on=loss"]),
        (["split.grouped=true", "seed=0"], ["seed=0", "split.grouped=True"]),
        (["splits=2"], ["splits=2"]),
        (["classifier.dropout=0"], ["classifier.dropout=0"]),
    ],
)
def test_what_is_not_the_protocol_is_found(words: list[str], said: list[str]):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("config", ["experiment=published", *words])
        found = deviations(config, representation_configs(config, ""), "published")
        plain = compose("config", ["representation=stats"]).representation
        assert deviations(config, {"stats": plain}, "published") == [*found, "representation stats"]
        other = compose("config", ["representation=stats", "representation.std=sample", "representation.kurtosis=raw"])
        assert deviations(config, {"stats": other.representation}, "published") == found, "options, not names"
    assert found == said


def test_a_run_that_is_run_again_is_held_against_the_protocol_too(tmp_path):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        OmegaConf.save(compose("config", ["experiment=published", "splits=2"]), tmp_path / "config.yaml")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        for _ in range(2):
            config = compose("config")
            assert deviations(config, representation_configs(config, ""), "published") == ["splits=2"]


def test_a_representation_that_failed_has_no_row_and_one_failed_member_is_left_out():
    metrics = {"val_accuracy": 0.5, "test_accuracy": 0.25, "val_macro_f1": 0.5, "test_macro_f1": 0.25}
    runs = [
        Run("a", "none", 42, metrics=metrics), Run("a", "none", 43, error="diverged"), Run("b", "none", 42, error="no"),
        Run("a", "top-1", 42, metrics=metrics), Run("a", "random-1/1", 42, metrics=metrics),
    ]  # fmt: skip
    found = published_results(runs, layers=8, removed=1, top_layers=["x"], deviations=["seed=0", "splits=5"])
    assert [row["representation"] for row in found["baseline_results"]] == ["a_baseline"]
    assert [row["representation"] for row in found["ablation_results"]] == ["a"]
    assert found["baseline_results"][0]["test_acc_std"] == 0
    assert found["protocol"] == "the published keys, but not the published protocol: seed=0, splits=5"
