"""LoHa, LoKr, AdaLoRA and DoRA as factors, against their papers' dense formulas and against PEFT itself."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lorabench.adapters import load as load_adapter
from lorabench.adapters.reading.table import read_table
from lorabench.errors import LorabenchError
from tests.real_adapters import index, real


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def read(tmp_path: Path, tensors: dict[str, Tensor], config: dict[str, Any] | None = None) -> Any:
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    if config is not None:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    return load_adapter(tmp_path)


@pytest.mark.parametrize(("d_out", "d_in", "rank"), [(40, 30, 3), (12, 9, 4), (30, 40, 1)])
def test_loha_is_the_product_of_its_products(tmp_path: Path, d_out: int, d_in: int, rank: int) -> None:
    """Of rank r² where that is below the sides, and as it is where it is not (12 × 9 with r = 4)."""
    parts = {"w1_a": drawn(d_out, rank), "w1_b": drawn(rank, d_in), "w2_a": drawn(d_out, rank, seed=1),
             "w2_b": drawn(rank, d_in, seed=1)}  # fmt: skip
    tensors = {f"lora_unet_mid_block_attentions_0_proj_in.hada_{name}": value for name, value in parts.items()}
    tensors["lora_unet_mid_block_attentions_0_proj_in.alpha"] = torch.tensor(2.0)
    module = read(tmp_path, tensors).modules["unet.mid_block.attentions.0.proj_in"]
    expected = (parts["w1_a"] @ parts["w1_b"]) * (parts["w2_a"] @ parts["w2_b"]) * (2.0 / rank)
    torch.testing.assert_close(module.delta(), expected, rtol=1e-5, atol=1e-5)
    assert module.kind == "loha"
    assert module.rank == min(rank**2, d_out, d_in)
    assert module.alpha == 2.0


def test_loha_of_a_convolution_has_tucker_cores(tmp_path: Path) -> None:
    out, into, rank = 10, 8, 3
    parts = {}
    for i in (1, 2):
        parts |= {f"t{i}": drawn(rank, rank, 3, 3, seed=i), f"w{i}_a": drawn(rank, out, seed=i)}
        parts[f"w{i}_b"] = drawn(rank, into, seed=i)
    module = read(tmp_path, {f"x.conv.hada_{name}": value for name, value in parts.items()}).modules["x.conv"]
    rebuilt = [torch.einsum("ijkl,jr,ip->prkl", parts[f"t{i}"], parts[f"w{i}_b"], parts[f"w{i}_a"]) for i in (1, 2)]
    torch.testing.assert_close(module.delta(), (rebuilt[0] * rebuilt[1]).flatten(1), rtol=1e-4, atol=1e-4)
    assert module.kernel == (3, 3)
    assert module.shape == (10, 72)


LOKR = {
    "both whole": ({"w1": (4, 3), "w2": (5, 6)}, 1.0),
    "second low": ({"w1": (4, 3), "w2_a": (5, 2), "w2_b": (2, 6)}, 2.0),
    "both low": ({"w1_a": (8, 2), "w1_b": (2, 6), "w2_a": (10, 2), "w2_b": (2, 9)}, 2.0),
    "convolution": ({"w1": (4, 3), "w2": (5, 6, 3, 3)}, 1.0),
    "tucker": ({"w1": (4, 3), "t2": (2, 2, 3, 3), "w2_a": (2, 5), "w2_b": (2, 6)}, 2.0),
}


@pytest.mark.parametrize("name", LOKR)
def test_lokr_is_a_kronecker_product(tmp_path: Path, name: str) -> None:
    shapes, scale = LOKR[name]
    parts = {part: drawn(*shape) for part, shape in shapes.items()}
    tensors = {f"lora_unet_x.lokr_{part}": value for part, value in parts.items()} | {
        "lora_unet_x.alpha": torch.tensor(4.0)
    }
    module = next(iter(read(tmp_path, tensors).modules.values()))
    first = parts["w1"] if "w1" in parts else parts["w1_a"] @ parts["w1_b"]
    if "t2" in parts:
        second = torch.einsum("ijkl,ip,jr->prkl", parts["t2"], parts["w2_a"], parts["w2_b"])
    else:
        second = parts["w2"] if "w2" in parts else parts["w2_a"] @ parts["w2_b"]
    if second.ndim == 4:
        first = first[:, :, None, None]
    expected = torch.kron(first, second.contiguous()).flatten(1) * scale
    torch.testing.assert_close(module.delta(), expected, rtol=1e-4, atol=1e-5)
    assert module.kind == "lokr"
    assert module.kernel == tuple(second.shape[2:])


@pytest.mark.parametrize("rslora", [False, True])
def test_peft_computes_the_same_delta(tmp_path: Path, rslora: bool) -> None:
    """LoHa, LoKr and AdaLoRA as PEFT makes and saves them."""
    peft = pytest.importorskip("peft")
    configs = {
        "loha": peft.LoHaConfig(r=3, alpha=5, target_modules=["lin", "conv"], init_weights=False),
        "lokr": peft.LoKrConfig(r=3, alpha=5, target_modules=["lin", "conv"], init_weights=False,
                                decompose_both=rslora, decompose_factor=4),
        "adalora": peft.AdaLoraConfig(init_r=4, target_r=2, lora_alpha=6, total_step=10, tinit=1, tfinal=1,
                                      target_modules=["lin"], init_lora_weights=False),
        "dora": peft.LoraConfig(r=4, lora_alpha=6, use_dora=True, use_rslora=rslora, target_modules=["lin"],
                                init_lora_weights=False),
    }  # fmt: skip
    for kind, config in configs.items():
        torch.manual_seed(0)
        base = nn.ModuleDict({"lin": nn.Linear(24, 40), "conv": nn.Conv2d(8, 12, 3)})
        model = peft.get_peft_model(base, config)
        folder = tmp_path / f"{kind}{rslora}"
        model.save_pretrained(folder)
        adapter = load_adapter(folder)
        assert set(adapter.modules) == set(config.target_modules), kind
        for name, module in adapter.modules.items():
            layer = model.base_model.model[name]
            delta = layer.get_delta_weight("default").detach()
            torch.testing.assert_close(module.delta(), delta.flatten(1), rtol=1e-4, atol=1e-5, msg=f"{kind} {name}")
            assert module.kind == kind
        table = read_table(folder)
        assert {row.module: row.scale for row in table.rows} == pytest.approx(
            {name: module.scale for name, module in adapter.modules.items()}
        )


def test_real_lokr_files_are_their_kronecker_products() -> None:
    counts = {"kohya+lycoris": 350, "peft-lokr": 4}
    for path, count in ((real(row["path"]), counts[row["format"]]) for row in index() if row["format"] in counts):
        file = path if path.is_file() else path / "adapter_model.safetensors"
        adapter, table, raw = load_adapter(path), read_table(path), load_file(file)
        assert len(adapter.modules) == len(table.rows) == count
        for row in table.rows[:: count // 4]:
            part = {name: raw[key].float() for name, key in row.keys.items()}
            first = part["w1"] if "w1" in part else part["w1_a"] @ part["w1_b"]
            second = part["w2"].flatten(1) if "w2" in part else part["w2_a"] @ part["w2_b"].flatten(1)
            expected = torch.kron(first, second) * row.scale
            torch.testing.assert_close(adapter.modules[row.module].delta(), expected, rtol=1e-4, atol=1e-7)


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    good = {
        "x.hada_w1_a": drawn(4, 2),
        "x.hada_w1_b": drawn(2, 5),
        "x.hada_w2_a": drawn(4, 2),
        "x.hada_w2_b": drawn(2, 5),
    }
    cases: tuple[tuple[dict[str, Tensor], str], ...] = (
        ({"x.hada_w2_b": drawn(3, 5)}, r"the shapes of module x \(loha\) do not fit together: x\.hada_w1_a \[4, 2\]"),
        ({"x.hada_t1": drawn(2, 2, 3, 3)}, r"module x \(loha\) do not fit"),
        ({"x.hada_w1_a": torch.full((4, 2), torch.nan)}, r"NaN or infinite values in x\.hada_w1_a"),
        ({"x.lora_down.weight": drawn(2, 5), "x.lokr_w1": drawn(2, 2)}, r"module x has keys of loha and of lokr"),
    )
    for change, message in cases:
        with pytest.raises(LorabenchError, match=message):
            read(tmp_path, good | change)
    with pytest.raises(LorabenchError, match=r"module x \(loha\) lacks w1_a; it has x\.hada_w1_b"):
        read(tmp_path, {key: value for key, value in good.items() if key != "x.hada_w1_a"})


def test_a_magnitude_is_kept_in_the_list_of_what_is_not_used(tmp_path: Path) -> None:
    tensors = {"x.lora_down.weight": drawn(2, 5), "x.lora_up.weight": drawn(4, 2), "x.dora_scale": drawn(4, 1)}
    adapter = read(tmp_path, tensors)
    assert adapter.unsupported == {"dora": ("x.dora_scale",)}
    assert adapter.modules["x"].kind == "dora"
    assert "magnitude vector is left out" in " ".join(adapter.modules["x"].assumed)
    assert read_table(tmp_path).unsupported == adapter.unsupported
    with pytest.raises(LorabenchError, match=r"not all of it can be analysed\. dora: x\.dora_scale\. Read it without"):
        load_adapter(tmp_path, strict=True)
