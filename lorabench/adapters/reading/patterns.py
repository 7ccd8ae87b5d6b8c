"""PEFT's `rank_pattern` and `alpha_pattern`, matched in time that no pattern can blow up."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import re2

__all__ = ["Patterns", "Regex", "compile_patterns", "plain_names"]

# No adapter is near these limits; within them the worst patterns together take a few seconds.
_MAX_LENGTH = 1000  # characters of a pattern
_MAX_NAME = 300  # characters of a module's name
_MAX_PATTERNS = 10_000
_MAX_STATES = 5000  # of all regular expressions of one configuration, as RE2 counts its program
_MAX_DEPTH = 50  # brackets within brackets
_MAX_WORK = 300_000_000  # states times letters, for all names that are asked for
_MAX_MEMORY = 2**19  # bytes of one expression's automaton
_PLAIN_WORK = 50  # what a look at a plain name costs beside a state times a letter

_PLAIN = re.compile(r"(\^?)((?:[\w\- .]|\\[^\w])*)")
"""A name, in which a dot stands for any character and a backslash for the sign after it."""
_LIST = re.compile(r"\^?\((?:\?:)?(?P<names>(?:[^\\()\[\]{}*+?^$.]|\\[^\w|])*)\)\$?")
"""Names between brackets, every sign of them escaped."""
_SHARED = re.compile(
    r"\[\^?\]?(?:\\[dDwWsS]|\\[^\w]|(?!--|&&|~~|\|\|)[^\[\]\\])*\]"  # a class, without what Python warns of
    r"|\((?:\?:)?(?!\?)|\{\d{1,4}(?:,\d{0,4})?\}|\\[bBdDsSwW]|\\[^\w]|[^\\(\[{]"
)
"""What an expression may be made of: the signs that mean the same to Python and to RE2."""
_BY_LETTER = re.compile(r"\\[bBdDsSwW]")
"""Signs that Python understands for all of Unicode, and RE2 for ASCII."""


@dataclass
class _Budget:
    """Work that the patterns of one configuration may still cost, over all names of a file."""

    left: int = _MAX_WORK

    def spend(self, work: int) -> None:
        self.left -= work
        if self.left < 0:
            raise ValueError("takes too long to be matched with the names of this file")


@dataclass
class Regex:
    r"""A regular expression for whole names, as Python's `re` understands it, matched by RE2 (Cox 2010).

    Python's own matcher tries one way after the other, so `(a+)+$` on forty letters takes it hours. RE2 follows all
    ways at once: a letter costs at most one look at every state. What it cannot do is refused: look-around and
    back-references. So is what the two understand differently: flags, named groups, `\A`, `\Z`, letters by their
    number.

    >>> Regex(r"(.*\.)?(to_(q|k))$").matches("unet.mid.to_q"), Regex("(a+)+$").matches("a" * 900 + "!")
    (True, False)

    Raises:
        ValueError: it is no regular expression, or one of another kind, or too long; `matches`: the two engines may
            differ on this name, or all names together took too long.
    """

    text: str
    budget: _Budget = field(default_factory=_Budget, repr=False)

    def __post_init__(self) -> None:
        if len(self.text) > _MAX_LENGTH:
            raise ValueError(f"of {len(self.text)} characters, {_MAX_LENGTH} are the most")
        _check_syntax(self.text)
        options = re2.Options()
        options.max_mem, options.log_errors, options.never_capture = _MAX_MEMORY, False, True
        try:
            self._compiled = re2.compile(self.text, options)
        except re2.error as error:
            raise ValueError(error.args[0].decode(errors="replace")) from error
        self._by_letter = _BY_LETTER.search(self.text) is not None

    @property
    def size(self) -> int:
        """How many states it has."""
        return int(self._compiled.programsize)

    def matches(self, name: str) -> bool:
        """Whether the whole name fits."""
        if "\n" in name or (self._by_letter and not (name and name.isascii() and name.isprintable())):
            raise ValueError(f"is matched with ASCII names alone, one is {name!r:.80}")
        self.budget.spend(self.size * (len(name) + 1))
        return self._compiled.fullmatch(name) is not None


@dataclass
class Patterns:
    r"""Patterns of names in their order; `first` finds the one that PEFT would take.

    PEFT (`get_pattern_key`) takes the first pattern with `re.match(rf"(.*\.)?({pattern})$", name)`: the name itself,
    its end after a dot, or a regular expression for either. Plain names are looked up by their length, so hundreds of
    them cost little.

    >>> Patterns((r"h\.0\.q", "q|k", "v")).first("model.h.1.q")
    'q|k'

    Raises:
        ValueError: one is no regular expression, is not of the kind that `Regex` takes, or they are too many.
    """

    texts: tuple[str, ...]
    _plain: dict[int, list[tuple[int, bool, re.Pattern[str]]]] = field(default_factory=dict, repr=False)
    _other: list[tuple[int, Regex]] = field(default_factory=list, repr=False)
    _budget: _Budget = field(default_factory=_Budget, repr=False)
    _first_of: dict[str, str | None] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if len(self.texts) > _MAX_PATTERNS:
            raise ValueError(f"holds {len(self.texts)} patterns, {_MAX_PATTERNS} are the most")
        states = 0
        for i, text in enumerate(self.texts):
            plain = _PLAIN.fullmatch(text) if len(text) <= _MAX_LENGTH else None
            if plain:
                length = len(re.sub(r"(?s)\\(.)", r"\1", plain[2]))
                self._plain.setdefault(length, []).append((i, bool(plain[1]), re.compile(plain[2])))
                continue
            try:
                self._other.append((i, Regex(rf"(.*\.)?({text})$", self._budget)))
            except ValueError as error:
                raise ValueError(f"holds {text!r:.80}, no regular expression that is read here ({error})") from error
            states += self._other[-1][1].size
            if states > _MAX_STATES:
                raise ValueError("holds regular expressions that are too long together")

    def first(self, name: str) -> str | None:
        """The first pattern that fits a name.

        Raises:
            ValueError: the name is too long to be looked for, it is one on which two engines may differ, or all
                names together took too long.
        """
        if len(name) > _MAX_NAME:
            raise ValueError(f"is matched with names of {_MAX_NAME} characters at most, one has {len(name)}")
        if name not in self._first_of:
            at = self._position(name)
            self._first_of[name] = None if at is None else self.texts[at]
        return self._first_of[name]

    def _position(self, name: str) -> int | None:
        plain = min(self._plain_positions(name), default=None)
        for i, regex in self._other:
            if plain is not None and i > plain:
                break
            if regex.matches(name):
                return i
        return plain

    def _plain_positions(self, name: str) -> Iterator[int]:
        for start in [0, *(dot.end() for dot in re.finditer(r"\.", name))]:
            as_long = self._plain.get(len(name) - start, ())
            self._budget.spend((len(as_long) + 1) * _PLAIN_WORK)
            for i, anchored, pattern in as_long:
                if not (anchored and start) and pattern.fullmatch(name, start):
                    yield i


@lru_cache(maxsize=16)
def compile_patterns(texts: tuple[str, ...], where: Path | None = None) -> Patterns:  # noqa: ARG001 - part of the key
    """Patterns that are made once for the modules of one file, `where`: each has a budget of its own."""
    return Patterns(texts)


def plain_names(text: str) -> tuple[str, ...] | None:
    r"""The names in an expression that only lists names, as lorabench writes `target_modules`; None if it does more.

    >>> plain_names(r"^(?:h\.0\.q|h\.10\.q)$"), plain_names("h.0|h.1"), plain_names(r".*\.q")
    (('h.0.q', 'h.10.q'), None, None)
    """
    listed = _LIST.fullmatch(text)
    if listed is None:
        return None
    return tuple(re.sub(r"(?s)\\(.)", r"\1", name) for name in listed["names"].split("|"))


def _check_syntax(text: str) -> None:
    """Refuse what Python's `re` refuses, and what it may understand otherwise than RE2."""
    at = depth = 0
    while at < len(text):
        token = _SHARED.match(text, at)
        if token is None:
            raise ValueError(f"{text[at : at + 12]!r} is not understood")
        depth += token[0].startswith("(") - (token[0] == ")")
        if depth > _MAX_DEPTH:
            raise ValueError("too many brackets within brackets")
        at = token.end()
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(error.msg) from error
