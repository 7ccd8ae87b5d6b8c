"""What the commands that write an adapter share: their options, and how they write it."""

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lorabench.commands.frame import Outcome
from lorabench.commands.options import any_number, natural, path_name, positive_int, positive_number, share
from lorabench.storage import refuse_overwriting
from lorabench.text import plain, table

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
