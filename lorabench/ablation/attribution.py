"""Which layers the classifier of all layers looks at: integrated gradients."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from lorabench.ablation.phase import RankingAblation
from lorabench.ablation.redundancy import agreement
from lorabench.ablation.study import Findings, Study
from lorabench.classifiers import ClassifierFactory, Fitted, Problem, build, class_of
from lorabench.classifiers.at_once import AtOnce
from lorabench.errors import LorabenchError
from lorabench.evaluation import Probe
from lorabench.findings import Number, RankedFinding
from lorabench.options import AtLeast
from lorabench.storage import files_hash

__all__ = ["Attribution", "AttributionFinding", "Share", "Shares", "integrated_gradients"]


@dataclass(frozen=True)
class Share:
    """A unit's share of the attribution, its deviation over seeds, and its test accuracy alone where it is ranked."""

    layer: str
    share: Number
    std: Number
    accuracy: float | None


@dataclass(frozen=True)
class Shares:
    """A row a unit, and Kendall's τ of share and accuracy."""

    representation: str
    rows: list[Share]
    kendall_tau: float | None


@dataclass(frozen=True)
class AttributionFinding(RankedFinding):
    """Where the classifier of all layers looks."""

    attribution: Shares


def integrated_gradients(
    network: nn.Module, x: Float[Tensor, "n f"], classes: Int64[Tensor, " n"], steps: int
) -> Float[Tensor, "n f"]:
    """xᵢ · ∫₀¹ ∂F_c(a·x)/∂xᵢ da from the zero vector, by the midpoint rule (Sundararajan, Taly & Yan 2017).

    Their sum over i is F_c(x) - F_c(0), up to the rule's error. Features are standardised, so zero is the average
    training adapter.

    Args:
        network: logits of a batch, in evaluation.
        x: inputs.
        classes: the class c whose logit F is explained, for every row.
        steps: of the rule.
    """
    total = torch.zeros_like(x)
    for step in range(steps):
        point = (x * ((step + 0.5) / steps)).requires_grad_()
        with torch.enable_grad():
            picked = network(point).gather(1, classes[:, None]).sum()
        total += torch.autograd.grad(picked, point)[0]
    return x * total / steps


@dataclass
class Attribution(RankingAblation):
    """Shares of a representation's layers in the logit of the true class, beside the accuracy of each alone.

    A layer's share is |Σ attributions of its features|, averaged over the validation adapters, and divided by the
    sum over all layers.

    Args:
        steps: of the integral.
    """

    steps: Annotated[int, AtLeast(1)]

    def run(self, study: Study) -> Findings:
        """One row for all layers, and a share a unit."""
        name, representation = study.one(self.name)
        factory = study.evaluators_of(name)[0].factory
        if issubclass(class_of(factory), AtOnce):
            raise LorabenchError(
                f"ablation=attribution follows gradients, and {class_of(factory).__name__} has none: take a classifier "
                "that is trained by them, such as mlp or gl_net"
            )
        ranking = study.rank(self.rank_on)

        def measure(fitted: Fitted, problem: Problem, widths: Mapping[str, int]) -> dict[str, float]:
            return _shares(fitted, problem, widths, factory, self.steps)

        probe = Probe(f"integrated gradients, {self.steps} steps, {files_hash(Path(__file__))}", measure)
        found = study.evaluate(name, representation, [study.all_layers()], probe)
        alone = {row.layer: row.test_accuracy for row in ranking.rows}
        known = [shares for shares in found[0].probes if shares]
        rows = []
        for unit in found[0].units if known else ():
            shares = [one[unit] for one in known]
            std = float(np.std(shares, ddof=1)) if len(shares) > 1 else float("nan")
            # A unit of another kind than the baseline's (a module beside layers) has no accuracy alone.
            rows.append(Share(unit, float(np.mean(shares)), std, alone.get(unit)))
        pairs = [(row.share, row.accuracy) for row in rows if row.accuracy is not None]
        tau = agreement([p[0] for p in pairs], [p[1] for p in pairs]) if pairs else None
        said = AttributionFinding(**vars(ranking.found(self.name)), attribution=Shares(name, rows, tau))
        return study.findings(found[0], representation, said)


def _shares(
    fitted: Fitted, problem: Problem, widths: Mapping[str, int], factory: ClassifierFactory, steps: int
) -> dict[str, float]:
    member = fitted.member
    if not fitted.state:  # scikit-learn's, which `tuned` may have chosen
        return {}
    x = problem.of_rows(member.features, problem.val)
    classes = problem.labels[member.labels, problem.val]
    model = build(functools.partial(factory, **fitted.settings), problem, member)
    model.network.load_state_dict(fitted.state)
    network = model.network.to(x).eval().requires_grad_(False)
    found = integrated_gradients(network, x, classes, steps)
    parts = torch.stack([part.sum(1).abs().mean() for part in torch.split(found, list(widths.values()), 1)])
    shares = (parts / parts.sum()).tolist()
    return dict(zip(widths, shares, strict=True))
