"""`audit`: does an adapter use its rank, and what does it do to its base."""

import argparse
import os
import shutil
import sys
from typing import TYPE_CHECKING

from lorabench.adapters.reading.opening import ADAPTER_SUFFIXES
from lorabench.commands.frame import Outcome
from lorabench.commands.options import path_name, positive_int
from lorabench.errors import explain_writing
from lorabench.storage import replace_file
from lorabench.text import some, to_json

if TYPE_CHECKING:
    from lorabench.health.auditing import Audit

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "lorabench-adapter audit outputs/ --base base_model/ --fail-on warning --html audit.html"

_NEVER = "never"
_REMEDY = "Name a file that can be written; nothing else was lost."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument(
        "paths", nargs="+", type=path_name, metavar="PATH",
        help="adapters, or folders of any; checkpoint-500, checkpoint-1000 and the like are one training",
    )  # fmt: skip
    parser.add_argument(
        "--series", action="store_true",
        help="all are checkpoints of one training, by the steps that their names say, or else in this order",
    )  # fmt: skip
    parser.add_argument(
        "--base", type=path_name, metavar="PATH", help="the base model, safetensors: a file, shards or a pipeline"
    )
    parser.add_argument(
        "--intruders", action="store_true", help="count intruder dimensions: two dense SVDs a module; needs --base"
    )
    parser.add_argument(
        "--rule", action="append", metavar="NAME", dest="rules", default=[], help="ask this rule alone; may be repeated"
    )
    parser.add_argument(
        "--thresholds", type=path_name, metavar="YAML", help="of one's own, see lorabench/health/thresholds.yaml"
    )
    parser.add_argument(
        "--fail-on", choices=("note", "warning", "error", _NEVER), default="error",
        help="exit with 1 from here on; not of what has ceased",
    )  # fmt: skip
    parser.add_argument("--top", type=positive_int, default=20, metavar="N", help="modules in the table of one adapter")
    parser.add_argument("--html", type=path_name, metavar="FILE", help="a page with figures")
    parser.add_argument("--sarif", type=path_name, metavar="FILE", help="for a code host")


def run(args: argparse.Namespace) -> Outcome:
    """Look, write what was asked for, and say what the rules say."""
    if args.intruders and args.base is None:
        args.refuse("--intruders compares with the base's weights: give --base too")
    _check_outputs(args)
    from lorabench.health.alerts import SEVERITIES, read_thresholds
    from lorabench.health.auditing import audit
    from lorabench.health.sarif_log import sarif

    thresholds = read_thresholds(args.thresholds)
    audits = audit(
        args.paths, args.base, args.rules or None, thresholds, args.intruders, processes=os.cpu_count() or 1,
        together=args.series,
    )  # fmt: skip
    written = []
    if args.html is not None:
        from lorabench.health.page import page_html

        written.append((args.html, page_html(audits)))
    if args.sarif is not None:
        written.append((args.sarif, to_json(sarif(audits), indent=1) + "\n"))
    for path, text in written:
        with explain_writing(path, _REMEDY):
            replace_file(path, text)
    failing = () if args.fail_on == _NEVER else SEVERITIES[SEVERITIES.index(args.fail_on) :]
    failed = any(one.severity in failing for one in audits)
    data = {
        "adapters": [one.as_dict() for one in audits],
        "fail_on": args.fail_on,
        "failed": failed,
        "written": [path for path, _ in written],
    }
    return Outcome(data, _text(audits, args.top, [path for path, _ in written]), ok=not failed)


def _check_outputs(args: argparse.Namespace) -> None:
    """A page of last week is written over; an adapter is not."""
    for option, path in (("--html", args.html), ("--sarif", args.sarif)):
        if path is not None and path.name.endswith(ADAPTER_SUFFIXES):
            args.refuse(f"{option} {path} is called as an adapter is: give another name")
    if args.html is not None and args.html == args.sarif:
        args.refuse(f"--html and --sarif are both {args.html}: give two names")


def _text(audits: "list[Audit]", top: int, written: list[object]) -> str:
    from lorabench.health.sheets import adapters_sheet, gravest_first, modules_sheet, short_names, steps_sheet, summary
    from lorabench.sheet import sheets_text

    ordered = gravest_first(audits)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    lines = [summary(audits), "", sheets_text([adapters_sheet(audits)], width)]
    for name, one in zip(short_names(ordered), ordered, strict=True):
        said = [*one.faults, *_said(one)]
        if said:
            lines += [name, *(f"  {line}" for line in said)]
    lines += _remedies(audits)
    if len(audits) == 1:
        sheets = [steps_sheet(audits[0])] if len(audits[0].files) > 1 else []
        lines += ["", sheets_text([*sheets, modules_sheet(audits[0], top)], width)]
    return "\n".join([*lines, *(f"wrote {path}" for path in written)]).rstrip()


def _said(one: "Audit") -> list[str]:
    lines = []
    for alert in one.alerts:
        step = "" if alert.step is None else f", {alert.unit} {alert.step}"
        ceased = ", ceased since" if alert.rule in one.ceased else ""
        lines.append(f"{alert.severity}, {alert.rule}{step}{ceased}: {alert.message}")
    tensors = [f"{kind}: {count}" for kind, count in one.unsupported.items()]
    return [*lines, *([f"tensors that are not judged: {some(tensors)}"] if tensors else []), *one.beside]


def _remedies(audits: "list[Audit]") -> list[str]:
    """What to do about each rule that has spoken, once."""
    spoken = {alert.rule: alert for one in audits for alert in one.alerts}
    lines = [f"  {rule}: {alert.action}\n    its limit: {alert.source}" for rule, alert in sorted(spoken.items())]
    return ["", "what to do", *lines] if lines else []
