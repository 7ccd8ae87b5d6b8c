"""The canonical table, from headers alone, says what the reader of weights says."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lorabench.adapters import load as load_adapter
from lorabench.adapters.table import read_table
from lorabench.errors import LorabenchError

ADAPTERS = Path(__file__).parents[2] / "shared" / "adapters"


def _published() -> list[str]:
    if not (ADAPTERS / "INDEX.tsv").is_file():
        return []
    with (ADAPTERS / "INDEX.tsv").open() as file:
        return [row["path"] for row in csv.DictReader(file, delimiter="\t")]


def _refusal(read: Callable[[Path], object], path: Path) -> str | None:
    try:
        read(path)
    except LorabenchError as error:
        return str(error)
    return None


@pytest.mark.skipif(not _published(), reason="shared/adapters is not here")
@pytest.mark.parametrize("path", _published(), ids=lambda path: path.replace("/", "-"))
def test_the_table_agrees_with_the_weights(path: str) -> None:
    """Modules, ranks, scales and what is unsupported; a file that cannot be read is refused by both."""
    refused = _refusal(read_table, ADAPTERS / path)
    if refused is not None:
        assert _refusal(load_adapter, ADAPTERS / path) == refused
        return
    table = read_table(ADAPTERS / path)
    used = [key for row in table.rows for key in row.keys.values()]
    listed = [key for keys in table.unsupported.values() for key in keys]
    assert sorted(used + listed) == sorted(table.tensors)
    if not table.rows:
        with pytest.raises(LorabenchError, match="no LoRA pair"):
            load_adapter(ADAPTERS / path)
        return
    adapter = load_adapter(ADAPTERS / path)
    assert (adapter.schemes, adapter.unsupported) == (table.schemes, table.unsupported)
    assert {row.module for row in table.rows} == set(adapter.modules)
    for row in table.rows:
        module = adapter.modules[row.module]
        assert (row.scale, row.alpha) == (module.scale, module.alpha)
        assert set(row.assumed) <= set(module.assumed)
        if row.kind in ("linear", "conv", "embedding"):
            merged = len(row.shapes["up"]) == 3
            assert row.rank == (module.rank // 2 if merged else module.rank)
            assert (row.kind == "embedding", row.kind == "conv") == (module.embedding, module.kernel != ())
        else:
            assert row.kind == module.kind


def keysets() -> list[Path]:
    return sorted((ADAPTERS / "keysets").glob("*.json"))


@pytest.mark.skipif(not keysets(), reason="shared/adapters is not here")
@pytest.mark.parametrize("path", keysets(), ids=lambda path: path.stem)
def test_every_key_of_formats_without_a_small_file_is_used_or_listed(path: str | Path, tmp_path: Path) -> None:
    shapes = json.loads(Path(path).read_text())
    # one number a tensor, seen as the whole: such a file is as large as its header says, but takes no space
    names = list(shapes) if isinstance(shapes, dict) else [str(entry) for entry in shapes]
    tensors = {name: torch.zeros(_small(shapes[name] if isinstance(shapes, dict) else [2, 2])) for name in names}
    save_file(tensors, tmp_path / "x.safetensors")
    table = read_table(tmp_path / "x.safetensors")
    listed = [key for keys in table.unsupported.values() for key in keys]
    seen = {key for row in table.rows for key in row.keys.values()} | set(listed)
    assert seen == set(names)
    assert table.rows
    assert not table.problems


def _small(shape: list[int]) -> list[int]:
    """The same number of axes and the same equalities, in few bytes."""
    return [max(1, n // 64) if n > 256 else n for n in shape]


def test_modules_that_are_wrong_are_told_and_the_others_have_a_row(tmp_path: Path) -> None:
    tensors = {
        "a.lora_down.weight": torch.ones(2, 3), "a.lora_up.weight": torch.ones(4, 2), "a.alpha": torch.tensor(1.0),
        "b.lora_down.weight": torch.ones(2, 3), "c.lora_up.weight": torch.ones(4, 2),
        "d.lora_down.weight": torch.ones(2, 3), "d.lora_up.weight": torch.ones(4, 3),
        "e.lora_down.weight": torch.ones(2, 3), "e.lora_up.weight": torch.ones(4, 2),
        "e.alpha": torch.tensor(torch.nan), "norm.weight": torch.ones(3),
    }  # fmt: skip
    save_file(tensors, tmp_path / "x.safetensors")
    table = read_table(tmp_path / "x.safetensors")
    assert [(row.module, row.kind, row.rank, row.scale, row.alpha_source) for row in table.rows] == [
        ("a", "linear", 2, 0.5, "alpha tensor")
    ]
    assert len(table.problems) == 4
    told = "\n".join(sorted(table.problems))
    for words in (
        "b has b.lora_down.weight but no up",
        "c has c.lora_up.weight but no down",
        "d do not fit",
        "alpha of e",
    ):
        assert words in told
    assert table.unsupported == {"full_weight": ("norm.weight",)}


def test_reading_a_header_needs_no_torch(tmp_path: Path) -> None:
    save_file(
        {"a.lora_down.weight": torch.ones(2, 3), "a.lora_up.weight": torch.ones(4, 2)}, tmp_path / "x.safetensors"
    )
    program = (
        "import sys; from lorabench.adapters.table import read_table; "
        "t = read_table(sys.argv[1]); print(t.rows[0].rank, sorted({'torch', 'numpy', 'jaxtyping'} & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "x.safetensors")], capture_output=True, text=True, check=True
    )
    assert found.stdout.split("\n")[0] == "2 []"
