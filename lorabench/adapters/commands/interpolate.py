"""`interpolate`: adapter files between two adapters of a run, in the latent space of its VAE."""

import math
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from typing import TYPE_CHECKING

from lorabench.adapters.layouts import written_layouts
from lorabench.commands.frame import Outcome
from lorabench.commands.options import path_name
from lorabench.text import table

if TYPE_CHECKING:
    from lorabench.interpolation import Line

__all__ = ["EXAMPLE", "INTERRUPTED", "add_arguments", "run"]

EXAMPLE = "lorabench-adapter interpolate outputs/DATE/TIME braille/U+2801 geometric_shapes/U+25A0 --out between"
INTERRUPTED = "nothing was written"

_NOTE = """\
what the files are: decoder((1 - t)·μ_A + t·μ_B) for t = 0 to 1, of the variational autoencoder that RUN fitted.
t = 0 and t = 1 are what the decoder makes of A and B, not A and B. A module has the larger of its two ranks.

what they are not:
  - trained adapters; nothing promises that their pictures lie between those of A and B.
  - with scope=layer every layer was learned, and is decoded, by itself: nothing makes the layers fit one another.
  - whole: the autoencoder loses a share of the weights' variance (`reconstruction_error`); every file says how much.
  - a way between any two adapters: it reads the entries of the factors, and factors of different gauges (adapters that
    each started from a random down matrix of their own) do not mix.

"""


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the command."""
    parser.epilog = _NOTE
    parser.add_argument("run", metavar="RUN", type=path_name, help="the folder of a run of representation=vae")
    parser.add_argument("a", metavar="ADAPTER_A", help="name of an adapter of its data set")
    parser.add_argument("b", metavar="ADAPTER_B", help="name of another")
    parser.add_argument("-o", "--out", metavar="DIR", type=path_name, required=True, help="a new or empty folder")
    parser.add_argument("--steps", metavar="N", type=int, default=5, help="files, both ends included")
    parser.add_argument("--format", choices=list(written_layouts()), default="diffusers", help="layout of the files")
    parser.add_argument("--representation", metavar="NAME", help="which VAE of the run, where it has several")
    parser.add_argument("--path", type=path_name, help="where the data set lies now (dataset.path)")
    parser.add_argument("--cache-dir", metavar="DIR", type=path_name, help="where the cache lies now (cache_dir)")


def run(args: Namespace) -> Outcome:
    """Write the files, and say how they lie to both ends."""
    from lorabench.interpolation import interpolate

    moved = {"path": args.path, "cache_dir": args.cache_dir}
    line = interpolate(
        run=args.run,
        a=args.a,
        b=args.b,
        out=args.out,
        steps=args.steps,
        layout=args.format,
        representation=args.representation,
        moved={name: str(value) for name, value in moved.items() if value is not None},
    )
    data = {
        "out": args.out,
        "ends": [asdict(end) for end in line.ends],
        "steps": [asdict(step) for step in line.steps],
        "cosine_of_ends": line.cosine,
        "norm_of_ends": line.norm,
        "note": line.note,
    }
    return Outcome(data, f"{_table(line)}\nWritten to {args.out}")


def _table(line: "Line") -> str:
    """What a person wants to know of the files."""
    columns = ("t", "cos to A", "cos to B", "|dW|/|A|", "|dW|/|B|", "cut")
    values = [(step.t, *step.cosine, *step.norm, step.cut) for step in line.steps]
    lines = [table(columns, [tuple(map(_number, row)) for row in values], numbers=columns)]
    lines.append(f"A and B themselves: cosine {_number(line.cosine)}, |B|/|A| {_number(line.norm)}")
    for letter, end in zip("AB", line.ends, strict=True):
        part = {None: "", "none": ", outside the run's split"}.get(end.part, f", of the run's {end.part} split")
        lines.append(
            f"{letter} is {end.name}{part}: decoded, it lacks {end.weights_error:.1%} of its standardised weights' "
            f"variance, and its dW is off by {_number(end.update_error)} of |{letter}|"
        )
    return "\n".join([*lines, "", line.note])


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "undefined"
