"""Where a server keeps what is brought to it, and how much that may be. Nothing here needs the extra `web`."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["LOOPBACK", "Settings"]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Hosts that nobody but this machine reaches."""


@dataclass(frozen=True)
class Settings:
    """How a server is run.

    Attributes:
        data: its own folder: uploads, jobs and their results.
        folder: adapters that everybody who is let in sees; it is only read. None: uploads alone.
        runs: folders of runs and of sweeps, or folders above them.
        models: folders of `lorabench export`, or folders above them.
        host: it listens at.
        port: it listens at.
        hosts: names by which browsers may call it.
        max_upload: bytes of one upload.
        quota: bytes of all that one user has brought or made.
        keep_days: what was brought or made is taken away after so many days.
        jobs: that run at one time.
        job_memory: bytes that each process of a job may take; None: as many as there are.
        https: whether a proxy before it speaks HTTPS with browsers.
    """

    data: Path
    folder: Path | None = None
    runs: tuple[Path, ...] = ()
    models: tuple[Path, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8765
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "[::1]")
    max_upload: int = 2**30
    quota: int = 8 * 2**30
    keep_days: float = 14.0
    jobs: int = 1
    job_memory: int | None = None
    https: bool = False
