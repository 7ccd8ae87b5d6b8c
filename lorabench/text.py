"""Words for people and JSON for machines: tables, names in a list, counts, and data without NaN."""

import csv
import io
import json
import math
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["clean", "counted", "csv_text", "plain", "showable", "some", "table", "to_json"]

_COLOUR = r"\x1b(?=\[[0-9;]*m)"
_OBEYED = re.compile(rf"(?!{_COLOUR})[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # the last turn lines


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], numbers: Sequence[str] = ()) -> str:
    """A plain-text table; the columns in `numbers` are set flush right.

    >>> print(table(["part", "modules"], [["unet", 192], ["text encoder", 72]], numbers=["modules"]))
    part          modules
    ------------  -------
    unet              192
    text encoder       72
    """
    cells = [list(columns), *([clean(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = [
        "  ".join(
            cell.rjust(width) if name in numbers else cell.ljust(width)
            for name, cell, width in zip(columns, row, widths, strict=True)
        ).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def some(names: Collection[object], most: int = 3) -> str:
    """The first few of some names, and how many more there are.

    >>> some(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    shown = ", ".join(str(name) for name, _ in zip(names, range(most), strict=False))
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def counted(number: int, word: str, words: str | None = None) -> str:
    """A number with its word.

    >>> counted(1, "adapter"), counted(3, "adapter"), counted(0, "entry", "entries")
    ('1 adapter', '3 adapters', '0 entries')
    """
    return f"{number} {word if number == 1 else words or f'{word}s'}"


def showable(text: str) -> str:
    r"""Text that quotes anybody's files, without what a terminal would obey: all but line ends, tabs and colours.

    >>> print(showable("a\x07b"))
    a\x07b
    """
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def clean(value: object) -> str:
    r"""Text of anybody's file on one line, with what a terminal would obey spelt out: control and half characters.

    >>> print(clean("a\x1b[31m\nb"))
    a\x1b[31m b
    """
    text = str(value)
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    blank = character in "\t\n\r" or unicodedata.category(character) == "Zs"
    return " " if blank else character.encode("unicode_escape").decode()


def csv_text(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Numbers as CSV; what is not defined is empty.

    >>> csv_text(["k", "accuracy"], [[0, 0.5], [1, float("nan")]]).splitlines()
    ['k,accuracy', '0,0.5', '1,']
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([["" if isinstance(cell, float) and math.isnan(cell) else cell for cell in row] for row in rows])
    return file.getvalue()


def plain(value: Any) -> Any:
    """Data as JSON can say it: NaN and infinity become null, tuples and sets lists, paths strings.

    >>> plain({"loss": float("nan"), 1: (Path("a"), 0.5)})
    {'loss': None, '1': ['a', 0.5]}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


def to_json(data: Any, indent: int | None = None) -> str:
    """Data as JSON (see `plain`).

    >>> to_json({"loss": float("inf")})
    '{"loss": null}'
    """
    return json.dumps(plain(data), indent=indent, allow_nan=False)
