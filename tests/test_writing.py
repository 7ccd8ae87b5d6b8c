"""Writing adapters: layouts, types, metadata and hashes, and what an interruption leaves."""

import hashlib
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load as load_tensors
from safetensors.torch import save as serialise

from lorabench.adapters import Adapter, LoraModule, load, save
from lorabench.adapters.commands.common import write_result
from lorabench.adapters.writing.saving import layout_of
from lorabench.errors import LorabenchError

LAYOUTS = ("diffusers", "peft", "kohya")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def _pair(d_out: int = 4, d_in: int = 5, rank: int = 2, scale: float = 1.0, **kind: Any) -> LoraModule:
    return LoraModule(torch.randn(rank, d_in), torch.randn(d_out, rank), scale, **kind)


def _delta(module: LoraModule) -> np.ndarray:
    return module.scale * (module.up.double().numpy() @ module.down.double().numpy())


def _target(folder: Path, layout: str) -> Path:
    return folder / ("out" if layout == "peft" else "out.safetensors")


def _file(path: Path) -> Path:
    return path / "adapter_model.safetensors" if path.is_dir() else path


def _raw(path: Path) -> dict[str, torch.Tensor]:
    return load_tensors(_file(path).read_bytes())


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(_file(path), "pt") as file:
        found: dict[str, str] = file.metadata()
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kernel", [(3, 3), (1, 1), (1, 3), (3,), (3, 1, 1)])
def test_convolutions_get_their_kernel_back(tmp_path: Path, layout: str, kernel: tuple[int, ...]) -> None:
    size = int(np.prod(kernel))
    module = _pair(4, 5 * size, 2, kernel=kernel)
    path = save(_target(tmp_path, layout), {"unet.conv_in": module}, layout)
    down, up = (next(v for k, v in _raw(path).items() if re.search(pattern, k)) for pattern in ("down|A", "up|B"))
    assert (tuple(down.shape), tuple(up.shape)) == ((2, 5, *kernel), (4, 2, *(1 for _ in kernel)))
    if len(kernel) == 2:  # what a convolution by both factors does is what one by ΔW does
        x = torch.randn(1, 5, 6, 6)
        conv = torch.nn.functional.conv2d
        torch.testing.assert_close(
            conv(conv(x, down), up), conv(x, module.delta().reshape(4, 5, *kernel)), rtol=1e-4, atol=1e-4
        )
    back = load(path).modules["unet.conv_in"]
    assert back.kernel == kernel
    assert torch.equal(back.down, module.down)


@given(
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from([None, "stored", torch.float16, torch.bfloat16, torch.float64]),
    scale=st.one_of(st.floats(-64.0, 64.0, width=32).filter(lambda x: x == 0 or abs(x) > 2**-6), st.just(0.0)),
    rank=st.integers(1, 9),
    kernel=st.sampled_from([(), (3, 3), (1, 1)]),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_delta_survives_to_the_rounding_of_the_type(
    tmp_path: Path, layout: str, dtype: Any, scale: float, rank: int, kernel: tuple[int, ...], seed: int
) -> None:
    torch.manual_seed(seed)
    size = int(np.prod(kernel)) if kernel else 1
    module = _pair(4, 3 * size, rank, scale, kernel=kernel, dtype=torch.bfloat16)
    kind = {None: torch.float32, "stored": torch.bfloat16}.get(dtype, dtype)
    path = save(_target(tmp_path, layout), {"unet.conv_in": module}, layout, dtype=dtype)
    assert {v.dtype for k, v in _raw(path).items() if not k.endswith("alpha")} == {kind}
    back = load(path).modules["unet.conv_in"]
    eps = max(torch.finfo(kind).eps, 2**-23)
    rows = np.linalg.norm(module.up.double(), axis=1)[:, None] * np.linalg.norm(module.down.double(), axis=0)[None]
    assert (abs(_delta(back) - _delta(module)) <= 2 * eps * abs(scale) * rows + 1e-6 * eps).all()
    assert back.dtype == kind


def test_stored_types_are_kept_module_by_module(tmp_path: Path) -> None:
    kinds = {"a": torch.float16, "b": torch.bfloat16, "c": torch.float32, "d": torch.float8_e4m3fn}
    modules = {f"unet.{name}": _pair(dtype=kind) for name, kind in kinds.items()}
    raw = _raw(save(tmp_path / "a.safetensors", modules, "diffusers", dtype="stored"))
    found = {name: raw[f"unet.{name}.lora.up.weight"].dtype for name in kinds}
    assert found == kinds | {"d": torch.bfloat16}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("size", "message"), [(1e5, r"is 1e\+05, 65504 is allowed"), (1e-9, "it would be all zero")])
def test_values_that_float16_cannot_hold_are_refused(tmp_path: Path, layout: str, size: float, message: str) -> None:
    modules = {"unet.fine": _pair(), "unet.to_q": LoraModule(torch.full((2, 5), size), torch.ones(4, 2))}
    path = save(_target(tmp_path, layout), {"unet.fine": _pair()}, layout)
    before = _file(path).read_bytes()
    with pytest.raises(LorabenchError, match=f"of module unet.to_q in torch.float16: .*{message}"):
        save(path, modules, layout, dtype=torch.float16)
    assert _file(path).read_bytes() == before
    save(path, modules, layout, dtype=torch.bfloat16)
    assert load(path).modules["unet.to_q"].down[0, 0] == torch.tensor(size, dtype=torch.bfloat16).float()


def test_an_untrained_module_is_no_underflow(tmp_path: Path) -> None:
    module = LoraModule(torch.randn(2, 5), torch.zeros(4, 2), 1e-9)
    path = save(tmp_path / "a.safetensors", {"unet.to_q": module}, "diffusers", dtype=torch.float16)
    assert not load(path).modules["unet.to_q"].up.any()


@pytest.mark.parametrize("scale", [1e-6, 1e6, -1e-6])
def test_a_scale_that_float16_cannot_carry_alone_is_shared(tmp_path: Path, scale: float) -> None:
    module = _pair(scale=scale)
    assert not torch.isfinite((module.up * 1e6).half()).all()  # up alone would not do
    path = save(tmp_path / "a.safetensors", {"unet.to_q": module}, "diffusers", dtype=torch.float16)
    rows = np.linalg.norm(module.up.double(), axis=1)[:, None] * np.linalg.norm(module.down.double(), axis=0)[None]
    error = abs(_delta(load(path).modules["unet.to_q"]) - _delta(module))
    assert (error <= 2 * 2**-10 * abs(scale) * rows).all()


def test_kohya_never_gets_an_alpha_of_zero(tmp_path: Path) -> None:
    """sd-scripts reads 0 as "no alpha", which is a scale of 1."""
    raw = _raw(save(tmp_path / "a.safetensors", {"unet.conv_in": _pair(scale=0.0)}, "kohya"))
    assert raw["lora_unet_conv_in.alpha"] == 2.0
    assert not raw["lora_unet_conv_in.lora_up.weight"].any()


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_embeddings_have_no_place_but_peft(tmp_path: Path, layout: str) -> None:
    with pytest.raises(LorabenchError, match=f"the {layout} layout has no place .*unet.table"):
        save(tmp_path / "a.safetensors", {"unet.table": _pair(embedding=True)}, layout)
    assert not list(tmp_path.iterdir())


def test_peft_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(LorabenchError, match="a PEFT adapter is a folder"):
        save(tmp_path / "a.safetensors", {"q": _pair()}, "peft")


NAMES = ("conv_in", "refiner.conv_in", "h.1", "h.10", "h.1x", "a+b", "a(b", "a.b", "a-b", "axb", "naïve", "$x", "^x")


def test_peft_patterns_meet_their_module_and_no_other(tmp_path: Path) -> None:
    """By PEFT 0.21's own rules, written down here anew: fullmatch, and a key for the end of a name."""
    modules = {name: _pair(rank=i + 1, scale=1 / (i + 1)) for i, name in enumerate(NAMES)}
    save(tmp_path / "p", modules, "peft")
    config = json.loads((tmp_path / "p" / "adapter_config.json").read_text())
    for name in [*NAMES, "x.conv_in", "xh.1", "h.1.1", "b", "1", "h"]:
        assert bool(re.fullmatch(config["target_modules"], name)) == (name in modules)
    for name, module in modules.items():
        rank, alpha = (
            next((v for k, v in config[key].items() if re.match(rf"(.*\.)?({k})$", name)), config[common])
            for key, common in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha"))
        )
        assert (rank, alpha / rank) == (module.rank, module.scale)


def test_peft_options_of_the_base_model_are_kept(tmp_path: Path) -> None:
    config = {
        "base_model_name_or_path": "gpt2", "fan_in_fan_out": True, "task_type": "CAUSAL_LM", "use_rslora": True,
        "r": 99, "use_dora": True, "modules_to_save": ["head"], "rank_pattern": {"x": 1}, "target_modules": ["x"],
    }  # fmt: skip
    adapter = Adapter(tmp_path / "x", ("peft",), {"h.0": _pair(scale=0.5)}, config=config)
    save(tmp_path / "p", adapter, "peft")
    said = json.loads((tmp_path / "p" / "adapter_config.json").read_text())
    assert said["base_model_name_or_path"] == "gpt2"
    assert said["fan_in_fan_out"] is True
    assert said["task_type"] == "CAUSAL_LM"
    assert (said["use_rslora"], said["r"], said["lora_alpha"], said["modules_to_save"]) == (False, 2, 1.0, None)
    assert said.get("use_dora", False) is False
    mlx = Adapter(tmp_path / "x", ("mlx",), {"h.0": _pair()}, config={"model": "org/base", "fine_tune_type": "lora"})
    save(tmp_path / "m", mlx, "peft")
    said = json.loads((tmp_path / "m" / "adapter_config.json").read_text())
    assert said["base_model_name_or_path"] == "org/base"


TRAINED = {
    "ss_network_dim": "128",
    "ss_network_alpha": "64.0",
    "ss_network_args": json.dumps({"conv_dim": "32", "conv_alpha": 16, "algo": "loha", "dropout": "0.1"}),
    "ss_output_name": "naïve",
    "sshs_model_hash": "stale",
    "sshs_legacy_hash": "stale",
    "modelspec.hash_sha256": "0xstale",
    "modelspec.title": "t",
}


def _trained(modules: dict[str, LoraModule], **change: str) -> Adapter:
    return Adapter(Path("x"), ("kohya",), modules, metadata=TRAINED | change)


def test_ranks_and_alphas_in_the_metadata_are_those_of_the_file(tmp_path: Path) -> None:
    modules = {
        "unet.conv_in": _pair(4, 27, 3, 2.0, kernel=(3, 3)),
        "unet.mid_block.attentions.0.proj_in": _pair(4, 5, 8, 0.5, kernel=(1, 1)),
        "unet.mid_block.attentions.0.proj_out": _pair(4, 5, 8, 0.5),
    }
    said = _metadata(save(tmp_path / "a.safetensors", _trained(modules), "kohya"))
    assert (said["ss_network_dim"], said["ss_network_alpha"]) == ("8", "4.0")
    arguments = {"conv_dim": "3", "conv_alpha": 6.0, "algo": "lora", "dropout": "0.1"}
    assert json.loads(said["ss_network_args"]) == arguments
    # the layout of diffusers has no alpha, so that it is the rank
    said = _metadata(save(tmp_path / "b.safetensors", _trained(modules), "diffusers"))
    assert (said["ss_network_dim"], said["ss_network_alpha"]) == ("8", "8.0")
    # without conv_dim one number speaks for all of them
    said = _metadata(save(tmp_path / "c.safetensors", _trained(modules, ss_network_args="{}"), "kohya"))
    assert (said["ss_network_dim"], said["ss_network_alpha"], said["ss_network_args"]) == ("Dynamic", "Dynamic", "{}")


@pytest.mark.parametrize("text", ["null", "None", "[1]", '{"conv_dim": null}', "{broken"])
def test_odd_network_args_stay_or_are_put_right(tmp_path: Path, text: str) -> None:
    adapter = _trained({"unet.conv_in": _pair(4, 27, 3, kernel=(3, 3))}, ss_network_args=text, ss_network_dim="3.0")
    said = _metadata(save(tmp_path / "a.safetensors", adapter, "kohya"))
    assert said["ss_network_args"] == ('{"conv_dim": 3}' if "conv_dim" in text else text)
    assert said["ss_network_dim"] == "3.0"  # right already


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [5, 120_000])
def test_hashes_by_their_definition(tmp_path: Path, layout: str, size: int) -> None:
    """DEFINITIONS.md, by safetensors and hashlib alone; 120,000 columns make more than the legacy hash looks at."""
    modules = {"unet.conv_in": _pair(4, size, 3), "unet.conv_out": _pair()}
    path = save(_target(tmp_path, layout), _trained(modules), layout, metadata={"lorabench_note": "x"})
    said, data = _metadata(path), _file(path).read_bytes()
    own = {key: value for key, value in said.items() if key.startswith("ss_")}
    alone = serialise(_raw(path), own)
    (length,) = struct.unpack("<Q", alone[:8])
    assert said["sshs_model_hash"] == hashlib.sha256(alone[8 + length :]).hexdigest()
    assert said["sshs_legacy_hash"] == hashlib.sha256(alone[0x100000:0x110000]).hexdigest()[:8]
    (length,) = struct.unpack("<Q", data[:8])
    assert said["modelspec.hash_sha256"] == "0x" + hashlib.sha256(data[8 + length :]).hexdigest()
    assert length % 8 == 0  # as safetensors aligns its data
    assert (said["lorabench_note"], said["ss_output_name"], said["modelspec.title"]) == ("x", "naïve", "t")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_hashes_come_with_kohya_alone_where_there_were_none(tmp_path: Path, layout: str) -> None:
    said = _metadata(save(_target(tmp_path, layout), {"unet.conv_in": _pair()}, layout))
    assert ("sshs_model_hash" in said) == (layout == "kohya")
    assert "modelspec.hash_sha256" not in said


@pytest.mark.parametrize(
    ("schemes", "name", "config", "file", "expected"),
    [
        (("kohya",), "unet.x", {}, "a.safetensors", "kohya"),
        (("lycoris",), "unet.x", {}, "a.safetensors", "kohya"),
        (("diffusers", "kohya"), "unet.x", {}, "a.safetensors", "kohya"),
        (("diffusers-old",), "down_blocks.0.x", {}, "a.bin", "diffusers"),
        (("cloneofsimo",), "unet.0", {}, "a.pt", "diffusers"),
        (("peft",), "h.0", {"r": 8}, "adapter_model.safetensors", "peft"),
        (("peft",), "unet.x", {"r": 8}, "adapter_model.safetensors", "peft"),
        (("peft",), "unet.x", {}, "pytorch_lora_weights.safetensors", "diffusers"),
        (("peft",), "transformer.transformer_blocks.0", {}, "flux.safetensors", "diffusers"),
        (("peft",), "transformer.h.0.attn", {}, "gpt2.safetensors", "peft"),
        (("peft",), "transformer.blocks.0", {}, "adapter_model.bin", "peft"),
        (("mlx",), "model.layers.0", {"rank": 8}, "adapters.safetensors", "peft"),
        (("loralib",), "layer.0", {}, "a.bin", "peft"),
        (("sam",), "w_0", {}, "a.safetensors", "peft"),
    ],
)
def test_the_nearest_layout(schemes: Any, name: str, config: Any, file: str, expected: str) -> None:
    assert layout_of(Adapter(Path(file), schemes, {name: _pair()}, config=config)) == expected


def test_a_commands_result_is_written_where_and_how_its_options_say(tmp_path: Path) -> None:
    adapter = Adapter(tmp_path / "x", ("kohya",), {"unet.conv_in": _pair(dtype=torch.float16)}, metadata={"a": "1"})
    out = tmp_path / "deep" / "o.safetensors"
    args = Namespace(out=out, force=False, layout=None, dtype=None)
    assert write_result(args, adapter, {"b": "2"}) == out
    assert _raw(out)["lora_unet_conv_in.lora_up.weight"].dtype == torch.float16
    assert {"a": "1", "b": "2"}.items() <= _metadata(out).items()
    with pytest.raises(LorabenchError, match=r"exists already.*--force"):
        write_result(args, adapter, {})
    write_result(Namespace(out=out, force=True, layout="diffusers", dtype="bfloat16"), adapter, {})
    assert _raw(out)["unet.conv_in.lora.up.weight"].dtype == torch.bfloat16
    sdxl = Adapter(tmp_path / "x", ("kohya",), {"unet.input_blocks.0.0": _pair()})
    write_result(Namespace(out=out, force=True, layout="diffusers", dtype=None), sdxl, {})
    assert "unet.conv_in.lora.up.weight" in _raw(out)


LOOP = """
import sys, torch
from pathlib import Path
from lorabench.adapters import LoraModule, save
folder = Path(sys.argv[1])
both = [{"unet.conv_in": LoraModule(torch.full((64, 20000), v), torch.full((64, 64), v))} for v in (1.0, 2.0)]
while True:
    for modules in both:
        save(folder / "a.safetensors", modules, "kohya")
        save(folder / "p", modules, "peft")
        print("written", flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_a_killed_writer_leaves_one_whole_adapter(tmp_path: Path) -> None:
    """Killed at any moment of one write after the other, what is there is the old adapter or the new one."""
    for delay in (0.001, 0.03):
        writer = subprocess.Popen([sys.executable, "-c", LOOP, str(tmp_path)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"written\n"
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        for name in ("a.safetensors", "p"):
            module = load(tmp_path / name).modules["unet.conv_in"]
            value = float(module.up[0, 0])
            assert value in (1.0, 2.0)
            assert bool((module.up == value).all()) and bool((module.down == value).all())  # noqa: PT018


STOPPED = """
import os, signal, sys, torch
from pathlib import Path
from lorabench.adapters import LoraModule, save
def stop(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
path, layout, place = sys.argv[1:]
setattr(os if place == "fsync" else Path, place, stop)
save(path, {"unet.conv_in": LoraModule(torch.ones(2, 5), torch.ones(4, 2))}, layout)
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
@pytest.mark.parametrize(("layout", "place"), [("kohya", "fsync"), ("kohya", "replace"), ("peft", "fsync")])
def test_a_writer_killed_before_its_end_leaves_the_old_file(tmp_path: Path, layout: str, place: str) -> None:
    path = save(_target(tmp_path, layout), {"unet.conv_in": _pair()}, layout)
    before = {file.name: file.read_bytes() for file in (path.iterdir() if path.is_dir() else [path])}
    done = subprocess.run([sys.executable, "-c", STOPPED, path, layout, place], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert {file.name: file.read_bytes() for file in (path.iterdir() if path.is_dir() else [path])} == before
    assert len(load(tmp_path if layout == "kohya" else path).modules) == 1  # what is left over is no adapter file


def test_a_folder_that_cannot_be_exchanged_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system has no exchange, and the second rename fails, the old folder lies where it lay."""
    monkeypatch.setattr("lorabench.storage.sys.platform", "elsewhere")
    path = save(tmp_path / "p", {"q": _pair()}, "peft")
    before = _file(path).read_bytes()
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if Path(target) == path and not self.name.endswith("-old"):
            raise PermissionError(13, "no")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(LorabenchError, match="permission denied"):
        save(path, {"q": _pair(rank=3)}, "peft")
    assert _file(path).read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["p"]
    monkeypatch.setattr(Path, "rename", real)
    save(path, {"q": _pair(rank=3)}, "peft")
    assert load(path).modules["q"].rank == 3
    assert [file.name for file in tmp_path.iterdir()] == ["p"]


def test_a_folder_is_exchanged_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform != "linux":
        pytest.skip("renameat2 is of Linux")
    save(tmp_path / "p", {"q": _pair()}, "peft")
    renamed: list[Path] = []
    monkeypatch.setattr(Path, "rename", lambda self, _: renamed.append(self))
    save(tmp_path / "p", {"q": _pair(rank=3)}, "peft")
    assert not renamed
    assert load(tmp_path / "p").modules["q"].rank == 3
    assert [file.name for file in tmp_path.iterdir()] == ["p"]
