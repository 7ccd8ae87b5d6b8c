"""`python -m lorabench.interpolation`: adapter files between two adapters of a run."""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from lorabench.adapters import LAYOUTS
from lorabench.errors import LorabenchError
from lorabench.interpolation.line import Line
from lorabench.interpolation.writing import interpolate

__all__ = ["main"]

_NOTE = """\
what the files are: decoder((1 - t)·μ_A + t·μ_B) for t = 0 to 1, of the variational autoencoder that RUN fitted.
t = 0 and t = 1 are what the decoder makes of A and B, not A and B. A module has the larger of its two ranks.

what they are not:
  - trained adapters; nothing promises that their pictures lie between those of A and B.
  - with scope=layer every layer was learned, and is decoded, by itself: nothing makes the layers fit one another.
  - whole: the autoencoder loses a share of the weights' variance (`reconstruction_error`); every file says how much.
  - a way between any two adapters: it reads the entries of the factors, and factors of different gauges (adapters that
    each started from a random down matrix of their own) do not mix.

example: python -m lorabench.interpolation outputs/DATE/TIME latin/U+0043 greek/U+03A3 --out between
"""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Leave with code 2."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0, or 2 after one line on standard error where the user made a mistake."""
    parser = _parser()
    options = parser.parse_args(arguments)
    moved = {"path": options.path, "cache_dir": options.cache_dir}
    try:
        line = interpolate(
            run=options.run,
            a=options.a,
            b=options.b,
            out=options.out,
            steps=options.steps,
            layout=options.format,
            representation=options.representation,
            moved={name: str(value) for name, value in moved.items() if value is not None},
        )
    except KeyboardInterrupt:
        sys.stderr.write(f"{parser.prog}: interrupted; nothing was written\n")
        return 130
    except LorabenchError as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 2
    sys.stdout.write(f"{_table(line)}\nWritten to {options.out}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m lorabench.interpolation",
        description="Write adapter files on the straight line between two adapters, in the latent space of a VAE.",
        epilog=_NOTE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder of a run of representation=vae")
    parser.add_argument("a", metavar="ADAPTER_A", help="name of an adapter of its data set")
    parser.add_argument("b", metavar="ADAPTER_B", help="name of another")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="a new or empty folder")
    parser.add_argument("--steps", metavar="N", type=int, default=5, help="files, both ends included; default: 5")
    parser.add_argument("--format", choices=LAYOUTS, default="diffusers", help="default: diffusers")
    parser.add_argument("--representation", metavar="NAME", help="which VAE of the run, where it has several")
    parser.add_argument("--path", type=Path, help="where the data set lies now (dataset.path)")
    parser.add_argument("--cache-dir", metavar="DIR", type=Path, help="where the cache lies now (cache_dir)")
    return parser


def _table(line: Line) -> str:
    """What a person wants to know of the files."""
    head = ("t", "cos to A", "cos to B", "|dW|/|A|", "|dW|/|B|", "cut")
    rows = ["".join(f"{text:>11}" for text in head)]
    for step in line.steps:
        values = (step.t, *step.cosine, *step.norm, step.cut)
        rows.append("".join(f"{_number(value):>11}" for value in values))
    rows.append(f"A and B themselves: cosine {_number(line.cosine)}, |B|/|A| {_number(line.norm)}")
    for letter, end in zip("AB", line.ends, strict=True):
        part = {None: "", "none": ", outside the run's split"}.get(end.part, f", of the run's {end.part} split")
        rows.append(
            f"{letter} is {end.name}{part}: decoded, it lacks {end.weights_error:.1%} of its standardised weights' "
            f"variance, and its dW is off by {_number(end.update_error)} of |{letter}|"
        )
    return "\n".join([*rows, "", line.note])


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "undefined"


if __name__ == "__main__":
    sys.exit(main())
