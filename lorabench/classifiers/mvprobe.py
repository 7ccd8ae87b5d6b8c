"""MVProbe: ProbeX from four sides of ΔW."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lorabench.classifiers.factors import Factors
from lorabench.classifiers.modulewise import ModuleLinear
from lorabench.classifiers.probex import ProbeX
from lorabench.zoo import ModuleShape

__all__ = ["MVProbe", "standardised_response"]

_SMALLEST = 1e-16


class MVProbe(ProbeX):
    """Four branches with probes of their own: X·U₁, X·(Xᵀ·U₂), Xᵀ·U₃ and Xᵀ·(X·U₄), for X = ΔW.

    arXiv 2605.23410. Every response is standardised (`standardised_response`), then read as in ProbeX: its transpose
    → linear without a bias → ReLU → flatten. The four side by side → linear → linear to the classes. ΔW is never
    formed: X·(Xᵀ·U) = up·(down·downᵀ)·(upᵀ·U), and so its mirror image.

    Standardising takes the size of ΔW away, whatever its sign: c·ΔW with c > 0 is read as ΔW is, but for the 1e-8.

    The paper trains with Adam at 3e-4 and weight decay 1e-5; here it is the house's Adam, which has no weight decay,
    under a plateau and an early stop. One module or all: see `ProbeX`, whose arguments these are.
    """

    def of_modules(self, shape: ModuleShape, modules: int) -> nn.Module:
        """See `ProbeX.of_modules`."""
        h = self.hparams
        return _MVProbe(shape, modules, self.n_classes, h["probes"], h["features"], h["encoding"])


def standardised_response(response: Float[Tensor, "*batch d probes"]) -> Float[Tensor, "*batch d probes"]:
    """(S - mean) / √(var + 1e-16) over all entries of each sample's response; that of ΔW = 0 stays 0.

    The variance is that of the population. Published is std + 1e-8, which differs where std is about as small as that.

    >>> standardised_response(torch.tensor([[1.0, 3.0]]))
    tensor([[-1.,  1.]])
    """
    return F.layer_norm(response, response.shape[-2:], eps=_SMALLEST)


class _MVProbe(nn.Module):
    def __init__(
        self, shape: ModuleShape, modules: int, n_classes: int, probes: int, features: int, encoding: int
    ) -> None:
        super().__init__()
        bound = probes**-0.5
        sides = (shape.d_in, shape.d_out, shape.d_out, shape.d_in)  # of U₁ ... U₄
        outs = (shape.d_out, shape.d_out, shape.d_in, shape.d_in)
        self.probes = nn.ParameterList([torch.empty(modules, d, probes).uniform_(-bound, bound) for d in sides])
        self.read = nn.ModuleList([ModuleLinear(modules, d, features, bias=False) for d in outs])
        self.encode = ModuleLinear(modules, len(outs) * probes * features, encoding)
        self.head = ModuleLinear(modules, encoding, n_classes)

    def forward(self, factors: Factors) -> Float[Tensor, "batch m classes"]:
        responses = _responses(factors, list(self.probes))
        read = [
            layer(standardised_response(response).mT).relu().flatten(2)
            for layer, response in zip(self.read, responses, strict=True)
        ]
        logits: Tensor = self.head(self.encode(torch.cat(read, -1).unsqueeze(2))).squeeze(2)
        return logits


def _responses(factors: Factors, probes: list[Tensor]) -> list[Float[Tensor, "batch m _d probes"]]:
    """X·U₁, X·(Xᵀ·U₂), Xᵀ·U₃, Xᵀ·(X·U₄)."""
    down, up = factors
    into = [down @ probes[0], up.mT @ probes[1], up.mT @ probes[2], down @ probes[3]]  # [batch, m, r, probes]
    return [up @ into[0], up @ ((down @ down.mT) @ into[1]), down.mT @ into[2], down.mT @ ((up.mT @ up) @ into[3])]
