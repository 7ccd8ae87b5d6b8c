"""Other metadata for a safetensors file whose tensors stay as they are, byte for byte, without torch."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lorabench.adapters.metadata.redaction import redact, redact_config
from lorabench.adapters.reading.beside import CONFIG, config_beside
from lorabench.adapters.reading.hashes import header_text, sshs_hashes
from lorabench.adapters.reading.header import (
    Header,
    explain_reading,
    find_adapter_file,
    first_look,
    read_header,
    read_json,
)
from lorabench.errors import LorabenchError, explain_writing
from lorabench.storage import refuse_overwriting, write_chunks, write_peft_folder

__all__ = ["Changes", "Edited", "edit", "foresee_edit"]

_CHUNK = 1 << 20
_HASHES = ("sshs_model_hash", "sshs_legacy_hash")


@dataclass(frozen=True)
class Changes:
    """What an edit does to the header.

    Attributes:
        removed: entries that go.
        changed: entry -> its value before (None: there was none) and then.
        anew: hashes that are computed anew as it is written.
    """

    removed: tuple[str, ...]
    changed: Mapping[str, tuple[str | None, str]]
    anew: tuple[str, ...] = ()


@dataclass(frozen=True)
class Edited:
    """What an edit did.

    Attributes:
        path: the file that was written.
        removed: entries that are gone.
        changed: entry -> its value before (None: there was none) and now.
        notes: what else there is to know, in words.
    """

    path: Path
    removed: tuple[str, ...]
    changed: Mapping[str, tuple[str | None, str]]
    notes: tuple[str, ...] = ()


def edit(
    path: Path | str,
    out: Path | str,
    *,
    values: Mapping[str, str] | None = None,
    unset: Sequence[str] = (),
    redacted: bool = False,
    force: bool = False,
) -> Edited:
    """Write a safetensors file again with other metadata: first redacted, then unset, then set.

    The tensors' bytes are copied as they lie. `sshs_model_hash` and `sshs_legacy_hash` are computed anew where the
    file bears them. The new file, or folder with adapter_config.json, appears in one step, and an interruption leaves
    what lay there.

    Args:
        path: a safetensors file, or a folder with one.
        out: the file to write, whose name ends in .safetensors; or a folder, new or empty, which gets the file
            under its name with the adapter_config.json beside it. With `force` a folder that holds these two alone
            is replaced whole.
        values: entry -> value.
        unset: entries to take away.
        redacted: whether to take away what tells of people, places and data (see `redaction`).
        force: whether `out` may be replaced, be it `path` itself.

    Raises:
        LorabenchError: the file is no safetensors file, an entry to take away is not there, a hash is to be set by
            hand, something lies at `out`, or the disk is full.

    Example:
        >>> import tempfile, torch
        >>> from lorabench.adapters import LoraModule, save
        >>> file = Path(tempfile.mkdtemp()) / "a.safetensors"
        >>> _ = save(file, {"unet.mid_block.to_q": LoraModule(torch.eye(2, 5), torch.eye(4, 2))}, "diffusers-peft")
        >>> _ = edit(file, file.with_name("b.safetensors"), values={"author": "me"})
        >>> from lorabench.adapters import read_table
        >>> read_table(file.with_name("b.safetensors")).metadata["author"]
        'me'
    """
    file, header = _header(path)
    with explain_writing(Path(out), "Give another --out."):
        target, config, notes = _places(file, Path(out), force, redacted)
    metadata = _edited(header, dict(values or {}), unset, redacted)
    bears = [key for key in _HASHES if key in metadata]
    if bears:
        anew = sshs_hashes(replace(header, metadata=metadata))
        metadata |= {key: anew[key] for key in bears}
    chunks = _file(header, metadata)
    whole = _all(next(chunks), chunks)  # what cannot be said is found before anything is written
    if config is None:
        write_chunks(target, whole)
    else:
        kept = json.dumps(redact_config(config) if redacted else config, indent=2)
        write_peft_folder(target.parent, {CONFIG: (f"{kept}\n".encode(),), target.name: whole})
    planned = _changes(header, metadata)
    return Edited(path=target, removed=planned.removed, changed=planned.changed, notes=notes)


def foresee_edit(
    path: Path | str, *, values: Mapping[str, str] | None = None, unset: Sequence[str] = (), redacted: bool = False
) -> Changes:
    """What `edit` would change in a file's header; nothing is written, and of the file the header alone is read.

    Args:
        path: a safetensors file, or a folder with one.
        values: entry -> value.
        unset: entries to take away.
        redacted: whether to take away what tells of people, places and data.

    Raises:
        LorabenchError: as `edit` raises it.
    """
    _, header = _header(path)
    metadata = _edited(header, dict(values or {}), unset, redacted)
    # What they become is known when the tensors are read.
    return _changes(header, metadata, tuple(key for key in _HASHES if key in metadata))


def _header(path: Path | str) -> tuple[Path, Header]:
    file = find_adapter_file(Path(path))
    if first_look(file)[1] is not None:
        raise LorabenchError(f"{file}: only a safetensors file has metadata to edit. Convert it first.")
    return file, read_header(file)


def _changes(header: Header, metadata: Mapping[str, str], anew: tuple[str, ...] = ()) -> Changes:
    return Changes(
        removed=tuple(key for key in header.metadata if key not in metadata),
        changed={k: (header.metadata.get(k), v) for k, v in metadata.items() if header.metadata.get(k) != v},
        anew=anew,
    )


def _places(
    file: Path, out: Path, force: bool, redacted: bool
) -> tuple[Path, dict[str, object] | None, tuple[str, ...]]:
    """The file to write, adapter_config.json to write beside it, and notes."""
    beside = config_beside(file)
    config = read_json(beside) if beside.is_file() else None
    if out.suffix != ".safetensors":
        if config is not None:
            refuse_overwriting(out, force, folder=True)
        elif out.is_file() or (out.is_dir() and any(out.iterdir()) and not force):
            raise LorabenchError(
                f"--out {out}: name a file that ends in .safetensors, or a folder that is new or empty (or --force)."
            )
        return out / file.name, config, ()
    if out.is_dir():
        raise LorabenchError(f"--out {out} is a folder, and its name is one of a file. Give another path.")
    if out.exists() and not force:
        raise LorabenchError(f"--out {out} exists already. Give another path, or --force to replace it.")
    if config is None or (out.parent.resolve() == file.parent.resolve()):
        private = config is not None and redacted and redact_config(config) != config
        note = f"{beside.name} beside it stays as it is, paths included: give a folder as --out to redact it too"
        return out, None, (note,) if private else ()
    note = (
        f"{beside.name} beside {file.name} is not copied, and its alpha counts: give a folder as --out to take it along"
    )
    return out, None, (note,)


def _edited(header: Header, values: dict[str, str], unset: Sequence[str], redacted: bool) -> dict[str, str]:
    by_hand = next((key for key in (*values, *unset) if key.startswith("sshs_")), None)
    if by_hand in values:
        raise LorabenchError(f"--set {by_hand}: hashes are computed, not given. Leave it out.")
    if "" in values:
        raise LorabenchError("--set: an entry needs a name. Write KEY=VALUE.")
    missing = [key for key in unset if key not in header.metadata]
    if missing:
        there = ", ".join(sorted(header.metadata)[:12]) or "none"
        raise LorabenchError(f"--unset {missing[0]}: {header.path} has no such entry. There are {there}.")
    kept = redact(header.metadata) if redacted else dict(header.metadata)
    return {key: value for key, value in kept.items() if key not in unset} | values


def _file(header: Header, metadata: Mapping[str, str]) -> Iterator[bytes]:
    text = header_text(header.tensors, metadata or None, header.data)
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    with explain_reading(header.path), header.path.open("rb") as file:
        file.seek(header.data)
        left = header.size - header.data
        while left:
            chunk = file.read(min(_CHUNK, left))
            if not chunk:
                raise LorabenchError(f"{header.path}: the file was cut while it was read. Nothing was written.")
            left -= len(chunk)
            yield chunk


def _all(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest
