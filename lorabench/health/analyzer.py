"""One adapter, on the disk or in a model: its metrics, its structure, and what they say."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jaxtyping import Float
from torch import Tensor, nn

from lorabench.adapters.adapter import LoraModule
from lorabench.adapters.comparing.spectra import spectra
from lorabench.adapters.reading.files import load
from lorabench.adapters.resizing.ranks import spectral_rank
from lorabench.errors import LorabenchError
from lorabench.health.alerts import Alert, Watch
from lorabench.health.base import BaseFile, Weights, against_base, not_held
from lorabench.health.live import LiveModule, live_modules, read_all
from lorabench.health.metrics import LoRAAdapterMetrics, module_metrics
from lorabench.health.rules.base import Thresholds
from lorabench.health.structure import LoRAStructuralMetrics, structural_metrics
from lorabench.health.trajectory import Snapshot

__all__ = ["Analysis", "LoRAAnalyzer"]


@dataclass(frozen=True)
class Analysis:
    """What was found.

    Attributes:
        rows: the metrics of every module.
        structure: of the adapter as a whole.
        alerts: the gravest first.
        beside: what was not held against the base, and why.
    """

    rows: Sequence[LoRAAdapterMetrics]
    structure: LoRAStructuralMetrics
    alerts: Sequence[Alert]
    beside: Sequence[str] = ()


class LoRAAnalyzer:
    """The health of one adapter.

    Args:
        model_or_file: a model with LoRA modules (PEFT's or another's), or an adapter's file or folder.
        base: a safetensors file or folder of the base model, for what is relative to its weights. A model has them
            itself.
        adapter: of a model with several, the name of one; None: all.

    Raises:
        LorabenchError: nothing can be read there, or the base is of another model.
    """

    def __init__(
        self, model_or_file: nn.Module | Path | str, base: Path | str | None = None, adapter: str | None = None
    ) -> None:
        self._live: Mapping[str, LiveModule] = {}
        self._transposed = False
        self._weights: Weights | None = None if base is None else BaseFile.open(Path(base))
        if isinstance(model_or_file, nn.Module):
            self._live = live_modules(model_or_file, adapter)
            if self._weights is None and any(one.base() is not None for one in self._live.values()):
                self._weights = LiveBase(self._live)
        else:
            if adapter is not None:
                raise LorabenchError(f"adapter {adapter!r}: a file holds one adapter. Leave it away.")
            held = load(Path(model_or_file))
            self._modules: Mapping[str, LoraModule] = held.modules
            self._transposed = held.transposed

    @property
    def modules(self) -> Mapping[str, LoraModule]:
        """The factors, a model's as they are now."""
        return read_all(self._live) if self._live else self._modules

    def analyze(
        self,
        rules: Collection[str] | None = None,
        thresholds: Mapping[str, Thresholds] | None = None,
        count_intruders: bool = False,
    ) -> Analysis:
        """Metrics of every module, what they are beside the base, and alerts.

        Args:
            rules: names of the rules that are asked; None: those that are asked without.
            thresholds: of `lorabench.health.read_thresholds`; None: the project's own.
            count_intruders: whether to count intruder dimensions, two dense SVDs a module.
        """
        modules = self.modules
        rows, beside = module_metrics(modules), list[str]()
        if self._weights is not None:
            rows = against_base(rows, modules, self._weights, self._transposed, count_intruders)
            beside = not_held(rows, modules)
        alerts = Watch(thresholds, rules).look(Snapshot(None, {row.module: row for row in rows}))
        return Analysis(rows, structural_metrics(rows), alerts, beside)

    def get_rank_utilization(self) -> dict[str, float | None]:
        """Module -> effective rank / r; None where ΔW is zero."""
        return {row.module: row.rank_utilization for row in module_metrics(self.modules)}

    def suggest_rank(self, energy: float = 0.99) -> dict[str, int]:
        """Module -> the fewest rank dimensions that keep a share of ‖ΔW‖_F², 0 where ΔW is zero.

        Args:
            energy: the share, above 0 and up to 1.

        Raises:
            LorabenchError: it is none.
        """
        if not (isinstance(energy, int | float) and math.isfinite(energy) and 0 < energy <= 1):
            raise LorabenchError(f"energy={energy!r}: a share above 0 and up to 1 is needed, 0.99 say.")
        return {
            name: int(spectral_rank("energy", energy, sigma)) if bool(sigma.any()) else 0
            for name, sigma in spectra(self.modules).items()
        }


@dataclass(frozen=True)
class LiveBase:
    """The base's weights as a model holds them."""

    modules: Mapping[str, LiveModule] = field(repr=False)
    where: str = "the model"

    def weight(self, name: str, module: LoraModule, transposed: bool = False) -> Float[Tensor, "d_out d_in"] | None:
        """W of one module, see `BaseFile.weight`."""
        del module, transposed
        return self.modules[name].base()
