"""The base model of the glyph zoo, a small denoising transformer, and the training of many LoRAs on it at once."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn import functional as F

from lorabench.adapters.reading.naming import layer_names
from lorabench.zoo.glyph_pictures import SIDE
from lorabench.zoo.making import seeded

__all__ = [
    "BLOCKS",
    "MODULES",
    "WIDTH",
    "Base",
    "Leaf",
    "Loras",
    "Training",
    "flow_loss",
    "patches",
    "pretrain",
    "train_loras",
    "velocity",
]

WIDTH, BLOCKS, PATCH = 32, 4, 4
_HIDDEN, _TOKENS, _PIXELS = 64, (SIDE // PATCH) ** 2, PATCH * PATCH
_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
_PRETRAIN_RATE = 1e-2

MODULES = tuple(f"unet.transformer_blocks.{block}.attn1.{name}" for block in range(BLOCKS) for name in _PROJECTIONS)
"""The places that carry a LoRA, in the order of `Loras`."""

Base = dict[str, Tensor]
"""The weights of the base model: name -> tensor, the blocks stacked along the first axis."""


@dataclass(frozen=True)
class Leaf:
    """What one adapter learns to draw: the pictures of a leaf concept as patches; `name` seeds its training."""

    name: str
    pictures: Float[Tensor, "styles 36 16"]


@dataclass(frozen=True)
class Training:
    """How every adapter is trained.

    Attributes:
        rank: r, the rows of down.
        shared_down: whether every adapter starts from the same down, or each from its own.
        steps: of Adam.
        learning_rate: of Adam.
        batch_size: pictures a step.
        seed: of down, and with a leaf's name of its batches, noise and times.
        keep_steps: steps after which the adapters are kept too, ascending.
    """

    rank: int
    shared_down: bool
    steps: int
    learning_rate: float
    batch_size: int
    seed: int
    keep_steps: tuple[int, ...] = ()


@dataclass(frozen=True)
class Loras:
    """The LoRAs of A adapters: ΔW = up @ down for the four projections (q, k, v, out) of every block.

    Attributes:
        down: [4 blocks, A, 4 projections, r, 32].
        up: [4 blocks, A, 4 projections, 32, r].
        earlier: the same adapters after fewer steps, by their number.
    """

    down: Float[Tensor, "blocks adapters 4 rank 32"]
    up: Float[Tensor, "blocks adapters 4 32 rank"]
    earlier: "Mapping[int, Loras]" = field(default_factory=dict)

    def layers(self) -> dict[str, Float32[np.ndarray, "adapters rows cols"]]:
        """Every layer of every adapter, named as in diffusers, down before up."""
        found: dict[str, Float32[np.ndarray, "adapters rows cols"]] = {}
        for number, module in enumerate(MODULES):
            block, projection = divmod(number, len(_PROJECTIONS))
            down, up = layer_names(module)
            found[down], found[up] = self.down[block, :, projection].numpy(), self.up[block, :, projection].numpy()
        return found


def velocity(
    base: Base, noisy: Float[Tensor, "a b 36 16"], times: Float[Tensor, "a b"], loras: Loras | None = None
) -> Float[Tensor, "a b 36 16"]:
    """What A adapted models say of B noisy pictures each: the direction from picture to noise.

    Args:
        base: weights that all adapters share.
        noisy: pictures as 36 patches of 16 pixels.
        times: how noisy each picture is, from 0 (picture) to 1 (noise).
        loras: what is added to the projections; None for the base model alone.
    """
    adapters, batch = times.shape
    qkv, out = _projections(base, loras, adapters)
    hidden = F.linear(noisy, base["patch_in"]) + base["position"] + _embed(base, times)[:, :, None]
    hidden = hidden.reshape(adapters, batch * _TOKENS, WIDTH)
    for block in range(BLOCKS):
        mixed = _attend(torch.bmm(_norm(hidden), qkv[block].mT), batch)
        hidden = torch.baddbmm(hidden, mixed, out[block].mT)
        inner = F.gelu(F.linear(_norm(hidden), base["mlp_in"][block], base["mlp_in_bias"][block]))
        hidden = hidden + F.linear(inner, base["mlp_out"][block], base["mlp_out_bias"][block])
    return F.linear(_norm(hidden), base["patch_out"], base["patch_out_bias"]).view_as(noisy)


def _projections(base: Base, loras: Loras | None, adapters: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The weights of q, k, v one below the other and of the output, one tensor [A, ·, 32] a block.

    Forming W + ΔW costs next to nothing (32 × 32) and saves two products over all tokens for every projection.
    """
    weight = base["attention"][:, None]
    if loras is None:
        qkv, out = (weight[:, :, part].expand(-1, adapters, -1, -1, -1) for part in (slice(0, 3), slice(3, 4)))
    else:
        # Split before the product: splitting W would fill large gradients with zeros.
        (down, last_down), (up, last_up) = (torch.split(part, [3, 1], 2) for part in (loras.down, loras.up))
        qkv, out = weight[:, :, :3] + up @ down, weight[:, :, 3:] + last_up @ last_down
    return qkv.flatten(2, 3).unbind(0), out.flatten(2, 3).unbind(0)


def _attend(qkv: Float[Tensor, "a tokens 96"], batch: int) -> Float[Tensor, "a tokens 32"]:
    """Self-attention with one head: q, k and v are views, where several heads would have to be copied apart."""
    query, key, value = torch.split(qkv.view(len(qkv) * batch, _TOKENS, 3 * WIDTH), WIDTH, -1)
    scores = torch.softmax(torch.bmm(query, key.mT) / math.sqrt(WIDTH), -1)
    return torch.bmm(scores, value).view(len(qkv), -1, WIDTH)


def _norm(hidden: Float[Tensor, "a tokens 32"]) -> Float[Tensor, "a tokens 32"]:
    return F.layer_norm(hidden, (WIDTH,))


def _embed(base: Base, times: Float[Tensor, "a b"]) -> Float[Tensor, "a b 32"]:
    octaves = torch.exp(torch.linspace(0.0, math.log(64.0), WIDTH // 2))
    angles = times[..., None] * octaves
    waves = torch.cat([angles.sin(), angles.cos()], -1)
    return F.linear(F.silu(F.linear(waves, base["time_in"], base["time_in_bias"])), base["time_out"])


def flow_loss(
    base: Base,
    pictures: Float[Tensor, "a b 36 16"],
    noise: Float[Tensor, "a b 36 16"],
    times: Float[Tensor, "a b"],
    loras: Loras | None = None,
) -> Float[Tensor, " a"]:
    """The flow matching loss of every adapter, mean |v(x_t, t) − (ε − x)|² with x_t = (1 − t)·x + t·ε, [A].

    Source: Lipman et al. 2023, "Flow matching for generative modeling", with straight paths.
    """
    mix = times[..., None, None]
    guess = velocity(base, torch.lerp(pictures, noise, mix), times, loras)
    return (guess - (noise - pictures)).square().mean((1, 2, 3))


def patches(pictures: Float32[np.ndarray, "n 24 24"]) -> Float[Tensor, "n 36 16"]:
    """Pictures as 36 patches of 4 × 4 pixels."""
    grid: Tensor = torch.from_numpy(pictures).reshape(-1, SIDE // PATCH, PATCH, SIDE // PATCH, PATCH)
    return grid.transpose(2, 3).reshape(-1, _TOKENS, _PIXELS)


def _new_base(generator: torch.Generator) -> Base:
    def weight(*shape: int, gain: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator) * (gain / math.sqrt(shape[-1]))

    return {
        "patch_in": weight(WIDTH, _PIXELS),
        "position": weight(_TOKENS, WIDTH, gain=0.1 * WIDTH**0.5),
        "time_in": weight(WIDTH, WIDTH),
        "time_in_bias": torch.zeros(WIDTH),
        "time_out": weight(WIDTH, WIDTH),
        "attention": weight(BLOCKS, 4, WIDTH, WIDTH),
        "mlp_in": weight(BLOCKS, _HIDDEN, WIDTH),
        "mlp_in_bias": torch.zeros(BLOCKS, _HIDDEN),
        "mlp_out": weight(BLOCKS, WIDTH, _HIDDEN, gain=0.5),
        "mlp_out_bias": torch.zeros(BLOCKS, WIDTH),
        "patch_out": torch.zeros(_PIXELS, WIDTH),
        "patch_out_bias": torch.zeros(_PIXELS),
    }


def _stratified(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Times spread evenly over a batch (the last axis), each at a random place within its part of [0, 1]."""
    return (torch.rand(shape, generator=generator) + torch.arange(shape[-1])) / shape[-1]


def pretrain(
    pictures: Float[Tensor, "n 36 16"], steps: int, batch: int, seed: int, advance: Callable[[float], None]
) -> tuple[Base, list[float]]:
    """The base model after `steps` steps of Adam on all pictures (learning rate on a half cosine), and its losses."""
    generator = torch.Generator().manual_seed(seed)
    base = _new_base(generator)
    losses: list[float] = []
    weights = [tensor.requires_grad_() for tensor in base.values()]
    adam = torch.optim.Adam(weights, lr=_PRETRAIN_RATE, fused=True)
    for step in range(steps):
        adam.param_groups[0]["lr"] = _PRETRAIN_RATE * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        chosen = torch.randint(len(pictures), (1, batch), generator=generator)
        noise = torch.randn((1, batch, _TOKENS, _PIXELS), generator=generator)
        loss = flow_loss(base, pictures[chosen], noise, _stratified((1, batch), generator)).sum()
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        losses.append(loss.item())
        advance(1.0)
    return {name: tensor.detach() for name, tensor in base.items()}, losses


@dataclass(frozen=True)
class _Draws:
    """All that chance decides in the training of one adapter, from a generator of its own.

    Nothing here depends on which adapters train beside it.
    """

    chosen: Float[Tensor, "steps batch 36 16"]
    noise: Float[Tensor, "steps batch 36 16"]
    times: Float[Tensor, "steps batch"]
    down: Float[Tensor, "blocks 4 rank 32"]

    @classmethod
    def of(cls, leaf: Leaf, training: Training) -> "_Draws":
        own, steps, batch = seeded(training.seed, leaf.name), training.steps, training.batch_size
        return cls(
            chosen=leaf.pictures[torch.randint(len(leaf.pictures), (steps, batch), generator=own)],
            noise=torch.randn((steps, batch, _TOKENS, _PIXELS), generator=own),
            times=_stratified((steps, batch), own),
            down=_new_down(training.rank, seeded(training.seed, "down") if training.shared_down else own),
        )


def _new_down(rank: int, generator: torch.Generator) -> Float[Tensor, "blocks 4 rank 32"]:
    """Uniform within ±1/√32: what Kaiming's initialisation with a = √5 is, the default of PEFT and kohya."""
    uniform: Tensor = 2 * torch.rand((BLOCKS, 4, rank, WIDTH), generator=generator) - 1
    return uniform / math.sqrt(WIDTH)


def train_loras(
    base: Base,
    leaves: Sequence[Leaf],
    training: Training,
    advance: Callable[[float], None],
    scale: Float[Tensor, "blocks adapters 4"] | None = None,
) -> Loras:
    """One LoRA a leaf, all of them trained at once by Adam; `up` starts at zero, so training starts at the base.

    The adapters share each step's matrix products and nothing else: the sum of their losses has, for each of them,
    the gradient of its own. `advance` is told the number of adapters that a step is worth. With a `scale` s,
    ΔW = s · up @ down while they train; a module whose s is 0 has no adapter, and its up stays zero.
    """
    draws = [_Draws.of(leaf, training) for leaf in leaves]
    chosen, noise = (torch.stack([getattr(d, part) for d in draws], 1) for part in ("chosen", "noise"))
    times = torch.stack([d.times for d in draws], 1)
    down = torch.stack([d.down for d in draws], 1).requires_grad_()
    up = torch.zeros((*down.shape[:3], WIDTH, training.rank), requires_grad=True)
    adam = torch.optim.Adam([down, up], lr=training.learning_rate, fused=True)
    earlier: dict[int, Loras] = {}
    for step in range(training.steps):
        if step in training.keep_steps:
            earlier[step] = Loras(down.detach().clone(), up.detach().clone())
        scaled = up if scale is None else up * scale[..., None, None]
        loss = flow_loss(base, chosen[step], noise[step], times[step], Loras(down, scaled)).sum()
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        advance(len(leaves) / training.steps)
    return Loras(down.detach(), up.detach(), earlier)
