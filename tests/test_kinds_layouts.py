"""Kinds and layouts are objects, a file each: found from disk, and each held to what all of them promise."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import lorabench.adapters.kinds
import lorabench.adapters.layouts
from lorabench.adapters import Adapter, LoraModule, layout_of, load, save
from lorabench.adapters.__main__ import main
from lorabench.adapters.kinds import kinds
from lorabench.adapters.layouts import layouts, written_layouts
from lorabench.adapters.names.identity import identity
from lorabench.adapters.reading.table import read_table
from lorabench.errors import LorabenchError

PARTS = {name: kind.example for name, kind in kinds().items()}


def _files(package: object) -> set[str]:
    folder = Path(str(package.__file__)).parent  # type: ignore[attr-defined]
    return {file.stem for file in folder.glob("*.py")} - {"__init__", "base", "tucker"}


def test_each_file_is_one_kind_or_layout() -> None:
    assert set(kinds()) == _files(lorabench.adapters.kinds)
    assert {name.replace("-", "_") for name in layouts()} == _files(lorabench.adapters.layouts)
    places = [layout.place for layout in written_layouts().values()]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("name", PARTS)
def test_a_module_of_a_kind_is_read_as_factors(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    tensors = {f"q.{part}": torch.randn(shape) for part, shape in PARTS[name].items()}
    save_file(tensors, tmp_path / "a.safetensors")
    module = load(tmp_path / "a.safetensors").modules["q"]
    assert (module.kind, module.shape) == (name, (6, 8))
    assert module.down.shape[0] == module.up.shape[1] == module.rank
    assert bool(module.delta().any())
    (row,) = read_table(tmp_path / "a.safetensors").rows
    assert kinds()[row.form].widths(row.shapes, row.rank) == (6, 8)


@pytest.mark.parametrize("name", PARTS)
def test_what_a_kind_lacks_is_named(tmp_path: Path, name: str) -> None:
    for part in PARTS[name]:
        tensors = {f"q.{other}": torch.ones(shape) for other, shape in PARTS[name].items() if other != part}
        save_file(tensors, tmp_path / "a.safetensors")
        if part in kinds()[name].optional:  # what is left is an ordinary pair
            assert load(tmp_path / "a.safetensors").modules["q"].kind == "lora"
            continue
        with pytest.raises(LorabenchError, match=r"module q .*(lacks|but no)"):
            load(tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", list(written_layouts()))
def test_a_written_layout_brings_everything_back(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    layout = written_layouts()[name]
    part = layout.denoiser or "unet"
    names = (f"{part}.mid_block.attentions.0.proj_in", f"{part}.conv_in", f"{part}.of_no_family.x_y")
    modules = {
        one: LoraModule(torch.randn(3, 18), torch.randn(4, 3), 0.3 * i - 0.4, kernel=(3, 3) if i == 1 else ())
        for i, one in enumerate(names)
    }
    path = tmp_path / ("out" if layout.folder else "out.safetensors")
    read = load(save(path, Adapter(tmp_path / "x", (), modules), name))
    assert layout_of(read) == name, "what was read from it is written back in it"
    back = read.modules
    assert {identity(one) for one in back} == {identity(one) for one in names}
    for (_, module), other in zip(sorted(modules.items()), (back[one] for one in sorted(back)), strict=True):
        torch.testing.assert_close(other.delta(), module.delta(), rtol=1e-5, atol=1e-6)
        assert other.kernel == module.kernel


def test_the_command_offers_every_layout(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["convert", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert all(f"{name}: {layout.title}"[:30] in text for name, layout in written_layouts().items())


@pytest.mark.parametrize("end", ["bin", "pt"])
def test_a_plain_state_dict_is_written(tmp_path: Path, end: str) -> None:
    module = LoraModule(torch.randn(2, 5), torch.randn(4, 2), 0.5)
    path = save(tmp_path / f"a.{end}", {"unet.conv_in": module}, "kohya")
    tensors = torch.load(path, weights_only=True)
    assert set(tensors) == {f"lora_unet_conv_in.{part}" for part in ("lora_down.weight", "lora_up.weight", "alpha")}
    assert torch.equal(load(path).modules["unet.conv_in"].up, module.up)
