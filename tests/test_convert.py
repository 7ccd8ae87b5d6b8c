"""`convert`: the same ΔW in every layout, what is refused, and what is said."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from lorabench.adapters import Adapter, LoraModule, load, save
from lorabench.adapters.__main__ import main
from lorabench.adapters.comparing.deviation import deviations
from lorabench.adapters.names.unet import diffusers_unet_name
from lorabench.adapters.writing.converting import convert, prepare
from lorabench.errors import LorabenchError
from tests.real_adapters import SHARED, index, real

LAYOUTS = ("diffusers", "peft", "kohya")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def _pair(d_out: int = 4, d_in: int = 5, rank: int = 2, scale: float = 1.0, **kind: Any) -> LoraModule:
    return LoraModule(torch.randn(rank, d_in), torch.randn(d_out, rank), scale, **kind)


def _delta(module: LoraModule) -> np.ndarray:
    return module.scale * (module.up.double().numpy() @ module.down.double().numpy())


def _adapter(modules: dict[str, LoraModule], *schemes: str, **more: Any) -> Adapter:
    return Adapter(Path("x.safetensors"), schemes or ("diffusers",), modules, **more)


def _target(folder: Path, layout: str) -> Path:
    return folder / (layout if layout == "peft" else f"{layout}.safetensors")


MODULES = {
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0": (4, 5, 3, 0.5, ()),
    "unet.mid_block.attentions.0.proj_in": (6, 5, 1, -1 / 3, (1, 1)),
    "unet.conv_in": (4, 27, 2, 2.0, (3, 3)),
    "text_encoder.text_model.encoder.layers.10.self_attn.q_proj": (3, 3, 4, 1.0, ()),  # rank over both sides
    "text_encoder_2.text_model.encoder.layers.2.mlp.fc1": (4, 5, 2, 0.0, ()),
}


def _several() -> dict[str, LoraModule]:
    return {name: _pair(*sizes[:4], kernel=sizes[4]) for name, sizes in MODULES.items()}


@pytest.mark.parametrize("source", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dtype", "eps"), [(None, 2**-23), ("float16", 2**-10), ("bfloat16", 2**-7)])
def test_every_way_keeps_delta(
    tmp_path: Path, source: str, layout: str, dtype: str | None, eps: float, capsys: pytest.CaptureFixture[str]
) -> None:
    modules = _several()
    given = save(_target(tmp_path / "in", source), modules, source)
    out = _target(tmp_path / "out", layout)
    wish = ["--dtype", dtype] if dtype else []
    assert main(["convert", str(given), "-o", str(out), "--to", layout, "--json", *wish]) == 0
    said = json.loads(capsys.readouterr().out)
    back = load(out)
    assert list(back.modules) == list(modules) == list(said["relative_error"])
    for name, module in modules.items():
        found = back.modules[name]
        assert found.kernel == module.kernel
        size = np.linalg.norm(_delta(module))
        error = np.linalg.norm(_delta(found) - _delta(module)) / size if size else 0.0
        assert error <= 2 * eps
        # what was measured by r×r algebra is what dense matrices say (of the file read, which rounded once too)
        assert said["relative_error"][name] == pytest.approx(error, rel=0.02, abs=3 * 2**-23)
    assert said["worst"]["relative_error"] == max(said["relative_error"].values())
    assert said["dtype"] == [dtype or "float32"]
    assert said["modules"] == len(modules)


@given(
    rank=st.integers(1, 12),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    scale=st.sampled_from([1.0, -0.5, 1e-3, 300.0, 0.0]),
    change=st.sampled_from(["half", "bfloat16", "nothing", "other", "shifted", "zero"]),
    seed=st.integers(0, 999),
)
@settings(deadline=None, max_examples=150)
def test_measured_errors_are_those_of_dense_matrices(
    rank: int, shape: tuple[int, int], scale: float, change: str, seed: int
) -> None:
    torch.manual_seed(seed)
    before = _pair(*shape, rank, scale)
    down, up = before.down, before.up
    after = {
        "half": lambda: LoraModule(down.half().float(), (scale * up).half().float()),
        "bfloat16": lambda: LoraModule(down.bfloat16().float(), up.bfloat16().float(), scale),
        "nothing": lambda: before,
        "other": lambda: _pair(*shape, rank, 2.0),
        "shifted": lambda: LoraModule((down * 2.0**-9).half().float(), (up * 2.0**9).half().float(), scale),
        "zero": lambda: LoraModule(torch.zeros_like(down), up, scale),
    }[change]()
    found = deviations({"q": before}, {"q": after})["q"].error
    whole = np.linalg.norm(_delta(before))
    error = np.linalg.norm(_delta(after) - _delta(before))
    if whole == 0:
        assert found == (np.inf if error else 0.0)
    else:
        # cancellation inside ΔW itself is the one thing that limits it
        size = abs(scale) * float(up.norm() * down.norm()) + abs(after.scale) * float(
            after.up.norm() * after.down.norm()
        )
        assert found == pytest.approx(error / whole, rel=1e-6, abs=1e-8 * size / whole)


def test_errors_under_the_gram_matrices_own_rounding_are_still_seen() -> None:
    before = _pair(40, 50, 8)
    after = LoraModule(before.down, before.up * (1 + 2**-22))
    error = np.linalg.norm(_delta(after) - _delta(before)) / np.linalg.norm(_delta(before))
    assert deviations({"q": before}, {"q": after})["q"].error == pytest.approx(error, rel=1e-6)


def test_dora_is_refused_unless_dropped() -> None:
    key = "base_model.model.q.lora_magnitude_vector"
    adapter = _adapter({"q": _pair(kind="dora"), "k": _pair()}, "peft", unsupported={"dora": (key,)})
    with pytest.raises(LorabenchError, match=r"1 modules have a DoRA magnitude.*: q\. Say --drop-dora"):
        convert(adapter, "peft", drop_unsupported=True)
    found = convert(adapter, "peft", drop_dora=True)
    assert found.dropped == {"dora": (key,)}
    assert {module.kind for module in found.adapter.modules.values()} == {"lora"}
    assert found.adapter.unsupported == {}
    assert any(key in note for note in found.notes)


def test_what_is_no_pair_is_refused_unless_dropped() -> None:
    unsupported = {"full_weight": ("head.weight",), "bias": ("head.bias",), "textual_inversion": ("<s1>", "<s2>")}
    adapter = _adapter({"q": _pair()}, "peft", unsupported=unsupported)
    with pytest.raises(LorabenchError, match=r"full_weight: head\.weight; bias: .*<s1>, <s2>.*--drop-unsupported"):
        convert(adapter, "peft", drop_dora=True)
    found = convert(adapter, "peft", drop_unsupported=True)
    assert found.dropped == unsupported
    assert sum("left out" in note for note in found.notes) == 3


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
def test_embeddings_are_refused_by_name(layout: str) -> None:
    adapter = _adapter({"q": _pair(), "wte": _pair(embedding=True)}, "peft")
    with pytest.raises(LorabenchError, match=rf"the {layout} layout has no place .*\(wte\)"):
        convert(adapter, layout)
    assert convert(adapter, "peft").adapter.modules["wte"].embedding


def test_unknown_layouts_and_components_are_refused() -> None:
    with pytest.raises(
        LorabenchError, match="layout='mlx': allowed are peft, diffusers, diffusers-peft, comfyui, kohya"
    ):
        convert(_adapter({"q": _pair()}), "mlx")
    with pytest.raises(LorabenchError, match="component='vae'"):
        convert(_adapter({"q": _pair()}), "kohya", component="vae")


def test_a_component_is_added() -> None:
    adapter = _adapter({"mid_block.attentions.0.proj_in": _pair(), "unet.conv_in": _pair()}, "peft")
    found = convert(adapter, "kohya", component="unet")
    assert list(found.adapter.modules) == list(found.before) == ["unet.mid_block.attentions.0.proj_in", "unet.conv_in"]
    with pytest.raises(LorabenchError, match="belong to unet already, not to text_encoder"):
        convert(adapter, "diffusers", component="text_encoder")


def test_a_component_is_taken_out_for_peft() -> None:
    adapter = _adapter({"unet.conv_in": _pair(), "text_encoder.text_model.x": _pair(), "unet.conv_out": _pair()})
    found = convert(adapter, "peft", component="unet")
    assert list(found.adapter.modules) == ["conv_in", "conv_out"]
    assert "1 modules of text_encoder are left out: convert those to folders of their own" in found.notes
    with pytest.raises(LorabenchError, match="no module of transformer in it, only of text_encoder, unet"):
        convert(adapter, "peft", component="transformer")
    bare = _adapter({"conv_in": _pair()}, "peft")
    assert list(convert(bare, "peft", component="unet").adapter.modules) == ["conv_in"]
    mixed = _adapter({"conv_in": _pair(), "unet.conv_out": _pair()}, "peft")
    found = convert(mixed, "peft", component="unet")
    assert list(found.adapter.modules) == ["conv_out"]
    assert any(note.startswith("1 modules of model are left out") for note in found.notes)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("unet.input_blocks.4.1.x.1.attn2.to_v", "unet.down_blocks.1.attentions.0.x.1.attn2.to_v"),
        ("unet.input_blocks.6.0.op", "unet.down_blocks.1.downsamplers.0.conv"),
        ("unet.input_blocks.11.0.in_layers.2", "unet.down_blocks.3.resnets.1.conv1"),  # SD 1
        ("unet.output_blocks.5.2.conv", "unet.up_blocks.1.upsamplers.0.conv"),
        ("unet.output_blocks.2.1.conv", "unet.up_blocks.0.upsamplers.0.conv"),  # SD 1: no attention there
        ("unet.output_blocks.11.1.proj_out", "unet.up_blocks.3.attentions.2.proj_out"),
        ("unet.middle_block.1.proj_in", "unet.mid_block.attentions.0.proj_in"),
        ("unet.middle_block.2.emb_layers.1", "unet.mid_block.resnets.1.time_emb_proj"),
        ("unet.out.2", "unet.conv_out"),
        ("unet.label_emb.0.2", "unet.add_embedding.linear_2"),
        ("unet.down_blocks.0.resnets.0.conv1", "unet.down_blocks.0.resnets.0.conv1"),
        ("unet.outer.2", "unet.outer.2"),
        ("transformer.input_blocks.4.1.x", "transformer.input_blocks.4.1.x"),
        ("input_blocks.4.1.x", "input_blocks.4.1.x"),
    ],
)  # fmt: skip
def test_names_of_the_original_unet(old: str, new: str) -> None:
    assert diffusers_unet_name(old) == new


def test_kohyas_sdxl_names_become_those_of_diffusers(tmp_path: Path) -> None:
    old = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    tensors = {f"{old}.lora_down.weight": torch.randn(2, 5), f"{old}.lora_up.weight": torch.randn(4, 2)}
    save_file(tensors | {f"{old}.alpha": torch.tensor(1.0)}, tmp_path / "a.safetensors")
    adapter = load(tmp_path / "a.safetensors")
    new = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    for layout in ("diffusers", "peft"):
        found = convert(adapter, layout)
        assert list(found.adapter.modules) == [new]
        assert "1 modules of the original U-Net (input_blocks, ...) got diffusers' names" in found.notes
    assert list(convert(adapter, "kohya").adapter.modules) == list(adapter.modules)  # both are known there
    both = _adapter({**adapter.modules, new: _pair()}, "kohya")
    with pytest.raises(LorabenchError, match=rf"two modules would get one name \({new}\)"):
        convert(both, "diffusers")


@pytest.mark.parametrize("stem", ["unet.", ""])
def test_a_component_of_the_original_unet_is_renamed_before_it_loses_its_prefix(stem: str) -> None:
    old = f"{stem}input_blocks.4.1.transformer_blocks.0.attn1.to_q"
    new = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    modules = {old: _pair(), f"{stem}output_blocks.5.2.conv": _pair()}
    found = convert(_adapter(modules, "kohya"), "peft", component="unet")
    assert list(found.adapter.modules) == list(found.before) == [new, "up_blocks.1.upsamplers.0.conv"]
    assert found.before[new] is modules[old]
    assert any("2 modules of the original U-Net" in note for note in found.notes)


def test_fan_in_fan_out_is_refused_where_it_cannot_be_said() -> None:
    adapter = _adapter({"h.0": _pair()}, "peft", config={"fan_in_fan_out": True, "r": 2})
    for layout in ("kohya", "diffusers"):
        with pytest.raises(
            LorabenchError, match=rf"fan_in_fan_out .*{layout} layout cannot say.*--drop-fan-in-fan-out"
        ):
            convert(adapter, layout)
        with pytest.raises(LorabenchError, match="--drop-fan-in-fan-out"):
            prepare(adapter, layout)
        found = convert(adapter, layout, drop_fan_in_fan_out=True)
        assert any("left out: fan_in_fan_out" in note for note in found.notes)
        assert found.adapter.config == {"r": 2}
        assert torch.equal(found.adapter.modules["h.0"].up, adapter.modules["h.0"].up)  # the factors lie as they lay
    assert convert(adapter, "peft").adapter.config["fan_in_fan_out"]
    assert prepare(adapter).adapter.config["fan_in_fan_out"]


def test_clip_gets_the_level_that_loaders_expect() -> None:
    adapter = _adapter({"encoder.layers.0.self_attn.q_proj": _pair(), "encoder.block.0.q": _pair()}, "peft")
    found = convert(adapter, "kohya", component="text_encoder")
    assert list(found.adapter.modules) == [
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
        "text_encoder.encoder.block.0.q",
    ]


SD1_KEY = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
SD1_PROJ = "unet.mid_block.attentions.0.proj_in"


@pytest.mark.parametrize(
    ("layout", "modules", "more", "note"),
    [
        ("kohya", {"model.layers.0.q_proj": _pair()}, {}, "1 modules name no part of a pipeline"),
        ("diffusers", {"model.layers.0.q_proj": _pair()}, {}, "say --component unet"),
        ("peft", {"unet.conv_in": _pair()}, {}, "say --component unet"),
        ("peft", {"text_model.encoder.x": _pair()}, {}, "transformers 5"),
        ("diffusers", {"unet.conv_in": _pair(scale=2.0)}, {}, "the scale of 1 modules is multiplied into up"),
        ("diffusers", {"unet.a": _pair(), "unet.b": _pair(rank=3)}, {}, "ranks differ (2 to 3)"),
        ("kohya", {"unet.a": _pair(), "unet.b": _pair(rank=3)}, {}, "alphas differ"),
        ("diffusers", {"transformer.double_blocks.0.img_attn.qkv": _pair()}, {}, "only takes from a kohya file"),
        ("peft", {"h.0": _pair(kind="lokr", rank=4)}, {}, "1 modules of kind lokr are written as"),
        ("kohya", {"unet.conv_out": _pair(kind="loha")}, {}, "named as convolutions are (unet.conv_out)"),
        ("kohya", {"unet.output_blocks.2.0.skip_connection": _pair(kind="lokr")}, {}, "named as convolutions are"),
        ("kohya", {SD1_KEY: _pair(d_in=768), SD1_PROJ: _pair(kind="loha")}, {}, f"convolutions are ({SD1_PROJ})"),
        ("kohya", {"unet.a.b": _pair(), "unet.a_b": _pair()}, {}, "2 modules keep their dots"),
        ("peft", {f"h.{i}": _pair(assumed=("no alpha",)) for i in (0, 1)}, {}, "no alpha (2 modules)"),
    ],
)  # fmt: skip
def test_what_a_reader_should_know_is_said(layout: str, modules: Any, more: Any, note: str) -> None:
    found = convert(_adapter(modules, "other", **more), layout)
    assert any(note in text for text in found.notes), found.notes
    plain = convert(_adapter({"unet.conv_in": _pair()}, "kohya"), "kohya")
    assert plain.notes == ()


@pytest.mark.parametrize("kind", ["dora", "adalora", "one of one's own"])
def test_only_kinds_without_windows_are_told_of_for_them(kind: str) -> None:
    found = convert(_adapter({"unet.conv_in": _pair(kind=kind)}, "kohya"), "kohya", drop_dora=True)
    assert not any("window" in note for note in found.notes), found.notes


@pytest.mark.parametrize("other", ["text_encoder.2.a.b", "unet_a.b"])
def test_names_that_stay_apart_are_told_nothing_of(other: str) -> None:
    found = convert(_adapter({"text_encoder_2.a.b": _pair(), "unet.a.b": _pair(), other: _pair()}, "kohya"), "kohya")
    assert not any("keep their dots" in note for note in found.notes), found.notes


def test_positions_are_no_names() -> None:
    found = convert(_adapter({"unet.0": _pair()}, "cloneofsimo"), "diffusers")
    assert any("counts its modules" in note for note in found.notes)


def test_an_lokr_file_becomes_an_ordinary_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """ΔW = α/r · kron(w1, w2_a @ w2_b), in real LyCORIS keys."""
    w1, a, b = torch.randn(2, 2), torch.randn(3, 2), torch.randn(2, 4)
    stem = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {
        f"{stem}.lokr_w1": w1,
        f"{stem}.lokr_w2_a": a,
        f"{stem}.lokr_w2_b": b,
        f"{stem}.alpha": torch.tensor(1.0),
    }
    metadata = {"ss_network_args": '{"algo": "lokr", "factor": "8"}', "ss_network_dim": "2"}
    save_file(tensors, tmp_path / "a.safetensors", metadata)
    assert (
        main(["convert", str(tmp_path / "a.safetensors"), "-o", str(tmp_path / "b.safetensors"), "--to", "kohya"]) == 0
    )
    assert "kind lokr" in capsys.readouterr().out
    back = load(tmp_path / "b.safetensors")
    expected = 0.5 * np.kron(w1.double().numpy(), (a.double() @ b.double()).numpy())
    module = back.modules["unet.mid_block.attentions.0.proj_in"]
    np.testing.assert_allclose(_delta(module), expected, rtol=1e-5, atol=1e-5)
    assert json.loads(back.metadata["ss_network_args"]) == {"algo": "lora"}
    assert back.metadata["ss_network_dim"] == str(module.rank)


def test_the_command_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = save(tmp_path / "in.safetensors", _several(), "kohya")
    out = tmp_path / "out"
    command = ["convert", str(given), "-o", str(out), "--to", "peft", "--component", "unet", "--dtype", "float16"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{out}: peft layout, float16, 3 modules"
    assert lines[2].split("  ")[0] == "component"
    assert lines[4].split()[:2] == ["model", "3"]
    assert lines[-1] == (
        "note: 2 modules of text_encoder, text_encoder_2 are left out: convert those to folders of their own"
    )
    assert load(out).metadata["lorabench_converted_from"] == "kohya"
    assert main(command) == 1
    assert "exists already" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0
    # over the input itself, in another layout
    assert main(["convert", str(given), "-o", str(given), "--to", "diffusers", "--force"]) == 0
    assert load(given).schemes == ("diffusers",)


def test_nothing_is_written_where_something_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = {"q.lora_A.weight": torch.ones(2, 5), "q.lora_B.weight": torch.ones(4, 2), "head.weight": torch.ones(3)}
    save_file(tensors, tmp_path / "a.safetensors")
    command = [
        "convert",
        str(tmp_path / "a.safetensors"),
        "-o",
        str(tmp_path / "new" / "b.safetensors"),
        "--to",
        "kohya",
    ]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "full_weight: head.weight" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()
    assert main([*command, "--drop-unsupported"]) == 0
    assert "left out: full_weight (1: head.weight)" in capsys.readouterr().out


@pytest.mark.slow
def test_as_a_user_calls_it(tmp_path: Path) -> None:
    given = save(tmp_path / "in", {"unet.conv_in": _pair(scale=0.5)}, "peft")
    command = [sys.executable, "-m", "lorabench.adapters", "convert", str(given), "-o", str(tmp_path / "o.safetensors")]
    wrong = subprocess.run([*command, "--to", "mlx"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    right = subprocess.run([*command, "--to", "diffusers"], capture_output=True, text=True, check=False)
    assert (right.returncode, right.stderr) == (0, "")
    assert "worst: unet.conv_in (0, measured on the file that was written)" in right.stdout


@pytest.mark.slow
def test_every_real_file_goes_into_every_layout(tmp_path: Path) -> None:
    done = 0
    firsts = {row["repository"]: row for row in reversed(index())}  # one file of each repository
    for row in firsts.values():
        try:
            adapter = load(real(row["path"]))
        except LorabenchError:
            continue  # test_files holds that against the index
        for layout in LAYOUTS:
            if layout != "peft" and any(module.embedding for module in adapter.modules.values()):
                continue
            found = convert(adapter, layout, drop_dora=True, drop_unsupported=True, drop_fan_in_fan_out=True)
            path = save(_target(tmp_path / str(done), layout), found.adapter, layout, dtype="stored")
            errors = {name: one.error for name, one in deviations(found.before, load(path).modules).items()}
            eps = max(2**-23 if m.dtype == torch.float32 else 2**-10 for m in adapter.modules.values())
            assert max(errors.values()) <= 2 * eps, row["path"]
            done += 1
    assert done > (110 if SHARED.is_dir() else 60)


def test_a_merged_projection_without_its_place_is_not_written(tmp_path: Path) -> None:
    """Nobody knows which rows of the layer it changes: a file of it could not be loaded."""
    tensors = {"q.lora_A": torch.randn(4, 6), "q.lora_B": torch.randn(8, 2, 1)}
    torch.save(tensors, tmp_path / "x.bin")
    adapter = load(tmp_path / "x.bin")
    for layout in ("peft", "diffusers", "kohya"):
        with pytest.raises(LorabenchError, match=r"1 modules are merged projections.*\(q\).*Add enable_lora"):
            convert(adapter, layout)
        with pytest.raises(LorabenchError, match="merged projections"):
            prepare(adapter, layout)
