"""The factor pair nearest to a dense ΔW: its truncated SVD, from a block Krylov space or from all eigenvectors."""

import itertools
import math
from collections.abc import Iterator

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

__all__ = ["best_pair"]

_CHUNK = 2**17  # entries that are cast to float64 at a time: what the cache of a core holds
_LOST = 1e-7
"""Of the squared distance to the nearest ΔW of that rank, how much farther away a pair may be."""
_ROUNDING = 1e-14  # of ‖ΔW‖², the same for a ΔW that is of that rank itself
_MORE = 8  # rows of a block over the rank, at least
_FIRST_LOOK = 3  # blocks until the first look at what is lost
_WIDEST = 0.6  # of the matrix' smaller side, the dimension of the space at most
_SMALL = 160  # sides up to this are decomposed as a whole at once

_Parts = tuple[Float64[Tensor, "k rows"], Float64[Tensor, " k"], Float64[Tensor, "k cols"]]
"""Left vectors Uᵀ, σ² descending, and Uᵀ·ΔW = diag(σ)·Vᵀ."""


def best_pair(
    delta: Float32[Tensor, "d_out d_in"], rank: int
) -> tuple[Float64[Tensor, "k d_in"], Float64[Tensor, "d_out k"], float]:
    """The factors (down, up) nearest to a dense ΔW, and the distance ‖ΔW − up @ down‖_F that theory predicts.

    The truncated SVD (Eckart & Young 1936); both factors get √σ. The leading left vectors come from a block Krylov
    space of ΔW·ΔWᵀ (Musco & Musco 2015), built in float32, and their σ from a Rayleigh-Ritz step in float64, whose
    residuals say how much nearer a pair could be (see `_lost`). Where that is over 1e-7 of the squared distance for
    float32's rounding, the space is built again in float64 from what there is; where the space would take more work
    than they do, all eigenvectors of ΔW·ΔWᵀ are taken.

    Args:
        delta: ΔW.
        rank: of the factors; k = min(rank, d_out, d_in).

    Example:
        >>> down, up, distance = best_pair(torch.diag(torch.tensor([5.0, 4.0, 3.0])), 2)
        >>> (up @ down).diagonal().round(decimals=6).tolist(), round(distance, 6)
        ([5.0, 4.0, 0.0], 3.0)
    """
    flat = delta if delta.shape[0] <= delta.shape[1] else delta.mT.contiguous()
    k = min(rank, flat.shape[0])
    energy = float(torch.linalg.vector_norm(flat, dtype=torch.float64)) ** 2
    own, squares, other = _leading(flat, k, energy)
    tail = max(energy - float(squares.sum()), 0.0) ** 0.5
    root = squares.sqrt().sqrt()
    own, other = own * root[:, None], other / torch.where(root > 0, root, 1.0)[:, None]
    return (other, own.mT, tail) if flat is delta else (own, other.mT, tail)


def _leading(flat: Float32[Tensor, "rows cols"], k: int, energy: float) -> _Parts:
    """The k leading parts of a matrix that is not higher than wide."""
    rows, width = len(flat), _width(k)
    if energy > 0 and rows > max(_SMALL, 8 * width):
        # The same start for every matrix: the result depends on nothing else.
        start = torch.randn(width, flat.shape[1], generator=torch.Generator().manual_seed(0))
        vectors = start @ flat.mT
        for dtype in (torch.float32, torch.float64):
            vectors, behind, done = _krylov(flat.to(dtype), vectors.to(dtype), k, energy)
            if not done:
                break
            parts, lost = _refined(flat, vectors[:k], behind)
            if lost <= _allowed(energy, parts[1]):
                return parts
    return _whole(flat, k)


def _krylov(
    matrix: Float[Tensor, "rows cols"], start: Float[Tensor, "width rows"], k: int, energy: float
) -> tuple[Float64[Tensor, "width rows"], float, bool]:
    """Leading Ritz vectors of ΔW·ΔWᵀ in the span of start, ΔW·ΔWᵀ·start, ..., as many as `start` has.

    And the Ritz value half the surplus behind the k-th, which stands for what the span lacks; and whether the vectors
    are as good as they must be, before the space got so large that it is no cheaper than the whole.
    Vectors are rows: products of a few rows with a large matrix take half the time of those with a few columns.
    """
    width, scale = len(start), energy**-0.5  # squares of tiny numbers would be none at all
    most = width * max(_FIRST_LOOK, int(_WIDEST * len(matrix) / width))
    basis, images, gram = (matrix.new_empty(most, size) for size in (*matrix.shape, most))
    block, look = torch.linalg.qr(start.mT).Q.mT, _FIRST_LOOK
    for blocks in itertools.count(1):
        known, new = slice(blocks * width), slice((blocks - 1) * width, blocks * width)
        basis[new] = block
        image = torch.mm(block, matrix, out=images[new]).mul_(scale)
        gram[new, known] = image @ images[known].mT  # the lower triangle, which is all that eigh looks at
        block = (image @ matrix.mT).mul_(scale)
        for _ in range(2):  # once is not enough where they nearly depend on each other
            block.addmm_(block @ basis[known].mT, basis[known], alpha=-1)
        columns, rest = torch.linalg.qr(block.mT)
        block = columns.mT
        if blocks == look:  # which costs more than a block
            squares, turn = (part.flip(-1) for part in torch.linalg.eigh(gram[known, known]))
            behind = float(squares[k + _MORE // 2])
            lost = _lost(squares[:k], behind, (rest @ turn[-width:, :k]).norm(dim=0))
            allowed = _allowed(1.0, squares[:k])
            look += _blocks_to_go(lost, allowed, blocks)
            if lost <= allowed or look * width > most:
                break
    return (turn[:, :width].mT @ basis[known]).double(), behind * energy, lost <= allowed


def _width(k: int) -> int:
    """Rows of a block: a multiple of what the processor's products take at once, so that the last ones cost nothing."""
    return -(-(k + _MORE) // 16) * 16


def _blocks_to_go(lost: float, allowed: float, blocks: int) -> int:
    """How many more until too little is lost to matter: it falls by a factor a block, by more and more of it."""
    if not 0 < allowed < lost < 1:
        return 1
    return math.ceil(0.75 * blocks * math.log(lost / allowed) / -math.log(lost))


def _refined(
    flat: Float32[Tensor, "rows cols"], vectors: Float64[Tensor, "k rows"], behind: float
) -> tuple[_Parts, float]:
    """The parts of a matrix within a span in float64, and the most that their Σσ² can be short of the best."""
    basis = torch.linalg.qr(vectors.mT).Q.mT
    image, product = _across(basis, flat)
    squares, turn = (part.flip(-1) for part in torch.linalg.eigh(image @ image.mT))
    squares, turn = squares.clamp_min(0), turn.mT
    own = turn @ basis
    lost = _lost(squares, behind, (turn @ product - own * squares[:, None]).norm(dim=1))
    return (own, squares, turn @ image), lost


def _whole(flat: Float32[Tensor, "rows cols"], k: int) -> _Parts:
    """The k leading parts from all eigenvectors of ΔW·ΔWᵀ."""
    gram = torch.zeros(len(flat), len(flat), dtype=torch.float64)
    for part in _columns(flat):
        gram.addmm_(part, part.mT)
    own = torch.linalg.eigh(gram).eigenvectors[:, -k:].flip(-1).mT.contiguous()
    image, _ = _across(own, flat)
    return own, image.square().sum(1), image


def _lost(squares: Float[Tensor, " k"], behind: float, residuals: Float[Tensor, " k"]) -> float:
    """How much the sum of k Ritz values is short of that of the leading eigenvalues, in the second order.

    Σ ‖r_i‖² / (θ_i − c) for the residuals r_i, with c over the eigenvalues whose vectors the span lacks.
    """
    gaps = squares.double() - behind
    return float((residuals.double().square() / gaps.clamp_min(1e-300)).sum())


def _allowed(energy: float, squares: Float[Tensor, " k"]) -> float:
    return _LOST * max(energy - float(squares.sum()), 0.0) + _ROUNDING * energy


def _across(
    basis: Float64[Tensor, "k rows"], flat: Float32[Tensor, "rows cols"]
) -> tuple[Float64[Tensor, "k cols"], Float64[Tensor, "k rows"]]:
    """basis·ΔW and basis·ΔW·ΔWᵀ, in float64."""
    images, product = [], torch.zeros_like(basis)
    for part in _columns(flat):
        images.append(basis @ part)
        product.addmm_(images[-1], part.mT)
    return torch.cat(images, dim=1), product


def _columns(flat: Float32[Tensor, "rows cols"]) -> Iterator[Float64[Tensor, "rows some"]]:
    width = max(16, _CHUNK // len(flat))
    return (flat[:, start : start + width].double() for start in range(0, flat.shape[1], width))
