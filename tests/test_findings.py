"""What is wrong with a file, what is a remark, and what its weights, configuration and copies say."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lorabench.adapters.__main__ import main
from lorabench.adapters.metadata.editing import edit
from lorabench.adapters.metadata.inspection import Inspection, inspect
from lorabench.adapters.metadata.values import read_values
from lorabench.adapters.reading.beside import config_beside, copy_of
from lorabench.adapters.reading.table import read_table
from tests.inspected_files import KOHYA, kohya_tensors, messages, sparse, values, write

NOTHING = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def levels(found: Inspection, check: str) -> list[str]:
    return [one["level"] for one in found.validation_info["checks"] if one["check"] == check]


def test_the_hash_of_nothing_is_a_remark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hashes = {"sshs_model_hash": NOTHING, "sshs_legacy_hash": NOTHING[:8]}
    path = write(tmp_path / "a.safetensors", kohya_tensors(), KOHYA | hashes)
    found = inspect(path)
    assert found.ok
    assert levels(found, "hashes") == ["note", "ok"]  # the other is of bytes that a file so small has not
    assert main(["inspect", str(path)]) == 0
    assert "hash of nothing" in capsys.readouterr().out


@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_hash_is_a_remark(tmp_path: Path, empty: str) -> None:
    found = inspect(write(tmp_path / "a.safetensors", kohya_tensors(), KOHYA | {"sshs_model_hash": empty}))
    assert found.ok
    assert levels(found, "hashes") == ["note"]


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"software": '{"name": "ai-toolkit", "version": "0.1"}'}, "ai-toolkit"),
        ({"ss_network_module": "networks.lora_wan"}, "musubi-tuner"),
        ({"modelspec.implementation": "musubi-tuner"}, "musubi-tuner"),
        ({"ot_branch": "master"}, "OneTrainer"),
    ],
)
def test_a_hash_of_before_renaming_is_a_remark(tmp_path: Path, metadata: dict[str, str], named: str) -> None:
    found = inspect(
        write(tmp_path / "a.safetensors", kohya_tensors(), KOHYA | metadata | {"sshs_model_hash": "ab" * 32})
    )
    assert found.ok
    remark = next(one for one in found.validation_info["checks"] if one["check"] == "hashes")
    assert remark["level"] == "note"
    assert named in remark["message"]


def test_a_converted_file_s_hash_is_a_remark_and_a_changed_file_s_an_error(tmp_path: Path) -> None:
    stored = {"sshs_model_hash": "ab" * 32}
    diffusers = {
        "unet.mid_block.x.lora.down.weight": torch.ones(2, 8),
        "unet.mid_block.x.lora.up.weight": torch.ones(8, 2),
    }
    assert levels(inspect(write(tmp_path / "b.safetensors", diffusers, stored)), "hashes") == ["note"]
    changed = inspect(write(tmp_path / "c.safetensors", kohya_tensors(), KOHYA | stored))
    assert not changed.ok
    assert "the file changed since" in messages(changed, "error")


FLUX = {
    f"lora_unet_double_blocks_{block}_img_mod_lin.lora_{part}.weight": shape
    for block in range(19)
    for part, shape in (("down", [4, 3072]), ("up", [18432, 4]))
}


def test_a_base_model_that_the_tensors_contradict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metadata = {"ss_base_model_version": "sd_1.5", "ss_network_dim": "4"}
    path = sparse(tmp_path / "a.safetensors", FLUX, metadata)
    found = inspect(path)
    assert found.ok
    said = values(found.model_info)
    assert said["family"] == said["base_model"] == "FLUX"
    assert said["base_model_version"] == "sd_1.5 (contradicted by tensors: FLUX)"
    assert levels(found, "base model") == ["warning"]
    assert found.raw_metadata["ss_base_model_version"] == "sd_1.5"
    assert main(["inspect", str(path), "--no-hashes"]) == 0
    assert "contradicted by tensors: FLUX" in capsys.readouterr().out


@pytest.mark.parametrize("version", ["flux1", "flux-1-dev/lora", "something new", "FLUX.1"])
def test_a_base_model_that_the_tensors_fit(tmp_path: Path, version: str) -> None:
    found = inspect(sparse(tmp_path / "a.safetensors", FLUX, {"modelspec.architecture": version}))
    assert values(found.model_info)["base_model_version"] == version
    assert not levels(found, "base model")


def test_of_families_that_fit_equally_the_metadata_names_one(tmp_path: Path) -> None:
    shapes = {
        f"lora_unet_double_blocks_{block}_img_attn_qkv.lora_{part}.weight": shape
        for block in range(19)
        for part, shape in (("down", [4, 3072]), ("up", [9216, 4]))
    }
    assert values(inspect(sparse(tmp_path / "a.safetensors", shapes)).model_info)["family"] == "FLUX"
    chroma = inspect(sparse(tmp_path / "b.safetensors", shapes, {"ss_base_model_version": "chroma"}))
    assert values(chroma.model_info)["family"] == "Chroma"
    assert not levels(chroma, "base model")


def test_text_encoders_alone_contradict_nothing(tmp_path: Path) -> None:
    stem = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    shapes = {f"{stem}.lora_down.weight": [4, 768], f"{stem}.lora_up.weight": [3072, 4]}
    found = inspect(sparse(tmp_path / "a.safetensors", shapes, {"ss_base_model_version": "sd_v1"}))
    assert values(found.model_info) | {"base_model": ""} == {
        "base_model": "",
        "base_model_version": "sd_v1",
        "family": "CLIP text encoder",
    }


def test_one_error_of_many_modules_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lonely = {f"unet.mid_block.layers.{number}.x.lora.down.weight": torch.ones(2, 8) for number in range(7)}
    for name in "abcdefg":
        found = inspect(write(tmp_path / f"{name}.safetensors", lonely))
    assert len(found.validation_info["errors"]) == 1
    assert "unet.mid_block.layers.0.x" in found.validation_info["errors"][0]
    assert "(6 more modules alike)" in found.validation_info["errors"][0]
    assert main(["inspect", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("half of the pair is missing") == 1
    assert "a.safetensors, b.safetensors, c.safetensors and 4 more files: " in printed


@pytest.mark.parametrize(
    ("peft_type", "key", "named"),
    [
        ("PROMPT_TUNING", "prompt_embeddings", "prompt tuning"),
        ("P_TUNING", "prompt_encoder.mlp_head.0.weight", "p-tuning"),
        ("FOURIERFT", "base_model.model.lin0.fourierft_spectrum", "FourierFT"),
        ("HRA", "base_model.model.lin0.hra_u", "HRA"),
        ("BONE", "base_model.model.lin0.bone_block", "Bone"),
        ("NEWEST", "base_model.model.lin0.newest_x", "NEWEST"),
    ],
)
def test_what_is_no_lora_is_named_by_its_configuration(tmp_path: Path, peft_type: str, key: str, named: str) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": peft_type}))
    found = inspect(write(tmp_path / "adapter_model.safetensors", {key: torch.ones(4, 4)}))
    assert found.training_info["method"]["value"] == named
    assert named in messages(found, "warning") + messages(found, "error")


def test_a_copy_has_the_configuration_of_its_own_copy(tmp_path: Path) -> None:
    for name in ("adapter_config.json", "adapter_config (1).json", "trainer_state (1).json", "adapter_config(2).json"):
        (tmp_path / name).write_text(json.dumps({"global_step": 7}))
    pairs = {
        "adapter_model.safetensors": "adapter_config.json",
        "adapter_model (1).safetensors": "adapter_config (1).json",
        "adapter_model(2).safetensors": "adapter_config(2).json",
        "adapter_model (3).safetensors": "adapter_config.json",
        "a (1) b.safetensors": "adapter_config.json",
    }
    for file, config in pairs.items():
        assert config_beside(tmp_path / file) == tmp_path / config
    found = inspect(write(tmp_path / "adapter_model (1).safetensors", kohya_tensors()))
    assert found.training_info["steps"] == {"value": 7, "source": "trainer_state.json: global_step"}
    assert copy_of(tmp_path / "x.safetensors", "trainer_state.json") == tmp_path / "trainer_state.json"


def test_a_run_s_and_a_person_s_name_are_redacted(tmp_path: Path) -> None:
    private = {
        "name": "alice_face_v3",
        "job": "a",
        "run_name": "b",
        "ss_output_name": "c",
        "author": "Alice",
        "owner": "d",
    }
    public = {
        "modelspec.author": "Alice",
        "modelspec.title": "Faces",
        "ss_sd_model_name": "v1-5",
        "software": '{"name": "ai-toolkit"}',
        "ss_network_module": "networks.lora",
    }
    path = write(tmp_path / "a.safetensors", kohya_tensors(), private | public)
    done = edit(path, tmp_path / "b.safetensors", redacted=True)
    assert set(done.removed) == set(private)
    assert inspect(tmp_path / "b.safetensors").raw_metadata == public


STORED = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu,
)  # fmt: skip


@pytest.mark.parametrize("dtype", STORED, ids=str)
def test_values_are_what_torch_says_of_every_bit_pattern(tmp_path: Path, dtype: torch.dtype) -> None:
    if dtype.itemsize == 1:
        tensors = {f"{byte:02x}": torch.tensor([byte], dtype=torch.uint8).view(dtype) for byte in range(256)}
    else:
        rows = (0.0, -0.0, 1.0, -2.5, math.inf, -math.inf, math.nan, -math.nan, 1e-40, -1e-46, 1e300, 65504.0, 3e-5)
        tensors = {
            str(at): torch.tensor([0.0, number], dtype=torch.float64).to(dtype) for at, number in enumerate(rows)
        }
    tensors["empty"] = torch.zeros(0, dtype=dtype)
    stem = "unet.mid_block.layers.{}.to_q.lora.{}.weight"
    named = {stem.format(key, "down"): tensor.reshape(-1, 1) for key, tensor in tensors.items() if tensor.numel()}
    named |= {
        stem.format(key, "up"): torch.ones(1, tensor.numel()) for key, tensor in tensors.items() if tensor.numel()
    }
    save_file(named, tmp_path / "a.safetensors")
    report = read_values(read_table(tmp_path / "a.safetensors"))
    floats = {key: tensor.to(torch.float32) for key, tensor in named.items()}
    assert set(report.nan) == {key for key, tensor in floats.items() if tensor.isnan().any()}
    assert set(report.infinite) == {key for key, tensor in floats.items() if tensor.isinf().any()}
    zero = {key.partition(".lora")[0] for key, tensor in floats.items() if not tensor.any()}
    assert set(report.untrained) & zero == set(report.untrained)
    rows_read = {row.module for row in read_table(tmp_path / "a.safetensors").rows}
    assert set(report.untrained) == zero & rows_read


def test_values_past_the_first_piece_of_a_tensor_are_read(tmp_path: Path) -> None:
    large = torch.zeros(4, 2**19)
    large[3, -1] = math.nan
    large[3, 0] = math.inf
    tensors = {"unet.mid_block.x.lora.down.weight": large, "unet.mid_block.x.lora.up.weight": torch.ones(8, 4)}
    report = read_values(read_table(write(tmp_path / "a.safetensors", tensors)))
    assert report.nan == report.infinite == ["unet.mid_block.x.lora.down.weight"]
    assert not report.untrained


def test_values_need_no_torch(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", kohya_tensors())
    code = (
        "import sys; from lorabench.adapters.__main__ import main; assert main(sys.argv[1:]) == 0;"
        "assert not {'torch', 'safetensors', 'scipy'} & set(sys.modules), 'heavy imports'"
    )
    subprocess.run([sys.executable, "-c", code, "inspect", str(path), "--values"], check=True, capture_output=True)


def test_values_of_arrays_of_numpy(tmp_path: Path) -> None:
    stem = "model.layers.0.self_attn.q_proj"
    arrays: dict[str, Any] = {
        f"{stem}.lora_a": np.zeros((8, 2), np.float32),
        f"{stem}.lora_b": np.ones((2, 8), np.float16),
    }
    arrays[f"{stem}.lora_b"][0, 0] = np.inf
    np.savez(tmp_path / "adapters.npz", **arrays)
    table = read_table(write(tmp_path / "a.safetensors", {key: torch.tensor(array) for key, array in arrays.items()}))
    report = read_values(replace(table, header=None, format="npz", file=tmp_path / "adapters.npz"))
    assert report.infinite == [f"{stem}.lora_b"]
    assert report.untrained == [stem]
