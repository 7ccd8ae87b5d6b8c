"""`advise`: which ranks the adapter needs, module by module, beside uniform and shuffled ones."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lorabench.commands.frame import Outcome
from lorabench.commands.options import path_name, positive_int
from lorabench.storage import refuse_overwriting, write_chunks
from lorabench.text import table, to_json

if TYPE_CHECKING:
    from lorabench.health.advisor import Advice

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "lorabench-adapter advise style.safetensors --loss 0.05 -o ranks.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument("file", type=path_name, metavar="FILE", help="the adapter: a file or a folder")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--loss", type=float, default=0.01, metavar="X", help="share of the energy Σσ² that may go")
    how.add_argument("--parameters", type=positive_int, metavar="N", help="numbers that all factors may have together")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the shuffled baseline")
    parser.add_argument(
        "-o", "--out", type=path_name, metavar="FILE", help="JSON of PEFT's r, lora_alpha, rank_pattern, alpha_pattern"
    )
    parser.add_argument("--force", action="store_true", help="replace what is there already")


def run(args: argparse.Namespace) -> Outcome:
    """Say the ranks, and what they lose beside the baselines."""
    if not 0 <= args.loss < 1:
        args.refuse(f"argument --loss: a share from 0 to below 1 is needed, not {args.loss:g}")
    if args.out is not None:
        refuse_overwriting(args.out, args.force)
    from lorabench.adapters.reading.files import load
    from lorabench.health.advisor import advise

    found = advise(load(args.file).modules, args.loss, args.parameters, args.seed)
    command = found.command.replace("FILE", str(args.file))
    if args.out is not None:
        write_chunks(args.out, [f"{to_json(_peft(found), indent=1)}\n".encode()])
    data = {**found.as_dict(), "command": command, "written": args.out}
    return Outcome(data, "\n".join(_lines(found, command, args.out)))


def _peft(found: "Advice") -> dict[str, object]:
    return {
        "r": found.rank,
        "lora_alpha": found.alpha,
        "rank_pattern": found.rank_pattern,
        "alpha_pattern": found.alpha_pattern,
    }


def _lines(found: "Advice", command: str, out: object) -> Sequence[str]:
    draws = len(found.shuffled_errors)
    beaten = sum(found.advised.error < error for error in found.shuffled_errors)
    types = [[kind, str(count), f"{now:.1f}", f"{new:.1f}"] for kind, (count, now, new) in found.by_type.items()]
    written = f", written to {out}" if out else "; -o FILE writes it"
    of_all = f"{len(found.rank_pattern)} of {len(found.advised.ranks)} modules"
    untrained = sum(rank == 0 for rank in found.advised.ranks.values())
    lines = [
        _choices(found),
        "uniform: the largest rank for all that has no more parameters; shuffled: the advised ranks on",
        f"other modules of the same shape; the advised ones lose less than {beaten} of {draws} such draws",
        "",
        table(["modules", "count", "mean rank", "advised"], types, numbers=["count", "mean rank", "advised"]),
        "",
        f"PEFT: r={found.rank}, lora_alpha={found.alpha:g}, and a pattern for {of_all}{written}",
    ]
    lines += [f"{untrained} modules are untrained and need no adapter"] if untrained else []
    lines += [f"kohya: block_dims={','.join(map(str, found.block_dims))}"] if found.block_dims is not None else []
    return [
        *lines,
        f"the same file at these ranks: {command}",
        "This is what the spectrum loses; what a training at these ranks would find, it does not say.",
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
