"""`advise`: which ranks the adapter needs, module by module, beside uniform and shuffled ones."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lorabench.commands.frame import Outcome
from lorabench.commands.options import path_name, positive_int
from lorabench.errors import LorabenchError
from lorabench.storage import refuse_overwriting, write_chunks
from lorabench.text import table, to_json

if TYPE_CHECKING:
    from lorabench.health.advisor import Advice

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "lorabench-adapter advise style.safetensors --loss 0.05 -o ranks.json"

_KOHYA = ".toml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument("file", type=path_name, metavar="FILE", help="the adapter: a file or a folder")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--loss", type=float, default=0.01, metavar="X", help="share of the energy Σσ² that may go")
    how.add_argument("--parameters", type=positive_int, metavar="N", help="numbers that all factors may have together")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the shuffled baseline")
    parser.add_argument(
        "--base", type=path_name, metavar="PATH",
        help="the base model, safetensors: a file, shards or a pipeline; for what α/r it asks for",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--out", type=path_name, metavar="FILE",
        help="JSON of PEFT's r, lora_alpha, rank_pattern, alpha_pattern, of each part of a pipeline by its name; or, "
        "where it ends in .toml, kohya's network_args with block_dims and block_alphas",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="replace what is there already")


def run(args: argparse.Namespace) -> Outcome:
    """Say the ranks, and what they lose beside the baselines."""
    if not 0 <= args.loss < 1:
        args.refuse(f"argument --loss: a share from 0 to below 1 is needed, not {args.loss:g}")
    if args.out is not None:
        refuse_overwriting(args.out, args.force)
    from lorabench.adapters.reading.files import load
    from lorabench.health.advisor import advise
    from lorabench.health.base import BaseFile

    adapter = load(args.file)
    base = None if args.base is None else BaseFile.open(args.base)
    found = advise(adapter.modules, args.loss, args.parameters, args.seed, base, adapter.transposed)
    command = _resize(args.file, found)
    if args.out is not None:
        write_chunks(args.out, [(_toml if args.out.suffix == _KOHYA else _json)(args.file, found).encode()])
    data = {**found.as_dict(), "command": command, "written": args.out}
    return Outcome(data, "\n".join(_lines(found, command, args.out)))


def _resize(file: Path, found: "Advice") -> str:
    """The command as a shell takes it; a name that begins with a dash would be an option."""
    name = f"./{file}" if str(file).startswith("-") else str(file)
    return shlex.join(["lorabench-adapter", "resize", name, *found.resize, "-o", "SMALLER"])


def _json(file: Path, found: "Advice") -> str:
    """The entries of LoraConfig; of several parts, or one that has a name, part by part."""
    if not found.peft:
        raise LorabenchError(f"{file}: no pattern of PEFT's can be written. {found.no_patterns}.")
    return f"{to_json(found.peft.get('model', found.peft) if len(found.peft) == 1 else found.peft, indent=1)}\n"


def _toml(file: Path, found: "Advice") -> str:
    """A --config_file of sd-scripts; each entry of the list is a word behind --network_args too."""
    if found.blocks is None:
        raise LorabenchError(f"{file}: kohya's block_dims cannot be written. {found.no_blocks}.")
    return f"network_args = {to_json(found.blocks.network_args(), indent=1)}\n"


def _lines(found: "Advice", command: str, out: Path | None) -> Sequence[str]:
    draws = len(found.shuffled_errors)
    beaten = sum(found.advised.error < error for error in found.shuffled_errors)
    types = [[kind, str(count), f"{now:.1f}", f"{new:.1f}"] for kind, (count, now, new) in found.by_type.items()]
    untrained = sum(rank == 0 for rank in found.advised.ranks.values())
    lines = [
        _choices(found),
        "uniform: the largest rank for all that has no more parameters; shuffled: the advised ranks on",
        f"other modules of the same shape; the advised ones lose less than {beaten} of {draws} such draws",
        "",
        table(["modules", "count", "mean rank", "advised"], types, numbers=["count", "mean rank", "advised"]),
        "",
        *_configured(found),
    ]
    lines += [f"written to {out}" if out else "-o FILE.json writes PEFT's patterns, -o FILE.toml kohya's network_args"]
    lines += [f"{untrained} modules are untrained and need no adapter"] if untrained else []
    return [
        *lines,
        *_scale(found),
        f"the same file at these ranks: {command}",
        "This is what the spectrum loses; what a training at these ranks would find, it does not say.",
    ]


def _configured(found: "Advice") -> list[str]:
    """What trainers are told."""
    lines = [
        f"PEFT{'' if part == 'model' else f', {part}'}: r={config['r']}, lora_alpha={config['lora_alpha']:g}, "
        f"{len(config['rank_pattern'])} patterns of ranks and {len(config['alpha_pattern'])} of α"
        for part, config in found.peft.items()
    ] or [f"PEFT: no patterns; {found.no_patterns}"]
    if found.blocks is None:
        return [*lines, f"kohya: no block_dims; {found.no_blocks}"]
    lines.append(f"kohya: --network_args {shlex.join(found.blocks.network_args())}")
    if found.blocks.mixed:
        which = ", ".join(map(str, found.blocks.mixed))
        lines.append(f"  modules of blocks {which} differ in scale; α is for the commonest of each")
    return lines


def _scale(found: "Advice") -> list[str]:
    """What the base says of α/r."""
    scale = found.scale
    if scale is None:
        return []
    measured = f"beside the base: the median ‖ΔW‖/‖W‖ of {scale.judged} modules is {scale.median:.3g}"
    if scale.factor == 1:
        advice = f"no change of α/r = {scale.before:.4g} is advised"
    else:
        advice = (
            f"α/r = {scale.after:.4g} is advised for {scale.before:.4g}, and every α above is {scale.factor:.3g} times"
        )
        advice += " what keeps the scale"
    return [
        f"{measured}, and {scale.low:g} to {scale.high:g} is healthy: {advice}",
        "  a rule of thumb: a training at another α/r finds other factors. Where the limits come from:",
        *(f"  {name}: {source}" for name, source in scale.sources.items()),
    ]


def _choices(found: "Advice") -> str:
    chosen = [(one.name, one.parameters, one.error) for one in (found.now, found.advised, found.uniform)]
    chosen.append(("shuffled", found.advised.parameters, found.shuffled))
    rows = [
        [name, str(parameters), f"{parameters / found.now.parameters:.0%}", f"{error:.2%}"]
        for name, parameters, error in chosen
    ]
    columns = ["choice", "parameters", "of now", "error of ΔW"]
    return table(columns, rows, numbers=columns[1:])
