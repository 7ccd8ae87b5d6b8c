"""A fitted representation, the members that read it, and how far both may be trusted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from lorabench.data import as_taken
from lorabench.predict.conformal import Held
from lorabench.predict.novelty import Novelty
from lorabench.predict.reading import ModelModule
from lorabench.representations import Representation
from lorabench.training import Scaling
from lorabench.zoo import Zoo

__all__ = ["Model", "joined_features"]

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Model:
    """What `lorabench export` makes of a run, in memory.

    Attributes:
        target: what the classes are: "category" or "leaf".
        classes: their names.
        modules: of the adapters that it was trained on.
        representation: fitted on the training adapters.
        scaling: of its features; None where the members take them as they are.
        classifier: class of the members and arguments of each: {"class": path, "arguments": [{...}, ...]}.
        seeds: of the members.
        networks: the members', with their weights, one a seed.
        temperature: by which their logits are divided.
        conformal: 1 - p of the right class, of the test adapters.
        novelty: what the training adapters look like.
        trained_on: what a reader should know of the training, for the card.
    """

    target: str
    classes: tuple[str, ...]
    modules: tuple[ModelModule, ...]
    representation: Representation
    scaling: Scaling | None
    classifier: Mapping[str, Any]
    seeds: tuple[int, ...]
    networks: Sequence[nn.Module]
    temperature: float
    conformal: Held
    novelty: Novelty
    trained_on: Mapping[str, Any]

    def inputs(self, zoo: Zoo) -> Float32[Tensor, "n f"]:
        """What the members read of adapters (`reading.as_zoo`)."""
        return as_taken(joined_features(self.representation, zoo), self.scaling)

    def logits(self, inputs: Float32[Tensor, "n f"]) -> Float[Tensor, "members n c"]:
        """What every member says."""
        with torch.no_grad():
            return torch.stack([network.eval()(inputs) for network in self.networks])


def joined_features(representation: Representation, zoo: Zoo) -> Float32[Tensor, "n f"]:
    """Features of all units side by side, in their order."""
    return torch.cat([representation.features(zoo, unit, _CPU) for unit in representation.units(zoo)], 1)
