"""Real runs with logger=wandb, read back from their run files, and the workspace over them."""

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lorabench.__main__ import main
from lorabench.dashboard import definition_of, names_in, workspace_for
from lorabench.results import read_result
from tests.conftest import TINY_ZOO
from tests.processes import Started, lorabench
from tests.wandb_files import Logged, logged
from tests.wandb_server import serving

SMALL = [*TINY_ZOO, "classifier=small_mlp", "classifier.hidden=[8]", "classifier.max_epochs=3", "num_runs=2", "folds=2"]
WANDB = ["logger=wandb", "logger.mode=offline"]


def numbers(one: Logged) -> dict[str, float]:
    return {name: json.loads(text) for name, text in one.summary.items() if name[0] != "_"}


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Logged]]:
    """Folder and W&B run of two jobs of a sweep: all layers, and without the best two."""
    folder = tmp_path_factory.mktemp("swept")
    axes = ["representation=norms", "top_k=0,2", "seed=0"]
    lorabench("--multirun", "experiment=sweep", *SMALL, *WANDB, *axes, f"output_dir={folder}", cwd=folder)
    return [(folder / name, *logged(folder / name)) for name in ("0", "1")]


@pytest.mark.slow
def test_a_sweep_is_a_group_of_a_run_a_job(jobs):
    sweep = json.loads((jobs[0][0].parent / "sweep.json").read_text())
    assert len({one.run.run_id for _, one in jobs}) == 2
    for folder, one in jobs:
        assert one.exit_code == 0
        assert (one.run.run_group, one.run.job_type, one.run.display_name) == (sweep["id"], "norms", "glyphs-norms")
        assert list(one.run.tags) == ["glyphs", "top_k", "small_mlp"]
        config = read_result(folder / "results.json").config
        assert {name: json.loads(one.config[name]) for name in config} == json.loads(json.dumps(config))


@pytest.mark.slow
def test_final_numbers_are_those_of_results_json_under_the_same_names_in_every_job(jobs):
    for folder, one in jobs:
        result, found = read_result(folder / "results.json"), numbers(one)
        assert found["chance"] == pytest.approx(result.chance)
        assert found["failed_members"] == 0
        assert found["seconds"] == pytest.approx(sum(result.seconds.values()))
        assert found["peak_memory_mb"] > 100
        for row in result.summary:
            before = "" if row.ablation == "none" else "without_top/"
            for metric in ("train_accuracy", "val_accuracy", "test_accuracy", "test_macro_f1", "test_auroc"):
                statistic = getattr(row, metric)
                for name, value in ((metric, statistic.mean), (f"{metric}_std", statistic.std)):
                    assert math.isnan(value) or found[f"{before}{name}"] == pytest.approx(value)
            assert (found[f"{before}features"], found[f"{before}members"]) == (row.features, row.test_accuracy.n)
        assert found["drop"] == pytest.approx(found["test_accuracy"] - found["without_top/test_accuracy"])
    (_, zero), (_, two) = jobs
    assert numbers(zero)["drop"] == 0
    assert set(numbers(two)) - set(numbers(zero)) >= {"ranking_stability"}
    assert set(numbers(zero)) <= set(numbers(two))


@pytest.mark.slow
def test_tables_pictures_and_files_are_kept_with_the_run(jobs):
    for folder, one in jobs:
        assert one.artifacts["results"] == ["results.json"]
        assert {f"pictures/{path.stem}" for path in folder.glob("*.png")} == {
            name.rpartition(".")[0] for name in one.history if name.startswith("pictures/") and name.endswith("._type")
        }
        result = read_result(folder / "results.json")
        (members,) = folder.rglob("media/table/member_results*.json")
        table = json.loads(members.read_text())
        told = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
        assert [(row["ablation"], row["seed"], row["test_accuracy"]) for row in told] == [
            (run.ablation, run.seed, pytest.approx(run.metrics["test_accuracy"])) for run in result.runs
        ]
        (confusion,) = folder.rglob("media/table/confusion_matrix*.json")
        counts = json.loads(confusion.read_text())["data"]
        whole = [run.confusion for run in result.runs if run.ablation == "none"]
        assert sum(row[2] for row in counts) == sum(sum(map(sum, each)) for each in whole)
        first = sum(each[0][1] for each in whole)
        assert counts[1] == [result.classes[0], result.classes[1], first]
        sent = [path for path in folder.glob("wandb/offline-run-*/to_send/**/*") if path.is_file()]
        assert len(sent) >= 3, "what is sent later lies in the run's folder and not in the home"
    layers = json.loads(next(jobs[1][0].rglob("media/table/layer_importance*.json")).read_text())
    ranking = read_result(jobs[1][0] / "results.json").ablation.ranking
    assert [row[:2] for row in layers["data"]] == [[row.layer, row.rank] for row in ranking]


@pytest.mark.slow
def test_every_name_in_a_panel_is_logged(jobs):
    (_, one) = jobs[1]
    tables = {name.split(".")[0] for name in one.history if name.endswith("._type")}
    wanted = names_in(definition_of(workspace_for("me", "p")))
    assert {"curves/val_loss_high", "without_top/test_accuracy", "pictures/layer_importance"} <= wanted
    assert {"seconds", "layer_importance", "member_results", "confusion_matrix_table", "features"} <= wanted
    assert wanted - {*one.history, *one.summary, *tables} == set()
    assert "top_k" in one.config


def test_the_workspace_shows_more_than_ten_runs_and_groups_them():
    section = definition_of(workspace_for("me", "p"))["spec"]["section"]
    assert section["settings"]["maxRuns"] >= 1000
    groups = [(key["section"], key["name"]) for key in section["runSets"][0]["grouping"]]
    assert groups == [("run", "jobType"), ("config", "top_k.value")]
    panels = [panel for one in section["panelBankConfig"]["sections"] for panel in one["panels"]]
    limits = [
        panel["config"]["limit"] for panel in panels if panel["viewType"] in ("Bar Chart", "Run History Line Plot")
    ]
    assert len(limits) > 5
    assert min(limits) >= 1000


def test_json_and_out_need_no_key_and_no_network(tmp_path, capsys):
    assert main(["dashboard", "--entity", "me", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["entity"], printed["project"]) == ("me", "lorabench")
    assert main(["dashboard", "--entity", "me", "--project", "p", "--out", str(tmp_path / "made.json")]) == 0
    assert "Layer importance: 4 panels" in capsys.readouterr().out
    assert names_in(json.loads((tmp_path / "made.json").read_text())) == names_in(printed)
    assert main(["dashboard", "--entity", "me", "--out", str(tmp_path)]) == 1
    assert "a folder lies there" in capsys.readouterr().err


def test_a_workspace_is_made_refused_or_needs_a_key(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["dashboard", "--entity", "me"]) == 1
    assert "there is no W&B key" in capsys.readouterr().err
    with serving(monkeypatch) as server:
        assert main(["dashboard", "--entity", "me", "--project", "p"]) == 0
    said = capsys.readouterr().out
    assert "Cost against accuracy: 3 panels" in said
    assert f"Made: {server.address}/me/p?nw=abc" in said
    (view,) = [variables for name, variables in server.asked if name == "UpsertView2"]
    assert "without_top/test_accuracy" in view["spec"]
    with serving(monkeypatch, UpsertView2=403):
        assert main(["dashboard", "--entity", "me", "--project", "p"]) == 1
    said = capsys.readouterr().err
    assert "refuses a workspace in me/p" in said
    assert "Traceback" not in said


def test_a_package_that_is_not_installed_is_one_message(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    assert main(["dashboard", "--entity", "me", "--json"]) == 1
    assert "pip install 'lorabench[dashboard]'" in capsys.readouterr().err


@pytest.mark.slow
def test_several_representations_stand_before_their_names_and_autoencoders_are_kept(tmp_path):
    words = ["representations=[norms,{vae:{epochs:2}}]", "output_dir=out"]
    lorabench(*SMALL, *WANDB, *words, cwd=tmp_path)
    (one,) = logged(tmp_path)
    assert (one.run.job_type, one.run.run_group) == ("norms+vae-epochs-2", "")
    wanted = {"norms/test_accuracy", "vae-epochs-2/test_accuracy", "vae-epochs-2/fit/val_loss_low", "chance"}
    assert wanted | {"norms/curves/val_loss"} <= one.names
    assert "test_accuracy" not in one.names
    written = {
        path.relative_to(tmp_path / "out" / "ablation_glyphs") for path in tmp_path.rglob("fitted/**/*.safetensors")
    }
    assert {path.as_posix() for path in written if "wandb" not in path.parts} <= set(one.artifacts["fitted"])
    assert len(written) > 5


@pytest.mark.slow
def test_a_killed_job_goes_on_under_its_id(tmp_path):
    words = [*SMALL, *WANDB, "representation=norms", "ablation=top_k", "top_k=1", f"cache_dir={tmp_path / 'cache'}"]
    words.append("output_dir=out")
    running = Started(*words, cwd=tmp_path)
    until = time.monotonic() + 120
    while not list(tmp_path.glob("out/*/wandb/offline-run-*/*.wandb")):
        assert time.monotonic() < until
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.wait()
    note = json.loads((tmp_path / "out" / "ablation_glyphs" / "wandb_run.json").read_text())
    lorabench(*words, cwd=tmp_path)
    (one,) = logged(tmp_path)
    assert (one.run.run_id, one.exit_code) == (note["id"], 0)
    assert "without_top/test_accuracy" in one.names


@pytest.mark.slow
def test_a_project_that_refuses_costs_no_numbers(tmp_path, monkeypatch):
    words = [*SMALL, "representation=norms", "logger=wandb", "logger.entity=team", "output_dir=out"]
    with serving(monkeypatch, UpsertBucket=403):
        done = lorabench(*words, "logger.mode=online", cwd=tmp_path, code=1)
        assert "logger.project=lorabench, logger.entity=team: W&B at" in done.stderr
        assert "permission denied" in done.stderr
        assert "Traceback" not in done.stderr
        assert not list(tmp_path.glob("out/*/results.json")), "it was told before anything was computed"
    with serving(monkeypatch, stream=403, CreateRunFiles=403) as server:
        done = lorabench(*words, "logger.mode=online", cwd=tmp_path)
        assert server.runs()[0]["jobType"] == "norms"
        assert "Traceback" not in done.stderr
    (one,) = logged(tmp_path)
    result = read_result(tmp_path / "out" / "ablation_glyphs" / "results.json")
    assert numbers(one)["test_accuracy"] == pytest.approx(result.summary[0].test_accuracy.mean)


@pytest.mark.slow
def test_sync_sends_an_offline_job_with_its_tables_and_files(jobs, tmp_path, monkeypatch):
    folder, one = jobs[1]
    with serving(monkeypatch) as server:
        places = [str(path) for path in folder.glob("wandb/offline-run-*")]
        subprocess.run([sys.executable, "-m", "wandb", "sync", *places], cwd=tmp_path, check=True, timeout=120)
    (told,) = server.runs()
    assert (told["name"], told["groupName"], told["jobType"]) == (one.run.run_id, one.run.run_group, "norms")
    assert any("curves/val_loss" in body for body in server.streams)
    asked = {
        variables["input"]["artifactCollectionName"] for name, variables in server.asked if name == "CreateArtifact"
    }
    assert asked == {f"results-{one.run.run_id}"} | {
        f"run-{one.run.run_id}-{name}" for name in ("member_results", "layer_importance", "confusion_matrix_table")
    }
    assert any("pictures/layer_importance" in name for name in server.files)


@pytest.mark.slow
def test_tensorboard_has_the_final_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lorabench(*SMALL, "representation=norms", "logger=tensorboard", "output_dir=out", cwd=tmp_path)
    folder = tmp_path / "out" / "ablation_glyphs"
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    result = read_result(folder / "results.json")
    assert events.Scalars("test_accuracy")[0].value == pytest.approx(result.summary[0].test_accuracy.mean)
    assert [one.step for one in events.Scalars("curves/train_loss_low")] == [0, 1, 2]
