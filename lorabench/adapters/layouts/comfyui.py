"""The one-file form of ComfyUI and AI Toolkit: `lora_A` and `lora_B` under `diffusion_model.`."""

from collections.abc import Mapping
from typing import ClassVar

from lorabench.adapters.layouts.diffusers_peft import OneFile
from lorabench.adapters.names.identity import identity, split_part

__all__ = ["LAYOUT"]


class ComfyUi(OneFile):
    """As diffusers' of today, but the denoiser is `diffusion_model` whatever its sort; names are kept."""

    name: ClassVar[str] = "comfyui"
    place: ClassVar[int] = 3
    title: ClassVar[str] = "ComfyUI's names, diffusion_model.x.lora_A.weight"
    original_names: ClassVar[bool] = True

    def spell(self, modules: Mapping[str, str], metadata: Mapping[str, str]) -> dict[str, str]:  # noqa: ARG002
        """Any word for the denoiser becomes `diffusion_model`."""
        return {
            module: f"diffusion_model.{split_part(module)[1]}" if identity(module).part == "denoiser" else module
            for module in modules
        }


LAYOUT = ComfyUi()
