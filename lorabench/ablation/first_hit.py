"""Where the first relevant one comes in a ranking, exactly: by a similarity with its ties, or in a random order."""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64

__all__ = ["FirstHit", "cosines", "first_hit", "first_hits", "first_hits_by_chance", "over_lengths"]

_DIGITS = 10  # of a cosine: what differs beyond is how a sum was rounded


class FirstHit(NamedTuple):
    """What is expected of the first relevant one's place, from 0 to 1: 1 / place, and whether it is among the first."""

    reciprocal: float
    in_1: float
    in_5: float


@functools.cache
def first_hit(above: int, tied: int, relevant: int) -> FirstHit:
    """Behind `above` others stand `tied` in random order, `relevant` of which are relevant: where is the first one?

    It is the k-th of those tied with the probability C(t−k, r−1) / C(t, r), from 1 to t−r+1 (the negative
    hypergeometric distribution), so that the reciprocal rank is Σₖ P(k) / (a + k). One relevant one of t in random
    order has Hₜ / t, the harmonic number over t; one that nothing is tied with has 1 / (a + 1).

    >>> first_hit(0, 3, 1)  # (1 + 1/2 + 1/3) / 3, 1/3, 1
    FirstHit(reciprocal=0.6111111111111112, in_1=0.3333333333333333, in_5=1.0)

    Source: the reciprocal rank is that of Voorhees 1999, "The TREC-8 question answering track report".

    Args:
        above: a, how many stand before all of them.
        tied: t, of equal similarity.
        relevant: r, of those tied; 1 to t.
    """
    odds = list(_places(tied, relevant))
    reciprocal = sum(odd / (above + place) for place, odd in enumerate(odds, 1))
    in_1, in_5 = (min(1.0, sum(odds[: max(0, first - above)])) for first in (1, 5))
    return FirstHit(reciprocal, in_1, in_5)


def _places(tied: int, relevant: int) -> Iterator[float]:
    """Probabilities of the first relevant one's places, from the first; each from the one before it."""
    odd = relevant / tied
    for place in range(1, tied - relevant + 2):
        yield odd
        if place < tied:
            odd *= (tied - place - relevant + 1) / (tied - place)


def first_hits(
    similar: Float64[np.ndarray, "queries gallery"],
    relevant: Bool[np.ndarray, "queries gallery"],
    candidate: Bool[np.ndarray, "queries gallery"],
) -> Float64[np.ndarray, "queries 3"]:
    """`FirstHit` of every query by descending similarity; those of equal similarity are in random order.

    Args:
        similar: how alike.
        relevant: what is looked for; each query has one such candidate at least.
        candidate: what is ranked; a query itself is not.

    >>> similar = np.array([[0.9, 0.5, 0.1]])
    >>> first_hits(similar, np.array([[False, True, False]]), np.ones((1, 3), bool))
    array([[0.5, 0. , 1. ]])
    """
    best = np.where(relevant & candidate, similar, -np.inf).max(1, keepdims=True)
    above, level = candidate & (similar > best), candidate & (similar == best)
    counts = (np.count_nonzero(of, axis=1).tolist() for of in (above, level, level & relevant))
    return np.array([first_hit(*own) for own in zip(*counts, strict=True)], np.float64)


def first_hits_by_chance(
    relevant: Bool[np.ndarray, "queries gallery"], candidate: Bool[np.ndarray, "queries gallery"]
) -> Float64[np.ndarray, "queries 3"]:
    """The same where all candidates are in random order: exact, of each query's numbers of candidates."""
    return first_hits(np.zeros(relevant.shape), relevant, candidate)


def cosines(products: Float64[np.ndarray, "m m"]) -> Float64[np.ndarray, "m m"]:
    """Cosines from inner products, to ten digits; 0 beside a vector of zeros.

    >>> cosines(np.array([[4.0, 3.0, 0.0], [3.0, 9.0, 0.0], [0.0, 0.0, 0.0]]))[0]
    array([1. , 0.5, 0. ])
    """
    lengths = np.sqrt(np.clip(np.diag(products), 0, None))
    return over_lengths(products, np.outer(lengths, lengths))


def over_lengths(products: Float64[np.ndarray, "*any"], lengths: Float64[np.ndarray, "*any"]) -> np.ndarray:
    """Cosines to ten digits, from inner products and the products of the lengths; 0 where a length is."""
    found = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    return np.asarray(found.round(_DIGITS, out=found))
