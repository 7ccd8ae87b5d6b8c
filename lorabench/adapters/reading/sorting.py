"""The keys of one file by module and part, and what of them cannot be analysed; no weight is looked at."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lorabench.adapters.kinds import kinds
from lorabench.adapters.layouts import layout_called
from lorabench.adapters.names.families import denoiser_sort, dotted, recognise
from lorabench.adapters.names.identity import has_peft_prefix, identity, joined
from lorabench.adapters.reading.header import TensorInfo
from lorabench.adapters.reading.naming import FACTORS, ParsedKey, parse_key
from lorabench.errors import LorabenchError

__all__ = ["ORDER_KEY", "ModuleKeys", "SortedKeys", "sort_keys"]

ORDER_KEY = "lorabench_modules"
"""Metadata entry with the names of the modules in their order, one a line."""


@dataclass
class ModuleKeys:
    """The keys of one module.

    Attributes:
        form: the kind that its ΔW is made of (`kinds`).
        scheme: how its keys are named; "lycoris" for the keys of LoHa and LoKr outside PEFT.
        parts: part -> key.
        magnitude: whether a DoRA magnitude stands beside it.
        dots_known: whether the dots of its name are the file's own, or those of a table of names.
        wrappers: what was taken off its name.
    """

    form: str = "lora"
    scheme: str = ""
    parts: dict[str, str] = field(default_factory=dict)
    magnitude: bool = False
    dots_known: bool = True
    wrappers: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """The form, but "dora" where there is a magnitude: then ΔW is not all that the adapter does."""
        return "dora" if self.magnitude else self.form

    @property
    def pair(self) -> bool:
        """Whether it is an ordinary LoRA, whatever stands beside it."""
        return kinds()[self.form].pair

    @property
    def whole(self) -> bool:
        """Whether it has an update, or a part of one that a message is due about."""
        return bool(kinds()[self.form].needed) or "down" in self.parts or "up" in self.parts


@dataclass
class SortedKeys:
    """What the keys of a file say.

    Attributes:
        modules: module -> its keys, of all that have an update that can be analysed.
        unsupported: kind -> keys that cannot be analysed.
    """

    modules: dict[str, ModuleKeys] = field(default_factory=dict)
    unsupported: dict[str, list[str]] = field(default_factory=dict)

    @property
    def schemes(self) -> tuple[str, ...]:
        """The naming schemes of the file, sorted."""
        return tuple(sorted({keys.scheme.removesuffix("-embedding") for keys in self.modules.values()} - {""}))

    def set_aside(self, module: str, kind: str) -> None:
        """Move a module to what is unsupported."""
        listed = self.unsupported.setdefault(kind, [])
        listed.extend(key for key in self.modules.pop(module).parts.values() if key not in listed)


def sort_keys(
    file: Path, tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str], leftovers: Iterable[str] = ()
) -> SortedKeys:
    """Sort the keys of a file.

    Args:
        file: for messages.
        tensors: key -> shape.
        metadata: of the file, which names its modules where lorabench wrote it.
        leftovers: keys of what is no tensor.

    Raises:
        LorabenchError: two keys are the same part of the same module, or a module is of two kinds.
    """
    split = _splits(tensors, metadata)
    keys = SortedKeys()
    for key in tensors:
        _place(file, key, keys, split)
    _place_mlx_magnitudes(keys)
    for name, module in list(keys.modules.items()):
        if not module.whole:
            keys.set_aside(name, "alpha_alone" if set(module.parts) == {"alpha"} else module.kind)
    left = list(leftovers)
    if left:
        keys.unsupported.setdefault("other", []).extend(left)
    return keys


def _splits(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> dict[tuple[str, str], str]:
    """(Part's word, flattened name) -> canonical name, for the names that a file flattened.

    By the names that lorabench left in the file, else by the tables of the families that the file's names are of.
    """
    shapes: dict[tuple[str, str], dict[str, tuple[int, ...]]] = {}
    for key, info in tensors.items():
        parsed = parse_key(key)
        if parsed.flat:
            shapes.setdefault(parsed.flat, {})[parsed.part] = info.shape
    if not shapes:
        return {}
    written = {identity(name): name for name in metadata.get(ORDER_KEY, "").split("\n")}
    family = recognise({identity(joined(*name)): _sides(parts) for name, parts in shapes.items()})
    sort = family.denoiser if family else denoiser_sort(flat for word, flat in shapes if word in ("unet", ""))
    split = {}
    for word, flat in shapes:
        rest = dotted(flat, [family.key] if family else None) or dotted(flat)
        name = written.get(identity(joined(word, flat)))
        if name is None and rest is not None:
            # kohya's trainers write `lora_unet` before a transformer's names too
            name = joined(sort if word == "unet" and sort else word, rest)
        if name is not None:
            split[word, flat] = name
    return split


def _sides(parts: Mapping[str, tuple[int, ...]]) -> tuple[int, int] | None:
    """(d_out, d_in) as far as a plain pair says it."""
    down, up = parts.get("down", ()), parts.get("up", ())
    return (up[0], down[1]) if len(down) > 1 and up else None


def _place(file: Path, key: str, keys: SortedKeys, split: Mapping[tuple[str, str], str]) -> None:
    parsed = parse_key(key)
    marks = kinds()[parsed.part].marks if parsed.part in kinds() else None
    match = marks.search(key) if marks else None
    if parsed.part not in FACTORS and match is None:
        keys.unsupported.setdefault(parsed.part, []).append(key)
        return
    name, dots_known = _name(parsed, split)
    module = keys.modules.setdefault(name, ModuleKeys(dots_known=dots_known, wrappers=parsed.wrappers))
    part = parsed.part if match is None else match["part"]
    if part in module.parts:
        raise LorabenchError(
            f"{file}: {module.parts[part]} and {key} are both the {part} of module {name}. Keep one adapter a file."
        )
    module.parts[part] = key
    if parsed.part == "dora":  # which stays unused: what it does depends on the base model
        module.magnitude = True
        keys.unsupported.setdefault("dora", []).append(key)
    elif match is not None:
        if not module.pair and module.form != parsed.part:
            raise LorabenchError(
                f"{file}: module {name} has keys of {module.form} and of {parsed.part} ({key}). "
                "Keep one adapter a file."
            )
        module.form = parsed.part
    if parsed.is_layer or not module.scheme:
        module.scheme = parsed.scheme or ("peft" if has_peft_prefix(key) else "lycoris")


def _name(parsed: ParsedKey, split: Mapping[tuple[str, str], str]) -> tuple[str, bool]:
    """The canonical name of a key's module, and whether its dots are known."""
    if parsed.flat is None:
        return parsed.module, True
    name = split.get(parsed.flat)
    return name or joined(*parsed.flat), name is not None or "_" not in parsed.flat[1]


def _place_mlx_magnitudes(keys: SortedKeys) -> None:
    """MLX calls a magnitude `module.m`: too short a name to be known without the pair beside it."""
    others = keys.unsupported.get("other", [])
    for key in [key for key in others if key.endswith(".m")]:
        module = keys.modules.get(parse_key(f"{key}.lora_a").module.removesuffix(".m"))
        if module is not None and layout_called(module.scheme).short_magnitude and module.pair:
            module.parts["m"], module.magnitude = key, True
            keys.unsupported.setdefault("dora", []).append(key)
            others.remove(key)
    if not others:
        keys.unsupported.pop("other", None)
