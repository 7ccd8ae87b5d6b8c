"""The modules of the hub's `lora-ws-*` sets, without anything that reads them."""

__all__ = ["stable_diffusion_modules"]


def stable_diffusion_modules() -> dict[str, tuple[int, int]]:
    """Name -> (d_in, d_out) of the hub's 64 modules: to_q and to_v of attn1, attn2 in the 16 blocks of SD 1.5."""
    widths = {"down_blocks.0": 320, "down_blocks.1": 640, "down_blocks.2": 1280}
    blocks = [(f"{name}.attentions.{j}", width) for name, width in widths.items() for j in range(2)]
    blocks += [("mid_block.attentions.0", 1280)]
    widths = {"up_blocks.1": 1280, "up_blocks.2": 640, "up_blocks.3": 320}
    blocks += [(f"{name}.attentions.{j}", width) for name, width in widths.items() for j in range(3)]
    found: dict[str, tuple[int, int]] = {}
    for block, width in blocks:
        for attention, context in (("attn1", width), ("attn2", 768)):
            stem = f"unet.{block}.transformer_blocks.0.{attention}"
            found[f"{stem}.to_q"] = (width, width)
            found[f"{stem}.to_v"] = (context, width)
    return found
