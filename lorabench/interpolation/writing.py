"""A line between two adapters of a run as adapter files, whole or not at all."""

import difflib
import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lorabench.adapters import LAYOUTS
from lorabench.errors import LorabenchError, explain_disk_errors
from lorabench.interpolation.line import Line, line_between
from lorabench.interpolation.run import FittedRun, find_zoo, parts_of, read_run
from lorabench.representations.load_from import Loaded
from lorabench.representations.vae import VAE
from lorabench.storage import new_folder
from lorabench.text import to_json
from lorabench.zoo import Zoo
from lorabench.zoo.export import export

__all__ = ["interpolate"]

_SAW = {
    "layer": "layer after layer by itself, so that nothing makes the layers fit one another",
    "module": "module after module (down and up) by itself, so that nothing makes the modules fit one another",
    "all": "all layers as one vector",
}


def interpolate(
    run: Path,
    a: str,
    b: str,
    out: Path,
    steps: int = 5,
    layout: str = "diffusers",
    representation: str | None = None,
    moved: Mapping[str, str] | None = None,
) -> Line:
    """Write adapters on the line between two adapters of a run's zoo, with a labels.csv that `dataset=folder` reads.

    See `line_between` for what is decoded, and the `lorabench_note` in every file's metadata for what it is and is not.

    Args:
        run: a run's folder with results.json and fitted/NAME, NAME a VAE.
        a: name of an adapter of the run's zoo, as its labels say it.
        b: name of another.
        out: a new or empty folder.
        steps: number of adapters, both ends included.
        layout: of `save_adapter`; "diffusers" has no α, so a scale that is not 1 is multiplied into up.
        representation: NAME, where the run has several VAEs.
        moved: options of the data set that are no longer as the run says, such as path or cache_dir.

    Raises:
        LorabenchError: an argument is not allowed, the run has no VAE of all layers, or its data set has changed.
    """
    if steps < 2:
        raise LorabenchError(f"--steps {steps}: at least 2 are needed, one for each adapter")
    if layout not in LAYOUTS:
        raise LorabenchError(f"--format {layout}: allowed are {', '.join(LAYOUTS)}")
    if a == b:
        raise LorabenchError(f"{a!r} is named twice; name two adapters")
    _check_free(out)
    found = read_run(run, representation)
    zoo = find_zoo(found, moved or {})
    rows = np.array([_row_of(zoo, a), _row_of(zoo, b)], np.int64)
    _check_layers(found, zoo)
    pair, vae = zoo.rows(rows), Loaded(VAE(), str(found.fitted))
    line = line_between(vae.fit(pair, torch.device("cpu")), pair, steps)
    first, second = (replace(end, part=part) for end, part in zip(line.ends, parts_of(found, zoo, rows), strict=True))
    line = replace(line, ends=(first, second), note=_note(found.index))
    with _new_folder(out) as partial:
        export(line.zoo, partial, layout, overwrite=True, metadata=_metadata(line, zoo, vae))
    return line


def _row_of(zoo: Zoo, name: str) -> int:
    rows = [row for row, known in enumerate(zoo.labels.adapters) if known == name]
    if len(rows) == 1:
        return rows[0]
    if rows:
        raise LorabenchError(
            f"{zoo.name} has {len(rows)} adapters of the name {name!r}; take one whose name is its own"
        )
    near = difflib.get_close_matches(name, zoo.labels.adapters, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"names look like {', '.join(zoo.labels.adapters[:3])}"
    raise LorabenchError(f"{zoo.name} has no adapter {name!r}; {hint}")


def _check_layers(run: FittedRun, zoo: Zoo) -> None:
    """Refuse a VAE that does not know every layer: an adapter is written whole."""
    known = {layer for unit in run.index["units"].values() for layer in unit["layers"]}
    missing = [layer for layer in zoo.layers if layer not in known]
    if missing:
        raise LorabenchError(
            f"{run.fitted} knows {len(zoo.layers) - len(missing)} of the {len(zoo.layers)} layers of {zoo.name}, and "
            f"an adapter is written whole: {missing[0]} is missing. Take a run with all layers"
        )


def _note(index: Mapping[str, Any]) -> str:
    lost = sorted(float(unit["diagnostics"]["reconstruction_error"]) for unit in index["units"].values())
    among = f" (the median of {len(lost)}; {lost[0]:.0%} to {lost[-1]:.0%})" if len(lost) > 1 else ""
    return (
        "A point on a straight line in the latent space of a variational autoencoder that saw "
        f"{_SAW[index['config']['scope']]}. Not a trained adapter, and no promise that its pictures lie between those "
        f"of the two. The autoencoder loses {statistics.median(lost):.0%}{among} of the standardised weights' variance "
        "on adapters set aside while it was trained. It reads the factors' entries: factors of different gauges, of "
        "adapters that each started from a random down matrix of their own, do not mix."
    )


def _metadata(line: Line, zoo: Zoo, vae: Loaded) -> list[dict[str, str]]:
    """What every file says of itself; no path of this machine is in it."""
    shared = {
        "between": [asdict(end) for end in line.ends],
        "cosine_of_ends": line.cosine,
        "norm_of_ends": line.norm,
        "dataset": zoo.name,
        "fingerprint": zoo.fingerprint,
        "autoencoders": vae.config()["fitted"],
        "scope": vae.run.config["scope"],
        "rank": "the larger of the two adapters' in every module; what was decoded beyond it is cut",
    }
    return [
        {
            "lorabench_interpolation": to_json({**asdict(step), **shared}),
            "lorabench_note": line.note,
        }
        for step in line.steps
    ]


def _check_free(out: Path) -> None:
    with explain_disk_errors(out, "Choose another --out."):
        if out.exists() and not out.is_dir():
            raise LorabenchError(f"--out {out}: is a file. Name a new or empty folder")
        if out.is_dir() and any(out.iterdir()):
            raise LorabenchError(f"--out {out}: is not empty. Name a new or empty folder")


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place at the end, and goes if anything fails before."""
    try:
        with (
            explain_disk_errors(out, "Free some space or choose another --out; nothing half-written was left."),
            new_folder(out.resolve(), replace=False) as partial,
        ):
            yield partial
    except FileNotFoundError:  # /proc and its like
        raise LorabenchError(f"--out {out}: cannot be made there. Name a folder that may be written to") from None
