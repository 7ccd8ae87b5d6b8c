"""One adapter: the low-rank update of each module, and what the file said beside it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor

__all__ = ["MAGNITUDES", "Adapter", "LoraModule", "alike"]

MAGNITUDES = "dora"
"""What modules with a magnitude are called, and the magnitudes among what is unsupported."""


@dataclass(frozen=True)
class LoraModule:
    """The update of one module, ΔW = scale · up @ down.

    Attributes:
        down: float32 [r, d_in]; a convolution's is flattened to [r, in·k·k], an embedding's is A
            [r, vocabulary].
        up: float32 [d_out, r].
        scale: α/r, or α/√r for rsLoRA; 1 where no α is known.
        alpha: α, or None where the file names none.
        assumed: in words, what the file did not say and the reader supposed or left out.
        dtype: the type that the file stored, for tolerances that depend on it.
        embedding: whether it adapts an embedding table; then the table's update is ΔW transposed.
        kernel: spatial size of a convolution, (k, k), or () for everything else; then d_in = in·k·k.
        kind: what the file stored: "lora", or "dora" (its low-rank part alone), "loha", "lokr" and "adalora",
            whose ΔW is given here by factors of an ordinary LoRA.
        dots_known: whether the dots of its name are the file's own, or those of a table of names; a name that was
            read flattened, and that nothing could split, cannot be written in dots.
    """

    down: Float32[Tensor, "r d_in"]
    up: Float32[Tensor, "d_out r"]
    scale: float = 1.0
    alpha: float | None = None
    assumed: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float32
    embedding: bool = False
    kernel: tuple[int, ...] = ()
    kind: str = "lora"
    dots_known: bool = True

    @property
    def has_magnitude(self) -> bool:
        """Whether the file has a DoRA magnitude for it, without which ΔW is not all that the adapter does."""
        return self.kind == MAGNITUDES

    @property
    def rank(self) -> int:
        """r, the rank that the factors allow."""
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of ΔW."""
        return self.up.shape[0], self.down.shape[1]

    def delta(self) -> Float32[Tensor, "d_out d_in"]:
        """ΔW itself, dense: for a look at one module; algebra goes by the factors."""
        delta: Tensor = self.scale * (self.up @ self.down)
        return delta


@dataclass(frozen=True)
class Adapter:
    """What an adapter file holds.

    Attributes:
        path: the file that was read.
        schemes: naming schemes found in it, sorted.
        modules: canonical module name -> its update.
        metadata: the metadata of a safetensors file.
        config: adapter_config.json beside the file, empty where there is none.
        unsupported: kind -> keys that cannot be analysed (see `naming.ParsedKey.part`).
        extras: those of `unsupported` that no rank nor scale changes (heads, saved modules, biases, token deltas), by
            their keys without PEFT's prefix: a file of the same layout carries them whole.
    """

    path: Path
    schemes: tuple[str, ...]
    modules: Mapping[str, LoraModule]
    metadata: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    unsupported: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    extras: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def transposed(self) -> bool:
        """Whether its configuration says that the base has its weights transposed (PEFT's `fan_in_fan_out`)."""
        return self.config.get("fan_in_fan_out") is True


def alike(modules: Mapping[str, LoraModule]) -> list[list[str]]:
    """Names of the modules of one shape and rank, which can be computed together."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, module in modules.items():
        groups.setdefault((module.shape, module.rank), []).append(name)
    return list(groups.values())
