"""What the page says of the runs of one table, in the order in which a person asks."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from lorabench.ablation.compare import CompareFinding
from lorabench.pages.parts import Chapter, Picture, Section
from lorabench.report.comparison import cells_of, split_number
from lorabench.report.folders import Entry
from lorabench.report.numbers import percent
from lorabench.report.page.charts import cost, degradation, differences, with_without
from lorabench.report.page.claims import claims
from lorabench.report.page.rankings import ranking_pictures
from lorabench.report.phases import phase_report
from lorabench.report.standings import Standing, compare
from lorabench.report.sweeps import column_title, tables_of
from lorabench.report.training_figures import confusion_figure
from lorabench.results import Result
from lorabench.sheet import Sheet

__all__ = ["chapter"]

_MOST_CLASSES = 60
_SHOWN = ("none", "layers", "progressive")
_HOLM = (
    "Means over splits and members. A star marks the best of a column only where every other is shown to be worse: "
    "the paired difference by the corrected resampled t over splits (Nadeau & Bengio 2003), p below 0.05 after Holm's "
    "correction for all others of the column. One that lacks a split that another has gets none."
)
_PAIRS = (
    "Every two of a column are compared: paired, corrected resampled t, Holm's correction for all pairs. A bar joins "
    "neighbours of which no two are told apart; that is no proof that they are the same."
)
_LAYERS = (
    "Accuracy of each layer alone, with the network's blocks from its input to its output; of several runs of one "
    "split each, the mean over their splits with the interval of the corrected resampled t."
)
_COST = (
    "Seconds that the training of a member took when it was trained, the mean over splits and members: they are kept "
    "with it in the cache. What features took, the fit of a learned representation among them, is not kept there, and "
    "is in none. Seconds are of the machines that trained."
)


@dataclass(frozen=True)
class _Known:
    """The runs of one table.

    Attributes:
        rows: their cells.
        results: theirs.
        sources: (`Cell.row`, `Cell.top_k`) -> the runs that have members in it.
    """

    rows: Sequence[Standing]
    results: Sequence[Result]
    sources: Mapping[tuple[object, ...], Sequence[Entry]]

    @property
    def ended(self) -> list[Standing]:
        """The cells with a member that ended well."""
        return [row for row in self.rows if row.cell.accuracy]

    @property
    def fewest(self) -> list[Standing]:
        """Of these, the column with the fewest layers taken away."""
        least = min((row.cell.top_k for row in self.ended), default=0)
        return [row for row in self.ended if row.cell.top_k == least]

    def of(self, row: Standing) -> Sequence[Entry]:
        """The runs that have members in a cell."""
        return self.sources[row.cell.row, row.cell.top_k]

    def results_of(self, row: Standing) -> list[Result]:
        """What they found."""
        return [run.result for run in self.of(row) if run.result is not None]


def chapter(number: int, title: str, runs: Sequence[Entry], places: Sequence[str]) -> Chapter:
    """All sections for which there are data.

    Args:
        number: of the chapter, from 1.
        title: what its runs have in common.
        runs: with results, all of one table.
        places: options in which the tables of a page differ.
    """
    known = _known(runs)
    makers: Sequence[Callable[[str, _Known], Section | None]] = (
        lambda anchor, known: Section(anchor, "Every representation", [_HOLM], tables_of(known.rows, places)),
        _told_apart, _cost, _layers, _bars, _curves, _confusions, _claims, _others, _commands,
    )  # fmt: skip
    sections = [make(f"c{number}-{place}", known) for place, make in enumerate(makers)]
    return Chapter(f"c{number}", title, [one for one in sections if one is not None])


def _known(runs: Sequence[Entry]) -> _Known:
    sources: dict[tuple[object, ...], list[Entry]] = {}
    for run in runs:
        for cell in cells_of(run.result) if run.result is not None else []:
            sources.setdefault((cell.row, cell.top_k), []).append(run)
    results = [run.result for run in runs if run.result is not None]
    return _Known(compare(results), results, sources)


def _told_apart(anchor: str, known: _Known) -> Section | None:
    rows = known.ended
    columns = [[row for row in rows if row.cell.top_k == k] for k in sorted({row.cell.top_k for row in rows})]
    pictures = [differences(column) for column in columns if len(column) > 1]
    return Section(anchor, "What is told apart", [_PAIRS], (), pictures, folded=True) if pictures else None


def _cost(anchor: str, known: _Known) -> Section | None:
    picture = cost(known.fewest)
    return None if picture is None else Section(anchor, "Accuracy and cost", [_COST], (), [picture])


def _layers(anchor: str, known: _Known) -> Section | None:
    pictures = ranking_pictures(known.results)
    return Section(anchor, "Which layers carry it", [_LAYERS], (), pictures, folded=True) if pictures else None


def _bars(anchor: str, known: _Known) -> Section | None:
    if len({row.cell.top_k for row in known.ended}) < 2:
        return None
    return Section(anchor, "With and without the best layers", pictures=[with_without(known.ended)])


def _curves(anchor: str, known: _Known) -> Section | None:
    pictures = [degradation(known.ended)] if len({row.cell.top_k for row in known.ended}) > 2 else []
    for result in known.results:
        figures = phase_report(result.ablation).figures(result, result.ablation)
        if "degradation" in figures:
            pictures.append(_of_phase(result, "degradation", figures["degradation"]))
    return Section(anchor, "As layers go", pictures=pictures, folded=len(pictures) > 1) if pictures else None


def _of_phase(result: Result, name: str, draw: Callable[[], Figure]) -> Picture:
    seed = result.config["seed"]
    return Picture(f"{name}, seed {seed}", draw, f"{name} of {result.dataset['name']}, as its run drew it, seed {seed}")


def _confusions(anchor: str, known: _Known) -> Section | None:
    whole = [row for row in known.fewest if row.cell.top_k == 0]
    if not whole or len(known.results[0].classes) > _MOST_CLASSES:
        return None
    pictures = [_confusion(row, known) for row in sorted(whole, key=lambda row: -row.cell.mean)]
    text = ["Test adapters of all splits and members, over all layers; a row is a true class, in percent of it."]
    return Section(anchor, "Which classes are taken for which", text, (), pictures, folded=True)


def _confusion(row: Standing, known: _Known) -> Picture:
    name, results = row.cell.representation, known.results_of(row)
    classes = results[0].classes
    members = {
        (split_number(result, run), run.seed): run
        for result in results
        for run in result.runs
        if (run.representation, run.ablation, run.error) == (name, "none", None)
    }
    total = np.sum([run.confusion for run in members.values()], axis=0)
    shares = [
        f"{one} {percent(line[i] / max(line.sum(), 1))} %"
        for i, (one, line) in enumerate(zip(classes, total, strict=True))
    ]
    return Picture(
        name=f"confusion of {row.label}",
        draw=functools.partial(confusion_figure, row.label, list(members.values()), classes),
        alt=f"Confusion of {row.label}: share of each class that is read right: {', '.join(shares)}.",
        columns=("true", *classes),
        rows=[(one, *line.tolist()) for one, line in zip(classes, total, strict=True)],
    )  # fmt: skip


def _claims(anchor: str, known: _Known) -> Section | None:
    if not known.ended:
        return None
    sheets = claims(known.results, known.ended, known.results_of)
    for result in known.results:
        if result.split.get("splits", 1) > 1:  # what its table says of its splits, no other can
            own = phase_report(result.ablation).sheets(result, result.ablation)
            sheets += [sheet for sheet in own if not sheet.long]
    return Section(anchor, "Claims, and what guards them", sheets=sheets)


def _others(anchor: str, known: _Known) -> Section | None:
    """Tables and figures of phases that have no place above."""
    sheets: list[Sheet] = []
    pictures: list[Picture] = []
    for result in known.results:
        if isinstance(result.ablation, CompareFinding) or result.ablation.phase() in _SHOWN:
            continue
        report = phase_report(result.ablation)
        if result.split.get("splits", 1) == 1:  # of several, they stand with the claims
            sheets += report.sheets(result, result.ablation)
        pictures += [_of_phase(result, name, draw) for name, draw in report.figures(result, result.ablation).items()]
    return Section(anchor, "What else was asked", (), sheets, pictures, folded=True) if sheets or pictures else None


def _commands(anchor: str, known: _Known) -> Section:
    sheet = Sheet(
        title="What makes every row again",
        columns=("representation", "layers", "command"),
        rows=[(row.label, column_title(row.cell.top_k), run.command) for row in known.rows for run in known.of(row)],
        text=("representation", "layers", "command"),
    )
    text = ["Members, features and zoos are kept in cache_dir; code and packages are those of each run's results.json."]
    return Section(anchor, "How to get it again", text, [sheet], folded=True)
