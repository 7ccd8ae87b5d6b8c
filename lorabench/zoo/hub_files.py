"""Adapter files of a repository on the hub, fetched once and kept by the hub's own client."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from huggingface_hub import constants, get_session, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

# The hub's client names its own copy of httpx here; another version raises other classes.
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

from lorabench.errors import LorabenchError, explain_disk_errors

__all__ = ["HUB_ERRORS", "fetch_files", "why_no_hub"]

HUB_ERRORS = (ConnectionError, FileNotFoundError, HfHubHTTPError, httpx.TransportError)
"""What the hub's client raises where the hub, or what is asked of it, cannot be reached."""

_PROBE_SECONDS = 5.0
_ROOM = "Free some space, or set HF_HOME to a roomier place."


def why_no_hub(endpoint: str) -> str | None:
    """None if the hub can be reached, else why not, known within seconds."""
    try:
        get_session().head(endpoint, timeout=_PROBE_SECONDS)
    except (httpx.TransportError, OfflineModeIsEnabled) as error:
        return f"no network: {error}"
    return None


def fetch_files(repository: str, kind: Literal["model", "dataset"], patterns: Sequence[str] | None) -> Path:
    """The folder of a repository's files, or the copy of it that the hub's client keeps.

    Args:
        repository: OWNER/NAME.
        kind: what the hub has it as.
        patterns: of the files to fetch, `*` for any part of a path; None: all.

    Raises:
        LorabenchError: no network and no copy, no such repository, or a full disk.
    """
    reached = why_no_hub(constants.ENDPOINT)
    try:
        with explain_disk_errors(Path(constants.HF_HUB_CACHE), _ROOM):
            return Path(
                snapshot_download(
                    repository,
                    repo_type=kind,
                    allow_patterns=None if patterns is None else list(patterns),
                    local_files_only=reached is not None,
                )
            )
    except (*HUB_ERRORS, HFValidationError) as error:
        why = reached or f"{type(error).__name__}: {error}"
        raise LorabenchError(
            f"cannot fetch {repository} from the hub ({why}). Check dataset.repository, or give a copy on this disk: "
            "dataset.path=DIR reads the folder of its files."
        ) from error
