"""GL-net: a network of the factors that no gauge changes, since every layer of it respects (up·G, G⁻¹·down)."""

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lorabench.classifiers.factors import FactorClassifier, alike, split
from lorabench.classifiers.modulewise import side_by_side
from lorabench.options import AtLeast, AtMost, OneOf
from lorabench.training import Probability, SeededDropout
from lorabench.zoo import ModuleShape

__all__ = ["GLNet", "gated"]


def gated(
    left: Float[Tensor, "*batch h r"], right: Float[Tensor, "*batch h r"]
) -> tuple[Float[Tensor, "*batch h r"], Float[Tensor, "*batch h r"]]:
    """Rows of U and of V whose sums over the other side are positive; the other rows are zero.

    With G = U Vᵀ, row i of U stays where Σⱼ Gᵢⱼ > 0 and row j of V where Σᵢ Gᵢⱼ > 0. G is not formed, and no gradient
    goes through the gate.

    >>> left, right = gated(torch.tensor([[1.0], [-2.0]]), torch.tensor([[-3.0], [1.0]]))
    >>> left.tolist(), right.tolist()
    ([[0.0], [-2.0]], [[-3.0], [0.0]])
    """
    of_left = (left * right.sum(-2, keepdim=True)).sum(-1, keepdim=True) > 0
    of_right = (right * left.sum(-2, keepdim=True)).sum(-1, keepdim=True) > 0
    return left * of_left.to(left), right * of_right.to(right)


class _Layer(nn.Module):
    """U → W U and V → W' V for modules of one shape, without a bias; W ~ N(0, 1/n) of each module; then the dropout."""

    def __init__(self, modules: int, d_left: int, d_right: int, width: int, dropout: float) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.randn(modules, width, d_left) / d_left**0.5)
        self.right = nn.Parameter(torch.randn(modules, width, d_right) / d_right**0.5)
        self.p, self.drop_left, self.drop_right = dropout, SeededDropout(dropout), SeededDropout(dropout)

    def forward(
        self, left: Float[Tensor, "batch modules n r"], right: Float[Tensor, "batch modules m r"]
    ) -> tuple[Float[Tensor, "batch modules h r"], Float[Tensor, "batch modules h r"]]:
        left = torch.einsum("khn,bknr->bkhr", self.left, left)
        right = torch.einsum("khn,bknr->bkhr", self.right, right)
        return self._dropped(self.drop_left, left), self._dropped(self.drop_right, right)

    def _dropped(self, drop: nn.Module, rows: Float[Tensor, "batch modules h r"]) -> Float[Tensor, "batch modules h r"]:
        """Whole rows zeroed in training, and all times 1 - p in evaluation, as published."""
        if self.p == 0:
            return rows
        kept: Tensor = drop(rows.new_ones(rows.shape[:-1])) * (1 - self.p)
        return rows * kept.unsqueeze(-1)


class _Alike(nn.Module):
    """The layers of the modules of one shape: from their factors to U Vᵀ, or to its mean."""

    def __init__(self, modules: int, shape: ModuleShape, settings: dict[str, Any]) -> None:
        super().__init__()
        width, self.mean = settings["width"], settings["reads_of"] == "mean"
        first = _Layer(modules, shape.d_out, shape.d_in, width, settings["dropout"])
        rest = (_Layer(modules, width, width, width, settings["dropout"]) for _ in range(settings["layers"] - 1))
        self.layers = nn.ModuleList([first, *rest])

    def forward(
        self, left: Float[Tensor, "batch modules n r"], right: Float[Tensor, "batch modules m r"]
    ) -> Float[Tensor, "batch modules _"]:
        for number, layer in enumerate(self.layers):
            left, right = layer(*(gated(left, right) if number else (left, right)))
        if self.mean:
            left, right = left.mean(-2, keepdim=True), right.mean(-2, keepdim=True)
        return (left @ right.mT).flatten(2)


class _Network(nn.Module):
    """What `_Alike` makes of every shape, and a perceptron of all of it."""

    def __init__(self, shapes: Sequence[ModuleShape], n_classes: int, settings: dict[str, Any]) -> None:
        super().__init__()
        self.shapes, alikes = tuple(shapes), alike(shapes)
        self.places = [places for _, places in alikes]
        self.groups = nn.ModuleList(_Alike(len(places), shape, settings) for shape, places in alikes)
        entries = len(self.shapes) * (1 if settings["reads_of"] == "mean" else settings["width"] ** 2)
        hidden = settings["head"]
        self.head = nn.Sequential(
            nn.Linear(entries, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, n_classes)
        )

    def forward(self, x: Float[Tensor, "batch f"]) -> Float[Tensor, "batch classes"]:
        modules = split(x, self.shapes)
        found = []
        for places, group in zip(self.places, self.groups, strict=True):
            down, up = side_by_side(modules, places)
            found.append(group(up, down.mT).flatten(1))
        logits: Tensor = self.head(torch.cat(found, 1))
        return logits


class GLNet(FactorClassifier):
    """The GL-equivariant network of Putterman et al. (LoL, arXiv 2410.04207), with one or more layers.

    Every module has U = up [d_out, r] and V = downᵀ [d_in, r]. A layer is U → W U, V → W' V, per module and without
    bias; from the second on a gate (`gated`) stands before it. The head reads U Vᵀ of every module, which no gauge
    changes, by linear → layer norm → ReLU → linear. Weights that modules of one shape have are one tensor, so that a
    step has as many products as there are shapes.

    Published with AdamW, whose weight decay (1e-2 in the language-model variant) is not here, a fixed number of epochs,
    and the best of them by validation; here members are trained as all others are (`Classifier`).

    Args:
        width: h, rows of U and V after each layer.
        layers: number of equivariant layers.
        head: width of its hidden layer.
        reads_of: what the head has of U Vᵀ: "product", all h² numbers; "mean", their mean.
        dropout: probability of dropping a row of U or V after each layer; training is not rescaled, evaluation
            is by 1 - p.
        **settings: those of `FactorClassifier`.
    """

    def __init__(
        self,
        width: Annotated[int, AtLeast(1)] = 16,
        layers: Annotated[int, AtLeast(1), AtMost(8)] = 1,
        head: Annotated[int, AtLeast(1)] = 256,
        reads_of: Annotated[str, OneOf(["product", "mean"])] = "product",
        dropout: Probability = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__(
            width=width, layers=layers, head=head, reads_of=reads_of, dropout=dropout, **settings
        )  # fmt: skip

    def build(self) -> nn.Module:
        """See the class."""
        return _Network(self.shapes, self.n_classes, dict(self.hparams))
