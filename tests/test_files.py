"""Adapter files: real ones of every tool, broken ones, and round trips."""

import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load as load_safetensors
from safetensors.torch import save_file

from lorabench.adapters import Adapter, LoraModule
from lorabench.adapters import load as load_adapter
from lorabench.adapters import save as save_adapter
from lorabench.errors import LorabenchError
from tests.real_adapters import index, published, real

NAMES = (
    "unet.transformer_blocks.0.attn1.to_q",
    "unet.transformer_blocks.0.attn1.to_out.0",
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0",
    "unet.mid_block.attentions.0.proj_in",
    "text_encoder.text_model.encoder.layers.10.self_attn.q_proj",
    "unet.transformer_blocks.10.ff.net.0.proj",
)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


REFUSED = {
    "malformed": "git-LFS pointer|JSON text",
    "peft-unilora": "unilora: base_model.unilora_theta_d",
    "peft-ia3": "ia3: .*ia3_l",
}
KINDS = {"kohya+lycoris": "lokr", "peft-adalora": "adalora", "peft-loha": "loha", "peft-lokr": "lokr"}


def _raw(path: Path) -> dict[str, np.ndarray]:
    """The tensors by a reading of our own: the safetensors format by hand, or torch."""
    if path.is_dir():
        (path,) = (file for file in path.iterdir() if file.suffix in (".safetensors", ".bin"))
    if path.suffix != ".safetensors":
        found = torch.load(path, map_location="cpu", weights_only=True)
        items = found.items() if isinstance(found, dict) else ((str(i), value) for i, value in enumerate(found))
        return {key: value.detach().float().numpy() for key, value in items}
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    types = {"F32": "<f4", "F16": "<f2", "I64": "<i8"}
    out = {}
    for key, entry in header.items():
        low, high = (8 + length + offset for offset in entry["data_offsets"])
        out[key] = np.frombuffer(data[low:high], types[entry["dtype"]]).reshape(entry["shape"]).astype(np.float32)
    return out


def _pairs(raw: dict[str, np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(down, up) in the order of the file, by the sides that touch, without any naming rules."""
    ups = [
        key for key in raw if re.search(r"lora_B|lora_b$|_up\.|\.up\.|:up$|w_b_|embedding_B", key) and "bias" not in key
    ]
    swaps = (("lora_embedding_B", "lora_embedding_A"), ("lora_B", "lora_A"), ("lora_b", "lora_a"), (".up.", ".down."),
             (":up", ":down"), ("w_b_", "w_a_"), ("lora_up.", "lora_down."))  # fmt: skip
    found = []
    for key in ups:
        old, new = next(pair for pair in swaps if pair[0] in key)
        found.append((raw[key.replace(old, new)], raw[key]))
    if not ups and raw:
        values = list(raw.values())
        found = list(zip(values[1::2], values[0::2], strict=True))
    return found


@pytest.mark.parametrize("row", index(), ids=lambda row: row["path"].replace("/", "-"))
def test_every_real_file_reads_or_says_why_not(row: dict[str, str]) -> None:
    path = real(row["path"])
    if row["format"] in REFUSED or path.name.endswith(".ti.pt"):
        with pytest.raises(LorabenchError, match=REFUSED.get(row["format"], "textual_inversion: <krk>")) as caught:
            load_adapter(path)
        assert str(path) in str(caught.value)
        return
    adapter = load_adapter(path)
    raw = _raw(path)
    if row["format"] in KINDS:  # test_variants.py looks at their numbers
        assert {module.kind for module in adapter.modules.values()} == {KINDS[row["format"]]}
        assert not adapter.unsupported
        return
    pairs = _pairs(raw)
    assert len(adapter.modules) == len(pairs)
    mine = sorted(_fingerprint(m.down.numpy(), m.up.numpy()) for m in adapter.modules.values())
    theirs = sorted(_fingerprint(*_standard(down, up, row["format"])) for down, up in pairs)
    assert mine == theirs
    listed = sum(len(keys) for keys in adapter.unsupported.values())
    alphas = sum(key.endswith(".alpha") for key in raw)
    assert listed + 2 * len(adapter.modules) + alphas == len(raw)


def _standard(down: np.ndarray, up: np.ndarray, form: str) -> tuple[np.ndarray, np.ndarray]:
    if form == "mlx":
        return down.T, up.T
    if up.ndim == 3:  # BLOOM's merged query, key and value, of which enable_lora has the key off
        half, r = up.shape[0] // 2, up.shape[1]
        whole = np.zeros((3 * half, 2 * r), np.float32)
        whole[:half, :r], whole[2 * half :, r:] = up[:half, :, 0], up[half:, :, 0]
        return down, whole
    return down.reshape(len(down), -1), up.reshape(len(up), -1)


def _fingerprint(down: np.ndarray, up: np.ndarray) -> tuple[object, ...]:
    return down.shape, up.shape, down.tobytes(), up.tobytes()


@pytest.mark.parametrize(
    ("path", "scale"),
    [
        ("peft/gpt2", 2.0),
        ("peft/opt_rslora", 3.0),
        ("mlx/adapters.safetensors", 10.0),
        ("bloom", 2.0),  # merged: alpha over r, not over the 2r rows
        ("diffusers_old/pytorch_lora_weights.bin", 1.0),
        *published(
            ("parikshit-06__domain-skeleton-gpt2/adapters/legal", 2.0),
            ("branbot6__sift-opf-zh/adapter", 2.0),
            ("wyek1n__MLX-CLI/adapters/0000100_adapters.safetensors", 10.0),
            ("wujindou__BLOOM-LORA", 2.0),  # alpha 16 over r = 8
            ("catundchat__stable-diffusion-v1.5-lora/pytorch_lora_weights.bin", 1.0),
        ),
    ],
)
def test_scales_of_real_files(path: str, scale: float) -> None:
    assert {module.scale for module in load_adapter(real(path)).modules.values()} == {scale}


@pytest.mark.parametrize("name", ["diffusers_old", *published("catundchat__stable-diffusion-v1.5-lora")])
def test_the_same_adapter_as_pickle_and_safetensors(name: str) -> None:
    first, second = (load_adapter(real(name) / f"pytorch_lora_weights.{end}") for end in ("bin", "safetensors"))
    assert list(first.modules) == list(second.modules)


def _module(rank: int = 2, d_in: int = 5, d_out: int = 4, scale: float = 1.0, seed: int = 0) -> LoraModule:
    generator = torch.Generator().manual_seed(seed)
    down, up = torch.randn(rank, d_in, generator=generator), torch.randn(d_out, rank, generator=generator)
    return LoraModule(down, up, scale)


def _delta(module: LoraModule) -> np.ndarray:
    return module.scale * (module.up.double() @ module.down.double()).numpy()


@pytest.mark.parametrize("layout", ["diffusers", "peft", "kohya"])
@pytest.mark.parametrize("scale", [1.0, 2.0, 1 / 3, 0.1])
def test_a_round_trip_keeps_names_order_and_delta(tmp_path: Path, layout: str, scale: float) -> None:
    modules = {name: _module(1 + i, scale=scale, seed=i) for i, name in enumerate(reversed(NAMES))}
    path = tmp_path / ("out" if layout == "peft" else "out.safetensors")
    assert save_adapter(path, modules, layout) == path
    back = load_adapter(path)
    assert list(back.modules) == list(modules)
    for name, module in modules.items():
        found = back.modules[name]
        np.testing.assert_allclose(_delta(found), _delta(module), rtol=1e-6, atol=1e-7)
        assert found.rank == module.rank
        if layout != "diffusers":
            assert torch.equal(found.up, module.up)
            assert found.scale == pytest.approx(scale, rel=1e-15, abs=0)
        assert torch.equal(found.down, module.down)
    assert not back.unsupported


@given(
    layout=st.sampled_from(["diffusers", "peft", "kohya"]),
    ranks=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    scale=st.floats(0.0625, 100.0, width=32),
    parts=st.lists(
        st.sampled_from(["attn1", "to_q", "foo_bar", "3", "h", "c_attn", "lora", "x.y"]), min_size=1, max_size=4
    ),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_adapter_comes_back(
    tmp_path: Path, layout: str, ranks: list[int], scale: float, parts: list[str], seed: int
) -> None:
    stem = ".".join(parts)
    modules = {f"unet.{stem}.{i}": _module(rank, scale=scale, seed=seed + i) for i, rank in enumerate(ranks)}
    path = tmp_path / ("out" if layout == "peft" else "out.safetensors")
    save_adapter(path, modules, layout)
    back = load_adapter(path).modules
    assert list(back) == list(modules)
    for name, module in modules.items():
        np.testing.assert_allclose(_delta(back[name]), _delta(module), rtol=1e-5, atol=1e-6 * scale)
        if layout != "diffusers":
            assert np.float32(back[name].scale) == np.float32(scale)


def test_an_adapter_keeps_what_stays_true(tmp_path: Path) -> None:
    adapter = Adapter(
        path=tmp_path / "old",
        schemes=("peft",),
        modules={"h.0": _module()},
        metadata={"ss_output_name": "cat", "sshs_model_hash": "stale"},
        config={"fan_in_fan_out": True, "r": 99, "base_model_name_or_path": "gpt2"},
    )
    save_adapter(tmp_path / "new", adapter, "peft")
    config = json.loads((tmp_path / "new" / "adapter_config.json").read_text())
    assert (config["fan_in_fan_out"], config["r"], config["base_model_name_or_path"]) == (True, 2, "gpt2")
    metadata = load_adapter(tmp_path / "new").metadata
    assert metadata["ss_output_name"] == "cat"
    assert len(metadata["sshs_model_hash"]) == 64  # computed anew


def test_kohya_alpha_and_peft_patterns_are_written(tmp_path: Path) -> None:
    modules = {
        "unet.conv_in": _module(4, scale=0.5),
        "unet.mid_block.to_q": _module(2),
        "unet.x_mid_block": _module(4, scale=0.5),
    }
    save_adapter(tmp_path / "a.safetensors", modules, "kohya")
    tensors = load_safetensors((tmp_path / "a.safetensors").read_bytes())
    assert tensors["lora_unet_conv_in.alpha"] == 2.0
    assert tensors["lora_unet_conv_in.alpha"].dtype == torch.float32
    save_adapter(tmp_path / "p", modules, "peft")
    config = json.loads((tmp_path / "p" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 2.0)
    assert config["rank_pattern"] == {r"^unet\.mid_block\.to_q": 2}
    assert config["alpha_pattern"] == {}
    assert "base_model.model.unet.conv_in.lora_A.weight" in load_safetensors(
        (tmp_path / "p" / "adapter_model.safetensors").read_bytes()
    )


def _save(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file(tensors, path, metadata)
    return path


def _pair(module: str = "h.0", rank: int = 4) -> dict[str, torch.Tensor]:
    return {
        f"base_model.model.{module}.lora_A.weight": torch.randn(rank, 6),
        f"base_model.model.{module}.lora_B.weight": torch.randn(5, rank),
    }


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"r": 4, "lora_alpha": 8}, 2.0),
        ({"r": 4, "lora_alpha": 8, "use_rslora": True}, 4.0),
        ({"r": 4}, 2.0),  # alpha defaults to 8
        ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"0": 2}}, 0.5),  # a suffix
        ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"h": 2}}, 2.0),  # no suffix
        ({"r": 4, "lora_alpha": 8, "alpha_pattern": {r".*\.\d": 1}}, 0.25),  # a regular expression
        ({"r": 8, "lora_alpha": 8, "rank_pattern": {"^h.0": 4}}, 2.0),
        ({"r": 8, "lora_alpha": 8}, 2.0),  # the tensors are right, and it is noted
    ],
)
def test_peft_scales(tmp_path: Path, config: dict[str, object], scale: float) -> None:
    _save(tmp_path / "adapter_model.safetensors", _pair())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    module = load_adapter(tmp_path).modules["h.0"]
    assert module.scale == scale
    assert any("tensors say 4" in note for note in module.assumed) == (
        config["r"] == 8 and "rank_pattern" not in config
    )
    assert any("default 8" in note for note in module.assumed) == ("lora_alpha" not in config)


def test_without_alpha_the_scale_is_one_and_says_so(tmp_path: Path) -> None:
    module = load_adapter(_save(tmp_path / "a.safetensors", _pair())).modules["h.0"]
    assert (module.scale, module.alpha) == (1.0, None)
    assert "alpha = r = 4" in module.assumed[0]


def test_an_alpha_tensor_wins(tmp_path: Path) -> None:
    tensors = _pair() | {"base_model.model.h.0.alpha": torch.tensor(2.0, dtype=torch.bfloat16)}
    assert load_adapter(_save(tmp_path / "a.safetensors", tensors)).modules["h.0"].scale == 0.5


def test_the_configuration_in_a_diffusers_file(tmp_path: Path) -> None:
    tensors = {"unet.to_q.lora.down.weight": torch.randn(4, 6), "unet.to_q.lora.up.weight": torch.randn(5, 4)}
    metadata = {"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": 12})}
    path = _save(tmp_path / "a.safetensors", tensors, metadata)
    adapter = load_adapter(path)
    assert adapter.modules["unet.to_q"].scale == 3.0
    save_adapter(tmp_path / "b.safetensors", adapter, "diffusers")
    back = load_adapter(tmp_path / "b.safetensors").modules["unet.to_q"]
    np.testing.assert_allclose(_delta(back), _delta(adapter.modules["unet.to_q"]), rtol=1e-5, atol=1e-5)


def test_mlx_is_transposed_and_scaled(tmp_path: Path) -> None:
    a, b = torch.randn(6, 2), torch.randn(2, 5)
    path = _save(tmp_path / "adapters.safetensors", {"q.lora_a": a, "q.lora_b": b})
    unknown = load_adapter(path).modules["q"]
    assert unknown.scale == 1.0
    assert "no scale" in unknown.assumed[0]
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_parameters": {"rank": 2, "scale": 20.0}}))
    module = load_adapter(tmp_path).modules["q"]
    np.testing.assert_allclose(_delta(module), 20.0 * (a @ b).T.double().numpy(), rtol=1e-5)


def test_convolutions_are_flattened_and_tucker_cores_folded(tmp_path: Path) -> None:
    down, mid, up = torch.randn(3, 4, 1, 1), torch.randn(3, 3, 2, 2), torch.randn(5, 3, 1, 1)
    plain = torch.randn(3, 4, 2, 2)
    path = _save(
        tmp_path / "a.safetensors",
        {
            "lora_unet_conv_in.lora_down.weight": down,
            "lora_unet_conv_in.lora_mid.weight": mid,
            "lora_unet_conv_in.lora_up.weight": up,
            "lora_unet_conv_out.lora_down.weight": plain,
            "lora_unet_conv_out.lora_up.weight": up.clone(),
        },
    )
    modules = load_adapter(path).modules
    x = torch.randn(1, 4, 6, 6)
    conv = torch.nn.functional.conv2d
    expected = conv(conv(conv(x, down), mid), up)
    got = conv(x, (modules["unet.conv_in"].up @ modules["unet.conv_in"].down).reshape(5, 4, 2, 2))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    whole = modules["unet.conv_out"]
    torch.testing.assert_close(
        conv(x, (whole.up @ whole.down).reshape(5, 4, 2, 2)), conv(conv(x, plain), up), rtol=1e-4, atol=1e-4
    )


def test_merged_projections_are_grouped_convolutions(tmp_path: Path) -> None:
    down, up = torch.randn(6, 7), torch.randn(10, 3, 1)
    path = _save(tmp_path / "a.safetensors", {"qkv.lora_A": down, "qkv.lora_B": up})
    module = load_adapter(path).modules["qkv"]
    x = torch.randn(1, 7)
    expected = torch.nn.functional.conv1d((x @ down.T)[..., None], up, groups=2)[..., 0]
    torch.testing.assert_close(x @ (module.up @ module.down).T, expected, rtol=1e-4, atol=1e-5)
    assert "merged" in module.assumed[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float32])
def test_types_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {key: value.to(dtype) for key, value in _pair().items()}
    module = load_adapter(_save(tmp_path / "a.safetensors", tensors)).modules["h.0"]
    assert (module.down.dtype, module.dtype) == (torch.float32, dtype)
    assert torch.equal(module.down, tensors["base_model.model.h.0.lora_A.weight"].float())


def test_dora_keeps_the_pair_and_lists_the_magnitude(tmp_path: Path) -> None:
    key = "base_model.model.h.0.lora_magnitude_vector"
    adapter = load_adapter(_save(tmp_path / "a.safetensors", _pair() | {key: torch.ones(5)}))
    assert adapter.unsupported == {"dora": (key,)}
    assert "DoRA" in adapter.modules["h.0"].assumed[-1]


def test_embeddings_survive_peft(tmp_path: Path) -> None:
    tensors = {
        "base_model.model.e.lora_embedding_A": torch.randn(2, 9),
        "base_model.model.e.lora_embedding_B": torch.randn(4, 2),
    }
    adapter = load_adapter(_save(tmp_path / "a.safetensors", tensors))
    assert adapter.modules["e"].embedding
    assert adapter.modules["e"].down.shape == (2, 9)
    save_adapter(tmp_path / "p", adapter, "peft")
    again = load_safetensors((tmp_path / "p" / "adapter_model.safetensors").read_bytes())
    assert set(again) == set(tensors)


def test_cloneofsimo_lists_say_which_model_by_their_name(tmp_path: Path) -> None:
    values = [torch.randn(5, 2), torch.randn(2, 6)]
    torch.save(values, tmp_path / "x.text_encoder.pt")
    torch.save(values, tmp_path / "x.pt")
    assert list(load_adapter(tmp_path / "x.text_encoder.pt").modules) == ["text_encoder.0"]
    assert list(load_adapter(tmp_path / "x.pt").modules) == ["unet.0"]


def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path: Path) -> None:
    """0x0280 bytes begin like pickle protocol 2, and 0x4B50 like a zip."""
    for length in (0x0280, 0x4B50):
        body = json.dumps(
            {
                "q.lora_A.weight": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]},
                "q.lora_B.weight": {"dtype": "F32", "shape": [2, 1], "data_offsets": [8, 16]},
            }
        ).encode()
        path = tmp_path / f"{length}.safetensors"
        path.write_bytes(struct.pack("<Q", length) + body.ljust(length) + np.ones(4, "<f4").tobytes())
        assert load_adapter(path).modules["q"].rank == 1
