"""The leaf concepts of the gloss zoo: nouns of WordNet that have no kinds, under ten roots."""

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from lorabench.errors import LorabenchError
from lorabench.text import some
from lorabench.zoo.wordnet import Noun, first_sense, leaves_below, read_nouns

__all__ = ["ROOTS", "Gloss", "Glosses", "bag_of_words", "groups_of", "read_glosses"]

ROOTS = (
    "bird", "dog", "fish", "insect", "reptile", "fruit", "vegetable", "clothing", "musical instrument", "weapon",
)  # fmt: skip
"""The categories: each is the most frequent sense of its noun, and none is below another."""


@dataclass(frozen=True)
class Gloss:
    """What one adapter is trained on. No word of any root is left in its texts.

    Attributes:
        name: `lemma.key`, with WordNet's key of the synset.
        category: the root that it is below.
        lemma: the noun that the gloss explains.
        gloss: the explanation.
        lemmas: all nouns of the synset, as they stand in WordNet, in lower case.
    """

    name: str
    category: str
    lemma: str
    gloss: str
    lemmas: tuple[str, ...]


@dataclass(frozen=True)
class Glosses:
    """The leaves under the roots, and all other nouns.

    Attributes:
        leaves: root by root.
        others: nouns that are no leaf under a root, in WordNet's order.
        hidden: the words that are taken out of all texts.
    """

    leaves: tuple[Gloss, ...]
    others: tuple[Noun, ...]
    hidden: re.Pattern[str]

    def sample(self, per_category: int, seed: int) -> list[Gloss]:
        """At most `per_category` leaves of every root by a seeded choice, in the order they stand."""
        chosen: list[Gloss] = []
        for number, root in enumerate(ROOTS):
            found = [gloss for gloss in self.leaves if gloss.category == root]
            places = np.random.default_rng([seed, number]).permutation(len(found))[:per_category]
            chosen += [found[place] for place in sorted(places.tolist())]
        return chosen

    def negatives(self, count: int, seed: int) -> list[Gloss]:
        """At most `count` other nouns by a seeded choice, none of which shares a lemma with a leaf."""
        known = {lemma for gloss in self.leaves for lemma in gloss.lemmas}
        free = [noun for noun in self.others if known.isdisjoint(map(str.lower, noun.lemmas))]
        order = np.random.default_rng([seed, len(ROOTS)]).permutation(len(free)).tolist()
        drawn = (_gloss(free[place], "", self.hidden) for place in order)
        return list(itertools.islice((gloss for gloss in drawn if gloss is not None), count))


def read_glosses(folder: Path) -> Glosses:
    """All leaves under the roots, from a folder with data.noun and index.noun.

    The words of every root's synset, and their plurals, are taken out of all texts: half of the fishes' glosses say
    "fish". They are taken out and not covered: how often a cover stands there would tell the root as well. A leaf
    under two roots is left out, and so is one of which nothing is left.

    Raises:
        LorabenchError: the files are none of WordNet's or of two versions, or a root has no leaf.
    """
    nouns = read_nouns(folder)
    keys = first_sense(folder, ROOTS)
    strange = [root for root, key in keys.items() if key not in nouns]
    if strange:
        raise LorabenchError(
            f"{folder}: data.noun has no {keys[strange[0]]}, which index.noun gives for {strange[0]!r}: they are of "
            "two versions. Give a folder of WordNet's."
        )
    below = {root: leaves_below(nouns, keys[root]) for root in ROOTS}
    times = Counter(noun.key for leaves in below.values() for noun in leaves)
    hidden = _hidden([word for key in keys.values() for word in nouns[key].lemmas])
    found = tuple(
        gloss
        for root, leaves in below.items()
        for noun in leaves
        if times[noun.key] == 1 and (gloss := _gloss(noun, root, hidden)) is not None
    )
    empty = [root for root in ROOTS if root not in {gloss.category for gloss in found}]
    if empty:
        raise LorabenchError(f"{folder}: no noun lies below {some(empty)} alone. Give a folder of WordNet's.")
    return Glosses(found, tuple(noun for noun in nouns.values() if noun.key not in times), hidden)


def _hidden(words: Sequence[str]) -> re.Pattern[str]:
    """The words of all roots, `musical instrument` as a whole and as its last word, with an s or es behind them."""
    parts = {part for word in words for part in (word.lower(), word.lower().split()[-1])}
    longest_first = "|".join(map(re.escape, sorted(parts, key=lambda part: (-len(part), part))))
    return re.compile(rf"\b({longest_first})(e?s)?\b", re.IGNORECASE)


def _gloss(noun: Noun, root: str, hidden: re.Pattern[str]) -> Gloss | None:
    """What is left of a noun; None where that is no lemma or no gloss."""
    lemmas = [left for lemma in noun.lemmas if (left := _without(lemma, hidden))]
    gloss = _without(noun.gloss, hidden)
    if not lemmas or not gloss:
        return None
    name = f"{noun.lemmas[0].replace(' ', '_')}.{noun.key}"
    return Gloss(name, root, lemmas[0], gloss, tuple(lemma.lower() for lemma in noun.lemmas))


def _without(text: str, hidden: re.Pattern[str]) -> str:
    return " ".join(hidden.sub(" ", text).split()).strip(" -;,'")


def groups_of(glosses: Sequence[Gloss]) -> list[str]:
    """A name of the group of each leaf: leaves that share a noun, directly or by others, are of one.

    Example:
        >>> crane, bird = Gloss("a", "bird", "", "", ("crane",)), Gloss("b", "bird", "", "", ("crane", "whooper"))
        >>> groups_of([crane, bird, Gloss("c", "dog", "", "", ("pug",))])
        ['a', 'a', 'c']
    """
    owner: dict[str, int] = {}
    group = list(range(len(glosses)))

    def first(place: int) -> int:
        while group[place] != place:
            place = group[place]
        return place

    for place, gloss in enumerate(glosses):
        for lemma in gloss.lemmas:
            a, b = sorted((first(owner.setdefault(lemma, place)), first(place)))
            group[b] = a
    return [glosses[first(place)].name for place in range(len(glosses))]


def bag_of_words(glosses: Sequence[Gloss]) -> Float32[np.ndarray, "n 1 words"]:
    """Which words a leaf's lemma and gloss have, 0 or 1, among those that two leaves at least have."""
    texts = [set(re.findall(r"[a-z]+", f"{gloss.lemma} {gloss.gloss}".lower())) for gloss in glosses]
    count = Counter(word for text in texts for word in text)
    words = {word: place for place, word in enumerate(sorted(word for word in count if count[word] > 1))}
    found = np.zeros((len(glosses), 1, len(words)), np.float32)
    for row, text in enumerate(texts):
        found[row, 0, [words[word] for word in text if word in words]] = 1
    return found
