"""The nouns of WordNet, from the files that Debian's package `wordnet-base` installs."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lorabench.errors import LorabenchError
from lorabench.storage import file_sha256

__all__ = ["DEBIAN", "SHA256", "Noun", "debian_folder", "first_sense", "leaves_below", "read_nouns"]

DEBIAN = Path("/usr/share/wordnet")
"""Where Debian's package puts WordNet."""

SHA256 = {
    "data.noun": "fea17d2f9656611334eac790e5d69e47645fa180c4aa481fb4cd9b3520754ca2",
    "index.noun": "a490d99d93d017bf4822fe2f0ffa51fd73911ce271dc7535fade21f8814b5a04",
}
"""Its files of nouns, as of WordNet 3.0."""

_EXAMPLE = re.compile(r";\s*\"")


@dataclass(frozen=True)
class Noun:
    """A synset: nouns that mean the same.

    Attributes:
        key: its offset in data.noun, eight digits.
        lemmas: its nouns, spaces for WordNet's underscores; the usual one first.
        gloss: what it means, without the examples of its use.
        hypernyms: keys of what it is a kind of.
    """

    key: str
    lemmas: tuple[str, ...]
    gloss: str
    hypernyms: tuple[str, ...]


def debian_folder() -> Path:
    """Where Debian's WordNet lies.

    Raises:
        LorabenchError: a file is not there, or is not that of WordNet 3.0.
    """
    for name, known in SHA256.items():
        file = DEBIAN / name
        if not file.is_file():
            raise LorabenchError(
                f"no {file}: install Debian's wordnet-base, or give dataset.wordnet=DIR, a folder with "
                f"{' and '.join(SHA256)}."
            )
        if file_sha256(file) != known:
            raise LorabenchError(
                f"{file} is not that of WordNet 3.0 in Debian's wordnet-base. Install the package again, or set "
                f"dataset.wordnet={DEBIAN} to take the file as it is, which makes another zoo."
            )
    return DEBIAN


def read_nouns(folder: Path) -> dict[str, Noun]:
    """Every noun of data.noun by its key.

    A line is `offset file n words (noun id)... pointers (symbol offset part source/target)... | gloss`, the number of
    words in hexadecimal; lines that begin with a space are the licence (wndb(5WN)).

    Raises:
        LorabenchError: a line is none of the kind.
    """
    file = folder / "data.noun"
    nouns = {}
    for number, line in enumerate(file.read_text(errors="replace").splitlines(), start=1):
        if line.startswith(" ") or not line:
            continue
        try:
            noun = _noun(line)
        except (ValueError, IndexError) as error:
            raise _no_line(file, number, "noun") from error
        nouns[noun.key] = noun
    return nouns


def _no_line(file: Path, number: int, what: str) -> LorabenchError:
    return LorabenchError(f"{file}, line {number}: no {what} in WordNet's format (wndb). Give a folder of WordNet's.")


def _noun(line: str) -> Noun:
    head, _, gloss = line.partition(" | ")
    words = head.split()
    count = int(words[3], 16)
    pointers = words[5 + 2 * count :]
    if len(pointers) != 4 * int(words[4 + 2 * count]):
        raise ValueError
    return Noun(
        key=words[0],
        lemmas=tuple(word.replace("_", " ") for word in words[4 : 4 + 2 * count : 2]),
        gloss=_EXAMPLE.split(gloss)[0].strip(),
        hypernyms=tuple(key for symbol, key in zip(pointers[::4], pointers[1::4], strict=True) if symbol == "@"),
    )


def first_sense(folder: Path, lemmas: Iterable[str]) -> dict[str, str]:
    """The key of the most frequent sense of every lemma, from index.noun.

    A line is `lemma n senses pointers symbol... senses tagged offset...`, the most frequent sense first.

    Raises:
        LorabenchError: a lemma is not there, or its line is none of the kind.
    """
    file = folder / "index.noun"
    wanted = {lemma.replace(" ", "_"): lemma for lemma in lemmas}
    found = {}
    for number, line in enumerate(file.read_text(errors="replace").splitlines(), start=1):
        words = line.split()
        if not line.startswith(" ") and words and words[0] in wanted:
            try:
                found[wanted[words[0]]] = words[6 + int(words[3])]
            except (ValueError, IndexError) as error:
                raise _no_line(file, number, "lemma") from error
    missing = [lemma for lemma in wanted.values() if lemma not in found]
    if missing:
        raise LorabenchError(f"{file} has no {missing[0]!r}. Give a folder of WordNet's: dataset.wordnet=DIR.")
    return found


def leaves_below(nouns: Mapping[str, Noun], root: str) -> list[Noun]:
    """The nouns below one that nothing is a kind of, by their keys.

    Instances (Lassie is a dog) are no kinds and do not count.
    """
    kinds: dict[str, list[str]] = {}
    for noun in nouns.values():
        for hypernym in noun.hypernyms:
            kinds.setdefault(hypernym, []).append(noun.key)
    seen, waiting = set(), list(kinds.get(root, []))
    while waiting:
        key = waiting.pop()
        if key not in seen:
            seen.add(key)
            waiting += kinds.get(key, [])
    return [nouns[key] for key in sorted(seen) if key not in kinds]
