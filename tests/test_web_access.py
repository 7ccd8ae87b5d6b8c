"""Who may use the page: tokens, users with passwords, sessions, and the limit on tries."""

import itertools
import os
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import argon2
import pytest

from lorabench.errors import LorabenchError
from lorabench.web.access import Access, TooManyTries, add_user, remove_user

TOKEN = "t" * 32
PASSWORD = "correct horse"  # noqa: S105
MINUTES = 60.0


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def made_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("users") / "users"
    add_user(path, "ada", PASSWORD)
    add_user(path, "bob", "battery staple")
    return path


@pytest.fixture
def users(made_file: Path, tmp_path: Path) -> Path:
    path = tmp_path / "users"
    path.touch(mode=0o600)
    path.write_bytes(made_file.read_bytes())
    return path


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hashes that a password was tried on; none fits, and trying takes no time."""
    tried: list[str] = []

    def verify(self: argon2.PasswordHasher, password_hash: str, password: bytes) -> bool:
        tried.append(password_hash)
        raise argon2.exceptions.VerifyMismatchError

    monkeypatch.setattr(argon2.PasswordHasher, "verify", verify)
    return tried


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both users have PASSWORD, and trying takes no time."""

    def verify(self: argon2.PasswordHasher, password_hash: str, password: bytes) -> bool:
        if password != PASSWORD.encode():
            raise argon2.exceptions.VerifyMismatchError
        return True

    monkeypatch.setattr(argon2.PasswordHasher, "verify", verify)


def test_the_first_token_lets_one_in_once():
    access = Access()
    token = access.first_token
    assert token is not None
    assert len(token) >= 43
    assert not access.by_password
    assert access.redeem("x" * 43, "1.1.1.1") is None
    session = access.redeem(token, "1.1.1.1")
    assert session is not None
    assert access.user_of(session) == "me"
    assert access.first_token is None
    assert access.redeem(token, "1.1.1.1") is None
    assert access.redeem("", "1.1.1.1") is None
    assert Access().first_token != Access().first_token


def test_two_at_once_do_not_share_the_first_token():
    for _ in range(20):
        access = Access()
        token, start = access.first_token, threading.Barrier(4)

        def redeem(peer: str, access: Access = access, token: str = str(token), start: threading.Barrier = start):
            start.wait()
            return access.redeem(token, peer)

        with ThreadPoolExecutor(4) as pool:
            sessions = list(pool.map(redeem, ["1.1.1.1", "1.1.1.2", "1.1.1.3", "1.1.1.4"]))
        assert sum(session is not None for session in sessions) == 1


def test_the_first_token_is_no_bearer_token():
    access = Access()
    assert access.bearer(str(access.first_token), "1.1.1.1") is None


def test_a_given_token_lets_in_any_number_of_times_and_calls_of_the_api():
    access = Access(token=TOKEN)
    assert access.first_token is None
    first, second = access.redeem(TOKEN, "1.1.1.1"), access.redeem(TOKEN, "1.1.1.1")
    assert first is not None
    assert first != second
    assert access.bearer(TOKEN, "1.1.1.1") == "me"
    assert access.bearer(TOKEN + "t", "1.1.1.1") is None
    assert access.bearer("é\udce9", "1.1.1.1") is None


def test_ways_in_that_cannot_be(users):
    with pytest.raises(LorabenchError, match="31 characters, and at least 32"):
        Access(token="t" * 31)
    with pytest.raises(LorabenchError, match="one way in"):
        Access(users=users, token=TOKEN)
    for hours in (0, -1, float("nan"), float("inf")):
        with pytest.raises(LorabenchError, match="session_hours"):
            Access(session_hours=hours)


def test_a_name_and_its_password(users):
    access = Access(users)
    assert access.by_password
    assert access.first_token is None
    assert access.sign_in("ada", "battery staple", "1.1.1.1") is None
    session = access.sign_in("ada", PASSWORD, "1.1.1.1")
    assert session is not None
    assert access.user_of(session) == "ada"
    assert access.redeem(PASSWORD, "1.1.1.1") is None
    assert access.bearer(session, "1.1.1.1") is None
    access.sign_out(session)
    assert access.user_of(session) is None
    access.sign_out(session)


def test_nobody_signs_in_by_name_where_there_are_no_users():
    assert Access(token=TOKEN).sign_in("me", TOKEN, "1.1.1.1") is None


def test_letters_with_accents_however_they_are_typed(users):
    add_user(users, "zoe", "caf\u00e9 cr\u00e8me")
    assert Access(users).sign_in("zoe", "cafe\u0301 cre\u0300me", "1.1.1.1") is not None


def test_a_session_ends_at_its_time():
    clock = Clock()
    access = Access(token=TOKEN, session_hours=2, clock=clock)
    session = access.redeem(TOKEN, "1.1.1.1")
    assert session is not None
    assert access.session_seconds == 7200
    clock.now += 7199
    assert access.user_of(session) == "me"
    clock.now += 1
    assert access.user_of(session) is None
    clock.now -= 7200
    assert access.user_of(session) is None, "over is over"


def test_a_user_has_so_many_sessions_and_no_more():
    access = Access(token=TOKEN)
    sessions = [str(access.redeem(TOKEN, "1.1.1.1")) for _ in range(101)]
    assert access.user_of(sessions[0]) is None
    assert all(access.user_of(session) == "me" for session in sessions[1:])


def test_what_is_no_session():
    access = Access(token=TOKEN)
    for text in ("", "me", TOKEN, "\0", "\udcff", "x" * 10_000):
        assert access.user_of(text) is None


def test_neither_sessions_nor_tokens_lie_in_memory_in_the_clear():
    access = Access(token=TOKEN)
    session = str(access.redeem(TOKEN, "1.1.1.1"))
    held = repr([vars(part) if hasattr(part, "__dict__") else part for part in vars(access).values()])
    assert session not in held
    assert TOKEN not in held


def test_who_is_taken_out_or_has_a_new_password_is_out(users):
    access = Access(users)
    ada, bob = access.sign_in("ada", PASSWORD, "1.1.1.1"), access.sign_in("bob", "battery staple", "1.1.1.1")
    assert ada is not None
    assert bob is not None
    add_user(users, "ada", "a new password")
    assert access.user_of(ada) is None
    assert access.user_of(bob) == "bob"
    assert access.sign_in("ada", PASSWORD, "1.1.1.1") is None
    assert access.sign_in("ada", "a new password", "1.1.1.1") is not None
    remove_user(users, "bob")
    assert access.user_of(bob) is None
    assert access.sign_in("bob", "battery staple", "1.1.1.1") is None


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_text("?"), lambda path: path.chmod(0o644)])
def test_a_file_that_goes_bad_lets_nobody_in_until_it_is_mended(users, spoil, quick, caplog):
    access = Access(users)
    session = access.sign_in("ada", PASSWORD, "1.1.1.1")
    assert session is not None
    good = users.read_bytes()
    spoil(users)
    assert access.user_of(session) is None
    assert access.sign_in("ada", PASSWORD, "1.1.1.1") is None
    assert caplog.text.count("Nobody can sign in") == 1
    users.write_bytes(good)
    users.chmod(0o600)
    assert access.sign_in("ada", PASSWORD, "1.1.1.1") is not None


def test_an_unknown_name_costs_as_much_as_a_known_one(users, verified):
    access = Access(users)
    for name in ("ada", "nobody", "", "x" * 10_000, "\0"):
        assert access.sign_in(name, PASSWORD, "1.1.1.1") is None
    assert len(verified) == 5
    assert len({password_hash.rsplit("$", 2)[0] for password_hash in verified}) == 1, "one set of parameters"


def test_at_most_two_passwords_are_tried_at_once(users, monkeypatch):
    running, most, lock = 0, 0, threading.Lock()

    def verify(self: argon2.PasswordHasher, password_hash: str, password: bytes) -> bool:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1
        return True

    access = Access(users)
    monkeypatch.setattr(argon2.PasswordHasher, "verify", verify)
    with ThreadPoolExecutor(8) as pool:
        sessions = list(pool.map(lambda number: access.sign_in("ada", PASSWORD, f"1.1.1.{number}"), range(8)))
    assert None not in sessions
    assert most == 2


def test_ten_failed_tries_of_one_peer_are_all(users, verified):
    clock = Clock()
    access = Access(users, clock=clock)
    for number in range(10):
        clock.now += 1
        assert access.sign_in(f"name{number}", PASSWORD, "1.1.1.1") is None
    with pytest.raises(TooManyTries, match="Try again in 15 min") as refused:
        access.sign_in("ada", PASSWORD, "1.1.1.1")
    assert refused.value.seconds == 15 * 60 - 9
    assert len(verified) == 10, "nothing is tried any more"
    assert access.sign_in("ada", PASSWORD, "1.1.1.2") is None
    clock.now += 15 * MINUTES - 10
    with pytest.raises(TooManyTries):
        access.sign_in("ada", PASSWORD, "1.1.1.1")
    clock.now += 1
    assert access.sign_in("ada", PASSWORD, "1.1.1.1") is None


def test_ten_failed_tries_on_one_name_are_all_wherever_they_come_from(users, quick):
    clock = Clock()
    access = Access(users, clock=clock)
    for number in range(10):
        assert access.sign_in("ada", "wrong", f"1.1.1.{number}") is None
    with pytest.raises(TooManyTries):
        access.sign_in("ada", PASSWORD, "2.2.2.2")
    assert access.sign_in("bob", PASSWORD, "2.2.2.2") is not None
    clock.now += 15 * MINUTES
    assert access.sign_in("ada", PASSWORD, "2.2.2.2") is not None


def test_tries_at_the_same_time_do_not_slip_through(users, monkeypatch):
    access = Access(users)
    tried = threading.Semaphore(0)

    def verify(self: argon2.PasswordHasher, password_hash: str, password: bytes) -> bool:
        tried.release()
        time.sleep(0.01)
        raise argon2.exceptions.VerifyMismatchError

    def attempt(_: int) -> bool:
        try:
            access.sign_in("ada", "wrong", "1.1.1.1")
        except TooManyTries:
            return False
        return True

    monkeypatch.setattr(argon2.PasswordHasher, "verify", verify)
    with ThreadPoolExecutor(30) as pool:
        assert sum(pool.map(attempt, range(30))) == 10


def test_right_tries_do_not_count():
    access = Access(token=TOKEN)
    for _ in range(30):
        assert access.redeem(TOKEN, "1.1.1.1") is not None
        assert access.bearer(TOKEN, "1.1.1.1") == "me"


@pytest.mark.parametrize("way", ["redeem", "bearer"])
def test_tokens_are_tried_ten_times_too(way):
    access = Access(token=TOKEN)
    for _ in range(10):
        assert getattr(access, way)("wrong", "1.1.1.1") is None
    for other in ("redeem", "bearer"):
        with pytest.raises(TooManyTries):
            getattr(access, other)(TOKEN, "1.1.1.1")
    assert access.redeem(TOKEN, "1.1.1.2") is not None


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:1.1.1.1", "1.1.1.1", True),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("", "1.1.1.1", False),
    ],
)
def test_whom_an_address_counts_for(one, other, same):
    access = Access(token=TOKEN)
    for _ in range(10):
        access.redeem("wrong", one)
    if same:
        with pytest.raises(TooManyTries):
            access.redeem(TOKEN, other)
    else:
        assert access.redeem(TOKEN, other) is not None


def test_counts_of_tries_take_bounded_memory():
    """The first of very many peers is forgotten, which shows that not all are kept."""
    access = Access(token=TOKEN)
    for _ in range(10):
        access.redeem("wrong", "9.9.9.9")
    for number in range(20_000):
        access.redeem("wrong", f"peer {number}")
    assert access.redeem(TOKEN, "9.9.9.9") is not None


def test_the_file_of_users_is_never_readable_by_others(tmp_path, monkeypatch):
    seen: set[tuple[str, int]] = set()
    sync = os.fsync

    def look(handle: int) -> None:
        seen.update((one.name[:6], stat.S_IMODE(one.stat().st_mode)) for one in tmp_path.iterdir())
        sync(handle)

    monkeypatch.setattr(os, "fsync", look)
    umask = os.umask(0)
    try:
        add_user(tmp_path / "users", "ada", PASSWORD)
        add_user(tmp_path / "users", "ada", PASSWORD)
    finally:
        os.umask(umask)
    assert {mode for name, mode in seen if "lock" not in name and name.startswith((".users", "users"))} >= {0o600}
    assert {mode for name, mode in seen if name == ".users"} == {0o600}
    assert stat.S_IMODE((tmp_path / "users").stat().st_mode) == 0o600
    assert PASSWORD not in (tmp_path / "users").read_text()


def test_users_added_at_once_are_all_there(tmp_path):
    path = tmp_path / "users"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: add_user(path, f"user{number}", PASSWORD), range(6)))
    names = [line.partition(":")[0] for line in path.read_text().splitlines()]
    assert sorted(names) == [f"user{number}" for number in range(6)]


@pytest.mark.parametrize("name", ["", ".", "-x", "a" * 65, "a b", "a:b", "a/b", "ä", "a\n", "../a"])
def test_names_that_nobody_may_have(tmp_path, name):
    with pytest.raises(LorabenchError, match="letter or digit at the start"):
        add_user(tmp_path / "users", name, PASSWORD)
    assert not (tmp_path / "users").exists()


@pytest.mark.parametrize("password", ["", "x" * 9, "x" * 1025])
def test_passwords_that_nobody_may_have(tmp_path, password):
    with pytest.raises(LorabenchError, match="10 to 1024 are needed"):
        add_user(tmp_path / "users", "ada", password)


def test_a_password_too_long_is_a_wrong_one(users):
    assert Access(users).sign_in("ada", PASSWORD + "x" * 2000, "1.1.1.1") is None


def test_removing_nobody(users):
    with pytest.raises(LorabenchError, match="ada, bob"):
        remove_user(users, "eve")
    with pytest.raises(LorabenchError, match="none"):
        remove_user(users.with_name("other"), "eve")


@pytest.mark.parametrize(
    "line",
    [
        "eve",
        "eve:",
        "eve:plain text password",
        ":$argon2id$v=19$m=65536,t=3,p=4$" + "a" * 22 + "$" + "a" * 43,
        "eve:$argon2id$v=19$m=4194304,t=3,p=4$" + "a" * 22 + "$" + "a" * 43,
        "eve:$argon2i$v=19$m=65536,t=3,p=4$" + "a" * 22 + "$" + "a" * 43,
        "",
    ],
)
def test_a_bad_line_is_named_by_its_number_and_not_shown(users, line):
    with users.open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(LorabenchError, match=r"users, line 3: ") as refused:
        Access(users)
    assert "plain text" not in str(refused.value)
    with pytest.raises(LorabenchError, match=r"users, line 3: "):
        add_user(users, "carl", PASSWORD)


def test_two_lines_of_one_name(users):
    users.write_text(users.read_text() * 2)
    with pytest.raises(LorabenchError, match="users, line 3: ada has a line above too"):
        Access(users)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602])
def test_a_file_that_others_may_read_or_write(users, mode):
    users.chmod(mode)
    for use in (Access, lambda path: add_user(path, "carl", PASSWORD), lambda path: remove_user(path, "ada")):
        with pytest.raises(LorabenchError, match=f"rights are {mode:o}.*chmod 600"):
            use(users)


def test_files_that_are_none(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    large = tmp_path / "large"
    large.touch(mode=0o600)
    large.write_bytes(b"x" * (1 << 20) + b"x")
    for path, said in itertools.product([tmp_path / "missing", tmp_path, tmp_path / "pipe"], ["no such file of users"]):
        with pytest.raises(LorabenchError, match=said):
            Access(path)
    with pytest.raises(LorabenchError, match="1048577 bytes"):
        Access(large)
