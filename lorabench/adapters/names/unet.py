"""The names that loaders look for, of modules with several: the original U-Net's, as kohya keeps them, and CLIP's."""

import re
from functools import lru_cache

__all__ = ["clip_name", "converted", "diffusers_unet_name"]

_FIXED = {
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
}
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_LAYERS = 3  # what one resolution has on either side: two resnets and a downsampler, or three resnets

_FLAT_CLIP = re.compile(r"^(text_encoder(?:_2)?)\.(encoder\.layers\.\d+\.(?:self_attn|mlp)\.)")


def clip_name(module: str) -> str:
    """The name of a CLIP text encoder's module with its level `text_model`; others stay as they are."""
    return _FLAT_CLIP.sub(r"\1.text_model.\2", module)


def diffusers_unet_name(module: str) -> str:
    """The name that diffusers gives to a module of the original U-Net (SD 1, SD 2, SDXL); others stay as they are.

    >>> diffusers_unet_name("unet.input_blocks.4.1.transformer_blocks.0.attn1.to_q")
    'unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q'
    """
    return f"unet.{converted(module[5:], '.')}" if module.startswith("unet.") else module


def converted(name: str, separator: str) -> str:
    """The same of a name without its part, whose separators are dots or were flattened to underscores.

    `input_blocks.i` is layer (i − 1) mod 3 of resolution (i − 1) // 3, and `output_blocks.i` is layer i mod 3 of
    i // 3 (sd-scripts' and diffusers' conversion tables).

    >>> converted("output_blocks_2_2_conv", "_")
    'up_blocks_0_upsamplers_0_conv'
    """
    fixed, resnet, block = _spelled(separator)
    known = next((old for old in fixed if name == old or name.startswith(old + separator)), None)
    if known is not None:
        parent, rest = fixed[known], name.removeprefix(known).removeprefix(separator)
        return f"{parent}{separator}{resnet.get(rest, rest) if 'resnets' in parent else rest}" if rest else parent
    match = block.match(name)
    if match is None:
        return name
    index, rest, encoder = int(match["block"]), match["rest"], match["side"] == "input"
    resolution, layer = divmod(index - 1 if encoder else index, _LAYERS)
    sampled = {"op": "downsamplers"} if encoder else {"conv": "upsamplers"}
    stem = [f"{'down' if encoder else 'up'}_blocks", str(resolution)]
    if rest in sampled:
        return separator.join([*stem, sampled[rest], "0", "conv"])
    if match["part"] == "0":
        return separator.join([*stem, "resnets", str(layer), resnet.get(rest, rest)])
    return separator.join([*stem, "attentions", str(layer), rest])


@lru_cache
def _spelled(separator: str) -> tuple[dict[str, str], dict[str, str], re.Pattern[str]]:
    """Both tables and the pattern of blocks, with this separator."""
    fixed, resnet = (
        {old.replace(".", separator): new.replace(".", separator) for old, new in table.items()}
        for table in (_FIXED, _RESNET)
    )
    dot = re.escape(separator)
    block = rf"^(?P<side>input|output)_blocks{dot}(?P<block>\d+){dot}(?P<part>[012]){dot}(?P<rest>.+)$"
    return fixed, resnet, re.compile(block)
