"""What a resize would cost, by the spectra alone: they are computed once, and any number of rules asked of them."""

from collections.abc import Iterator
from dataclasses import dataclass

from lorabench.adapters.adapter import Adapter
from lorabench.adapters.comparing.spectra import spectra
from lorabench.adapters.resizing.choosing import Choice, Sizes
from lorabench.adapters.resizing.rule import ResizeRule
from lorabench.errors import LorabenchError

__all__ = ["Foreseen", "Preview"]


@dataclass(frozen=True)
class Foreseen:
    """What a rule would do.

    Attributes:
        ranks: module -> its new rank.
        errors: module -> ‖ΔW − ΔW'‖_F / ‖ΔW‖_F; 0 where ΔW is 0.
        error: the same of all modules together.
        weight_bytes: of all factors.
        parameters: numbers in all factors.
    """

    ranks: dict[str, int]
    errors: dict[str, float]
    error: float
    weight_bytes: int
    parameters: int


class Preview:
    """An adapter's spectra, and what rules would make of them.

    Args:
        adapter: as `load` gives it.

    Example:
        >>> import torch
        >>> from pathlib import Path
        >>> from lorabench.adapters.adapter import LoraModule
        >>> module = LoraModule(torch.eye(2, 5), torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
        >>> preview = Preview(Adapter(Path("x"), (), {"q": module}))
        >>> preview.under(ResizeRule(rank=1)).error
        0.6
        >>> [(one.ranks["q"], one.error) for one in preview.uniform()]
        [(1, 0.6), (2, 0.0)]
    """

    def __init__(self, adapter: Adapter) -> None:
        self._adapter, self._sizes = adapter, Sizes(adapter)
        self._sigma = spectra(adapter.modules)

    def under(self, rule: ResizeRule) -> Foreseen:
        """What the rule would do: what `resize` predicts, to rounding.

        Raises:
            LorabenchError: a limit that fits no module, a budget that nothing fits into, or `truncate`, whose error
                is not in the spectra.
        """
        if rule.mode == "truncate":
            raise LorabenchError("truncate cuts the factors themselves: its error is known when it is done.")
        if rule.mode == "pad":
            shapes = {name: module.shape for name, module in self._adapter.modules.items()}
            ranks = {name: min(int(rule.value), *shapes[name]) for name in self._sigma}
            return self._at({name: max(len(sigma), ranks[name]) for name, sigma in self._sigma.items()})
        choice = Choice(rule, self._adapter, self._sizes, self._sigma)
        return self._at({name: choice.rank(name, sigma)[0] for name, sigma in self._sigma.items()})

    def uniform(self) -> Iterator[Foreseen]:
        """One rank for all modules, from 1 to the highest there is; no module gets more than it has."""
        for rank in range(1, max(map(len, self._sigma.values())) + 1):
            yield self._at({name: min(rank, len(sigma)) for name, sigma in self._sigma.items()})

    def _at(self, ranks: dict[str, int]) -> Foreseen:
        tails = {name: float(sigma[ranks[name] :].norm()) for name, sigma in self._sigma.items()}
        norms = {name: float(sigma.norm()) for name, sigma in self._sigma.items()}
        errors = {name: _share(tail, norms[name]) for name, tail in tails.items()}
        parameters = sum(numbers * ranks[name] for name, numbers in self._sizes.numbers.items())
        return Foreseen(ranks, errors, _share(_norm(tails), _norm(norms)), self._sizes.bytes_of(ranks), parameters)


def _norm(parts: dict[str, float]) -> float:
    return float(sum(part * part for part in parts.values()) ** 0.5)


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
