"""What a written file cannot say of the adapter that was read: refused by name, or left out where that is asked for."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from lorabench.adapters.adapter import Adapter, LoraModule
from lorabench.adapters.reading.shapes import UNPLACED
from lorabench.errors import LorabenchError

__all__ = ["refuse_embeddings", "refuse_transposed", "refuse_unplaced", "refuse_unsupported", "some"]


def refuse_unsupported(adapter: Adapter, drop: bool) -> dict[str, tuple[str, ...]]:
    """Kind -> keys that are left out because they are no low-rank pair; DoRA's magnitudes are not among them.

    Args:
        adapter: what was read.
        drop: whether this was asked for (`--drop-unsupported`).

    Raises:
        LorabenchError: there are such keys, and it was not.
    """
    found = {kind: keys for kind, keys in adapter.unsupported.items() if kind != "dora" and keys}
    if found and not drop:
        listed = "; ".join(f"{kind}: {some(keys)}" for kind, keys in found.items())
        raise LorabenchError(
            f"{adapter.path}: it holds more than low-rank pairs, which this cannot write. {listed}. "
            "Say --drop-unsupported (drop_unsupported=True) to leave these out."
        )
    return found


def refuse_unplaced(where: Path, modules: Mapping[str, LoraModule]) -> None:
    """Merged projections of which nobody knows which rows of the layer they change.

    Raises:
        LorabenchError: one of the modules is such a one.
    """
    names = [name for name, module in modules.items() if UNPLACED in module.assumed]
    if names:
        raise LorabenchError(
            f"{where}: {len(names)} modules are merged projections, and nothing says which of their parts are switched "
            f"on ({some(names)}): what is written could not be loaded. Add enable_lora to its adapter_config.json."
        )


def refuse_embeddings(where: Path, modules: Mapping[str, LoraModule], layout: str) -> None:
    """PEFT's layout alone has names for the update of an embedding table.

    Raises:
        LorabenchError: one of the modules is such an update, and the layout another.
    """
    tables = [name for name, module in modules.items() if module.embedding]
    if layout != "peft" and tables:
        raise LorabenchError(
            f"{where}: the {layout} layout has no place for the update of an embedding table ({some(tables)}). "
            "Write the peft layout, or remove these modules first."
        )


def refuse_transposed(adapter: Adapter, layout: str, drop: bool = False) -> bool:
    """Whether `fan_in_fan_out` is lost: PEFT's configuration alone says that ΔW is added transposed.

    The factors are the same in every layout, since ΔW [d_out, d_in] is what acts on the layer's input; but a loader
    that adds it to a Conv1D's weight [d_in, d_out] as it is fails, or, where that is square, adds the wrong matrix.

    Args:
        adapter: what was read.
        layout: that is written.
        drop: whether losing it was asked for (`--drop-fan-in-fan-out`).

    Raises:
        LorabenchError: it would be lost, and this was not asked for.
    """
    lost = layout != "peft" and bool(adapter.config.get("fan_in_fan_out"))
    if lost and not drop:
        raise LorabenchError(
            f"{adapter.path}: its configuration says fan_in_fan_out (GPT-2's Conv1D: ΔW is added transposed), which "
            f"the {layout} layout cannot say. Write the peft layout, or convert with --drop-fan-in-fan-out "
            "(drop_fan_in_fan_out=True): whoever loads that file must know it."
        )
    return lost


def some(names: Iterable[str]) -> str:
    """The first three names, and how many more there are."""
    found = list(names)
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
