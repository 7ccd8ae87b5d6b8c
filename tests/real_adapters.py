"""Adapters as the libraries of the field write them: trained for two steps and saved by their own savers.

`made_adapters()` is a folder of them, made once a process; `MADE` names what is in it.
"""

import atexit
import json
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
from peft import AdaLoraConfig, LoHaConfig, LoKrConfig, LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

__all__ = ["MADE", "MADE_BY_PEFT", "made", "made_adapters", "made_deltas"]

MADE_BY_PEFT = ("bert", "bert_saved", "gpt2", "gpt2_patterns", "opt", "opt_adalora", "opt_dora", "opt_loha", "opt_lokr",
                "opt_rslora")  # fmt: skip
MADE = (
    *(f"peft/{name}" for name in MADE_BY_PEFT),
    "diffusers",
    "diffusers_old/pytorch_lora_weights.bin",
    "diffusers_old/pytorch_lora_weights.safetensors",
    "kohya/style.safetensors",
    "cloneofsimo/style.safetensors",
    "cloneofsimo/style.pt",
    "cloneofsimo/style.text_encoder.pt",
    "loralib/roberta_lora.bin",
    "mlx/adapters.safetensors",
    "sam/lora_rank2.safetensors",
)
"""Names of all files and folders, below `made_adapters()`."""


@cache
def made_adapters() -> Path:
    """The folder; it goes when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="made-adapters-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with _apart():
        for name in MADE_BY_PEFT:
            model, config = _of_peft(name)
            adapted = get_peft_model(model, config)
            _two_steps(adapted, input_ids=torch.arange(8)[None])
            adapted.save_pretrained(folder / "peft" / name)
        _of_diffusers(folder)
        _of_others(folder)
    return folder


@contextmanager
def _apart() -> Iterator[None]:
    """The same numbers every time, and what these libraries warn one another of is not ours."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        yield


def made(name: str) -> Path:
    """The file or folder of one name of `MADE`."""
    return made_adapters() / name


def made_deltas(name: str) -> dict[str, Tensor]:
    """PEFT's own ΔW of every module of `peft/NAME`, loaded again by PEFT: [d_out, d_in], in float64."""
    with _apart():
        model = PeftModel.from_pretrained(_of_peft(name)[0], made(f"peft/{name}"))
    layers = {key: layer for key, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)}
    deltas = {key.removeprefix("base_model.model."): layer.get_delta_weight("default") for key, layer in layers.items()}
    turned = name.startswith("gpt2")  # its Conv1D holds [d_in, d_out]
    return {key: (delta.mT if turned else delta).detach().double() for key, delta in deltas.items()}


def _of_peft(name: str) -> tuple[nn.Module, PeftConfig]:
    """A small model, and the configuration of its adapter."""
    which = name.partition("_")[0]
    attention = ["q_proj", "v_proj"]
    configs: dict[str, PeftConfig] = {
        "gpt2": LoraConfig(r=4, lora_alpha=8, target_modules=["c_attn"], fan_in_fan_out=True),
        "gpt2_patterns": LoraConfig(
            r=4, lora_alpha=8, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True,
            rank_pattern={"h.0.attn.c_attn": 2}, alpha_pattern={r".*\.1\..*c_(attn|fc)": 3},
        ),
        "opt": LoraConfig(r=3, lora_alpha=6, target_modules=attention),
        "opt_rslora": LoraConfig(r=4, lora_alpha=6, target_modules=attention, use_rslora=True),
        "opt_dora": LoraConfig(r=4, target_modules=attention, use_dora=True),
        "opt_loha": LoHaConfig(r=2, alpha=4, target_modules=attention),
        "opt_lokr": LoKrConfig(r=2, alpha=4, target_modules=attention),
        "opt_adalora": AdaLoraConfig(init_r=6, target_r=3, lora_alpha=12, total_step=10, target_modules=attention),
        "bert": LoraConfig(r=2, lora_alpha=2, target_modules=["query", "value"]),
        "bert_saved": LoraConfig(r=2, target_modules=["query"], modules_to_save=["pooler"], bias="lora_only"),
    }  # fmt: skip
    return _MODELS[which](), configs[name]


def _gpt2() -> nn.Module:
    return GPT2LMHeadModel(
        GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=40, n_positions=12, bos_token_id=0, eos_token_id=0)
    )


def _opt() -> nn.Module:
    return OPTForCausalLM(
        OPTConfig(hidden_size=16, num_hidden_layers=2, ffn_dim=24, num_attention_heads=2, vocab_size=40,
                  max_position_embeddings=12, word_embed_proj_dim=16)
    )  # fmt: skip


def _bert() -> nn.Module:
    return BertModel(
        BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, vocab_size=40)
    )


_MODELS = {"gpt2": _gpt2, "opt": _opt, "bert": _bert}


def _two_steps(model: nn.Module, **inputs: Tensor) -> None:
    """Towards nothing in particular."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=1e-2)
    for _ in range(2):
        optimiser.zero_grad()
        model(**inputs)[0].square().mean().backward()
        optimiser.step()


def _of_diffusers(folder: Path) -> None:
    """One adapter of a small Stable Diffusion, as diffusers writes it today and wrote it, and with kohya's names."""
    config = LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=8, in_channels=4, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=12, attention_head_dim=2, norm_num_groups=4,
    )  # fmt: skip
    unet.requires_grad_(requires_grad=False)
    unet.add_adapter(config)
    sample, states = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 12)
    _two_steps(unet, sample=sample, timestep=torch.tensor(1), encoder_hidden_states=states)
    peft = {key: value.detach().contiguous() for key, value in get_peft_model_state_dict(unet).items()}
    layers = convert_state_dict_to_diffusers(peft)
    StableDiffusionPipeline.save_lora_weights(folder / "diffusers", unet_lora_layers=layers)
    for name in ("diffusers_old", "kohya"):
        (folder / name).mkdir()
    old = {_of_before_0_22(key): value for key, value in layers.items()}
    torch.save(old, folder / "diffusers_old" / "pytorch_lora_weights.bin")
    save_file(old, folder / "diffusers_old" / "pytorch_lora_weights.safetensors", {"format": "pt"})
    kohya = convert_state_dict_to_kohya({f"unet.{key}": value for key, value in peft.items()})
    save_file({key: value.contiguous() for key, value in kohya.items()}, folder / "kohya" / "style.safetensors")


def _of_before_0_22(key: str) -> str:
    """`….attn1.to_q.lora.down.weight` as `unet.….attn1.processor.to_q_lora.down.weight`."""
    module, _, side = key.partition(".lora.")
    attention, _, projection = module.removesuffix(".0").rpartition(".")
    return f"unet.{attention}.processor.{projection}_lora.{side}"


def _of_others(folder: Path) -> None:
    """Tensors under the names, and in the orders, of libraries that are not installed here."""
    for name in ("cloneofsimo", "loralib", "mlx", "sam"):
        (folder / name).mkdir()
    pairs = [(torch.randn(2, 12), torch.randn(10, 2)) for _ in range(4)]  # down [r, d_in], up [d_out, r]
    factors = [(i, *named) for i, pair in enumerate(pairs) for named in zip("ab", pair, strict=True)]
    lists = [factor for down, up in pairs for factor in (up, down)]
    for name in ("style.pt", "style.text_encoder.pt"):
        torch.save(lists, folder / "cloneofsimo" / name)
    named = {f"unet:{i}:{'down' if side == 'a' else 'up'}": value for i, side, value in factors}
    ranks = {f"unet:{i}:rank": "2" for i in range(len(pairs))}
    save_file(named, folder / "cloneofsimo" / "style.safetensors", {"unet": '["CrossAttention"]', **ranks})
    query = "roberta.encoder.layer.{}.attention.self.query.lora_{}"
    loralib = {query.format(i, side.upper()): value for i, side, value in factors}
    torch.save(loralib, folder / "loralib" / "roberta_lora.bin")
    key = "model.layers.{}.self_attn.q_proj.lora_{}"
    mlx = {key.format(i, side): value.T.contiguous() for i, side, value in factors}
    save_file(mlx, folder / "mlx" / "adapters.safetensors")
    parameters = {"fine_tune_type": "lora", "num_layers": 4, "lora_parameters": {"rank": 2, "scale": 10.0}}
    (folder / "mlx" / "adapter_config.json").write_text(json.dumps(parameters))
    save_file({f"w_{side}_{i:03d}": value for i, side, value in factors}, folder / "sam" / "lora_rank2.safetensors")
