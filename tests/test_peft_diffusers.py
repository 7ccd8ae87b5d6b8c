"""What is written loads in real PEFT and diffusers, and changes every layer by exactly ΔW; models are random."""

import copy
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("peft")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from lorabench.adapters import Adapter, LoraModule, load, save
from lorabench.adapters.writing.converting import convert
from lorabench.adapters.writing.saving import layout_of

pytestmark = [
    pytest.mark.slow,
    # Their own deprecations, in code that only they can change.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.manual_seed(0)


class Mixed(torch.nn.Module):
    """Linear, convolutions and an embedding, with names that a careless pattern would mix up."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(11, 6)
        self.conv_in = torch.nn.Conv2d(3, 5, 3, padding=1)
        self.point = torch.nn.Conv2d(5, 4, 1)
        self.refiner = torch.nn.ModuleDict({"conv_in": torch.nn.Conv2d(3, 5, 3), "out": torch.nn.Linear(6, 4)})
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(6, 6) for _ in range(11))
        self.blocks2 = torch.nn.ModuleDict({"a+b": torch.nn.Linear(6, 7), "a(b": torch.nn.Linear(6, 7)})


def _pair(d_out: int, d_in: int, rank: int, scale: float, **kind: Any) -> LoraModule:
    return LoraModule(torch.randn(rank, d_in), torch.randn(d_out, rank), scale, **kind)


def _of_mixed() -> dict[str, LoraModule]:
    return {
        "table": _pair(6, 11, 2, 0.5, embedding=True),
        "conv_in": _pair(5, 27, 4, 2.0, kernel=(3, 3)),
        "point": _pair(4, 5, 2, 1 / 3, kernel=(1, 1)),
        "refiner.out": _pair(4, 6, 8, -1.5),
        "blocks.1": _pair(6, 6, 2, 0.5),
        "blocks.10": _pair(6, 6, 3, 0.25),
        "blocks2.a+b": _pair(7, 6, 1, 1.0),
        "blocks2.a(b": _pair(7, 6, 2, 0.0),
    }


def _weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        name.removesuffix(".weight"): value.detach().double().clone()
        for name, value in model.state_dict().items()
        if name.endswith(".weight")
    }


def _change(module: LoraModule, weight: torch.Tensor, transposed: bool = False) -> torch.Tensor:
    delta = module.scale * (module.up.double() @ module.down.double())
    return (delta.T if module.embedding or transposed else delta).reshape(weight.shape)


def _check(
    before: Mapping[str, torch.Tensor],
    after: Mapping[str, torch.Tensor],
    modules: Mapping[str, LoraModule],
    transposed: bool = False,
) -> None:
    """W' − W is ΔW where there is a module and zero elsewhere, to the rounding of float32."""
    assert before.keys() == after.keys()
    assert modules.keys() <= before.keys()
    for name, weight in before.items():
        change = after[name] - weight
        if name not in modules:
            assert not change.any(), name
            continue
        expected = _change(modules[name], weight, transposed)
        size = float(expected.abs().max() + weight.abs().max())
        torch.testing.assert_close(change, expected, rtol=0, atol=4e-7 * size, msg=lambda text, n=name: f"{n}: {text}")


def _merge_by_peft(model: torch.nn.Module, folder: Path) -> dict[str, torch.Tensor]:
    """The weights after PEFT loaded the folder; its warnings of missing or unexpected keys are errors here."""
    from peft import PeftModel

    loaded = PeftModel.from_pretrained(copy.deepcopy(model), str(folder))
    return _weights(loaded.merge_and_unload())


def test_every_kind_of_layer_in_peft(tmp_path: Path) -> None:
    model, modules = Mixed(), _of_mixed()
    save(tmp_path / "a", modules, "peft")
    _check(_weights(model), _merge_by_peft(model, tmp_path / "a"), modules)


def test_the_output_of_a_layer_changes_by_delta(tmp_path: Path) -> None:
    from peft import PeftModel

    model, modules = Mixed(), _of_mixed()
    save(tmp_path / "a", modules, "peft")
    loaded = PeftModel.from_pretrained(copy.deepcopy(model), str(tmp_path / "a")).base_model.model
    x = torch.randn(2, 3, 8, 8)
    kernel = modules["conv_in"].delta().reshape(5, 3, 3, 3)
    torch.testing.assert_close(
        loaded.conv_in(x) - model.conv_in(x), torch.nn.functional.conv2d(x, kernel, padding=1), rtol=1e-4, atol=1e-4
    )
    tokens = torch.tensor([0, 3, 10])
    torch.testing.assert_close(
        loaded.table(tokens) - model.table(tokens), modules["table"].delta().T[tokens], rtol=1e-5, atol=1e-5
    )


def test_gpt2_whose_weights_lie_transposed(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=16, n_positions=8))
    modules = {
        "transformer.h.0.attn.c_attn": _pair(24, 8, 2, 0.5),
        "transformer.h.1.attn.c_attn": _pair(24, 8, 4, 2.0),
        "transformer.h.1.mlp.c_proj": _pair(8, 32, 2, 1.0),
    }
    config = {"fan_in_fan_out": True, "task_type": "CAUSAL_LM", "use_rslora": True, "base_model_name_or_path": "x"}
    save(tmp_path / "a", Adapter(tmp_path / "b", ("peft",), modules, config=config), "peft")
    said = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert (said["fan_in_fan_out"], said["use_rslora"], said["task_type"]) == (True, False, "CAUSAL_LM")
    _check(_weights(model), _merge_by_peft(model, tmp_path / "a"), modules, transposed=True)


def test_what_peft_writes_is_read_and_written_back(tmp_path: Path) -> None:
    """rsLoRA, patterns and all: PEFT's own file, ours of it, and the model merged by PEFT agree."""
    from peft import LoraConfig, get_peft_model

    model = Mixed()
    config = LoraConfig(
        r=4, lora_alpha=6, use_rslora=True, target_modules=["table", "conv_in", "out", "1", "10"],
        rank_pattern={"refiner.conv_in": 2, "blocks.10": 3}, alpha_pattern={"blocks.1": 5}, init_lora_weights=False,
    )  # fmt: skip
    theirs = get_peft_model(copy.deepcopy(model), config)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    adapter = load(tmp_path / "theirs")
    assert len(adapter.modules) == 6
    save(tmp_path / "ours", adapter, "peft", dtype="stored")
    merged = _weights(theirs.merge_and_unload())
    _check(_weights(model), merged, adapter.modules)
    _check(_weights(model), _merge_by_peft(model, tmp_path / "ours"), adapter.modules)


@pytest.fixture(scope="module")
def pipeline() -> Any:
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=2, sample_size=8, in_channels=4, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=12, attention_head_dim=2, norm_num_groups=4,
    )  # fmt: skip
    text = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=12,
            intermediate_size=14,
            num_hidden_layers=2,
            num_attention_heads=2,
            vocab_size=50,
            max_position_embeddings=16,
            bos_token_id=0,
            eos_token_id=1,
            projection_dim=12,
        )
    )
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    return StableDiffusionPipeline(
        unet=unet, text_encoder=text, vae=vae, tokenizer=None, scheduler=DDIMScheduler(), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


UNET = (
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
    "down_blocks.1.attentions.1.transformer_blocks.0.attn1.to_out.0",
    "down_blocks.1.attentions.1.transformer_blocks.0.ff.net.0.proj",
    "down_blocks.1.attentions.0.proj_in",
    "mid_block.attentions.0.proj_out",
    "down_blocks.0.resnets.0.conv1",
    "down_blocks.1.resnets.0.conv_shortcut",
    "down_blocks.0.resnets.1.time_emb_proj",
    "down_blocks.0.downsamplers.0.conv",
    "up_blocks.0.upsamplers.0.conv",
    "up_blocks.0.attentions.2.transformer_blocks.0.attn1.to_v",
    "conv_in",
    "conv_out",
    "time_embedding.linear_1",
)
TEXT = (
    "text_model.encoder.layers.0.self_attn.q_proj",
    "text_model.encoder.layers.1.self_attn.out_proj",
    "text_model.encoder.layers.1.mlp.fc1",
)


def _of_pipeline(pipeline: Any, ranks: tuple[int, ...], scale_of: Callable[[int], float]) -> dict[str, LoraModule]:
    found = {}
    for part, names in (("unet", UNET), ("text_encoder", TEXT)):
        weights = _weights(getattr(pipeline, part))
        for i, name in enumerate(names):
            shape = weights[name.removeprefix("text_model.")].shape
            rank, d_in = ranks[i % len(ranks)], int(torch.tensor(shape[1:]).prod())
            found[f"{part}.{name}"] = _pair(shape[0], d_in, rank, scale_of(rank), kernel=tuple(shape[2:]))
    return found


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    """What the loaders complained of: they log missing and unexpected keys, and do not raise."""
    loaders = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    for one in loaders:
        one.addHandler(caplog.handler)
    yield lambda: [one.message for one in caplog.records if re.match(r"diffusers\.loaders|.*\.peft", one.name)]
    for one in loaders:
        one.removeHandler(caplog.handler)


def _check_pipeline(pipeline: Any, path: Path, modules: Mapping[str, LoraModule]) -> None:
    """Load the file as its users do, fuse it, and compare every weight of both models."""
    parts = ("unet", "text_encoder")
    before = {part: _weights(getattr(pipeline, part)) for part in parts}
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    try:
        pipeline.fuse_lora()
        fused = {
            part: {name.replace(".base_layer", ""): value for name, value in _weights(getattr(pipeline, part)).items()}
            for part in parts
        }
    finally:
        pipeline.unfuse_lora()
        pipeline.unload_lora_weights()
    for part in parts:
        mine = {
            name.removeprefix(f"{part}.").removeprefix("text_model."): module
            for name, module in modules.items()
            if name.startswith(f"{part}.")
        }
        _check(before[part], {name: fused[part][name] for name in before[part]}, mine)


@pytest.mark.parametrize(
    ("layout", "ranks", "scale_of"),
    [
        ("diffusers", (4,), lambda _: 0.5),
        ("diffusers", (3, 1, 2, 4), lambda rank: -1.5 / rank),
        ("kohya", (4,), lambda _: 0.5),
        ("kohya", (3, 1, 2, 4), lambda rank: 3.0 / rank),  # one alpha, see below
    ],
)
def test_a_pipeline_loads_it(
    tmp_path: Path,
    pipeline: Any,
    messages: Callable[[], list[str]],
    layout: str,
    ranks: tuple[int, ...],
    scale_of: Callable[[int], float],
) -> None:
    modules = _of_pipeline(pipeline, ranks, scale_of)
    path = save(tmp_path / "a.safetensors", modules, layout)
    _check_pipeline(pipeline, path, modules)
    assert not messages()


def test_a_module_that_the_model_lacks_would_be_noticed(
    tmp_path: Path, pipeline: Any, messages: Callable[[], list[str]]
) -> None:
    modules = _of_pipeline(pipeline, (2,), lambda _: 1.0)
    extra = {"unet.down_blocks.7.attentions.0.proj_in": _pair(8, 8, 2, 1.0)}
    path = save(tmp_path / "a.safetensors", modules | extra, "diffusers")
    _check_pipeline(pipeline, path, modules)
    assert any("down_blocks.7" in text for text in messages())


def test_alphas_that_differ_are_why_convert_warns_of_kohya(tmp_path: Path, pipeline: Any) -> None:
    modules = _of_pipeline(pipeline, (3, 1, 2, 4), lambda rank: float(rank))
    path = save(tmp_path / "a.safetensors", modules, "kohya")
    with pytest.warns(RuntimeWarning, match="alpha_pattern keys did not match"), pytest.raises(AssertionError):
        _check_pipeline(pipeline, path, modules)
    adapter = load(path)
    found = convert(adapter, "kohya")
    assert any("alphas differ" in note for note in found.notes)
    path = save(tmp_path / "b.safetensors", convert(adapter, "diffusers").adapter, "diffusers")
    _check_pipeline(pipeline, path, modules)


def test_peft_to_a_pipeline_and_back(tmp_path: Path, pipeline: Any, messages: Callable[[], list[str]]) -> None:
    """A U-Net's PEFT folder, as training scripts save it, into both pipeline layouts and back to PEFT."""
    modules = {
        name.removeprefix("unet."): module
        for name, module in _of_pipeline(pipeline, (3, 1, 2, 4), lambda rank: 6.0 / rank).items()
        if name.startswith("unet.")
    }
    save(tmp_path / "p", modules, "peft")
    unet = pipeline.unet
    _check(_weights(unet), _merge_by_peft(unet, tmp_path / "p"), modules)
    for layout in ("kohya", "diffusers"):
        found = convert(load(tmp_path / "p"), layout, component="unet")
        path = save(tmp_path / f"{layout}.safetensors", found.adapter, layout)
        _check_pipeline(pipeline, path, {f"unet.{name}": module for name, module in modules.items()})
        back = convert(load(path), "peft", component="unet").adapter
        save(tmp_path / layout, back, "peft")
        _check(_weights(unet), _merge_by_peft(unet, tmp_path / layout), modules)
    assert not [text for text in messages() if "text_encoder" not in text]


def test_what_diffusers_writes_is_read_and_written_back(tmp_path: Path, pipeline: Any) -> None:
    """Its file bears PEFT's lora_A under the pipeline's names, and α in the metadata."""
    from diffusers import StableDiffusionPipeline
    from diffusers.training_utils import _collate_lora_metadata
    from peft import LoraConfig, get_peft_model_state_dict

    unet = copy.deepcopy(pipeline.unet)
    unet.add_adapter(
        LoraConfig(
            r=3,
            lora_alpha=5,
            target_modules=["to_q", "to_v", "conv1"],
            rank_pattern={"to_v": 2},
            alpha_pattern={"conv1": 1},
            init_lora_weights=False,
        )
    )
    said = _collate_lora_metadata({"unet": unet})
    StableDiffusionPipeline.save_lora_weights(str(tmp_path), unet_lora_layers=get_peft_model_state_dict(unet), **said)
    adapter = load(tmp_path / "pytorch_lora_weights.safetensors")
    assert (adapter.schemes, layout_of(adapter)) == (("peft",), "diffusers-peft")
    assert {module.scale for module in adapter.modules.values()} == {5 / 3, 5 / 2, 1 / 3}
    _check_pipeline(pipeline, save(tmp_path / "ours.safetensors", adapter, "diffusers"), adapter.modules)
    unet.fuse_lora()
    fused = {name.replace(".base_layer", ""): value for name, value in _weights(unet).items() if ".lora_" not in name}
    mine = {name.removeprefix("unet."): module for name, module in adapter.modules.items()}
    _check(_weights(pipeline.unet), fused, mine)


SGM = (
    "input_blocks_1_0_in_layers_2", "input_blocks_2_0_emb_layers_1", "input_blocks_3_0_op",
    "input_blocks_4_1_transformer_blocks_0_attn1_to_q", "input_blocks_5_1_proj_in", "input_blocks_7_0_skip_connection",
    "input_blocks_8_1_transformer_blocks_9_attn2_to_out_0", "input_blocks_8_1_transformer_blocks_9_ff_net_0_proj",
    "middle_block_0_out_layers_3", "middle_block_1_transformer_blocks_3_ff_net_2", "middle_block_2_in_layers_2",
    "output_blocks_0_1_transformer_blocks_0_attn1_to_k", "output_blocks_2_2_conv", "output_blocks_5_1_proj_out",
    "output_blocks_5_2_conv", "output_blocks_8_0_skip_connection", "input_blocks_0_0", "out_2", "time_embed_0",
    "time_embed_2", "label_emb_0_0", "label_emb_0_2",
)  # fmt: skip


def test_names_of_the_original_unet_are_those_that_diffusers_finds(tmp_path: Path) -> None:
    """Our table of SDXL's names against diffusers' own conversion of the same kohya file."""
    from types import SimpleNamespace

    from diffusers.loaders.lora_conversion_utils import (
        _convert_non_diffusers_lora_to_diffusers,
        _maybe_map_sgm_blocks_to_diffusers,
    )
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
    from safetensors.torch import save_file

    tensors = {}
    for i, name in enumerate(SGM):
        tensors[f"lora_unet_{name}.lora_down.weight"] = torch.full((1, 3), float(i))
        tensors[f"lora_unet_{name}.lora_up.weight"] = torch.full((2, 1), float(i))
    save_file(tensors, tmp_path / "a.safetensors")
    ours = convert(load(tmp_path / "a.safetensors"), "diffusers").adapter.modules
    mapped = _maybe_map_sgm_blocks_to_diffusers(dict(tensors), SimpleNamespace(layers_per_block=2))
    theirs = convert_unet_state_dict_to_peft(_convert_non_diffusers_lora_to_diffusers(mapped)[0])
    expected = {
        key.removesuffix(".lora_A.weight"): int(value[0, 0]) for key, value in theirs.items() if "lora_A" in key
    }
    assert {name: int(module.down[0, 0]) for name, module in ours.items()} == expected
