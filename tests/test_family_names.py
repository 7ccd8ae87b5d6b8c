"""Flattened names get their dots back as the installed classes have them, and families are told by names and shapes."""

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lorabench.adapters.metadata.inspection import inspect
from lorabench.adapters.names.families import dotted, family_keys, recognise
from lorabench.errors import LorabenchError
from tests.family_classes import CLASSES
from tests.inspected_files import sparse
from tests.make_families import TABLES, build, module_names, template
from tests.original_names import ORIGINAL
from tests.real_adapters import SHARED, real_files

QUICK = {"flux", "chroma", "sd3", "qwen-image", "z-image", "hunyuan-video", "wan", "sdxl", "clip-text", "t5"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "entry",
    [pytest.param(one, id=one["key"], marks=() if one["key"] in QUICK else pytest.mark.slow) for one in CLASSES],
)
def test_every_module_of_a_class_gets_its_name_back(entry: Mapping[str, Any]) -> None:
    for class_name, options in entry["classes"]:
        names = module_names(build(entry["role"], class_name, options))
        assert names
        for name in names:
            assert dotted(name.replace(".", "_"), {entry["key"]}) == name
            assert dotted(name.replace(".", "_")) in (name, None)


@pytest.mark.parametrize("entry", ORIGINAL, ids=lambda one: f"{one['key']}-{one.get('naming', 'original')}")
def test_every_original_name_comes_back(entry: Mapping[str, Any]) -> None:
    for name in entry["modules"]:
        numbers = iter(range(3, 99))
        filled = re.sub("#", lambda _, numbers=numbers: str(next(numbers)), name)
        known = {split for split in (dotted(filled.replace(".", "_"), {entry["key"]}),) if split is not None}
        assert known == {filled}


def test_only_these_names_are_split_in_two_ways() -> None:
    flat: dict[str, set[str]] = {}
    for name in json.loads(TABLES.read_text())["modules"]:
        assert template(name) == name
        flat.setdefault(name.replace(".", "_"), set()).add(name)
    several = {name for name, dots in flat.items() if len(dots) > 1}
    hunyuan = {f"double_blocks_#_{stream}_attn_{what}" for stream in ("img", "txt") for what in ("qkv", "proj")}
    assert several == hunyuan | {"final_layer_norm"}
    for name in several:
        assert dotted(name.replace("#", "7")) is None


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("z-image", "noise_refiner.1.attention.to_out.0"),
        ("z-image", "context_refiner.0.feed_forward.w2"),
        ("z-image", "all_x_embedder.2-1"),
        ("z-image", "all_final_layer.2-1.adaLN_modulation.1"),
        ("z-image", "layers.29.adaLN_modulation.0"),
        ("z-image", "cap_embedder.1"),
        ("lumina2", "noise_refiner.0.attention.qkv"),
        ("lumina2", "layers.25.feed_forward.linear_1"),
        ("chroma", "distilled_guidance_layer.in_proj"),
        ("chroma", "distilled_guidance_layer.layers.4.in_layer"),
        ("chroma", "distilled_guidance_layer.layers.4.linear_1"),
        ("hunyuan-video", "txt_in.individual_token_refiner.blocks.1.self_attn_qkv"),
        ("hunyuan-video", "txt_in.individual_token_refiner.blocks.1.adaLN_modulation.1"),
        ("hunyuan-video", "double_blocks.19.img_attn_qkv"),
        ("hunyuan-video", "double_blocks.19.txt_mlp.fc2"),
        ("hunyuan-video", "single_blocks.39.modulation.linear"),
        ("hunyuan-video", "context_embedder.token_refiner.refiner_blocks.0.attn.to_out.0"),
        ("wan", "blocks.39.cross_attn.k_img"),
        ("wan", "blocks.39.ffn.2"),
        ("wan", "time_projection.1"),
        ("wan", "img_emb.proj.3"),
        ("wan", "blocks.0.attn2.add_k_proj"),
        ("wan", "condition_embedder.image_embedder.ff.net.0.proj"),
        ("flux", "single_transformer_blocks.37.proj_mlp"),
        ("flux", "single_transformer_blocks.37.norm.linear"),
        ("flux", "transformer_blocks.18.norm1_context.linear"),
        ("flux", "transformer_blocks.18.ff_context.net.0.proj"),
        ("flux", "transformer_blocks.18.attn.to_add_out"),
        ("flux", "time_text_embed.guidance_embedder.linear_2"),
        ("flux", "double_blocks.0.img_mod.lin"),
        ("flux", "single_blocks.37.linear2"),
        ("flux", "guidance_in.out_layer"),
        ("flux2", "double_stream_modulation_img.linear"),
        ("flux2", "single_transformer_blocks.3.attn.to_qkv_mlp_proj"),
        ("sd3", "joint_blocks.3.x_block.attn2.qkv"),
        ("sd3", "joint_blocks.3.context_block.adaLN_modulation.1"),
        ("sd3", "transformer_blocks.3.attn2.to_out.0"),
        ("qwen-image", "transformer_blocks.59.img_mod.1"),
        ("qwen-image", "transformer_blocks.59.txt_mlp.net.0.proj"),
        ("qwen-image", "transformer_blocks.59.attn.add_q_proj"),
        ("anima", "blocks.3.adaln_modulation_cross_attn.1"),
        ("anima", "llm_adapter.blocks.3.self_attn.o_proj"),
        ("cosmos", "x_embedder.proj.1"),
        ("krea2", "txtfusion.layerwise_blocks.0.mlp.gate"),
        ("ltx", "transformer_blocks.3.ff.net.0.proj"),
        ("ltx2", "transformer_blocks.3.audio_to_video_attn.to_out.0"),
        ("hidream", "double_stream_blocks.0.block.attn1.to_out_t"),
        ("sdxl", "input_blocks.4.1.transformer_blocks.9.attn2.to_k"),
        ("sdxl", "input_blocks.3.0.op"),
        ("sdxl", "label_emb.0.2"),
        ("sdxl", "output_blocks.2.0.skip_connection"),
        ("sdxl", "up_blocks.0.attentions.2.transformer_blocks.9.ff.net.2"),
        ("t5", "encoder.block.23.layer.1.DenseReluDense.wi_1"),
        ("clip-text", "text_model.encoder.layers.11.self_attn.out_proj"),
        ("open-clip", "transformer.resblocks.31.attn.in_proj"),
    ],
)
def test_names_that_a_vocabulary_split_wrongly(family: str, name: str) -> None:
    assert dotted(name.replace(".", "_"), {family}) == name


def test_nothing_is_guessed() -> None:
    assert dotted("some_layer_3_to_q") is None
    assert dotted("") is None
    assert dotted("single_transformer_blocks_3_attn_to_q", {"wan"}) is None
    assert dotted("single_transformer_blocks_3_attn_to_q", set()) is None
    assert {"flux", "wan", "sdxl", "gpt2", "distilbert"} <= family_keys()


def shapes(names: str, width: int | None, part: str = "denoiser") -> dict[tuple[str, str], tuple[int, int] | None]:
    return {(part, name.replace(".", "_")): None if width is None else (width, width) for name in names.split()}


def blocks(names: str, count: int) -> str:
    return " ".join(name.replace("#", str(number)) for name in names.split() for number in range(count))


JOINT = "transformer_blocks.#.attn.to_q transformer_blocks.#.attn.add_k_proj"
SINGLE = "single_transformer_blocks.#.attn.to_q"


@pytest.mark.parametrize(
    ("names", "width", "expected"),
    [
        (f"{blocks(JOINT, 19)} {blocks(SINGLE, 38)}", 3072, "FLUX"),
        (f"{blocks(JOINT, 20)} {blocks(SINGLE, 40)}", 3072, "HunyuanVideo"),
        (f"{blocks(JOINT, 20)} {blocks(SINGLE, 40)}", 3584, "HunyuanImage 2.1"),
        (blocks(JOINT, 60), 3072, "Qwen-Image"),
        (blocks(JOINT, 24), 1536, "Stable Diffusion 3"),
        (blocks(JOINT, 3), 3072, None),  # FLUX, Qwen-Image, ... all have these
        (blocks(JOINT, 3), None, None),
        (blocks(JOINT, 3), 777, None),
        ("transformer_blocks.0.attn.to_k", 3072, None),
        (blocks("layers.#.attention.to_q noise_refiner.#.attention.to_q", 2), 3840, "Z-Image"),
        (blocks("layers.#.attention.qkv layers.#.feed_forward.w1", 26), 2304, "Lumina 2"),
        (blocks("layers.#.attention.qkv layers.#.feed_forward.w1", 30), 3840, "Z-Image"),
        (blocks("blocks.#.self_attn.q blocks.#.cross_attn.k blocks.#.ffn.0", 30), 1536, "Wan video"),
        (blocks("double_blocks.#.img_attn_qkv double_blocks.#.img_mlp.fc1", 20), 3072, "HunyuanVideo"),
        (blocks("double_blocks.#.img_attn_qkv double_blocks.#.img_mlp.fc1", 20), 3584, "HunyuanImage 2.1"),
        (blocks("double_blocks.#.img_attn.qkv", 8) + " distilled_guidance_layer.layers.0.in_layer", 3072, "Chroma"),
        (blocks("joint_blocks.#.x_block.attn.qkv", 24), 1536, "Stable Diffusion 3"),
        (
            blocks("down_blocks.#.motion_modules.0.transformer_blocks.0.attn1.to_q", 2),
            320,
            "AnimateDiff (a motion U-Net)",
        ),
        ("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", 320, "Stable Diffusion (a U-Net)"),
        ("lin0", 16, None),
        ("proj_out", 3072, None),
    ],
)
def test_families_of_denoisers(names: str, width: int | None, expected: str | None) -> None:
    family = recognise(shapes(names, width))
    assert (family and family.name) == expected
    assert family is None or family.denoiser == ("unet" if "U-Net" in family.name else "transformer")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("distilbert.transformer.layer.0.attention.q_lin", "DistilBERT"),
        ("transformer.layer.0.attention.q_lin", "DistilBERT"),
        ("transformer.h.0.attn.c_attn", "GPT-2"),
        ("h.0.mlp.c_fc", "GPT-2"),
        ("h.0.attn.attention.q_proj", "GPT-Neo"),
        ("h.0.attn.q_proj", "GPT-J"),
        ("gpt_neox.layers.0.attention.query_key_value", "GPT-NeoX"),
        ("bert.encoder.layer.0.attention.self.query", "BERT, RoBERTa or ViT"),
        ("deberta.encoder.layer.0.attention.self.query_proj", "DeBERTa"),
        ("vit.encoder.layer.0.attention.attention.query", "ViT"),
        ("blocks.3.attn.qkv", "ViT"),
        ("model.layers.3.self_attn.q_proj", "Llama, Mistral, Qwen or Gemma"),
        ("model.layers.3.self_attn.qkv_proj", "Phi-3"),
        ("model.decoder.layers.3.self_attn.q_proj", "OPT, BART or Whisper"),
        ("transformer.blocks.3.attn.Wqkv", "MPT"),
        ("encoder.block.3.layer.0.SelfAttention.q", "T5"),
        ("text_model.encoder.layers.0.mlp.fc1", "CLIP text encoder"),
        ("encoder.layers.0.self_attn.q_proj", None),  # CLIP's without its level, BART's, Whisper's
    ],
)
def test_families_of_language_and_sight(name: str, expected: str | None) -> None:
    family = recognise(shapes(name, 768, ""))
    assert (family and family.name) == expected
    assert family is None or family.denoiser is None


@pytest.mark.parametrize(
    ("names", "width", "expected", "others", "never"),
    [
        (blocks("transformer_blocks.#.attn.to_q", 19), 3072, "FLUX", {"Chroma", "Bria", "Ovis-Image"}, "Hunyuan"),
        (blocks("transformer_blocks.#.norm1.linear", 19), 3072, "FLUX", {"Bria"}, "Chroma"),
        (blocks("transformer_blocks.#.attn.to_q", 20), 3072, "HunyuanVideo", {"Bria"}, "FLUX or"),
        ("model.layers.0.self_attn.q_proj", 2048, "Llama, Mistral, Qwen or Gemma", {"Phi", "StarCoder 2"}, "OPT"),
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", 2048, "Stable Diffusion XL", set(), ";"),
    ],
)
def test_a_family_names_the_others_that_fit(
    names: str, width: int, expected: str, others: set[str], never: str
) -> None:
    """Attention alone is the same in several: then the likeliest is said, and that it is no more than that."""
    family = recognise(shapes(names, width))
    assert family is not None
    assert family.name == expected
    assert all(other in family.evidence for other in others)
    assert never not in family.evidence


def test_a_denoiser_tells_before_text_encoders() -> None:
    unet = shapes("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", 640)
    second = shapes("text_model.encoder.layers.0.mlp.fc1", 1280, "text_encoder_2")
    family = recognise(unet | second)
    assert family is not None
    assert family.name == "Stable Diffusion XL"
    assert recognise({}) is None
    chosen = recognise(shapes(f"{blocks(JOINT, 19)} {blocks(SINGLE, 38)}", 3072))
    assert chosen is not None
    assert "chroma" in chosen.alternatives  # its attention is named alike


FAMILIES = {
    "KohakuBlueleaf__LyCORIS": "Stable Diffusion 1",
    "MathieuNlp__Sam_LoRA": "Segment Anything (ViT)",
    "branbot6__sift-opf-zh": "Llama, Mistral, Qwen or Gemma",
    "catundchat__stable-diffusion-v1.5-lora": "Stable Diffusion 1",
    "cloneofsimo__lora/example_loras/analog_svd_distill.text_encoder.pt": None,
    "cloneofsimo__lora/example_loras/analog_svd_rank4": "Stable Diffusion 1",
    "cloneofsimo__lora/example_loras/lora_disney": "Stable Diffusion 1",
    "cloneofsimo__lora/example_loras/lora_illust.pt": "Stable Diffusion 2",
    "cloneofsimo__lora/example_loras/lora_kiriko2.ti.pt": None,
    "hansjohn819-commits__sd-lora-anime-style": "CLIP text encoder",
    "huggingface__peft/results_glue": None,
    "huggingface__peft/tests/regression/adalora_mlp": None,
    "huggingface__peft/tests/regression/ia3": None,
    "huggingface__peft/tests/regression/lora_conv2d": None,
    "huggingface__peft/tests/regression/lora_emb_conv1d": None,
    "huggingface__peft/tests/regression/lora_mlp": None,
    "huggingface__peft/tests/regression/lora_opt": "OPT, BART or Whisper",
    "johntnanney__gradience": "GPT-2",
    "microsoft__LoRA": "BERT, RoBERTa or ViT",
    "ml-explore__mlx-examples": "Llama, Mistral, Qwen or Gemma",
    "niket-sharma__LLMs-from-groundup": "GPT-2",
    "parikshit-06__domain-skeleton-gpt2": "GPT-2",
    "tommyroar__is-the-mountain-out": "ConvNeXt",
    "tradingwithme__AI_Book_Review_Generator": "GPT-Neo",
    "vqdung71104__Day21-Track3-Finetuning-LLMs-LoRA-QLoRA": "Llama, Mistral, Qwen or Gemma",
    "wujindou__BLOOM-LORA": "BLOOM or Falcon",
    "wyek1n__MLX-CLI": "Llama, Mistral, Qwen or Gemma",
    "keysets/invokeai__anima": "Anima",
    "keysets/invokeai__flux": "FLUX",
    "keysets/invokeai__krea2": "Krea 2",
    "keysets/invokeai__qwen_image_lora_kohya": "Qwen-Image",
    "keysets/invokeai__qwen_image_lora_diffusers": None,  # two names of attention that FLUX has as well
    "bloom": "BLOOM or Falcon",
    "cloneofsimo/": None,
    "diffusers": "Stable Diffusion (a U-Net)",
    "keysets/flux": "FLUX",
    "keysets/qwen_image": "Qwen-Image",
    "kohya": "Stable Diffusion (a U-Net)",
    "loralib": "BERT, RoBERTa or ViT",
    "mlx": "Llama, Mistral, Qwen or Gemma",
    "peft/bert": "BERT, RoBERTa or ViT",
    "peft/gpt2": "GPT-2",
    "peft/opt": "OPT, BART or Whisper",
    "peft/opt_ia3": None,
    "peft/toy": None,
    "sam": "Segment Anything (ViT)",
}


def test_families_of_all_real_files_and_key_lists(real_folder: Path, tmp_path: Path) -> None:
    seen = refused = 0
    for path in [*real_files(real_folder), *real_folder.glob("keysets/*.json")]:
        place = str(path.relative_to(real_folder))
        if path.suffix == ".json":
            path = sparse(tmp_path / "keys.safetensors", json.loads(path.read_text()))
        try:
            found = inspect(path).model_info.get("family", {"value": None})
        except LorabenchError:
            refused += 1
            continue
        start = max((start for start in FAMILIES if place.startswith(start)), key=len)
        assert found["value"] == FAMILIES[start], place
        seen += 1
    assert (seen, refused) == ((39 + 17, 4) if real_folder == SHARED else (26 + 3, 2))


def test_tables_need_no_torch_and_little_time() -> None:
    code = (
        "import sys, time; from lorabench.adapters.names.families import dotted; start = time.perf_counter();"
        "dotted('layers_0_mlp_up_proj'); print(time.perf_counter() - start, 'torch' in sys.modules)"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    times = [float(run.stdout.split()[0]) for run in runs]
    assert all(run.stdout.split()[1] == "False" for run in runs)
    assert min(times) < 0.05  # 6 ms on a machine that does nothing else
