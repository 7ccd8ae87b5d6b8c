"""What must not tell the label, and what tells it best: the controls and the ceiling of a table.

They are representations like others, but describe the adapter without what it has learned (how it was made, how large
its ΔW is), or what it was trained on without the adapter. They have no yaml: every comparison asks for them.
"""

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from lorabench import lowrank
from lorabench.errors import LorabenchError
from lorabench.representations.base import Representation, Unit, chunks, to_device
from lorabench.representations.handcrafted import to_float32
from lorabench.zoo import Zoo

__all__ = ["Ceiling", "Control", "DeltaNorm", "Recipe"]


@dataclass
class Control(Representation):
    """One feature vector of a whole adapter."""

    @property
    def unit(self) -> Unit:
        """The whole adapter."""
        return "all"

    @property
    def gauge_invariant(self) -> bool:
        """No control looks at the factors themselves."""
        return True

    @abstractmethod
    def known(self, zoo: Zoo) -> bool:
        """Whether the zoo has what it reads."""


@dataclass
class Recipe(Control):
    """How it was made, as far as a zoo knows: `Zoo.recipe`.

    Args:
        without: columns that are left out, since they say what is to be predicted.
    """

    without: tuple[str, ...] = ()

    def known(self, zoo: Zoo) -> bool:
        """Whether anything is known of it."""
        return bool(self.columns(zoo))

    def columns(self, zoo: Zoo) -> dict[str, Float64[np.ndarray, " n"]]:
        """What is known and not left out."""
        return {name: column for name, column in zoo.recipe().items() if name not in self.without}

    def feature_names(self, zoo: Zoo, unit: str) -> tuple[str, ...]:
        """What is known: pictures, steps, the rank of a module, ..."""
        del unit
        return tuple(self.columns(zoo))

    def features(self, zoo: Zoo, unit: str, device: torch.device) -> Float32[Tensor, "n f"]:
        """One column a fact, [N, f]."""
        del unit, device
        return to_float32(torch.from_numpy(np.stack(list(self.columns(zoo).values()), 1)))


@dataclass
class DeltaNorm(Control):
    """How large ΔW is: ‖ΔW‖_F of the whole adapter, or of each module.

    Args:
        by_module: one norm a module, or √Σ‖ΔW‖² over all of them.
    """

    by_module: bool = False

    def known(self, zoo: Zoo) -> bool:
        """Whether there are modules."""
        return bool(zoo.modules)

    def feature_names(self, zoo: Zoo, unit: str) -> tuple[str, ...]:
        """One, or one a module."""
        del unit
        return tuple(module.name for module in zoo.modules) if self.by_module else ("norm",)

    def features(self, zoo: Zoo, unit: str, device: torch.device) -> Float32[Tensor, "n f"]:
        """Norms, [N, modules] or [N, 1]; padding of the factors is zero and adds nothing."""
        del unit
        norms = torch.empty(len(zoo), len(zoo.modules), dtype=torch.float64)
        for column, module in enumerate(zoo.modules):
            for start, stop in chunks(zoo, (module.down, module.up)):
                down, up = (to_device(zoo.read(name, start, stop), device) for name in (module.down, module.up))
                scale = torch.from_numpy(zoo.scale[start:stop, column]).to(device)
                norms[start:stop, column] = lowrank.frobenius_norm(down, up, scale).cpu()
        return to_float32(norms if self.by_module else norms.square().sum(1, keepdim=True).sqrt())


@dataclass
class Ceiling(Control):
    """What it was trained on: the zoo's own vector of it, as the mean picture."""

    cached = False

    def known(self, zoo: Zoo) -> bool:
        """Whether the source says what its adapters were trained on."""
        return zoo.ceiling is not None

    def feature_names(self, zoo: Zoo, unit: str) -> tuple[str, ...]:
        """One a number."""
        del unit
        return tuple(map(str, range(_of(zoo).shape[1])))

    def features(self, zoo: Zoo, unit: str, device: torch.device) -> Float32[Tensor, "n f"]:
        """The vectors, [N, d]."""
        del unit, device
        return to_float32(torch.from_numpy(_of(zoo).astype(np.float64)))


def _of(zoo: Zoo) -> Float32[np.ndarray, "n d"]:
    if zoo.ceiling is None:
        raise LorabenchError(f"{zoo.name} does not say what its adapters were trained on: it has no ceiling")
    return zoo.ceiling.read(0, len(zoo)).reshape(len(zoo), -1)
