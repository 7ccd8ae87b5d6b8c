"""How time and memory grow with the number of adapters in the hub's schema: python -m tests.bench.bench_scale.

Each size is a run of its own, `python -m lorabench representation=spectral` with two members of ten epochs, on a data
set that is not in the cache, and another of `flat`, a linear one of two epochs, whose features are larger than the
memory that it is allowed and are read from a file. What the disk gives is measured by plain reads of the same file
before each run. Needs 20 GB of disk for the largest size; prints Markdown.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.machine import describe
from tests.hub_schema import write_hub

SIZES = (1_000, 5_000, 20_000)
MEMBERS = ["num_runs=2", "resume=false"]
RUNS = {
    "spectral": ["representation=spectral", "classifier.max_epochs=10"],
    "flat": ["representation=flat", "classifier=linear", "classifier.max_epochs=2", "trainer.memory_gb=0.5"],
}
"""What is run at every size."""
_READ = 8 * 2**20


@dataclass(frozen=True)
class Grown:
    """What one run took.

    Attributes:
        name: of the representation.
        adapters: how many.
        size: GB of the data set's file.
        disk: GB a second of plain reads of it.
        zoo, features, training: seconds.
        own: GB that were the process's own at most, what is mapped of files not counted.
        streamed: whether features were read from a file.
    """

    name: str
    adapters: int
    size: float
    disk: float
    zoo: float
    features: float
    training: float
    own: float
    streamed: bool

    def as_row(self) -> str:
        """A row of the table."""
        rate = self.size / (self.zoo + self.features)
        return (
            f"| {self.name}{', from a file' if self.streamed else ''} | {self.adapters:,} | {self.size:.2f} "
            f"| {self.zoo:.1f} | {self.features:.1f} | {self.training:.1f} | {self.own:.2f} "
            f"| {rate:.2f} of {self.disk:.2f} ({rate / self.disk:.2f}) |"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bench_scale", description=__doc__)
    parser.add_argument("--adapters", type=int, nargs="+", default=SIZES, metavar="N", help="sizes (1000 5000 20000)")
    parser.add_argument("--folder", type=Path, help="where the data sets are written; a temporary folder by default")
    asked = parser.parse_args(arguments)
    print(describe())
    print(f"threads: {os.environ.get('OMP_NUM_THREADS', 'as torch has it')}; load: {os.getloadavg()[0]:.1f}\n")
    print("| run | adapters | GB | opening s | features s | training s | own GB | GB/s of the disk's |")
    print("|---|---|---|---|---|---|---|---|")
    for adapters in asked.adapters:
        with tempfile.TemporaryDirectory(dir=asked.folder) as scratch:
            path = write_hub(Path(scratch) / "set", adapters, batch=min(1000, adapters))
            for name in RUNS:
                print(grown(name, adapters, path, Path(scratch) / name).as_row(), flush=True)


def grown(name: str, adapters: int, path: Path, folder: Path) -> Grown:
    """One run, from a cold cache."""
    (file,) = path.glob("*.arrow")
    disk = _plain_rate(file)
    _forget(file)
    command = [sys.executable, "-m", "lorabench", "dataset=hub", f"dataset.path={path}", *RUNS[name], *MEMBERS]
    command += [f"output_dir={folder}", f"cache_dir={folder / 'cache'}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    peak = [0]
    watching = threading.Thread(target=_watch, args=(process, peak))
    watching.start()
    _, errors = process.communicate()
    watching.join()
    if process.returncode:
        sys.exit(f"{' '.join(command)}\n{errors}")
    (results,) = folder.glob("**/results.json")
    found = json.loads(results.read_text())
    seconds = [found["seconds"][phase] for phase in ("zoo", f"features/{name}", f"training/{name}")]
    size = file.stat().st_size / 1e9
    return Grown(name, adapters, size, disk, *seconds, peak[0] / 1e6, bool(found["environment"]["streamed"]))


def _watch(process: subprocess.Popen[str], peak: list[int]) -> None:
    """The most kB of memory without a file behind it, while a process runs."""
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except OSError:
            return
        peak[0] = max([peak[0], *(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))])
        time.sleep(0.05)


def _plain_rate(file: Path) -> float:
    """GB a second of reading a file from end to end, once, from a cold cache."""
    _forget(file)
    started, size, buffer = time.perf_counter(), file.stat().st_size, bytearray(_READ)
    with file.open("rb", buffering=0) as opened:
        while opened.readinto(buffer):
            pass
    return size / 1e9 / (time.perf_counter() - started)


def _forget(file: Path) -> None:
    """Have the system drop what it keeps of a file."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
