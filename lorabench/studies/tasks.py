"""Texts with labels that every machine has: the standard library's docstrings, Unicode's names, WordNet's glosses."""

import ast
import functools
import random
import re
import sys
import sysconfig
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorabench.errors import LorabenchError

__all__ = ["SOURCES", "Task", "make_task"]

_WORDNET = Path("/usr/share/wordnet")
_MOST = 400  # texts of a class


@dataclass(frozen=True)
class Task:
    """Texts of some classes, the same number of each, in a random order.

    Attributes:
        name: source and number of classes.
        classes: their names.
        texts: of training and test.
        labels: which class each is of.
        train: how many of them are for training; the rest is the test.
    """

    name: str
    classes: Sequence[str]
    texts: Sequence[str]
    labels: Sequence[int]
    train: int


def make_task(source: str, classes: int, train: int, test: int, first: int = 0, seed: int = 0) -> Task:
    """A task of some classes of a source, those with most texts first.

    Args:
        source: one of `SOURCES`.
        classes: how many, two at least.
        train: training texts in all, as near as equal classes allow.
        test: test texts in all.
        first: classes to pass over, so that tasks of one size can have different classes.
        seed: of which texts are taken.

    Raises:
        LorabenchError: there is no such source here, or it has not as many classes or texts.
    """
    if source not in SOURCES:
        raise LorabenchError(f"source={source!r}: there is {', '.join(SOURCES)}.")
    texts = SOURCES[source]()
    ordered = sorted(texts, key=lambda name: (-len(texts[name]), name))[first : first + classes]
    each = [-(-train // classes), -(-test // classes)]
    short = [name for name in ordered if len(texts[name]) < sum(each)]
    if len(ordered) < classes or short or classes < 2:
        raise LorabenchError(
            f"source={source}, classes={classes}, first={first}, {sum(each)} texts each: this Python has "
            f"{len(texts)} classes, and of these {len(ordered)} taken {len(short)} have fewer texts. Ask for less."
        )
    generator = random.Random(seed)  # noqa: S311  # which texts, no secret
    parts: list[list[tuple[str, int]]] = [[], []]
    for label, name in enumerate(ordered):
        drawn = generator.sample(texts[name], sum(each))
        parts[0] += [(text, label) for text in drawn[: each[0]]]
        parts[1] += [(text, label) for text in drawn[each[0] :]]
    for part in parts:
        generator.shuffle(part)
    pairs = parts[0] + parts[1]
    return Task(
        f"{source}-{classes}" + (f"-from-{first}" if first else ""),
        ordered,
        [text for text, _ in pairs],
        [label for _, label in pairs],
        len(parts[0]),
    )


@functools.cache
def docstrings() -> Mapping[str, Sequence[str]]:
    """Module of the standard library -> sentences of its docstrings, the module's name taken out."""
    library = Path(sysconfig.get_paths()["stdlib"])
    texts: dict[str, set[str]] = {}
    for name in sorted(sys.stdlib_module_names):
        files = [library / f"{name}.py", *sorted((library / name).glob("*.py"))]
        hidden = re.compile(rf"\b{re.escape(name)}\b", re.IGNORECASE)
        for file in files:
            if file.is_file():
                texts.setdefault(name, set()).update(hidden.sub("it", text) for text in _docs(file))
    return _cut(texts)


def _docs(file: Path) -> list[str]:
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return []
    kinds = ast.FunctionDef | ast.ClassDef | ast.Module | ast.AsyncFunctionDef
    docs = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)]
    sentences = (" ".join(part.split()) for doc in docs for part in re.split(r"\n\s*\n", doc))
    return [text[:200] for text in sentences if len(text.split()) >= 4]


@functools.cache
def unicode_names() -> Mapping[str, Sequence[str]]:
    """Script -> the names of its characters, the script's own words taken out."""
    texts: dict[str, set[str]] = {}
    for point in range(sys.maxunicode + 1):
        name = unicodedata.name(chr(point), "")
        words = name.split()
        if len(words) < 3 or any(any(letter.isdigit() for letter in word) for word in words):
            continue
        script = words[0]
        texts.setdefault(script, set()).add(" ".join(word for word in words if word != script).lower())
    return _cut(texts)


@functools.cache
def wordnet() -> Mapping[str, Sequence[str]]:
    """Lexical file of WordNet ("noun.05", the animals) -> its glosses, where Debian's wordnet-base lies."""
    texts: dict[str, set[str]] = {}
    for part in ("noun", "verb", "adj", "adv"):
        file = _WORDNET / f"data.{part}"
        if not file.is_file():
            raise LorabenchError(f"source=wordnet: no {file}. Install Debian's wordnet-base, or take another source.")
        for line in file.read_text(errors="replace").splitlines():
            head, _, gloss = line.partition(" | ")
            if gloss and not line.startswith("  "):
                texts.setdefault(f"{part}.{head.split()[1]}", set()).add(gloss.split(";")[0].strip())
    return _cut(texts)


def _cut(texts: Mapping[str, set[str]]) -> dict[str, list[str]]:
    """Every text in one class alone, and no more than some hundred of each."""
    owners: dict[str, int] = {}
    for found in texts.values():
        for text in found:
            owners[text] = owners.get(text, 0) + 1
    generator = random.Random(0)  # noqa: S311
    cut = {}
    for name, found in texts.items():
        own = sorted(text for text in found if owners[text] == 1)
        cut[name] = generator.sample(own, min(len(own), _MOST))
    return cut


SOURCES = {"docstrings": docstrings, "unicode": unicode_names, "wordnet": wordnet}
"""Where texts come from."""
