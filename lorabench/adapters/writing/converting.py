"""One layout into another: what is renamed, what is refused, and what is said of it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from lorabench.adapters.adapter import Adapter, LoraModule
from lorabench.adapters.fusing import Respelled, as_diffusers, as_original, family_of, sort_of_denoiser
from lorabench.adapters.layouts import WrittenLayout, written_layout
from lorabench.adapters.names.families import Family
from lorabench.adapters.names.identity import DENOISER_WORDS, PARTS, component, identity, joined, split_part
from lorabench.adapters.names.originals import FLATTENED_BY_KOHYA, KEPT_BY_KOHYA
from lorabench.adapters.reading.table import PART_OUTSIDE
from lorabench.adapters.writing.refusals import (
    refuse_embeddings,
    refuse_infinite,
    refuse_magnitudes,
    refuse_options,
    refuse_transposed,
    refuse_unknown_names,
    refuse_unplaced,
    refuse_unsupported,
)
from lorabench.adapters.writing.remarks import about_assumptions, about_dots, about_kinds, about_scales, about_windows
from lorabench.adapters.writing.renaming import original_blocks, with_dots, with_names_of
from lorabench.adapters.writing.saving import carries_extras, layout_of, refuse_extras
from lorabench.errors import LorabenchError
from lorabench.text import some

__all__ = ["Conversion", "Prepared", "convert", "notes_on_writing", "prepare"]

_TAKEN_OFF = "{} was taken off all names: it stood before PEFT's own prefix, and PEFT would find no module by it"


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
    names: Mapping[str, str] | None = None,
) -> Conversion:
    """An adapter under the names of another layout; every ΔW stays what it is. Write it with `save`.

    The original U-Net's names (`input_blocks`, kohya's for SDXL) become diffusers' own, except in kohya's layout,
    where both are known. LoHa, LoKr and AdaLoRA are written as the LoRA factors of their ΔW.

    Args:
        adapter: what was read.
        layout: one of `layouts.written_layouts`: "peft", "diffusers", "diffusers-peft", "comfyui" or "kohya".
        component: part of a pipeline ("unet", "text_encoder", "text_encoder_2", "transformer", ...), which PEFT's
            names lack and the others have: for "peft" this part alone is taken and its prefix is removed, otherwise
            the prefix is added where there is none, and a denoiser of unknown sort gets it.
        drop_dora: leave DoRA's magnitudes out, which changes what the adapter does.
        drop_unsupported: leave out what is no low-rank pair (`adapter.unsupported`).
        drop_fan_in_fan_out: write a layout that cannot say that ΔW is added transposed (GPT-2's Conv1D); the
            factors are the same, so whoever loads the file must know it.
        names: flattened name -> dotted name, for names whose dots the file does not say (`names_from`).

    Raises:
        LorabenchError: the layout cannot express something of the adapter; its name is given.

    Example:
        >>> import torch
        >>> module = LoraModule(torch.eye(2, 5), torch.eye(4, 2))
        >>> found = convert(Adapter(Path("a"), ("peft",), {"h.0.attn": module}), "kohya", component="unet")
        >>> list(found.adapter.modules)
        ['unet.h.0.attn']
    """
    form = written_layout(layout)
    refuse_infinite(adapter)
    dropped = refuse_magnitudes(adapter, drop_dora)
    carried = carries_extras(adapter, layout) and component is None and not drop_unsupported
    dropped |= refuse_unsupported(adapter, drop_unsupported, carried)
    transposed = refuse_transposed(adapter, form, drop_fan_in_fan_out)
    refuse_options(adapter, form)
    modules, notes = _choose(adapter, form, component)
    refuse_embeddings(adapter.path, modules, form)
    refuse_unplaced(adapter.path, modules)
    spelled, renamed = _spelled(adapter, modules, form, names)
    modules = spelled.modules
    # Only now: without its prefix no name could be told from another model's.
    if form.folder and component:
        modules = {split_part(name)[1]: module for name, module in modules.items()}
    elif form.folder and (word := _word_outside(adapter.path, modules)):
        adapter, modules = _inside(adapter, modules, word)
        renamed = [*renamed, _TAKEN_OFF.format(word[:-1])]
    written = {name: replace(module, kind="lora") for name, module in modules.items()}
    refuse_unknown_names(adapter, written, form)
    told = [*notes, *renamed, *about_kinds(modules), *about_windows(modules), *_about_names(adapter, written, form)]
    told += [*about_scales(written, form), *about_assumptions(modules)]
    told += [f"left out: {kind} ({len(keys)}: {some(keys)})" for kind, keys in dropped.items()]
    config = dict(adapter.config)
    if transposed:
        config.pop("fan_in_fan_out", None)
        told.append("left out: fan_in_fan_out, so a loader must know that ΔW is added transposed to Conv1D weights")
    extras = adapter.extras if carried else {}
    told += [f"carried whole: {len(extras)} tensors that are no pair ({some(extras)})"] * bool(extras)
    return Conversion(
        replace(adapter, modules=written, config=config, unsupported={}, extras=extras), modules, tuple(told), dropped
    )


@dataclass(frozen=True)
class Prepared:
    """An adapter as a command writes it in a layout.

    Attributes:
        adapter: its modules, under the names of that layout.
        names: name before -> name now, but for modules that were split or fused.
        notes: in words, what was renamed and what a loader will not find.
    """

    adapter: Adapter
    names: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @property
    def regrouped(self) -> bool:
        """Whether modules were split or fused, so that they are others now."""
        return len(self.names) != len(self.adapter.modules)


def prepare(adapter: Adapter, layout: str | None = None, names: Mapping[str, str] | None = None) -> Prepared:
    """What `resize` and `merge` write: renamed and told of as `convert` does where the layout is another.

    Args:
        adapter: that is to be written; its schemes say where it comes from.
        layout: of the file; None is the nearest to the adapter's own.
        names: flattened name -> dotted name, as for `convert`.

    Raises:
        LorabenchError: the layout cannot express something of the adapter; its name is given.
    """
    nearest = layout_of(adapter)
    form = written_layout(layout or nearest)
    refuse_transposed(adapter, form)
    refuse_options(adapter, form)
    refuse_embeddings(adapter.path, adapter.modules, form)
    refuse_unplaced(adapter.path, adapter.modules)
    refuse_extras(adapter, form)
    modules, new, notes = dict(adapter.modules), {name: name for name in adapter.modules}, list[str]()
    own = {scheme.removesuffix("-embedding") for scheme in adapter.schemes} <= form.own
    if form.name != nearest or not own or (form.needs_dots and not all(m.dots_known for m in modules.values())):
        spelled, notes = _spelled(adapter, modules, form, names)
        modules = spelled.modules
        kept = Counter(spelled.origins.values())
        same = len(modules) == len(adapter.modules)
        new = {old: name for name, old in spelled.origins.items() if same and kept[old] == 1}
    if form.folder and (word := _word_outside(adapter.path, modules)):
        adapter, modules = _inside(adapter, modules, word)
        new = {old: name.removeprefix(word) for old, name in new.items()}
        notes = [*notes, _TAKEN_OFF.format(word[:-1])]
    refuse_unknown_names(adapter, modules, form)
    notes += _about_names(adapter, modules, form)
    return Prepared(replace(adapter, modules=modules), new, (*notes, *about_scales(modules, form)))


def notes_on_writing(adapter: Adapter, layout: str | None = None, names: Mapping[str, str] | None = None) -> list[str]:
    """In words, what `prepare` renames and what a loader will not find in the file that is written.

    Example:
        >>> import torch
        >>> module = LoraModule(torch.eye(2, 5), torch.eye(4, 2), scale=0.5)
        >>> notes_on_writing(Adapter(Path("a"), ("peft",), {"unet.mid_block.to_q": module}), "diffusers-peft")
        ['the scale of 1 modules is multiplied into up, as the layout has no alpha']
    """
    return list(prepare(adapter, layout, names).notes)


def _choose(adapter: Adapter, layout: WrittenLayout, part: str | None) -> tuple[dict[str, LoraModule], list[str]]:
    """The modules that are written, by names with the part that the layout needs, and what to say of it."""
    modules = dict(adapter.modules)
    if part is None:
        return modules, []
    if part not in PARTS:
        raise LorabenchError(
            f"component={part!r}: no part of a pipeline. Say unet, transformer, text_encoder or text_encoder_2."
        )
    parts = {name: _part_of(name, module, part) for name, module in modules.items()}
    others = sorted(set(parts.values()) - {part, ""})
    if not layout.folder:
        if others:
            raise LorabenchError(
                f"{adapter.path}: its modules belong to {', '.join(others)} already, not to {part}. "
                "Leave --component out."
            )
        return {joined(part, split_part(name)[1]): module for name, module in modules.items()}, []
    # Names without any part are the model's own already, unless others bear the one that is asked for.
    chosen_part = part if part in parts.values() else ""
    chosen = {joined(part, split_part(n)[1]): module for n, module in modules.items() if parts[n] == chosen_part}
    if not chosen:
        raise LorabenchError(f"{adapter.path}: no module of {part} in it, only of {', '.join(others)}.")
    left = sorted({one or "model" for one in parts.values()} - {chosen_part or "model"})
    if not left:
        return chosen, []
    count = len(modules) - len(chosen)
    return chosen, [f"{count} modules of {', '.join(left)} are left out: convert those to folders of their own"]


def _word_outside(where: Path, modules: Mapping[str, LoraModule]) -> str:
    """The part's word and dot that stood before PEFT's own prefix in every name; "" where there was none.

    Raises:
        LorabenchError: there are several, or not all names had it: a PEFT folder is of one model.
    """
    words = {
        next((part for part in (*PARTS, *DENOISER_WORDS) if PART_OUTSIDE.format(part) in module.assumed), "")
        for module in modules.values()
    }
    if words <= {""}:
        return ""
    if len(words) > 1:
        which = ", ".join(word or "nothing" for word in sorted(words))
        raise LorabenchError(
            f"{where}: {which} stand before base_model.model, and a PEFT folder is of one model. Write "
            "a folder of each: convert --to peft --component PART."
        )
    return f"{words.pop()}."


def _inside(adapter: Adapter, modules: Mapping[str, LoraModule], word: str) -> tuple[Adapter, dict[str, LoraModule]]:
    """What is carried whole, and the modules, by names without the part's word."""
    extras = {key.removeprefix(word): tensor for key, tensor in adapter.extras.items()}
    return replace(adapter, extras=extras), {name.removeprefix(word): module for name, module in modules.items()}


def _part_of(name: str, module: LoraModule, wanted: str) -> str:
    """The part that a name says; a denoiser of no certain sort is of the one that is wanted."""
    word = split_part(name)[0]
    uncertain = word in DENOISER_WORDS or (identity(name).part == "denoiser" and not module.dots_known)
    return wanted if uncertain and wanted in ("unet", "transformer") else word


def _spelled(
    adapter: Adapter, modules: Mapping[str, LoraModule], layout: WrittenLayout, names: Mapping[str, str] | None
) -> tuple[Respelled, list[str]]:
    """The modules under the names that the layout's loaders look for, and what was renamed, split or fused."""
    flat = "kohya" in adapter.schemes
    dotted = with_dots(adapter.path, modules, names, flat) if layout.needs_dots else {name: name for name in modules}
    named = {dotted[name]: _certain(module) for name, module in modules.items()}
    origins = {new: old for old, new in dotted.items()}
    family, notes = family_of(named), list[str]()
    spelled = Respelled(named, {name: name for name in named}, 0)
    if not layout.original_names:
        spelled = as_diffusers(named, family)
        if family and spelled.changed:
            notes.append(f"{spelled.changed} modules of {family.name} got diffusers' names, fused ones split")
    elif not layout.needs_dots and not set(adapter.schemes) <= layout.own:
        spelled = _as_trainers_have_it(adapter, named, family, layout)
        if family and spelled.changed:
            whose = "diffusers'" if family.key in FLATTENED_BY_KOHYA else f"{family.name}'s original"
            notes.append(f"{spelled.changed} modules got {whose} names, as its trainers have them")
    renamed = with_names_of(layout, adapter.path, spelled.modules, {name: name for name in spelled.modules})
    final = {renamed.names[name]: module for name, module in spelled.modules.items()}
    back = {renamed.names[name]: origins[old] for name, old in spelled.origins.items()}
    return Respelled(final, back, spelled.changed), [*notes, *renamed.notes]


def _as_trainers_have_it(
    adapter: Adapter, modules: dict[str, LoraModule], family: Family | None, layout: WrittenLayout
) -> Respelled:
    """A transformer's modules by the names that are flattened in its family: the original ones, or diffusers'.

    Raises:
        LorabenchError: nothing says which they are; loaders would drop names that no trainer writes.
    """
    same = Respelled(modules, {name: name for name in modules}, 0)
    denoiser = {name: module for name, module in modules.items() if identity(name).part == "denoiser"}
    sort = sort_of_denoiser(denoiser) or ("unet" if all(name.startswith("unet.") for name in denoiser) else None)
    if not denoiser or sort == "unet":
        return same
    if family and family.key in FLATTENED_BY_KOHYA:
        return as_diffusers(modules, family)
    if family and family.naming == "original":
        return same
    spelled = as_original(modules, family) if family and family.key in KEPT_BY_KOHYA else same
    if spelled.changed:
        return spelled
    model = f"a {family.name} transformer" if family else "this model"
    raise LorabenchError(
        f"{adapter.path}: nothing says how kohya's trainers call the modules of {model} ({some(denoiser)}), and "
        f"loaders drop names that none of them writes. Write the diffusers-peft or comfyui layout, not {layout.name}."
    )


def _certain(module: LoraModule) -> LoraModule:
    return module if module.dots_known else replace(module, dots_known=True)


def _about_names(adapter: Adapter, modules: Mapping[str, LoraModule], layout: WrittenLayout) -> list[str]:
    notes = []
    if set(adapter.schemes) & {"cloneofsimo", "sam"}:
        notes.append(f"the file counts its modules and does not name them ({some(modules)}): no loader finds those")
    bare = [name for name in modules if not identity(name).part]
    if layout.needs_part and bare:
        notes.append(
            f"{len(bare)} modules name no part of a pipeline ({some(bare)}): reading gives them back, but tools of "
            f"the {layout.name} layout look for one; say --component unet or another"
        )
    notes += about_dots(modules, layout, adapter.metadata)
    original = original_blocks(modules)
    from_elsewhere = layout.folder and layout_of(adapter) != layout.name
    if original and (layout.of_diffusers or from_elsewhere):
        notes.append(
            f"{len(original)} modules bear the original model's names ({some(original)}), which diffusers only takes "
            "from a kohya file"
        )
    parts = sorted({component(name) for name in modules} - {"model"})
    if parts and from_elsewhere:
        wanted = "transformer" if parts[0] in DENOISER_WORDS else parts[0]
        notes.append(
            f"names begin with {', '.join(parts)}: to load them into one model by PEFT, say --component {wanted}, "
            "one folder each"
        )
    if layout.folder and any(name.startswith("text_model.") for name in modules):
        notes.append("names begin with text_model, a level that CLIPTextModel no longer has in transformers 5")
    return notes
