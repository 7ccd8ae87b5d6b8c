"""`lorabench-adapter merge` as it is called."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lorabench.adapters import load, save
from lorabench.adapters.__main__ import main
from tests.adapter_makers import CONV, LINEAR, dense, dense_sum, make_adapter, near
from tests.conftest import lorabench


@pytest.fixture
def pair(tmp_path: Path) -> list[str]:
    save(tmp_path / "a.safetensors", make_adapter(1, 2, names=(LINEAR, CONV)), "kohya", dtype=torch.float16)
    save(tmp_path / "b", make_adapter(2, 4, names=(LINEAR, CONV)), "peft", dtype=torch.float16)
    return [str(tmp_path / "a.safetensors"), str(tmp_path / "b")]


def test_the_command_in_a_process_of_its_own(pair: list[str], tmp_path: Path) -> None:
    arguments = ["merge", *pair, "--weights", "0.7", "0.3", "--method", "svd", "--rank", "3", "-o", "out.safetensors"]
    done = lorabench(*arguments, "--json", cwd=tmp_path, module="lorabench.adapters")
    found = json.loads(done.stdout)
    read = [load(path) for path in pair]
    merged = load(tmp_path / "out.safetensors")
    exact = dense_sum(read, [0.7, 0.3])
    for row in found["merge"]["modules"]:
        name = row["module"]
        error = float((dense(merged.modules[name]) - exact[name]).norm() / exact[name].norm())
        assert row["measured"] == pytest.approx(error, rel=1e-6)
        assert merged.modules[name].rank == 3
    assert merged.modules[LINEAR].dtype == torch.float16
    assert merged.schemes == ("kohya",)
    assert merged.modules[CONV].kernel == (3, 3)
    assert found["preflight"]["level"] in ("ok", "warning")
    assert merged.metadata["lorabench_merge_weights"] == "[0.7, 0.3]"


def test_the_command_never_writes_over_what_is_there(
    pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Path(pair[0]).read_bytes()
    assert main(["merge", *pair, "-o", pair[0]]) == 1
    assert "exists already" in capsys.readouterr().err
    assert Path(pair[0]).read_bytes() == before
    expected = dense_sum([load(path) for path in pair], [0.5, 0.5])
    assert main(["merge", *pair, "-o", pair[0], "--force", "--method", "concat", "--dtype", "float32"]) == 0
    merged = load(pair[0])
    assert all(near(dense(merged.modules[name]), delta, float(delta.norm())) for name, delta in expected.items())


def test_the_command_looks_before_it_writes(
    pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["merge", *pair, "--preflight"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("preflight: ")
    assert "share" in said
    for name, names, version in (("xl", (CONV,), "sdxl_base_v1-0"), ("one", (LINEAR,), "sd_v1")):
        other = make_adapter(4, names=names, metadata={"ss_base_model_version": version})
        save(tmp_path / f"{name}.safetensors", other, "kohya")
    clash = ["merge", str(tmp_path / "xl.safetensors"), str(tmp_path / "one.safetensors")]
    assert main([*clash, "--preflight", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["level"] == "error"
    out = tmp_path / "never.safetensors"
    assert main([*clash, "-o", str(out)]) == 1
    assert "made for different models" in capsys.readouterr().out
    assert not out.exists()
    assert main([*clash, "-o", str(out), "--no-check"]) == 0
    assert out.exists()


def test_metadata_alone_never_stop_a_merge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = []
    for seed, version in enumerate(("sdxl_base_v1-0", "sd_v1")):
        one = make_adapter(seed, names=(LINEAR,), metadata={"ss_base_model_version": version})
        paths.append(str(save(tmp_path / f"{version}.safetensors", one, "kohya")))
    assert main(["merge", *paths, "-o", str(tmp_path / "out.safetensors")]) == 0
    assert "as their metadata have it: sdxl_base_v1-0: sdxl, sd_v1: sd1" in capsys.readouterr().out


def test_wrong_usage_and_bad_input_of_the_command(
    pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out.safetensors")
    for arguments, said in (
        ([], "required: -o/--out"),
        (["-o", out, "--method", "mean"], "invalid choice: 'mean'"),
        (["-w", "1", "-o", out], "weights (--weights): 1 came for 2 adapters"),
        (["-w", "1", "nan", "-o", out], "argument -w/--weights: a number is needed, not 'nan'"),
        (["--rank", "0", "-o", out], "--rank: a whole number from 1"),
        (["--density", "1.5", "-o", out], "--density: a number above 0 and at most 1"),
        (["--rank", "4", "--method", "concat", "-o", out], "rank=4 (--rank) with method='concat' (--method)"),
    ):
        with pytest.raises(SystemExit) as left:
            main(["merge", *pair, *arguments])
        assert left.value.code == 2
        assert said in " ".join(capsys.readouterr().err.split())
    assert main(["merge", *pair, "-w", "1", "-1", "-o", out]) == 1
    assert "sum to 0" in capsys.readouterr().out
    assert main(["merge", *pair, "-w", "1", "-1", "--no-normalize", "-o", out]) == 0
    assert main(["merge", str(tmp_path / "nothing"), "-o", str(tmp_path / "o2.safetensors")]) == 1
    assert "no such file" in capsys.readouterr().err


def test_help_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from lorabench.adapters.__main__ import main\n"
        "try: main(['merge', '--help'])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "False"
    assert "example:" in done.stdout
