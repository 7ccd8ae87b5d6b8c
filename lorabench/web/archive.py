"""Several files as one download: a ZIP that is made while it goes out, so that nothing of it lies anywhere."""

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

__all__ = ["zipped"]

_CHUNK = 2**20


class _Out:
    """What a ZIP is written to; it cannot be gone back in."""

    def __init__(self) -> None:
        self._waiting = bytearray()

    def write(self, data: bytes) -> int:
        """Take bytes."""
        self._waiting += data
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def take(self) -> bytes:
        """What has come since the last time."""
        taken, self._waiting = bytes(self._waiting), bytearray()
        return taken


def zipped(files: Mapping[str, Path | bytes]) -> Iterator[bytes]:
    """The bytes of a ZIP of files, or of what shall stand in them; weights do not get smaller, so nothing is packed.

    Args:
        files: name in the archive -> where it lies, or its content.
    """
    out = _Out()
    with zipfile.ZipFile(out, "w") as archive:  # type: ignore[call-overload]  # it asks for no more than this
        for name, source in files.items():
            with archive.open(name, "w", force_zip64=True) as place:
                if isinstance(source, bytes):
                    place.write(source)
                    continue
                with source.open("rb") as file:
                    while chunk := file.read(_CHUNK):
                        place.write(chunk)
                        yield out.take()
    yield out.take()
