"""The contract of a classifier that reads the factors of every module, in place of features of them."""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lorabench.classifiers.base import Classifier
from lorabench.classifiers.problem import Problem
from lorabench.errors import LorabenchError
from lorabench.zoo import ModuleShape

__all__ = ["FactorClassifier", "Factors", "alike", "joined", "split"]


class Factors(NamedTuple):
    """One module of a batch of adapters, ΔW = up @ down: the scale is folded into `up`."""

    down: Float[Tensor, "*batch r d_in"]
    up: Float[Tensor, "*batch d_out r"]


def split(x: Float[Tensor, "*batch f"], shapes: Sequence[ModuleShape]) -> list[Factors]:
    """The factors of every module in vectors as `joined` lays them out; views, no copies.

    >>> shapes = [ModuleShape(1, 2, 3), ModuleShape(2, 1, 1)]
    >>> [tuple(one.up.shape) for one in split(torch.arange(9.0), shapes)]
    [(3, 1), (1, 2)]
    """
    found = []
    for part, (rank, d_in, d_out) in zip(torch.split(x, [shape.size for shape in shapes], -1), shapes, strict=True):
        down, up = part[..., : rank * d_in], part[..., rank * d_in :]
        found.append(Factors(_as_matrix(down, rank, d_in), _as_matrix(up, d_out, rank)))
    return found


def _as_matrix(part: Float[Tensor, "*batch f"], rows: int, cols: int) -> Float[Tensor, "*batch rows cols"]:
    return part.reshape(*part.shape[:-1], rows, cols)


def joined(modules: Sequence[Factors]) -> Float[Tensor, "*batch f"]:
    """All modules in one vector: down row by row, then up row by row, one module after another.

    >>> joined([Factors(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]]))])
    tensor([1., 2., 3., 4.])
    """
    return torch.cat([one.flatten(-2) for module in modules for one in module], -1)


def alike(shapes: Sequence[ModuleShape]) -> list[tuple[ModuleShape, list[int]]]:
    """The places of the modules of each shape, so that they can be taken together.

    >>> [places for _, places in alike([ModuleShape(1, 2, 3), ModuleShape(1, 5, 3), ModuleShape(1, 2, 3)])]
    [[0, 2], [1]]
    """
    found: dict[ModuleShape, list[int]] = {}
    for place, shape in enumerate(shapes):
        found.setdefault(shape, []).append(place)
    return list(found.items())


class FactorClassifier(Classifier):
    """A classifier whose input [batch, Σ rank · (d_in + d_out)] are the factors of all modules as they are.

    They are not standardised: what a network makes of (up, down) is to follow from up @ down alone, and a shift of
    every number would break that. `build` finds the shapes in `self.shapes`, and takes an input apart by `split`.

    Args:
        shapes: of the modules (`ModuleShape`), in the zoo's order; `in_features` is the sum of their sizes.
        **settings: those of `Classifier`.
    """

    reads: ClassVar[dict[str, Any]] = {}
    """Options of `representation=factors` for what this classifier wants to read."""

    def __init__(self, shapes: Sequence[tuple[int, int, int]], **settings: Any) -> None:
        self.shapes = tuple(ModuleShape(*shape) for shape in shapes)  # `build`, which is called above, reads it
        super().__init__(shapes=[tuple(shape) for shape in self.shapes], **settings)
        self.hparams["shapes"] = [tuple(shape) for shape in self.shapes]  # primitives, whatever class came

    @property
    def gauge_invariant(self) -> bool:
        """Whether the logits stay under (up·G, G⁻¹·down); a test holds the class to its word."""
        return True

    @classmethod
    def sizes(cls, problem: Problem, features: int) -> dict[str, Any]:
        """Those of `Classifier`, and the shapes of the modules.

        Raises:
            LorabenchError: the features are no factors.
        """
        if not problem.shapes:
            raise LorabenchError(
                f"{cls.__name__} reads the factors of modules, and these features are none: take representation=factors"
            )
        return {**super().sizes(problem, features), "shapes": problem.shapes[features]}
