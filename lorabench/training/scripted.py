"""Steps as one call each that leaves Python alone while it runs, by TorchScript.

Lanes are threads, and Python is one thread at a time: a step is dozens of operations, each with microseconds of
Python around it, for which lanes would wait. TorchScript goes through the same operations in the same order without
Python. torch advises new code to take `torch.compile`, which needs a C++ compiler where it runs and chooses other
kernels. Where TorchScript is gone or lacks an operation, the Python functions run as they are: slower, with the same
numbers.
"""

import functools
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar, cast

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from lorabench.training.onednn import ONEDNN, by_onednn

__all__ = ["Step", "traced_step", "without_python"]

P = ParamSpec("P")
T = TypeVar("T")
Step = Callable[[Sequence[Tensor], Sequence[Tensor], Tensor], tuple[dict[str, Tensor], list[Tensor]]]
"""(parameters, buffers, batch) to the losses and the gradients of `loss`; buffers are changed in place."""

_TRACING = threading.Lock()  # tracing is of the whole process
_ATEN = torch.ops.aten


def without_python(function: Callable[P, T]) -> Callable[P, T]:
    """The function in TorchScript; itself, where that is not to be had."""
    if not all(hasattr(torch.jit, name) for name in ("script", "optimized_execution", "frontend")):
        return function
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.filterwarnings("ignore", "The TorchScript type system")  # of a module's own annotations
            compiled = torch.jit.script(function)
    except (RuntimeError, OSError, torch.jit.frontend.FrontendError):  # an operation or the source is missing
        return function

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]  # the optimiser's sums are in another order
            return cast("T", compiled(*args, **kwargs))

    return run


def traced_step(module: nn.Module, x: Tensor) -> Step:
    """The step of a module whose `forward` gives its losses by name, of batches shaped like `x`.

    Large products go to oneDNN. Parameters and buffers are handed over with each call, in the order of the module's
    own, so that one step serves all modules of one architecture.

    Args:
        module: in training.
        x: a batch.
    """
    names = [[name for name, _ in found] for found in (module.named_parameters(), module.named_buffers())]
    count = len(names[0])
    told: list[str] = []

    def step(*flat: Tensor) -> list[Tensor]:
        leaves = [p.detach().requires_grad_() for p in flat[:count]]
        state = dict(zip(names[0] + names[1], [*leaves, *flat[count:-1]], strict=True))
        with torch.enable_grad():
            losses = functional_call(module, state, (flat[-1],))
            grads = torch.autograd.grad(losses["loss"], leaves)
        told[:] = losses
        return [*(loss.detach() for loss in losses.values()), *grads]

    state = [tensor.detach().clone() for tensor in (*module.parameters(), *module.buffers())]
    with _TRACING:
        graph = make_fx(step)(*state, x)
        _rewrite(graph)
        _settle(graph)
        run = without_python(graph)

    def call(
        params: Sequence[Tensor], buffers: Sequence[Tensor], batch: Tensor
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        with torch.no_grad():
            found = run(*params, *buffers, batch)
        return dict(zip(told, found[: len(told)], strict=True)), list(found[len(told) :])

    return call


def _rewrite(traced: fx.GraphModule) -> None:
    """Send large products to oneDNN, and say every operation as TorchScript knows it."""
    for node in list(traced.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in (_ATEN.mm.default, _ATEN.addmm.default):
            _to_onednn(traced.graph, node)
        elif node.target is _ATEN.view.dtype and node.args[1] is torch.int16 and sys.byteorder == "little":
            _halve(traced.graph, node)
        elif node.target is _ATEN._to_copy.default and list(node.kwargs) == ["dtype"]:  # noqa: SLF001
            node.target = _ATEN.to
    for node in traced.graph.nodes:
        node.target = getattr(node.target, "overloadpacket", node.target)
        known = node.kwargs.items()
        node.kwargs = {key: value.type if isinstance(value, torch.device) else value for key, value in known}
    traced.recompile()


def _settle(traced: fx.GraphModule) -> None:
    """Make what is the same in every step once, and leave out what does nothing where no gradient is asked for."""
    graph = traced.graph
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in (_ATEN.detach, _ATEN.alias):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target is _ATEN.t and node.args[0].target is _ATEN.t:
            node.replace_all_uses_with(node.args[0].args[0])
        elif node.target is _ATEN.arange:
            product = next(iter(node.users))
            counter = _ATEN.arange(*node.args, **node.kwargs)
            if len(node.users) > 1 or product.target is not _ATEN.mul_ or any(map(_writes, product.users)):
                continue
            name = f"constant_{node.name}"
            traced.register_buffer(name, counter.mul_(product.args[1]))
            with graph.inserting_before(product):
                product.replace_all_uses_with(graph.get_attr(name))
            graph.erase_node(product)
            graph.erase_node(node)
    for node in [node for node in graph.nodes if node.target is _ATEN.t][::-1]:
        if not node.users:
            graph.erase_node(node)
    traced.recompile()


def _writes(node: fx.Node) -> bool:
    """Whether an operation changes what it is given."""
    return str(node.target).endswith("_") and not str(node.target).endswith("__")


def _halve(graph: fx.Graph, node: fx.Node) -> None:
    """The two halves of every int32, as numbers of int32: TorchScript has no view as another type."""
    bits = node.args[0]
    with graph.inserting_before(node):
        left, right = _ATEN.__lshift__.Scalar, _ATEN.__rshift__.Scalar
        low = graph.call_function(right, (graph.call_function(left, (bits, 16)), 16))
        high = graph.call_function(right, (bits, 16))
        pairs = graph.call_function(_ATEN.stack.default, ([low, high], -1))
        both = graph.call_function(_ATEN.flatten.using_ints, (pairs, -2))
    node.replace_all_uses_with(both)
    graph.erase_node(node)


def _to_onednn(graph: fx.Graph, node: fx.Node) -> None:
    *bias, a, b = cast("tuple[fx.Node, ...]", node.args)
    left, right = a.meta["val"], b.meta["val"]
    if not by_onednn(left, left.shape[0] * right.numel()):
        return
    with graph.inserting_before(node):
        turned = graph.call_function(_ATEN.t.default, (b,))
        made = graph.call_function(ONEDNN, (a, turned, bias[0] if bias else None, "none", [], ""))
    made.meta = node.meta
    node.replace_all_uses_with(made)
    graph.erase_node(node)
