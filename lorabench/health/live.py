"""The LoRA modules of a model in memory: PEFT's, by what they hold, and those of other trainers, by name and shape."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lorabench.adapters.adapter import LoraModule
from lorabench.adapters.names.identity import unwrap
from lorabench.errors import LorabenchError
from lorabench.health.base import as_delta
from lorabench.text import some

__all__ = ["LiveModule", "live_modules", "read_all"]

_PAIRS = (("lora_A", "lora_B"), ("lora_down", "lora_up"), ("lora_a", "lora_b"))
"""What trainers without PEFT call down and up: loralib and litgpt, kohya and diffusers, torchtune."""
_SCALES = ("scaling", "scale")
_EPS = 1e-5  # of PEFT's AdaLoRA


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
        """The factors as they are now, where they are now, without gradients."""
        down, up, scale, alpha, embedding = _factors(self.owner, self.adapter)
        kernel = tuple(down.shape[2:])
        if self.expert is not None:
            experts = _experts(self.owner)
            down = down.reshape(experts, -1, down.shape[-1])[self.expert]
            up = up.reshape(up.shape[0], -1, experts)[..., self.expert]
        return LoraModule(
            down.detach().flatten(1),
            up.detach().flatten(1),
            scale,
            alpha,
            dtype=down.dtype,
            embedding=embedding,
            kernel=kernel,
            kind="dora" if self.adapter in getattr(self.owner, "lora_magnitude_vector", {}) else "lora",
        )

    @property
    def trains(self) -> bool:
        """Whether a factor requires a gradient."""
        return any(parameter.requires_grad for parameter in self.parameters())

    def parameters(self) -> tuple[Tensor, Tensor]:
        """The parameters of down and up themselves, an expert's those of all experts."""
        down, up, *_ = _factors(self.owner, self.adapter)
        return down, up

    def base(self) -> Float[Tensor, "d_out d_in"] | None:
        """W as [d_out, d_in], dequantised by PEFT's own helper, and without what is merged into it; None without one.

        Raises:
            LorabenchError: it has another shape than ΔW.
        """
        weight = _weight(self.owner)
        if weight is None:
            return None
        module = self.read()
        if self.expert is not None and weight.ndim == 3:
            weight = weight[self.expert]
        turned = bool(getattr(self.owner, "fan_in_fan_out", False))
        base = as_delta(weight, self.name, module, f"the weight of {self.name}", turned)
        merged = getattr(self.owner, "merged_adapters", [])
        own = f" ({self.adapter})"
        for adapter in merged:
            other = LiveModule(self.name.removesuffix(own), self.owner, adapter, self.expert).read()
            base = base - other.delta().to(base)
        return base


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


def _found(model: nn.Module) -> Iterator[LiveModule]:
    for path, owner in model.named_modules():
        name = unwrap(path).name
        for adapter in _adapters(owner):
            experts = _experts(owner)
            if experts == 1:
                yield LiveModule(name, owner, adapter)
            else:
                parameter = f"{name}.{getattr(owner, 'parameter_name', 'experts')}"
                yield from (LiveModule(f"{parameter}.{number}", owner, adapter, number) for number in range(experts))


def _experts(owner: nn.Module) -> int:
    """Of PEFT's ParamWrapper, which adapts one parameter of a mixture of experts."""
    return int(getattr(owner, "num_experts", 1)) if hasattr(owner, "parameter_name") else 1


def _adapters(owner: nn.Module) -> list[str]:
    """PEFT's adapters on a module; [""] for one factor pair of another trainer; [] where there is none."""
    held = _held(owner)
    if held is None:
        return []
    down, _ = held
    if isinstance(down, nn.ModuleDict | nn.ParameterDict):
        embedded = getattr(owner, "lora_embedding_A", {})
        return list(dict.fromkeys([*down.keys(), *embedded.keys()]))
    return [""]


def _held(owner: nn.Module) -> tuple[Any, Any] | None:
    for down_name, up_name in _PAIRS:
        down, up = getattr(owner, down_name, None), getattr(owner, up_name, None)
        kinds = nn.ModuleDict | nn.ParameterDict | nn.Module | Tensor
        if isinstance(down, kinds) and isinstance(up, kinds):
            same = isinstance(down, nn.ModuleDict | nn.ParameterDict)
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


def _factors(owner: nn.Module, adapter: str) -> tuple[Tensor, Tensor, float, float | None, bool]:
    """Down, up, scale, α, and whether it adapts an embedding."""
    held = _held(owner)
    if held is None:
        raise LorabenchError(f"{type(owner).__name__}: its LoRA factors are gone. Look for the model's modules again.")
    if not adapter:
        return _plain(owner, *held)
    peft: Any = owner
    scale, alpha = float(peft.scaling[adapter]), getattr(peft, "lora_alpha", {}).get(adapter)
    if adapter in getattr(peft, "lora_embedding_A", {}):
        return peft.lora_embedding_A[adapter], peft.lora_embedding_B[adapter], scale, alpha, True
    down, up = _as_tensor(held[0][adapter]), _as_tensor(held[1][adapter])
    if adapter in getattr(peft, "lora_E", {}):
        down = down * peft.lora_E[adapter]
        scale /= float(peft.ranknum[adapter]) + _EPS
    return down, up, scale, alpha, False


def _plain(owner: nn.Module, held_down: Any, held_up: Any) -> tuple[Tensor, Tensor, float, float | None, bool]:
    down, up = _as_tensor(held_down), _as_tensor(held_up)
    if down.shape[0] != up.shape[1]:
        raise LorabenchError(
            f"{type(owner).__name__}: its factors are {list(down.shape)} and {list(up.shape)}; down [r, d_in] and up "
            "[d_out, r] are expected."
        )
    alpha = _number(getattr(owner, "alpha", getattr(owner, "lora_alpha", None)))
    scale = next((value for name in _SCALES if (value := _number(getattr(owner, name, None))) is not None), None)
    if scale is None:
        scale = 1.0 if alpha is None else alpha / down.shape[0]
    return down, up, scale, alpha, False


def _number(value: Any) -> float | None:
    if isinstance(value, Tensor) and value.numel() == 1:
        return float(value)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _weight(owner: nn.Module) -> Tensor | None:
    """The frozen weight that a module adapts; dequantised where it is packed."""
    base: Any = owner
    while hasattr(base, "base_layer"):
        base = base.base_layer
    if hasattr(owner, "parameter_name"):
        weight = getattr(base, str(owner.parameter_name), None)
    elif hasattr(base, "W_q") or type(getattr(base, "weight", None)).__name__ in ("Params4bit", "Int8Params"):
        from peft.utils.integrations import dequantize_module_weight

        weight = dequantize_module_weight(base)
    else:
        weight = getattr(base, "weight", None)
        original = getattr(owner, "org_module", None)  # kohya keeps what it adapts beside its factors
        weight = getattr(original, "weight", None) if weight is None and original is not None else weight
    return weight.detach() if isinstance(weight, Tensor) else None


def read_all(modules: Mapping[str, LiveModule]) -> dict[str, LoraModule]:
    """The factors of all modules, as they are now."""
    with torch.no_grad():
        return {name: module.read() for name, module in modules.items()}
