"""AdaLoRA (Zhang et al. 2023): ΔW = scale · up @ diag(E) @ down, the rank of every module found in training."""

import math
import re
from dataclasses import replace
from typing import ClassVar

from lorabench.adapters.kinds.base import Factors, Fit, Shapes, Stored
from lorabench.adapters.kinds.lora import Lora
from lorabench.adapters.layouts import Layout
from lorabench.adapters.reading.scaling import Scale, Stated, find_scale, finite_number

__all__ = ["KIND", "AdaLora"]

_PRUNED = "AdaLoRA: pruned to rank 0, so ΔW is zero"


class AdaLora(Lora):
    """A pair and a diagonal lora_E [r, 1]; of rank 0 where training pruned it away, and then ΔW is zero."""

    name: ClassVar[str] = "adalora"
    title: ClassVar[str] = "AdaLoRA"
    marks: ClassVar[re.Pattern[str] | None] = re.compile(r"\.(?P<part>lora_E|ranknum)(\.[^.]+)?$")
    hint: ClassVar[re.Pattern[str] | None] = re.compile(r"\.lora_E(\.|$)|\.ranknum(\.|$)")
    needed: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"down"}), frozenset({"up"}), frozenset({"lora_E"}))
    wanted: ClassVar[str] = "down must be [r, d_in], up [d_out, r] and lora_E [r, 1] with one r > 0 for all."
    example: ClassVar[Shapes] = {"lora_A": (3, 8), "lora_B": (6, 3), "lora_E": (3, 1)}
    optional: ClassVar[frozenset[str]] = frozenset({"lora_E"})
    peft_type: ClassVar[str] = "ADALORA"
    pair: ClassVar[bool] = False
    rankless: ClassVar[bool] = True  # what was pruned away

    def fit(self, layout: Layout, shapes: Shapes) -> Fit:
        """See `Kind.fit`."""
        down, up, diagonal = shapes["down"], shapes["up"], math.prod(shapes["lora_E"])
        if len(down) == len(up) == 2 and down[0] == up[1] == diagonal == 0 < min(down[1], up[0]):
            return Fit(0)
        pair = super().fit(layout, shapes)
        pair = pair.plain or pair
        if pair.transposed or diagonal != pair.rank * max(pair.groups, 1):
            raise ValueError("")
        return pair

    def factors(self, stored: Stored) -> Factors:
        """See `Kind.factors`; the diagonal goes into down."""
        import torch

        if stored.fit.rank == 0:
            return Factors(
                torch.zeros(1, stored.parts["down"].shape[1]), torch.zeros(stored.parts["up"].shape[0], 1), (_PRUNED,)
            )
        pair = super().factors(stored)
        down = pair.down * stored.parts["lora_E"].reshape(-1, 1)
        return replace(pair, down=down.contiguous(), notes=(*pair.notes, "AdaLoRA: diag(E) is in down"))

    def scale(self, stated: Stated) -> Scale:
        """α / (init_r + 1e-5), or init_r in α's place where that is not above 0, whatever rank is left.

        Source: PEFT's `get_delta_weight`, whose `ranknum` stays the rank that training began with.
        """
        scale = find_scale(replace(stated, rank=max(stated.rank, 1)))
        first = stated.options.get("init_r")
        rank = float(stated.rank or 1) if first is None else finite_number(stated.where, "init_r", first)
        alpha = scale.alpha if scale.alpha and scale.alpha > 0 else rank
        # The rank that is left is no mistake of the configuration.
        assumed = tuple(note for note in scale.assumed if "the tensors say" not in note)
        rule = "alpha / (init_r + 1e-5)" if first is not None else "alpha / (r + 1e-5)"
        return replace(scale, value=alpha / (rank + 1e-5), assumed=assumed, rule=rule)


KIND = AdaLora()
