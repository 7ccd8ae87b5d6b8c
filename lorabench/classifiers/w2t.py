"""W2T: a transformer over the singular triplets of every module, and one over modules."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from lorabench.classifiers.attention import TransformerLayer, masked_softmax
from lorabench.classifiers.factors import FactorClassifier, Factors, alike, split
from lorabench.classifiers.modulewise import ModuleLinear, ModuleNorm, in_order, side_by_side
from lorabench.errors import LorabenchError
from lorabench.options import AtLeast
from lorabench.training import Keyed, Probability, SeededDropout, keep_mask
from lorabench.zoo import ModuleShape

__all__ = ["W2T", "SignFlips", "Triplets", "triplets"]

_QUERIES = 4  # that pool the ranks of a module
_PADDING = 1e-6  # a σ below this share of its module's largest is rounding, or padding


class W2T(FactorClassifier):
    """Tokens are the triplets (uᵢ, vᵢ, σᵢ) of every module's ΔW = U·diag(σ)·Vᵀ. arXiv 2603.15990.

    1. A projector a module: linear([ReLU(norm(linear(uᵢ))); ReLU(norm(linear(vᵢ)))]), H numbers a rank. σ scales and
       shifts them: x·(1 + ε·tanh(a)) + ε·b, where (a, b) is a small network of log1p(σᵢ), standardised over the ranks
       of the module, and ε is learned from 0 on; then norm, GELU, dropout.
    2. One pre-norm transformer layer over the ranks of a module, the same for all modules. Four learned queries pool
       them by softmax(q·x/√H + 0.5·log1p(σ)); linear, norm, GELU.
    3. Norm of this plus an embedding of the module; two pre-norm transformer layers over the modules; pooling by one
       learned query (`attention`); linear, norm, ReLU, dropout, linear.

    It reads canonical factors, so it says the same whatever (up·G, G⁻¹·down) a file holds; where two σ of a module are
    equal that form is not unique, and what it says may jump. Ranks that are padding (σ below 1e-6 of the
    module's largest) are masked everywhere and change nothing. The sign of a pair (uᵢ, vᵢ) is the one that
    `representation=factors` gives it (`sign`); it is flipped at random in training.

    What is not as published: a network does not know its modules' names, so one learned embedding a module stands for
    those of its layer and of its kind. Shuffling the ranks is left out: attention without positions does not see their
    order. The paper trains with AdamW (1e-3, weight decay 1e-3, batch 64, 45 epochs with warm-up and a cosine,
    gradients clipped to 1); here it is the house's Adam without decay under a plateau and an early stop. σ's network
    and the norm behind it are shared by the modules.

    Args:
        width: H of a token.
        heads: of every attention; they share H out among them.
        head: width of the last hidden layer.
        dropout: probability of zeroing a hidden number.
        sign_flips: probability that an adapter's pairs are flipped in a training step, each by the toss of a coin.
        **settings: those of `FactorClassifier`.

    Raises:
        LorabenchError: an argument is not allowed, or `heads` does not divide `width`.
    """

    reads: ClassVar[dict[str, Any]] = {"form": "canonical"}

    def __init__(
        self,
        width: Annotated[int, AtLeast(1)],
        heads: Annotated[int, AtLeast(1)],
        head: Annotated[int, AtLeast(1)],
        dropout: Probability,
        sign_flips: Probability,
        **settings: Any,
    ) -> None:
        super().__init__(width=width, heads=heads, head=head, dropout=dropout, sign_flips=sign_flips, **settings)

    def build(self) -> nn.Module:
        """See the class."""
        h = self.hparams
        if h["width"] % h["heads"]:
            raise LorabenchError(
                f"classifier.heads={h['heads']}: heads share the width out among them, and classifier.width="
                f"{h['width']} cannot be divided by it; take a divisor"
            )
        return _Network(self.shapes, self.n_classes, h["width"], h["heads"], h["head"], h["dropout"], h["sign_flips"])

    @torch.no_grad()
    def attention(self, x: Float[Tensor, "batch f"]) -> Float[Tensor, "batch modules"]:
        """By which weights the last pooling averages the modules, in evaluation; each row sums to 1."""
        network, training = cast("_Network", self.network), self.network.training
        network.eval()
        weights = network.looks(network.modules_of(x))
        network.train(training)
        return weights


class Triplets(NamedTuple):
    """Modules of one shape, a row a rank; a rank that is padding does not stand."""

    u: Float[Tensor, "*batch r d_out"]
    v: Float[Tensor, "*batch r d_in"]
    sigma: Float[Tensor, "*batch r"]
    stands: Bool[Tensor, "*batch r"]


def triplets(factors: Factors) -> Triplets:
    """Canonical factors (down = Vᵀ, up = U·diag(σ)) taken apart.

    σᵢ is the length of up's column i; uᵢ is 0 where σᵢ is padding.

    >>> found = triplets(Factors(torch.tensor([[0.0, 1.0]]), torch.tensor([[6.0], [-8.0]])))
    >>> found.u * 10, found.v, found.sigma
    (tensor([[ 6., -8.]]), tensor([[0., 1.]]), tensor([10.]))
    """
    columns = factors.up.mT
    sigma = torch.linalg.vector_norm(columns, dim=-1)
    stands = sigma > _PADDING * sigma.amax(-1, keepdim=True)
    u = torch.where(stands, 1 / torch.where(stands, sigma, 1), 0).unsqueeze(-1) * columns
    return Triplets(u, factors.down, sigma, stands)


class SignFlips(nn.Module):
    """Random signs in training: of a sample all are +1, or with probability p each is ±1 by the toss of a coin.

    Args:
        p: the probability.
    """

    def __init__(self, p: Probability) -> None:
        super().__init__()
        self.p, self.whether, self.which = p, Keyed(), Keyed()

    def forward(self, x: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        """Signs of the shape and the type of x, whose values do not matter; all +1 in evaluation."""
        if not self.training or self.p == 0:
            return torch.ones_like(x)
        batch, n = x.shape
        kept = keep_mask(self.whether.key, batch, 1, self.p, x.dtype) > 0
        return torch.where(kept, 1.0, keep_mask(self.which.key, batch, n, 0.5, x.dtype) - 1)


class _Projector(nn.Module):
    """Tokens of m modules of one shape, each with weights of its own."""

    def __init__(self, shape: ModuleShape, modules: int, width: int) -> None:
        super().__init__()
        self.left, self.left_norm = ModuleLinear(modules, shape.d_out, width), ModuleNorm(modules, width)
        self.right, self.right_norm = ModuleLinear(modules, shape.d_in, width), ModuleNorm(modules, width)
        self.both = ModuleLinear(modules, 2 * width, width)

    def forward(
        self, u: Float[Tensor, "batch m r d_out"], v: Float[Tensor, "batch m r d_in"]
    ) -> Float[Tensor, "batch m r width"]:
        left, right = self.left_norm(self.left(u)).relu(), self.right_norm(self.right(v)).relu()
        found: Tensor = self.both(torch.cat([left, right], -1))
        return found


class _SigmaFilm(nn.Module):
    """Scale and shift by σ (FiLM: Perez et al. 2018)."""

    def __init__(self, width: int, dropout: Probability) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(1, width), nn.Linear(width, 2 * width)
        self.epsilon = nn.Parameter(torch.zeros(1))
        self.norm, self.drop = nn.LayerNorm(width), SeededDropout(dropout)

    def forward(self, x: Float[Tensor, "batch m r width"], found: Triplets) -> Float[Tensor, "batch m r width"]:
        z = _standardised(found.sigma.log1p(), found.stands)
        scale, shift = self.leave(F.gelu(self.enter(z.unsqueeze(-1)))).chunk(2, -1)
        moved = x * (1 + self.epsilon * scale.tanh()) + self.epsilon * shift
        tokens: Tensor = self.drop(F.gelu(self.norm(moved)))
        return tokens


def _standardised(z: Float[Tensor, "*batch r"], stands: Bool[Tensor, "*batch r"]) -> Float[Tensor, "*batch r"]:
    """Mean 0 and variance 1 over the ranks that stand, up to 1e-5 in the variance as layer norm has it; 0 elsewhere."""
    count = stands.sum(-1, keepdim=True).clamp_min(1)
    centred = (z - (z * stands).sum(-1, keepdim=True) / count) * stands
    return centred * (centred.square().sum(-1, keepdim=True) / count + 1e-5).rsqrt()


class _RankPooling(nn.Module):
    """One vector a module from its ranks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(_QUERIES, width).normal_(0, 0.02))
        self.merge, self.norm = nn.Linear(_QUERIES * width, width), nn.LayerNorm(width)

    def forward(self, x: Float[Tensor, "batch m r width"], found: Triplets) -> Float[Tensor, "batch m width"]:
        logits = self.queries @ x.mT / math.sqrt(x.shape[-1]) + 0.5 * found.sigma.log1p().unsqueeze(-2)
        pooled = masked_softmax(logits, found.stands.unsqueeze(-2)) @ x
        return F.gelu(self.norm(self.merge(pooled.flatten(-2))))


class _Network(nn.Module):
    def __init__(
        self,
        shapes: Sequence[ModuleShape],
        n_classes: int,
        width: int,
        heads: int,
        head: int,
        dropout: Probability,
        sign_flips: Probability,
    ) -> None:
        super().__init__()
        self.shapes, self.groups = tuple(shapes), alike(shapes)
        self.flips = SignFlips(sign_flips)
        self.project = nn.ModuleList([_Projector(shape, len(numbers), width) for shape, numbers in self.groups])
        self.film, self.pool = _SigmaFilm(width, dropout), _RankPooling(width)
        self.over_ranks = TransformerLayer(width, heads, dropout)
        self.embedding = nn.Parameter(torch.empty(len(shapes), width).normal_(0, 0.02))
        self.norm = nn.LayerNorm(width)
        self.over_modules = nn.ModuleList([TransformerLayer(width, heads, dropout) for _ in range(2)])
        self.query = nn.Parameter(torch.empty(width).normal_(0, 0.02))
        self.hidden, self.hidden_norm, self.drop = nn.Linear(width, head), nn.LayerNorm(head), SeededDropout(dropout)
        self.classes = nn.Linear(head, n_classes)

    def forward(self, x: Float[Tensor, "batch f"]) -> Float[Tensor, "batch classes"]:
        modules = self.modules_of(x)
        pooled = (self.looks(modules).unsqueeze(-1) * modules).sum(1)
        logits: Tensor = self.classes(self.drop(self.hidden_norm(self.hidden(pooled)).relu()))
        return logits

    def modules_of(self, x: Float[Tensor, "batch f"]) -> Float[Tensor, "batch modules width"]:
        """The modules as tokens, each having looked at the others."""
        factors = split(x, self.shapes)
        flips = self.flips(torch.cat([one.down[..., 0] for one in factors], -1))
        turns = flips.unsqueeze(-1).split([shape.rank for shape in self.shapes], 1)
        parts = []
        for project, (_, numbers) in zip(self.project, self.groups, strict=True):
            found = triplets(side_by_side(factors, numbers))
            turn = torch.stack([turns[number] for number in numbers], 1)
            tokens = self.film(project(found.u * turn, found.v * turn), found)
            parts.append(self.pool(self.over_ranks(tokens, found.stands), found))
        modules: Tensor = self.norm(in_order(parts, self.groups) + self.embedding)
        for layer in self.over_modules:
            modules = layer(modules)
        return modules

    def looks(self, modules: Float[Tensor, "batch modules width"]) -> Float[Tensor, "batch modules"]:
        """By which weights the modules are averaged."""
        return (modules @ self.query / math.sqrt(modules.shape[-1])).softmax(-1)
