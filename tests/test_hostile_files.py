"""What somebody may put in our way on purpose: special files, archives that unpack to anything, pickles that lie."""

import io
import math
import os
import pickle
import re
import socket
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lorabench.adapters import load
from lorabench.adapters.reading import limits
from lorabench.adapters.reading.container import read_container
from lorabench.adapters.reading.header import parse_json, read_header, read_json
from lorabench.adapters.reading.table import read_table
from lorabench.errors import LorabenchError

GOOD = {"q.lora_A.weight": torch.ones(2, 3), "q.lora_B.weight": torch.ones(4, 2)}


def good(path: Path) -> Path:
    save_file(GOOD, path)
    return path


def refused(path: Path) -> str:
    """The message of `load`, which must be one line, and the same for the table of the file."""
    with pytest.raises(LorabenchError) as caught:
        load(path)
    with pytest.raises(LorabenchError, match=re.escape(str(caught.value))):
        read_table(path)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def archive(path: Path, records: dict[str, bytes], kind: int = zipfile.ZIP_STORED, attributes: int = 0) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, data in records.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = attributes
            file.writestr(info, data, kind)
    return path


def records_of(value: object) -> dict[str, bytes]:
    file = io.BytesIO()
    torch.save(value, file)
    with zipfile.ZipFile(file) as found:
        return {name: found.read(name) for name in found.namelist()}


def test_pipes_sockets_and_devices_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a pipe would wait for ever for somebody to write."""
    os.mkfifo(tmp_path / "a.safetensors")
    assert "no file, but a folder, pipe or device" in refused(tmp_path / "a.safetensors")
    os.mkfifo(tmp_path / "a.bin")
    assert "no file, but a folder, pipe or device" in refused(tmp_path / "a.bin")
    (tmp_path / "z.safetensors").symlink_to("/dev/zero")
    assert "no file, but a folder, pipe or device" in refused(tmp_path / "z.safetensors")
    with socket.socket(socket.AF_UNIX) as made:
        monkeypatch.chdir(tmp_path)  # a socket's path is short
        made.bind("s.safetensors")
        assert "no file, but a folder, pipe or device" in refused(tmp_path / "s.safetensors")
    (tmp_path / "run").mkdir()
    good(tmp_path / "run" / "adapter_model.safetensors")
    os.mkfifo(tmp_path / "run" / "adapter_config.json")
    assert "adapter_config.json: this is no file" in refused(tmp_path / "run")


def test_folders_named_like_files(tmp_path: Path) -> None:
    folder = tmp_path / "a.safetensors"
    folder.mkdir()
    assert "it holds nothing" in refused(folder)
    good(folder / "b.safetensors")
    assert load(folder).path.name == "b.safetensors"
    with pytest.raises(LorabenchError, match="no file, but a folder"):
        read_header(folder)
    (folder / "adapter_config.json").mkdir()
    assert "adapter_config.json: this is no file" in refused(folder)
    with pytest.raises(LorabenchError, match="no file"):
        read_json(folder)


def test_links(tmp_path: Path) -> None:
    """The hub's cache is made of links, so they are followed; to nowhere or in a circle they are refused."""
    (tmp_path / "link.safetensors").symlink_to(good(tmp_path / "a.safetensors"))
    assert load(tmp_path / "link.safetensors").modules["q"].rank == 2
    (tmp_path / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    assert "no such file" in refused(tmp_path / "gone.safetensors")
    (tmp_path / "round.safetensors").symlink_to(tmp_path / "round.safetensors")
    assert "round.safetensors" in refused(tmp_path / "round.safetensors")
    assert "a" * 300 in refused(tmp_path / ("a" * 300 + ".safetensors"))
    assert r"\x00" in refused(tmp_path / "a\0.safetensors")


def test_a_folder_that_may_not_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", fail)
    assert "cannot be read (Permission denied)" in refused(tmp_path)


def test_names_from_a_file_reach_the_terminal_escaped(tmp_path: Path) -> None:
    key = "\x1b[2J\n\u202eevil\r"
    save_file({f"{key}.lora_A.weight": torch.ones(2, 3)}, tmp_path / "a.safetensors")
    with pytest.raises(LorabenchError, match=r"full_weight: \\x1b\[2J\\n\\u202eevil\\r\.lora_A"):
        load(tmp_path / "a.safetensors")
    save_file({"a" * 100_000 + ".lora_A.weight": torch.ones(2, 3)}, tmp_path / "a.safetensors")
    with pytest.raises(LorabenchError, match="half of the pair is missing") as caught:
        load(tmp_path / "a.safetensors")
    assert len(str(caught.value)) < 5000
    assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args  # noqa: S301 - our own


def test_archives_that_unpack_to_much_more(tmp_path: Path) -> None:
    records = records_of({"q.lora_A.weight": torch.zeros(2000, 3000), "q.lora_B.weight": torch.zeros(4, 2000)})
    path = archive(tmp_path / "a.bin", records, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    assert re.search(r"its \d{5} bytes unpack to 240\d{5}, over 16 times as many", refused(path))
    archive(path, records)
    assert load(path).modules["q"].rank == 2000


def test_records_that_lie_on_each_other(tmp_path: Path) -> None:
    """A bomb without compression: every entry of the directory is the same bytes."""
    path = archive(tmp_path / "a.bin", {f"archive/data/{i}": bytes(2**16 * (i == 0)) for i in range(2000)})
    raw = path.read_bytes()
    entries = [match.start() for match in re.finditer(b"PK\x01\x02", raw)]
    found = bytearray(raw)
    for at in entries[1:]:
        found[at + 16 : at + 28] = raw[entries[0] + 16 : entries[0] + 28]  # checksum and both sizes
        found[at + 42 : at + 46] = raw[entries[0] + 42 : entries[0] + 46]  # where it lies
    path.write_bytes(found)
    assert "times as many" in refused(path) or "damaged" in refused(path)


def test_tensors_that_unfold_one_number(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    torch.save({"q.lora_A.weight": torch.ones(1, 1).expand(2**20, 2**20)}, path)
    assert path.stat().st_size < 5000
    assert f"unpack to {4 * 2**40}, over 16 times" in refused(path)
    torch.save([torch.ones(1, 1).expand(2**20, 2**20)] * 2, tmp_path / "a.pt")
    assert "over 16 times" in refused(tmp_path / "a.pt")


def test_tied_weights_are_no_bomb(tmp_path: Path) -> None:
    down, up = torch.randn(2, 300), torch.randn(400, 2)
    tied = {f"h.{i}.lora_{part}": value for i in range(8) for part, value in (("A", down), ("B", up))}
    torch.save(tied, tmp_path / "a.bin")
    assert len(load(tmp_path / "a.bin").modules) == 8


def test_records_marked_as_folders(tmp_path: Path) -> None:
    """Torch gives such a record's tensor whatever the memory held before."""
    path = archive(tmp_path / "a.bin", records_of(GOOD), attributes=0x10)
    assert "a record is marked as a folder" in refused(path)
    archive(path, records_of(GOOD))
    assert load(path).modules["q"].up.tolist() == GOOD["q.lora_B.weight"].tolist()


@pytest.mark.parametrize("numel", [5, 2**20, 2**40, 2**62])
def test_storages_of_another_size_than_their_record(tmp_path: Path, numel: int) -> None:
    records = records_of({"q.lora_A.weight": torch.ones(2, 2), "q.lora_B.weight": torch.ones(2, 2)})
    name = next(name for name in records if name.endswith("data.pkl"))
    raw = numel.to_bytes(8, "little")
    assert records[name].count(b"K\x04t") == 2  # the number of elements, last of a storage's names
    for change in (b"\x8a\x08" + raw + b"t", b"\x8a\x09" + raw + b"\0t"):
        path = archive(tmp_path / "a.bin", records | {name: records[name].replace(b"K\x04t", change)})
        assert "does not match expected size" in refused(path) or "damaged" in refused(path)


def test_older_pickles_with_tensors_of_no_values(tmp_path: Path) -> None:
    """Torch leaves a storage that the file does not hold as it found the memory."""
    file = io.BytesIO()
    torch.save(GOOD, file, _use_new_zipfile_serialization=False)
    raw = file.getvalue()
    (tmp_path / "a.bin").write_bytes(raw)
    assert load(tmp_path / "a.bin").modules["q"].rank == 2
    last = raw.rindex(b"\x80\x02]")  # the list of the storages that follow, and then their bytes
    end = raw.index(b"e.", last)
    keys = pickle.loads(raw[last : end + 2])  # noqa: S301 - our own
    sizes = [8 + 4 * int.from_bytes(raw[end + 2 : end + 10], "little")]
    (tmp_path / "a.bin").write_bytes(
        raw[:last] + pickle.dumps(keys[:1], protocol=2) + raw[end + 2 : end + 2 + sizes[0]]
    )
    assert torch.load(tmp_path / "a.bin", weights_only=True).keys() == GOOD.keys()  # torch itself takes it
    assert "there are no values for a tensor" in refused(tmp_path / "a.bin")


def test_tar_archives_are_not_unpacked(tmp_path: Path) -> None:
    """Torch of 2016 wrote them; reading one unpacks it to the disk and follows the links in it."""
    (tmp_path / "secret").write_bytes(pickle.dumps(0, protocol=2))
    for first in ("storages", "\udc80\x02."):  # the second begins like a pickle
        with tarfile.open(tmp_path / "a.bin", "w", errors="surrogateescape") as made:
            for name in (first, "storages", "tensors", "pickle"):
                info = tarfile.TarInfo(name)
                info.type, info.linkname = tarfile.SYMTYPE, str(tmp_path / "secret")
                made.addfile(info)
        assert "damaged, or holds more than tensors" in refused(tmp_path / "a.bin")


def test_names_that_are_no_text(tmp_path: Path) -> None:
    torch.save({1: torch.ones(2, 2), "1": torch.ones(2, 2)}, tmp_path / "a.bin")
    assert "two of its names are one name" in refused(tmp_path / "a.bin")
    torch.save(GOOD | {("x", 1): torch.ones(1), 7: 0}, tmp_path / "a.bin")
    found = load(tmp_path / "a.bin")
    assert found.unsupported == {"other": ("a tuple", "7")}


@pytest.mark.parametrize(
    "tensors",
    [
        {"q.lokr_w1": torch.ones(2000, 200), "q.lokr_w2": torch.ones(200, 2000)},
        {"q.lokr_w1": torch.ones(200, 200), "q.lokr_w2_a": torch.ones(2000, 50), "q.lokr_w2_b": torch.ones(50, 2000)},
        {"q.hada_w1_a": torch.ones(20_000, 200), "q.hada_w1_b": torch.ones(200, 20_000),
         "q.hada_w2_a": torch.ones(20_000, 200), "q.hada_w2_b": torch.ones(200, 20_000)},
        {"q.hada_w1_a": torch.ones(1, 1), "q.hada_w1_b": torch.ones(1, 20_000), "q.hada_t1": torch.ones(1, 1, 20_000),
         "q.hada_w2_a": torch.ones(1, 1), "q.hada_w2_b": torch.ones(1, 20_000), "q.hada_t2": torch.ones(1, 1, 20_000)},
    ],
    ids=["lokr", "lokr of factors", "loha", "loha of a Tucker core"],
)  # fmt: skip
def test_small_factors_of_a_huge_update(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "a.safetensors"
    save_file(tensors, path)
    with pytest.raises(LorabenchError, match=rf"module q \(lo\w+\) unfolds to \d+ numbers, {limits.MOST_ENTRIES} are"):
        load(path)


def test_a_loha_whose_halves_differ_in_size(tmp_path: Path) -> None:
    """They would be stretched over each other in silence."""
    halves = {"w1_a": (1, 1), "w1_b": (1, 5), "w2_a": (4, 1), "w2_b": (1, 5)}
    save_file({f"q.hada_{part}": torch.ones(shape) for part, shape in halves.items()}, tmp_path / "a.safetensors")
    with pytest.raises(LorabenchError, match=r"\(loha\) do not fit together"):
        load(tmp_path / "a.safetensors")


def test_weights_stay_what_they_were_when_the_file_changes(tmp_path: Path) -> None:
    """They are no view of the file: a mapped file that another program cuts would kill the process."""
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.arange(5000.0)}, path)
    found = read_container(path).tensors["a"]
    path.write_bytes(b"")
    assert torch.equal(found, torch.arange(5000.0))


def test_json_of_others(tmp_path: Path) -> None:
    path = tmp_path / "adapter_config.json"
    assert read_json(path) == {}
    path.write_bytes(b'\xef\xbb\xbf{"r": 8, "x": NaN}')
    found = read_json(path)
    assert found["r"] == 8
    assert math.isnan(found["x"])
    path.write_bytes(b'{"r": ' + b"9" * 5000 + b"}")
    with pytest.raises(LorabenchError, match="not valid JSON"):
        read_json(path)
    for depth in (101, 990, 200_000):
        path.write_bytes(b"[" * depth + b"]" * depth)
        with pytest.raises(LorabenchError, match="nested too deeply"):
            read_json(path)
    assert parse_json("[" * 100 + "]" * 100) is not None
    path.write_bytes(b"")
    os.truncate(path, 10**10)  # a hole, no bytes on the disk
    with pytest.raises(LorabenchError, match="10000000000 bytes of JSON"):
        read_json(path)
