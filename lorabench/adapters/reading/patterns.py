"""PEFT's `rank_pattern` and `alpha_pattern`, matched in time that no pattern can blow up."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

__all__ = ["Patterns", "Regex", "compile_patterns", "plain_names"]

# No adapter is near these limits; within them the worst ones together take two seconds.
_MAX_LENGTH = 1000  # characters of a pattern
_MAX_NAME = 300  # characters of a module's name
_MAX_PATTERNS = 10_000
_MAX_STATES = 5000  # of all regular expressions of one configuration
_MAX_DEPTH = 50  # brackets within brackets
_MAX_WORK = 5_000_000  # looks at a state, a letter or a plain name, for all names that are asked for
_MAX_KNOWN = 200  # remembered steps of one expression

_PLAIN = re.compile(r"(\^?)((?:[\w\- .]|\\[^\w])*)")
"""A name, in which a dot stands for any character and a backslash for the sign after it."""
_LIST = re.compile(r"\^?\((?:\?:)?(?P<names>(?:[^\\()\[\]{}*+?^$.]|\\[^\w|])*)\)\$?")
"""Names between brackets, every sign of them escaped."""
_TOKEN = re.compile(
    r"(?P<one>\[\^?\]?(?:\\[^0-9bABZ]|(?!--|&&|~~|\|\|)[^\[\]\\])*\]|\\[dDwWsS]|\\[^\w]|[^\\()\[{}|*+?^$])|(?P<open>\((?:\?:)?)(?!\?)"
    r"|(?P<times>[*+?]|\{\d{1,4}(?:,\d{0,4})?\})\??(?![*+?{])|(?P<sign>[)|^$]|\\[bB])"
)

_ALONE = ("^", "$", r"\b", r"\B")
"""Signs that take no letter."""

_Places = frozenset[int]
_Signs = tuple[str, ...]


@dataclass
class _Budget:
    """Steps that the patterns of one configuration may still take, over all names of a file."""

    left: int = _MAX_WORK

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise ValueError("takes too long to be matched with the names of this file")


@dataclass
class Regex:
    r"""A regular expression for whole names, by Thompson's automaton (1968): all ways are followed at once.

    Python's own matcher tries one way after the other, so `(a+)+$` on forty letters takes it hours. Here a letter
    costs at most one look at every state. Known are letters, `.`, classes, `\d \w \s`, escaped signs, groups, `|`,
    `*`, `+`, `?`, `{m,n}` (greedy or not, which decides nothing on whole names), `^`, `$`, `\b` and `\B`.

    >>> Regex(r"(.*\.)?(to_(q|k))$").matches("unet.mid.to_q"), Regex("(a+)+$").matches("a" * 900 + "!")
    (True, False)

    Raises:
        ValueError: it is no regular expression, or one of another kind, or too long; `matches`: all names together
            took too long.
    """

    text: str
    budget: _Budget = field(default_factory=_Budget, repr=False)
    _states: list[tuple[re.Pattern[str] | str, tuple[int, ...]]] = field(default_factory=list, repr=False)
    _known: dict[tuple[_Places, str, _Signs], _Places] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if len(self.text) > _MAX_LENGTH:
            raise ValueError(f"of {len(self.text)} characters, {_MAX_LENGTH} are the most")
        tree = _Parser(self.text).parse()
        self._states.append(("", ()))
        self._entry = self._add(tree, 0)

    @property
    def size(self) -> int:
        """How many states it has."""
        return len(self._states)

    def matches(self, name: str) -> bool:
        """Whether the whole name fits."""
        here = frozenset({self._entry})
        self.budget.spend(len(name) + 1)
        for i, letter in enumerate(name):
            step = (here, letter, _signs(name, i))
            if step not in self._known:
                if len(self._known) >= _MAX_KNOWN:
                    self._known.clear()
                reached = (self._states[at] for at in self._spread(here, step[2]))
                self._known[step] = frozenset(following[0] for test, following in reached if _takes(test, letter))
            here = self._known[step]
            if not here:
                return False
        return 0 in self._spread(here, _signs(name, len(name)))

    def _spread(self, places: _Places, signs: _Signs) -> set[int]:
        """All states that are reached from some without a letter, where these signs hold."""
        reached, left = set(places), list(places)
        while left:
            test, following = self._states[left.pop()]
            if test == "" or test in signs:
                new = set(following) - reached
                reached |= new
                left.extend(new)
        self.budget.spend(len(reached))
        return reached

    def _add(self, node: "_Node", then: int) -> int:
        """States for a part of the expression that go on at `then`; the first of them."""
        if len(self._states) > _MAX_STATES:
            raise ValueError("too long once its repetitions are written out")
        if node.kind == "all":
            for part in reversed(node.parts):
                then = self._add(part, then)
            return then
        if node.kind == "any":
            return self._state("", *(self._add(part, then) for part in node.parts))
        if node.kind == "times":
            return self._repeat(node, then)
        return self._state(node.kind if node.test is None else node.test, then)

    def _repeat(self, node: "_Node", then: int) -> int:
        entry = then
        if node.most is None:
            entry = self._state("", then)
            self._states[entry] = ("", (self._add(node.parts[0], entry), then))
        for _ in range((node.most or node.least) - node.least):
            entry = self._state("", self._add(node.parts[0], entry), then)
        for _ in range(node.least):
            entry = self._state("", self._add(node.parts[0], entry))
        return entry

    def _state(self, test: re.Pattern[str] | str, *following: int) -> int:
        self._states.append((test, following))
        return len(self._states) - 1


@dataclass
class Patterns:
    r"""Patterns of names in their order; `first` finds the one that PEFT would take.

    PEFT (`get_pattern_key`) takes the first pattern with `re.match(rf"(.*\.)?({pattern})$", name)`: the name itself,
    its end after a dot, or a regular expression for either. Plain names are looked up by their length, so hundreds of
    them cost little.

    Raises:
        ValueError: one is no regular expression, is not of the kind that `Regex` knows, or they are too many.
    """

    texts: tuple[str, ...]
    _plain: dict[int, list[tuple[int, bool, re.Pattern[str]]]] = field(default_factory=dict, repr=False)
    _other: list[tuple[int, Regex]] = field(default_factory=list, repr=False)
    _budget: _Budget = field(default_factory=_Budget, repr=False)
    _found: dict[str, str | None] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if len(self.texts) > _MAX_PATTERNS:
            raise ValueError(f"holds {len(self.texts)} patterns, {_MAX_PATTERNS} are the most")
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
            if sum(regex.size for _, regex in self._other) > _MAX_STATES:
                raise ValueError("holds regular expressions that are too long together")

    def first(self, name: str) -> str | None:
        """The first pattern that fits a name.

        Raises:
            ValueError: the name is too long to be looked for, or all names together took too long.
        """
        if len(name) > _MAX_NAME:
            raise ValueError(f"is matched with names of {_MAX_NAME} characters at most, one has {len(name)}")
        if name not in self._found:
            self._found[name] = self._first(name)
        return self._found[name]

    def _first(self, name: str) -> str | None:
        found = min(self._plain_ones(name), default=len(self.texts))
        for i, regex in self._other:
            if i > found:
                break
            if regex.matches(name):
                found = i
        return self.texts[found] if found < len(self.texts) else None

    def _plain_ones(self, name: str) -> Iterator[int]:
        for start in [0, *(dot.end() for dot in re.finditer(r"\.", name))]:
            alike = self._plain.get(len(name) - start, ())
            self._budget.spend(len(alike) + 1)
            for i, anchored, pattern in alike:
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
    found = _LIST.fullmatch(text)
    if found is None:
        return None
    return tuple(re.sub(r"(?s)\\(.)", r"\1", one) for one in found["names"].split("|"))


@dataclass(frozen=True)
class _Node:
    """A part of an expression: "all" or "any" of its parts, one part so many "times", "^", "$" or one letter."""

    kind: str
    parts: Sequence["_Node"] = ()
    test: re.Pattern[str] | None = None
    least: int = 0
    most: int | None = None


class _Parser:
    """Reads a regular expression from left to right."""

    def __init__(self, text: str) -> None:
        self.tokens, self.at, self.depth = list(_tokens(text)), 0, 0

    def parse(self) -> _Node:
        found = self._choice()
        if self.at < len(self.tokens):
            raise ValueError("a bracket too many is closed")
        return found

    def _peek(self) -> str:
        return self.tokens[self.at][1] if self.at < len(self.tokens) else ""

    def _choice(self) -> _Node:
        parts = [self._sequence()]
        while self._peek() == "|":
            self.at += 1
            parts.append(self._sequence())
        return parts[0] if len(parts) == 1 else _Node("any", parts)

    def _sequence(self) -> _Node:
        parts: list[_Node] = []
        while self._peek() not in ("", ")", "|"):
            kind, text = self.tokens[self.at]
            self.at += 1
            if kind == "one":
                parts.append(_Node("one", test=_letter(text)))
            elif kind == "open":
                parts.append(self._group())
            elif kind == "sign":
                parts.append(_Node(text))
            elif not parts or parts[-1].kind in _ALONE:
                raise ValueError(f"nothing to repeat before {text}")
            else:
                parts[-1] = _repeated(parts[-1], text)
        return _Node("all", parts)

    def _group(self) -> _Node:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise ValueError("too many brackets within brackets")
        found = self._choice()
        if self._peek() != ")":
            raise ValueError("a bracket is not closed")
        self.at += 1
        self.depth -= 1
        return found


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"{text[at : at + 12]!r} is not understood")
        kind = str(match.lastgroup)
        yield kind, match[kind]
        at = match.end()


def _letter(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise ValueError(str(error)) from error


def _repeated(node: _Node, times: str) -> _Node:
    if times in "*+?":
        return _Node("times", [node], least=int(times == "+"), most=1 if times == "?" else None)
    least, comma, most = times[1:-1].partition(",")
    bound = int(most) if most else None if comma else int(least)
    if bound is not None and bound < int(least):
        raise ValueError(f"{times} ends before it begins")
    return _Node("times", [node], least=int(least), most=bound)


def _takes(test: re.Pattern[str] | str, letter: str) -> bool:
    return not isinstance(test, str) and test.fullmatch(letter) is not None


def _signs(name: str, at: int) -> _Signs:
    """The signs without a letter that hold before a letter of a name."""
    before, after = name[max(at - 1, 0) : at], name[at : at + 1]
    border = (r"\b",) if _is_word(before) != _is_word(after) else (r"\B",) if name else ()  # an empty name has none
    return (*("^" * (at == 0)), *("$" * (at == len(name))), *border)


def _is_word(letter: str) -> bool:
    return letter == "_" or letter.isalnum()
