"""Which adapters a folder holds, by names alone."""

import subprocess
import sys
from pathlib import Path

import pytest

from lorabench.adapters.reading.folders import AdapterPlace, adapter_files
from lorabench.errors import LorabenchError


def touched(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_files_and_folders_that_are_one_adapter(tmp_path: Path) -> None:
    root = touched(
        tmp_path / "zoo",
        "a.safetensors", "a.bin", "notes.txt",
        "peft/adapter_config.json", "peft/adapter_model.bin", "peft/adapter_model.safetensors", "peft/head.pt",
        "diffusers/pytorch_lora_weights.safetensors",
        "mixed/pytorch_lora_weights.safetensors", "mixed/other.safetensors",
        "mlx/adapters.safetensors", "mlx/adapter_config.json", "mlx/0000100_adapters.safetensors",
    )  # fmt: skip
    below = adapter_files(root)
    assert below.adapters == [
        AdapterPlace(root / "a.bin", root / "a.bin"),
        AdapterPlace(root / "a.safetensors", root / "a.safetensors"),
        AdapterPlace(root / "diffusers", root / "diffusers/pytorch_lora_weights.safetensors"),
        AdapterPlace(root / "mixed/other.safetensors", root / "mixed/other.safetensors"),
        AdapterPlace(root / "mixed/pytorch_lora_weights.safetensors", root / "mixed/pytorch_lora_weights.safetensors"),
        AdapterPlace(root / "mlx", root / "mlx/adapters.safetensors"),
        AdapterPlace(root / "peft", root / "peft/adapter_model.safetensors"),
    ]
    others = ("mlx/0000100_adapters.safetensors", "peft/adapter_model.bin", "peft/head.pt")
    assert below.beside == [root / name for name in others]
    assert below.state == []
    assert below.files == sorted(path for path in root.rglob("*") if path.suffix in (".safetensors", ".bin", ".pt"))


def test_a_trainers_state_and_hidden_names_are_no_adapters(tmp_path: Path) -> None:
    state = (
        "run/optimizer.pt", "run/optimizer_1.safetensors", "run/rng_state_0.pth", "run/scaler.pt", "run/scheduler.bin",
        "run/training_args.bin",
    )  # fmt: skip
    kept = ("optimizer_style.safetensors", "run/adapter_model.safetensors")
    root = touched(tmp_path / "zoo", *state, *kept, ".part-12/adapter_model.safetensors", ".x.safetensors")
    below = adapter_files(root)
    assert below.state == [root / name for name in state]
    assert below.files == [root / name for name in kept]
    assert [adapter.path for adapter in below.adapters] == [root / "optimizer_style.safetensors", root / "run"]


def test_links_to_folders_are_not_followed_and_to_files_are(tmp_path: Path) -> None:
    root = touched(tmp_path / "zoo", "cats/a.safetensors")
    (root / "again").symlink_to(root)
    (root / "link.safetensors").symlink_to(root / "cats" / "a.safetensors")
    assert adapter_files(root).files == [root / "cats/a.safetensors", root / "link.safetensors"]


def test_no_folder_is_an_error_and_an_empty_one_is_none(tmp_path: Path) -> None:
    assert adapter_files(tmp_path).files == []
    with pytest.raises(LorabenchError, match="no such folder"):
        adapter_files(tmp_path / "none")


def test_nothing_is_opened_and_torch_is_not_needed(tmp_path: Path) -> None:
    root = touched(tmp_path / "zoo", "a.safetensors")
    (root / "a.safetensors").chmod(0)
    code = f"""
import pathlib, sys
from lorabench.adapters.reading.folders import adapter_files
assert len(adapter_files(pathlib.Path({str(root)!r})).files) == 1
sys.exit("torch" in sys.modules)"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
