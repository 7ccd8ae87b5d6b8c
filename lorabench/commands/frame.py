"""The frame of every command line here: one answer on stdout, one line of error on stderr, and the same exit codes.

    0: done.
    1: the input cannot be used, which a `LorabenchError` says; or something in it is wrong; or nobody takes the answer.
    2: wrong usage, which is what is wrong whatever the files hold: an unknown option, a missing argument, a value that
       is no number, none of the choices or out of the option's fixed range, options that do not go together.
    130: interrupted.

A command is a module with `EXAMPLE`, `add_arguments(parser)` and `run(args) -> Outcome`. Its `args` have
`refuse(message)`, which ends in exit code 2. Where `add_arguments` sets the default `more=[]`, words that are no
arguments of the command are there. `INTERRUPTED`, which a module may have, says what an interruption leaves.
"""

import argparse
import atexit
import contextlib
import gc
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from lorabench.errors import LorabenchError
from lorabench.text import showable, to_json

__all__ = ["Answer", "Outcome", "Program", "run_single"]


@dataclass(frozen=True)
class Outcome:
    """What a command answers.

    Attributes:
        data: for `--json`: dicts, lists, strings and numbers; NaN and infinity are written as null.
        text: for people.
        ok: False where the file is readable but something in it is wrong: the exit code is 1 then.
    """

    data: Any
    text: str
    ok: bool = True


@dataclass(frozen=True)
class Answer:
    """How one command ended; what is printed is made of it.

    Attributes:
        code: the exit code.
        outcome: what it answers; None where it ended by an error.
        error: what is wrong, in one line.
        program: the program and its command, as it was called.
        for_machines: whether `--json` was said.
    """

    code: int
    outcome: Outcome | None = None
    error: str | None = None
    program: str = ""
    for_machines: bool = False


@dataclass(frozen=True)
class Program:
    """A program of several commands, of which only the one that is asked for is imported.

    Attributes:
        name: how it is called.
        description: what it is for, in a line.
        commands: name -> what it does; a module of `package` each.
        package: where these modules are.
        elsewhere: modules of commands that are not there.
    """

    name: str
    description: str
    commands: Mapping[str, str]
    package: str
    elsewhere: Mapping[str, str] = field(default_factory=dict)

    def run(self, argv: Sequence[str] | None = None) -> int:
        """Run one command, and print what it answers.

        Args:
            argv: its name and its arguments; None: what the process was started with.

        Returns:
            The exit code; it leaves by `SystemExit` with 2 on wrong usage, and with 0 after help.
        """
        _collect_seldom()
        return _print(self.ask(argv), self.name)

    def ask(self, argv: Sequence[str] | None = None) -> Answer:
        """Run one command, and print nothing; only help is printed, and leaves by `SystemExit` with 0.

        Args:
            argv: as `run`.
        """
        words = list(sys.argv[1:] if argv is None else argv)
        parser = _Parser(prog=self.name, description=self.description)
        commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
        for command, what in self.commands.items():
            commands.add_parser(command, help=what, description=f"{command}: {what}.", formatter_class=_Formatter)
        if not words or words[0] not in self.commands:
            try:
                parser.parse_args(words)  # help, or wrong usage
                parser.error("COMMAND comes first")
            except _WrongUsage as wrong:
                return wrong.answer
        place = self.elsewhere.get(words[0], f"{self.package}.{words[0]}")
        module = importlib.import_module(place)  # no other command's options are needed
        return _ask(commands.choices[words[0]], module, words[1:])


def run_single(name: str, description: str, module: Any, argv: Sequence[str] | None = None) -> int:
    """Run a program that is one command.

    Args:
        name: how it is called.
        description: what it is for.
        module: the command.
        argv: its arguments; None: what the process was started with.

    Returns:
        The exit code, as `Program.run`.
    """
    _collect_seldom()
    parser = _Parser(prog=name, description=description, formatter_class=_Formatter)
    return _print(_ask(parser, module, list(sys.argv[1:] if argv is None else argv)), name)


def _collect_seldom() -> None:
    """Looking for garbage among what torch's import makes is a sixth of that import, and three quarters of the end."""
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)


class _WrongUsage(SystemExit):
    """Passes through a command as argparse's own end does."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.code)
        self.answer = answer


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Leave with code 2."""
        raise _WrongUsage(Answer(2, error=message, program=self.prog))


class _Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """The example keeps its lines; defaults that say something are shown."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.nargs == 0 or action.default in (None, [], (), {}) or "default" in (action.help or "")
        return action.help if silent else super()._get_help_string(action)


def _ask(parser: argparse.ArgumentParser, module: Any, words: Sequence[str]) -> Answer:
    """Parse and run."""
    parser.set_defaults(refuse=parser.error)
    module.add_arguments(parser)
    parser.epilog = f"{parser.epilog or ''}example:\n  {module.EXAMPLE}"
    parser.add_argument("--json", action="store_true", help="print JSON for machines")
    try:
        args, unknown = parser.parse_known_args(words)
        if unknown and not hasattr(args, "more"):
            parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        args.more = unknown
        outcome, error = _outcome(module, args)
    except _WrongUsage as wrong:
        return wrong.answer
    except KeyboardInterrupt:
        left = getattr(module, "INTERRUPTED", "nothing half-written was left")
        return Answer(130, error=f"interrupted; {left}", program=parser.prog)
    code = 0 if outcome is not None and outcome.ok else 1
    return Answer(code, outcome, error, parser.prog, args.json)  # now: a command may have options that ask for JSON too


def _outcome(module: Any, args: argparse.Namespace) -> tuple[Outcome | None, str | None]:
    """What a command answers, or why it does not."""
    try:
        return module.run(args), None
    except LorabenchError as error:
        return None, str(error)


def _print(answer: Answer, program: str) -> int:
    """Say it: the outcome on stdout, or the line of error on stderr."""
    if answer.outcome is not None:
        data, text = answer.outcome.data, answer.outcome.text
        said = to_json(data, indent=1) if answer.for_machines else showable(text)
        return answer.code if _say(said, program) else 1
    if answer.for_machines:
        _say(to_json({"error": answer.error}), program)
    if answer.code == 2:
        sys.stderr.write(f"usage: {answer.program} ... (--help says more): {answer.error}\n")
        sys.exit(2)
    sys.stderr.write(f"{answer.program}: {answer.error}\n")
    return answer.code


def _say(text: str, program: str) -> bool:
    """Whether the answer could be given: it cannot where stdout is a file on a full disk."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except OSError as error:
        with contextlib.suppress(OSError):  # Python must not complain of it once more at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # `| head`: nobody reads on, and nothing is wrong
            sys.stderr.write(f"{program}: cannot write the answer: {error.strerror}\n")
            return False
    return True
