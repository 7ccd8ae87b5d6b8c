"""`python -m lorabench.adapters`: what every command promises, enumerated from disk."""

import importlib
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lorabench.adapters import LoraModule, commands
from lorabench.adapters import save as save_adapter
from lorabench.adapters.__main__ import COMMANDS, main
from lorabench.adapters.commands.common import plain, refuse_overwriting, table
from lorabench.errors import LorabenchError

HEAVY = ("torch", "numpy", "sklearn", "matplotlib", "pyarrow", "safetensors")


def run(*words: str, program: str | None = None) -> subprocess.CompletedProcess[str]:
    head = ["-m", "lorabench.adapters"] if program is None else ["-c", program]
    return subprocess.run([sys.executable, *head, *words], capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two adapters of the same six modules, a broken one, and a PEFT folder."""
    folder = tmp_path_factory.mktemp("adapters")
    for number, name in enumerate(("a", "b")):
        generator = torch.Generator().manual_seed(number)
        modules = {
            f"unet.mid_block.attentions.0.transformer_blocks.{i}.attn1.to_{p}": LoraModule(
                torch.randn(4, 24, generator=generator), torch.randn(32, 4, generator=generator), 0.5, 2.0
            )
            for i in (0, 1)
            for p in ("q", "k", "v")
        }
        save_adapter(folder / f"{name}.safetensors", modules, "kohya")
        save_adapter(folder / f"peft_{name}", modules, "peft")
    (folder / "broken.safetensors").write_bytes(b"\x10" * 40)
    return folder


def test_every_command_has_its_module_and_every_module_is_a_command() -> None:
    found = {one.name for one in pkgutil.iter_modules(commands.__path__)} - {"common"}
    assert found >= set(COMMANDS)
    for name in COMMANDS:
        module = importlib.import_module(f"lorabench.adapters.commands.{name}")
        assert callable(module.add_arguments)
        assert callable(module.run)
        assert module.EXAMPLE.splitlines()[0].startswith(f"lorabench-adapter {name} ")


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_an_example_and_needs_nothing_heavy(name: str) -> None:
    program = (
        "import sys; from lorabench.adapters.__main__ import main\n"
        "try: main(sys.argv[1:])\n"
        f"finally: print('HEAVY', sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    found = run(name, "--help", program=program)
    assert (found.returncode, found.stderr) == (0, "")
    assert "example:" in found.stdout
    assert "--json" in found.stdout
    assert found.stdout.rstrip().endswith("HEAVY []")


def test_wrong_usage_is_2_and_a_bad_file_1_without_a_traceback(files: Path) -> None:
    for words in ((), ("nonsense",), ("inspect",), ("resize", str(files / "a.safetensors"))):
        found = run(*words)
        assert found.returncode == 2, words
        assert "usage: lorabench-adapter" in found.stderr
    for name in ("inspect", "pca"):
        for path in ("broken.safetensors", "missing.safetensors"):
            found = run(name, str(files / path))
            assert found.returncode == 1
            assert str(files / path) in found.stderr + found.stdout
            assert "Traceback" not in found.stderr


def outputs(files: Path, tmp_path: Path) -> dict[str, list[str]]:
    a, b, out = str(files / "a.safetensors"), str(files / "peft_b"), str(tmp_path / "out")
    return {
        "inspect": [a],
        "pca": [a],
        "resize": [a, "--rank", "2", "-o", f"{out}.safetensors"],
        "merge": [a, b, "-o", f"{out}.safetensors"],
        "compare": [a, b],
        "convert": [a, "--to", "peft", "-o", out],
        "plot": [a, "--kind", "ranks", "-o", f"{out}.png"],
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_runs_and_says_it_for_machines(
    name: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [name, *outputs(files, tmp_path)[name]]
    before = {path: path.read_bytes() for path in files.rglob("*") if path.is_file()}
    assert main([*words, "--json"]) == 0
    said = capsys.readouterr()
    json.loads(said.out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert said.err == ""
    if name in ("resize", "merge", "convert", "plot"):
        assert main(words) == 1  # what lies there stays
        assert "--force" in capsys.readouterr().err
        words.append("--force")
    assert main(words) == 0
    assert capsys.readouterr().out.strip()
    assert {path: path.read_bytes() for path in files.rglob("*") if path.is_file()} == before


def test_a_table_is_aligned_and_what_is_no_number_is_null(tmp_path: Path) -> None:
    text = table(("name", "rank"), [("a", 4), ("longer", 16)], numbers=("rank",))
    assert text.split("\n") == ["name    rank", "------  ----", "a          4", "longer    16"]
    assert plain({"x": (1.0, float("nan")), 3: Path("p"), "y": {True}}) == {"x": [1.0, None], "3": "p", "y": [True]}
    with pytest.raises(LorabenchError, match=r"exists already\. Give another --out, or --force"):
        refuse_overwriting(tmp_path.parent, force=False)
    refuse_overwriting(tmp_path / "new", force=False)
