"""Labels that stand in an adapter's path, in its header or in a table: how published folders of adapters hold them."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorabench.adapters.reading.header import read_header
from lorabench.errors import LorabenchError
from lorabench.text import counted
from lorabench.zoo.folder_index import LABELS, SPLITS, Entry, adapters_below, numbers_of, read_csv

__all__ = ["LabelPlaces", "index_labelled"]

_KNOWN = ("category", "leaf", "group", "split")
_TABLE = ("file", "key", "matches", "labels")
_BRACES = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class LabelPlaces:
    """Where the labels of a folder's adapters stand, when neither labels.csv nor sub-folders say them.

    A label is `category`, `leaf`, `group` or `split`; any other name whose text is a number in every adapter is of
    the recipe, but for groups that `matches` uses: they say which adapter it is.

    Attributes:
        path: a regular expression that is searched for in every adapter's file below the folder, `a/b.safetensors`; its
            named groups are labels. Adapters without a match are left out. None: all are kept.
        header: label -> key of the metadata in the header of the adapter's safetensors file.
        table: `file` of a table with commas, below the folder or anywhere; its column `key` holds what the text
            `matches` becomes when the path's groups are put in for their names in braces; `labels`: label -> column.
    """

    path: str | None = None
    header: Mapping[str, str] = field(default_factory=dict)
    table: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Any, header: Any, table: Any) -> "LabelPlaces":
        """From the options of these names.

        Raises:
            LorabenchError: one is of another kind.
        """
        if path is not None and not isinstance(path, str):
            raise LorabenchError(f"dataset.labels_in_path={path}: no text. Give a regular expression, or null.")
        if not _is_text_to_text(header or {}):
            raise LorabenchError(
                f"dataset.labels_in_header={header}: no keys by labels. Give for instance {{category: class}}, or null."
            )
        if not isinstance(table or {}, Mapping) or (table and set(table) != set(_TABLE)):
            raise LorabenchError(
                f"dataset.labels_in_table: has {', '.join(map(str, table)) if isinstance(table, Mapping) else table}; "
                f"needed are {', '.join(_TABLE)} alone."
            )
        for name, told in (table or {}).items():
            if not (_is_text_to_text(told) if name == "labels" else isinstance(told, str)):
                raise LorabenchError(
                    f"dataset.labels_in_table.{name}={told}: "
                    + ("no columns by labels, such as {category: COLUMN}." if name == "labels" else "no text.")
                )
        return cls(path, header or {}, table or {})

    def source(self, label: str) -> str:
        """The option that says a label."""
        if label in self.header:
            return "dataset.labels_in_header"
        return "dataset.labels_in_table" if label in self.table.get("labels", {}) else "dataset.labels_in_path"

    @property
    def given(self) -> bool:
        """Whether there is any."""
        return bool(self.path or self.header or self.table)


def index_labelled(root: Path, places: LabelPlaces, patterns: Sequence[str] | None = None) -> list[Entry]:
    """The adapters of a folder by the labels in these places, in the order of their names.

    Args:
        root: the folder.
        places: where the labels are.
        patterns: of the files that are meant, as in `adapters_below`.

    Raises:
        LorabenchError: no such folder, no adapter with these labels, a place that lacks one, or a split of another
            name.
    """
    if (root / LABELS).is_file():
        raise LorabenchError(
            f"{root / LABELS}: says the labels, and so do dataset.labels_in_path, _header or _table. Remove the file, "
            "or read the folder by dataset=folder."
        )
    pattern = _pattern(places)
    files = [(adapter.file, adapter.path.relative_to(root).as_posix()) for adapter in adapters_below(root, patterns)]
    found = [
        (file, name, match) for file, name in files if (match := pattern.search(file.relative_to(root).as_posix()))
    ]
    if not found:
        first = f"the first of {counted(len(files), 'adapter')} is {files[0][1]}" if files else "it holds no adapters"
        raise LorabenchError(
            f"{root}: no adapter's path matches dataset.labels_in_path={places.path}; {first}. Give the folder that "
            "the data set's own paths begin in, or another pattern."
        )
    table = _Table.read(root, places.table, set(pattern.groupindex)) if places.table else None
    rows = [
        {label: text for label, text in match.groupdict().items() if text}
        | dict(_in_header(file, places.header))
        | (table.of(match, name) if table else {})
        for file, name, match in found
    ]
    _check_whole([file for file, _, _ in found], rows)
    named = {*_KNOWN, *(_groups_in(places.table["matches"]) if places.table else ())}
    recipe = numbers_of(rows, [label for label in rows[0] if label not in named])
    source = places.source("split")
    return [_entry(file, name, row, own, source) for (file, name, _), row, own in zip(found, rows, recipe, strict=True)]


def _is_text_to_text(told: Any) -> bool:
    return isinstance(told, Mapping) and all(isinstance(text, str) for item in told.items() for text in item)


def _check_whole(files: Sequence[Path], rows: Sequence[Mapping[str, str]]) -> None:
    """Refuse a category that is not there, and another label that some adapters have and some have not."""
    for label in _KNOWN:
        lacking = [file for file, row in zip(files, rows, strict=True) if label not in row]
        if lacking and (label == "category" or len(lacking) < len(rows)):
            raise LorabenchError(
                f"{lacking[0]}: dataset.labels_in_path matches it without its group {label!r}"
                f"{'' if label == 'category' else ', which others have'}. Let that group match something wherever the "
                "pattern matches."
            )


def _pattern(places: LabelPlaces) -> re.Pattern[str]:
    """The path's pattern, after a check that every label is said once and the category at all."""
    try:
        pattern = re.compile(places.path or "")
    except re.error as error:
        raise LorabenchError(
            f"dataset.labels_in_path={places.path}: no regular expression ({error}). Mend it, for instance "
            "'^(?P<split>train|val|test)/(?P<category>[^/]+)/'."
        ) from error
    said = Counter([*pattern.groupindex, *places.header, *places.table.get("labels", {})])
    twice = [label for label, count in said.items() if count > 1]
    if twice:
        raise LorabenchError(f"dataset.labels_in_path, _header and _table: {twice[0]!r} is in two of them; keep one.")
    if "category" not in said:
        raise LorabenchError(
            "dataset.labels_in_path, _header and _table: none of them says the category. Name it in one: a group "
            "(?P<category>...) of the path, category: KEY of the header, or labels: {category: COLUMN} of the table."
        )
    return pattern


def _in_header(file: Path, labels: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    metadata = read_header(file).metadata if labels else {}
    for label, key in labels.items():
        if not metadata.get(key):
            raise LorabenchError(
                f"{file}: its header has no {key!r}, which dataset.labels_in_header.{label} names; it has "
                f"{', '.join(metadata) or 'no metadata'}. Name a key that is there, or remove this adapter."
            )
        yield label, metadata[key]


def _entry(file: Path, name: str, row: Mapping[str, str], recipe: Mapping[str, float], source: str) -> Entry:
    split = row.get("split")
    if split is not None and split not in SPLITS:
        raise LorabenchError(
            f"{file}: by {source} its split is {split!r}; allowed are {', '.join(SPLITS)}. Let it say those alone."
        )
    return Entry(file, name, row["category"], row.get("leaf", name), row.get("group"), split, recipe)


@dataclass(frozen=True)
class _Table:
    path: Path
    key: str
    matches: str
    rows: Mapping[str, Mapping[str, str]]
    labels: Mapping[str, str]

    @classmethod
    def read(cls, root: Path, told: Mapping[str, Any], groups: set[str]) -> "_Table":
        """The table that `dataset.labels_in_table` tells of, its rows by their keys."""
        file, key, matches, labels = (told[name] for name in _TABLE)
        path = root / Path(file).expanduser()
        if not path.is_file():
            raise LorabenchError(
                f"dataset.labels_in_table.file={path}: no such file. Put the table there, or give its place."
            )
        _check_matches(matches, groups)
        columns, rows = read_csv(path)
        lacking = [column for column in (key, *labels.values()) if column not in columns]
        if lacking:
            raise LorabenchError(
                f"{path}: has no column {lacking[0]!r}, which dataset.labels_in_table names; it has "
                f"{', '.join(columns) or 'none'}. Name a column that is there."
            )
        by_key: dict[str, Mapping[str, str]] = {}
        for number, row in rows:
            cell = (row[key] or "").strip()
            if cell in by_key:
                raise LorabenchError(f"{path}, line {number}: {key} {cell!r} is there twice. Remove one of the rows.")
            by_key[cell] = row
        return cls(path, key, matches, by_key, labels)

    def of(self, match: re.Match[str], name: str) -> dict[str, str]:
        """The labels of the adapter whose path matched."""
        groups = match.groupdict()
        unsaid = [group for group in _groups_in(self.matches) if groups[group] is None]
        if unsaid:
            raise LorabenchError(
                f"{name}: dataset.labels_in_path matches it without its group {unsaid[0]!r}, which "
                "dataset.labels_in_table.matches needs. Let that group match wherever the pattern matches."
            )
        cell = _BRACES.sub(lambda braces: groups[braces[1]], self.matches)
        row = self.rows.get(cell)
        if row is None:
            raise LorabenchError(
                f"{self.path}: has no row whose {self.key} is {cell!r}, which adapter {name} needs. Add it, or remove "
                "the adapter."
            )
        empty = [column for column in self.labels.values() if not (row[column] or "").strip()]
        if empty:
            raise LorabenchError(f"{self.path}: the cell of {empty[0]!r} in the row {cell!r} is empty. Fill it in.")
        return {label: row[column].strip() for label, column in self.labels.items()}


def _groups_in(matches: str) -> list[str]:
    return _BRACES.findall(matches)


def _check_matches(matches: str, groups: set[str]) -> None:
    named = _groups_in(matches)
    if set("{}") & set(_BRACES.sub("", matches)):
        raise LorabenchError(
            f"dataset.labels_in_table.matches={matches}: its braces hold no name of a group. Write {{NAME}} alone."
        )
    unknown = [name for name in named if name not in groups]
    if unknown or not named:
        raise LorabenchError(
            f"dataset.labels_in_table.matches={matches}: {f'{unknown[0]!r} is' if unknown else 'it names'} no group of "
            f"dataset.labels_in_path, which has {', '.join(sorted(groups)) or 'none'}. Put one of them in braces."
        )
