"""Lanes in order, and memory that is free."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from lorabench.machine import free_memory, keep_to_allotted_cpus, map_in_lanes, read_ahead


def test_what_lanes_make_comes_in_the_order_of_the_tasks() -> None:
    second_is_done = threading.Event()

    def work(task: int) -> tuple[int, int]:
        if task == 0:
            assert second_is_done.wait(30)
        if task == 1:
            second_is_done.set()
        return task, torch.get_num_threads()

    threads = torch.get_num_threads()
    assert map_in_lanes(work, iter(range(5)), lanes=2) == [(task, 1) for task in range(5)]
    assert torch.get_num_threads() == threads
    assert map_in_lanes(work, []) == []


def test_an_error_in_a_lane_comes_through() -> None:
    with pytest.raises(ZeroDivisionError):
        map_in_lanes(lambda task: 1 / task, [1, 0, 2])


@pytest.mark.parametrize(("allotted", "threads"), [("1", 1), ("2", 2), ("64", 3), ("", 3), ("0", 3), ("2(x3)", 3)])
def test_torch_takes_no_more_threads_than_slurm_allots(allotted, threads, monkeypatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", allotted)
    try:
        torch.set_num_threads(3)
        keep_to_allotted_cpus()
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="the system says it elsewhere")
def test_free_memory_is_what_the_system_says() -> None:
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    expected = 1024 * int(lines["MemAvailable"].split()[0])
    assert free_memory(torch.device("cpu")) == pytest.approx(expected, rel=0.2)


def test_reading_ahead_changes_nothing(tmp_path: Path) -> None:
    values = np.arange(2**20, dtype=np.float32)
    values.tofile(tmp_path / "values")
    mapped = np.memmap(tmp_path / "values", np.float32, "r")
    for part in (mapped, mapped[3:-5], mapped[:1], mapped[:0], mapped[::2], values):
        before = part.copy()
        read_ahead(part)
        assert np.array_equal(part, before)
