"""Adapter files as a model reads them: its modules alone, matched by identity, at the ranks that it knows."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from torch import Tensor

from lorabench import lowrank
from lorabench.adapters import Adapter, LoraModule
from lorabench.adapters import load as load_adapter
from lorabench.adapters.names.identity import by_identity
from lorabench.text import counted, some
from lorabench.zoo import Labels, Module, Stack, Zoo

__all__ = ["LEAST_PRESENT", "MOST_LOST", "ModelModule", "Reading", "Stranger", "as_zoo", "fitted_to"]

LEAST_PRESENT = 0.5
"""Share of a model's modules that an adapter must have."""
MOST_LOST = 0.1
"""Share of ‖ΔW‖² that an adapter may lose by being brought to the ranks that a model knows."""
_LARGEST = 1e12  # ‖ΔW‖; its fourth power, and that of its inverse, are still numbers


@dataclass(frozen=True)
class ModelModule:
    """One module of the adapters that a model was trained on.

    Attributes:
        name: as the training data call it.
        down: name of its layer [rank, d_in].
        up: name of its layer [d_out, rank].
        rank: the largest rank seen.
        d_in: inputs.
        d_out: outputs.
    """

    name: str
    down: str
    up: str
    rank: int
    d_in: int
    d_out: int


class Stranger(Exception):  # noqa: N818 (an answer, and no error)
    """An adapter that a model can say nothing of, and why."""


_Triple = tuple[Float32[Tensor, "r _in"], Float32[Tensor, "_out r"], float]


@dataclass(frozen=True)
class Reading:
    """One adapter as a model reads it.

    Attributes:
        factors: down, up and scale of each module of the model; None where the adapter lacks it.
        notes: what a user should know of it, in sentences.
    """

    factors: tuple[_Triple | None, ...]
    notes: tuple[str, ...] = ()


def fitted_to(modules: Sequence[ModelModule], path: Path) -> Reading:
    """Read an adapter file, or a folder that is one adapter.

    A rank above the largest seen is brought to that: the best approximation of ΔW (Eckart & Young 1936).

    Raises:
        LorabenchError: the file cannot be read.
        Stranger: it adapts another base model or other modules, changes nothing, or loses too much by its rank.
    """
    adapter = load_adapter(path)
    pairs = _matched(modules, adapter)
    _refuse_strangers(modules, pairs, adapter)
    _refuse_sizes([module for module in pairs if module is not None])
    factors: list[_Triple | None] = []
    lost = 0.0
    for known, module in zip(modules, pairs, strict=True):
        if module is not None and module.rank > known.rank:
            cut, gone = _cut(module, known.rank)
            factors.append(cut)
            lost += gone
        else:
            factors.append(None if module is None else (module.down, module.up, module.scale))
    missing = [known.name for known, module in zip(modules, pairs, strict=True) if module is None]
    notes = [*_said_of_ranks(modules, pairs, lost)]
    if missing:
        notes.append(
            f"{counted(len(missing), 'module')} of {len(modules)} missing and read as zero ({some(missing)}): the "
            "error rate is promised for whole adapters"
        )
    return Reading(tuple(factors), tuple(notes))


def _said_of_ranks(modules: Sequence[ModelModule], pairs: Sequence[LoraModule | None], lost: float) -> Iterator[str]:
    """What is said where ranks are above all seen, by which `lost` of ‖ΔW‖² goes.

    Raises:
        Stranger: it is too much.
    """
    above = [module.rank for known, module in zip(modules, pairs, strict=True) if module and module.rank > known.rank]
    if not above:
        return
    share = lost / sum(_norm(module) ** 2 for module in pairs if module is not None)
    if share > MOST_LOST:
        raise Stranger(
            f"its rank {max(above)} is above all seen, and {share:.0%} of ‖ΔW‖² would be lost at the ranks that the "
            "model knows"
        )
    yield f"rank {max(above)} is above all seen: read at the largest seen, which keeps {1 - share:.1%} of ‖ΔW‖²"


def _matched(modules: Sequence[ModelModule], adapter: Adapter) -> list[LoraModule | None]:
    own = by_identity(adapter.modules)
    wanted = {name: key for key, name in by_identity(module.name for module in modules).items()}
    names = [own.get(wanted[module.name]) for module in modules]
    return [None if name is None else adapter.modules[name] for name in names]


def _refuse_strangers(modules: Sequence[ModelModule], pairs: Sequence[LoraModule | None], adapter: Adapter) -> None:
    there = sum(module is not None for module in pairs)
    first = next(iter(adapter.modules))
    if there == 0:
        raise Stranger(
            f"other modules, so another base model or another recipe: it has none of the model's {len(modules)} "
            f"({modules[0].name}, ...), but {first}"
        )
    for known, module in zip(modules, pairs, strict=True):
        if module is not None and module.shape != (known.d_out, known.d_in):
            raise Stranger(
                f"another base model: {known.name} is {module.shape[0]} x {module.shape[1]} here and "
                f"{known.d_out} x {known.d_in} in the training adapters"
            )
    if there < LEAST_PRESENT * len(modules):
        missing = [known.name for known, module in zip(modules, pairs, strict=True) if module is None]
        raise Stranger(
            f"other modules: it lacks {len(missing)} of the model's {len(modules)} ({some(missing)}), and at least "
            f"{LEAST_PRESENT:.0%} are needed"
        )
    extra = len(adapter.modules) - there
    if extra > there:
        raise Stranger(f"another recipe: it changes {counted(extra, 'module')} beside the model's, such as {first}")


def _refuse_sizes(modules: Sequence[LoraModule]) -> None:
    """Refuse an adapter that changes nothing, or so much or so little that features of it are no numbers.

    Raises:
        Stranger: it does.
    """
    norm = math.hypot(*map(_norm, modules))
    if norm == 0:
        raise Stranger("ΔW is zero in every module: it was not trained, or is not whole")
    if not 1 / _LARGEST <= norm <= _LARGEST:
        raise Stranger(f"‖ΔW‖ is {norm:.3g}, which no training leaves: alpha, or a factor, is damaged")


def _norm(module: LoraModule) -> float:
    return float(lowrank.frobenius_norm(module.down, module.up, module.scale))


def _cut(module: LoraModule, rank: int) -> tuple[_Triple, float]:
    """Factors of ΔW at a lower rank, balanced, and how much of ‖ΔW‖² is lost."""
    left, sigma, right = lowrank.thin_svd(module.down, module.up, module.scale)
    root = sigma[:rank].sqrt()
    down, up = (root[:, None] * right[:rank]).float(), (left[:, :rank] * root).float()
    return (down, up, 1.0), float(sigma[rank:].square().sum())


def as_zoo(modules: Sequence[ModelModule], readings: Sequence[Reading]) -> Zoo:
    """Adapters side by side as the model's training data are: padded to the largest ranks seen; what lacks is zero."""
    count = len(readings)
    layers: dict[str, Stack] = {}
    rank = np.zeros((count, len(modules)), np.int64)
    scale = np.ones((count, len(modules)), np.float32)
    for column, known in enumerate(modules):
        down = np.zeros((count, known.rank, known.d_in), np.float32)
        up = np.zeros((count, known.d_out, known.rank), np.float32)
        for row, reading in enumerate(readings):
            factors = reading.factors[column]
            if factors is not None:
                own = factors[0].shape[0]
                down[row, :own], up[row, :, :own] = factors[0].numpy(), factors[1].numpy()
                rank[row, column], scale[row, column] = own, factors[2]
        layers |= {known.down: Stack((down,)), known.up: Stack((up,))}
    names = [str(row) for row in range(count)]
    pairs = tuple(Module(known.name, known.down, known.up) for known in modules)
    return Zoo("files", layers, pairs, rank, scale, Labels.of(names, names, names), "files")
