"""The table of learned representations: how well each fitted, over its units."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from lorabench.report.labels import unit_label
from lorabench.report.numbers import number
from lorabench.results import Result
from lorabench.sheet import Sheet

__all__ = ["learned_sheets"]

_Units = Mapping[str, Mapping[str, Any]]

_EXPLAINED = {
    "active": "active: latent dimensions whose posterior mean varies, of all; KL: nats, summed over them",
    "error": "error: of the reconstruction, squared, over that of the training mean: 0 is perfect, 1 no better",
    "alignment": "alignment: squared distance of two views (metric: two of a class), 0 is best; uniformity: lower is "
    "better (Wang & Isola 2020)",
    "neighbours": "neighbours: share of adapters whose nearest neighbour is of their class",
    "noisy error": "noisy error: that of noisy weights, against the clean ones",
}


def learned_sheets(result: Result) -> list[Sheet]:
    """One table, or none where nothing was learned."""
    if not result.learned:
        return []
    units: dict[str, _Units] = {name: found["units"] for name, found in result.learned.items()}
    columns = {
        "units": {name: str(len(known)) for name, known in units.items()},
        "epochs": {name: _whole(_values(known, "epochs")) for name, known in units.items()},
        "best": {name: _whole([value + 1 for value in _values(known, "best_epoch")]) for name, known in units.items()},
        "error": _of(units, "reconstruction_error"),
        "worst": {name: _worst(known) for name, known in units.items() if _values(known, "reconstruction_error")},
        "noisy error": _of(units, "denoising_error"),
        "active": {name: _active(known) for name, known in units.items() if _values(known, "active_dims")},
        "KL": {name: _kl(known) for name, known in units.items() if any("kl" in one for one in known.values())},
        "alignment": _of(units, "alignment"),
        "uniformity": _of(units, "uniformity"),
        "neighbours": _of(units, "neighbour_accuracy"),
    }
    columns = {title: cells for title, cells in columns.items() if cells}
    return [
        Sheet(
            title=f"How well the learned representations of {result.dataset['name']} fitted",
            columns=("representation", *columns),
            rows=[(name, *(cells.get(name, "–") for cells in columns.values())) for name in units],
            caption=[
                "medians over units, of the training adapters that decide when to stop",
                *(text for title, text in _EXPLAINED.items() if title in columns),
                *(
                    f"{name}: taken from {found['taken_from']}; the numbers are of the adapters that it was trained on"
                    for name, found in result.learned.items()
                    if "taken_from" in found
                ),
                *(line for name, known in units.items() for line in _notes(name, known)),
            ],
            text=("representation",),
            spare=("units", "epochs", "noisy error", "KL", "worst"),
        )
    ]


def _values(units: _Units, key: str) -> list[float]:
    """What is known, of every unit that has it."""
    found = [number(known.get(key)) for known in units.values()]
    return [value for value in found if value == value]


def _of(units: Mapping[str, _Units], key: str) -> dict[str, str]:
    return {name: _middle(_values(known, key)) for name, known in units.items() if _values(known, key)}


def _middle(values: Sequence[float]) -> str:
    return f"{median(values):.2f}" if values else "–"


def _whole(values: Sequence[float]) -> str:
    return f"{median(values):.0f}" if values else "–"


def _worst(units: _Units) -> str:
    return f"{max(_values(units, 'reconstruction_error')):.2f}"


def _active(units: _Units) -> str:
    """Active latent dimensions, of all."""
    lengths = [len(known["kl"]) for known in units.values() if known.get("kl")]
    return _whole(_values(units, "active_dims")) + (f"/{median(lengths):.0f}" if lengths else "")


def _kl(units: _Units) -> str:
    return _middle([sum(map(number, known["kl"])) for known in units.values() if known.get("kl")])


def _notes(name: str, units: _Units) -> list[str]:
    """What a reader should know of some units."""
    found = []
    poor = {unit: number(known.get("reconstruction_error")) for unit, known in units.items()}
    poor = {unit: error for unit, error in poor.items() if error >= 1}
    if poor:
        worst = max(poor, key=lambda unit: poor[unit])
        found.append(
            f"{len(poor)} of {len(units)} units are reconstructed no better than by the mean: {unit_label(worst)} worst"
        )
    rising = sum(known["best_epoch"] + 1 == known["epochs"] for known in units.values())
    if 2 * rising > len(units):
        found.append(f"{rising} of {len(units)} units were best in their last epoch: more epochs may help")
    constant = sum(bool(known.get("constant_features")) for known in units.values())
    if constant:
        found.append(f"{constant} of {len(units)} units have features that are the same for all adapters")
    return [f"{name}: {text}" for text in found]
