"""What can say something about where an adapter comes from, and how a value is found in it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorabench.adapters.metadata.decoding import decode_all
from lorabench.adapters.reading.beside import CONFIG, copy_of
from lorabench.adapters.reading.header import read_json
from lorabench.adapters.reading.table import Table
from lorabench.errors import LorabenchError

__all__ = ["PEFT", "STATE", "Said", "Sources", "base_name", "look_up", "said", "sources"]

Said = dict[str, Any]
"""{"value": ..., "source": ...}."""

STATE, PEFT = "trainer_state.json", "lora_adapter_metadata"
"""Places beside the entries of the metadata: files beside the adapter, and PEFT's configuration inside it."""

_CACHE = re.compile(r"(^|[/\\])models--(?P<owner>[^/\\]+?)--(?P<name>[^/\\]+)")
_LOCAL = re.compile(r"^([/~]|\.{1,2}[/\\]|[A-Za-z]:[/\\]|\\\\|file:)|\\")


@dataclass(frozen=True)
class Sources:
    """Everything that says something about where an adapter comes from.

    Attributes:
        table: of the file.
        metadata: its metadata, decoded.
        places: the same, with adapter_config.json and trainer_state.json beside it.
        notes: what could not be used of them.
    """

    table: Table
    metadata: Mapping[str, Any]
    places: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def sources(table: Table) -> Sources:
    """What to look values up in; a trainer_state.json that cannot be read is noted, since nothing depends on it."""
    metadata = decode_all(table.metadata)
    notes: tuple[str, ...] = ()
    state: dict[str, Any] = {}
    try:
        state = read_json(copy_of(table.file, STATE))
    except LorabenchError as error:
        notes = (f"left out: {error}",)
    inside = metadata.get(PEFT)
    # its entries bear the part's name: "unet.lora_alpha"
    plain = {key.rpartition(".")[2]: value for key, value in inside.items()} if isinstance(inside, dict) else {}
    return Sources(table, metadata, {**metadata, CONFIG: dict(table.config), STATE: state, PEFT: plain}, notes)


def said(value: Any, source: str) -> Said:
    """A value and what says it."""
    return {"value": value, "source": source}


def base_name(name: str) -> str:
    r"""A model's name out of a path: the repository of a cache folder, else the last part; names stay.

    >>> base_name("/cache/hub/models--a--b-1/snapshots/0f"), base_name("C:\\sd\\x.safetensors"), base_name("a/b")
    ('a/b-1', 'x.safetensors', 'a/b')
    """
    cached = _CACHE.search(name)
    if cached is not None:
        return f"{cached['owner']}/{cached['name']}"
    parts = [part for part in re.split(r"[/\\]", name) if part]
    return parts[-1] if _LOCAL.search(name) and parts else name


def look_up(known: Sources, wanted: Mapping[str, Sequence[str]]) -> dict[str, Said]:
    """Named values, each from the first of its candidates that says anything.

    A candidate is an entry of the metadata, or "file or entry: key.key" for a value inside one.
    """
    found = {}
    for name, candidates in wanted.items():
        for source in candidates:
            value = _value(known.places, source)
            if value is not None and value not in ("", [], {}):
                found[name] = said(value, source)
                break
    return found


def _value(places: Mapping[str, Any], source: str) -> Any:
    place, _, path = source.partition(": ")
    value = places.get(place)
    for key in path.split(".") if path else ():
        if isinstance(value, list):  # of datasets: one value where they agree, else all
            every = [one[key] for one in value if isinstance(one, dict) and one.get(key) is not None]
            value = every[0] if every and all(one == every[0] for one in every) else every
        else:
            value = value.get(key) if isinstance(value, dict) else None
    return value
