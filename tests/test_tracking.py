"""Loggers: CSV, and Weights & Biases without a key or a network."""

import csv
import struct
import time
from pathlib import Path

import pytest
from wandb.proto.wandb_internal_pb2 import Record

from lorabench.errors import LorabenchError
from lorabench.tracking import csv_logger, log_summary, logging_to, wandb_logger


def records(folder: Path) -> list[list[Record]]:
    """What each W&B run file below `folder` holds, once its last record is there (wandb-core writes on its own)."""
    until = time.monotonic() + 30
    while True:
        found = [list(records_of(path.read_bytes())) for path in sorted(folder.rglob("*.wandb"))]
        ended = [run for run in found if any(record.WhichOneof("record_type") == "exit" for record in run)]
        if (found and len(ended) == len(found)) or time.monotonic() > until:
            return found
        time.sleep(0.2)


def records_of(data: bytes):
    """The records in LevelDB's log format, behind seven bytes of header."""
    place, block, payload = 7, 32768, b""
    while place + 7 <= len(data):
        left = block - place % block
        if left < 7:
            place += left
            continue
        size, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        payload += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            record = Record()
            record.ParseFromString(payload)
            payload = b""
            yield record


def keys_of(items) -> set[str]:
    return {".".join(item.nested_key) or item.key for item in items}


def test_csv_holds_what_was_logged(tmp_path):
    with logging_to(csv_logger(str(tmp_path), "job"), {"seed": 1}, tmp_path) as logger:
        for epoch in range(3):
            logger.log_metrics({"stats/val_loss": 1.0 / (epoch + 1)}, step=epoch)
        log_summary(logger, {"stats/test_accuracy_mean": 0.5})
    rows = list(csv.DictReader((tmp_path / "csv" / "metrics.csv").read_text().splitlines()))
    assert [float(row["stats/val_loss"]) for row in rows if row["stats/val_loss"]] == [1.0, 0.5, pytest.approx(1 / 3)]
    assert any(row["stats/test_accuracy_mean"] == "0.5" for row in rows)
    assert "seed: 1" in (tmp_path / "csv" / "hparams.yaml").read_text()


def test_wandb_goes_offline_and_every_job_is_a_finished_run_of_its_own(tmp_path):
    for job in range(2):
        folder = tmp_path / str(job)
        folder.mkdir()
        with logging_to(
            wandb_logger(str(folder), f"job{job}", "p"), {"seed": job, "dataset": {"rank": 4}}, folder
        ) as logger:
            logger.log_metrics({"stats/val_loss": 1.0}, step=0)
            log_summary(logger, {"stats/test_accuracy_mean": 0.25 + job})
        (run,) = records(folder)
        kinds = [record.WhichOneof("record_type") for record in run]
        assert "exit" in kinds, "the run was not finished"
        first = next(record.run for record in run if record.WhichOneof("record_type") == "run")
        assert (first.display_name, first.project) == (f"job{job}", "p")
        config = {key for r in run for key in keys_of(r.config.update) | keys_of(r.run.config.update)}
        assert any(key.startswith("seed") for key in config), config
        assert any(key.startswith("dataset") for key in config), config
        summary = {key for r in run for key in keys_of(r.summary.update)}
        assert any("test_accuracy_mean" in key for key in summary), summary


def test_a_failed_job_is_finished_as_failed(tmp_path):
    with pytest.raises(RuntimeError, match="boom"), logging_to(wandb_logger(str(tmp_path), "job", "p"), {}, tmp_path):
        raise RuntimeError("boom")
    (run,) = records(tmp_path)
    (code,) = [record.exit.exit_code for record in run if record.WhichOneof("record_type") == "exit"]
    assert code == 1


def test_online_without_a_key_and_unknown_modes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(LorabenchError, match="WANDB_API_KEY"):
        wandb_logger(str(tmp_path), "job", "p", mode="online")
    with pytest.raises(LorabenchError, match="allowed are auto, online and offline"):
        wandb_logger(str(tmp_path), "job", "p", mode="sometimes")
