"""A data set twice as large as the memory it may use passes through the hand-crafted representations."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.hub_schema import write_hub

LIMIT = 448 * 2**20
"""Importing torch, datasets and lorabench takes 250 MiB of it, and the features 60 MiB more."""
ADAPTER_BYTES = 4 * 99_648

PRELUDE = """
    import resource, sys
    import numpy as np, torch
    from lorabench.zoo import hub
    from lorabench.representations.norms import Norms
    from lorabench.representations.stats import Stats
    limit = int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    torch.set_num_threads(1)
    zoo = hub.load("big", None, "unused", path=sys.argv[1])
"""
FEATURES = """
    for representation in (Stats(), Norms()):
        found = torch.stack(list(representation.transform(zoo, torch.device("cpu")).values()))
        print(*found.shape, bool(found.isfinite().all()))
"""
ALL_AT_ONCE = """
    try:
        whole = [zoo.read(layer) for layer in zoo.layers]
        whole = [np.concatenate([layer]) for layer in whole]
    except MemoryError:
        print("refused")
"""


def run_limited(path: Path, code: str) -> list[str]:
    """Run `code` on the data set where it may have `LIMIT` bytes of memory of its own.

    RLIMIT_DATA bounds what a process can write to without a file behind it: the heap and anonymous maps, so every
    array, tensor and Arrow allocation. Pages of a mapped file are not counted: the system drops them whenever
    it needs room. Default allocators reserve room ahead (Arrow's 1 GiB) or keep what was freed (glibc's heap, by
    an amount that differs from run to run), which would count; the variables below turn that off.
    """
    lean = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "1048576"}
    source = textwrap.dedent(PRELUDE) + textwrap.dedent(code)
    command = [sys.executable, "-c", source, str(path), str(LIMIT)]
    environment = os.environ | lean | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert found.returncode == 0, found.stderr[-2000:]
    return found.stdout.split("\n")[:-1]


@pytest.mark.slow
def test_features_of_a_zoo_twice_the_memory_limit(tmp_path):
    count = 2 * LIMIT // ADAPTER_BYTES + 1
    path = write_hub(tmp_path / "set", count, batch=200)
    try:
        assert run_limited(path, FEATURES) == [f"128 {count} 7 True"] * 2
        assert run_limited(path, ALL_AT_ONCE) == ["refused"]
    finally:
        for file in path.iterdir():
            file.unlink()
