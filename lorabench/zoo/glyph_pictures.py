"""The leaf concepts of the glyph zoo: code points as Matplotlib's DejaVu fonts draw them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from fontTools import unicodedata
from fontTools.ttLib import TTFont
from jaxtyping import Float32, Int64
from PIL import Image, ImageDraw, ImageFont

from lorabench.errors import LorabenchError

__all__ = ["CATEGORIES", "SIDE", "Glyphs", "draw_glyphs"]

SIDE = 16
"""Height and width of a picture, in pixels."""

CATEGORIES = {
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
}
"""Unicode script (or block, for what all scripts share) -> name of the category."""

# DejaVu ascends 0.93 em and descends 0.24 em: at 13 pixels an em a line of text is as high as the picture.
_EM, _BASELINE = 13, 12
_NOT_A_CHARACTER = "\U0010ffff"


@dataclass(frozen=True)
class Glyphs:
    """Pictures of N leaf concepts, every leaf in several styles.

    Attributes:
        pictures: greyscale, -1 is paper and 1 is ink, [P, 16, 16]; the styles of a leaf stand together.
        first: where the pictures of each leaf begin, [N + 1].
        code_points: the Unicode code point of each leaf, ascending within a category, [N].
        categories: the category of each leaf, one of `CATEGORIES`' names, [N].
    """

    pictures: Float32[np.ndarray, "p 16 16"]
    first: Int64[np.ndarray, " leaves_and_end"]
    code_points: tuple[int, ...]
    categories: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.code_points)

    def of(self, leaf: int) -> Float32[np.ndarray, "styles 16 16"]:
        """The pictures of one leaf, [styles, 16, 16]."""
        return self.pictures[self.first[leaf] : self.first[leaf + 1]]

    def sample(self, per_category: int, seed: int) -> tuple[int, ...]:
        """At most `per_category` leaves of every category by a seeded choice, in the order they stand here."""
        chosen: list[int] = []
        for number, category in enumerate(CATEGORIES.values()):
            found = np.flatnonzero(np.array(self.categories) == category)
            generator = np.random.default_rng([seed, number])
            chosen += sorted(generator.permutation(found)[:per_category].tolist())
        return tuple(chosen)


def draw_glyphs(styles: int) -> Glyphs:
    """Every code point of the ten categories that at least `styles` DejaVu fonts draw, [16, 16] a font.

    The fonts are those that Matplotlib ships. What a font lacks, leaves empty or draws as its replacement
    box is not counted.

    Args:
        styles: the smallest number of fonts.

    Raises:
        LorabenchError: the fonts are not there, or a category has no such code point.
    """
    fonts = sorted(Path(mpl.get_data_path(), "fonts", "ttf").glob("DejaVu*.ttf"))
    if not fonts:
        raise LorabenchError(
            f"no DejaVu*.ttf in {Path(mpl.get_data_path(), 'fonts', 'ttf')}: the glyph zoo draws its concepts with "
            "the fonts that Matplotlib ships. Reinstall matplotlib, or use dataset=folder."
        )
    drawn: dict[int, list[Float32[np.ndarray, "16 16"]]] = {}
    for font in fonts:
        for code_point, picture in _draw_font(font):
            drawn.setdefault(code_point, []).append(picture)
    order = list(CATEGORIES)
    leaves = sorted((order.index(_script(point)), point) for point, found in drawn.items() if len(found) >= styles)
    missing = [CATEGORIES[order[i]] for i in range(len(order)) if i not in {place for place, _ in leaves}]
    if missing:
        raise LorabenchError(
            f"styles={styles}: no glyph of {', '.join(missing)} is drawn in that many of the {len(fonts)} DejaVu "
            "fonts. Ask for fewer (the default is 4)."
        )
    return Glyphs(
        pictures=np.stack([picture for _, point in leaves for picture in drawn[point]]),
        first=np.cumsum([0, *(len(drawn[point]) for _, point in leaves)], dtype=np.int64),
        code_points=tuple(point for _, point in leaves),
        categories=tuple(CATEGORIES[order[place]] for place, _ in leaves),
    )


def _draw_font(path: Path) -> Iterator[tuple[int, Float32[np.ndarray, "16 16"]]]:
    with TTFont(path, lazy=True) as font:
        covered = sorted(point for point in font.getBestCmap() if _script(point) in CATEGORIES)
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


def _script(code_point: int) -> str:
    block: str = unicodedata.block(chr(code_point))
    script: str = unicodedata.script(chr(code_point))
    return block if block in CATEGORIES else script
