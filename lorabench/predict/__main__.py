"""`lorabench predict DIR FILE...`: what a model says of adapters."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabench.adapters.reading.folders import adapter_files
from lorabench.adapters.reading.opening import ADAPTER_SUFFIXES
from lorabench.commands.frame import Outcome, run_single
from lorabench.commands.options import path_name, share
from lorabench.errors import LorabenchError, explain_writing
from lorabench.predict import ERROR, STRANGERS
from lorabench.storage import replace_file
from lorabench.text import clean, counted, csv_text, table

if TYPE_CHECKING:
    from lorabench.predict.answers import Answer

__all__ = ["EXAMPLE", "INTERRUPTED", "add_arguments", "main", "run"]

EXAMPLE = "lorabench predict model new/ --fail-on Arrows --csv answers.csv"
INTERRUPTED = "nothing was written"
_DESCRIPTION = (
    "What each adapter was trained on, by a model of `lorabench export`, or that the model does not know. Exit code 1 "
    "if an adapter cannot be read, or is of a category of --fail-on."
)
_COLUMNS = ("file", "answer", "categories", "probability", "likeliest", "likeness", "why", "notes")


def add_arguments(parser: ArgumentParser) -> None:
    """The options of `predict`."""
    parser.add_argument("model", metavar="DIR", type=path_name, help="a folder of `lorabench export`")
    parser.add_argument("paths", metavar="FILE", nargs="+", type=path_name, help="adapters, or folders of adapters")
    parser.add_argument(
        "--error", metavar="E", type=share, default=ERROR,
        help="how often the right category may be too unlikely to be named",
    )  # fmt: skip
    parser.add_argument(
        "--strangers", metavar="S", type=share, default=STRANGERS,
        help="how many adapters like those of the training may be turned away as strangers; the right category is "
        "named for at least 1 - E - S of them",
    )  # fmt: skip
    parser.add_argument("--csv", metavar="FILE", type=path_name, help="write a row an adapter; - for standard output")
    parser.add_argument(
        "--fail-on", metavar="CATEGORY", action="append", default=[],
        help="exit with 1 where an adapter may be of it; may be repeated",
    )  # fmt: skip
    parser.add_argument("--fail-on-unknown", action="store_true", help="exit with 1 where the model does not know")


def run(args: Namespace) -> Outcome:
    """Ask the model."""
    if args.csv is not None and args.csv.name.endswith(ADAPTER_SUFFIXES):
        args.refuse(f"--csv {args.csv} is called as an adapter is: give another name")
    from lorabench.predict.answers import ask
    from lorabench.predict.folder import read_model
    from lorabench.progress import bar

    model = read_model(args.model)
    unknown = [name for name in args.fail_on if name not in model.classes]
    if unknown:
        raise LorabenchError(
            f"--fail-on {unknown[0]}: the model knows no such {model.target}. It knows {', '.join(model.classes)}."
        )
    paths = _walked(args.paths)
    with bar("asking", len(paths)) as shown:
        said = ask(model, paths, args.error, args.strangers, shown.advance)
    failed = [one for one in said if _fails(one, args)]
    rows = [_row(one) for one in said]
    text = _text(said, failed)
    if args.csv is not None:
        written = csv_text(_COLUMNS, [[_cell(row[name]) for name in _COLUMNS] for row in rows])
        if str(args.csv) == "-":
            text = written.rstrip("\n")
        else:
            with explain_writing(args.csv, "Name a file that can be written."):
                replace_file(args.csv, written)
            text += f"\nwrote {args.csv}"
    data = {
        "model": args.model,
        "error": args.error,
        "strangers": args.strangers,
        "adapters": rows,
        "failed": [one.path for one in failed],
    }
    return Outcome(data, text, ok=not failed)


def _walked(paths: Sequence[Path]) -> list[Path]:
    """The adapters that are named, and those in folders that are named; what is not there has its row too.

    Raises:
        LorabenchError: a folder holds none.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            found[path] = None
            continue
        below = [place.path for place in adapter_files(path).adapters]
        if not below:
            raise LorabenchError(f"{path}: no adapters in it. Name files, or a folder that holds some.")
        found |= dict.fromkeys(below)
    return list(found)


def _fails(answer: "Answer", args: Namespace) -> bool:
    """Whether an adapter makes the exit code 1."""
    asked = set(args.fail_on) & set(answer.categories)
    return answer.verdict == "error" or bool(asked) or (args.fail_on_unknown and answer.verdict == "unknown")


def _row(answer: "Answer") -> dict[str, Any]:
    return {
        "file": str(answer.path),
        "answer": answer.verdict,
        "categories": list(answer.categories),
        "probability": answer.ranked[0][1] if answer.ranked else None,
        "likeliest": [{"category": name, "probability": share} for name, share in answer.ranked],
        "likeness": answer.likeness,
        "why": answer.why,
        "notes": list(answer.notes),
    }


def _cell(value: Any) -> Any:
    """A value of a row as CSV has it."""
    if value is None:
        return float("nan")
    if not isinstance(value, list):
        return value
    texts = [f"{one['category']} {one['probability']:.3f}" if isinstance(one, dict) else str(one) for one in value]
    return "; ".join(texts)


def _text(said: Sequence["Answer"], failed: Sequence["Answer"]) -> str:
    rows = []
    for one in said:
        told = {"known": " or ".join(one.categories), "several": f"one of {', '.join(one.categories)}",
                "unknown": "I do not know", "error": "cannot be read"}[one.verdict]  # fmt: skip
        shown = one.ranked if one.verdict != "unknown" else ()
        first = f"{shown[0][1]:.2f}" if shown else ""
        rows.append([str(one.path), told, first, ", ".join(f"{name} {p:.2f}" for name, p in shown[1:])])
    lines = [table(["adapter", "what it was trained on", "p", "then"], rows, numbers=["p"])]
    lines += [clean(f"{one.path}: {said}") for one in said for said in (one.why, *one.notes) if said]
    counts = {word: sum(one.verdict == word for one in said) for word in ("known", "several", "unknown", "error")}
    lines.append(
        f"{counted(len(said), 'adapter')}: {counts['known']} of one category, {counts['several']} of one of several, "
        f"{counts['unknown']} not known, {counts['error']} not readable"
    )
    if failed:
        lines.append(f"failed: {counted(len(failed), 'adapter')}, such as {clean(failed[0].path)}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None, name: str = "python -m lorabench.predict") -> int:
    """Run it; see `lorabench.commands.frame` for what it prints and returns."""
    return run_single(name, _DESCRIPTION, sys.modules[__name__], argv)


if __name__ == "__main__":
    sys.exit(main())
