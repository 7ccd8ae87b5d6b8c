"""Principal components of the weights themselves, learned from the training rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float32
from torch import Tensor

from lorabench.errors import LorabenchError
from lorabench.options import AtLeast, OneOf
from lorabench.progress import track
from lorabench.representations.base import Representation, Unit, to_device
from lorabench.representations.components import Basis, Rows, principal_components, scores, unit_seed
from lorabench.zoo import Zoo

__all__ = ["PCA", "Components", "check_rows", "product_device"]

Components = Annotated[int, AtLeast(1)]


@dataclass
class PCA(Representation):
    """Scores of the flattened weights on the principal components of the training rows, [N, components].

    The rows are centred by the training mean and not scaled. There are at most min(n_train - 1, d)
    components, fewer where training rows coincide; what is missing to `components` is zero. A zoo larger than
    memory streams through.

    Args:
        components: length of the feature vector.
        scope: "layer" for the components of every layer, "all" for those of all layers behind one another.
        memory_gb: what the square matrices of an exact decomposition may take (24 bytes times the square of
            n_train or of d, whichever is smaller); beyond it the components are found by a seeded randomised
            iteration.
        seed: of that iteration.
    """

    learns: ClassVar[bool] = True

    components: Components = 100
    scope: Annotated[str, OneOf(["layer", "all"])] = "layer"
    memory_gb: Annotated[int | float, AtLeast(0)] = 0.1
    seed: int = 0

    @property
    def unit(self) -> Unit:
        """A layer, or "all"."""
        return "all" if self.scope == "all" else "layer"

    @property
    def gauge_invariant(self) -> bool:
        """False: the factors change with the gauge, and their components with them."""
        return False

    def feature_names(self, zoo: Zoo, unit: str) -> tuple[str, ...]:
        """`pc1`, `pc2` and so on, by falling variance over the training rows."""
        del zoo, unit
        return tuple(f"pc{i + 1}" for i in range(self.components))

    def fit(self, zoo: Zoo, device: torch.device) -> "PCA":
        """Learn the mean and the components of every unit from these rows.

        Raises:
            LorabenchError: an option is not allowed, or there are no rows.
        """
        check_rows(zoo)
        self.bases_: dict[str, tuple[tuple[str, ...], Basis]] = {}
        for unit in track(self.units(zoo), "principal components"):
            layers, seed = self.layers_of(zoo, unit), unit_seed(self.seed, unit)
            rows = _flat_rows(zoo, layers, device)
            self.bases_[unit] = (
                layers,
                principal_components(rows, self.components, self.memory_gb * 1e9, seed),
            )
        return self

    def features(self, zoo: Zoo, unit: str, device: torch.device) -> Float32[Tensor, "n f"]:
        """Scores of every adapter, [N, components].

        Raises:
            LorabenchError: `fit` has not seen this unit, or saw it with other layers.
        """
        layers, basis = getattr(self, "bases_", {}).get(unit, ((), None))
        if basis is None or layers != self.layers_of(zoo, unit):
            raise LorabenchError(
                f"pca was not fitted on unit {unit!r} with these {len(self.layers_of(zoo, unit))} layers of "
                f"{zoo.name}; call fit with the training rows of the same layers first"
            )
        return scores(_flat_rows(zoo, layers, device), basis, self.components)

    def arrays(self) -> dict[str, Tensor]:
        """Mean, directions and variances of every unit, float32."""
        return {name: one for unit, (_, basis) in self.bases_.items() for name, one in basis.arrays(unit).items()}

    def take_arrays(self, zoo: Zoo, arrays: Mapping[str, Tensor]) -> None:
        """Know again what `arrays` gave."""
        self.bases_ = {unit: (self.layers_of(zoo, unit), Basis.of(unit, arrays)) for unit in self.units(zoo)}


def product_device(device: torch.device) -> torch.device:
    """`device`, or the CPU in place of one without float64 (Apple's)."""
    return torch.device("cpu") if device.type == "mps" else device


def check_rows(zoo: Zoo) -> None:
    """Refuse to learn from nothing.

    Raises:
        LorabenchError: the zoo has no rows.
    """
    if len(zoo) == 0:
        raise LorabenchError(f"{zoo.name} has no training rows to learn from; give the training split more")


def _flat_rows(zoo: Zoo, layers: tuple[str, ...], device: torch.device) -> Rows:
    place = product_device(device)

    def read(block: int, start: int, stop: int) -> Float32[Tensor, "n width"]:
        return to_device(zoo.read(layers[block], start, stop), place).flatten(1)

    widths = tuple(zoo.layers[layer].shape[1] * zoo.layers[layer].shape[2] for layer in layers)
    return Rows(len(zoo), widths, read, place)
