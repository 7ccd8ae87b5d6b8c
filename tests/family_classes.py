"""Which installed class is which family's, for `tests.make_families`.

`widths` are the inner widths of the released models, `cross` those of a U-Net's text, `blocks` how many blocks of a
name the largest released model has; where a transformer has no `widths` here, its class's defaults tell them. `like`
names families whose names these are but for a few modules: where an adapter fits both, it is theirs. `group` is what
several families are called together that an adapter fits equally.
"""

from typing import Any

__all__ = ["CLASSES"]

_SDXL = {
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}
_KANDINSKY_2 = {
    "addition_embed_type": "image",
    "encoder_hid_dim": 1280,
    "encoder_hid_dim_type": "image_proj",
    "cross_attention_dim": 768,
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "block_out_channels": (384, 768),
    "resnet_time_scale_shift": "scale_shift",
}
_A_UNET = "Stable Diffusion (a U-Net)"
_SD = ["sd1", "sd2", "sdxl", "sdxl-refiner"]
_IMAGE_TO_VIDEO = {"image_dim": 1280, "added_kv_proj_dim": 5120}


def _family(
    key: str, name: str, role: str, classes: dict[str, list[dict[str, Any]]] | str, **known: Any
) -> dict[str, Any]:
    variants = {class_name: [{}] for class_name in classes.split()} if isinstance(classes, str) else classes
    pairs = [(class_name, options) for class_name, every in variants.items() for options in every]
    return {"key": key, "name": name, "role": role, "classes": pairs, **known}


_UNETS = [
    *(
        _family(key, name, "unet", {"UNet2DConditionModel": [options]}, cross=[width], group=_A_UNET)
        for key, name, width, options in (
            ("sd1", "Stable Diffusion 1", 768, {}),
            ("sd2", "Stable Diffusion 2", 1024, {"use_linear_projection": True}),
            ("sdxl", "Stable Diffusion XL", 2048, _SDXL),
            ("sdxl-refiner", "Stable Diffusion XL refiner", 1280, _SDXL),
        )
    ),
    _family("kandinsky2", "Kandinsky 2", "unet", {"UNet2DConditionModel": [_KANDINSKY_2]}, like=_SD),
    _family("kandinsky3", "Kandinsky 3", "unet", "Kandinsky3UNet", like=_SD, cross=[4096]),
    _family("animatediff", "AnimateDiff (a motion U-Net)", "unet", "UNetMotionModel", like=_SD),
    _family("svd", "Stable Video Diffusion", "unet", "UNetSpatioTemporalConditionModel", like=_SD),
    _family("i2vgen-xl", "I2VGen-XL", "unet", "I2VGenXLUNet", like=_SD),
    _family("modelscope", "ModelScope text-to-video", "unet", "UNet3DConditionModel", like=_SD),
    _family("audioldm2", "AudioLDM 2", "unet", "AudioLDM2UNet2DConditionModel", like=_SD),
    _family("dreamlite", "DreamLite", "unet", "DreamLiteUNetModel", like=_SD),
    _family(
        "sd-controlnet", "Stable Diffusion's ControlNet", "unet",
        {"ControlNetModel": [{}], "SparseControlNetModel": [{}], "UNetControlNetXSModel": [{}],
         "ControlNetUnionModel": [{"conditioning_channels": 3, **{key: value for key, value in _SDXL.items()
                                   if key != "up_block_types"}, "num_control_type": 6}]},
        like=[*_SD, "animatediff"],
    ),
    _family("stable-cascade", "Stable Cascade", "unet", "StableCascadeUNet", widths=[2048, 1536]),
    _family("amused", "aMUSEd", "unet", "UVit2DModel"),
]  # fmt: skip

_TRANSFORMERS = [
    _family(
        "sd3", "Stable Diffusion 3", "transformer",
        {"SD3Transformer2DModel": [{}, {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1, 2)}]},
        widths=[1536, 2432], blocks={"transformer_blocks": 38},
    ),
    _family(
        "flux", "FLUX", "transformer", {"FluxTransformer2DModel": [{}, {"guidance_embeds": True}]},
        widths=[3072], blocks={"transformer_blocks": 19, "single_transformer_blocks": 38},
    ),
    _family(
        "chroma", "Chroma", "transformer", "ChromaTransformer2DModel", like=["flux"],
        widths=[3072], blocks={"transformer_blocks": 19, "single_transformer_blocks": 38},
    ),
    _family(
        "flux2", "FLUX.2", "transformer", {"Flux2Transformer2DModel": [{}]},
        widths=[6144, 4096, 3072], blocks={"transformer_blocks": 8, "single_transformer_blocks": 48},
    ),
    _family("flux3", "FLUX.3", "transformer", "Flux3Transformer2DModel"),
    _family(
        "qwen-image", "Qwen-Image", "transformer", "QwenImageTransformer2DModel",
        widths=[3072], blocks={"transformer_blocks": 60},
    ),
    _family("qwen-image-2.1", "Qwen-Image 2.1", "transformer", "QwenImage21Transformer2DModel"),
    _family(
        "z-image", "Z-Image", "transformer", "ZImageTransformer2DModel",
        widths=[3840], blocks={"layers": 30, "noise_refiner": 2, "context_refiner": 2},
    ),
    _family(
        "hunyuan-video", "HunyuanVideo", "transformer",
        {"HunyuanVideoTransformer3DModel": [{}, {"guidance_embeds": True, "image_condition_type": "token_replace"}],
         "HunyuanVideoFramepackTransformer3DModel": [{}, {"has_image_proj": True, "has_clean_x_embedder": True}]},
        like=["flux"], widths=[3072], blocks={"transformer_blocks": 20, "single_transformer_blocks": 40},
    ),
    _family(
        "hunyuan-video-1.5", "HunyuanVideo 1.5", "transformer", "HunyuanVideo15Transformer3DModel",
        widths=[2048], blocks={"transformer_blocks": 54},
    ),
    _family(
        "hunyuan-image", "HunyuanImage 2.1", "transformer",
        {"HunyuanImageTransformer2DModel": [{}, {"guidance_embeds": True, "use_meanflow": True}]},
        widths=[3584], blocks={"transformer_blocks": 20, "single_transformer_blocks": 40},
    ),
    _family(
        "hunyuan-dit", "HunyuanDiT", "transformer",
        {"HunyuanDiT2DModel": [{"in_channels": 4, "patch_size": 2}]}, widths=[1408],
    ),
    _family(
        "wan", "Wan video", "transformer", {"WanTransformer3DModel": [{}, _IMAGE_TO_VIDEO], "WanVACETransformer3DModel":
        [{}], "WanAnimateTransformer3DModel": [{}], "SkyReelsV2Transformer3DModel": [{}, _IMAGE_TO_VIDEO]},
        widths=[1536, 3072, 5120], blocks={"blocks": 40},
    ),
    _family("chronoedit", "ChronoEdit", "transformer", "ChronoEditTransformer3DModel", like=["wan"]),
    _family(
        "anyflow", "AnyFlow", "transformer", "AnyFlowTransformer3DModel AnyFlowFARTransformer3DModel", like=["wan"]
    ),
    _family("helios", "Helios", "transformer", "HeliosTransformer3DModel", like=["wan"]),
    _family("wan-animate-2", "Wan Animate 2", "transformer", "WanAnimate2Transformer3DModel", like=["wan"]),
    _family(
        "ltx", "LTX-Video", "transformer", "LTXVideoTransformer3DModel",
        widths=[2048, 4096], blocks={"transformer_blocks": 48},
    ),
    _family(
        "ltx2", "LTX-2", "transformer", "LTX2VideoTransformer3DModel", widths=[2048, 4096],
        blocks={"transformer_blocks": 48}, like=["ltx"],
    ),
    _family(
        "cogvideox", "CogVideoX", "transformer",
        {"CogVideoXTransformer3DModel": [{}, {"ofs_embed_dim": 512}], "ConsisIDTransformer3DModel": [{}]},
        widths=[1920, 3072], blocks={"transformer_blocks": 42},
    ),
    _family("cogview3", "CogView3-Plus", "transformer", "CogView3PlusTransformer2DModel", widths=[2560]),
    _family("cogview4", "CogView4", "transformer", "CogView4Transformer2DModel", widths=[4096]),
    _family(
        "mochi", "Mochi", "transformer", "MochiTransformer3DModel", widths=[3072], blocks={"transformer_blocks": 48}
    ),
    _family(
        "lumina2", "Lumina 2", "transformer", "Lumina2Transformer2DModel",
        widths=[2304], blocks={"layers": 26, "noise_refiner": 2, "context_refiner": 2},
    ),
    _family("lumina", "Lumina-Next", "transformer", {"LuminaNextDiT2DModel": [{"num_kv_heads": 32}]}, widths=[2304]),
    _family("sana", "Sana", "transformer", "SanaTransformer2DModel", widths=[1152, 2240]),
    _family("sana-video", "Sana Video", "transformer", "SanaVideoTransformer3DModel SanaWMTransformer3DModel"),
    _family(
        "pixart", "PixArt", "transformer",
        {"PixArtTransformer2DModel": [{}, {"use_additional_conditions": True}]}, widths=[1152],
        blocks={"transformer_blocks": 28},
    ),
    _family("auraflow", "AuraFlow", "transformer", "AuraFlowTransformer2DModel", widths=[3072]),
    _family(
        "cosmos", "Cosmos", "transformer", "CosmosTransformer3DModel CosmosControlNetModel",
        widths=[2048, 4096, 5120],
    ),
    _family("cosmos3", "Cosmos 3", "transformer", "Cosmos3OmniTransformer"),
    _family(
        "hidream", "HiDream", "transformer",
        {"HiDreamImageTransformer2DModel":
         [{"patch_size": 2, "caption_channels": [4096, 4096], "llama_layers": [0, 1], "num_routed_experts": 4}]},
        widths=[2560],
    ),
    _family(
        "omnigen", "OmniGen", "transformer",
        {"OmniGenTransformer2DModel": [{"rope_scaling": {"long_factor": [1.0], "short_factor": [1.0]}}]}, widths=[3072],
    ),
    _family("allegro", "Allegro", "transformer", "AllegroTransformer3DModel", widths=[2304]),
    _family("kandinsky5", "Kandinsky 5", "transformer", "Kandinsky5Transformer3DModel", widths=[1792, 2048, 4096]),
    _family("kandinsky6", "Kandinsky 6", "transformer", "Kandinsky6Transformer3DModel Kandinsky6SRTransformer3DModel"),
    _family("krea2", "Krea 2", "transformer", "Krea2Transformer2DModel", widths=[6144]),
    _family(
        "bria", "Bria", "transformer",
        "BriaTransformer2DModel BriaFiboTransformer2DModel BriaFibo2Transformer2DModel", like=["flux"],
    ),
    _family("longcat-image", "LongCat-Image", "transformer", "LongCatImageTransformer2DModel", like=["flux"]),
    _family("ovis-image", "Ovis-Image", "transformer", "OvisImageTransformer2DModel", like=["flux"]),
    _family("flux-controlnet", "FLUX's ControlNet", "transformer", "FluxControlNetModel", like=["flux"]),
    _family(
        "sd3-controlnet", "Stable Diffusion 3's ControlNet", "transformer", "SD3ControlNetModel", like=["sd3"]
    ),
    _family(
        "qwen-image-controlnet", "Qwen-Image's ControlNet", "transformer", "QwenImageControlNetModel",
        like=["qwen-image"],
    ),
    _family("sana-controlnet", "Sana's ControlNet", "transformer", "SanaControlNetModel", like=["sana"]),
    _family(
        "z-image-controlnet", "Z-Image's ControlNet", "transformer",
        {"ZImageControlNetModel":
         [{"control_layers_places": [0], "control_refiner_layers_places": [0], "control_in_dim": 16,
           "add_control_noise_refiner": "control_noise_refiner"}]},
        like=["z-image"],
    ),
    _family("easyanimate", "EasyAnimate", "transformer",
            {"EasyAnimateTransformer3DModel": [{"in_channels": 16, "out_channels": 16, "patch_size": 2}]}),
    _family("latte", "Latte", "transformer",
            {"LatteTransformer3DModel": [{"in_channels": 4, "patch_size": 2, "caption_channels": 4096,
                                          "norm_type": "ada_norm_single", "cross_attention_dim": 1152}]}),
    _family("dit", "DiT", "transformer", "DiTTransformer2DModel"),
    _family("ernie-image", "ERNIE-Image", "transformer", "ErnieImageTransformer2DModel"),
    _family("glm-image", "GLM-Image", "transformer", "GlmImageTransformer2DModel"),
    _family("ideogram4", "Ideogram 4", "transformer", "Ideogram4Transformer2DModel"),
    _family("joyimage", "JoyImage", "transformer", "JoyImageEditTransformer3DModel JoyImageEditPlusTransformer3DModel"),
    _family("minimax-h3", "MiniMax H3", "transformer", "MiniMaxH3Transformer3DModel"),
    _family("motif-video", "Motif Video", "transformer", "MotifVideoTransformer3DModel", like=["flux"]),
    _family("nucleus-image", "Nucleus-Image", "transformer", "NucleusMoEImageTransformer2DModel"),
    _family("prx", "PRX", "transformer", "PRXTransformer2DModel"),
    _family("ace-step", "ACE-Step", "transformer", "AceStepTransformer1DModel"),
    _family("longcat-audio", "LongCat Audio", "transformer", "LongCatAudioDiTTransformer"),
    _family("minimax-music3", "MiniMax Music 3", "transformer", "MiniMaxMusic3Transformer1DModel"),
    _family("stable-audio", "Stable Audio", "transformer", "StableAudioDiTModel"),
    _family("stable-audio-3", "Stable Audio 3", "transformer", "StableAudio3DiTModel"),
    _family("kandinsky-prior", "Kandinsky's prior", "prior", "PriorTransformer"),
]  # fmt: skip

_LLAMA = "Llama, Mistral, Qwen or Gemma"
_BERT = "BERT, RoBERTa or ViT"
_OPT = "OPT, BART or Whisper"
_LANGUAGE = [
    _family("clip-text", "CLIP text encoder", "text_encoder", "CLIPTextModelWithProjection CLIPTextModel"),
    _family("clip", "CLIP", "vision", "CLIPModel CLIPVisionModelWithProjection", like=["clip-text"]),
    _family("siglip", "SigLIP", "vision", "SiglipModel", like=["clip-text"]),
    _family(
        "t5", "T5", "text_encoder",
        {"T5ForConditionalGeneration": [{}, {"feed_forward_proj": "gated-gelu"}], "MT5ForConditionalGeneration": [{}],
         "UMT5ForConditionalGeneration": [{}]},
    ),
    _family("llama", _LLAMA, "language_model", "LlamaForCausalLM"),
    _family("mistral", _LLAMA, "language_model", "MistralForCausalLM"),
    _family("qwen2", _LLAMA, "language_model", "Qwen2ForCausalLM"),
    _family("qwen3", _LLAMA, "language_model", "Qwen3ForCausalLM"),
    _family("gemma", _LLAMA, "language_model", "GemmaForCausalLM Gemma2ForCausalLM Gemma3ForCausalLM"),
    _family("mixtral", "Mixtral", "language_model", "MixtralForCausalLM Qwen3MoeForCausalLM", like=["llama"]),
    _family("phi", "Phi", "language_model", "PhiForCausalLM", like=["llama"]),
    _family("phi3", "Phi-3", "language_model", "Phi3ForCausalLM", like=["llama"]),
    _family("starcoder2", "StarCoder 2", "language_model", "Starcoder2ForCausalLM", like=["llama"]),
    _family("gpt-oss", "GPT-OSS", "language_model", "GptOssForCausalLM", like=["llama"]),
    _family("qwen2-vl", "Qwen2-VL", "language_model", "Qwen2VLForConditionalGeneration", like=["llama"]),
    _family("qwen2.5-vl", "Qwen2.5-VL", "language_model", "Qwen2_5_VLForConditionalGeneration", like=["llama"]),
    _family("qwen3-vl", "Qwen3-VL", "language_model", "Qwen3VLForConditionalGeneration", like=["llama"]),
    _family("gemma3-vision", "Gemma 3 (with its vision)", "language_model", "Gemma3ForConditionalGeneration",
            like=["llama"]),
    _family("bert", _BERT, "language_model", "BertForSequenceClassification BertForMaskedLM"),
    _family("roberta", _BERT, "language_model", "RobertaForSequenceClassification RobertaForMaskedLM"),
    _family("electra", "ELECTRA", "language_model", "ElectraForSequenceClassification", like=["bert"]),
    _family("vit", "ViT", "vision", "ViTForImageClassification"),
    _family("dinov2", "DINOv2", "vision", "Dinov2ForImageClassification"),
    _family("swin", "Swin", "vision", "SwinForImageClassification"),
    _family("convnext", "ConvNeXt", "vision", "ConvNextForImageClassification ConvNextV2ForImageClassification"),
    _family("sam", "Segment Anything (ViT)", "vision", "SamModel"),
    _family("distilbert", "DistilBERT", "language_model", "DistilBertForSequenceClassification DistilBertForMaskedLM"),
    _family("deberta", "DeBERTa", "language_model",
            "DebertaForSequenceClassification DebertaV2ForSequenceClassification", like=["bert"]),
    _family("albert", "ALBERT", "language_model", "AlbertForSequenceClassification"),
    _family("modernbert", "ModernBERT", "language_model", "ModernBertForSequenceClassification"),
    _family("gpt2", "GPT-2", "language_model", "GPT2LMHeadModel GPT2ForSequenceClassification"),
    _family("gpt-neo", "GPT-Neo", "language_model", "GPTNeoForCausalLM", like=["gpt2"]),
    _family("gpt-neox", "GPT-NeoX", "language_model", "GPTNeoXForCausalLM"),
    _family("gpt-j", "GPT-J", "language_model", "GPTJForCausalLM"),
    _family("opt", _OPT, "language_model", "OPTForCausalLM"),
    _family("bart", _OPT, "language_model", "BartForConditionalGeneration"),
    _family("whisper", _OPT, "language_model", "WhisperForConditionalGeneration"),
    _family("bloom", "BLOOM or Falcon", "language_model", "BloomForCausalLM"),
    _family("falcon", "BLOOM or Falcon", "language_model", "FalconForCausalLM"),
    _family("mpt", "MPT", "language_model", "MptForCausalLM"),
    _family("mamba", "Mamba", "language_model", "MambaForCausalLM"),
    _family("wav2vec2", "Wav2Vec 2", "language_model", "Wav2Vec2ForCTC"),
]  # fmt: skip

CLASSES = [*_UNETS, *_TRANSFORMERS, *_LANGUAGE]
