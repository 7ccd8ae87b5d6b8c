"""Modules whose keys or shapes alone do not say what they do: merged projections, experts, MLX's DoRA, large files."""

import copy
import json
from pathlib import Path

import pytest
import torch

from lorabench.adapters import load as load_adapter
from lorabench.adapters.reading.switching import UNPLACED
from lorabench.errors import LorabenchError
from tests.inspected_files import write as _save


@pytest.mark.parametrize("on", [(True, False, True), (False, True), (True, True), (False, False, True)])
@pytest.mark.parametrize("names", ["base_model.model.qkv.lora_{}.weight", "qkv.lora_{}"])
def test_parts_of_a_merged_projection_that_are_off_have_zero_rows(
    tmp_path: Path, on: tuple[bool, ...], names: str
) -> None:
    """Against ΔW built part by part; loralib's own up has two axes."""
    groups, height, rank = sum(on), 4, 3
    down, up = torch.randn(groups * rank, 7), torch.randn(groups * height, rank, 1)
    stored = up[:, :, 0].clone() if names == "qkv.lora_{}" and groups > 1 else up
    _save(tmp_path / "adapter_model.safetensors", {names.format("A"): down, names.format("B"): stored})
    config = {"r": rank, "lora_alpha": 6, "enable_lora": list(on)}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    module = load_adapter(tmp_path).modules["qkv"]
    expected, at = torch.zeros(len(on) * height, 7), 0
    for part, is_on in enumerate(on):
        if is_on:
            one = up[at * height : (at + 1) * height, :, 0] @ down[at * rank : (at + 1) * rank]
            expected[part * height : (part + 1) * height] = one * module.scale
            at += 1
    torch.testing.assert_close(module.delta(), expected, rtol=1e-5, atol=1e-5)
    assert module.scale == (2.0 if names.startswith("base") else 1.0)
    assert UNPLACED not in module.assumed
    assert f"{len(on)} parts" in " ".join(module.assumed)


def test_a_merged_projection_without_its_configuration_is_marked(tmp_path: Path) -> None:
    down, up = torch.randn(6, 7), torch.randn(10, 3)
    path = _save(tmp_path / "a.safetensors", {"qkv.lora_A": down, "qkv.lora_B": up})
    module = load_adapter(path).modules["qkv"]
    torch.testing.assert_close(module.up @ module.down, torch.cat([up[:5] @ down[:3], up[5:] @ down[3:]]))
    assert UNPLACED in module.assumed
    for wrong in ([True], [True, True, True], "yes", [1, 1], [True] * 17):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"enable_lora": wrong}))
        with pytest.raises(LorabenchError, match=r"enable_lora in adapter_config\.json is .* Repair it"):
            load_adapter(path)


def test_an_mlx_magnitude_is_doras(tmp_path: Path) -> None:
    tensors = {"q.lora_a": torch.randn(6, 2), "q.lora_b": torch.randn(2, 5), "q.m": torch.ones(5), "x.m": torch.ones(1)}
    adapter = load_adapter(_save(tmp_path / "adapters.safetensors", tensors))
    assert adapter.unsupported == {"dora": ("q.m",), "other": ("x.m",)}
    assert adapter.modules["q"].kind == "dora"


def test_experts_are_set_aside(tmp_path: Path) -> None:
    """As PEFT itself saves a mixture's parameters; their rank and scale stand nowhere."""
    peft = pytest.importorskip("peft")

    class Experts(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = torch.nn.Parameter(torch.randn(4, 6, 10))
            self.down = torch.nn.Parameter(torch.randn(4, 5, 6))

    model = torch.nn.ModuleDict({"experts": Experts(), "q": torch.nn.Linear(6, 6)})
    wanted = [f"base_model.model.experts.{inner}lora_{half}.weight" for inner in ("base_layer.", "") for half in "AB"]
    for i, names in enumerate((["experts.gate", "experts.down"], ["gate", "down"])):
        config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["q"], target_parameters=names)
        peft.get_peft_model(copy.deepcopy(model), config).save_pretrained(tmp_path / str(i))
        adapter = load_adapter(tmp_path / str(i))
        assert {name: (one.rank, one.scale) for name, one in adapter.modules.items()} == {"q": (2, 3.0)}
        assert {kind: sorted(keys) for kind, keys in adapter.unsupported.items()} == {
            "expert_parameters": sorted(wanted)
        }
    (tmp_path / "0" / "adapter_config.json").unlink()
    assert set(load_adapter(tmp_path / "0").modules) == {"q"}


def test_all_factors_of_a_file_together_have_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {f"{i}.lokr_{part}": torch.ones(20, 20) for i in range(5) for part in ("w1", "w2")}
    path = _save(tmp_path / "a.safetensors", tensors)
    each = 2 * 400 * 400  # rank 400 of both factors
    monkeypatch.setattr("lorabench.adapters.reading.limits.MOST_TOGETHER", 5 * each)
    assert sum(one.up.numel() + one.down.numel() for one in load_adapter(path).modules.values()) == 5 * each
    monkeypatch.setattr("lorabench.adapters.reading.limits.MOST_TOGETHER", 5 * each - 1)
    with pytest.raises(LorabenchError, match=f"modules unfold to {5 * each} numbers together, {5 * each - 1} are the"):
        load_adapter(path)
