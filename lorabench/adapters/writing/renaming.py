"""The names that a layout's loaders look for: dots, the part of a pipeline, and one spelling where a base has two."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lorabench.adapters.adapter import LoraModule
from lorabench.adapters.fusing import sort_of_denoiser
from lorabench.adapters.layouts import WrittenLayout
from lorabench.adapters.names.identity import flattened, identity, joined, split_part
from lorabench.adapters.names.unet import clip_name, diffusers_unet_name
from lorabench.errors import LorabenchError
from lorabench.text import some

__all__ = ["Renamed", "original_blocks", "with_dots", "with_names_of"]


_ORIGINAL = re.compile(r"(^|\.)(double_blocks|single_blocks|joint_blocks|layerwise_blocks)\.")


@dataclass(frozen=True)
class Renamed:
    """Module -> its name in a layout, and in words what was renamed."""

    names: dict[str, str]
    notes: tuple[str, ...] = ()


def original_blocks(modules: Iterable[str]) -> list[str]:
    """Those whose blocks are called as in a transformer's own repository, and otherwise by diffusers.

    >>> original_blocks(["unet.double_blocks.0.img_attn.qkv", "transformer.transformer_blocks.0.attn.to_q"])
    ['unet.double_blocks.0.img_attn.qkv']
    """
    return [name for name in modules if _ORIGINAL.search(name)]


def with_dots(
    where: Path, modules: Mapping[str, LoraModule], dotted: Mapping[str, str] | None = None, flat: bool = False
) -> dict[str, str]:
    """Module -> its name with the dots that a flattened one did not say.

    Args:
        where: the file, for messages.
        modules: what is written, by canonical name.
        dotted: flattened name -> dotted name, of another file of the same base (`names_from`).
        flat: whether the file itself flattened its names, so that known dots are a table's, which the other file's
            go before.

    Raises:
        LorabenchError: nothing says the dots of a name.
    """
    names, unknown = {}, []
    for name, module in modules.items():
        word, rest = split_part(name)
        known = (dotted or {}).get(flattened(rest)) if flat or not module.dots_known else None
        known = known or (rest if module.dots_known else None)
        if known is None:
            unknown.append(name)
        names[name] = joined(word, known or rest)
    if unknown:
        raise LorabenchError(
            f"{where}: {len(unknown)} modules were read with flattened names ({some(unknown)}), and neither the file "
            "nor a known family of base models says where their dots are; nothing is guessed. Name a file of the same "
            "base that does, an adapter, a checkpoint or a list of keys: --names-from FILE."
        )
    return names


def with_names_of(
    layout: WrittenLayout, where: Path, modules: Mapping[str, LoraModule], names: Mapping[str, str]
) -> Renamed:
    """The names that a layout's loaders look for.

    Args:
        layout: that is written.
        where: the file, for messages.
        modules: what is written, by canonical name.
        names: module -> its name so far.

    Raises:
        LorabenchError: two modules would get one name, or nothing says what sort of denoiser this is.
    """
    notes: list[str] = []
    steps = []
    if not layout.original_names:
        steps.append((diffusers_unet_name, "of the original U-Net (input_blocks, ...) got diffusers' names"))
    if layout.needs_part:
        steps.append((clip_name, "of a CLIP text encoder got the level text_model that loaders expect"))
    new = dict(names)
    for rename, what in steps:
        renamed = {module: rename(name) for module, name in new.items()}
        count = sum(renamed[module] != name for module, name in new.items())
        notes += [f"{count} modules {what}"] * bool(count)
        new = renamed
    if layout.denoiser:
        new = {
            module: joined(layout.denoiser, split_part(name)[1]) if identity(name).part == "denoiser" else name
            for module, name in new.items()
        }
    elif layout.needs_part and layout.needs_dots:
        new, note = _with_parts(where, modules, new)
        notes += note
    if len(set(new.values())) != len(new):
        values = list(new.values())
        twice = sorted({name for module, name in new.items() if values.count(name) > 1 and name != names[module]})
        raise LorabenchError(
            f"{where}: two modules would get one name ({some(twice)}). It holds the same module under two "
            "names: remove one of them."
        )
    return Renamed(new, tuple(notes))


def _with_parts(
    where: Path, modules: Mapping[str, LoraModule], names: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """The denoiser's word, `unet` or `transformer`, as its family says; a file's own word where no family is known."""
    word = sort_of_denoiser(modules)
    new, unknown = {}, []
    for module, name in names.items():
        said, rest = split_part(name)
        if identity(name).part != "denoiser":
            new[module] = name
            continue
        if word is None and said not in ("unet", "transformer"):
            unknown.append(name)
        new[module] = joined(word or said, rest)
    if unknown:
        raise LorabenchError(
            f"{where}: {len(unknown)} modules are a denoiser's, and nothing says whether it is a U-Net or a "
            f"transformer ({some(unknown)}). Say --component unet or --component transformer."
        )
    count = sum(new[module] != name for module, name in names.items())
    return new, [f"{count} modules are of a {word}, and named so"] * bool(count)
