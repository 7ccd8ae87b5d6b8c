"""Several adapters side by side: which of their modules are the same one, and short names for the adapters."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lorabench.adapters.adapter import Adapter, LoraModule
from lorabench.adapters.fusing import in_one_naming
from lorabench.adapters.names.identity import by_identity, flattened, identity, split_part
from lorabench.adapters.names.unet import clip_name, converted, diffusers_unet_name
from lorabench.adapters.reading.header import ADAPTER_SUFFIXES, FOLDER_FILES
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
    adapters, respelled = in_one_naming(adapters)
    names = labels(adapters)
    done: list[dict[str, str]] = []
    manners: list[Callable[[str], str]] = []
    notes = list(respelled)
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
    """Which modules of two adapters are the same: those of one name, then those of one identity.

    A name that says no part of a pipeline has the part of the other's modules that most of its own fit. Where nothing
    matches at all, the one prefix ("model.") of the names of one adapter that brings most modules together; those of
    one shape count far more.

    Raises:
        LorabenchError: two parts or prefixes fit equally well.
    """
    pairs = {name: name for name in a.modules if name in b.modules}
    if len(pairs) == min(len(a.modules), len(b.modules)):
        return Match(pairs)
    rest_a, rest_b = ([name for name in one.modules if name not in pairs] for one in (a, b))
    by_a, by_b = by_identity(rest_a), by_identity(rest_b)
    pairs |= {by_a[key]: by_b[key] for key in by_a if key in by_b}
    if pairs:
        return Match(pairs, how=_how(pairs))
    prefixes = _prefixes(a, b)
    if prefixes == ("", ""):
        return Match({})
    bare_a, bare_b = (_by_bare_name(one.modules, prefix) for one, prefix in zip((a, b), prefixes, strict=True))
    pairs = {bare_a[key]: bare_b[key] for key in bare_a if key in bare_b}
    return Match(pairs, prefixes, _how(pairs, next(filter(None, prefixes))))


def _by_bare_name(names: Iterable[str], prefix: str) -> dict[str, str]:
    """Flattened name, in one spelling and without a prefix -> name, for the names that bear it."""
    return {_bare(name.removeprefix(prefix)): name for name in names if name.startswith(prefix)}


def _bare(name: str) -> str:
    """The flattened name, in one spelling, of one that says no part."""
    return identity(name).flat if not split_part(name)[0] else flattened(name)


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


def _prefixes(a: Adapter, b: Adapter) -> tuple[str, str]:
    """The prefix of either's names that most modules match without; none where no module does."""
    votes = _votes(a, b, 0) + _votes(b, a, 1)
    best = votes.most_common(2)
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


def _votes(longer: Adapter, shorter: Adapter, side: int) -> Counter[tuple[int, str]]:
    votes: Counter[tuple[int, str]] = Counter()
    bare = {_bare(name): name for name in shorter.modules}
    for name, module in longer.modules.items():
        parts = name.split(".")
        for cut in range(1, len(parts)):
            other = bare.get(_bare(".".join(parts[cut:])))
            if other is not None:
                alike = space(shorter.modules[other]) == space(module)
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
        "the names without separators, wrappers and a denoiser's prefix": not prefix
        and any(identity(x) == identity(y) and not _aliased(x, y) for x, y in other),
    }
    said = " and ".join(way for way, used in ways.items() if used)
    return f"{said}, in {len(other)} modules: {other[0][1]} is {other[0][0]}"


def _unet(name: str) -> bool:
    """Whether this is a name of the original U-Net."""
    flat = flattened(split_part(name)[1])
    return converted(flat, "_") != flat


def _aliased(x: str, y: str) -> bool:
    """Whether two names of one module differ in a spelling that only some families have."""
    return _unet(x) != _unet(y) or _clip(x) != _clip(y)


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
