"""Broken and foreign adapter files: each ends in one message that names the file."""

import errno
import math
import pickle
import re
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from lorabench.adapters import LoraModule
from lorabench.adapters import load as load_adapter
from lorabench.adapters import save as save_adapter
from lorabench.errors import LorabenchError


def _module(rank: int = 2, d_in: int = 5, d_out: int = 4, scale: float = 1.0, seed: int = 0) -> LoraModule:
    generator = torch.Generator().manual_seed(seed)
    down, up = torch.randn(rank, d_in, generator=generator), torch.randn(d_out, rank, generator=generator)
    return LoraModule(down, up, scale)


def _save(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file(tensors, path, metadata)
    return path


def _pair(module: str = "h.0", rank: int = 4) -> dict[str, torch.Tensor]:
    return {
        f"base_model.model.{module}.lora_A.weight": torch.randn(rank, 6),
        f"base_model.model.{module}.lora_B.weight": torch.randn(5, rank),
    }


GOOD = {"q.lora_A.weight": torch.ones(2, 3), "q.lora_B.weight": torch.ones(4, 2)}


def _bad_tensors(change: dict[str, torch.Tensor | None]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in (GOOD | change).items() if value is not None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q.lora_A.weight": None}, "no down matrix; half of the pair"),
        ({"q.lora_B.weight": None}, "no up matrix; half of the pair"),
        ({"q.lora_A.weight": torch.full((2, 3), math.nan)}, "NaN or infinite values in q.lora_A.weight"),
        ({"q.lora_B.weight": torch.full((4, 2), math.inf)}, "NaN or infinite values in q.lora_B.weight"),
        ({"q.lora_B.weight": torch.full((4, 2), 1e300, dtype=torch.float64)}, "NaN or infinite"),
        ({"q.lora_B.weight": torch.ones(4, 3)}, "do not fit together"),
        ({"q.lora_B.weight": torch.ones(4)}, "do not fit together"),
        ({"q.lora_A.weight": torch.ones(0, 3), "q.lora_B.weight": torch.ones(4, 0)}, "do not fit together"),
        ({"q.lora_B.weight": torch.ones(4, 2, 3, 3)}, "do not fit together"),
        ({"q.lora_A.weight": torch.ones(2, 3, dtype=torch.int8)}, "I8; quantised"),
        ({"q.lora_A.default.weight": torch.ones(2, 3)}, "both the down of module q"),
        ({"q.alpha": torch.tensor(math.nan)}, "alpha of q is nan"),
        ({"q.alpha": torch.tensor(1e300, dtype=torch.float64)}, "the scale of q is 5e+299 (alpha / r)"),
        ({"q.alpha": torch.tensor(1e-300, dtype=torch.float64)}, "the scale of q is 5e-301 (alpha / r)"),
        ({"q.lora_mid.weight": torch.ones(5, 5, 1, 1)}, "Tucker core"),
        ({"q.lora_mid.weight": torch.ones(3, 2, 1, 1)}, "Tucker core"),
        ({"q.lora_mid.weight": torch.ones(2, 2, 1025)}, "Tucker core"),
        ({"q.lora_mid.weight": torch.ones(2, 2)}, "Tucker core"),
        ({"q.lora_mid.weight": torch.full((2, 2, 1, 1), 3e38)}, "NaN or infinite values in q.lora_mid.weight"),
        ({"q.lora_A.weight": torch.ones(40, 3), "q.lora_B.weight": torch.ones(40, 2, 1)}, "do not fit together"),
        ({"q.lora_A.weight": torch.ones(4, 3), "q.lora_B.weight": torch.ones(5, 2, 1)}, "do not fit together"),
        ({"q.lora_B.weight": torch.ones(())}, "do not fit together"),
        ({"q.lora_E": torch.full((2, 1), 3e38), "q.lora_A.weight": torch.full((2, 3), 9.0)}, "NaN or infinite"),
        ({"q.lora_E": torch.ones(3, 1)}, "(adalora) do not fit together"),
        (dict.fromkeys(GOOD) | {"q.weight": torch.ones(2)}, "full_weight: q.weight"),
        (dict.fromkeys(GOOD) | {"q.hada_w1_a": torch.ones(2), "q.alpha": torch.ones(())},
         "(loha) lacks w1_b, w2_a, w2_b; it"),
        ({"q.lora_E": torch.ones(2, 1), "q.lora_A.weight": None}, "module q (adalora) lacks down; it has"),
        ({"q.ranknum": torch.ones(1)}, "module q (adalora) lacks lora_E; it has"),
        (dict.fromkeys(GOOD), "no tensors at all"),
    ],
)  # fmt: skip
def test_bad_tensors_are_refused(tmp_path: Path, change: dict[str, torch.Tensor | None], message: str) -> None:
    path = _save(tmp_path / "bad.safetensors", _bad_tensors(change))
    with pytest.raises(LorabenchError, match=re.escape(message)) as caught:
        load_adapter(path)
    assert "bad.safetensors" in str(caught.value)


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("evil"),))  # pragma: no cover


def _bytes(kind: str, folder: Path) -> bytes:
    if kind == "safetensors":
        return _save(folder / "good.safetensors", GOOD).read_bytes()
    torch.save(GOOD, folder / "good.pt", _use_new_zipfile_serialization=kind == "zip")
    return (folder / "good.pt").read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.safetensors", b"", "is empty"),
        ("a.bin", b"", "is empty"),
        ("a.safetensors", b"\x01\x02", "truncated"),
        ("a.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("a.bin", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("a.safetensors", b'{\n  "lora": 1}', "JSON text"),
        ("a.safetensors", b"<!DOCTYPE html><html></html>", "web page"),
        ("a.pt", b"<html>not found</html>", "web page"),
        ("a.safetensors", b"GGUF" + b"\0" * 40, "GGUF"),
        ("a.safetensors", b"\xff" * 100, "truncated"),
        ("a.safetensors", struct.pack("<Q", 4) + b"{{{{" + b"\0" * 9, "header is damaged"),
        ("a.safetensors", struct.pack("<Q", 8) + b'{"a": 1}', "header is damaged"),
        ("a.safetensors", struct.pack("<Q", 2) + b"{}", "no tensors at all"),
        ("a.bin", b"hello, world, this is text", "damaged, or holds more than tensors"),
        ("a.ckpt", b"hello", "adapter files end in"),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(LorabenchError, match=message) as caught:
        load_adapter(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("zip", "a.safetensors", "zip archive.*Rename it to end in .bin"),
        ("legacy", "a.safetensors", "pickle.*Rename it to end in .bin"),
        ("safetensors", "a.bin", "is a safetensors file. Rename"),
    ],
)
def test_misnamed_files(tmp_path: Path, kind: str, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(_bytes(kind, tmp_path))
    with pytest.raises(LorabenchError, match=message):
        load_adapter(tmp_path / name)


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, kind: str) -> None:
    data = _bytes(kind, tmp_path)
    path = tmp_path / ("cut.safetensors" if kind == "safetensors" else "cut.bin")
    path.write_bytes(data)
    assert load_adapter(path).modules["q"].rank == 2
    for length in sorted(
        {0, 1, 7, 8, 9, 20, len(data) // 2, len(data) - 1} | set(range(30, len(data), len(data) // 25))
    ):
        path.write_bytes(data[:length])
        with pytest.raises(LorabenchError, match=re.escape(str(path))):
            load_adapter(path)


@given(at=st.integers(0, 2000), byte=st.integers(0, 255), kind=st.sampled_from(["safetensors", "zip", "legacy"]))
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_byte_never_gives_another_error(tmp_path: Path, at: int, byte: int, kind: str) -> None:
    data = bytearray(_bytes(kind, tmp_path))
    data[at % len(data)] = byte
    path = tmp_path / ("x.safetensors" if kind == "safetensors" else "x.bin")
    path.write_bytes(data)
    try:
        adapter = load_adapter(path)
    except LorabenchError as error:
        assert str(path) in str(error)  # noqa: PT017 - either outcome is right
    else:
        assert all(bool(torch.isfinite(m.down).all()) for m in adapter.modules.values())


def test_pickles_are_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for protocol in (2, 4):
        (tmp_path / "a.bin").write_bytes(pickle.dumps({"q.lora_A": _Evil()}, protocol=protocol))
        with pytest.raises(LorabenchError, match="Pickles are never run"):
            load_adapter(tmp_path / "a.bin")
    torch.save({"q.lora_A": _Evil()}, tmp_path / "b.pt")
    with pytest.raises(LorabenchError, match="Pickles are never run"):
        load_adapter(tmp_path / "b.pt")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "holds a int"),
        ([torch.ones(2, 2)], "one is missing"),
        ({"step": 1}, "other: step"),
    ],
)
def test_checkpoints_of_something_else(tmp_path: Path, value: object, message: str) -> None:
    torch.save(value, tmp_path / "a.pt")
    with pytest.raises(LorabenchError, match=message):
        load_adapter(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "adapter_config.json: not valid JSON"),
        ("{", "Repair it."),
        ("[]", "a JSON object is expected, a list came"),
        ('{"lora_alpha": "many"}', "lora_alpha in adapter_config.json is 'many'"),
        ('{"alpha_pattern": {"(": 1}}', "no regular expression"),
        ('{"alpha_pattern": [1]}', "alpha_pattern in adapter_config.json is no JSON object"),
        ('{"alpha_pattern": {"(?=h)": 1}}', "no regular expression that is read here"),
        ('{"lora_alpha": NaN}', "lora_alpha in adapter_config.json is nan; a finite number is needed"),
        ('{"lora_alpha": true}', "lora_alpha in adapter_config.json is True"),
        ('{"lora_alpha": 1' + "0" * 400 + "}", "a finite number is needed"),
        ('{"lora_alpha": 1' + "0" * 5000 + "}", "adapter_config.json: not valid JSON"),
        ('{"lora_alpha": ' + "[" * 150 + "]" * 150 + "}", "nested too deeply"),
    ],
)
def test_bad_configurations(tmp_path: Path, text: str, message: str) -> None:
    _save(tmp_path / "adapter_model.safetensors", _pair())
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(LorabenchError, match=re.escape(message)) as caught:
        load_adapter(tmp_path)
    assert "ake it away" not in str(caught.value)  # without it the scale would be a wrong one


@pytest.mark.parametrize("r", ["1" + "0" * 309, "0", "-3", "[8]", "true"])
def test_an_impossible_r_of_a_lokr_without_rank(tmp_path: Path, r: str) -> None:
    whole = {"w1": torch.ones(2, 2), "w2": torch.ones(2, 3)}
    _save(
        tmp_path / "adapter_model.safetensors",
        {f"base_model.model.h.lokr_{part}": one for part, one in whole.items()},
    )
    (tmp_path / "adapter_config.json").write_text(f'{{"peft_type": "LOKR", "alpha": 8, "r": {r}}}')
    with pytest.raises(LorabenchError, match=r"r in adapter_config\.json is .* needed"):
        load_adapter(tmp_path)


def test_paths_that_hold_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(LorabenchError, match="no such file or folder"):
        load_adapter(tmp_path / "nowhere.safetensors")
    with pytest.raises(LorabenchError, match="it holds nothing"):
        load_adapter(tmp_path)
    for name in ("a.safetensors", "b.safetensors"):
        _save(tmp_path / name, GOOD)
    with pytest.raises(LorabenchError, match=r"it holds a\.safetensors, b\.safetensors"):
        load_adapter(tmp_path)
    _save(tmp_path / "adapter_model.safetensors", GOOD)
    assert load_adapter(tmp_path).path.name == "adapter_model.safetensors"


def test_writing_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    modules = {"unet.conv_in": _module()}
    with pytest.raises(LorabenchError, match="layout='onnx': allowed are peft, diffusers, diffusers-peft"):
        save_adapter(tmp_path / "a.safetensors", modules, "onnx")
    with pytest.raises(LorabenchError, match="without modules"):
        save_adapter(tmp_path / "a.safetensors", {}, "kohya")
    with pytest.raises(LorabenchError, match=r"ends in \.safetensors"):
        save_adapter(tmp_path / "a.onnx", modules, "kohya")
    with pytest.raises(LorabenchError, match="'lora_unet_x' cannot be written"):
        save_adapter(tmp_path / "a.safetensors", {"lora_unet_x": _module()}, "diffusers")
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").write_text("x")
    with pytest.raises(LorabenchError, match="something else is there"):
        save_adapter(tmp_path / "precious", modules, "peft")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["precious"]


@pytest.mark.parametrize("layout", ["kohya", "peft"])
def test_a_full_disk_leaves_the_old_adapter(tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / ("a.safetensors" if layout == "kohya" else "a")
    save_adapter(path, {"unet.conv_in": _module()}, layout)
    before = sorted((file, file.read_bytes()) for file in tmp_path.rglob("*") if file.is_file())

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace" if layout == "kohya" else "os.fsync", fail)
    with pytest.raises(LorabenchError, match="the disk is full"):
        save_adapter(path, {"unet.conv_in": _module(seed=1)}, layout)
    assert sorted((file, file.read_bytes()) for file in tmp_path.rglob("*") if file.is_file()) == before
    monkeypatch.undo()
    save_adapter(path, {"unet.conv_in": _module(seed=1)}, layout)
    assert torch.equal(load_adapter(path).modules["unet.conv_in"].up, _module(seed=1).up)
