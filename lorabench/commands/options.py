"""Options of a command line: made from the fields of an options class, and the types that single options have.

The types are for `add_argument(type=...)`; what is wrong with a value is said by argparse, with exit code 2.
"""

import argparse
import contextlib
from argparse import ArgumentTypeError
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

from lorabench.errors import LorabenchError
from lorabench.options import Above, Allowed, AtLeast, AtMost, Bound, Field, option_fields

__all__ = [
    "add_options",
    "any_number",
    "from_args",
    "natural",
    "path_name",
    "positive_int",
    "positive_number",
    "share",
]

Options = TypeVar("Options")
Number = TypeVar("Number", int, float)
_METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


def add_options(
    parser: "argparse._ActionsContainer", options: type, names: Collection[str] | None = None
) -> None:  # argparse has no public name for what parsers and groups have in common
    """Give a parser, or a group of it, one option for each field of an options class.

    A field `max_rank` becomes `--max-rank`; one that is False becomes a flag, one that is True a flag `--no-...`. A
    tuple takes several values behind one option, a mapping takes NAME=VALUE and may be repeated.

    Args:
        parser: gets the options.
        options: a dataclass whose fields are annotated with the markers of `lorabench.options`.
        names: of the fields that are wanted; None: all of them.

    >>> from typing import Annotated
    >>> from dataclasses import dataclass
    >>> from lorabench.options import Help
    >>> @dataclass(frozen=True)
    ... class Recipe:
    ...     rank: Annotated[int | None, Help("of each module"), AtLeast(1)] = None
    ...     density: Annotated[float | int, Help("share of the entries that is kept"), Above(0), AtMost(1)] = 0.5
    ...     normalize: Annotated[bool, Help("take the weights as they are; else they sum to 1")] = True
    >>> parser = argparse.ArgumentParser(prog="merge")
    >>> add_options(parser, Recipe)
    >>> from_args(Recipe, parser.parse_args(["--density", "0.2", "--no-normalize"]))
    Recipe(rank=None, density=0.2, normalize=False)
    """
    for field in option_fields(options):
        if names is None or field.name in names:
            parser.add_argument(*field.spelled, dest=field.name, help=field.help.replace("%", "%%"), **_how(field))


def from_args(options: type[Options], args: argparse.Namespace) -> Options:
    """The options object that parsed arguments describe.

    Args:
        options: the class that `add_options` was given.
        args: what its parser made of a command line. Where it has `refuse` (that parser's `error`, as the frame of
            the commands sets it), options that do not go together are wrong usage: exit code 2.

    Raises:
        LorabenchError: the values are not allowed, and nobody has set `refuse`.
    """
    values = {field.name: getattr(args, field.name) for field in option_fields(options)}
    for field in option_fields(options):
        if field.container is not None and values[field.name] is not None:
            values[field.name] = field.container(values[field.name])
    try:
        return options(**values)
    except LorabenchError as error:
        if hasattr(args, "refuse"):
            args.refuse(str(error))
        raise


def _how(field: Field) -> dict[str, Any]:
    if field.kind is bool:
        return {"action": "store_false" if field.default else "store_true"}
    given: dict[str, Any] = {"required": field.required, "default": field.default, "type": _reader(field)}
    if field.choices is not None:
        given["choices"] = field.choices.names()
    metavar = field.metavar or (None if field.choices else _METAVARS[field.kind])
    if field.container is dict:
        return given | {"action": _Named, "type": _pair(field), "metavar": f"NAME={metavar}"}
    return given | {"metavar": metavar} | ({"nargs": "+"} if field.container is tuple else {})


class _Named(argparse.Action):
    """NAME=VALUE, again and again."""

    def __call__(self, _parser: Any, namespace: argparse.Namespace, values: Any, _option: str | None = None) -> None:
        name, value = values
        # Not into the dict that lies there: the first one is the default of every later call.
        setattr(namespace, self.dest, {**(getattr(namespace, self.dest) or {}), name: value})


def _pair(field: Field) -> Callable[[str], tuple[str, Any]]:
    """A reader of NAME=VALUE."""

    def read(text: str) -> tuple[str, Any]:
        name, _, value = text.rpartition("=")
        if not name:
            raise ArgumentTypeError(f"NAME={field.metavar or _METAVARS[field.kind]} is needed, not {_quoted(text)}")
        return name, _reader(field)(value)

    return read


def _reader(field: Field) -> Callable[[str], Any]:
    if field.kind is Path:
        return path_name
    if field.kind is str:
        return str
    return _number(int, *field.bounds) if field.kind is int else _number(float, *field.bounds)


def _number(kind: type[Number], *bounds: Bound) -> Callable[[str], Number]:
    """A reader of finite numbers within bounds."""
    single = Allowed(kind, bounds=bounds)

    def read(text: str) -> Number:
        with contextlib.suppress(ValueError):
            if single.allows(value := kind(text)):
                return value
        raise ArgumentTypeError(f"{single.need()} is needed, not {_quoted(text)}")

    return read


positive_int = _number(int, AtLeast(1))
"""A whole number from 1 on."""
natural = _number(int, AtLeast(0))
"""A whole number from 0 on."""
any_number = _number(float)
"""A number, neither infinite nor NaN."""
positive_number = _number(float, Above(0))
"""A number above 0, not infinite."""
share = _number(float, Above(0), AtMost(1))
"""A number above 0, at most 1."""


def path_name(text: str) -> Path:
    """A path: `Path` itself takes nothing at all for the folder one is in.

    >>> path_name("style.safetensors").suffix
    '.safetensors'
    """
    if not text.strip():
        raise ArgumentTypeError(f"the name of a file or a folder is needed, not {_quoted(text)}")
    return Path(text)


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:39]}…")
