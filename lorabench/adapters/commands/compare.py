"""`compare`: two adapters module by module, or the duplicates in folders."""

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabench.adapters.reading.folders import adapter_files
from lorabench.adapters.reading.header import ADAPTER_SUFFIXES, explain_reading, find_adapter_file
from lorabench.commands.frame import Outcome
from lorabench.commands.options import path_name, positive_int, share
from lorabench.errors import LorabenchError
from lorabench.text import table

if TYPE_CHECKING:
    from lorabench.adapters.comparing.fingerprints import Duplicates, Group, Sketch
    from lorabench.adapters.comparing.whole import Comparison, ModuleComparison
    from lorabench.adapters.pairs import SubspaceOverlap

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "lorabench-adapter compare one.safetensors other_peft_folder/ --top 10"

_FLOAT32_ROUNDING = 1e-5
_HALF_ROUNDING = 0.01  # `fingerprints.TOLERANCE`, said again because that module needs torch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument(
        "paths", nargs="+", type=path_name, metavar="PATH", help="two adapters; with --duplicates folders"
    )
    parser.add_argument(
        "--top",
        type=positive_int,
        default=20,
        metavar="N",
        help="rows of the table, the most different modules first; JSON has all",
    )
    parser.add_argument("--duplicates", action="store_true", help="find adapters of the same ΔW among all below PATH")
    parser.add_argument(
        "--tolerance",
        type=_tolerance,
        default=_HALF_ROUNDING,
        metavar="D",
        help="largest relative difference of duplicates",
    )
    parser.set_defaults(wrong_usage=parser.error)


def run(args: argparse.Namespace) -> Outcome:
    """Compare two adapters, or look for duplicates."""
    if args.duplicates:
        return _duplicates(args.paths, args.tolerance)
    if len(args.paths) != 2:
        count = f"{len(args.paths)} {'path' if len(args.paths) == 1 else 'paths'}"
        args.wrong_usage(f"{count} came, but two adapters are compared; --duplicates takes any number, and folders")
    from lorabench.adapters.comparing.fingerprints import distance, sketch
    from lorabench.adapters.comparing.whole import compare
    from lorabench.adapters.reading.files import load

    a, b = (load(path) for path in args.paths)
    sketches = sketch(a), sketch(b)
    content = distance(*sketches)
    try:
        found = compare(a, b)
    except LorabenchError as error:
        raise LorabenchError(f"{error} {_by_content(content)}") from error
    data = {
        **found.as_dict(),
        "fingerprints": [one.id for one in sketches],
        "difference_by_content": content,
        "not_compared": [{kind: list(keys) for kind, keys in one.unsupported.items()} for one in (a, b)],
    }
    return Outcome(data, "\n".join(_lines(found, sketches, args.top)))


def _tolerance(text: str) -> float:
    value = share(text)
    if value == 1:
        raise argparse.ArgumentTypeError(f"{text}: a number below 1 is allowed, untrained adapters differ by 1")
    return value


def _lines(found: "Comparison", sketches: "Sequence[Sketch]", top: int) -> Iterator[str]:
    alone = (found.only_a, found.only_b)
    for name, one, only, norm in zip("ab", sketches, alone, found.norms, strict=True):
        total = found.compared + len(found.shapes_differ) + len(only)
        left_out = f", besides ΔW: {', '.join(one.left_out)}" if one.left_out else ""
        yield f"{name}: {one.path}\n   {total} modules, ‖ΔW‖ {_number(norm)}, fingerprint {one.id}{left_out}"
    yield (
        f"\nwhole adapter: cosine {_number(found.cosine)}, ‖b‖/‖a‖ {_number(found.norm_ratio)}, "
        f"‖a − b‖/‖a‖ {_number(found.difference)}: {_verdict(found)}"
    )
    yield f"modules in both: {found.compared}" + (
        f" (their cosine {_number(found.cosine_shared)})" if any(alone) or found.shapes_differ else ""
    )
    if found.matched_by:
        yield f"names differ, and are matched by {found.matched_by}"
    for side, only in zip("ab", alone, strict=True):
        if only:
            yield f"only in {side}: {_some(only)}"
    if found.shapes_differ:
        yield "in both, but ΔW is of another shape or kind: " + _some(
            [f"{name} {_shape(one)} and {_shape(other)}" for name, (one, other) in found.shapes_differ.items()]
        )
    if found.modules:
        yield "\n" + _table(found.modules[:top])
    if found.compared > top:
        yield f"{top} of {found.compared} modules, the most different first; --top {found.compared} shows all"
    if found.modules:
        yield "left, right: mean cos² of the principal angles of the singular subspaces (of two random ones)"


def _table(modules: "Sequence[ModuleComparison]") -> str:
    columns = ("module", "ΔW", "rank a", "rank b", "cosine", "‖b‖/‖a‖", "‖a−b‖/‖a‖", "left", "right")
    rows = [
        (
            one.module,
            _shape(one.shape),
            *(_rank(rank, dim) for rank, dim in zip(one.ranks, one.numerical_ranks, strict=True)),
            *((f"untrained: {one.untrained}", "", "") if one.untrained else map(_number, _ratios(one))),
            _overlap(one.left),
            _overlap(one.right),
        )
        for one in modules
    ]
    return table(columns, rows, columns[2:])


def _ratios(one: "ModuleComparison") -> tuple[float | None, ...]:
    return one.cosine, one.norm_ratio, one.difference


def _rank(rank: int, numerical: int) -> str:
    return str(rank) if rank == numerical else f"{numerical} of {rank}"


def _overlap(one: "SubspaceOverlap | None") -> str:
    return "" if one is None else f"{one.shared:.3f} ({one.by_chance:.3f})"


def _shape(shape: tuple[int, int]) -> str:
    return f"{shape[0]}×{shape[1]}"


def _number(value: float | None) -> str:
    if value is None:
        return "untrained"
    if value and abs(value) < 1e-3:
        return f"{value:.1e}"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.4g}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 4} more (--json lists all)" if len(names) > 4 else ""
    return f"{len(names)}: {', '.join(names[:4])}{more}"


def _verdict(found: "Comparison") -> str:
    if found.difference is None:
        return "untrained, there is nothing to compare"
    if found.difference <= _FLOAT32_ROUNDING:
        return "the same ΔW"
    if found.difference <= _HALF_ROUNDING:
        return "the same ΔW up to the rounding of half precision"
    return "not the same"


def _by_content(content: float) -> str:
    if math.isnan(content):
        return "Both are untrained."
    same = "they are the same" if content <= _HALF_ROUNDING else "they are not the same"
    return f"By content alone, whatever the names, {same} (relative difference {_number(content)})."


def _duplicates(paths: Sequence[Path], tolerance: float) -> Outcome:
    from lorabench.adapters.comparing.fingerprints import find_duplicates

    adapters: dict[Path, None] = {}
    beside: list[Path] = []
    for path in paths:
        with explain_reading(path):
            folder = path.is_dir()
        if folder:
            below = adapter_files(path)
            adapters.update(dict.fromkeys(adapter.path for adapter in below.adapters))
            beside.extend([*below.beside, *below.state])
        else:
            adapters[find_adapter_file(path)] = None
    if not adapters:
        raise LorabenchError(
            f"{', '.join(map(str, paths))}: no adapter below, no file ends in {', '.join(ADAPTER_SUFFIXES)}. "
            "Name a folder that holds adapters."
        )
    found = find_duplicates(adapters, tolerance=tolerance)
    data = {
        "tolerance": tolerance,
        "read": found.read,
        "groups": [[vars(member) for member in group.members] for group in found.groups],
        "untrained": found.untrained,
        "unreadable": [{"path": path, "reason": reason} for path, reason in found.unreadable.items()],
        "beside_an_adapter": beside,
    }
    return Outcome(data, "\n".join(_duplicate_lines(found, beside)))


def _duplicate_lines(found: "Duplicates", beside: Sequence[Path]) -> Iterator[str]:
    copies = sum(len(group.members) - 1 for group in found.groups)
    yield (
        f"{found.read} adapters read, {len(found.groups)} groups of duplicates with {copies} copies, "
        f"{len(found.unreadable)} not readable"
    )
    for number, group in enumerate(found.groups, 1):
        yield f"\ngroup {number}\n{_group_table(group)}"
    lists: dict[str, list[Any]] = {
        "untrained, ΔW is zero": list(found.untrained),
        "beside the adapter of a folder, or a trainer's own state, not read": list(beside),
        "not readable": list(found.unreadable.values()),
    }
    for title, lines in lists.items():
        if lines:
            yield "\n".join([f"\n{title}:", *(f"  {line}" for line in lines)])


def _group_table(group: "Group") -> str:
    columns = ("adapter", "fingerprint", "difference", "besides ΔW")
    rows = [(one.path, one.fingerprint, f"{one.difference:.1e}", ", ".join(one.left_out)) for one in group.members]
    return table(columns, rows, columns[2:3])
