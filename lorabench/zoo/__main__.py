"""`python -m lorabench.zoo`: what can be done with a zoo outside a run."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, InstantiationException, OverrideParseException
from hydra.utils import instantiate
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from lorabench.adapters import LAYOUTS
from lorabench.conf_dir import conf_dir
from lorabench.errors import LorabenchError
from lorabench.zoo.export import export
from lorabench.zoo.store import Zoo

__all__ = ["main"]

_CONFIG = "config"


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Leave with code 2."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0, or 2 after one line on standard error where the user made a mistake."""
    parser = _parser()
    options, overrides = parser.parse_known_args(arguments)
    wrong = [text for text in overrides if text.startswith("-") or "=" not in text]
    if wrong:
        parser.error(f"unknown argument {wrong[0]!r}; a setting of the data set is written dataset.key=value")
    if options.limit is not None and options.limit < 1:
        parser.error(f"--limit {options.limit}: at least 1 is needed")
    try:
        zoo = _load(options.dataset, overrides)
        if options.limit is not None:
            zoo = zoo.rows(np.arange(min(options.limit, len(zoo))))
        labels = export(zoo, options.folder, options.format, options.overwrite)
    except KeyboardInterrupt:
        sys.stderr.write(f"{parser.prog}: interrupted; run the same command with --overwrite to write everything\n")
        return 130
    except (LorabenchError, HydraException, OmegaConfBaseException) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        sys.stderr.write(f"{parser.prog}: {_one_line(error)}\n")
        return 2
    sys.stdout.write(f"{len(zoo)} adapters of {zoo.name} are in {options.folder}, their labels in {labels}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m lorabench.zoo", description="Zoos of LoRA adapters.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser(
        "export",
        help="write a zoo's adapters to files, with a labels.csv",
        description="Write a zoo's adapters to files, with a labels.csv that dataset=folder reads back.",
        epilog="example: python -m lorabench.zoo export glyphs out --format peft dataset.init=independent",
        usage="%(prog)s DATASET DIR [--format F] [--overwrite] [--limit N] [dataset.KEY=VALUE ...]",
        allow_abbrev=False,
    )
    command.add_argument("dataset", metavar="DATASET", help="name of a data set's yaml, such as glyphs")
    command.add_argument("folder", metavar="DIR", type=Path, help="a new or empty folder")
    command.add_argument("--format", choices=LAYOUTS, default="diffusers", help="default: diffusers")
    command.add_argument("--overwrite", action="store_true", help="write into a folder that is not empty")
    command.add_argument("--limit", metavar="N", type=int, help="the first N adapters alone")
    return parser


def _load(dataset: str, overrides: Sequence[str]) -> Zoo:
    """The zoo that `dataset=...` and further overrides describe."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose(_CONFIG, [f"dataset={dataset}", *overrides])
    zoo = instantiate(config.dataset, _convert_="all")
    if not isinstance(zoo, Zoo):
        raise LorabenchError(f"dataset={dataset}: gives a {type(zoo).__name__}. Correct its _target_.")
    return zoo


def _one_line(error: BaseException) -> str:
    """What the user can do something about, without Hydra's and OmegaConf's frame around it."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, LorabenchError):
        return str(error)
    if isinstance(error, OverrideParseException):
        return f"{error.override!r} is no setting ({' '.join(error.message.splitlines()[:1])})"
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} has no value; add {error.full_key}=VALUE"
    text = " ".join(str(error).split()).split(" Config search path:")[0]
    return f"{text} (with HYDRA_FULL_ERROR=1 the traceback is shown)"


if __name__ == "__main__":
    sys.exit(main())
