"""`lorabench-adapter merge A B …`: several adapters into one, after a look at what will clash."""

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING, Any

from lorabench.adapters.commands.common import (
    Outcome,
    add_output,
    any_number,
    path_name,
    positive_int,
    refuse_overwriting,
    share,
    table,
    write_result,
)
from lorabench.adapters.merging.recipe import METHODS, MISSING, Recipe
from lorabench.errors import LorabenchError

if TYPE_CHECKING:
    import torch

    from lorabench.adapters.adapter import Adapter
    from lorabench.adapters.merging.preflight import Preflight
    from lorabench.adapters.merging.report import MergeReport

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "lorabench-adapter merge style.safetensors person.safetensors --weights 0.7 0.3 --rank 16 -o both.safetensors"

_WORST = 5


def add_arguments(parser: ArgumentParser) -> None:
    """The options of `merge`."""
    parser.add_argument("adapters", nargs="+", type=path_name, metavar="ADAPTER", help="files or folders")
    parser.add_argument(
        "-w", "--weights", nargs="+", type=any_number, metavar="W", help="one for each, any sign; default: all equal"
    )
    parser.add_argument(
        "--method", choices=METHODS, default="svd",
        help="svd: best at a rank; concat: exact, ranks add; linear: averaged factors; the others on dense ΔW",
    )  # fmt: skip
    parser.add_argument(
        "--rank", type=positive_int,
        help="of each module; default: the parents' largest (svd), their sum (ties, dare, prune)",
    )  # fmt: skip
    parser.add_argument("--density", type=share, default=0.5, help="share of the entries that ties, dare, prune keep")
    parser.add_argument(
        "--majority", choices=["total", "count"], default="total", help="how ties and dare_ties elect a sign"
    )
    parser.add_argument("--no-normalize", action="store_true", help="take the weights as they are; else they sum to 1")
    parser.add_argument("--seed", type=int, default=0, help="of dare's masks, and of the rows whose signs are compared")
    parser.add_argument(
        "--missing", choices=MISSING, default="zero", help="modules that some adapters lack: zero there, or left out"
    )  # fmt: skip
    parser.add_argument("--drop-dora", action="store_true", help="merge DoRA adapters without their magnitudes")
    parser.add_argument(
        "--drop-unsupported",
        action="store_true",
        help="leave out what is no low-rank pair (biases, whole weights, ...)",
    )
    parser.add_argument("--preflight", action="store_true", help="say what will clash, and write nothing")
    parser.add_argument("--no-check", action="store_true", help="merge whatever the preflight would find, unlooked")
    add_output(parser, "where the merged adapter goes; needed unless --preflight is said", required=False)
    parser.set_defaults(refuse=parser.error)


def run(args: Namespace) -> Outcome:
    """Look, merge, write."""
    from lorabench.adapters.merging.merging import merge
    from lorabench.adapters.merging.preflight import preflight
    from lorabench.adapters.reading.files import load
    from lorabench.adapters.writing.converting import notes_on_writing

    if args.out is None and not args.preflight:
        args.refuse("the following arguments are required: -o/--out (or --preflight)")
    if not args.preflight:
        refuse_overwriting(args.out, args.force)
    _check_arguments(args)
    adapters = [load(path) for path in args.adapters]
    how: dict[str, Any] = {
        "method": args.method, "rank": args.rank, "normalize": not args.no_normalize, "missing": args.missing,
        "drop_dora": args.drop_dora, "drop_unsupported": args.drop_unsupported, "seed": args.seed,
    }  # fmt: skip
    looked = preflight(adapters, args.weights, **how) if args.preflight or not args.no_check else None
    if args.preflight and looked is not None:
        return Outcome(looked.as_dict(), _preflight_text(looked), looked.level != "error")
    if looked is not None and looked.level == "error":
        text = f"{_preflight_text(looked)}\n\nnothing was written; {_way_out(looked)}"
        return Outcome({"preflight": looked.as_dict(), "written": None}, text, ok=False)
    merged, report = merge(
        adapters, args.weights, density=args.density, majority=args.majority, dtype=_dtype(args, adapters), **how
    )
    notes = notes_on_writing(merged, args.layout)
    written = write_result(args, merged, {})
    data: dict[str, Any] = {"written": str(written), "merge": report.as_dict(), "writing": notes}
    texts = [_report_text(report), "\n".join([f"written: {written}", *(f"note: {note}" for note in notes)])]
    if looked is not None:
        data["preflight"] = looked.as_dict()
        texts.insert(0, _preflight_text(looked))
    return Outcome(data, "\n\n".join(texts))


def _check_arguments(args: Namespace) -> None:
    """Refuse what no adapters allow as wrong usage, before any is read."""
    from lorabench.adapters.merging.clashing import used_weights

    try:
        Recipe(args.method, args.rank, args.density, args.majority, missing=args.missing)
        used_weights(len(args.adapters), args.weights, normalize=False)
    except LorabenchError as error:
        args.refuse(str(error))


def _way_out(looked: "Preflight") -> str:
    """What to do about errors: only such as merging itself does not refuse can be overridden."""
    refused = dict.fromkeys(finding.check for finding in looked.refused)
    if not refused:
        return "--no-check merges all the same"
    return f"mend what is said of {', '.join(refused)} first: merging itself refuses that, with --no-check too"


def _dtype(args: Namespace, adapters: "list[Adapter]") -> "torch.dtype":
    """The type asked for, or that of all inputs if it is a half one; float32 where they differ."""
    import torch

    if args.dtype:
        found: torch.dtype = getattr(torch, args.dtype)
        return found
    stored = {module.dtype for adapter in adapters for module in adapter.modules.values()}
    halves = (torch.float16, torch.bfloat16)
    return stored.pop() if len(stored) == 1 and stored <= set(halves) else torch.float32


def _preflight_text(looked: "Preflight") -> str:
    rows = [(finding.level, finding.check, finding.message) for finding in looked.findings]
    return f"preflight: {looked.level}\n" + table(("level", "check", "finding"), rows)


def _report_text(report: "MergeReport") -> str:
    inputs = [
        (one.name, f"{one.given:.4g}", f"{one.weight:.4g}", one.modules, (one.sha256 or "")[:12])
        for one in report.parents
    ]
    numbers, errors = ("given", "weight", "modules"), ("rank", "predicted", "measured", "from sum")
    options = ", ".join(f"{name} {value}" for name, value in report.options.items() if value is not None)
    wrong = [row for row in report.modules if row.measured > 0]
    worst = sorted(wrong, key=lambda row: row.measured, reverse=True)[:_WORST]
    rows = [
        (
            row.module, " + ".join("-" if rank is None else str(rank) for rank in row.ranks), row.rank,
            _percent(row.predicted), _percent(row.measured), _percent(row.from_sum),
        )
        for row in worst
    ]  # fmt: skip
    ranks = {row.rank for row in report.modules if row.rank}
    lines = [
        f"method {report.method} ({options})",
        table(("adapter", *numbers, "sha256"), inputs, numbers),
        "",
        f"{len(report.modules)} modules, rank {min(ranks)}" + (f" to {max(ranks)}" if len(ranks) > 1 else ""),
        f"error: predicted {_percent(report.predicted)}, measured {_percent(report.measured)}",
        f"distance from the weighted sum: {_percent(report.from_sum)}",
        *(["the largest errors:", table(("module", "ranks", *errors), rows, errors)] if rows else []),
        *(f"note: {note}" for note in report.notes),
    ]
    return "\n".join(lines)


def _percent(value: float) -> str:
    return "0" if value == 0 else f"{value:.2%}" if value >= 1e-4 else f"{value:.1e}"
