"""How much memory is free, and how the C library is kept from giving it back too early."""

from pathlib import Path

import torch

__all__ = ["free_memory", "recycle_freed_blocks"]

_BYTES = 31 * 2**20  # glibc's adaptive threshold ends at 32 MiB (mallopt(3), M_MMAP_THRESHOLD)
_UNTOLD = 4 * 2**30  # what is taken for free where the system does not say


def free_memory(device: torch.device) -> int:
    """Bytes that may still be taken on a device; 4 GiB where the system does not say."""
    if device.type == "cuda":
        # What torch holds and does not use is free for torch.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    info = Path("/proc/meminfo")
    lines = info.read_text().splitlines() if info.exists() else []
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else _UNTOLD


def recycle_freed_blocks() -> None:
    """Have blocks of megabytes reused rather than returned to the system and faulted in again, page by page.

    glibc maps large blocks one by one and unmaps them as they are freed, until it has seen a larger one freed; from
    then on it recycles them. One untouched block does that. Measured: a fifth of the time of batched features, a
    quarter of that of stacked members. Elsewhere this does nothing.
    """
    torch.empty(_BYTES, dtype=torch.uint8)
