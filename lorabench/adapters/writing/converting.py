"""One layout into another: what is renamed, what is refused, and what is said of it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from lorabench.adapters.adapter import Adapter, LoraModule
from lorabench.adapters.reading.kohya import to_kohya
from lorabench.adapters.reading.naming import component as component_of
from lorabench.adapters.writing.layouts import LAYOUTS, alpha_of
from lorabench.adapters.writing.refusals import (
    refuse_embeddings,
    refuse_transposed,
    refuse_unplaced,
    refuse_unsupported,
    some,
)
from lorabench.adapters.writing.saving import layout_of
from lorabench.adapters.writing.unet_names import clip_name, diffusers_unet_name
from lorabench.errors import LorabenchError

__all__ = ["Conversion", "Prepared", "convert", "notes_on_writing", "prepare"]

_ORIGINAL = re.compile(r"(^|\.)(double_blocks|single_blocks|joint_blocks|layerwise_blocks)\.")
_PLAIN = ("lora", "dora")
_OWN = {
    "diffusers": {"diffusers", "diffusers-old", "xlabs", "peft"},
    "peft": {"peft", "peft-embedding", "loralib", "mlx"},
    "kohya": {"kohya", "lycoris"},
}
"""Layout -> schemes whose names it keeps; diffusers itself writes `lora_A` under a pipeline's names."""


@dataclass(frozen=True)
class Conversion:
    """An adapter that is ready to be written in another layout.

    Attributes:
        adapter: its modules, under the names of that layout.
        before: the modules that were read, under the same names.
        notes: in words, what was renamed, left out or supposed, and what a loader will not find.
        dropped: kind -> keys that were left out because this was asked for.
    """

    adapter: Adapter
    before: Mapping[str, LoraModule]
    notes: tuple[str, ...] = ()
    dropped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def convert(
    adapter: Adapter,
    layout: str,
    *,
    component: str | None = None,
    drop_dora: bool = False,
    drop_unsupported: bool = False,
    drop_fan_in_fan_out: bool = False,
) -> Conversion:
    """An adapter under the names of another layout; every ΔW stays what it is. Write it with `save`.

    The original U-Net's names (`input_blocks`, kohya's for SDXL) become diffusers' own, except in kohya's layout,
    where both are known. LoHa, LoKr and AdaLoRA are written as the LoRA factors of their ΔW.

    Args:
        adapter: what was read.
        layout: "diffusers", "peft" or "kohya".
        component: part of a pipeline ("unet", "text_encoder", "text_encoder_2", "transformer", ...), which PEFT's
            names lack and the others have: for "peft" this part alone is taken and its prefix is removed, otherwise
            the prefix is added where there is none.
        drop_dora: leave DoRA's magnitudes out, which changes what the adapter does.
        drop_unsupported: leave out what is no low-rank pair (`adapter.unsupported`).
        drop_fan_in_fan_out: write a layout that cannot say that ΔW is added transposed (GPT-2's Conv1D); the
            factors are the same, so whoever loads the file must know it.

    Raises:
        LorabenchError: the layout cannot express something of the adapter; its name is given.
    """
    if layout not in LAYOUTS:
        raise LorabenchError(f"layout={layout!r}: allowed are {', '.join(LAYOUTS)}.")
    dropped = _check_dora(adapter, drop_dora) | refuse_unsupported(adapter, drop_unsupported)
    transposed = refuse_transposed(adapter, layout, drop_fan_in_fan_out)
    modules, notes = _choose(adapter, layout, component)
    refuse_embeddings(adapter.path, modules, layout)
    refuse_unplaced(adapter.path, modules)
    names, renamed = _new_names(adapter, modules, layout)
    # Only now: without its prefix no name could be told from another model's.
    bare = f"{component}." if layout == "peft" and component else ""
    modules = {names[name].removeprefix(bare): module for name, module in modules.items()}
    written = {name: replace(module, kind="lora") for name, module in modules.items()}
    told = [*notes, *renamed, *_about_kinds(modules), *_about_names(adapter, written, layout)]
    told += [*_about_scales(written, layout), *_about_assumptions(modules)]
    told += [f"left out: {kind} ({len(keys)}: {some(keys)})" for kind, keys in dropped.items()]
    config = dict(adapter.config)
    if transposed:
        del config["fan_in_fan_out"]
        told.append("left out: fan_in_fan_out, so a loader must know that ΔW is added transposed to Conv1D weights")
    found = replace(adapter, modules=written, config=config, unsupported={})
    return Conversion(found, modules, tuple(told), dropped)


@dataclass(frozen=True)
class Prepared:
    """An adapter as a command writes it in a layout.

    Attributes:
        adapter: its modules, under the names of that layout.
        names: name before -> name now.
        notes: in words, what was renamed and what a loader will not find.
    """

    adapter: Adapter
    names: Mapping[str, str]
    notes: tuple[str, ...] = ()


def prepare(adapter: Adapter, layout: str | None = None) -> Prepared:
    """What `resize` and `merge` write: renamed and told of as `convert` does where the layout is another.

    Args:
        adapter: that is to be written; its schemes say where it comes from.
        layout: of the file; None is the nearest to the adapter's own.

    Raises:
        LorabenchError: the layout cannot express something of the adapter; its name is given.
    """
    nearest = layout_of(adapter)
    layout = layout or nearest
    refuse_transposed(adapter, layout)
    refuse_embeddings(adapter.path, adapter.modules, layout)
    refuse_unplaced(adapter.path, adapter.modules)
    modules, names, notes = dict(adapter.modules), {name: name for name in adapter.modules}, list[str]()
    if layout != nearest or not set(adapter.schemes) <= _OWN[layout]:
        names, notes = _new_names(adapter, modules, layout)
        modules = {names[name]: module for name, module in modules.items()}
        notes += _about_names(adapter, modules, layout)
    return Prepared(replace(adapter, modules=modules), names, (*notes, *_about_scales(modules, layout)))


def notes_on_writing(adapter: Adapter, layout: str | None = None) -> list[str]:
    """In words, what `prepare` renames and what a loader will not find in the file that is written."""
    return list(prepare(adapter, layout).notes)


def _check_dora(adapter: Adapter, drop: bool) -> dict[str, tuple[str, ...]]:
    names = tuple(name for name, module in adapter.modules.items() if module.kind == "dora")
    if names and not drop:
        raise LorabenchError(
            f"{adapter.path}: {len(names)} modules have a DoRA magnitude, which this cannot write: {some(names)}. "
            "Say --drop-dora (drop_dora=True) to write their low-rank part alone, which does not do the same."
        )
    return {"dora": adapter.unsupported.get("dora", names)} if names else {}


def _choose(adapter: Adapter, layout: str, component: str | None) -> tuple[dict[str, LoraModule], list[str]]:
    """The modules that are written, by names with the component that the layout needs, and what to say of it."""
    modules = dict(adapter.modules)
    if component is None:
        return modules, []
    if component_of(f"{component}.x") != component:
        raise LorabenchError(
            f"component={component!r}: no part of a pipeline. Say unet, transformer, text_encoder or text_encoder_2."
        )
    parts = {name: component_of(name) for name in modules}
    others = sorted(set(parts.values()) - {component, "model"})
    if layout != "peft":
        if others:
            raise LorabenchError(
                f"{adapter.path}: its modules belong to {', '.join(others)} already, not to {component}. "
                "Leave --component out."
            )
        return {name if parts[name] == component else f"{component}.{name}": m for name, m in modules.items()}, []
    # Names without any component are the model's own already, unless others bear the one that is asked for.
    wanted = component if component in parts.values() else "model"
    stem = "" if wanted == component else f"{component}."
    chosen = {f"{stem}{name}": module for name, module in modules.items() if parts[name] == wanted}
    if not chosen:
        raise LorabenchError(f"{adapter.path}: no module of {component} in it, only of {', '.join(others)}.")
    left = sorted(set(parts.values()) - {wanted})
    if not left:
        return chosen, []
    count = len(modules) - len(chosen)
    return chosen, [f"{count} modules of {', '.join(left)} are left out: convert those to folders of their own"]


def _new_names(adapter: Adapter, modules: Mapping[str, LoraModule], layout: str) -> tuple[dict[str, str], list[str]]:
    """Name -> the one that the layout's loaders look for, and what was renamed."""
    notes = []
    names = {name: name for name in modules}
    if layout != "kohya":
        names = {name: diffusers_unet_name(name) for name in modules}
        count = sum(old != new for old, new in names.items())
        notes += [f"{count} modules of the original U-Net (input_blocks, ...) got diffusers' names"] * bool(count)
    if layout != "peft":
        flat = {name: clip_name(new) for name, new in names.items()}
        count = sum(names[name] != flat[name] for name in names)
        notes += [f"{count} modules of a CLIP text encoder got the level text_model that loaders expect"] * bool(count)
        names = flat
    if len(set(names.values())) != len(names):
        twice = sorted(new for old, new in names.items() if old != new and new in modules)
        raise LorabenchError(
            f"{adapter.path}: two modules would get one name ({some(twice)}). It holds the same module under two "
            "names: remove one of them."
        )
    return names, notes


def _about_kinds(modules: Mapping[str, LoraModule]) -> list[str]:
    ranks: dict[str, list[int]] = {}
    for module in modules.values():
        ranks.setdefault(module.kind, []).append(module.rank)
    return [
        f"{len(found)} modules of kind {kind} are written as ordinary LoRA pairs of rank {_span(found)}"
        for kind, found in ranks.items()
        if kind not in _PLAIN
    ]


def _about_names(adapter: Adapter, modules: Mapping[str, LoraModule], layout: str) -> list[str]:
    notes = []
    if set(adapter.schemes) & {"cloneofsimo", "sam"}:
        notes.append(f"the file counts its modules and does not name them ({some(modules)}): no loader finds those")
    bare = [name for name in modules if component_of(name) == "model"]
    if layout != "peft" and bare:
        notes.append(
            f"{len(bare)} modules name no part of a pipeline ({some(bare)}): reading gives them back, but tools of "
            f"the {layout} layout look for one; say --component unet or another"
        )
    if layout == "kohya":
        dotted = [name for name in modules if name not in bare and to_kohya(name) is None]
        if dotted:
            notes.append(f"{len(dotted)} modules keep their dots, underscores would be ambiguous: {some(dotted)}")
    original = [name for name in modules if _ORIGINAL.search(name)]
    from_elsewhere = layout == "peft" and layout_of(adapter) != "peft"
    if original and (layout == "diffusers" or from_elsewhere):
        notes.append(
            f"{len(original)} modules bear the original model's names ({some(original)}), which diffusers only takes "
            "from a kohya file"
        )
    parts = sorted({component_of(name) for name in modules} - {"model"})
    if parts and from_elsewhere:
        notes.append(
            f"names begin with {', '.join(parts)}: to load them into one model by PEFT, say --component {parts[0]}, "
            "one folder each"
        )
    if layout == "peft" and any(name.startswith("text_model.") for name in modules):
        notes.append("names begin with text_model, a level that CLIPTextModel no longer has in transformers 5")
    return notes


def _about_scales(modules: Mapping[str, LoraModule], layout: str) -> list[str]:
    notes = []
    if layout == "diffusers":
        folded = sum(module.scale != 1.0 for module in modules.values())
        notes += [f"the scale of {folded} modules is multiplied into up, as the layout has no alpha"] * bool(folded)
        ranks = [module.rank for module in modules.values()]
        if len(set(ranks)) > 1:
            notes.append(f"ranks differ ({_span(ranks)}): diffusers' older versions scale such files wrongly, 0.42 not")
    if layout == "kohya" and len({alpha_of(module) for module in modules.values()}) > 1:
        notes.append("alphas differ: diffusers (0.42) takes one for all attention layers; its own layout avoids that")
    return notes


def _about_assumptions(modules: Mapping[str, LoraModule]) -> list[str]:
    counts: dict[str, int] = {}
    for module in modules.values():
        for note in module.assumed:
            counts[note] = counts.get(note, 0) + 1
    return [f"{note} ({count} modules)" for note, count in counts.items()]


def _span(ranks: list[int]) -> str:
    return str(ranks[0]) if len(set(ranks)) == 1 else f"{min(ranks)} to {max(ranks)}"
