"""`inspect`: what a file is, where it comes from, whether it is whole; a folder as one table; other metadata."""

import argparse
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from os import environ
from typing import Any

from lorabench.adapters.commands.common import add_output
from lorabench.commands.frame import Outcome
from lorabench.commands.options import natural, path_name, positive_int
from lorabench.errors import LorabenchError
from lorabench.storage import refuse_overwriting
from lorabench.text import clean, counted, table

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = """lorabench-adapter inspect adapter.safetensors
  lorabench-adapter inspect adapters/ --output adapters.parquet
  lorabench-adapter inspect adapter.safetensors --redact --set modelspec.title=Foxes -o public.safetensors"""

_FORMATS = ("terminal", "text", "markdown", "json")
_SHOWN = 52


def add_arguments(parser: ArgumentParser) -> None:
    """The options of `inspect`."""
    parser.add_argument("path", type=path_name, help="an adapter file, a folder with one, or a folder of many")
    parser.add_argument("--format", choices=_FORMATS, default="terminal", help="of what is printed")
    parser.add_argument("--modules", action="store_true", help="add the table of all modules")
    parser.add_argument(
        "--hashes",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="read the file whole and check its hashes; default: where it bears any and is below 64 MiB, "
        "and never in a folder",
    )
    parser.add_argument(
        "--values", action="store_true", help="read the weights too: NaN, infinity, untrained modules; not in a folder"
    )
    parser.add_argument("--strict", action="store_true", help="fail if any tensor cannot be analysed")
    parser.add_argument(
        "--tags", type=natural, default=20, metavar="N", help="the dataset's most frequent tags to name"
    )
    parser.add_argument(
        "--output",
        type=path_name,
        metavar="TABLE",
        help="of a folder: write the table to a .jsonl, .csv or .parquet file",
    )
    parser.add_argument(
        "--jobs",
        type=positive_int,
        metavar="N",
        help="of a folder: processes; default: one a processor if there are many files",
    )
    parser.add_argument("--redact", action="store_true", help="take away paths, tags, session ids and times; needs -o")
    parser.add_argument(
        "--set", type=_pair, action="append", default=[], metavar="KEY=VALUE", help="set an entry; needs -o"
    )
    parser.add_argument("--unset", action="append", default=[], metavar="KEY", help="take an entry away; needs -o")
    add_output(parser, "the file, or folder, to write with the metadata edited", required=False, weights=False)
    parser.set_defaults(misused=parser.error)


def run(args: Namespace) -> Outcome:
    """Inspect, scan or edit."""
    args.json = args.json or args.format == "json"
    edits = bool(args.redact or args.set or args.unset)
    if edits != (args.out is not None):
        args.misused("--redact, --set and --unset need -o, and -o needs one of them")
    if edits:
        return _edit(args)
    from lorabench.adapters.metadata.library import is_one_adapter
    from lorabench.adapters.reading.header import explain_reading

    with explain_reading(args.path):
        folder = args.path.is_dir()
    if args.output is not None and not folder:
        args.misused("--output is the table of a folder; give a folder")
    if folder and (args.output is not None or not is_one_adapter(args.path)):
        if args.values:
            args.misused("--values is for one adapter: a folder is scanned by its headers alone")
        return _scan(args)
    return _inspect(args)


def _inspect(args: Namespace) -> Outcome:
    from lorabench.adapters.metadata import rendering
    from lorabench.adapters.metadata.inspection import inspect

    found = inspect(args.path, strict=args.strict, hashes=args.hashes, top_tags=args.tags, values=args.values)
    if args.format == "terminal":
        shown = sys.stdout.isatty()
        text = rendering.terminal(found, colour=shown and "NO_COLOR" not in environ, whole=not shown)
    else:
        text = rendering.markdown(found) if args.format == "markdown" else rendering.text(found)
    if args.modules:
        modules = rendering.module_table(found)
        text += f"\n\n## Modules\n\n```\n{modules}\n```" if args.format == "markdown" else f"\n\n{modules}"
    return Outcome(found.as_dict(modules=args.modules), text, found.ok)


def _scan(args: Namespace) -> Outcome:
    from lorabench.adapters.metadata.library import scan, write_rows
    from lorabench.adapters.reading.folders import adapter_files

    if args.output is not None:
        refuse_overwriting(args.output, args.force, "--output", folder=False)
    rows = list(scan(args.path, strict=args.strict, hashes=bool(args.hashes), jobs=args.jobs))
    if not rows:
        raise LorabenchError(f"{args.path}: no adapter file at any depth. Name another folder.")
    bad = [row for row in rows if not row["valid"]]
    summary = f"{counted(len(rows), 'file')}: {len(rows) - len(bad)} valid" + (f", {len(bad)} not valid" if bad else "")
    state = adapter_files(args.path).state
    if state:
        summary += f"; {len(state)} files of a trainer's own state were not opened ({state[0].name}, ...)"
    ok = not (args.strict and bad)
    if args.output is None:
        return Outcome(rows, f"{_listed(rows, args.format)}\n\n{summary}", ok)
    write_rows(args.output, rows)
    report = {
        "output": str(args.output),
        "files": len(rows),
        "valid": len(rows) - len(bad),
        "not_opened": [str(path) for path in state],
    }
    return Outcome(report, f"{summary}; written to {args.output}", ok)


def _edit(args: Namespace) -> Outcome:
    from lorabench.adapters.metadata.editing import edit

    done = edit(args.path, args.out, values=dict(args.set), unset=args.unset, redacted=args.redact, force=args.force)
    lines = [f"removed  {clean(key)}" for key in done.removed]
    for key, (before, now) in done.changed.items():
        was = "" if before is None else f"  (was {_cut(clean(before))})"
        lines.append(f"set      {clean(key)} = {_cut(clean(now))}{was}")
    lines += [f"note     {note}" for note in done.notes]
    data = {
        "path": str(done.path),
        "removed": list(done.removed),
        "changed": {key: {"before": before, "now": now} for key, (before, now) in done.changed.items()},
        "notes": list(done.notes),
    }
    return Outcome(data, "\n".join([*lines, f"written to {done.path}; the tensors are the same bytes"]))


def _listed(rows: list[dict[str, Any]], style: str) -> str:
    columns = ("file", "method", "rank", "alpha", "modules", "KiB", "base model")
    cells = [
        [
            _cut(clean(row["file"]), from_end=True) + ("" if row["valid"] else " (!)"),
            row["method"] or "-",
            _span(row["ranks"] or ()),
            "-" if row["alpha"] is None else f"{row['alpha']:g}",
            "-" if row["modules"] is None else row["modules"],
            "-" if row["size"] is None else f"{row['size'] / 1024:.0f}",
            _cut(clean(row["base_model"] or "-")),
        ]
        for row in rows
    ]
    files: dict[str, list[str]] = {}
    for row in rows:
        if not row["valid"]:
            files.setdefault(clean(row["error"]), []).append(clean(row["file"]))
    wrong = [f"(!) {_first(names)}: {error}" for error, names in files.items()]
    if style != "markdown":
        return "\n".join([table(columns, cells, ("alpha", "modules", "KiB")), *([""] if wrong else []), *wrong])
    lines = ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in (columns, *cells)]
    return "\n".join([lines[0], "|" + "---|" * len(columns), *lines[1:], "", *(f"- {line}" for line in wrong)])


def _first(names: Sequence[str]) -> str:
    """The first of the files that have one error, and how many more have it."""
    more = f" and {len(names) - 3} more files" if len(names) > 4 else ""
    return ", ".join(names[: 3 if more else None]) + more


def _span(ranks: Sequence[str]) -> str:
    return " ".join(ranks[:1]) if len(ranks) < 2 else f"{ranks[0]}..{ranks[-1]}"


def _cut(value: str, from_end: bool = False) -> str:
    if len(value) <= _SHOWN:
        return value
    return "…" + value[1 - _SHOWN :] if from_end else value[: _SHOWN - 1] + "…"


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is no KEY=VALUE")
    return key, value
