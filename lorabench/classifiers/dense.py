"""Loss and gradients of stacked multilayer perceptrons in closed form, for the networks that are just that."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn

from lorabench.classifiers.dropout import SeededDropout, dropout_keys, keep_mask

__all__ = ["DenseNetwork", "Gradient"]

Gradient = Tensor | list[Tensor]
"""Of one parameter: stacked [K, ...], or a tensor a member."""

# Private to torch; `torch.bmm` serves where it is not there.
_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class DenseNetwork:
    """Linear layers, each but the last under an optional ReLU and an optional dropout, for K members at once.

    Back-propagation by hand (Rumelhart, Hinton & Williams 1986): for layers this small, autograd's bookkeeping and
    temporary arrays cost as much as the products.

    Attributes:
        names: prefix of every linear layer in the state dict.
        relu: whether a ReLU follows.
        dropout: probability of the dropout that follows; 0 for none.
        number: place of that dropout among the network's, which its key depends on; -1 for none.
    """

    names: tuple[str, ...]
    relu: tuple[bool, ...]
    dropout: tuple[float, ...]
    number: tuple[int, ...]

    @classmethod
    def of(cls, network: nn.Module) -> "DenseNetwork | None":
        """The same network in this form, or None where it is anything else."""
        layers = list(network.named_children()) if type(network) is nn.Sequential else [("", network)]
        names: list[str] = []
        relu: list[bool] = []
        dropout: list[float] = []
        number: list[int] = []
        for name, layer in layers:
            if type(layer) is nn.Linear and layer.bias is not None:
                names.append(f"{name}." if name else "")
                relu.append(False)
                dropout.append(0.0)
                number.append(-1)
            elif type(layer) is nn.ReLU and names and not relu[-1]:
                relu[-1] = True
            elif type(layer) is SeededDropout and names and relu[-1] and number[-1] < 0:
                dropout[-1], number[-1] = float(layer.p), 1 + max(number)
            else:
                return None
        if not names or relu[-1] or not all(relu[:-1]):
            return None
        return cls(tuple(names), tuple(relu), tuple(dropout), tuple(number))

    def logits(self, params: dict[str, Tensor], x: Float[Tensor, "members n f"]) -> Float[Tensor, "members n classes"]:
        """What every member says of its own rows, in evaluation."""
        return self._forward(params, x, None)[-1]

    def gradients(
        self,
        params: dict[str, Tensor],
        x: Float[Tensor, "members n f"],
        y: Int64[Tensor, "members n"],
        seeds: Int[Tensor, " members"],
        step: int,
    ) -> tuple[Float[Tensor, " members"], dict[str, Gradient]]:
        """Cross-entropy of every member, and its gradients by `params`."""
        active = self._forward(params, x, self._masks(params, x.shape[1], seeds, step))
        logs = active[-1].log_softmax(-1)
        picked = y.unsqueeze(-1)
        losses = -logs.gather(-1, picked).squeeze(-1).mean(1)
        delta = logs.exp_()
        delta.scatter_add_(-1, picked, torch.full_like(picked, -1, dtype=delta.dtype))
        delta /= x.shape[1]
        grads: dict[str, Gradient] = {}
        for layer in range(len(self.names) - 1, -1, -1):
            name, below = self.names[layer], active[layer]
            grads[f"{name}weight"] = products(delta.mT, below.mT)
            grads[f"{name}bias"] = delta.sum(1)
            if layer:
                delta = _stacked(products(delta, params[f"{name}weight"].mT))
                # What is positive passed both the ReLU and the dropout below.
                delta *= (below > 0).to(delta.dtype).div_(1 - self.dropout[layer - 1])
        return losses, {name: grads[name] for name in params}

    def _masks(
        self, params: dict[str, Tensor], batch: int, seeds: Int[Tensor, " members"], step: int
    ) -> list[Float[Tensor, "members batch _"] | None]:
        """What every layer's output is multiplied by; layers of one width and probability are drawn in one go."""
        found: list[Tensor | None] = [None] * len(self.names)
        alike: dict[tuple[int, float], list[int]] = {}
        for layer, (name, p) in enumerate(zip(self.names, self.dropout, strict=True)):
            if p:
                alike.setdefault((params[f"{name}weight"].shape[1], p), []).append(layer)
        for (width, p), layers in alike.items():
            keys = dropout_keys(seeds, step, [self.number[layer] for layer in layers])
            drawn = keep_mask(keys, batch, width, p).to(next(iter(params.values())).dtype).div_(1 - p)
            for layer, mask in zip(layers, drawn, strict=True):
                found[layer] = mask
        return found

    def _forward(
        self, params: dict[str, Tensor], x: Float[Tensor, "members n f"], masks: Sequence[Tensor | None] | None
    ) -> list[Float[Tensor, "members n _"]]:
        """Input and output of every layer."""
        active = [x]
        for layer, name in enumerate(self.names):
            z = _stacked(products(active[-1], params[f"{name}weight"]))
            z += params[f"{name}bias"].unsqueeze(1)
            if self.relu[layer]:
                z.relu_()
            mask = None if masks is None else masks[layer]
            if mask is not None:
                z *= mask
            active.append(z)
        return active


def products(a: Float[Tensor, "members n k"], b: Float[Tensor, "members m k"]) -> Gradient:
    """A @ bᵀ of every member, [K, n, m], or one tensor a member.

    On a CPU in float32 by oneDNN, the way torch's own compiler takes: `torch.bmm` goes to MKL, which keeps processors
    of other makers from AVX-512 (measured: 160 against 90 GFLOP/s a core).
    """
    if a.device.type == "cpu" and a.dtype == torch.float32 and _ONEDNN is not None:
        return [_ONEDNN(one, other, None, "none", [], "") for one, other in zip(a.unbind(), b.unbind(), strict=True)]
    return torch.bmm(a, b.mT)


def _stacked(values: Gradient) -> Tensor:
    return values if isinstance(values, Tensor) else torch.stack(values)
