"""The contract of a representation: adapter weights in, one feature vector an adapter and unit out."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from lorabench.errors import LorabenchError
from lorabench.options import OneOf, check_arguments
from lorabench.zoo import Module, Zoo

__all__ = ["On", "Representation", "Unit", "chunks"]

On = Annotated[str, OneOf(["factors", "delta"])]
"""What is looked at: the factors by themselves, or ΔW."""
Unit = Literal["layer", "module", "all"]
_CHUNK_BYTES = 32 * 2**20


def chunks(zoo: Zoo, layers: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    """Ranges of adapters whose `layers` together take about 32 MiB, so that any zoo passes through memory."""
    size = 4 * sum(zoo.layers[layer].shape[1] * zoo.layers[layer].shape[2] for layer in layers)
    step = max(1, _CHUNK_BYTES // max(size, 1))
    for start in range(0, len(zoo), step):
        yield start, min(start + step, len(zoo))


class Representation(ABC):
    """Turns a zoo into features {unit: float32 [N, f]}.

    Subclasses are dataclasses: the constructor only stores, `fit` learns from the rows it is given (the training
    rows) and stores under names that end in an underscore, `transform` computes in chunks of rows. A unit is a
    layer, a module (for what needs the pair) or the whole adapter ("all").
    """

    learns: ClassVar[bool] = False
    """Whether `fit` looks at the zoo; then the training rows are part of a cached feature's key."""
    supervised: ClassVar[bool] = False
    """Whether `fit` looks at what a run predicts too (`Zoo.target`), of the training rows: it is given no others."""
    cached: ClassVar[bool] = True
    """Whether features are worth keeping on disk."""
    keeps: ClassVar[bool] = False
    """Whether what `fit` learned of a unit is kept too, by `state`, and taken back by `restore`."""
    standardised: ClassVar[bool] = True
    """Whether a classifier reads the features centred and scaled by the training rows; else as they are."""

    def check(self) -> None:
        """Hold the options to their annotations; a subclass adds what two of them forbid together.

        Raises:
            LorabenchError: one is not allowed.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        check_arguments(type(self), values, "representation.")

    @property
    @abstractmethod
    def unit(self) -> Unit:
        """What one feature vector describes."""

    @property
    @abstractmethod
    def gauge_invariant(self) -> bool:
        """Whether the features stay under (up·G, G⁻¹·down); a test holds the class to its word."""

    @abstractmethod
    def feature_names(self, zoo: Zoo, unit: str) -> tuple[str, ...]:
        """Names of the f features of one unit."""

    @abstractmethod
    def features(self, zoo: Zoo, unit: str, device: torch.device) -> Float32[Tensor, "n f"]:
        """Features of one unit of every adapter, [N, f], on the CPU; `device` is where they are computed."""

    def fit(self, zoo: Zoo, device: torch.device) -> "Representation":
        """Learn from the training rows; representations without memory return at once."""
        del zoo, device
        return self

    def learn(self, zoo: Zoo, device: torch.device) -> Generator[str, None, None]:
        """`fit`, but a unit's name comes as soon as `features` may be asked for it."""
        self.fit(zoo, device)
        yield from self.units(zoo)

    def state(self, unit: str) -> bytes:
        """What `fit` learned of a unit, as a file for `restore`."""
        raise NotImplementedError(f"{type(self).__name__} keeps nothing of {unit}")

    def restore(self, unit: str, path: Path) -> None:
        """Take back what `state` gave."""
        raise NotImplementedError(f"{type(self).__name__} keeps nothing of {unit}, and {path} is not its own")

    def arrays(self) -> dict[str, Tensor]:
        """What `fit` learned, as arrays by name, for `take_arrays`; none where it learns nothing.

        Raises:
            LorabenchError: what was learned is not kept as arrays, or they would be too large.
        """
        if not self.learns:
            return {}
        raise LorabenchError(
            f"{type(self).__name__} cannot be exported: what it learned is not kept as arrays. Representations that "
            "learn nothing can, and pca, delta_pca, vae, contrastive, denoising and metric"
        )

    def take_arrays(self, zoo: Zoo, arrays: Mapping[str, Tensor]) -> None:
        """Know again what `arrays` gave, in place of `fit`.

        Args:
            zoo: any of the same layers, without adapters too.
            arrays: what another one of the same options gave.

        Raises:
            KeyError: an array is missing.
        """
        del zoo, arrays

    def units(self, zoo: Zoo) -> tuple[str, ...]:
        """The units of this zoo, in order.

        Raises:
            LorabenchError: there is none, for instance no module for what needs the pair; or an option is not allowed.
        """
        self.check()
        found = {
            "layer": tuple(zoo.layers),
            "module": tuple(module.name for module in zoo.modules),
            "all": ("all",) if zoo.layers else (),
        }[self.unit]
        if not found:
            raise LorabenchError(
                f"{type(self).__name__} needs a {self.unit}, and {zoo.name} has none left: "
                f"{len(zoo.layers)} layers in {len(zoo.modules)} modules"
            )
        return found

    def layers_of(self, zoo: Zoo, unit: str) -> tuple[str, ...]:
        """The layers that one unit is computed from."""
        if self.unit == "layer":
            return (unit,)
        if self.unit == "module":
            module = self.module(zoo, unit)
            return (module.down, module.up)
        return tuple(zoo.layers)

    def module(self, zoo: Zoo, unit: str) -> Module:
        """The module that bears the name `unit`."""
        return zoo.modules[zoo.module_index(unit)]

    def transform(self, zoo: Zoo, device: torch.device) -> dict[str, Float32[Tensor, "n f"]]:
        """Features of every unit, {unit: [N, f]}."""
        return {unit: self.features(zoo, unit, device) for unit in self.units(zoo)}

    def config(self) -> dict[str, Any]:
        """Class and arguments, for cache keys and results."""
        return {"class": f"{type(self).__module__}.{type(self).__qualname__}", **asdict(self)}  # type: ignore[call-overload]


def to_device(values: Float[np.ndarray, "*shape"], device: torch.device) -> Float32[Tensor, "*shape"]:
    """A read-only memory map as a tensor; copied, since torch cannot hold read-only memory."""
    return torch.from_numpy(np.array(values, dtype=np.float32)).to(device)
