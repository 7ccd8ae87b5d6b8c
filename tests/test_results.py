"""The result's schema, its JSON, the statistics and the tables and pictures made of it."""

import json
import math
import statistics

import numpy as np
import pytest
from matplotlib.image import imread

from lorabench.ablation.none import NoneFinding
from lorabench.errors import LorabenchError
from lorabench.report import print_table, table_text, write_figures
from lorabench.report.folders import result_in
from lorabench.results import METRICS, SCHEMA, Result, Run, Statistic, environment, read_result, summarise


def a_result(representations=("stats", "flat"), classes=3, seeds=3, failed=None):
    rng = np.random.default_rng(0)
    runs, summary = [], []
    for name in representations:
        members = []
        for seed in range(seeds):
            history = [
                {
                    "train_loss": 1 / (e + 1),
                    "val_loss": 1 / (e + 1) + 0.1 * e,
                    "val_accuracy": 0.5,
                    "learning_rate": 1e-3,
                }
                for e in range(6)
            ]
            metrics = {metric: float(rng.uniform(0.3, 0.9)) for metric in METRICS}
            table = rng.integers(0, 9, (classes, classes)).tolist()
            members.append(Run(name, "none", seed, 2, 6, metrics, table, history))
        if name == failed:
            members = [Run(name, "none", 0, error="the weights are not finite")]
        runs += members
        summary.append(summarise(members, "mlp", 4, 28, name == "flat"))
    return Result(
        dataset={"name": "synthetic", "adapters": 60, "layers": 4, "modules": 2},
        split={"train": 42, "val": 6, "test": 12, "by_source": False},
        target="category", classes=[f"class {i}" for i in range(classes)], chance=1 / classes,
        config={"seed": 0}, runs=runs, summary=summary, seconds={"zoo": 1.5}, environment=environment(),
        ablation=NoneFinding("none", [], []),
    )  # fmt: skip


def test_statistics_are_those_of_the_standard_library():
    values = [0.2, 0.5, 0.9, 0.4]
    found = Statistic.of(values)
    assert (found.mean, found.std, found.n) == (statistics.fmean(values), statistics.stdev(values), 4)
    assert found.std == pytest.approx(np.std(values, ddof=1))


def test_statistics_of_one_of_none_and_of_undefined_values():
    one = Statistic.of([0.5])
    assert (one.mean, one.n) == (0.5, 1)
    assert math.isnan(one.std)
    none = Statistic.of([])
    assert math.isnan(none.mean)
    assert none.n == 0
    assert Statistic.of([0.25, math.nan]).n == 1


def test_results_survive_the_way_through_json(tmp_path):
    result = a_result()
    result.runs[0].metrics["test_auroc"] = math.nan
    result.write(tmp_path / "results.json")
    text = (tmp_path / "results.json").read_text()
    data = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert data["schema"] == SCHEMA
    assert data["runs"][0]["metrics"]["test_auroc"] is None
    assert set(data["summary"][0]) >= {"representation", "ablation", *METRICS}
    assert set(data["summary"][0]["test_accuracy"]) == {"mean", "std", "n"}
    again = read_result(tmp_path / "results.json")
    assert again.summary == result.summary
    assert math.isnan(again.runs[0].metrics["test_auroc"])
    assert again.runs[1:] == result.runs[1:]
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_another_schema_is_refused(tmp_path):
    (tmp_path / "results.json").write_text('{"schema": 99}')
    with pytest.raises(ValueError, match="99"):
        read_result(tmp_path / "results.json")


def _changed(data, path, value):
    """The data with another value at a path; without it where the value is `...`."""
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place = data
    for part in way:
        place = place[part]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("ablation", None, "there is no phase"),
        ("ablation", 5, "there is no phase"),
        ("ablation", ..., "there is no phase"),
        ("dataset", {}, "dataset.name"),
        ("dataset.adapters", "x", "dataset.adapters"),
        ("dataset.fingerprint", 3, "dataset.fingerprint"),
        ("split", {}, "split.train"),
        ("split.train", "5", "split.train"),
        ("split.train", 0, "split.train"),
        ("split.test", None, "split.test"),
        ("split.by_source", ..., "split.by_source"),
        ("split.splits", None, "split.splits"),
        ("classes", [], "no count of every two of 0 classes"),
        ("classes", None, "classes"),
        ("config", {}, "config.seed"),
        ("config.seed", ..., "config.seed"),
        ("config.seed", True, "config.seed"),
        ("config.ablation", None, "config.ablation"),
        ("config.representations", "x", "config.representations"),
        ("config.representations", {"stats": None}, "config.representations.stats"),
        ("config.representations", {"stats": {"classifier": "knn"}}, "config.classifier"),
        ("summary", [], "no row with all layers"),
        ("summary.0.features", "many", "summary.0.features"),
        ("runs.0.metrics", {}, "seed 0 has no train_accuracy"),
        ("runs.0.metrics.test_accuracy", None, "seed 0 has no test_accuracy"),
        ("runs.0.confusion", [[1], [2, 3]], "seed 0 has no count"),
        ("seconds", {"zoo": "long"}, "seconds.zoo"),
    ],
)
def test_json_that_is_no_result_is_damaged_and_says_where(path, value, said, tmp_path):
    """A report takes what it reads as it is: nothing may come through that it falls over."""
    file = tmp_path / "results.json"
    a_result().write(file)
    file.write_text(json.dumps(_changed(json.loads(file.read_text()), path, value)))
    with pytest.raises(ValueError, match="damaged") as caught:
        read_result(file)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(LorabenchError, match="run it again"):
        result_in(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "\xff", "[" * 100_000])
def test_what_is_no_json_is_damaged(text, tmp_path):
    (tmp_path / "results.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="damaged"):
        read_result(tmp_path / "results.json")


def test_a_failed_representation_is_said_so_and_stands_in_no_mean():
    result = a_result(failed="flat")
    row = result.summary[1]
    assert row.failed == ["the weights are not finite"]
    assert row.test_accuracy.n == 0
    text = table_text(result)
    assert "flat failed: the weights are not finite" in text
    assert "failed" in next(line for line in text.splitlines() if line.lstrip().startswith("flat"))


def test_the_table_holds_the_numbers():
    result = a_result()
    text = table_text(result)
    for row in result.summary:
        line = next(line for line in text.splitlines() if line.lstrip().startswith(row.representation))
        for name in METRICS:
            value = getattr(row, name)
            assert f"{100 * value.mean:.1f} ±{100 * value.std:4.1f}" in line
    assert "42 train / 6 val / 12 test" in text
    assert "chance 33.3" in text


@pytest.mark.parametrize("columns", [80, 140])
def test_no_cell_is_cut_on_a_terminal(columns, monkeypatch):
    import io

    from rich.console import Console

    text = io.StringIO()
    print_table(a_result(("delta_spectral", "distribution")), Console(file=text, width=columns, force_terminal=True))
    assert "…" not in text.getvalue()


def test_one_seed_has_no_deviation():
    assert "±" not in table_text(a_result(seeds=1)).split("mean ± std")[0]


@pytest.mark.parametrize("classes", [2, 45])
def test_pictures_are_written_for_every_representation(classes, tmp_path):
    result = a_result(("stats", "flat", "delta_pca", "norms"), classes=classes, failed="norms")
    written = write_figures(result, tmp_path)
    names = {path.name for path in written}
    assert names == {
        "accuracy.png",
        "learning_curves.png",
        *(f"confusion_{n}.png" for n in ("stats", "flat", "delta_pca")),
    }
    for path in written:
        pixels = imread(path)
        assert min(pixels.shape[:2]) > 200
        assert pixels[..., :3].std() > 0.01, "the picture is blank"


def test_a_dollar_sign_in_a_name_is_no_formula(tmp_path):
    result = a_result(("stats",), classes=3)
    result.classes[0] = "$_$"
    assert len(write_figures(result, tmp_path)) == 3


def test_no_picture_of_nothing(tmp_path):
    assert write_figures(a_result(("stats",), failed="stats"), tmp_path) == []


def test_the_environment_names_versions_and_machine():
    found = environment()
    assert found["versions"]["torch"].startswith("2.")
    assert found["machine"]["cores"] >= 1
