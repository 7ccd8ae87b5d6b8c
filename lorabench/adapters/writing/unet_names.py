"""The names that loaders look for, of modules with several: the original U-Net's, as kohya keeps them, and CLIP's."""

import re

__all__ = ["clip_name", "diffusers_unet_name"]

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
_BLOCK = re.compile(r"^(?P<side>input|output)_blocks\.(?P<block>\d+)\.(?P<part>[012])\.(?P<rest>.+)$")
_LAYERS = 3  # what one resolution has on either side: two resnets and a downsampler, or three resnets


_FLAT_CLIP = re.compile(r"^(text_encoder(?:_2)?)\.(encoder\.layers\.\d+\.(?:self_attn|mlp)\.)")


def clip_name(module: str) -> str:
    """The name of a CLIP text encoder's module with its level `text_model`; others stay as they are."""
    return _FLAT_CLIP.sub(r"\1.text_model.\2", module)


def diffusers_unet_name(module: str) -> str:
    """The name that diffusers gives to a module of the original U-Net (SD 1, SD 2, SDXL); others stay as they are.

    `input_blocks.i` is layer (i − 1) mod 3 of resolution (i − 1) // 3, and `output_blocks.i` is layer i mod 3 of
    i // 3 (sd-scripts' and diffusers' conversion tables).

    >>> diffusers_unet_name("unet.input_blocks.4.1.transformer_blocks.0.attn1.to_q")
    'unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q'
    >>> diffusers_unet_name("unet.output_blocks.2.2.conv")
    'unet.up_blocks.0.upsamplers.0.conv'
    """
    component, _, name = module.partition(".")
    if component != "unet":
        return module
    fixed = next((old for old in _FIXED if name == old or name.startswith(f"{old}.")), None)
    if fixed is not None:
        rest = name.removeprefix(fixed).removeprefix(".")
        parent = _FIXED[fixed]
        return ".".join(("unet", parent, *([_in(parent, rest)] if rest else [])))
    match = _BLOCK.match(name)
    if match is None:
        return module
    index, part, rest = int(match["block"]), match["part"], match["rest"]
    if match["side"] == "input":
        block, layer = divmod(index - 1, _LAYERS)
        if rest == "op":
            return f"unet.down_blocks.{block}.downsamplers.0.conv"
        stem = f"down_blocks.{block}"
    else:
        block, layer = divmod(index, _LAYERS)
        if rest == "conv":
            return f"unet.up_blocks.{block}.upsamplers.0.conv"
        stem = f"up_blocks.{block}"
    parent = f"{stem}.{'resnets' if part == '0' else 'attentions'}.{layer}"
    return f"unet.{parent}.{_in(parent, rest)}"


def _in(parent: str, rest: str) -> str:
    """A name below a resnet; other blocks name their parts alike."""
    return _RESNET.get(rest, rest) if "resnets" in parent else rest
