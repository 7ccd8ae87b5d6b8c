"""Σ factor_i · up_i @ down_i and how far another ΔW is from it, by factors alone."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

__all__ = ["Term", "distance", "ratio", "stacked"]

Term = tuple[Float[Tensor, "_ d_in"], Float[Tensor, "d_out _"], float | int]
"""(down [r, d_in], up [d_out, r], factor) of factor · up @ down."""

_CANCELLED = 1e-10
_ROUNDING = 1e-14


def stacked(terms: Sequence[Term]) -> tuple[Float64[Tensor, "sum_r d_in"], Float64[Tensor, "d_out sum_r"]]:
    """One pair of the sum of all terms: rows of down stacked, columns of factor · up stacked; ranks add."""
    down = torch.cat([down.double() for down, _, _ in terms])
    up = torch.cat([factor * up.double() for _, up, factor in terms], dim=1)
    return down, up


def distance(found: Term, terms: Sequence[Term]) -> tuple[float, float]:
    """‖found − Σ terms‖_F and ‖Σ terms‖_F; what cannot be told from float64's rounding of the parts is 0.

    By the Gram matrices of the stacked factors, and by QR of them where so much cancels that squares of norms
    have no digits left. Where both have one down matrix, as in a concatenation, the difference of up says it all.
    """
    down, up = stacked(terms)
    own_down, own_up = stacked([found])
    if torch.equal(own_down, down):
        return _norm(down, own_up - up), _norm(down, up)
    rank = len(down)
    down, up = torch.cat([down, own_down]), torch.cat([up, -own_up], dim=1)
    gram = _products(down, up)
    return _norm(down, up, gram), _norm(down[:rank], up[:, :rank], gram[:rank, :rank])


def ratio(part: float, whole: float) -> float:
    """An error relative to what it is an error of: 0 where there is none, infinite where only the whole is 0."""
    if part == 0:
        return 0.0
    return part / whole if whole > 0 else float("inf")


def _products(down: Float64[Tensor, "r d_in"], up: Float64[Tensor, "d_out r"]) -> Float64[Tensor, "r r"]:
    """Inner products of the r rank-one parts; their sum is ‖up @ down‖²."""
    return (up.mT @ up) * (down @ down.mT)


def _norm(
    down: Float64[Tensor, "r d_in"], up: Float64[Tensor, "d_out r"], gram: Float64[Tensor, "r r"] | None = None
) -> float:
    """‖up @ down‖_F; `gram` are its `_products`, where they are known."""
    gram = _products(down, up) if gram is None else gram
    size = float(gram.diagonal().clamp_min(0).sqrt().sum())
    square = float(gram.sum())
    if square > _CANCELLED * size**2:
        return float(square**0.5)
    triangles = [torch.linalg.qr(factor, mode="r").R for factor in (up, down.mT)]
    value = float((triangles[0] @ triangles[1].mT).norm())
    return value if value > _ROUNDING * size else 0.0
