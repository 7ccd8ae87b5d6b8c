"""One device a job, where a machine has several: whichever launcher runs them, and of however many sweeps."""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import FileLock

__all__ = ["take_device", "visible_devices"]

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_held: "list[FileLock]" = []  # to this process's end, by which it is freed, whatever ends it


def visible_devices() -> list[str]:
    """The devices that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    named = os.environ.get(_VISIBLE)
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    import torch  # counts by NVML: nothing is started on a device, and the variable may still be set

    return [str(number) for number in range(torch.cuda.device_count())]


def take_device(number: int, locks: Path | None = None) -> str | None:
    """Have this process, a job's, see one device alone: the first that no other job has.

    To be called before anything is computed. A process that has one keeps it. Where each is taken, jobs share them in
    the order of their numbers.

    Args:
        number: the job's.
        locks: where processes tell each other what they have; by default a folder of this user's on this machine.

    Returns:
        The device; None where there are not several.
    """
    devices = visible_devices()
    if len(devices) < 2:
        return None
    folder = locks or Path(tempfile.gettempdir()) / f"lorabench-{os.getuid()}"
    folder.mkdir(parents=True, exist_ok=True)
    device = next((name for name in devices if _taken(folder / f"device-{name}.lock")), devices[number % len(devices)])
    os.environ[_VISIBLE] = device
    return device


def _taken(path: Path) -> bool:
    from filelock import FileLock, Timeout  # only a machine with several devices needs it

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    _held.append(lock)
    return True
