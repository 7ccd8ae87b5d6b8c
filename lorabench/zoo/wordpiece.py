"""BERT's uncased tokens of a text, from a vocabulary alone."""

import unicodedata
from collections.abc import Mapping
from pathlib import Path

__all__ = ["read_vocabulary", "word_pieces"]

_LONGEST = 100


def read_vocabulary(file: Path) -> dict[str, int]:
    """Token -> id, which is its line in vocab.txt.

    Raises:
        OSError: it cannot be read.
    """
    return {token: number for number, token in enumerate(file.read_text(encoding="utf-8").splitlines())}


def word_pieces(text: str, vocabulary: Mapping[str, int]) -> list[int]:
    """The ids of a text, without [CLS] and [SEP].

    Words are cut at spaces and punctuation, lower case, without accents; each is taken to pieces greedily, the longest
    that the vocabulary has first, those after the first written `##piece`; a word that cannot be is `[UNK]`.
    Chinese characters, which BERT cuts apart and WordNet has not, are left as they are.

    Source: Devlin et al. 2019, "BERT", and Wu et al. 2016 (WordPiece).

    Example:
        >>> vocabulary = {"[UNK]": 0, "blue": 1, "##bird": 2, ",": 3}
        >>> word_pieces("Bluebird, xyz", vocabulary)
        [1, 2, 3, 0]
    """
    return [piece for word in _words(text) for piece in _pieces(word, vocabulary)]


def _words(text: str) -> list[str]:
    plain = (c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
    return "".join(f" {c} " if _is_punctuation(c) else c for c in plain).split()


def _is_punctuation(character: str) -> bool:
    """BERT counts all of ASCII that is no letter, digit nor space: `$` and `^` too."""
    if character.isascii():
        return character.isprintable() and not character.isalnum() and character != " "
    return unicodedata.category(character).startswith("P")


def _pieces(word: str, vocabulary: Mapping[str, int]) -> list[int]:
    found: list[int] = []
    start = 0
    while start < len(word):
        prefix = "##" if start else ""
        stops = range(len(word), start, -1)
        stop = next((stop for stop in stops if prefix + word[start:stop] in vocabulary), None)
        if stop is None or len(word) > _LONGEST:
            return [vocabulary["[UNK]"]]
        found.append(vocabulary[prefix + word[start:stop]])
        start = stop
    return found
