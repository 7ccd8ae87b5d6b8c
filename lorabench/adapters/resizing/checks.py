"""Whether a file can be resized to a rank, from its header: before anything is computed or written."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lorabench.adapters.reading.naming import KEPT
from lorabench.adapters.reading.table import ModuleRow, read_table
from lorabench.adapters.resizing.rule import spelled

__all__ = ["Validation", "validate"]


@dataclass(frozen=True)
class Validation:
    """What a file holds, and what speaks against a resize.

    Attributes:
        file: that was read.
        format: "safetensors", "pickle" or "npz".
        size: of the file, bytes.
        ranks: rank -> number of modules that have it.
        rank: that was asked for, None where a spectrum is to decide.
        problems: what makes a resize impossible, in words.
        notes: what is worth knowing, in words.
    """

    file: Path
    format: str
    size: int
    ranks: Mapping[int, int]
    rank: int | None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def valid(self) -> bool:
        """Whether nothing makes the resize impossible."""
        return not self.problems


def validate(path: Path | str, rank: int | None = None) -> Validation:
    """Look at a file before a resize: is it whole, which ranks has it, and what would `rank` mean for it.

    Args:
        path: as for `load`. Only the header of a safetensors file is read.
        rank: to resize to.

    Raises:
        LorabenchError: the file cannot be read at all.

    Example:
        >>> import tempfile, torch
        >>> from lorabench.adapters import LoraModule, save
        >>> file = Path(tempfile.mkdtemp()) / "a.safetensors"
        >>> _ = save(file, {"unet.mid_block.to_q": LoraModule(torch.eye(2, 5), torch.eye(4, 2))}, "diffusers-peft")
        >>> found = validate(file, rank=1)
        >>> found.valid, found.ranks
        (True, {2: 1})
    """
    table = read_table(path)
    problems = list(table.problems)
    if not table.rows and not problems:
        problems.append("no LoRA pair (down and up) in it")
    ranks = Counter(row.rank for row in table.rows)
    notes = [
        f"{len(keys)} tensors {'are carried whole' if kind in KEPT else 'cannot be carried over'} ({kind}), "
        f"{keys[0]} for one"
        for kind, keys in table.unsupported.items()
    ]
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        problems.append(f"{spelled('rank', rank)}: a rank is a whole number from 1 on")
    elif rank is not None:
        notes.extend(_meaning(rank, table.rows))
    return Validation(
        file=table.file,
        format=table.format,
        size=table.file.stat().st_size,
        ranks=dict(sorted(ranks.items())),
        rank=rank,
        problems=tuple(problems),
        notes=tuple(notes),
    )


def _meaning(rank: int, rows: tuple[ModuleRow, ...]) -> list[str]:
    plain = [row for row in rows if {"down", "up"} <= row.shapes.keys()]
    narrow = [row.module for row in plain if _short_side(row) < rank]
    notes = []
    if narrow:
        notes.append(
            f"rank {rank} is above the short side of {len(narrow)} modules, {narrow[0]} for one: it is clamped there"
        )
    for word, count in (
        ("already have this rank", sum(row.rank == rank for row in plain)),
        ("would grow, by zeros", sum(row.rank < rank for row in plain)),
    ):
        if count:
            notes.append(f"{count} of {len(rows)} modules {word}")
    return notes


def _short_side(row: ModuleRow) -> int:
    down, up = row.shapes["down"], row.shapes["up"]
    if row.fit.transposed:
        return min(down[0], up[1])
    return min(up[0], math.prod(down[1:]) * math.prod(row.shapes.get("mid", (1, 1))[2:]))
