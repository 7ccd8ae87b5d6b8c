"""Which adapters a folder holds, and what each was fine-tuned on: by labels.csv, or by sub-folder."""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lorabench.adapters.reading.folders import AdapterPlace, adapter_files
from lorabench.adapters.reading.header import ADAPTER_SUFFIXES, find_adapter_file
from lorabench.errors import LorabenchError
from lorabench.zoo.hub_files import matching

__all__ = ["INCOMPLETE", "LABELS", "SPLITS", "Entry", "adapters_below", "index_folder", "numbers_of", "read_csv"]

LABELS = "labels.csv"
INCOMPLETE = ".incomplete"
"""A file that stands in a folder while an export writes it."""
SPLITS = ("train", "val", "test")

_COLUMNS = ("file", "category", "leaf", "group", "split")
_REQUIRED = ("file", "category")


@dataclass(frozen=True)
class Entry:
    """One adapter of the folder.

    Attributes:
        file: the file with its tensors.
        name: path below the folder, of the adapter's own folder where it has one.
        category: its root label.
        leaf: its leaf label.
        group: what must not be on both sides of a split, or None.
        split: "train", "val", "test", or None.
        recipe: further columns of labels.csv that are numbers throughout.
    """

    file: Path
    name: str
    category: str
    leaf: str
    group: str | None = None
    split: str | None = None
    recipe: Mapping[str, float] = field(default_factory=dict)


def index_folder(root: Path, patterns: Sequence[str] | None = None) -> list[Entry]:
    """The labelled adapters of a folder, in the order of labels.csv or of their names; `patterns` as in `matching`.

    Raises:
        LorabenchError: no such folder, an unfinished export, no adapters, or labels that cannot be used.
    """
    _check_folder(root)
    entries = _from_csv(root) if (root / LABELS).is_file() else list(_from_folders(root, patterns))
    chosen = matching(root, [entry.file for entry in entries], patterns)
    entries = [entry for entry in entries if entry.file in chosen]
    if not entries:
        raise LorabenchError(
            f"{root}: no adapters found. Put files that end in {', '.join(ADAPTER_SUFFIXES)}, or PEFT "
            "folders, into "
            f"sub-folders named by category, or list them in {root / LABELS}."
        )
    return entries


def adapters_below(root: Path, patterns: Sequence[str] | None = None) -> list[AdapterPlace]:
    """The adapters of a folder, each once where it is there as a pickle and as safetensors.

    Those of a repository whose files do not match `patterns` were fetched for another data set, and are left out.

    Raises:
        LorabenchError: no such folder, or an unfinished export.
    """
    _check_folder(root)
    adapters = adapter_files(root).adapters
    chosen = matching(root, [adapter.file for adapter in adapters], patterns)
    return _without_twins([adapter for adapter in adapters if adapter.file in chosen])


def _check_folder(root: Path) -> None:
    if not root.is_dir():
        where = "" if root.is_absolute() else f" in {Path.cwd()}"
        raise LorabenchError(f"dataset.path={root}: no such folder{where}. Give the folder that holds the adapters.")
    if (root / INCOMPLETE).exists():
        raise LorabenchError(
            f"{root}: an export to this folder was interrupted. Run it again with --overwrite, or delete the folder."
        )


def _from_folders(root: Path, patterns: Sequence[str] | None) -> Iterator[Entry]:
    adapters = adapters_below(root, patterns)
    stray = next((adapter.file for adapter in adapters if adapter.file.parent == root), None)
    if stray is not None:
        raise LorabenchError(
            f"{stray}: lies directly in {root}, so its category is not known. Move it into a sub-folder "
            f"named by category, or write {root / LABELS} with the columns file,category."
        )
    for adapter in adapters:
        below = adapter.path.relative_to(root)
        yield Entry(adapter.file, below.as_posix(), below.parts[0], below.as_posix())


def _without_twins(adapters: Sequence[AdapterPlace]) -> list[AdapterPlace]:
    """The same adapter is often there twice, as a pickle and as safetensors, which is the better."""
    kept: dict[Path, AdapterPlace] = {}
    for adapter in adapters:
        twin = kept.get(adapter.file.with_suffix(""))
        if twin is None or twin.file.suffix != ".safetensors":
            kept[adapter.file.with_suffix("")] = adapter
    return list(kept.values())


def read_csv(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The columns of a table, and its rows with the number of the line that each ends in.

    Raises:
        LorabenchError: it is no UTF-8 text with commas.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            return list(reader.fieldnames or ()), [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise LorabenchError(f"{path}: no UTF-8 text with commas ({error}). Save it as such.") from error


def _from_csv(root: Path) -> list[Entry]:
    path = root / LABELS
    columns, rows = read_csv(path)
    lacking = [name for name in _REQUIRED if name not in columns]
    if lacking:
        raise LorabenchError(
            f"{path}: lacks the column {' and '.join(map(repr, lacking))}; it has "
            f"{', '.join(columns) or 'none'}. "
            "Needed are file and category; leaf, group, split (train, val or test) and columns of numbers (how each "
            "adapter was made) are optional."
        )
    present = [name for name in _COLUMNS if name in columns]
    seen: dict[Path, int] = {}
    recipe = numbers_of([row for _, row in rows], [name for name in columns if name and name not in _COLUMNS])
    return [
        replace(_row(root, path, number, row, present, seen), recipe=own)
        for (number, row), own in zip(rows, recipe, strict=True)
    ]


def numbers_of(rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> list[dict[str, float]]:
    """The columns that hold a finite number in every row; others are remarks, and nobody's business here."""
    found: list[dict[str, float]] = [{} for _ in rows]
    for column in columns:
        try:
            values = [float(row.get(column) or "") for row in rows]
        except ValueError:
            continue
        if all(map(math.isfinite, values)):
            for own, value in zip(found, values, strict=True):
                own[column] = value
    return found


def _row(
    root: Path, path: Path, number: int, row: Mapping[str, str], columns: list[str], seen: dict[Path, int]
) -> Entry:
    row = {column: (row[column] or "").strip() for column in columns}
    for column in columns:
        if not row[column]:
            raise LorabenchError(
                f"{path}, line {number}: the cell of column {column!r} is empty. Fill it in every row, or "
                f"{'remove the row' if column in _REQUIRED else 'remove the column'}."
            )
    place = root / row["file"]
    if not place.exists():
        raise LorabenchError(
            f"{path}, line {number}: names {row['file']!r}, which is not below {root}. Put the file there, or "
            "remove the row."
        )
    file = find_adapter_file(place)
    first = seen.setdefault(file.resolve(), number)
    if first != number:
        raise LorabenchError(
            f"{path}, lines {first} and {number}: name the same adapter {row['file']!r}. Remove one of the rows."
        )
    split = row.get("split") if "split" in columns else None
    if split is not None and split not in SPLITS:
        raise LorabenchError(
            f"{path}, line {number}: split is {split!r}; allowed are {', '.join(SPLITS)}. Correct the cell."
        )
    name = Path(row["file"]).as_posix()
    group = row["group"] if "group" in columns else None
    return Entry(file, name, row["category"], row["leaf"] if "leaf" in columns else name, group, split)
