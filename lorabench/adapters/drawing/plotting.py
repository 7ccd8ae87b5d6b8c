"""Pictures of one adapter, or of two, written as PNG or SVG."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lorabench.adapters.adapter import Adapter
from lorabench.adapters.drawing.kinds import ALL, KINDS, adapters_of, kind_module
from lorabench.adapters.drawing.rendering import InThisProcess, Picture, Renderer
from lorabench.adapters.drawing.subject import Subject
from lorabench.errors import LorabenchError, explain_writing
from lorabench.progress import track
from lorabench.storage import refuse_overwriting

__all__ = ["FORMATS", "plot"]

FORMATS = ("png", "svg")
_SUFFIXES = tuple(f".{form}" for form in FORMATS)


class _Draw(NamedTuple):
    """One kind of some adapters, not measured yet."""

    kind: str
    subjects: Sequence[Subject]
    path: Path

    @property
    def many(self) -> bool:
        return kind_module(self.kind).PATTERN

    def pictures(self) -> list[Picture]:
        path = self.path
        return [
            Picture(self.kind, page, path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}"))
            for number, page in enumerate(kind_module(self.kind).measure(*self.subjects), 1)
        ]


def plot(
    adapters: Adapter | Sequence[Adapter],
    kind: str,
    out: Path | str,
    *,
    modules: str | None = None,
    form: str = "png",
    force: bool = False,
    renderer: Renderer | None = None,
) -> tuple[Path, ...]:
    """Draw one adapter, or compare two.

    Args:
        adapters: one; two for "compare", and for "all", which then has folders A and B.
        kind: one of `kinds.KINDS`, or "all".
        out: a path that ends in .png or .svg; for "all" a folder. Further pages of "weights" get "-2", "-3", ...
        modules: for "weights": a pattern for names, such as "*attn2.to_k"; None for the strongest few.
        form: for "all": "png" or "svg".
        force: whether a picture that is there already may be replaced.
        renderer: what draws; None for this process.

    Returns:
        The files that were written.

    Raises:
        LorabenchError: an argument does not fit, a picture is there already, or the disk refuses.

    Example:
        >>> import tempfile, torch
        >>> from lorabench.adapters.adapter import LoraModule
        >>> adapter = Adapter(Path("a"), (), {"unet.mid_block.to_q": LoraModule(torch.eye(2, 5), torch.eye(4, 2))})
        >>> [path.name for path in plot(adapter, "ranks", Path(tempfile.mkdtemp()) / "ranks.png")]
        ['ranks.png']
    """
    given = (adapters,) if isinstance(adapters, Adapter) else tuple(adapters)
    out = Path(out)
    _check(given, kind, out, form)
    subjects = [Subject(adapter, modules) for adapter in given]
    draws = _all_kinds(subjects, out, form) if kind == ALL else [_Draw(kind, subjects, out)]
    # Only the kinds that draw chosen modules have more pages than one: all others are measured while some are drawn.
    measured = {draw.path: draw.pictures() for draw in draws if draw.many}
    for draw in draws:
        for path in [picture.path for picture in measured.get(draw.path, ())] or [draw.path]:
            refuse_overwriting(path, force, folder=False)
    written: dict[Path, list[Path]] = {draw.path: [] for draw in draws}

    def pictures() -> Iterator[Picture]:
        # Backwards, for "blocks" takes half as long as any other: what is begun last should end soon.
        for draw in track(sorted(draws, key=lambda draw: (draw.many, draw.kind), reverse=True), "Drawing"):
            for picture in measured.get(draw.path) or draw.pictures():
                written[draw.path].append(picture.path)
                yield picture

    (renderer or InThisProcess()).render(pictures())
    return tuple(path for pages in written.values() for path in pages)


def _check(given: tuple[Adapter, ...], kind: str, out: Path, form: str) -> None:
    if kind not in (*KINDS, ALL):
        raise LorabenchError(f"kind={kind!r}: allowed are {', '.join((*KINDS, ALL))}.")
    allowed = adapters_of(kind)
    if len(given) not in allowed:
        raise LorabenchError(
            f"kind={kind!r} with {len(given)} adapters: {kind} draws {' or '.join(map(str, allowed))}. "
            + ("Give two files." if allowed == (2,) else "Give one file a picture, or kind compare for two.")
        )
    if form not in FORMATS:
        raise LorabenchError(f"form={form!r}: allowed are {', '.join(FORMATS)}.")
    with explain_writing(out, "Give another --out."):
        if kind == ALL and (out.is_file() or out.suffix.lower() in _SUFFIXES):
            raise LorabenchError(f"{out}: all kinds need a folder. Give a path without an ending.")
    if kind != ALL and out.suffix.lower() not in _SUFFIXES:
        raise LorabenchError(f"{out}: a picture is written as .png or .svg. Give a path that ends so.")
    empty = [adapter.path for adapter in given if not adapter.modules]
    if empty:
        raise LorabenchError(f"{empty[0]}: no module in it. Give an adapter with LoRA factors.")


def _all_kinds(subjects: Sequence[Subject], out: Path, form: str) -> list[_Draw]:
    alone = [kind for kind in KINDS if kind_module(kind).ADAPTERS == 1]
    folders = [out] if len(subjects) == 1 else [out / "A", out / "B"]
    draws = [
        _Draw(kind, [subject], folder / f"{kind}.{form}")
        for subject, folder in zip(subjects, folders, strict=True)
        for kind in alone
    ]
    together = [kind for kind in KINDS if kind not in alone and len(subjects) == 2]
    return draws + [_Draw(kind, subjects, out / f"{kind}.{form}") for kind in together]
