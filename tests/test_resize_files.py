"""Limits and budgets of a resize, and its command line, on files."""

import itertools
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lorabench.adapters.__main__ import main
from lorabench.adapters.adapter import Adapter
from lorabench.adapters.comparing.deviation import deviations, total
from lorabench.adapters.reading.files import load
from lorabench.adapters.resizing.checks import validate
from lorabench.adapters.resizing.ranks import budget_ranks, limits_by_module
from lorabench.adapters.resizing.rule import ResizeRule
from lorabench.adapters.resizing.whole import RESIZE_KEY, resize
from lorabench.adapters.writing.converting import prepare
from lorabench.adapters.writing.saving import LAYOUTS, save
from lorabench.errors import LorabenchError
from tests.real_adapters import real_files
from tests.resize_modules import TEXT, UNET, apart, dense, make, one, tail

# Limits


def test_limits_hold_by_part_module_and_pattern() -> None:
    names = {UNET: 8, "unet.up_blocks.1.attn2.to_k": 8, TEXT: 8}
    modules = {name: make(i, rank, 20, 20) for i, (name, rank) in enumerate(names.items())}
    adapter = Adapter(Path("x"), ("kohya",), modules)
    resized, _ = resize(adapter, ResizeRule(rank=6, limits={"text_encoder": 2, "*.attn2.*": 4, "unet": 5}))
    assert {name: module.rank for name, module in resized.modules.items()} == dict(zip(names, (5, 4, 2), strict=True))
    resized, _ = resize(adapter, ResizeRule(energy=1.0, limits={TEXT: 3}, max_rank=7))
    assert [module.rank for module in resized.modules.values()] == [7, 7, 3]
    resized, _ = resize(adapter, ResizeRule(energy=0.01, min_rank=3))
    assert [module.rank for module in resized.modules.values()] == [3, 3, 3]
    with pytest.raises(LorabenchError, match=r"limits\['text_encoder_2'\] fits no module. Give a part \(text_encoder"):
        limits_by_module(names, {"text_encoder_2": 3})


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({}, "exactly one of rank, .*; none came"),
        ({"rank": 2, "energy": 0.5}, r"rank=2 \(--rank 2\), energy=0.5 \(--energy 0.5\) came"),
        ({"rank": 0}, r"rank=0 \(--rank 0\): a rank is a whole number"),
        ({"rank": True}, "rank=True"),
        ({"pad": 2}, r"pad=2 \(--pad 2\) is below the rank 4 of unet.0.to_q"),
        ({"pad": 8, "limits": {"unet": 6}}, r"limits \(--limit\) do not go with pad"),
        ({"sv_ratio": 0.5}, r"\(--sv-ratio 0.5\): a ratio from 1 on"),
        ({"energy": 1.5}, r"energy=1.5 \(--energy 1.5\): a share"),
        ({"sv_fro": math.nan}, r"sv_fro=nan \(--sv-fro nan\): a share"),
        ({"sv_cumulative": 0}, r"\(--sv-cumulative 0\): a share"),
        ({"size_mib": -1.0}, r"size_mib=-1.0 \(--size-mib -1\): a size"),
        ({"size_mib": 1e-5}, "The smallest file of this adapter has"),
        ({"energy": 0.9, "min_rank": 4, "max_rank": 3}, r"min_rank=4 \(--min-rank 4\) is above a limit of 3"),
        ({"energy": 0.9, "min_rank": 4, "limits": {"unet": 2}}, "is above a limit of 2"),
        ({"energy": 0.9, "limits": {"unet": 0}}, r"limits\['unet'\]=0 \(--limit unet=0\): a rank"),
        ({"rank": 2, "max_rank": 3}, r"min_rank and max_rank \(--min-rank, --max-rank\) do not go with rank=2"),
        ({"energy": 0.9, "kohya_counts": True}, r"kohya_counts \(--kohya-counts\) goes with sv_ratio"),
    ],
)
def test_wrong_arguments_are_named(how: dict[str, object], message: str) -> None:
    with pytest.raises(LorabenchError, match=message):
        one(make(0, 4, 9, 8), **how)


# A budget of bytes


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 9999),
    costs=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    budget=st.integers(0, 60),
    alike=st.booleans(),
)
def test_a_budget_is_spent_best(seed: int, costs: list[int], budget: int, alike: bool) -> None:
    random = np.random.default_rng(seed)
    cost = {str(i): costs[0] if alike else c for i, c in enumerate(costs)}
    spectra = {name: torch.from_numpy(np.sort(random.exponential(size=4))[::-1].copy()) for name in cost}
    bounds = dict.fromkeys(cost, (1, 4))

    def loss(ranks: dict[str, int]) -> float:
        return sum(float(spectra[name][rank:].square().sum()) for name, rank in ranks.items())

    def size(ranks: dict[str, int]) -> int:
        return sum(cost[name] * rank for name, rank in ranks.items())

    every = [dict(zip(cost, ranks, strict=True)) for ranks in itertools.product(range(1, 5), repeat=len(cost))]
    if sum(cost.values()) > budget:
        with pytest.raises(LorabenchError, match=f"need {sum(cost.values()) - budget} bytes more"):
            budget_ranks(spectra, cost, bounds, budget)
        return
    found = budget_ranks(spectra, cost, bounds, budget)
    assert size(found) <= budget
    best = min(loss(ranks) for ranks in every if size(ranks) <= budget)
    if alike:
        assert loss(found) == pytest.approx(best)
    nearly = [loss(ranks) for ranks in every if size(ranks) <= budget - max(cost.values())]
    assert loss(found) <= min(nearly, default=math.inf) + 1e-12
    assert loss(found) >= best - 1e-12


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_size_is_kept_and_used(tmp_path: Path, layout: str) -> None:
    modules = {f"unet.blocks.{i}.to_q": make(i, 16, 96, 64, dtype=torch.float16) for i in range(6)}
    modules |= {TEXT: make(9, 16, 32, 32, 5.0, dtype=torch.float32)}
    adapter = Adapter(Path("x"), (), modules, {"note": "x" * 300})
    for size, dtype in ((0.02, None), (0.03, None), (0.0234, torch.bfloat16)):
        resized, receipt = resize(adapter, ResizeRule(size_mib=size), layout=layout, dtype=dtype)
        path = tmp_path / f"{size}" / ("a" if layout == "peft" else "a.safetensors")
        save(path, resized, layout, dtype="stored")
        file = path / "adapter_model.safetensors" if layout == "peft" else path
        step = (96 + 64) * 4
        slack = 9 * 3 * len(modules) + 1024
        assert size * 2**20 - step - slack < file.stat().st_size <= size * 2**20
        fixed, same = resize(adapter, ResizeRule(rank=max(1, int(np.mean([m.new_rank for m in receipt.modules])))))
        if same.weight_bytes <= receipt.weight_bytes:  # one rank for all that fits is no better
            assert receipt.predicted <= total(deviations(modules, fixed.modules)).relative
    everything, receipt = resize(adapter, ResizeRule(size_mib=10), layout=layout)
    assert [module.rank for module in everything.modules.values()] == [16] * 7
    assert any("everything fits" in note for note in receipt.notes)
    for name, module in modules.items():  # not one bit of a factor is touched where nothing need go
        assert torch.equal(everything.modules[name].down, module.down.to(module.dtype).float())
        assert torch.equal(everything.modules[name].up, module.up.to(module.dtype).float())


# Files


def write(path: Path, layout: str = "kohya", dtype: torch.dtype = torch.float16) -> Adapter:
    modules = {UNET: make(0, 8, 40, 30, 0.5, dtype=dtype), TEXT: make(1, 4, 20, 20, 1.0, dtype=dtype)}
    modules["unet.conv_in"] = make(2, 8, 16, 8 * 9, -0.25, dtype=dtype, kernel=(3, 3))
    save(path, Adapter(path, (layout,), modules, {"ss_output_name": "mine"}), layout, dtype="stored")
    return load(path)


def test_the_command_writes_what_it_says(tmp_path: Path) -> None:
    before = write(tmp_path / "in.safetensors")
    out = tmp_path / "out.safetensors"
    command = [sys.executable, "-m", "lorabench.adapters", "resize", str(before.path), "-o", str(out), "--rank", "3"]
    done = subprocess.run([*command, "--limit", "text_encoder=2", "--json"], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    after = load(out)
    assert {name: module.rank for name, module in after.modules.items()} == {UNET: 3, TEXT: 2, "unet.conv_in": 3}
    for receipt in found["modules"]:
        old, new = before.modules[receipt["module"]], after.modules[receipt["module"]]
        assert receipt["measured"] == pytest.approx(apart(old, new), rel=1e-6)
        assert receipt["predicted"] == pytest.approx(tail(old, new.rank), rel=1e-9)
        assert (new.scale, new.alpha, new.dtype) == (old.scale, old.scale * new.rank, torch.float16)
        assert new.kernel == old.kernel
    assert found["bytes_after"] == out.stat().st_size < found["bytes_before"] == before.path.stat().st_size
    assert [m["measured"] for m in found["modules"]] == sorted((m["measured"] for m in found["modules"]), reverse=True)
    assert found["worst"] == found["modules"][0]["module"]
    assert after.metadata["ss_output_name"] == "mine"
    assert json.loads(after.metadata[RESIZE_KEY])["value"] == 3


def test_the_table_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = write(tmp_path / "in.safetensors")
    assert main(["resize", str(before.path), "--truncate", "3", "--dry-run", "--worst", "2"]) == 0
    text = capsys.readouterr().out
    assert "truncate 3, predicted, nothing written" in text
    assert "text_encoder" in text
    assert "optimal at these ranks" in text
    assert "nothing written; new weights alone" in text
    assert [path.name for path in tmp_path.iterdir()] == ["in.safetensors"]


def test_a_peft_folder_gets_its_patterns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    modules = {f"h.{i}.attn.c_attn": make(i, 8, 40, 30, 2.0) for i in range(3)}
    save(tmp_path / "in", modules, "peft")
    assert main(["resize", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--rank", "4", "--limit", "h.1.*=2"]) == 0
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 8.0)
    assert list(config["rank_pattern"].values()) == [2]
    assert list(config["alpha_pattern"].values()) == [4.0]
    after = load(tmp_path / "out")
    assert [(m.rank, m.scale) for m in after.modules.values()] == [(4, 2.0), (2, 2.0), (4, 2.0)]
    assert "whole adapter: predicted error" in capsys.readouterr().out


def test_another_layout_gets_the_names_that_its_loaders_find(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = "unet.input_blocks.4.1.proj_in", "unet.down_blocks.1.attentions.0.proj_in"
    before = load(save(tmp_path / "in.safetensors", {old: make(0, 8, 40, 30, 0.5), UNET: make(1, 8, 9, 9)}, "kohya"))
    out = tmp_path / "out.safetensors"
    command = ["resize", str(before.path), "--energy", "0.9", "--layout", "diffusers", "--json"]
    assert main([*command, "-o", str(out)]) == 0
    said = json.loads(capsys.readouterr().out)
    after = load(out)
    assert list(after.modules) == [new, UNET]
    assert {one["module"] for one in said["modules"]} == {old, UNET}  # the receipt keeps the input's names
    measured = {one["module"]: one["measured"] for one in said["modules"]}
    assert measured[old] == pytest.approx(apart(before.modules[old], after.modules[new]), rel=1e-6)
    assert any("1 modules of the original U-Net" in note for note in said["notes"])
    assert main([*command, "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == said["notes"]


def test_a_size_holds_under_the_names_that_are_written(tmp_path: Path) -> None:
    modules = {f"unet.input_blocks.{3 * i}.0.op": make(i, 6, 8, 8) for i in range(1, 201)}
    given = save(tmp_path / "in.safetensors", modules, "kohya")
    whole, out = tmp_path / "whole.safetensors", tmp_path / "out.safetensors"
    save(whole, prepare(load(given), "diffusers").adapter, "diffusers")
    size = whole.stat().st_size - 2**15  # the new names are longer by 9 KB in all
    command = ["resize", str(given), "-o", str(out), "--size-mib", str(size / 2**20), "--layout", "diffusers"]
    assert main(command) == 0
    assert size - 2**13 < out.stat().st_size <= size


def test_what_has_no_place_in_a_file_is_refused_before_it_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(
        tmp_path / "in",
        Adapter(tmp_path, ("peft",), {"h.0": make(0, 4, 9, 9)}, config={"fan_in_fan_out": True}),
        "peft",
    )
    command = ["resize", str(tmp_path / "in"), "-o", str(tmp_path / "o.safetensors"), "--rank", "2"]
    assert main([*command, "--layout", "kohya"]) == 1
    assert "fan_in_fan_out" in capsys.readouterr().err
    tensors = {"q.lora_A.weight": torch.ones(2, 5), "q.lora_B.weight": torch.ones(4, 2), "head.weight": torch.ones(3)}
    save_file(tensors, tmp_path / "a.safetensors")
    command[1] = str(tmp_path / "a.safetensors")
    assert main([*command, "--layout", "kohya"]) == 1
    assert "the kohya layout has no place for 1 tensors that are no pair (head.weight)" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "in"]
    command[3] = str(tmp_path / "out")
    assert main(command) == 0  # its own layout has a place for it
    assert "carried whole: full_weight (1: head.weight)" in capsys.readouterr().out
    assert "base_model.model.head.weight" in load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert main([*command, "--drop-unsupported", "--force"]) == 0
    assert "left out: full_weight (1: head.weight)" in capsys.readouterr().out


def test_nothing_is_written_over_or_by_halves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = write(tmp_path / "in.safetensors")
    data = before.path.read_bytes()
    assert main(["resize", str(before.path), "-o", str(before.path), "--rank", "2"]) == 1
    assert "--force" in capsys.readouterr().err
    for wrong in (
        ["--rank", "0"], ["--size-mib", "-1"], ["--energy", "nan"], ["--sv-ratio", "0.5"], ["--pad", "-3"],
        ["--sv-fro", "1.5"], ["--energy", "0.9", "--max-rank", "0"],
    ):  # fmt: skip
        with pytest.raises(SystemExit) as stop:
            main(["resize", str(before.path), "-o", str(tmp_path / "o.safetensors"), *wrong])
        assert stop.value.code == 2
        assert f"argument {wrong[-2]}: a" in capsys.readouterr().err
    for wrong in ([], ["--rank", "2"], ["--rank", "2", "--pad", "3", "-o", "x"], ["--rank", "2", "--limit", "unet"]):
        with pytest.raises(SystemExit) as stop:
            main(["resize", str(before.path), *wrong])
        assert stop.value.code == 2
    capsys.readouterr()
    assert before.path.read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == ["in.safetensors"]
    assert main(["resize", str(before.path), "-o", str(before.path), "--rank", "2", "--force"]) == 0
    assert load(before.path).modules[UNET].rank == 2


def test_validate_looks_before_anything_is_written(tmp_path: Path) -> None:
    path = write(tmp_path / "in.safetensors").path
    found = validate(path, 30)
    assert found.valid
    assert (found.format, found.size, dict(found.ranks)) == ("safetensors", path.stat().st_size, {4: 1, 8: 2})
    assert any("above the short side of 2 modules" in note for note in found.notes)
    assert any("3 of 3 modules would grow" in note for note in found.notes)
    assert any("2 of 3 modules already have this rank" in note for note in validate(path, 8).notes)
    assert not validate(path, 0).valid
    assert not validate(path, -3).valid
    assert validate(path).valid
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(LorabenchError, match=r"in\.safetensors"):
        validate(path, 4)


@pytest.mark.slow
def test_real_adapters(real_folder: Path) -> None:
    tried = 0
    for path in (path for path in real_files(real_folder) if path.stat().st_size < 4e6):
        try:
            before = load(path)
        except LorabenchError:
            continue  # the readers' own tests hold these to their messages
        few = dict(list(before.modules.items())[:3])
        few = {name: module for name, module in few.items() if max(module.shape) < 1000}
        after, receipt = resize(replace(before, modules=few), ResizeRule(rank=2, drop_dora=True, drop_unsupported=True))
        for got in receipt.modules:
            old, new = few[got.module], after.modules[got.module]
            assert new.rank == min(2, *old.shape)
            if got.measured is None:
                assert not bool(dense(old).any())
                continue
            assert got.measured == pytest.approx(apart(old, new), rel=1e-5, abs=1e-9)
            assert got.predicted == pytest.approx(tail(old, new.rank), rel=1e-5, abs=1e-9)
            tried += 1
    assert tried > 20
