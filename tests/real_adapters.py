"""Real adapters for tests: published ones, where their folder lies beside the checkout, and ones made here.

The made ones are `tests.make_adapters`'; PEFT, diffusers and transformers are imported when one is asked for.
They stand for the published ones, so that a clone without these skips no test.
"""

import csv
from pathlib import Path
from typing import Any

__all__ = ["MADE", "MADE_BY_PEFT", "SHARED", "index", "key_lists", "made", "made_adapters", "published", "real",
           "real_files"]  # fmt: skip

SHARED = Path(__file__).parents[2] / "shared" / "adapters"
"""Published adapters; a public clone may lack them."""
MADE_BY_PEFT = {
    "bert": "peft", "bert_saved": "peft", "gpt2": "peft", "gpt2_patterns": "peft", "opt": "peft",
    "opt_adalora": "peft-adalora", "opt_dora": "peft", "opt_ia3": "peft-ia3", "opt_loha": "peft-loha",
    "opt_lokr": "peft-lokr", "opt_rslora": "peft", "toy": "peft",
}  # fmt: skip
MADE = {
    **{f"peft/{name}": form for name, form in MADE_BY_PEFT.items()},
    "diffusers": "diffusers",
    "diffusers_old/pytorch_lora_weights.bin": "diffusers-old",
    "diffusers_old/pytorch_lora_weights.safetensors": "diffusers-old",
    "kohya/style.safetensors": "kohya",
    "bloom": "peft",
    "cloneofsimo/style.safetensors": "other(cloneofsimo safetensors)",
    "cloneofsimo/style.pt": "other(cloneofsimo pt list)",
    "cloneofsimo/style.text_encoder.pt": "other(cloneofsimo pt list)",
    "cloneofsimo/style.ti.pt": "other(cloneofsimo pt list)",
    "loralib/roberta_lora.bin": "other(loralib)",
    "mlx/adapters.safetensors": "mlx",
    "sam/lora_weights/lora_rank2.safetensors": "other(w_a/w_b)",
    "sam/lora_weights/lora_rank4.safetensors": "other(w_a/w_b)",
    "sam/lora_weights/lora_rank8.safetensors": "other(w_a/w_b)",
    "broken/pointer.safetensors": "malformed",
    "broken/text.safetensors": "malformed",
}
"""Names of all files and folders below `made_adapters()`, with the formats of INDEX.tsv."""
_MADE_KEY_LISTS = ["keysets/flux_diffusers.json", "keysets/flux_kohya.json", "keysets/qwen_image_diffusers.json"]


def made_adapters() -> Path:
    """The folder of the made ones."""
    from tests import make_adapters

    return make_adapters.made_adapters()


def made(name: str) -> Path:
    """One file or folder of them."""
    return made_adapters() / name


def real(name: str) -> Path:
    """The file or folder of one name, published or made."""
    return SHARED / name if (SHARED / name).exists() else made(name)


def published(*cases: Any) -> tuple[Any, ...]:
    """These cases of a test where the published adapters are, and none elsewhere."""
    return cases if SHARED.is_dir() else ()


def index() -> list[dict[str, str]]:
    """A row (path, repository, format) for every adapter, made and published."""
    rows = [{"path": name, "repository": name, "format": form} for name, form in MADE.items()]
    if SHARED.is_dir():
        with (SHARED / "INDEX.tsv").open(encoding="utf-8", newline="") as file:
            rows += csv.DictReader(file, delimiter="\t")
    return rows


def key_lists() -> list[str]:
    """Names of the lists of keys and shapes, made and published."""
    return [*_MADE_KEY_LISTS, *sorted(f"keysets/{path.name}" for path in (SHARED / "keysets").glob("*.json"))]


def real_files(folder: Path) -> list[Path]:
    """All files of adapters below a folder of them."""
    return sorted(path for path in folder.rglob("*") if path.suffix in (".safetensors", ".bin", ".pt"))
