"""What several tests share. Nothing here touches the cache of the person who runs the tests."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

from tests.real_adapters import SHARED, made_adapters

ROOT = Path(__file__).parents[1]


TINY_ZOO = ["dataset.per_category=8", "dataset.pretrain_steps=40", "dataset.steps=10"]
"""Overrides that make the embedded zoo small: 80 adapters in seconds."""


def untimed(data: Any) -> Any:
    """What is in a results.json, but the times, which differ from run to run."""
    if isinstance(data, dict):
        return {key: untimed(value) for key, value in data.items() if key != "seconds"}
    return [untimed(one) for one in data] if isinstance(data, list) else data


@pytest.fixture(scope="session", autouse=True)
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache of this test session; subprocesses find it by LORABENCH_CACHE."""
    with pytest.MonkeyPatch.context() as patch:
        folder = Path(os.environ.get("LORABENCH_TEST_CACHE") or tmp_path_factory.mktemp("cache"))
        if "PYTEST_XDIST_WORKER" in os.environ and not (folder / "zoos").exists():
            zoos = tmp_path_factory.getbasetemp().parent / "zoos"  # what one worker has trained is there for the others
            zoos.mkdir(exist_ok=True)
            (folder / "zoos").symlink_to(zoos)
        patch.setenv("LORABENCH_CACHE", str(folder))
        for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_DATA_DIR"):
            patch.delenv(name, raising=False)
        patch.setenv("WANDB_CACHE_DIR", str(folder / "wandb"))
        yield folder


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """No test may set up the logging of those that follow it: which ones those are, the worker's order decides."""
    level, handlers = logging.root.level, [type(handler) for handler in logging.root.handlers]
    yield
    assert logging.root.level == level
    assert [type(handler) for handler in logging.root.handlers] == handlers


@pytest.fixture(params=["made", *["published"] * SHARED.is_dir()])
def real_folder(request: pytest.FixtureRequest) -> Path:
    """Each folder of real adapters that there is."""
    return SHARED if request.param == "published" else made_adapters()


def lorabench(*arguments: str, cwd: Path, code: int = 0, module: str = "lorabench") -> subprocess.CompletedProcess[str]:
    """Run `python -m lorabench` as a user does, and hold it to its exit code."""
    done = subprocess.run(
        [sys.executable, "-W", "error::SyntaxWarning", "-m", module, *arguments],
        cwd=cwd, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture
def no_datasets_bars() -> Iterator[None]:
    """`datasets` draws bars without a terminal too."""
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()
