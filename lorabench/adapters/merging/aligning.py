"""Several adapters side by side: which of their modules are the same one, and short names for the adapters."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lorabench.adapters.adapter import Adapter, LoraModule
from lorabench.adapters.reading.header import ADAPTER_SUFFIXES, FOLDER_FILES
from lorabench.adapters.writing.unet_names import clip_name, diffusers_unet_name
from lorabench.errors import LorabenchError

__all__ = [
    "Aligned",
    "Match",
    "align",
    "common_name",
    "file_labels",
    "file_name",
    "labels",
    "match",
    "module_names",
    "space",
]

_DEEP_CLIP = re.compile(r"^(text_encoder(?:_2)?)\.text_model\.")
_BARE_UNET = re.compile(r"^(input_blocks|middle_block|output_blocks)\.")
_ONE_SPACE = 1000


@dataclass(frozen=True)
class Match:
    """Which modules of two adapters are the same.

    Attributes:
        pairs: name in the first -> name in the second.
        prefixes: what the names of each have before those of the other, such as ("unet.", ""); ("", "") where
            names match without that.
        how: in words, what was made of names that differ; empty where all that match are equal.
    """

    pairs: Mapping[str, str]
    prefixes: tuple[str, str] = ("", "")
    how: str = ""


@dataclass(frozen=True)
class Aligned:
    """Adapters under common names.

    Attributes:
        adapters: in order; one that needed no other name is the very object that came.
        notes: in sentences, what was matched how.
    """

    adapters: tuple[Adapter, ...]
    notes: tuple[str, ...] = ()


def align(adapters: Sequence[Adapter]) -> Aligned:
    """Adapters whose modules bear the names that the first has for them; such as it lacks, those of the next.

    Each adapter is matched with those before it (see `match`). Modules that no other has get their names in the
    manner of the rest: with or without the prefix, CLIP's level `text_model`, diffusers' names of the U-Net.

    Raises:
        LorabenchError: two prefixes fit equally well.
    """
    names = labels(adapters)
    done: list[dict[str, str]] = []
    manners: list[Callable[[str], str]] = []
    notes: list[str] = []
    for i, adapter in enumerate(adapters):
        found: dict[str, str] = {}
        manner: Callable[[str], str] = str
        for j in range(i):
            if len(found) == len(adapter.modules):
                break
            both = match(adapters[j], adapter)
            new = {x: done[j][y] for y, x in both.pairs.items() if x not in found}
            taken = set(found.values())
            fresh = {x: name for x, name in new.items() if name not in taken}
            if fresh and not found:
                manner = _after(_manner(both), manners[j])
            if both.how and any(x != name for x, name in fresh.items()):
                notes.append(f"{names[i]} and {names[j]} are matched by {both.how}")
            found |= fresh
        found |= _others(adapter, found, manner)
        done.append({name: found[name] for name in adapter.modules})
        manners.append(manner)
    return Aligned(tuple(_renamed(one, new) for one, new in zip(adapters, done, strict=True)), tuple(notes))


def match(a: Adapter, b: Adapter) -> Match:
    """Which modules of two adapters are the same: those of one name, then those of one `common_name`.

    Where there is none of either, the one prefix ("unet.") of the names of one adapter that brings most modules
    together; those of one shape count far more.

    Raises:
        LorabenchError: two prefixes fit equally well.
    """
    same = {name: name for name in a.modules if name in b.modules}
    if len(same) == min(len(a.modules), len(b.modules)):
        return Match(same)
    rest_a, rest_b = ({common_name(name): name for name in one.modules if name not in same} for one in (a, b))
    same |= {rest_a[name]: rest_b[name] for name in rest_a if name in rest_b}
    if same:
        return Match(same, how=_how(same))
    prefixes = _prefixes(a, b, rest_a, rest_b)
    if prefixes == ("", ""):
        return Match({})
    bare_a, bare_b = (
        {name.removeprefix(prefix): own for name, own in rest.items() if name.startswith(prefix)}
        for rest, prefix in ((rest_a, prefixes[0]), (rest_b, prefixes[1]))
    )
    pairs = {bare_a[name]: bare_b[name] for name in bare_a if name in bare_b}
    return Match(pairs, prefixes, _how(pairs, next(filter(None, prefixes))))


def common_name(module: str) -> str:
    """The one name of modules that have several: diffusers' for the U-Net, and CLIP's with its level `text_model`.

    >>> common_name("text_encoder.encoder.layers.0.mlp.fc1")
    'text_encoder.text_model.encoder.layers.0.mlp.fc1'
    """
    if _BARE_UNET.match(module):
        return diffusers_unet_name(f"unet.{module}").removeprefix("unet.")
    return clip_name(diffusers_unet_name(module))


def module_names(adapters: Sequence[Adapter]) -> dict[str, tuple[int, ...]]:
    """Canonical module name -> which adapters have it, in the order of first appearance."""
    found: dict[str, list[int]] = {}
    for i, adapter in enumerate(adapters):
        for name in adapter.modules:
            found.setdefault(name, []).append(i)
    return {name: tuple(owners) for name, owners in found.items()}


def space(module: LoraModule) -> tuple[tuple[int, int], tuple[int, ...], bool]:
    """Where ΔW lives: its shape, kernel, and whether it is a table's; a 1×1 convolution is a linear layer."""
    return module.shape, module.kernel if max(module.kernel, default=1) > 1 else (), module.embedding


def labels(adapters: Sequence[Adapter]) -> tuple[str, ...]:
    """A short name for each adapter: `file_labels` of their paths."""
    return file_labels([adapter.path for adapter in adapters])


def file_labels(paths: Sequence[Path]) -> tuple[str, ...]:
    """The shortest names that tell files apart; a folder's own where all such folders' files are named alike.

    >>> file_labels([Path("a/x/w.safetensors"), Path("b/y/w.safetensors"), Path("c/adapter_model.safetensors")])
    ('x/w', 'y/w', 'c')
    """
    if not paths:
        return ()
    places = [_place(path) for path in paths]
    for depth in range(1, max(len(path.parts) for path in places) + 1):
        for shown in ([_without_ending(path) for path in places], places):
            found = ["/".join(part for part in path.parts[-depth:] if part != "/") for path in shown]
            if len(set(found)) == len(found):
                return tuple(found)
    stems = [_without_ending(path).name for path in places]
    return tuple(f"{name} ({i})" if stems.count(name) > 1 else name for i, name in enumerate(stems, 1))


def file_name(adapter: Adapter) -> str:
    """The name of its file, or of its folder where files of such folders are all named alike."""
    return _place(adapter.path).name or str(adapter.path)


def _place(path: Path) -> Path:
    return path.parent if path.name in FOLDER_FILES and path.parent.name else path


def _without_ending(path: Path) -> Path:
    # A folder's name may have a dot in it that begins no ending.
    return path.with_suffix("") if path.suffix in ADAPTER_SUFFIXES else path


def _prefixes(a: Adapter, b: Adapter, names_a: Mapping[str, str], names_b: Mapping[str, str]) -> tuple[str, str]:
    """The prefix of either's names that most modules match without; none where no module does."""
    found = _votes(a, b, names_a, names_b, 0) + _votes(b, a, names_b, names_a, 1)
    best = found.most_common(2)
    if not best:
        return "", ""
    (side, first), most = best[0]
    if len(best) == 2 and best[1][1] == most:
        raise LorabenchError(
            f"{a.path} and {b.path}: no module has the same name in both, and two prefixes in the "
            f"{('first', 'second')[side]} would fit equally well, {first!r} and {best[1][0][1]!r}. "
            "Split the file that holds both parts, or rename the modules (convert --component)."
        )
    return (first, "") if side == 0 else ("", first)


def _votes(
    longer: Adapter, shorter: Adapter, long_names: Mapping[str, str], short_names: Mapping[str, str], side: int
) -> Counter[tuple[int, str]]:
    votes: Counter[tuple[int, str]] = Counter()
    for name, own in long_names.items():
        parts = name.split(".")
        for cut in range(1, len(parts)):
            other = short_names.get(".".join(parts[cut:]))
            if other is not None:
                alike = space(shorter.modules[other]) == space(longer.modules[own])
                votes[side, ".".join(parts[:cut]) + "."] += _ONE_SPACE if alike else 1
    return votes


def _how(pairs: Mapping[str, str], prefix: str = "") -> str:
    """What was made of names that differ, with an example."""
    other = [(x, y) for x, y in pairs.items() if x != y]
    if not other:
        return ""
    ways = {
        "diffusers' names of the original U-Net": any(_unet(x) != _unet(y) for x, y in other),
        "CLIP's level text_model": any(_clip(x) != _clip(y) for x, y in other),
        f"the names without {prefix!r}": bool(prefix),
    }
    said = " and ".join(way for way, used in ways.items() if used)
    return f"{said}, in {len(other)} modules: {other[0][1]} is {other[0][0]}"


def _unet(name: str) -> bool:
    """Whether this is a name of the original U-Net."""
    return (diffusers_unet_name(name) != name) or bool(_BARE_UNET.match(name))


def _clip(name: str) -> bool | None:
    """Whether this name has CLIP's level `text_model`; None where it has no place for one."""
    return True if _DEEP_CLIP.match(name) else False if clip_name(name) != name else None


def _manner(found: Match) -> Callable[[str], str]:
    """How a name of the second adapter would be one of the first."""
    of_first, of_second = found.prefixes
    pairs = found.pairs.items()
    diffusers = any(_unet(y) and not _unet(x) for x, y in pairs)
    deep = any(_clip(x) and _clip(y) is False for x, y in pairs)
    flat = any(_clip(x) is False and _clip(y) for x, y in pairs)

    def manner(name: str) -> str:
        if diffusers and _unet(name):
            name = common_name(name)
        if deep:
            name = clip_name(name)
        elif flat:
            name = _DEEP_CLIP.sub(r"\1.", name)
        return (of_first if not name.startswith(of_first) else "") + name.removeprefix(of_second)

    return manner


def _after(first: Callable[[str], str], second: Callable[[str], str]) -> Callable[[str], str]:
    return lambda name: second(first(name))


def _others(adapter: Adapter, found: Mapping[str, str], manner: Callable[[str], str]) -> Iterator[tuple[str, str]]:
    """Names of the modules that no adapter before has; their own where another module would have the new one."""
    taken = {*found.values(), *adapter.modules}
    for name in adapter.modules:
        if name not in found:
            new = manner(name)
            yield name, name if new in taken else new


def _renamed(adapter: Adapter, names: Mapping[str, str]) -> Adapter:
    if all(old == new for old, new in names.items()):
        return adapter
    return replace(adapter, modules={names[old]: module for old, module in adapter.modules.items()})
