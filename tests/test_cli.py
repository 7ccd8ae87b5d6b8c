"""`python -m lorabench` as a user meets it: real subprocesses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lorabench import __version__
from tests.conftest import TINY_ZOO
from tests.hub_schema import small_modules, write_hub
from tests.processes import Started, lorabench

QUICK = [*TINY_ZOO, "num_runs=2", "classifier.max_epochs=3"]


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory) -> Path:
    return write_hub(tmp_path_factory.mktemp("hub") / "set", 60, small_modules(3))


def one_line_of(done: subprocess.CompletedProcess[str]) -> str:
    assert "Traceback" not in done.stderr + done.stdout
    return done.stderr


@pytest.mark.slow
def test_help_config_and_completion_are_those_of_a_hydra_app(tmp_path):
    shown = lorabench("--help", cwd=tmp_path).stdout
    for group in ("dataset", "representation", "classifier", "ablation", "trainer", "logger", "experiment"):
        assert f"{group}:" in shown
    job = lorabench("--cfg", "job", "representation=norms", cwd=tmp_path).stdout
    assert "_target_: lorabench.representations.norms.Norms" in job
    assert "complete" in lorabench("--shell-completion", "install=bash", cwd=tmp_path).stdout
    asked = subprocess.run(
        [sys.executable, "-m", "lorabench", "--shell-completion", "query=bash"],
        env={**os.environ, "COMP_LINE": "lorabench representation=sp"},
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "representation=spectral" in asked.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("representaton=spectral", "representaton"),
        ("representation=spectrall", "spectrall"),
        ("classifier.droput=0.1", "droput"),
        ("num_runs", "num_runs"),
    ],
)
def test_a_wrong_option_ends_with_hydras_short_message(word, said, tmp_path):
    assert said in one_line_of(lorabench(word, cwd=tmp_path, code=1))


@pytest.mark.parametrize("word", ["~logger", "~trainer", "~split", "~seed"])
def test_what_is_taken_out_of_the_configuration_is_named(word, tmp_path):
    said = one_line_of(lorabench(word, cwd=tmp_path, code=1))
    assert f"lorabench: {word[1:]} is missing, and no run goes without it: leave {word} out" in said


@pytest.mark.slow
def test_a_run_is_run_again_from_what_it_wrote(tmp_path):
    for words, ablation in ((["representation=norms"], "none"), (["ablation=layers", "folds=2"], "layers")):
        first, again = tmp_path / ablation, tmp_path / f"{ablation} again"
        lorabench(*words, *QUICK, f"hydra.run.dir={first}", cwd=tmp_path)
        lorabench(
            "--config-path", str(first / ".hydra"), "--config-name", "config", f"hydra.run.dir='{again}'", cwd=tmp_path
        )
        ours, theirs = (json.loads((folder / "results.json").read_text()) for folder in (again, first))
        assert ours["ablation"]["name"] == ablation
        for key in ("runs", "summary", "ablation", "config"):
            assert ours[key] == theirs[key]


@pytest.mark.slow
def test_a_run_that_is_run_again_is_lorabenchs_own_in_all(tmp_path):
    """From where one is; into output_dir; as quiet as any run; and as a sweep too."""
    lorabench(*QUICK, "representation=norms", "output_dir=first", cwd=tmp_path)
    first = json.loads((tmp_path / "first" / "ablation_glyphs" / "results.json").read_text())
    saved = "first/ablation_glyphs/.hydra"
    for number, words in enumerate([["--config-path", saved], [f"--config-path={saved}"], ["-cp", f"./{saved}"]]):
        done = lorabench(f"output_dir=again{number}", *words, "--config-name", "config", cwd=tmp_path)
        assert done.stderr == ""
        assert "INFO" not in done.stdout
        assert done.stdout.endswith(f"Written to {tmp_path}/again{number}/ablation_glyphs\n")
        found = json.loads((tmp_path / f"again{number}" / "ablation_glyphs" / "results.json").read_text())
        assert found["runs"] == first["runs"]
    of_again = ["--config-path", "again0/ablation_glyphs/.hydra", "--config-name", "config.yaml"]  # what came of one
    done = lorabench("--multirun", *of_again, "seed=0,1", "output_dir=swept", cwd=tmp_path)
    assert [path.name for path in sorted(tmp_path.glob("swept/*/results.json"))] == ["results.json"] * 2
    assert (tmp_path / "swept" / "sweep.json").exists()
    assert "INFO" not in done.stdout
    assert (
        lorabench("--multirun", *of_again, "seed=0,1", "output_dir=swept", cwd=tmp_path).stdout.count("done before")
        == 2
    )
    lorabench(*of_again, cwd=tmp_path)  # into its own output_dir, where what it is made of lies
    assert not (tmp_path / "outputs").exists()
    assert not (tmp_path / "multirun").exists()


def test_what_a_run_has_written_is_run_again_by_both_of_its_files(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("seed: 0\n")
    for damaged in ("{", "3", "hydra: {runtime: {choices: {dataset: glyphs}}}"):
        said = one_line_of(lorabench("--config-path", "run", "--config-name", "config", cwd=tmp_path, code=1))
        assert f"{tmp_path}/run/hydra.yaml is missing or damaged" in said
        (tmp_path / "run" / "hydra.yaml").write_text(damaged)


@pytest.mark.slow
def test_a_word_that_is_no_program_is_told_which_there_are_and_the_version_is_ours(tmp_path):
    said = lorabench("predikt", "model", cwd=tmp_path, code=1).stderr.strip()
    assert said.startswith("lorabench: predikt is no program, and no option NAME=VALUE; programs are adapters, zoo, ")
    assert "\n" not in said
    assert lorabench("--version", cwd=tmp_path).stdout == f"lorabench {__version__}\n"


@pytest.mark.slow
def test_a_run_that_is_refused_leaves_an_earlier_ones_results_and_their_status(tmp_path):
    lorabench(*QUICK, "representation=norms", "output_dir=out", "classifier.hidden=[8]", cwd=tmp_path)
    (folder,) = (tmp_path / "out").iterdir()
    before = {path.name: path.read_bytes() for path in folder.glob("*.json")}
    lorabench(*QUICK, "representation=norms", "output_dir=out", "dataset.steps=0", cwd=tmp_path, code=1)
    assert {path.name: path.read_bytes() for path in folder.glob("*.json")} == before
    (folder / "results.json").unlink()
    lorabench(*QUICK, "representation=norms", "output_dir=out", "dataset.steps=0", cwd=tmp_path, code=1)
    assert json.loads((folder / "status.json").read_text())["status"] == "failed"


@pytest.mark.slow
def test_what_is_wrong_with_a_phases_own_zoo_is_told_by_its_options(tmp_path):
    words = ["ablation=shift", "dataset@ablation.other=glyphs", "ablation.other.base_seed=-1", "representation=norms"]
    said = one_line_of(lorabench(*QUICK, *words, cwd=tmp_path, code=1))
    assert "lorabench: ablation.other.base_seed=-1: a whole number from 0" in said


def test_a_users_mistake_ends_in_one_message(tmp_path):
    done = lorabench("dataset=1k", "dataset.path=nowhere", cwd=tmp_path, code=1)
    assert "nowhere" in one_line_of(done)
    (path,) = tmp_path.glob("outputs/*/*/status.json")
    assert json.loads(path.read_text())["status"] == "failed"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["output_dir=3"], "lorabench: output_dir=3: the name of a folder is needed"),
        (["output_dir=''"], "lorabench: output_dir='': the name of a folder is needed"),
        ([r"output_dir='\${seed}'"], "lorabench: output_dir=${seed}: Hydra takes"),
        (["output_dir=afile"], "afile"),
        (["ablation=compare", "representation=pca"], "give representations=[pca] in its place"),
        (["ablation=layers", "representation=norms"], "give ablation.baseline=norms"),
        (["dataset.cache_dir=null"], "lorabench: dataset.cache_dir=None: a path is needed"),
        (["classifier._target_=foo.bar"], "lorabench: classifier._target_=foo.bar: nothing of this name"),
        (["ablation=layers", "ablation._target_=3", "representation=norms"], "lorabench: ablation._target_=3: nothing"),
        (["representation=[stats,norms]"], "for several, give representations=[...]"),
    ],
)
def test_what_hydra_lets_pass_is_one_message_too(words, said, tmp_path):
    (tmp_path / "afile").write_text("")
    assert said in one_line_of(lorabench(*words, cwd=tmp_path, code=1))
    assert (tmp_path / "afile").is_file()


@pytest.mark.slow
def test_output_dir_is_the_published_layout_and_what_another_phase_left_there_goes(tmp_path):
    words = [*QUICK, "output_dir=ablation-results", "classifier.hidden=[8]", "top_k=2"]
    lorabench("ablation=layers", *words, cwd=tmp_path)
    folder = tmp_path / "ablation-results" / "ablation_glyphs"
    top = json.loads((folder / "top_layers.json").read_text())
    assert len(top) == 2
    assert top[0]["accuracy"] >= top[1]["accuracy"]
    assert "layer" in top[0]
    assert (folder / "layer_importance.png").exists()
    lorabench("ablation=grouping", "representation=stats", *words, cwd=tmp_path)
    names = {path.name for path in folder.iterdir()}
    assert names >= {"groups.png", "results.json", "results.txt"}
    assert not names & {"layer_importance.png", "layers.json", "top_layers.json"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ablation-results"]


@pytest.mark.slow
def test_a_sweep_goes_to_output_dir_too(tmp_path):
    lorabench("--multirun", "representation=stats,norms", "output_dir=swept", *QUICK, cwd=tmp_path)
    assert sorted(path.parent.name for path in (tmp_path / "swept").glob("*/results.json")) == ["0", "1"]
    assert [path.name for path in tmp_path.iterdir()] == ["swept"]


@pytest.mark.slow
def test_a_folder_in_the_hubs_schema(hub_folder, tmp_path):
    done = lorabench("representation=spectral", "dataset=50k", f"dataset.path={hub_folder}", "num_runs=2", cwd=tmp_path)
    assert "spectral" in done.stdout
    (path,) = tmp_path.glob("outputs/*/*/results.json")
    result = json.loads(path.read_text())
    assert result["dataset"]["name"] == "50k"
    assert result["dataset"]["adapters"] == 60
    (row,) = result["summary"]
    assert (row["representation"], row["features"]) == ("spectral", 32 * result["dataset"]["layers"])
    assert row["test_accuracy"]["n"] == 2
    names = {file.name for file in path.parent.iterdir()}
    assert names >= {
        "results.json", "results.txt", "status.json", "confusion_spectral.png", "learning_curves.png", "csv"
    }  # fmt: skip
    assert "spectral" in (path.parent / "results.txt").read_text()


@pytest.mark.slow
def test_a_job_that_fails_does_not_stop_a_sweep_nor_hide(tmp_path):
    done = lorabench("--multirun", "representation=stats,norms", "seed=0,-1", *QUICK, cwd=tmp_path, code=1)
    assert "Traceback" not in done.stderr
    (sweep,) = tmp_path.glob("multirun/*/*")
    found = [json.loads((sweep / str(job) / "status.json").read_text()) for job in range(4)]
    assert [entry["status"] for entry in found] == ["done", "failed", "done", "failed"]
    assert "seed=-1" in found[1]["error"]
    assert [path.parent.name for path in sorted(sweep.glob("*/results.json"))] == ["0", "2"]


@pytest.mark.slow
def test_several_representations_with_options_in_one_table(tmp_path):
    done = lorabench("representations=[stats,{spectral:{on:delta}}]", *QUICK, cwd=tmp_path)
    assert "spectral-on-delta" in done.stdout
    (path,) = tmp_path.glob("outputs/*/*/results.json")
    rows = {row["representation"]: row for row in json.loads(path.read_text())["summary"]}
    assert rows["stats"]["gauge_invariant"] is False
    assert rows["spectral-on-delta"]["gauge_invariant"] is True
    assert rows["spectral-on-delta"]["units"] == rows["stats"]["units"] // 2


@pytest.mark.slow
def test_an_interruption_is_one_line_and_is_written_down(tmp_path):
    """SIGINT during training, which no number of epochs would end soon."""
    endless = ["classifier.patience=100000", "classifier.max_epochs=100000"]
    running = Started("representation=stats", *TINY_ZOO, *endless, cwd=tmp_path)
    try:
        until = time.monotonic() + 120
        while not any("features/stats" in log.read_text() for log in tmp_path.glob("outputs/*/*/lorabench.log")):
            assert time.monotonic() < until, "training has not begun"
            time.sleep(0.2)
        time.sleep(1)  # not while something is imported, whose callbacks swallow an interruption
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode != 0
    assert said.strip().startswith("lorabench: interrupted")
    assert "Traceback" not in said
    (status,) = tmp_path.glob("outputs/*/*/status.json")
    assert json.loads(status.read_text())["status"] == "interrupted"
    assert not list(tmp_path.glob("outputs/*/*/results.json"))
