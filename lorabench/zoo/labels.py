"""What the adapters of a zoo were fine-tuned on, and how."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64, Int64

__all__ = ["Labels"]


@dataclass(frozen=True)
class Labels:
    """What each of the N adapters was fine-tuned on.

    Attributes:
        adapters: names of the adapters [N], as an error message would name them.
        category: codes of the root label [N], into `category_names`.
        category_names: names of the categories.
        leaf: codes of the leaf label [N], into `leaf_names`.
        leaf_names: names of the leaf concepts.
        group: codes of what must not be on both sides of a split [N], or None.
        split: the source's own split [N], 0 train, 1 val, 2 test, or None.
        recipe: how each adapter was made, as numbers that must not tell its category: name (`pictures`, `steps`,
            ...) -> [N]; empty where the source does not know.
    """

    adapters: tuple[str, ...]
    category: Int64[np.ndarray, " n"]
    category_names: tuple[str, ...]
    leaf: Int64[np.ndarray, " n"]
    leaf_names: tuple[str, ...]
    group: Int64[np.ndarray, " n"] | None = None
    split: Int64[np.ndarray, " n"] | None = None
    recipe: Mapping[str, Float64[np.ndarray, " n"]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        adapters: Sequence[str],
        category: Sequence[str],
        leaf: Sequence[str],
        group: Sequence[str] | None = None,
        split: Int64[np.ndarray, " n"] | None = None,
        recipe: Mapping[str, Float64[np.ndarray, " n"]] | None = None,
    ) -> "Labels":
        """Labels from the names of every adapter's category, leaf and group; codes are in sorted order of names."""
        category_names, category_codes = np.unique(np.asarray(category, dtype=str), return_inverse=True)
        leaf_names, leaf_codes = np.unique(np.asarray(leaf, dtype=str), return_inverse=True)
        groups = None if group is None else np.unique(np.asarray(group, dtype=str), return_inverse=True)[1]
        return cls(
            adapters=tuple(adapters),
            category=category_codes.astype(np.int64),
            category_names=tuple(category_names.tolist()),
            leaf=leaf_codes.astype(np.int64),
            leaf_names=tuple(leaf_names.tolist()),
            group=None if groups is None else groups.astype(np.int64),
            split=split,
            recipe=dict(recipe or {}),
        )

    def of_adapters(self, kind: Literal["category", "leaf"]) -> dict[str, str]:
        """Adapter -> the name of its category, or of its leaf.

        >>> Labels.of(["a", "b"], ["pets", "food"], ["dog", "bread"]).of_adapters("leaf")
        {'a': 'dog', 'b': 'bread'}
        """
        codes, names = (self.category, self.category_names) if kind == "category" else (self.leaf, self.leaf_names)
        return {adapter: names[code] for adapter, code in zip(self.adapters, codes, strict=True)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Labels":
        """Labels from their fields as JSON holds them, arrays as lists."""
        return cls(
            adapters=tuple(fields["adapters"]),
            category=np.array(fields["category"], np.int64),
            category_names=tuple(fields["category_names"]),
            leaf=np.array(fields["leaf"], np.int64),
            leaf_names=tuple(fields["leaf_names"]),
            group=None if fields["group"] is None else np.array(fields["group"], np.int64),
            split=None if fields["split"] is None else np.array(fields["split"], np.int64),
            recipe={name: np.array(column, np.float64) for name, column in fields["recipe"].items()},
        )

    def rows(self, index: Int64[np.ndarray, " n"]) -> "Labels":
        """The labels of the adapters `index`; codes and names stay as they are."""
        return replace(
            self,
            adapters=tuple(self.adapters[i] for i in index),
            category=self.category[index],
            leaf=self.leaf[index],
            group=None if self.group is None else self.group[index],
            split=None if self.split is None else self.split[index],
            recipe={name: column[index] for name, column in self.recipe.items()},
        )
