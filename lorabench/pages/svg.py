"""A figure as SVG within a page: it takes the page's colours, and says what a mark is where it is pointed at."""

import io
import re
from html import escape

from matplotlib.artist import Artist
from matplotlib.backends.backend_svg import FigureCanvasSVG

from lorabench.pages.parts import Picture
from lorabench.pictures import GREY, house_style

__all__ = ["inline_svg", "tip"]

_METADATA = ("Date", "Creator", "Format", "Type")
_TIP = "tip:"
_PAGE_COLOURS = {"#000000": "currentColor", GREY: "var(--soft)", "#e6e6e6": "var(--line)"}
_PAGE_COLOURS |= {"#f5f5f5": "var(--stripe)"}  # matplotlib's "0.9" and "0.96"


def tip(artist: Artist, text: str) -> None:
    """Say the text where the artist is pointed at."""
    artist.set_gid(f"{_TIP}{text}".replace('"', "'"))  # what else has to be escaped, matplotlib escapes


def inline_svg(picture: Picture, number: int) -> str:
    """The picture as an SVG element; its ids are not those of any other number.

    Args:
        picture: whose figure is drawn.
        number: of the picture on its page.
    """
    file = io.StringIO()
    with house_style():
        figure = picture.draw()
        on_paper = any(axes.images for axes in figure.axes)  # light and dark cells with their own letters
        if not on_paper:
            frames = [figure.patch, *(one.patch for one in figure.subfigs), *(one.patch for one in figure.axes)]
            for frame in frames:
                frame.set_visible(False)
        # `savefig` draws twice: once for the layout, and again.
        FigureCanvasSVG(figure).print_svg(file, metadata=dict.fromkeys(_METADATA))  # type: ignore[no-untyped-call]
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\n?", "", svg, flags=re.DOTALL)
    svg = re.sub(rf'<g id="{_TIP}([^"]*)">', r'<g class="tip"><title>\1</title>', svg)
    svg = re.sub(r'\bid="([^"]*)"', rf'id="p{number}-\1"', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\1p{number}-", svg)
    for colour, own in () if on_paper else _PAGE_COLOURS.items():
        svg = re.sub(rf"(fill|stroke): {colour}\b", rf"\1: {own}", svg)
    ink = 'class="paper"' if on_paper else 'fill="currentColor"'
    label = f'role="img" aria-label="{escape(picture.alt)}" {ink}'
    size = re.compile(r'<svg ([^>]*?)width="([\d.]+)pt" height="[\d.]+pt"')
    return size.sub(lambda found: f'<svg {label} style="width: {found[2]}pt" {found[1]}', svg, count=1)
