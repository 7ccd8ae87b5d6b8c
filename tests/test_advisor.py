"""The ranks that are advised, beside every other choice of ranks on small adapters, and beside what resize does."""

import itertools
import json
import math
import re
import shlex
import tomllib
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import nn

from lorabench.adapters import ResizeRule, load, resize, save
from lorabench.adapters.__main__ import main
from lorabench.adapters.adapter import Adapter, LoraModule
from lorabench.adapters.resizing.ranks import energy_ranks
from lorabench.errors import LorabenchError
from lorabench.health.advisor import advise
from lorabench.health.alerts import Watch, read_thresholds
from lorabench.health.base import BaseFile, MisfitError, against_base
from lorabench.health.kohya import block_ranks
from lorabench.health.metrics import module_metrics
from lorabench.health.trajectory import Snapshot
from tests.test_adapter_commands import run


def a_module(sigma, d_out=7, d_in=9, scale=0.5, seed=0):
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.normal(size=(side, len(sigma))))[0] for side in (d_out, d_in))
    parts = (right.T, left * np.asarray(sigma) / abs(scale))
    return LoraModule(*(torch.tensor(part, dtype=torch.float32) for part in parts), scale, scale * len(sigma))


def three():
    return {
        "t.h.0.attn.q": a_module([5.0, 3.0, 0.5, 0.1], seed=1),
        "t.h.0.attn.v": a_module([2.0, 1.0, 0.2, 0.1], seed=2),
        "t.h.0.mlp.fc": a_module([4.0, 3.5, 3.0, 0.1], d_out=20, seed=3),
    }


def dense_error(modules, ranks):
    lost = whole = 0.0
    for name, module in modules.items():
        sigma = np.linalg.svd(module.delta().double().numpy(), compute_uv=False)
        lost, whole = lost + (sigma[ranks[name] :] ** 2).sum(), whole + (sigma**2).sum()
    return math.sqrt(lost / whole)


def every_choice(modules):
    for ranks in itertools.product(*(range(1, module.rank + 1) for module in modules.values())):
        yield dict(zip(modules, ranks, strict=True))


@pytest.mark.parametrize("loss", [0.3, 0.1, 0.01, 1e-3, 0.0])
def test_no_choice_of_fewer_values_loses_as_little(loss):
    modules = three()
    found = advise(modules, loss)
    assert found.advised.error == pytest.approx(dense_error(modules, found.advised.ranks), rel=1e-5, abs=1e-6)
    assert found.advised.error**2 <= loss + 1e-9
    count = sum(found.advised.ranks.values())
    for ranks in every_choice(modules):
        if sum(ranks.values()) < count:
            assert dense_error(modules, ranks) ** 2 > loss
    assert found.now.error == 0.0


@pytest.mark.parametrize("parameters", [75, 100, 130, 200, 400])
def test_no_choice_within_the_budget_loses_less(parameters):
    modules = three()
    found = advise(modules, parameters=parameters)
    numbers = sum(sum(modules[name].shape) * rank for name, rank in found.advised.ranks.items())
    assert found.advised.parameters == numbers <= parameters
    best = min(
        dense_error(modules, ranks)
        for ranks in every_choice(modules)
        if sum(sum(modules[name].shape) * rank for name, rank in ranks.items()) <= parameters
    )
    # What does not fill the budget exactly may miss by one step (Fox 1966).
    step = max(sum(module.shape) for module in modules.values())
    assert advise(modules, parameters=parameters + step).advised.error <= best + 1e-6
    assert found.uniform.parameters <= found.advised.parameters
    assert len(set(found.uniform.ranks.values())) == 1


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.5, 1.0))
def test_one_threshold_is_what_sorting_all_values_gives(seed, share):
    rng = np.random.default_rng(seed)
    spectra = {name: torch.tensor(np.sort(rng.exponential(size=4))[::-1].copy()) for name in "abc"}
    ranks = energy_ranks(spectra, dict.fromkeys(spectra, (0, 4)), share)
    values = np.sort(np.concatenate([sigma.numpy() for sigma in spectra.values()]))[::-1] ** 2
    fewest = int(np.searchsorted(np.cumsum(values) / values.sum(), share - 1e-12) + 1)
    assert sum(ranks.values()) == min(fewest, 12)
    kept = [float(sigma[i]) for name, sigma in spectra.items() for i in range(ranks[name])]
    left = [float(sigma[i]) for name, sigma in spectra.items() for i in range(ranks[name], 4)]
    assert min(kept) >= max(left, default=0.0)


def test_the_baselines_and_the_types_are_what_they_say():
    modules, pair = three(), ("t.h.0.attn.q", "t.h.0.attn.v")
    found = advise(modules, 0.05)
    assert len(found.shuffled_errors) == 20
    orders = itertools.permutations([found.advised.ranks[name] for name in pair])
    possible = [dense_error(modules, {**found.advised.ranks, **dict(zip(pair, one, strict=True))}) for one in orders]
    assert all(any(error == pytest.approx(one, rel=1e-5) for one in possible) for error in found.shuffled_errors)
    assert len({round(error, 6) for error in found.shuffled_errors}) == len({round(one, 6) for one in possible})
    assert found.by_type["attention"][0] == 2
    assert found.by_type["feed-forward"] == (1, 4.0, float(found.advised.ranks["t.h.0.mlp.fc"]))
    assert advise(modules, 0.05, seed=3).advised == found.advised


def a_model(shapes):
    """Linear layers at these names."""
    model = nn.Module()
    for name, (d_out, d_in) in shapes.items():
        *parents, last = name.split(".")
        inner = model
        for parent in parents:
            if not hasattr(inner, parent):
                inner.add_module(parent, nn.Module())
            inner = getattr(inner, parent)
        inner.add_module(last, nn.Linear(d_in, d_out))
    return model


def given_by_peft(config, shapes):
    """Name -> rank and scaling that PEFT gives to every linear layer of such a model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PEFT, about what it does not know of a model
        wrapped = get_peft_model(a_model(shapes), LoraConfig(target_modules="all-linear", **config))
    layers = wrapped.base_model.model.named_modules()
    return {
        name: (layer.r["default"], layer.scaling["default"]) for name, layer in layers if isinstance(layer, LoraLayer)
    }


def advised_of(found, modules):
    """Name -> the same as it was advised."""
    return {name: (rank, pytest.approx(modules[name].scale)) for name, rank in found.advised.ranks.items()}


ENDS = {
    "proj_out": a_module([10.0, 0.1, 0.01, 0.01]),
    "blocks.0.proj_out": a_module([10.0] * 4, scale=2.0),
    "blocks.1.proj_out": a_module([9.0] * 3 + [0.01], d_in=5),
    "refiner.blocks.1.proj_out": a_module([9.0, 9.0, 0.01], scale=3.0),
    "blocks_1.proj_out": a_module([7.0]),
    "blocks.11.proj_out": a_module([8.0, 7.0, 0.1]),
}


def test_patterns_give_every_module_its_rank_and_its_scale_in_peft():
    for modules in (three() | {"t.h.1.attn.q": a_module([1.0, 0.9], scale=2.0)}, ENDS):
        found = advise(modules, 0.02)
        assert list(found.peft) == ["model"]
        shapes = {name: module.shape for name, module in modules.items()}
        assert given_by_peft(found.peft["model"], shapes) == advised_of(found, modules)


UNET = {
    "down_blocks.1.attentions.0.proj_out": a_module([5.0, 3.0, 0.1]),
    "up_blocks.1.attentions.0.proj_out": a_module([5.0, 0.1], scale=2.0),
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0": a_module([4.0, 4.0, 4.0, 0.1]),
}
TEXT = {
    f"encoder.layers.{i}.self_attn.{name}": a_module([6.0] * rank + [0.1], seed=i)
    for i, (name, rank) in enumerate([("q_proj", 1), ("v_proj", 3), ("v_proj", 2)])
}


@pytest.mark.parametrize("layout", ["kohya", "diffusers-peft", "diffusers"])
def test_every_part_of_a_pipeline_has_patterns_of_its_own(layout, tmp_path):
    modules = {f"unet.{name}": module for name, module in UNET.items()}
    modules |= {f"text_encoder.text_model.{name}": module for name, module in TEXT.items()}
    adapter = load(save(tmp_path / "a.safetensors", modules, layout))
    found = advise(adapter.modules, 0.02)
    advised = advised_of(found, adapter.modules)
    assert found.peft.keys() == {"unet", "text_encoder"}
    for part, level, names in (
        ("unet", "", UNET),
        ("text_encoder", "text_model.", TEXT),  # as CLIPTextModel is in transformers 4
        ("text_encoder", "", TEXT),  # and in 5
    ):
        got = given_by_peft(found.peft[part], {f"{level}{name}": module.shape for name, module in names.items()})
        told = f"{part}.text_model." if part == "text_encoder" else f"{part}."
        assert got == {f"{level}{name}": advised[f"{told}{name}"] for name in names}


def test_names_of_the_original_models_are_diffusers_where_convert_writes_them_so():
    block = "transformer_blocks.1.attn1"
    modules = {
        f"unet.input_blocks.4.1.{block}.to_q": a_module([5.0, 3.0, 0.1]),
        f"unet.output_blocks.1.1.{block}.to_q": a_module([5.0, 0.1]),
    }
    found = advise(modules, 0.02)
    names = dict(zip(modules, [f"{stage}.attentions.{i}.{block}.to_q" for stage, i in
                               (("down_blocks.1", 0), ("up_blocks.0", 1))], strict=True))  # fmt: skip
    got = given_by_peft(found.peft["unet"], dict.fromkeys(names.values(), (7, 9)))
    assert got == {names[name]: value for name, value in advised_of(found, modules).items()}


def test_a_fused_projection_gives_its_rank_and_scale_to_every_part_of_it():
    modules = {
        "unet.double_blocks.0.img_attn.qkv": a_module([5.0, 3.0, 0.1], 9216, 3072),
        "unet.single_blocks.0.linear1": a_module([5.0, 0.1], 21504, 3072, scale=2.0),
    }
    found = advise(modules, 0.02)
    names = [f"transformer_blocks.0.attn.to_{name}" for name in "qkv"]
    got = given_by_peft(
        found.peft["transformer"], dict.fromkeys([*names, "single_transformer_blocks.0.proj_mlp"], (4, 4))
    )
    advised = advised_of(found, modules)
    assert {got[name] for name in names} == {(2, 0.5)}
    assert got["single_transformer_blocks.0.proj_mlp"] == advised["unet.single_blocks.0.linear1"]


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        ({"unet.0": a_module([2.0]), "unet.1": a_module([1.0])}, "counts its modules"),
        ({"w_000": a_module([2.0])}, "counts its modules"),
        ({"unet.odd_block_to_q": replace(a_module([2.0]), dots_known=False)}, "--names-from"),
        ({"unet.middle_block.1.proj_in": a_module([2.0]), "unet.mid_block.attentions.0.proj_in": a_module([2.0])},
         "the same module under two names"),
    ],
)  # fmt: skip
def test_where_no_pattern_can_fit_it_says_so(modules, words):
    found = advise(modules)
    assert found.peft == {}
    assert words in found.no_patterns


def test_a_sequence_of_layers_is_no_list_of_numbers():
    assert advise({"0": a_module([2.0]), "1": a_module([1.0])}).peft.keys() == {"model"}


def test_what_is_untrained_needs_no_rank_and_nothing_at_all_is_told():
    modules = three()
    zero = LoraModule(torch.ones(2, 9), torch.zeros(7, 2))
    found = advise({**modules, "t.h.9.attn.q": zero})
    assert found.advised.ranks["t.h.9.attn.q"] == 0
    assert not any("9" in key for key in found.peft["model"]["rank_pattern"])
    with pytest.raises(LorabenchError, match="no module is trained"):
        advise({"q": zero})
    with pytest.raises(LorabenchError, match="rank 1 everywhere takes 61"):
        advise(modules, parameters=60)
    for loss in (-0.1, 1.0, math.nan):
        with pytest.raises(LorabenchError, match="a share of the energy"):
            advise(modules, loss)


@pytest.mark.parametrize("how", [{"loss": 0.05}, {"parameters": 150}])
def test_resize_does_what_is_advised(tmp_path, how):
    adapter = Adapter(tmp_path / "x", (), three())
    found = advise(adapter.modules, **how)
    smaller, receipt = resize(adapter, ResizeRule(**({"total_energy": 0.95} if "loss" in how else how)))
    assert {name: module.rank for name, module in smaller.modules.items()} == found.advised.ranks
    assert receipt.measured == pytest.approx(found.advised.error, rel=1e-5)


def blocks_of(ranks, scale=1.0):
    return block_ranks(ranks, dict.fromkeys(ranks, scale))[0]


def test_block_dims_are_placed_as_kohya_counts_the_blocks():
    """The way in, four stages down of three, the middle, four stages up of three."""
    down = [f"down_blocks.{i}.{part}" for i in range(4) for part in ("attentions.0", "attentions.1", "downsamplers.0")]
    up = [f"up_blocks.{i}.attentions.{j}" for i in range(4) for j in range(3)]
    for place, name in enumerate([None, *down[:11], "mid_block.attentions.0", *up]):
        if name is not None:
            blocks = blocks_of({f"unet.{name}.proj_in": 3, "text_encoder.text_model.encoder.layers.0.mlp.fc1": 9}, 0.5)
            assert blocks is not None
            assert [i for i, dim in enumerate(blocks.block_dims) if dim] == [place]
            assert [i for i, alpha in enumerate(blocks.block_alphas) if alpha == 1.5] == [place]
    for other in ("transformer.h.0.attn.c_attn", "text_encoder.text_model.encoder.layers.0.mlp.fc1"):
        blocks, why = block_ranks({other: 4}, {other: 1.0})
        assert blocks is None
        assert why


def test_every_block_keeps_its_scale_and_wide_convolutions_have_arguments_of_their_own():
    scales = {
        "unet.mid_block.attentions.0.proj_in": 0.5,
        "unet.mid_block.attentions.0.proj_out": 0.5,
        "unet.mid_block.resnets.1.time_emb_proj": 2.0,
        "unet.mid_block.resnets.1.conv1": 4.0,
        "unet.down_blocks.0.downsamplers.0.conv": 1.5,
        "unet.up_blocks.1.resnets.0.conv_shortcut": 3.0,
    }
    blocks, why = block_ranks(dict(zip(scales, (2, 6, 3, 5, 4, 7), strict=True)), scales)
    assert why == ""
    assert (blocks.block_dims[12], blocks.block_alphas[12]) == (6, 3.0)
    assert (blocks.conv_block_dims[12], blocks.conv_block_alphas[12]) == (5, 20.0)
    assert (blocks.conv_block_dims[3], blocks.conv_block_alphas[3], blocks.block_dims[3]) == (4, 6.0, 0)
    assert (blocks.block_dims[16], blocks.block_alphas[16]) == (7, 21.0)
    assert blocks.mixed == [12]
    plain = blocks_of({"unet.mid_block.attentions.0.proj_in": 2, "unet.down_blocks.0.attentions.0.proj_in": 0})
    assert (sum(plain.block_dims), plain.conv_block_dims, plain.mixed) == (2, None, [])
    assert [word.split("=")[0] for word in plain.network_args()] == ["block_dims", "block_alphas"]
    assert len(blocks.network_args()) == 4


@pytest.mark.parametrize(
    "name",
    [
        "unet.down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q",
        "unet.input_blocks.4.1.transformer_blocks.0.attn1.to_q",
        "unet.input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        "unet.middle_block.1.proj_in",
        "unet.output_blocks.0.1.proj_in",
    ],
)
def test_sdxl_is_not_numbered_as_sd_1(name):
    blocks, why = block_ranks({"unet.down_blocks.1.attentions.0.proj_in": 2, name: 4}, {})
    assert blocks is None
    assert "SDXL's, whose 23 blocks are numbered otherwise" in why


def test_sdxl_is_told_by_its_widths_too():
    shapes = {"to_k": (640, 2048), "to_v": (640, 2048), "to_q": (640, 640)}
    start = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2"
    modules = {f"{start}.{name}": a_module([2.0, 0.1], *shape) for name, shape in shapes.items()}
    found = advise(modules)
    assert found.blocks is None
    assert "Stable Diffusion XL" in found.no_blocks


def weights_of(modules, tmp_path, ratios):
    """A base whose ‖W‖ is ‖ΔW‖ over a ratio, of each module."""
    weights = {}
    for (name, module), ratio in zip(modules.items(), ratios, strict=True):
        weight = torch.from_numpy(np.random.default_rng(1).normal(size=module.shape))
        weights[f"{name}.weight"] = weight * (module.delta().norm() / ratio / weight.norm())
    save_file(weights, tmp_path / "base.safetensors")
    return BaseFile.open(tmp_path / "base.safetensors")


@pytest.mark.parametrize(
    ("ratios", "target"),
    [((0.6, 2.0, 40.0), 0.4), ((1e-6, 2e-5, 1.0), 2e-4), ((0.01, 0.2, 9.0), 0.2), ((0.4, 0.499, 0.5), 0.499)],
)
def test_the_scale_that_brings_the_median_into_the_band(ratios, target, tmp_path):
    modules = three()
    found = advise(modules, 0.02, base=weights_of(modules, tmp_path, ratios))
    scale = found.scale
    assert scale.median == pytest.approx(ratios[1], rel=1e-5)
    assert (scale.low, scale.high, scale.judged) == (1e-4, 0.5, 3)
    assert scale.factor == pytest.approx(target / ratios[1], rel=1e-5)
    assert scale.before == 0.5
    assert scale.after == pytest.approx(0.5 * target / ratios[1], rel=1e-5)
    plain, peft = advise(modules, 0.02), found.peft["model"]
    if scale.low <= ratios[1] <= scale.high:
        assert scale.factor == 1
        assert peft == plain.peft["model"]
    shapes = {name: module.shape for name, module in modules.items()}
    got = given_by_peft(peft, shapes)
    assert {name: rank for name, (rank, _) in got.items()} == plain.advised.ranks
    assert [scaling for _, scaling in got.values()] == pytest.approx([scale.after] * 3)
    assert plain.scale is None


@pytest.mark.parametrize("ratio", [3.0, 1e-6])
def test_at_the_scale_that_is_advised_no_rule_speaks(ratio, tmp_path):
    modules, rules = three(), ["scale_too_large", "scale_too_small"]
    base = weights_of(modules, tmp_path, [ratio] * 3)
    factor = advise(modules, base=base).scale.factor

    def said(rescaled):
        rows = against_base(module_metrics(rescaled), rescaled, base)
        return Watch(read_thresholds(), rules).look(Snapshot(None, {row.module: row for row in rows}))

    assert said(modules)
    assert not said({name: replace(module, scale=module.scale * factor) for name, module in modules.items()})


def test_a_base_that_says_nothing_is_told(tmp_path):
    modules = three()
    save_file({f"{name}.weight": torch.zeros(one.shape) for name, one in modules.items()}, tmp_path / "b.safetensors")
    with pytest.raises(LorabenchError, match="every weight of the adapter's modules is zero"):
        advise(modules, base=BaseFile.open(tmp_path / "b.safetensors"))
    save_file({"other.weight": torch.ones(3, 3)}, tmp_path / "c.safetensors")
    with pytest.raises(MisfitError):
        advise(modules, base=BaseFile.open(tmp_path / "c.safetensors"))


def printed(capsys, *words):
    """What a command says, which has to succeed."""
    code = main([str(word) for word in words])
    said = capsys.readouterr()
    assert code == 0, said.err
    return said.out


@pytest.mark.parametrize("how", [("--loss", "1e-7"), ("--loss", "0.05"), ("--loss", "0"), ("--parameters", "150")])
@pytest.mark.parametrize("name", ["it's a style.safetensors", "-style.safetensors"])
def test_the_printed_command_is_the_one_that_was_meant(how, name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    modules = three() | {"t.h.1.attn.q": a_module([5.0, 3.0, 1e-4, 1e-5], seed=4)}
    save(tmp_path / name, modules, "diffusers")
    found = json.loads(printed(capsys, "advise", f"./{name}", *how, "--json"))
    text = printed(capsys, "advise", f"./{name}", *how)
    assert found["command"] in text
    program, *words = shlex.split(found["command"])
    assert program == "lorabench-adapter"
    words[words.index("SMALLER")] = "small.safetensors"
    receipt = json.loads(printed(capsys, *words, "--json"))
    small = {name: module.rank for name, module in load(tmp_path / "small.safetensors").modules.items()}
    assert small == found["advised"]["ranks"]
    assert receipt["measured"] == pytest.approx(found["advised"]["error"], rel=1e-3, abs=1e-6)


def test_the_file_that_is_written_is_what_each_trainer_takes(tmp_path, capsys):
    adapter, ranks, blocks = (tmp_path / name for name in ("a.safetensors", "ranks.json", "blocks.toml"))
    save(adapter, {f"unet.{name}": module for name, module in UNET.items()}, "kohya")
    said = printed(capsys, "advise", adapter, "-o", ranks)
    printed(capsys, "advise", adapter, "-o", blocks)
    found = json.loads(printed(capsys, "advise", adapter, "--json"))
    assert json.loads(ranks.read_text()) == found["peft"]
    args = tomllib.loads(blocks.read_text())["network_args"]
    assert f"--network_args {shlex.join(args)}" in said
    told = {key: [float(number) for number in values.split(",")] for key, values in (arg.split("=") for arg in args)}
    assert told == {key: found["blocks"][key] for key in ("block_dims", "block_alphas")}
    assert found["blocks"]["block_alphas"][12] / found["blocks"]["block_dims"][12] == 0.5
    # Flattened names and one place alone: nothing else is written where that cannot be.
    save_file({"unet:0:up": torch.ones(7, 2), "unet:0:down": torch.ones(2, 9)}, tmp_path / "list.safetensors")
    for out, words in (("no.json", "counts its modules"), ("no.toml", "block_dims cannot be written")):
        assert main(["advise", str(tmp_path / "list.safetensors"), "-o", str(tmp_path / out)]) == 1
        assert words in capsys.readouterr().err
        assert not (tmp_path / out).exists()
    assert "PEFT: no patterns; the file counts its modules" in printed(capsys, "advise", tmp_path / "list.safetensors")


@pytest.mark.parametrize(("ratio", "words"), [(0.1, "no change of α/r"), (5.0, "α/r = 0.04 is advised for 0.5")])
def test_the_command_says_what_the_base_asks_for(ratio, words, tmp_path, capsys):
    base = weights_of(three(), tmp_path, [ratio] * 3).where
    save(tmp_path / "a", three(), "peft")
    said = printed(capsys, "advise", tmp_path / "a", "--base", base)
    assert words in said
    assert f"‖ΔW‖/‖W‖ of 3 modules is {ratio:.3g}, and 0.0001 to 0.5 is healthy" in said
    assert "a rule of thumb" in said
    assert "this project's own: an update of half the base's norm" in said
    scale = json.loads(printed(capsys, "advise", tmp_path / "a", "--base", base, "--json"))["scale"]
    assert scale["median"] == pytest.approx(ratio, rel=1e-5)


@pytest.mark.slow
def test_the_command_writes_what_peft_takes_and_names_what_resizes(tmp_path):
    file, ranks, small = (tmp_path / name for name in ("a.safetensors", "ranks.json", "small.safetensors"))
    save(file, Adapter(file, (), three()), "diffusers")
    said = run("advise", str(file), "--loss", "0.05", "-o", str(ranks)).stdout
    assert "one threshold" in said
    written = json.loads(ranks.read_text())
    assert written.keys() == {"r", "lora_alpha", "rank_pattern", "alpha_pattern"}
    found = json.loads(run("advise", str(file), "--loss", "0.05", "--json").stdout)
    assert found["peft"] == {"model": written}
    words = re.search(r"lorabench-adapter (resize .*) -o SMALLER", said)
    assert words is not None
    assert run(*shlex.split(words[1]), "-o", str(small)).returncode == 0
    resized = {name: module.rank for name, module in load(small).modules.items()}
    assert resized == found["advised"]["ranks"]
    assert run("advise", str(file), "-o", str(ranks)).returncode == 1
    assert run("advise", str(file), "--loss", "1.5").returncode == 2
    assert run("advise", str(file), "--loss", "0.1", "--parameters", "100").returncode == 2
