"""Models that the server was given: folders of `lorabench export`, which requests call by name."""

from collections.abc import Sequence
from pathlib import Path

from lorabench.errors import LorabenchError
from lorabench.predict import ARRAYS, CONFIG
from lorabench.web.tools import Input

__all__ = ["Models"]


class Models:
    """All of them; they are only read.

    Args:
        folders: of models, or above them.

    Raises:
        LorabenchError: one of them holds no model.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = tuple(folder.resolve() for folder in folders)
        for folder in self._folders:
            if not _below(folder):
                raise LorabenchError(
                    f"--models {folder}: no model in it. Make one with `lorabench export RUN NAME DIR`, and give DIR."
                )

    def all(self) -> list[Input]:
        """By name; of two of one name the first is called so, and the other by its whole path below the root."""
        found: dict[str, Path] = {}
        for folder in self._folders:
            for place in _below(folder):
                name = place.name if place.name not in found else place.as_posix().strip("/").replace("/", "-")
                found.setdefault(name, place)
        return [Input(place, name) for name, place in sorted(found.items())]

    def find(self, name: str) -> Input:
        """The model of a name.

        Raises:
            LorabenchError: there is none.
        """
        there = {one.name: one for one in self.all()}
        if name not in there:
            listed = f"There are {', '.join(there)}" if there else "The server was given none (--models DIR)"
            raise LorabenchError(f"there is no model {name[:40]!r} here. {listed}.")
        return there[name]


def _below(folder: Path) -> list[Path]:
    """The folder itself where it is a model, or those in it that are."""
    places = [folder, *sorted(folder.iterdir())] if folder.is_dir() else []
    found = [place for place in places if all((place / name).is_file() for name in (ARRAYS, CONFIG))]
    return found[:1] if found[:1] == [folder] else found
