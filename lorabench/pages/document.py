"""A page from its template: style and script of the house, tables with their CSV, figures."""

import base64
import itertools
from importlib.metadata import version
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lorabench.pages.parts import Picture
from lorabench.pages.svg import inline_svg
from lorabench.sheet import Sheet
from lorabench.text import csv_text

__all__ = ["document"]

_HERE = Path(__file__).parent


def document(template: Path, reload: int | None = None, **values: object) -> str:
    """The whole page: it asks for no other file, from the disk or the network.

    Args:
        template: extends "frame.html.j2"; "parts.html.j2" has macros for tables, figures and sections.
        reload: seconds after which a browser reads the page again; None: never.
        values: what the template names.
    """
    numbers = itertools.count()
    page = Environment(
        loader=FileSystemLoader([template.parent, _HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page.filters["svg"] = lambda picture: Markup(inline_svg(picture, next(numbers)))  # noqa: S704  # drawn here, escaped
    page.filters["csv"] = _csv
    text = page.get_template(template.name).render(
        style=Markup((_HERE / "page.css").read_text()),  # noqa: S704  # a file of the package
        script=Markup((_HERE / "page.js").read_text()),  # noqa: S704
        version=version("lorabench"),
        reload=reload,
        **values,
    )
    return _utf8(text).decode()


def _csv(part: Picture | Sheet) -> Markup:
    """A link's address that holds the numbers."""
    data = base64.b64encode(_utf8(csv_text(part.columns, part.rows))).decode()
    return Markup(f"data:text/csv;charset=utf-8;base64,{data}")  # noqa: S704  # letters of base64


def _utf8(text: str) -> bytes:
    """A file's name may hold bytes that are no text; they are shown as "?"."""
    return text.encode(errors="replace")
