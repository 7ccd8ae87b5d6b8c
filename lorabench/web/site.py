"""What one server has: made once, given to the API and to every panel."""

import functools
import html
import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lorabench.web.access import Access
from lorabench.web.models import Models
from lorabench.web.notices import Notices
from lorabench.web.previews import Previews
from lorabench.web.queue import Job, Queue
from lorabench.web.rows import Rows
from lorabench.web.runs import Runs
from lorabench.web.settings import Settings
from lorabench.web.shelf import Shelf
from lorabench.web.uploads import Uploads

__all__ = ["Site", "make_site"]


@dataclass(frozen=True)
class Site:
    """A server's parts.

    Attributes:
        settings: how it is run.
        access: who is let in.
        uploads: what users brought.
        queue: what runs.
        shelf: adapters to choose from.
        runs: of the benchmark.
        models: of runs, to ask.
        notices: of jobs that have ended.
        previews: of resizes.
    """

    settings: Settings
    access: Access
    uploads: Uploads
    queue: Queue
    shelf: Shelf
    runs: Runs
    models: Models
    notices: Notices
    previews: Previews = field(default_factory=Previews)

    def used(self, user: str) -> int:
        """Bytes that a user's uploads and jobs take."""
        return self.uploads.size(user) + self.queue.size(user)

    def answer(self, job: Job) -> dict[str, Any] | None:
        """What a job has answered, adapters called by their names and not by where they lie; None: nothing yet."""
        found = self.queue.answer(job.user, job.id)
        if found is None:
            return None
        answer: dict[str, Any] = json.loads(self.named(json.dumps(found, ensure_ascii=False)))
        return answer

    def named(self, text: str) -> str:
        """Words of a command's or of a refusal's, without where the server keeps what they are about."""
        return self._places.sub("", text)

    @functools.cached_property
    def _places(self) -> re.Pattern[str]:
        """The server's folders, as they stand in text, in JSON, in pages and in addresses."""
        own = (
            r"/uploads/[\w.-]+/\.?[0-9a-f]{16}(?:-\w+)?/?",
            r"/jobs/[\w.-]+/[0-9a-f]{16}/(?:out/)?",
            r"(?:/|(?![\w.-]))",
        )
        found = [_spelt(self.settings.data) + end for end in own]
        above = [one.path.parent for one in self.models.all()]  # a model is called by its folder's name
        shown = [self.settings.folder, *self.settings.runs, *dict.fromkeys(above)]
        found += [_spelt(one) + own[-1] for one in shown if one not in (None, Path("/"), Path())]
        return re.compile("|".join(found))

    def tidy(self) -> None:
        """Take away what is older than the settings allow."""
        seconds = self.settings.keep_days * 86400
        self.uploads.forget_older(seconds, self.queue.reads)
        self.queue.forget_older(seconds)


def make_site(settings: Settings, access: Access) -> Site:
    """The parts over a server's folder.

    Raises:
        LorabenchError: a folder is not there or cannot be written, or another server works on it.
    """
    # Jobs have working directories of their own, so paths must lead to the same place from anywhere.
    folder = settings.folder and settings.folder.resolve()
    settings = replace(settings, data=settings.data.resolve(), folder=folder)
    uploads = Uploads(settings.data / "uploads", settings.max_upload, settings.quota)
    queue = Queue(settings.data / "jobs", settings.jobs, memory=settings.job_memory)
    shelf = Shelf(folder, uploads, queue, Rows(settings.data / "headers.jsonl"))
    notices = Notices(settings.data / "notices.json", queue)
    return Site(settings, access, uploads, queue, shelf, Runs(settings.runs), Models(settings.models), notices)


def _spelt(path: Path | None) -> str:
    text = str(path)
    spellings = (
        text,
        html.escape(text),
        json.dumps(text)[1:-1],
        json.dumps(text, ensure_ascii=False)[1:-1],
        quote(text),
    )
    return f"(?:{'|'.join(map(re.escape, dict.fromkeys(spellings)))})"
