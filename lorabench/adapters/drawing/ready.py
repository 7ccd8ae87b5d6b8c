"""Importing this imports and looks up all that a first picture needs, by drawing one for nobody.

The process that `rendering.Processes` are forked from does it once for all of them.
"""

import gc
from pathlib import Path

from lorabench.adapters.drawing.kinds import KINDS, kind_module
from lorabench.adapters.drawing.panels import log_axis, new_figure, words_instead
from lorabench.pictures import house_style, picture_bytes

for _kind in KINDS:
    kind_module(_kind)
with house_style():
    _figure = new_figure(3, 2, "ΔW")
    _left, _right = _figure.subplots(1, 2)
    _figure.colorbar(_left.imshow([[0, 1]]), ax=_left)
    _left.set_ylim(1, 10)
    log_axis(_left, "y")
    words_instead(_right, "0123456789")
    picture_bytes(_figure, Path("nowhere.png"))
gc.freeze()  # what is imported stays, and pictures make many objects that only look like garbage
gc.set_threshold(50_000)
