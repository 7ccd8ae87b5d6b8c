"""Zoos as folders of adapter files, and the command that writes them."""

import errno
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lorabench.conf_dir import conf_dir
from lorabench.errors import LorabenchError
from lorabench.zoo import Labels, Module, Stack, Zoo
from lorabench.zoo.__main__ import main
from lorabench.zoo.export import export
from tests.adapter_folders import delta_of, load_folder, write_mixed


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    return write_mixed(tmp_path / "zoo")


def _zoo(count: int = 9, scale: float = 1.0, padded: bool = True, least: int = 1) -> Zoo:
    """A zoo in memory, with ranks from the least to 3 and labels of every kind."""
    rng = np.random.default_rng(0)
    names = ("unet.transformer_blocks.2.attn1.to_q", "unet.transformer_blocks.10.attn1.to_out.0", "unet.conv_in")
    own = range(least, 4) if padded else [3]
    ranks = np.array([[own[(i + j) % len(own)] for j in range(3)] for i in range(count)], np.int64)
    layers = {}
    for column, name in enumerate(names):
        down = rng.normal(size=(count, 3, 7)).astype(np.float32)
        up = rng.normal(size=(count, 4, 3)).astype(np.float32)
        for row in range(count):
            down[row, ranks[row, column] :] = 0
            up[row, :, ranks[row, column] :] = 0
        layers |= {f"{name}.lora.down.weight": Stack((down,)), f"{name}.lora.up.weight": Stack((up,))}
    labels = Labels.of(
        adapters=[f"adapter {i}" for i in range(count)],
        category=[("Box drawing", "../evil", "Ελληνικά")[i % 3] for i in range(count)],
        leaf=[f'U+{i:04X} "," {i}' for i in reversed(range(count))],
        group=[f"author {i // 2}" for i in range(count)],
        split=np.arange(count, dtype=np.int64) % 3,
    )
    modules = tuple(Module(name, f"{name}.lora.down.weight", f"{name}.lora.up.weight") for name in names)
    return Zoo("made", layers, modules, ranks, np.full((count, 3), scale, np.float32), labels, "x")


def _named(zoo: Zoo) -> list[tuple[str, str]]:
    labels = zoo.labels
    return [
        (labels.category_names[c], labels.leaf_names[leaf])
        for c, leaf in zip(labels.category, labels.leaf, strict=True)
    ]


@pytest.mark.parametrize("layout", ["diffusers", "peft", "kohya"])
@pytest.mark.parametrize(("least", "missing"), [(1, "error"), (0, "zero")])
def test_an_exported_zoo_comes_back(tmp_path: Path, layout: str, least: int, missing: str) -> None:
    zoo = _zoo(least=least)
    assert zoo.rank.min() == least
    out = tmp_path / "out"
    assert export(zoo, out, layout) == out / "labels.csv"
    back = load_folder(out, tmp_path, missing)
    assert list(back.layers) == list(zoo.layers)
    assert back.modules == zoo.modules
    for layer in zoo.layers:
        np.testing.assert_array_equal(back.read(layer), zoo.read(layer))
    np.testing.assert_array_equal(back.rank, zoo.rank)
    np.testing.assert_array_equal(back.scale, zoo.scale)
    assert _named(back) == _named(zoo)
    assert back.labels.group is not None
    assert zoo.labels.group is not None
    np.testing.assert_array_equal(back.labels.group, zoo.labels.group)
    np.testing.assert_array_equal(back.labels.split, zoo.labels.split)
    assert {path.parent for path in out.rglob("labels.csv")} == {out}
    assert all(path.resolve().is_relative_to(out.resolve()) for path in out.rglob("*"))
    assert not list(tmp_path.glob("evil"))


@pytest.mark.parametrize("layout", ["diffusers", "peft", "kohya"])
def test_scales_survive_an_export(tmp_path: Path, layout: str) -> None:
    zoo = _zoo(scale=0.7)
    export(zoo, tmp_path / "out", layout)
    back = load_folder(tmp_path / "out", tmp_path)
    if layout != "diffusers":
        np.testing.assert_array_equal(back.scale, zoo.scale)
        np.testing.assert_array_equal(back.read(zoo.modules[0].up), zoo.read(zoo.modules[0].up))
    for row in range(len(zoo)):
        for module in zoo.modules:
            np.testing.assert_allclose(delta_of(back, row, module), delta_of(zoo, row, module), rtol=1e-5, atol=1e-6)


def test_an_export_does_not_write_over_other_things(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("x")
    with pytest.raises(LorabenchError, match=r"is not empty\. Name a new folder, or add --overwrite"):
        export(_zoo(), out, "kohya")
    export(_zoo(), out, "kohya", overwrite=True)
    export(_zoo(4, padded=False), out, "kohya", overwrite=True)
    assert len(load_folder(out, tmp_path)) == 4
    assert (out / "thesis.tex").read_text() == "x"
    (tmp_path / "file").touch()
    with pytest.raises(LorabenchError, match="is a file"):
        export(_zoo(), tmp_path / "file", "kohya", overwrite=True)


def test_a_half_written_export_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    export(_zoo(3), out, "diffusers")
    real, calls = os.replace, []

    def full(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, target)
        return Path(target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(LorabenchError, match="the disk is full"):
        export(_zoo(), out, "diffusers", overwrite=True)
    monkeypatch.undo()
    with pytest.raises(LorabenchError, match="an export to this folder was interrupted"):
        load_folder(out, tmp_path)
    export(_zoo(), out, "diffusers", overwrite=True)
    assert len(load_folder(out, tmp_path)) == 9


def test_a_lone_layer_cannot_be_exported(tmp_path: Path) -> None:
    zoo = _zoo().without(["unet.conv_in.lora.up.weight"])
    with pytest.raises(LorabenchError, match=r"unet\.conv_in\.lora\.down\.weight has no partner"):
        export(zoo, tmp_path / "out", "kohya")
    assert not (tmp_path / "out").exists()


def test_nan_weights_are_not_exported(tmp_path: Path) -> None:
    zoo = _zoo()
    broken = dict(zoo.layers)
    layer = zoo.modules[0].down
    values = np.array(zoo.read(layer))
    values[3, 0, 0] = np.nan
    broken[layer] = Stack((values,))
    with pytest.raises(LorabenchError, match=r"NaN or infinite weights in layer .* of adapter 3"):
        export(replace(zoo, layers=broken), tmp_path / "out", "kohya")


def test_the_command_exports_and_reads_back(mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [f"dataset.path={mixed}", f"cache_dir={tmp_path / 'cache'}"]
    out = tmp_path / "out"
    assert main(["export", "folder", str(out), "--format", "kohya", "--limit", "3", *settings]) == 0
    assert "3 adapters of folder" in capsys.readouterr().out
    zoo, back = load_folder(mixed, tmp_path), load_folder(out, tmp_path)
    assert _named(back) == _named(zoo)[:3]
    np.testing.assert_array_equal(back.scale, zoo.scale[:3])
    for layer in zoo.layers:
        np.testing.assert_array_equal(back.read(layer), zoo.read(layer)[:3])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [  # a mistake of the words is 2, one that the configuration or the data set finds is 1
        (["export", "folder", "OUT"], "dataset.path has no value; add dataset.path=VALUE"),
        (["export", "folder", "OUT", "dataset.path=NOWHERE"], "no such folder"),
        (["export", "nothing_like_this", "OUT"], "Could not find 'dataset/nothing_like_this'"),
        (["export", "folder", "OUT", "dataset.paht=x"], "paht"),
        (["export", "folder", "OUT", "dataset.path=[x"], "dataset.path=[x"),
        (["export", "folder", "OUT", "+dataset.foo=1", "dataset.path=x"], "unexpected keyword argument 'foo'"),
        (["export", "folder", "OUT", "stray"], "unknown argument 'stray'"),
        (["export", "folder", "OUT", "--formt=peft"], "unknown argument '--formt=peft'"),
        (["export", "folder", "OUT", "--format", "onnx"], "onnx"),
        (["export", "folder", "OUT", "--limit", "0"], "--limit: a whole number from 1"),
        (["export"], "DATASET"),
        ([], "COMMAND"),
    ],
)
def test_mistakes_end_in_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LORABENCH_CACHE", str(tmp_path / "cache"))
    filled = [text.replace("OUT", str(tmp_path / "out")).replace("NOWHERE", str(tmp_path / "no")) for text in arguments]
    try:
        code = main(filled)
    except SystemExit as ended:
        code = ended.code
    words_alone = ("unknown argument", "onnx", "--limit", "DATASET", "COMMAND")
    assert code == (2 if message.startswith(words_alone) else 1)
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_module_runs_as_a_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lorabench.zoo", "export", "--help"], capture_output=True, text=True, check=True
    )
    assert "--overwrite" in done.stdout
    assert "dataset.KEY=VALUE" in done.stdout


def test_the_configuration_is_found() -> None:
    assert (conf_dir() / "dataset" / "folder.yaml").is_file()
