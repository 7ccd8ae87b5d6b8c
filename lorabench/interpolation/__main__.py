"""`python -m lorabench.interpolation`: adapter files between two adapters of a run."""

import sys
from collections.abc import Sequence

from lorabench.commands.frame import run_command
from lorabench.interpolation import command

__all__ = ["main"]


def main(argv: Sequence[str] | None = None, name: str = "python -m lorabench.interpolation") -> int:
    """Run the command; see `lorabench.commands.frame` for what it prints and returns."""
    what = "Write adapter files on the straight line between two adapters, in the latent space of a VAE."
    return run_command(name, what, command, argv)


if __name__ == "__main__":
    sys.exit(main())
