"""The hashes of kohya's trainers, against safetensors' own serialisation."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from lorabench.adapters.reading.hashes import check_hashes, header_text, sshs_hashes, sshs_hashes_of
from lorabench.adapters.reading.header import DTYPE_BITS, read_header
from lorabench.errors import LorabenchError
from tests.real_adapters import SHARED, real_files

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool, torch.float8_e4m3fn,
    torch.float8_e5m2, torch.float8_e8m0fnu, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float4_e2m1fn_x2,
]  # fmt: skip


def kohya(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> dict[str, str]:
    """As sd-scripts does it. (safetensors 0.8 writes a broken header where there is no tensor at all.)"""
    data = save(tensors, {key: value for key, value in metadata.items() if key.startswith("ss_")})
    length = int.from_bytes(data[:8], "little")
    legacy = hashlib.sha256(data[0x100000 : 0x100000 + 0x10000]).hexdigest()[:8]
    return {"sshs_model_hash": hashlib.sha256(data[8 + length :]).hexdigest(), "sshs_legacy_hash": legacy}


def shuffled(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> Path:
    """A valid file whose tensors lie in the order given, as other writers leave it."""
    said, blob = {"__metadata__": metadata}, b""
    for key, tensor in tensors.items():
        alone = save({"x": tensor})
        length = int.from_bytes(alone[:8], "little")
        entry = json.loads(alone[8 : 8 + length])["x"]
        said[key] = entry | {"data_offsets": [len(blob), len(blob) + len(alone) - 8 - length]}
        blob += alone[8 + length :]
    head = json.dumps(said).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + blob)
    return path


def random_bits(count: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    size = torch.empty(0, dtype=dtype).element_size()
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (count * size,), dtype=torch.uint8)
    return raw.view(dtype) if count else torch.empty(0, dtype=dtype)


def test_every_type_is_ordered_as_safetensors_orders_it(tmp_path: Path) -> None:
    tensors = {f"{i % 3}-{i}": random_bits(7 + i, dtype, i) for i, dtype in enumerate(DTYPES)}
    metadata = {"ss_a": "1", "modelspec.title": "x"}
    expected = kohya(tensors, metadata)
    save_file(tensors, tmp_path / "a.safetensors", metadata)
    assert sshs_hashes(read_header(tmp_path / "a.safetensors")) == expected
    path = shuffled(tmp_path / "b.safetensors", dict(reversed(tensors.items())), metadata)
    assert sshs_hashes(read_header(path)) == expected
    assert sshs_hashes_of(path.read_bytes()) == expected
    stored = {info.dtype for info in read_header(path).tensors.values()}
    assert stored | {"F6_E2M3", "F6_E3M2"} == set(
        DTYPE_BITS
    )  # torch has no type of 6 bits; else a type that the reader knows is not in this test


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(
    st.dictionaries(
        TEXT.filter(lambda key: key != "__metadata__"),
        st.tuples(st.integers(0, 9), st.sampled_from(DTYPES)),
        min_size=1,
        max_size=9,
    ),
    st.dictionaries(TEXT | TEXT.map("ss_".__add__), TEXT, max_size=4),
)
@settings(max_examples=60, deadline=None)
def test_any_names_and_metadata_hash_as_in_safetensors(
    shapes: dict[str, tuple[int, torch.dtype]], metadata: dict[str, str]
) -> None:
    torch.manual_seed(0)
    tensors = {key: random_bits(count, dtype, 0) for key, (count, dtype) in shapes.items()}
    assert sshs_hashes_of(save(tensors, metadata)) == kohya(tensors, metadata)


@given(
    st.dictionaries(TEXT, TEXT, max_size=1),
    st.lists(TEXT.filter(lambda key: key != "__metadata__"), unique=True, min_size=1),
)
@settings(max_examples=60, deadline=None)
def test_the_header_is_that_of_safetensors_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory, metadata: dict[str, str], names: list[str]
) -> None:
    path = tmp_path_factory.mktemp("header") / "a.safetensors"
    data = save({key: torch.ones(i + 1) for i, key in enumerate(names)}, metadata)
    path.write_bytes(data)
    header = read_header(path)
    text = header_text(header.tensors, metadata, header.data)
    assert data[8 : header.data] == text + b" " * (-len(text) % 8)


@pytest.mark.parametrize("extra", [0, 3, 0x100000 - 200, 0x100000, 0x120000])
def test_the_legacy_window_over_large_files_and_headers(tmp_path: Path, extra: int) -> None:
    torch.manual_seed(1)
    tensors = {f"t{i}": torch.randn(9000 + i, dtype=torch.float32) for i in range(40)}
    metadata = {"ss_tag_frequency": "x" * extra}  # one entry alone, whose order is no question
    expected = kohya(tensors, metadata)
    path = shuffled(tmp_path / "a.safetensors", dict(reversed(tensors.items())), metadata | {"title": "y"})
    assert path.stat().st_size > 0x110000
    assert sshs_hashes(read_header(path)) == expected
    checked = check_hashes(read_header(shuffled(path, tensors, metadata | expected)))
    assert {key: one.ok for key, one in checked.items()} == {"sshs_model_hash": True, "sshs_legacy_hash": True}


def test_wrong_hashes_are_found(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.randn(300_000) for i in range(3)}
    right = kohya(tensors, {})
    path = tmp_path / "a.safetensors"
    save_file(tensors | {"t0": tensors["t0"] + 1e-3}, path, right | {"modelspec.hash_sha256": "0x" + "0" * 64})
    checked = check_hashes(read_header(path))
    assert {key: one.ok for key, one in checked.items()} == dict.fromkeys([*right, "modelspec.hash_sha256"], False)
    assert checked["sshs_model_hash"].stored == right["sshs_model_hash"]
    data = path.read_bytes()
    sha = hashlib.sha256(data[read_header(path).data :]).hexdigest()
    for form in (f"0x{sha}", sha, f"0x{sha.upper()}"):
        save_file(tensors | {"t0": tensors["t0"] + 1e-3}, path, {"modelspec.hash_sha256": form})
        assert check_hashes(read_header(path))["modelspec.hash_sha256"].ok is True
    save_file(tensors, path, {"title": "no hash"})
    assert check_hashes(read_header(path)) == {}


def test_headers_of_before_padding_are_right_too(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.randn(100_000) for i in range(5)}
    data = save(tensors, {"ss_a": "1"})
    length = int.from_bytes(data[:8], "little")
    text = data[8 : 8 + length].rstrip(b" ")
    assert len(text) < length, "choose other names: this header needs no padding"
    old = len(text).to_bytes(8, "little") + text + data[8 + length :]
    legacy = hashlib.sha256(old[0x100000:0x110000]).hexdigest()[:8]
    assert legacy != hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8]
    save_file(tensors, tmp_path / "a.safetensors", {"ss_a": "1", "sshs_legacy_hash": legacy})
    assert check_hashes(read_header(tmp_path / "a.safetensors"))["sshs_legacy_hash"].ok is True


def test_a_header_over_a_mebibyte_leaves_the_legacy_hash_open(tmp_path: Path) -> None:
    metadata = {"ss_a": "x" * 0x100000, "ss_b": "y" * 0x10000, "sshs_legacy_hash": "00000000"}
    save_file({"t": torch.ones(3)}, tmp_path / "a.safetensors", metadata)
    assert check_hashes(read_header(tmp_path / "a.safetensors"))["sshs_legacy_hash"].ok is None


def test_what_is_no_safetensors_file_and_half_characters_are_refused(tmp_path: Path) -> None:
    for data in (b"", b"\x05\0\0\0\0\0\0\0{nope", (12).to_bytes(8, "little") + b'{"a": {"b":1'):
        with pytest.raises(LorabenchError, match="no safetensors file"):
            sshs_hashes_of(data)
    with pytest.raises(LorabenchError, match="half a character"):
        header_text({}, {"ss_a": "\ud800"})


def test_real_files_bear_right_hashes(real_folder: Path) -> None:
    bearing = 0
    for path in (path for path in real_files(real_folder) if path.suffix == ".safetensors"):
        try:
            header = read_header(path)
        except LorabenchError:
            continue
        checked = check_hashes(header)
        assert all(one.ok for one in checked.values()), path
        bearing += bool(checked)
        with safe_open(path, "pt") as file:
            expected = kohya(load_file(path), file.metadata() or {})
        assert sshs_hashes(header) == expected, path
        assert sshs_hashes_of(path.read_bytes()) == expected, path
    assert bearing == (2 if real_folder == SHARED else 1)  # the LyCORIS files, and kohya's
