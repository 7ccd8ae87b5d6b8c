"""A W&B server of this machine that takes everything, or refuses what a test asks it to."""

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import wandb


@dataclass
class Server:
    """What it was asked.

    Attributes:
        address: for WANDB_BASE_URL.
        refused: operation -> status code; "stream": the numbers.
        asked: operation and variables, in order.
        streams: bodies of what was streamed.
        files: paths of uploaded files.
    """

    address: str = ""
    refused: dict[str, int] = field(default_factory=dict)
    asked: list[tuple[str, dict]] = field(default_factory=list)
    streams: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    def runs(self) -> list[dict]:
        """What it was told of runs as they began."""
        told = [variables for name, variables in self.asked if name == "UpsertBucket"]
        return [one for one in told if one.get("displayName")]


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, **refused: int) -> Iterator[Server]:
    """A server that WANDB_BASE_URL names, with a key for it."""
    found = Server(refused=refused)
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(found))
    found.address = f"http://127.0.0.1:{http.server_port}"
    monkeypatch.setenv("WANDB_BASE_URL", found.address)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "15")
    wandb.teardown()  # W&B reads its address once a process
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        wandb.teardown()
        http.shutdown()
        http.server_close()
        thread.join()


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    return type("Handler", (_Handler,), {"told": server})


class _Handler(BaseHTTPRequestHandler):
    told: Server

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._answer(404, {})

    def do_PUT(self):
        self._body()
        self.told.files.append(self.path.removeprefix("/put/"))
        self._answer(200, {})

    def do_POST(self):
        body = self._body()
        if self.path == "/graphql":
            self._graphql(json.loads(body))
        elif self.path.endswith("/file_stream"):
            self.told.streams.append(body.decode())
            self._answer(self.told.refused.get("stream", 200), {"limits": {}})
        else:
            self._answer(200, {})

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _graphql(self, asked):
        name = re.search(r"(?:query|mutation) (\w+)", asked["query"])[1]
        variables = asked.get("variables") or {}
        self.told.asked.append((name, variables))
        data = _data(name, variables, self.told.address)
        code = self.told.refused.get(name, 200 if data else 400)
        self._answer(code, {"data": data} if code == 200 else {"errors": [{"message": "permission denied"}]})

    def _answer(self, code, data):
        text = json.dumps(data).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


def _data(name: str, variables: dict, address: str) -> dict | None:
    """The answer to an operation; None of one that this server does not know."""
    project = {"id": "p", "name": variables.get("project"), "entity": {"id": "e", "name": "me"}}
    bucket = {"id": "b", "name": variables.get("name"), "displayName": variables.get("displayName")}
    more = {"description": "", "config": "{}", "sweepName": None, "historyLineCount": 0, "project": project}
    urls = [{"name": one, "uploadUrl": f"{address}/put/{one}"} for one in variables.get("files", [])]
    viewer = {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
    return {
        "Viewer": {"viewer": viewer},
        "ServerFeaturesQuery": {"serverInfo": {"features": []}},
        "OrganizationCoreWeaveOrganizationID": {"entity": None},
        "RunResumeStatus": {"model": {**project, "bucket": None}},
        "UpsertBucket": {"upsertBucket": {"inserted": True, "bucket": {**bucket, **more}}},
        "CreateRunFiles": {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": urls}},
        "UpsertView2": {"upsertView": {"view": {"id": "v", "name": "nw-abc-v"}, "inserted": True}},
    }.get(name)
