"""Loss and gradients of stacked multilayer perceptrons in closed form, for the networks that are just that."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lorabench.training import SeededDropout, keep_mask

__all__ = ["DenseNetwork"]


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
        for name, relu in zip(self.names, self.relu, strict=True):
            x = _product(x, params[f"{name}weight"], params[f"{name}bias"])
            x = x.relu_() if relu else x
        return x

    def gradients(
        self,
        params: dict[str, Tensor],
        x: Float[Tensor, "*members n f"],
        target: Float[Tensor, "*members n classes"],
        masks: Sequence[Tensor | None],
    ) -> tuple[Float[Tensor, "*members n classes"], dict[str, Tensor]]:
        """Logits under the masks of one step, and the gradients of their mean cross-entropy by `params`.

        Args:
            params: weights and biases by their names in the state dict.
            x: inputs of one batch.
            target: -1/n at every row's class and zero elsewhere.
            masks: what every layer's output is multiplied by (`masks`).
        """
        active, passed = self._forward(params, x, masks)
        logits = active[-1]
        delta = torch.add(target, logits.softmax(-1), alpha=1 / x.shape[-2])
        grads: dict[str, Tensor] = {}
        for layer in range(len(self.names) - 1, -1, -1):
            name = self.names[layer]
            grads[f"{name}weight"] = _product(delta.mT, active[layer].mT)
            grads[f"{name}bias"] = delta.sum(-2)
            if layer:
                delta = _product(delta, params[f"{name}weight"].mT)
                delta *= passed[layer - 1]
        return logits, {name: grads[name] for name in params}

    def masks(
        self, params: dict[str, Tensor], batch: int, keys: Int[Tensor, "steps dropouts members"]
    ) -> list[Float[Tensor, "steps members batch _"] | None]:
        """What every layer's output is multiplied by; dropouts of one width and probability are drawn in one go."""
        found: list[Tensor | None] = [None] * len(self.names)
        dtype = next(iter(params.values())).dtype
        alike: dict[tuple[int, float], list[int]] = {}
        for layer, (name, p) in enumerate(zip(self.names, self.dropout, strict=True)):
            if p:
                alike.setdefault((params[f"{name}bias"].shape[-1], p), []).append(layer)
        for (width, p), layers in alike.items():
            own = keys[:, [self.number[layer] for layer in layers]]
            for layer, mask in zip(layers, keep_mask(own, batch, width, p, dtype).unbind(1), strict=True):
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
    """A @ bᵀ (+ bias)."""
    if bias is None:
        return a @ b.mT
    return torch.addmm(bias, a, b.mT) if a.dim() == 2 else torch.baddbmm(bias.unsqueeze(-2), a, b.mT)
