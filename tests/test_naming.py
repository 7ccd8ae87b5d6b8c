"""Keys of every naming scheme, real and made."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabench.adapters.layouts import layouts
from lorabench.adapters.layouts.kohya import LAYOUT, from_kohya
from lorabench.adapters.names.identity import component, identity, unwrap
from lorabench.adapters.reading.naming import FACTORS, is_layer_key, layer_names, parse_key
from tests.real_adapters import key_lists, real

FACTOR_KEYS = [
    ("unet.mid_block.attn1.to_q.lora.down.weight", "unet.mid_block.attn1.to_q", "down", "diffusers"),
    ("unet.mid_block.attn1.to_q.lora.up.weight", "unet.mid_block.attn1.to_q", "up", "diffusers"),
    ("m.to_q.lora.down.weight.80", "m.to_q.80", "down", "diffusers"),
    ("text_encoder.q_proj.lora_linear_layer.down.weight", "text_encoder.q_proj", "down", "diffusers"),
    ("down_blocks.0.attn1.processor.to_q_lora.down.weight", "down_blocks.0.attn1.to_q", "down", "diffusers-old"),
    ("mid_block.attn2.processor.to_out_lora.up.weight", "mid_block.attn2.to_out.0", "up", "diffusers-old"),
    ("double_blocks.3.processor.qkv_lora2.up.weight", "double_blocks.3.txt_attn.qkv", "up", "xlabs"),
    ("double_blocks.3.processor.proj_lora1.down.weight", "double_blocks.3.img_attn.proj", "down", "xlabs"),
    ("base_model.model.model.layers.0.q_proj.lora_A.weight", "model.layers.0.q_proj", "down", "peft"),
    ("base_model.model.h.0.c_attn.lora_B.default.weight", "h.0.c_attn", "up", "peft"),
    ("transformer.proj_out.lora_A.weight", "transformer.proj_out", "down", "peft"),
    ("base_model.model.emb.lora_embedding_A", "emb", "down", "peft-embedding"),
    ("base_model.model.emb.lora_embedding_B.default", "emb", "up", "peft-embedding"),
    ("lora_unet_transformer_blocks_0_attn1_to_out_0.lora_down.weight",
     "unet.transformer_blocks.0.attn1.to_out.0", "down", "kohya"),
    ("lora_unet_down_blocks_1_attentions_0_proj_in.lora_mid.weight",
     "unet.down_blocks.1.attentions.0.proj_in", "mid", "kohya"),
    ("lora_te_text_model_encoder_layers_11_self_attn_q_proj.alpha",
     "text_encoder.text_model.encoder.layers.11.self_attn.q_proj", "alpha", "kohya"),
    ("lora_te2_text_model_encoder_layers_1_mlp_fc1.lora_up.weight",
     "text_encoder_2.text_model.encoder.layers.1.mlp.fc1", "up", "kohya"),
    ("transformer_blocks.0.attn.to_k.lora_down.weight", "transformer_blocks.0.attn.to_k", "down", "kohya"),
    ("roberta.layer.0.query.lora_A", "roberta.layer.0.query", "down", "loralib"),
    ("model.layers.36.q_proj.lora_a", "model.layers.36.q_proj", "down", "mlx"),
    ("model.layers.36.q_proj.lora_b", "model.layers.36.q_proj", "up", "mlx"),
    ("w_a_000", "w_000", "down", "sam"),
    ("w_b_023", "w_023", "up", "sam"),
    ("text_encoder:0:down", "text_encoder.0", "down", "cloneofsimo"),
    ("unet:143:up", "unet.143", "up", "cloneofsimo"),
]  # fmt: skip

OTHER_KEYS = [
    ("base_model.model.h.0.attn.lora_magnitude_vector", "dora", "h.0.attn"),
    ("base_model.model.h.0.attn.lora_magnitude_vector.default.weight", "dora", "h.0.attn"),
    ("lora_te1_text_model_encoder_layers_0_mlp_fc1.dora_scale", "dora",
     "text_encoder.text_model.encoder.layers.0.mlp.fc1"),
    ("lora_unet_conv_in.hada_w1_a", "loha", "unet.conv_in"),
    ("lora_unet_conv_in.hada_t2", "loha", "unet.conv_in"),
    ("diffusion_model.blocks.0.q.lokr_w1", "lokr", "diffusion_model.blocks.0.q"),
    ("base_model.model.lin0.ia3_l", "ia3", "lin0"),
    ("base_model.model.lin0.lora_E", "adalora", "lin0"),
    ("base_model.unilora_theta_d", "unilora", "base_model"),
    ("lora_unet_conv_in.diff", "full_diff", "unet.conv_in"),
    ("lora_unet_conv_in.diff_b", "full_diff", "unet.conv_in"),
    ("double_blocks.0.img_attn.proj.lora_B.bias", "bias", "double_blocks.0.img_attn.proj"),
    ("base_model.model.score.bias", "bias", "score"),
    ("base_model.model.score.weight", "full_weight", "score"),
    ("<s1>", "textual_inversion", ""),
    ("something", "other", "something"),
    ("", "other", ""),
]  # fmt: skip


@pytest.mark.parametrize(("key", "module", "part", "scheme"), FACTOR_KEYS)
def test_a_factor_is_parsed(key: str, module: str, part: str, scheme: str) -> None:
    parsed = parse_key(key)
    assert (parsed.module, parsed.part, parsed.scheme) == (module, part, scheme)
    assert is_layer_key(key) == (part in ("down", "up"))


@pytest.mark.parametrize(("key", "kind", "module"), OTHER_KEYS)
def test_what_cannot_be_analysed_is_named(key: str, kind: str, module: str) -> None:
    parsed = parse_key(key)
    assert (parsed.part, parsed.module) == (kind, module)
    assert not is_layer_key(key)


@pytest.mark.parametrize(
    "column",
    ["category_label", "category_name", "leaf_id", "folder", "rank", "num_images", "step_loss", "alpha", "down"],
)
def test_columns_of_a_data_set_that_are_no_layers(column: str) -> None:
    assert not is_layer_key(column)


def test_layer_names_are_parsed_back() -> None:
    for layer, part in zip(layer_names("unet.mid_block.to_q"), ("down", "up"), strict=True):
        assert (parse_key(layer).module, parse_key(layer).part) == ("unet.mid_block.to_q", part)


@pytest.mark.parametrize("name", key_lists(), ids=lambda name: Path(name).stem)
def test_every_key_of_a_published_format_is_understood(name: str) -> None:
    """Independent of the parser's patterns: plain searches for the parts' names."""
    for key in json.loads(real(name).read_text()):
        parsed = parse_key(key)
        assert parsed.part != "other", key
        down = any(text in key for text in ("lora_A.weight", "lora_down.weight", ".down.weight"))
        up = any(text in key for text in ("lora_B.weight", "lora_up.weight", ".up.weight"))
        lokr, dora = "lokr_" in key, "dora_scale" in key
        expected = {"down": down, "up": up, "alpha": key.endswith(".alpha"), "lokr": lokr, "dora": dora}
        named = [part for part, holds in expected.items() if holds] or ["bias", "full_weight"]
        assert parsed.part in named, key
        assert parsed.module, key


@pytest.mark.parametrize("name", key_lists(), ids=lambda name: Path(name).stem)
def test_factors_of_a_published_format_come_in_pairs(name: str) -> None:
    parts: dict[str, set[str]] = {}
    for key in json.loads(real(name).read_text()):
        parsed = parse_key(key)
        assert parsed.part not in parts.setdefault(parsed.module, set()) or parsed.part not in FACTORS, key
        parts[parsed.module].add(parsed.part)
    for module, found in parts.items():
        assert ("down" in found) == ("up" in found), module


KOHYA = [
    ("lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_ff_net_0_proj",
     "unet.up_blocks.3.attentions.2.transformer_blocks.0.ff.net.0.proj"),
    ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
     "unet.input_blocks.4.1.transformer_blocks.0.attn1.to_q"),
    ("lora_unet_down_blocks_0_resnets_1_time_emb_proj", "unet.down_blocks.0.resnets.1.time_emb_proj"),
    ("lora_te2_encoder_block_0_layer_1_DenseReluDense_wi_0",
     "text_encoder_2.encoder.block.0.layer.1.DenseReluDense.wi_0"),
    ("lora_unet_strange_part_3_to_q", "unet.strange_part_3_to_q"),  # nothing is guessed
    ("lora_unet_wholly_unknown", "unet.wholly_unknown"),
]  # fmt: skip


@pytest.mark.parametrize(("kohya", "name"), KOHYA)
def test_kohya_names_are_turned_back_into_dots(kohya: str, name: str) -> None:
    assert parse_key(f"{kohya}.lora_down.weight").module == name
    assert LAYOUT.spell({name: ""}, {}) == {name: kohya}


def test_names_without_a_kohya_prefix_stay() -> None:
    assert from_kohya("unet.to_q") is None
    assert LAYOUT.spell({"h.0.c_attn": "", "unet": ""}, {}) == {"h.0.c_attn": "h.0.c_attn", "unet": "unet"}


def test_two_modules_that_flatten_alike_keep_their_dots() -> None:
    names = {"unet.a.b_c": "", "unet.a_b.c": "", "unet.d": ""}
    spelled = LAYOUT.spell(names, {})
    assert spelled == {"unet.a.b_c": "unet.a.b_c", "unet.a_b.c": "unet.a_b.c", "unet.d": "lora_unet_d"}


def test_a_second_text_encoder_renames_the_first() -> None:
    names = ["text_encoder.text_model.encoder.layers.0.mlp.fc1", "text_encoder_2.text_model.encoder.layers.0.mlp.fc1"]
    spelled = LAYOUT.spell(dict.fromkeys(names, ""), {})
    assert list(spelled.values()) == [f"lora_te{i}_text_model_encoder_layers_0_mlp_fc1" for i in (1, 2)]
    assert from_kohya("lora_te1_q_proj") == from_kohya("lora_te_q_proj") == ("text_encoder", "q_proj")


@pytest.mark.parametrize(
    "names",
    [
        ["lora_unet_blocks_0_self_attn_q", "diffusion_model.blocks.0.self_attn.q", "transformer.blocks.0.self_attn.q",
         "pipe.dit.blocks.0.self_attn.q", "dit.blocks.0.self_attn.q", "diffusion_model._orig_mod.blocks.0.self_attn.q",
         "transformer.blocks.0._checkpoint_wrapped_module.self_attn.q"],
        ["lora_te1_text_model_encoder_layers_0_mlp_fc1", "text_encoder.text_model.encoder.layers.0.mlp.fc1",
         "text_encoder.encoder.layers.0.mlp.fc1"],
        ["base_model.model.h.0.attn", "base_model.model.base_model.model.h.0.attn", "module.h.0.attn",
         "_fsdp_wrapped_module.h.0.attn"],
        ["lora_unet_double_blocks_3_img_attn_qkv", "diffusion_model.double_blocks.3.img_attn_qkv",
         "transformer.double_blocks.3.img_attn.qkv"],
        ["lora_unet_input_blocks_4_1_proj_in", "unet.down_blocks.1.attentions.0.proj_in"],
    ],
)  # fmt: skip
def test_names_of_one_module_have_one_identity(names: list[str]) -> None:
    assert len({identity(parse_key(f"{name}.lora_down.weight").module) for name in names}) == 1


def test_other_modules_have_other_identities() -> None:
    names = ["text_encoder.a.q", "text_encoder_2.a.q", "unet.a.q", "a.q", "a.q.1", "prior_unet.a.q"]
    assert len(set(map(identity, names))) == len(names)
    assert identity("transformer.h.0.attn") == ("", "transformer_h_0_attn")  # a language model's own trunk
    assert component("transformer.h.0.attn") == "model"


def test_wrappers_are_told() -> None:
    assert unwrap("transformer.base_model.model._orig_mod.x.0.module.q") == ("transformer.x.0.module.q", ("_orig_mod",))
    assert unwrap("module.module.x").wrappers == ("module",)
    assert parse_key("lora_unet__orig_mod_blocks_0_q.lora_down.weight").wrappers == ("_orig_mod",)


@given(st.text(max_size=80))
@settings(deadline=None, max_examples=200)
def test_every_text_has_an_answer(key: str) -> None:
    assert parse_key(key).part


@given(
    st.lists(
        st.sampled_from(["attn1", "to_q", "foo_bar", "0", "12", "mlp", "x", "self_attn", "blocks"]),
        min_size=1,
        max_size=6,
    )
)
@settings(deadline=None, max_examples=200)
def test_a_kohya_name_is_the_same_module(parts: list[str]) -> None:
    name = "unet." + ".".join(parts)
    kohya = LAYOUT.spell({name: ""}, {})[name]
    assert kohya == "lora_" + name.replace(".", "_")
    assert identity(parse_key(f"{kohya}.lora_up.weight").module) == identity(name)


def test_no_key_fits_two_layouts() -> None:
    """Every real key, and those above: the layouts are tried in no order that means anything."""
    keys = [key for key, *_ in (*FACTOR_KEYS, *OTHER_KEYS)] + [
        key for name in key_lists() for key in json.loads(real(name).read_text())
    ]
    for key in keys:
        fitting = {name for name, layout in layouts().items() if any(one.match(key) for one in layout.patterns)}
        assert len(fitting) <= 1, (key, fitting)
