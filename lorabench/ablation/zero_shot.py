"""Categories that training has not seen, named by a text: two are held out whole, and told apart by their names."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from jaxtyping import Float64, Int64

from lorabench.ablation.held_out import Question, Texts, embedded_texts, held_out, held_out_pairs, known_categories
from lorabench.ablation.none import Between, differences_to
from lorabench.ablation.phase import Ablation
from lorabench.ablation.scored import asked, evaluated_features, scored
from lorabench.ablation.study import Findings, Study, measured, with_holm
from lorabench.errors import LorabenchError
from lorabench.evaluation import Arm, Evaluation
from lorabench.findings import Finding, Measured, Number
from lorabench.options import AtLeast
from lorabench.representations import Representation
from lorabench.zoo.minilm import MINILM

__all__ = ["CHANCE", "NEAREST", "Named", "NamedPair", "ZeroShot", "ZeroShotFinding"]

CHANCE, NEAREST = "chance", "nearest seen category"


@dataclass(frozen=True)
class Named:
    """What a representation says of categories that are held out.

    Attributes:
        representation: its name.
        accuracy: share of the test adapters whose category's name is the nearer one to what the text head says.
        nearest: the same where the classifier names a seen category, and the name nearest to that one's is taken.
        error: why there is nothing of these, or None.
    """

    representation: str
    accuracy: Measured | None = None
    nearest: Measured | None = None
    error: str | None = None


@dataclass(frozen=True)
class NamedPair:
    """The same of one pair, as means over splits; `chance` is the larger share of the two."""

    representation: str
    first: str
    second: str
    accuracy: Number
    nearest: Number
    chance: Number


@dataclass(frozen=True)
class ZeroShotFinding(Finding):
    """Categories named by their texts.

    Attributes:
        model: what embeds texts.
        adapters: test adapters that are asked about, of each split.
        chance: naming the one of two that more test adapters are of.
        rows: a row a representation.
        by_pair: a row a representation and pair.
        between: paired differences of a representation's accuracy to chance, and to its nearest seen category.
    """

    model: str
    adapters: list[int]
    chance: Measured | None
    rows: list[Named]
    by_pair: list[NamedPair]
    between: list[Between]


@dataclass
class ZeroShot(Ablation):
    """Two categories are held out whole; which of the two names is a test adapter's?

    ProbeX's second head (Horwitz et al. 2024, arXiv 2410.13569) maps what it reads to embeddings of texts, and names
    concepts that it has not seen by the nearest. Here the map is linear, from the features of any representation, as
    classifiers take them, to the embeddings of the leaves' texts: ridge regression, which has a closed form and no seed
    (`text_head`). It is trained on the seen categories' training adapters, as the features and their scaling are, and
    its penalty is chosen on their validation adapters. A test adapter of the two gets the category whose name's
    embedding is nearer to the answer, by the cosine; the answer is less the mean training text, and the names less the
    mean of the seen ones. Names are texts of their own: no text or label of an adapter of the two has a part in it.

    The pairs are a seeded order of the categories, two by two, then others in a seeded order; intervals and p are of
    the adapters of these pairs, with leaves resampled whole, and say nothing of other pairs.

    Args:
        pairs: how many; None: all.
        model: what embeds texts: `minilm`, or a folder with a BERT as transformers writes it.
    """

    pairs: Annotated[int | None, AtLeast(1)] = 5
    model: str = MINILM

    def run(self, study: Study) -> Findings:
        """A row a representation for its classifier with all categories, and what is named without.

        Raises:
            LorabenchError: the zoo's leaves have no texts, what embeds them is not there, categories are not what is
                predicted, or they are too few.
        """
        pairs = held_out_pairs(known_categories(study), self.pairs, study.evaluator.seeds[0])
        texts = embedded_texts(study, self.model)
        questions = [[held_out(one, pair) for pair in pairs] for one in study.evaluators]
        rows = [np.unique(np.concatenate([one.evaluator.split.test for one in own])) for own in questions]
        about = asked(study, rows)
        chance = _scored(about, questions, CHANCE, [[one.chance for one in own] for own in questions])
        evaluated, named, between, by_pair = [], [], [], []
        for name, make in study.chosen.items():
            one = evaluated_features(study, name, make())
            evaluated.append(one)
            said = _answers(study, questions, texts, one, make)
            if isinstance(said, str):
                named.append(Named(name, error=said))
                continue
            both = [_scored(about, questions, name, own) for own in said]
            accuracy, nearest = measured(both, about)
            named.append(Named(name, accuracy, nearest))
            between += differences_to(about, name, both[:1], {CHANCE: [chance], NEAREST: both[1:]})
            by_pair += _by_pair(study, questions, name, *said)
        summary = [study.row([one], study.chosen[one.representation](), "none") for one in evaluated]
        (at_chance,) = measured([chance], about)
        sizes = [len(own) for own in rows]
        finding = ZeroShotFinding(self.name, self.model, sizes, at_chance, named, by_pair, with_holm(between))
        return Findings(study.runs(evaluated), summary, finding)


_Answers = list[list[Float64[np.ndarray, " _q"]]]
"""Of every split and pair: 1 where the true one of two is named."""


def _answers(
    study: Study,
    questions: Sequence[Sequence[Question]],
    texts: Texts,
    one: Evaluation,
    make: Callable[[], Representation],
) -> tuple[_Answers, _Answers] | str:
    """By the text head, and by the nearest seen category; or why there are none."""
    if not one.runs:
        return str(one.error)
    name = one.representation

    def both() -> tuple[_Answers, _Answers]:
        named = [[question.named(texts, name, make()) for question in own] for own in questions]
        nearest = [
            [question.nearest(texts, _said(study, place, question, name, make())) for question in own]
            for place, own in enumerate(questions)
        ]
        return named, nearest

    return study.or_why(both)


def _said(
    study: Study, split: int, question: Question, name: str, representation: Representation
) -> Int64[np.ndarray, "seeds q"]:
    """The seen category that each member says of each adapter.

    Raises:
        LorabenchError: no member has trained.
    """
    evaluator = replace(question.evaluator, factory=study.evaluators_of(name)[split].factory)
    (found,) = evaluator.evaluate(name, representation, [Arm("held out", evaluator.everything)])
    good = [number for number, run in enumerate(found.runs) if run.error is None]
    if not good:
        raise LorabenchError(f"no member has trained on the seen categories: {found.runs[0].error}")
    return np.asarray(found.test[good])


def _scored(
    about: Study, questions: Sequence[Sequence[Question]], name: str, answers: Sequence[Sequence[np.ndarray]]
) -> Evaluation:
    """The mean over an adapter's pairs, for every adapter that is asked about."""
    tables = []
    for evaluator, own, values in zip(about.evaluators, questions, answers, strict=True):
        rows = evaluator.split.test
        total, count = np.zeros(len(rows)), np.zeros(len(rows))
        for question, found in zip(own, values, strict=True):
            places = np.searchsorted(rows, question.evaluator.split.test)
            total[places] += found
            count[places] += 1
        tables.append(total / count)
    return scored(about, name, tables)


def _by_pair(
    study: Study, questions: Sequence[Sequence[Question]], name: str, named: _Answers, nearest: _Answers
) -> list[NamedPair]:
    rows = []
    for number, question in enumerate(questions[0]):
        accuracy, by_nearest, chance = (
            float(np.mean([own[number].mean() for own in part]))
            for part in (named, nearest, [[one.chance for one in own] for own in questions])
        )
        first, second = (study.classes[code] for code in question.pair)
        rows.append(NamedPair(name, first, second, accuracy, by_nearest, chance))
    return rows
