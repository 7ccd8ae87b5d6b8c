"""Does a LoRA on a base of 4 bits use its rank otherwise than on the base itself?"""

from collections.abc import Mapping
from dataclasses import dataclass

from matplotlib.figure import Figure

from lorabench.studies.models import Base
from lorabench.studies.plots import over_steps
from lorabench.studies.study import Report, Study, mean_of, paired
from lorabench.studies.training import Outcome, Setting

__all__ = ["QuantizedBase"]

_METRICS = ("effective_rank", "stable_rank", "kappa_B", "dominance")
_NAMES = {False: "float32", True: "rounded to NF4"}


@dataclass
class QuantizedBase(Study):
    """Spectra, dominance and accuracy on the base in float32 and on its weights rounded to NF4.

    The rounding of the frozen linear weights stands in for bitsandbytes, whose kernels a CPU may lack: values are
    those of 4 bits, the arithmetic is float32's.

    Args:
        rank: of the LoRA.
        classes: of the task.
    """

    rank: int = 16
    classes: int = 4

    def settings(self, base: Base) -> list[Setting]:
        """Both with every seed."""
        del base
        return [*self._of(False), *self._of(True)]

    def _of(self, nf4: bool) -> list[Setting]:
        own = {"rank": self.rank, "alpha": self.rank, "classes": self.classes}
        return [Setting(**self.common(nf4=nf4, seed=seed, **own)) for seed in range(self.seeds)]

    def report(self, outcomes: Mapping[Setting, Outcome], base: Base) -> Report:
        """Each metric at the end, and the difference paired by seed."""
        del base
        found: dict[str, dict[str, list[float]]] = {}
        for nf4, name in _NAMES.items():
            own = [outcomes[one] for one in self._of(nf4)]
            found[name] = {"accuracy": [one.accuracy for one in own]}
            found[name] |= {metric: [list(one.looks.values())[-1][metric] for one in own] for metric in _METRICS}
        plain, rounded = found.values()
        rows, says = [], []
        for metric, values in plain.items():
            difference = paired(rounded[metric], values)
            rows.append([metric, str(mean_of(values)), str(mean_of(rounded[metric])), str(difference)])
            if difference.low is not None and difference.high is not None:
                told = "differs" if difference.low > 0 or difference.high < 0 else "is not shown to differ"
                says.append(f"{metric} {told}: {difference}.")
        return Report(("at the end", *_NAMES.values(), "difference"), rows, says, found)

    def figure(self, outcomes: Mapping[Setting, Outcome]) -> Figure:
        """Effective rank over the steps."""
        groups = {name: [outcomes[one] for one in self._of(nf4)] for nf4, name in _NAMES.items()}
        return over_steps(groups, "effective_rank", f"effective rank of {self.rank}, median module")
