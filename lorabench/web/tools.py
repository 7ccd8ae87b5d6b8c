"""The commands over adapters as a form and as JSON have them: told by their own parsers, none is described twice.

What a request may name is an adapter by its id, a model by its name, a value of an option, and nothing else: files
that a command writes get names from here, and lie in the job's own folder.
"""

import argparse
import importlib
import re
import shlex
from argparse import Action, ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal, NoReturn

from lorabench.adapters.__main__ import COMMANDS
from lorabench.adapters.layouts import written_layout, written_layouts
from lorabench.adapters.reading.table import read_table
from lorabench.adapters.writing.nearest import nearest_layout
from lorabench.commands.frame import Program
from lorabench.commands.options import path_name
from lorabench.errors import LorabenchError

__all__ = ["PREDICT", "TOOLS", "Argument", "Input", "Kind", "Tool", "Wish", "program", "tool"]

Kind = Literal["flag", "choice", "whole", "number", "text", "adapter", "model"]
PREDICT = "predict"
"""The command that is no word of `lorabench adapters`, but of `lorabench` itself."""

_OUTPUTS = {
    "resize": {"out": "{stem}-resized.safetensors"},
    "merge": {"out": "merged.safetensors"},
    "convert": {"out": "{stem}-converted.safetensors"},
    "pca": {"output": "components.json", "figure": "components.svg"},
    "plot": {"out": "{kind}"},
    "audit": {"html": "audit.html", "sarif": "audit.sarif"},
    "advise": {"out": "ranks.json"},
    "inspect": {"out": "{stem}-edited.safetensors"},
    "compare": {},
    PREDICT: {"csv": "answers.csv"},
}
_COMMANDS = COMMANDS | {PREDICT: "what each was trained on, by a model of `lorabench export`"}
_PACKAGE, _ELSEWHERE = "lorabench.adapters.commands", {PREDICT: "lorabench.predict.__main__"}
_WRITES_LAYOUT = ("resize", "merge", "convert")
_PASSED_OVER = ("help", "force", "json", "jobs", "output", "format", "full", "thresholds", "duplicates")
_NO_OUTPUT = {"resize": "dry_run", "merge": "preflight"}
"""Options with which these commands write nothing."""
_UNWRITABLE = re.compile(r"[\x00\ud800-\udfff]")
_NEGATIVE = re.compile(r"-\d+|-\d*\.\d+")  # what argparse takes for a number, and not for an option


@dataclass(frozen=True)
class Input:
    """A file that a command may read.

    Attributes:
        path: where it lies.
        name: what a person calls it.
    """

    path: Path
    name: str

    @property
    def stem(self) -> str:
        """The name without folders and ending; the folder's where the file is called as PEFT calls all."""
        parts = Path(self.name)
        called = parts.parent.name if parts.name.startswith("adapter_model.") else parts.stem
        return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in called).strip(".") or "file"


@dataclass(frozen=True)
class Argument:
    """One option of a command.

    Attributes:
        name: of it.
        spelled: on a command line; the last where there are several.
        help: what it is for.
        kind: what its values are.
        many: whether it takes several values behind it ("+"), may be given again ("again"), or takes one ("").
        choices: that there are, of a choice.
        default: its value where nobody gives one.
        required: whether it must be given.
        group: options of which exactly one is given have one group.
    """

    name: str
    spelled: str
    help: str
    kind: Kind
    many: Literal["", "+", "again"] = ""
    choices: tuple[str, ...] = ()
    default: Any = None
    required: bool = False
    group: str = ""

    @property
    def turns_off(self) -> bool:
        """Whether it is a flag that makes a true value false, as `--no-normalize` does."""
        return self.kind == "flag" and self.default is True and self.spelled.startswith("--no-")


@dataclass(frozen=True)
class Wish:
    """A command as a job runs it, and as a person types it.

    Attributes:
        command: its name.
        words: behind the name of `program`.
        shown: the whole line.
        inputs: files that it reads.
        writes: whether it writes a file.
    """

    command: str
    words: tuple[str, ...]
    shown: str
    inputs: tuple[Path, ...]
    writes: bool

    def parsed(self) -> Namespace:
        """As the command's own parser reads it.

        Raises:
            LorabenchError: it is wrong usage.
        """
        return _parser(self.command).parse_args(self.words[1:])


@dataclass(frozen=True)
class Tool:
    """A command.

    Attributes:
        name: of it.
        what: it does.
        arguments: its options, those that name files to write left out.
        most: adapters that it takes: 1, or any number.
    """

    name: str
    what: str
    arguments: tuple[Argument, ...]
    most: int | None

    def wish(
        self,
        inputs: Sequence[Input],
        options: Mapping[str, Any],
        find: Callable[[str], Input] | None = None,
        model: Callable[[str], Input] | None = None,
    ) -> Wish:
        """The command over some adapters with some options.

        Args:
            inputs: the adapters, in order.
            options: option -> its value; one of kind "adapter" is an id, one of kind "model" a name.
            find: the adapter of an id.
            model: the model of a name.

        Raises:
            LorabenchError: an option that the command has not, a value that it does not take, or too few adapters.
        """
        self._check_inputs(inputs)
        named = {argument.name: argument for argument in self.arguments}
        unknown = next((name for name in options if name not in named), None)
        if unknown is not None:
            raise LorabenchError(f"{self.name} has no option {unknown!r} here. It has {', '.join(named)}.")
        read, first = [one.path for one in inputs], self._model(options, model)
        said: list[tuple[str, ...]] = []
        seen: list[tuple[str, ...]] = []
        for name, value in options.items():
            argument = named[name]
            if argument.kind == "model":
                continue  # it stands before the adapters
            if argument.kind == "adapter" and value:
                if find is None:
                    raise LorabenchError(f"{name}: adapters cannot be named here.")
                other = find(str(value))
                read.append(other.path)
                said.append((argument.spelled, str(other.path)))
                seen.append((argument.spelled, other.name))
            else:
                said += (written := _spelt(argument, value))
                seen += written
        outputs = self._outputs(inputs, options)
        # Files first: an option that takes several values would swallow them.
        files = [*first, *inputs]
        words = (self.name, *(str(one.path) for one in files), *_flat(said), *_flat(outputs))
        called = ["lorabench", *(["adapters"] if self.name in COMMANDS else []), self.name]
        shown = shlex.join([*called, *(one.name for one in files), *_flat(seen), *_flat(outputs)])
        wish = Wish(self.name, words, shown, tuple(read), bool(outputs))
        wish.parsed()  # what is wrong is said now, not by a job
        return wish

    def _model(self, options: Mapping[str, Any], model: Callable[[str], Input] | None) -> list[Input]:
        """The model that is named, of a command that takes one."""
        name = next((argument.name for argument in self.arguments if argument.kind == "model"), None)
        if name is None:
            return []
        if model is None:
            raise LorabenchError(f"{name}: models cannot be named here.")
        if not isinstance(options.get(name), str) or not options[name]:
            raise LorabenchError(f"{self.name} asks a model. Choose one.")
        return [model(options[name])]

    def _check_inputs(self, inputs: Sequence[Input]) -> None:
        if not inputs or (self.most is not None and len(inputs) > self.most):
            wanted = "one adapter" if self.most == 1 else "one adapter or more"
            raise LorabenchError(f"{self.name} takes {wanted}, {len(inputs)} came. Choose some.")

    def _outputs(self, inputs: Sequence[Input], options: Mapping[str, Any]) -> list[tuple[str, ...]]:
        if options.get(_NO_OUTPUT.get(self.name, "")):
            return []
        if self.name == "inspect" and not any(options.get(name) for name in ("redact", "set", "unset")):
            return []
        kind = str(options.get("kind", "plot"))
        filled = {"stem": inputs[0].stem, "kind": "pictures" if kind == "all" else f"{kind}.svg"}
        found: list[tuple[str, ...]] = []
        for action in _actions(self.name):
            name = _OUTPUTS[self.name].get(action.dest)
            if name is not None:
                written = name.format(**filled)
                if self.name in _WRITES_LAYOUT and _in_a_folder(inputs[0].path, options.get("layout")):
                    written = written.removesuffix(".safetensors")
                found.append((action.option_strings[-1], written))
        return found


class _Parser(ArgumentParser):
    """Says what is wrong by an error."""

    def error(self, message: str) -> NoReturn:
        """Raise it."""
        raise LorabenchError(f"{self.prog}: {message}")


@cache
def _parser(name: str) -> _Parser:
    parser = _Parser(prog=name, add_help=False, allow_abbrev=False)
    module = importlib.import_module(_ELSEWHERE.get(name, f"{_PACKAGE}.{name}"))
    module.add_arguments(parser)
    return parser


# argparse has no public list of what was added to a parser.
def _actions(name: str) -> list[Action]:
    return _parser(name)._actions  # noqa: SLF001


def _groups(name: str) -> dict[str, str]:
    """Option -> the group of which one is given."""
    return {
        action.dest: f"{name}-{number}"
        for number, group in enumerate(_parser(name)._mutually_exclusive_groups)  # noqa: SLF001
        for action in group._group_actions  # noqa: SLF001
    }


@cache
def tool(name: str) -> Tool:
    """A command by its name.

    Raises:
        LorabenchError: there is none of this name here.

    >>> [argument.name for argument in tool("advise").arguments]
    ['loss', 'parameters', 'seed', 'base']
    """
    if name not in TOOLS:
        raise LorabenchError(f"{name!r} is no command here. There are {', '.join(TOOLS)}.")
    groups = _groups(name)
    arguments = [
        _argument(action, groups.get(action.dest, ""))
        for action in _actions(name)
        if action.option_strings and action.dest not in (*_PASSED_OVER, *_OUTPUTS[name])
    ]
    positional = [action for action in _actions(name) if not action.option_strings]
    models = [
        Argument(action.dest, action.dest, action.help or "", "model", required=True)
        for action in positional
        if action.dest == "model"
    ]
    return Tool(name, _COMMANDS[name], (*models, *arguments), None if positional[-1].nargs == "+" else 1)


TOOLS = tuple(name for name in _COMMANDS if name in _OUTPUTS)
"""The commands that are offered: all that work on adapter files, with nothing but a model beside them."""


def program(name: str) -> Program:
    """The program of all these commands, which a job runs."""
    return Program(name, "commands over adapters", _COMMANDS, _PACKAGE, _ELSEWHERE)


def _argument(action: Action, group: str) -> Argument:
    kind: Kind
    if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction):
        kind = "flag"
    elif action.choices is not None:
        kind = "choice"
    elif action.type is path_name:
        kind = "adapter"
    else:
        kind = _kind_of(action)
    many: Literal["", "+", "again"] = ""
    if action.nargs == "+":
        many = "+"
    elif action.default == [] or "NAME=" in str(action.metavar):
        many = "again"
    return Argument(
        name=action.dest,
        spelled=action.option_strings[0 if isinstance(action, argparse.BooleanOptionalAction) else -1],
        help=(action.help or "").replace("%%", "%"), kind=kind,
        many=many, choices=tuple(map(str, action.choices or ())), default=action.default, required=action.required,
        group=group,
    )  # fmt: skip


def _kind_of(action: Action) -> Kind:
    """By trying: what a reader makes of "1" is what it reads."""
    if action.type is None or action.type is str:
        return "text"
    assert callable(action.type), "argparse takes functions and its registry's names, of which nobody makes use"  # noqa: S101
    for text in ("1", "0.5"):
        try:
            value = action.type(text)
        except (argparse.ArgumentTypeError, LorabenchError, ValueError):
            continue
        return "text" if isinstance(value, str | tuple) else "whole" if isinstance(value, int) else "number"
    return "text"


def _spelt(argument: Argument, value: Any) -> list[tuple[str, ...]]:
    """The words that say a value; none where there is none."""
    if argument.kind == "flag":
        if not isinstance(value, bool):
            raise LorabenchError(f"{argument.name}: true or false is needed, not {value!r}.")
        return [(argument.spelled,)] if value != bool(argument.default) else []
    if value is None or value == "" or value == [] or value == argument.default:
        return []
    values = value if isinstance(value, list) else [value]
    wrong = any(isinstance(one, bool) or not isinstance(one, str | int | float) for one in values)
    if wrong or (len(values) > 1 and not argument.many):
        raise LorabenchError(f"{argument.name}: one value is needed, not {value!r}.")
    texts = [str(one) for one in values]
    if "--" in texts:  # argparse takes it for the end of all options, behind a "=" too
        raise LorabenchError(f"{argument.name}: -- is no value here.")
    if any(_UNWRITABLE.search(text) for text in texts):
        raise LorabenchError(f"{argument.name}: {value!r} has a character that no command line takes.")
    if argument.many == "+" and any(text.startswith("-") and not _NEGATIVE.fullmatch(text) for text in texts):
        raise LorabenchError(f"{argument.name}: {value!r} has a word that would be read as an option.")
    # "=" and not a word of its own: a value that begins with "-" would be taken for an option.
    if argument.many == "+":
        return [(argument.spelled, *texts)]
    return [(f"{argument.spelled}={text}",) for text in texts]


def _in_a_folder(path: Path, layout: Any) -> bool:
    """Whether what is written is a folder, as PEFT's is."""
    if layout is None:
        found = path.stat()
        layout = _layout_of(path, found.st_mtime_ns, found.st_size)
    return str(layout) in written_layouts() and written_layout(str(layout)).folder


@lru_cache(maxsize=256)
def _layout_of(path: Path, _changed: int, _size: int) -> str:
    """Its header is read once for each state of the file: a form asks with every letter."""
    table = read_table(path)
    return nearest_layout(table.schemes, [row.module for row in table.rows], table.config, table.file)


def _flat(groups: Sequence[tuple[str, ...]]) -> list[str]:
    return [word for group in groups for word in group]
