"""`lorabench web` in a process of its own."""

import contextlib
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

__all__ = ["Server"]


class Server:
    """The server, in a process of its own.

    Args:
        place: for its data.
        words: more of its command line.
        cwd: where it is started; None: here.
    """

    def __init__(self, place: Path, *words: str, cwd: Path | None = None) -> None:
        command = [sys.executable, "-m", "lorabench", "web", *words, "--port", "0", "--data", str(place)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=cwd)
        self.url = self._url()
        self.base = re.match(r"http://[^/]+", self.url)[0]  # type: ignore[index]

    def _url(self) -> str:
        stream, said, until = self.process.stderr, "", time.monotonic() + 120
        assert stream is not None
        while time.monotonic() < until and self.process.poll() is None:
            if select.select([stream], [], [], 1)[0]:
                said += (line := stream.readline())
                if found := re.search(r"http://\S+", line):
                    return found[0]
        raise AssertionError(f"no address: {said}")

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        self.kill()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()
