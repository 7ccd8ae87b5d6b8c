"""submitit's engines, each job waited for: one that is lost takes neither the others nor the sweep with it.

Hydra's launcher stops waiting at the first lost job, starts all jobs of a machine at once, and asks `sacct` whether a
job is lost: a SLURM without accounting has no answer, and it waits for ever. Here the jobs are Hydra's own, sent by the
same options; how they are waited for is not.
"""

import os
import time
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import submitit
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher, SlurmLauncher
from omegaconf import DictConfig
from submitit.core.utils import FailedSubmissionError, UncompletedJobError

from lorabench.errors import LorabenchError
from lorabench.jobs import RESULTS, read_status
from lorabench.sweeps.devices import visible_devices
from lorabench.sweeps.slurm import ASK_EVERY, forget, in_queue, need_slurm, remember

__all__ = ["Local", "Patient", "Slurm", "patient"]

_LOOK_EVERY = 0.2  # seconds between looks at the disk and at processes
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_CPUS_A_JOB = 4  # of one machine without devices
Waiting = submitit.Job[Any]
Arguments = tuple[Any, ...]


class Patient(BaseSubmititLauncher):  # type: ignore[misc]  # no annotations there
    """Options and jobs are those of Hydra's launcher; what jobs return is left to the disk."""

    def __call__(self, overrides: Sequence[str], *arguments: Any) -> JobReturn:
        """Run a job, in its process; one that is started again after it has ended is left as it is.

        SLURM does so with a job that it takes back in the moment in which it ends: the sweep has counted it by then,
        and would find it at work, or cut off.
        """
        if _is_done(overrides):
            return JobReturn()
        done: JobReturn = super().__call__(overrides, *arguments)
        return done

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Send the jobs, and return when each has ended, however it has.

        Raises:
            LorabenchError: the engine takes no jobs.
        """
        state = Singleton.get_state()
        jobs = [
            (list(overrides), "hydra.sweep.dir", number, f"job_id_for_{number}", state)
            for number, overrides in enumerate(job_overrides, start=initial_job_idx)
        ]
        try:
            self._send_and_wait(self._engine(), jobs)
        except (UncompletedJobError, FailedSubmissionError, ValueError) as error:  # sbatch refuses; an option is wrong
            lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no reason given"]
            raise LorabenchError(
                f"{self._EXECUTOR} has not taken the jobs: {lines[-1]}. What was done before is kept: mend "
                "hydra.launcher (docs/sweeps.md) and give the same command again"
            ) from error
        return []

    def _engine(self) -> submitit.AutoExecutor:
        options = dict(self.params)
        name, folder = self._EXECUTOR, options.pop("submitit_folder")
        timeouts = options.pop("max_num_timeout", None)
        first = {} if timeouts is None else {f"{name}_max_num_timeout": timeouts}
        engine = submitit.AutoExecutor(folder, cluster=name, **first)
        of_all = {field.name for field in fields(BaseQueueConf)}
        engine.update_parameters(**{key if key in of_all else f"{name}_{key}": one for key, one in options.items()})
        return engine

    @abstractmethod
    def _send_and_wait(self, engine: submitit.AutoExecutor, jobs: Sequence[Arguments]) -> None:
        """Hand jobs to the engine, and return when each has ended."""


class Local(Patient):
    """Processes of this machine, `hydra.sweeper.max_batch_size` at once.

    By default as many as there are devices; without one, as many as the CPUs are enough for.
    """

    _EXECUTOR = "local"
    _devices: str | None = None

    def __call__(self, overrides: Sequence[str], *arguments: Any) -> JobReturn:
        """Run a job, in its process: submitit has hidden all devices from it."""
        os.environ.pop(_VISIBLE, None)
        if self._devices is not None:
            os.environ[_VISIBLE] = self._devices
        return super().__call__(overrides, *arguments)

    def _send_and_wait(self, engine: submitit.AutoExecutor, jobs: Sequence[Arguments]) -> None:
        self._devices = os.environ.get(_VISIBLE)
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        a_job = self.params["cpus_per_task"] or min(cpus, _CPUS_A_JOB)
        at_once = self.config.hydra.sweeper.max_batch_size or len(visible_devices()) or max(1, cpus // a_job)
        # Torch reads it as a job's process starts; whoever has set it knows why.
        os.environ.setdefault("OMP_NUM_THREADS", str(self.params["cpus_per_task"] or max(1, cpus // at_once)))
        left, at_work = list(jobs), list[Waiting]()
        try:
            while left or at_work:
                at_work = [job for job in at_work if not job.done()]
                while left and len(at_work) < at_once:
                    at_work.append(engine.submit(self, *left.pop(0)))
                time.sleep(_LOOK_EVERY)
        finally:  # an interruption: nothing goes on in the background
            for job in at_work:
                job.cancel()
            for job in at_work:
                job.wait()


class Slurm(Patient):
    """An array of SLURM's, at most `hydra.launcher.array_parallelism` jobs at once."""

    _EXECUTOR = "slurm"

    def check(self) -> None:
        """Refuse before anything is queued.

        Raises:
            LorabenchError: there is no SLURM here.
        """
        need_slurm()

    def _send_and_wait(self, engine: submitit.AutoExecutor, jobs: Sequence[Arguments]) -> None:
        folder = Path(self.config.hydra.sweep.dir)
        remember(folder, [])  # a folder that takes no more is told before anything is queued
        at_work = engine.map_array(self, *zip(*jobs, strict=True))
        remember(folder, [job.job_id for job in at_work])
        asked, missed = time.monotonic(), set[str]()
        while at_work:
            time.sleep(_LOOK_EVERY)
            at_work = [job for job in at_work if not _has_ended(job)]
            if time.monotonic() - asked < ASK_EVERY:
                continue
            queue, asked = in_queue(), time.monotonic()
            if queue is not None:  # twice missed: what a job writes last may reach this machine a little later
                at_work = [job for job in at_work if job.job_id in queue or job.job_id not in missed]
                missed = {job.job_id for job in at_work} - queue
        forget(folder)


def _is_done(overrides: Sequence[str]) -> bool:
    """Whether a job of this sweep is: what an earlier one had found in its folder went before this one was sent."""
    found = {one.key_or_group: one.value() for one in OverridesParser.create().parse_overrides(list(overrides))}
    folder = Path(str(found["hydra.sweep.dir"])) / str(found["hydra.sweep.subdir"])
    return read_status(folder).status == "done" and (folder / RESULTS).exists()


def _has_ended(job: Waiting) -> bool:
    folder = job.paths.folder
    with suppress(OSError):  # has a network's file system look again
        folder.chmod(folder.stat().st_mode)
    return bool(job.paths.result_pickle.exists())


def patient(launcher: BaseSubmititLauncher, context: HydraContext, task: TaskFunction, config: DictConfig) -> Patient:
    """The launcher of this module in the place of Hydra's."""
    new: Patient = (Slurm if isinstance(launcher, SlurmLauncher) else Local)(**launcher.params)
    new.setup(hydra_context=context, task_function=task, config=config)
    return new
