"""Adapters of other layouts have other names for the same modules: `align`, and merge and compare by it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lorabench.adapters import Adapter, LoraModule, compare, convert, load, merge, save
from lorabench.adapters.__main__ import main
from lorabench.adapters.merging.aligning import align, common_name, file_labels, match
from lorabench.adapters.merging.preflight import preflight
from lorabench.adapters.merging.recipe import Recipe
from lorabench.errors import LorabenchError
from tests.adapter_makers import CONV, LINEAR, dense, make_adapter, near

DOWN = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
UP = "up_blocks.0.attentions.2.transformer_blocks.0.attn1.to_k"
DEEP, FLAT = (f"text_encoder.{level}encoder.layers.0.self_attn.q_proj" for level in ("text_model.", ""))
ORIGINAL = {
    "unet.input_blocks.4.1.transformer_blocks.0.attn1.to_q": f"unet.{DOWN}",
    "unet.output_blocks.2.1.transformer_blocks.0.attn1.to_k": f"unet.{UP}",
    FLAT: DEEP,
}


def adapter(names: Sequence[str], seed: int = 0, path: str = "a.safetensors", width: int = 8) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    modules = {
        name: LoraModule(torch.randn(2, width + i, generator=generator), torch.randn(6 + i, 2, generator=generator))
        for i, name in enumerate(names)
    }
    return Adapter(Path(path), ("diffusers",), modules)


def renamed(one: Adapter, names: Mapping[str, str], path: str = "b.safetensors") -> Adapter:
    return replace(one, path=Path(path), modules={names.get(name, name): each for name, each in one.modules.items()})


def test_the_original_unet_and_its_conversion_are_one_adapter() -> None:
    first = adapter(list(ORIGINAL))
    second = renamed(first, ORIGINAL)
    for a, b in ((first, second), (second, first)):
        merged, report = merge([a, b], recipe=Recipe(method="concat"))
        assert list(merged.modules) == list(a.modules)
        assert all(near(dense(merged.modules[name]), dense(one), 10.0) for name, one in a.modules.items())
        assert any("original U-Net and CLIP's level text_model, in 3 modules" in note for note in report.notes)
        found = compare(a, b)
        assert (found.compared, found.only_a, found.only_b, found.difference) == (3, (), (), 0.0)
        assert "original U-Net" in found.matched_by
        looked = preflight([a, b])
        assert looked.level != "error"
        assert len(looked.pairs[0].modules) == 3
        assert any(finding.check == "names" for finding in looked.findings)


def test_files_of_every_layout_merge_to_as_many_modules_as_each_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kohya = save(tmp_path / "k.safetensors", adapter(list(ORIGINAL)), "kohya")
    read = load(kohya)
    paths = [str(kohya)]
    for layout in ("diffusers", "peft"):
        out = tmp_path / layout / ("p" if layout == "peft" else "d.safetensors")
        paths.append(str(save(out, convert(read, layout).adapter, layout)))
    joined = str(tmp_path / "m.safetensors")
    assert main(["merge", *paths, "-o", joined, "--method", "concat", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["merge"]["modules"]) == 3
    assert compare(read, load(joined)).difference == pytest.approx(0.0, abs=1e-6)
    assert main(["compare", *paths[:2]]) == 0
    said = capsys.readouterr().out
    assert ": the same ΔW\n" in said
    assert "names differ, and are matched by diffusers' names of the original U-Net" in said


@pytest.mark.parametrize("bare", [DOWN, next(iter(ORIGINAL)).removeprefix("unet.")])
def test_a_folder_without_the_prefix_gets_it_for_all_its_modules(bare: str) -> None:
    whole = adapter([f"unet.{DOWN}", f"unet.{UP}", DEEP])
    part = adapter([bare, UP, "down_blocks.9.extra"], 1, "folder/adapter_model.safetensors")
    result, report = merge([whole, part])
    assert set(result.modules) == {f"unet.{DOWN}", f"unet.{UP}", DEEP, "unet.down_blocks.9.extra"}
    assert any("folder and a are matched by" in note and "without 'unet.'" in note for note in report.notes)
    turned, _ = merge([part, whole])
    assert set(turned.modules) == {bare, UP, "down_blocks.9.extra", DEEP}
    found = {name: module for name, module in turned.modules.items() if name == UP}
    expected = (dense(whole.modules[f"unet.{UP}"]) + dense(part.modules[UP])) / 2
    assert float((dense(found[UP]) - expected).norm()) <= float(expected.norm())
    assert turned.modules[UP].rank == 2


def test_three_adapters_get_the_names_of_the_first_that_has_the_module() -> None:
    bare = adapter([DOWN, UP], path="bare.safetensors")
    whole = adapter([f"unet.{DOWN}", f"unet.{UP}", DEEP], 1, "whole.safetensors")
    flat = adapter([*list(ORIGINAL)[:2], FLAT], 2, "flat.safetensors")
    aligned = align([bare, whole, flat])
    assert aligned.adapters[0] is bare
    assert [list(one.modules) for one in aligned.adapters[1:]] == [[DOWN, UP, DEEP]] * 2
    assert len(aligned.notes) == 3
    for before, after in zip((bare, whole, flat), aligned.adapters, strict=True):
        assert [id(one) for one in before.modules.values()] == [id(one) for one in after.modules.values()]


def test_names_that_agree_are_left_alone() -> None:
    a, b = adapter(list(ORIGINAL)), adapter(list(ORIGINAL)[:2], 1)
    aligned = align([a, b, a])
    assert all(one is other for one, other in zip(aligned.adapters, (a, b, a), strict=True))
    assert aligned.notes == ()
    assert compare(a, b).matched_by == ""


def test_a_file_that_has_a_module_under_two_names_keeps_both() -> None:
    both = adapter([*list(ORIGINAL)[:1], f"unet.{DOWN}"], width=8)
    one = adapter([f"unet.{DOWN}"], 1, width=9)
    assert match(both, one).pairs == {f"unet.{DOWN}": f"unet.{DOWN}"}
    for order in ([both, one], [one, both]):
        names = [set(each.modules) for each in align(order).adapters]
        assert names == [set(each.modules) for each in order]


def test_names_that_a_level_more_or_less_would_fit_are_made_alike() -> None:
    more = "text_encoder.encoder.layers.1.mlp.fc1"
    deep = align([adapter([DEEP]), adapter([FLAT, more], 1, "b")]).adapters[1]
    assert list(deep.modules) == [DEEP, common_name(more)]
    flat = align([adapter([FLAT]), adapter([DEEP, common_name(more)], 1, "b")]).adapters[1]
    assert list(flat.modules) == [FLAT, more]


def test_two_prefixes_that_fit_alike_are_refused() -> None:
    twice = adapter(["text_encoder.a.q_proj", "text_encoder_2.a.q_proj"])
    same = dict.fromkeys(twice.modules, twice.modules["text_encoder.a.q_proj"])
    bare = Adapter(Path("b"), (), {"a.q_proj": twice.modules["text_encoder.a.q_proj"]})
    for act in (merge, preflight):
        with pytest.raises(LorabenchError, match=r"'text_encoder\.' and 'text_encoder_2\.'"):
            act([replace(twice, modules=same), bare])


def test_labels_are_folders_where_files_are_named_alike() -> None:
    paths = [Path(path) for path in ("x/one/adapter_model.safetensors", "x/v1.5/adapter_model.safetensors", "y.bin")]
    assert file_labels(paths) == ("one", "v1.5", "y")
    assert file_labels(paths[:1] * 2) == ("one (1)", "one (2)")
    assert file_labels([]) == ()


def test_adapters_of_other_models_are_an_error_that_can_be_overridden(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = []
    for seed, names in enumerate(((LINEAR,), (CONV,))):
        paths.append(str(save(tmp_path / f"{seed}.safetensors", make_adapter(seed, names=names), "kohya")))
    out = tmp_path / "never.safetensors"
    assert main(["merge", *paths, "-o", str(out)]) == 1
    said = capsys.readouterr().out
    assert "0, 1 have no module in common with any other adapter" in said
    assert said.endswith("nothing was written; --no-check merges all the same\n")
    assert not out.exists()
    assert main(["merge", *paths, "-o", str(out), "--no-check"]) == 0
    assert set(load(out).modules) == {LINEAR, CONV}
    looked = preflight([make_adapter(1), make_adapter(2), make_adapter(3, names=(LINEAR,))])
    assert looked.level != "error"


def test_what_merging_refuses_is_found_by_the_preflight_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = save(tmp_path / "a.safetensors", make_adapter(1, 2, names=(LINEAR,)), "kohya")
    b = save(tmp_path / "b.safetensors", make_adapter(2, 4, names=(LINEAR,)), "kohya")
    command = ["merge", str(a), str(b), "-o", str(tmp_path / "o.safetensors")]
    assert main([*command, "--method", "linear"]) == 1
    said = capsys.readouterr().out
    assert "has rank 2 in a, 4 in b: method 'linear' averages factors" in said
    assert "mend what is said of ranks first" in said
    assert main([*command, "-w", "1", "-1"]) == 1
    assert "mend what is said of weights first" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "check"),
    [
        ({"method": "linear"}, "ranks"),
        ({"missing": "error"}, "modules"),
        ({"drop_unsupported": False}, "left out"),
        ({"method": "ties"}, "size"),
    ],
)
def test_the_preflight_finds_what_merge_raises(
    options: dict[str, object], check: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if check == "size":
        monkeypatch.setattr("lorabench.adapters.merging.clashing._MOST_ENTRIES", 50)
    a = replace(make_adapter(1, [2, 3, 3]), unsupported={"bias": ("x.bias",), "dora": ("x.dora_scale",)})
    b = make_adapter(2, 3, names=(LINEAR, CONV))
    options = {"drop_unsupported": True, **options}
    wrong = [one for one in preflight([a, b], recipe=Recipe(**options)).findings if one.level == "error"]  # type: ignore[arg-type]
    assert [(one.check, one.refused) for one in wrong] == [(check, True)]
    with pytest.raises(LorabenchError) as raised:
        merge([a, b], recipe=Recipe(**options))  # type: ignore[arg-type]
    assert str(raised.value) == wrong[0].message


def test_tensors_that_are_no_pair_are_dropped_only_where_that_is_asked_for() -> None:
    a = replace(make_adapter(1), unsupported={"bias": ("x.bias", "y.bias"), "dora": ("x.dora_scale",)})
    b = make_adapter(2)
    with pytest.raises(LorabenchError, match=r"made-1.*2 of kind bias \(x\.bias\).*--drop-unsupported"):
        merge([a, b])
    assert preflight([a, b]).level == "error"
    _, report = merge([a, b], recipe=Recipe(drop_unsupported=True))
    assert any("2 of kind bias (x.bias)" in note for note in report.notes)
    dropped = [
        one for one in preflight([a, b], recipe=Recipe(drop_unsupported=True)).findings if one.check == "left out"
    ]
    assert [one.level for one in dropped] == ["warning"]
