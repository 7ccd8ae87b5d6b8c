"""Writes lorabench/adapters/names/families.json: what the modules of each family of base models are called.

    python -m tests.make_families

It needs the extras `dev`: every class is built from its own library on the meta device, where weights cost nothing,
so the names are those of the installed diffusers and transformers and not somebody's memory of them. Original namings,
which no installed class has, are in `tests/original_names.py`.

A template is a module's dotted name with `#` for each number that stands between dots or underscores.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch.nn import Module

from tests.family_classes import CLASSES
from tests.original_names import ORIGINAL

TABLES = Path(__file__).parents[1] / "lorabench" / "adapters" / "names" / "families.json"
_NUMBER = re.compile(r"(?<![^._])\d+(?![^._])")


def template(name: str) -> str:
    """A module's name with `#` for each number.

    >>> template("blocks.3.time_embedding.linear_1"), template("all_x_embedder.2-1")
    ('blocks.#.time_embedding.linear_#', 'all_x_embedder.2-1')
    """
    return _NUMBER.sub("#", name)


def build(role: str, class_name: str, options: Mapping[str, Any]) -> Module:
    """A family's class on the meta device; of transformers' classes `options` are the configuration's."""
    library = import_module(library_of(role))
    model_class = getattr(library, class_name)
    with torch.device("meta"):
        made = (
            model_class(**options)
            if library.__name__ == "diffusers"
            else model_class(model_class.config_class(**options))
        )
    assert isinstance(made, Module)
    return made


def library_of(role: str) -> str:
    """Whose class it is."""
    return "diffusers" if role in ("unet", "transformer", "prior") else "transformers"


def module_names(model: Module) -> list[str]:
    """The names of all modules with a weight: linear layers, convolutions, embeddings, norms.

    A transformer of language is adapted with its head and without, so the names below its prefix are given too.
    """
    modules = model.named_modules()
    names = [name for name, module in modules if isinstance(getattr(module, "weight", None), torch.Tensor)]
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    bare = [name.removeprefix(prefix) for name in names if prefix != "." and name.startswith(prefix)]
    return [*names, *bare]


def inner_width(model: Module) -> int:
    """The input width that most linear layers have."""
    widths = Counter(module.in_features for module in model.modules() if isinstance(module, torch.nn.Linear))
    return widths.most_common(1)[0][0]


def tables() -> Iterator[tuple[dict[str, Any], set[str]]]:
    """Every family in every naming, with its templates: those of classes, then the original namings."""
    for entry in CLASSES:
        models = [build(entry["role"], class_name, options) for class_name, options in entry["classes"]]
        widths = sorted(set(map(inner_width, models))) if entry["role"] in ("transformer", "prior") else []
        described = _table({"widths": widths} | entry, library_of(entry["role"]))
        yield described, {template(name) for model in models for name in module_names(model)}
    for entry in ORIGINAL:
        yield _table(entry, entry.get("naming", "original")), set(entry["modules"])


def _table(entry: Mapping[str, Any], naming: str) -> dict[str, Any]:
    optional = ("like", "group", "widths", "cross", "blocks", "shapes")
    table = {key: entry[key] for key in ("key", "name", "role")} | {"naming": naming}
    return table | {key: entry[key] for key in optional if entry.get(key)}


def main() -> None:
    """Write the tables: what is said of each family, then every template with the numbers of the tables it is in."""
    described, owners = [], defaultdict[str, list[int]](list)
    for number, (table, templates) in enumerate(tables()):
        described.append(table)
        for name in templates:
            owners[name].append(number)
    lines = ",\n".join(json.dumps(table) for table in described)
    names = ",\n".join(f"{json.dumps(name)}: {json.dumps(owners[name])}" for name in sorted(owners))
    TABLES.write_text(f'{{"tables": [\n{lines}\n],\n"modules": {{\n{names}\n}}}}\n')


if __name__ == "__main__":
    main()
