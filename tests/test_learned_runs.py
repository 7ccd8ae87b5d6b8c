"""Learned representations in whole runs: what is written, logged, drawn, taken up again, and compared."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lorabench.ablation.none import NoAblation
from lorabench.ablation.statistics import paired_difference
from lorabench.errors import LorabenchError
from lorabench.report import table_text
from lorabench.representations.norms import Norms
from lorabench.representations.stats import Stats
from lorabench.results import read_result
from tests.ablation_findings import as_json
from tests.conftest import TINY_ZOO
from tests.small_study import evaluator_of, run, study_of
from tests.synthetic_zoo import planted_zoo

SMALL = [*TINY_ZOO, "num_runs=2", "top_k=2", "classifier.hidden=[8]", "classifier.max_epochs=2"]
THREE = ["vae", "denoising", "contrastive"]
BRIEF = "representations=[{vae:{epochs:2}},{denoising:{epochs:2}},{contrastive:{epochs:2,on:delta}}]"
LABELS = ["vae-epochs-2", "denoising-epochs-2", "contrastive-epochs-2-on-delta"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three")
    return run(folder, *SMALL, BRIEF), folder


@pytest.mark.slow
def test_a_run_keeps_its_autoencoders_and_says_how_they_went(done):
    result, folder = done
    assert [row.representation for row in result.summary] == LABELS
    stored = read_result(folder / "results.json")
    assert set(stored.learned) == set(LABELS)
    for label, count in zip(LABELS, (32, 32, 16), strict=True):
        index = json.loads((folder / "fitted" / label / "config.json").read_text())
        assert len(index["units"]) == count
        for unit, known in index["units"].items():
            tensors = load_file(folder / "fitted" / label / known["file"])
            assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
            told = stored.learned[label]["units"][unit]
            assert told["epochs"] == len(told["learning_curve"]) == 2
            assert told["best_epoch"] == int(np.argmin(told["learning_curve"]))
            assert 0 < told["reconstruction_error"] < 3
        assert {"latent", "reconstruction", "fitting"} <= {path.stem.split("_")[0] for path in folder.glob("*.png")}
        assert (folder / f"latent_{label}.png").exists()
    assert {"kl", "active_dims"} <= set(stored.learned[LABELS[0]]["units"][next(iter(index_of(folder, LABELS[0])))])
    maps = stored.learned[LABELS[0]]["maps"]
    assert [len(one["x"]) for one in maps] == [len(stored.learned[LABELS[0]]["classes"])] * 2


def index_of(folder: Path, label: str) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = json.loads((folder / "fitted" / label / "config.json").read_text())["units"]
    return found


@pytest.mark.slow
def test_what_was_learned_is_logged(done):
    _, folder = done
    with (folder / "csv" / "metrics.csv").open() as file:
        columns = set(next(csv.reader(file)))
    wanted = {"vae-epochs-2/fit/val_loss", "vae-epochs-2/fit/train_kl", "vae-epochs-2/fit/kl_1"}
    assert wanted <= columns
    for unit in index_of(folder, LABELS[0]):
        assert f"vae-epochs-2/unit/{unit}/reconstruction_error" in columns
        assert f"vae-epochs-2/unit/{unit}/active_dims" in columns
    for unit in index_of(folder, LABELS[2]):
        assert f"{LABELS[2]}/unit/{unit}/alignment" in columns
        assert f"{LABELS[2]}/unit/{unit}/uniformity" in columns


@pytest.mark.slow
def test_the_autoencoders_of_a_run_serve_another(done, tmp_path):
    """Another seed splits otherwise, so nothing comes from the cache; the options are those of the run."""
    result, folder = done
    words = ["representation=contrastive", f"representation.load_from={folder}"]
    same = run(tmp_path / "same", *SMALL, *words)
    before = next(row for row in result.summary if row.representation == LABELS[2])
    assert same.summary[0].test_accuracy == before.test_accuracy
    assert same.summary[0].gauge_invariant is True
    used = same.config["representations"]["contrastive"]
    assert used == {**result.config["representations"][LABELS[2]], "load_from": str(folder)}
    assert same.learned["contrastive"]["taken_from"] == str(folder)
    told = " ".join((tmp_path / "same" / "results.txt").read_text().split())
    assert f"contrastive: taken from {folder}; the numbers are of the adapters that it was trained on" in told
    with pytest.raises(LorabenchError, match=r"representation\.scope=all: .* were trained with scope=layer"):
        run(tmp_path / "against", *SMALL, *words, "representation.scope=all")
    other = run(tmp_path / "other", *SMALL, *words, "seed=7")
    assert other.learned["contrastive"]["units"] == result.learned[LABELS[2]]["units"]
    again = tmp_path / "other" / "fitted" / "contrastive"
    for unit, known in index_of(folder, LABELS[2]).items():
        first = load_file(folder / "fitted" / LABELS[2] / str(known["file"]))
        second = load_file(again / str(index_of(tmp_path / "other", "contrastive")[unit]["file"]))
        assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_a_folder_of_another_class_is_refused_before_anything_is_trained(done, tmp_path):
    _, folder = done
    words = ["representation=vae", f"representation.load_from={folder / 'fitted' / LABELS[1]}"]
    with pytest.raises(LorabenchError, match=r"^representation\.load_from="):
        run(tmp_path / "run", *SMALL, *words)
    assert not (tmp_path / "run" / "fitted").exists()


def test_a_wrong_option_is_told_before_the_data_set_is_read(tmp_path):
    words = ["dataset=folder", "dataset.path=/nowhere", "representation=vae", "representation.hidden=[0]"]
    with pytest.raises(LorabenchError, match=r"^representation\.hidden=\[0\]: a list of whole numbers"):
        run(tmp_path / "run", *words)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "representations"),
    [("deep", {"vae", "contrastive", "denoising"}), ("hybrid", {"spectral", "distribution", "contrastive"})],
)
def test_the_strategies_compare_with_and_without_the_best_layers(name, representations, tmp_path):
    brief = [{one: {"epochs": 1}} if one in THREE else one for one in sorted(representations)]
    text = json.dumps(brief).replace('"', "").replace(" ", "")
    result = run(
        tmp_path / "run", *SMALL, "splits=1", f"experiment={name}", f"representations={text}", "ablation.random_draws=1"
    )
    assert as_json(result.ablation)["name"] == "compare"
    assert {row.representation.split("-")[0] for row in result.summary} == representations
    assert all(row.test_accuracy.n == 2 for row in result.summary)
    assert {label.split("-")[0] for label in result.learned} == representations & set(THREE)


def test_differences_between_representations_are_paired(tmp_path):
    zoo = planted_zoo({0: (0.0, 1.0, 2.0)})
    study = study_of(evaluator_of(zoo, tmp_path), {"stats": Stats, "norms": Norms})
    found = NoAblation(against=["norms"]).run(study)
    (row,) = as_json(found.ablation)["between"]
    first, second = (study.evaluate(name, make(), [study.all_layers()])[0] for name, make in study.chosen.items())
    truth = paired_difference(first.test_correct, second.test_correct, study.test_groups)
    assert (row["representation"], row["against"]) == ("stats", "norms")
    assert (row["difference"], row["low"], row["high"], row["p"]) == (truth.difference, truth.low, truth.high, truth.p)
    accuracy = {one.representation: one.test_accuracy.mean for one in found.summary}
    assert row["difference"] == pytest.approx(accuracy["stats"] - accuracy["norms"])
    assert [one.against for one in NoAblation().run(study).ablation.between] == ["stats"], "the first by default"
    with pytest.raises(LorabenchError, match=r"^ablation\.against=pca is none of the representations: stats, norms"):
        NoAblation(against=["pca"]).run(study)


@pytest.mark.slow
def test_differences_are_in_the_table(done):
    text = table_text(done[0])
    assert "Differences of test accuracy, in points, paired" in text
    assert "to vae-epochs-2" in text
