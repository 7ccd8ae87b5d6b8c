"""Two categories held out whole: what is trained without them, and what is asked of their test adapters."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64, Int64

from lorabench.ablation.study import Study
from lorabench.ablation.text_head import between_texts, text_head
from lorabench.errors import LorabenchError
from lorabench.evaluation import Evaluator
from lorabench.evaluation.products import inner_products
from lorabench.representations import Representation
from lorabench.zoo.gloss_model import load_text_base
from lorabench.zoo.minilm import MINILM, minilm_folder
from lorabench.zoo.splits import Split

__all__ = ["Question", "Texts", "embedded_texts", "held_out", "held_out_pairs", "known_categories"]

_LEAST = 4  # categories: two that are held out, and two that a classifier can be trained on
_LONGEST = 32  # tokens of a text that are read, as the gloss zoo does


@dataclass(frozen=True)
class Texts:
    """Embeddings of texts: of every adapter's leaf, and of every class's name."""

    leaves: Float64[np.ndarray, "n d"]
    names: Float64[np.ndarray, "classes d"]


@dataclass(frozen=True)
class Question:
    """One pair of one split.

    Attributes:
        evaluator: trains on the other categories alone, and tests the adapters of the pair; its classes are the others.
        pair: codes of the two classes.
        seen: codes of the others.
        truth: which of the two each test adapter is of, 0 or 1.
    """

    evaluator: Evaluator
    pair: tuple[int, int]
    seen: Int64[np.ndarray, " seen"]
    truth: Int64[np.ndarray, " q"]

    @property
    def chance(self) -> Float64[np.ndarray, " q"]:
        """1 where the more frequent of the two is the true one."""
        return np.asarray(self.truth == int(2 * self.truth.sum() > len(self.truth)), np.float64)

    def named(self, texts: Texts, name: str, representation: Representation) -> Float64[np.ndarray, " q"]:
        """1 where the text head's answer is nearer to the true name."""
        split = self.evaluator.split
        known = np.concatenate([split.train, split.val])
        rows = np.concatenate([known, split.test])
        products = inner_products(self.evaluator, name, representation, rows)
        answers = text_head(products, texts.leaves[known], len(split.train))
        return between_texts(answers, self._centred(texts)[list(self.pair)], self.truth)

    def nearest(self, texts: Texts, said: Int64[np.ndarray, "seeds q"]) -> Float64[np.ndarray, " q"]:
        """The same by the name of the seen category that a classifier says; the mean over its members."""
        names = self._centred(texts)
        pair = names[list(self.pair)]
        return np.asarray(np.mean([between_texts(names[self.seen[own]], pair, self.truth) for own in said], 0))

    def _centred(self, texts: Texts) -> Float64[np.ndarray, "classes d"]:
        """The names less the mean of those that are seen: a name says more than what all names have in common."""
        return np.asarray(texts.names - texts.names[self.seen].mean(0))


def held_out_pairs(codes: Sequence[int], count: int | None, seed: int) -> list[tuple[int, int]]:
    """Pairs of categories: a seeded order two by two, so that each is held out once, then others in a seeded order.

    >>> len(held_out_pairs(range(10), 5, 0)), len(held_out_pairs(range(10), None, 0))
    (5, 45)

    Args:
        codes: of the categories.
        count: how many pairs; None, or more than there are: all.
        seed: of the order.
    """
    rng = np.random.default_rng(seed)
    order = [int(code) for code in rng.permutation(list(codes))]
    first = [(min(two), max(two)) for two in zip(order[::2], order[1::2], strict=False)]
    rest = [two for two in itertools.combinations(sorted(order), 2) if two not in first]
    return [*first, *(rest[place] for place in rng.permutation(len(rest)))][:count]


def known_categories(study: Study) -> list[int]:
    """Codes of the categories that every split trains on and tests.

    Raises:
        LorabenchError: classes are no categories, or too few.
    """
    zoo, evaluators = study.zoo, study.evaluators
    labels, classes = study.evaluator.labels, study.classes
    category = [zoo.labels.category_names[code] for code in zoo.labels.category]
    if any(code >= 0 and classes[code] != category[row] for row, code in enumerate(labels)):
        raise LorabenchError(
            "ablation=zero_shot holds out categories, and classes are something else: give target=category"
        )
    parts = [
        set(labels[part].tolist()) for one in evaluators for part in (one.split.train, one.split.val, one.split.test)
    ]
    found = sorted(set.intersection(*parts))
    if len(found) < _LEAST:
        raise LorabenchError(
            f"ablation=zero_shot holds out two categories and learns from the others, and {zoo.name} has {len(found)} "
            f"with adapters in every part of every split: {_LEAST} at least are needed"
        )
    return found


def embedded_texts(study: Study, model: str) -> Texts:
    """Embeddings of all leaves' texts and of all classes' names.

    Raises:
        LorabenchError: the zoo has no texts, or there is no such model.
    """
    zoo = study.zoo
    if zoo.texts is None:
        raise LorabenchError(
            f"ablation=zero_shot names categories by texts, and {zoo.name} has no text of a leaf: take dataset=glosses "
            "(lemma and gloss) or a glyph zoo (Unicode names)"
        )
    folder = minilm_folder() if model == MINILM else Path(model)
    base, of_leaf = load_text_base(folder, _LONGEST, "ablation.model"), zoo.texts()
    with torch.no_grad():
        leaves, names = (
            base.embed(words).double().numpy()
            for words in (
                [of_leaf[leaf] for leaf in zoo.labels.leaf_names],
                [name.replace("_", " ") for name in study.classes],
            )
        )
    return Texts(leaves[zoo.labels.leaf], names)


def held_out(evaluator: Evaluator, pair: tuple[int, int]) -> Question:
    """What is asked where a pair of categories has no part in the training of a split."""
    labels, split = evaluator.labels, evaluator.split
    seen = np.setdiff1d(labels[split.train], pair)
    train, val = (rows[np.isin(labels[rows], seen)] for rows in (split.train, split.val))
    test = split.test[np.isin(labels[split.test], pair)]
    codes = np.full(len(labels), -1)
    own = np.isin(labels, seen)
    codes[own] = np.searchsorted(seen, labels[own])
    codes[test] = 0  # of a class that nobody knows: what is right of it is told below, by the names
    restricted = replace(evaluator.aside(), labels=codes, n_classes=len(seen), split=Split(train, val, test))
    return Question(restricted, pair, seen, (labels[test] == pair[1]).astype(np.int64))
