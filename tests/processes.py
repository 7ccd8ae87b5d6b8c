"""`python -m lorabench` as processes of their own, which need not import for seconds what all of them import.

Each is forked from one process that has imported the pipeline and done nothing else: it has its own working folder,
environment, streams and exit code, and takes signals as any. What a bare interpreter does is held by
tests/test_entry.py, and by `make run` in tests/test_readme.py, which start theirs as a user does.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
import weakref
from collections.abc import Sequence
from pathlib import Path

import hydra._internal.utils

__all__ = ["Started", "lorabench"]

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["lorabench.pipeline", "lorabench.application", "lorabench.sweeps.extras"])


class Started:
    """`python -m lorabench` at work; what `subprocess.Popen` has in text mode.

    Args:
        arguments: of the program.
        cwd: its working folder.
        module: what is run.
    """

    def __init__(self, *arguments: str, cwd: Path, module: str = "lorabench") -> None:
        # Names, and no open files: one that is collected while another test runs would warn there.
        self._said = tuple(_new_file() for _ in range(2))
        weakref.finalize(self, _remove, self._said)
        words = (module, *map(str, arguments))
        self._process = _FORKS.Process(target=_run, args=(words, str(cwd), dict(os.environ), self._said), daemon=False)
        self._process.start()

    @property
    def pid(self) -> int:
        """Its number."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, minus a signal's number where one has ended it; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """See `returncode`."""
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once it has ended."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("lorabench", timeout or 0, self.said()[0], self.said()[1])
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it wrote to stdout and to stderr, once it has ended."""
        self.wait(timeout)
        return self.said()

    def said(self) -> tuple[str, str]:
        """What it has written to stdout and to stderr."""
        out, err = (Path(place).read_text() for place in self._said)
        return out, err


def lorabench(*arguments: str, cwd: Path, code: int = 0, module: str = "lorabench") -> subprocess.CompletedProcess[str]:
    """Run `python -m lorabench`, and hold it to its exit code."""
    running = Started(*arguments, cwd=cwd, module=module)
    try:
        out, err = running.communicate(timeout=300)
    finally:
        running.kill()
    assert running.returncode == code, f"exit code {running.returncode}\n{out}\n{err}"
    return subprocess.CompletedProcess([module, *arguments], code, out, err)


def _new_file() -> str:
    descriptor, place = tempfile.mkstemp()
    os.close(descriptor)
    return place


def _remove(places: Sequence[str]) -> None:
    for place in places:
        Path(place).unlink(missing_ok=True)


def _run(words: Sequence[str], cwd: str, environment: dict[str, str], places: Sequence[str]) -> None:
    """Be `python -m` from here on."""
    for descriptor, place in enumerate(places, start=1):
        opened = os.open(place, os.O_WRONLY | os.O_APPEND)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    warnings.filterwarnings("error", category=SyntaxWarning)
    hydra._internal.utils.is_under_debugger = lambda: False  # it takes a trace for one, and so `make test` would be
    module, *arguments = words
    sys.argv = [module, *arguments]
    sys.path.insert(0, cwd)
    code: object = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code
    except BaseException:  # noqa: BLE001 (as the interpreter does)
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()  # which a forked process of `multiprocessing` leaves out
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0)
