"""Reads what W&B has written into a folder: each run file's records, and what they say of the run."""

import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record


@dataclass
class Logged:
    """What a W&B run file holds.

    Attributes:
        run: its header: id, project, group, job type, tags.
        config, history, summary: name -> JSON text; of the history, the last one.
        steps: rows of the history.
        artifacts: type -> names of files, of all artifacts of that type.
        exit_code: None where the run was not finished.
    """

    run: object = None
    config: dict[str, str] = field(default_factory=dict)
    history: dict[str, str] = field(default_factory=dict)
    summary: dict[str, str] = field(default_factory=dict)
    steps: list[dict[str, str]] = field(default_factory=list)
    artifacts: dict[str, list[str]] = field(default_factory=dict)
    exit_code: int | None = None

    @property
    def names(self) -> set[str]:
        """Of all that was logged."""
        return {*self.history, *self.summary}


def logged(folder: Path) -> list[Logged]:
    """Each W&B run below a folder, in the order of its files' names, once its last record is there.

    wandb-core writes on its own, so a file may be whole a moment after its run.
    """
    until = time.monotonic() + 30
    while True:
        found = [_read(path) for path in sorted(folder.rglob("*.wandb"))]
        if (found and all(one.exit_code is not None for one in found)) or time.monotonic() > until:
            return found
        time.sleep(0.2)


def _read(path: Path) -> Logged:
    found = Logged()
    for record in _records(path.read_bytes()):
        match record.WhichOneof("record_type"):
            case "run":
                found.run = record.run
                found.config |= _items(record.run.config.update)
            case "config":
                found.config |= _items(record.config.update)
            case "history":
                found.steps.append(_items(record.history.item))
                found.history |= found.steps[-1]
            case "summary":
                found.summary |= _items(record.summary.update)
            case "artifact":
                files = [entry.path for entry in record.artifact.manifest.contents]
                found.artifacts.setdefault(record.artifact.type, []).extend(files)
            case "exit":
                found.exit_code = record.exit.exit_code
    return found


def _items(items) -> dict[str, str]:
    return {".".join(item.nested_key) or item.key: item.value_json for item in items}


def _records(data: bytes) -> Iterator[Record]:
    """The records in LevelDB's log format, behind seven bytes of header."""
    place, block, payload = 7, 32768, b""
    while place + 7 <= len(data):
        left = block - place % block
        if left < 7:
            place += left
            continue
        size, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        payload += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            record = Record()
            record.ParseFromString(payload)
            payload = b""
            yield record
