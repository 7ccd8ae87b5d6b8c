"""The page of an audit, in the form of the benchmark's report."""

from collections.abc import Sequence
from pathlib import Path

from lorabench.health.auditing import Audit
from lorabench.health.figures import dominance_picture, rank_picture, steps_picture
from lorabench.health.sheets import (
    adapters_sheet,
    alerts_sheet,
    gravest_first,
    modules_sheet,
    short_names,
    steps_sheet,
    summary,
)
from lorabench.pages.document import document
from lorabench.pages.parts import Section
from lorabench.text import counted

__all__ = ["page_html"]

_MOST = 20
_TEMPLATE = Path(__file__).with_name("page.html.j2")


def page_html(audits: Sequence[Audit]) -> str:
    """One self-contained page: all adapters in a table, and the gravest of them one by one with figures.

    Args:
        audits: of `lorabench.health.audit`.
    """
    readable = [one for one in gravest_first(audits) if one.unreadable is None]
    shown = readable[:_MOST]
    left = len(readable) - len(shown)
    names = short_names(audits) if len(audits) == 1 else short_names([*shown, *audits])[: len(shown)]
    return document(
        _TEMPLATE,
        summary=summary(audits),
        adapters=adapters_sheet(audits),
        faults=[f"{fault[:1].upper()}{fault[1:]}" for one in audits for fault in one.faults],
        sections=[
            section
            for number, (name, one) in enumerate(zip(names, shown, strict=True))
            for section in _sections(number, name, one)
        ],
        left=f"The {len(shown)} gravest are shown one by one; audit the other {left} by themselves." if left else "",
    )


def _sections(number: int, name: str, one: Audit) -> list[Section]:
    text = [*([] if one.alerts else ["The rules have nothing to say of it."]), *(f"{said}." for said in one.beside)]
    structure = one.structure
    if structure is not None and structure.max_dominance is not None:
        text.append(
            f"Dominance over the base: at most {structure.max_dominance:.3g} ({structure.band}), "
            f"{structure.mean_dominance:.3g} on average."
        )
    if structure is not None and structure.intruder_dimensions is not None:
        text.append(f"{counted(structure.intruder_dimensions, 'intruder dimension')} in all modules.")
    sheets = [alerts_sheet(one)] if one.alerts else []
    sheets += [steps_sheet(one)] if len(one.files) > 1 else []
    pictures = [steps_picture(one), rank_picture(one), dominance_picture(one)]
    modules = Section(f"modules-{number}", f"Modules of {name}", sheets=[modules_sheet(one)], folded=True)
    shown = Section(
        anchor=f"adapter-{number}",
        title=name,
        text=text,
        sheets=sheets,
        pictures=[picture for picture in pictures if picture is not None],
    )
    return [shown, modules]
