"""Functions that leave Python alone while they run, by TorchScript.

Lanes are threads, and Python is one thread at a time: a step is dozens of operations, each with microseconds of
Python around it, for which lanes would wait. TorchScript goes through the same operations in the same order without
Python. torch advises new code to take `torch.compile`, which needs a C++ compiler where it runs and chooses other
kernels. Where TorchScript is gone or lacks an operation, the Python function runs as it is: slower, with the same
numbers.
"""

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import torch

__all__ = ["bare", "without_python"]

P = ParamSpec("P")
T = TypeVar("T")


def bare(function: Callable[P, T]) -> Callable[P, T]:
    """Without the type checker that tests wrap around it: TorchScript reads the function itself, and no axis names."""
    return cast("Callable[P, T]", inspect.unwrap(function))


def without_python(function: Callable[P, T]) -> Callable[P, T]:
    """The function in TorchScript; itself, where that is not to be had."""
    if not all(hasattr(torch.jit, name) for name in ("script", "optimized_execution", "frontend")):
        return function
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            compiled = torch.jit.script(function)
    except (RuntimeError, OSError, torch.jit.frontend.FrontendError):  # an operation or the source is missing
        return function

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]  # the optimiser's sums are in another order
            return cast("T", compiled(*args, **kwargs))

    return run
