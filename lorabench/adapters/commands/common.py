"""What the commands that write an adapter share: their options, and how they write it."""

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lorabench.adapters.layouts import written_layout, written_layouts
from lorabench.commands.options import path_name
from lorabench.storage import refuse_overwriting

if TYPE_CHECKING:
    from lorabench.adapters.adapter import Adapter

__all__ = ["add_output", "dotted_names", "write_result"]


def add_output(
    parser: ArgumentParser, what: str, *, required: bool = True, weights: bool = True, layout: bool = True
) -> None:
    """The options of a command that writes an adapter: `--out`, `--force`, `--layout`, `--dtype`, `--names-from`.

    Args:
        parser: gets the options.
        what: is written.
        required: whether `--out` must be given.
        weights: whether factors are written anew, so that their type and names can be chosen.
        layout: whether their layout can.
    """
    parser.add_argument("-o", "--out", type=path_name, required=required, metavar="PATH", help=what)
    parser.add_argument("--force", action="store_true", help="replace what is there already, be it an input itself")
    if not weights:
        return
    if layout:
        choices = list(written_layouts())
        parser.add_argument("--layout", choices=choices, help="of the file; default: that of the input")
    parser.add_argument(
        "--dtype", choices=["float16", "bfloat16", "float32"], help="of the weights; default: that of the input"
    )
    parser.add_argument(
        "--names-from",
        type=path_name,
        metavar="FILE",
        help="an adapter, a checkpoint or a list of keys of the same base, for names whose dots the input does not say",
    )


def dotted_names(args: Namespace) -> dict[str, str] | None:
    """Flattened name -> dotted name, by the file of `--names-from`; None where it is not given.

    Raises:
        LorabenchError: the file cannot be read, or names nothing in dots.
    """
    if getattr(args, "names_from", None) is None:
        return None
    from lorabench.adapters.writing.names_from import names_from

    return names_from(args.names_from)


def write_result(args: Namespace, adapter: "Adapter", metadata: Mapping[str, str]) -> Path:
    """Write an adapter where and how the options of `add_output` say.

    In another layout than its own, modules get the names that its loaders look for (see `converting.prepare`).

    Args:
        args: with `out`, `force`, `layout` (None: that of the adapter), `dtype` (None: as stored) and `names_from`.
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
    refuse_overwriting(args.out, args.force, folder=written_layout(layout).folder)
    return save(
        args.out,
        prepare(adapter, layout, dotted_names(args)).adapter,
        layout,
        dtype=getattr(torch, args.dtype) if args.dtype else "stored",
        metadata=metadata,
    )
