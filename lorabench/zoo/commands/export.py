"""`export`: a zoo's adapters as files."""

from argparse import ArgumentParser, Namespace

import numpy as np

from lorabench.adapters import LAYOUTS
from lorabench.commands.frame import Outcome
from lorabench.commands.options import path_name, positive_int
from lorabench.zoo.commands.common import load_zoo, settings
from lorabench.zoo.export import export

__all__ = ["EXAMPLE", "INTERRUPTED", "add_arguments", "run"]

EXAMPLE = "python -m lorabench.zoo export glyphs out --format peft dataset.init=independent"
INTERRUPTED = "run the same command with --overwrite to write everything"


def add_arguments(parser: ArgumentParser) -> None:
    """The options of `export`."""
    parser.usage = "%(prog)s DATASET DIR [--format F] [--overwrite] [--limit N] [--json] [dataset.KEY=VALUE ...]"
    parser.add_argument("dataset", metavar="DATASET", help="name of a data set's yaml, such as glyphs")
    parser.add_argument("folder", metavar="DIR", type=path_name, help="a new or empty folder")
    parser.add_argument("--format", choices=LAYOUTS, default="diffusers", help="layout of the files")
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that is not empty")
    parser.add_argument("--limit", metavar="N", type=positive_int, help="the first N adapters alone")
    parser.set_defaults(more=[])


def run(args: Namespace) -> Outcome:
    """Write the files."""
    zoo = load_zoo(args.dataset, settings(args))
    if args.limit is not None:
        zoo = zoo.rows(np.arange(min(args.limit, len(zoo))))
    labels = export(zoo, args.folder, args.format, args.overwrite)
    data = {"adapters": len(zoo), "dataset": zoo.name, "folder": args.folder, "labels": labels}
    return Outcome(data, f"{len(zoo)} adapters of {zoo.name} are in {args.folder}, their labels in {labels}")
