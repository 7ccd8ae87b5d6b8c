"""Loss and gradients of stacked multilayer perceptrons in closed form, for the networks that are just that."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn

from lorabench.classifiers.dropout import SeededDropout, dropout_keys, keep_mask

__all__ = ["DenseNetwork"]

# Private to torch; plain matmul serves where it is not there.
_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class DenseNetwork:
    """Linear layers, each but the last under a ReLU and an optional dropout: of one member, or of K at once.

    Back-propagation by hand (Rumelhart, Hinton & Williams 1986): for layers this small, autograd's bookkeeping and
    temporary arrays cost as much as the products. Tensors have a leading axis of members, or none for one member.

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

    def logits(
        self, params: dict[str, Tensor], x: Float[Tensor, "*members n f"]
    ) -> Float[Tensor, "*members n classes"]:
        """Logits in evaluation."""
        return self._forward(params, x, [None] * len(self.names))[0][-1]

    def gradients(
        self,
        params: dict[str, Tensor],
        x: Float[Tensor, "*members n f"],
        y: Int64[Tensor, "*members n"],
        masks: Sequence[Tensor | None],
    ) -> tuple[Float[Tensor, "*members"], dict[str, Tensor]]:
        """Cross-entropy, and its gradients by `params`, under the masks of one step."""
        active, passed = self._forward(params, x, masks)
        logs = active[-1].log_softmax(-1)
        picked = y.unsqueeze(-1)
        losses = logs.gather(-1, picked).mean((-1, -2)).neg_()
        delta = logs.exp_()
        delta.scatter_(-1, picked, delta.gather(-1, picked).sub_(1))
        delta /= x.shape[-2]
        grads: dict[str, Tensor] = {}
        for layer in range(len(self.names) - 1, -1, -1):
            name = self.names[layer]
            grads[f"{name}weight"] = _product(delta.mT, active[layer].mT)
            grads[f"{name}bias"] = delta.sum(-2)
            if layer:
                delta = _product(delta, params[f"{name}weight"].mT)
                delta *= passed[layer - 1]
        return losses, {name: grads[name] for name in params}

    def masks(
        self, params: dict[str, Tensor], batch: int, seeds: Int[Tensor, " members"], steps: Sequence[int]
    ) -> list[Float[Tensor, "steps members batch _"] | None]:
        """What every layer's output is multiplied by; layers of one width and probability are drawn in one go."""
        found: list[Tensor | None] = [None] * len(self.names)
        alike: dict[tuple[int, float], list[int]] = {}
        for layer, (name, p) in enumerate(zip(self.names, self.dropout, strict=True)):
            if p:
                alike.setdefault((params[f"{name}bias"].shape[-1], p), []).append(layer)
        for (width, p), layers in alike.items():
            keys = dropout_keys(seeds, steps, [self.number[layer] for layer in layers])
            drawn = keep_mask(keys, batch, width, p).to(next(iter(params.values())).dtype).div_(1 - p)
            for layer, mask in zip(layers, drawn.unbind(1), strict=True):
                found[layer] = mask
        return found

    def _forward(
        self, params: dict[str, Tensor], x: Float[Tensor, "*members n f"], masks: Sequence[Tensor | None]
    ) -> tuple[list[Float[Tensor, "*members n _"]], list[Float[Tensor, "*members n _"]]]:
        """Input and output of every layer, and the derivative of every hidden output by its linear part."""
        active, passed = [x], []
        for name, relu, mask in zip(self.names, self.relu, masks, strict=True):
            z = _product(active[-1], params[f"{name}weight"], params[f"{name}bias"])
            if relu:
                passed.append(torch.ops.aten.threshold_backward(torch.ones_like(z) if mask is None else mask, z, 0))
                z *= passed[-1]
            active.append(z)
        return active, passed


def _product(
    a: Float[Tensor, "*members n k"], b: Float[Tensor, "*members m k"], bias: Float[Tensor, "*members m"] | None = None
) -> Float[Tensor, "*members n m"]:
    """A @ bᵀ (+ bias).

    One member's, on a CPU in float32, by oneDNN, the way torch's own compiler takes: torch's matmul goes to MKL,
    which keeps processors of other makers from AVX-512 (measured: 160 against 90 GFLOP/s a core).
    """
    if a.dim() == 2 and a.device.type == "cpu" and a.dtype == torch.float32 and _ONEDNN is not None:
        found: Tensor = _ONEDNN(a, b, bias, "none", [], "")
        return found
    if bias is None:
        return a @ b.mT
    return (a @ b.mT).add_(bias.unsqueeze(-2))
