"""The names that families of base models give their modules: a flattened name with its dots again, and whose it is.

The tables are in `families.json`; `tests/make_families.py` writes them from the installed classes of diffusers and
transformers and from the namings of the models' own repositories. Nothing here needs torch.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal, cast

__all__ = ["Family", "Shape", "denoiser_sort", "dotted", "family_keys", "family_name", "recognise"]

Shape = tuple[int, int]
"""d_out and d_in of a module."""

_NUMBER = re.compile(r"(?<![^_])\d{1,9}(?![^_])")  # longer ones number nothing, and Python refuses to read them
_COVERED = 0.8  # of the names of modules; a variant may have some that its family's table lacks
_SMALL = 64
"""A model all of whose widths are below this one was made for a test: its widths tell no family."""
_SMALL_ONES = (("single_transformer_blocks_", "flux"), ("_attn_add_", "sd3"), ("_ff_context_", "sd3"))
_WRAPPERS = ("", "model_", "language_model_", "model_language_model_", "transformer_", "diffusion_model_", "encoder_")
_WITH_TWO_TEXTS = 2048  # SDXL's two text encoders side by side
_BLOCK_WIDTHS = {320, 640, 1280, 2048, 2560}


@dataclass(frozen=True)
class Family:
    """A family of base models that an adapter fits.

    Attributes:
        name: for people, "Stable Diffusion XL".
        key: of its table, "sdxl".
        denoiser: what diffusers' pipeline calls the part that is adapted; None for what is no diffusion model.
        naming: "diffusers", "transformers", "original" (the model's own repository's) or "timm".
        evidence: what the family was told by, in words.
        alternatives: keys of other families that the modules fit as well; the family is the likeliest.
        whole: whether all blocks are there that a released model of the family has.
    """

    name: str
    key: str
    denoiser: Literal["unet", "transformer"] | None
    naming: str
    evidence: str
    alternatives: tuple[str, ...] = ()
    whole: bool = False


@dataclass(frozen=True, eq=False)
class _Table:
    """One family's names in one naming; `tests/family_classes.py` tells what its entries mean."""

    key: str
    name: str
    role: str
    naming: str
    like: Sequence[str] = ()
    group: str = ""
    widths: Sequence[int] = ()
    cross: Sequence[int] = ()
    blocks: Mapping[str, int] = field(default_factory=dict)
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @property
    def denoiser(self) -> Literal["unet", "transformer"] | None:
        name = {"unet": "unet", "transformer": "transformer", "prior": "unet"}.get(self.role)
        return cast("Literal['unet', 'transformer'] | None", name)


@dataclass
class _Seen:
    """What an adapter's modules show: flattened templates, and for each the numbers and shapes that came."""

    numbers: dict[str, list[tuple[int, ...]]]
    shapes: dict[str, list[Shape]]

    def without(self, wrapper: str) -> "_Seen":
        """The same with a wrapper's name taken off the names that have it."""
        if not wrapper:
            return self
        numbers = {pattern.removeprefix(wrapper): every for pattern, every in self.numbers.items()}
        return _Seen(numbers, {pattern.removeprefix(wrapper): every for pattern, every in self.shapes.items()})

    @cached_property
    def dimensions(self) -> set[int]:
        return {dimension for shapes in self.shapes.values() for shape in shapes for dimension in shape}

    @cached_property
    def width(self) -> int:
        """The input width that most modules have; 0 where no shape is known."""
        widths = Counter(d_in for shapes in self.shapes.values() for _, d_in in shapes)
        return max(widths, key=lambda width: (widths[width], width), default=0)

    @cached_property
    def cross(self) -> tuple[str, int] | None:
        """The first template that reads a U-Net's text, and the text's width."""
        readers = (name for name in self.shapes if name.endswith(("attn2_to_k", "attn2_to_v")))
        return next(((name, self.shapes[name][0][1]) for name in readers), None)

    def first(self, pattern: str) -> str:
        """The flattened name of the first module of a template."""
        name = pattern
        for number in self.numbers[pattern][0]:
            name = name.replace("#", str(number), 1)
        return name

    def blocks(self, name: str) -> set[int]:
        """Which blocks of this name are there."""
        start = f"{name}_#_"
        return {numbers[0] for pattern, every in self.numbers.items() if pattern.startswith(start) for numbers in every}


def dotted(flat: str, families: Collection[str] | None = None) -> str | None:
    """The dotted name of a flattened one, exactly, by the tables of families.

    Args:
        flat: the name with underscores for dots, without a part's prefix such as `lora_unet_`.
        families: keys of the families that may have it (`Family.key`); None for all.

    Returns:
        None where no table knows the name, or where two of them would split it differently.

    >>> dotted("single_transformer_blocks_7_attn_to_q")
    'single_transformer_blocks.7.attn.to_q'
    >>> dotted("double_blocks_0_img_attn_qkv", {"hunyuan-video"}), dotted("double_blocks_0_img_attn_qkv", {"flux"})
    ('double_blocks.0.img_attn_qkv', 'double_blocks.0.img_attn.qkv')
    >>> dotted("double_blocks_0_img_attn_qkv") is None
    True
    """
    tables, index = _vocabulary()
    names = {
        name
        for name, owners in index.get(_NUMBER.sub("#", flat), {}).items()
        if families is None or any(tables[number].key in families for number in owners)
    }
    if len(names) != 1:
        return None
    parts = names.pop().split("#")
    return "".join(map("".join, zip(parts, [*_NUMBER.findall(flat), ""], strict=True)))


def family_keys() -> frozenset[str]:
    """The keys of all families."""
    return frozenset(table.key for table in _vocabulary()[0])


def family_name(key: str) -> str:
    """What people call a family.

    >>> family_name("hunyuan-video")
    'HunyuanVideo'
    """
    return next(table.name for table in _vocabulary()[0] if table.key == key)


def recognise(modules: Mapping[tuple[str, str], Shape | None]) -> Family | None:
    """The family of base models whose modules these are, by their names, widths and numbers of blocks.

    A denoiser tells before text encoders do. Where several families fit equally well, one that the others are variants
    of is given, or the name that they share; else none: no family is better than a wrong one.

    Args:
        modules: (part, flattened name without prefix) -> (d_out, d_in), or None where the shape is unknown. A part is
            "denoiser", "text_encoder", "text_encoder_2", "text_encoder_3", "prior", "prior_text_encoder" or "".

    >>> recognise({("denoiser", "mid_block_attentions_0_transformer_blocks_0_attn2_to_k"): (1280, 2048)}).name
    'Stable Diffusion XL'
    >>> recognise({("", "h_0_attn_c_attn"): (2304, 768)}).name
    'GPT-2'
    >>> recognise({("", "linear"): (8, 8)}) is None
    True
    """
    parts: defaultdict[str, dict[str, Shape | None]] = defaultdict(dict)
    for (part, name), shape in modules.items():
        parts["" if part in ("denoiser", "denoiser_2", "prior") else part][name] = shape
    if not parts:
        return None
    main = "" if "" in parts else min(parts)
    if main == "" and _are_numbered(parts[""]):
        return _numbered_unet(parts[""])
    return _best(_seen(parts[main]), "text_encoder_2" in parts)


def denoiser_sort(names: Iterable[str]) -> Literal["unet", "transformer"] | None:
    """Whether modules are a U-Net's or a transformer's, where every family with such names is of one sort.

    Args:
        names: flattened, without prefix, of a denoiser's modules.

    >>> denoiser_sort(["transformer_blocks_0_attn_to_q", "transformer_blocks_0_attn_to_k"])
    'transformer'
    """
    patterns = {_NUMBER.sub("#", name) for name in names}
    covered = Counter(number for pattern in patterns for number in _owners(pattern))
    most = max(covered.values(), default=0)
    if not patterns or most < _COVERED * len(patterns):
        return None
    tables = (_vocabulary()[0][number] for number, count in covered.items() if count == most)
    sorts = {table.denoiser for table in tables if table.role != "prior"} - {None}  # a prior has a part of its own
    return sorts.pop() if len(sorts) == 1 else None


@lru_cache(maxsize=1)
def _vocabulary() -> tuple[tuple[_Table, ...], Mapping[str, Mapping[str, Sequence[int]]]]:
    """All tables; and flattened template -> dotted template -> the numbers of the tables that have it."""
    stored = json.loads(Path(__file__).with_name("families.json").read_text(encoding="utf-8"))
    index: dict[str, dict[str, Sequence[int]]] = {}
    for name, numbers in stored["modules"].items():
        index.setdefault(name.replace(".", "_"), {})[name] = numbers
    return tuple(_Table(**table) for table in stored["tables"]), index


@lru_cache(maxsize=2**14)
def _owners(pattern: str) -> frozenset[int]:
    """The numbers of the tables that have a flattened template."""
    return frozenset(number for numbers in _vocabulary()[1].get(pattern, {}).values() for number in numbers)


@lru_cache(maxsize=2**16)
def _split(flat: str) -> tuple[str, tuple[int, ...]]:
    """A flattened name's template and its numbers; the files of a folder have the same names again and again."""
    return _NUMBER.sub("#", flat), tuple(map(int, _NUMBER.findall(flat)))


def _seen(names: Mapping[str, Shape | None]) -> _Seen:
    seen = _Seen(defaultdict(list), defaultdict(list))
    for name, shape in names.items():
        pattern, numbers = _split(name)
        seen.numbers[pattern].append(numbers)
        if shape is not None:
            seen.shapes[pattern].append(shape)
    return seen


def _best(seen: _Seen, second_text_encoder: bool) -> Family | None:
    if not any("#" in pattern for pattern in seen.numbers):
        return None
    tables = _vocabulary()[0]
    for wrapper in _WRAPPERS:
        inner = seen.without(wrapper)
        covered = Counter(number for pattern in inner.numbers for number in _owners(pattern))
        most = max(covered.values(), default=0)
        if most >= _COVERED * len(inner.numbers):
            named = [tables[number] for number in sorted(covered) if covered[number] == most]
            small = bool(inner.dimensions) and max(inner.dimensions) < _SMALL
            return _chosen(named if small else _fitting(named, inner, second_text_encoder), inner, small)
    return None


def _fitting(named: Sequence[_Table], seen: _Seen, second_text_encoder: bool) -> list[_Table]:
    """The tables that shapes and numbers of blocks allow; where none does, those of the only family with the names."""
    deep = [table for table in named if _is_deep_enough(table, seen)]
    wide = {table.key for table in deep if _has_widths(table, seen, second_text_encoder)}
    named_keys = {table.key for table in named}
    # a variant of no widths of its own has those of the family that it varies
    bases = {table.key: set(table.like) & named_keys for table in deep if not table.widths and not table.cross}
    fitting = [table for table in deep if table.key in wide and (not bases.get(table.key) or bases[table.key] & wide)]
    if fitting or len({table.name for table in _likeliest(deep, seen)}) != 1:
        return fitting
    return _likeliest(deep, seen)


def _has_widths(table: _Table, seen: _Seen, second_text_encoder: bool) -> bool:
    """Whether no width speaks against a table."""
    if table.widths and seen.width and seen.width not in table.widths:
        return False
    if table.cross and seen.cross and seen.cross[1] not in table.cross:
        return False
    if table.cross and not seen.cross and second_text_encoder and _WITH_TWO_TEXTS not in table.cross:
        return False
    shapes = ((tuple(shape), seen.shapes.get(name.replace(".", "_"), ())) for name, shape in table.shapes.items())
    return all(shape == expected for expected, every in shapes for shape in every)


def _is_deep_enough(table: _Table, seen: _Seen) -> bool:
    """Whether a released model has as many blocks."""
    return all(max(seen.blocks(name), default=0) < depth for name, depth in table.blocks.items())


def _likeliest(tables: Sequence[_Table], seen: _Seen) -> list[_Table]:
    """Those whose blocks are all there, if any are; and of variants the family that they vary."""
    whole = [table for table in tables if _is_whole(table, seen)]
    left = whole or list(tables)
    keys = {table.key for table in left}
    return [table for table in left if table.key in keys and keys.isdisjoint(set(table.like) - {table.key})]


def _is_whole(table: _Table, seen: _Seen) -> bool:
    """Whether of every block's name that is seen, all blocks that the model has are there."""
    blocks = [(seen.blocks(name), depth) for name, depth in table.blocks.items()]
    return any(found for found, _ in blocks) and all(len(found) == depth for found, depth in blocks if found)


def _chosen(fitting: Sequence[_Table], seen: _Seen, small: bool) -> Family | None:
    tables = _likeliest(fitting, seen)
    if not tables:
        return None
    first = tables[0]
    names, groups = {table.name for table in tables}, {table.group for table in tables}
    if len(names) == 1 or (len(groups) == 1 and first.group):
        name = first.name if len(names) == 1 else first.group
    elif small and (hinted := _hinted(tables, seen)) is not None:
        first, name = hinted, hinted.name
    else:
        return None
    others = tuple(dict.fromkeys(table.key for table in fitting if table.key != first.key))
    whole = _is_whole(first, seen)
    evidence = _evidence(first, seen) + _as_well(
        table for table in fitting if table.name != name and not (whole and table.blocks and not _is_whole(table, seen))
    )
    return Family(name, first.key, first.denoiser, first.naming, evidence, others, whole)


def _as_well(others: Iterable[_Table]) -> str:
    """Other families that nothing speaks against; U-Nets for other media are variants that nobody asks after."""
    names = list(dict.fromkeys(table.name for table in others if table.denoiser != "unet"))
    listed = " or ".join((", ".join(names[:-1]), names[-1]) if names[1:] else names)
    return f"; {listed} would have it too" if names else ""


def _hinted(tables: Iterable[_Table], seen: _Seen) -> _Table | None:
    """The family of a model made small, by the first name that is one family's more than another's."""
    keys = (key for hint, key in _SMALL_ONES if any(hint in f"_{pattern}" for pattern in seen.numbers))
    key = next(keys, "")
    return next((table for table in tables if table.key == key), None)


def _evidence(table: _Table, seen: _Seen) -> str:
    if table.cross and seen.cross:
        pattern, width = seen.cross
        what = f"is {width} wide"
    else:
        pattern, what = next(name for name in seen.numbers if "#" in name and _owners(name)), ""
    flat = seen.first(pattern)
    name = dotted(flat, {table.key}) or flat
    return f"tensors: {name} {what}" if what else f"tensors: a module is named {name}"


def _are_numbered(names: Iterable[str]) -> bool:
    return all(name.isdecimal() for name in names)


def _numbered_unet(names: Mapping[str, Shape | None]) -> Family | None:
    """The lists of cloneofsimo/lora number the modules; the width of the text still tells the generation."""
    widths = {shape[1] for shape in names.values() if shape is not None}
    if not widths >= {320, 640}:
        return None
    generations = (table for table in _vocabulary()[0] if table.cross and table.cross[0] in widths - _BLOCK_WIDTHS)
    generation = next(generations, None)
    if generation is None:
        return Family("Stable Diffusion (a U-Net)", "sd1", "unet", "diffusers", "tensors: some modules are 320 wide")
    evidence = f"tensors: some modules are {generation.cross[0]} wide"
    return Family(generation.name, generation.key, "unet", "diffusers", evidence)
