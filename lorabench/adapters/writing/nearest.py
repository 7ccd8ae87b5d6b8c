"""The layout that is nearest to the one a file was read from."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lorabench.adapters.layouts import written_layouts
from lorabench.adapters.names.identity import DENOISER_WORDS, identity, split_part

__all__ = ["nearest_layout"]


def nearest_layout(schemes: Collection[str], modules: Collection[str], config: Mapping[str, Any], path: Path) -> str:
    """The layout, of those that are written, that says what was read with the least changed.

    Args:
        schemes: of naming, that the file uses.
        modules: their names.
        config: adapter_config.json beside the file.
        path: of the file.

    >>> nearest_layout(["peft"], ["model.layers.0.self_attn.q_proj"], {}, Path("adapter_model.safetensors"))
    'peft'
    """
    for layout in reversed(written_layouts().values()):  # kohya's α before diffusers' none, where a file has both
        if layout.nearest_to & set(schemes):
            return layout.name
    of_a_pipeline = all(identity(name).part for name in modules)
    if not of_a_pipeline or config or path.stem == "adapter_model":
        return "peft"
    words = {split_part(name)[0] for name in modules}
    return "comfyui" if words & set(DENOISER_WORDS) else "diffusers-peft"
