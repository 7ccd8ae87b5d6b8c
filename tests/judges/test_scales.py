"""scale · up · down of every module is PEFT's own `get_delta_weight`, for every tuner that is read."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.judges.judging import (
    MARKS,
    TOKENS,
    Convolutions,
    asked,
    assert_near,
    assert_same_weights,
    gpt2,
    llama,
    merged_in_peft,
    tensors_of,
    train,
)

pytestmark = [*MARKS, pytest.mark.filterwarnings("ignore:.*invalid shape.*lora_A..0,")]
QV = {"target_modules": ["q_proj", "v_proj", "gate_proj"]}
CONV = {"target_modules": ["conv_in", "blocks.1", "out"]}
WIDE = {"target_modules": ["conv_in", "out"]}
RANKS = {"rank_pattern": {"q_proj": 2, "0.self_attn.v_proj": 6}}
ALPHAS = {"alpha_pattern": {"v_proj": 3, r"layers\.1\.mlp\.gate_proj": 10}}

TUNERS: dict[str, tuple[type, Mapping[str, Any], Any]] = {
    "lora": (peft.LoraConfig, {"r": 4, "lora_alpha": 6, **QV}, llama),
    "lora-rslora": (peft.LoraConfig, {"r": 4, "lora_alpha": 6, "use_rslora": True, **QV}, llama),
    "lora-patterns": (peft.LoraConfig, {"r": 4, "lora_alpha": 6, **QV, **RANKS, **ALPHAS}, llama),
    "lora-rslora-patterns": (
        peft.LoraConfig, {"r": 4, "lora_alpha": 6, "use_rslora": True, **QV, **RANKS, **ALPHAS}, llama
    ),
    "lora-convolutions": (peft.LoraConfig, {"r": 3, "lora_alpha": 5, **CONV}, Convolutions),
    "lora-conv1d": (
        peft.LoraConfig, {"r": 3, "lora_alpha": 5, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}, gpt2
    ),
    "lora-table": (peft.LoraConfig, {"r": 3, "lora_alpha": 5, "target_modules": ["embed_tokens", "q_proj"]}, llama),
    "loha": (peft.LoHaConfig, {"r": 4, "alpha": 6, **QV}, llama),
    "loha-patterns": (peft.LoHaConfig, {"r": 4, "alpha": 6, **QV, **RANKS, **ALPHAS}, llama),
    "loha-convolutions": (peft.LoHaConfig, {"r": 3, "alpha": 5, **CONV}, Convolutions),
    "loha-effective": (peft.LoHaConfig, {"r": 3, "alpha": 5, "use_effective_conv2d": True, **WIDE}, Convolutions),
    "lokr": (peft.LoKrConfig, {"r": 4, "alpha": 6, **QV}, llama),
    "lokr-patterns": (peft.LoKrConfig, {"r": 8, "alpha": 5, **QV, **RANKS, **ALPHAS}, llama),
    "lokr-rank-64": (peft.LoKrConfig, {"r": 8, "alpha": 5, **QV, "rank_pattern": {"q_proj": 64}}, llama),
    "lokr-both": (peft.LoKrConfig, {"r": 2, "alpha": 3, "decompose_both": True, **QV, **RANKS}, llama),
    "lokr-factor": (peft.LoKrConfig, {"r": 1, "alpha": 3, "decompose_factor": 2, **QV}, llama),
    "lokr-both-factor": (
        peft.LoKrConfig, {"r": 1, "alpha": 3, "decompose_both": True, "decompose_factor": 4, **QV, **ALPHAS}, llama
    ),
    "lokr-convolutions": (peft.LoKrConfig, {"r": 2, "alpha": 5, **CONV}, Convolutions),
    "lokr-effective": (peft.LoKrConfig, {"r": 2, "alpha": 5, "use_effective_conv2d": True, **CONV}, Convolutions),
    "lokr-effective-of-rank-1": (
        peft.LoKrConfig,
        {"r": 1, "alpha": 3, "use_effective_conv2d": True, "decompose_factor": 2, **WIDE},
        Convolutions,
    ),
}  # fmt: skip


def _deltas(model: Any) -> dict[str, Tensor]:
    """PEFT's own ΔW of each module, as it is added to the weight."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)}
    with torch.no_grad():
        return {
            name.removeprefix("base_model.model."): layer.get_delta_weight("default").double()
            for name, layer in layers.items()
        }


def _assert_deltas(path: Path, expected: Mapping[str, Tensor], transposed: bool = False) -> None:
    from lorabench.adapters import load

    modules = load(path).modules
    assert modules.keys() == expected.keys()
    for name, delta in expected.items():
        module = modules[name]
        ours = module.delta().double()
        ours = ours.T if module.embedding or transposed else ours
        assert_near(ours.reshape(delta.shape), delta, f"ΔW of {name}", 2e-6)


@pytest.fixture(scope="module", params=TUNERS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any]:
    config, settings, base = TUNERS[request.param]
    torch.manual_seed(3)
    model = get_peft_model(base(), config(**settings))
    train(model)
    folder = tmp_path_factory.mktemp("scales") / "theirs"
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return request.param, folder, _deltas(model)


def test_reading_gives_pefts_delta(trained: tuple[str, Path, Any]) -> None:
    name, folder, expected = trained
    assert all(float(delta.abs().max()) > 1e-4 for delta in expected.values())
    _assert_deltas(folder, expected, "conv1d" in name)


@pytest.mark.parametrize("command", ["convert", "resize", "merge"])
def test_pefts_delta_comes_through(trained: tuple[str, Path, Any], command: str, tmp_path: Path) -> None:
    """What is written says it by another scale, or as an ordinary LoRA; PEFT merges the same weights from both."""
    name, folder, expected = trained
    if name == "loha-convolutions":
        pytest.skip("its tensors do not say that they are a convolution's, which a LoRA's have to")
    options = {"convert": ["--to", "peft"], "resize": ["--rank", "200"], "merge": ["-w", "1"]}[command]
    asked(command, folder, "-o", tmp_path / "ours", *options)
    _assert_deltas(tmp_path / "ours", expected, "conv1d" in name)
    base = TUNERS[name][2]
    assert_same_weights(merged_in_peft(base(), tmp_path / "ours"), merged_in_peft(base(), folder))


# AdaLoRA, through its own allocation of ranks.


def _adalora(folder: Path, target_r: int, alpha: int = 8, steps: int = 20) -> dict[str, Tensor]:
    torch.manual_seed(4)
    config = peft.AdaLoraConfig(
        init_r=6, target_r=target_r, lora_alpha=alpha, tinit=2, tfinal=5, deltaT=1, total_step=steps,
        target_modules=["q_proj", "v_proj", "up_proj"], task_type="CAUSAL_LM",
    )  # fmt: skip
    model = get_peft_model(llama(), config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05, weight_decay=0.0)
    model.train()
    for step in range(1, steps + 1):
        logits = model(input_ids=TOKENS).logits
        nn.functional.cross_entropy(logits.flatten(0, 1), TOKENS.flatten()).backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    model.eval()
    model.save_pretrained(str(folder))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it names its own rank_pattern by other keys than it looks for
        reloaded = PeftModel.from_pretrained(llama(), str(folder))
    return _deltas(reloaded)


@pytest.mark.parametrize("target_r", [1, 3, 5])
def test_adalora_as_its_allocator_left_it(target_r: int, tmp_path: Path) -> None:
    """α / init_r, whatever rank is left; and a module with nothing left changes nothing."""
    expected = _adalora(tmp_path / "theirs", target_r)
    ranks = {key: tensor.shape[0] for key, tensor in tensors_of(tmp_path / "theirs").items() if "lora_E" in key}
    assert len(set(ranks.values())) > 1, "the allocator gave every module the same rank"
    _assert_deltas(tmp_path / "theirs", expected)
    asked("convert", tmp_path / "theirs", "-o", tmp_path / "ours", "--to", "peft")
    live = {name: delta for name, delta in expected.items() if delta.any()}
    from lorabench.adapters import load

    written = load(tmp_path / "ours").modules
    assert live.keys() <= written.keys() <= expected.keys()
    for name, module in written.items():
        assert_near(module.delta().double(), expected[name], f"ΔW of {name}", 2e-6)
    base = merged_in_peft(llama(), tmp_path / "ours")
    before = {name: value.double() for name, value in llama().state_dict().items()}
    for name, delta in expected.items():
        assert_near(base[f"{name}.weight"], before[f"{name}.weight"] + delta, name, 2e-6)


def test_adalora_pruned_to_rank_zero(tmp_path: Path) -> None:
    """PEFT writes factors without rows; the others are whole, and this one is zero."""
    expected = _adalora(tmp_path / "theirs", 3)
    path = tmp_path / "theirs" / "adapter_model.safetensors"
    tensors, name = tensors_of(tmp_path / "theirs"), "model.layers.1.self_attn.q_proj"
    start = f"base_model.model.{name}.lora_"
    tensors[f"{start}A"], tensors[f"{start}E"] = tensors[f"{start}A"][:0], tensors[f"{start}E"][:0]
    tensors[f"{start}B"] = tensors[f"{start}B"][:, :0]
    save_file({key: value.contiguous() for key, value in tensors.items()}, str(path))
    from lorabench.adapters import load

    modules = load(tmp_path / "theirs").modules
    others = {other: delta for other, delta in expected.items() if other != name}
    assert others.keys() <= modules.keys()
    for other, delta in others.items():
        assert_near(modules[other].delta().double(), delta, f"ΔW of {other}", 2e-6)
    if name in modules:
        assert tuple(modules[name].shape) == tuple(expected[name].shape)
        assert not modules[name].delta().any()
    for command, options in (("inspect", []), ("convert", ["--to", "peft", "-o", str(tmp_path / "ours")])):
        asked(command, tmp_path / "theirs", *options)
    before = {name: value.double() for name, value in llama().state_dict().items()}
    assert_near(merged_in_peft(llama(), tmp_path / "ours")[f"{name}.weight"], before[f"{name}.weight"], name)


# α that only a safetensors header says.


HEADERS: dict[str, tuple[dict[str, str], int, float]] = {
    "alpha": ({"alpha": "1"}, 16, 0.0625),
    "lora_alpha": ({"lora_alpha": "1"}, 16, 0.0625),
    "network_alpha": ({"network_alpha": "1"}, 16, 0.0625),
    "alpha-of-a-fraction": ({"alpha": "0.5"}, 4, 0.125),
    "alpha-with-rank": ({"alpha": "8", "rank": "4"}, 4, 2.0),
    "lora_alpha-with-r": ({"lora_alpha": "32", "r": "16"}, 16, 2.0),
    "lora_alpha-as-float": ({"lora_alpha": "32.0"}, 16, 2.0),
    "of-a-part": ({"transformer.lora_alpha": "64", "transformer.r": "16"}, 16, 4.0),
    "of-another-part": ({"text_encoder.lora_alpha": "64", "text_encoder.r": "16"}, 16, 1.0),
}


@pytest.mark.parametrize("letters", [("lora_A", "lora_B"), ("lora.down", "lora.up")], ids=["peft", "diffusers"])
@pytest.mark.parametrize("header", HEADERS)
def test_alpha_of_a_header(header: str, letters: tuple[str, str], tmp_path: Path) -> None:
    from lorabench.adapters import load

    metadata, rank, scale = HEADERS[header]
    names = [f"transformer.transformer_blocks.{i}.attn.to_q" for i in range(3)]
    generator = torch.Generator().manual_seed(7)
    tensors, expected = {}, {}
    for name in names:
        down, up = torch.randn(rank, 20, generator=generator), torch.randn(24, rank, generator=generator)
        tensors |= {f"{name}.{letters[0]}.weight": down, f"{name}.{letters[1]}.weight": up}
        expected[name] = scale * up.double() @ down.double()
    path = tmp_path / "a.safetensors"
    save_file(tensors, str(path), metadata)
    assert {module.scale for module in load(path).modules.values()} == {scale}
    for layout in ("diffusers-peft", "diffusers", "comfyui", "peft"):
        once, twice = tmp_path / (layout if layout == "peft" else f"{layout}.safetensors"), tmp_path / f"{layout}-again"
        component = ["--component", "transformer"] if layout == "peft" else []
        asked("convert", path, "-o", once, "--to", layout, *component)
        asked("convert", once, "-o", twice.with_suffix(".safetensors"), "--to", "diffusers-peft", *component)
        for out in (once, twice.with_suffix(".safetensors")):
            modules = load(out).modules
            assert len(modules) == len(expected)
            for name, module in modules.items():
                whole = next(full for full in expected if full.endswith(name.partition("transformer_blocks")[2]))
                assert_near(module.delta().double(), expected[whole], f"ΔW of {name} in {out.name}", 5e-6)
    asked("resize", path, "-o", tmp_path / "resized.safetensors", "--rank", str(rank))
    for name, module in load(tmp_path / "resized.safetensors").modules.items():
        assert_near(module.delta().double(), expected[name], f"ΔW of {name} resized", 5e-6)


def test_a_tensors_alpha_outweighs_the_headers(tmp_path: Path) -> None:
    from lorabench.adapters import load

    tensors = {
        "lora_unet_a.lora_down.weight": torch.randn(4, 8), "lora_unet_a.lora_up.weight": torch.randn(6, 4),
        "lora_unet_a.alpha": torch.tensor(2.0),
    }  # fmt: skip
    save_file(tensors, str(tmp_path / "a.safetensors"), {"alpha": "1", "ss_network_alpha": "16"})
    assert [module.scale for module in load(tmp_path / "a.safetensors").modules.values()] == [0.5]


@pytest.mark.parametrize("alpha", ["none", "-", "1e400", "nan", "", "[1]"])
def test_an_alpha_that_is_no_number_is_said(alpha: str, tmp_path: Path) -> None:
    """Not believed, not in silence, and no traceback."""
    from lorabench.adapters import load

    tensors = {"transformer.a.0.lora_A.weight": torch.randn(4, 8), "transformer.a.0.lora_B.weight": torch.randn(6, 4)}
    save_file(tensors, str(tmp_path / "a.safetensors"), {"lora_alpha": alpha})
    assert [module.scale for module in load(tmp_path / "a.safetensors").modules.values()] == [1.0]
    data = json.dumps(asked("inspect", tmp_path / "a.safetensors").data)
    assert "lora_alpha" in data
