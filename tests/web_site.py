"""A server's parts over a folder of a test's own, with its API behind the gate, and users who ask it."""

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from lorabench.web.access import Access
from lorabench.web.api import api
from lorabench.web.gate import Gate
from lorabench.web.settings import Settings
from lorabench.web.site import Site, make_site
from tests.make_adapters import made_adapters

TOKEN = "t" * 40
ADDRESS = "http://localhost:8765"


def folder_of_adapters(place: Path) -> Path:
    """A diffusers file, a kohya file, a PEFT folder, and what is no adapter."""
    made = made_adapters()
    shutil.copytree(made / "diffusers_old", place / "old")
    shutil.copytree(made / "kohya", place / "kohya")
    shutil.copytree(made / "peft" / "gpt2", place / "gpt2")
    shutil.copytree(made / "broken", place / "broken")
    return place


def make(place: Path, **how: Any) -> Site:
    """The parts; the queue is not started."""
    settings = Settings(place / "data", folder_of_adapters(place / "adapters"), **how)
    return make_site(settings, Access(token=TOKEN))


class Scripts:
    """Asks the API as a script does, in this process.

    Args:
        site: the server's parts.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self.app = FastAPI(openapi_url="/api/openapi.json")
        self.app.include_router(api(site))
        self.gate = Gate(self.app, site.access, site.settings.hosts, site.settings.max_upload + 2**20)
        self.headers = {"Authorization": f"Bearer {TOKEN}"}

    async def ask(self, method: str, path: str, **how: Any) -> httpx.Response:
        """One request."""
        transport = httpx.ASGITransport(self.gate, client=("127.0.0.1", 5000))
        headers = {**self.headers, **how.pop("headers", {})}
        async with httpx.AsyncClient(transport=transport, base_url=ADDRESS) as client:
            return await client.request(method, path, headers=headers, **how)

    async def bring(self, files: Sequence[tuple[str, bytes]]) -> httpx.Response:
        """Upload files in one request."""
        return await self.ask("POST", "/api/adapters", files=[("file", (name, data)) for name, data in files])


def ended(site: Site, user: str, job_id: str, seconds: float = 120) -> Mapping[str, Any]:
    """A job when it is over."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        job = site.queue.job(user, job_id)
        if job.state not in ("waiting", "running"):
            return {"state": job.state, "error": job.error, "log": site.queue.log(user, job_id)}
        time.sleep(0.05)
    raise AssertionError(f"{job_id} has not ended: {site.queue.log(user, job_id)}")
