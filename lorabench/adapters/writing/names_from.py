"""The dotted names of a base model's modules, by any file that names them: an adapter, a checkpoint, a list of keys."""

import re
from collections.abc import Iterable
from pathlib import Path

from lorabench.adapters.names.identity import flattened, split_part, unwrap
from lorabench.adapters.reading.header import (
    ADAPTER_SUFFIXES,
    explain_reading,
    find_adapter_file,
    parse_json,
    read_header,
)
from lorabench.adapters.reading.naming import parse_key
from lorabench.errors import LorabenchError

__all__ = ["names_from"]

_LARGEST = 64_000_000  # bytes of a list of keys


def names_from(path: Path | str) -> dict[str, str]:
    """Flattened name -> dotted name, without parts of a pipeline, of all modules that a file names in dots.

    Args:
        path: an adapter or a checkpoint (of safetensors the header alone is read), a folder with an adapter, a JSON
            list or object whose entries or keys are names (an index with its `weight_map` too), or a text with a name
            a line.

    Raises:
        LorabenchError: it cannot be read, or names no module in dots.

    Example:
        >>> import json, tempfile
        >>> file = Path(tempfile.mkdtemp()) / "keys.json"
        >>> _ = file.write_text(json.dumps(["weird_block.3.to_q.weight"]))
        >>> names_from(file)
        {'weird_block_3_to_q': 'weird_block.3.to_q'}
    """
    path = Path(path)
    dotted: dict[str, set[str]] = {}
    for key in _keys(path):
        for name in (parse_key(key).module, re.sub(r"\.(weight|bias|alpha)$", "", unwrap(key).name)):
            rest = split_part(name)[1]
            if "." in rest:
                dotted.setdefault(flattened(rest), set()).add(rest)
    names = {flat: next(iter(rests)) for flat, rests in dotted.items() if len(rests) == 1}
    if not names:
        raise LorabenchError(
            f"--names-from {path}: it names no module in dots. Give an adapter, a checkpoint or a list of keys of the "
            "same base model."
        )
    return names


def _keys(path: Path) -> Iterable[str]:
    with explain_reading(path):
        if path.is_dir():
            path = find_adapter_file(path)
        size = path.stat().st_size
        if path.suffix == ".safetensors":
            return read_header(path).tensors
        if path.suffix in ADAPTER_SUFFIXES:
            from lorabench.adapters.reading.container import read_container  # torch, which a header needs not

            return read_container(path).tensors
        if path.suffix not in (".json", ".txt"):
            known = ", ".join((*ADAPTER_SUFFIXES, ".json"))
            raise LorabenchError(f"--names-from {path}: a file that ends in {known} or .txt is needed.")
        if size > _LARGEST:
            raise LorabenchError(f"--names-from {path}: {_LARGEST} bytes are the most.")
        text = path.read_bytes().decode("utf-8-sig", "replace")
    if path.suffix == ".txt":
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        listed = parse_json(text)
    except ValueError as error:
        raise LorabenchError(f"--names-from {path}: not valid JSON ({error}). Repair it.") from error
    listed = listed.get("weight_map", listed) if isinstance(listed, dict) else listed
    if not isinstance(listed, dict | list):
        raise LorabenchError(f"--names-from {path}: a list or an object of names is needed.")
    return [str(entry) for entry in listed]
