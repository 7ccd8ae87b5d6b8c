"""The factors of a module as they are, or in a form that ΔW alone decides: what factor classifiers read."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn.functional import pad

from lorabench import lowrank
from lorabench.options import OneOf
from lorabench.representations.base import Representation, Unit, chunks, to_device
from lorabench.zoo import Zoo

__all__ = ["Factors", "canonical"]


def canonical(
    down: Float[Tensor, "*batch r d_in"], up: Float[Tensor, "*batch d_out r"], sign: str = "largest"
) -> tuple[Float[Tensor, "*batch r d_in"], Float[Tensor, "*batch d_out r"]]:
    """The factors of ΔW = up @ down that its singular value decomposition U · diag(σ) · Vᵀ gives.

    down becomes Vᵀ and up U · diag(σ), σ descending. What is over the numerical rank of ΔW (in float32) is zero in
    both, as a padded rank is. A pair (uᵢ, vᵢ) is known up to its sign, which a rule decides, and singular values that
    are equal leave a whole rotation open: there the form is arbitrary, and near-equal ones may change places.

    Args:
        down: [*batch, r, d_in].
        up: [*batch, d_out, r], with the scale.
        sign: "largest": the entry of uᵢ of the largest magnitude is positive (W2T, arXiv 2603.15990); "mass":
            Σ sign(u) · u² > 0, which no single entry turns.

    Returns:
        down and up of the same shapes, in float64.

    >>> down, up = canonical(torch.tensor([[0.0, 2.0], [1.0, 0.0]]), torch.tensor([[0.0, -3.0], [0.5, 0.0]]))
    >>> torch.allclose(up, torch.tensor([[3.0, 0.0], [0.0, 1.0]], dtype=torch.float64))
    True
    >>> torch.allclose(down, torch.tensor([[-1.0, 0.0], [0.0, 1.0]], dtype=torch.float64))
    True
    """
    left, sigma, right = lowrank.thin_svd(down, up)
    if sign == "largest":
        decides = left.gather(-2, left.abs().argmax(-2, keepdim=True)).squeeze(-2)
    else:
        decides = (left.sign() * left.square()).sum(-2)
    rank = lowrank.numerical_rank(sigma, (up.shape[-2], down.shape[-1]))
    stays = torch.arange(sigma.shape[-1], device=sigma.device) < rank.unsqueeze(-1)
    turn = torch.where(decides < 0, -1.0, 1.0) * stays
    missing = down.shape[-2] - sigma.shape[-1]
    return (
        pad(right * turn.unsqueeze(-1), (0, 0, 0, missing)),
        pad(left * (sigma * turn).unsqueeze(-2), (0, missing)),
    )


@dataclass
class Factors(Representation):
    """Both factors of a module, [N, r · (d_in + d_out)]: down row by row, then scale · up row by row.

    A classifier that reads factors finds them in the order of `lorabench.classifiers.factors.joined`. They are not
    standardised: a shift of single numbers is no function of ΔW. Not cached: they are as large as the zoo.

    Args:
        form: "raw": as they were trained; "canonical": as ΔW alone decides (`canonical`).
        sign: the canonical form's rule of signs.
    """

    cached: ClassVar[bool] = False
    standardised: ClassVar[bool] = False

    form: Annotated[str, OneOf(["raw", "canonical"])] = "raw"
    sign: Annotated[str, OneOf(["largest", "mass"])] = "largest"

    @property
    def unit(self) -> Unit:
        """A module."""
        return "module"

    @property
    def gauge_invariant(self) -> bool:
        """Of the canonical form, but where singular values are equal; raw factors change with every gauge."""
        return self.form == "canonical"

    def feature_names(self, zoo: Zoo, unit: str) -> tuple[str, ...]:
        """`down[row,col]`, then `up[row,col]`."""
        rank, d_in, d_out = zoo.shape_of(unit)
        sides = (("down", rank, d_in), ("up", d_out, rank))
        return tuple(f"{side}[{row},{col}]" for side, rows, cols in sides for row in range(rows) for col in range(cols))

    def features(self, zoo: Zoo, unit: str, device: torch.device) -> Float32[Tensor, "n f"]:
        """Both factors of every adapter, [N, r · (d_in + d_out)]."""
        module, column = self.module(zoo, unit), zoo.module_index(unit)
        out = torch.empty(len(zoo), zoo.shape_of(unit).size)
        for start, stop in chunks(zoo, (module.down, module.up)):
            down, up = (to_device(zoo.read(layer, start, stop), device) for layer in (module.down, module.up))
            up = up * to_device(zoo.scale[start:stop, column], device)[:, None, None]
            if self.form == "canonical" and stop > start:
                down, up = canonical(down, up, self.sign)
            out[start:stop] = torch.cat([down.flatten(1), up.flatten(1)], 1).float().cpu()
        return out
