"""The LoRA modules of a model in memory: PEFT's, by what they hold, and those of other trainers, by name and shape."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from lorabench.adapters.adapter import LoraModule
from lorabench.adapters.names.identity import unwrap
from lorabench.errors import LorabenchError
from lorabench.health.base import as_delta
from lorabench.text import some

__all__ = ["LiveModule", "adapters_of", "live_modules", "read_all"]

_PAIRS = (("lora_A", "lora_B"), ("lora_down", "lora_up"), ("lora_a", "lora_b"))
"""What trainers without PEFT call down and up: loralib and litgpt, kohya and diffusers, torchtune."""
_SCALES = ("scaling", "scale")
_EPS = 1e-5  # of PEFT's AdaLoRA
_NESTED = ".base_layer"
_INSIDE = ".base_model.model."  # where a LightningModule, say, holds PEFT's model


@dataclass(frozen=True)
class LiveModule:
    """One LoRA module of a model, read again whenever it is asked.

    Attributes:
        name: of the module that it changes, wrappers and PEFT's prefix off.
        owner: the module of the model.
        adapter: PEFT's name for the adapter; "" without PEFT.
        expert: number within a mixture's parameter; None of every other module.
    """

    name: str
    owner: nn.Module
    adapter: str = ""
    expert: int | None = None

    def read(self) -> LoraModule:
        """The factors as they are now, where they are now, in float32 and without gradients."""
        parts = _parts(self.owner, self.adapter)
        down, up = self._matrices(
            parts, parts.down if parts.diagonal is None else parts.down * parts.diagonal, parts.up
        )
        return LoraModule(
            down, up, parts.scale, parts.alpha,
            dtype=parts.down.dtype,
            embedding=parts.embedding,
            kernel=tuple(parts.down.shape[2:]),
            kind=self._kind(parts),
        )  # fmt: skip

    def gradient(self) -> LoraModule | None:
        """∂B·A + B·∂A as one pair of rank 2r: what a step of gradient descent adds to BA, to first order.

        Returns:
            None where no factor holds a gradient; a factor that holds none is taken as frozen.
        """
        parts = _parts(self.owner, self.adapter)
        if not any(part.grad is not None for part in parts.trained):
            return None
        down, to_down = parts.down.detach(), _gradient(parts.down)
        if parts.diagonal is not None:
            to_down = to_down * parts.diagonal.detach() + down * _gradient(parts.diagonal)
            down = down * parts.diagonal.detach()
        down, up = self._matrices(parts, down, parts.up)
        to_down, to_up = self._matrices(parts, to_down, _gradient(parts.up))
        return LoraModule(torch.cat([down, to_down]), torch.cat([to_up, up], dim=1), dtype=parts.down.dtype)

    @property
    def trains(self) -> bool:
        """Whether a factor requires a gradient."""
        return any(parameter.requires_grad for parameter in self.parameters())

    @property
    def merged(self) -> bool:
        """Whether the base's weight has the update in it, so that the factors get no gradient."""
        named = getattr(self.owner, "merged_adapters", None)
        return self.adapter in named if named is not None else bool(getattr(self.owner, "merged", False))

    def parameters(self) -> tuple[Tensor, ...]:
        """The parameters themselves: down, up, and AdaLoRA's diagonal; an expert's are those of all experts."""
        return _parts(self.owner, self.adapter).trained

    def base(self) -> Float[Tensor, "d_out d_in"] | None:
        """W as [d_out, d_in], dequantised by PEFT's own helper, and without what is merged into it; None without one.

        None too where a DoRA is merged, which scales W itself, or where W is quantised, which merging rounds anew.

        Raises:
            LorabenchError: it has another shape than ΔW, or bitsandbytes has put it into an order of its own.
        """
        merged = getattr(self.owner, "merged_adapters", [self.adapter] if self.merged else [])
        magnitudes = getattr(self.owner, "lora_magnitude_vector", {})
        if merged and (_quantised(_inmost(self.owner)) or any(adapter in magnitudes for adapter in merged)):
            return None
        weight = _weight(self.owner, self.name)
        if weight is None:
            return None
        turned = bool(getattr(self.owner, "fan_in_fan_out", False))
        if hasattr(self.owner, "parameter_name") and weight.ndim == 3:
            weight = weight[self.expert or 0]
            turned = not getattr(self.owner, "_did_swap_in_out_features", False)  # [experts, d_in, d_out]
        base = as_delta(_dense(self.owner, weight), self.name, self.read(), f"the weight of {self.name}", turned)
        for adapter in merged:
            base = base - LiveModule(self.name, self.owner, adapter, self.expert).read().delta().to(base)
        return base

    def _kind(self, parts: "_Parts") -> str:
        if parts.diagonal is not None:
            return "adalora"
        return "dora" if self.adapter in getattr(self.owner, "lora_magnitude_vector", {}) else "lora"

    def _matrices(
        self, parts: "_Parts", down: Float[Tensor, "..."], up: Float[Tensor, "..."]
    ) -> tuple[Float32[Tensor, "r d_in"], Float32[Tensor, "d_out r"]]:
        """Down and up of this module alone, as matrices."""
        if self.expert is not None:
            experts = _experts(self.owner)
            down = down.reshape(experts, -1, down.shape[-1])[self.expert]
            up = up.reshape(up.shape[0], -1, experts)[..., self.expert]
        down, up = down.detach().float().flatten(1), up.detach().float().flatten(1)
        return down, up if down.shape[0] == up.shape[1] else _block_diagonal(up, parts.switched_on)


@dataclass(frozen=True)
class _Parts:
    """What a module holds of one adapter.

    Attributes:
        down, up: as they lie there.
        scale: of their product.
        alpha: where it is known.
        embedding: whether it adapts an embedding.
        diagonal: AdaLoRA's, between the two.
        switched_on: of the parts of a merged projection or the groups of a convolution, which have a block in up.
    """

    down: Tensor
    up: Tensor
    scale: float
    alpha: float | None = None
    embedding: bool = False
    diagonal: Tensor | None = None
    switched_on: tuple[bool, ...] = (True,)

    @property
    def trained(self) -> tuple[Tensor, ...]:
        return (self.down, self.up) if self.diagonal is None else (self.down, self.up, self.diagonal)


def live_modules(model: nn.Module, adapter: str | None = None) -> dict[str, LiveModule]:
    """Name -> LoRA module, in the model's order; of several adapters the name has the adapter's behind it.

    Args:
        model: PEFT's, or any with modules that hold lora_A and lora_B, lora_down and lora_up, or lora_a and lora_b.
        adapter: PEFT's name of one adapter; None: all of them.

    Raises:
        LorabenchError: there is no LoRA module, or none of that adapter.
    """
    found = list(_found(model))
    names = list(dict.fromkeys(one.adapter for one in found))
    if not found:
        if others := _of_other_kinds(model):
            raise LorabenchError(
                f"{type(model).__name__}: its adapter is no LoRA ({some(others)}), and is not looked at in a model. "
                "Save it and audit the file, if it is one that `lorabench-adapter inspect` reads (LoHa, LoKr)."
            )
        raise LorabenchError(
            f"{type(model).__name__}: no LoRA module in it, none holds "
            f"{', '.join(' and '.join(pair) for pair in _PAIRS)}. Give the model before its adapter is merged away "
            "(merge_and_unload), or the adapter's file."
        )
    if adapter is not None and adapter not in names:
        raise LorabenchError(f"adapter {adapter!r}: the model has {some(names)}. Name one of these.")
    kept = [one for one in found if adapter in (None, one.adapter)]
    several = len({one.adapter for one in kept}) > 1
    named = [
        LiveModule(f"{one.name} ({one.adapter})", one.owner, one.adapter, one.expert) if several else one
        for one in kept
    ]
    return {one.name: one for one in named}


def _of_other_kinds(model: nn.Module) -> list[str]:
    """What PEFT calls the layers of adapters that have no LoRA factors."""
    tuners = sys.modules.get("peft.tuners.tuners_utils")  # a model that has such layers has imported it
    kinds = tuners.BaseTunerLayer if tuners is not None else ()
    return sorted(
        {
            type(part).__module__.removeprefix("peft.tuners.").partition(".")[0]
            for part in model.modules()
            if isinstance(part, kinds)
        }
    )


def _found(model: nn.Module) -> Iterator[LiveModule]:
    for path, owner in model.named_modules():
        for adapter in adapters_of(owner):
            name = unwrap(path, held=False).name.replace(_INSIDE, ".")
            if not hasattr(owner, "parameter_name"):
                yield LiveModule(name, owner, adapter)
                continue
            while name.endswith(_NESTED):  # wrappers of several parameters of one module lie in each other
                name = name.removesuffix(_NESTED)
            name = f"{name}.{owner.parameter_name}".removesuffix(".weight")
            if (experts := _experts(owner)) == 1:
                yield LiveModule(name, owner, adapter)
            else:
                yield from (LiveModule(f"{name}.{number}", owner, adapter, number) for number in range(experts))


def _experts(owner: nn.Module) -> int:
    """Of PEFT's ParamWrapper, which adapts one parameter of a mixture of experts."""
    return int(getattr(owner, "num_experts", 1)) if hasattr(owner, "parameter_name") else 1


def adapters_of(owner: nn.Module) -> list[str]:
    """PEFT's adapters on a module; [""] for one factor pair of another trainer; [] where there is none.

    One of rank 0, as AdaLoRA may leave it, is none.
    """
    held = _held(owner)
    if held is None:
        return []
    down, _ = held
    if isinstance(down, nn.ModuleDict | nn.ParameterDict):
        embedded = getattr(owner, "lora_embedding_A", {})
        ranks = getattr(owner, "r", {})
        return [name for name in dict.fromkeys([*down.keys(), *embedded.keys()]) if ranks.get(name, 1) != 0]
    return [""]


def _held(owner: nn.Module) -> tuple[Any, Any] | None:
    for down_name, up_name in _PAIRS:
        down = getattr(owner, down_name, None)
        up = None if down is None else getattr(owner, up_name, None)
        same = isinstance(down, nn.ModuleDict | nn.ParameterDict) and isinstance(up, nn.ModuleDict | nn.ParameterDict)
        if same or (_tensor(down) is not None and _tensor(up) is not None):
            return down, up
    return None


def _tensor(part: Any) -> Tensor | None:
    weight = part if isinstance(part, Tensor) else getattr(part, "weight", None)
    return weight if isinstance(weight, Tensor) and weight.ndim > 1 else None


def _as_tensor(part: Any) -> Tensor:
    weight = _tensor(part)
    if weight is None:
        raise LorabenchError(f"{type(part).__name__}: a matrix of weights is expected in it. It cannot be read.")
    return weight


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.detach()


def _parts(owner: nn.Module, adapter: str) -> _Parts:
    """The factors themselves, and what is told of them."""
    held = _held(owner)
    if held is None:
        raise LorabenchError(f"{type(owner).__name__}: its LoRA factors are gone. Look for the model's modules again.")
    if not adapter:
        return _plain(owner, *held)
    peft: Any = owner
    if adapter not in peft.scaling:
        raise LorabenchError(f"{type(owner).__name__}: adapter {adapter} is gone. Look for the model's modules again.")
    scale, alpha = float(peft.scaling[adapter]), _number(getattr(peft, "lora_alpha", {}).get(adapter))
    if adapter in getattr(peft, "lora_embedding_A", {}):
        return _Parts(peft.lora_embedding_A[adapter], peft.lora_embedding_B[adapter], scale, alpha, embedding=True)
    down, up = _as_tensor(held[0][adapter]), _as_tensor(held[1][adapter])
    if adapter in getattr(peft, "lora_E", {}):
        return _Parts(down, up, scale / (float(peft.ranknum[adapter]) + _EPS), alpha, diagonal=peft.lora_E[adapter])
    groups = getattr(held[1][adapter], "groups", 1)
    return _Parts(down, up, scale, alpha, switched_on=(True,) * groups)


def _plain(owner: nn.Module, held_down: Any, held_up: Any) -> _Parts:
    down, up = _as_tensor(held_down), _as_tensor(held_up)
    switched_on = tuple(bool(one) for one in getattr(owner, "enable_lora", (True,)))  # loralib's merged projection
    if down.shape[0] != up.shape[1] * sum(switched_on) or up.shape[0] % sum(switched_on):
        raise LorabenchError(
            f"{type(owner).__name__}: its factors are {list(down.shape)} and {list(up.shape)}; down [r, d_in] and up "
            "[d_out, r] are expected."
        )
    alpha = _number(getattr(owner, "alpha", getattr(owner, "lora_alpha", None)))
    scale = next((value for name in _SCALES if (value := _number(getattr(owner, name, None))) is not None), None)
    if scale is None:
        scale = 1.0 if alpha is None else alpha * sum(switched_on) / down.shape[0]
    return _Parts(down, up, scale, alpha, isinstance(owner, nn.Embedding), switched_on=switched_on)


def _number(value: Any) -> float | None:
    if isinstance(value, Tensor) and value.numel() == 1:
        return float(value)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _block_diagonal(up: Float32[Tensor, "rows r"], switched_on: tuple[bool, ...]) -> Float32[Tensor, "d_out all_r"]:
    """Up of a merged projection, or of a convolution with groups: a block a part, zero rows for parts without one."""
    blocks = iter(up.chunk(sum(switched_on)))
    height = up.shape[0] // sum(switched_on)
    return _blocks(*(next(blocks) if on else up.new_zeros(height, 0) for on in switched_on))


def _blocks(*blocks: Tensor) -> Tensor:
    whole: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return whole


def _dense(owner: nn.Module, weight: Tensor) -> Tensor:
    """The weight of a convolution with groups as that of one without: what ΔW is added to."""
    groups = int(getattr(getattr(owner, "base_layer", owner), "groups", 1))
    return weight if groups == 1 else _blocks(*weight.flatten(1).chunk(groups))


def _inmost(owner: nn.Module) -> Any:
    """The layer of the model itself, without PEFT's wrappers."""
    base: Any = owner
    while hasattr(base, "base_layer"):
        base = base.base_layer
    return base


def _quantised(base: Any) -> bool:
    """Whether a layer is HQQ's or bitsandbytes', which quantises a weight when it is moved to its device."""
    weight: Any = getattr(base, "weight", None)
    if type(weight).__name__ == "Params4bit":  # packed as uint8, or as the type that FSDP shards
        return weight.quant_state is not None
    return hasattr(base, "W_q") or (type(weight).__name__ == "Int8Params" and weight.dtype == torch.int8)


def _weight(owner: nn.Module, name: str) -> Tensor | None:
    """The frozen weight that a module adapts; dequantised where it is packed."""
    base = _inmost(owner)
    if hasattr(owner, "parameter_name"):
        weight = getattr(base, str(owner.parameter_name), None)
    elif _quantised(base):
        weight = _dequantised(base, name)
    else:
        weight = getattr(base, "weight", getattr(base, "in_proj_weight", None))  # the latter of nn.MultiheadAttention
        original = getattr(owner, "org_module", None)  # kohya keeps what it adapts beside its factors
        weight = getattr(original, "weight", None) if weight is None and original is not None else weight
    return weight.detach() if isinstance(weight, Tensor) else None


def _dequantised(base: Any, name: str) -> Tensor:
    if hasattr(base, "W_q"):
        weight: Tensor = base.dequantize()
        return weight
    from peft.utils.integrations import dequantize_bnb_weight  # its `dequantize_module_weight` sets the weight anew

    if getattr(getattr(base.weight, "quant_state", None), "packing_format_for_cpu", False):
        # Dequantising would mix up the numbers without a word.
        raise LorabenchError(
            f"{name}: bitsandbytes has repacked its 4-bit weight for this CPU, as it does in eval mode. Call "
            "model.state_dict(), which undoes it, and look before the next forward pass."
        )
    return dequantize_bnb_weight(base.weight, getattr(base, "state", None))


def read_all(modules: Mapping[str, LiveModule]) -> dict[str, LoraModule]:
    """The factors of all modules, as they are now."""
    with torch.no_grad():
        return {name: module.read() for name, module in modules.items()}
