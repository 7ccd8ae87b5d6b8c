"""The queue of the web page: commands as jobs, which outlive their server and are seen by their user alone."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lorabench.adapters import save
from lorabench.errors import LorabenchError
from lorabench.jobs import process_lives
from lorabench.storage import is_neighbour, neighbour
from lorabench.web.job import read_jobs
from lorabench.web.notices import Notices
from lorabench.web.queue import Job, Queue
from tests.adapter_folders import make_modules
from tests.conftest import ROOT

DEADLINE = 60.0
MAIN = """
from lorabench.commands.frame import Program
def program(name):
    return Program(name, "Acts.", {"act": "acts"}, "scratch")
"""
ACT = """
import os, signal, subprocess, sys, time
from pathlib import Path
from lorabench.commands.frame import Outcome
from lorabench.errors import LorabenchError
from lorabench.progress import bar
from lorabench.storage import neighbour, write_chunks
EXAMPLE = "act"
def add_arguments(parser):
    parser.add_argument("what")
    parser.add_argument("until", nargs="?")
def wait(args):
    while not Path(args.until).exists():
        time.sleep(0.02)
def run(args):
    if args.what == "wait":
        Path("begun").touch()
        wait(args)
        Path("made").write_text("whole")
    elif args.what == "family":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        write_chunks(Path("child"), [str(child.pid).encode()])
        child.wait()
    elif args.what == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        Path("begun").touch()
        time.sleep(600)
    elif args.what == "bug":
        print("on the way")
        raise ZeroDivisionError
    elif args.what == "killed":
        neighbour(Path("half.safetensors")).write_text("ha")
        neighbour(Path("folder")).mkdir()
        Path("whole.txt").write_text("whole")
        os.kill(os.getpid(), signal.SIGKILL)
    elif args.what == "bars":
        with bar("Outer", 4) as outer:
            outer.advance()
            with bar("Inner", 2) as inner:
                inner.advance(2)
            time.sleep(0.6)
            outer.advance()
            Path("begun").touch()
            wait(args)
    elif args.what == "mad":
        line = "x" * 1023 + chr(10)
        for _ in range(20 * 1024):
            sys.stderr.write(line)
        sys.stderr.write("the end")
        sys.stderr.flush()
        Path("begun").touch()
        wait(args)
    elif args.what == "greedy":
        len(bytearray(600 << 20))
    elif args.what == "links":
        Path("deep").mkdir()
        Path("deep/file.txt").touch()
        Path("link.txt").symlink_to("../job.json")
        Path("up").symlink_to("..")
        os.mkfifo("pipe")
    elif args.what == "environment":
        return Outcome(sorted(os.environ), os.getcwd())
    return Outcome({"loss": float("nan")}, "acted", ok=args.what != "wrong")
"""


def until(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def ended(queue: Queue, job: Job) -> Job:
    until(lambda: queue.job(job.user, job.id).state not in ("waiting", "running"))
    return queue.job(job.user, job.id)


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Queue]]:
    """Queues over one folder whose commands do what they are told; nothing of them is left at work."""
    package = tmp_path / "packages" / "scratch"
    package.mkdir(parents=True)
    for name, text in {"__init__": "", "__main__": MAIN, "act": ACT}.items():
        (package / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(package.parent), prepend=os.pathsep)
    queues: list[Queue] = []

    def make(start: bool = True, program: str = "scratch", **options: int) -> Queue:
        queues.append(Queue(tmp_path / "jobs", program=program, **options))
        if start:
            queues[-1].start()
        return queues[-1]

    yield make
    for queue in queues:
        queue.stop()
    for job in read_jobs(tmp_path / "jobs"):
        if job.state == "running" and process_lives(job.pid, (job.started or 0) + 2):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.pid or -1, signal.SIGKILL)
    until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("job ")])


def act(queue: Queue, *words: str | Path, user: str = "ann") -> Job:
    return queue.add(user, "Act", ["act", *map(str, words)], "lorabench scratch act")


def begun(tmp_path: Path, job: Job, name: str = "begun") -> Path:
    path = tmp_path / "jobs" / job.user / job.id / "out" / name
    until(path.exists)
    return path


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    path = tmp_path / "in.safetensors"
    save(path, make_modules(0, rank=2), "diffusers")
    return path


def test_a_job_writes_no_file_larger_than_its_room(opened: Callable[..., Queue], adapter: Path) -> None:
    queue = opened(program="lorabench.adapters")
    words = ["resize", str(adapter), "-o", "large.safetensors", "--pad", "40"]
    job = ended(queue, queue.add("ann", "Pad", words, "lorabench adapters resize in --pad 40", room=1000))
    assert job.state == "failed"
    assert job.error is not None
    assert "large.safetensors" in job.error
    assert queue.files("ann", job.id) == []
    assert queue.size("ann") < 4000


def test_real_commands_answer_and_leave_their_files(opened: Callable[..., Queue], adapter: Path, tmp_path: Path):
    queue = opened(program="lorabench.adapters", at_once=2)
    looked = queue.add("ann", "Inspect", ["inspect", str(adapter)], "lorabench adapters inspect in", [adapter])
    words = ["resize", str(adapter), "-o", "small.safetensors", "--rank", "1"]
    small = queue.add("ann", "Resize", words, "lorabench adapters resize in -o small.safetensors --rank 1")
    assert [job.id for job in queue.jobs("ann")] == [small.id, looked.id]

    assert ended(queue, looked).state == "done"
    answer = queue.answer("ann", looked.id)
    assert answer is not None
    assert (answer["code"], answer["error"]) == (0, None)
    assert "in.safetensors" in answer["text"]
    assert isinstance(answer["data"], dict)
    assert looked.inputs == (str(adapter),)

    done = ended(queue, small)
    assert (done.state, done.code, done.error) == ("done", 0, None)
    assert done.started is not None
    assert done.ended is not None
    assert done.made <= done.started <= done.ended
    assert queue.files("ann", small.id) == ["small.safetensors"]
    assert queue.file("ann", small.id, "small.safetensors").stat().st_size > 0
    assert queue.size("ann") > queue.file("ann", small.id, "small.safetensors").stat().st_size
    assert queue.log("ann", small.id) == ""


def test_errors_and_wrong_usage_are_said_in_one_line(opened: Callable[..., Queue], tmp_path: Path) -> None:
    bad = tmp_path / "bad.safetensors"
    bad.write_text("no adapter")
    queue = opened(program="lorabench.adapters", at_once=3)
    jobs = [queue.add("ann", "", words, "") for words in (["inspect", str(bad)], ["resize", str(bad)], ["nothing"])]
    failed = [ended(queue, job) for job in jobs]
    assert [(job.state, job.code) for job in failed] == [("failed", 1), ("failed", 2), ("failed", 2)]
    assert str(bad) in str(failed[0].error)
    assert "required" in str(failed[1].error)
    assert "nothing" in str(failed[2].error)
    assert all("\n" not in str(job.error) for job in failed)


def test_an_answer_that_something_is_wrong_is_an_answer(opened: Callable[..., Queue]) -> None:
    queue = opened()
    job = ended(queue, act(queue, "wrong"))
    assert (job.state, job.code, job.error) == ("done", 1, None)
    assert queue.answer("ann", job.id) == {"code": 1, "text": "acted", "data": {"loss": None}, "error": None}


def test_a_bug_is_told_apart_and_its_traceback_is_in_the_log(opened: Callable[..., Queue]) -> None:
    queue = opened()
    job = ended(queue, act(queue, "bug"))
    assert (job.state, job.error) == ("failed", "an error inside lorabench, see log")
    assert "on the way" in queue.log("ann", job.id)
    assert "ZeroDivisionError" in queue.log("ann", job.id)
    helped = ended(queue, act(queue, "--help"))
    assert helped.state == "failed"


def test_cancelling_ends_all_that_a_job_began(opened: Callable[..., Queue], tmp_path: Path) -> None:
    queue = opened()
    job, waiting = act(queue, "family"), act(queue, "wait", "/never")
    child = int(begun(tmp_path, job, "child").read_text())
    assert queue.cancel("ann", waiting.id).state == "cancelled"
    assert queue.cancel("ann", job.id).stopping is not None
    over = ended(queue, job)
    assert (over.state, over.code) == ("cancelled", 130)
    assert "interrupted" in str(over.error)
    until(lambda: not process_lives(child, time.time()))
    assert queue.cancel("ann", job.id) == over, "what has ended stays as it is"
    assert queue.job("ann", waiting.id).started is None


def test_one_that_does_not_listen_is_killed(opened: Callable[..., Queue], tmp_path: Path) -> None:
    queue = opened()
    job = act(queue, "stubborn")
    begun(tmp_path, job)
    queue.cancel("ann", job.id)
    over = ended(queue, job)
    assert (over.state, over.error) == ("cancelled", "cancelled")
    assert over.ended - over.stopping >= 3


def test_no_more_are_at_work_than_allowed(opened: Callable[..., Queue], tmp_path: Path) -> None:
    queue, go = opened(at_once=2), tmp_path / "go"
    jobs = [act(queue, "wait", go) for _ in range(4)]
    for job in jobs[:2]:
        begun(tmp_path, job)
    assert [queue.job("ann", job.id).state for job in jobs] == ["running", "running", "waiting", "waiting"]
    go.touch()
    assert {ended(queue, job).state for job in jobs} == {"done"}
    spans = [(job.started, job.ended) for job in queue.jobs("ann")]
    assert max(sum(start <= moment < end for start, end in spans) for moment, _ in spans) == 2


def test_users_take_turns(opened: Callable[..., Queue]) -> None:
    queue = opened(start=False)
    for user in ("ann", "ann", "ann", "ben", "ben", "cat"):
        act(queue, "fine", user=user)
    queue.start()
    everybody = [job for user in ("ann", "ben", "cat") for job in queue.jobs(user)]
    over = sorted((ended(queue, job) for job in everybody), key=lambda job: job.started)
    assert [job.user for job in over] == ["ann", "ben", "cat", "ann", "ben", "ann"]
    of_ann = [job.made for job in over if job.user == "ann"]
    assert of_ann == sorted(of_ann)


def test_a_full_queue_is_said(opened: Callable[..., Queue]) -> None:
    queue = opened(start=False, most_waiting=3, most_of_user=2)
    first = act(queue, "fine")
    act(queue, "fine")
    with pytest.raises(LorabenchError, match="2 jobs of yours"):
        act(queue, "fine")
    act(queue, "fine", user="ben")
    with pytest.raises(LorabenchError, match="3 jobs wait already"):
        act(queue, "fine", user="cat")
    queue.cancel("ann", first.id)
    act(queue, "fine", user="cat")


def test_a_job_outlives_its_server_and_the_next_one_sees_its_end(opened: Callable[..., Queue], tmp_path: Path) -> None:
    first, go = opened(), tmp_path / "go"
    job, meanwhile, waiting = act(first, "wait", go), act(first, "fine"), act(first, "wait", go, user="ben")
    begun(tmp_path, job)
    first.stop()
    second = opened()
    assert [one.state for one in second.jobs("ann")] == ["waiting", "running"]
    assert second.job("ann", job.id).pid == first.job("ann", job.id).pid
    go.touch()
    assert ended(second, job).state == "done"
    assert second.files("ann", job.id) == ["begun", "made"]
    assert ended(second, waiting).state == "done"
    assert ended(second, meanwhile).state == "done"


def test_a_server_that_comes_later_reads_how_a_job_ended_and_may_cancel_another(
    opened: Callable[..., Queue], tmp_path: Path
) -> None:
    first, go = opened(at_once=2), tmp_path / "go"
    job, family = act(first, "wait", go), act(first, "family", user="ben")
    child = int(begun(tmp_path, family, "child").read_text())
    begun(tmp_path, job)
    first.stop()
    go.touch()
    until(lambda: first.answer("ann", job.id))
    second = opened()
    assert ended(second, job).state == "done"
    second.cancel("ben", family.id)
    assert ended(second, family).state == "cancelled"
    until(lambda: not process_lives(child, time.time()))


def test_a_killed_server_leaves_a_job_that_goes_on(opened: Callable[..., Queue], tmp_path: Path) -> None:
    go = tmp_path / "go"
    program = (
        "import sys, time; from pathlib import Path; from lorabench.web.queue import Queue\n"
        "queue = Queue(Path(sys.argv[1]), program='scratch'); queue.start()\n"
        "queue.add('ann', '', ['act', 'wait', sys.argv[2]], ''); time.sleep(600)"
    )
    paths = os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]])
    server = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "jobs"), str(go)], env=os.environ | {"PYTHONPATH": paths}
    )
    until(lambda: list(tmp_path.glob("jobs/ann/*/out/begun")))
    with pytest.raises(LorabenchError, match="another server runs the jobs"):
        opened()
    server.kill()
    server.wait()
    queue = opened()
    job = queue.jobs("ann")[0]
    assert job.state == "running"
    go.touch()
    assert ended(queue, job).state == "done"
    assert not [path for path in (tmp_path / "jobs").rglob("*") if is_neighbour(path.name)]


def test_a_killed_worker_is_lost_and_nothing_partial_counts(opened: Callable[..., Queue], tmp_path: Path) -> None:
    queue = opened()
    job = ended(queue, act(queue, "killed"))
    assert (job.state, job.code) == ("lost", None)
    assert job.error == "ended without an answer: killed, or the machine stopped"
    assert queue.answer("ann", job.id) is None
    assert queue.files("ann", job.id) == ["whole.txt"]
    assert os.listdir(tmp_path / "jobs" / "ann" / job.id / "out") == ["whole.txt"]  # noqa: PTH208


def test_a_process_that_is_gone_or_younger_is_not_the_jobs(opened: Callable[..., Queue], tmp_path: Path) -> None:
    queue = opened(start=False)
    job = act(queue, "fine")
    path = tmp_path / "jobs" / "ann" / job.id / "job.json"
    long_ago = {"state": "running", "started": 1000.0, "pid": os.getpid()}
    path.write_text(json.dumps(json.loads(path.read_text()) | long_ago))
    queue.start()
    assert ended(queue, job).state == "lost"


def test_a_worker_whose_server_died_too_early_does_nothing(opened: Callable[..., Queue], tmp_path: Path) -> None:
    queue = opened(start=False)
    job = act(queue, "fine")
    folder = tmp_path / "jobs" / "ann" / job.id
    command = [sys.executable, "-m", "lorabench.web.worker", str(folder), "scratch"]
    paths = os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]])
    done = subprocess.run(command, stdin=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": paths}, check=False)
    assert done.returncode == 1
    assert queue.answer("ann", job.id) is None
    queue.start()
    assert ended(queue, job).state == "done"


def test_one_server_at_a_time(opened: Callable[..., Queue]) -> None:
    first = opened()
    second = opened(start=False)
    with pytest.raises(LorabenchError, match="another server runs the jobs of this folder"):
        second.start()
    first.stop()
    second.start()


def test_notices_outlive_the_server_and_are_each_users_own(opened: Callable[..., Queue], tmp_path: Path) -> None:
    queue, place = opened(), tmp_path / "notices.json"
    notices = Notices(place, queue)
    first, bad = ended(queue, act(queue, "fine")), ended(queue, act(queue, "bug"))
    ended(queue, act(queue, "fine", user="ben"))
    waiting = act(queue, "wait", "/never")
    assert notices.of("ann") == [bad, first]
    notices.read("ann", bad)
    assert notices.unread("ann") == [first]
    queue.cancel("ann", waiting.id)
    assert ended(queue, waiting).state == "cancelled"
    queue.stop()
    again = opened()
    later = Notices(place, again)
    assert later.of("ann") == [bad, first], "what one has cancelled is no news"
    assert later.unread("ann") == [first]
    later.read("ann")
    assert (later.unread("ann"), len(later.unread("ben"))) == ([], 1)
    third = ended(again, act(again, "fine"))
    assert Notices(place, again).unread("ann") == [third]
    place.write_text('{"ann": [null, 3]}')
    assert len(Notices(place, again).unread("ann")) == 3, "a file that says nothing of use"


def test_what_a_job_was_asked_for_is_kept(opened: Callable[..., Queue], tmp_path: Path) -> None:
    queue = opened(start=False)
    asked = {"adapters": ["a"], "options": {"rank": 2}}
    new = queue.add("ann", "", ["act", "fine"], "", asked=asked)
    old = act(queue, "fine")
    path = tmp_path / "jobs" / "ann" / old.id / "job.json"
    data = json.loads(path.read_text())
    del data["asked"]
    path.write_text(json.dumps(data))
    again = opened(start=False)
    assert (again.job("ann", new.id).asked, again.job("ann", old.id).asked) == (asked, None)


def test_other_users_jobs_are_not_there(opened: Callable[..., Queue]) -> None:
    queue = opened(start=False)
    job = act(queue, "fine")
    assert queue.jobs("ben") == []
    for ask in (queue.job, queue.cancel, queue.answer, queue.progress, queue.log, queue.files, queue.forget):
        for user, name in (("ben", job.id), ("ann", "0" * 16), ("ann", f"../ann/{job.id}"), ("", job.id)):
            with pytest.raises(LorabenchError, match=r"^no such job$"):
                ask(user, name)
    with pytest.raises(LorabenchError, match=r"^no such job$"):
        queue.file("ben", job.id, "made")


@pytest.mark.parametrize("user", ["", ".", "..", ".ann", "a/b", "../ann", "ann\n", "a" * 65, "ännchen", "a\0"])
def test_a_users_name_is_one_of_a_folder(opened: Callable[..., Queue], user: str) -> None:
    queue = opened(start=False)
    with pytest.raises(LorabenchError, match="are allowed"):
        act(queue, "fine", user=user)
    with pytest.raises(LorabenchError, match="are allowed"):
        queue.size(user)


def test_only_whole_files_below_out_are_given(opened: Callable[..., Queue], tmp_path: Path) -> None:
    queue = opened()
    job = ended(queue, act(queue, "links"))
    out = tmp_path / "jobs" / "ann" / job.id / "out"
    (neighbour(out / "late.txt")).touch()
    assert queue.files("ann", job.id) == ["deep/file.txt"]
    assert queue.file("ann", job.id, "deep/file.txt") == out / "deep" / "file.txt"
    for name in ("../job.json", str(out / "deep/file.txt"), "link.txt", "up/job.json", "deep/../deep/file.txt",
                 "pipe", "deep", "", ".", "deep/file.txt\0"):  # fmt: skip
        with pytest.raises(LorabenchError, match=r"^no such file$"):
            queue.file("ann", job.id, name)


def test_what_has_ended_can_be_forgotten(opened: Callable[..., Queue], tmp_path: Path) -> None:
    queue, go = opened(at_once=2), tmp_path / "go"
    job, old = act(queue, "wait", go), act(queue, "fine")
    ended(queue, old)
    with pytest.raises(LorabenchError, match="has not ended"):
        queue.forget("ann", job.id)
    assert queue.forget_older(3600) == 0
    assert queue.forget_older(0) == 1
    go.touch()
    ended(queue, job)
    queue.forget("ann", job.id)
    assert queue.jobs("ann") == []
    assert queue.size("ann") == 0
    assert list((tmp_path / "jobs" / "ann").iterdir()) == []
    queue.stop()
    assert opened().jobs("ann") == []


def test_progress_is_that_of_the_outermost_bar(opened: Callable[..., Queue], tmp_path: Path) -> None:
    queue, go = opened(), tmp_path / "go"
    job = act(queue, "bars", go)
    begun(tmp_path, job)
    assert queue.progress("ann", job.id) == 0.5
    go.touch()
    ended(queue, job)
    assert queue.progress("ann", job.id) is None
    plain = ended(queue, act(queue, "fine"))
    assert queue.progress("ann", plain.id) is None


def test_a_job_takes_no_more_memory_than_allowed(opened: Callable[..., Queue]) -> None:
    queue = opened(memory=500 << 20)
    job = ended(queue, act(queue, "greedy"))
    assert (job.state, job.code) == ("failed", 1)
    assert job.error == "it needs more memory than the 500 MiB that a job may take here (--job-memory)"
    assert ended(queue, act(queue, "fine")).state == "done"


def test_a_log_is_bounded(opened: Callable[..., Queue], tmp_path: Path) -> None:
    queue, go = opened(), tmp_path / "go"
    job = act(queue, "mad", go)
    path = begun(tmp_path, job).parents[1] / "log.txt"
    assert len(queue.log("ann", job.id)) <= 1 << 20
    until(lambda: path.stat().st_size <= 8 << 20)
    go.touch()
    assert ended(queue, job).state == "done"


def test_a_job_has_the_servers_environment_without_its_secrets(
    opened: Callable[..., Queue], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LORABENCH_WEB_TOKEN", "secret")
    monkeypatch.setenv("SOME_SETTING", "kept")
    queue = opened()
    job = ended(queue, act(queue, "environment"))
    answer = queue.answer("ann", job.id) or {}
    assert "SOME_SETTING" in answer["data"]
    assert "LORABENCH_WEB_TOKEN" not in answer["data"]
    assert answer["text"] == str(tmp_path / "jobs" / "ann" / job.id / "out")


def test_what_is_no_job_is_passed_over(opened: Callable[..., Queue], tmp_path: Path) -> None:
    queue = opened(start=False)
    kept = act(queue, "fine")
    folder = tmp_path / "jobs" / "ann"
    for name, text in {"a": "", "b": "{}", "c": "[]", "d": (folder / kept.id / "job.json").read_text()}.items():
        (folder / name).mkdir()
        (folder / name / "job.json").write_text(text)
    neighbour(folder / "half").mkdir()
    queue.start()
    assert [job.id for job in queue.jobs("ann")] == [kept.id]
    assert sorted(path.name for path in folder.iterdir()) == sorted(["a", "b", "c", "d", kept.id])
