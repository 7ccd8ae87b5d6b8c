"""A zoo as adapter files that any tool can read, with the labels beside them."""

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from lorabench.adapters import Adapter, LoraModule
from lorabench.adapters import save as save_adapter
from lorabench.errors import LorabenchError, explain_disk_errors
from lorabench.progress import bar
from lorabench.storage import replace_file
from lorabench.zoo.folder_index import INCOMPLETE, LABELS, SPLITS
from lorabench.zoo.store import Zoo

__all__ = ["export"]

_STEP = 64


def export(
    zoo: Zoo,
    folder: Path,
    layout: str,
    overwrite: bool = False,
    metadata: Sequence[Mapping[str, str]] | None = None,
) -> Path:
    """Write every adapter of a zoo to `folder`, and a labels.csv; `zoo.folder.load` gives the same zoo back.

    Factors are written as they are, without the zeros that pad them (a scale that is not 1 is multiplied into
    up where the layout is "diffusers", which has no α). labels.csv comes last, and until then a marker keeps
    the folder from being read.

    Args:
        zoo: what to write.
        folder: a new or empty folder.
        layout: "diffusers", "peft" or "kohya".
        overwrite: write into a folder that holds something; other files in it stay.
        metadata: what each adapter's file says of it beside the weights, [N]; None for nothing.

    Returns:
        The labels.csv.

    Raises:
        LorabenchError: the folder is not empty, a layer has no partner, or the disk is full.
    """
    paired = {layer for module in zoo.modules for layer in (module.down, module.up)}
    lone = [layer for layer in zoo.layers if layer not in paired]
    if lone or not zoo.modules:
        raise LorabenchError(
            f"{zoo.name}: {(lone or ['nothing'])[0]} has no partner to make a pair of down and up. "
            "Only whole adapters can be exported."
        )
    with explain_disk_errors(folder, "Free some space or choose another folder, then add --overwrite."):
        _prepare(folder, overwrite)
        rows = []
        with bar("writing adapters", len(zoo)) as opened:
            for number, modules in enumerate(_adapters(zoo)):
                file = f"{_category(zoo, number)}/{_file_name(zoo, number, layout)}"
                said = {} if metadata is None else metadata[number]
                save_adapter(folder / file, Adapter(folder / file, (), modules, said), layout)
                rows.append(_row(zoo, number, file))
                opened.advance()
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        replace_file(folder / LABELS, text.getvalue())
        (folder / INCOMPLETE).unlink()
    return folder / LABELS


def _prepare(folder: Path, overwrite: bool) -> None:
    if folder.is_file():
        raise LorabenchError(f"{folder}: is a file. Name a folder.")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise LorabenchError(f"{folder}: is not empty. Name a new folder, or add --overwrite.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError:
        raise LorabenchError(f"{folder}: cannot be made there. Name a folder that may be written to.") from None
    (folder / INCOMPLETE).touch()
    (folder / LABELS).unlink(missing_ok=True)


def _adapters(zoo: Zoo) -> Iterator[dict[str, LoraModule]]:
    for start in range(0, len(zoo), _STEP):
        stop = min(start + _STEP, len(zoo))
        layers = {layer: zoo.read(layer, start, stop) for layer in zoo.layers}
        for row in range(stop - start):
            modules = {}
            for column, module in enumerate(zoo.modules):
                rank = int(zoo.rank[start + row, column])
                if not rank:
                    continue  # it lacks this module
                modules[module.name] = LoraModule(
                    down=torch.from_numpy(np.array(layers[module.down][row, :rank])),
                    up=torch.from_numpy(np.array(layers[module.up][row, :, :rank])),
                    scale=float(zoo.scale[start + row, column]),
                )
            yield modules


def _category(zoo: Zoo, number: int) -> str:
    return _slug(zoo.labels.category_names[zoo.labels.category[number]])


def _file_name(zoo: Zoo, number: int, layout: str) -> str:
    stem = f"{number:06d}-{_slug(zoo.labels.leaf_names[zoo.labels.leaf[number]])}"
    return stem if layout == "peft" else f"{stem}.safetensors"


def _row(zoo: Zoo, number: int, file: str) -> dict[str, str]:
    labels = zoo.labels
    row = {
        "file": file,
        "category": labels.category_names[labels.category[number]],
        "leaf": labels.leaf_names[labels.leaf[number]],
    }
    if labels.group is not None:
        row["group"] = f"{labels.group[number]:06d}"
    if labels.split is not None:
        row["split"] = SPLITS[labels.split[number]]
    row |= {name: repr(float(column[number])) for name, column in labels.recipe.items() if name not in row}
    return row


def _slug(text: str) -> str:
    """The text as a file name that every system allows; names need not differ, their numbers do."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", text).strip("._")[:60] or "x"
