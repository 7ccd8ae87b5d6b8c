"""A table as plain cells, and how it is fitted to a terminal without cutting anything."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["Sheet", "fitted", "print_sheets", "sheets_text", "width_of"]

_NAME_WIDTH = 40  # a name is folded to it before a column is dropped
_ENDLESS = 100_000
_CAPTION = 60  # a narrower table is widened, so that what stands below it can be read


@dataclass(frozen=True)
class Sheet:
    """A table.

    Attributes:
        title: what it shows.
        columns: headers, which name the columns.
        rows: cells, one for every column.
        caption: lines below it.
        text: columns that are aligned left.
        names: columns of layers or paths, which may be folded: "<module> up" over several lines.
        spare: columns that a narrow terminal is spared, in this order.
        elsewhere: what has the columns that a terminal is spared.
        long: whether a terminal is spared it all.
    """

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    caption: Sequence[str] = ()
    text: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    spare: tuple[str, ...] = ()
    elsewhere: str = "results.txt"
    long: bool = False

    def without(self, column: str) -> "Sheet":
        """The table with one column less."""
        at = self.columns.index(column)
        return replace(
            self,
            columns=self.columns[:at] + self.columns[at + 1 :],
            rows=[row[:at] + row[at + 1 :] for row in self.rows],
        )


def fitted(sheet: Sheet, width: int | None = None) -> Table:
    """The sheet at most `width` characters wide: spare columns go first, then names are folded; None takes all."""
    if width is None:
        return _table(sheet)
    spared = []
    for column in (name for name in sheet.spare if name in sheet.columns):
        if width_of(_table(_folded(sheet, _NAME_WIDTH))) <= width:
            break
        sheet = sheet.without(column)
        spared.append(column.replace("\n", " "))
    if spared:
        note = f"left out on a narrow terminal: {', '.join(spared)}; {sheet.elsewhere} has them"
        sheet = replace(sheet, caption=[*sheet.caption, note])
    excess = width_of(_table(sheet)) - width
    named = [name for name in sheet.names if name in sheet.columns]
    if excess > 0 and named:
        at = sheet.columns.index(named[0])
        longest = max((len(row[at]) for row in sheet.rows), default=0)
        sheet = _folded(sheet, max(longest - excess, 12))
    return _table(sheet)


def print_sheets(sheets: Sequence[Sheet], console: Console | None = None) -> None:
    """Tables on a terminal; a narrow one is spared columns, and long tables."""
    console = console or Console()
    shown = [sheet for sheet in sheets if not (sheet.long and console.is_terminal)]
    for place, sheet in enumerate(shown):
        if place:
            console.print()
        table = fitted(sheet, console.width if console.is_terminal else None)
        if not console.is_terminal:
            console.width = max(width_of(table), 80)
        console.print(table)


def sheets_text(sheets: Sequence[Sheet], width: int | None = None) -> str:
    """Tables as plain text, as wide as they need, or with names folded to fit a width."""
    lines: list[str] = []
    for sheet in sheets:
        table, text = fitted(sheet, width), io.StringIO()
        Console(file=text, width=max(width_of(table), 80), no_color=True).print(table)
        lines += ["", *text.getvalue().splitlines()] if lines else text.getvalue().splitlines()
    return "\n".join(line.rstrip() for line in lines) + "\n"


def width_of(table: Table) -> int:
    """The characters that the table needs."""
    return Console(width=_ENDLESS, file=io.StringIO()).measure(table).maximum


def _folded(sheet: Sheet, width: int) -> Sheet:
    places = {sheet.columns.index(name) for name in sheet.names if name in sheet.columns}
    rows = [
        tuple(_fold(cell, width) if place in places else cell for place, cell in enumerate(row)) for row in sheet.rows
    ]
    return replace(sheet, rows=rows)


def _fold(name: str, width: int) -> str:
    """The name on several lines, broken behind dots, slashes and hyphens; a longer word stays whole."""
    for factor in ("down", "up"):
        name = name.replace(f".lora.{factor}.weight", f" {factor}")
    if len(name) <= width:
        return name
    lines = [""]
    for piece in re.split(r"(?<=[./-])", name):
        if lines[-1] and len(lines[-1]) + len(piece) > width:
            lines.append("  ")
        lines[-1] += piece
    return "\n".join(lines)


def _table(sheet: Sheet) -> Table:
    table = Table(
        title=Text(sheet.title, style="italic"),
        caption=Text("\n".join(sheet.caption), style="dim"),
        box=box.SIMPLE_HEAD,
        caption_justify="left",
        min_width=_CAPTION,
        pad_edge=False,
        collapse_padding=True,
    )
    for name in sheet.columns:
        table.add_column(Text(name), justify="left" if name in sheet.text else "right", overflow="fold")
    for row in sheet.rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
