"""What a person should know of modules that are written: kinds that become pairs, scales, what was supposed."""

from collections import Counter
from collections.abc import Iterable, Mapping

from lorabench.adapters.adapter import MAGNITUDES, LoraModule
from lorabench.adapters.fusing import family_of
from lorabench.adapters.kinds import kinds
from lorabench.adapters.kinds.lora import KIND
from lorabench.adapters.layouts import WrittenLayout
from lorabench.adapters.names.identity import identity, split_part
from lorabench.adapters.names.unet import diffusers_unet_name
from lorabench.adapters.reading.table import WRAPPED
from lorabench.adapters.writing.tensors import alpha_of
from lorabench.text import some

__all__ = ["about_assumptions", "about_dots", "about_kinds", "about_scales", "about_windows", "about_wrappers"]


def about_kinds(modules: Mapping[str, LoraModule]) -> list[str]:
    """What was LoHa, LoKr or AdaLoRA, and the ranks that its pairs have."""
    ranks: dict[str, list[int]] = {}
    for module in modules.values():
        ranks.setdefault(module.kind, []).append(module.rank)
    return [
        f"{len(ranks_of)} modules of kind {kind} are written as ordinary LoRA pairs of rank {_span(ranks_of)}"
        for kind, ranks_of in ranks.items()
        if kind not in (KIND.name, MAGNITUDES)
    ]


def about_windows(modules: Mapping[str, LoraModule]) -> list[str]:
    """What a LoHa or LoKr without a Tucker core does not say."""
    windowless = {kind.name for kind in kinds().values() if kind.windowless}
    made = [name for name, module in modules.items() if module.kind in windowless and not module.kernel]
    family = family_of(modules) if made else None
    ends = ("proj_in", "proj_out") if family and family.key == "sd1" else ()  # matrices in SD 2 and SDXL
    last = {name: diffusers_unet_name(name).rpartition(".")[2] for name in made}
    flat = [name for name, end in last.items() if "conv" in end or end in ends]
    if not flat:
        return []
    said = f"{len(flat)} modules are named as convolutions are ({some(flat)}), and their pairs do not say the window"
    return [f"{said}: they are written as matrices, which no convolution takes"]


def about_dots(modules: Iterable[str], layout: WrittenLayout, metadata: Mapping[str, str]) -> list[str]:
    """Modules whose names a layout without dots cannot tell apart, and so leaves as they are."""
    if layout.needs_dots:
        return []
    names = layout.spell({module: split_part(module)[0] for module in modules}, metadata)
    twice = [module for module, name in names.items() if name == module and identity(module).part]
    said = f"{len(twice)} modules keep their dots, as their flattened names would be one ({some(twice)})"
    return [f"{said}: reading gives them back, and {layout.name}'s loaders do not find them"] * bool(twice)


def about_scales(modules: Mapping[str, LoraModule], layout: WrittenLayout) -> list[str]:
    """Scales that the layout says in another way, and what its loaders make of them."""
    notes = []
    if layout.alpha == "folded":
        folded = sum(module.scale != 1.0 for module in modules.values())
        notes += [f"the scale of {folded} modules is multiplied into up, as the layout has no alpha"] * bool(folded)
        ranks = [module.rank for module in modules.values()]
        if len(set(ranks)) > 1:
            notes.append(f"ranks differ ({_span(ranks)}): diffusers' older versions scale such files wrongly, 0.42 not")
    if layout.alpha == "tensor" and len({alpha_of(module) for module in modules.values()}) > 1:
        notes.append("alphas differ: diffusers (0.42) takes one for all attention layers; its own layout avoids that")
    return notes


def about_wrappers(modules: Mapping[str, LoraModule]) -> list[str]:
    """In words, which wrappers' names were taken off, and of how many modules."""
    return [note for note in about_assumptions(modules) if note.startswith(WRAPPED)]


def about_assumptions(modules: Mapping[str, LoraModule]) -> list[str]:
    """What the reader supposed, and of how many modules."""
    counts = Counter(note for module in modules.values() for note in module.assumed)
    return [f"{note} ({count} modules)" for note, count in counts.items()]


def _span(ranks: list[int]) -> str:
    return str(ranks[0]) if len(set(ranks)) == 1 else f"{min(ranks)} to {max(ranks)}"
