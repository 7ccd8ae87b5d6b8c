"""`export`: a zoo's adapters as files."""

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

import numpy as np
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, InstantiationException, OverrideParseException
from hydra.utils import instantiate
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from lorabench.adapters import LAYOUTS
from lorabench.commands.frame import Outcome
from lorabench.commands.options import path_name, positive_int
from lorabench.conf_dir import conf_dir
from lorabench.errors import LorabenchError
from lorabench.zoo.export import export
from lorabench.zoo.store import Zoo

__all__ = ["EXAMPLE", "INTERRUPTED", "add_arguments", "run"]

EXAMPLE = "python -m lorabench.zoo export glyphs out --format peft dataset.init=independent"
INTERRUPTED = "run the same command with --overwrite to write everything"

_CONFIG = "config"


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
    wrong = [word for word in args.more if word.startswith("-") or "=" not in word]
    if wrong:
        args.refuse(f"unknown argument {wrong[0]!r}; a setting of the data set is written dataset.key=value")
    zoo = _load(args.dataset, args.more)
    if args.limit is not None:
        zoo = zoo.rows(np.arange(min(args.limit, len(zoo))))
    labels = export(zoo, args.folder, args.format, args.overwrite)
    data = {"adapters": len(zoo), "dataset": zoo.name, "folder": args.folder, "labels": labels}
    return Outcome(data, f"{len(zoo)} adapters of {zoo.name} are in {args.folder}, their labels in {labels}")


def _load(dataset: str, overrides: Sequence[str]) -> Zoo:
    """The zoo that `dataset=...` and further overrides describe.

    Raises:
        LorabenchError: they describe none.
    """
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            config = compose(_CONFIG, [f"dataset={dataset}", *overrides])
        zoo = instantiate(config.dataset, _convert_="all")
    except (HydraException, OmegaConfBaseException) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        raise LorabenchError(_explained(error)) from error
    if not isinstance(zoo, Zoo):
        raise LorabenchError(f"dataset={dataset}: gives a {type(zoo).__name__}. Correct its _target_.")
    return zoo


def _explained(error: BaseException) -> str:
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
