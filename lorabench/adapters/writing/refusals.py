"""What a written file cannot say of the adapter that was read: refused by name, or left out where that is asked for."""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lorabench.adapters.adapter import MAGNITUDES, Adapter, LoraModule
from lorabench.adapters.fusing import family_of
from lorabench.adapters.layouts import WrittenLayout
from lorabench.adapters.names.identity import unwrap
from lorabench.adapters.reading.container import finite
from lorabench.adapters.reading.switching import UNPLACED
from lorabench.adapters.writing.renaming import original_blocks
from lorabench.errors import LorabenchError
from lorabench.text import some

__all__ = [
    "all_carried",
    "asked_for",
    "changed_base",
    "refuse_embeddings",
    "refuse_infinite",
    "refuse_magnitudes",
    "refuse_options",
    "refuse_transposed",
    "refuse_unknown_names",
    "refuse_unplaced",
    "refuse_unsupported",
]

_CONV1D = re.compile(
    r"(^|\.)h\.\d+\.(attn\.c_attn|attn\.c_proj|attn\.q_attn|crossattention\.\w+|mlp\.c_fc|mlp\.c_proj)$"
)
"""GPT-2's modules, whose weights are [d_in, d_out]."""

_OPTIONS = {
    "alora_invocation_tokens": "which tokens switch the adapter on",
    "layer_replication": "which layers are repeated",
    "megatron_config": "how layers are split over devices",
    "use_qalora": "that inputs are pooled",
}
"""Entries of PEFT's configuration that change what an adapter does, and that no other layout can say."""

_OF_OTHER_TENSORS = (
    "arrow_config", "kasa_config", "monteclora_config", "target_parameters", "use_bdlora", "velora_config",
)  # fmt: skip
"""Options of PEFT's whose tensors are no low-rank pair of a module."""

_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Starts that take what they put into the factors out of the base weights; "pissa_niter_16" is one too."""


def refuse_unsupported(adapter: Adapter, drop: bool, carried: bool) -> dict[str, tuple[str, ...]]:
    """Kind -> keys that are left out because they are no low-rank pair; DoRA's magnitudes are not among them.

    Args:
        adapter: what was read.
        drop: whether this was asked for (`--drop-unsupported`).
        carried: whether what is written carries the adapter's extras whole.

    Raises:
        LorabenchError: there are such keys, and it was not.
    """
    left = {kind: keys for kind, keys in adapter.unsupported.items() if kind != MAGNITUDES and keys}
    if drop:
        return left
    if carried:
        left = {kind: keys for kind, keys in left.items() if not all_carried(keys, adapter)}
    if left:
        listed = "; ".join(f"{kind}: {some(keys)}" for kind, keys in left.items())
        raise LorabenchError(
            f"{adapter.path}: it holds more than low-rank pairs, which this cannot write. {listed}. "
            f"Say --drop-unsupported (drop_unsupported=True) to leave these out.{asked_for(adapter)}"
        )
    return left


def asked_for(adapter: Adapter) -> str:
    """Which of the configuration's options such tensors belong to, as a sentence; "" for none that is known."""
    options = [entry for entry in _OF_OTHER_TENSORS if adapter.config.get(entry)]
    return f" They belong to {', '.join(options)} in adapter_config.json." if options else ""


def changed_base(config: Mapping[str, Any]) -> str:
    """What `init_lora_weights` says where PEFT changes the base's weights by it whenever it loads the adapter; else "".

    >>> changed_base({"init_lora_weights": "pissa_niter_16"}), changed_base({"init_lora_weights": "gaussian"})
    ('pissa_niter_16', '')
    """
    start = config.get("init_lora_weights")
    return start if isinstance(start, str) and start.lower().startswith(_CHANGED_BASE) else ""


def refuse_infinite(adapter: Adapter) -> None:
    """NaN or infinity, which `load` refuses too; an adapter may have been made in memory.

    Raises:
        LorabenchError: a factor holds some; its module is named.
    """
    for name, module in adapter.modules.items():
        finite(adapter.path, f"down of {name}", module.down)
        finite(adapter.path, f"up of {name}", module.up)
        if not math.isfinite(module.scale):
            raise LorabenchError(f"{adapter.path}: the scale of {name} is {module.scale}. Train again or repair it.")


def refuse_magnitudes(adapter: Adapter, drop: bool) -> dict[str, tuple[str, ...]]:
    """The keys of DoRA's magnitudes that are left out.

    Raises:
        LorabenchError: there are some, and this was not asked for.
    """
    names = tuple(name for name, module in adapter.modules.items() if module.has_magnitude)
    if names and not drop:
        raise LorabenchError(
            f"{adapter.path}: {len(names)} modules have a DoRA magnitude, which this cannot write: {some(names)}. "
            "Say --drop-dora (drop_dora=True) to write their low-rank part alone, which does not do the same."
        )
    return {MAGNITUDES: adapter.unsupported.get(MAGNITUDES, names)} if names else {}


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


def refuse_unknown_names(adapter: Adapter, modules: Iterable[str], layout: WrittenLayout) -> None:
    """Blocks by the original model's names that diffusers calls otherwise, where no family says how.

    Raises:
        LorabenchError: there are some, in a file of kohya's, which diffusers does load.
    """
    blocks = original_blocks(modules) if layout.of_diffusers and "kohya" in adapter.schemes else []
    if blocks and family_of(adapter.modules) is None:
        raise LorabenchError(
            f"{adapter.path}: nothing says of which family's model {len(blocks)} modules are ({some(blocks)}), and "
            f"so what diffusers calls them; its loader takes them from kohya's file alone. Write the comfyui layout, "
            f"not {layout.name}."
        )


def refuse_embeddings(where: Path, modules: Mapping[str, LoraModule], layout: WrittenLayout) -> None:
    """Few layouts have names for the update of an embedding table.

    Raises:
        LorabenchError: one of the modules is such an update, and the layout has none.
    """
    tables = [name for name, module in modules.items() if module.embedding]
    if tables and not layout.embeddings:
        raise LorabenchError(
            f"{where}: the {layout.name} layout has no place for the update of an embedding table ({some(tables)}). "
            "Write the peft layout, or remove these modules first."
        )


def refuse_transposed(adapter: Adapter, layout: WrittenLayout, drop: bool = False) -> bool:
    """Whether it is lost that ΔW is added transposed: to GPT-2's Conv1D, or where PEFT's `fan_in_fan_out` says so.

    The factors are the same in every layout, since ΔW [d_out, d_in] is what acts on the layer's input; but a loader
    that adds it to a Conv1D's weight [d_in, d_out] as it is fails, or, where that is square, adds the wrong matrix.
    PEFT corrects `fan_in_fan_out: false` by itself where it meets a Conv1D, so the modules' names count too.

    Args:
        adapter: what was read.
        layout: that is written.
        drop: whether losing it was asked for (`--drop-fan-in-fan-out`).

    Raises:
        LorabenchError: it would be lost, and this was not asked for.
    """
    told = bool(adapter.config.get("fan_in_fan_out"))
    lost = not layout.configured and (told or any(map(_CONV1D.search, adapter.modules)))
    if lost and not drop:
        why = "its configuration says fan_in_fan_out" if told else "its modules are GPT-2's"
        raise LorabenchError(
            f"{adapter.path}: {why} (fan_in_fan_out, GPT-2's Conv1D: ΔW is added transposed), which "
            f"the {layout.name} layout cannot say. Write the peft layout, or convert with --drop-fan-in-fan-out "
            "(drop_fan_in_fan_out=True): whoever loads that file must know it."
        )
    return lost


def refuse_options(adapter: Adapter, layout: WrittenLayout) -> None:
    """Options of PEFT's that change what an adapter does, in a layout without a configuration.

    Raises:
        LorabenchError: the adapter has one; it is named.
    """
    if layout.configured:
        return
    for entry, meaning in _OPTIONS.items():
        if adapter.config.get(entry):
            raise LorabenchError(
                f"{adapter.path}: {entry} in adapter_config.json says {meaning}, which the {layout.name} layout cannot "
                "say. Write the peft layout."
            )
    start = changed_base(adapter.config)
    if start:
        raise LorabenchError(
            f"{adapter.path}: init_lora_weights = {start!r} in adapter_config.json changes the base weights when it is "
            f"loaded, which the {layout.name} layout cannot say. Write the peft layout, or convert it to an ordinary "
            "LoRA by PEFT's path_initial_model_for_weight_conversion first."
        )


def all_carried(keys: tuple[str, ...], adapter: Adapter) -> bool:
    """Whether all of these keys are among the tensors that are carried whole (`Adapter.extras`)."""
    return all(unwrap(key).name in adapter.extras for key in keys)
