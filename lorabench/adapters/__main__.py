"""`python -m lorabench.adapters COMMAND`: the toolkit for one adapter file."""

import argparse
import contextlib
import importlib
import json
import os
import sys
from collections.abc import Sequence

from lorabench.adapters.commands.common import Outcome, plain
from lorabench.errors import LorabenchError

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "inspect": "what a file is, where it comes from, and whether it is whole; a folder as one table",
    "pca": "principal components of every layer's weights, or of several adapters",
    "resize": "another rank: by SVD to a rank, an energy or a size, or simply padded or cut",
    "merge": "several adapters into one, exactly or by TIES, DARE and others",
    "compare": "two adapters module by module, or the duplicates in a folder",
    "convert": "PEFT, diffusers and kohya layouts into one another",
    "plot": "pictures of weights, spectra, ranks and depth",
}
"""Every command, a module of `commands` each, and what it is for."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Its answer goes to stdout, as text or, with `--json`, as JSON. Where it fails, one line goes to stderr, and with
    `--json` {"error": "..."} goes to stdout as well.

    Returns:
        0; 1 where the input cannot be used or something in it is wrong; 130 if interrupted. argparse leaves with 2
        on wrong usage (see `commands.common`), and says it on stderr alone.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="lorabench-adapter", description="One LoRA adapter file, from any trainer.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, what in COMMANDS.items():
        one = commands.add_parser(name, help=what, description=f"{name}: {what}.", formatter_class=_Formatter)
        if given[:1] == [name]:  # no other command's options are needed
            module = importlib.import_module(f"lorabench.adapters.commands.{name}")
            module.add_arguments(one)
            one.epilog = f"example:\n  {module.EXAMPLE}"
            one.add_argument("--json", action="store_true", help="print JSON for machines")
    args, unknown = parser.parse_known_args(given)
    if unknown:  # `parse_args` would show the usage of the whole, not of the command
        commands.choices[args.command].error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        outcome: Outcome = importlib.import_module(f"lorabench.adapters.commands.{args.command}").run(args)
    except LorabenchError as error:
        if args.json:
            _say(json.dumps({"error": str(error)}))
        sys.stderr.write(f"lorabench-adapter {args.command}: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"lorabench-adapter {args.command}: interrupted; nothing half-written was left\n")
        return 130
    said = _say(json.dumps(plain(outcome.data), indent=1, allow_nan=False) if args.json else outcome.text)
    return 0 if said and outcome.ok else 1


class _Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """The example keeps its lines; defaults that say something are shown."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default in (None, False, [], ()) or "default" in (action.help or "")
        return action.help if silent else super()._get_help_string(action)


def _say(text: str) -> bool:
    """Whether the answer could be given: it cannot where stdout is a file on a full disk."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except OSError as error:
        with contextlib.suppress(OSError):  # Python must not complain of it once more at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # `| head`: nobody reads on, and nothing is wrong
            sys.stderr.write(f"lorabench-adapter: cannot write the answer: {error.strerror}\n")
            return False
    return True


if __name__ == "__main__":
    sys.exit(main())
