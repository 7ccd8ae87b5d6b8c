"""What a merged adapter says of where it comes from, and what of its parents' metadata stays true."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorabench.adapters.adapter import Adapter
from lorabench.adapters.merging.aligning import file_name, labels
from lorabench.adapters.merging.clashing import kinds_left, magnitudes
from lorabench.adapters.merging.recipe import Recipe
from lorabench.adapters.merging.report import ModuleMerge, Parent
from lorabench.adapters.writing.remarks import about_wrappers
from lorabench.storage import file_sha256

__all__ = ["agreed_metadata", "notes_on", "parents_of"]

_BASE = ("ss_base_model_version", "ss_sd_model_name", "modelspec.architecture", "modelspec.implementation")
_OF_ONE_FILE = ("sshs_", "lorabench_", "lora_adapter_metadata", "ss_network_dim", "ss_network_alpha", "format")
_LARGE = 10


def parents_of(
    adapters: Sequence[Adapter], given: Sequence[float | int] | None, used: Sequence[float]
) -> tuple[Parent, ...]:
    """The adapters with the hashes of their files and their weights."""
    asked = [1.0] * len(adapters) if given is None else [float(weight) for weight in given]
    return tuple(
        Parent(file_name(one), str(one.path), _sha256(one.path), len(one.modules), asked[i], used[i])
        for i, one in enumerate(adapters)
    )


def agreed_metadata(adapters: Sequence[Adapter]) -> dict[str, str]:
    """Metadata that all say alike, and the base model where those who name it agree."""
    everybody = [adapter.metadata for adapter in adapters]
    alike = {
        key: value
        for key, value in everybody[0].items()
        if not key.startswith(_OF_ONE_FILE) and all(each.get(key) == value for each in everybody)
    }
    return alike | _stated(everybody, _BASE)


def notes_on(
    adapters: Sequence[Adapter], used: Sequence[float], recipe: Recipe, rows: Sequence[ModuleMerge]
) -> Iterator[str]:
    """What the reader of a merge's report should know, in sentences."""
    partial = sum(None in row.ranks for row in rows)
    if partial and recipe.missing == "skip":
        yield f"{partial} modules that some of the adapters lack are left out; all of them counts as error"
    elif partial:
        silent = "have no vote" if recipe.way.elects else "count as zero"
        yield f"{partial} modules are in some of the adapters only; the others {silent} there"
    names = labels(adapters)
    for i, modules in magnitudes(adapters).items():
        yield f"{names[i]}: the DoRA magnitudes of {len(modules)} modules are dropped"
    for i, kinds in kinds_left(adapters, recipe.drop_unsupported).items():
        yield f"{names[i]}: tensors that cannot be merged are left out, {kinds}"
    for name, adapter in zip(names, adapters, strict=True):
        yield from (f"{name}: {note}" for note in about_wrappers(adapter.modules))
    if max(map(abs, used)) > _LARGE:
        yield f"the largest weight as used is {max(used, key=abs):.4g}"
    if recipe.way.note and len(adapters) > 1:
        yield recipe.way.note
    if recipe.way.dense:
        yield f"the error is that of {recipe.method}'s ΔW cut to its rank; from_sum is the distance to the plain sum"
    lost = sum(math.isinf(row.measured) for row in rows)
    if lost:
        yield f"in {lost} modules the target is zero and the result is not, so their error is infinite"


def _stated(records: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> dict[str, Any]:
    found = {}
    for key in keys:
        said = [record[key] for record in records if record.get(key) is not None]
        if said and all(value == said[0] for value in said):
            found[key] = said[0]
    return found


def _sha256(path: Path) -> str | None:
    return file_sha256(path) if path.is_file() else None
