"""The base model of the gloss zoo, a BERT that embeds texts, and the training of many LoRAs on it at once."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from jaxtyping import Bool, Float, Int64
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F

from lorabench.errors import LorabenchError
from lorabench.zoo.gloss_texts import Gloss
from lorabench.zoo.making import seeded
from lorabench.zoo.wordpiece import read_vocabulary, word_pieces

__all__ = ["Loras", "TextBase", "Training", "load_text_base", "matching_loss", "pooled", "train_loras"]

_PROJECTIONS = ("query", "value")
_BATCH = 64


@dataclass(frozen=True)
class Loras:
    """The LoRAs of A adapters: ΔW = up @ down for the query and the value of the last layers.

    Attributes:
        down: [A, layers, 2, r, d].
        up: [A, layers, 2, d, r].
    """

    down: Float[Tensor, "adapters layers 2 rank d"]
    up: Float[Tensor, "adapters layers 2 d rank"]


@dataclass(frozen=True)
class TextBase:
    """A BERT without a head: a text's embedding is the mean of its last hidden states, of length 1.

    Attributes:
        weights: name -> tensor, as transformers names them.
        layers: how many it has.
        heads: of attention.
        epsilon: of its layer norms.
        vocabulary: token -> id.
        longest: tokens of a text that are read, [CLS] and [SEP] among them.
    """

    weights: dict[str, Tensor]
    layers: int
    heads: int
    epsilon: float
    vocabulary: dict[str, int]
    longest: int

    @property
    def width(self) -> int:
        """d, of the hidden states."""
        return self.weights["embeddings.LayerNorm.weight"].shape[0]

    def modules(self, last: int) -> tuple[str, ...]:
        """The places that carry a LoRA, in the order of `Loras`, where the last so many layers have them."""
        layers = range(self.layers - last, self.layers)
        return tuple(f"encoder.layer.{number}.attention.self.{part}" for number in layers for part in _PROJECTIONS)

    def tokens(self, texts: Sequence[str]) -> tuple[Int64[Tensor, "n t"], Bool[Tensor, "n t"]]:
        """Ids of texts between [CLS] and [SEP], and which of them are no padding."""
        first, last = self.vocabulary["[CLS]"], self.vocabulary["[SEP]"]
        rows = [[first, *word_pieces(text, self.vocabulary)[: self.longest - 2], last] for text in texts]
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        ids = torch.zeros(mask.shape, dtype=torch.int64)
        ids[mask] = torch.tensor([token for row in rows for token in row])
        return ids, mask

    def embed(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """The embeddings of texts by the base alone."""
        found = []
        for start in range(0, len(texts), _BATCH):
            ids, mask = self.tokens(texts[start : start + _BATCH])
            found.append(pooled(self.lower(ids, mask, self.layers), mask))
        return torch.cat(found)

    def lower(self, ids: Int64[Tensor, "n t"], mask: Bool[Tensor, "n t"], layers: int) -> Float[Tensor, "n t d"]:
        """The hidden states after the first `layers` layers; padding is attended to by nobody."""
        part = "embeddings"
        states = F.embedding(ids, self.weights[f"{part}.word_embeddings.weight"])
        states = states + self.weights[f"{part}.position_embeddings.weight"][: ids.shape[1]]
        states = self._norm(states + self.weights[f"{part}.token_type_embeddings.weight"][0], part)
        for number in range(layers):
            states = self._layer(number, states, mask, None)
        return states

    def upper(self, states: Float[Tensor, "n t d"], mask: Bool[Tensor, "n t"], loras: Loras) -> Float[Tensor, "n t d"]:
        """The last hidden states from those below the adapted layers; n / A texts in a row are one adapter's."""
        last = loras.down.shape[1]
        for place in range(last):
            own = (loras.down[:, place], loras.up[:, place])
            states = self._layer(self.layers - last + place, states, mask, own)
        return states

    def _layer(
        self, number: int, states: Float[Tensor, "n t d"], mask: Bool[Tensor, "n t"], own: tuple[Tensor, Tensor] | None
    ) -> Float[Tensor, "n t d"]:
        part = f"encoder.layer.{number}"
        query, key, value = (self._linear(states, f"{part}.attention.self.{p}") for p in ("query", "key", "value"))
        if own is not None:
            query, value = (
                plain + _low_rank(states, own[0][:, p], own[1][:, p]) for p, plain in enumerate((query, value))
            )
        query, key, value = (one.view(*states.shape[:2], self.heads, -1).transpose(1, 2) for one in (query, key, value))
        mixed = F.scaled_dot_product_attention(query, key, value, mask[:, None, None])
        mixed = self._linear(mixed.transpose(1, 2).reshape(states.shape), f"{part}.attention.output.dense")
        states = self._norm(states + mixed, f"{part}.attention.output")
        inner = F.gelu(self._linear(states, f"{part}.intermediate.dense"))
        return self._norm(states + self._linear(inner, f"{part}.output.dense"), f"{part}.output")

    def _linear(self, states: Float[Tensor, "n t d_in"], name: str) -> Float[Tensor, "n t d_out"]:
        return F.linear(states, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, states: Float[Tensor, "n t d"], part: str) -> Float[Tensor, "n t d"]:
        weight, bias = (self.weights[f"{part}.LayerNorm.{name}"] for name in ("weight", "bias"))
        return F.layer_norm(states, (self.width,), weight, bias, self.epsilon)


def _low_rank(
    states: Float[Tensor, "n t d"], down: Float[Tensor, "a rank d"], up: Float[Tensor, "a d rank"]
) -> Float[Tensor, "n t d"]:
    """What every adapter's ΔW adds; ΔW itself, d × d of each, is never formed."""
    own = states.reshape(len(down), -1, states.shape[-1])
    return torch.bmm(torch.bmm(own, down.mT), up.mT).view_as(states)


def load_text_base(folder: Path, longest: int, key: str = "dataset.model") -> TextBase:
    """The BERT in a folder, as transformers writes it: config.json, model.safetensors and vocab.txt.

    Args:
        folder: where they lie.
        longest: tokens of a text that are read.
        key: the option that names the folder, for a refusal.

    Raises:
        LorabenchError: a file is not there, or is not a BERT's.
    """
    try:
        shape = json.loads((folder / "config.json").read_text())
        _refuse_other_kinds(folder, shape)
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        base = TextBase(
            weights={name: tensor for name, tensor in weights.items() if tensor.is_floating_point()},
            layers=shape["num_hidden_layers"],
            heads=shape["num_attention_heads"],
            epsilon=shape["layer_norm_eps"],
            vocabulary=read_vocabulary(folder / "vocab.txt"),
            longest=min(longest, shape["max_position_embeddings"]),
        )
        with torch.no_grad():
            base.embed(["a"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise LorabenchError(
            f"{folder}: no BERT without a head in config.json, model.safetensors and vocab.txt ({error}). Give a "
            f"folder with one, or {key}=minilm."
        ) from error
    return base


def _refuse_other_kinds(folder: Path, shape: object) -> None:
    """Refuse a BERT of which other numbers would be computed than its own.

    Raises:
        ValueError: it is such a one.
        TypeError: it is none.
    """
    if not isinstance(shape, dict):
        raise TypeError("config.json holds no object")
    for name, only in {"hidden_act": "gelu", "position_embedding_type": "absolute"}.items():
        if shape.get(name, only) != only:
            raise ValueError(f"its {name} is {shape[name]}, and {only} is what is computed here")
    tokenizer = folder / "tokenizer_config.json"
    if tokenizer.is_file() and json.loads(tokenizer.read_text()).get("do_lower_case") is False:
        raise ValueError("its vocabulary tells upper from lower case, and texts are read in lower case here")


def pooled(states: Float[Tensor, "n t d"], mask: Bool[Tensor, "n t"]) -> Float[Tensor, "n d"]:
    """The embeddings: means over what is no padding, of length 1."""
    weight = mask[..., None].to(states.dtype)
    return F.normalize((states * weight).sum(1) / weight.sum(1), dim=1)


def matching_loss(
    texts: Float[Tensor, "a 2 d"], targets: Float[Tensor, "a 2 d"], pools: Float[Tensor, "2 k d"], temperature: float
) -> Float[Tensor, " a"]:
    """How badly a text finds its own target among those of a pool, mean over both texts of an adapter, [A].

    −log(exp(t·g/τ) / (exp(t·g/τ) + Σ_k exp(t·p_k/τ))), for embeddings of length 1.

    Source: van den Oord et al. 2018, "Representation learning with contrastive predictive coding" (InfoNCE).
    """
    own = (texts * targets).sum(-1, keepdim=True) / temperature
    others = torch.einsum("avd,vkd->avk", texts, pools) / temperature
    return (torch.logsumexp(torch.cat([own, others], -1), -1) - own[..., 0]).mean(1)


@dataclass(frozen=True)
class Training:
    """How every adapter is trained.

    Attributes:
        rank: r, the rows of down.
        shared_down: whether every adapter starts from the same down, or each from its own.
        layers: the last so many carry a LoRA.
        steps: of Adam, each on both texts.
        learning_rate: of Adam.
        temperature: that similarities are divided by.
        seed: of down.
    """

    rank: int
    shared_down: bool
    layers: int
    steps: int
    learning_rate: float
    temperature: float
    seed: int


def train_loras(
    base: TextBase,
    glosses: Sequence[Gloss],
    pools: Float[Tensor, "2 k d"],
    training: Training,
    advance: Callable[[float], None],
) -> Loras:
    """One LoRA a leaf by Adam, all at once; `up` starts at zero, so training starts at the base.

    The adapted model's embedding of a gloss shall be near the base's of its lemma, away from the base's of the pool's
    lemmas; and that of the lemma near the base's of its gloss, away from those of the pool's glosses. What the layers
    below the adapted ones do is computed once. The adapters share each step's products and nothing else: the sum of
    their losses has, for each of them, the gradient of its own.

    Args:
        base: whose weights stay as they are.
        glosses: one a leaf.
        pools: embeddings of the pool's lemmas, and of its glosses.
        training: the recipe.
        advance: told the number of adapters that a step is worth.
    """
    with torch.no_grad():
        ids, mask = base.tokens([text for gloss in glosses for text in (gloss.gloss, gloss.lemma)])
        states = base.lower(ids, mask, base.layers - training.layers)
        every = base.embed([text for gloss in glosses for text in (gloss.lemma, gloss.gloss)])
        targets = every.view(len(glosses), 2, base.width)
    down = torch.stack([_new_down(base.width, training, gloss) for gloss in glosses]).requires_grad_()
    up = torch.zeros((*down.shape[:3], base.width, training.rank), requires_grad=True)
    adam = torch.optim.Adam([down, up], lr=training.learning_rate, fused=True)
    for _ in range(training.steps):
        found = pooled(base.upper(states, mask, Loras(down, up)), mask).view_as(targets)
        loss = matching_loss(found, targets, pools, training.temperature).sum()
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        advance(len(glosses) / training.steps)
    return Loras(down.detach(), up.detach())


def _new_down(width: int, training: Training, gloss: Gloss) -> Float[Tensor, "layers 2 rank d"]:
    """Uniform within ±1/√d: what Kaiming's initialisation with a = √5 is, the default of PEFT and kohya."""
    generator = seeded(training.seed, "down" if training.shared_down else gloss.name)
    uniform: Tensor = 2 * torch.rand((training.layers, 2, training.rank, width), generator=generator) - 1
    return uniform / math.sqrt(width)
