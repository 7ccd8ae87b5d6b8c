"""The modules of an original model as those of diffusers, and back; every ΔW stays what it is.

An original model's fused projection (FLUX' `qkv`, `linear1`) is several modules of diffusers, one below another in the
rows of its ΔW. Splitting takes rows of up and shares down; fusing stacks them into one block-diagonal pair, whose rank
is the sum of ranks.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float32
from torch import Tensor

from lorabench.adapters.adapter import Adapter, LoraModule
from lorabench.adapters.names.families import Family, denoiser_sort, recognise
from lorabench.adapters.names.identity import flattened, identity, joined, split_part
from lorabench.adapters.names.originals import Rule, fused_as, renamed, rules

__all__ = ["Respelled", "as_diffusers", "as_original", "family_of", "in_one_naming", "sort_of_denoiser"]


@dataclass(frozen=True)
class Respelled:
    """Modules under a base model's other names.

    Attributes:
        modules: new name -> module.
        origins: new name -> the name that its ΔW, or part of it, had.
        changed: how many modules had another name.
    """

    modules: dict[str, LoraModule]
    origins: dict[str, str]
    changed: int


def family_of(modules: Mapping[str, LoraModule]) -> Family | None:
    """The family of base models that modules are of, by their names and shapes; None where nothing tells."""
    return recognise({identity(name): module.shape for name, module in modules.items()})


def sort_of_denoiser(modules: Mapping[str, LoraModule]) -> Literal["unet", "transformer"] | None:
    """Whether the denoiser is a U-Net or a transformer, as all families say that have names like these."""
    family = family_of(modules)
    names = [identity(name).flat for name in modules if identity(name).part in ("denoiser", "")]
    return family.denoiser if family and family.denoiser else denoiser_sort(names)


def as_diffusers(modules: Mapping[str, LoraModule], family: Family | None) -> Respelled:
    """Modules under diffusers' names: those of the original model renamed, and split where they are fused.

    Args:
        modules: by names whose dots are known.
        family: of the modules; other families' names stay.
    """
    new: dict[str, LoraModule] = {}
    origins: dict[str, str] = {}
    changed = 0
    for name, module in modules.items():
        word, rest = split_part(name)
        found = renamed(family.key, rest) if family and family.naming == "original" else None
        pieces = _split(module, found[0], found[1]) if found else None
        if pieces is None:
            pieces = {rest: module}
        changed += list(pieces) != [rest]
        for piece, part in pieces.items():
            new[joined(word, piece)] = part
            origins[joined(word, piece)] = name
    return Respelled(new, origins, changed)


def as_original(modules: Mapping[str, LoraModule], family: Family | None) -> Respelled:
    """Modules under the original model's names: those of diffusers renamed, and fused where they are one there.

    Where the modules are of some blocks alone, and fit families that call them otherwise too, they stay: nothing is
    guessed.

    Args:
        modules: by diffusers' names.
        family: of the modules; other families' names stay.
    """
    if family is None or family.naming != "diffusers" or not _agree(modules, family):
        return Respelled(dict(modules), {name: name for name in modules}, 0)
    new: dict[str, LoraModule] = {}
    origins: dict[str, str] = {}
    waiting: dict[str, dict[int, LoraModule]] = {}
    fused_rules: dict[str, Rule] = {}
    changed = 0
    for name, module in modules.items():
        word, rest = split_part(name)
        place = fused_as(family.key, rest)
        if place is None:
            new[name], origins[name] = module, name
            continue
        original, part, rule = place
        whole = joined(word, original)
        changed += whole != name
        waiting.setdefault(whole, {})[part] = module
        fused_rules[whole] = rule
        origins.setdefault(whole, name)
        new.setdefault(whole, module)  # the place in the order
    for whole, parts in waiting.items():
        fused = _fused(parts, fused_rules[whole])
        if fused is None:  # nothing says how many rows a part that is missing has
            return Respelled(dict(modules), {name: name for name in modules}, 0)
        new[whole] = fused
    return Respelled(new, origins, changed)


def _agree(modules: Iterable[str], family: Family) -> bool:
    """Whether all families that the modules fit flatten them alike, or the blocks tell which one it is."""
    keys = [key for key in (family.key, *family.alternatives) if rules(key)]
    places = [[fused_as(key, split_part(name)[1]) for name in modules] for key in keys]
    names = {tuple(flattened(place[0]) if place else "" for place in each) for each in places}
    return family.whole or len(names) < 2


def in_one_naming(adapters: Sequence[Adapter]) -> tuple[tuple[Adapter, ...], tuple[str, ...]]:
    """Adapters of one family under one naming, and notes; where all have the same naming they stay what they are."""
    families = [family_of(adapter.modules) if _of_interest(adapter) else None for adapter in adapters]
    namings = {(family.key, family.naming) for family in families if family and rules(family.key)}
    mixed = {key for key, naming in namings if naming == "original" and (key, "diffusers") in namings}
    respelled, notes = [], []
    for adapter, family in zip(adapters, families, strict=True):
        if family is None or family.naming != "original" or family.key not in mixed:
            respelled.append(adapter)
            continue
        spelled = as_diffusers(adapter.modules, family)
        respelled.append(replace(adapter, modules=spelled.modules))
        notes.append(
            f"{adapter.path.name}: {spelled.changed} modules of {family.name} got diffusers' names, fused ones split"
        )
    return tuple(respelled), tuple(notes)


def _of_interest(adapter: Adapter) -> bool:
    return any(identity(name).part in ("denoiser", "") for name in adapter.modules)


def _split(module: LoraModule, names: Sequence[str], how: str) -> dict[str, LoraModule] | None:
    """Name -> its rows of a module; None where they cannot be told apart."""
    rows, width = module.shape
    if how == "same":
        return {names[0]: module}
    if how == "swap":
        if rows % 2:
            return None
        first, second = module.up.chunk(2)
        return {names[0]: replace(module, up=torch.cat([second, first]))}
    rest = rows - width if len(names) == 3 else 2 * width
    if rest <= 0 or rest % 2 or rows - width - rest < (len(names) > 3):
        return None
    sizes = [width, rest // 2, rest // 2, *([rows - width - rest] if len(names) > 3 else [])]
    return {
        name: _without_zeros(replace(module, up=up))
        for name, up in zip(names, torch.split(module.up, sizes), strict=True)
    }


def _without_zeros(module: LoraModule) -> LoraModule:
    """The module without the columns of up that are zero in these rows, as in what was fused; one column stays."""
    kept = module.up.any(dim=0)
    if bool(kept.all()):
        return replace(module, up=module.up.contiguous())
    if not bool(kept.any()):
        kept[0] = True
    up, down = module.up[:, kept], module.down[kept]
    alpha = module.scale * len(down)
    return replace(module, up=up.contiguous(), down=down.contiguous(), alpha=alpha)


def _fused(parts: Mapping[int, LoraModule], rule: Rule) -> LoraModule | None:
    """The modules of one original module in one pair; None where a part is missing whose rows nothing says."""
    if rule.how in ("same", "swap"):
        (module,) = parts.values()
        swapped = _split(module, rule.parts, rule.how)
        return None if swapped is None else next(iter(swapped.values()))
    width = next(iter(parts.values())).shape[1]
    heights = {part: module.shape[0] for part, module in parts.items()}
    # The query has the width of the input, and key and value are alike.
    heights.setdefault(0, width)
    for part, other in ((1, 2), (2, 1)):
        if other in heights or rule.how == "split":
            heights.setdefault(part, heights.get(other, width))
    if len(heights) < len(rule.parts):
        return None
    down: list[Float32[Tensor, "r d_in"]] = []
    up: list[Float32[Tensor, "d_out r"]] = []
    above, total = 0, sum(heights.values())
    for part in range(len(rule.parts)):
        if part in parts:
            module = parts[part]
            # What was one module before has one down matrix, and needs no ranks of its own.
            block = next((i for i, other in enumerate(down) if torch.equal(other, module.down)), len(down))
            if block == len(down):
                down.append(module.down)
                up.append(torch.zeros(total, module.rank))
            up[block][above : above + heights[part]] = module.up * module.scale
        above += heights[part]
    modules = list(parts.values())
    assumed = tuple(dict.fromkeys(note for module in modules for note in module.assumed))
    factors = torch.cat(down), torch.cat(up, dim=1)
    return replace(modules[0], down=factors[0], up=factors[1], scale=1.0, alpha=float(len(factors[0])), assumed=assumed)
