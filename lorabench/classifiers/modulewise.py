"""What networks that read factors share: modules of one shape side by side, and layers of its own for each of them."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lorabench.classifiers.factors import Factors, alike, split
from lorabench.zoo import ModuleShape

__all__ = ["ModuleLinear", "ModuleNorm", "ModuleVotes", "in_order", "side_by_side"]


def side_by_side(factors: Sequence[Factors], numbers: Sequence[int]) -> Factors:
    """Modules of one shape as one: down [batch, m, r, d_in], up [batch, m, d_out, r]."""
    return Factors(
        torch.stack([factors[number].down for number in numbers], -3),
        torch.stack([factors[number].up for number in numbers], -3),
    )


def in_order(
    parts: Sequence[Float[Tensor, "batch _m *n"]], groups: Sequence[tuple[ModuleShape, Sequence[int]]]
) -> Float[Tensor, "batch modules *n"]:
    """What came of the groups of `alike`, as the modules stand in the zoo."""
    single = {
        number: one
        for part, (_, numbers) in zip(parts, groups, strict=True)
        for number, one in zip(numbers, part.unbind(1), strict=True)
    }
    return torch.stack([single[number] for number in sorted(single)], 1)


class ModuleLinear(nn.Module):
    """A linear layer of its own for each of m modules, drawn as `nn.Linear` draws.

    Args:
        modules: m.
        f_in: numbers in.
        f_out: numbers out.
        bias: whether something is added.
    """

    def __init__(self, modules: int, f_in: int, f_out: int, bias: bool = True) -> None:
        super().__init__()
        bound = f_in**-0.5
        self.weight = nn.Parameter(torch.empty(modules, f_in, f_out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(modules, 1, f_out).uniform_(-bound, bound)) if bias else None

    def forward(self, x: Float[Tensor, "batch m n f_in"]) -> Float[Tensor, "batch m n f_out"]:
        """Each module's x by its own weight, in one batched product."""
        found = torch.einsum("bmnf,mfo->bmno", x, self.weight)
        return found if self.bias is None else found + self.bias


class ModuleNorm(nn.Module):
    """Layer norm (Ba, Kiros & Hinton 2016) with a gain and a shift of its own for each of m modules."""

    def __init__(self, modules: int, f: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(modules, 1, f))
        self.bias = nn.Parameter(torch.zeros(modules, 1, f))

    def forward(self, x: Float[Tensor, "batch m n f"]) -> Float[Tensor, "batch m n f"]:
        """Every vector with mean 0 and variance 1, times the gain, plus the shift."""
        return F.layer_norm(x, x.shape[-1:]) * self.weight + self.bias


class ModuleVotes(nn.Module):
    """Networks of one module each, which say together the mean of their log-probabilities.

    Args:
        shapes: of all modules.
        numbers: the modules that are read.
        make: the networks of m modules of one shape, from `Factors` [batch, m, ...] to logits [batch, m, classes].
    """

    def __init__(
        self, shapes: Sequence[ModuleShape], numbers: Sequence[int], make: Callable[[ModuleShape, int], nn.Module]
    ) -> None:
        super().__init__()
        self.shapes, self.numbers = tuple(shapes), tuple(numbers)
        self.groups = alike([shapes[number] for number in numbers])
        self.parts = nn.ModuleList([make(shape, len(places)) for shape, places in self.groups])

    def forward(self, x: Float[Tensor, "batch f"]) -> Float[Tensor, "batch classes"]:
        """Logits: the mean over the modules of log softmax."""
        everything = split(x, self.shapes)
        read = [everything[number] for number in self.numbers]
        logits = [part(side_by_side(read, places)) for part, (_, places) in zip(self.parts, self.groups, strict=True)]
        return torch.cat(logits, 1).log_softmax(-1).mean(1)
