"""A comparison that is killed, interrupted, and given again: the result is that of a run which nothing stopped."""

import json
import logging
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from lorabench import pipeline
from lorabench.jobs import read_status
from tests.conftest import TINY_ZOO, untimed
from tests.processes import Started
from tests.small_study import run

pytestmark = [
    pytest.mark.slow,
]

WORDS = [
    "experiment=quick", *TINY_ZOO, "top_k=3", "ablation.random_draws=3", "classifier.hidden=[32]",
    "classifier.max_epochs=12",
]  # fmt: skip
RANKED = 32 * 5 * (1 + 2)  # layers times runs, one a split, on the split itself and in its two folds
CONTROLS = 5 * 4  # recipe, norm, norm by module, ceiling; permuted labels are an arm already
MEMBERS = RANKED + 3 * 5 * 7 + CONTROLS  # and representations times runs times arms


def kept(cache: Path) -> int:
    """Members that are written down."""
    return sum(path.read_bytes().count(b"\n") for path in (cache / "members").glob("*.jsonl"))


def stopped(folder: Path, cache: Path, members: int, how: signal.Signals) -> subprocess.CompletedProcess[str]:
    """The run, stopped once so many members are written down."""
    running = Started(*WORDS, f"output_dir={folder}", f"cache_dir={cache}", cwd=folder.parent)
    try:
        until = time.monotonic() + 120
        while kept(cache) < members:
            assert running.poll() is None, running.communicate()
            assert time.monotonic() < until, "no member was written down"
            time.sleep(0.002)
        running.send_signal(how)
        out, said = running.communicate(timeout=60)
    finally:
        running.kill()
    return subprocess.CompletedProcess([], running.returncode, out, said)


def told(log: str) -> tuple[int, int]:
    """Members trained, and taken from before, as the last run in a log tells."""
    found = re.findall(r"members: (\d+) trained, (\d+) kept from before", log)
    return int(found[-1][0]), int(found[-1][1])


@pytest.fixture(autouse=True)
def quickly(monkeypatch, caplog):
    """No pictures in this process, and its log."""
    monkeypatch.setattr(pipeline, "write_figures", lambda *_: [])
    caplog.set_level(logging.INFO)


def numbers(path: Path) -> dict:
    """results.json without what differs from run to run."""
    data = json.loads(path.read_text())
    return {key: value for key, value in untimed(data).items() if key != "environment"}


def test_a_killed_and_interrupted_comparison_resumes_to_the_same_result(tmp_path, caplog):
    cache, folder = tmp_path / "cache", tmp_path / "results"
    of_run = folder / "ablation_glyphs"
    common = [*WORDS, f"output_dir={folder}", f"cache_dir={cache}"]
    run(tmp_path / "whole", *common)
    expected = numbers(tmp_path / "whole" / "results.json")
    assert kept(cache) == MEMBERS
    assert told(caplog.text) == (MEMBERS, 0)
    (cache / "members").rename(cache / "of the whole run")

    killed = stopped(folder, cache, 5, signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL
    first = kept(cache)
    assert 5 <= first < RANKED, "it was to be killed in phase 1"
    assert not (of_run / "results.json").exists()

    interrupted = stopped(folder, cache, RANKED + 5, signal.SIGINT)
    assert interrupted.returncode != 0
    assert interrupted.stderr.strip().splitlines()[-1].startswith("lorabench: interrupted. What is finished")
    assert "Traceback" not in interrupted.stderr
    assert read_status(of_run).status == "interrupted"
    second = kept(cache)
    assert RANKED + 5 <= second < MEMBERS
    assert not (of_run / "results.json").exists()

    run(of_run, *common)
    assert told(caplog.text) == (MEMBERS - second, second)
    assert kept(cache) == MEMBERS
    assert numbers(of_run / "results.json") == expected
    assert read_status(of_run).status == "done"


def test_resume_false_trains_all_again_and_keeps_nothing(tmp_path, cache_dir, caplog):
    words = [
        *TINY_ZOO,
        "ablation=layers",
        "representation=norms",
        "num_runs=1",
        "classifier.max_epochs=1",
        "top_k=1",
        "folds=1",
    ]
    members = 32 + 1  # layers by stats, and all layers
    first = run(tmp_path / "first", *words, "ablation.baseline=norms")
    assert told(caplog.text) == (members, 0)
    before = kept(cache_dir)
    second = run(tmp_path / "second", *words, "ablation.baseline=norms", "resume=false")
    assert told(caplog.text) == (members, 0)
    assert kept(cache_dir) == before
    assert (first.runs, first.summary, first.config["resume"]) == (second.runs, second.summary, True)
    assert second.config["resume"] is False
