"""Which modules a classifier with attention over modules looks at, beside what each says alone."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from lorabench.ablation.attribution import Share, Shares
from lorabench.ablation.phase import RankingAblation
from lorabench.ablation.ranking import Ranking
from lorabench.ablation.redundancy import agreement
from lorabench.ablation.statistics import interval, kendall_tau, replicates
from lorabench.ablation.study import Findings, Study, good_seeds
from lorabench.classifiers import ClassifierFactory, Fitted, Problem, build, class_of
from lorabench.classifiers.w2t import W2T
from lorabench.errors import LorabenchError
from lorabench.evaluation import Probe
from lorabench.findings import Number, RankedFinding
from lorabench.storage import files_hash

__all__ = ["Attention", "AttentionFinding", "module_attention", "tau_interval"]


@dataclass(frozen=True)
class AttentionFinding(RankedFinding):
    """Where the classifier looks: shares of the attention, and the interval of their Kendall's τ."""

    attention: Shares
    tau_low: Number
    tau_high: Number


def module_attention(
    fitted: Fitted, problem: Problem, widths: Mapping[str, int], factory: ClassifierFactory
) -> dict[str, float]:
    """By which weights a trained member averages its modules, mean over the test adapters; their sum is 1.

    Args:
        fitted: the member.
        problem: what it learned from; test adapters are those with a class that it neither trained nor stopped on.
        widths: length of the features of every module, in order.
        factory: made the member.
    """
    member = fitted.member
    tested = problem.labels[member.labels] >= 0
    tested[torch.cat([problem.train, problem.val])] = False
    x = problem.of_rows(member.features, torch.nonzero(tested).flatten())
    model = build(functools.partial(factory, **fitted.settings), problem, member)
    model.network.load_state_dict(fitted.state)
    if not isinstance(model, W2T):
        raise _refusal(type(model))
    weights = model.to(x).attention(x).double().mean(0)
    return dict(zip(widths, weights.tolist(), strict=True))


def _refusal(came: type) -> LorabenchError:
    return LorabenchError(
        f"ablation=attention draws the attention over modules of a classifier that has some, and {came.__name__} has "
        "none; take representations=[w2t]"
    )


@dataclass
class Attention(RankingAblation):
    """The attention that W2T pays to each module, beside the accuracy of the baseline on each alone.

    Attention is no proof of use: what a module is looked at for may be said by others too, and what is looked at may
    say nothing. Kendall's τ with the accuracy alone tells how far the two orders agree.
    """

    def run(self, study: Study) -> Findings:
        """One row for all modules, and a share a module.

        Raises:
            LorabenchError: the classifier has no attention over modules.
        """
        name, representation = study.one(self.name)
        factory = study.evaluators_of(name)[0].factory
        if not issubclass(class_of(factory), W2T):
            raise _refusal(class_of(factory))
        ranking = study.rank(self.rank_on)
        measure = functools.partial(module_attention, factory=factory)
        probe = Probe(f"attention over modules, {files_hash(Path(__file__))}", measure)
        found = study.evaluate(name, representation, [study.all_layers()], probe)
        shares, low, high = _shares(study, ranking, name, [one for one in found[0].probes if one])
        said = AttentionFinding(**vars(ranking.found(self.name)), attention=shares, tau_low=low, tau_high=high)
        return study.findings(found[0], representation, said)


def _shares(
    study: Study, ranking: Ranking, name: str, known: Sequence[Mapping[str, float]]
) -> tuple[Shares, float, float]:
    """A row a module, and the interval of τ; NaN where no module of the ranking has a share."""
    alone = {row.layer: row.test_accuracy for row in ranking.rows}
    table = np.array([list(one.values()) for one in known])
    units = list(known[0]) if known else []
    std = table.std(0, ddof=1) if len(known) > 1 else np.full(len(units), np.nan)
    rows = [
        Share(unit, float(table[:, number].mean()), float(std[number]), alone.get(unit))
        for number, unit in enumerate(units)
    ]
    both = [number for number, unit in enumerate(units) if unit in alone]
    if not both:
        return Shares(name, rows, None), float("nan"), float("nan")
    tau = agreement([rows[number].share for number in both], [alone[units[number]] for number in both])
    order = [list(ranking.layers).index(units[number]) for number in both]
    good, _ = good_seeds(ranking.evaluations)
    correct, cells = study.by_split(np.stack([ranking.evaluations[i].test_correct[good] for i in order]), good, "test")
    low, high = tau_interval(table[:, both], replicates(correct, study.test_groups, tested=cells))
    return Shares(name, rows, tau), low, high


def tau_interval(
    shares: Float[np.ndarray, "members units"], accuracy: Float[np.ndarray, "draws units"]
) -> tuple[float, float]:
    """The 95 % interval of Kendall's τ-b between shares and accuracies: both are resampled.

    A draw takes members with replacement and averages their shares, and takes one replicate of the accuracies. Noise
    is added to both, so the interval leans to 0.

    Args:
        shares: of every member.
        accuracy: replicates of every unit's accuracy.

    Returns:
        Its ends; NaN where a draw rates all units alike.
    """
    rng = np.random.default_rng(0)
    drawn = shares[rng.integers(0, len(shares), (len(accuracy), len(shares)))].mean(1)
    taus = np.array([kendall_tau(np.stack(pair))[0, 1] for pair in zip(drawn, accuracy, strict=True)])
    low, high = interval(taus)
    return float(low), float(high)
