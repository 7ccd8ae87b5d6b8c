"""What a model says of adapter files."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from lorabench.errors import LorabenchError
from lorabench.predict import ERROR, STRANGERS
from lorabench.predict.character import character
from lorabench.predict.conformal import mean_probabilities
from lorabench.predict.model import Model
from lorabench.predict.reading import Reading, Stranger, as_zoo, fitted_to

__all__ = ["Answer", "Verdict", "ask"]

Verdict = Literal["known", "several", "unknown", "error"]
_SHOWN = 3
_BATCH_BYTES = (
    2**28
)  # of the adapters that a lane reads before it judges them, of which many take little more time than one


@dataclass(frozen=True)
class Answer:
    """What is said of one adapter.

    Attributes:
        path: its file or folder.
        verdict: "known": one category; "several": one of these, at the error rate that was asked for; "unknown": the
            model does not know; "error": the file cannot be read.
        categories: that may be right at this error rate; none where the verdict is "unknown" or "error".
        ranked: the likeliest categories with their calibrated probabilities, falling; none where nothing was computed.
        why: it is unknown, or cannot be read.
        notes: what a user should know, in sentences.
        likeness: of 1 adapter of the training adapters' kind, the probability to be as far out; NaN where not computed.
    """

    path: Path
    verdict: Verdict
    categories: tuple[str, ...] = ()
    ranked: tuple[tuple[str, float], ...] = ()
    why: str = ""
    notes: tuple[str, ...] = ()
    likeness: float = float("nan")


def ask(
    model: Model,
    paths: Sequence[Path],
    error: float = ERROR,
    strangers: float = STRANGERS,
    on_answer: Callable[[], None] = lambda: None,
) -> list[Answer]:
    """What a model says of each of these adapters, in order.

    Args:
        model: of `read_model`.
        paths: adapter files, or folders that are one adapter each.
        error: how often the right category may be too unlikely to be named, of adapters like those of the training.
        strangers: how many of such adapters may be turned away as strangers, of which no category is named. So
            `categories` has the right one in at least 1 - `error` - `strangers` of cases.
        on_answer: called after each is read.
    """
    # Not in lanes: reading a small file is Python's work, of which two threads do less than one (63 ms a file to 44).
    floats = sum(known.rank * (known.d_in + known.d_out) for known in model.modules)
    at_once = max(1, _BATCH_BYTES // (4 * floats))
    parts = (paths[start : start + at_once] for start in range(0, len(paths), at_once))
    return [answer for part in parts for answer in _answers(model, part, error, strangers, on_answer)]


def _answers(
    model: Model, paths: Sequence[Path], error: float, strangers: float, on_answer: Callable[[], None]
) -> list[Answer]:
    """Those of adapters that are held in memory at one time."""
    found: dict[int, Answer] = {}
    readings: dict[int, Reading] = {}
    for number, path in enumerate(paths):
        try:
            readings[number] = fitted_to(model.modules, path)
        except Stranger as stranger:
            found[number] = Answer(path, "unknown", why=str(stranger))
        except LorabenchError as wrong:
            found[number] = Answer(path, "error", why=str(wrong))
        on_answer()
    if readings:
        said = _judged(model, [paths[i] for i in readings], list(readings.values()), error, strangers)
        found.update(zip(readings, said, strict=True))
    return [found[number] for number in range(len(paths))]


def _judged(
    model: Model, paths: Sequence[Path], readings: Sequence[Reading], error: float, strangers: float
) -> list[Answer]:
    """Answers to adapters that were read."""
    zoo = as_zoo(model.modules, readings)
    inputs = model.inputs(zoo)
    traits = character(zoo, model.novelty.spans)
    probabilities = mean_probabilities(model.logits(inputs), model.temperature)
    sets = model.conformal.sets(probabilities, error)
    distances = model.novelty.distances(inputs, traits)
    scores = distances.max(1)
    likeness = model.novelty.held.p_values(scores)
    limit = model.novelty.held.quantile(strangers)
    said = []
    for row, (path, reading) in enumerate(zip(paths, readings, strict=True)):
        order = torch.argsort(probabilities[row], descending=True).tolist()
        ranked = tuple((model.classes[code], float(probabilities[row, code])) for code in order[:_SHOWN])
        chosen = tuple(model.classes[code] for code in order if sets[row, code])
        verdict: Verdict = "known" if len(chosen) == 1 else "several"
        why = ""
        if not np.isfinite(scores[row]) or scores[row] > limit:
            verdict, why = "unknown", model.novelty.reason(distances[row], traits[row])
        elif not chosen:
            verdict, why = "unknown", f"no category fits as well as the right one does in {1 - error:.0%} of cases"
        categories = () if verdict == "unknown" else chosen
        said.append(Answer(path, verdict, categories, ranked, why, reading.notes, float(likeness[row])))
    return said
