"""`python -m lorabench.adapters COMMAND`: the toolkit for one adapter file."""

import sys
from collections.abc import Sequence

from lorabench.commands.frame import Program

__all__ = ["COMMANDS", "main", "program"]

COMMANDS = {
    "inspect": "what a file is, where it comes from, and whether it is whole; a folder as one table",
    "pca": "principal components of every layer's weights, or of several adapters",
    "resize": "another rank: by SVD to a rank, an energy or a size, or simply padded or cut",
    "merge": "several adapters into one, exactly or by TIES, DARE and others",
    "compare": "two adapters module by module, or the duplicates in a folder",
    "convert": "the layouts of PEFT, diffusers, kohya and ComfyUI into one another",
    "interpolate": "files between two adapters of a run, by its variational autoencoder",
    "audit": "does it use the rank it was given, while it trained and after; alerts, a page, SARIF",
    "advise": "which ranks it needs, module by module, beside uniform and shuffled ones",
    "plot": "pictures of weights, spectra, ranks and depth",
}
"""Every command, a module of `commands` each, and what it is for."""


def program(name: str = "lorabench-adapter") -> Program:
    """The program, for those who want its answers and not its prints."""
    return Program(name, "One LoRA adapter file, from any trainer.", COMMANDS, "lorabench.adapters.commands")


def main(argv: Sequence[str] | None = None, name: str = "lorabench-adapter") -> int:
    """Run one command; see `lorabench.commands.frame` for what it prints and returns."""
    return program(name).run(argv)


if __name__ == "__main__":
    sys.exit(main())
