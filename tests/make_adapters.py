"""Makes adapters as the libraries of the field write them: trained for two steps and saved by their own savers.

`made_adapters()` is a folder of them, made once a process; `tests.real_adapters.MADE` names what is in it.
"""

import atexit
import itertools
import json
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel, QwenImageTransformer2DModel, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
from peft import AdaLoraConfig, IA3Config, LoHaConfig, LoKrConfig, LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM
from transformers.pytorch_utils import Conv1D

from tests.inspected_files import KOHYA
from tests.real_adapters import MADE_BY_PEFT
from tests.test_hashes import kohya as kohya_hashes

__all__ = ["made_adapters", "made_deltas"]


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
            adapted.save_pretrained(folder / "peft" / name, save_embedding_layers=False)  # asks no hub
        _of_diffusers(folder)
        _of_others(folder)
        _key_lists(folder / "keysets")
    return folder


@contextmanager
def _apart() -> Iterator[None]:
    """The same numbers every time, and what these libraries warn one another of is not ours."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        yield


def made_deltas(name: str) -> dict[str, Tensor]:
    """PEFT's own ΔW of every module of `peft/NAME`, loaded again by PEFT: [d_out, d_in], in float64."""
    with _apart():
        model = PeftModel.from_pretrained(_of_peft(name)[0], made_adapters() / "peft" / name)
    layers = {key: layer for key, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)}
    deltas = {}
    for key, layer in layers.items():
        delta = layer.get_delta_weight("default").detach().double()
        turned = isinstance(layer.get_base_layer(), (nn.Embedding, Conv1D))  # these hold [d_in, d_out]
        deltas[key.removeprefix("base_model.model.")] = (delta.mT if turned else delta).flatten(1)
    return deltas


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
        "opt_ia3": IA3Config(target_modules=attention, feedforward_modules=[]),
        "opt_adalora": AdaLoraConfig(init_r=6, target_r=3, lora_alpha=12, total_step=10, target_modules=attention),
        "bert": LoraConfig(r=2, lora_alpha=2, target_modules=["query", "value"]),
        "bert_saved": LoraConfig(r=2, target_modules=["query"], modules_to_save=["pooler"], bias="lora_only"),
        "toy": LoraConfig(r=2, lora_alpha=6, target_modules=["emb", "conv2d"]),
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
        BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, vocab_size=40,
                   name_or_path="/home/alice/.cache/huggingface/hub/models--google-bert--bert-base-uncased/snapshots/86b5")
    )  # fmt: skip


class _Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb, self.conv2d = nn.Embedding(40, 12), nn.Conv2d(1, 10, 3)

    def forward(self, input_ids: Tensor) -> list[Tensor]:
        return [self.conv2d(self.emb(input_ids)[:, None])]


_MODELS = {"gpt2": _gpt2, "opt": _opt, "bert": _bert, "toy": _Toy}


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
    kohya = {key: value.contiguous() for key, value in kohya.items()}
    said = KOHYA | {"ss_network_alpha": "4.0", "ss_output_name": "red_fox_4", "ss_session_id": "2945453505"}
    save_file(kohya, folder / "kohya" / "style.safetensors", said | kohya_hashes(kohya, said))


def _of_before_0_22(key: str) -> str:
    """`….attn1.to_q.lora.down.weight` as `unet.….attn1.processor.to_q_lora.down.weight`."""
    module, _, side = key.partition(".lora.")
    attention, _, projection = module.removesuffix(".0").rpartition(".")
    return f"unet.{attention}.processor.{projection}_lora.{side}"


def _of_others(folder: Path) -> None:
    """Tensors under the names, and in the orders, of libraries that are not installed here; and what is no adapter."""
    for name in ("bloom", "broken", "cloneofsimo", "loralib", "mlx", "sam/lora_weights"):
        (folder / name).mkdir(parents=True)
    single = _factors(12, 1)
    lists = [factor for _, side, factor in single]
    lists[::2], lists[1::2] = lists[1::2], lists[::2]  # up before down
    for name in ("style.pt", "style.text_encoder.pt"):
        torch.save(lists, folder / "cloneofsimo" / name)
    torch.save({"<krk>": torch.randn(12)}, folder / "cloneofsimo" / "style.ti.pt")
    named = {f"unet:{i}:{'down' if side == 'a' else 'up'}": value for i, side, value in single}
    ranks = {f"unet:{i}:rank": "1" for i in range(12)}
    save_file(named, folder / "cloneofsimo" / "style.safetensors", {"unet": '["CrossAttention"]', **ranks})
    factors = _factors(4, 2)
    query = "roberta.encoder.layer.{}.attention.self.query.lora_{}"
    loralib = {query.format(i, side.upper()): value for i, side, value in factors}
    torch.save(loralib, folder / "loralib" / "roberta_lora.bin")
    key = "model.layers.{}.self_attn.q_proj.lora_{}"
    mlx = {key.format(i, side): value.T.contiguous() for i, side, value in factors}
    save_file(mlx, folder / "mlx" / "adapters.safetensors")
    parameters = {"fine_tune_type": "lora", "num_layers": 4, "lora_parameters": {"rank": 2, "scale": 10.0}}
    (folder / "mlx" / "adapter_config.json").write_text(json.dumps(parameters))
    for rank in (2, 4, 8):
        sam = {f"w_{side}_{i:03d}": value for i, side, value in _factors(4, rank)}
        save_file(sam, folder / "sam" / "lora_weights" / f"lora_rank{rank}.safetensors")
    _bloom(folder / "bloom")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:57f2366533\nsize 5329152\n"
    (folder / "broken" / "pointer.safetensors").write_text(pointer)
    (folder / "broken" / "text.safetensors").write_text(json.dumps({"x.alpha": {"shape": [], "fakeTensor": True}}))


def _factors(count: int, rank: int) -> list[tuple[int, str, Tensor]]:
    """Number of the module, "a" or "b", and down [r, d_in] or up [d_out, r]."""
    return [
        (i, side, torch.randn(shape)) for i in range(count) for side, shape in (("a", (rank, 12)), ("b", (10, rank)))
    ]


def _bloom(folder: Path) -> None:
    """A merged projection as early PEFT had it: query and value are adapted, the key between them is not."""
    key = "base_model.model.transformer.h.{}.self_attention.query_key_value.lora_{}.weight"
    shapes = {"A": (4, 16), "B": (32, 2, 1)}
    tensors = {key.format(i, side): torch.randn(shape) for i in range(2) for side, shape in shapes.items()}
    torch.save(tensors, folder / "adapter_model.bin")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["query_key_value"], "bias": "none",
              "enable_lora": [True, False, True], "base_model_name_or_path": "bigscience/bloom-560m"}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))


def _key_lists(folder: Path) -> None:
    """Keys and shapes of adapters of whole transformers, whose weights would be too large."""
    folder.mkdir()
    for name, transformer in (("flux", FluxTransformer2DModel), ("qwen_image", QwenImageTransformer2DModel)):
        with torch.device("meta"):
            layers = transformer().named_modules()
        shapes = {}
        for key, layer in layers:
            if isinstance(layer, nn.Linear) and any(part in key for part in (".attn.", ".ff", ".proj_")):
                shapes[f"transformer.{key}.lora_A.weight"] = [16, layer.in_features]
                shapes[f"transformer.{key}.lora_B.weight"] = [layer.out_features, 16]
        (folder / f"{name}_diffusers.json").write_text(json.dumps(shapes))
    double = {"attn_qkv": (1, 3), "attn_proj": (1, 1), "mlp_0": (1, 4), "mlp_2": (4, 1)}  # in, out, in 3072
    sides = [(f"{side}_{key}", *sizes) for side in ("img", "txt") for key, sizes in double.items()]
    blocks = {"double": (19, sides), "single": (38, [("linear1", 1, 7), ("linear2", 5, 1)])}
    shapes = {}
    for kind, (count, layers) in blocks.items():
        for i, (key, d_in, d_out) in itertools.product(range(count), layers):
            stem = f"lora_unet_{kind}_blocks_{i}_{key}"
            shapes[f"{stem}.lora_down.weight"], shapes[f"{stem}.lora_up.weight"] = [16, 3072 * d_in], [3072 * d_out, 16]
            shapes[f"{stem}.alpha"] = []
    (folder / "flux_kohya.json").write_text(json.dumps(shapes))
