"""A folder of adapter files as one table, one row a file, of their headers alone."""

import gc
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lorabench.adapters.metadata.inspection import Inspection, inspect
from lorabench.adapters.reading.folders import adapter_files
from lorabench.adapters.reading.header import FOLDER_FILES
from lorabench.errors import LorabenchError
from lorabench.progress import bar, track
from lorabench.storage import write_chunks
from lorabench.text import to_json

__all__ = ["COLUMNS", "is_one_adapter", "row_of", "scan", "write_rows"]

COLUMNS: Mapping[str, type] = {
    "file": str, "size": int, "valid": bool, "error": str, "warnings": list, "format": str, "naming": list,
    "method": str, "base_model": str, "family": str, "rank": int, "ranks": list, "alpha": float, "modules": int,
    "parts": list, "target_modules": list, "parameters": int, "dtypes": list, "learning_rate": float,
    "batch_size": int, "epochs": int, "steps": int, "images": int, "trainer": str, "trigger_words": list,
    "tags": list, "title": str, "author": str, "license": str, "date": str, "model_hash": str, "unsupported": list,
}  # fmt: skip
"""Name and type of every column; a list is one of strings, and anything may be missing."""

_ENOUGH, _CHUNK = 100, 16  # a process takes 0.1 s to start, a file 0.01 s to read
_TAKEN = {
    "model_info": ("base_model", "family", "title", "author", "license", "date"),
    "training_info": ("method", "learning_rate", "batch_size", "epochs", "steps", "images", "trainer", "trigger_words"),
    "architecture_info": ("rank", "alpha", "modules", "parameters"),
    "file_info": ("size", "format", "naming"),
}


def scan(
    folder: Path | str, *, strict: bool = False, hashes: bool = False, jobs: int | None = 1
) -> Iterator[dict[str, Any]]:
    """One row for every adapter file below a folder, in the order of their paths.

    Headers alone are read, so hashes are not checked unless asked for. A file that cannot be read has a row too:
    "valid" is False and "error" says why. Links to folders are not followed, and what trainers keep for themselves
    is passed over (see `adapter_files`).

    Args:
        folder: where to look, at any depth.
        strict: whether a tensor that cannot be analysed makes a file invalid.
        hashes: whether to read every file whole and check the hashes that it bears.
        jobs: processes to share the work; None: one a processor where there are enough files. They start by
            importing the script anew, which must then keep its work below `if __name__ == "__main__":`.

    Yields:
        A dict with every key of `COLUMNS`; None where nothing says a value.

    Raises:
        LorabenchError: there is no such folder, or one of the processes was killed.

    Example:
        >>> import tempfile, torch
        >>> from lorabench.adapters import LoraModule, save
        >>> file = Path(tempfile.mkdtemp()) / "a.safetensors"
        >>> _ = save(file, {"unet.mid_block.to_q": LoraModule(torch.eye(2, 5), torch.eye(4, 2))}, "diffusers-peft")
        >>> [(row["modules"], row["rank"], row["valid"]) for row in scan(file.parent)]
        [(1, 2, True)]
    """
    root = Path(folder)
    paths = adapter_files(root).files
    if jobs is None:
        jobs = max(1, min(os.cpu_count() or 1, len(paths) // _ENOUGH))
    row = partial(row_of, root=root, strict=strict, hashes=hashes)
    if jobs == 1:
        yield from map(row, track(paths, "Reading headers"))
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    # A fork would copy locks that torch's threads hold. Headers are many small objects without cycles, so looking
    # for cycles seldom saves a fifth of the time.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=gc.set_threshold, initargs=(200_000,)) as pool:
        try:
            with bar("Reading headers", len(paths)) as shown:
                for read in pool.map(row, paths, chunksize=_CHUNK):
                    shown.advance()
                    yield read
        except BrokenProcessPool as error:
            raise LorabenchError(f"{root}: a helper process was killed. Try again with one job.") from error


def row_of(path: Path, root: Path, strict: bool = False, hashes: bool = False) -> dict[str, Any]:
    """The row of one file, as `scan` yields it.

    Args:
        path: the file.
        root: above it; the column "file" is relative to it.
        strict: whether a tensor that cannot be analysed makes the file invalid.
        hashes: whether to read the file whole and check the hashes that it bears.
    """
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row["file"] = path.relative_to(root).as_posix()
    try:
        row |= _row(inspect(path, strict=strict, hashes=None if hashes else False))
    except LorabenchError as error:
        row |= {"valid": False, "error": str(error).removeprefix(f"{path}: "), "size": _size(path)}
    return row


def is_one_adapter(folder: Path) -> bool:
    """Whether a folder is one adapter of PEFT, diffusers or MLX, and not a library of them."""
    files = adapter_files(folder).files
    return bool(files) and all(file.parent == folder and file.name in FOLDER_FILES for file in files)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a table, whole or not at all; its kind by the name: .jsonl, .csv or .parquet.

    In CSV the entries of a list are joined by "; ".

    Raises:
        LorabenchError: another ending, or the disk is full.
    """
    writers = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
    if path.suffix not in writers:
        raise LorabenchError(f"--output {path}: the name must end in {', '.join(writers)}.")
    write_chunks(path, writers[path.suffix](rows))


def _row(found: Inspection) -> dict[str, Any]:
    row = {
        name: getattr(found, block)[name]["value"]
        for block, names in _TAKEN.items()
        for name in names
        if name in getattr(found, block)
    }
    built, judged = found.architecture_info, found.validation_info
    return {name: _as(COLUMNS[name], value) for name, value in row.items()} | {
        "valid": judged["valid"],
        "error": "; ".join(judged["errors"]) or None,
        "warnings": judged["warnings"],
        "ranks": [str(rank) for rank in built["ranks"]["value"]],
        "parts": list(built["modules_by_part"]["value"]),
        "target_modules": list(built["target_modules"]["value"]),
        "dtypes": list(built["dtypes"]["value"]),
        "tags": list(found.training_info.get("dataset_tags", {"value": ()})["value"]),
        "model_hash": found.raw_metadata.get("sshs_model_hash"),
        "unsupported": list(judged["unsupported"]),
    }


def _as(kind: type, value: Any) -> Any:
    """A value in its column's type, None where it does not fit: the trainer may have left anything."""
    if kind is list:
        return [str(one) for one in value] if isinstance(value, list) else [str(value)]
    if kind is str:
        return str(value)
    # a whole number of any length may stand in adapter_config.json
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**63:
        return None
    return float(value) if kind is float else int(value) if float(value).is_integer() else None


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _jsonl(rows: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    for row in rows:
        yield f"{to_json(row)}\n".encode()


def _csv(rows: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    import csv
    import io

    for row in (dict(zip(COLUMNS, COLUMNS, strict=True)), *rows):
        line = io.StringIO()
        csv.writer(line).writerow(_joined(row[name]) for name in COLUMNS)
        yield line.getvalue().encode("utf-8", "backslashreplace")


def _parquet(rows: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    import pyarrow as pa
    from pyarrow import parquet

    kinds = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(), list: pa.list_(pa.string())}
    schema = pa.schema([(name, kinds[kind]) for name, kind in COLUMNS.items()])
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_pylist([_whole(row) for row in rows], schema=schema), sink)
    yield sink.getvalue().to_pybytes()


def _joined(value: Any) -> object:
    return "; ".join(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _whole(value: Any) -> Any:
    """The same, with half characters spelt out, which UTF-8 cannot say."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {key: _whole(one) for key, one in value.items()}
    return [_whole(one) for one in value] if isinstance(value, list) else value
