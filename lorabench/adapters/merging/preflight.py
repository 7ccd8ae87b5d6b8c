"""What will clash when adapters are merged, said before anything is written."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lorabench.adapters.adapter import Adapter
from lorabench.adapters.finding import Finding, worst
from lorabench.adapters.merging.aligning import align, labels, module_names
from lorabench.adapters.merging.clashing import (
    hindrances,
    kinds_left,
    magnitudes,
    strangers,
    sums_to_zero,
    used_weights,
)
from lorabench.adapters.merging.overlapping import Overlap, clashes, overlaps
from lorabench.adapters.merging.recipe import Recipe

__all__ = ["Preflight", "preflight"]

_LARGE = 10.0


@dataclass(frozen=True)
class Preflight:
    """What `preflight` found.

    Attributes:
        weights: as a merge would use them; as given where they cannot be normalised.
        findings: one or more for each check: "names", "weights", "base model", "modules", "shapes", "ranks", "size",
            "magnitudes", "left out", "overlap", "signs" and "norms".
        pairs: every two adapters.
    """

    weights: tuple[float, ...]
    findings: tuple[Finding, ...]
    pairs: tuple[Overlap, ...]

    @property
    def level(self) -> str:
        """The worst of the findings: with an "error", the merge is refused, or is of adapters for different models."""
        return worst(self.findings)

    @property
    def refused(self) -> tuple[Finding, ...]:
        """What `merge` itself refuses."""
        return tuple(finding for finding in self.findings if finding.refused)

    def as_dict(self) -> dict[str, Any]:
        """For JSON, with what clashes in each module; NaN where a number does not exist."""
        said = asdict(self)
        for pair, shown in zip(self.pairs, said["pairs"], strict=True):
            for row, module in zip(pair.modules, shown["modules"], strict=True):
                module["clashes"] = clashes(row)
        return {"level": self.level, **said}


def preflight(
    adapters: Sequence[Adapter], weights: Sequence[float | int] | None = None, recipe: Recipe | None = None
) -> Preflight:
    """What will clash in a merge: base models, names, modules, shapes, ranks, magnitudes, subspaces, signs and norms.

    Subspaces and norms by factors alone; signs on at most 64 rows of each ΔW, drawn by the recipe's seed. All that
    `merge` would refuse is an error here, but for values that turn out not to fit a type.

    Args:
        adapters: as for `merge`.
        weights: as for `merge`; they count in cosine, signs and norms.
        recipe: as for `merge`.

    Raises:
        LorabenchError: no adapter, another number of weights, one that is not finite, or names that fit each other in
            two ways.

    Example:
        >>> from pathlib import Path
        >>> import torch
        >>> from lorabench.adapters.adapter import LoraModule
        >>> a = Adapter(Path("a"), (), {"q": LoraModule(torch.eye(2, 5), torch.eye(4, 2))})
        >>> b = Adapter(Path("b"), (), {"q": LoraModule(torch.eye(2, 5), torch.eye(4, 2), scale=3.0)})
        >>> found = preflight([a, b], [0.5, 0.5])
        >>> found.level, [finding.check for finding in found.findings if finding.level != "ok"]
        ('warning', ['base model', 'overlap'])
    """
    recipe = recipe or Recipe()
    given = used_weights(len(adapters), weights, normalize=False)
    possible = not (recipe.normalize and sums_to_zero(given))
    used = used_weights(len(adapters), weights, recipe.normalize and possible)
    aligned = align(adapters)
    adapters = aligned.adapters
    wrong = [Finding("error", check, reason, refused=True) for check, reason in hindrances(adapters, recipe)]
    fit = all(finding.check != "shapes" for finding in wrong)
    pairs = tuple(overlaps(adapters, used, recipe.seed)) if fit else ()
    findings = [
        *_of_weights(given, used, possible),
        *_of_bases(adapters),
        *(Finding("ok", "names", note) for note in aligned.notes),
        *_of_modules(adapters),
        *([Finding("ok", "shapes", "modules of one name have one shape")] if fit else []),
        *wrong,
        *_of_what_is_dropped(adapters, recipe),
        *(finding for pair in pairs for finding in _of_overlap(pair)),
    ]
    return Preflight(used, tuple(findings), pairs)


def _of_weights(given: Sequence[float], used: Sequence[float], possible: bool) -> Iterator[Finding]:
    if not possible:
        yield Finding(
            "error", "weights", f"{_list(given)} sum to 0 and cannot be normalised; use --no-normalize", refused=True
        )
    elif any(one * other < 0 for one, other in zip(given, used, strict=True)):
        yield Finding("warning", "weights", f"{_list(given)} sum to less than 0: dividing by it turns every sign")
    elif max(map(abs, used)) > _LARGE:
        yield Finding("warning", "weights", f"{_list(used)} as used: one is over {_LARGE:g}")
    else:
        yield Finding("ok", "weights", f"{_list(used)} as used")


def _of_bases(adapters: Sequence[Adapter]) -> Iterator[Finding]:
    """What the metadata say: no more than a warning, as a trainer may write "sd_v1" for all that it does not know.

    Tensors of different models are told by their names and shapes.
    """
    families = _stated(adapters, [_family(adapter) for adapter in adapters])
    bases = _stated(adapters, [_base(adapter) for adapter in adapters])
    if len(set(families.values())) > 1:
        yield Finding(
            "warning", "base model", f"made for different models, as their metadata have it: {_pairs(families)}"
        )
    elif len({base.lower() for base in bases.values()}) > 1:
        yield Finding("warning", "base model", f"the names differ: {_pairs(bases)}")
    elif bases or families:
        silent = len(adapters) - len({*bases, *families})
        base = next(iter({**families, **bases}.values()))
        yield Finding("ok", "base model", base + (f" ({silent} of {len(adapters)} say nothing)" if silent else ""))
    else:
        yield Finding("warning", "base model", "no adapter says which model it is for")


def _family(adapter: Adapter) -> str | None:
    """The kind of model, from fields with a fixed vocabulary."""
    said = adapter.metadata.get("modelspec.architecture") or adapter.metadata.get("ss_base_model_version")
    if not said:
        return None
    name = re.sub(r"/.*$", "", said.lower())  # what follows names the method: "stable-diffusion-v1/lora"
    known = {"sdxl": r"xl", "sd1": r"(sd|stable-diffusion)[_-]v1", "sd2": r"(sd|stable-diffusion)[_-]v2"}
    return next((family for family, pattern in known.items() if re.search(pattern, name)), name)


def _base(adapter: Adapter) -> str | None:
    """The name of the model without its folders and ending."""
    said = adapter.config.get("base_model_name_or_path") or adapter.metadata.get("ss_sd_model_name")
    if not isinstance(said, str) or not said:
        return None
    folders = re.split(r"[\\/]", said.rstrip("\\/"))
    cached = next((folder for folder in folders if folder.startswith("models--")), "")  # of the hub's cache
    return cached.split("--")[-1] or re.sub(r"\.(safetensors|ckpt)$", "", folders[-1])


def _of_modules(adapters: Sequence[Adapter]) -> Iterator[Finding]:
    names, owners = labels(adapters), module_names(adapters)
    shared = sum(len(who) == len(adapters) for who in owners.values())
    alone = strangers(adapters)
    if alone:
        who = f"{', '.join(alone)} {'have' if len(alone) > 1 else 'has'}"
        yield Finding(
            "error", "modules", f"{who} no module in common with any other adapter, by name: made for different models?"
        )
    elif shared == len(owners):
        yield Finding("ok", "modules", f"{shared}, the same in every adapter")
    elif not shared:
        yield Finding("warning", "modules", f"none of {len(owners)} is in every adapter")
    else:
        lacking = ", ".join(
            f"{name} lacks {len(owners) - len(one.modules)}"
            for name, one in zip(names, adapters, strict=True)
            if len(one.modules) < len(owners)
        )
        yield Finding("warning", "modules", f"{shared} of {len(owners)} are in every adapter; {lacking}")


def _of_what_is_dropped(adapters: Sequence[Adapter], recipe: Recipe) -> Iterator[Finding]:
    names = labels(adapters)
    for i, modules in (magnitudes(adapters) if recipe.drop_dora else {}).items():
        yield Finding("warning", "magnitudes", f"the DoRA magnitudes of {names[i]}, {len(modules)}, are dropped")
    for i, kinds in (kinds_left(adapters, dropped=True) if recipe.drop_unsupported else {}).items():
        yield Finding("warning", "left out", f"tensors of {names[i]} that cannot be merged are dropped: {kinds}")


def _of_overlap(pair: Overlap) -> Iterator[Finding]:
    who = f"{pair.first} and {pair.second}"
    if not pair.modules or math.isnan(pair.cosine):
        why = "share no module" if not pair.modules else "cannot be compared, one of them is zero"
        yield Finding("ok" if not pair.modules else "warning", "overlap", f"{who} {why}")
        return
    found = clashes(pair)
    seen = (pair.left + pair.right) / 2
    spaces = f"{who} share {seen:.0%} of their directions (random ones {min(pair.chance, 1):.0%})"
    yield Finding("warning" if "directions" in found else "ok", "overlap", spaces)
    signs = f"{who} disagree in the sign of {pair.sign_conflict:.0%} of the entries, cosine {pair.cosine:.3f}"
    yield Finding("warning" if "signs" in found else "ok", "signs", signs)
    norms = f"{who} have norms in the ratio {pair.norm_ratio:.3g}, as weighted"
    yield Finding("warning" if "norms" in found else "ok", "norms", norms)


def _stated(adapters: Sequence[Adapter], said: Sequence[str | None]) -> dict[str, str]:
    return {name: value for name, value in zip(labels(adapters), said, strict=True) if value}


def _pairs(found: dict[str, str]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in found.items())


def _list(weights: Sequence[float]) -> str:
    return ", ".join(f"{weight:.4g}" for weight in weights)
