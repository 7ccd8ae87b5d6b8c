"""The keys of one file by module and part, and what of them cannot be analysed; no weight is looked at."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from lorabench.adapters.reading.naming import FACTORS, parse_key
from lorabench.errors import LorabenchError

__all__ = ["BESIDE", "MAGNITUDES", "NEEDED", "ModuleKeys", "SortedKeys", "sort_keys"]

MAGNITUDES = ("lora_magnitude_vector", "dora_scale", "m")
"""Parts that are DoRA's magnitude: in PEFT, LyCORIS and MLX."""
BESIDE = ("alpha", "ranknum", *MAGNITUDES)
"""Parts that are no factor of ΔW."""

# By kind: the parts that its ΔW is made of, besides α.
_PARTS = {
    "loha": re.compile(r"\.hada_(?P<part>w1_a|w1_b|w2_a|w2_b|t1|t2)(\.[^.]+)?$"),
    "lokr": re.compile(r"\.lokr_(?P<part>w1|w1_a|w1_b|w2|w2_a|w2_b|t2)(\.[^.]+)?$"),
    "adalora": re.compile(r"\.(?P<part>lora_E|ranknum)(\.[^.]+)?$"),
    "dora": re.compile(r"\.(?P<part>lora_magnitude_vector|dora_scale)(\.[^.]+){0,2}$"),
}
NEEDED: dict[str, tuple[set[str], ...]] = {
    "loha": ({"w1_a"}, {"w1_b"}, {"w2_a"}, {"w2_b"}),
    "lokr": ({"w1", "w1_a"}, {"w1", "w1_b"}, {"w2", "w2_a"}, {"w2", "w2_b"}),
    "adalora": ({"down"}, {"up"}, {"lora_E"}),
}
"""What must be there: one part of every set."""


@dataclass
class ModuleKeys:
    """The keys of one module.

    Attributes:
        form: what its ΔW is made of: "lora", "loha", "lokr" or "adalora".
        magnitude: whether a DoRA magnitude stands beside it.
        scheme: how its keys are named; "lycoris" for the keys of LoHa and LoKr outside PEFT.
        parts: part -> key.
    """

    form: str = "lora"
    scheme: str = ""
    parts: dict[str, str] = field(default_factory=dict)
    magnitude: bool = False

    @property
    def kind(self) -> str:
        """The form, but "dora" where there is a magnitude: then ΔW is not all that the adapter does."""
        return "dora" if self.magnitude else self.form


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
        return tuple(sorted({one.scheme.removesuffix("-embedding") for one in self.modules.values()} - {""}))


def sort_keys(file: Path, names: Iterable[str], leftovers: Iterable[str] = ()) -> SortedKeys:
    """Sort the keys of a file.

    Args:
        file: for messages.
        names: its tensors' keys.
        leftovers: keys of what is no tensor.

    Raises:
        LorabenchError: two keys are the same part of the same module, or a module is of two kinds.
    """
    keys = SortedKeys()
    for key in names:
        _place(file, key, keys)
    _place_mlx_magnitudes(keys)
    for name, one in list(keys.modules.items()):
        if not _whole(one):
            kind = "alpha_alone" if set(one.parts) == {"alpha"} else one.kind
            listed = keys.unsupported.setdefault(kind, [])
            listed.extend(key for key in one.parts.values() if key not in listed)
            del keys.modules[name]
    left = list(leftovers)
    if left:
        keys.unsupported.setdefault("other", []).extend(left)
    return keys


def _place(file: Path, key: str, keys: SortedKeys) -> None:
    parsed = parse_key(key)
    pattern = _PARTS.get(parsed.part)
    match = pattern.search(key) if pattern else None
    if parsed.part not in FACTORS and match is None:
        keys.unsupported.setdefault(parsed.part, []).append(key)
        return
    one = keys.modules.setdefault(parsed.module, ModuleKeys())
    part = parsed.part if match is None else match["part"]
    if part in one.parts:
        raise LorabenchError(
            f"{file}: {one.parts[part]} and {key} are both the {part} of module {parsed.module}. "
            "Keep one adapter a file."
        )
    one.parts[part] = key
    if parsed.part == "dora":  # which stays unused: what it does depends on the base model
        one.magnitude = True
        keys.unsupported.setdefault("dora", []).append(key)
    elif match is not None:
        if one.form not in ("lora", parsed.part):
            raise LorabenchError(
                f"{file}: module {parsed.module} has keys of {one.form} and of {parsed.part} ({key}). "
                "Keep one adapter a file."
            )
        one.form = parsed.part
    if parsed.is_layer or not one.scheme:
        one.scheme = parsed.scheme or ("peft" if key.startswith("base_model.") else "lycoris")


def _place_mlx_magnitudes(keys: SortedKeys) -> None:
    """MLX calls a magnitude `module.m`: too short a name to be known without the pair beside it."""
    others = keys.unsupported.get("other", [])
    for key in [key for key in others if key.endswith(".m")]:
        one = keys.modules.get(parse_key(f"{key}.lora_a").module.removesuffix(".m"))
        if one is not None and one.scheme == "mlx" and one.form == "lora":
            one.parts["m"], one.magnitude = key, True
            keys.unsupported.setdefault("dora", []).append(key)
            others.remove(key)
    if not others:
        keys.unsupported.pop("other", None)


def _whole(one: ModuleKeys) -> bool:
    """Whether a module has an update, or a part of one that a message is due about."""
    return one.form in NEEDED or "down" in one.parts or "up" in one.parts
