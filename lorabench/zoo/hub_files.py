"""Adapter files of a repository on the hub, fetched once and kept by the hub's own client."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import constants, get_session, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

# The hub's client names its own copy of httpx here; another version raises other classes.
from huggingface_hub.utils import filter_repo_objects, httpx  # type: ignore[attr-defined]

from lorabench.errors import LorabenchError, explain_disk_errors

__all__ = ["HUB_ERRORS", "fetch_files", "matching", "why_no_hub"]

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


def matching(root: Path, files: Iterable[Path], patterns: Sequence[str] | None) -> set[Path]:
    """Those of the files below `root` that the hub's client would fetch by these patterns; None: all of them."""
    if patterns is None:
        return set(files)
    below = [file for file in files if file.is_relative_to(root)]
    names = filter_repo_objects(
        below, allow_patterns=list(patterns), key=lambda file: file.relative_to(root).as_posix()
    )
    return set(names)


def fetch_files(repository: str, kind: Literal["model", "dataset"], patterns: Any, subset: str | None = None) -> Path:
    """The folder of a repository's files, or the copy of it that the hub's client keeps.

    What was fetched before lies there too, so a reader goes by `matching`.

    Args:
        repository: OWNER/NAME.
        kind: what the hub has it as.
        patterns: a list of those of the files to fetch, `*` for any part of a path, checked here; None: all.
        subset: a folder of the repository, that the patterns and the result are of; None: all of it.

    Raises:
        LorabenchError: malformed patterns, no network and no copy, no such repository or subset, or a full disk.
    """
    _check_patterns(patterns)
    root = _snapshot(repository, kind, _below(subset, patterns)) / (subset or "")
    if not root.is_dir():
        raise LorabenchError(
            f"dataset.subset={subset}: {repository} has no such folder with files that dataset.repository_files "
            "matches. Name a folder that the repository's page lists."
        )
    return root


def _check_patterns(patterns: Any) -> None:
    texts = patterns is None or (
        isinstance(patterns, Sequence)
        and not isinstance(patterns, str)  # whose letters would be patterns
        and all(isinstance(pattern, str) and pattern for pattern in patterns)
        and len(patterns) > 0
    )
    if not texts:
        raise LorabenchError(
            f"dataset.repository_files={patterns!r}: a list of patterns or null is needed. Put them in brackets, for "
            "instance '[train/*.safetensors]'."
        )


def _below(subset: str | None, patterns: Sequence[str] | None) -> list[str] | None:
    if subset is None:
        return None if patterns is None else list(patterns)
    return [f"{subset}/{pattern}" for pattern in patterns or ["*"]]


def _snapshot(repository: str, kind: str, patterns: list[str] | None) -> Path:
    reached = why_no_hub(constants.ENDPOINT)
    try:
        with explain_disk_errors(Path(constants.HF_HUB_CACHE), _ROOM):
            return Path(
                snapshot_download(
                    repository,
                    repo_type=kind,
                    allow_patterns=patterns,
                    local_files_only=reached is not None,
                )
            )
    except (*HUB_ERRORS, HFValidationError) as error:
        why = reached or f"{type(error).__name__}: {error}"
        raise LorabenchError(
            f"cannot fetch {repository} from the hub ({why}). Check dataset.repository, or give a copy on this disk: "
            "dataset.path=DIR reads the folder of its files."
        ) from error
