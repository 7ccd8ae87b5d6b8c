"""Whether the shapes of one module's tensors fit together, and what they unfold to; one rule for files and headers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lorabench.adapters.reading.sorting import BESIDE, NEEDED, ModuleKeys
from lorabench.errors import LorabenchError

__all__ = ["MOST_ENTRIES", "MOST_GROUPS", "MOST_TOGETHER", "UNPLACED", "Fit", "fit", "refuse_together"]

MOST_ENTRIES = 2**28
"""Numbers that the factors of one module may have; small LoHa and LoKr can claim to unfold to any size."""
MOST_TOGETHER = 2**31
"""Numbers that all factors of a file may have together that unfold to more than is stored: 8 GiB in float32."""
MOST_GROUPS = 16
"""Parts of a merged projection; more than any layer has."""
UNPLACED = (
    "merged projection: no enable_lora in adapter_config.json says which parts of the layer are switched on, "
    "so the rows of those that may be off are missing"
)
"""What `LoraModule.assumed` holds where ΔW may have fewer rows than its layer; such a module cannot be written."""

_MAX_KERNEL = 1024
"""Entries of a convolution's window; more than any adapter has."""

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


@dataclass(frozen=True)
class Fit:
    """What the shapes of a module say.

    Attributes:
        rank: r that scales are divided by; 0 for LoKr of two whole matrices.
        groups: parts of a merged projection; 0 where it is none.
        entries: numbers in the factors that LoHa, LoKr, Tucker cores and merged projections unfold to; 0 for a pair
            that is read as it is stored.
    """

    rank: int
    groups: int = 0
    entries: int = 0


def fit(where: Path, module: str, one: ModuleKeys, shapes: Shapes, most: int = MOST_ENTRIES) -> Fit:
    """The rank of a module by its shapes alone.

    Args:
        where: the file, for messages.
        module: canonical module name, for messages.
        one: its keys, form and scheme.
        shapes: part -> shape.
        most: numbers that its factors may unfold to.

    Raises:
        LorabenchError: a part is missing, the shapes do not fit together, or they unfold to over `most` numbers.
    """
    _refuse_missing(where, module, one)
    shown = ", ".join(f"{key} {list(shapes[part])}" for part, key in one.parts.items() if part not in BESIDE)
    try:
        if one.form in ("loha", "lokr"):
            found = _loha(shapes) if one.form == "loha" else _lokr(shapes)
        else:
            found = _pair(one.scheme, shapes)
            _check_values(shapes, found)
    except ValueError as error:
        form = "" if one.form == "lora" else f" ({one.form})"
        raise LorabenchError(
            f"{where}: the shapes of module {module}{form} do not fit together: {shown}. "
            f"{error or _WANTED[one.form]} Export the adapter again."
        ) from error
    if found.entries > most:
        raise LorabenchError(
            f"{where}: module {module} ({one.form}) unfolds to {found.entries} numbers, {most} are the most. "
            "Check where the file is from."
        )
    return found


_WANTED = {
    "lora": "down must be [r, d_in] and up [d_out, r] with one r > 0 for both.",
    "adalora": "down must be [r, d_in], up [d_out, r] and lora_E [r, 1] with one r > 0 for all.",
    "loha": "Both halves must be [d_out, r] and [r, d_in], of the same d_out and d_in.",
    "lokr": "w1 and w2 must be matrices, or pairs [rows, r] and [r, columns].",
}


def refuse_together(where: Path, fits: Mapping[str, Fit]) -> None:
    """Refuse a file whose modules unfold to more than memory has.

    Raises:
        LorabenchError: over `MOST_TOGETHER` numbers.
    """
    total = sum(one.entries for one in fits.values())
    if total > MOST_TOGETHER:
        largest = max(fits, key=lambda name: fits[name].entries)
        raise LorabenchError(
            f"{where}: its modules unfold to {total} numbers together, {MOST_TOGETHER} are the most "
            f"({4 * MOST_TOGETHER / 2**30:g} GiB of memory); the largest is {largest} with {fits[largest].entries}. "
            "Split the file, or check where it is from."
        )


def _refuse_missing(where: Path, module: str, one: ModuleKeys) -> None:
    if one.form in NEEDED:
        lacking = ["/".join(sorted(some)) for some in NEEDED[one.form] if not some & set(one.parts)]
        if lacking:
            have = ", ".join(key for part, key in one.parts.items() if part not in BESIDE)
            raise LorabenchError(
                f"{where}: module {module} ({one.form}) lacks {', '.join(lacking)}; it has {have or 'nothing'}. "
                "Export the adapter again, or remove these keys."
            )
    for part, other in (("down", "up"), ("up", "down")) if one.form in ("lora", "adalora") else ():
        if part not in one.parts:
            have = one.parts.get(other) or next(iter(one.parts.values()))
            raise LorabenchError(
                f"{where}: module {module} has {have} but no {part} matrix; half of the pair is missing. "
                "Export the adapter again, or remove these keys."
            )


def _pair(scheme: str, shapes: Shapes) -> Fit:
    down, up = shapes["down"], shapes["up"]
    if min(len(down), len(up)) < 2 or min(down + up) == 0:
        raise ValueError("")
    if "mid" in shapes:
        mid = shapes["mid"]
        window = math.prod(mid[2:])
        square = len(mid) > 2 and mid[0] == mid[1] == down[0] == up[1] and 0 < window <= _MAX_KERNEL
        if not square or scheme == "mlx" or math.prod(up[2:]) != 1:
            raise ValueError(f"Its Tucker core {list(mid)} must be [r, r, k, k] over down [r, ...] and up [d_out, r].")
        return Fit(mid[0], entries=mid[0] * math.prod(down[1:]) * window)
    if scheme == "mlx":
        if len(down) != 2 or len(up) != 2 or down[1] != up[0]:
            raise ValueError("")
        return Fit(up[0])
    groups = _groups(scheme, down, up)
    if groups:
        return Fit(up[1], groups, up[0] * down[0])
    if down[0] != up[1] or math.prod(up[2:]) != 1:
        raise ValueError("")
    return Fit(up[1])


def _check_values(shapes: Shapes, found: Fit) -> None:
    """AdaLoRA's diagonal has a number for every row of down."""
    if "lora_E" in shapes and math.prod(shapes["lora_E"]) != found.rank * max(found.groups, 1):
        raise ValueError("")


def _groups(scheme: str, down: Shape, up: Shape) -> int:
    """Parts of loralib's and PEFT's merged projection: up [d_out', r(, 1)] over down [g·r, d_in]; 0 if it is none."""
    if len(down) != 2 or not ((len(up) == 3 and up[2] == 1) or (scheme == "loralib" and len(up) == 2)):
        return 0
    if len(up) == 2 and down[0] == up[1]:
        return 0
    groups, rest = divmod(down[0], up[1])
    if rest or not 0 < groups <= MOST_GROUPS or up[0] % groups:
        raise ValueError(
            f"A merged projection has down [g·r, d_in] and up [d_out, r] of g parts, g at most {MOST_GROUPS}."
        )
    return groups


def _loha(shapes: Shapes) -> Fit:
    cores = ("t1" in shapes) + ("t2" in shapes)
    if cores == 1:
        raise ValueError("One Tucker core of two is missing.")
    halves = [_low(shapes, i) for i in (1, 2)]
    (rows, rank, cols), (other_rows, other_rank, other_cols) = halves
    if (rows, cols) != (other_rows, other_cols):
        raise ValueError("")
    inner = sum(_unfolded(shapes, i) for i in (1, 2))
    return Fit(rank, entries=max(_entries(rows, cols, rank * other_rank), inner))


def _lokr(shapes: Shapes) -> Fit:
    rank, sides = 0, []
    for i in (1, 2):
        if f"w{i}" in shapes:
            if {f"w{i}_a", f"w{i}_b", f"t{i}"} & set(shapes):
                raise ValueError(f"w{i} is there whole and in factors.")
            rows, cols = _matrix(shapes[f"w{i}"])
            sides.append((rows, min(rows, cols), cols))
        else:
            sides.append(_low(shapes, i))
            rank = sides[-1][1]  # of two, LyCORIS and PEFT have one
    (rows, inner, cols), (other_rows, other_inner, other_cols) = sides
    entries = _entries(rows * other_rows, cols * other_cols, inner * other_inner)
    return Fit(rank, entries=max(entries, _unfolded(shapes, 2)))


def _low(shapes: Shapes, i: int) -> tuple[int, int, int]:
    """Rows, rank and columns of a pair, with its Tucker core where it has one."""
    a, b, core = shapes[f"w{i}_a"], shapes[f"w{i}_b"], shapes.get(f"t{i}")
    if core is None:
        (rows, rank), (other, cols) = _matrix(a), _matrix(b)
        if rank != other:
            raise ValueError("")
        return rows, rank, cols
    if len(a) != 2 or len(b) != 2 or len(core) < 3 or core[:2] != (a[0], b[0]) or min(a + b + core) == 0:
        raise ValueError(f"Its Tucker core {list(core)} must be [r, r, k, k] over [r, d_out] and [r, d_in].")
    return a[1], a[0], b[1] * math.prod(core[2:])


def _unfolded(shapes: Shapes, i: int) -> int:
    """Entries of a Tucker core times its factor."""
    core = shapes.get(f"t{i}")
    return 0 if core is None else core[0] * shapes[f"w{i}_b"][1] * math.prod(core[2:])


def _matrix(shape: Shape) -> tuple[int, int]:
    if len(shape) < 2 or min(shape) == 0:
        raise ValueError("")
    return shape[0], math.prod(shape[1:])


def _entries(out: int, into: int, rank: int) -> int:
    """Of both factors; where the rank is above the short side of ΔW, of ΔW itself."""
    return out * into if rank > min(out, into) else rank * (out + into)
