"""The canonical table, from headers alone, says what the reader of weights says."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from lorabench.adapters import load as load_adapter
from lorabench.adapters.metadata.inspection import inspect
from lorabench.adapters.reading.table import read_table
from lorabench.errors import LorabenchError
from tests.inspected_files import sparse
from tests.real_adapters import MADE, index, key_lists, real


def _refusal(read: Callable[[Path], object], path: Path) -> str | None:
    try:
        read(path)
    except LorabenchError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", [row["path"] for row in index()], ids=lambda name: name.replace("/", "-"))
def test_the_table_agrees_with_the_weights(name: str) -> None:
    """Modules, ranks, scales and what is unsupported; a file that cannot be read is refused by both."""
    path = real(name)
    refused = _refusal(read_table, path)
    if refused is not None:
        assert MADE.get(name, "malformed") == "malformed"
        assert _refusal(load_adapter, path) == refused
        return
    table = read_table(path)
    used = [key for row in table.rows for key in row.keys.values()]
    listed = [key for keys in table.unsupported.values() for key in keys]
    magnitudes = [key for key in listed if key.endswith("lora_magnitude_vector")]  # of a row, and not used
    assert sorted([*used, *listed]) == sorted([*table.tensors, *magnitudes])
    if not table.rows:
        with pytest.raises(LorabenchError, match="no LoRA pair"):
            load_adapter(path)
        return
    adapter = load_adapter(path)
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


@pytest.mark.parametrize("name", key_lists(), ids=lambda name: Path(name).stem)
def test_every_key_of_formats_without_a_small_file_is_used_or_listed(name: str, tmp_path: Path) -> None:
    shapes = json.loads(real(name).read_text())
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
        "import sys; from lorabench.adapters.reading.table import read_table; "
        "t = read_table(sys.argv[1]); print(t.rows[0].rank, sorted({'torch', 'numpy', 'jaxtyping'} & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "x.safetensors")], capture_output=True, text=True, check=True
    )
    assert found.stdout.split("\n")[0] == "2 []"


SIZES = st.lists(st.sampled_from([0, 1, 2, 3, 4, 6]), min_size=1, max_size=4)
PARTS = {
    "lora_A": (2, 3), "lora_B": (4, 2), "lora_down.weight": (2, 3), "lora_up.weight": (4, 2),
    "lora_mid.weight": (2, 2, 3),
    "lora_a": (3, 2), "lora_b": (2, 4), "lora_E": (2, 1), "hada_w1_a": (4, 2), "hada_w1_b": (2, 3),
    "hada_w2_a": (4, 2), "hada_w2_b": (2, 3), "hada_t1": (2, 2, 3), "hada_t2": (2, 2, 3), "lokr_w1": (4, 2),
    "lokr_w1_a": (4, 2), "lokr_w1_b": (2, 3), "lokr_w2": (2, 3), "lokr_w2_a": (4, 2), "lokr_w2_b": (2, 3),
    "lokr_t2": (2, 2, 3),
}  # fmt: skip
GROUPS = (
    ("lora_A", "lora_B"), ("lora_down.weight", "lora_up.weight", "lora_mid.weight"), ("lora_a", "lora_b"),
    ("lora_A", "lora_B", "lora_E"), ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
)  # fmt: skip


@st.composite
def modules(draw: st.DrawFn) -> dict[str, list[int]]:
    """Shapes of one module, most of them right or one number away from it."""
    names = draw(st.sampled_from(GROUPS).flatmap(lambda group: st.sets(st.sampled_from(group), min_size=1)))
    if draw(st.booleans()):
        names = set(next(group for group in GROUPS if names <= set(group)))
    shapes = {name: list(PARTS[name]) for name in sorted(names)}
    for name in draw(st.sets(st.sampled_from(sorted(names)), max_size=2)):
        at = draw(st.integers(0, len(shapes[name])))
        if at == len(shapes[name]) or draw(st.booleans()):
            shapes[name] = draw(SIZES)
        else:
            shapes[name][at] = draw(st.sampled_from([1, 2, 4, 6]))
    return shapes


@given(modules())
@settings(deadline=None, max_examples=400)
def test_the_header_alone_says_what_can_be_loaded(
    tmp_path_factory: pytest.TempPathFactory, shapes: dict[str, list[int]]
) -> None:
    path = tmp_path_factory.mktemp("any") / "x.safetensors"
    save_file({f"q.{name}": torch.ones(shape) for name, shape in shapes.items()}, path)
    refused = _refusal(load_adapter, path)
    table = read_table(path)
    if refused is None:
        assert not table.problems
        module = load_adapter(path).modules["q"]
        assert table.rows[0].scale == module.scale
        assert module.up.shape[1] == module.down.shape[0]
    elif table.problems:
        assert refused == f"{path}: {table.problems[0]}"
    else:
        assert not table.rows


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"lora_down.weight": [4, 5, 3, 3], "lora_up.weight": [8, 4, 3, 3]}, "do not fit together"),
        (
            {"lora_down.weight": [4, 5, 1, 1], "lora_up.weight": [8, 4, 1, 1], "lora_mid.weight": [3, 3, 3, 3]},
            "Tucker core [3, 3, 3, 3] must be [r, r, k, k]",
        ),
        ({"lora_A.weight": [4, 5], "lora_B.weight": [33, 2, 1]}, "A merged projection has"),
        (
            {"hada_w1_a": [8, 4], "hada_w1_b": [3, 5], "hada_w2_a": [8, 4], "hada_w2_b": [4, 5]},
            "(loha) do not fit together",
        ),
        ({"hada_w1_a": [8, 4]}, "module q (loha) lacks w1_b, w2_a, w2_b"),
        ({"lokr_w1": [8, 4], "lokr_w2_a": [2, 2]}, "module q (lokr) lacks w2/w2_b"),
        ({"lokr_w1": [20_000, 20_000], "lokr_w2": [2, 2]}, "unfolds to"),
    ],
)
def test_what_load_refuses_is_not_called_valid(tmp_path: Path, shapes: dict[str, list[int]], message: str) -> None:
    path = sparse(tmp_path / "x.safetensors", {f"q.{name}": shape for name, shape in shapes.items()})
    found = inspect(path)
    assert not found.ok
    assert message in found.validation_info["errors"][0]
    if "unfolds" not in message:  # of 800 MB
        assert message in str(_refusal(load_adapter, path))


def test_quantised_factors_are_a_problem(tmp_path: Path) -> None:
    save_file(
        {"q.lora_A": torch.ones(2, 3, dtype=torch.int8), "q.lora_B": torch.ones(4, 2)}, tmp_path / "x.safetensors"
    )
    assert "q.lora_A is stored as I8; quantised" in read_table(tmp_path / "x.safetensors").problems[0]


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "bfloat16"])
def test_a_type_has_one_name_whatever_the_container(tmp_path: Path, name: str) -> None:
    """What the weights' reader takes, the table takes too, out of a pickle as out of safetensors."""
    dtype = getattr(torch, name)
    tensors = {"a.lora_down.weight": torch.ones(2, 3).to(dtype), "a.lora_up.weight": torch.ones(4, 2).to(dtype)}
    save_file(tensors, tmp_path / "x.safetensors")
    torch.save(tensors, tmp_path / "x.bin")
    rows = [read_table(tmp_path / file).rows for file in ("x.safetensors", "x.bin")]
    assert [row.dtype for row in rows[0]] == [row.dtype for row in rows[1]] != []
    assert all(set(load_adapter(tmp_path / file).modules) == {"a"} for file in ("x.safetensors", "x.bin"))
