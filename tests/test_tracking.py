"""Loggers: CSV, TensorBoard, and Weights & Biases without a key, with one, and refused."""

import csv
import dataclasses
import json
import logging
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lorabench.errors import LorabenchError
from lorabench.jobs import Job, sweep_of, write_jobs
from lorabench.results import Run
from lorabench.tracking import Opened, Tracker, csv_logger, logging_to, tensorboard_logger
from lorabench.tracking.wandb_runs import wandb_logger
from tests.wandb_files import logged
from tests.wandb_server import serving

ROWS = [
    [{"val_loss": 1.0, "val_accuracy": 0.25}, {"val_loss": 0.5, "val_accuracy": 0.5}],
    [{"val_loss": 3.0, "val_accuracy": 0.75}],
]
RUNS = [Run("stats", "none", seed, epochs=len(rows), history=rows) for seed, rows in enumerate(ROWS)]


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    return Opened(tmp_path, "zoo-stats", "stats", ("zoo", "none", "mlp"), key="abc")


def log(logger, folder: Path, chosen=("stats",)) -> None:
    with logging_to(logger, {"seed": 1, "dataset": {"rank": 4}}, folder):
        Tracker(logger, chosen).curves("stats", RUNS)


def test_csv_holds_the_mean_and_the_band_of_every_epoch(opened, tmp_path):
    log(csv_logger(opened), tmp_path)
    rows = list(csv.DictReader((tmp_path / "csv" / "metrics.csv").read_text().splitlines()))
    told = [tuple(float(row[f"curves/val_loss{end}"]) for end in ("", "_low", "_high")) for row in rows]
    assert told == [(2.0, 1.0, 3.0), (0.5, 0.5, 0.5)], "the second epoch is that of one member"
    assert [float(row["curves/val_accuracy"]) for row in rows] == [0.5, 0.5]
    assert "seed: 1" in (tmp_path / "csv" / "hparams.yaml").read_text()


def test_names_hold_the_representation_only_where_there_are_several(opened, tmp_path):
    log(csv_logger(opened), tmp_path, ("stats", "flat"))
    columns = (tmp_path / "csv" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert "stats/curves/val_loss_low" in columns
    assert not [name for name in columns if name.startswith("curves/")]


def test_tensorboard_holds_the_same(opened, tmp_path):
    for _ in range(2):  # an earlier run's files go
        log(tensorboard_logger(opened), tmp_path)
    files = [path for path in (tmp_path / "tensorboard").iterdir() if "tfevents" in path.name]
    assert len(files) == 1
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(one.step, one.value) for one in events.Scalars("curves/val_loss_high")] == [(0, 3.0), (1, 0.5)]
    assert "seed: 1" in (tmp_path / "tensorboard" / "hparams.yaml").read_text()


def test_tensorboard_that_is_not_installed_is_one_message(opened, monkeypatch):
    def missing(*_, **__):
        raise ModuleNotFoundError("tensorboard")

    monkeypatch.setattr("lorabench.tracking.loggers.TensorBoardLogger", missing)
    with pytest.raises(LorabenchError, match=r"pip install 'lorabench\[tensorboard\]'"):
        tensorboard_logger(opened)


def test_wandb_goes_offline_and_every_job_is_a_finished_run_of_its_own(opened, tmp_path):
    for job in ("0", "1"):
        folder = tmp_path / job
        folder.mkdir()
        log(wandb_logger(dataclasses.replace(opened, folder=folder, name=job), "p"), folder)
    found = sorted(logged(tmp_path), key=lambda one: one.run.display_name)
    assert len({one.run.run_id for one in found}) == 2
    for one, job in zip(found, ("0", "1"), strict=True):
        assert (one.exit_code, one.run.display_name, one.run.project) == (0, job, "p")
        assert (one.run.job_type, list(one.run.tags), one.run.run_group) == ("stats", ["zoo", "none", "mlp"], "")
        assert one.config["seed"] == "1"
        assert json.loads(one.config["dataset"]) == {"rank": 4}
        losses = [json.loads(step["curves/val_loss"]) for step in one.steps]
        assert losses == [2.0, 0.5]
        assert [step["trainer/global_step"] for step in one.steps] == ["0", "1"]


def test_a_failed_job_is_finished_as_failed_and_goes_on_under_its_id(opened, tmp_path):
    with pytest.raises(RuntimeError, match="boom"), logging_to(wandb_logger(opened, "p"), {}, tmp_path):
        raise RuntimeError("boom")
    (first,) = logged(tmp_path)
    assert first.exit_code == 1
    long = dataclasses.replace(opened, job_type="+".join(["stats"] * 20), tags=("x" * 100, ""))
    log(wandb_logger(long, "p"), tmp_path)
    again = {one.exit_code: one for one in logged(tmp_path)}
    assert set(again) == {0, 1}
    assert again[0].run.run_id == first.run.run_id
    assert len(again[0].run.job_type) == 64
    assert [len(tag) for tag in again[0].run.tags] == [64]


@pytest.mark.parametrize("change", [{"key": "def"}, {"fresh": True}, {}], ids=["configuration", "rerun", "done"])
def test_another_configuration_a_rerun_and_a_done_job_have_a_new_id(opened, tmp_path, change):
    if change:
        with pytest.raises(RuntimeError), logging_to(wandb_logger(opened, "p"), {}, tmp_path):
            raise RuntimeError
    else:
        log(wandb_logger(opened, "p"), tmp_path)
    log(wandb_logger(dataclasses.replace(opened, **change), "p"), tmp_path)
    assert len({one.run.run_id for one in logged(tmp_path)}) == 2


def test_the_jobs_of_a_sweep_are_a_group_that_a_later_sweep_into_its_folder_keeps(opened, tmp_path):
    folder = tmp_path / "0"
    folder.mkdir()
    write_jobs(tmp_path, [Job("0", "seed=0", [], "k")])
    first = sweep_of(folder)
    assert first.startswith(f"{tmp_path.name}-")
    write_jobs(tmp_path, [Job("0", "seed=0", [], "k"), Job("1", "seed=1", [], "l")])
    assert sweep_of(folder) == sweep_of(tmp_path / "1") == first
    assert sweep_of(tmp_path / "2") is None, "none of its jobs"
    job = dataclasses.replace(opened, folder=folder)
    log(wandb_logger(job, "p", mode="offline"), folder)
    log(wandb_logger(job, "p", group="mine", mode="offline"), folder)
    assert {one.run.run_group for one in logged(folder)} == {first, "mine"}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"jobs": [1]}', '{"id": "a", "jobs": null}'])
def test_a_damaged_list_of_jobs_is_no_sweep(tmp_path, text):
    (tmp_path / "sweep.json").write_text(text)
    assert sweep_of(tmp_path / "0") is None


def test_online_without_a_key_and_unknown_modes_are_refused(opened, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(LorabenchError, match="WANDB_API_KEY"):
        wandb_logger(opened, "p", mode="online")
    with pytest.raises(LorabenchError, match="allowed are auto, online and offline"):
        wandb_logger(opened, "p", mode="sometimes")


def test_a_project_that_can_be_none_is_one_message(opened):
    with pytest.raises(LorabenchError, match=r"logger\.project=a/b: W&B .* refuses: Invalid project name"):
        wandb_logger(opened, "a/b", mode="offline")


@pytest.mark.parametrize("code", [401, 403, 404])
def test_a_server_that_refuses_is_one_message_and_auto_goes_offline_under_the_same_id(
    opened, tmp_path, monkeypatch, caplog, code
):
    started = time.monotonic()
    with serving(monkeypatch, UpsertBucket=code) as server:
        with pytest.raises(LorabenchError, match=f"logger.project=p, logger.entity=team: W&B at {server.address} ref"):
            wandb_logger(opened, "p", entity="team", mode="online")
        with caplog.at_level(logging.WARNING):
            log(wandb_logger(opened, "p", entity="team"), tmp_path)
    assert "refuses" in caplog.text
    assert f"wandb sync {tmp_path}/wandb/offline-run-*" in caplog.text
    (found,) = logged(tmp_path)
    assert found.exit_code == 0
    assert found.run.run_id == server.runs()[0]["name"]
    assert time.monotonic() - started < 60


def test_a_server_that_takes_all_has_the_group_the_job_type_and_the_curves(opened, tmp_path, monkeypatch):
    with serving(monkeypatch) as server:
        log(wandb_logger(opened, "p", group="mine"), tmp_path)
    (told,) = server.runs()
    assert (told["project"], told["groupName"], told["jobType"], told["tags"]) == (
        "p", "mine", "stats", ["zoo", "none", "mlp"],
    )  # fmt: skip
    assert any("curves/val_loss_high" in body for body in server.streams)


def test_a_server_that_refuses_the_numbers_leaves_them_on_the_disk(opened, tmp_path, monkeypatch):
    with serving(monkeypatch, stream=403):
        log(wandb_logger(opened, "p"), tmp_path)
    (found,) = logged(tmp_path)
    assert [json.loads(step["curves/val_loss"]) for step in found.steps] == [2.0, 0.5]
