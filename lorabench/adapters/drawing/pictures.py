"""Pictures of one adapter, or of two, written as PNG or SVG."""

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from lorabench.adapters.adapter import Adapter
from lorabench.adapters.drawing.blocks import blocks_figure
from lorabench.adapters.drawing.comparison import compare_figure
from lorabench.adapters.drawing.heatmaps import weights_figures
from lorabench.adapters.drawing.histograms import histogram_figure
from lorabench.adapters.drawing.ranks import ranks_figure
from lorabench.adapters.drawing.style import house, save
from lorabench.errors import LorabenchError, explain_writing
from lorabench.storage import refuse_overwriting

__all__ = ["FORMATS", "KINDS", "plot"]

FORMATS = ("png", "svg")
_SUFFIXES = tuple(f".{form}" for form in FORMATS)
KINDS = ("weights", "histogram", "ranks", "blocks", "compare", "all")
"""What can be drawn."""

_OF_ONE: dict[str, Callable[[Adapter], Figure]] = {
    "histogram": histogram_figure,
    "ranks": ranks_figure,
    "blocks": blocks_figure,
}


def plot(
    adapters: Adapter | Sequence[Adapter],
    kind: str,
    out: Path | str,
    *,
    modules: str | None = None,
    form: str = "png",
    force: bool = False,
) -> tuple[Path, ...]:
    """Draw one adapter, or compare two.

    Args:
        adapters: one; two for "compare", and for "all", which then has folders A and B.
        kind: one of `KINDS`.
        out: a path that ends in .png or .svg; for "all" a folder. Further pages of "weights" get "-2", "-3", ...
        modules: for "weights": a pattern for names, such as "*attn2.to_k"; None for the strongest few.
        form: for "all": "png" or "svg".
        force: whether a picture that is there already may be replaced.

    Returns:
        The files that were written.

    Raises:
        LorabenchError: an argument does not fit, a picture is there already, or the disk refuses.
    """
    given = (adapters,) if isinstance(adapters, Adapter) else tuple(adapters)
    out = Path(out)
    _check(given, kind, out, form)
    with house():
        figures = _figures(given, kind, out, modules, form)
        for path in figures:
            refuse_overwriting(path, force, folder=False)
        return tuple(save(figure, path) for path, figure in figures.items())


def _check(given: tuple[Adapter, ...], kind: str, out: Path, form: str) -> None:
    if kind not in KINDS:
        raise LorabenchError(f"kind={kind!r}: allowed are {', '.join(KINDS)}.")
    allowed = {"compare": (2,), "all": (1, 2)}.get(kind, (1,))
    if len(given) not in allowed:
        raise LorabenchError(
            f"kind={kind!r} with {len(given)} adapters: {kind} draws {' or '.join(map(str, allowed))}. "
            + ("Give two files." if kind == "compare" else "Give one file a picture, or kind compare for two.")
        )
    if form not in FORMATS:
        raise LorabenchError(f"form={form!r}: allowed are {', '.join(FORMATS)}.")
    with explain_writing(out, "Give another --out."):
        if kind == "all" and (out.is_file() or out.suffix.lower() in _SUFFIXES):
            raise LorabenchError(f"{out}: all kinds need a folder. Give a path without an ending.")
    if kind != "all" and out.suffix.lower() not in _SUFFIXES:
        raise LorabenchError(f"{out}: a picture is written as .png or .svg. Give a path that ends so.")
    empty = [one.path for one in given if not one.modules]
    if empty:
        raise LorabenchError(f"{empty[0]}: no module in it. Give an adapter with LoRA factors.")


def _figures(given: tuple[Adapter, ...], kind: str, out: Path, modules: str | None, form: str) -> dict[Path, Figure]:
    if kind == "compare":
        return {out: compare_figure(*given)}
    if kind == "weights":
        return _pages(given[0], out, modules)
    if kind != "all":
        return {out: _OF_ONE[kind](given[0])}
    found: dict[Path, Figure] = {}
    for number, adapter in enumerate(given, 1):
        folder = out if len(given) == 1 else out / "AB"[number - 1]
        found |= _pages(adapter, folder / f"weights.{form}", modules)
        found |= {folder / f"{name}.{form}": draw(adapter) for name, draw in _OF_ONE.items()}
    if len(given) == 2:
        found[out / f"compare.{form}"] = compare_figure(*given)
    return found


def _pages(adapter: Adapter, path: Path, modules: str | None) -> dict[Path, Figure]:
    pages = weights_figures(adapter, modules)
    return {
        path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}"): page
        for number, page in enumerate(pages, 1)
    }
