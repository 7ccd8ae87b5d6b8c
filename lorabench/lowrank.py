"""Low-rank algebra of ΔW = scale · up @ down, never formed: every spectral number is defined here, once.

Shapes: down [*batch, r, d_in], up [*batch, d_out, r], scale a number or [*batch]; spectra σ are [*batch, k],
descending. All is computed and returned in float64. An all-zero matrix has no spectrum: its ratios are NaN,
so that callers must decide what to say ("untrained"), and never a made-up number.
"""

import math

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

__all__ = [
    "condition_number",
    "effective_rank",
    "energy_rank",
    "frobenius_norm",
    "inner_product",
    "inner_products",
    "largest_singular_value",
    "matrix_singular_values",
    "numerical_rank",
    "participation_ratio",
    "rank_utilisation",
    "singular_values",
    "singular_values_of_grams",
    "stable_rank",
    "thin_svd",
]

Scale = float | Float[Tensor, "*batch"]

_POOREST = 1e6
"""Of ‖L⁻¹‖_F² for the root L of a Gram matrix of unit columns: a basis by it is orthonormal to 1e-10."""
_FORMED = 2**14
"""Numbers of a ΔW that may be formed for its inner products: 4 times faster for 32 × 32 at rank 4, 14 at rank 8."""


def singular_values(
    down: Float[Tensor, "*batch r d_in"], up: Float[Tensor, "*batch d_out r"], scale: Scale = 1.0
) -> Float64[Tensor, "*batch r"]:
    """The r singular values of ΔW in descending order, from r×r cores.

    With the Gram matrices Gᵤ = upᵀ·up = L·Lᵀ and G_d = down·downᵀ, the values of σ² are the eigenvalues of
    Lᵀ·G_d·L. The row norms of down and column norms of up are made equal first, which changes no ΔW and keeps
    a badly balanced pair exact. Values below 1e-8·σ₁ or so cannot be told from rounding and are 0.

    Args:
        down: A of PEFT, [*batch, r, d_in].
        up: B of PEFT, [*batch, d_out, r].
        scale: factor of up @ down, a number or [*batch].

    Returns:
        σ [*batch, r]: r values, never min(d_out, d_in); what is over the rank of ΔW is 0.

    Example:
        >>> down, up = torch.eye(2, 5), torch.tensor([[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
        >>> singular_values(down, up, 0.5).tolist()
        [1.5, 1.0]
    """
    down, up = down.double(), up.double()
    size = _as_batch(scale, down).abs().unsqueeze(-1)
    if down.shape[-2] == 1:
        norms: Tensor = down.norm(dim=-1) * up.norm(dim=-2)
        return size * norms
    return size * singular_values_of_grams(down @ down.mT, up.mT @ up)


def singular_values_of_grams(
    gram_down: Float64[Tensor, "*batch r r"], gram_up: Float64[Tensor, "*batch r r"]
) -> Float64[Tensor, "*batch r"]:
    """`singular_values` of up @ down by who has its Gram matrices down·downᵀ and upᵀ·up already.

    Example:
        >>> singular_values_of_grams(torch.eye(2).double(), torch.diag(torch.tensor([9.0, 4.0])).double()).tolist()
        [3.0, 2.0]
    """
    gram_down, gram_up = _balanced(gram_down, gram_up)
    values, vectors = torch.linalg.eigh(gram_up)
    root = vectors * _not_negative(values).sqrt().unsqueeze(-2)
    return _roots_of_eigenvalues(root.mT @ gram_down @ root)


def thin_svd(
    down: Float[Tensor, "*batch r d_in"], up: Float[Tensor, "*batch d_out r"], scale: Scale = 1.0
) -> tuple[Float64[Tensor, "*batch d_out k"], Float64[Tensor, "*batch k"], Float64[Tensor, "*batch k d_in"]]:
    """ΔW = left · diag(σ) · right, k = min(r, d_out, d_in), by a basis of each factor and the SVD of an r×r core.

    The bases come from Cholesky roots of r×r Gram matrices (Yamamoto et al. 2015), and from Householder QR for a
    factor whose unit rows or columns are so nearly dependent that such a root would lose more than 1e-10. Every σ
    is right to 1e-9 of itself or to 1e-14 of |scale|·‖up‖·‖down‖, whichever is more.

    Args:
        down: A of PEFT, [*batch, r, d_in].
        up: B of PEFT, [*batch, d_out, r].
        scale: factor of up @ down, a number or [*batch]; the sign goes into `left`.

    Returns:
        left [*batch, d_out, k] with orthonormal columns (to 1e-9), σ [*batch, k] descending, right [*batch, k, d_in]
        with orthonormal rows.
    """
    columns, turn, root = _orthonormal(up.double())
    rows, turn_down, root_down = _orthonormal(down.double().mT)
    left, sigma, right = torch.linalg.svd(root @ root_down.mT, full_matrices=False)
    size = _as_batch(scale, down)
    signed: Tensor = columns @ (turn @ left * torch.where(size < 0, -1.0, 1.0)[..., None, None])
    return signed, sigma * size.abs().unsqueeze(-1), right @ turn_down.mT @ rows.mT


def matrix_singular_values(matrix: Float[Tensor, "*batch rows cols"]) -> Float64[Tensor, "*batch k"]:
    """The k = min(rows, cols) singular values of a matrix, one factor say, from its short side's Gram matrix.

    Returns:
        σ [*batch, k], descending; values below 1e-8·σ₁ or so cannot be told from rounding and are 0.
    """
    values = matrix.double()
    if min(values.shape[-2:]) == 1:
        norm: Tensor = values.norm(dim=(-2, -1))
        return norm.unsqueeze(-1)
    return _roots_of_eigenvalues(values @ values.mT if values.shape[-2] <= values.shape[-1] else values.mT @ values)


def largest_singular_value(matrix: Float[Tensor, "rows cols"], tolerance: float = 1e-7, most: int = 300) -> float:
    """σ₁ of a dense matrix, by Golub–Kahan–Lanczos bidiagonalisation with full reorthogonalisation.

    A step is one product with the matrix and one with its transpose, in the matrix's own type, float32 at least; a few
    tens of them do where a whole SVD takes min(rows, cols). The start is random, and the same each time.

    Args:
        matrix: any; a large one is never copied but for its type.
        tolerance: of the relative change of σ₁ over a step at which it ends, twice in a row.
        most: steps at which it ends in any case.

    Returns:
        σ₁, never above the true one but for rounding; NaN where an entry is not finite.
    """
    values = matrix if matrix.dtype in (torch.float32, torch.float64) else matrix.float()
    start = torch.randn(values.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    right = (start / start.norm()).to(values)[None]
    left, sigma, settled = values.new_zeros(0, values.shape[0]), 0.0, 0
    diagonal: list[float] = []
    above: list[float] = []
    for _ in range(min(most, *values.shape)):
        column = _without(values @ right[-1], left)
        diagonal.append(_length(column))
        left = torch.cat([left, (column / (diagonal[-1] or 1.0))[None]])
        row = _without(values.mT @ left[-1], right)
        above.append(_length(row))
        before, sigma = sigma, _of_bidiagonal(diagonal, above)
        settled = settled + 1 if abs(sigma - before) <= tolerance * sigma else 0
        if settled == 2 or above[-1] == 0 or math.isnan(sigma):
            break
        right = torch.cat([right, (row / above[-1])[None]])
    return sigma


def frobenius_norm(
    down: Float[Tensor, "*batch r d_in"], up: Float[Tensor, "*batch d_out r"], scale: Scale = 1.0
) -> Float64[Tensor, "*batch"]:
    """‖ΔW‖_F = |scale| · √tr(upᵀ·up · down·downᵀ), [*batch]."""
    return inner_product((down, up, scale), (down, up, scale)).clamp_min(0).sqrt()


def inner_product(
    first: tuple[Float[Tensor, "*batch r d_in"], Float[Tensor, "*batch d_out r"], Scale],
    second: tuple[Float[Tensor, "*batch q d_in"], Float[Tensor, "*batch d_out q"], Scale],
) -> Float64[Tensor, "*batch"]:
    """⟨ΔW₁, ΔW₂⟩ = Σ ΔW₁ ∘ ΔW₂ = scale₁ · scale₂ · Σ (up₁ᵀ·up₂) ∘ (down₁·down₂ᵀ), [*batch].

    Args:
        first: (down, up, scale) of ΔW₁; its rank may differ from the other's.
        second: (down, up, scale) of ΔW₂.
    """
    (down_a, up_a, scale_a), (down_b, up_b, scale_b) = first, second
    ups = up_a.double().mT @ up_b.double()
    downs = down_a.double() @ down_b.double().mT
    return _as_batch(scale_a, downs) * _as_batch(scale_b, downs) * (ups * downs).sum((-2, -1))


def inner_products(
    first: tuple[Float[Tensor, "n r d_in"], Float[Tensor, "n d_out r"]],
    second: tuple[Float[Tensor, "m q d_in"], Float[Tensor, "m d_out q"]],
) -> Float64[Tensor, "n m"]:
    """`inner_product` of every pair by two products of stacked factors; a scale is in a factor.

    Small ΔW, of at most 128 × 128 or so, are formed where that takes fewer products.

    Args:
        first: (down, up) of n matrices.
        second: (down, up) of m matrices.

    Returns:
        ⟨ΔWᵢ, ΔWⱼ⟩, [n, m]; on the way there are n · r · m · q numbers, or (n + m) · d_out · d_in.
    """
    (down, up), (other_down, other_up) = ([factor.double() for factor in side] for side in (first, second))
    n, r, d_in = down.shape
    m, q, _ = other_down.shape
    d_out = up.shape[1]
    if d_out * d_in <= min(_FORMED, r * q * (d_out + d_in)):  # by shapes alone: a pair has one value in any company
        return (up @ down).flatten(1) @ (other_up @ other_down).flatten(1).T
    products = up.mT.flatten(0, 1) @ other_up.mT.flatten(0, 1).T
    products *= down.flatten(0, 1) @ other_down.flatten(0, 1).T
    return products.view(n * r, m, q).sum(2).view(n, r, m).sum(1)


def effective_rank(sigma: Float[Tensor, "*batch k"]) -> Float64[Tensor, "*batch"]:
    """exp(−Σ p ln p) with p = σ/Σσ, [*batch]; NaN for an all-zero σ (Roy & Vetterli 2007).

    Example:
        >>> round(effective_rank(torch.tensor([4.0, 2.0, 1.0, 1.0])).item(), 3)
        3.364
    """
    values = sigma.double()
    share = values / values.sum(-1, keepdim=True)
    entropy: Tensor = torch.special.entr(share).sum(-1)
    return entropy.exp()


def stable_rank(sigma: Float[Tensor, "*batch k"]) -> Float64[Tensor, "*batch"]:
    """‖·‖_F² / σ₁² = Σσ²/σ₁², [*batch]; NaN for an all-zero σ (Rudelson & Vershynin 2007)."""
    relative = _relative(sigma)
    return relative.square().sum(-1)


def participation_ratio(sigma: Float[Tensor, "*batch k"]) -> Float64[Tensor, "*batch"]:
    """(Σσ²)² / Σσ⁴, [*batch]; NaN for an all-zero σ."""
    energy = _relative(sigma).square()
    return energy.sum(-1).square() / energy.square().sum(-1)


def rank_utilisation(sigma: Float[Tensor, "*batch k"]) -> Float64[Tensor, "*batch"]:
    """Effective rank / k, in (0, 1], with k the number of values (the nominal rank), [*batch]."""
    return effective_rank(sigma) / sigma.shape[-1]


def energy_rank(sigma: Float[Tensor, "*batch k"], share: float = 0.9) -> Int64[Tensor, "*batch"]:
    """The smallest k with Σ_{i≤k} σ² ≥ share · Σσ², [*batch]; 0 for an all-zero σ.

    Args:
        sigma: spectrum [*batch, k], descending.
        share: part of the energy, in (0, 1].
    """
    energy = _relative(sigma).nan_to_num(0.0).square().cumsum(-1)
    # Rounding of the running sum must not ask for one value more than an exact share needs.
    short = energy < share * energy[..., -1:] * (1 - 1e-12)
    return torch.where(energy[..., -1] > 0, short.sum(-1) + 1, 0)


def condition_number(sigma: Float[Tensor, "*batch k"]) -> Float64[Tensor, "*batch"]:
    """σ₁ / σ_k over all k values, [*batch]: infinite where only the last is 0, NaN where all are."""
    values = sigma.double()
    return values[..., 0] / values[..., -1]


def numerical_rank(
    sigma: Float[Tensor, "*batch k"], shape: tuple[int, int], dtype: torch.dtype = torch.float32
) -> Int64[Tensor, "*batch"]:
    """Count of σ > σ₁ · max(d_out, d_in) · eps(dtype), [*batch].

    Args:
        sigma: spectrum [*batch, k], descending.
        shape: (d_out, d_in) of ΔW.
        dtype: what the weights are stored in, whose rounding sets the threshold.
    """
    values = sigma.double()
    return (values > values[..., :1] * max(shape) * torch.finfo(dtype).eps).sum(-1)


def _without(vector: Float[Tensor, " n"], basis: Float[Tensor, "k n"]) -> Float[Tensor, " n"]:
    """What of a vector is at right angles to an orthonormal basis; twice, since rounding leaves a rest."""
    for _ in range(2):
        vector = vector - basis.mT @ (basis @ vector)
    return vector


def _length(vector: Float[Tensor, " n"]) -> float:
    """In float64: float32's squares leave its range from 1e19 on, and below 1e-19."""
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))


def _of_bidiagonal(diagonal: list[float], above: list[float]) -> float:
    """σ₁ of the k × (k + 1) matrix with these two diagonals."""
    if not math.isfinite(sum(diagonal) + sum(above)):
        return math.nan
    core = torch.zeros(len(diagonal), len(diagonal) + 1, dtype=torch.float64)
    core.diagonal().copy_(torch.tensor(diagonal))
    core.diagonal(1).copy_(torch.tensor(above))
    return float(torch.linalg.matrix_norm(core, 2))


def _as_batch(scale: Scale, like: Float[Tensor, "*batch rows cols"]) -> Float64[Tensor, "..."]:
    return torch.as_tensor(scale, dtype=torch.float64, device=like.device)


def _relative(sigma: Float[Tensor, "*batch k"]) -> Float64[Tensor, "*batch k"]:
    # σ/σ₁ before squaring: squares of 1e-200 and of 1e200 leave float64.
    values = sigma.double()
    return values / values[..., :1]


def _balanced(
    gram_down: Float64[Tensor, "*batch r r"], gram_up: Float64[Tensor, "*batch r r"]
) -> tuple[Float64[Tensor, "*batch r r"], Float64[Tensor, "*batch r r"]]:
    """Both Gram matrices after the diagonal gauge that gives row i of down and column i of up one norm."""
    norm_down = gram_down.diagonal(dim1=-2, dim2=-1).sqrt()
    norm_up = gram_up.diagonal(dim1=-2, dim2=-1).sqrt()
    ratio = torch.where((norm_down > 0) & (norm_up > 0), norm_up / norm_down, 1.0).sqrt()
    weight = ratio.unsqueeze(-1) * ratio.unsqueeze(-2)
    return gram_down * weight, gram_up / weight


def _orthonormal(
    matrix: Float64[Tensor, "*batch n r"],
) -> tuple[Float64[Tensor, "*batch n k"], Float64[Tensor, "*batch k k"], Float64[Tensor, "*batch k r"]]:
    """columns, turn and root: matrix = (columns @ turn) @ root, and columns @ turn is orthonormal, k = min(n, r).

    The product with `turn` is left to the caller, who has r×r matrices to multiply it with first.
    """
    if matrix.shape[-2] < matrix.shape[-1]:
        return _by_householder(matrix)
    gram = matrix.mT @ matrix
    norms = gram.diagonal(dim1=-2, dim2=-1).sqrt()
    unit = gram / (norms.unsqueeze(-1) * norms.unsqueeze(-2))
    lower, failed = torch.linalg.cholesky_ex(unit)
    eye = torch.eye(matrix.shape[-1], dtype=torch.float64, device=matrix.device).expand_as(lower)
    turn = torch.linalg.solve_triangular(lower, eye, upper=False).mT / norms.unsqueeze(-1)
    # ‖L⁻¹‖² bounds the condition of unit columns; what is lost is eps times that. A column of zeros gives NaN.
    loss = (turn * norms.unsqueeze(-1)).square().sum((-2, -1))
    poor = (failed != 0) | ~(loss < _POOREST)
    if not bool(poor.any()):
        return matrix, turn, lower.mT * norms.unsqueeze(-2)
    columns, turn, root = matrix.clone(), turn.contiguous(), (lower.mT * norms.unsqueeze(-2)).contiguous()
    columns[poor], turn[poor], root[poor] = _by_householder(matrix[poor])
    return columns, turn, root


def _by_householder(
    matrix: Float64[Tensor, "*batch n r"],
) -> tuple[Float64[Tensor, "*batch n k"], Float64[Tensor, "*batch k k"], Float64[Tensor, "*batch k r"]]:
    columns, root = torch.linalg.qr(matrix)
    eye = torch.eye(columns.shape[-1], dtype=torch.float64, device=matrix.device)
    return columns, eye.expand(*columns.shape[:-2], *eye.shape), root


def _not_negative(eigenvalues: Float64[Tensor, "*batch k"]) -> Float64[Tensor, "*batch k"]:
    """Ascending eigenvalues of a positive semi-definite matrix; what is below their rounding is set to 0."""
    floor = eigenvalues[..., -1:] * (eigenvalues.shape[-1] * torch.finfo(torch.float64).eps)
    return torch.where(eigenvalues > floor, eigenvalues, 0.0)


def _roots_of_eigenvalues(gram: Float64[Tensor, "*batch k k"]) -> Float64[Tensor, "*batch k"]:
    return _not_negative(torch.linalg.eigvalsh(gram)).sqrt().flip(-1)
