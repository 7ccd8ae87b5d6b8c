"""What a page is made of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from matplotlib.figure import Figure

from lorabench.sheet import Sheet

__all__ = ["Chapter", "Picture", "Section"]


@dataclass(frozen=True)
class Picture:
    """A figure, and its numbers.

    Attributes:
        name: of its file of numbers.
        draw: draws it.
        alt: what it shows, for who does not see it.
        columns: of its numbers.
        rows: its numbers.
    """

    name: str
    draw: Callable[[], Figure]
    alt: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[object]] = ()


@dataclass(frozen=True)
class Section:
    """A question, and what answers it.

    Attributes:
        anchor: its id on the page.
        title: the question.
        text: paragraphs before all else.
        sheets: tables.
        pictures: figures.
        folded: whether each picture and each table is shown when it is asked for alone.
    """

    anchor: str
    title: str
    text: Sequence[str] = ()
    sheets: Sequence[Sheet] = ()
    pictures: Sequence[Picture] = ()
    folded: bool = False


@dataclass(frozen=True)
class Chapter:
    """All that is known of one zoo, target, classifier and way to split."""

    anchor: str
    title: str
    sections: Sequence[Section] = field(default_factory=list)
