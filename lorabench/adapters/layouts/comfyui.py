"""The one-file form of ComfyUI and AI Toolkit: `lora_A` and `lora_B` under `diffusion_model.`."""

from typing import ClassVar

from lorabench.adapters.layouts.diffusers_peft import OneFile

__all__ = ["LAYOUT"]


class ComfyUi(OneFile):
    """As diffusers' of today, but the denoiser is `diffusion_model` whatever its sort; names are kept."""

    name: ClassVar[str] = "comfyui"
    place: ClassVar[int] = 3
    title: ClassVar[str] = "ComfyUI's names, diffusion_model.x.lora_A.weight"
    original_names: ClassVar[bool] = True
    denoiser: ClassVar[str] = "diffusion_model"


LAYOUT = ComfyUi()
