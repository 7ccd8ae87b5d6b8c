"""`plot`: pictures of weights, spectra, ranks and depth."""

import argparse
from contextlib import ExitStack

from lorabench.adapters.drawing.kinds import ALL, KINDS, adapters_of, kind_module
from lorabench.commands.frame import Outcome
from lorabench.commands.options import path_name

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "lorabench-adapter plot adapter.safetensors --kind ranks -o ranks.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument("paths", nargs="+", type=path_name, metavar="FILE", help="an adapter; two for compare")
    parser.add_argument(
        "--kind", choices=(*KINDS, ALL), required=True, help="what to draw; all: every kind, into a folder"
    )
    parser.add_argument(
        "-o", "--out", type=path_name, required=True, metavar="PATH", help=".png, .svg; for all: a folder"
    )
    parser.add_argument("--modules", metavar="GLOB", help='weights of these, as "*attn2.to_k"; default: the strongest')
    parser.add_argument("--format", choices=("png", "svg"), help="of the pictures of --kind all; default: png")
    parser.add_argument("--force", action="store_true", help="replace pictures that are there already")
    parser.set_defaults(wrong_usage=parser.error)


def run(args: argparse.Namespace) -> Outcome:
    """Draw, and say what was written."""
    _check_usage(args)
    with ExitStack() as stack:
        renderer = None
        if args.kind == ALL:  # the processes that draw get ready while torch is imported here
            from lorabench.adapters.drawing.rendering import Processes

            renderer = stack.enter_context(Processes())
        from lorabench.adapters.drawing.plotting import plot
        from lorabench.adapters.reading.files import load

        adapters = [load(path) for path in args.paths]
        written = plot(
            adapters, args.kind, args.out, modules=args.modules, form=args.format or "png", force=args.force,
            renderer=renderer,
        )  # fmt: skip
    data = {
        "kind": args.kind,
        "pictures": written,
        "adapters": [
            {
                "file": adapter.path,
                "modules": len(adapter.modules),
                "unsupported": {kind: len(keys) for kind, keys in adapter.unsupported.items()},
            }
            for adapter in adapters
        ],
    }
    lines = [f"wrote {path}" for path in written]
    for adapter in adapters:
        lines += [f"not drawn, {kind}: {len(keys)} tensors of {adapter.path.name}"
                  for kind, keys in adapter.unsupported.items()]  # fmt: skip
    return Outcome(data, "\n".join(lines))


def _check_usage(args: argparse.Namespace) -> None:
    allowed = adapters_of(args.kind)
    if len(args.paths) not in allowed:
        wanted = " or ".join(map(str, allowed))
        args.wrong_usage(
            f"--kind {args.kind} draws {wanted} adapter{'' if wanted == '1' else 's'}, {len(args.paths)} came"
        )
    if args.modules is not None and args.kind != ALL and not kind_module(args.kind).PATTERN:
        args.wrong_usage(f"--modules chooses heat maps of weights; --kind {args.kind} draws all modules")
    if args.format is not None and args.kind != ALL:
        args.wrong_usage(f"--format is for --kind all; that of --kind {args.kind} is the ending of --out")
