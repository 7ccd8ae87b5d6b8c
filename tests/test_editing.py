"""Editing metadata: the tensors' bytes stay, hashes are right, nothing is half-written, nothing private stays."""

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lorabench import storage
from lorabench.adapters import load
from lorabench.adapters.__main__ import main
from lorabench.adapters.metadata.editing import edit, foresee_edit
from lorabench.adapters.metadata.redaction import is_private, redact, redact_config
from lorabench.adapters.reading.hashes import check_hashes
from lorabench.adapters.reading.header import read_header
from lorabench.errors import LorabenchError
from tests.real_adapters import SHARED, published, real
from tests.test_hashes import kohya, shuffled

TENSORS = {
    "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.randn(2, 6),
    "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": torch.randn(5, 2),
    "lora_unet_mid_block_attentions_0_proj_in.alpha": torch.tensor(2.0),
}
PRIVATE = {
    "ss_session_id": "123456",
    "ss_training_started_at": "1680716500.77",
    "ss_training_finished_at": "1680721307.24",
    "ss_tag_frequency": '{"3_alice": {"red hair": 5}}',
    "ss_dataset_dirs": '{"3_alice": {"n_repeats": 3, "img_count": 9}}',
    "ss_reg_dataset_dirs": "{}",
    "ss_datasets": '[{"subsets": [{"image_dir": "/home/alice/x"}]}]',
    "ss_training_comment": "for alice",
    "ss_output_name": "alice_v3",
    "ot_config": '{"concepts": []}',
    "sample_prompts": "alice on a beach",
    "wandb.run_name": "alice-1",
    "cache_dir": "/home/alice/.cache",
    "hostname": "alices-box",
}
KEPT = {
    "ss_learning_rate": "1e-4",
    "ss_network_dim": "2",
    "ss_max_token_length": "225",
    "ss_bucket_info": '{"buckets": {"0": {"resolution": [512, 512], "count": 9}}}',
    "modelspec.title": "Foxes 1/2",
    "modelspec.author": "alice",
    "modelspec.thumbnail": "data:image/jpeg;base64,/9j/4AAQ",
    "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
    "modelspec.description": "and/or it is 24/7; see https://example.org/home/x",
    "ss_resolution": "(512, 512)",
    "ss_base": "runwayml/stable-diffusion-v1-5",
}


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def data_of(path: Path) -> bytes:
    raw = path.read_bytes()
    return raw[8 + int.from_bytes(raw[:8], "little") :]


def write(path: Path, metadata: dict[str, str]) -> Path:
    save_file(TENSORS, path, metadata)
    return path


def test_values_are_set_and_unset_and_the_tensors_are_the_same_bytes(tmp_path: Path) -> None:
    path = shuffled(tmp_path / "a.safetensors", TENSORS, {"a": "1", "b": "2", "ünï": "ç"})
    before = path.read_bytes()
    done = edit(path, tmp_path / "b.safetensors", values={"a": "0=1", "new": 'x\n"y" é😀'}, unset=["b"])
    assert metadata_of(tmp_path / "b.safetensors") == {"a": "0=1", "new": 'x\n"y" é😀', "ünï": "ç"}
    assert data_of(tmp_path / "b.safetensors") == data_of(path)
    assert path.read_bytes() == before
    assert (done.removed, done.changed) == (("b",), {"a": ("1", "0=1"), "new": (None, 'x\n"y" é😀')})
    loaded = load_file(tmp_path / "b.safetensors")
    assert all(torch.equal(loaded[key], tensor) for key, tensor in TENSORS.items())
    assert read_header(tmp_path / "b.safetensors").data % 8 == 0
    assert (tmp_path / "b.safetensors").stat().st_mode == path.stat().st_mode


def test_the_last_entry_can_go(tmp_path: Path) -> None:
    edit(write(tmp_path / "a.safetensors", {"x": "1"}), tmp_path / "b.safetensors", unset=["x"])
    assert metadata_of(tmp_path / "b.safetensors") == {}
    assert load(tmp_path / "b.safetensors").modules.keys() == load(tmp_path / "a.safetensors").modules.keys()


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(st.dictionaries(TEXT, TEXT, max_size=4), st.dictionaries(TEXT.filter(bool), TEXT, min_size=1, max_size=3))
@settings(max_examples=40, deadline=None)
def test_any_text_can_be_set(
    tmp_path_factory: pytest.TempPathFactory, old: dict[str, str], values: dict[str, str]
) -> None:
    folder = tmp_path_factory.mktemp("edit")
    edit(write(folder / "a.safetensors", old), folder / "b.safetensors", values=values)
    assert metadata_of(folder / "b.safetensors") == old | values


def test_hashes_are_recomputed_where_the_file_bears_them(tmp_path: Path) -> None:
    big = TENSORS | {"lora_unet_conv_in.lora_down.weight": torch.randn(600, 1000)}
    metadata = {"ss_network_dim": "2"}
    save_file(big, tmp_path / "a.safetensors", metadata | kohya(big, metadata) | {"modelspec.title": "x"})
    edit(tmp_path / "a.safetensors", tmp_path / "b.safetensors", values={"ss_note": "y" * 5000})
    after = metadata_of(tmp_path / "b.safetensors")
    expected = kohya(big, {"ss_network_dim": "2", "ss_note": "y" * 5000})
    assert {key: after[key] for key in expected} == expected
    assert expected["sshs_legacy_hash"] != metadata_of(tmp_path / "a.safetensors")["sshs_legacy_hash"]
    assert all(one.ok for one in check_hashes(read_header(tmp_path / "b.safetensors")).values())
    edit(write(tmp_path / "c.safetensors", metadata), tmp_path / "d.safetensors", values={"x": "1"})
    assert not any(key.startswith("sshs_") for key in metadata_of(tmp_path / "d.safetensors"))


@pytest.mark.parametrize("redacted", [True, False])
def test_what_is_foreseen_is_what_an_edit_does(tmp_path: Path, redacted: bool) -> None:
    path, wish = tmp_path / "a.safetensors", {"values": {"x": "2", "new": "3"}, "unset": ["gone"], "redacted": redacted}
    save_file(TENSORS, path, {**PRIVATE, "x": "1", "gone": "y", "sshs_model_hash": "0" * 64})
    before = path.read_bytes()
    planned = foresee_edit(path, **wish)
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (before, [path])
    done = edit(path, tmp_path / "b.safetensors", **wish)
    assert planned.removed == done.removed
    assert planned.anew == ("sshs_model_hash",)
    assert planned.changed == {key: pair for key, pair in done.changed.items() if key not in planned.anew}


def test_an_edit_that_cannot_be_is_not_foreseen(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(TENSORS, path, {"x": "1"})
    with pytest.raises(LorabenchError, match="no such entry"):
        foresee_edit(path, unset=["y"])


def test_hashes_can_be_dropped_but_not_given(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", {"sshs_model_hash": "0", "sshs_legacy_hash": "1"})
    with pytest.raises(LorabenchError, match="computed, not given"):
        edit(path, tmp_path / "b.safetensors", values={"sshs_model_hash": "f"})
    edit(path, tmp_path / "b.safetensors", unset=["sshs_legacy_hash"])
    assert metadata_of(tmp_path / "b.safetensors") == {"sshs_model_hash": kohya(TENSORS, {})["sshs_model_hash"]}


def test_nothing_is_written_over_without_force(tmp_path: Path) -> None:
    path, other = write(tmp_path / "a.safetensors", {"x": "1"}), tmp_path / "b.safetensors"
    other.write_bytes(b"mine")
    for out in (path, other):
        with pytest.raises(LorabenchError, match="--force"):
            edit(path, out, values={"x": "2"})
    assert (metadata_of(path), other.read_bytes()) == ({"x": "1"}, b"mine")
    data = data_of(path)
    edit(path, path, values={"x": "2"}, force=True)
    assert (metadata_of(path), data_of(path)) == ({"x": "2"}, data)


def test_wrong_wishes_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", {"x": "1"})
    out = tmp_path / "b.safetensors"
    with pytest.raises(LorabenchError, match=r"--unset y: .*no such entry. There are x"):
        edit(path, out, unset=["y"])
    with pytest.raises(LorabenchError, match="needs a name"):
        edit(path, out, values={"": "y"})
    with pytest.raises(LorabenchError, match="half a character"):
        edit(path, out, values={"x": "\udcff"})
    torch.save(TENSORS, tmp_path / "p.bin")
    with pytest.raises(LorabenchError, match="Convert it first"):
        edit(tmp_path / "p.bin", out, values={"x": "2"})
    (tmp_path / "file").write_text("")
    with pytest.raises(LorabenchError, match="new or empty"):
        edit(path, tmp_path / "file", values={"x": "2"})
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.safetensors", "file", "p.bin"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.safetensors", {"x": "1"})
    before = path.read_bytes()

    def fail(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(storage.os, "fsync", fail)
    with pytest.raises(KeyboardInterrupt):
        edit(path, path, values={"x": "2"}, force=True)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["a.safetensors"]


def test_redaction_takes_what_is_private_and_nothing_else(tmp_path: Path) -> None:
    edit(write(tmp_path / "a.safetensors", PRIVATE | KEPT), tmp_path / "b.safetensors", redacted=True)
    assert metadata_of(tmp_path / "b.safetensors") == KEPT
    assert data_of(tmp_path / "b.safetensors") == data_of(tmp_path / "a.safetensors")
    assert not any(map(is_private, KEPT))


@pytest.mark.parametrize(
    ("value", "left"),
    [
        ("/home/alice/models/base model.safetensors", "base model.safetensors"),
        (r"E:\huggingface\hub\models--a--b-1\snapshots\0f\text_encoder", "a/b-1"),
        (r"\\alices-box\share\x.ckpt", "x.ckpt"),
        ("~/sd/x.ckpt", "x.ckpt"),
        ("../alice/x.ckpt", "x.ckpt"),
        ("file:///home/alice/x.ckpt", "x.ckpt"),
        ("AdamW(state=/home/alice/opt.pt,eps=1e-8)", "AdamW(state=opt.pt,eps=1e-8)"),
        ('{"unet.base_model_name_or_path": "/data/alice/sd15", "unet.r": 4}',
         '{"unet.base_model_name_or_path": "sd15", "unet.r": 4}'),
        ('{"a": [{"p": "C:\\\\Users\\\\alice\\\\x.txt"}], "n": NaN}', '{"a": [{"p": "x.txt"}], "n": NaN}'),
        ('["a",   1]', '["a",   1]'),
        ("{broken /home/alice/x", "{broken x"),
        ("see /datasets/john/dogs", "see dogs"),
        ("see /datasets/john/dogs/1.png", "1.png"),
        (r"C:\Users\jo hn\my data\x.png", "x.png"),
        (r"\\box\share\jo hn\x.png", "x.png"),
        ("see file:///datasets/john/dogs", "see dogs"),
        ("file:///home/jo%20hn/my secret/x.png", "x.png"),
        ("s3://bucket/john/x.ckpt", "x.ckpt"),
        ("$HOME/john/x.ckpt", "x.ckpt"),
        ("datasets/john/dogs", "dogs"),
        (r"train\john\1.png", "1.png"),
        ("from '/home/jo hn/x y' and \"C:\\a b\\c\"", "from 'x y' and \"c\""),
        ("a=/mnt/john/x\nb=/mnt/mary/y", "a=x\nb=y"),
        ("/home/alice", ""), (r"C:\Users\alice", ""), ("~alice/", ""), ("at /Users/alice", "at "),
        ('{"a": {"user": "alice", "n": 1}, "cmd": "x /home/jo hn/y z"}', '{"a": {"n": 1}}'),
        ('{"a": "at /home/jo hn/y now"}', '{"a": ""}'),
        ('{"job": "train", "config": {"name": "alice_v3", "process": [{"name": "sd_trainer"}]}}',
         '{"job": "train", "config": {"process": [{"name": "sd_trainer"}]}}'),
        ('{"name": "ai-toolkit", "author": "alice", "meta": {"Name": "alice", "version": "1"}}',
         '{"name": "ai-toolkit", "meta": {"version": "1"}}'),
        ('{"author": {"name": "alice"}, "full_name": "alice", "run": "alice", "job_config": {"name": "alice"}}',
         '{"job_config": {}}'),
        ('{"scheduler": {"config": {"name": "cosine"}}, "train_config": {"name": "adamw"}, "project": {"dim": 2}}',
         '{"scheduler": {"config": {"name": "cosine"}}, "train_config": {"name": "adamw"}, "project": {"dim": 2}}'),
        ('{"modelspec": {"author": "alice"}, "metadata": {"name": "SDXL base"}}',
         '{"modelspec": {"author": "alice"}, "metadata": {"name": "SDXL base"}}'),
        ('{"authors": ["alice"], "config": {"optimizer": {"name": "adamw"}, "name": {"r": 4}}}',
         '{"config": {"optimizer": {"name": "adamw"}, "name": {"r": 4}}}'),
        (r'{"a": "{\"b\": \"/home/alice/x.png\"}"}', r'{"a": "{\"b\": \"x.png\"}"}'),
    ],
)  # fmt: skip
def test_paths_become_their_last_part(value: str, left: str) -> None:
    assert redact({"ss_x": value}) == {"ss_x": left}


@pytest.mark.parametrize(
    "value",
    [
        "path=/home/jo hn/my secret/x.safetensors end",
        r"load C:\Users\jo hn\my data\x.png now",
        "see file:///home/jo hn/x.png now",
        "/mnt/john/a b.png\n/mnt/john/c.png",
        "at /home/alice smith",
        "it's /home/o'neil/x",
        "alice@box:/data/x.png",
        "see https://alice:secret@example.org/x.git",
        "smb://alices-box",
        "x/home/alice/y z",
        "(/mnt/john smith/x, 3)",
    ],
)
def test_an_entry_goes_whole_where_a_path_may_have_blanks(value: str) -> None:
    assert redact({"ss_x": value, "n": "1"}) == {"n": "1"}


@pytest.mark.parametrize("value", [*KEPT.values(), "<p>a</p><br/><b>x</b>", "2024/01/02", "owner/name", "km/h or m/s"])
def test_what_is_no_path_stays(value: str) -> None:
    assert redact({"ss_x": value}) == {"ss_x": value}


@pytest.mark.parametrize("key", ["workflow", "prompt", "extra_pnginfo", "parameters", "comfy.workflow", "hf_token"])
def test_graphs_and_prompts_of_interfaces_go_whole(key: str) -> None:
    assert redact({key: '{"3": {"inputs": {"text": "alice"}}}', "n": "1"}) == {"n": "1"}


WORDS = ["/", "\\", " ", "a", ":", "home", ".png", "~", "'", '"', ",", "=", "\n", "\0", "http://", "@", "x y", "{"]


@given(st.lists(st.sampled_from(WORDS), max_size=8), st.lists(st.sampled_from(WORDS), max_size=8))
@settings(max_examples=500, deadline=None)
def test_no_folder_of_a_path_survives(before: list[str], after: list[str]) -> None:
    text = f"{''.join(before)} /home/sEcReT/p{''.join(after)}/x"
    assert "sEcReT" not in str(redact({"ss_x": text}))
    text = f"{''.join(before)} /data/my sEcReT/x.png{''.join(after)}"
    assert "sEcReT" not in str(redact({"ss_x": text}))


def test_names_of_modules_are_no_paths() -> None:
    config = {"target_modules": r".*\.(q|v)_proj", "rank_pattern": {r"^a/b/c\.x": 4}, "cwd": "/home/alice"}
    assert redact_config(config) == {key: config[key] for key in ("target_modules", "rank_pattern")}


def test_redaction_takes_linear_time() -> None:
    for text in ("/a" * 200_000, "/home" + "/" * 300_000 + "x/y z", "a/" * 200_000 + " b", "'/a/ " * 60_000,
                 "https://" * 60_000, "a.png/ " * 30_000, " /" * 200_000, "a-" * 200_000):  # fmt: skip
        start = time.process_time()
        redact({"ss_x": text})
        assert time.process_time() - start < 20  # a search that begins anew at every letter takes minutes


@pytest.mark.parametrize(
    ("name", "private", "rate"),
    [
        ("kohya/style.safetensors", ("fox", "alice", "2945453505"), "1e-4"),
        *published(("KohakuBlueleaf__LyCORIS/result/smart_falcon_8_lokr.safetensors",
                    ("falcon", "smf girl", "2945453505"), "0.0003")),
    ],
)  # fmt: skip
def test_real_files_are_redacted(name: str, private: tuple[str, ...], rate: str, tmp_path: Path) -> None:
    path = real(name)
    assert all(word in json.dumps(metadata_of(path)) for word in private)
    edit(path, tmp_path / "b.safetensors", redacted=True)
    assert not any(word in json.dumps(metadata_of(tmp_path / "b.safetensors")) for word in private)
    assert metadata_of(tmp_path / "b.safetensors")["ss_learning_rate"] == rate
    assert [one.ok for one in check_hashes(read_header(tmp_path / "b.safetensors")).values()] == [True] * 2
    assert data_of(tmp_path / "b.safetensors") == data_of(path)


def test_configurations_of_real_adapters_are_redacted(real_folder: Path) -> None:
    """Beside PEFT's adapters the configuration bears the path."""
    configs = [json.loads(one.read_text()) for one in real_folder.rglob("adapter_config.json")]
    local = [one for one in configs if "cache" in str(one.get("base_model_name_or_path"))]
    assert sorted(redact_config(one)["base_model_name_or_path"] for one in local) == (
        ["benjamin-paine/stable-diffusion-v1-5", "stabilityai/stable-diffusion-xl-base-1.0"]
        if real_folder == SHARED
        else ["google-bert/bert-base-uncased"] * 2
    )
    assert all({**one, "base_model_name_or_path": 0} == {**redact_config(one), "base_model_name_or_path": 0}
               for one in local)  # fmt: skip


def test_a_peft_folder_keeps_its_configuration(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    keys = {
        "base_model.model.q.lora_A.weight": torch.randn(2, 3),
        "base_model.model.q.lora_B.weight": torch.randn(4, 2),
    }
    save_file(keys, source / "adapter_model.safetensors", {"x": "/home/alice/y"})
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 7, "base_model_name_or_path": "/home/alice/base"}
    (source / "adapter_config.json").write_text(json.dumps(config))
    done = edit(source, tmp_path / "out", redacted=True)
    assert done.path == tmp_path / "out" / "adapter_model.safetensors"
    written = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert written == config | {"base_model_name_or_path": "base"}
    assert load(tmp_path / "out").modules["q"].scale == 3.5
    alone = edit(source, tmp_path / "alone.safetensors", redacted=True)
    assert "not copied" in alone.notes[0]
    with pytest.raises(LorabenchError, match="--force"):
        edit(source, tmp_path / "out", redacted=True)
    edit(source, tmp_path / "out", unset=["x"], force=True)
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text()) == config
    assert metadata_of(tmp_path / "out" / "adapter_model.safetensors") == {}


@pytest.mark.parametrize("moment", ["weights", "configuration", "exchange"])
def test_an_interruption_leaves_the_old_pair_whole(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    save_file({"base_model.model.q.lora_A.weight": torch.ones(2, 3)}, folder / "adapter_model.safetensors", {"x": "1"})
    (folder / "adapter_config.json").write_text('{"r": 2, "base_model_name_or_path": "/home/alice/base"}')
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    calls = []

    def fail(handle: int) -> None:
        calls.append(handle)
        if len(calls) == {"configuration": 1, "weights": 2, "exchange": 3}[moment]:
            raise KeyboardInterrupt

    monkeypatch.setattr(storage.os, "fsync", fail)
    with pytest.raises(KeyboardInterrupt):
        edit(folder, folder, redacted=True, force=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    monkeypatch.undo()
    (tmp_path / "link").symlink_to(folder)
    edit(folder, tmp_path / "link", values={"x": "2"}, redacted=True, force=True)
    assert metadata_of(folder / "adapter_model.safetensors") == {"x": "2"}
    assert json.loads((folder / "adapter_config.json").read_text()) == {"r": 2, "base_model_name_or_path": "base"}
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "link"]


def test_a_configuration_that_stays_private_beside_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", {"x": "1"})
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "/home/alice/base"}')
    done = edit(path, path, redacted=True, force=True)
    assert "stays as it is, paths included" in done.notes[0]
    assert edit(path, path, values={"x": "2"}, force=True).notes == ()


def test_the_command_line_edits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.safetensors", {"ss_session_id": "7", "b": "/home/alice/x", "c": "1"})
    out = str(tmp_path / "b.safetensors")
    assert main(["inspect", str(path), "--redact", "--set", "title=a=b", "--unset", "c", "-o", out]) == 0
    text = capsys.readouterr().out
    assert "removed  ss_session_id" in text
    assert "set      title = a=b" in text
    assert metadata_of(Path(out)) == {"b": "x", "title": "a=b"}
    assert main(["inspect", str(path), "--redact", "-o", out]) == 1
    assert "--force" in capsys.readouterr().err
    assert main(["inspect", str(path), "--redact", "-o", out, "--force", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["changed"]["b"] == {"before": "/home/alice/x", "now": "x"}
    for wrong in (["--redact"], ["-o", out], ["--set", "nothing", "-o", out], ["--set", "=x", "-o", out]):
        with pytest.raises(SystemExit) as caught:
            main(["inspect", str(path), *wrong])
        assert caught.value.code == 2
    capsys.readouterr()


def test_editing_needs_no_torch(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", {"sshs_model_hash": "0"})
    code = (
        "import sys; from lorabench.adapters.__main__ import main; assert main(sys.argv[1:]) == 0; "
        "assert not {'torch', 'numpy', 'safetensors'} & set(sys.modules), 'heavy imports'"
    )
    command = [sys.executable, "-c", code, "inspect", str(path), "--set", "a=b", "-o", str(tmp_path / "b.safetensors")]
    subprocess.run(command, check=True, capture_output=True)
    digest = hashlib.sha256(data_of(tmp_path / "b.safetensors")).hexdigest()
    assert digest == hashlib.sha256(data_of(path)).hexdigest()
