"""Ten thousand damaged, lying and hostile adapters: each is read, or refused in one line, and nothing else happens.

Each family runs in a process of its own, so that its memory can be measured and limited. See tests/fuzz_cases.py for
what is held against each case, and tests/fuzz_families.py for the cases, which are the same in every run.
"""

import contextlib
import json
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz_cases import MEMORY
from tests.fuzz_families import FAMILIES, MARKER, hostile

# At least so many of a hundred must be read: a fuzz test that breaks everything at the door tests the door alone.
_READ = {"flipped": 15, "cut": 10, "header": 4, "pickles": 10, "config": 30, "shapes": 25}


def test_there_are_ten_thousand_cases() -> None:
    assert sum(count for _, count in FAMILIES.values()) == 10_000
    assert set(_READ) == set(FAMILIES)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_broken_adapters_are_read_or_refused_in_one_line(family: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz_cases", family],
        cwd=Path(__file__).parents[1], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=600, check=False,
    )  # fmt: skip
    assert done.stdout, f"the process ended with {done.returncode}: {done.stderr[-3000:]}"
    found = json.loads(done.stdout)
    first = "\n".join(found["faults"][:3])
    assert not found["faults"], (
        f"{found['count']} faults; see one case in full with python -m tests.fuzz_cases {family} NUMBER\n{first}"
    )
    assert found["grown"] < MEMORY, f"reading {family} took {found['grown'] >> 20} MiB of memory"
    assert done.returncode == 0
    assert found["cases"] == FAMILIES[family][1]
    assert found["cases"] > found["read"] > found["cases"] * _READ[family] / 100


def test_cases_are_the_same_in_every_run(tmp_path: Path) -> None:
    """Else a number would not bring a failure back."""
    script = (
        "import hashlib, pathlib, random, sys; from tests.fuzz_families import FAMILIES\n"
        "for name, (make, _) in FAMILIES.items():\n"
        "    for i in range(30):\n"
        "        folder = pathlib.Path(sys.argv[1]) / f'{name}-{i}'; folder.mkdir()\n"
        "        make(random.Random(f'{name} {i}'), folder)\n"
        "        print(*(hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())))\n"
    )
    runs = []
    for i in range(2):
        (tmp_path / str(i)).mkdir()
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / str(i))], cwd=Path(__file__).parents[1],
            env=os.environ | {"PYTHONHASHSEED": str(i)}, capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        runs.append(done.stdout)
    assert runs[0] == runs[1]
    assert len(set(runs[0].splitlines())) > 120


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_the_cases_would_do_harm_if_they_were_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hostile pickles are no dummies: Python's own reader runs them."""
    monkeypatch.chdir(tmp_path)
    ran = 0
    for i in range(40):
        data = hostile(random.Random(i))  # noqa: S311 - the same in every run
        if data[:2] == b"PK":
            continue
        with contextlib.suppress(TypeError, FileNotFoundError, RuntimeError):  # by what it has run
            pickle.loads(data)  # noqa: S301 - that is the point
        ran += Path(MARKER).exists()
        Path(MARKER).unlink(missing_ok=True)
    assert ran > 5
