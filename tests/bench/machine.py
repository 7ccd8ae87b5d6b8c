"""What a measurement was made on, and how times are taken."""

import logging
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

__all__ = ["describe", "interleaved", "name", "quiet_lightning", "ratio"]


def name() -> str:
    """The GPU, or the processor where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def describe() -> str:
    """Processor, cores, device and versions; what is not installed is left out."""
    versions = []
    for package in ("torch", "pytorch-lightning", "numpy", "datasets"):
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    device = "GPU" if torch.cuda.is_available() else "no GPU"
    cuda = f", CUDA {torch.version.cuda}" if torch.cuda.is_available() else ""
    return (
        f"{name()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads, {device}; "
        f"Python {platform.python_version()}, {', '.join(versions)}{cuda}"
    )


def quiet_lightning() -> None:
    """Keep Lightning from telling of every fit."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    for text in (".*does not have many workers.*", ".*LeafSpec.*"):  # the second is between torch and Lightning
        warnings.filterwarnings("ignore", text)


def interleaved(works: dict[str, Callable[[], object]], rounds: int, warm_up: bool = True) -> dict[str, list[float]]:
    """Wall seconds of every work in turn, A B A B, after one call each to warm up: drift hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values() if warm_up else ():
        work()
    for _ in range(rounds):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - start)
    return times


def ratio(slow: list[float], fast: list[float]) -> float:
    """Median of the ratios round by round."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))
