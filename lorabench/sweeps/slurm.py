"""What SLURM says of its queue, and which of its jobs are a sweep's."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from lorabench.errors import LorabenchError
from lorabench.storage import append_line

__all__ = ["ASK_EVERY", "forget", "in_queue", "need_slurm", "remember", "wait_for_earlier"]

ASK_EVERY = 10.0
"""Seconds between questions to SLURM, whose controller serves everybody."""
_COMMANDS = ("sbatch", "srun", "squeue")
_IDS = ".slurm-jobs"


def need_slurm() -> None:
    """Refuse where there is no SLURM.

    Raises:
        LorabenchError: its commands are not here.
    """
    missing = [name for name in _COMMANDS if shutil.which(name) is None]
    if missing:
        raise LorabenchError(
            f"no SLURM here ({', '.join(missing)} not found): nothing was queued, and what was done before is kept. "
            "Give the command on a login node of the cluster, or hydra/launcher=submitit_local for this machine"
        )


def in_queue() -> set[str] | None:
    """This user's jobs that wait or run ("12", of arrays "12_0", "12_1", ...); None where SLURM does not answer."""
    try:
        said = subprocess.run(
            ["squeue", "--me", "--noheader", "--array", "--format=%i"],  # noqa: S607 - as SLURM is installed here
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return set(said.stdout.split())


def remember(folder: Path, ids: Iterable[str]) -> None:
    """Write into a sweep's folder which jobs of SLURM's are its."""
    (folder / _IDS).touch()
    for one in dict.fromkeys(map(_array, ids)):
        append_line(folder / _IDS, one)


def forget(folder: Path) -> None:
    """None of a sweep's jobs is in the queue."""
    (folder / _IDS).unlink(missing_ok=True)


def wait_for_earlier(folder: Path) -> None:
    """Wait until nothing is in SLURM's queue that an earlier command has put there for this sweep.

    That command may have been killed or left; its jobs go on, and two of them in one folder would do all twice.

    Args:
        folder: the sweep's.

    Raises:
        LorabenchError: SLURM cannot be asked.
    """
    try:
        ids = set((folder / _IDS).read_text().split())
    except OSError:
        return
    said = False
    while there := _there(folder, ids):
        if not said:
            sys.stdout.write(
                f"{len(there)} of an earlier command's jobs are in SLURM's queue ({', '.join(there[:8])}): waiting for "
                f"them; `scancel {' '.join(dict.fromkeys(map(_array, there)))}` ends them\n"
            )
            sys.stdout.flush()
        said = True
        time.sleep(ASK_EVERY)
    forget(folder)


def _there(folder: Path, ids: set[str]) -> list[str]:
    queue = in_queue()
    if queue is None:
        raise LorabenchError(
            f"an earlier command has put jobs into SLURM's queue ({', '.join(sorted(ids))}), and squeue does not say "
            f"whether they are there: ask again where it does, or remove {folder / _IDS} if they are not"
        )
    return sorted(job for job in queue if _array(job) in ids)


def _array(job: str) -> str:
    return job.partition("_")[0]
