"""One entry: `lorabench WORD ...` is a program, all else Hydra's application; and what every program promises."""

import importlib
import json
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from types import ModuleType

import pytest

from lorabench.__main__ import PROGRAMS
from lorabench.commands.frame import Outcome, Program
from lorabench.errors import LorabenchError
from tests.conftest import ROOT, lorabench

HEAVY = ("torch", "numpy", "hydra", "omegaconf")
MANY = Program("many", "They act.", {"act": "acts"}, "scratch")


def test_every_package_with_a_command_line_is_a_program() -> None:
    package = ROOT / "lorabench"
    assert set(PROGRAMS) == {path.parent.name for path in package.glob("*/__main__.py")}
    for word in PROGRAMS:
        assert callable(importlib.import_module(f"lorabench.{word}.__main__").main)


@pytest.mark.slow
@pytest.mark.parametrize("word", PROGRAMS)
def test_a_program_is_called_by_its_word(word: str, tmp_path: Path) -> None:
    # Not in this process: Hydra sets up the logging of the process that it is called in, for its help too.
    helped = lorabench(word, "--help", cwd=tmp_path)
    assert helped.stdout.startswith(f"usage: lorabench {word} ")
    if word == "web":
        return  # it needs no word: there may be nothing but what is brought to it
    refused = lorabench(word, cwd=tmp_path, code=2)
    assert refused.stderr.startswith(f"usage: lorabench {word} ... (--help says more): ")


def test_the_toolkit_starts_without_torch_or_hydra() -> None:
    program = (
        "import sys; from lorabench.__main__ import main\n"
        "try: main(['adapters', 'inspect', '--help'])\n"
        f"finally: print('HEAVY', sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("HEAVY []")


def test_help_shows_the_programs_and_then_hydras(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lorabench", "--help"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert [line.split()[1] for line in lines[1 : 1 + len(PROGRAMS)]] == list(PROGRAMS)
    assert "representation:" in done.stdout
    assert done.stderr == ""


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A command that does what it is told."""
    module = ModuleType("scratch.act")

    def add_arguments(parser: ArgumentParser) -> None:
        parser.add_argument("word")

    def run(args: Namespace) -> Outcome:
        if args.word == "broken":
            raise LorabenchError("x.safetensors: it is broken. Mend it.")
        if args.word == "stopped":
            raise KeyboardInterrupt
        if args.word == "odd":
            args.refuse("odd words are not allowed")
        return Outcome({"word": args.word, "loss": float("nan")}, f"said {args.word}", ok=args.word != "wrong")

    vars(module).update(EXAMPLE="act fine", add_arguments=add_arguments, run=run)
    monkeypatch.setitem(sys.modules, "scratch.act", module)
    return module


@pytest.mark.parametrize(
    ("words", "code", "out", "err"),
    [
        (["fine"], 0, "said fine\n", ""),
        (["wrong"], 1, "said wrong\n", ""),
        (["broken"], 1, "", "PROG: x.safetensors: it is broken. Mend it.\n"),
        (["stopped"], 130, "", "PROG: interrupted; nothing half-written was left\n"),
        (["odd"], 2, "", "usage: PROG ... (--help says more): odd words are not allowed\n"),
        (["fine", "more"], 2, "", "usage: PROG ... (--help says more): unrecognized arguments: more\n"),
        ([], 2, "", "usage: PROG ... (--help says more): the following arguments are required: word\n"),
    ],
)
def test_answers_errors_and_codes_are_those_of_the_frame(
    words: list[str], code: int, out: str, err: str, command: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        ended = MANY.run(["act", *words])
    except SystemExit as left:
        ended = int(str(left.code))
    said = capsys.readouterr()
    assert (ended, said.out, said.err) == (code, out, err.replace("PROG", "many act"))


def test_json_has_null_for_nan_and_errors_too(command: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert MANY.run(["act", "fine", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"word": "fine", "loss": None}
    assert MANY.run(["act", "broken", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {"error": "x.safetensors: it is broken. Mend it."}


def test_words_that_are_no_arguments_come_to_a_command_that_wants_them(command: ModuleType) -> None:
    got: list[str] = []

    def run(args: Namespace) -> Outcome:
        got.extend(args.more)
        return Outcome(None, "")

    vars(command).update(add_arguments=lambda parser: parser.set_defaults(more=[]), run=run)
    assert MANY.run(["act", "dataset.path=x", "--json", "rank=4"]) == 0
    assert got == ["dataset.path=x", "rank=4"]


def test_a_program_that_is_asked_prints_nothing(command: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    fine = MANY.ask(["act", "fine"])
    assert (fine.code, fine.error) == (0, None)
    assert fine.outcome is not None
    assert fine.outcome.text == "said fine"
    asked = [MANY.ask(words) for words in (["act", "broken"], ["act", "odd"], ["act"], ["nothing"], ["act", "stopped"])]
    assert [answer.code for answer in asked] == [1, 2, 2, 2, 130]
    assert [answer.outcome for answer in asked] == [None] * 5
    assert asked[0].error == "x.safetensors: it is broken. Mend it."
    assert asked[1].error == "odd words are not allowed"
    assert all(answer.error for answer in asked)
    assert capsys.readouterr() == ("", "")
