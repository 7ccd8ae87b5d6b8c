"""Ten thousand broken, lying and hostile adapters: each is read or refused in one line, and nothing else happens.

python -m tests.fuzz_cases headers            all cases of one family, in a process of its own
python -m tests.fuzz_cases headers 17         one case; its files stay, and what went wrong is shown in full
"""

import json
import math
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorabench.adapters.adapter import Adapter
from lorabench.adapters.metadata.inspection import inspect
from lorabench.adapters.metadata.rendering import markdown, module_table, terminal, text
from lorabench.adapters.reading import limits
from lorabench.adapters.reading.files import load
from lorabench.adapters.reading.table import Table, read_table
from lorabench.errors import LorabenchError
from tests import fuzz_families
from tests.fuzz_seeds import adapters

MEMORY = 300 * 2**20  # bytes that reading all cases of a family may add to the process
SECONDS = 10  # a case may take, on a slow and busy machine
_HEADROOM = 6 * 2**30
_FORBIDDEN = (
    "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "os.remove", "os.rename",
    "os.mkdir", "shutil.rmtree", "ctypes.dlopen", "os.putenv", "os.link", "os.symlink",
)  # fmt: skip


class Watch:
    """What the process opens and does while a case is read, by Python's audit events."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.seen: list[str] = []
        self._allowed = tuple({sys.prefix, sys.base_prefix, sys.exec_prefix, str(Path(__file__).parents[1]), "/proc/"})
        sys.addaudithook(self._hear)

    def _hear(self, event: str, given: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event.startswith(_FORBIDDEN):
            self.seen.append(f"{event} {given[:2]}")
        if event == "open" and isinstance(given[0], str | bytes):
            path = given[0] if isinstance(given[0], str) else given[0].decode(errors="replace")
            code = path.startswith(self._allowed) and not path.startswith(str(self.folder))
            beside = Path(path).parent == self.folder and ".." not in path
            if not code and not beside:
                self.seen.append(f"opened {path}")
            if beside and given[1] not in ("r", "rb", None):
                self.seen.append(f"opened {path} to write")


def _inspect(path: Path) -> object:
    """`inspect`, and all that it can be shown as, to a terminal that takes UTF-8."""
    found = inspect(path)
    shown = [json.dumps(found.as_dict()), *(show(found) for show in (terminal, text, markdown, module_table))]
    "".join(shown).encode()
    if any(not letter.isprintable() and letter != "\n" for letter in "".join(shown)):
        raise AssertionError("control characters are shown")
    return found


READERS: dict[str, Callable[[Path], object]] = {"load": load, "read_table": read_table, "inspect": _inspect}


@dataclass
class Taken:
    """How one reader took one case: what it read or None, and what is wrong with that."""

    found: Any = None
    faults: list[str] = field(default_factory=list)


def take(read: Callable[[Path], object], path: Path, watch: Watch) -> Taken:
    """Let one reader read; it may refuse in one line that names the file, and nothing else."""
    taken, start = Taken(), time.process_time()
    watch.folder, watch.seen = path.parent, taken.faults
    try:
        taken.found = read(path)
    except LorabenchError as error:
        watch.folder = None
        said, cause = str(error), error.__cause__
        if len(said.splitlines()) != 1 or not said.isprintable() or len(said) > 5000:
            taken.faults.append(f"no message of one line: {said[:400]!r}")
        if str(path.parent) not in said:
            taken.faults.append(f"the message does not name the file: {said[:400]}")
        # torch.load asks for what a pickle claims, and touches nothing of it; everybody else asks for what is there.
        if path.suffix == ".safetensors" and (isinstance(cause, MemoryError) or "allocate" in str(cause)):
            taken.faults.append(f"asked for too much memory: {cause}")
    except BaseException:  # noqa: BLE001 - that is what the test looks for
        watch.folder = None
        taken.faults.append(traceback.format_exc())
    watch.folder = None
    took = time.process_time() - start
    if took > SECONDS:
        taken.faults.append(f"took {took:.1f} s")
    return taken


def wrong_values(adapter: Adapter) -> Iterator[str]:
    """What no adapter may hold."""
    for name, module in adapter.modules.items():
        if min(*module.shape, module.rank) < 1 or module.up.shape[1] != module.down.shape[0]:
            yield f"{name} has shapes {module.up.shape}, {module.down.shape}"
        elif not math.isfinite(module.scale) or not all(bool(m.isfinite().all()) for m in (module.up, module.down)):
            yield f"{name} is not finite"


def unlike(adapter: Adapter, table: Table | None) -> Iterator[str]:
    """Where the table of a file's header says something else than its weights, once read."""
    if table is None or table.problems:
        yield f"load reads it, and read_table says {table and table.problems}"
        return
    said = {row.module: (row.scale, row.alpha, row.dtype) for row in table.rows}
    for name, module in adapter.modules.items():
        wanted = (module.scale, module.alpha)
        if repr(said.get(name, ())[:2]) != repr(wanted):
            yield f"{name} has scale and alpha {wanted}, read_table says {said.get(name)}"
    if len(said) != len(adapter.modules) or adapter.unsupported != table.unsupported:
        yield f"{list(adapter.modules)}, {adapter.unsupported}, read_table says {list(said)}, {table.unsupported}"


def run_case(family: str, index: int, folder: Path, watch: Watch) -> tuple[list[str], bool]:
    """Write one case into a folder, read it with every reader; what is wrong, and whether `load` read it."""
    rng = random.Random(f"{family} {index}")  # noqa: S311 - the same cases in every run are what is wanted
    folder.mkdir()
    path = fuzz_families.FAMILIES[family][0](rng, folder)
    taken = {name: take(read, path, watch) for name, read in READERS.items()}
    faults = [f"{name}: {fault}" for name, one in taken.items() for fault in one.faults]
    adapter = taken["load"].found
    if adapter is not None:
        faults += [f"load: {fault}" for fault in (*wrong_values(adapter), *unlike(adapter, taken["read_table"].found))]
    if Path(fuzz_families.MARKER).exists():
        faults.append("code of the file was run")
    return faults, adapter is not None


def run(family: str, indices: range, keep: bool = False) -> dict[str, Any]:
    """Run cases of a family; the faults found, how many were read or refused, and bytes of memory that were added."""
    shared = Path("/dev/shm")  # noqa: S108 - memory, where there is such a place: the disk is slower
    root = Path(tempfile.mkdtemp(prefix="fuzz-", dir=shared if shared.is_dir() else None))
    os.chdir(root)
    watch, faults, read_count = Watch(), [], 0
    for i, (name, data, config) in enumerate(adapters()):  # everything is imported before memory is measured
        (root / f"seed-{i}").mkdir()
        (root / f"seed-{i}" / name).write_bytes(data)
        if config:
            (root / f"seed-{i}" / "adapter_config.json").write_bytes(config)
        for read in READERS.values():
            read(root / f"seed-{i}" / name)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _HEADROOM, used + _HEADROOM))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for index in indices:
        folder = root / str(index)
        found, one_read = run_case(family, index, folder, watch)
        faults += [f"{family} {index}: {fault}" for fault in found]
        read_count += one_read
        if not keep:
            shutil.rmtree(folder)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    if not keep:
        shutil.rmtree(root)
    return {"cases": len(indices), "read": read_count, "faults": faults, "grown": grown, "folder": str(root)}


def main(arguments: list[str]) -> int:
    """Run a family, or one case of it."""
    warnings.simplefilter("error")
    limits.MOST_ENTRIES = 2**22  # so that to find modules that go beyond it needs no gigabytes
    family = arguments[0]
    count = fuzz_families.FAMILIES[family][1]
    one = len(arguments) > 1
    found = run(family, range(int(arguments[1]), int(arguments[1]) + 1) if one else range(count), keep=one)
    print(json.dumps(found | {"faults": found["faults"][:20], "count": len(found["faults"])}, indent=1))
    return 1 if found["faults"] or found["grown"] > MEMORY else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
