"""What the adapters of a folder are, by the names of its files alone: nothing is opened, and torch is not needed."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lorabench.adapters.reading.beside import CONFIG
from lorabench.adapters.reading.opening import ADAPTER_SUFFIXES, FOLDER_FILES
from lorabench.errors import LorabenchError

__all__ = ["AdapterFiles", "AdapterPlace", "adapter_files"]

_STATE = re.compile(r"(optimizer|scheduler|scaler|training_args|rng_state|random_states)(_\d+)*\.\w+")


@dataclass(frozen=True)
class AdapterPlace:
    """One adapter.

    Attributes:
        path: what it is called by: its own folder where it has one, else its file.
        file: the file with its tensors.
    """

    path: Path
    file: Path


@dataclass
class AdapterFiles:
    """What lies below a folder, each list by path.

    Attributes:
        adapters: one entry an adapter.
        beside: further files in an adapter's own folder whose names end like an adapter's, such as the same weights as
            a pickle.
        state: files in which a trainer keeps its own state: `optimizer.pt`, `training_args.bin` and the like. Their
            names end like an adapter's, they hold none, and they may be many times as large.
    """

    adapters: list[AdapterPlace] = field(default_factory=list)
    beside: list[Path] = field(default_factory=list)
    state: list[Path] = field(default_factory=list)

    @property
    def files(self) -> list[Path]:
        """The adapters' files and those beside them."""
        return sorted([*(adapter.file for adapter in self.adapters), *self.beside])


def adapter_files(folder: Path) -> AdapterFiles:
    """The adapters below a folder, at any depth.

    A folder with a file that PEFT, diffusers or MLX give a fixed name is one adapter where an adapter_config.json lies
    beside it, or no other adapter; in any other folder each file whose name ends like an adapter's is one. Links to
    folders are not followed, and names that begin with a dot are passed over: what is half-written is called so.

    Raises:
        LorabenchError: there is no such folder.
    """
    if not folder.is_dir():
        raise LorabenchError(f"{folder}: no such folder. Check the spelling of the path.")
    below = AdapterFiles()
    for place, files, configured in _folders(folder):
        below.state += [file for file in files if _STATE.fullmatch(file.name)]
        files = [file for file in files if not _STATE.fullmatch(file.name)]
        main = next((place / name for name in FOLDER_FILES if place / name in files), None)
        if main is not None and (configured or len({file.stem for file in files}) == 1):
            below.adapters.append(AdapterPlace(place, main))
            below.beside += [file for file in files if file != main]
        else:
            below.adapters += [AdapterPlace(file, file) for file in files]
    below.adapters.sort(key=lambda adapter: adapter.path)
    below.beside.sort()
    below.state.sort()
    return below


def _folders(folder: Path) -> Iterator[tuple[Path, Sequence[Path], bool]]:
    """Each folder, its files whose names end like an adapter's, and whether it has an adapter_config.json."""
    for place, below, names in os.walk(folder):
        below[:] = [name for name in below if not name.startswith(".")]
        files = [name for name in names if name.endswith(ADAPTER_SUFFIXES) and not name.startswith(".")]
        yield Path(place), [Path(place, name) for name in files], CONFIG in names
