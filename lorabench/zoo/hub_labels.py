"""The labels of a data set's adapters: which column says what."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float64, Int64

from lorabench.adapters.reading.naming import parse_key
from lorabench.errors import LorabenchError
from lorabench.zoo.columns import is_nested
from lorabench.zoo.hub_source import Part
from lorabench.zoo.labels import Labels

__all__ = ["LabelColumns", "read_labels"]


@dataclass(frozen=True)
class LabelColumns:
    """Which columns hold the labels; `category_name` and `adapter` only serve people and may be absent.

    Attributes:
        category: the root label, integers or strings.
        category_name: its name, or None.
        leaf: the leaf concept, or None where there is none.
        group: what must not be on both sides of a split, or None.
        adapter: the adapter's name, or None.
        recipe: name of a number of how each adapter was made -> its column.
    """

    category: str
    category_name: str | None
    leaf: str | None
    group: str | None
    adapter: str | None
    recipe: Mapping[str, str] = field(default_factory=dict)


def read_labels(parts: Sequence[Part], tables: Sequence[pa.Table], columns: LabelColumns, origin: str) -> Labels:
    """Labels of the adapters of all parts.

    Raises:
        LorabenchError: a column is missing, is no label, or has null values.
    """
    source = _Source(tables, origin)
    category = source.labels("category", columns.category)
    found, codes = np.unique(category, return_inverse=True)
    rows = [f"row {i} of {origin}" for i in range(len(category))]
    folders = source.texts(columns.adapter)
    leaf = np.array(rows) if columns.leaf is None else source.labels("leaf", columns.leaf).astype(str)
    leaf_names, leaf_codes = np.unique(leaf, return_inverse=True)
    group = None if columns.group is None else np.unique(source.labels("group", columns.group), return_inverse=True)[1]
    if group is not None and len(np.unique(group)) == len(group):
        group = None
    return Labels(
        adapters=tuple(rows if folders is None else [f"{f} ({row})" for f, row in zip(folders, rows, strict=True)]),
        category=codes.astype(np.int64),
        category_names=_names(found, codes, source.texts(columns.category_name), parts[0].dataset, columns.category),
        leaf=leaf_codes.astype(np.int64),
        leaf_names=tuple(leaf_names.tolist()),
        group=None if group is None else group.astype(np.int64),
        split=_split(parts),
        recipe={name: source.numbers(f"recipe.{name}", column) for name, column in columns.recipe.items()},
    )


@dataclass(frozen=True)
class _Source:
    tables: Sequence[pa.Table]
    origin: str

    def labels(self, argument: str, column: str) -> np.ndarray:
        """One integer or string an adapter."""
        values: list[Any] = []
        for table in self.tables:
            if column not in table.schema.names:
                raise self._refuse(argument, column, "is no column")
            kind = table.schema.field(column).type
            if pa.types.is_dictionary(kind):
                kind = kind.value_type
            text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
            if not (text or pa.types.is_integer(kind)):
                raise self._refuse(argument, column, f"holds {kind}, and a label is an integer or a string")
            values += table.column(column).to_pylist()
        missing = [i for i, value in enumerate(values) if value is None]
        if missing:
            raise self._refuse(argument, column, f"has {len(missing)} missing labels, the first in row {missing[0]}")
        if len({type(value) for value in values}) > 1:
            raise self._refuse(argument, column, "holds integers in one split and strings in another")
        return np.array(values)

    def numbers(self, argument: str, column: str) -> Float64[np.ndarray, " n"]:
        """One finite number an adapter."""
        found: list[Any] = []
        for table in self.tables:
            if column not in table.schema.names:
                raise self._refuse(argument, column, "is no column")
            kind = table.schema.field(column).type
            if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
                raise self._refuse(argument, column, f"holds {kind}, and what is predicted is a number")
            found += table.column(column).to_pylist()
        values = np.array(found, np.float64)
        odd = np.flatnonzero(~np.isfinite(values))
        if len(odd):
            raise self._refuse(argument, column, f"has {len(odd)} rows without a number, the first is row {odd[0]}")
        return values

    def texts(self, column: str | None) -> list[str] | None:
        """The column as strings; None where it is absent, since it only serves people."""
        if column is None or any(column not in table.schema.names for table in self.tables):
            return None
        return [str(value) for table in self.tables for value in table.column(column).to_pylist()]

    def _refuse(self, argument: str, column: str, what: str) -> LorabenchError:
        schema = self.tables[0].schema
        others = [
            name for name in schema.names if not parse_key(name).is_layer and not is_nested(schema.field(name).type)
        ]
        ways = "" if argument == "category" or argument.startswith("recipe.") else f" or dataset.{argument}=null"
        return LorabenchError(
            f"{self.origin}: dataset.{argument}={column} {what}. Set dataset.{argument}=COLUMN{ways}, or mend "
            f"the data set; the columns beside the layers are {', '.join(others) or '(none)'}"
        )


def _names(
    found: np.ndarray, codes: Int64[np.ndarray, " n"], texts: list[str] | None, dataset: Any, column: str
) -> tuple[str, ...]:
    """A name for every label: from the name column where each label has one of its own, else what it is."""
    if texts is not None:
        names = np.array(texts)
        own = [np.unique(names[codes == code]).tolist() for code in range(len(found))]
        if all(len(name) == 1 for name in own) and len({name[0] for name in own}) == len(own):
            return tuple(name[0] for name in own)
    known = getattr(dataset.features[column], "names", None)
    if known is not None and found.dtype.kind == "i":
        return tuple(str(known[label]) for label in found)
    return tuple(str(label) for label in found)


def _split(parts: Sequence[Part]) -> Int64[np.ndarray, " n"] | None:
    codes = [part.split for part in parts]
    if len(set(codes)) < 2:
        return None
    return np.concatenate([np.full(len(part.dataset), part.split, np.int64) for part in parts])
