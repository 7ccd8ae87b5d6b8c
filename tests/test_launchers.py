"""Launchers lose jobs; a sweep does not lose what they had found, and says what is left."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from lorabench.__main__ import main
from lorabench.errors import LorabenchError
from lorabench.jobs import Job, Status, abandon, at_work, queue, read_status, status_of
from lorabench.sweeps.again import quoted
from lorabench.sweeps.devices import take_device, visible_devices
from lorabench.sweeps.launchers import Local, Slurm
from lorabench.sweeps.slurm import in_queue, remember, wait_for_earlier
from lorabench.sweeps.watch import watched
from tests.conftest import TINY_ZOO
from tests.processes import Started, lorabench
from tests.test_sweeps import SMALL, statuses

THREE = [*SMALL, "representation=norms", "top_k=0", "seed=0,1,2"]


def started(folder: Path, *words: str) -> Started:
    return Started(*THREE, f"output_dir={folder}", *words, cwd=folder.parent)


def pid_of(folder: Path, sweep: Started) -> int:
    """The process of a job, once it is at work."""
    for _ in range(6000):
        if at_work(folder):
            pid = read_status(folder).pid
            assert pid is not None
            return pid
        assert sweep.poll() is None, sweep.communicate()[0]
        time.sleep(0.02)
    raise AssertionError(f"{folder} is never at work")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The table of three jobs, one after another in one process."""
    folder = tmp_path_factory.mktemp("launchers")
    lorabench(*THREE, "output_dir=whole", cwd=folder)
    return (folder / "whole" / "summary.csv").read_bytes()


@pytest.mark.slow
def test_submitit_finishes_the_others_and_the_same_command_finishes_the_lost_one(whole, tmp_path):
    out, launcher = tmp_path / "out", ["hydra/launcher=submitit_local", "hydra.sweeper.max_batch_size=2"]
    sweep = started(out, *launcher)
    os.kill(pid_of(out / "0", sweep), signal.SIGKILL)
    said = "".join(sweep.communicate(timeout=300))
    assert sweep.returncode == 1, said
    assert "Traceback" not in said
    assert [status for *_, status in statuses(out)] == ["killed", "done", "done"]
    assert re.search(r"1 job of 3 not done.* seed=0 +killed .*glyphs, category", said, re.DOTALL), said

    sweep = started(out, *launcher)  # its own end does not end its jobs, which are not run twice
    pid = pid_of(out / "0", sweep)
    os.kill(pid, signal.SIGSTOP)
    sweep.kill()
    sweep.wait()
    again = started(out, *launcher)
    until = time.monotonic() + 120
    while "an earlier command's jobs are at work (0): waiting for them\n" not in "".join(again.said()):
        assert time.monotonic() < until, again.said()
        time.sleep(0.05)
    os.kill(pid, signal.SIGCONT)
    said = "".join(again.communicate(timeout=300))
    assert (again.returncode, said.count("done before")) == (0, 3), said
    assert (out / "summary.csv").read_bytes() == whole


@pytest.mark.slow
def test_joblib_runs_none_of_the_rest_and_the_same_command_does(whole, tmp_path):
    out, launcher = tmp_path / "out", ["hydra/launcher=joblib", "hydra.launcher.n_jobs=1"]
    sweep = started(out, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.launcher.pre_dispatch=2")
    os.kill(pid_of(out / "0", sweep), signal.SIGKILL)
    said = "".join(sweep.communicate(timeout=300))
    assert sweep.returncode == 1, said
    assert "Traceback" not in said
    assert "lorabench: a worker process was killed, and joblib runs none of the rest" in said
    found = [status for *_, status in statuses(out)]
    assert (found[0], found[2]) == ("killed", "queued"), said
    lorabench(*THREE, f"output_dir={out}", *launcher, cwd=tmp_path)
    assert (out / "summary.csv").read_bytes() == whole


def test_without_slurm_one_message_says_so_before_anything_is_queued(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    done = lorabench(*THREE, "output_dir=out", "hydra/launcher=slurm_cpu", cwd=tmp_path, code=1)
    assert done.stderr.startswith("lorabench: no SLURM here (sbatch, srun, squeue not found): nothing was queued")
    assert "hydra/launcher=submitit_local" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list((tmp_path / "out").glob("*/status.json"))


def command(folder: Path, name: str, *lines: str) -> None:
    """A program in a folder of the PATH."""
    (folder / name).write_text("\n".join(["#!/bin/sh", *lines, ""]))
    (folder / name).chmod(0o755)


@pytest.fixture
def faked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A SLURM that takes no job, and keeps what it was sent."""
    folder = tmp_path / "bin"
    folder.mkdir()
    command(folder, "sbatch", f'cp "$1" "{tmp_path}/sent.sh"', "echo 'sbatch: error: invalid partition' >&2", "exit 1")
    command(folder, "srun")
    command(folder, "squeue")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_sbatch_gets_the_presets_and_what_it_refuses_is_one_message(faked, tmp_path):
    words = ["hydra/launcher=slurm_gpu", "hydra.launcher.partition=gpu", "hydra.launcher.array_parallelism=2"]
    done = lorabench(*THREE, "output_dir=out", *words, cwd=tmp_path, code=1)
    sent = (tmp_path / "sent.sh").read_text().splitlines()
    options = [line.removeprefix("#SBATCH --") for line in sent if line.startswith("#SBATCH")]
    for option in ["array=0-2%2", "cpus-per-task=4", "gpus-per-node=1", "mem=32GB", "partition=gpu", "requeue",
                   "signal=USR2@120", "time=240", "job-name=lorabench"]:  # fmt: skip
        assert option in options
    assert sent.index("export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK") < len(sent) - 3
    assert "lorabench: slurm has not taken the jobs: sbatch: error: invalid partition" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert [status for *_, status in statuses(tmp_path / "out")] == ["queued"] * 3
    assert done.stdout.count("its launcher has ended, and it has not begun") == 3


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("slurm_cpu", {"gpus_per_node": None, "cpus_per_task": 4, "max_num_timeout": 5, "array_parallelism": 32}),
        ("slurm_gpu", {"gpus_per_node": 1, "cpus_per_task": 4, "max_num_timeout": 5, "array_parallelism": 8}),
    ],
)
def test_presets_are_submitit_slurms_and_every_value_can_be_overridden(name, values, tmp_path):
    words = ["--cfg", "hydra", "-p", "hydra.launcher", f"hydra/launcher={name}", "hydra.launcher.timeout_min=7"]
    found = yaml.safe_load(lorabench(*words, cwd=tmp_path).stdout)
    assert found["_target_"].endswith(".SlurmLauncher")
    assert {key: found[key] for key in values} == values
    assert (found["timeout_min"], found["additional_parameters"]) == (7, {"requeue": True})


@pytest.mark.parametrize(
    ("launcher", "plugin", "extra"),
    [("slurm_cpu", "submitit", "cluster"), ("submitit_local", "submitit", "cluster"), ("joblib", "joblib", "joblib")],
)
def test_a_launcher_that_is_not_installed_names_its_extra(launcher, plugin, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, f"hydra_plugins.hydra_{plugin}_launcher", None)
    with pytest.raises(SystemExit, match=rf"pip install 'lorabench\[{extra}\]'"):
        main(["--multirun", f"hydra/launcher={launcher}"])


def test_jobs_of_one_machine_take_a_device_each_and_share_when_all_are_taken(tmp_path, monkeypatch):
    taken = []
    for number in range(4):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-a,7")
        taken.append(take_device(number, tmp_path))
        assert visible_devices() == [taken[-1]]
        assert take_device(number + 1, tmp_path) is None, "a process keeps what it has"
    assert taken == ["3", "GPU-a", "7", "3"]


@pytest.mark.parametrize("visible", ["", "0"])
def test_one_device_or_none_is_left_as_it_is(visible, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert take_device(0, tmp_path) is None
    assert os.environ["CUDA_VISIBLE_DEVICES"] == visible
    assert not list(tmp_path.iterdir())


def test_a_device_is_free_again_when_its_job_is_killed(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    code = f"from pathlib import Path; from lorabench.sweeps.devices import take_device as t; t(0, Path('{tmp_path}'))"
    with subprocess.Popen([sys.executable, "-c", f"{code}; print('taken', flush=True); input()"],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:  # fmt: skip
        assert other.stdout is not None
        assert other.stdout.readline() == "taken\n"
        assert take_device(0, tmp_path) == "1"
        other.kill()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert take_device(1, tmp_path) == "0"


def test_a_job_that_has_not_ended_when_its_launcher_has_is_killed_or_not_begun(tmp_path):
    with status_of(tmp_path):
        assert read_status(tmp_path).status == "running"
        assert not at_work(tmp_path), "that is said of other processes"
        abandon(tmp_path)
        assert read_status(tmp_path).status == "killed"
    with pytest.raises(SystemExit), status_of(tmp_path):  # SLURM takes the job back
        sys.exit(-1)
    abandon(tmp_path)
    assert read_status(tmp_path).status == "interrupted"
    abandon(tmp_path / "never")
    assert read_status(tmp_path / "never") == Status("queued", error="its launcher has ended, and it has not begun")


def test_a_status_older_than_the_process_of_its_number_is_of_one_that_is_gone(tmp_path):
    with status_of(tmp_path):
        assert read_status(tmp_path).status == "running"
        os.utime(tmp_path / "status.json", (0, 0))
        assert read_status(tmp_path).status == "killed"


def test_a_job_that_slurm_takes_up_again_is_told_again(tmp_path, capsys):
    def said(text: str) -> Callable[[], bool]:
        heard = []

        def look() -> bool:
            heard.append(capsys.readouterr().out)
            return text in "".join(heard)

        return look

    job = Job("0", "seed=0", [], "")
    with watched(tmp_path, [job]):
        with pytest.raises(SystemExit), status_of(tmp_path / "0"):
            sys.exit(-1)
        wait(said("[1/1] seed=0: interrupted"))
        with status_of(tmp_path / "0"):
            pass
        wait(said("[1/1] seed=0: done"))


def test_a_job_that_slurm_starts_again_after_its_end_is_left_as_it_is(tmp_path):
    folder = tmp_path / r"it's a\b\'c, [d]" / "0"
    folder.mkdir(parents=True)
    words = ["representation=norms", f"hydra.sweep.dir={quoted(str(folder.parent))}", "hydra.sweep.subdir=0"]
    arguments = (words, "hydra.sweep.dir", 0, "id", dict[type, object]())
    launchers = [Slurm(), Local()]
    with status_of(folder):
        pass
    for launcher in launchers:
        with pytest.raises(AssertionError):  # not set up: it would run
            launcher(*arguments)
    (folder / "results.json").touch()
    before = (folder / "status.json").read_bytes()
    for launcher in launchers:
        launcher(*arguments)
    assert (folder / "status.json").read_bytes() == before
    queue(folder.parent, Job("0", "seed=0", [], ""))
    with pytest.raises(AssertionError):
        launchers[0](*arguments)


def wait(there: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not there():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_what_an_earlier_command_has_in_the_queue_is_waited_for(faked, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lorabench.sweeps.slurm.ASK_EVERY", 0.01)
    command(faked, "squeue", f"[ -e '{tmp_path}/ended' ] || printf '12_0\\n12_3\\n99\\n'", f"touch '{tmp_path}/ended'")
    wait_for_earlier(tmp_path)
    assert not (tmp_path / "ended").exists(), "nothing was sent, and nothing asked"
    remember(tmp_path, ["12_0", "12_1"])
    wait_for_earlier(tmp_path)
    assert "2 of an earlier command's jobs are in SLURM's queue (12_0, 12_3)" in capsys.readouterr().out
    wait_for_earlier(tmp_path)
    assert capsys.readouterr().out == ""
    assert in_queue() == set()
    command(faked, "squeue", "exit 1")
    assert in_queue() is None
    remember(tmp_path, ["12_0"])
    with pytest.raises(LorabenchError, match=r"\(12\), and squeue does not say whether they are there"):
        wait_for_earlier(tmp_path)


@pytest.mark.slow
def test_what_is_wrong_with_a_job_of_another_process_is_readable(tmp_path):
    words = ["--multirun", *TINY_ZOO, "seed=-1", "output_dir=out", "hydra/launcher=submitit_local"]
    done = lorabench(*words, cwd=tmp_path, code=1)
    assert "seed=-1: a whole number from 0" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
