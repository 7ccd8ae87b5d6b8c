"""What is written means what was read: whole tensors, names that trainers know, and refusals where neither is so."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorabench.adapters import load, save
from lorabench.adapters.__main__ import main
from lorabench.adapters.merging.recipe import Recipe
from lorabench.adapters.merging.whole import merge
from lorabench.adapters.metadata.inspection import inspect
from lorabench.adapters.names.identity import unwrap
from lorabench.adapters.writing.converting import convert
from lorabench.adapters.writing.names_from import names_from
from lorabench.errors import LorabenchError


def _pairs(shapes: Mapping[str, tuple[int, int]], rank: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        f"{name}.{factor}.weight": torch.randn(*shape, generator=generator)
        for name, (d_out, d_in) in shapes.items()
        for factor, shape in (("lora_A", (rank, d_in)), ("lora_B", (d_out, rank)))
    }


def _file(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file(dict(tensors), path, metadata)
    return path


@pytest.mark.parametrize("key", ["unet.conv_in.diff_b", "unet.conv_in.diff", "unet.conv_in.lora.up.bias"])
@pytest.mark.parametrize(
    ("weights", "second", "expected"), [([1, 1], 1.0, 2.0), ([2, 1], 1.0, 3.0), ([1, 3], None, 1.0)]
)
def test_what_is_added_to_the_base_is_summed_whoever_has_it(
    tmp_path: Path, key: str, weights: list[int], second: float | None, expected: float
) -> None:
    pair = {"unet.conv_in.lora.down.weight": torch.ones(1, 4), "unet.conv_in.lora.up.weight": torch.ones(4, 1)}
    whole = {key: torch.ones(4)}
    a = load(_file(tmp_path / "a.safetensors", pair | whole))
    b = load(_file(tmp_path / "b.safetensors", pair | (whole if second else {})))
    merged, _ = merge([a, b], weights, Recipe(normalize=False))
    assert merged.extras[key].tolist() == [expected] * 4


def test_whole_tensors_that_are_added_have_one_shape(tmp_path: Path) -> None:
    pair = {"unet.conv_in.lora.down.weight": torch.ones(1, 4), "unet.conv_in.lora.up.weight": torch.ones(4, 1)}
    adapters = [
        load(_file(tmp_path / f"{n}.safetensors", pair | {"unet.conv_in.diff_b": torch.ones(n)})) for n in (3, 4)
    ]
    with pytest.raises(LorabenchError, match=r"diff_b is no low-rank pair.*their shapes are 3 and 4"):
        merge(adapters, [1, 1])


def test_a_scale_that_goes_into_up_goes_into_its_bias_too(tmp_path: Path) -> None:
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors = _pairs({name: (8, 8)}) | {f"{name}.lora_B.bias": torch.ones(8)}
    stated = {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": 8, "unet.lora_bias": True})}
    adapter = load(_file(tmp_path / "a.safetensors", tensors, stated))
    assert adapter.modules[name].scale == 4
    written = load_file(save(tmp_path / "b.safetensors", adapter, "diffusers-peft"))
    assert written[f"{name}.lora_B.bias"].tolist() == [4.0] * 8
    torch.testing.assert_close(written[f"{name}.lora_B.weight"], 4 * tensors[f"{name}.lora_B.weight"])


def test_save_loses_nothing_in_silence(tmp_path: Path) -> None:
    folder = tmp_path / "peft"
    folder.mkdir()
    _file(folder / "adapter_model.safetensors", _pairs({"base_model.model.h.0.q": (4, 4)}))
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q"]}
    for more, why in (
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
    ):
        (folder / "adapter_config.json").write_text(json.dumps(config | more))
        with pytest.raises(LorabenchError, match=why):
            save(tmp_path / "x.safetensors", load(folder), "kohya")
    (folder / "adapter_config.json").write_text(json.dumps(config | {"task_type": "SEQ_CLS"}))
    head = {"base_model.model.score.weight": torch.ones(2, 4)}
    _file(folder / "adapter_model.safetensors", _pairs({"base_model.model.h.0.q": (4, 4)}) | head)
    with pytest.raises(LorabenchError, match="no place for 1 tensors that are no pair"):
        save(tmp_path / "x.safetensors", load(folder), "kohya")
    magnitude = {"base_model.model.h.0.q.lora_magnitude_vector": torch.ones(4)}
    _file(folder / "adapter_model.safetensors", _pairs({"base_model.model.h.0.q": (4, 4)}) | magnitude)
    with pytest.raises(LorabenchError, match="DoRA magnitude"):
        save(tmp_path / "x", load(folder), "peft")
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize("start", ["orthogonal", "eva", True, "gaussian"])
def test_other_ranks_leave_no_start_that_they_may_not_have(tmp_path: Path, start: str | bool) -> None:
    folder = tmp_path / "peft"
    folder.mkdir()
    _file(folder / "adapter_model.safetensors", _pairs({"base_model.model.h.0.q": (8, 8)}, rank=4))
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["q"], "init_lora_weights": start}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    assert main(["resize", str(folder), "--rank", "3", "-o", str(tmp_path / "less")]) == 0
    assert main(["resize", str(folder), "--rank", "4", "-o", str(tmp_path / "same")]) == 0
    entries = [json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("less", "same")]
    assert [entry.get("init_lora_weights") for entry in entries] == [None if start == "orthogonal" else start, start]


def test_grouped_queries_alone_do_not_say_how_many_rows_a_fused_projection_has(tmp_path: Path) -> None:
    shapes = {
        f"transformer.layers.{block}.attn.{name}": (2304, 2304) for block in range(2) for name in ("to_q", "to_out.0")
    }
    adapter = load(_file(tmp_path / "a.safetensors", _pairs(shapes)))
    with pytest.raises(LorabenchError, match="nothing says how kohya's trainers call the modules of a Lumina 2"):
        convert(adapter, "kohya")
    keys = {f"transformer.layers.{block}.attn.to_k": (768, 2304) for block in range(2)}
    fused = convert(load(_file(tmp_path / "b.safetensors", _pairs(shapes | keys))), "kohya").adapter.modules
    assert {module.shape for name, module in fused.items() if name.endswith("qkv")} == {(3840, 2304)}


def test_trainers_of_z_image_flatten_diffusers_names(tmp_path: Path) -> None:
    blocks = ("context_refiner.0", "noise_refiner.0", "layers.0", "layers.1")
    shapes = {"attention.qkv": (11520, 3840), "attention.out": (3840, 3840), "feed_forward.w1": (10240, 3840)}
    named = {f"diffusion_model.{block}.{name}": shape for block in blocks for name, shape in shapes.items()}
    assert main(["convert", str(_file(tmp_path / "a.safetensors", _pairs(named))), "--to", "kohya",
                 "-o", str(tmp_path / "b.safetensors")]) == 0  # fmt: skip
    keys = load_file(tmp_path / "b.safetensors")
    assert "lora_unet_context_refiner_0_attention_to_out_0.lora_down.weight" in keys
    assert "lora_unet_layers_1_attention_to_q.lora_down.weight" in keys
    assert not [key for key in keys if "qkv" in key or "attention_out." in key]


@pytest.mark.parametrize("word", ["diffusion_model", "transformer", "model.diffusion_model"])
def test_a_model_that_no_table_knows_has_no_kohya_names(tmp_path: Path, word: str) -> None:
    shapes = {f"{word}.my_blocks.{block}.self_attn.to_q": (16, 16) for block in range(3)}
    with pytest.raises(LorabenchError, match="nothing says how kohya's trainers call the modules"):
        convert(load(_file(tmp_path / "a.safetensors", _pairs(shapes))), "kohya")


@pytest.mark.parametrize("ending", [".safetensors", ".bin", ".pt"])
def test_any_adapter_says_names_and_before_the_tables(tmp_path: Path, ending: str) -> None:
    other = load(_file(tmp_path / "n.safetensors", _pairs({"unet.down_blocks.0.attn_to.q": (4, 4)})))
    path = save(tmp_path / f"names{ending}", other, "diffusers")
    names = names_from(path)
    assert names["down_blocks_0_attn_to_q"] == "down_blocks.0.attn_to.q"
    flat = {"lora_unet_down_blocks_0_attn_to_q.lora_down.weight": torch.ones(1, 4),
            "lora_unet_down_blocks_0_attn_to_q.lora_up.weight": torch.ones(4, 1)}  # fmt: skip
    adapter = load(_file(tmp_path / "a.safetensors", flat))
    assert list(convert(adapter, "diffusers", component="unet", names=names).adapter.modules) == list(other.modules)


def test_a_names_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(LorabenchError, match="absent: cannot be read"):
        names_from(tmp_path / "absent")


def test_the_preflight_says_what_writing_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = {"unet:0:up": torch.ones(4, 1), "unet:0:down": torch.ones(1, 4), "<token>": torch.ones(8)}
    path = str(_file(tmp_path / "a.safetensors", pair))
    out = str(tmp_path / "out.safetensors")
    assert main(["merge", path, path, "--preflight"]) == main(["merge", path, path, "-o", out]) == 1
    assert "no place for 1 tensors" in capsys.readouterr().out
    assert main(["merge", path, path, "--preflight", "--drop-unsupported"]) == 0


def test_tensors_beside_a_nested_state_dict_are_listed(tmp_path: Path) -> None:
    inner = {"unet.q.lora.down.weight": torch.ones(2, 8), "unet.q.lora.up.weight": torch.ones(8, 2)}
    torch.save({"state_dict": inner, "extra": torch.ones(2), "epoch": 3}, tmp_path / "a.bin")
    found = inspect(tmp_path / "a.bin")
    assert found.validation_info["unsupported"] == {"other": ["extra"]}
    assert list(load(tmp_path / "a.bin").modules) == ["unet.q"]


@pytest.mark.parametrize("method", ["BOFT", "FOURIERFT", "HRA", "IA3", "LN_TUNING", "PREFIX_TUNING", "VERA"])
def test_what_peft_loads_is_whole_be_it_no_lora(tmp_path: Path, method: str) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": method}))
    keys = {"BOFT": "q.boft_R", "FOURIERFT": "q.fourierft_spectrum", "IA3": "q.ia3_l", "VERA": "q.vera_lambda_b"}
    _file(tmp_path / "adapter_model.safetensors", {f"base_model.model.{keys.get(method, 'q.x')}": torch.ones(4)})
    found = inspect(tmp_path)
    assert found.ok
    assert found.training_info["method"]["source"] == "adapter_config.json: peft_type"


def test_wrappers_are_whole_levels_of_a_name() -> None:
    assert unwrap("base_model.model.my_orig_model.x") == ("my_orig_model.x", ())
    assert unwrap("base_model.model._fpw_module.h.0.q") == ("h.0.q", ("_fpw_module",))


def test_an_alpha_of_two_parts_is_no_number(tmp_path: Path) -> None:
    tensors = {
        "q.lora_down.weight": torch.ones(2, 8),
        "q.lora_up.weight": torch.ones(8, 2),
        "q.alpha": torch.tensor(1j),
    }
    torch.save(tensors, tmp_path / "a.bin")
    with pytest.raises(LorabenchError, match=r"q\.alpha is stored as C64; a plain number is needed"):
        load(tmp_path / "a.bin")


@pytest.mark.parametrize("words", [["inspect"], ["compare", "--duplicates"], ["resize", "--rank", "2", "-o", "x"]])
def test_a_path_that_is_too_long_is_a_message(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "a" * 5000]) == 1
    assert "File name too long" in capsys.readouterr().err


@pytest.mark.parametrize("copy", [" (1)", " copy", " copy 2", " - Copy"])
def test_a_copy_of_an_adapter_has_the_copy_of_its_configuration(tmp_path: Path, copy: str) -> None:
    _file(tmp_path / f"adapter_model{copy}.safetensors", _pairs({"base_model.model.h.0.q": (4, 4)}))
    for name, alpha in (("adapter_config.json", 2), (f"adapter_config{copy}.json", 6)):
        (tmp_path / name).write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": alpha}))
    assert load(tmp_path / f"adapter_model{copy}.safetensors").modules["h.0.q"].scale == 3
