"""`lorabench-adapter merge A B …`: several adapters into one, after a look at what will clash."""

from argparse import ArgumentParser, Namespace
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lorabench.adapters.commands.common import add_output, dotted_names, write_result
from lorabench.adapters.finding import Finding
from lorabench.adapters.merging.recipe import Recipe
from lorabench.commands.frame import Outcome
from lorabench.commands.options import add_options, any_number, from_args, path_name
from lorabench.errors import LorabenchError
from lorabench.options import option_fields
from lorabench.storage import refuse_overwriting
from lorabench.text import table

if TYPE_CHECKING:
    from lorabench.adapters.adapter import Adapter
    from lorabench.adapters.merging.preflight import Preflight
    from lorabench.adapters.merging.report import MergeReport

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "lorabench-adapter merge style.safetensors person.safetensors --weights 0.7 0.3 --rank 16 -o both.safetensors"

_WORST = 5


def add_arguments(parser: ArgumentParser) -> None:
    """The options of `merge`: those of `Recipe`, and what is merged into what."""
    parser.add_argument("adapters", nargs="+", type=path_name, metavar="ADAPTER", help="files or folders")
    parser.add_argument(
        "-w", "--weights", nargs="+", type=any_number, metavar="W", help="one for each, any sign; default: all equal"
    )
    # The type is an option of everything that writes an adapter.
    add_options(parser, Recipe, [field.name for field in option_fields(Recipe) if field.name != "dtype"])
    parser.add_argument("--preflight", action="store_true", help="say what will clash, and write nothing")
    parser.add_argument("--no-check", action="store_true", help="merge whatever the preflight would find, unlooked")
    add_output(parser, "where the merged adapter goes; needed unless --preflight is said", required=False)


def run(args: Namespace) -> Outcome:
    """Look, merge, write."""
    from lorabench.adapters.merging.preflight import preflight
    from lorabench.adapters.merging.whole import merge
    from lorabench.adapters.reading.files import load
    from lorabench.adapters.writing.converting import notes_on_writing

    if args.out is None and not args.preflight:
        args.refuse("the following arguments are required: -o/--out (or --preflight)")
    if not args.preflight:
        refuse_overwriting(args.out, args.force)
    recipe = from_args(Recipe, args)
    _check_weights(args)
    adapters = [load(path) for path in args.adapters]
    looked = preflight(adapters, args.weights, recipe) if args.preflight or not args.no_check else None
    if looked is not None and not recipe.drop_unsupported:
        looked = _with_what_writing_refuses(looked, adapters[0], args)
    if args.preflight and looked is not None:
        return Outcome(looked.as_dict(), _preflight_text(looked), looked.level != "error")
    if looked is not None and looked.level == "error":
        text = f"{_preflight_text(looked)}\n\nnothing was written; {_way_out(looked)}"
        return Outcome({"preflight": looked.as_dict(), "written": None}, text, ok=False)
    merged, report = merge(adapters, args.weights, recipe)
    notes = notes_on_writing(merged, args.layout, dotted_names(args))
    written = write_result(args, merged, {})
    data: dict[str, Any] = {"written": str(written), "merge": report.as_dict(), "writing": notes}
    texts = [_report_text(report), "\n".join([f"written: {written}", *(f"note: {note}" for note in notes)])]
    if looked is not None:
        data["preflight"] = looked.as_dict()
        texts.insert(0, _preflight_text(looked))
    return Outcome(data, "\n\n".join(texts))


def _with_what_writing_refuses(looked: "Preflight", first: "Adapter", args: Namespace) -> "Preflight":
    """The result bears the first adapter's names and whole tensors, which its layout must have a place for."""
    from lorabench.adapters.writing.converting import notes_on_writing

    try:
        notes_on_writing(first, args.layout, dotted_names(args))
    except LorabenchError as error:
        return replace(looked, findings=(*looked.findings, Finding("error", "writing", str(error), refused=True)))
    return looked


def _check_weights(args: Namespace) -> None:
    """Refuse weights that no adapters allow as wrong usage, before any is read."""
    from lorabench.adapters.merging.clashing import used_weights

    try:
        used_weights(len(args.adapters), args.weights, normalize=False)
    except LorabenchError as error:
        args.refuse(str(error))


def _way_out(looked: "Preflight") -> str:
    """What to do about errors: only such as merging itself does not refuse can be overridden."""
    refused = dict.fromkeys(finding.check for finding in looked.refused)
    if not refused:
        return "--no-check merges all the same"
    return f"mend what is said of {', '.join(refused)} first: merging itself refuses that, with --no-check too"


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
