"""Ways to merge: one file each, found by itself.

A file `NAME.py` here is the method `NAME`. The first line of its docstring is its help, and it defines one of

- `factors(terms, ...)`: the merged factors of modules of one shape, from their factors alone (see `terms.Terms`);
- `target(deltas, weights, ...)`: the dense ΔW that a module should have, from those of the adapters; its truncated
  SVD follows by itself, at `Recipe.rank` or else the sum of the parents' ranks.

What arguments it has besides are the fields of `Recipe` that it uses; `seeds` are other numbers for every adapter and
module, from `Recipe.seed`. Who asks for `majority` elects signs, and gets weights that are right for a mean over the
adapters that agree: where they sum to 1, multiplied by the number of adapters. Texts that a file may have:

- `FIXED_RANK`: why it takes no rank, where it does not;
- `EQUAL_RANKS`: why it needs parents of one rank, where it does;
- `NOTE`: what the reader of its report should know.

All that is read without running the file, so that a command line offers the methods without importing torch.
"""

import ast
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

__all__ = ["DEFAULT", "Method", "methods"]

DEFAULT = "svd"
_GIVEN = {"factors": 1, "target": 2}  # arguments that are no options
_FIELDS = {"seeds": "seed"}


@dataclass(frozen=True)
class Method:
    """What a method's file says of it.

    Attributes:
        name: the file's.
        help: what it does, in a line.
        dense: whether it works on ΔW itself, one module at a time.
        arguments: of its function, besides those that every one has.
        fixed_rank: why it takes no rank; "" where it does.
        equal_ranks: why it needs parents of one rank; "" where it does not.
        note: what the reader of a report should know.
    """

    name: str
    help: str
    dense: bool
    arguments: tuple[str, ...]
    fixed_rank: str = ""
    equal_ranks: str = ""
    note: str = ""

    @property
    def options(self) -> tuple[str, ...]:
        """The fields of `Recipe` that it uses, besides those that all do."""
        asked = tuple(_FIELDS.get(name, name) for name in self.arguments)
        return ("rank", *asked) if self.dense else asked

    @property
    def elects(self) -> bool:
        """Whether the adapters vote on signs."""
        return "majority" in self.options

    @property
    def function(self) -> Callable[..., Any]:
        """Its `factors` or `target`; here the file is imported."""
        found: Callable[..., Any] = getattr(importlib.import_module(f"{__name__}.{self.name}"), _entry(self.dense))
        return found


@cache
def methods() -> Mapping[str, Method]:
    """All methods by name, the default one first.

    >>> methods()["concat"].help
    'exact, factors side by side, so that ranks add'
    """
    files = [file for file in Path(__file__).parent.glob("*.py") if file.stem != "__init__"]
    read = [_read(file) for file in sorted(files, key=lambda file: (file.stem != DEFAULT, file.stem))]
    return MappingProxyType({method.name: method for method in read})


def _read(file: Path) -> Method:
    tree = ast.parse(file.read_text("utf-8"))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    entries = [name for name in _GIVEN if name in functions]
    docstring = ast.get_docstring(tree)
    if len(entries) != 1 or not docstring:
        raise TypeError(f"{file}: a method has a docstring, and defines one of {' and '.join(_GIVEN)}")
    texts: dict[str, str] = {
        target.id: str(node.value.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    arguments = [argument.arg for argument in functions[entries[0]].args.args]
    return Method(
        name=file.stem,
        help=docstring.splitlines()[0].rstrip("."),
        dense=entries[0] == _entry(True),
        arguments=tuple(arguments[_GIVEN[entries[0]] :]),
        fixed_rank=texts.get("FIXED_RANK", ""),
        equal_ranks=texts.get("EQUAL_RANKS", ""),
        note=texts.get("NOTE", ""),
    )


def _entry(dense: bool) -> str:
    return "target" if dense else "factors"
