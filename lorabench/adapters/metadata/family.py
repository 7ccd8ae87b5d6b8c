"""Which family of base models an adapter fits, and whether its metadata says another."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lorabench.adapters.kinds import kinds
from lorabench.adapters.metadata.evidence import Said, Sources, look_up, said
from lorabench.adapters.names.families import Family, family_name, recognise
from lorabench.adapters.names.identity import identity
from lorabench.adapters.reading.table import ModuleRow

__all__ = ["BASE_VERSION", "BaseModel", "base_model", "family_of"]

BASE_VERSION = ("ss_base_model_version", "modelspec.architecture", "ot_config: model_type")
"""What names the kind of base model, in one of a few words."""

# The words that trainers have for families, in this order; of a key's variants ("flux2") the first letters agree.
_WORDS = tuple(
    (re.compile(pattern), key)
    for pattern, key in (
        (r"sd_?-?xl|stable-diffusion-xl", "sdxl"),
        (r"(sd|stable-diffusion)[_-]?v?3", "sd3"),
        (r"(sd|stable-diffusion)[_-]?v?2", "sd2"),
        (r"(sd|stable-diffusion)[_-]?v?1", "sd1"),
        (r"chroma", "chroma"),
        (r"flux[._-]?2", "flux2"),
        (r"flux", "flux"),
        (r"qwen[._-]?image", "qwen-image"),
        (r"z[._-]?image", "z-image"),
        (r"hunyuan[._-]?image", "hunyuan-image"),
        (r"hunyuan[._-]?video|framepack", "hunyuan-video"),
        (r"\bwan", "wan"),
        (r"lumina", "lumina2"),
        (r"anima\b", "anima"),
        (r"cosmos", "cosmos"),
        (r"krea[._-]?2", "krea2"),
        (r"ltx", "ltx"),
        (r"cogvideo", "cogvideox"),
        (r"hidream", "hidream"),
        (r"pixart", "pixart"),
        (r"sana\b", "sana"),
        (r"auraflow", "auraflow"),
    )
)


@dataclass(frozen=True)
class BaseModel:
    """What the tensors and the metadata say of the base model.

    Attributes:
        family: that the tensors fit; of several that they fit equally, the one that the metadata names.
        version: the metadata's word for it.
        contradicted: the family's name where the metadata names another, else "".
    """

    family: Family | None
    version: Said | None
    contradicted: str = ""


def base_model(known: Sources) -> BaseModel:
    """The family of the tensors, held against what the metadata claims.

    Trainers write `sd_1.5` for all that they do not know, so the tensors are right where the two disagree.
    """
    family = family_of(known.table.rows)
    version = look_up(known, {"version": BASE_VERSION}).get("version")
    text = str(version["value"]).lower() if version else ""
    claim = next((key for pattern, key in _WORDS if pattern.search(text)), None)
    if version is None or claim is None or family is None or family.denoiser is None:
        return BaseModel(family, version)
    if family.key.startswith(claim):
        return BaseModel(family, version)
    if claim in family.alternatives:
        named = f"{version['source']}, and the tensors fit"
        return BaseModel(replace(family, key=claim, name=family_name(claim), evidence=named), version)
    wrong = f"{version['value']} (contradicted by tensors: {family.name})"
    return BaseModel(family, said(wrong, version["source"]), family.name)


def family_of(rows: Sequence[ModuleRow]) -> Family | None:
    """The family of base models that an adapter's modules tell."""
    return recognise({identity(row.module): kinds()[row.form].widths(row.shapes, row.rank) for row in rows})
