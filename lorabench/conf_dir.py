"""Where the yaml files are: beside the package in a checkout, inside it in the wheel."""

from pathlib import Path

from lorabench.errors import LorabenchError

__all__ = ["conf_dir"]


def conf_dir() -> Path:
    """The folder with the Hydra configuration.

    Raises:
        LorabenchError: neither place has it, so the installation is not whole.
    """
    package = Path(__file__).resolve().parent
    for place in (package / "conf", package.parent / "conf"):
        if (place / "dataset").is_dir():
            return place
    raise LorabenchError(f"no conf folder in {package} or beside it. Install lorabench again.")
