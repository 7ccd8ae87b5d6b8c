"""What a resize did to every module, and what it cost."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from lorabench.adapters.comparing.deviation import Deviation, total

__all__ = ["ModuleReceipt", "Receipt"]


@dataclass(frozen=True)
class ModuleReceipt:
    """What became of one module. Errors are relative to ‖ΔW‖_F, and None where ΔW is zero.

    Attributes:
        module: canonical name.
        part: of the model.
        shape: (d_out, d_in) of ΔW.
        kind: what the file stored ("lora", "loha", …).
        norm: ‖ΔW‖_F before.
        old_rank: r before.
        new_rank: r after.
        predicted: from the spectrum (or of the rows cut off), before rounding to the stored type.
        optimal: the least that any ΔW' of this rank has (Eckart & Young 1936).
        measured: of the factors as stored, by algebra apart from the one that made them.
        notes: in words, what is not as asked.
    """

    module: str
    part: str
    shape: tuple[int, int]
    kind: str
    norm: float
    old_rank: int
    new_rank: int
    predicted: float | None
    optimal: float | None
    measured: float | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Receipt:
    """What a resize did.

    Attributes:
        mode: how ranks were chosen, see `resize_modes.MODES`.
        value: of the mode.
        modules: one receipt a module, in the adapter's order.
        predicted: of all modules as one matrix, √(Σ‖discarded‖²/Σ‖ΔW‖²); None where all are zero.
        optimal: the same at the least error that these ranks allow.
        measured: the same as measured.
        worst: module with the largest measured error; None where all ΔW are zero.
        bytes_before: size of the weights' file that was read, None where it is gone.
        bytes_after: size of the file that was written, None where none was.
        weight_bytes: of the new factors alone, at their stored types.
        notes: in words, what concerns several modules or none.
    """

    mode: str
    value: float | int
    modules: tuple[ModuleReceipt, ...]
    predicted: float | None
    optimal: float | None
    measured: float | None
    worst: str | None
    bytes_before: int | None
    bytes_after: int | None
    weight_bytes: int
    notes: tuple[str, ...] = ()

    def measured_as(self, found: Mapping[str, Deviation], bytes_after: int | None = None) -> "Receipt":
        """The same receipt with other measurements, those of the file that was written say."""
        modules = tuple(replace(one, measured=found[one.module].relative) for one in self.modules)
        return replace(
            self,
            modules=modules,
            measured=total(found).relative,
            worst=_worst(modules),
            bytes_after=bytes_after,
        )

    def of_part(self, part: str) -> tuple[Deviation, Deviation]:
        """Predicted and measured deviation of the modules of one part of the model."""
        chosen = [one for one in self.modules if one.part == part]
        predicted = {one.module: Deviation(one.norm, (one.predicted or 0.0) * one.norm) for one in chosen}
        measured = {one.module: Deviation(one.norm, (one.measured or 0.0) * one.norm) for one in chosen}
        return total(predicted), total(measured)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; the worst modules come first."""
        return asdict(replace(self, modules=tuple(self.by_error())))

    def by_error(self) -> list[ModuleReceipt]:
        """The modules by measured error, largest first, untrained ones last."""
        return sorted(self.modules, key=lambda one: -1.0 if one.measured is None else one.measured, reverse=True)


def _worst(modules: tuple[ModuleReceipt, ...]) -> str | None:
    trained = [(one.measured, one.module) for one in modules if one.measured is not None]
    return max(trained)[1] if trained else None
