"""What the commands share: a data set by its name."""

import os
from argparse import Namespace
from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, InstantiationException, OverrideParseException
from hydra.utils import instantiate
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from lorabench.conf_dir import conf_dir
from lorabench.errors import LorabenchError
from lorabench.zoo.store import Zoo

__all__ = ["load_zoo", "settings"]

_CONFIG = "config"


def settings(args: Namespace, given: Sequence[str] = ()) -> list[str]:
    """The words that set something of the data set; wrong usage where one of `args.more` does not."""
    wrong = [word for word in args.more if word.startswith("-") or "=" not in word]
    if wrong:
        args.refuse(f"unknown argument {wrong[0]!r}; a setting of the data set is written dataset.key=value")
    return [*given, *args.more]


def load_zoo(dataset: str, overrides: Sequence[str]) -> Zoo:
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
