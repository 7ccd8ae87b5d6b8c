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
from contextlib import suppress
from pathlib import Path

from lorabench.jobs import read_jobs, read_status
from tests.conftest import TINY_ZOO

AXES = ["representation=norms,stats", "top_k=0,2", "seed=0,1"]
LONG = ["classifier.hidden=[8]", "classifier.max_epochs=100", "classifier.patience=100"]  # to be struck in the middle
SWEEP = ["--multirun", "experiment=sweep", *TINY_ZOO, *LONG, *AXES]
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


def running(folder: Path, *others: str) -> str | None:
    """The folder of a job that has begun, and is none of some others."""
    jobs = read_jobs(folder) if (folder / "sweep.json").exists() else []
    begun = [job.folder for job in jobs if read_status(folder / job.folder).status == "running"]
    return next((name for name in begun if name not in others), None)


def slurm_id(folder: Path, job: str) -> str:
    """A job's, in SLURM: the sweep has one array, in the order of its jobs."""
    array = (folder / ".slurm-jobs").read_text().strip()
    return f"{array}_{job}"


def since(began: float) -> str:
    return f"({time.monotonic() - began:.0f} s)"


def strike(folder: Path, sweep: subprocess.Popen[str], words: list[str], *others: str) -> str:
    """Give a running job to a command of SLURM's; where it has just ended, the next one."""
    tried = list(others)
    while True:
        job = until(f"a job runs for {words[0]}", lambda: running(folder, *tried), sweep)
        with suppress(subprocess.TimeoutExpired):  # it asks again and again of a job that has obeyed by then
            subprocess.run([*words, slurm_id(folder, job)], check=False, timeout=4)
        if read_status(folder / job).status != "done":
            return job
        tried.append(job)


def take_up(folder: Path, job: str, sweep: subprocess.Popen[str]) -> None:
    """Have SLURM start a job again, once it is back in the queue: by itself it has it wait for two minutes."""
    state = ["squeue", "--noheader", "--format=%T", f"--jobs={slurm_id(folder, job)}"]

    def waits() -> str | None:
        return "yes" if "PENDING" in subprocess.run(state, capture_output=True, text=True, check=False).stdout else None

    until(f"job {job} waits again", waits, sweep)
    subprocess.run(["scontrol", "update", f"JobId={slurm_id(folder, job)}", "StartTime=now"], check=True)


def put_back_though_done(folder: Path, sweep: subprocess.Popen[str]) -> str:
    """Have SLURM start a job once more that has ended: as one does that it takes back in that moment."""

    def put_back() -> str | None:
        jobs = [job.folder for job in read_jobs(folder) if read_status(folder / job.folder).status == "done"]
        if not jobs:
            return None
        refused = subprocess.run(["scontrol", "requeue", slurm_id(folder, jobs[0])], check=False).returncode
        return None if refused else jobs[0]

    job = until("a job that is done is put back", put_back, sweep)
    take_up(folder, job, sweep)
    until("it ends again", lambda: "yes" if log_of(folder, job).count("completed successfully") == 2 else None, sweep)
    return job


def log_of(folder: Path, job: str) -> str:
    return "\n".join(log.read_text() for log in folder.glob(f".submitit/*_{job}/*_log.*"))


def main(scratch: Path) -> None:
    scratch.mkdir()
    whole, cut = scratch / "whole", scratch / "cut"
    began = time.monotonic()
    ended(start(whole, "one"), 0)
    print(f"8 jobs in one process. {since(began)}")

    with start(cut, "other", *SLURM) as sweep:
        try:
            killed = strike(cut, sweep, ["scancel", "--signal=KILL"])
            told = strike(cut, sweep, ["scancel", "--signal=USR2"], killed)  # as before its time is up
            take_up(cut, told, sweep)
            requeued = strike(cut, sweep, ["scontrol", "requeue"], killed, told)
            take_up(cut, requeued, sweep)
            done = put_back_though_done(cut, sweep)
            said = ended(sweep, 1)
        finally:
            sweep.kill()
    found = {job["folder"]: job for job in json.loads((cut / "summary.json").read_text())["jobs"]}
    assert {name: job["status"] for name, job in found.items()} == {
        name: "killed" if name == killed else "done" for name in map(str, range(8))
    }, said
    first = said.index("1 job of 8 not done")
    assert first < said.index(found[killed]["name"], first) < said.index("glyphs, category"), said
    assert "Bypassing signal SIGTERM" in log_of(cut, requeued)
    assert "Calling checkpoint method" in log_of(cut, told)
    print(f"killed {killed}, {told} has put itself back, put back {requeued}, and {done} after its end:")
    print(f"7 done, exit code 1. {since(began)}")

    said = ended(start(cut, "other", *SLURM), 0)
    assert said.count("done before") == 7, said
    assert (cut / "summary.csv").read_bytes() == (whole / "summary.csv").read_bytes()
    print(f"the same command again: 1 job is run, and the table is that of one process, byte for byte. {since(began)}")

    said = ended(start(scratch / "refused", "other", *SLURM, "hydra.launcher.partition=nowhere"), 1)
    assert re.search("lorabench: slurm has not taken the jobs: .*[Ii]nvalid partition", said), said
    print(f"a partition that is not there: one message. {since(began)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
