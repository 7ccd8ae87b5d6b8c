"""`lorabench-adapter resize`: another rank for an adapter, with a receipt."""

from argparse import ArgumentParser, Namespace
from dataclasses import fields, replace
from typing import TYPE_CHECKING

from lorabench.adapters.commands.common import add_output, dotted_names, write_result
from lorabench.adapters.resizing.rule import MODES, ResizeRule
from lorabench.commands.frame import Outcome
from lorabench.commands.options import add_options, from_args, path_name
from lorabench.storage import refuse_overwriting
from lorabench.text import some, table

if TYPE_CHECKING:
    from lorabench.adapters.adapter import Adapter
    from lorabench.adapters.resizing.receipt import Receipt
    from lorabench.adapters.writing.converting import Prepared

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "lorabench-adapter resize style.safetensors -o small.safetensors --energy 0.95 --limit text_encoder=8"


def add_arguments(parser: ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("file", type=path_name, metavar="FILE", help="the adapter: a file or a folder")
    modes = parser.add_argument_group("how ranks are chosen, exactly one").add_mutually_exclusive_group(required=True)
    add_options(modes, ResizeRule, MODES)
    add_options(parser, ResizeRule, [one.name for one in fields(ResizeRule) if one.name not in MODES])
    parser.add_argument("--worst", type=int, default=5, metavar="N", help="modules to list, most error first")
    parser.add_argument("--dry-run", action="store_true", help="say the ranks and errors, and write nothing")
    add_output(parser, "where to write; needed unless --dry-run is said", required=False)


def run(args: Namespace) -> Outcome:
    """Resize one adapter, write it, read it again, and say what changed."""
    rule = from_args(ResizeRule, args)
    if args.out is None and not args.dry_run:
        args.refuse("the following arguments are required: -o/--out (or --dry-run)")
    if not args.dry_run:
        refuse_overwriting(args.out, args.force)
    import torch

    from lorabench.adapters.reading.files import load
    from lorabench.adapters.resizing.whole import resize
    from lorabench.adapters.writing.converting import prepare

    adapter = load(args.file)
    names = dotted_names(args)
    spelled = prepare(replace(adapter, extras={}) if rule.drop_unsupported else adapter, args.layout, names)
    if spelled.regrouped:  # its modules are others in this layout, so they are what is resized
        adapter = spelled.adapter
    resized, receipt = resize(
        adapter, rule, dtype=getattr(torch, args.dtype) if args.dtype else None, layout=args.layout
    )
    prepared = prepare(resized, args.layout, names)
    if not args.dry_run:
        receipt = _written(args, adapter, prepared, receipt)
    receipt = replace(receipt, notes=(*receipt.notes, *prepared.notes))
    where = {"file": str(adapter.path), "out": None if args.dry_run else str(args.out)}
    return Outcome(where | receipt.as_dict(), _text(args, receipt))


def _written(args: Namespace, adapter: "Adapter", prepared: "Prepared", receipt: "Receipt") -> "Receipt":
    """The receipt of what is in the file, which is read again."""
    from lorabench.adapters.comparing.deviation import deviations
    from lorabench.adapters.reading.files import load

    again = load(write_result(args, prepared.adapter, {}))
    # The receipt speaks of the modules as they were called in the input.
    found = deviations(adapter.modules, {old: again.modules[new] for old, new in prepared.names.items()})
    return receipt.measured_as(found, again.path.stat().st_size)


def _text(args: Namespace, receipt: "Receipt") -> str:
    parts = list(dict.fromkeys(one.part for one in receipt.modules))
    rows = [[part, *_summary(receipt, part)] for part in parts]
    columns = ["part", "modules", "rank", "new rank", "predicted error", "measured error"]
    said = "predicted, nothing written" if args.dry_run else f"written to {args.out}, and measured from there"
    lines = [
        f"{args.file}: {receipt.mode.replace('_', '-')} {receipt.value:g}, {said}",
        "",
        table(columns, rows, numbers=columns[1:]),
        "",
        f"whole adapter: predicted error {_percent(receipt.predicted)}, measured {_percent(receipt.measured)}"
        + (f", optimal at these ranks {_percent(receipt.optimal)}" if receipt.mode == "truncate" else ""),
        f"size: {_sizes(receipt)}; new weights alone {_mib(receipt.weight_bytes)}",
    ]
    worst = [one for one in receipt.by_error() if one.measured is not None][: args.worst]
    if worst:
        columns = ["worst modules", "rank", "new rank", "predicted error", "measured error"]
        found = [[m.module, m.old_rank, m.new_rank, _percent(m.predicted), _percent(m.measured)] for m in worst]
        lines += ["", table(columns, found, numbers=columns[1:])]
    notes = [f"- {note}" for note in (*receipt.notes, *_module_notes(receipt))]
    return "\n".join([*lines, *([""] if notes else []), *notes])


def _summary(receipt: "Receipt", part: str) -> list[str]:
    chosen = [one for one in receipt.modules if one.part == part]
    predicted, measured = receipt.of_part(part)
    return [
        str(len(chosen)),
        _range([one.old_rank for one in chosen]),
        _range([one.new_rank for one in chosen]),
        _percent(predicted.relative),
        _percent(measured.relative),
    ]


def _module_notes(receipt: "Receipt") -> list[str]:
    found: dict[str, list[str]] = {}
    for one in receipt.modules:
        for note in one.notes:
            found.setdefault(note, []).append(one.module)
    return [f"{some(names, most=1)}: {note}" for note, names in found.items()]


def _range(ranks: list[int]) -> str:
    low, high = min(ranks), max(ranks)
    return str(low) if low == high else f"{low} to {high}, mean {sum(ranks) / len(ranks):.1f}"


def _percent(error: float | None) -> str:
    return "-" if error is None else f"{100 * error:.3g} %"


def _sizes(receipt: "Receipt") -> str:
    after = "nothing written" if receipt.bytes_after is None else f"{_mib(receipt.bytes_after)} after"
    return f"{_mib(receipt.bytes_before)} before, {after}"


def _mib(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**20:.3f} MiB"
