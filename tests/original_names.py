"""Module names in the namings of models' own repositories, as trainers keep them, for `tests.make_families`.

They are written down from those repositories and from the adapters that trainers made of them: no class that is
installed here has them. `{a,b}` stands for a or b.
"""

import re
from itertools import product
from typing import Any

__all__ = ["ORIGINAL"]

_BRACES = re.compile(r"\{([^{}]*)\}")


def _spread(text: str) -> list[str]:
    """Every name that a line with braces stands for.

    >>> _spread("blocks.#.{self,cross}_attn.{q,k}")[:3]
    ['blocks.#.self_attn.q', 'blocks.#.self_attn.k', 'blocks.#.cross_attn.q']
    """
    names = []
    for line in text.split():
        parts = _BRACES.split(line)
        choices = [part.split(",") if index % 2 else [part] for index, part in enumerate(parts)]
        names += ["".join(choice) for choice in product(*choices)]
    return names


def _family(key: str, name: str, role: str, names: str, **known: Any) -> dict[str, Any]:
    return {"key": key, "name": name, "role": role, "modules": _spread(names), **known}


_FLUX = """
double_blocks.#.{img,txt}_attn.{qkv,proj,norm.query_norm,norm.key_norm} double_blocks.#.{img,txt}_mlp.#
double_blocks.#.{img,txt}_mod.lin single_blocks.#.{linear1,linear2,modulation.lin,norm.query_norm,norm.key_norm}
img_in txt_in {time_in,vector_in,guidance_in}.{in_layer,out_layer} final_layer.linear final_layer.adaLN_modulation.#
"""
_CHROMA = """
double_blocks.#.{img,txt}_attn.{qkv,proj,norm.query_norm,norm.key_norm} double_blocks.#.{img,txt}_mlp.#
single_blocks.#.{linear1,linear2,norm.query_norm,norm.key_norm} img_in txt_in final_layer.linear
distilled_guidance_layer.{in_proj,out_proj,norms.#,layers.#.in_layer,layers.#.out_layer}
"""
_FLUX2 = """
double_blocks.#.{img,txt}_attn.{qkv,proj,norm.query_norm,norm.key_norm} double_blocks.#.{img,txt}_mlp.#
double_stream_modulation_{img,txt}.lin single_stream_modulation.lin
single_blocks.#.{linear1,linear2,norm.query_norm,norm.key_norm} img_in txt_in {time_in,guidance_in}.{in_layer,out_layer}
final_layer.linear final_layer.adaLN_modulation.#
"""
_HUNYUAN_VIDEO = """
double_blocks.#.{img,txt}_{attn_qkv,attn_proj,attn_q_norm,attn_k_norm,mlp.fc1,mlp.fc2,mod.linear}
single_blocks.#.{linear1,linear2,q_norm,k_norm,modulation.linear} img_in.proj vector_in.{in_layer,out_layer}
{time_in,guidance_in}.mlp.# final_layer.linear final_layer.adaLN_modulation.#
txt_in.{input_embedder,c_embedder.linear_#,t_embedder.mlp.#}
txt_in.individual_token_refiner.blocks.#.{norm1,norm2,self_attn_qkv,self_attn_proj,self_attn_q_norm,self_attn_k_norm}
txt_in.individual_token_refiner.blocks.#.{mlp.fc1,mlp.fc2,adaLN_modulation.#}
"""
_WAN = """
blocks.#.self_attn.{q,k,v,o,norm_q,norm_k} blocks.#.cross_attn.{q,k,v,o,k_img,v_img,norm_q,norm_k,norm_k_img}
blocks.#.ffn.# blocks.#.norm3 text_embedding.# time_embedding.# time_projection.# head.head img_emb.proj.#
patch_embedding vace_patch_embedding ref_conv
vace_blocks.#.{self_attn,cross_attn}.{q,k,v,o,norm_q,norm_k} vace_blocks.#.{ffn.#,norm3,before_proj,after_proj}
"""
_SD3 = """
joint_blocks.#.{context_block,x_block}.attn.{qkv,proj,ln_q,ln_k} joint_blocks.#.x_block.attn2.{qkv,proj,ln_q,ln_k}
joint_blocks.#.{context_block,x_block}.{mlp.fc1,mlp.fc2,adaLN_modulation.#} x_embedder.proj context_embedder
{t_embedder,y_embedder}.mlp.# final_layer.linear final_layer.adaLN_modulation.#
"""
_LUMINA2 = """
{layers,noise_refiner,context_refiner}.#.attention.{qkv,out,q_norm,k_norm}
{layers,noise_refiner,context_refiner}.#.feed_forward.{w1,w2,w3}
{layers,noise_refiner,context_refiner}.#.{attention_norm1,attention_norm2,ffn_norm1,ffn_norm2}
{layers,noise_refiner}.#.adaLN_modulation.# cap_embedder.# t_embedder.mlp.# x_embedder final_layer.linear
final_layer.adaLN_modulation.# norm_final
"""
_ANIMA = """
blocks.#.{self_attn,cross_attn}.{q_proj,k_proj,v_proj,output_proj,q_norm,k_norm} blocks.#.mlp.{layer1,layer2}
blocks.#.adaln_modulation_{self_attn,cross_attn,mlp}.# x_embedder.proj.# t_embedder.#.linear_# t_embedding_norm
final_layer.linear final_layer.adaln_modulation.#
"""
_LLM_ADAPTER = """
llm_adapter.blocks.#.{self_attn,cross_attn}.{q_proj,k_proj,v_proj,o_proj,q_norm,k_norm} llm_adapter.blocks.#.mlp.#
llm_adapter.blocks.#.norm_{self_attn,cross_attn,mlp} llm_adapter.{embed,in_proj,out_proj,norm}
"""
_KREA2 = """
blocks.#.attn.{gate,wk,wo,wq,wv} blocks.#.mlp.{down,gate,up} first last.linear tmlp.# tproj.# txtmlp.#
txtfusion.projector txtfusion.{layerwise_blocks,refiner_blocks}.#.attn.{gate,wk,wo,wq,wv}
txtfusion.{layerwise_blocks,refiner_blocks}.#.mlp.{down,gate,up}
"""
_LTX = """
transformer_blocks.#.{attn1,attn2}.{to_q,to_k,to_v,to_out.#,q_norm,k_norm} transformer_blocks.#.ff.net.#.proj
transformer_blocks.#.ff.net.# adaln_single.emb.timestep_embedder.linear_# adaln_single.linear
caption_projection.linear_# patchify_proj proj_out
"""
_LTX2 = """
transformer_blocks.#.{audio_attn1,audio_attn2,audio_to_video_attn,video_to_audio_attn}.{to_q,to_k,to_v,to_out.#}
transformer_blocks.#.audio_ff.net.#.proj transformer_blocks.#.audio_ff.net.# audio_patchify_proj audio_proj_out
audio_adaln_single.emb.timestep_embedder.linear_# audio_adaln_single.linear audio_caption_projection.linear_#
"""
_PIXART = """
blocks.#.attn.{qkv,proj} blocks.#.cross_attn.{q_linear,kv_linear,proj} blocks.#.mlp.{fc1,fc2} x_embedder.proj
y_embedder.y_proj.{fc1,fc2} t_embedder.mlp.# t_block.# final_layer.linear
"""
_MOCHI = """
blocks.#.attn.{qkv_x,qkv_y,proj_x,proj_y,q_norm_x,k_norm_x,q_norm_y,k_norm_y} blocks.#.{mlp_x,mlp_y}.{w1,w2,w3}
blocks.#.{mod_x,mod_y} x_embedder.proj t_embedder.mlp.# t5_yproj t5_y_embedder.{to_kv,to_q,to_out}
final_layer.{linear,mod}
"""
_UNET = """
{input_blocks,output_blocks}.#.#.{in_layers.#,emb_layers.#,out_layers.#,skip_connection,norm,proj_in,proj_out}
{input_blocks,output_blocks}.#.#.transformer_blocks.#.{attn1,attn2}.{to_q,to_k,to_v,to_out.#}
{input_blocks,output_blocks}.#.#.transformer_blocks.#.{ff.net.#,ff.net.#.proj,norm1,norm2,norm3}
middle_block.#.{in_layers.#,emb_layers.#,out_layers.#,norm,proj_in,proj_out}
middle_block.#.transformer_blocks.#.{attn1,attn2}.{to_q,to_k,to_v,to_out.#}
middle_block.#.transformer_blocks.#.{ff.net.#,ff.net.#.proj,norm1,norm2,norm3}
input_blocks.#.# input_blocks.#.#.op output_blocks.#.#.conv time_embed.# label_emb.#.# out.#
"""
_CASCADE = """
{down_blocks,up_blocks}.#.#.{channelwise.#,depthwise,mapper,mapper_sca,mapper_crp,attention.kv_mapper.#}
{down_blocks,up_blocks}.#.#.attention.attn.{to_q,to_k,to_v,out_proj,to_out.#} {down_downscalers,up_upscalers}.#.#
{down_blocks,up_blocks}.#.#.attention.attn.in_proj clip_mapper clip_txt_mapper clip_txt_pooled_mapper clip_img_mapper
{down_repeat_mappers,up_repeat_mappers}.#.# embedding.# clf.#
"""
_OPEN_CLIP = """
transformer.resblocks.#.{attn.in_proj,attn.out_proj,mlp.c_fc,mlp.c_proj,ln_#} token_embedding ln_final
text_projection
"""
_VIT_4 = """
{vit.,}encoder.layer.#.attention.attention.{query,key,value} {vit.,}encoder.layer.#.attention.output.dense
{vit.,}encoder.layer.#.{intermediate.dense,output.dense,layernorm_before,layernorm_after} {vit.,}layernorm classifier
{vit.,}embeddings.patch_embeddings.projection
"""
_DINOV2_4 = """
{dinov2.,}encoder.layer.#.attention.attention.{query,key,value} {dinov2.,}encoder.layer.#.attention.output.dense
{dinov2.,}encoder.layer.#.{mlp.fc1,mlp.fc2,mlp.weights_in,mlp.weights_out,norm1,norm2} {dinov2.,}layernorm classifier
{dinov2.,}embeddings.patch_embeddings.projection
"""
_TIMM_VIT = """
blocks.#.attn.{qkv,proj,q_norm,k_norm} blocks.#.mlp.{fc1,fc2} blocks.#.{norm1,norm2} patch_embed.proj norm head
"""
_TIMM_CONVNEXT = """
stages.#.blocks.#.{conv_dw,norm,mlp.fc1,mlp.fc2,mlp.grn} stages.#.downsample.# stem.# head.fc head.norm
"""

_SD = (
    ("sd1", "Stable Diffusion 1", 768),
    ("sd2", "Stable Diffusion 2", 1024),
    ("sdxl", "Stable Diffusion XL", 2048),
    ("sdxl-refiner", "Stable Diffusion XL refiner", 1280),
)
_DEPTH = {"double_blocks": 19, "single_blocks": 38}

ORIGINAL = [
    *(
        _family(key, name, "unet", _UNET, cross=[width], group="Stable Diffusion (a U-Net)")
        for key, name, width in _SD
    ),
    _family(
        "flux", "FLUX", "transformer", _FLUX, widths=[3072], blocks=_DEPTH,
        shapes={"single_blocks.#.linear1": [21504, 3072], "double_blocks.#.img_mod.lin": [18432, 3072]},
    ),
    _family("chroma", "Chroma", "transformer", _CHROMA, widths=[3072], blocks=_DEPTH, like=["flux"]),
    _family(
        "flux2", "FLUX.2", "transformer", _FLUX2, widths=[6144, 4096, 3072],
        blocks={"double_blocks": 8, "single_blocks": 48}, like=["flux"],
    ),
    _family(
        "hunyuan-video", "HunyuanVideo", "transformer", _HUNYUAN_VIDEO, widths=[3072], like=["flux"],
        blocks={"double_blocks": 20, "single_blocks": 40},
    ),
    _family(
        "hunyuan-image", "HunyuanImage 2.1", "transformer",
        _HUNYUAN_VIDEO + "byt5_in.{layernorm,fc1,fc2,fc3} time_r_in.mlp.#", widths=[3584],
        blocks={"double_blocks": 20, "single_blocks": 40},
    ),
    _family("wan", "Wan video", "transformer", _WAN, widths=[1536, 3072, 5120], blocks={"blocks": 40}),
    _family(
        "sd3", "Stable Diffusion 3", "transformer", _SD3, widths=[1536, 2432], blocks={"joint_blocks": 38}
    ),
    _family(
        "lumina2", "Lumina 2", "transformer", _LUMINA2, widths=[2304],
        blocks={"layers": 26, "noise_refiner": 2, "context_refiner": 2},
    ),
    _family(
        "z-image", "Z-Image", "transformer", _LUMINA2 + "all_x_embedder.2-1 all_final_layer.2-1.linear",
        widths=[3840], blocks={"layers": 30, "noise_refiner": 2, "context_refiner": 2},
    ),
    _family("anima", "Anima", "transformer", _ANIMA + _LLM_ADAPTER, widths=[2048], blocks={"blocks": 28}),
    _family(
        "cosmos", "Cosmos", "transformer", _ANIMA, widths=[2048, 4096, 5120], blocks={"blocks": 36}, like=["anima"]
    ),
    _family("krea2", "Krea 2", "transformer", _KREA2, widths=[6144]),
    _family("ltx", "LTX-Video", "transformer", _LTX, widths=[2048, 4096], blocks={"transformer_blocks": 48}),
    _family(
        "ltx2", "LTX-2", "transformer", _LTX + _LTX2, widths=[2048, 4096], blocks={"transformer_blocks": 48},
        like=["ltx"],
    ),
    _family("pixart", "PixArt", "transformer", _PIXART, widths=[1152], blocks={"blocks": 28}),
    _family("mochi", "Mochi", "transformer", _MOCHI, widths=[3072], blocks={"blocks": 48}),
    _family("stable-cascade", "Stable Cascade", "prior", _CASCADE),
    _family("open-clip", "OpenCLIP text encoder", "text_encoder", _OPEN_CLIP),
    _family("vit", "ViT", "vision", _VIT_4),
    _family("dinov2", "DINOv2", "vision", _DINOV2_4, like=["vit"]),
    _family("vit", "ViT", "vision", _TIMM_VIT, naming="timm"),
    _family("convnext", "ConvNeXt", "vision", _TIMM_CONVNEXT, naming="timm"),
    _family("sam", "Segment Anything (ViT)", "vision", "w_#"),
]  # fmt: skip
