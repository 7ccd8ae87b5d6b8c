"""One layout into another: what is renamed, what is refused, and how far ΔW moved."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from lorabench.adapters.adapter import Adapter, LoraModule
from lorabench.adapters.kohya import to_kohya
from lorabench.adapters.layouts import LAYOUTS, alpha_of
from lorabench.adapters.naming import component as component_of
from lorabench.adapters.unet_names import diffusers_unet_name
from lorabench.adapters.writing import layout_of
from lorabench.errors import LorabenchError

__all__ = ["Conversion", "convert"]

_FLAT_CLIP = re.compile(r"^(text_encoder(?:_2)?)\.(encoder\.layers\.\d+\.(?:self_attn|mlp)\.)")
_ORIGINAL = re.compile(r"(^|\.)(double_blocks|single_blocks|joint_blocks|layerwise_blocks)\.")
_PLAIN = ("lora", "dora")


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

    Raises:
        LorabenchError: the layout cannot express something of the adapter; its name is given.
    """
    if layout not in LAYOUTS:
        raise LorabenchError(f"layout={layout!r}: allowed are {', '.join(LAYOUTS)}.")
    dropped = _check_dora(adapter, drop_dora) | _check_unsupported(adapter, drop_unsupported)
    modules, notes = _choose(adapter, layout, component)
    tables = [name for name, module in modules.items() if module.embedding]
    if layout != "peft" and tables:
        raise LorabenchError(
            f"{adapter.path}: the {layout} layout has no place for the update of an embedding table "
            f"({_some(tables)}). Convert to peft, or remove these modules first."
        )
    modules, renamed = _rename(adapter, modules, layout)
    written = {name: replace(module, kind="lora") for name, module in modules.items()}
    told = [*notes, *renamed, *_about_kinds(modules), *_about_names(adapter, written, layout)]
    told += [*_about_scales(adapter, written, layout), *_about_assumptions(modules)]
    if dropped:
        told += [f"left out: {kind} ({len(keys)}: {_some(keys)})" for kind, keys in dropped.items()]
    return Conversion(replace(adapter, modules=written, unsupported={}), modules, tuple(told), dropped)


def _check_dora(adapter: Adapter, drop: bool) -> dict[str, tuple[str, ...]]:
    names = tuple(name for name, module in adapter.modules.items() if module.kind == "dora")
    if names and not drop:
        raise LorabenchError(
            f"{adapter.path}: {len(names)} modules have a DoRA magnitude, which this cannot write: {_some(names)}. "
            "Say --drop-dora (drop_dora=True) to write their low-rank part alone, which does not do the same."
        )
    return {"dora": adapter.unsupported.get("dora", names)} if names else {}


def _check_unsupported(adapter: Adapter, drop: bool) -> dict[str, tuple[str, ...]]:
    found = {kind: keys for kind, keys in adapter.unsupported.items() if kind != "dora" and keys}
    if found and not drop:
        listed = "; ".join(f"{kind}: {_some(keys)}" for kind, keys in found.items())
        raise LorabenchError(
            f"{adapter.path}: it holds more than low-rank pairs, which this cannot write. {listed}. "
            "Say --drop-unsupported (drop_unsupported=True) to leave these out."
        )
    return found


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
    chosen = {name.removeprefix(f"{component}."): m for name, m in modules.items() if parts[name] == wanted}
    if not chosen:
        raise LorabenchError(f"{adapter.path}: no module of {component} in it, only of {', '.join(others)}.")
    left = sorted(set(parts.values()) - {wanted})
    if not left:
        return chosen, []
    count = len(modules) - len(chosen)
    return chosen, [f"{count} modules of {', '.join(left)} are left out: convert those to folders of their own"]


def _rename(
    adapter: Adapter, modules: Mapping[str, LoraModule], layout: str
) -> tuple[dict[str, LoraModule], list[str]]:
    """Names that the layout's loaders look for, where the same module has several."""
    notes = []
    names = {name: name for name in modules}
    if layout != "kohya":
        names = {name: diffusers_unet_name(name) for name in modules}
        count = sum(old != new for old, new in names.items())
        notes += [f"{count} modules of the original U-Net (input_blocks, ...) got diffusers' names"] * bool(count)
    if layout != "peft":
        flat = {name: _FLAT_CLIP.sub(r"\1.text_model.\2", new) for name, new in names.items()}
        count = sum(names[name] != flat[name] for name in names)
        notes += [f"{count} modules of a CLIP text encoder got the level text_model that loaders expect"] * bool(count)
        names = flat
    found = {new: modules[old] for old, new in names.items()}
    if len(found) != len(modules):
        twice = sorted(new for old, new in names.items() if old != new and new in modules)
        raise LorabenchError(
            f"{adapter.path}: two modules would get one name ({_some(twice)}). It holds the same module under two "
            "names: remove one of them."
        )
    return found, notes


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
        notes.append(f"the file counts its modules and does not name them ({_some(modules)}): no loader finds those")
    bare = [name for name in modules if component_of(name) == "model"]
    if layout != "peft" and bare:
        notes.append(
            f"{len(bare)} modules name no part of a pipeline ({_some(bare)}): reading gives them back, but tools of "
            f"the {layout} layout look for one; say --component unet or another"
        )
    if layout == "kohya":
        dotted = [name for name in modules if name not in bare and to_kohya(name) is None]
        if dotted:
            notes.append(f"{len(dotted)} modules keep their dots, underscores would be ambiguous: {_some(dotted)}")
    original = [name for name in modules if _ORIGINAL.search(name)]
    if layout == "diffusers" and original:
        notes.append(
            f"{len(original)} modules bear the original model's names ({_some(original)}), which diffusers only takes "
            "from a kohya file"
        )
    parts = sorted({component_of(name) for name in modules} - {"model"})
    if layout == "peft" and parts and layout_of(adapter) != "peft":
        notes.append(
            f"names begin with {', '.join(parts)}: to load them into one model by PEFT, say --component {parts[0]}, "
            "one folder each"
        )
    if layout == "peft" and any(name.startswith("text_model.") for name in modules):
        notes.append("names begin with text_model, a level that CLIPTextModel no longer has in transformers 5")
    return notes


def _about_scales(adapter: Adapter, modules: Mapping[str, LoraModule], layout: str) -> list[str]:
    notes = []
    if layout == "diffusers":
        folded = sum(module.scale != 1.0 for module in modules.values())
        notes += [f"the scale of {folded} modules is multiplied into up, as the layout has no alpha"] * bool(folded)
        ranks = [module.rank for module in modules.values()]
        if len(set(ranks)) > 1:
            notes.append(f"ranks differ ({_span(ranks)}): diffusers' older versions scale such files wrongly, 0.42 not")
    if layout == "kohya" and len({alpha_of(module) for module in modules.values()}) > 1:
        notes.append("alphas differ: diffusers (0.42) takes one for all attention layers; its own layout avoids that")
    if layout != "peft" and adapter.config.get("fan_in_fan_out"):
        notes.append("fan_in_fan_out (ΔW is added transposed to Conv1D weights) cannot be said in this layout")
    return notes


def _about_assumptions(modules: Mapping[str, LoraModule]) -> list[str]:
    counts: dict[str, int] = {}
    for module in modules.values():
        for note in module.assumed:
            counts[note] = counts.get(note, 0) + 1
    return [f"{note} ({count} modules)" for note, count in counts.items()]


def _some(names: Iterable[str]) -> str:
    found = list(names)
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def _span(ranks: list[int]) -> str:
    return str(ranks[0]) if len(set(ranks)) == 1 else f"{min(ranks)} to {max(ranks)}"
