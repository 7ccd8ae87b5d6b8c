"""Original models' names into diffusers' own: diffusers' public readers of such files are the judge of names and ΔW."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lorabench.adapters import LoraModule, load
from lorabench.adapters.fusing import as_diffusers, as_original, family_of
from lorabench.adapters.names.identity import identity
from lorabench.adapters.names.originals import rules
from tests.judges.judging import MARKS, ask, asked

pytestmark = MARKS
RANK = 2


def _flux(doubles: int = 1, singles: int = 1, d: int = 3072) -> dict[str, tuple[int, int]]:
    """Its reader knows one width alone."""
    double = {
        f"double_blocks.{i}.{stream}_{part}": shape
        for i in range(doubles)
        for stream in ("img", "txt")
        for part, shape in {
            "attn.qkv": (3 * d, d), "attn.proj": (d, d), "mlp.0": (4 * d, d), "mlp.2": (d, 4 * d),
            "mod.lin": (6 * d, d),
        }.items()
    }  # fmt: skip
    single = {
        f"single_blocks.{i}.{part}": shape
        for i in range(singles)
        for part, shape in {"linear1": (7 * d, d), "linear2": (d, 5 * d), "modulation.lin": (3 * d, d)}.items()
    }
    return double | single


def _wan(d: int = 96) -> dict[str, tuple[int, int]]:
    attention = {
        f"blocks.{i}.{kind}.{part}": (d, d) for i in range(2) for kind in ("self_attn", "cross_attn") for part in "qkvo"
    }
    return attention | {
        f"blocks.{i}.ffn.{j}": shape for i in range(2) for j, shape in ((0, (4 * d, d)), (2, (d, 4 * d)))
    }


def _hunyuan(d: int = 3072) -> dict[str, tuple[int, int]]:
    """Its reader knows one width alone."""
    return {
        "double_blocks.0.img_attn_qkv": (3 * d, d),
        "double_blocks.0.img_attn_proj": (d, d),
        "double_blocks.0.txt_attn_qkv": (3 * d, d),
        "double_blocks.0.txt_attn_proj": (d, d),
        "double_blocks.0.img_mlp.fc1": (4 * d, d),
        "double_blocks.0.txt_mlp.fc2": (d, 4 * d),
        "double_blocks.0.img_mod.linear": (6 * d, d),
        "single_blocks.0.linear1": (7 * d, d),
        "single_blocks.0.linear2": (d, 5 * d),
        "single_blocks.0.modulation.linear": (3 * d, d),
        "txt_in.individual_token_refiner.blocks.0.self_attn_proj": (d, d),
    }


def _lumina2(d: int = 2304) -> dict[str, tuple[int, int]]:
    """Grouped queries: 24 heads of 96, 8 of keys and values; its reader knows these sizes alone."""
    block = {
        "attention.qkv": (d + 2 * 768, d), "attention.out": (d, d), "feed_forward.w1": (4 * d, d),
        "feed_forward.w2": (d, 4 * d), "feed_forward.w3": (4 * d, d),
    }  # fmt: skip
    modulated = block | {"adaLN_modulation.1": (4 * d, 1024)}
    blocks = {"layers.0": modulated, "noise_refiner.0": modulated, "context_refiner.0": block}
    return {f"{name}.{part}": shape for name, parts in blocks.items() for part, shape in parts.items()}


FAMILIES: dict[str, tuple[Any, dict[str, tuple[int, int]], str]] = {
    "flux": (diffusers.FluxPipeline, _flux(), "lora_unet_"),
    "wan": (diffusers.WanPipeline, _wan(), "lora_unet_"),
    "wan-dotted": (diffusers.WanPipeline, _wan(), "diffusion_model."),
    "hunyuan-video": (diffusers.HunyuanVideoPipeline, _hunyuan(), "diffusion_model."),
    "lumina2": (diffusers.Lumina2Pipeline, _lumina2(), "diffusion_model."),
}


def _state(shapes: Mapping[str, tuple[int, int]], prefix: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, (d_out, d_in) in shapes.items():
        down, up = (torch.randn(size, generator=generator) for size in ((RANK, d_in), (d_out, RANK)))
        if prefix == "lora_unet_":
            stem = f"{prefix}{name.replace('.', '_')}"
            state |= {
                f"{stem}.lora_down.weight": down,
                f"{stem}.lora_up.weight": up,
                f"{stem}.alpha": torch.tensor(1.0),
            }
        else:
            state |= {f"{prefix}{name}.lora_A.weight": down, f"{prefix}{name}.lora_B.weight": up}
    return state


def _probes(d_in: int) -> Tensor:
    return torch.randn(d_in, 3, generator=torch.Generator().manual_seed(1))


def _on_probes(module: LoraModule) -> Tensor:
    """[d_out, 3]: ΔW of some inputs; ΔW itself is 20,000 × 3,000 here."""
    return module.scale * (module.up @ (module.down @ _probes(module.shape[1])))


@pytest.mark.parametrize("name", FAMILIES)
def test_names_and_deltas_are_those_of_diffusers_own_reader(name: str, tmp_path: Path) -> None:
    pipeline, shapes, prefix = FAMILIES[name]
    state = _state(shapes, prefix)
    save_file(state, str(tmp_path / "a.safetensors"))
    asked("convert", tmp_path / "a.safetensors", "-o", tmp_path / "ours.safetensors", "--to", "diffusers-peft")
    modules = load(tmp_path / "ours.safetensors").modules
    read = pipeline.lora_state_dict({key: value.clone() for key, value in state.items()})
    theirs = read[0] if isinstance(read, tuple) else read
    names = {key.removesuffix(".lora_A.weight") for key in theirs if key.endswith(".lora_A.weight")}
    assert set(modules) == names
    for module in names:
        down, up = (theirs[f"{module}.lora_{matrix}.weight"] for matrix in "AB")
        torch.testing.assert_close(
            _on_probes(modules[module]), up @ (down @ _probes(down.shape[1])), rtol=1e-4, atol=1e-3
        )


@pytest.mark.parametrize("name", FAMILIES)
def test_there_and_back_is_the_same_adapter(name: str, tmp_path: Path) -> None:
    _, shapes, prefix = FAMILIES[name]
    shapes = _flux(19, 38, 96) if name == "flux" else shapes
    save_file(_state(shapes, prefix), str(tmp_path / "a.safetensors"))
    modules = load(tmp_path / "a.safetensors").modules
    family = family_of(modules)
    assert family is not None
    assert rules(family.key)
    split = as_diffusers(modules, family)
    back = as_original(split.modules, family_of(split.modules))
    assert set(back.modules) == set(modules)
    for module, before in modules.items():
        assert back.modules[module].rank == before.rank  # what was one has one down matrix
        torch.testing.assert_close(_on_probes(back.modules[module]), _on_probes(before), rtol=1e-4, atol=1e-4)


def test_blocks_that_two_families_call_otherwise_are_no_guess(tmp_path: Path) -> None:
    """One block of FLUX in diffusers' names may be HunyuanVideo's, whose own names are others."""
    save_file(_state(_flux(), "lora_unet_"), str(tmp_path / "a.safetensors"))
    asked("convert", tmp_path / "a.safetensors", "-o", tmp_path / "d.safetensors", "--to", "diffusers-peft")
    answer = ask("convert", tmp_path / "d.safetensors", "-o", tmp_path / "k.safetensors", "--to", "kohya")
    assert answer.code == 1
    assert "nothing says how kohya's trainers call the modules" in answer.text


def _vace() -> tuple[dict[str, tuple[int, int]], dict[str, tuple[int, int]]]:
    """The linear layers of a small Wan VACE in diffusers, and those of its original model."""
    model = diffusers.WanVACETransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, text_dim=32, freq_dim=256, ffn_dim=40,
        num_layers=2, rope_max_seq_len=32, vace_layers=[0, 1], vace_in_channels=96,
    )  # fmt: skip
    theirs = {
        name: (layer.out_features, layer.in_features)
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and "blocks." in name
    }
    d, wide = 24, 40
    attention = {f"{one}_attn.{name}": (d, d) for one in ("self", "cross") for name in "qkvo"}
    block = attention | {"ffn.0": (wide, d), "ffn.2": (d, wide)}
    original = {
        f"{blocks}.{i}.{p}": s for blocks in ("blocks", "vace_blocks") for i in (0, 1) for p, s in block.items()
    }
    return theirs, original | {"vace_blocks.0.before_proj": (d, d)} | {
        f"vace_blocks.{i}.after_proj": (d, d) for i in (0, 1)
    }


@pytest.mark.parametrize("prefix", ["lora_unet_", "diffusion_model."])
@pytest.mark.parametrize("only", ["blocks", "vace_blocks"])
def test_wan_vace_is_the_model_of_diffusers_and_back(prefix: str, only: str, tmp_path: Path) -> None:
    """diffusers' own reader of such files knows no `vace_blocks` (0.42): its model is the judge."""
    theirs, original = _vace()
    shapes = {name: shape for name, shape in original.items() if only in name}
    save_file(_state(shapes, prefix), str(tmp_path / "a.safetensors"))
    asked("convert", tmp_path / "a.safetensors", "-o", tmp_path / "b.safetensors", "--to", "diffusers-peft")
    found = load(tmp_path / "b.safetensors").modules
    wanted = {f"transformer.{name}": shape for name, shape in theirs.items() if only in name}
    assert {name: module.shape for name, module in found.items()} == wanted
    asked("convert", tmp_path / "b.safetensors", "-o", tmp_path / "c.safetensors", "--to", "kohya")
    back, before = load(tmp_path / "c.safetensors").modules, load(tmp_path / "a.safetensors").modules
    assert {identity(name) for name in back} == {identity(name) for name in before}
    of_before = {identity(name): module.delta() for name, module in before.items()}
    for name, module in back.items():
        torch.testing.assert_close(module.delta(), of_before[identity(name)])


@pytest.mark.parametrize("layout", ["diffusers", "diffusers-peft"])
def test_single_blocks_that_two_families_have_are_refused(layout: str, tmp_path: Path) -> None:
    """diffusers reads them from kohya's file, and nothing of what would be written."""
    d = 3072
    shapes = {"single_blocks.3.linear1": (7 * d, d), "single_blocks.3.linear2": (d, 5 * d)}
    save_file(_state(shapes, "lora_unet_"), str(tmp_path / "a.safetensors"))
    answer = ask("convert", tmp_path / "a.safetensors", "-o", tmp_path / "b.safetensors", "--to", layout)
    assert answer.code == 1
    assert "nothing says of which family's model 2 modules are" in answer.text
    assert not (tmp_path / "b.safetensors").exists()
    asked("convert", tmp_path / "a.safetensors", "-o", tmp_path / "c.safetensors", "--to", "comfyui")


def test_names_that_are_diffusers_own_are_written_though_originals_have_such_a_word(tmp_path: Path) -> None:
    """Krea 2's `layerwise_blocks` are diffusers' own."""
    blocks = [f"text_fusion.layerwise_blocks.{i}.attn.to_{part}" for i in (0, 1) for part in "qkv"]
    save_file(_state(dict.fromkeys(blocks, (64, 64)), "lora_unet_"), str(tmp_path / "a.safetensors"))
    asked("convert", tmp_path / "a.safetensors", "-o", tmp_path / "b.safetensors", "--to", "diffusers-peft")
    assert set(load(tmp_path / "b.safetensors").modules) == {f"transformer.{name}" for name in blocks}
