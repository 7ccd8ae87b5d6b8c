"""ProbeX: learned probes through ΔW, whose responses are read by a small network."""

from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lorabench.classifiers.factors import FactorClassifier, Factors
from lorabench.classifiers.modulewise import ModuleLinear, ModuleVotes
from lorabench.errors import LorabenchError
from lorabench.options import AtLeast
from lorabench.zoo import ModuleShape

__all__ = ["ProbeX"]


class ProbeX(FactorClassifier):
    """S = ΔW·U for learned probes U [d_in, probes]; Sᵀ → linear → ReLU → flatten → linear → linear to the classes.

    Horwitz, Cavia, Kahana & Hoshen 2024 ("Learning on Model Weights using Tree Experts", arXiv 2410.13569). ΔW is
    never formed: S = up·(down·U), so what is said follows from ΔW alone, whatever its factors.

    The published model reads one module, and the module is chosen on the validation adapters. That is `module`, and
    a search over it. Without one, all modules have such a model, trained together, and what they say is the mean of
    their log-probabilities: the loss is that of the mean, not the sum of the modules' losses.

    The paper trains with Adam at 1e-3, weight decay 1e-5 and 500 epochs; here it is the house's Adam, which has no
    weight decay, under a plateau and an early stop. The text head, which names classes never seen, is not built here;
    `ablation=zero_shot` has a linear one of any features.

    Args:
        probes: r_U, columns of U, drawn from ± 1/√r_U.
        features: r_V, what the first linear layer, without a bias, makes of the response to every probe.
        encoding: r_T, width between the last two linear layers; no ReLU stands between them.
        module: number of the only module that is read, from 0 in the zoo's order; None: all. Where a single one
            stands, that is read.
        **settings: those of `FactorClassifier`.

    Raises:
        LorabenchError: an argument is not allowed, or there is no such module.
    """

    reads: ClassVar[dict[str, Any]] = {"form": "raw"}

    def __init__(
        self,
        probes: Annotated[int, AtLeast(1)],
        features: Annotated[int, AtLeast(1)],
        encoding: Annotated[int, AtLeast(1)],
        module: Annotated[int | None, AtLeast(0)] = None,
        **settings: Any,
    ) -> None:
        super().__init__(probes=probes, features=features, encoding=encoding, module=module, **settings)

    def build(self) -> nn.Module:
        """A network a module, those of one shape as one batch."""
        module = self.hparams["module"]
        if module is not None and module >= len(self.shapes) > 1:
            raise LorabenchError(
                f"classifier.module={module}: there are {len(self.shapes)} modules, from 0 to {len(self.shapes) - 1}; "
                "null reads all of them"
            )
        numbers = range(len(self.shapes)) if module is None or len(self.shapes) == 1 else [module]
        return ModuleVotes(self.shapes, numbers, self.of_modules)

    def of_modules(self, shape: ModuleShape, modules: int) -> nn.Module:
        """The networks of some modules of one shape: `Factors` to logits [batch, modules, classes]."""
        h = self.hparams
        return _ProbeX(shape, modules, self.n_classes, h["probes"], h["features"], h["encoding"])


class _ProbeX(nn.Module):
    def __init__(
        self, shape: ModuleShape, modules: int, n_classes: int, probes: int, features: int, encoding: int
    ) -> None:
        super().__init__()
        bound = probes**-0.5
        self.probes = nn.Parameter(torch.empty(modules, shape.d_in, probes).uniform_(-bound, bound))
        self.read = ModuleLinear(modules, shape.d_out, features, bias=False)
        self.encode = ModuleLinear(modules, probes * features, encoding)
        self.head = ModuleLinear(modules, encoding, n_classes)

    def forward(self, factors: Factors) -> Float[Tensor, "batch m classes"]:
        response = factors.up @ (factors.down @ self.probes)
        features = self.read(response.mT).relu().flatten(2).unsqueeze(2)
        logits: Tensor = self.head(self.encode(features)).squeeze(2)
        return logits
