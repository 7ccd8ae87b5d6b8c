"""The weights of the base model, from a safetensors file or folder; only what is asked for is read."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from lorabench.adapters.adapter import LoraModule
from lorabench.adapters.names.identity import PARTS, Identity, identity, joined
from lorabench.adapters.reading.container import read_tensor
from lorabench.adapters.reading.header import Header, read_header
from lorabench.adapters.reading.opening import explain_reading
from lorabench.errors import LorabenchError
from lorabench.health.metrics import LoRAAdapterMetrics
from lorabench.lowrank import largest_singular_value
from lorabench.text import counted, some

__all__ = ["BaseFile", "MisfitError", "Sizes", "Weights", "against_base", "as_delta", "intruders", "not_held"]

_WEIGHT = ".weight"
_QUANTISED = (".absmax", ".quant_map", ".quant_state", ".SCB", ".qweight", ".qzeros", ".scales", ".weight_scale")
_INTRUDERS, _MATCH = 10, 0.5

Sizes = dict[tuple[Identity, tuple[int, int]], tuple[float, float]]
"""Module and shape of its ΔW -> σ_max(W) and ‖W‖_F."""


class MisfitError(LorabenchError):
    """The base is another model's than the adapter's."""


@runtime_checkable  # for beartype, in tests
class Weights(Protocol):
    """Where a base's weights are."""

    @property
    def where(self) -> str:
        """For messages."""

    def weight(self, name: str, module: LoraModule, transposed: bool = False) -> Float[Tensor, "d_out d_in"] | None:
        """W of one module as [d_out, d_in]; None where there is none."""


@dataclass(frozen=True)
class BaseFile:
    """A base model's weights on the disk.

    Attributes:
        path: the file or folder.
        weights: identity of a module -> the file that holds its weight, and the key there.
        packed: identities of modules whose weight is stored in 8 bits or less.
    """

    path: Path
    weights: Mapping[Identity, tuple[Header, str]]
    packed: frozenset[Identity]

    @property
    def where(self) -> str:
        """For messages."""
        return str(self.path)

    @classmethod
    def open(cls, path: Path) -> "BaseFile":
        """Read the headers alone: of one file, of the shards in a folder, or of a pipeline's folder, part by part.

        Raises:
            LorabenchError: there is no safetensors file, or one is damaged.
        """
        weights: dict[Identity, tuple[Header, str]] = {}
        packed: set[Identity] = set()
        for part, file in _files(path):
            header = read_header(file)
            for key in header.tensors:
                if key.endswith(_WEIGHT):
                    weights.setdefault(identity(joined(part, key.removesuffix(_WEIGHT))), (header, key))
                for ending in _QUANTISED:
                    module, found, _ = key.rpartition(ending)
                    if found:
                        packed.add(identity(joined(part, module.removesuffix(_WEIGHT))))
        if not weights and not packed:
            raise LorabenchError(f"{path}: holds no weight of a module, no tensor ends in .weight. Give a base model.")
        return cls(path, weights, frozenset(packed))

    def weight(self, name: str, module: LoraModule, transposed: bool = False) -> Float[Tensor, "d_out d_in"] | None:
        """W of one module as [d_out, d_in], as ΔW is (see `as_delta`); None where the base has no such module.

        Raises:
            LorabenchError: it is of another shape, is quantised, or its numbers cannot be read.
        """
        found = self._find(name)
        if found is None:
            return None
        if found in self.packed:
            raise LorabenchError(
                f"{self.path}: {name} is quantised. Give the base in float16, bfloat16 or float32, or the live model "
                "to lorabench.health.LoRAAnalyzer, which PEFT dequantises."
            )
        header, key = self.weights[found]
        return as_delta(read_tensor(header, key), name, module, f"{header.path}: {key}", transposed)

    def _find(self, name: str) -> Identity | None:
        """The module itself; else the only one of its part whose name is the end of its, or the other way about."""
        own = identity(name)
        if own in self.weights or own in self.packed:
            return own
        ends = [
            other
            for other in {**self.weights, **dict.fromkeys(self.packed)}
            if (not own.part or not other.part or own.part == other.part)
            and (_ends(own.flat, other.flat) or _ends(other.flat, own.flat))
        ]
        return ends[0] if len(ends) == 1 else None


def _ends(name: str, end: str) -> bool:
    return name == end or name.endswith(f"_{end}")


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    """The part of a pipeline, "" where there is none, and a file of its weights."""
    with explain_reading(path):
        _check_whole(path)
        if not path.exists():
            raise LorabenchError(f"{path}: no such file or folder. Check the spelling of the path.")
        if not path.is_dir():
            yield "", path
            return
        inside = sorted(path.glob("*.safetensors"))
        below = [(part, file) for part in PARTS for file in sorted((path / part).glob("*.safetensors"))]
    if not inside and not below:
        raise LorabenchError(f"{path}: no .safetensors file in it. Give a base model's file or folder.")
    yield from (("", file) for file in inside)
    yield from below


def _check_whole(path: Path) -> None:
    """Refuse a folder whose index names a shard that is not there: half of a download would pass for a base."""
    for index in (one for place in ("", *PARTS) for one in sorted((path / place).glob("*.safetensors.index.json"))):
        try:
            found = json.loads(index.read_text(encoding="utf-8"))
        except ValueError as error:
            raise LorabenchError(f"{index}: no JSON ({error}). Fetch the base model again.") from error
        shards = found.get("weight_map") if isinstance(found, dict) else None
        named = {str(name) for name in shards.values()} if isinstance(shards, dict) else set[str]()
        missing = sorted(name for name in named if not (index.parent / name).is_file())
        if missing:
            raise LorabenchError(
                f"{index}: of {counted(len(named), 'file')} that it names there is no {some(missing)}. Fetch the base "
                "model again."
            )


def as_delta(
    weight: Shaped[Tensor, "..."], name: str, module: LoraModule, where: str, transposed: bool = False
) -> Float[Tensor, "d_out d_in"]:
    """A base's weight in the shape of ΔW: a convolution flattened, an embedding's table and GPT-2's transposed.

    Args:
        weight: as the base has it.
        name: of the module.
        module: the adapter's.
        where: the weight, for messages.
        transposed: whether the base is known to have W transposed (PEFT's `fan_in_fan_out`); else shapes tell, which
            a square W leaves open.

    Raises:
        MisfitError: it is of neither shape.
        LorabenchError: it holds no plain numbers.
    """
    if not weight.is_floating_point() or weight.element_size() < 2:
        raise LorabenchError(f"{where} is stored as {weight.dtype}. Give the base in float16, bfloat16 or float32.")
    flat = weight.flatten(1) if weight.ndim > 1 else weight[None]
    as_is, turned = tuple(flat.shape) == module.shape, tuple(flat.shape) == module.shape[::-1]
    if turned and (not as_is or module.embedding or transposed):
        return flat.mT
    if as_is:
        return flat
    raise MisfitError(
        f"{where} is {list(weight.shape)}, and the adapter's {name} changes a weight of {list(module.shape)}. "
        "Give the base model that the adapter was trained on."
    )


def against_base(
    rows: Sequence[LoRAAdapterMetrics],
    modules: Mapping[str, LoraModule],
    base: Weights,
    transposed: bool = False,
    count_intruders: bool = False,
    sizes: Sizes | None = None,
) -> list[LoRAAdapterMetrics]:
    """The metrics with what they are beside the base's weights, which are read one after another.

    A DoRA stays without: its magnitudes change W beside ΔW, so ΔW / W is not what the adapter does to W.

    Args:
        rows: of `module_metrics`.
        modules: the adapter's.
        base: where W is; a module that it lacks stays without.
        transposed: PEFT's `fan_in_fan_out`.
        count_intruders: whether to count intruder dimensions: two dense SVDs a module.
        sizes: σ_max(W) and ‖W‖_F of modules that were looked at; it grows, and what it has is not read again. One for
            all adapters of a base.

    Raises:
        MisfitError: no module is in the base, or one has another shape there.
        LorabenchError: a weight holds NaN or cannot be read.
    """
    found = []
    for row in rows:
        if modules[row.module].has_magnitude:
            found.append(row)
            continue
        key = (identity(row.module), row.shape)
        if sizes is not None and key in sizes and not count_intruders:
            found.append(replace(row, base_sigma_max=sizes[key][0], base_frobenius=sizes[key][1]))
            continue
        weight = base.weight(row.module, modules[row.module], transposed)
        if weight is None:
            found.append(row)
            continue
        sigma, norm = _sizes(row, weight, base.where)
        if sizes is not None:
            sizes[key] = (sigma, norm)
        counted = intruders(weight, modules[row.module]) if count_intruders and row.finite else None
        found.append(replace(row, base_sigma_max=sigma, base_frobenius=norm, intruder_dimensions=counted))
    asked = [row for row in found if not modules[row.module].has_magnitude]
    if asked and all(row.base_sigma_max is None for row in asked):
        raise MisfitError(
            f"{base.where}: holds no weight of the adapter's modules ({some([row.module for row in rows])}). "
            "Give the base model that the adapter was trained on."
        )
    return found


def not_held(rows: Sequence[LoRAAdapterMetrics], modules: Mapping[str, LoraModule]) -> list[str]:
    """What of an adapter is not held against the base, and why: a sentence for each reason.

    Args:
        rows: of `against_base`.
        modules: the adapter's.
    """
    reasons = {
        "has no weight in the base": [
            row.module for row in rows if row.base_sigma_max is None and not modules[row.module].has_magnitude
        ],
        "is a DoRA, whose magnitudes change W beside ΔW": [
            row.module for row in rows if modules[row.module].has_magnitude
        ],
        "has a weight in the base that is zero": [row.module for row in rows if row.base_sigma_max == 0],
    }
    return [
        f"{len(names)} of {counted(len(rows), 'module')} not held against the base: {some(names)} {why}"
        for why, names in reasons.items()
        if names
    ]


def _sizes(row: LoRAAdapterMetrics, weight: Float[Tensor, "d_out d_in"], where: str) -> tuple[float, float]:
    """σ_max(W) and ‖W‖_F."""
    sigma = largest_singular_value(weight)
    if not math.isfinite(sigma):
        raise LorabenchError(f"{where}: the weight of {row.module} holds NaN or infinity. Give a base that is whole.")
    return sigma, float(torch.linalg.vector_norm(weight, dtype=torch.float64))


def intruders(weight: Float[Tensor, "d_out d_in"], module: LoraModule) -> int:
    """How many of the first ten left singular vectors of W + ΔW resemble none of W's: every |cos| is below 0.5.

    Shuttleworth et al. 2024 ("LoRA vs full fine-tuning: an illusion of equivalence"). Two dense SVDs.

    Example:
        >>> base = torch.arange(9.0, 0.0, -1.0).diag()
        >>> loud = LoraModule(down=torch.ones(1, 9), up=torch.ones(9, 1), scale=9.0)
        >>> intruders(base, loud), intruders(base, LoraModule(loud.down, loud.up, scale=0.01))
        (1, 0)
    """
    before = weight.float()
    old = torch.linalg.svd(before, full_matrices=False).U
    new = torch.linalg.svd(before + module.delta().to(before), full_matrices=False).U[:, :_INTRUDERS]
    return int(((old.mT @ new).abs().amax(0) < _MATCH).sum())
