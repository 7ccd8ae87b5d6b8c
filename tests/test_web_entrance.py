"""The door: the form, the printed address, the way out; in a browser, with a page of NiceGUI behind the gate."""

import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import argon2
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorabench.web.access import Access, add_user
from lorabench.web.entrance import local_path
from lorabench.web.gate import SESSION_COOKIE
from tests.conftest import ROOT
from tests.web_visits import HTML, OWN, PASSWORD, TOKEN, Visitor, site

CHROMIUM = shutil.which("chromium")


@pytest.fixture
def access() -> Access:
    return Access(token=TOKEN)


@pytest.fixture
def session(access: Access) -> str:
    return str(access.redeem(TOKEN, "9.9.9.9"))


@pytest.fixture
def stranger(access: Access) -> Visitor:
    return Visitor(site(access))


@pytest.fixture
def user(access: Access, session: str) -> Visitor:
    return Visitor(site(access), session)


@pytest.fixture
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Access:
    """One user, ada, whose password takes no time to be tried."""
    add_user(tmp_path / "users", "ada", PASSWORD)

    def verify(self: argon2.PasswordHasher, password_hash: str, password: bytes) -> bool:
        if password != PASSWORD.encode():
            raise argon2.exceptions.VerifyMismatchError
        return True

    monkeypatch.setattr(argon2.PasswordHasher, "verify", verify)
    return Access(tmp_path / "users")


def cookie_of(answer: httpx.Response) -> str:
    return re.match(rf"{SESSION_COOKIE}=([^;]*)", answer.headers["set-cookie"])[1]


def test_the_printed_address_signs_in_once():
    access = Access()
    visitor, path = Visitor(site(access)), f"/enter?token={access.first_token}"
    answer = visitor.get(path, HTML)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert Visitor(visitor.gate, cookie_of(answer)).get("/").text == "hello me"
    again = visitor.get(path, HTML)
    assert again.status_code == 401
    assert "or it was used before" in again.text
    assert "set-cookie" not in again.headers


def test_what_looks_ahead_does_not_use_the_token_up():
    access = Access()
    visitor, path = Visitor(site(access)), f"/enter?token={access.first_token}"
    assert visitor.ask("HEAD", path).status_code == 503
    assert visitor.get(path, {"Sec-Purpose": "prefetch;prerender"}).status_code == 503
    assert visitor.get(path).status_code == 303


@pytest.mark.parametrize("secure", [False, True])
def test_the_cookie_is_as_narrow_as_can_be(access, secure):
    answer = Visitor(site(access, secure)).post("/sign-in", data={"token": f" {TOKEN} ", "next": "/report"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/report")
    flags = {flag.strip().lower() for flag in answer.headers["set-cookie"].split(";")[1:]}
    assert flags == {"httponly", "samesite=strict", "path=/", "max-age=43200", *["secure"] * secure}


def test_a_wrong_token_shows_the_form_again(stranger):
    answer = stranger.post("/sign-in", data={"token": "wrong", "next": "/report"})
    assert answer.status_code == 401
    assert "This token is not the right one" in answer.text
    assert 'value="/report"' in answer.text
    assert "set-cookie" not in answer.headers
    for more in ({"content": b"token=" + TOKEN.encode()}, {"json": {"token": TOKEN}}, {"files": {"token": b"x"}}):
        assert stranger.post("/sign-in", **more).status_code == 401
    many = "&".join(["token=" + TOKEN] * 20)
    form = {**OWN, "Content-Type": "application/x-www-form-urlencoded"}
    assert stranger.post("/sign-in", form, content=many).status_code == 401
    assert stranger.post("/sign-in", form, content=b"token=\xff").status_code == 401


def test_a_name_and_its_password_sign_in(users):
    visitor = Visitor(site(users))
    form = visitor.get("/sign-in").text
    for part in (
        'for="name"',
        'for="password"',
        "current-password",
        'autocomplete="username"',
        "autofocus",
        "viewport",
    ):
        assert part in form
    assert "<script" not in form
    wrong = visitor.post("/sign-in", data={"name": 'ada"><script>', "password": "wrong"})
    assert wrong.status_code == 401
    assert "do not belong together" in wrong.text
    assert "<script" not in wrong.text
    answer = visitor.post("/sign-in", data={"name": "ada", "password": PASSWORD})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert Visitor(visitor.gate, cookie_of(answer)).get("/").text == "hello ada"
    unknown = visitor.post("/sign-in", data={"name": "eve", "password": "wrong"})
    known = visitor.post("/sign-in", data={"name": "ada", "password": "wrong"})
    bare = [re.sub("nonce[-=][^>]*|eve|ada", "", answer.text) for answer in (unknown, known)]
    assert bare[0] == bare[1], "nothing tells who is a user"


def test_too_many_tries_are_told(users):
    visitor = Visitor(site(users))
    for _ in range(10):
        assert visitor.post("/sign-in", data={"name": "ada", "password": "wrong"}).status_code == 401
    answer = visitor.post("/sign-in", data={"name": "ada", "password": PASSWORD})
    assert answer.status_code == 429
    assert "Too many failed tries. Try again in 15 min." in answer.text
    assert int(answer.headers["retry-after"]) > 0
    assert visitor.get("/enter?token=x").status_code == 429


def test_a_new_sign_in_ends_the_session_before(access, session, user):
    answer = user.post("/sign-in", data={"token": TOKEN})
    assert cookie_of(answer) != session
    assert access.user_of(session) is None


def test_signing_out(access, session, user):
    assert user.get("/sign-out").status_code == 405
    assert access.user_of(session) == "me"
    assert user.post("/sign-out", {}).status_code == 403
    answer = user.post("/sign-out")
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")
    assert access.user_of(session) is None
    assert f'{SESSION_COOKIE}=""' in answer.headers["set-cookie"]
    assert "Max-Age=0" in answer.headers["set-cookie"]


def test_who_is_signed_in_needs_no_form(user):
    assert user.get("/sign-in?next=/report").headers["location"] == "/report"


def test_who_comes_from_another_site_is_led_on_by_a_page(access):
    """The cookie is not sent behind a redirection of another site's."""
    visitor = Visitor(site(access))
    answer = visitor.get("/sign-in?next=/report%3Fa%3D1", {"Sec-Fetch-Site": "cross-site"})
    assert answer.status_code == 200
    assert '<meta http-equiv="refresh" content="0; url=/report?a=1">' in answer.text
    entered = visitor.get(f"/enter?token={TOKEN}", {"Sec-Fetch-Site": "cross-site"})
    assert entered.status_code == 200
    assert 'content="0; url=/"' in entered.text
    assert access.user_of(cookie_of(entered)) == "me"


OFF_SITE = [
    "//evil.example", "/\\evil.example", "\\\\evil.example", "https://evil.example", "https:evil.example",
    "evil.example", "javascript:alert(1)", "/\t/evil.example", "\t//evil.example", " //evil.example",
    "/.//evil.example", "///evil.example", "", "/a b", "/x\r\nSet-Cookie: a=b", "/\x00", '/"><script>', "/猫",
    "/sign-in", "/enter?token=x", "/sign-out", "/x#y", "/" + "x" * 3000,
]  # fmt: skip


@pytest.mark.parametrize("target", OFF_SITE)
def test_nobody_is_led_off_this_site(access, target):
    assert local_path(target) == "/"
    visitor = Visitor(site(access))
    assert 'name="next" value="/"' in visitor.get(f"/sign-in?next={quote(target)}").text
    assert visitor.post("/sign-in", data={"token": TOKEN, "next": target}).headers["location"] == "/"


@given(st.text(alphabet=st.sampled_from("/\\.:?#@%\t\n evilhtps25fc-"), max_size=20))
def test_no_address_leads_off_this_site(target):
    local = local_path(target)
    parts = urlsplit(local)
    assert (parts.scheme, parts.netloc) == ("", "")
    assert local.startswith("/")
    assert not local.startswith(("//", "/\\"))
    assert not re.search(r"[\s\\\"'<>]", local)


# A browser


@contextmanager
def served(*arguments: str) -> Iterator[tuple[str, int]]:
    """The address that a server of a small page prints, and its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.web_server", str(port), *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = server.stdout.readline().strip()
            for _ in range(300):
                with socket.socket() as knocking:
                    if knocking.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            yield address, port
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no chromium: Debian's package of this name has it")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as known:
        opened = known.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"],
        )
        yield opened
        opened.close()


@contextmanager
def tab_of(browser: Any) -> Iterator[tuple[Any, list[str], list[str]]]:
    """A tab of a new browser, what its console said, and the websockets that it opened."""
    context = browser.new_context()
    tab, heard, sockets = context.new_page(), [], []
    tab.set_default_timeout(30_000)
    tab.on("console", lambda message: heard.append(f"{message.type}: {message.text}"))
    tab.on("pageerror", lambda error: heard.append(str(error)))
    tab.on("websocket", lambda opened: sockets.append(opened.url))
    yield tab, heard, sockets
    context.close()


@pytest.mark.slow
def test_a_browser_signs_in_by_the_printed_address(browser):
    with served() as (address, port), tab_of(browser) as (tab, heard, sockets):
        home = f"http://127.0.0.1:{port}/"
        links = f'<link rel="icon" href="data:,"><a href="{address}">enter</a> <a href="{home}">home</a>'
        tab.route("http://elsewhere.example/", lambda route: route.fulfill(body=links, content_type="text/html"))
        tab.goto("http://elsewhere.example/")
        tab.click("text=enter")
        tab.wait_for_selector("text=signed in as me")
        assert tab.url == home, "the token is not in the address any more"
        (cookie,) = tab.context.cookies()
        flags = cookie["name"], cookie["httpOnly"], cookie["sameSite"], cookie["secure"], cookie["path"]
        assert flags == (SESSION_COOKIE, True, "Strict", False, "/")
        tab.click("button:has-text('Click')")
        tab.wait_for_selector("text=/^clicked$/")
        tab.set_input_files("input[type=file]", [{"name": "f.txt", "mimeType": "text/plain", "buffer": b"x"}])
        tab.wait_for_selector("text=got f.txt")
        assert tab.frame_locator("iframe").locator("#r").inner_text() == "a report"
        tab.goto("http://elsewhere.example/")
        tab.click("text=home")
        tab.wait_for_selector("text=signed in as me")
        assert len(sockets) == 2
        tab.click("#out")
        tab.wait_for_selector("form[action='/sign-in']")
        assert tab.context.cookies() == []
        tab.goto(home)
        assert tab.url == f"{home}sign-in"
        assert heard == []


@pytest.mark.slow
def test_a_browser_signs_in_by_password(browser, tmp_path):
    add_user(tmp_path / "users", "ada", PASSWORD)
    with served(str(tmp_path / "users")) as (_, port), tab_of(browser) as (tab, heard, sockets):
        tab.set_viewport_size({"width": 320, "height": 568})
        tab.goto(f"http://127.0.0.1:{port}/?a=1")
        assert tab.evaluate("document.documentElement.scrollWidth") <= 320
        assert tab.evaluate("document.activeElement.id") == "name"
        tab.keyboard.type("ada")
        tab.fill("#password", PASSWORD)
        tab.keyboard.press("Enter")
        tab.wait_for_selector("text=signed in as ada")
        assert tab.url == f"http://127.0.0.1:{port}/?a=1"
        tab.click("button:has-text('Click')")
        tab.wait_for_selector("text=/^clicked$/")
        assert len(sockets) == 1
        assert heard == []
