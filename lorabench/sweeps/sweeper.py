"""Hydra's `--multirun` over all combinations of the axes: it never computes twice, and trusts nothing but the disk."""

import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from lorabench.errors import LorabenchError, explain_disk_errors
from lorabench.jobs import LOCK, PAGE, STATUS, Job, abandon, at_work, output_folder, queue, write_jobs
from lorabench.storage import locked
from lorabench.sweeps.again import quoted
from lorabench.sweeps.slurm import wait_for_earlier

__all__ = ["ProductSweeper"]

_REMEDY = "Give another output_dir."


class ProductSweeper(Sweeper):
    """Every combination of the axes is a job, in the order that Hydra's own sweeper gives them.

    A job that is done is not run again, unless `rerun=true`; every other one goes on from its last finished member.
    What came of the jobs is read from the disk when the launcher has ended, however it ended; jobs of an earlier sweep
    into the same folder count only where they are this one's too.

    Args:
        params: axes that the configuration brings, name -> Hydra's sweep syntax; the command line has the last word.
        max_batch_size: jobs at once of `hydra/launcher=submitit_local`; other launchers have options of their own.
    """

    def __init__(self, params: dict[str, Any] | None = None, max_batch_size: int | None = None) -> None:
        super().__init__()
        del max_batch_size
        self._params = dict(params or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """See Hydra."""
        self.hydra_context, self.config = hydra_context, config
        self._loader, self._whole = hydra_context.config_loader, config
        launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        if type(launcher).__module__.startswith("hydra_plugins.hydra_submitit_launcher."):
            from lorabench.sweeps.launchers import patient  # an extra that may not be installed

            launcher = patient(launcher, hydra_context, task_function, config)
        self._launcher = launcher

    def sweep(self, arguments: list[str]) -> Any:
        """Run what is left to run; then the table, and exit code 1 if a job is not done."""
        try:
            self._sweep(arguments)
        except LorabenchError as error:
            sys.exit(f"lorabench: {error}")
        except KeyboardInterrupt:
            sys.exit("lorabench: interrupted. What is finished (jobs, members) is kept: give the same command again.")

    def _sweep(self, arguments: list[str]) -> None:
        from lorabench.sweeps.plan import combinations, plan, plan_text  # torch is not for `--help`

        folder = output_folder(self._whole.output_dir) or Path(self._whole.hydra.sweep.dir)
        jobs = combinations([f"{name}={value}" for name, value in self._params.items()] + arguments, self._loader)
        if self._whole.dry_run:
            sys.stdout.write(plan_text(plan(folder, jobs, self._whole, self._loader)) + "\n")
            return
        busy = f"another sweep is at work in {folder}: wait for it, or give another output_dir"
        with locked(folder / LOCK, _REMEDY, busy):
            _check(self._launcher)
            _wait_for_earlier(folder)
            planned = plan(folder, jobs, self._whole, self._loader)
            left = [one.job for one in planned if not one.done]
            with explain_disk_errors(folder, _REMEDY):
                # Of other jobs, or of these before they are run again.
                for old in (*folder.glob("summary.*"), *folder.glob(PAGE)):
                    old.unlink()
                write_jobs(folder, [one.job for one in planned])
                OmegaConf.save(self._whole, folder / "multirun.yaml")
                for job in left:
                    queue(folder, job)
            self._run(folder, [one.job for one in planned], left)

    def _run(self, folder: Path, jobs: Sequence[Job], left: Sequence[Job]) -> None:
        from lorabench.report.folders import entries
        from lorabench.report.page import write_page
        from lorabench.report.sweeps import write_summary
        from lorabench.sweeps.watch import watched

        try:
            with watched(folder, jobs):
                if left:
                    self._launch(folder, left)
        finally:
            with explain_disk_errors(folder, _REMEDY):
                runs = entries([folder])
                done = write_summary(folder, runs)
                write_page(folder, runs)
            sys.stdout.write(f"Written to {folder}\n")
            sys.stdout.flush()
        if not done:
            sys.exit(1)

    def _launch(self, folder: Path, left: Sequence[Job]) -> None:
        """Have jobs run; afterwards none says that it still does."""
        # Launchers number the jobs of a call one after another; these write where the plan says.
        overrides = [
            [*job.overrides, f"hydra.sweep.dir={quoted(str(folder))}", f"hydra.sweep.subdir={job.folder}"]
            for job in left
        ]
        try:
            self._launcher.launch(overrides, initial_job_idx=0)
        except BrokenExecutor as error:  # joblib's
            raise LorabenchError(
                "a worker process was killed, and joblib runs none of the rest: give the same command again, or take "
                "hydra/launcher=submitit_local, which goes on"
            ) from error
        finally:
            if not isinstance(sys.exception(), KeyboardInterrupt):  # what SLURM has goes on
                for job in left:
                    abandon(folder / job.folder)


def _check(launcher: Launcher) -> None:
    """Have a launcher that can refuse do so before anything is queued."""
    check: Callable[[], None] = getattr(launcher, "check", lambda: None)
    check()


def _wait_for_earlier(folder: Path) -> None:
    """Wait for jobs that go on though the command that started them does not: two in one folder would do all twice."""
    wait_for_earlier(folder)
    said = False
    while busy := [path.parent.name for path in folder.glob(f"*/{STATUS}") if at_work(path.parent)]:
        if not said:
            sys.stdout.write(f"an earlier command's jobs are at work ({', '.join(busy)}): waiting for them\n")
            sys.stdout.flush()
        said = True
        time.sleep(1)
