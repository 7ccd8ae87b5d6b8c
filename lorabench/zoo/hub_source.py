"""Where a data set of adapters comes from: the hub, what `save_to_disk` wrote, or parquet files."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from lorabench.errors import LorabenchError, explain_disk_errors
from lorabench.zoo.hub_files import HUB_ERRORS, why_no_hub
from lorabench.zoo.hub_subset import why_no_subset

__all__ = ["Part", "from_folder", "from_hub"]

_SPLITS = {
    "train": 0,
    "training": 0,
    "validation": 1,
    "valid": 1,
    "val": 1,
    "dev": 1,
    "test": 2,
    "testing": 2,
}
_SPLIT_NAME = re.compile(rf"(?:^|[-_. /])({'|'.join(_SPLITS)})(?=[-_. /]|$)")
_ROOM = "Free some space, or set cache_dir=DIR (or LORABENCH_CACHE) to a roomier place."
_TWO_WAYS = (
    "Two ways on without it: dataset.path=DIR reads a copy on this disk (what save_to_disk wrote, or parquet "
    "files), and dataset=glyphs builds a zoo of real adapters here."
)


@dataclass(frozen=True)
class Part:
    """A data set, and the source's split that it is: 0 train, 1 validation, 2 test, None without any."""

    dataset: Any
    split: int | None = None

    def table(self, cache_dir: Path) -> pa.Table:
        """The rows as an Arrow table; what `select` or `shuffle` picked is written out once."""
        picked = self.dataset
        if picked._indices is not None:  # noqa: SLF001  # there is no public way to ask
            folder = cache_dir / "datasets"
            with explain_disk_errors(folder, _ROOM):
                folder.mkdir(parents=True, exist_ok=True)
                file = folder / f"picked-{fingerprint_of(picked)}.arrow"
                picked = picked.flatten_indices(cache_file_name=str(file))
        return picked.data.table


def fingerprint_of(dataset: Any) -> str:
    """The data set's own fingerprint, which `datasets` changes with every change of its content."""
    return str(dataset._fingerprint)  # noqa: SLF001  # there is no public way to ask


def from_hub(repository: str, subset: str | None = None) -> list[Part]:
    """The data set `repository` of the hub, or its part `subset`, or the copy of it that `datasets` keeps.

    Raises:
        LorabenchError: no network and no copy, no such data set or part of it, or a full disk.
    """
    reached = why_no_hub(datasets.config.HF_ENDPOINT)
    before = datasets.config.HF_HUB_OFFLINE
    # Without this, five retries pass before `datasets` looks for its copy.
    datasets.config.HF_HUB_OFFLINE = before or reached is not None
    try:
        with _explained(repository, f"dataset {repository}", leave=HUB_ERRORS):
            return _parts(_loaded(repository, subset, reached), repository)
    except DatasetNotFoundError as error:
        raise LorabenchError(f"{error} Check dataset.repository. {_TWO_WAYS}") from error
    except HUB_ERRORS as error:
        why = reached or f"{type(error).__name__}: {error}"
        raise LorabenchError(f"cannot load {repository} from the hub ({why}). {_TWO_WAYS}") from error
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _loaded(repository: str, subset: str | None, no_network: str | None) -> Any:
    try:
        return datasets.load_dataset(*filter(None, (repository, subset)))
    except ValueError as error:
        why = why_no_subset(error, repository, subset, no_network)
        if why is None:
            raise
        raise LorabenchError(why) from error


def from_folder(path: Path, cache_dir: Path) -> list[Part]:
    """The data set at `path`: a folder of `save_to_disk`, parquet files in a folder, or one parquet file.

    Raises:
        LorabenchError: nothing is there, it is neither, a file is damaged, or the disk is full.
    """
    if not path.exists():
        raise LorabenchError(f"dataset.path={path} does not exist; give a folder of save_to_disk or of parquet files")
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        with _explained(str(path), str(path)):
            return _parts(datasets.load_from_disk(str(path), keep_in_memory=False), str(path))
    files = [path] if path.suffix == ".parquet" and path.is_file() else sorted(path.rglob("*.parquet"))
    if not files:
        raise LorabenchError(
            f"dataset.path={path} is no data set: it has neither the state.json or dataset_dict.json that "
            "save_to_disk writes (perhaps it was interrupted) nor any *.parquet file. For a folder of "
            "adapter files use dataset=folder."
        )
    for file in files:
        _check_parquet(file)
    with _explained(str(path), str(cache_dir)):
        # A file without rows is no fault of the others, but `datasets` cannot read it.
        files = [file for file in files if pq.read_metadata(file).num_rows]
    if not files:
        raise LorabenchError(f"{path}: the data set has no rows; it needs one adapter a row")
    with _explained(str(path), str(cache_dir)):
        found = datasets.load_dataset(
            "parquet", data_files=_by_split(files, path), cache_dir=str(cache_dir / "datasets")
        )
    return _parts(found, str(path))


def _parts(found: Any, origin: str) -> list[Part]:
    if not isinstance(found, datasets.DatasetDict):
        return [Part(found)]
    if len(found) == 1:
        return [Part(next(iter(found.values())))]
    unknown = [name for name in found if name not in _SPLITS]
    if unknown:
        raise LorabenchError(
            f"{origin}: split {unknown[0]!r} is not known; splits are called train, validation (val, valid, "
            "dev) and test. Rename it, or save one data set without splits."
        )
    return [Part(dataset, _SPLITS[name]) for name, dataset in found.items()]


def _by_split(files: list[Path], root: Path) -> dict[str, list[str]]:
    """Files by the split that their names tell, as on the hub (`data/train-00000-of-00002.parquet`)."""
    named: dict[str, list[str]] = {}
    for file in files:
        inside = file.relative_to(root).with_suffix("").as_posix() if file != root else file.stem
        told = _SPLIT_NAME.search(inside.lower())
        named.setdefault(told.group(1) if told else "", []).append(str(file))
    if "" in named and len(named) > 1:
        raise LorabenchError(
            f"{root}: {Path(named[''][0]).name} names no split, and other files do. Begin every file's name "
            "with train, validation or test, or none of them."
        )
    return {split or "train": named[split] for split in sorted(named, key=lambda split: _SPLITS.get(split, 0))}


def _check_parquet(file: Path) -> None:
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(64)
        stream.seek(max(size - 4, 0))
        tail = stream.read(4)
    if head.startswith(b"version https://git-lfs"):
        raise LorabenchError(f"{file} is a git-LFS pointer, not the file itself; fetch it with `git lfs pull`")
    if head[:4] != b"PAR1" or tail != b"PAR1":
        raise LorabenchError(f"{file} is no whole parquet file ({size} bytes); copy or download it again")


@contextmanager
def _explained(origin: str, written: str, leave: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn what `datasets` and Arrow raise on damaged files and full disks into one message."""
    try:
        with explain_disk_errors(Path(written), _ROOM):
            yield
    except DatasetGenerationError as error:
        cause = error.__cause__ or error
        with explain_disk_errors(Path(written), _ROOM):
            if isinstance(cause, OSError):
                raise cause from error
        raise LorabenchError(f"{origin}: {cause}. The files do not form one data set; write them again.") from error
    except leave:
        raise
    except FileNotFoundError as error:
        raise LorabenchError(f"{origin}: {error.filename or error} is missing; copy the data set again") from error
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        # Arrow's own have no number; the system's are no fault of the file.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise LorabenchError(f"{origin} is damaged ({error}); copy or write the data set again") from error
