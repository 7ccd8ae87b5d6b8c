"""Folders of adapter files as zoos."""

import csv
import logging
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lorabench.adapters import load as load_adapter
from lorabench.adapters import save as save_adapter
from lorabench.errors import LorabenchError
from lorabench.zoo import folder
from lorabench.zoo.folder import load
from tests.adapter_folders import MODULES, delta_of, load_folder, make_modules, write_mixed
from tests.real_adapters import made, published, real


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    return write_mixed(tmp_path / "zoo")


def test_categories_schemes_and_ranks_are_mixed(mixed: Path, tmp_path: Path) -> None:
    zoo = load_folder(mixed, tmp_path)
    assert zoo.name == "mine"
    assert zoo.labels.adapters == ("cats/a.safetensors", "cats/b", "dogs/c.safetensors", "dogs/deep/d.safetensors")
    assert [zoo.labels.category_names[code] for code in zoo.labels.category] == ["cats", "cats", "dogs", "dogs"]
    assert [zoo.labels.leaf_names[code] for code in zoo.labels.leaf] == list(zoo.labels.adapters)
    assert [module.name for module in zoo.modules] == list(MODULES)
    assert list(zoo.layers)[:2] == [f"{MODULES[0]}.lora.down.weight", f"{MODULES[0]}.lora.up.weight"]
    np.testing.assert_array_equal(zoo.rank, [[1] * 3, [3] * 3, [2] * 3, [2] * 3])
    np.testing.assert_array_equal(zoo.scale, [[1] * 3, [2] * 3, [0.5] * 3, [1] * 3])
    for row, (rank, scale) in enumerate([(1, 1.0), (3, 2.0), (2, 0.5), (2, 1.0)]):
        original = make_modules(row, rank=rank)
        for module in zoo.modules:
            expected = scale * (original[module.name].up.double() @ original[module.name].down.double()).numpy()
            np.testing.assert_allclose(delta_of(zoo, row, module), expected, rtol=1e-5, atol=1e-6)
            assert zoo.read(module.down).shape == (4, 3, 6)
            np.testing.assert_array_equal(zoo.read(module.down)[row, rank:], 0)
            np.testing.assert_array_equal(zoo.read(module.up)[row, :, rank:], 0)


def test_the_second_call_maps_the_store(mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_folder(mixed, tmp_path)

    def refuse(*_: object) -> None:
        raise AssertionError("an adapter was read again")

    monkeypatch.setattr(folder, "load_adapter", refuse)
    second = load_folder(mixed, tmp_path)
    assert second.fingerprint == first.fingerprint
    assert isinstance(second.layers[f"{MODULES[0]}.lora.down.weight"].pieces[0], np.memmap)
    monkeypatch.undo()
    save_adapter(mixed / "cats" / "a.safetensors", make_modules(9, rank=1), "diffusers")
    assert load_folder(mixed, tmp_path).fingerprint != first.fingerprint


def test_labels_configs_and_options_are_part_of_the_key(mixed: Path, tmp_path: Path) -> None:
    rows = [{"file": "cats/b", "category": "x"}, {"file": "dogs/c.safetensors", "category": "y"}]
    _write_labels(mixed, rows)
    before = load_folder(mixed, tmp_path)
    _write_labels(mixed, [rows[0], rows[1] | {"category": "z"}])
    assert load_folder(mixed, tmp_path).labels.category_names == ("x", "z")
    config = mixed / "cats" / "b" / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 6.0', '"lora_alpha": 33.0'))
    assert load_folder(mixed, tmp_path).scale[0, 0] == 11.0
    assert before.scale[0, 0] == 2.0
    load_folder(mixed, tmp_path, "common")
    assert len(list((tmp_path / "cache" / "zoos").iterdir())) == 4


def test_the_configuration_of_a_browsers_copy_is_part_of_the_key(mixed: Path, tmp_path: Path) -> None:
    made = mixed / "cats" / "b"
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        path = made / name
        path.rename(made / f"{path.stem} (1){path.suffix}")
    assert load_folder(mixed, tmp_path).scale[1, 0] == 2.0
    config = made / "adapter_config (1).json"
    config.write_text(config.read_text().replace('"lora_alpha": 6.0', '"lora_alpha": 33.0'))
    assert load_folder(mixed, tmp_path).scale[1, 0] == 11.0


def test_many_chunks_give_the_same_zoo(mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_folder(mixed, tmp_path)
    size = 4 * sum(rows * cols for _, rows, cols in (stack.shape for stack in whole.layers.values()))
    for count in (1, 3):
        monkeypatch.setattr(folder, "_CHUNK_BYTES", count * size)
        parts = load(str(mixed), "mine", str(tmp_path / f"other{count}"))
        for layer in whole.layers:
            np.testing.assert_array_equal(parts.read(layer), whole.read(layer))


def _write_labels(root: Path, rows: Sequence[dict[str, str]]) -> None:
    with (root / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_labels_csv_rules_over_folders(mixed: Path, tmp_path: Path) -> None:
    rows = [
        {"file": "dogs/c.safetensors", "category": "Ä, odd", "leaf": "\n", "group": "ann", "split": "test", "note": ""},
        {"file": "cats/b", "category": "plain", "leaf": "q", "group": "bob", "split": "train", "note": "hm"},
        {"file": "cats/a.safetensors", "category": "plain", "leaf": "q", "group": "ann", "split": "val", "note": ""},
    ]
    rows[0]["leaf"] = 'l"1'
    _write_labels(mixed, rows)
    labels = load_folder(mixed, tmp_path).labels
    assert labels.adapters == ("dogs/c.safetensors", "cats/b", "cats/a.safetensors")
    assert [labels.category_names[code] for code in labels.category] == ["Ä, odd", "plain", "plain"]
    assert [labels.leaf_names[code] for code in labels.leaf] == ['l"1', "q", "q"]
    assert labels.group is not None
    assert labels.group.tolist() == [0, 1, 0]
    assert labels.split is not None
    assert labels.split.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na,b\n", "lacks the column 'file' and 'category'; it has path, label"),
        ("", "lacks the column 'file' and 'category'; it has none"),
        ("file,category\n", "no adapters found"),
        ("file,category\ncats/a.safetensors,\n", "labels.csv, line 2: the cell of column 'category' is empty"),
        ("file,category\n\ncats/a.safetensors\n", "line 3: the cell of column 'category' is empty"),
        ("file,category,leaf\ncats/b,x,l\ncats/a.safetensors,x,\n", "line 3: the cell of column 'leaf' is empty"),
        ("file,category,split\ncats/b,x,training\n", "split is 'training'; allowed are train, val, test"),
        ("file,category\ncats/zzz.safetensors,x\n", "names 'cats/zzz.safetensors', which is not below"),
        ("file,category\ncats/b,x\n./cats/b,y\n", "lines 2 and 3: name the same adapter './cats/b'"),
        ("file,category\ndogs,x\n", "this folder is not one adapter"),
    ],
)
def test_bad_labels(mixed: Path, tmp_path: Path, text: str, message: str) -> None:
    (mixed / "labels.csv").write_text(text)
    (mixed / "dogs" / "e.safetensors").write_bytes(b"")
    with pytest.raises(LorabenchError, match=re.escape(message)):
        load_folder(mixed, tmp_path)


def test_labels_that_are_no_text(mixed: Path, tmp_path: Path) -> None:
    (mixed / "labels.csv").write_bytes(b"file,category\n\xff\xfe,x\n")
    with pytest.raises(LorabenchError, match=r"labels\.csv: no UTF-8 text"):
        load_folder(mixed, tmp_path)


def test_a_byte_order_mark_is_no_part_of_a_column(mixed: Path, tmp_path: Path) -> None:
    (mixed / "labels.csv").write_text("file,category\ncats/b,x\n", encoding="utf-8-sig")
    assert load_folder(mixed, tmp_path).labels.adapters == ("cats/b",)


def test_folders_without_adapters(tmp_path: Path) -> None:
    with pytest.raises(LorabenchError, match="no such folder"):
        load_folder(tmp_path / "nowhere", tmp_path)
    root = tmp_path / "zoo"
    (root / "cats").mkdir(parents=True)
    with pytest.raises(LorabenchError, match="no adapters found"):
        load_folder(root, tmp_path)
    save_adapter(root / "stray.safetensors", make_modules(0), "kohya")
    with pytest.raises(LorabenchError, match=r"stray\.safetensors: lies directly in .* its category is not known"):
        load_folder(root, tmp_path)
    with pytest.raises(LorabenchError, match="missing=drop: allowed are error, common and zero"):
        load_folder(root, tmp_path, "drop")


def test_missing_layers(mixed: Path, tmp_path: Path) -> None:
    save_adapter(mixed / "dogs" / "few.safetensors", make_modules(5, names=MODULES[:2]), "diffusers")
    with pytest.raises(LorabenchError) as caught:
        load_folder(mixed, tmp_path)
    for part in ("few.safetensors", f"{MODULES[2]}.lora.down.weight", "dataset.missing=common", "remove this adapter"):
        assert part in str(caught.value)
    zoo = load_folder(mixed, tmp_path, "common")
    assert [module.name for module in zoo.modules] == list(MODULES[:2])
    assert len(zoo) == 5
    save_adapter(mixed / "dogs" / "none.safetensors", make_modules(5, names=["unet.conv_in"]), "diffusers")
    with pytest.raises(LorabenchError, match="no module is common to all 6 adapters"):
        load_folder(mixed, tmp_path, "common")


def test_a_module_that_is_missing_is_an_update_of_nothing(mixed: Path, tmp_path: Path) -> None:
    few = make_modules(5, rank=4, names=[MODULES[1], "unet.conv_in"])
    save_adapter(mixed / "cats" / "0.safetensors", few, "diffusers")
    with pytest.raises(LorabenchError, match=r"dataset\.missing=zero"):
        load_folder(mixed, tmp_path)
    zoo = load_folder(mixed, tmp_path, "zero")
    assert [module.name for module in zoo.modules] == [*MODULES, "unet.conv_in"]
    assert zoo.rank.tolist() == [[0, 4, 0, 4], *([rank, rank, rank, 0] for rank in (1, 3, 2, 2))]
    np.testing.assert_array_equal(zoo.scale, [[1] * 4, *([scale, scale, scale, 1] for scale in (1, 2, 0.5, 1))])
    assert zoo.read(zoo.modules[2].down).shape == (5, 3, 6)
    for row, modules in enumerate([few, *(make_modules(i, rank=rank) for i, rank in enumerate((1, 3, 2, 2)))]):
        for column, module in enumerate(zoo.modules):
            delta = np.zeros((5, 6))
            if module.name in modules:
                own = modules[module.name]
                delta = float(zoo.scale[row, column]) * (own.up.double() @ own.down.double()).numpy()
            np.testing.assert_allclose(delta_of(zoo, row, module), delta, rtol=1e-5, atol=1e-6)


def test_adapters_that_share_nothing_are_no_zoo_even_where_nothing_is_missed(mixed: Path, tmp_path: Path) -> None:
    """A chain of shared modules holds a folder together; an adapter that none leads to is named."""
    for number, names in enumerate([["unet.conv_in", "unet.conv_out"], [MODULES[2], "unet.conv_in"]]):
        save_adapter(mixed / "dogs" / f"{number}.safetensors", make_modules(5, names=names), "diffusers")
    assert load_folder(mixed, tmp_path, "zero").rank.shape == (6, 5)
    save_adapter(mixed / "dogs" / "e.safetensors", make_modules(5, names=["text_encoder.lone"]), "diffusers")
    with pytest.raises(LorabenchError, match=r"e\.safetensors: shares no module with cats/a\.safetensors"):
        load_folder(mixed, tmp_path, "zero")


def test_other_base_models(mixed: Path, tmp_path: Path) -> None:
    save_adapter(mixed / "dogs" / "wide.safetensors", make_modules(5, d_in=7), "diffusers")
    for missing in ("error", "common", "zero"):
        with pytest.raises(LorabenchError, match=r"5 x 6 in cats/a\.safetensors and 5 x 7 in dogs/wide\.safetensors"):
            load_folder(mixed, tmp_path, missing)


def test_a_bad_file_is_named_and_nothing_is_kept(mixed: Path, tmp_path: Path) -> None:
    bad = mixed / "dogs" / "deep" / "d.safetensors"
    bad.write_bytes(bad.read_bytes()[:-4])
    with pytest.raises(LorabenchError, match=r"d\.safetensors: the file is truncated"):
        load_folder(mixed, tmp_path)
    assert not (tmp_path / "cache" / "zoos").exists()


def test_an_interrupted_build_is_not_taken_for_a_zoo(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def interrupt(path: Path) -> object:
        calls.append(path)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return load_adapter(path)

    monkeypatch.setattr(folder, "load_adapter", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_folder(mixed, tmp_path)
    assert list((tmp_path / "cache" / "zoos").iterdir()) == []
    monkeypatch.undo()
    assert len(load_folder(mixed, tmp_path)) == 4


def test_what_lies_beside_adapters_is_left_alone(tmp_path: Path) -> None:
    root = tmp_path / "zoo"
    save_adapter(root / "cats" / "run" / "checkpoint-5", make_modules(0), "peft")
    torch.save({"step": 1}, root / "cats" / "run" / "checkpoint-5" / "training_args.bin")
    torch.save({"step": 1}, root / "cats" / "run" / "checkpoint-5" / "optimizer.pt")
    save_adapter(root / "cats" / "both.safetensors", make_modules(1), "diffusers")
    torch.save({}, root / "cats" / "both.bin")
    (root / "cats" / "notes.txt").write_text("hello")
    save_adapter(root / ".trash" / "x.safetensors", make_modules(1), "diffusers")
    zoo = load_folder(root, tmp_path)
    assert zoo.labels.adapters == ("cats/both.safetensors", "cats/run/checkpoint-5")


def test_tensors_that_stay_out_are_named(mixed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = {f"{name}.lora.down.weight": module.down for name, module in make_modules(0).items()}
    tensors |= {f"{name}.lora.up.weight": module.up for name, module in make_modules(0).items()}
    save_file(tensors | {"score.weight": torch.ones(2)}, mixed / "cats" / "extra.safetensors")
    with caplog.at_level(logging.WARNING):
        assert len(load_folder(mixed, tmp_path)) == 5
    assert "1 of 5 adapters hold tensors that are not part of a LoRA and stay out, such as " in caplog.text
    assert "extra.safetensors: full_weight (1)" in caplog.text


def test_adapters_of_peft_make_a_zoo(tmp_path: Path) -> None:
    for category, name in (("legal", "peft/opt"), ("medical", "peft/opt_rslora")):
        shutil.copytree(made(name), tmp_path / "opt" / category)
    zoo = load_folder(tmp_path / "opt", tmp_path)
    assert (len(zoo), len(zoo.modules), zoo.labels.category_names) == (2, 4, ("legal", "medical"))
    assert zoo.scale.tolist() == [[2.0] * 4, [3.0] * 4]
    for name in published("parikshit-06__domain-skeleton-gpt2/adapters"):
        zoo = load_folder(real(name), tmp_path)
        assert (len(zoo), len(zoo.modules), zoo.labels.category_names) == (2, 36, ("legal", "medical"))
        assert zoo.scale.tolist() == [[2.0] * 36] * 2


@pytest.mark.parametrize("name", ["sam", *published("MathieuNlp__Sam_LoRA")])
def test_adapters_of_many_ranks_make_a_zoo(name: str, tmp_path: Path) -> None:
    assert load_folder(real(name), tmp_path).rank[:, 0].tolist() == [2, 4, 8]
