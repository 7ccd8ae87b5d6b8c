"""What the commands share: their result, tables for people, and options that several have.

Wrong usage, which argparse says with exit code 2, is what is wrong whatever the files hold: an unknown option, a
missing argument, a value that is no number, none of the choices or out of the option's fixed range, options that do
not go together. All else, which depends on the input or on what lies where something is to be written, is a
`LorabenchError` and exit code 1.
"""

import math
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabench.commands.options import any_number, natural, path_name, positive_int, positive_number, share
from lorabench.errors import LorabenchError, explain_writing

if TYPE_CHECKING:
    from lorabench.adapters.adapter import Adapter

__all__ = [
    "Outcome",
    "add_output",
    "any_number",
    "natural",
    "path_name",
    "plain",
    "positive_int",
    "positive_number",
    "refuse_overwriting",
    "share",
    "table",
    "write_result",
]

_PEFT = {"adapter_config.json", "adapter_model.safetensors"}  # as in atomic


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
    parser.add_argument("-o", "--out", type=path_name, required=required, metavar="PATH", help=what)
    parser.add_argument("--force", action="store_true", help="replace what is there already, be it an input itself")
    if layouts:
        parser.add_argument(
            "--layout", choices=["diffusers", "peft", "kohya"], help="of the file; default: that of the input"
        )
        parser.add_argument(
            "--dtype", choices=["float16", "bfloat16", "float32"], help="of the weights; default: that of the input"
        )


def refuse_overwriting(path: Path, force: bool, option: str = "--out", folder: bool | None = None) -> None:
    """Refuse a path that something lies at, but for an empty folder.

    Args:
        path: what is to be written.
        force: whether `--force` was said, which replaces a file, or a folder that is one PEFT adapter and no more.
        option: the one that gave `path`.
        folder: whether a folder is to be written, or a file (False); None where both can be.

    Raises:
        LorabenchError: `path` cannot be replaced, or could be and `force` is not said.
    """
    with explain_writing(path, f"Give another {option}."):
        there = path.exists()
        inside = sorted(one.name for one in path.iterdir()) if path.is_dir() else None
    if not there or (inside == [] and folder is not False):
        return
    if inside is None:
        if folder:
            raise LorabenchError(f"{path} is a file, and a folder is to be written. Give another {option}.")
        if not force:
            raise LorabenchError(f"{path} exists already. Give another {option}, or --force to replace it.")
        return
    if folder is False:
        raise LorabenchError(f"{path} is a folder, and a file is to be written. Give another {option}.")
    if not _PEFT.issuperset(inside):
        some = ", ".join(inside[:3]) + (", ..." if len(inside) > 3 else "")
        raise LorabenchError(
            f"{path} is a folder that holds {some}: one with more than a PEFT adapter is never replaced. "
            f"Give another {option}."
        )
    if not force:
        raise LorabenchError(
            f"{path} exists already, a folder with a PEFT adapter. Give another {option}, or --force to replace it, "
            "which only another PEFT adapter can."
        )


def write_result(args: Namespace, adapter: "Adapter", metadata: Mapping[str, str]) -> Path:
    """Write an adapter where and how the options of `add_output` say.

    In another layout than its own, modules get the names that its loaders look for (see `converting.prepare`).

    Args:
        args: with `out`, `force`, `layout` (None: that of the adapter) and `dtype` (None: as stored).
        adapter: what is written.
        metadata: entries that are added to the adapter's own.

    Returns:
        The path that was written.

    Raises:
        LorabenchError: something lies at `out` without `force`, or it cannot be written, in this layout or at all.
    """
    import torch

    from lorabench.adapters.writing.converting import prepare
    from lorabench.adapters.writing.saving import layout_of, save

    layout = args.layout or layout_of(adapter)
    refuse_overwriting(args.out, args.force, folder=layout == "peft")
    return save(
        args.out,
        prepare(adapter, layout).adapter,
        layout,
        dtype=getattr(torch, args.dtype) if args.dtype else "stored",
        metadata=metadata,
    )
