"""`lorabench dashboard`: makes a W&B workspace over the runs of a project, or writes its definition."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import Any

import wandb
from wandb.sdk.lib.service.service_connection import WandbApiFailedError

from lorabench.commands.frame import Outcome, run_single
from lorabench.commands.options import path_name
from lorabench.dashboard.workspace import definition_of, workspace_for
from lorabench.errors import LorabenchError, explain_writing
from lorabench.storage import replace_file
from lorabench.text import counted, to_json
from lorabench.tracking.server import address, has_key

__all__ = ["EXAMPLE", "add_arguments", "main", "run"]

EXAMPLE = "lorabench dashboard --entity my-team --project lorabench"
INTERRUPTED = "W&B may have the workspace all the same"
_DESCRIPTION = (
    "Make a Weights & Biases workspace that compares the runs of logger=wandb: representations by top_k, layer "
    "importance, cost against accuracy, learning curves, failures. With --json or --out nothing is sent: the "
    "workspace's definition is printed or written."
)


def add_arguments(parser: ArgumentParser) -> None:
    """The options of `dashboard`."""
    parser.add_argument("--entity", metavar="NAME", required=True, help="an account or a team")
    parser.add_argument("--project", metavar="NAME", default="lorabench", help="of the runs, as logger.project")
    parser.add_argument("--out", metavar="FILE", type=path_name, help="write the definition there")


def run(args: Namespace) -> Outcome:
    """Make the workspace, or say what it would be."""
    workspace = workspace_for(args.entity, args.project)
    data = definition_of(workspace)
    lines = [f"{section.name}: {counted(len(section.panels), 'panel')}" for section in workspace.sections]
    if args.out is not None:
        with explain_writing(args.out, "Give another --out."):
            replace_file(args.out, f"{to_json(data, 1)}\n")
        return Outcome(data, "\n".join([*lines, f"Written to {args.out}; nothing was sent"]))
    if args.json:
        return Outcome(data, "")
    return Outcome(data, "\n".join([*lines, f"Made: {_saved(workspace)}"]))


def _saved(workspace: Any) -> str:
    """Address of the workspace, once W&B has it.

    Raises:
        LorabenchError: there is no key, or W&B refuses.
    """
    if not has_key():
        raise LorabenchError("there is no W&B key: set WANDB_API_KEY or run `wandb login`; --json and --out need none")
    try:
        return str(workspace.save().url)
    except (wandb.Error, WandbApiFailedError) as error:
        raise LorabenchError(
            f"W&B at {address()} refuses a workspace in {workspace.entity}/{workspace.project}: {error}. Check that "
            "both are spelled as there, that a run has been logged there, and that the key may write to them"
        ) from error


def main(argv: Sequence[str] | None = None, name: str = "python -m lorabench.dashboard") -> int:
    """Run it; see `lorabench.commands.frame` for what it prints and returns."""
    return run_single(name, _DESCRIPTION, sys.modules[__name__], argv)


if __name__ == "__main__":
    sys.exit(main())
