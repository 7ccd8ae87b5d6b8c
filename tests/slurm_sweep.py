"""An 8-job sweep on a SLURM that is there: a job is killed, another put back into the queue, and the table is the same.

python -m tests.slurm_sweep FOLDER (tests/try_slurm.sh starts a SLURM for it)
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from lorabench.jobs import read_jobs, read_status
from tests.conftest import TINY_ZOO

AXES = ["representation=norms,stats", "top_k=0,2", "seed=0,1"]
SWEEP = ["--multirun", "experiment=sweep", *TINY_ZOO, "classifier.hidden=[8]", "classifier.max_epochs=3", *AXES]
SLURM = ["hydra/launcher=slurm_cpu", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=2"]
SLURM += ["hydra.launcher.array_parallelism=2", "hydra.launcher.timeout_min=20"]


def start(folder: Path, cache: str, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "lorabench", *SWEEP, f"output_dir={folder}", *words],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"LORABENCH_CACHE": str(folder.parent / cache)},
    )  # fmt: skip


def ended(sweep: subprocess.Popen[str], code: int) -> str:
    said, _ = sweep.communicate(timeout=600)
    assert sweep.returncode == code, f"exit code {sweep.returncode}\n{said}"
    assert "Traceback" not in said, said
    return said


def until(what: str, found: Callable[[], str | None], sweep: subprocess.Popen[str]) -> str:
    """What is found, once it is; the sweep must not have ended before."""
    for _ in range(3000):
        if answer := found():
            return answer
        assert sweep.poll() is None, f"the sweep has ended before {what}\n{sweep.communicate()[0]}"
        time.sleep(0.1)
    raise AssertionError(f"{what}: not within five minutes")


def running(folder: Path, other: str = "") -> str | None:
    """The folder of a job that has begun."""
    jobs = read_jobs(folder) if (folder / "sweep.json").exists() else []
    begun = [job.folder for job in jobs if read_status(folder / job.folder).status == "running"]
    return next((name for name in begun if name != other), None)


def slurm_id(folder: Path, job: str) -> str:
    """A job's, in SLURM: the sweep has one array, in the order of its jobs."""
    array = (folder / ".slurm-jobs").read_text().strip()
    return f"{array}_{job}"


def main(scratch: Path) -> None:
    scratch.mkdir()
    whole, cut = scratch / "whole", scratch / "cut"
    began = time.monotonic()
    ended(start(whole, "one"), 0)
    print(f"8 jobs in one process: {time.monotonic() - began:.0f} s")

    sweep = start(cut, "other", *SLURM)
    killed = until("a job runs", lambda: running(cut), sweep)
    subprocess.run(["scancel", "--signal=KILL", slurm_id(cut, killed)], check=True)
    requeued = until("another job runs", lambda: running(cut, killed), sweep)
    subprocess.run(["scontrol", "requeue", slurm_id(cut, requeued)], check=True)
    state = ["squeue", "--noheader", "--format=%r", f"--jobs={slurm_id(cut, requeued)}"]
    until(
        "the job waits again",
        lambda: "BeginTime" in subprocess.run(state, capture_output=True, text=True, check=False).stdout or None,
        sweep,
    )  # SLURM has it wait for two minutes
    subprocess.run(["scontrol", "update", f"JobId={slurm_id(cut, requeued)}", "StartTime=now"], check=True)
    said = ended(sweep, 1)
    found = {job["folder"]: job for job in json.loads((cut / "summary.json").read_text())["jobs"]}
    assert {name: job["status"] for name, job in found.items()} == {
        name: "killed" if name == killed else "done" for name in map(str, range(8))
    }, said
    first = said.index("1 job of 8 not done")
    assert first < said.index(found[killed]["name"], first) < said.index("glyphs, category"), said
    logs = (cut / ".submitit" / slurm_id(cut, requeued)).glob("*_log.*")
    assert any("Bypassing signal SIGTERM" in log.read_text() for log in logs), "the job was not taken back"
    print(f"killed {killed}, put back {requeued}: the others finish, the table has 7 jobs, exit code 1")

    said = ended(start(cut, "other", *SLURM), 0)
    assert said.count("done before") == 7, said
    assert (cut / "summary.csv").read_bytes() == (whole / "summary.csv").read_bytes()
    print("the same command again: 1 job is run, and the table is that of one process, byte for byte")

    said = ended(start(scratch / "refused", "other", *SLURM, "hydra.launcher.partition=nowhere"), 1)
    assert re.search("lorabench: slurm has not taken the jobs: .*[Ii]nvalid partition", said), said
    print(f"a partition that is not there: one message. All in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
