"""The base's weights: found under the adapter's names in every form they are kept in, and compared as numpy does."""

import json
import math
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from lorabench.adapters import LoraModule, load
from lorabench.errors import LorabenchError
from lorabench.health import LoRAAnalyzer, module_metrics, structural_metrics
from lorabench.health.base import BaseFile, against_base, as_delta, intruders, not_held
from lorabench.health.structure import BANDS, band_of

Q, K = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.k_proj"


def draw(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).float()


def a_module(seed=0, out=12, width=9, rank=3, scale=0.5, **more):
    return LoraModule(draw([seed, 0], rank, width), draw([seed, 1], out, rank), scale, **more)


def keep(path, tensors):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def beside(base, modules, **more):
    return {row.module: row for row in against_base(module_metrics(modules), modules, base, **more)}


def same(row, weight, module):
    """Against numpy: σ_max(W), ‖W‖_F, ρ and the ratio of norms."""
    dense, delta = weight.double().numpy(), module.delta().double().numpy()
    assert row.base_sigma_max == pytest.approx(np.linalg.norm(dense, 2), rel=2e-6)
    assert row.base_frobenius == pytest.approx(np.linalg.norm(dense), rel=1e-6)
    assert row.dominance == pytest.approx(np.linalg.norm(delta, 2) / np.linalg.norm(dense, 2), rel=5e-6)
    assert row.effective_lr_scale == pytest.approx(np.linalg.norm(delta) / np.linalg.norm(dense), rel=2e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_one_file_in_every_type_of_float(tmp_path, dtype):
    weights = {Q: draw(0, 12, 9).to(dtype), K: draw(1, 12, 9).to(dtype)}
    file = keep(tmp_path / "base.safetensors", {f"{name}.weight": weight for name, weight in weights.items()})
    modules = {Q: a_module(0), K: a_module(1, rank=2)}
    found = beside(BaseFile.open(file), modules)
    assert list(found) == [Q, K]
    for name, row in found.items():
        same(row, weights[name], modules[name])
        assert row.intruder_dimensions is None


def test_shards_in_a_folder(tmp_path):
    weights = {Q: draw(0, 12, 9), K: draw(1, 12, 9)}
    for number, (name, weight) in enumerate(weights.items()):
        keep(tmp_path / f"model-0000{number + 1}-of-00002.safetensors", {f"{name}.weight": weight})
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    modules = {Q: a_module(0), K: a_module(1)}
    found = beside(BaseFile.open(tmp_path), modules)
    for name, row in found.items():
        same(row, weights[name], modules[name])


def test_a_pipelines_folder_part_by_part(tmp_path):
    attention, level = "down_blocks.0.attentions.0.to_q", "encoder.layers.0.self_attn.q_proj"
    unet, text, second = draw(0, 12, 9), draw(1, 12, 9), draw(2, 12, 9)
    keep(tmp_path / "unet" / "diffusion_pytorch_model.safetensors", {f"{attention}.weight": unet})
    keep(tmp_path / "text_encoder" / "model.safetensors", {f"text_model.{level}.weight": text})
    keep(tmp_path / "text_encoder_2" / "model.safetensors", {f"text_model.{level}.weight": second})
    keep(tmp_path / "vae" / "model.safetensors", {f"{attention}.weight": draw(3, 12, 9)})
    weights = {
        f"unet.{attention}": unet,
        f"text_encoder.text_model.{level}": text,
        f"text_encoder_2.text_model.{level}": second,
    }
    modules = {name: a_module(i) for i, name in enumerate(weights)}
    found = beside(BaseFile.open(tmp_path), modules)
    for name, row in found.items():
        same(row, weights[name], modules[name])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Q, Q),
        ("layers.0.self_attn.q_proj", Q),
        (Q, "layers.0.self_attn.q_proj"),
        ("transformer.h.0.attn.c_attn", "h.0.attn.c_attn"),
        ("h.0.attn.c_attn", "transformer.h.0.attn.c_attn"),
        ("encoder.layer.0.attention.self.query", "bert.encoder.layer.0.attention.self.query"),
        ("unet.down_blocks.0.attentions.0.to_q", "down_blocks.0.attentions.0.to_q"),
        ("unet.down_blocks.1.attentions.0.proj_in", "model.diffusion_model.input_blocks.4.1.proj_in"),
        ("text_encoder.text_model.encoder.layers.0.mlp.fc1", "text_model.encoder.layers.0.mlp.fc1"),
    ],
)
def test_names_with_and_without_prefixes(tmp_path, ours, theirs):
    weight, module = draw(0, 12, 9), a_module()
    others = {
        "unrelated.weight": draw(1, 3, 3),
        f"{theirs}_other.weight": draw(2, 12, 9),
        f"{theirs}.bias": draw(3, 12),
    }
    base = BaseFile.open(keep(tmp_path / "base.safetensors", {f"{theirs}.weight": weight, **others}))
    same(beside(base, {ours: module})[ours], weight, module)


def test_a_name_that_may_be_two_is_neither(tmp_path):
    name = "encoder.layers.0.q_proj"
    base = BaseFile.open(
        keep(
            tmp_path / "clip.safetensors",
            {f"{tower}.{name}.weight": draw(0, 12, 9) for tower in ("text_model", "vision_model")},
        )
    )
    assert base.weight(name, a_module()) is None
    assert base.weight(f"text_model.{name}", a_module()) is not None


def test_an_adapter_named_by_kohya(tmp_path):
    flat = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    file = keep(
        tmp_path / "style.safetensors",
        {f"{flat}.lora_down.weight": draw(0, 3, 9), f"{flat}.lora_up.weight": draw(1, 12, 3),
         f"{flat}.alpha": torch.tensor(1.5)},
    )  # fmt: skip
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    weight = draw(2, 12, 9)
    base = keep(tmp_path / "pipe" / "unet" / "model.safetensors", {f"{name}.weight": weight}).parents[1]
    (row,) = LoRAAnalyzer(file, base=base).analyze().rows
    (module,) = load(file).modules.values()
    same(row, weight, module)
    assert module.scale == 0.5


def test_a_convolution_is_flattened(tmp_path):
    weight, module = draw(0, 6, 4, 3, 3), a_module(out=6, width=36, kernel=(3, 3))
    base = BaseFile.open(keep(tmp_path / "base.safetensors", {"unet.conv_in.weight": weight}))
    same(beside(base, {"unet.conv_in": module})["unet.conv_in"], weight.flatten(1), module)


@pytest.mark.parametrize(("vocabulary", "width"), [(30, 8), (8, 30), (9, 9)])
def test_an_embeddings_table_is_transposed_even_where_it_is_square(tmp_path, vocabulary, width):
    name, table = "model.embed_tokens", draw(0, vocabulary, width)
    module = a_module(out=width, width=vocabulary, embedding=True)
    base = BaseFile.open(keep(tmp_path / "base.safetensors", {f"{name}.weight": table}))
    row = beside(base, {name: module}, count_intruders=True)[name]
    same(row, table.mT, module)
    assert row.intruder_dimensions == dense_intruders(table.mT, module)
    assert torch.equal(base.weight(name, module), table.mT)


def test_gpt2s_weights_are_transposed_by_shape_and_where_square_by_the_configuration(tmp_path):
    wide, square = draw(0, 9, 12), draw(1, 9, 9)
    names = {"h.0.attn.c_attn": wide, "h.0.attn.c_proj": square}
    base = BaseFile.open(keep(tmp_path / "base.safetensors", {f"{name}.weight": w for name, w in names.items()}))
    modules = {"h.0.attn.c_attn": a_module(0), "h.0.attn.c_proj": a_module(1, out=9)}
    assert torch.equal(base.weight("h.0.attn.c_attn", modules["h.0.attn.c_attn"]), wide.mT)
    assert torch.equal(base.weight("h.0.attn.c_proj", modules["h.0.attn.c_proj"]), square)
    assert torch.equal(base.weight("h.0.attn.c_proj", modules["h.0.attn.c_proj"], transposed=True), square.mT)

    folder = tmp_path / "adapter"
    keep(
        folder / "adapter_model.safetensors",
        {f"base_model.model.transformer.{name}.{part}.weight": tensor for name, module in modules.items()
         for part, tensor in (("lora_A", module.down), ("lora_B", module.up))},
    )  # fmt: skip
    counted = {}
    for turned in (True, False):
        config = {"peft_type": "LORA", "r": 3, "lora_alpha": 300, "fan_in_fan_out": turned}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        analyzer = LoRAAnalyzer(folder, base=tmp_path / "base.safetensors")
        rows = {row.module.removeprefix("transformer."): row for row in analyzer.analyze(count_intruders=True).rows}
        for name, module in modules.items():
            scaled = replace(module, scale=100.0)
            weight = names[name].mT if turned or name == "h.0.attn.c_attn" else names[name]
            same(rows[name], weight, scaled)
            assert rows[name].intruder_dimensions == dense_intruders(weight, scaled)
        counted[turned] = rows
    assert counted[True] != {}


@pytest.mark.parametrize(
    "beside_it",
    [
        {"{}.weight": torch.uint8, "{}.weight.absmax": torch.float32, "{}.weight.quant_map": torch.float32},
        {"{}.weight": torch.uint8, "{}.weight.quant_state.bitsandbytes__nf4": torch.uint8},
        {"{}.weight": torch.int8, "{}.SCB": torch.float32},
        {"{}.qweight": torch.int32, "{}.qzeros": torch.int32, "{}.scales": torch.float16},
        {"{}.weight": torch.float8_e4m3fn, "{}.weight_scale": torch.float32},
        {"{}.weight": torch.float8_e4m3fn, "{}.weight_scale_inv": torch.float32},
        {"{}.weight": torch.uint32, "{}.scales": torch.float16, "{}.biases": torch.float16},
    ],
    ids=["nf4", "nf4 state", "int8", "gptq", "fp8", "fp8 blocks", "mlx"],
)
@pytest.mark.parametrize("head", [True, False])
def test_a_quantised_base_is_refused_by_name(tmp_path, beside_it, head):
    stored = {name.format(Q): torch.zeros(12, 9).to(dtype) for name, dtype in beside_it.items()}
    stored |= {"lm_head.weight": draw(0, 5, 5)} if head else {}
    file = keep(tmp_path / "base.safetensors", stored)
    with pytest.raises(LorabenchError, match=f"{Q} is quantised. Give the base in float16") as error:
        beside(BaseFile.open(file), {Q: a_module()})
    assert str(file) in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float8_e5m2, torch.int8, torch.int64, torch.bool, torch.uint8])
def test_numbers_of_no_float_are_refused_even_without_scales(tmp_path, dtype):
    file = keep(tmp_path / "base.safetensors", {f"{Q}.weight": torch.zeros(12, 9).to(dtype)})
    with pytest.raises(LorabenchError, match=rf"{Q}.weight is stored as torch\.\w+. Give the base in float16"):
        beside(BaseFile.open(file), {Q: a_module()})


@pytest.mark.parametrize("shape", [(12, 10), (12,), (), (9, 12, 1, 2), (0, 9)])
def test_the_base_of_another_model_has_another_shape(tmp_path, shape):
    file = keep(tmp_path / "base.safetensors", {f"{Q}.weight": torch.zeros(shape)})
    with pytest.raises(LorabenchError, match="Give the base model that the adapter was trained on") as error:
        beside(BaseFile.open(file), {Q: a_module()})
    assert f"{Q}.weight is {list(shape)}" in str(error.value)
    assert "[12, 9]" in str(error.value)


def test_a_base_without_any_of_the_modules_is_another_models(tmp_path):
    base = BaseFile.open(keep(tmp_path / "base.safetensors", {f"{Q}.weight": draw(0, 12, 9)}))
    with pytest.raises(LorabenchError, match="holds no weight of the adapter's modules") as error:
        beside(base, {f"h.{i}.c_fc": a_module(i) for i in range(9)})
    assert "and 6 more" in str(error.value)
    found = beside(base, {Q: a_module(), "lm_head": a_module(1)})
    assert found[Q].dominance is not None
    assert (found["lm_head"].dominance, found["lm_head"].base_frobenius) == (None, None)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_base_with_numbers_that_are_none_is_refused(tmp_path, wrong):
    weight = draw(0, 12, 9)
    weight[3, 3] = wrong
    base = BaseFile.open(keep(tmp_path / "base.safetensors", {f"{Q}.weight": weight}))
    for intruding in (True, False):
        with pytest.raises(LorabenchError, match=f"weight of {Q} holds NaN or infinity"):
            beside(base, {Q: a_module()}, count_intruders=intruding)


def test_a_weight_of_zero_has_no_ratio(tmp_path):
    base = BaseFile.open(keep(tmp_path / "base.safetensors", {f"{Q}.weight": torch.zeros(12, 9)}))
    row = beside(base, {Q: a_module()})[Q]
    assert (row.base_sigma_max, row.base_frobenius, row.dominance, row.effective_lr_scale) == (0, 0, None, None)
    assert structural_metrics([row]).max_dominance is None


def test_what_is_not_held_against_the_base_is_told(tmp_path):
    base = keep(tmp_path / "base.safetensors", {f"{Q}.weight": draw(0, 12, 9), f"{K}.weight": torch.zeros(12, 9)})
    dora, gone = "model.layers.2.q_proj", "model.layers.3.q_proj"
    modules = {Q: a_module(), K: a_module(1), dora: a_module(2, kind="dora"), gone: a_module(3)}
    rows = list(beside(BaseFile.open(base), modules).values())
    assert [row.dominance is not None for row in rows] == [True, False, False, False]
    assert not_held(rows, modules) == [
        f"1 of 4 modules not held against the base: {gone} has no weight in the base",
        f"1 of 4 modules not held against the base: {dora} is a DoRA, whose magnitudes change W beside ΔW",
        f"1 of 4 modules not held against the base: {K} has a weight in the base that is zero",
    ]
    alone = {dora: a_module(2, kind="dora")}
    assert not_held(list(beside(BaseFile.open(base), alone).values()), alone), "and it is no other model's"


@pytest.mark.parametrize("part", ["", "unet"])
def test_half_of_a_download_is_no_base(tmp_path, part):
    keep(tmp_path / part / "model-1.safetensors", {f"{Q}.weight": draw(0, 12, 9)})
    index = tmp_path / part / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}))
    with pytest.raises(LorabenchError, match=r"of 2 files that it names there is no model-2\.safetensors"):
        BaseFile.open(tmp_path)
    keep(tmp_path / part / "model-2.safetensors", {f"{K}.weight": draw(1, 12, 9)})
    assert beside(BaseFile.open(tmp_path), {Q: a_module()})[Q].dominance is not None


def raw_safetensors(path, entries):
    """A file by hand: name -> (type, shape, bytes)."""
    header, data = {}, b""
    for name, (dtype, shape, raw) in entries.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_only_the_weights_that_are_asked_for_are_read(tmp_path):
    weight = draw(0, 12, 9)
    entries = {
        f"{K}.weight": ("F4", [4], b"\0\0"),  # a type that is not read
        f"{Q}.weight": ("F32", [12, 9], weight.numpy().tobytes()),
    }
    base = BaseFile.open(raw_safetensors(tmp_path / "base.safetensors", entries))
    same(beside(base, {Q: a_module()})[Q], weight, a_module())
    with pytest.raises(LorabenchError, match="which is not read"):
        beside(base, {K: a_module()})


def test_a_shard_that_is_gone_is_missed_only_by_who_asks_for_it(tmp_path):
    keep(tmp_path / "model-1.safetensors", {f"{Q}.weight": draw(0, 12, 9)})
    keep(tmp_path / "model-2.safetensors", {f"{K}.weight": draw(1, 12, 9)})
    base = BaseFile.open(tmp_path)
    (tmp_path / "model-2.safetensors").unlink()
    assert beside(base, {Q: a_module()})[Q].dominance is not None
    with pytest.raises(LorabenchError, match=r"model-2.safetensors: cannot be read"):
        beside(base, {K: a_module()})


def test_what_is_no_base_is_said_in_one_message(tmp_path):
    keep(tmp_path / "biases.safetensors", {"x.bias": draw(0, 3)})
    torch.save({f"{Q}.weight": draw(0, 12, 9)}, tmp_path / "base.bin")
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for name, message in {
        "missing": "no such file or folder",
        "missing.safetensors": "no such file or folder",
        "biases.safetensors": "holds no weight of a module",
        "base.bin": "only a safetensors file has a header",
        "text.safetensors": "no safetensors header",
        "empty.safetensors": "the file is empty",
        "folder": "no .safetensors file in it",
    }.items():
        with pytest.raises(LorabenchError, match=message) as error:
            BaseFile.open(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
        assert "\n" not in str(error.value)


def dense_intruders(weight, module):
    before = weight.double().numpy()
    left = np.linalg.svd(before + module.delta().double().numpy(), full_matrices=False)[0][:, :10]
    old = np.linalg.svd(before, full_matrices=False)[0]
    return sum(max(abs(old[:, j] @ left[:, i]) for j in range(old.shape[1])) < 0.5 for i in range(left.shape[1]))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10_000), st.sampled_from([(40, 60), (60, 40), (50, 50), (6, 40), (300, 20)]),
    st.sampled_from([0.01, 0.3, 1.0, 3.0, 30.0]),
)  # fmt: skip
def test_intruders_are_those_of_dense_linear_algebra(seed, shape, scale):
    weight, module = draw(seed, *shape), a_module(seed, *shape, rank=4, scale=scale)
    assert intruders(weight, module) == dense_intruders(weight, module)


def test_intruders_come_with_the_size_of_the_update():
    weight = torch.linalg.qr(draw(0, 200, 64))[0] * torch.linspace(2, 1, 64)
    found = [intruders(weight, a_module(1, 200, 64, rank=5, scale=scale)) for scale in (0.0, 1e-3, 10.0)]
    assert found == [0, 0, 5]


def test_as_delta_knows_no_weight_of_another_shape():
    module = a_module()
    assert as_delta(draw(0, 12, 9, 1, 1), "m", module, "base: m").shape == (12, 9)
    assert as_delta(draw(0, 9, 12), "m", module, "base: m").shape == (12, 9)
    with pytest.raises(LorabenchError, match=r"base: m is \[9, 13\]"):
        as_delta(draw(0, 9, 13), "m", module, "base: m")


@pytest.mark.parametrize(
    ("dominance", "band"),
    [(0.0, "minimal"), (0.05, "minimal"), (0.0501, "healthy"), (0.1, "healthy"), (0.11, "raised"), (0.3, "raised"),
     (0.31, "dominating"), (0.5, "dominating"), (0.51, "critical"), (1e9, "critical")],
)  # fmt: skip
def test_bands_of_dominance(dominance, band):
    assert band_of(dominance) == band
    assert list(BANDS.values()) == sorted(BANDS.values())


def test_the_structure_of_an_adapter_is_what_its_modules_add_up_to(tmp_path):
    names = [f"model.layers.{i}.mlp" for i in range(4)]
    modules = {name: a_module(i, scale=(0.01, 0.1, 0.5, 1.0)[i]) for i, name in enumerate(names)}
    weights = {name: draw(10 + i, 12, 9) for i, name in enumerate(names[:3])}  # of the last nothing is known
    base = BaseFile.open(keep(tmp_path / "base.safetensors", {f"{name}.weight": w for name, w in weights.items()}))
    rows = list(beside(base, modules, count_intruders=True).values())
    found = structural_metrics(rows)
    of_delta = [np.linalg.norm(modules[name].delta().double().numpy(), 2) for name in weights]
    of_base = [np.linalg.norm(weight.double().numpy(), 2) for weight in weights.values()]
    ratios = np.array(of_delta) / np.array(of_base)
    assert dict(found.per_layer_dominance) == pytest.approx(dict(zip(weights, ratios, strict=True)), rel=1e-5)
    assert found.mean_dominance == pytest.approx(ratios.mean(), rel=1e-5)
    assert found.max_dominance == pytest.approx(ratios.max(), rel=1e-5)
    assert found.scaled_mean_dominance == pytest.approx(sum(of_delta) / sum(of_base), rel=1e-5)
    assert found.band == band_of(ratios.max())
    assert found.is_dominating == (ratios.max() > 0.3)
    conditions = [np.linalg.cond(part.double().numpy()) for one in modules.values() for part in (one.down, one.up)]
    assert found.adapter_health == pytest.approx(1 / max(conditions), rel=1e-6)
    assert found.is_ill_conditioned == (max(conditions) > 1000)
    assert found.intruder_dimensions == sum(dense_intruders(weights[name], modules[name]) for name in weights)


def test_without_a_base_or_a_module_nothing_is_said_of_dominance():
    for rows in (module_metrics({"m": a_module()}), []):
        found = structural_metrics(rows)
        assert (found.mean_dominance, found.max_dominance, found.scaled_mean_dominance, found.band) == (None,) * 4
        assert (found.is_dominating, found.intruder_dimensions, dict(found.per_layer_dominance)) == (False, None, {})
    assert structural_metrics([]).adapter_health is None


def test_a_dimension_that_is_lost_leaves_no_health():
    module = a_module()
    down = module.down.clone()
    down[2] = 0
    found = structural_metrics(module_metrics({"m": LoraModule(down, module.up)}))
    assert (found.adapter_health, found.is_ill_conditioned) == (0, True)


def test_a_pickle_is_never_opened_as_a_base(tmp_path):
    path = Path(tmp_path / "base.pt")
    torch.save({"x.weight": draw(0, 3, 3)}, path)
    with pytest.raises(LorabenchError, match=r"zip archive, as torch\.save writes it"):
        BaseFile.open(path)
