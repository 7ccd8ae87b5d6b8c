"""`inspect`: what is said of a file, by what, and whether the file is whole."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import load_file

from lorabench.adapters import load, save
from lorabench.adapters.__main__ import main
from lorabench.adapters.metadata.inspection import inspect
from lorabench.adapters.metadata.rendering import module_table
from tests.adapter_folders import make_modules
from tests.inspected_files import KOHYA, STEM, kohya_tensors, messages, sparse, values, write
from tests.test_hashes import kohya


def test_kohyas_metadata_is_read_and_every_value_has_its_source(tmp_path: Path) -> None:
    found = inspect(write(tmp_path / "fox.safetensors", kohya_tensors(), KOHYA))
    said = found.training_info
    assert said["learning_rate"] == {"value": 1e-4, "source": "ss_learning_rate"}
    assert said["steps"] == {"value": 1600, "source": "ss_steps"}
    assert said["resolution"] == {"value": [512, 768], "source": "ss_resolution"}
    assert said["datasets"]["value"] == [{"name": "3_red fox", "repeats": 3, "images": 40}]
    assert said["trigger_words"] == {"value": ["red fox"], "source": "ss_dataset_dirs (names of folders)"}
    assert list(said["dataset_tags"]["value"].items()) == [("fox", 11), ("grass", 5), ("snow", 5)]
    assert (said["dataset_tags"]["source"], said["dataset_tag_count"]["value"]) == ("ss_tag_frequency", 3)
    assert said["started"]["value"] == "2023-04-05T17:41:40+00:00"
    assert said["seconds"]["value"] == 4806.5
    assert {"method": "LoRA", "epochs": 10, "epoch": 8, "batch_size": 4, "planned_steps": 2000, "seed": "007",
            "optimizer": "AdamW8bit", "trainer": "kohya sd-scripts"}.items() <= values(said).items()  # fmt: skip
    assert "text_encoder_learning_rate" not in said  # "None" says nothing
    assert math.isnan(said["min_snr_gamma"]["value"])
    assert {"base_model": "base.safetensors", "base_model_version": "sd_v1", "family": "Stable Diffusion 1",
            "title": "1984", "author": "Bob", "license": "CC-BY", "date": "2024-02-03"}.items() <= values(
                found.model_info).items()  # fmt: skip
    built = values(found.architecture_info)
    assert {"modules": 3, "rank": 4, "alpha": 2.0, "ranks": {4: 3}, "scales": {0.5: 3}, "other_parameters": 0,
            "target_modules": {"to_k": 1, "to_q": 1, "to_v": 1}, "modules_by_part": {"unet": {"linear": 3}},
            "network_rank": 4, "network_module": "networks.lora"}.items() <= built.items()  # fmt: skip
    assert built["parameters"] == sum(t.numel() for key, t in kohya_tensors().items() if not key.endswith("alpha"))
    assert found.ok
    assert found.raw_metadata == KOHYA
    assert found.metadata["ss_sd_scripts_commit_hash"] == "12345678"
    assert found.file_info["size"]["value"] == (tmp_path / "fox.safetensors").stat().st_size
    every = [*found.file_info.values(), *found.model_info.values(), *said.values(), *found.architecture_info.values()]
    assert all(set(one) == {"value", "source"} and isinstance(one["source"], str) and one["source"] for one in every)


def test_peft_folders_tell_by_their_configuration_and_state(tmp_path: Path) -> None:
    save(tmp_path / "run", make_modules(0, names=["model.layers.0.self_attn.q_proj"]), "peft")
    config = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": "a/llama", "peft_version": "0.18.1", "lora_dropout": 0.1}
    (tmp_path / "run" / "adapter_config.json").write_text(json.dumps(config))
    state = {"global_step": 23, "num_train_epochs": 3, "train_batch_size": 2, "epoch": 1.5, "max_steps": 69,
             "log_history": [{"learning_rate": 1e-4}, {"learning_rate": 2e-4}, {"loss": 1}]}  # fmt: skip
    (tmp_path / "run" / "trainer_state.json").write_text(json.dumps(state))
    found = inspect(tmp_path / "run")
    assert found.model_info["base_model"] == {
        "value": "a/llama", "source": "adapter_config.json: base_model_name_or_path"}  # fmt: skip
    assert found.training_info["steps"] == {"value": 23, "source": "trainer_state.json: global_step"}
    assert found.training_info["learning_rate"]["value"] == 2e-4
    assert {"trainer": "PEFT 0.18.1", "batch_size": 2, "epochs": 3}.items() <= values(found.training_info).items()
    assert found.architecture_info["network_dropout"]["value"] == 0.1
    assert found.ok
    assert not found.validation_info["warnings"]
    (tmp_path / "run" / "trainer_state.json").write_text("{broken")
    found = inspect(tmp_path / "run")
    assert found.ok
    assert "trainer_state.json" in messages(found, "warning")


def test_mlx_and_diffusers_tell_too(tmp_path: Path) -> None:
    tensors = {"model.layers.0.q.lora_a": torch.randn(6, 2), "model.layers.0.q.lora_b": torch.randn(2, 5)}
    write(tmp_path / "mlx" / "0000200_adapters.safetensors", tensors)
    config = {"model": "/Users/bob/m/Qwen-1B", "iters": 1000, "batch_size": 1, "learning_rate": 1e-5, "data": "/x/data",
              "lora_parameters": {"rank": 2, "scale": 10.0}}  # fmt: skip
    (tmp_path / "mlx" / "adapter_config.json").write_text(json.dumps(config))
    found = inspect(tmp_path / "mlx")
    assert found.model_info["base_model"]["value"] == "Qwen-1B"
    assert found.training_info["steps"] == {"value": 200, "source": "file name"}
    assert found.training_info["planned_steps"]["value"] == 1000
    assert found.training_info["datasets"]["value"][0]["name"] == "data"
    assert found.architecture_info["scales"]["value"] == {10.0: 1}
    inside = {"unet.r": 4, "unet.lora_alpha": 8, "unet.peft_type": "LORA", "unet.base_model_name_or_path": "a/sd"}
    save(tmp_path / "d.safetensors", make_modules(0, rank=4), "diffusers")
    write(tmp_path / "e.safetensors", load_file(tmp_path / "d.safetensors"), {
        "lora_adapter_metadata": json.dumps(inside), "format": "pt"})  # fmt: skip
    found = inspect(tmp_path / "e.safetensors")
    assert found.model_info["base_model"] == {
        "value": "a/sd", "source": "lora_adapter_metadata: base_model_name_or_path"}  # fmt: skip
    assert found.training_info["trainer"]["value"] == "diffusers"
    assert found.architecture_info["alpha"] == {"value": 8.0, "source": "lora_adapter_metadata"}


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"modelspec.trigger_phrase": "sks fox"}, ["sks fox"]),
        ({"ss_trigger_words": '["a", "b"]'}, ["a", "b"]),
        ({"ss_datasets": '[{"subsets": [{"class_tokens": "fox"}, {"class_tokens": "fox"}, {}]}, 3]'}, ["fox"]),
        ({"<s1>": "<embed>", "<s2>": "<embed>"}, ["<s1>", "<s2>"]),
        ({"ss_dataset_dirs": '{"no number": {}, "2_cat": {}}'}, ["cat"]),
        ({"ss_dataset_dirs": "broken {"}, None),
        ({"ss_dataset_dirs": "[1, 2]", "ss_datasets": '"x"'}, None),
    ],
)
def test_trigger_words(tmp_path: Path, metadata: dict[str, str], words: list[str] | None) -> None:
    found = inspect(write(tmp_path / "a.safetensors", kohya_tensors(), metadata))
    assert found.training_info.get("trigger_words", {"value": None})["value"] == words


@pytest.mark.parametrize(
    ("metadata", "tags"),
    [
        ({"ss_tag_frequency": '{"fox": 2, "snow": NaN, "x": null, "y": true}'}, {"fox": 2}),
        ({"ss_datasets": '[{"tag_frequency": {"d": {"fox": 2}}}, {"tag_frequency": {"e": {"fox": 1, "a": 3}}}]'},
         {"a": 3, "fox": 3}),
        ({"ss_tag_frequency": "None"}, None),
        ({"ss_tag_frequency": '{"d": []}'}, None),
    ],
)  # fmt: skip
def test_tags_of_every_shape(tmp_path: Path, metadata: dict[str, str], tags: dict[str, int] | None) -> None:
    found = inspect(write(tmp_path / "a.safetensors", kohya_tensors(), metadata))
    assert found.training_info.get("dataset_tags", {"value": None})["value"] == tags


def test_only_the_most_frequent_tags_are_named(tmp_path: Path) -> None:
    tags = {f"t{i:02}": i for i in range(50)}
    path = write(tmp_path / "a.safetensors", kohya_tensors(), {"ss_tag_frequency": json.dumps({"d": tags})})
    found = inspect(path, top_tags=3)
    assert list(found.training_info["dataset_tags"]["value"]) == ["t49", "t48", "t47"]
    assert found.training_info["dataset_tag_count"]["value"] == 50


def test_datasets_of_one_value_are_one_and_of_several_a_list(tmp_path: Path) -> None:
    for rows, expected in (([8, 8], 8), ([8, 4], [8, 4])):
        datasets = json.dumps([{"batch_size_per_device": row} for row in rows])
        found = inspect(write(tmp_path / "a.safetensors", kohya_tensors(), {"ss_datasets": datasets}))
        assert found.training_info["batch_size"] == {
            "value": expected, "source": "ss_datasets: batch_size_per_device"}  # fmt: skip


def test_what_is_wrong_is_an_error_and_what_is_odd_a_warning(tmp_path: Path) -> None:
    tensors = kohya_tensors()
    del tensors[STEM.format(1, "q") + ".lora_up.weight"]
    found = inspect(write(tmp_path / "half.safetensors", tensors))
    assert not found.ok
    assert "has a down but no up" in messages(found, "error") or "but no up matrix" in messages(found, "error")
    found = inspect(write(tmp_path / "alpha.safetensors", kohya_tensors(alpha=None)))
    assert found.ok
    assert "no alpha for 3 of 3 modules" in messages(found, "warning")
    assert list(found.validation_info["assumed"].values()) == [3]
    found = inspect(write(tmp_path / "zero.safetensors", kohya_tensors(alpha=0.0)))
    assert "scale 0" in messages(found, "warning")
    found = inspect(write(tmp_path / "minus.safetensors", kohya_tensors(alpha=-2.0)))
    assert "negative scale" in messages(found, "warning")
    found = inspect(write(tmp_path / "wide.safetensors", kohya_tensors(rank=9)))
    assert "3 modules of a rank above the width" in messages(found, "warning")
    found = inspect(write(tmp_path / "nan.safetensors", kohya_tensors(alpha=math.nan)))
    assert not found.ok
    assert "alpha" in messages(found, "error")
    found = inspect(write(tmp_path / "rank0.safetensors", kohya_tensors(rank=0)))
    assert not found.ok


def test_rank_and_alpha_are_held_against_the_metadata(tmp_path: Path) -> None:
    right = inspect(
        write(tmp_path / "a.safetensors", kohya_tensors(), {"ss_network_dim": "4", "ss_network_alpha": "2"})
    )
    assert right.ok
    assert {"check": "rank against config", "level": "ok", "message": "rank and configuration agree"} in (
        right.validation_info["checks"])  # fmt: skip
    wrong = inspect(
        write(tmp_path / "a.safetensors", kohya_tensors(), {"ss_network_dim": "8", "ss_network_alpha": "1"})
    )
    assert "ss_network_dim = 8, and 3 of 3 modules have another" in messages(wrong, "warning")
    assert "ss_network_alpha = 1, and 3 of 3 modules have another" in messages(wrong, "warning")
    dynamic = inspect(write(tmp_path / "a.safetensors", kohya_tensors(), {"ss_network_dim": "Dynamic"}))
    assert not dynamic.validation_info["warnings"]


def test_pefts_rank_and_targets_are_held_against_the_tensors(tmp_path: Path) -> None:
    names = ["a.q_proj", "a.v_proj"]
    save(tmp_path / "run", make_modules(0, names=names), "peft")
    path = tmp_path / "run" / "adapter_config.json"
    config = json.loads(path.read_text())
    for change, warning in (
        ({"r": 16}, "says r = 16, the tensors say 2"),
        ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, "modules without tensors: o_proj"),
        ({"target_modules": ["q_proj"]}, "does not name 1 module: a.v_proj"),
        ({"target_modules": r".*\.q_proj"}, "does not name 1 module: a.v_proj"),
        ({"target_modules": "(("}, "no regular expression"),
        ({"target_modules": "(a+)+b"}, "does not name"),
    ):
        path.write_text(json.dumps(config | change))
        assert warning in messages(inspect(tmp_path / "run"), "warning"), change
    for change in ({"target_modules": r".*\.(q|v)_proj"}, {"target_modules": "all-linear"}, {"target_modules": names}):
        path.write_text(json.dumps(config | change))
        assert not inspect(tmp_path / "run").validation_info["warnings"]


def test_hashes_are_checked_where_it_is_cheap_or_asked_for(tmp_path: Path) -> None:
    tensors = kohya_tensors()
    path = write(tmp_path / "a.safetensors", tensors, kohya(tensors, {}))
    assert inspect(path).ok
    path = write(path, tensors | {"x.alpha": torch.tensor(1.0)}, kohya(tensors, {}))
    found = inspect(path)
    assert not found.ok
    assert "sshs_model_hash is wrong" in messages(found, "error")
    assert inspect(path, hashes=False).ok
    assert "sha256" not in found.file_info
    assert len(inspect(path, hashes=True).file_info["sha256"]["value"]) == 64
    shapes = {"m.lora_down.weight": [4, 2**22], "m.lora_up.weight": [2**22, 4]}
    large = sparse(tmp_path / "large.safetensors", shapes, {"sshs_model_hash": "0"})
    assert inspect(large).ok  # 67 MB are not read without need
    assert not inspect(large, hashes=True).ok


def test_tensors_that_cannot_be_analysed_are_listed_and_strict_refuses_them(tmp_path: Path) -> None:
    odd = {"base_model.model.x.ia3_l": torch.ones(3), "classifier.weight": torch.ones(2, 2)}
    path = write(tmp_path / "a.safetensors", kohya_tensors() | odd)
    found = inspect(path)
    assert found.ok
    assert found.validation_info["unsupported"] == {"full_weight": ["classifier.weight"], "ia3": [*odd][:1]}
    assert found.architecture_info["other_parameters"]["value"] == 7
    assert found.training_info["method"]["value"] == "LoRA + IA3"
    assert not inspect(path, strict=True).ok
    alone = inspect(write(tmp_path / "b.safetensors", {"base_model.model.x.ia3_l": torch.ones(3)}))
    assert alone.ok
    assert "only ia3" in messages(alone, "warning")
    model = inspect(write(tmp_path / "c.safetensors", {"model.norm.weight": torch.ones(3)}))
    assert not model.ok
    assert "no adapter" in messages(model, "error")


def test_methods_are_named(tmp_path: Path) -> None:
    stem = STEM.format(1, "q")
    pair = {f"{stem}.lora_down.weight": torch.ones(2, 6), f"{stem}.lora_up.weight": torch.ones(4, 2)}
    conv = {f"{stem}.lora_down.weight": torch.ones(2, 6, 3, 3), f"{stem}.lora_up.weight": torch.ones(4, 2, 1, 1)}
    point = {f"{stem}.lora_down.weight": torch.ones(2, 6, 1, 1), f"{stem}.lora_up.weight": torch.ones(4, 2, 1, 1)}
    hada = {f"{stem}.hada_{part}": torch.ones(shape) for part, shape in
            (("w1_a", (4, 2)), ("w1_b", (2, 6)), ("w2_a", (4, 2)), ("w2_b", (2, 6)))}  # fmt: skip
    lokr = {f"{stem}.lokr_w1": torch.ones(2, 2), f"{stem}.lokr_w2": torch.ones(2, 3)}
    for tensors, method in (
        (pair, "LoRA"), (conv, "LoRA with convolutions (LoCon)"), (point, "LoRA"), (hada, "LoHa"), (lokr, "LoKr"),
        (pair | {f"{stem}.dora_scale": torch.ones(4, 1)}, "LoRA + DoRA"),
    ):  # fmt: skip
        found = inspect(write(tmp_path / "a.safetensors", tensors))
        assert found.training_info["method"] == {"value": method, "source": "tensor names"}
    save(tmp_path / "run", make_modules(0, names=["q"]), "peft")
    path = tmp_path / "run" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_rslora": True}))
    assert inspect(tmp_path / "run").training_info["method"]["value"] == "LoRA, rank-stabilised"


def test_the_canonical_table_is_that_of_load(tmp_path: Path) -> None:
    save(tmp_path / "a.safetensors", make_modules(0, rank=3, scale=2.0), "kohya")
    found, loaded = inspect(tmp_path / "a.safetensors"), load(tmp_path / "a.safetensors")
    rows = {row["module"]: row for row in found.modules}
    assert rows.keys() == loaded.modules.keys()
    for name, module in loaded.modules.items():
        assert (rows[name]["rank"], rows[name]["alpha"], rows[name]["scale"]) == (3, 6.0, module.scale)
        assert rows[name]["shapes"] == {"down": list(module.down.shape), "up": list(module.up.shape)}
    lines = module_table(found).splitlines()
    assert len(lines) == 2 + len(rows)
    assert all(name in module_table(found) for name in rows)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write(tmp_path / "fox.safetensors", kohya_tensors(), KOHYA))
    assert main(["inspect", path]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("valid: fox.safetensors  LoRA, rank 4, 3 modules, ")
    assert "\x1b" not in first
    for style in (["--json"], ["--format", "json"]):
        assert main(["inspect", path, *style, "--modules"]) == 0
        data = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
        assert {"file_info", "model_info", "training_info", "architecture_info", "validation_info", "extraction_time",
                "metadata", "raw_metadata", "config", "modules"} == set(data)  # fmt: skip
        assert data["training_info"]["min_snr_gamma"]["value"] is None
        assert data["raw_metadata"]["ss_min_snr_gamma"] == "NaN"
        assert len(data["modules"]) == 3
    for style, start in (("text", "file_info.name: fox"), ("markdown", "# fox.safetensors")):
        assert main(["inspect", path, "--format", style, "--modules"]) == 0
        out = capsys.readouterr().out
        assert out.startswith(start)
        assert out.count("attn2.to_k") >= 1
    broken = str(write(tmp_path / "b.safetensors", {"x.ia3_l": torch.ones(2)}))
    assert main(["inspect", broken]) == 0
    assert main(["inspect", broken, "--strict"]) == 1
    assert "NOT VALID" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "none.safetensors")]) == 1
    assert "no such file" in capsys.readouterr().err
    for wrong in (["--tags", "-1"], ["--output", "x.csv"], ["--format", "yaml"], ["--jobs", "0"]):
        with pytest.raises(SystemExit) as caught:
            main(["inspect", path, *wrong])
        assert caught.value.code == 2
    capsys.readouterr()


def test_inspection_needs_neither_torch_nor_numpy(tmp_path: Path) -> None:
    tensors = kohya_tensors()
    path = write(tmp_path / "a.safetensors", tensors, KOHYA | kohya(tensors, KOHYA))
    code = (
        "import sys; from lorabench.adapters.__main__ import main; assert main(sys.argv[1:]) == 0; "
        "print({'torch', 'numpy', 'safetensors', 'jaxtyping'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "inspect", str(path)], check=True, capture_output=True, text=True
    )
    assert done.stderr == "set()\n"
    assert "sshs_model_hash is right" in done.stdout


def test_numpys_files_and_pickles_are_inspected_too(tmp_path: Path) -> None:
    arrays = {key: tensor.numpy().astype(np.float16) for key, tensor in kohya_tensors().items()}
    save_numpy(arrays, tmp_path / "a.safetensors")
    torch.save({key: torch.from_numpy(array) for key, array in arrays.items()}, tmp_path / "a.bin")
    first, second = inspect(tmp_path / "a.safetensors"), inspect(tmp_path / "a.bin")
    assert first.architecture_info["dtypes"]["value"] == second.architecture_info["dtypes"]["value"] == {"F16": 9}
    assert second.file_info["format"]["value"] == "pickle"
    assert values(second.architecture_info)["parameters"] == values(first.architecture_info)["parameters"]
    assert "header_size" not in second.file_info


def test_lorabenchs_own_folders_are_read_without_a_warning(tmp_path: Path) -> None:
    names = [f"unet.down_blocks.{i}.attentions.0.transformer_blocks.0.attn1.to_q" for i in range(80)]
    save(tmp_path / "run", make_modules(0, names=names), "peft")
    config = tmp_path / "run" / "adapter_config.json"
    said = json.loads(config.read_text())
    said["target_modules"] = f"^(?:{'|'.join(re.escape(name) for name in names)})$"
    config.write_text(json.dumps(said))
    assert not inspect(tmp_path / "run").validation_info["warnings"]
    said["target_modules"] = f"^(?:{'|'.join(re.escape(name) for name in [*names[1:], 'h.0'])})$"
    config.write_text(json.dumps(said))
    told = messages(inspect(tmp_path / "run"), "warning")
    assert "modules without tensors: h.0" in told
    assert f"does not name 1 module: {names[0]}" in told


def test_a_file_of_pefts_without_its_configuration_is_warned_of(tmp_path: Path) -> None:
    for stem, loud in (("base_model.model.h.0", True), ("h.0", True), ("unet.conv_in", False)):
        tensors = {f"{stem}.lora_A.weight": torch.ones(2, 3), f"{stem}.lora_B.weight": torch.ones(4, 2)}
        found = inspect(write(tmp_path / "a.safetensors", tensors))
        assert found.ok
        assert ("PEFT keeps it in adapter_config.json" in messages(found, "warning")) == loud
        assert (found.rows[0].alpha_source == "assumed: alpha = r (no adapter_config.json)") == loud


def test_the_weights_are_read_where_asked_and_it_says_where_not(tmp_path: Path) -> None:
    tensors = kohya_tensors()
    (first, second, third) = (STEM.format(*one) for one in ((1, "q"), (2, "k"), (2, "v")))
    path = write(tmp_path / "a.safetensors", tensors)
    assert "all weights are finite" in str(inspect(path, values=True).validation_info["checks"])
    tensors[f"{first}.lora_up.weight"][0, 0] = math.nan
    tensors[f"{second}.lora_down.weight"][0, 0] = math.inf
    tensors[f"{third}.lora_up.weight"].zero_()
    path = write(path, tensors)
    unread = inspect(path)
    assert unread.ok
    assert [one["level"] for one in unread.validation_info["checks"] if "--values" in one["message"]] == ["note"]
    found = inspect(path, values=True)
    assert not found.ok
    assert f"NaN in 1 tensor: {first}.lora_up.weight" in messages(found, "error")
    assert f"infinite values in 1 tensor: {second}.lora_down.weight" in messages(found, "error")
    untrained = next(row.module for row in found.rows if third in row.keys["up"])
    assert f"1 module untrained, a factor of all zeros: {untrained}" in messages(found, "warning")
    assert "--values" not in str(found.validation_info)


def test_values_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = kohya_tensors()
    tensors[STEM.format(1, "q") + ".lora_up.weight"][0, 0] = math.nan
    name = "x" * 130 + ".safetensors"
    path = str(write(tmp_path / name, tensors, {"ss_seed": "1"}))
    assert main(["inspect", path]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].startswith(f"valid: {name}  LoRA, rank 4, 3 modules, 6,272 parameters, ")
    assert "1 entry of metadata" in out
    assert main(["inspect", path, "--values"]) == 1
    assert capsys.readouterr().out.startswith("NOT VALID: ")
    write(tmp_path / "b.safetensors", kohya_tensors())
    with pytest.raises(SystemExit):
        main(["inspect", str(tmp_path), "--values"])
    capsys.readouterr()
