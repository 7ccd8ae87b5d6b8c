"""What every request passes: host, path, origin, user and size; the headers that go back."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabench.errors import LorabenchError
from lorabench.web.access import Access
from lorabench.web.gate import DATA_POLICY, MOST_WEBSOCKETS, OPEN_PATHS, PAGE_POLICY, SESSION_COOKIE, Gate
from tests.web_visits import (
    HOST,
    HTML,
    MAX_BODY,
    OWN,
    PICTURE,
    SCRIPT,
    TOKEN,
    WRITES,
    Visitor,
    chunks,
    site,
    text,
    websocket,
    websocket_scope,
)  # fmt: skip


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


# Hosts


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        (HOST, True),
        ("lora.example", True),
        ("LORA.example:9000", True),
        ("[::1]:8080", True),
        ("127.0.0.1", False),
        ("127.0.0.1:8081", False),
        ("evil.example", False),
        ("lora.example.evil.example", False),
        ("lora.example.", False),
        ("lora.example@evil.example", False),
        ("lora.example:x", False),
        ("", False),
    ],
)
def test_only_known_hosts_are_answered(user, host, allowed):
    answer = user.get("/", [*user.cookies.items(), ("Host", host)])
    assert answer.status_code == (200 if allowed else 421)
    assert ("hello" in answer.text) is allowed
    origin = {"Host": host, "Origin": f"http://{host}", **user.cookies}
    sent = websocket(user.gate, origin, [])
    assert sent[0]["type"] == ("websocket.accept" if allowed else "websocket.close")


def test_two_hosts_or_none_are_refused(user):
    assert user.get("/", [*user.cookies.items(), ("Host", HOST), ("Host", HOST)]).status_code == 421
    assert websocket(user.gate, {**OWN, **user.cookies}, [])[0]["type"] == "websocket.close"


@pytest.mark.parametrize("hosts", [[], ["http://x"], ["x", "a b"], ["*"]])
def test_hosts_that_are_none(access, hosts):
    with pytest.raises(LorabenchError, match="hosts="):
        Gate(site(access), access, hosts, MAX_BODY)


def test_the_lifespan_passes(access):
    heard = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        heard.append(scope["type"])

    async def nothing(*_: Any) -> Any:
        return None

    asyncio.run(Gate(app, access, {HOST}, MAX_BODY)({"type": "lifespan"}, nothing, nothing))
    assert heard == ["lifespan"]


# Paths


@pytest.mark.parametrize(
    "path",
    ["/a%2fb", "/a%2Fb", "/a%5cb", "/a%00b", "/a%252fb", "/a%252e%252e/b", "/%2e%2e/b", "/a/%2e/b", "/a/%2E%2E",
     "/a//b", "/a%0ab", "/a%7fb"],
)  # fmt: skip
def test_paths_that_may_be_read_in_two_ways(user, path):
    assert user.get(path).status_code == 400


@pytest.mark.parametrize("path", ["/a/../b", "/a\\b", "//evil.example", "a", "*"])
def test_paths_that_no_browser_sends(user, path):
    origin = {"Host": HOST, **OWN, **user.cookies}
    assert websocket(user.gate, origin, [], path)[0]["type"] == "websocket.close"


def test_names_of_files_are_no_such_paths(user):
    for path in ("/a..b", "/.hidden", "/50%25", "/a%20b", "/%E7%8C%AB", "/a.", "/..."):
        assert user.get(path).status_code == 404


# Origins


@pytest.mark.parametrize("method", WRITES)
@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        (OWN, True),
        ({"Origin": f"HTTP://{HOST}"}, True),
        ({**OWN, "Sec-Fetch-Site": "same-origin"}, True),
        ({**OWN, "Sec-Fetch-Site": "cross-site"}, False),
        ({}, False),
        ({"Origin": "null"}, False),
        ({"Origin": f"https://{HOST}"}, False),
        ({"Origin": "http://127.0.0.1:8081"}, False),
        ({"Origin": "http://lora.example"}, False),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": f"http://{HOST}.evil.example"}, False),
        ({"Referer": f"http://{HOST}/"}, False),
    ],
)
def test_writes_come_from_this_very_origin(user, method, headers, allowed):
    assert user.ask(method, "/", headers).status_code == (200 if allowed else 403)


def test_ports_that_go_without_saying(access, session):
    gate = site(access)
    for scheme, port in (("http", "80"), ("https", "443")):
        visitor = Visitor(gate, session, scheme=scheme)
        for host, origin in (("lora.example", f":{port}"), (f"lora.example:{port}", ""), ("lora.example", "")):
            headers = [*visitor.cookies.items(), ("Host", host), ("Origin", f"{scheme}://lora.example{origin}")]
            assert visitor.post("/", headers).status_code == 200
        assert visitor.post("/", [*visitor.cookies.items(), ("Host", "lora.example"), ("Origin", "null")]).is_error


def test_two_origins_are_refused(user):
    assert user.post("/", [*user.cookies.items(), *OWN.items(), *OWN.items()]).status_code == 403


def test_strangers_are_held_to_the_origin_too(stranger):
    assert stranger.post("/sign-in", {}, data={"token": TOKEN}).status_code == 403
    assert stranger.post("/sign-in", data={"token": TOKEN}).status_code == 303


@pytest.mark.parametrize("origin", [{}, {"Origin": "http://evil.example"}, {**OWN, "Sec-Fetch-Site": "cross-site"}])
def test_websockets_come_from_this_very_origin(user, origin):
    sent = websocket(user.gate, {"Host": HOST, **origin, **user.cookies}, [text("x")])
    assert [message["type"] for message in sent] == ["websocket.close"]
    assert sent[0]["code"] == 1008


# Users


def test_a_page_without_a_session_leads_to_the_form(stranger):
    answer = stranger.get("/library?page=2&x=%2F", HTML)
    assert answer.status_code == 303
    assert answer.headers["location"] == "/sign-in?next=/library%3Fpage%3D2%26x%3D%252F"
    assert 'name="next" value="/library?page=2&amp;x=%2F"' in stranger.get(answer.headers["location"]).text
    assert stranger.get("/", HTML).headers["location"] == "/sign-in"
    assert stranger.ask("HEAD", "/x", HTML).status_code == 303


def test_everything_else_without_a_session_is_refused(stranger):
    for answer in (
        stranger.get("/"),
        stranger.post("/", {**OWN, **HTML}),
        stranger.get(SCRIPT),
    ):
        assert answer.status_code == 401
    for path in ("/api/me", "/api", "/api/none"):
        answer = stranger.get(path, HTML)
        assert answer.status_code == 401
        assert answer.json() == {"error": "Sign in first, at /sign-in."}
    for path in ("/ws", "/sign-in"):
        sent = websocket(stranger.gate, {"Host": HOST, **OWN}, [text("x")], path)
        assert [message["type"] for message in sent] == ["websocket.close"]


def test_the_app_knows_the_user(user):
    assert user.get("/").text == "hello me"
    assert user.get("/api/me").json() == {"user": "me"}
    sent = websocket(user.gate, {"Host": HOST, **OWN, **user.cookies}, [text("x")])
    assert [message.get("text") for message in sent] == [None, "me: x"]


def test_who_claims_to_be_somebody_is_not_believed(stranger, user):
    assert stranger.get("/api/me", {"X-User": "me", "X-Forwarded-User": "me"}).status_code == 401
    stolen = user.cookies["Cookie"]
    assert stranger.get("/", {"Cookie": stolen + "x"}).status_code == 401
    assert stranger.get("/", {"Cookie": f"{stolen}; {SESSION_COOKIE}=other"}).status_code == 401, "one cookie counts"
    assert stranger.get("/", {"Cookie": f"a=b; {stolen}; c"}).status_code == 200


def test_the_bearer_token_is_for_the_api_alone(stranger):
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert stranger.get("/api/me", bearer).json() == {"user": "me"}
    assert stranger.post("/api/body", bearer, content=b"12").text == "2"
    assert stranger.get("/", bearer).status_code == 401
    assert stranger.get("/api/me", {"Authorization": f"Basic {TOKEN}"}).status_code == 401
    assert stranger.get("/api/me", [*bearer.items(), *bearer.items()]).status_code == 401
    assert websocket(stranger.gate, {"Host": HOST, **OWN, **bearer}, [])[0]["type"] == "websocket.close"
    wrong = stranger.get("/api/me", {"Authorization": "Bearer wrong"})
    assert (wrong.status_code, wrong.headers["www-authenticate"]) == (401, "Bearer")


def test_the_bearer_token_needs_no_origin_where_there_is_no_cookie(stranger, user):
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert stranger.post("/api/body", {**bearer, "Cookie": "a=b"}).status_code == 403
    assert user.post("/api/body", bearer).status_code == 403
    assert user.post("/api/body", {**bearer, **OWN}).status_code == 200
    assert stranger.post("/api/body", {**bearer, "Origin": "http://evil.example"}).status_code == 403
    assert stranger.post("/api/body", {**bearer, "Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert stranger.post("/api/body", {"Authorization": "Bearer wrong"}).status_code == 403


def test_bearer_tokens_are_tried_ten_times(stranger):
    for _ in range(10):
        assert stranger.get("/api/me", {"Authorization": "Bearer wrong"}).status_code == 401
    answer = stranger.get("/api/me", {"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 429
    assert answer.json()["error"].startswith("Too many failed tries")
    assert 0 < int(answer.headers["retry-after"]) <= 900


def test_a_websocket_ends_with_its_session(access, session, user):
    headers = {"Host": HOST, **OWN, **user.cookies}
    sent = websocket(user.gate, headers, [text("x"), lambda: access.sign_out(session), text("y"), text("z")])
    assert [message["type"] for message in sent] == ["websocket.accept", "websocket.send", "websocket.close"]
    assert sent[1]["text"] == "me: x"


def test_one_user_has_so_many_websockets_at_a_time(access, user):
    headers, sent = {"Host": HOST, **OWN, **user.cookies}, []

    async def crowd() -> None:
        over = asyncio.Event()

        async def app(_scope: Any, _receive: Any, send: Any) -> None:
            await send({"type": "websocket.accept"})
            await over.wait()

        async def send(message: Any) -> None:
            sent.append(message["type"])

        gate = Gate(app, access, {HOST}, MAX_BODY)
        visits = [gate(websocket_scope(headers), over.wait, send) for _ in range(MOST_WEBSOCKETS + 2)]
        open_ones = asyncio.gather(*visits)
        await asyncio.sleep(0)
        over.set()
        await open_ones
        await gate(websocket_scope(headers), over.wait, send)

    asyncio.run(crowd())
    refused = ["websocket.close"] * 2
    assert sorted(sent[:-1]) == ["websocket.accept"] * MOST_WEBSOCKETS + refused
    assert sent[-1] == "websocket.accept", "there is room again"


def test_nothing_is_heard_of_a_websocket_whose_session_is_over(access, session, user):
    heard: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (message := await receive())["type"] != "websocket.disconnect":
            heard.append(message.get("text", ""))

    gate, headers = Gate(app, access, {HOST}, MAX_BODY), {"Host": HOST, **OWN, **user.cookies}
    sent = websocket(gate, headers, [text("x"), lambda: access.sign_out(session), text("y")])
    assert heard == ["", "x"]
    assert [message["type"] for message in sent] == ["websocket.close"]


@pytest.mark.parametrize("path", sorted(OPEN_PATHS))
def test_no_websocket_is_open_to_strangers(access, path):
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError(path)

    sent = websocket(Gate(app, access, {HOST}, MAX_BODY), {"Host": HOST, **OWN}, [], path)
    assert [message["type"] for message in sent] == ["websocket.close"]


def test_nothing_is_sent_to_a_websocket_whose_session_is_over(access, session, user):
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        access.sign_out(session)
        for _ in range(2):
            await send({"type": "websocket.send", "text": "secret"})

    sent = websocket(Gate(app, access, {HOST}, MAX_BODY), {"Host": HOST, **OWN, **user.cookies}, [])
    assert [message["type"] for message in sent] == ["websocket.accept", "websocket.close"]


PARTS = [
    "", "sign-in", "enter", "sign-out", "api", "me", "report", "ws", ".", "..", "%2f", "%2e", "_nicegui", "3.18.0",
    "static", "nicegui.js", ";", "SIGN-IN",
]  # fmt: skip
PATHS = st.one_of(
    st.text(max_size=30).map(lambda tail: f"/{tail}"),
    st.lists(st.sampled_from(PARTS), max_size=5).map(lambda parts: "/" + "/".join(parts)),
)


@settings(max_examples=150, deadline=None)
@given(path=PATHS, method=st.sampled_from(["GET", "HEAD", "POST", "PUT", "OPTIONS", "DELETE"]), html=st.booleans())
def test_no_path_is_shown_without_a_session(path, method, html):
    gate, sent = site(Access(token=TOKEN)), []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = {"Host": HOST, **OWN, "Accept": "text/html" if html else "*/*"}
    scope = {
        "type": "http", "method": method, "path": path, "raw_path": quote(path, safe="/%").encode(),
        "query_string": b"", "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        "scheme": "http", "client": ("1.1.1.1", 1), "root_path": "", "http_version": "1.1",
    }  # fmt: skip
    asyncio.run(gate(scope, receive, send))
    assert sent[0]["status"] in ({200, 401, 405, 503} if path in OPEN_PATHS else {303, 400, 401})
    location = dict(sent[0]["headers"]).get(b"location", b"/").decode()
    assert location.startswith("/")
    assert not location.startswith(("//", "/\\"))


# Sizes


def test_bodies_are_bounded(user):
    assert user.post("/body", content=b"x" * MAX_BODY).text == str(MAX_BODY)
    answer = user.post("/body", content=b"x" * (MAX_BODY + 1))
    assert (answer.status_code, answer.headers["connection"]) == (413, "close")
    assert user.post("/api/body", content=b"x" * (MAX_BODY + 1)).json()["error"].startswith("At most 100000 bytes")


def test_one_path_may_take_more(user, access, session):
    larger = Visitor(Gate(user.gate.app, access, {HOST}, MAX_BODY, {"/body": 2 * MAX_BODY}), session)
    assert larger.post("/body", content=b"x" * 2 * MAX_BODY).text == str(2 * MAX_BODY)
    assert larger.post("/body", content=b"x" * (2 * MAX_BODY + 1)).status_code == 413
    assert larger.post("/api/body", content=b"x" * (MAX_BODY + 1)).status_code == 413
    stranger = Visitor(larger.gate)
    assert stranger.post("/body", content=b"x" * MAX_BODY).status_code in (401, 413)


def test_bodies_in_chunks_are_counted_as_they_come(user):
    assert user.post("/body", content=chunks(MAX_BODY // 2, MAX_BODY // 2)).text == str(MAX_BODY)
    taken = []

    async def endless() -> AsyncIterator[bytes]:
        for number in range(1000):
            taken.append(number)
            yield b"x" * 10_000

    assert user.post("/body", content=endless()).status_code == 413
    assert len(taken) < 20
    assert user.post("/api/body", content=chunks(MAX_BODY, 1)).status_code == 413


def test_a_length_that_is_too_much_is_refused_before_a_byte_is_read(user):
    taken = []

    async def body() -> AsyncIterator[bytes]:
        taken.append(1)
        yield b"x"

    too_much = {**OWN, "Content-Length": str(MAX_BODY + 1)}
    assert user.post("/body", too_much, content=body()).status_code == 413
    assert taken == []


def test_an_answer_that_has_begun_breaks_off(access, session):
    """The status is out already, so that the connection is closed over an answer without an end."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"x" * MAX_BODY, "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while (await receive())["type"] == "http.request":
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await send({"type": "http.response.body", "body": b"done"})

    headers = {"host": HOST, **OWN, "cookie": f"{SESSION_COOKIE}={session}"}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/", "headers": raw, "scheme": "http", "query_string": b""}
    asyncio.run(Gate(app, access, {HOST}, MAX_BODY)(scope, receive, send))
    assert [message.get("body") for message in sent] == [None, b"x"]


@pytest.mark.parametrize("length", ["-1", "x", "1e3", "", "9" * 30])
def test_lengths_that_are_none(user, length):
    assert user.post("/body", {**OWN, "Content-Length": length}, content=b"x").status_code in (400, 413)


def test_strangers_may_send_little(stranger):
    assert stranger.post("/sign-in", data={"token": "x" * 20_000}).status_code == 413


# Headers


def test_every_answer_has_the_headers_of_security(stranger, user):
    answers = [
        user.get("/"), user.get("/none"), user.get("/api/me"), user.get("/report"), user.post("/", {}),
        user.get(SCRIPT), user.get("/a%2fb"), user.get("/", [("Host", "evil.example")]),
        stranger.get("/"), stranger.get("/", HTML), stranger.get("/sign-in"), stranger.get("/enter?token=x"),
        user.post("/body", content=b"x" * (MAX_BODY + 1)),
    ]  # fmt: skip
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert answer.headers["cross-origin-opener-policy"] == "same-origin"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert "camera=()" in answer.headers["permissions-policy"]
        assert "frame-ancestors" in answer.headers["content-security-policy"]
        assert {"server", "x-powered-by", "access-control-allow-origin"}.isdisjoint(answer.headers)


def test_each_answer_has_its_policy(user, stranger):
    page, report = user.get("/").headers, user.get("/report").headers
    assert (page["content-security-policy"], page["x-frame-options"]) == (PAGE_POLICY, "DENY")
    assert report["content-security-policy"] == "sandbox; frame-ancestors 'self'"
    assert report["x-frame-options"] == "SAMEORIGIN"
    for path in ("/api/me", PICTURE):
        assert user.get(path).headers["content-security-policy"] == DATA_POLICY
    form = stranger.get("/sign-in").headers
    assert "script-src" not in form["content-security-policy"]
    assert form["content-security-policy"].startswith("default-src 'none'; style-src 'nonce-")
    assert form["x-frame-options"] == "DENY"


def test_nothing_but_the_scripts_of_the_page_is_kept_by_a_browser(user, stranger):
    for path in ("/", "/api/me", PICTURE, "/none"):
        assert user.get(path).headers["cache-control"] == "no-store"
    assert stranger.get("/sign-in").headers["cache-control"] == "no-store"
    assert user.get(SCRIPT).headers["cache-control"] == "public, max-age=9"
