"""`python -m lorabench.zoo COMMAND`: what can be done with a zoo outside a run."""

import sys
from collections.abc import Sequence

from lorabench.commands.frame import Program

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "check": "whether a zoo measures what it says: what its pictures, its weights and its recipe tell",
    "export": "write a zoo's adapters to files, with a labels.csv that dataset=folder reads back",
}
"""Every command, a module of `commands` each, and what it is for."""


def main(argv: Sequence[str] | None = None, name: str = "python -m lorabench.zoo") -> int:
    """Run one command; see `lorabench.commands.frame` for what it prints and returns."""
    return Program(name, "Zoos of LoRA adapters.", COMMANDS, "lorabench.zoo.commands").run(argv)


if __name__ == "__main__":
    sys.exit(main())
