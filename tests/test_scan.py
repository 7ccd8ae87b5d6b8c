"""A folder of adapters as one table."""

import csv
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lorabench.adapters.__main__ import main
from lorabench.adapters.metadata.inspection import inspect
from lorabench.adapters.metadata.library import COLUMNS, is_one_adapter, scan, write_rows
from lorabench.adapters.reading.folders import adapter_files
from lorabench.errors import LorabenchError
from tests.adapter_folders import write_mixed
from tests.bench import bench_inspect
from tests.inspected_files import KOHYA, kohya_tensors, sparse, write
from tests.real_adapters import SHARED, real_files
from tests.test_hashes import kohya


@pytest.fixture
def library(tmp_path: Path) -> Path:
    root = write_mixed(tmp_path / "library")
    write(root / "fox.safetensors", kohya_tensors(), KOHYA | {"sshs_model_hash": "0"})
    (root / "broken.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    (root / "dogs" / "empty.bin").write_bytes(b"")
    (root / "notes.txt").write_text("no adapter")
    (root / ".partial.safetensors").write_bytes(b"")
    torch.save({"a.lora_A": torch.ones(2, 3), "a.lora_B": torch.ones(4, 2)}, root / "old.pt")
    return root


FILES = [
    "broken.safetensors", "cats/a.safetensors", "cats/b/adapter_model.safetensors", "dogs/c.safetensors",
    "dogs/deep/d.safetensors", "dogs/empty.bin", "fox.safetensors", "old.pt",
]  # fmt: skip


def test_every_file_has_a_row_the_unreadable_too(library: Path) -> None:
    rows = {row["file"]: row for row in scan(library)}
    assert list(rows) == FILES
    assert all(list(row) == list(COLUMNS) for row in rows.values())
    assert [name for name, row in rows.items() if not row["valid"]] == ["broken.safetensors", "dogs/empty.bin"]
    assert "header" in rows["broken.safetensors"]["error"]
    assert "empty" in rows["dogs/empty.bin"]["error"]
    assert rows["broken.safetensors"]["size"] == 10
    fox = rows["fox.safetensors"]
    assert {"learning_rate": 1e-4, "steps": 1600, "base_model": "base.safetensors", "rank": 4, "alpha": 2.0,
            "modules": 3, "trigger_words": ["red fox"], "tags": ["fox", "grass", "snow"], "model_hash": "0",
            "method": "LoRA", "ranks": ["4"], "title": "1984"}.items() <= fox.items()  # fmt: skip
    assert rows["cats/b/adapter_model.safetensors"]["alpha"] == 6.0  # r = 3, scale 2, of adapter_config.json
    assert rows["cats/a.safetensors"]["learning_rate"] is None


def test_rows_say_what_inspect_says(library: Path) -> None:
    for row in scan(library):
        if row["valid"]:
            found = inspect(library / row["file"], hashes=False)
            assert row["parameters"] == found.architecture_info["parameters"]["value"]
            assert row["dtypes"] == list(found.architecture_info["dtypes"]["value"])
            assert row["naming"] == found.file_info["naming"]["value"]


def test_hashes_are_checked_on_demand_and_strict_is_strict(library: Path) -> None:
    write(library / "odd.safetensors", kohya_tensors() | {"x.ia3_l": torch.ones(2)})
    bad = [row["file"] for row in scan(library, hashes=True) if not row["valid"]]
    assert bad == ["broken.safetensors", "dogs/empty.bin", "fox.safetensors"]
    bad = [row["file"] for row in scan(library, strict=True) if not row["valid"]]
    assert bad == ["broken.safetensors", "dogs/empty.bin", "odd.safetensors"]


def test_processes_give_the_same_rows_in_the_same_order(library: Path) -> None:
    assert list(scan(library, jobs=2)) == list(scan(library))


def test_where_nothing_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(scan(tmp_path)) == []
    with pytest.raises(LorabenchError, match="no such folder"):
        list(scan(tmp_path / "none"))
    assert main(["inspect", str(tmp_path)]) == 1
    assert "no adapter file" in capsys.readouterr().err


def test_links_to_folders_are_not_followed_in_circles(library: Path) -> None:
    (library / "again").symlink_to(library)
    (library / "link.safetensors").symlink_to(library / "cats" / "a.safetensors")
    (library / "nowhere.safetensors").symlink_to(library / "gone")
    names = [path.relative_to(library).as_posix() for path in adapter_files(library).files]
    assert names == sorted([*FILES, "link.safetensors", "nowhere.safetensors"])
    rows = {row["file"]: row for row in scan(library)}
    assert rows["link.safetensors"]["valid"]
    assert rows["nowhere.safetensors"]["error"]


def test_one_adapter_in_its_folder_is_no_library(library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = library / "cats" / "b"
    assert is_one_adapter(one)
    assert not is_one_adapter(library)
    assert not is_one_adapter(library / "dogs")
    assert main(["inspect", str(one)]) == 0
    assert "adapter_model.safetensors  LoRA" in capsys.readouterr().out.splitlines()[0]
    write(one / "checkpoint-1" / "adapter_model.safetensors", kohya_tensors())
    assert not is_one_adapter(one)


def test_what_trainers_keep_for_themselves_is_not_opened(library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = library / "cats" / "b"
    for name in ("optimizer.pt", "training_args.bin", "rng_state_0.pth", "scheduler.pt"):
        (one / name).write_bytes(b"not to be read")
    assert is_one_adapter(one)
    assert [row["file"] for row in scan(library)] == FILES
    assert [path.name for path in adapter_files(library).state] == [
        "optimizer.pt", "rng_state_0.pth", "scheduler.pt", "training_args.bin"]  # fmt: skip
    assert main(["inspect", str(library)]) == 0
    assert "4 files of a trainer's own state were not opened" in capsys.readouterr().out


@pytest.mark.slow
def test_the_benchmark_runs_to_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    bench_inspect.main(files=12)
    assert "inspect of 12 such files" in capsys.readouterr().out


def expected(library: Path) -> list[dict[str, Any]]:
    return list(scan(library))


def test_json_lines_and_parquet_hold_every_value(library: Path, tmp_path: Path) -> None:
    from pyarrow import parquet

    for name in ("t.jsonl", "t.parquet"):
        assert main(["inspect", str(library), "--output", str(tmp_path / name)]) == 0
    assert [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()] == expected(library)
    table = parquet.read_table(tmp_path / "t.parquet")
    assert table.to_pylist() == expected(library)
    assert {str(table.schema.field(name).type) for name in ("learning_rate", "tags", "valid", "steps")} == {
        "double", "list<element: string>", "bool", "int64"}  # fmt: skip


def test_a_table_that_is_there_is_not_replaced_without_force(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "t.csv"
    table.write_text("mine")
    assert main(["inspect", str(library), "--output", str(table)]) == 1
    assert f"{table} exists already. Give another --output, or --force to replace it." in capsys.readouterr().err
    assert table.read_text() == "mine"
    assert main(["inspect", str(library), "--output", str(table), "--force"]) == 0
    assert table.read_text().startswith("file,size,")


def test_csv_is_read_back_by_csv(library: Path, tmp_path: Path) -> None:
    write(library / "nasty.safetensors", kohya_tensors(), {"modelspec.title": 'a,"b"\nc', "modelspec.author": "é"})
    assert main(["inspect", str(library), "--output", str(tmp_path / "t.csv")]) == 0
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    assert sorted(rows) == sorted([*FILES, "nasty.safetensors"])
    assert (rows["nasty.safetensors"]["title"], rows["nasty.safetensors"]["author"]) == ('a,"b"\nc', "é")
    assert rows["fox.safetensors"]["tags"] == "fox; grass; snow"
    assert rows["fox.safetensors"]["learning_rate"] == "0.0001"
    assert rows["broken.safetensors"]["rank"] == ""


def test_odd_values_find_their_column_or_none(tmp_path: Path) -> None:
    odd = {"ss_learning_rate": "fast", "ss_num_epochs": "1.5", "ss_steps": "12.0", "modelspec.title": "3",
           "ss_total_batch_size": "[1, 2]", "ss_num_train_images": "True"}  # fmt: skip
    write(tmp_path / "in" / "a.safetensors", kohya_tensors(), odd | {"ss_unet_lr": "NaN"})
    row = next(scan(tmp_path / "in"))
    assert (row["learning_rate"], row["epochs"], row["steps"], row["title"], row["batch_size"], row["images"]) == (
        None, None, 12, "3", None, None)  # fmt: skip
    write(tmp_path / "in" / "b.safetensors", kohya_tensors(), {"ss_learning_rate": "inf", "ss_steps": "nan"})
    for name in ("t.jsonl", "t.csv", "t.parquet"):
        write_rows(tmp_path / name, scan(tmp_path / "in"))
    rows = [json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert (rows[1]["learning_rate"], rows[1]["steps"]) == (None, None)
    assert rows[0]["unsupported"] == []


@pytest.mark.skipif(sys.platform == "win32", reason="names of files are text there")
def test_names_that_are_no_text_are_written_still(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "in"
    write(root / "a.safetensors", kohya_tensors())
    os.rename(root / "a.safetensors", os.fsencode(root) + b"/\xff\x1b.safetensors")  # noqa: PTH104 - bytes
    for name in ("t.jsonl", "t.csv", "t.parquet"):
        assert main(["inspect", str(root), "--output", str(tmp_path / name)]) == 0
        assert (tmp_path / name).stat().st_size > 100
    capsys.readouterr()
    assert main(["inspect", str(root)]) == 0
    assert "\\udcff\\x1b.safetensors" in capsys.readouterr().out


def test_another_ending_is_refused_before_anything_is_written(
    library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(library), "--output", str(library / "t.xlsx")]) == 1
    assert ".jsonl, .csv, .parquet" in capsys.readouterr().err
    assert not (library / "t.xlsx").exists()


def test_the_command_prints_a_table(library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(library)]) == 0
    out = capsys.readouterr().out
    assert "8 files: 6 valid, 2 not valid" in out
    assert "(!) dogs/empty.bin: the file is empty" in out
    assert main(["inspect", str(library), "--strict"]) == 1
    capsys.readouterr()
    assert main(["inspect", str(library), "--json"]) == 0
    assert [row["file"] for row in json.loads(capsys.readouterr().out)] == FILES
    assert main(["inspect", str(library), "--format", "markdown"]) == 0
    assert capsys.readouterr().out.startswith("| file | method | rank |")


def test_headers_alone_are_read(tmp_path: Path) -> None:
    shapes = {"m.lora_down.weight": [2**10, 2**20], "m.lora_up.weight": [2**20, 2**10]}
    sparse(tmp_path / "huge.safetensors", shapes, kohya(kohya_tensors(), {}))
    assert (tmp_path / "huge.safetensors").stat().st_size > 4e9
    row = next(scan(tmp_path))
    assert (row["valid"], row["rank"], row["parameters"]) == (True, 1024, 2**31)


def test_a_folder_of_real_adapters_is_one_table(real_folder: Path) -> None:
    rows = list(scan(real_folder))
    refused = [row["file"] for row in rows if row["method"] is None]
    assert len(rows) == len(real_files(real_folder))
    assert (len(rows), len(refused)) == ((43, 4) if real_folder == SHARED else (28, 2))
    assert all(row["error"] for row in rows if not row["valid"])
