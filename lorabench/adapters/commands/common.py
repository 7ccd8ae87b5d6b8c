"""What the commands share: their result, tables for people, and options that several have."""

import math
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabench.errors import LorabenchError

if TYPE_CHECKING:
    from lorabench.adapters.adapter import Adapter

__all__ = ["Outcome", "add_output", "plain", "refuse_overwriting", "table", "write_result"]


@dataclass(frozen=True)
class Outcome:
    """What a command found.

    Attributes:
        data: for `--json`: dicts, lists, strings and numbers; NaN and infinity are written as null.
        text: for people.
        ok: False where the file is readable but something in it is wrong: the exit code is 1 then.
    """

    data: Any
    text: str
    ok: bool = True


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], numbers: Sequence[str] = ()) -> str:
    """A plain-text table; the columns in `numbers` are set flush right."""
    cells = [list(columns), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = [
        "  ".join(
            cell.rjust(width) if name in numbers else cell.ljust(width)
            for name, cell, width in zip(columns, row, widths, strict=True)
        ).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def plain(value: Any) -> Any:
    """Data as JSON can say it: NaN and infinity become null, tuples lists, paths strings."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def add_output(parser: ArgumentParser, what: str, layouts: bool = True, required: bool = True) -> None:
    """The options of a command that writes an adapter: `--out`, `--force`, `--layout` and `--dtype`."""
    parser.add_argument("-o", "--out", type=Path, required=required, metavar="PATH", help=what)
    parser.add_argument("--force", action="store_true", help="replace what is at PATH, be it an input itself")
    if layouts:
        parser.add_argument(
            "--layout", choices=["diffusers", "peft", "kohya"], help="of the file; default: that of the input"
        )
        parser.add_argument(
            "--dtype", choices=["float16", "bfloat16", "float32"], help="of the weights; default: that of the input"
        )


def refuse_overwriting(out: Path, force: bool) -> None:
    """Refuse a path that something lies at.

    Raises:
        LorabenchError: it does, and `force` is not said.
    """
    if out.exists() and not force and not (out.is_dir() and not any(out.iterdir())):
        raise LorabenchError(f"{out} exists already. Give another --out, or --force to replace it.")


def write_result(args: Namespace, adapter: "Adapter", metadata: Mapping[str, str]) -> Path:
    """Write an adapter where and how the options of `add_output` say.

    Args:
        args: with `out`, `force`, `layout` (None: that of the adapter) and `dtype` (None: as stored).
        adapter: what is written.
        metadata: entries that are added to the adapter's own.

    Returns:
        The path that was written.

    Raises:
        LorabenchError: something lies at `out` without `force`, or it cannot be written.
    """
    import torch

    from lorabench.adapters.writing import layout_of, save

    refuse_overwriting(args.out, args.force)
    return save(
        args.out,
        adapter,
        args.layout or layout_of(adapter),
        dtype=getattr(torch, args.dtype) if args.dtype else "stored",
        metadata=metadata,
    )
