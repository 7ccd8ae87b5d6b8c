"""`lorabench web` on its command line, and what docs/web.md says of it."""

import contextlib
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.conftest import ROOT, lorabench
from tests.web_process import Server
from tests.web_site import folder_of_adapters

TOKEN = "t" * 40


def test_others_are_let_in_by_name_or_token_alone(tmp_path: Path) -> None:
    refused = lorabench("web", "--host", "0.0.0.0", "--data", "data", cwd=tmp_path, code=2)  # noqa: S104
    assert "lets others in: give --users FILE, or a token in LORABENCH_WEB_TOKEN" in refused.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["--port", "70000"], "--port 70000"),
        (["--users", "nobody"], "nobody"),
        (["--jobs", "0"], "a whole number from 1"),
        (["--add-user", "ada"], "--add-user and --remove-user need --users FILE"),
        (["--name", "a b"], "a b"),
        (["--data", "file"], "file"),
    ],
)
def test_wrong_words_are_one_message(words: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = subprocess.run(
        [sys.executable, "-m", "lorabench", "web", *([] if "--data" in words else ["--data", "data"]), *words],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_users_are_added_and_removed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lorabench", "web", "--users", "users"]
    short = subprocess.run(
        [*command, "--add-user", "ada"], input="short\n", cwd=tmp_path, text=True, capture_output=True
    )
    assert short.returncode == 1
    assert "password" in short.stderr
    for words, said in ((["--add-user", "ada"], "ada may enter"), (["--remove-user", "ada"], "ada is taken out")):
        done = subprocess.run(
            [*command, *words], input="a long enough one\n", cwd=tmp_path, text=True, capture_output=True, check=True
        )
        assert said in done.stdout
    assert (tmp_path / "users").stat().st_mode & 0o077 == 0


def _speaks_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as one:
        one.bind(("::1", 0))
        return True
    return False


@pytest.mark.skipif(not _speaks_ipv6(), reason="this machine has no ::1")
def test_an_address_of_ipv6_is_one_that_browsers_take(tmp_path: Path) -> None:
    server = Server(tmp_path / "data", "--host", "::1")
    try:
        assert server.url.startswith("http://[::1]:")
        assert httpx.get(server.url, follow_redirects=True).status_code == 200
    finally:
        server.end()


@pytest.mark.slow
def test_one_folder_has_one_server_and_scripts_do_what_the_docs_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LORABENCH_WEB_TOKEN", TOKEN)
    adapters = folder_of_adapters(tmp_path / "adapters") / "old"
    server = Server(tmp_path / "data", str(adapters))
    try:
        second = subprocess.run(
            [sys.executable, "-m", "lorabench", "web", "--port", "0", "--data", str(tmp_path / "data")],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert second.returncode == 1
        assert str(tmp_path / "data") in second.stderr.splitlines()[-1]
        port = server.base.rsplit(":", maxsplit=1)[-1]
        taken = lorabench("web", "--port", port, "--data", str(tmp_path / "other"), cwd=tmp_path, code=1)
        assert f"--port {port} cannot be had" in taken.stderr
        (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "web.md").read_text(), re.DOTALL)
        known: dict[str, object] = {"token": os.environ["LORABENCH_WEB_TOKEN"]}
        exec(code.replace("http://127.0.0.1:8765", server.base), known)  # noqa: S102
        assert 0 < float(capsys.readouterr().out) < 1
        headers = {"Authorization": f"Bearer {TOKEN}"}
        assert httpx.get(f"{server.base}/api/jobs/{known['job']}", headers=headers).json()["title"].startswith("resize")
        assert httpx.get(f"{server.base}/api/jobs/{known['job']}").status_code == 401
        page = httpx.get(f"{server.base}/api/docs", headers=headers).text
        assert "swagger" in page
        assert not re.findall(r"(?:src|href)=\"https?://", page)
    finally:
        server.end()
