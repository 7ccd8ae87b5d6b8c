"""The W&B server that this machine is set to use, and whether there is a key for it."""

import netrc
import os
import socket
from urllib.parse import ParseResult, urlparse

__all__ = ["address", "has_key", "is_reachable"]


def address() -> str:
    """WANDB_BASE_URL, or W&B's own."""
    return _server().geturl()


def has_key() -> bool:
    """Whether there is one: WANDB_API_KEY, or what `wandb login` has written."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators(_server().hostname or "") is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False


def is_reachable() -> bool:
    """Whether the server answers within three seconds."""
    server = _server()
    port = server.port or (80 if server.scheme == "http" else 443)
    try:
        with socket.create_connection((server.hostname or "", port), timeout=3):
            return True
    except OSError:
        return False


def _server() -> ParseResult:
    return urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
