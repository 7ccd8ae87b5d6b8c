"""A run whose features are larger than the memory that it may have, through the command line."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.hub_schema import small_modules, write_hub

ROOM = 300 * 2**20
"""Bytes of address space beyond what a process has once everything is imported."""
ADAPTERS, MODULES, FEATURES = 10_000, 64, 128 * 67

LIMITED = """
    import resource, runpy, sys
    import datasets, matplotlib.pyplot, psutil, sklearn.metrics, torch
    import lorabench.__main__, lorabench.pipeline, lorabench.zoo.hub
    torch.ones(300, 300) @ torch.ones(300, 300)  # its threads have their stacks
    pages = int(open("/proc/self/statm").read().split()[0])
    limit = pages * resource.getpagesize() + int(sys.argv.pop(1))
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    runpy.run_module("lorabench", run_name="__main__", alter_sys=True)
"""


def run_limited(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """`python -m lorabench` where no more than `ROOM` can be taken, be it memory of its own or a file that is mapped.

    What torch and the other libraries map as they are imported (some GB, hardly any of it in memory) comes on top.
    glibc reserves 64 MiB for every thread's heap, and Arrow 1 GiB, which the variables turn off.
    """
    lean = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", textwrap.dedent(LIMITED), str(ROOM), *overrides]
    return subprocess.run(
        command, env=os.environ | lean, capture_output=True, text=True, check=False, timeout=900, cwd=folder
    )


@pytest.mark.slow
def test_features_larger_than_the_memory_limit(tmp_path):
    assert 4 * ADAPTERS * FEATURES > ROOM
    path = write_hub(tmp_path / "set", ADAPTERS, small_modules(MODULES), batch=1000)
    given = [
        "dataset=hub", f"dataset.path={path}", "representation=ensemble", "num_runs=2", "classifier=linear",
        "classifier.max_epochs=2", "classifier.batch_size=64",
    ]  # fmt: skip
    done = run_limited(tmp_path, *given, "trainer.memory_gb=0.05", f"output_dir={tmp_path / 'streamed'}")
    assert done.returncode == 0, done.stderr[-2000:]
    (results,) = tmp_path.glob("streamed/**/results.json")
    found = json.loads(results.read_text())
    assert found["environment"]["streamed"] == ["ensemble"]
    assert found["summary"][0]["features"] == FEATURES
    assert found["summary"][0]["test_accuracy"]["mean"] > 0.9  # the category shifts every layer's mean
    refused = run_limited(tmp_path, *given, "resume=false", f"output_dir={tmp_path / 'memory'}")
    assert refused.returncode != 0
    assert "memory" in refused.stderr.lower()
    assert not list(tmp_path.glob("memory/**/results.json"))
