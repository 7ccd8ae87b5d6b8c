"""Which configuration belongs to an adapter file: the one of its folder, or of its own copy."""

import re
from pathlib import Path

__all__ = ["CONFIG", "config_beside", "copy_of"]

CONFIG = "adapter_config.json"
"""What PEFT calls the configuration of the adapter beside it."""

_COPY = re.compile(r"^.+?(?P<copy> ?\(\d+\)| - Copy(?: \(\d+\))?| copy(?: \d+)?)$")


def config_beside(file: Path) -> Path:
    """Where the adapter_config.json of an adapter file is; it may not exist.

    A browser that loads a second `adapter_model.safetensors` into a folder calls it `adapter_model (1).safetensors`,
    and its configuration `adapter_config (1).json`: these two belong together. Without such a configuration the plain
    one is taken.

    >>> config_beside(Path("a/adapter_model (1).safetensors")).as_posix()
    'a/adapter_config.json'
    """
    return copy_of(file, CONFIG)


def copy_of(file: Path, name: str) -> Path:
    """The file of this name that belongs to an adapter file: the copy of the same number, else the plain one.

    Args:
        file: the adapter.
        name: "trainer_state.json".
    """
    plain = file.with_name(name)
    copied = _COPY.match(file.stem)
    if copied is None:
        return plain
    numbered = file.with_name(f"{plain.stem}{copied['copy']}{plain.suffix}")
    return numbered if numbered.is_file() else plain
