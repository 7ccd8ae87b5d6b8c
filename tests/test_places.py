"""Where layers sit, read from the names of many networks."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabench.adapters.places import GROUPINGS, block_labels, by_depth, groups, place
from lorabench.adapters.reading.files import load as load_adapter
from lorabench.adapters.reading.naming import layer_names, parse_key
from lorabench.errors import LorabenchError
from lorabench.zoo.glyph_model import MODULES
from tests.hub_schema import stable_diffusion_modules
from tests.real_adapters import SHARED, real_files

# module, block, attention, projection
NAMES = [
    ("unet.down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q", "down_blocks.0.attentions.1", "attn1", "q"),
    ("unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0", "mid_block.attentions.0", "attn2", "out"),
    ("up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_v", "up_blocks.3.attentions.2", "attn2", "v"),
    ("up_blocks.0.attentions.1.transformer_blocks.9.ff.net.0.proj", "up_blocks.0.attentions.1", "ff", "net.0.proj"),
    ("down_blocks.0.attn1.to_q", "down_blocks.0", "attn1", "q"),
    ("mid_block.attn1.to_q", "mid_block", "attn1", "q"),
    ("unet.down_blocks.1.attentions.0.proj_in", "down_blocks.1.attentions.0", "", "proj_in"),
    ("unet.down_blocks.1.resnets.0.conv1", "down_blocks.1.resnets.0", "", "conv1"),
    ("unet.input_blocks.4.1.transformer_blocks.3.attn1.to_k", "input_blocks.4.1", "attn1", "k"),
    ("unet.middle_block.1.transformer_blocks.3.attn1.to_k", "middle_block.1", "attn1", "k"),
    ("unet.transformer_blocks.2.attn1.to_out.0", "transformer_blocks.2", "attn1", "out"),
    ("text_encoder.text_model.encoder.layers.5.self_attn.q_proj", "text_encoder.layers.5", "self_attn", "q"),
    ("text_encoder.text_model.encoder.layers.5.mlp.fc1", "text_encoder.layers.5", "mlp", "fc1"),
    ("text_encoder_2.encoder.block.7.layer.0.SelfAttention.o",
     "text_encoder_2.encoder.block.7", "SelfAttention", "out"),
    ("text_encoder_2.encoder.block.7.layer.1.DenseReluDense.wo",
     "text_encoder_2.encoder.block.7", "DenseReluDense", "wo"),
    ("model.layers.12.self_attn.q_proj", "layers.12", "self_attn", "q"),
    ("model.layers.12.self_attn.o_proj", "layers.12", "self_attn", "out"),
    ("model.layers.12.mlp.gate_proj", "layers.12", "mlp", "gate_proj"),
    ("model.layers.0.block_sparse_moe.experts.3.w1", "layers.0", "block_sparse_moe", "w1"),
    ("model.decoder.layers.3.encoder_attn.v_proj", "decoder.layers.3", "encoder_attn", "v"),
    ("transformer.single_transformer_blocks.7.attn.to_q", "single_transformer_blocks.7", "attn", "q"),
    ("transformer.transformer_blocks.3.ff.net.0.proj", "transformer_blocks.3", "ff", "net.0.proj"),
    ("transformer.transformer_blocks.3.attn.add_q_proj", "transformer_blocks.3", "attn", "add_q_proj"),
    ("unet.double_blocks.3.img_attn.proj", "double_blocks.3", "img_attn", "out"),
    ("unet.double_blocks.3.txt_attn.qkv", "double_blocks.3", "txt_attn", "qkv"),
    ("unet.double_blocks.3.img_mlp.0", "double_blocks.3", "img_mlp", "img_mlp.0"),
    ("unet.single_blocks.30.linear1", "single_blocks.30", "", "linear1"),
    ("unet.blocks.2.adaln_modulation_cross_attn.1", "blocks.2", "", "adaln_modulation_cross_attn.1"),
    ("transformer.h.3.attn.c_attn", "h.3", "attn", "c_attn"),
    ("transformer.h.3.attn.c_proj", "h.3", "attn", "out"),
    ("transformer.h.3.mlp.c_proj", "h.3", "mlp", "c_proj"),
    ("transformer.h.3.self_attention.query_key_value", "h.3", "self_attention", "query_key_value"),
    ("roberta.encoder.layer.3.attention.self.query", "roberta.encoder.layer.3", "attention", "q"),
    ("roberta.encoder.layer.3.attention.output.dense", "roberta.encoder.layer.3", "attention", "out"),
    ("stages.2.blocks.3.mlp.fc1", "stages.2.blocks.3", "mlp", "fc1"),
    ("w_005", "w_005", "", ""),
    ("unet.143", "unet.143", "", ""),
    ("lin0", "", "", "lin0"),
    ("unet.conv_in", "", "", "conv_in"),
    ("transformer.proj_out", "", "", "proj_out"),
]  # fmt: skip


@pytest.mark.parametrize(("module", "block", "attention", "projection"), NAMES)
def test_a_name_says_the_place(module, block, attention, projection):
    found = place(module)
    assert (found.module, found.block, found.attention, found.projection) == (module, block, attention, projection)
    assert found.factor == ""
    for layer, factor in zip(layer_names(module), ("down", "up"), strict=True):
        one = place(layer)
        assert one.factor == factor
        assert (one.module, one.block, one.depth) == (module, block, found.depth)


def _shuffled(names, seed):
    return [names[i] for i in np.random.default_rng(seed).permutation(len(names))]


def test_the_order_is_that_of_the_network():
    layers = [layer for module in stable_diffusion_modules() for layer in layer_names(module)]
    shuffled = _shuffled(layers, 0)
    assert list(by_depth(shuffled)) == layers
    ordered = [
        "text_encoder.text_model.encoder.layers.2.self_attn.q_proj",
        "text_encoder.text_model.encoder.layers.10.self_attn.q_proj",
        "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj",
        "unet.conv_in",
        "unet.down_blocks.0.resnets.0.conv1",
        "unet.down_blocks.0.attentions.0.proj_in",
        "unet.down_blocks.0.resnets.1.conv1",
        "unet.down_blocks.0.downsamplers.0.conv",
        "unet.down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q",
        "unet.down_blocks.1.attentions.0.transformer_blocks.1.ff.net.2",
        "unet.down_blocks.1.attentions.0.transformer_blocks.2.attn1.to_q",
        "unet.mid_block.resnets.0.conv1",
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
        "unet.mid_block.resnets.1.conv1",
        "unet.up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
        "unet.up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0",
        "unet.up_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
        "unet.conv_out",
    ]
    assert list(by_depth(_shuffled(ordered, 1))) == ordered
    flux = ["transformer.x_embedder", "transformer.transformer_blocks.18.attn.to_q",
            "transformer.single_transformer_blocks.0.attn.to_q", "transformer.proj_out"]  # fmt: skip
    assert list(by_depth(flux[::-1])) == flux
    numbered = [f"model.layers.{i}.self_attn.q_proj" for i in range(12)]
    assert list(by_depth(sorted(numbered))) == numbered


def test_groups_of_stable_diffusion():
    layers = [layer for module in stable_diffusion_modules() for layer in layer_names(module)]
    counts = {by: {name: len(members) for name, members in groups(layers, by).items()} for by in GROUPINGS}
    assert counts["attention"] == {"attn1": 64, "attn2": 64}
    assert counts["projection"] == {"q": 64, "v": 64}
    assert counts["factor"] == {"down": 64, "up": 64}
    assert list(counts["block"].values()) == [8] * 16
    assert next(iter(counts["block"])) == "down_blocks.0.attentions.0"
    assert list(counts["block"])[6] == "mid_block.attentions.0"
    assert counts["depth"] == {"first third": 48, "middle third": 40, "last third": 40}
    assert all("up_blocks" in layer for layer in groups(layers, "depth")["last third"])


def test_groups_of_the_embedded_zoo():
    layers = [layer for module in MODULES for layer in layer_names(module)]
    assert {name: len(members) for name, members in groups(layers, "projection").items()} == dict.fromkeys(
        ("q", "k", "v", "out"), 8
    )
    assert list(groups(layers, "block")) == [f"transformer_blocks.{i}" for i in range(4)]


def test_what_stands_outside_the_blocks_joins_the_third_beside_it():
    layers = ["transformer.proj_out", "transformer.x_embedder", *(f"transformer.h.{i}.attn.c_attn" for i in range(3))]
    assert groups(layers, "depth") == {
        "first third": ("transformer.x_embedder", "transformer.h.0.attn.c_attn"),
        "middle third": ("transformer.h.1.attn.c_attn",),
        "last third": ("transformer.h.2.attn.c_attn", "transformer.proj_out"),
    }
    assert groups(layers, "attention") == {"other": ("transformer.x_embedder", "transformer.proj_out"),
                                           "attn": tuple(layers[2:])}  # fmt: skip
    assert groups(["lin0", "lin1", "lin2"], "depth") == {
        "first third": ("lin0",), "middle third": ("lin1",), "last third": ("lin2",),
    }  # fmt: skip
    assert groups(["lin0"], "depth") == {"first third": ("lin0",)}
    assert groups([], "block") == {}


def test_another_grouping_is_refused():
    with pytest.raises(LorabenchError, match=r"'colour'.*block, attention, projection, factor, depth"):
        groups(["lin0"], "colour")


@settings(deadline=None, max_examples=40)
@given(
    modules=st.lists(st.sampled_from([name for name, *_ in NAMES]), unique=True, max_size=20),
    by=st.sampled_from(GROUPINGS),
    seed=st.integers(0, 99),
)
def test_groups_part_the_layers_whatever_their_order(modules, by, seed):
    layers = [layer for module in modules for layer in layer_names(module)]
    found = groups(layers, by)
    members = [layer for group in found.values() for layer in group]
    assert sorted(members) == sorted(layers)
    assert all(found.values())
    shuffled = _shuffled(layers, seed)
    assert list(groups(shuffled, by).items()) == list(found.items())
    assert by_depth(shuffled) == by_depth(layers)


@settings(deadline=None, max_examples=60)
@given(st.text(alphabet="abq.01_", max_size=20))
def test_every_name_has_a_place(name):
    assert place(name).module == name
    assert by_depth([name]) == (name,)


def test_real_adapters_say_their_places(real_folder):
    named, files = [], 0
    for path in real_files(real_folder):
        try:
            modules = load_adapter(path).modules
        except LorabenchError:
            continue  # no LoRA, or a broken file; tests/test_bad_files.py holds these
        files += 1
        # cloneofsimo's and SAM's files only count their modules, PEFT's regression tests have three toys.
        named += [name for name in modules if not re.fullmatch(r"(unet|text_encoder|w)[._]\d+|lin\d|conv\dd|emb", name)]
    assert files > 20
    # LyCORIS adapts more than attention: convolutions, and what goes in and out of a block of transformers.
    outside = re.compile(r"\.(resnets|proj_in|proj_out|downsamplers|upsamplers|conv_in|conv_out|time_emb)\b")
    for key in ("block", "attention", "projection"):
        asked = [name for name in named if key != "attention" or not outside.search(name)]
        found = [name for name in asked if getattr(place(name), key)]
        assert len(found) == len(asked) > (500 if real_folder == SHARED else 100), set(asked) - set(found)


def test_real_key_lists_say_their_places(real_folder):
    modules = set()
    for path in real_folder.glob("keysets/*.json"):
        modules |= {parsed.module for parsed in map(parse_key, json.loads(path.read_text())) if parsed.is_layer}
    places = [place(name) for name in modules]
    assert len(places) > (1000 if real_folder == SHARED else 900)
    assert all(spot.projection for spot in places)
    # One key alone does not say whose a flattened name is ("img_attn_qkv"); a whole file does.
    without = [spot.module for spot in places if not spot.block and not re.search(r"_\d+_", spot.module)]
    assert len(without) < 0.02 * len(places), without
    qkv = [spot for spot in places if spot.projection in ("q", "k", "v", "out")]
    assert all(spot.attention for spot in qkv)
    assert len(qkv) > 0.3 * len(places)


# Names in network order, from many families; `place` must say so whatever order they come in.
FAMILIES = {
    "flux": ["x_embedder", "transformer_blocks.0.attn.to_q", "transformer_blocks.10.attn.to_q",
             "single_transformer_blocks.2.attn.to_q", "proj_out"],
    "flux by its own names": ["img_in", "double_blocks.0.img_attn.qkv", "double_blocks.1.img_mlp.0",
                              "single_blocks.0.linear1", "final_layer.linear"],
    "hunyuan video": ["context_embedder.proj_in", "context_embedder.token_refiner.refiner_blocks.0.attn.to_q",
                      "transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.attn.to_q", "norm_out.linear"],
    "hunyuan video by its own names": ["img_in.proj", "txt_in.individual_token_refiner.blocks.1.self_attn_qkv",
                                       "double_blocks.0.img_attn_qkv", "single_blocks.0.linear2"],
    "wan": ["patch_embedding", "time_projection.1", "blocks.0.self_attn.q", "blocks.2.cross_attn.k_img",
            "blocks.10.ffn.0", "head.head"],
    "qwen image": ["img_in", "transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.add_q_proj",
                   "transformer_blocks.0.img_mlp.net.0.proj", "transformer_blocks.59.attn.to_q", "proj_out"],
    "z-image": ["all_x_embedder.2-1", "context_refiner.0.attention.to_q", "noise_refiner.1.attention.to_q",
                "layers.0.attention.to_q", "layers.0.feed_forward.w1", "layers.29.attention.to_q",
                "all_final_layer.2-1.linear"],
    "chroma": ["img_in", "distilled_guidance_layer.layers.0.in_layer", "double_blocks.0.img_attn.qkv",
               "single_blocks.0.linear1"],
}  # fmt: skip


@pytest.mark.parametrize("prefix", ["transformer.", "diffusion_model.", ""])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_transformers_modules_come_in_the_order_of_its_data(family, prefix):
    names = [prefix + name for name in FAMILIES[family]]
    for seed in range(5):
        assert list(by_depth(_shuffled(names, seed))) == names
    assert all(bool(place(name).block) == bool(re.search(r"\d\..*(attn|linear\d|ff|feed|mlp|attention|in_layer)", name))
               for name in names)  # fmt: skip


def test_parts_come_in_the_order_of_the_data():
    names = [
        "text_encoder.text_model.encoder.layers.11.mlp.fc2",
        "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q",
        "text_encoder_3.encoder.block.0.layer.0.SelfAttention.q",
        "vision_model.encoder.layers.0.self_attn.q_proj",
        "transformer.transformer_blocks.0.attn.to_q",
        "transformer_2.transformer_blocks.0.attn.to_q",
    ]
    assert list(by_depth(names[::-1])) == names
    assert [place(name).part for name in names] == [
        "text_encoder", "text_encoder_2", "text_encoder_3", "model", "transformer", "transformer_2",
    ]  # fmt: skip
    assert place("transformer.h.0.attn.c_attn").part == "model"
    inside = [f"transformer.h.0.{name}" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]
    assert list(by_depth(inside[::-1])) == inside
    assert block_labels(["down_blocks.1.attentions.0", "mid_block.attentions.0", ""]) == (
        ["down 1.0", "mid 0", "other"], "",
    )  # fmt: skip
    assert block_labels(["w_3", "w_10"]) == (["3", "10"], "number in the file's list")
