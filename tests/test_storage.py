"""Writing: every refusal is one line that says what to do, links stay, and rights are as they should be."""

import errno
import hashlib
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from lorabench import storage
from lorabench.adapters import LoraModule
from lorabench.adapters import save as save_adapter
from lorabench.adapters.__main__ import main
from lorabench.errors import LorabenchError, explain_disk_errors, explain_writing
from lorabench.storage import (
    append_line,
    file_sha256,
    files_hash,
    locked,
    new_folder,
    replace_file,
    write_chunks,
    write_file,
    write_peft_folder,
)

PAIR = {"adapter_config.json": (b"{}",), "adapter_model.safetensors": (b"new",)}
proc = pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="there is no /proc")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    modules = {f"unet.attn.to_{p}": LoraModule(torch.randn(2, 6), torch.randn(5, 2), 1.0) for p in "qk"}
    save_adapter(tmp_path / "in" / "peft", modules, "peft")
    return save_adapter(tmp_path / "in" / "a.safetensors", modules, "kohya")


COMMANDS: dict[str, tuple[str, Callable[[str, str], list[str]]]] = {
    "convert": (".safetensors", lambda a, out: ["convert", a, "--to", "diffusers", "-o", out]),
    "convert to peft": ("", lambda a, out: ["convert", a, "--to", "peft", "-o", out]),
    "resize": (".safetensors", lambda a, out: ["resize", a, "--rank", "1", "-o", out]),
    "plot": (".png", lambda a, out: ["plot", a, "--kind", "blocks", "-o", out]),
    "pca": (".json", lambda a, out: ["pca", a, "-o", out]),
    "figure": (".png", lambda a, out: ["pca", a, "--figure", out]),
    "scan": (".csv", lambda a, out: ["inspect", str(Path(a).parent), "--output", out]),
    "edit": (".safetensors", lambda a, out: ["inspect", a, "--set", "x=y", "-o", out]),
    "edit to a folder": ("", lambda a, out: ["inspect", str(Path(a).parent / "peft"), "--set", "x=y", "-o", out]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_an_output_that_cannot_be_made_is_one_line(
    name: str, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ending, words = COMMANDS[name]
    (tmp_path / "file").write_text("mine")
    (tmp_path / f"folder{ending}" / "more").mkdir(parents=True)
    outputs = [
        f"{tmp_path}/{'x' * 300}{ending}",
        f"{tmp_path}/file/x{ending}",
        f"{tmp_path}/folder{ending}",
        f"{tmp_path}/a\0b{ending}",
        *([f"/proc/x{ending}", f"/proc/x/y{ending}"] if Path("/proc/self").is_dir() else []),
    ]
    for out in outputs:
        for more in ([], ["--force"]):
            assert main([*words(str(adapter), out), *more]) == 1, out
            said = capsys.readouterr()
            assert said.out == ""
            assert said.err.count("\n") == 1
            assert "Free some space" not in said.err
            assert "--force" not in said.err, "a folder is not replaced whatever is said"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file", f"folder{ending}", "in"]


@proc
def test_the_reason_and_the_way_out_are_said(tmp_path: Path) -> None:
    with pytest.raises(LorabenchError, match=r"^cannot write /proc/x: nothing can be made there\. Choose another"):
        write_chunks(Path("/proc/x"), [b""])
    with pytest.raises(LorabenchError, match=r"the name is too long\. Choose another place; nothing half-written"):
        write_peft_folder(tmp_path / ("x" * 300), PAIR)
    with pytest.raises(LorabenchError, match="the name holds a NUL character"):
        write_file(tmp_path / "a\0.safetensors", [b""])
    with pytest.raises(LorabenchError, match="a device or a pipe"):
        write_chunks(Path("/dev/null"), [b""])
    (tmp_path / "null.csv").symlink_to("/dev/null")
    with pytest.raises(LorabenchError, match="a device or a pipe"):
        write_chunks(tmp_path / "null.csv", [b""])
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.ENOSPC, "cannot write p: the disk is full. Free some space, or go."),
        (errno.ENOTDIR, "cannot write p: a part of this path is a file. Go."),
        (errno.EEXIST, "cannot write p: a part of this path is a file. Go."),
        (errno.EROFS, "cannot write p: the file system is read-only. Go."),
        (errno.EIO, f"cannot write p: {os.strerror(errno.EIO)}. Go."),
        (errno.ETIMEDOUT, f"cannot write p: {os.strerror(errno.ETIMEDOUT)}. Go."),
    ],
)
def test_every_error_of_the_system_is_explained(code: int, expected: str) -> None:
    with pytest.raises(LorabenchError) as caught, explain_writing(Path("p"), "Free some space, or go."):
        raise OSError(code, "x")
    assert str(caught.value) == expected


def test_errors_of_reading_pass_where_both_are_done() -> None:
    with pytest.raises(FileNotFoundError), explain_disk_errors(Path("p"), "Go."):
        raise FileNotFoundError(errno.ENOENT, "x")
    with (
        pytest.raises(LorabenchError, match=r"is a file\. Go\."),
        explain_disk_errors(Path("p"), "Free some space or go."),
    ):
        raise NotADirectoryError(errno.ENOTDIR, "x")
    with pytest.raises(ValueError, match="other"), explain_writing(Path("p"), "Go."):
        raise ValueError("other")


def test_the_longest_name_is_written(tmp_path: Path) -> None:
    path = tmp_path / ("ü" * 121 + ".safetensors")  # 254 of 255 bytes
    write_file(path, [b"x"])
    write_peft_folder(tmp_path / ("y" * 255), PAIR)
    write_peft_folder(tmp_path / ("y" * 255), PAIR)
    assert path.read_bytes() == b"x"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.skipif(os.name == "nt", reason="rights of POSIX")
def test_rights_follow_the_umask_which_is_never_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.umask(0o027)
    try:
        with monkeypatch.context() as patched:  # threads share the umask: who sets it opens the files of all others
            patched.setattr(os, "umask", lambda _: pytest.fail("the umask was set"))
            write_chunks(tmp_path / "new", [b"x"])
            write_peft_folder(tmp_path / "folder", PAIR)
            (tmp_path / "own").write_bytes(b"")
            (tmp_path / "own").chmod(0o600)
            write_chunks(tmp_path / "own", [b"x"])
    finally:
        os.umask(before)
    modes = {path.relative_to(tmp_path).as_posix(): stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes == {
        "new": 0o640,
        "own": 0o600,
        "folder": 0o750,
        "folder/adapter_config.json": 0o640,
        "folder/adapter_model.safetensors": 0o640,
    }


@pytest.mark.parametrize("exchange", [True, False])
def test_links_stay_and_what_they_lead_to_is_replaced(
    exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:
        monkeypatch.setattr(storage.sys, "platform", "elsewhere")
    real = tmp_path / "there"
    real.mkdir()
    write_peft_folder(real / "folder", PAIR | {"adapter_model.safetensors": (b"old",)})
    (real / "file").write_bytes(b"old")
    for name in ("folder", "file"):
        (tmp_path / name).symlink_to(real / name)
    write_peft_folder(tmp_path / "folder", PAIR)
    write_chunks(tmp_path / "file", [b"new"])
    assert (tmp_path / "folder").is_symlink()
    assert (tmp_path / "file").is_symlink()
    assert (real / "folder" / "adapter_model.safetensors").read_bytes() == b"new"
    assert (real / "file").read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "there"]
    assert sorted(path.name for path in real.iterdir()) == ["file", "folder"]


def test_a_folder_with_more_than_an_adapter_is_not_replaced(tmp_path: Path) -> None:
    write_peft_folder(tmp_path / "a", PAIR)
    (tmp_path / "a" / "README.md").write_text("mine")
    with pytest.raises(LorabenchError, match="something else is there"):
        write_peft_folder(tmp_path / "a", PAIR)
    assert (tmp_path / "a" / "README.md").read_text() == "mine"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_an_answer_that_cannot_be_written_is_one_line(adapter: Path) -> None:
    command = [sys.executable, "-m", "lorabench.adapters", "inspect", str(adapter)]
    with Path("/dev/full").open("w") as full:
        found = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    expected = f"lorabench-adapter: cannot write the answer: {os.strerror(errno.ENOSPC)}\n"
    assert (found.returncode, found.stderr) == (1, expected)


def test_failures_are_json_as_well(adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(adapter), "--to", "kohya", "-o", str(adapter), "--json"]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out).keys() == {"error"}
    assert said.err == f"lorabench-adapter convert: {json.loads(said.out)['error']}\n"
    assert main(["convert", str(adapter), "--to", "kohya", "-o", str(adapter)]) == 1
    assert capsys.readouterr().out == ""


def test_a_file_is_replaced_by_text_bytes_or_chunks_and_an_error_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    for content, expected in (("ä", "ä"), (b"b", "b"), (iter([b"c", b"d"]), "cd")):
        replace_file(path, content, durable=False)
        assert path.read_text() == expected

    def cut() -> Iterator[bytes]:
        yield b"half"
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        replace_file(path, cut())
    assert path.read_text() == "cd"
    assert list(path.parent.iterdir()) == [path]


def test_a_line_is_appended_behind_one_that_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "journal"
    append_line(path, "first")
    append_line(path, "second")
    path.write_text(path.read_text() + "cut")
    append_line(path, "third")
    assert path.read_text() == "first\nsecond\ncut\nthird\n"


def test_a_new_folder_takes_its_place_whole_or_not_at_all(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "folder"
    for text in ("old", "new"):
        with new_folder(place) as partial:
            (partial / text).write_text(text)
            assert partial != place
        assert [path.name for path in place.iterdir()] == [text]
    with pytest.raises(OSError, match="half"), new_folder(place) as partial:
        (partial / "half" / "file").touch()
    with pytest.raises(LorabenchError, match="somebody wrote into it meanwhile"), new_folder(place, replace=False):
        pass
    assert [path.name for path in place.iterdir()] == ["new"]
    assert list(place.parent.iterdir()) == [place]


def test_checksums_are_those_of_the_bytes(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_bytes(b"x = 1")
    assert file_sha256(file) == hashlib.sha256(b"x = 1").hexdigest()
    before = files_hash(file, file)
    assert before == files_hash(file, file) != files_hash(file)
    file.rename(tmp_path / "b.py")
    assert files_hash(tmp_path / "b.py", tmp_path / "b.py") != before


def test_a_lock_lets_one_at_a_time_go_on(tmp_path: Path) -> None:
    order: list[str] = []

    def wait() -> None:
        with locked(tmp_path / "deep" / "lock"):
            order.append("second")

    other = threading.Thread(target=wait)
    with locked(tmp_path / "deep" / "lock"):
        other.start()
        other.join(0.2)
        order.append("first")
    other.join(10)
    assert order == ["first", "second"]
    (tmp_path / "file").touch()
    with (
        pytest.raises(LorabenchError, match=r"cannot write .*Mend it\."),
        locked(tmp_path / "file" / "lock", "Mend it."),
    ):
        pass
