"""`python -m lorabench.adapters`: what every command promises, enumerated from disk."""

import argparse
import importlib
import json
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lorabench.adapters import LoraModule, commands
from lorabench.adapters import save as save_adapter
from lorabench.adapters.__main__ import COMMANDS, main
from lorabench.commands.options import any_number, natural, path_name, positive_int, positive_number, share
from lorabench.errors import LorabenchError
from lorabench.storage import refuse_overwriting
from lorabench.text import plain, table
from tests.fitted_runs import make_study

ENDS = ("c0/000000-leaf0.safetensors", "c1/000001-leaf1.safetensors")
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
    make_study(folder / "study", ["layer"])
    return folder


def test_every_command_has_its_module_and_every_module_is_a_command() -> None:
    found = {one.name for one in pkgutil.iter_modules(commands.__path__)} - {"common"}
    assert found == set(COMMANDS)
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
        "advise": [a, "-o", f"{out}.json"],
        "audit": [a, "--html", f"{out}.html"],
        "resize": [a, "--rank", "2", "-o", f"{out}.safetensors"],
        "merge": [a, b, "-o", f"{out}.safetensors"],
        "compare": [a, b],
        "convert": [a, "--to", "peft", "-o", out],
        "interpolate": [str(files / "study" / "layer"), *ENDS, "-o", out],
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
    if name in ("resize", "merge", "convert", "plot", "advise"):
        assert main(words) == 1  # what lies there stays
        assert "--force" in capsys.readouterr().err
        words.append("--force")
    elif name == "interpolate":  # its folder must be empty, whoever wants it
        words[-1] += "_again"
    assert main(words) == 0
    assert capsys.readouterr().out.strip()
    assert {path: path.read_bytes() for path in files.rglob("*") if path.is_file()} == before


def test_a_table_is_aligned_and_what_is_no_number_is_null() -> None:
    text = table(("name", "rank"), [("a", 4), ("longer", 16)], numbers=("rank",))
    assert text.split("\n") == ["name    rank", "------  ----", "a          4", "longer    16"]
    assert plain({"x": (1.0, float("nan")), 3: Path("p"), "y": {True}}) == {"x": [1.0, None], "3": "p", "y": [True]}


def test_what_lies_there_is_said_and_force_is_named_only_where_it_helps(tmp_path: Path) -> None:
    file, pair, other, empty = (tmp_path / name for name in ("file", "pair", "other", "empty"))
    file.write_text("")
    for folder, names in ((pair, ("adapter_config.json", "adapter_model.safetensors")), (other, "dabc"), (empty, "")):
        folder.mkdir()
        for name in names:
            (folder / name).write_text("")
    for force in (False, True):
        for kind in (False, True, None):
            refuse_overwriting(tmp_path / "new", force, folder=kind)
        refuse_overwriting(empty, force)
        for path, kind, message in (
            (other, None, "is a folder that holds a, b, c, ...: one with more than a PEFT adapter is never replaced"),
            (empty, False, "is a folder, and a file is to be written"),
            (pair, False, "is a folder, and a file is to be written"),
            (file, True, "is a file, and a folder is to be written"),
        ):
            with pytest.raises(LorabenchError) as caught:
                refuse_overwriting(path, force, "--figure", folder=kind)
            assert str(caught.value) == f"{path} {message}. Give another --figure."
    for path in (file, pair):
        refuse_overwriting(path, force=True)
        with pytest.raises(LorabenchError, match=r"exists already.*Give another --output, or --force to replace it"):
            refuse_overwriting(path, False, "--output")


@pytest.mark.parametrize(
    ("kind", "good", "bad", "message"),
    [
        (positive_int, {"1": 1, "12": 12}, ["0", "-1", "1.5", "x", "", "9" * 5000], "a whole number from 1 is needed"),
        (natural, {"0": 0, "3": 3}, ["-1", "nan"], "a whole number from 0 is needed"),
        (any_number, {"-2": -2.0, "1e3": 1000.0}, ["inf", "nan", "x"], "a number is needed"),
        (positive_number, {"0.5": 0.5}, ["0", "-1", "inf", "nan", "x"], "a number above 0 is needed"),
        (share, {"1": 1.0, "0.5": 0.5}, ["0", "1.01", "nan", "x"], "a number above 0 and at most 1 is needed"),
        (path_name, {"a b": Path("a b"), ".": Path()}, ["", " "], "the name of a file or a folder is needed"),
    ],
)
def test_types_of_options(
    kind: Callable[[str], object], good: dict[str, object], bad: list[str], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    parser = argparse.ArgumentParser()
    parser.add_argument("--x", type=kind)
    for text, value in good.items():
        assert parser.parse_args([f"--x={text}"]).x == value
    for text in bad:
        with pytest.raises(SystemExit) as caught:
            parser.parse_args([f"--x={text}"])
        assert caught.value.code == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert f"argument --x: {message}, not " in said
        assert len(said) < 150


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["resize", "A", "B", "--rank", "1", "-o", "x"], "unrecognized arguments: B"),
        (["convert", "A", "--to", "peft", "-o", ""], "argument -o/--out: the name of a file or a folder is needed"),
        (["convert", "A", "--to", "peft", "-o", "x", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["plot", "A", "--kind", "compare", "-o", "x.png"], "--kind compare draws 2 adapters, 1 came"),
        (["plot", "A", "B", "--kind", "ranks", "-o", "x.png"], "--kind ranks draws 1 adapter, 2 came"),
        (["plot", "A", "B", "C", "--kind", "all", "-o", "x"], "--kind all draws 1 or 2 adapters, 3 came"),
        (["plot", "A", "--kind", "ranks", "-o", "x.png", "--format", "svg"], "--format is for --kind all"),
        (["plot", "A", "--kind", "ranks", "-o", "x.png", "--modules", "*"], "--modules chooses heat maps"),
        (["plot", "", "--kind", "ranks", "-o", "x.png"], "argument FILE: the name of a file"),
        (["pca", "A", "B", "--no-standardise"], "--no-standardise is for one file"),
        (["pca", "A", "B", "--components", "2"], "--components is for one file"),
        (["pca", "A", "--components", "0"], "--components: a whole number from 1 is needed, not '0'"),
        (["pca", "A", "--full"], "--full is for --json"),
        (["inspect", "A", "--jobs", "0"], "--jobs: a whole number from 1 is needed, not '0'"),
        (["inspect", "A", "--tags", "-1"], "--tags: a whole number from 0 is needed, not '-1'"),
    ],
)
def test_wrong_usage_shows_the_usage_of_the_command(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    said = capsys.readouterr()
    assert (caught.value.code, said.out) == (2, "")
    assert said.err.startswith(f"usage: lorabench-adapter {words[0]} ")
    last = said.err.splitlines()[-1]
    assert message in last
    for option in ("--components", "--no-standardise"):  # one that was not given is not spoken of
        assert (option in last) == (option in words)
