"""The leaf concepts of the glyph zoo: code points as Matplotlib's DejaVu fonts draw them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from fontTools import unicodedata
from fontTools.ttLib import TTFont
from jaxtyping import Float32
from PIL import Image, ImageDraw, ImageFont

from lorabench.errors import LorabenchError

__all__ = ["CATEGORIES", "SIDE", "Glyphs", "draw_glyphs"]

SIDE = 24
"""Height and width of a picture, in pixels."""

CATEGORIES = {
    "blocks": {
        "Braille Patterns": "Braille",
        "Box Drawing": "Box drawing",
        "Domino Tiles": "Domino tiles",
        "Tai Xuan Jing Symbols": "Tai Xuan Jing",
        "Arrows": "Arrows",
        "Supplemental Arrows-B": "Arrows",
        "Geometric Shapes": "Geometric shapes",
        "Mathematical Operators": "Mathematical operators",
        "Arabic": "Arabic",
        "Arabic Presentation Forms-B": "Arabic",
        "Hebr": "Hebrew",
        "Unified Canadian Aboriginal Syllabics": "Canadian Aboriginal",
    },
    "scripts": {
        "Latn": "Latin",
        "Grek": "Greek",
        "Cyrl": "Cyrillic",
        "Brai": "Braille",
        "Box Drawing": "Box drawing",
        "Geor": "Georgian",
        "Cans": "Canadian Aboriginal",
        "Arab": "Arabic",
        "Hebr": "Hebrew",
        "Armn": "Armenian",
    },
}
"""Sets of categories: `blocks` do not look like one another, `scripts` share letter forms.

Each is Unicode block or script -> name of the category; a block goes before a script.
"""

# DejaVu ascends 0.93 em and descends 0.24 em: at 19.5 pixels an em a line of text is as high as the picture.
_EM, _BASELINE = 19.5, 18
_NOT_A_CHARACTER = "\U0010ffff"


@dataclass(frozen=True)
class Glyphs:
    """Pictures of N leaf concepts, every leaf in equally many styles.

    Attributes:
        pictures: greyscale, -1 is paper and 1 is ink, [N, styles, 24, 24].
        code_points: the Unicode code point of each leaf, ascending within a category, [N].
        categories: the category of each leaf, [N]; categories stand together.
    """

    pictures: Float32[np.ndarray, "n styles 24 24"]
    code_points: tuple[int, ...]
    categories: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.code_points)

    def sample(self, per_category: int, seed: int) -> tuple[int, ...]:
        """At most `per_category` leaves of every category by a seeded choice, in the order they stand here."""
        chosen: list[int] = []
        for number, category in enumerate(dict.fromkeys(self.categories)):
            found = np.flatnonzero(np.array(self.categories) == category)
            generator = np.random.default_rng([seed, number])
            chosen += sorted(generator.permutation(found)[:per_category].tolist())
        return tuple(chosen)


def draw_glyphs(categories: str, styles: int, seed: int) -> Glyphs:
    """Every code point of ten categories that at least `styles` DejaVu fonts draw, [N, styles, 24, 24].

    The fonts are those that Matplotlib ships. What a font lacks, leaves empty or draws as its replacement
    box is not counted. Of a leaf's fonts, `styles` are chosen: were there more pictures of some leaves than of
    others, their number would tell the category.

    Args:
        categories: which ten, a key of `CATEGORIES`.
        styles: pictures of every leaf.
        seed: of the choice among a leaf's fonts, which no other leaf has a part in.

    Raises:
        LorabenchError: the fonts are not there, or a category has no such code point.
    """
    fonts = sorted(Path(mpl.get_data_path(), "fonts", "ttf").glob("DejaVu*.ttf"))
    if not fonts:
        raise LorabenchError(
            f"no DejaVu*.ttf in {Path(mpl.get_data_path(), 'fonts', 'ttf')}: the glyph zoo draws its concepts with "
            "the fonts that Matplotlib ships. Reinstall matplotlib, or use dataset=folder."
        )
    names = CATEGORIES[categories]
    drawn: dict[int, list[Float32[np.ndarray, "24 24"]]] = {}
    for font in fonts:
        for code_point, picture in _draw_font(font, names):
            drawn.setdefault(code_point, []).append(picture)
    order = list(dict.fromkeys(names.values()))
    enough = [point for point, found in drawn.items() if len(found) >= styles]
    leaves = sorted((order.index(str(_category(point, names))), point) for point in enough)
    missing = [order[i] for i in range(len(order)) if i not in {place for place, _ in leaves}]
    if missing:
        raise LorabenchError(
            f"styles={styles}: no glyph of {', '.join(missing)} is drawn in that many of the {len(fonts)} DejaVu "
            "fonts. Ask for fewer (the default is 4)."
        )
    return Glyphs(
        pictures=np.stack([_some(drawn[point], styles, seed, point) for _, point in leaves]),
        code_points=tuple(point for _, point in leaves),
        categories=tuple(order[place] for place, _ in leaves),
    )


def _some(
    pictures: list[Float32[np.ndarray, "24 24"]], styles: int, seed: int, code_point: int
) -> Float32[np.ndarray, "styles 24 24"]:
    chosen = np.random.default_rng([seed, code_point]).permutation(len(pictures))[:styles]
    return np.stack([pictures[i] for i in sorted(chosen)])


def _draw_font(path: Path, names: Mapping[str, str]) -> Iterator[tuple[int, Float32[np.ndarray, "24 24"]]]:
    with TTFont(path, lazy=True) as font:
        covered = sorted(point for point in font.getBestCmap() if _category(point, names))
    # The basic layout: Raqm, where Pillow has it, would shape Arabic in another way.
    face = ImageFont.truetype(str(path), _EM, layout_engine=ImageFont.Layout.BASIC)
    replacement = _draw(face, _NOT_A_CHARACTER)
    for point in covered:
        ink = _draw(face, chr(point))
        if ink.any() and not np.array_equal(ink, replacement):
            yield point, (ink / 127.5 - 1).astype(np.float32)


def _draw(face: ImageFont.FreeTypeFont, text: str) -> np.ndarray:
    picture = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(picture).text((SIDE / 2, _BASELINE), text, fill=255, font=face, anchor="ms")
    return np.asarray(picture)


def _category(code_point: int, names: Mapping[str, str]) -> str | None:
    character = chr(code_point)
    return names.get(unicodedata.block(character)) or names.get(unicodedata.script(character))
