"""An inspection for people: on a terminal, as plain text, or in Markdown."""

import json
import shutil
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lorabench.adapters.metadata.inspection import Inspection
from lorabench.text import clean, counted, plain, table

__all__ = ["markdown", "module_table", "terminal", "text"]

_BLOCKS = {
    "file_info": "File",
    "model_info": "Model",
    "training_info": "Training",
    "architecture_info": "Architecture",
}
_WIDTH = 100
_NAME, _SOURCE = 27, 28
_LINES = 4
_MARKS = {"note": "note", "ok": "ok  ", "warning": "look", "error": "BAD "}
_COLOURS = {"title": "1", "source": "2", "note": "2", "ok": "32", "warning": "33", "error": "31"}
_COUNTED = ("ranks", "alphas", "scales", "dtypes", "target_modules")


def terminal(found: Inspection, colour: bool = False, whole: bool = False) -> str:
    """A summary at most 100 columns wide; long values end in an ellipsis.

    Args:
        found: what to show.
        colour: whether to use the escape codes of colour terminals.
        whole: whether to cut nothing, for what is no terminal; only the headline and sources are wider then.
    """
    width = min(_WIDTH, max(shutil.get_terminal_size((_WIDTH, 0)).columns, 60))
    paint = _painter(colour)
    most = None if whole else _LINES
    lines = [paint("title", _headline(found) if whole else _short(_headline(found), width))]
    for block, title in _BLOCKS.items():
        lines += ["", paint("title", title)]
        for name, one in getattr(found, block).items():
            if name not in ("ranks", "alphas") or len(one["value"]) > 1:  # else it stands there already
                lines += _entry(name, one, width, paint, whole)
    lines += ["", paint("title", "Validation")]
    for check in found.validation_info["checks"]:
        mark = paint(check["level"], _MARKS[check["level"]])
        wrapped = textwrap.wrap(clean(check["message"]), width - 9) or [""]
        lines += [f"  {mark}   {wrapped[0]}", *(f"{'':9}{line}" for line in wrapped[1:most])]
    for note, count in list(found.validation_info["assumed"].items())[:most]:
        lines += textwrap.wrap(
            f"assumed for {counted(count, 'module')}: {clean(note)}",
            width,
            initial_indent=" " * 9,
            subsequent_indent=" " * 9,
        )
    if found.raw_metadata:
        entries = counted(len(found.raw_metadata), "entry", "entries")
        lines += ["", f"{entries} of metadata; --json or --format text shows all of it."]
    return "\n".join(lines)


def text(found: Inspection) -> str:
    """One line a value, whole, for grep: `block.name: value  [source]`."""
    lines = [
        f"{block}.{name}: {_one_line(one['value'])}  [{clean(one['source'])}]"
        for block in _BLOCKS
        for name, one in getattr(found, block).items()
    ]
    checks = found.validation_info["checks"]
    lines.append(f"validation_info.valid: {_one_line(found.ok)}")
    lines += [f"validation_info.{one['level']}: {one['check']}: {clean(one['message'])}" for one in checks]
    lines += [f"validation_info.assumed: {clean(note)} ({counted(n, 'module')})" for note, n in _assumed(found)]
    lines += [f"metadata.{clean(key)}: {clean(value)}" for key, value in found.raw_metadata.items()]
    return "\n".join([*lines, f"extraction_time: {found.extraction_time}"])


def markdown(found: Inspection) -> str:
    """A page with one table a block."""
    lines = [f"# {_cell(found.file_info['name']['value'])}", "", _cell(f"{_verdict(found)}: {_facts(found)}")]
    for block, title in _BLOCKS.items():
        lines += ["", f"## {title}", "", "| | value | source |", "|---|---|---|"]
        for name, one in getattr(found, block).items():
            lines.append(f"| {name.replace('_', ' ')} | {_cell(_value(name, one['value']))} | {_cell(one['source'])} |")
    lines += ["", "## Validation", "", "| | check | |", "|---|---|---|"]
    for one in found.validation_info["checks"]:
        lines.append(f"| {_MARKS[one['level']].strip()} | {one['check']} | {_cell(one['message'])} |")
    lines += [f"| assumed | {counted(n, 'module')} | {_cell(note)} |" for note, n in _assumed(found)]
    if found.raw_metadata:
        lines += ["", "## Metadata", "", "| key | value |", "|---|---|"]
        lines += [f"| {_cell(key)} | {_cell(_short(value, 120))} |" for key, value in found.raw_metadata.items()]
    return "\n".join(lines)


def module_table(found: Inspection) -> str:
    """The canonical table: one line a module."""
    columns = ("module", "part", "kind", "rank", "alpha", "from", "scale", "shapes", "dtype")
    rows = [
        (
            clean(one["module"]),
            one["part"],
            one["kind"],
            one["rank"],
            "-" if one["alpha"] is None else f"{one['alpha']:g}",
            one["alpha_source"],
            f"{one['scale']:g}",
            " ".join("x".join(map(str, shape)) for shape in one["shapes"].values()),
            one["dtype"],
        )
        for one in found.modules
    ]
    return table(columns, rows, ("rank", "alpha", "scale"))


def _headline(found: Inspection) -> str:
    """The verdict first: the end is what is cut off."""
    return f"{_verdict(found)}: {clean(found.file_info['name']['value'])}  {_facts(found)}"


def _verdict(found: Inspection) -> str:
    return "valid" if found.ok else "NOT VALID"


def _facts(found: Inspection) -> str:
    built = found.architecture_info
    ranks = list(built["ranks"]["value"])
    rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}" if ranks else "no rank"
    facts = [
        str(found.training_info["method"]["value"]),
        rank,
        counted(built["modules"]["value"], "module"),
        f"{built['parameters']['value']:,} parameters",
        _size(found.file_info["size"]["value"]),
    ]
    return ", ".join(facts)


def _entry(
    name: str, one: Mapping[str, Any], width: int, paint: Callable[[str, str], str], whole: bool
) -> Iterator[str]:
    room = width - _NAME - _SOURCE - 6
    wrapped = textwrap.wrap(clean(_value(name, one["value"])), room) or [""]
    if len(wrapped) > _LINES and not whole:
        wrapped = [*wrapped[: _LINES - 1], _short(wrapped[_LINES - 1] + " …", room)]
    source = paint("source", clean(one["source"]) if whole else _short(clean(one["source"]), _SOURCE))
    yield f"  {_short(name.replace('_', ' '), _NAME).ljust(_NAME)}  {wrapped[0].ljust(room)}  {source}".rstrip()
    for line in wrapped[1:]:
        yield f"{'':{_NAME + 4}}{line}"


def _value(name: str, value: Any) -> str:
    """A value for people."""
    if value in ({}, []):
        return "-"
    if name in ("size", "header_size"):
        return f"{_size(value)} ({value:,} bytes)"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 and "seed" not in name else str(value)
    if isinstance(value, float):
        return f"{value:g}"
    if name == "dataset_tags":
        return ", ".join(f"{tag} {count:g}" for tag, count in value.items())
    if name == "datasets":
        return ", ".join(f"{one['name']} ({one['images']} images x {one['repeats']})" for one in value)
    if name in _COUNTED:
        alone = len(value) == 1
        return ", ".join(f"{_value('', key)}" + ("" if alone else f" x {count}") for key, count in value.items())
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_value('', one)}" for key, one in value.items())
    return ", ".join(_value("", one) for one in value) if isinstance(value, list) else str(value)


def _assumed(found: Inspection) -> list[tuple[str, int]]:
    return list(found.validation_info["assumed"].items())


def _one_line(value: Any) -> str:
    return clean(value) if isinstance(value, str) else json.dumps(plain(value), ensure_ascii=True)


def _cell(value: object) -> str:
    return clean(value).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "\\`")


def _short(value: str, width: int) -> str:
    return value if len(value) <= width else value[: max(width - 1, 0)] + "…"


def _size(count: int) -> str:
    amount, unit = float(count), "bytes"
    for larger in ("KiB", "MiB", "GiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{count} bytes" if unit == "bytes" else f"{amount:.1f} {unit}"


def _painter(colour: bool) -> Callable[[str, str], str]:
    return lambda kind, word: f"\x1b[{_COLOURS[kind]}m{word}\x1b[0m" if colour and word else word
