"""The processes of jobs: begun so that they outlive the server, and ended as whole groups."""

import contextlib
import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

import lorabench
from lorabench.web.job import LOG, OUT

__all__ = ["launch", "signal_group"]

_SECRET = "LORABENCH_WEB_"  # noqa: S105 - what the names of variables begin with that are the page's alone


def launch(place: Path, program: str, memory: int | None = None) -> subprocess.Popen[bytes]:
    """Begin the worker of the job in a folder; it waits for a byte on its standard input.

    Args:
        place: the job's folder.
        program: the package of its command.
        memory: bytes that each of its processes may take; None: as many as there are.

    Raises:
        OSError: the system has no room for it.
    """
    command = [sys.executable, "-P", "-m", "lorabench.web.worker", str(place), program]
    if memory is not None:
        command.append(str(memory))
    with (place / LOG).open("ab") as log:
        return subprocess.Popen(  # noqa: S603 - the words of a job are in its file, and no shell reads them
            command, cwd=place / OUT, env=_environment(os.environ), start_new_session=True, bufsize=0,
            stdin=subprocess.PIPE, stdout=log, stderr=log,
        )  # fmt: skip


def signal_group(leader: int | None, number: signal.Signals) -> None:
    """Signal a job's process and all that it began; nobody where it leads no group, or is gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if leader is not None and os.getpgid(leader) == leader:
            os.killpg(leader, number)


def _environment(known: Mapping[str, str]) -> dict[str, str]:
    """The server's, without secrets; this package is found from any folder."""
    found = {name: value for name, value in known.items() if not name.startswith(_SECRET)}
    parts = [Path(part).absolute() for part in known.get("PYTHONPATH", "").split(os.pathsep) if part]
    home = Path(lorabench.__file__).absolute().parents[1]
    if home != Path(sysconfig.get_path("purelib")):  # which would come before Python's own modules
        parts.insert(0, home)
    return found | ({"PYTHONPATH": os.pathsep.join(map(str, parts))} if parts else {})
