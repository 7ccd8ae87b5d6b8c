"""The header of a safetensors file, read without torch, against the safetensors library."""

import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from lorabench.adapters.reading.container import read_container
from lorabench.adapters.reading.header import DTYPE_BITS, Header, TensorInfo, read_header, read_scalars
from lorabench.errors import LorabenchError

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool, torch.float8_e4m3fn,
    torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz, torch.float8_e8m0fnu,
]  # fmt: skip
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_SLOW = settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])


def entry(shape: Any = (2,), dtype: Any = "F32", place: Any = (0, 8), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": place, **more}


def write(path: Path, header: object, data: int | bytes = 8, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    body = bytes(data) if isinstance(data, int) else data
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)
    return path


def of_library(path: Path) -> tuple[dict[str, tuple[tuple[int, ...], str]], dict[str, str]] | None:
    """What safetensors says of a file; None where it refuses it."""
    try:
        with safe_open(path, "np") as file:
            parts = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
            said = {key: (tuple(part.get_shape()), part.get_dtype()) for key, part in parts.items()}
            return said, file.metadata() or {}
    except SafetensorError:
        return None


def said(header: Header) -> tuple[dict[str, tuple[tuple[int, ...], str]], Mapping[str, str]]:
    return {key: (info.shape, info.dtype) for key, info in header.tensors.items()}, header.metadata


def random_bits(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    high = 2 if dtype == torch.bool else 256
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, high, (math.prod(shape) * dtype.itemsize,), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).reshape(shape)


def bits(tensor: torch.Tensor) -> list[int]:
    return tensor.flatten().view(torch.uint8).tolist() if tensor.numel() else []


@given(
    st.dictionaries(
        TEXT.filter(lambda key: key != "__metadata__"),
        st.tuples(st.lists(st.integers(0, 4), max_size=4).map(tuple), st.sampled_from(DTYPES)),
        min_size=1,  # safetensors 0.8 writes a broken header where there is no tensor
        max_size=6,
    ),
    st.none() | st.dictionaries(TEXT, TEXT, max_size=4),
)
@settings(_SLOW, max_examples=150)
def test_what_safetensors_writes_is_read_as_it_reads_it(
    tmp_path: Path, wanted: dict[str, tuple[tuple[int, ...], torch.dtype]], metadata: dict[str, str] | None
) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {key: random_bits(shape, dtype, i) for i, (key, (shape, dtype)) in enumerate(wanted.items())}
    save_file(tensors, path, metadata)
    header = read_header(path)
    assert said(header) == of_library(path)
    raw = path.read_bytes()
    assert header.size == len(raw)
    container = read_container(path)
    assert container.metadata == header.metadata
    for key, stored in tensors.items():
        info, found = header.tensors[key], container.tensors[key]
        assert list(raw[info.start : info.stop]) == bits(stored) == bits(found)
        assert (found.shape, found.dtype, info.count) == (stored.shape, stored.dtype, stored.numel())


def test_every_type_of_safetensors_is_known(tmp_path: Path) -> None:
    """The library names all its types where it refuses one; torch has no tensors of three of them."""
    path = write(tmp_path / "a.safetensors", {"a": entry(dtype="?")})
    with pytest.raises(SafetensorError, match="unknown variant") as caught, safe_open(path, "np"):
        pass  # pragma: no cover
    names = {name for name in str(caught.value).split("`") if name.strip(", ").isupper() or name[:1] == "F"}
    assert {name for name in names if name.replace("_", "").isalnum()} == set(DTYPE_BITS)
    for dtype, width in DTYPE_BITS.items():
        write(path, {"a": entry([8], dtype, [0, width])}, width)
        assert said(read_header(path)) == of_library(path) == ({"a": ((8,), dtype)}, {})
        write(path, {"a": entry([8], dtype, [0, width + 1])}, width + 1)
        assert of_library(path) is None
        with pytest.raises(LorabenchError, match=rf"a has {width + 1} bytes, {dtype} of shape \[8\] needs {width}"):
            read_header(path)
    write(path, {"a": entry([3], "F4", [0, 1])}, 1)  # one and a half bytes
    assert of_library(path) is None
    with pytest.raises(LorabenchError, match=r"needs 1\.5"):
        read_header(path)
    write(path, {"q.lora_A.weight": entry([8], "F4", [0, 4])}, 4)
    with pytest.raises(LorabenchError, match=r"q\.lora_A\.weight is stored as F4, which is not read"):
        read_container(path)


def test_no_tensor_at_all(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", {}, 0)
    assert said(read_header(path)) == of_library(path) == ({}, {})
    write(path, {"__metadata__": {"ss_x": "1"}}, 0)
    assert said(read_header(path)) == of_library(path) == ({}, {"ss_x": "1"})


def test_a_large_header(tmp_path: Path) -> None:
    """Kohya's tag frequencies take megabytes, with letters of every script."""
    text = json.dumps({f"{i} 水彩 ☃ 🂡 \\": i for i in range(100_000)})
    path = tmp_path / "a.safetensors"
    keys = {f"lora_unet_{i}.alpha": torch.tensor(float(i)) for i in range(2000)}
    save_file(keys, path, {"ss_tag_frequency": text, "é": "ÿ"})
    header = read_header(path)
    assert said(header) == of_library(path)
    assert header.metadata["ss_tag_frequency"] == text
    assert read_scalars(header, list(keys)) == {key: float(value) for key, value in keys.items()}


# name -> (header, bytes after it, what the message says); the library refuses all of them too
BAD: dict[str, tuple[object, int, str]] = {
    "overlap": ({"a": entry(), "b": entry()}, 8, "the bytes of b overlap or leave a hole"),
    "partial overlap": ({"a": entry(), "b": entry(place=[4, 12])}, 12, "the bytes of b overlap"),
    "hole": ({"a": entry(), "b": entry(place=[12, 20])}, 20, "the bytes of b overlap or leave a hole"),
    "hole at the start": ({"a": entry(place=[4, 12])}, 12, "the bytes of a overlap or leave a hole"),
    "empty tensor inside another": ({"a": entry(), "b": entry([0], place=[4, 4])}, 8, "the bytes of b overlap"),
    "trailing bytes": ({"a": entry()}, 9, "1 bytes follow the last tensor"),
    "trailing bytes alone": ({}, 2, "2 bytes follow"),
    "truncated": ({"a": entry()}, 7, "truncated, 76 of 77 bytes"),
    "too few bytes": ({"a": entry([3])}, 8, r"a has 8 bytes, F32 of shape [3] needs 12"),
    "reversed offsets": ({"a": entry(place=[8, 0])}, 8, "a has -8 bytes"),
    "negative": ({"a": entry([-2])}, 8, "a has no shape, but [-2]"),
    "two negatives": ({"a": entry([-1, -2])}, 8, "a has no shape, but [-1, -2]"),
    "real": ({"a": entry([2.0])}, 8, "2.0 is no whole number"),
    "exponent": (b'{"a":{"dtype":"F32","shape":[2e0],"data_offsets":[0,8]}}', 8, "2e0 is no whole number"),
    "infinite": ({"a": entry([math.inf])}, 8, "Infinity is no whole number"),
    "nan": ({"a": entry(place=[math.nan, 8])}, 8, "NaN is no whole number"),
    "truth": ({"a": entry([True, 2])}, 8, "a has no shape, but [True, 2]"),
    "huge": ({"a": entry([2**64])}, 8, "a has an absurd shape"),
    "of 5000 digits": ({"a": entry(["N"])}, 8, "Exceeds the limit (4300 digits)"),
    "2^62": ({"a": entry([2**62])}, 8, "a has an absurd shape"),
    "2^40 by 2^40": ({"a": entry([2**40, 2**40])}, 8, "a has an absurd shape"),
    "2^62 by 2^62 by 0": ({"a": entry([2**62, 2**62, 0], place=[0, 0])}, 0, "a has an absurd shape"),
    "shape as text": ({"a": entry("ab")}, 8, "a has no shape, but 'ab'"),
    "shape as object": ({"a": entry({}, place=[0, 4])}, 4, "a has no shape, but {}"),
    "no shape": ({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, 4, "a has no shape, but None"),
    "no place": ({"a": {"dtype": "F32", "shape": []}}, 4, "a has no place, but None"),
    "three offsets": ({"a": entry(place=[0, 8, 8])}, 8, "a has no place, but [0, 8, 8]"),
    "offsets as object": ({"a": entry(place={"0": 0, "1": 8})}, 8, "a has no place"),
    "no type": ({"a": {"shape": [], "data_offsets": [0, 4]}}, 4, "a is of an unknown type, None"),
    "type in small letters": ({"a": entry(dtype="f32")}, 8, "a is of an unknown type, 'f32'"),
    "type as list": ({"a": entry(dtype=["F32"])}, 8, "a is of an unknown type, ['F32']"),
    "type as number": ({"a": entry(dtype=4)}, 8, "a is of an unknown type, 4"),
    "entry null": ({"a": None}, 0, "a is no object"),
    "entry text": ({"a": "F32"}, 0, "a is no object"),
    "metadata list": ({"__metadata__": [], "a": entry()}, 8, "__metadata__ is no object of texts"),
    "metadata text": ({"__metadata__": "x", "a": entry()}, 8, "__metadata__ is no object of texts"),
    "metadata number": ({"__metadata__": {"a": 1}, "a": entry()}, 8, "__metadata__ is no object of texts"),
    "metadata null value": ({"__metadata__": {"a": None}, "a": entry()}, 8, "__metadata__ is no object of texts"),
    "metadata twice": (b'{"__metadata__":{},"__metadata__":{}}', 0, "a key stands in it twice"),
    "list": (b"[]", 0, "a list, no object"),
    "number": (b"1234", 0, "a int, no object"),
    "not JSON": (b"{{", 0, "Expecting property name"),
    "zero byte after it": (b"{}\0\0", 0, "Extra data"),
    "byte order mark": (b"\xef\xbb\xbf{}", 0, "BOM"),
    "UTF-16": ('{"a":1}'.encode("utf-16-le"), 0, "Expecting property name"),
    "invalid UTF-8": (b'{"\xff":1}', 0, "can't decode byte 0xff"),
    "surrogate in UTF-8": (b'{"__metadata__":{"a":"\xed\xa0\x80"}}', 0, "can't decode byte 0xed"),
    "half a pair": (rb'{"__metadata__":{"a":"\ud800"}}', 0, "surrogates not allowed"),
    "control character": (b'{"__metadata__":{"a\n":""}}', 0, "Invalid control character"),
    "deep": (b'{"a":' + b"[" * 100_000, 0, "nested too deeply"),
    "empty": (b"", 2, "Expecting value"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_headers_are_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    header, data, message = BAD[name]
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = write(tmp_path / "bad.safetensors", text.replace(b'"N"', b"9" * 5000), data)
    assert of_library(path) is None
    with pytest.raises(LorabenchError) as caught:
        read_header(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("length", [9, 70, 2**31, 2**40, 2**63, 2**64 - 1, 100_000_001])
def test_a_length_beyond_the_file_is_refused_before_anything_is_read(tmp_path: Path, length: int) -> None:
    path = write(tmp_path / "a.safetensors", {"a": entry()}, 8, length=length)
    assert of_library(path) is None
    with pytest.raises(LorabenchError, match=r"truncated \(77 bytes\)|header is damaged"):
        read_header(path)


def test_a_header_over_the_limit_of_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001) + b"{}")
        file.truncate(100_000_009)  # a hole, no bytes on the disk
    assert of_library(path) is None
    with pytest.raises(LorabenchError, match="no safetensors header"):
        read_header(path)


# Where we refuse what the library takes, and why.
STRICTER: dict[str, tuple[bytes, int, str]] = {
    # of two entries of one name the library takes the last; another reader may take the first
    "key twice": (b'{"a":%s,"a":%s}', 8, "twice"),
    "metadata key twice": (b'{"__metadata__":{"x":"1","x":"2"},"a":%s}', 8, "twice"),
    # accidents of how the library is programmed; nothing writes them
    "entry as list": (b'{"a":["F32",[2],[0,8]]}', 8, "no object"),
    "type as object": (b'{"a":{"dtype":{"F32":null},"shape":[2],"data_offsets":[0,8]}}', 8, "unknown type"),
    "real number in a field that nobody knows": (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":0.5}}',
                                                 8, "0.5 is no whole number"),
    # no tensor can be of such a shape
    "dimension of 2^64 - 1": (b'{"a":{"dtype":"F32","shape":[18446744073709551615,0],"data_offsets":[0,0]}}', 0,
                              "absurd"),
    "product of the other dimensions over 2^63": (
        b'{"a":{"dtype":"F32","shape":[0,4611686018427387904,4],"data_offsets":[0,0]}}', 0, "absurd"),
    "65 dimensions": (b'{"a":{"dtype":"F32","shape":[' + b"1," * 64 + b'1],"data_offsets":[0,4]}}', 4, "no shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", STRICTER)
def test_where_we_are_stricter_than_the_library(tmp_path: Path, name: str) -> None:
    text, data, message = STRICTER[name]
    path = write(tmp_path / "a.safetensors", text.replace(b"%s", json.dumps(entry()).encode()), data)
    assert of_library(path) is not None
    with pytest.raises(LorabenchError, match=message):
        read_header(path)


def test_where_we_are_laxer_than_the_library(tmp_path: Path) -> None:
    """-0 is 0, and what stands in a field that nobody knows may be nested over 127 deep, and be of any size."""
    path = write(tmp_path / "a.safetensors", b'{"a":{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}}', 0)
    assert of_library(path) is None
    assert said(read_header(path)) == ({"a": ((0,), "F32")}, {})
    write(path, {"a": entry(x=2**64)})
    assert said(read_header(path)) == ({"a": ((2,), "F32")}, {})
    for depth, known in ((100, True), (200, False)):
        nested: Any = 1
        for _ in range(depth):
            nested = [nested]
        write(path, {"a": entry(x=nested)})
        assert (of_library(path) is not None) == known
        assert said(read_header(path)) == ({"a": ((2,), "F32")}, {})


NUMBER = st.integers(0, 24) | st.sampled_from([-1, 2**31, 2**40, 2**62, 2**63, 2**64 - 1, 2**64]) | st.booleans()
VALUE = st.none() | NUMBER | TEXT | st.lists(NUMBER, max_size=3) | st.builds(dict)
ENTRY = st.fixed_dictionaries(
    {"dtype": st.sampled_from([*DTYPE_BITS, "F32", "F32", "f32"]), "shape": st.lists(st.integers(0, 3), max_size=3)},
    optional={"format": VALUE},
)


@st.composite
def headers(draw: st.DrawFn) -> tuple[dict[str, Any], int]:
    """A valid header and the number of bytes it describes, and then perhaps one change."""
    entries: dict[str, Any] = {}
    end = 0
    for key, one in draw(st.dictionaries(st.sampled_from("abcdé"), ENTRY, max_size=4)).items():
        size = math.ceil(math.prod(one["shape"]) * DTYPE_BITS.get(one["dtype"], 32) / 8)
        entries[key] = one | {"data_offsets": [end, end + size]}
        end += size
    if draw(st.booleans()):
        entries["__metadata__"] = draw(st.dictionaries(TEXT, TEXT, max_size=2) | VALUE)
    if entries and draw(st.booleans()):
        key = draw(st.sampled_from(sorted(entries)))
        field = draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
        if isinstance(entries[key], dict):
            entries[key][field] = draw(VALUE)
    return entries, max(end + draw(st.sampled_from([0, 0, 0, 0, -1, 1])), 0)


def agree(path: Path) -> None:
    """What the library takes we take as it does, and the reverse."""
    wanted = of_library(path)
    if wanted is None and b"-0" in path.read_bytes():
        return
    if wanted is None:
        with pytest.raises(LorabenchError) as caught:
            read_header(path)
        assert str(path) in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
        return
    try:
        found = said(read_header(path))
    except LorabenchError as error:
        stricter = ("stands in it twice", "an absurd shape", "is no object", "unknown type, {", "no whole number")
        assert any(reason in str(error) for reason in stricter), error  # noqa: PT017 - see STRICTER
    else:
        assert found == wanted


@given(headers())
@settings(_SLOW, max_examples=500)
def test_agreement_on_made_headers(tmp_path: Path, made: tuple[dict[str, Any], int]) -> None:
    agree(write(tmp_path / "a.safetensors", *made))


@given(
    headers(),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255) | st.sampled_from(b'[]{}:,"0129-.eE\\ ')), max_size=3),
    st.integers(-30, 5) | st.just(0),
)
@settings(_SLOW, max_examples=500)
def test_agreement_on_damaged_files(
    tmp_path: Path, made: tuple[dict[str, Any], int], changes: list[tuple[int, int]], cut: int
) -> None:
    path = write(tmp_path / "a.safetensors", *made)
    raw = bytearray(path.read_bytes())
    for at, byte in changes:
        raw[at % len(raw)] = byte
    path.write_bytes(raw[:cut] if cut < 0 else raw + bytes(cut))
    agree(path)


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype not in (torch.complex64, torch.bool)])
def test_scalars_are_torchs_own(tmp_path: Path, dtype: torch.dtype) -> None:
    """Every value of the types of 8 bits, random ones of the others."""
    count = 256 if dtype.itemsize == 1 else 64
    values = (
        torch.arange(256).to(torch.uint8) if dtype.itemsize == 1 else random_bits((count,), dtype, 7).view(torch.uint8)
    )
    each = values.view(dtype)
    tensors = {str(i): each[i].reshape((1,) * (i % 3)).clone() for i in range(count)}
    save_file(tensors | {"none": torch.empty(0, dtype=dtype)}, tmp_path / "a.safetensors")
    header = read_header(tmp_path / "a.safetensors")
    if dtype == torch.float8_e8m0fnu:
        with pytest.raises(LorabenchError, match="0 is stored as F8_E8M0; a plain number is needed"):
            read_scalars(header, ["0"])
        return
    found = read_scalars(header, [*tensors, "none"])
    stored = {key: float(value) for key, value in tensors.items()}
    assert {key: repr(value) for key, value in found.items()} == {key: repr(value) for key, value in stored.items()}


def test_the_first_of_several_numbers(tmp_path: Path) -> None:
    save_file({"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([True])}, tmp_path / "a.safetensors")
    header = read_header(tmp_path / "a.safetensors")
    assert read_scalars(header, ["a"]) == {"a": 3.0}
    with pytest.raises(LorabenchError, match="b is stored as BOOL; a plain number is needed"):
        read_scalars(header, ["a", "b"])


def test_a_file_that_is_cut_or_gone_after_its_header_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"q.lora_A.weight": torch.ones(2, 3), "q.lora_B.weight": torch.ones(4, 2)}, path)
    header = read_header(path)
    os.truncate(path, path.stat().st_size - 40)
    with pytest.raises(LorabenchError, match="cut while it was read"):
        read_scalars(header, list(header.tensors))
    path.unlink()
    with pytest.raises(LorabenchError, match="cannot be read"):
        read_scalars(header, list(header.tensors))

    save_file({"a": torch.arange(64.0)}, path)

    def cut_first(_: Path, __: object, entries: object) -> Header:
        os.truncate(path, path.stat().st_size - 40)
        return Header(path, 0, {"a": TensorInfo((64,), "F32", 80, 80 + 256)}, {}, 80)

    monkeypatch.setattr("lorabench.adapters.reading.container.parse_header", lambda *given: cut_first(*given, None))
    with pytest.raises(LorabenchError, match="cut while it was read"):
        read_container(path)


def test_unaligned_weights(tmp_path: Path) -> None:
    """MLX does not pad its headers, so weights may begin at any byte."""
    for pad in range(9):
        head = json.dumps({"a": entry([3], "F32", [0, 12])}).encode() + b" " * pad
        path = write(tmp_path / "a.safetensors", head, struct.pack("<3f", 1, -2, 3.5))
        assert read_container(path).tensors["a"].tolist() == load_file(path)["a"].tolist() == [1, -2, 3.5]
