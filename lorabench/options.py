"""Which values an argument may have, said once: in its annotation.

Arguments are annotated with the markers below, such as `rank: Annotated[int, AtLeast(1)]`. What a configuration or a
caller gives to a class or a function is held to them by `check_arguments`.

Options of the toolkit are a frozen dataclass each, whose fields say what they are for too, such as
`rank: Annotated[int | None, Help("of each module"), AtLeast(1)] = None`. From them come the checks of a caller's values
(`check_options`), the class's documentation (`documented`) and the options of a command line
(`lorabench.commands.options`).
"""

import dataclasses
import functools
import math
import operator
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from lorabench.errors import LorabenchError

__all__ = [
    "Above",
    "Allowed",
    "AtLeast",
    "AtMost",
    "Below",
    "Bound",
    "Field",
    "Filled",
    "Help",
    "Metavar",
    "OneOf",
    "Spelled",
    "check_arguments",
    "check_options",
    "documented",
    "option_fields",
]

Options = TypeVar("Options", bound=type)
_WORDS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
}
_TAKEN: dict[type, tuple[type, ...]] = {float: (int, float), Path: (str, Path)}
_MANY: dict[type, str] = {int: "whole numbers", float: "numbers", str: "texts"}
_SEVERAL: dict[type | None, str] = {None: "", tuple: ", or several", dict: " for each name"}


@dataclass(frozen=True)
class Help:
    """What a field is for, in a line without a capital or a full stop."""

    text: str


@dataclass(frozen=True)
class Metavar:
    """How a command line calls the field's value, `R` in `--rank R`."""

    name: str


class Spelled:
    """How a command line spells the option, where that is not the field's name: `Spelled("-w", "--weights")`."""

    def __init__(self, *names: str) -> None:
        self.names = names


class Filled:
    """Of a list: it has at least one entry."""


class OneOf:
    """The texts that a field may be: a sequence, or a function that gives one when it is asked.

    A function serves registries: its names are looked up once a command line or a value needs them.
    """

    def __init__(self, names: Iterable[str] | Callable[[], Iterable[str]]) -> None:
        self._names = names

    @property
    def lazy(self) -> bool:
        """Whether the texts are looked up when they are needed."""
        return callable(self._names)

    def names(self) -> tuple[str, ...]:
        """The texts."""
        return tuple(self._names() if callable(self._names) else self._names)


@dataclass(frozen=True)
class Bound:
    """A limit of a number; the subclasses say on which side, and whether the limit itself is allowed."""

    word: ClassVar[str]
    compare: ClassVar[Callable[[Any, Any], bool]]
    value: float | int

    def allows(self, number: float | int) -> bool:
        """Whether a number keeps within."""
        return type(self).compare(number, self.value)

    def words(self) -> str:
        """The limit in words, behind "a number": "above 0"."""
        return f"{self.word} {self.shown}"

    @property
    def shown(self) -> str:
        """The limit itself."""
        return str(self.value) if isinstance(self.value, int) else f"{self.value:g}"


class Above(Bound):
    """Numbers above `value`."""

    word, compare = "above", operator.gt


class AtLeast(Bound):
    """Numbers from `value` on."""

    word, compare = "from", operator.ge


class Below(Bound):
    """Numbers below `value`."""

    word, compare = "below", operator.lt


class AtMost(Bound):
    """Numbers up to `value`."""

    word, compare = "at most", operator.le


@dataclass(frozen=True)
class Allowed:
    """The values that an annotation allows.

    Attributes:
        kind: type of one value: bool, int, float, str or Path.
        container: None for one value, `tuple` for several, `dict` for values by name.
        optional: whether None is allowed.
        bounds: of the number, or of each.
        choices: the texts that are allowed; None where any is.
        filled: whether several are at least one.
    """

    kind: type
    container: type | None = None
    optional: bool = False
    bounds: tuple[Bound, ...] = ()
    choices: OneOf | None = None
    filled: bool = False

    def need(self) -> str:
        """One value in words.

        >>> option_fields(_Example)[1].need()
        'a number above 0 and at most 1'
        """
        if self.choices is not None:
            return "one of " + ", ".join(self.choices.names())
        return f"{_WORDS[self.kind]} {self._limits()}".rstrip()

    def refusal(self) -> str:
        """What a configuration that gives another value is told.

        >>> Allowed(int, list, bounds=(AtLeast(1),)).refusal()
        'a list of whole numbers from 1 is needed'
        """
        if self.choices is not None:
            *names, last = self.choices.names()
            listed = f"allowed are {', '.join(names)} and {last}"
            return listed if self.container is None else f"a list is needed; {listed}"
        said = self.need() if self.container is None else f"a list of {_MANY[self.kind]} {self._limits()}".rstrip()
        return f"{said} is needed" + (", or null" if self.optional else "")

    def _limits(self) -> str:
        words = {type(bound): bound.shown for bound in self.bounds}
        if set(words) == {AtLeast, AtMost}:
            return f"from {words[AtLeast]} to {words[AtMost]}"
        if set(words) == {Above, Below}:
            return f"between {words[Above]} and {words[Below]}"
        return " and ".join(bound.words() for bound in self.bounds)

    def allows(self, value: object) -> bool:
        """Whether one value is of the type, finite, and within the bounds or among the choices."""
        kinds = _TAKEN.get(self.kind, (self.kind,))
        if not isinstance(value, kinds) or (isinstance(value, bool) and self.kind is not bool):
            return False
        if isinstance(value, int | float):
            finite = isinstance(value, int) or math.isfinite(value)  # a whole number may be too large for a float
            return finite and all(bound.allows(value) for bound in self.bounds)
        return self.choices is None or value in self.choices.names()

    def allows_all(self, value: object) -> bool:
        """Whether a whole value is allowed: each of several, and None where it may be."""
        if value is None:
            return self.optional
        values = self._each(value)
        return values is not None and all(map(self.allows, values)) and not (self.filled and not values)

    def _each(self, value: object) -> list[object] | None:
        """The single values; None where it is no such container."""
        if self.container is None:
            return [value]
        if self.container is dict:
            return list(value.values()) if isinstance(value, Mapping) else None
        return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else None


@dataclass(frozen=True, kw_only=True)
class Field(Allowed):
    """What an options class says of one of its fields.

    Attributes:
        name: of the field.
        default: None too where there is none; see `required`.
        required: whether a value must be given.
        help: what it is for.
        metavar: how a command line calls the value.
        spelled: how a command line spells the option.
    """

    name: str
    default: Any
    required: bool
    help: str
    metavar: str | None
    spelled: tuple[str, ...]


def check_arguments(target: Callable[..., Any], values: Mapping[str, Any], prefix: str) -> None:
    """Hold arguments to the annotations of what takes them.

    Args:
        target: a dataclass, a class (its own constructor and those of its bases count) or a function.
        values: arguments by name; those that no annotation bounds are let pass.
        prefix: what stands before a name in messages, such as "classifier.".

    Raises:
        LorabenchError: a value that is not allowed.

    >>> check_arguments(_Example, {"density": 2}, "merge.")
    Traceback (most recent call last):
    lorabench.errors.LorabenchError: merge.density=2: a number above 0 and at most 1 is needed
    """
    known = _arguments(target)
    for name, value in values.items():
        if name in known and not known[name].allows_all(value):
            shown = repr(value) if isinstance(value, str) and not value.strip() else value
            raise LorabenchError(f"{prefix}{name}={shown}: {known[name].refusal()}")


@functools.cache
def _arguments(target: Callable[..., Any]) -> dict[str, Allowed]:
    hints: dict[str, Any] = {}
    if dataclasses.is_dataclass(target) or not isinstance(target, type):
        hints = typing.get_type_hints(target, include_extras=True)
    else:
        for base in target.__mro__[::-1]:
            if base is not object and "__init__" in vars(base):
                hints |= typing.get_type_hints(vars(base)["__init__"], include_extras=True)
    found = {name: _allowed(hint) for name, hint in hints.items()}
    return {name: allowed for name, allowed in found.items() if allowed is not None}


def option_fields(options: type) -> tuple[Field, ...]:
    """What a dataclass says of its fields, in their order.

    Args:
        options: a dataclass whose fields are bool, int, float, str, Path, tuples of these
            (`tuple[float, ...]`), mappings of texts to them, or any of these or None, each with `Help`.

    Raises:
        TypeError: a field is of another type, or says nothing of what it is for.
    """
    hints = typing.get_type_hints(options, include_extras=True)
    return tuple(_field(field, hints[field.name]) for field in dataclasses.fields(options) if field.init)


def check_options(options: Any) -> None:
    """Hold every field to its type, bounds and choices; for the `__post_init__` of an options class.

    Raises:
        LorabenchError: a value that is not allowed.

    >>> check_options(_Example(density=2))
    Traceback (most recent call last):
    lorabench.errors.LorabenchError: density=2 (--density): a number above 0 and at most 1 is needed.
    """
    for field in option_fields(type(options)):
        value = getattr(options, field.name)
        if not field.allows_all(value):
            what = f"{field.name}={value!r} ({field.spelled[-1]})"
            raise LorabenchError(f"{what}: {field.need()}{_SEVERAL[field.container]} is needed.")


def documented(options: Options) -> Options:
    """Give a dataclass the section "Attributes" of its docstring, from its fields; a decorator above `@dataclass`."""
    lines = [f"    {field.name}: {_described(field)}" for field in option_fields(options)]
    options.__doc__ = "\n".join([(options.__doc__ or "").rstrip(), "", "Attributes:", *lines, ""])
    return options


def _field(field: "dataclasses.Field[Any]", hint: Any) -> Field:
    allowed, marks = _allowed(hint), _taken_apart(hint)[-1]
    helps = [mark.text for mark in marks if isinstance(mark, Help)]
    if allowed is None or not helps:
        raise TypeError(f"{field.name}: {hint}: an option is Annotated[{' | '.join(t.__name__ for t in _WORDS)}, Help]")
    default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    required = default is dataclasses.MISSING
    spelled = next((mark.names for mark in marks if isinstance(mark, Spelled)), None)
    return Field(
        **vars(allowed),
        name=field.name,
        default=None if required else default,
        required=required,
        help=helps[0],
        metavar=next((mark.name for mark in marks if isinstance(mark, Metavar)), None),
        spelled=spelled or (_spelled(field.name, negative=allowed.kind is bool and default is True),),
    )


def _allowed(hint: Any) -> Allowed | None:
    """What an annotation allows; None where it is of another sort than this module knows."""
    kind, container, optional, marks = _taken_apart(hint)
    if kind not in _WORDS:
        return None
    return Allowed(
        kind,
        container,
        optional,
        bounds=tuple(mark for mark in marks if isinstance(mark, Bound)),
        choices=next((mark for mark in marks if isinstance(mark, OneOf)), None),
        filled=any(isinstance(mark, Filled) for mark in marks),
    )


def _taken_apart(hint: Any) -> tuple[Any, type | None, bool, tuple[Any, ...]]:
    """Type of one value, container, whether None is allowed, and markers of an annotation."""
    marks: tuple[Any, ...] = ()
    if typing.get_origin(hint) is Annotated:
        hint, *extra = typing.get_args(hint)
        marks = tuple(extra)
    hint, optional = _single(hint)
    container: type | None = None
    origin: Any = typing.get_origin(hint)
    if origin in (tuple, list, Mapping, Sequence):
        container = dict if origin is Mapping else tuple
        hint, _ = _single(typing.get_args(hint)[1 if container is dict else 0])
    return hint, container, optional, marks


def _single(hint: Any) -> tuple[Any, bool]:
    """A type without None, and whether None was there; int | float is a number, str | Path a path."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint, False
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    optional = len(kinds) < len(typing.get_args(hint))
    together = next((kind for kind, taken in _TAKEN.items() if set(kinds) == set(taken)), hint)
    return kinds[0] if len(kinds) == 1 else together, optional


def _spelled(name: str, negative: bool) -> str:
    return f"--{'no-' if negative else ''}{name.replace('_', '-')}"


def _described(field: Field) -> str:
    default = "needed" if field.required else f"default: {field.default}"
    # A registry is not asked here: what fills it may not be imported yet.
    silent = field.kind is bool or (field.choices is not None and field.choices.lazy)
    allowed = "" if silent else f"{field.need()}; "
    return f"{field.help} ({allowed}{default})."


@dataclass(frozen=True)
class _Example:
    """For the examples above."""

    method: Annotated[str, Help("how it is done"), OneOf(["svd", "ties"])] = "svd"
    density: Annotated[float | int, Help("share of the entries that is kept"), Above(0), AtMost(1)] = 0.5
