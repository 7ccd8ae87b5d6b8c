"""What an adapter was trained on: folders, trigger words and tags."""

import re
from typing import Any

from lorabench.adapters.metadata.evidence import Said, Sources, base_name, said
from lorabench.adapters.reading.beside import CONFIG

__all__ = ["datasets", "tags", "trigger_words"]

_CONCEPT = re.compile(r"^\d+_(?P<name>.+)$")  # kohya's folders: "16_red fox" is repeated 16 times


def datasets(known: Sources) -> Said | None:
    """Name, repeats and number of images of every folder."""
    folders = known.metadata.get("ss_dataset_dirs")
    if isinstance(folders, dict) and folders:
        value = [
            {"name": name, "repeats": one.get("n_repeats"), "images": one.get("img_count")}
            for name, one in folders.items()
            if isinstance(one, dict)
        ]
        return said(value, "ss_dataset_dirs")
    subsets = [
        {
            "name": one.get("class_tokens") or base_name(str(one.get("image_dir") or one.get("metadata_file") or "")),
            "repeats": one.get("num_repeats"),
            "images": one.get("img_count"),
        }
        for one in _subsets(known)
    ]
    if subsets:
        return said(subsets, "ss_datasets: subsets")
    data = known.table.config.get("data")
    return (
        said([{"name": base_name(data), "repeats": None, "images": None}], f"{CONFIG}: data")
        if isinstance(data, str)
        else None
    )


def _subsets(known: Sources) -> list[dict[str, Any]]:
    every = known.metadata.get("ss_datasets")
    found = []
    for one in every if isinstance(every, list) else []:
        inside = one.get("subsets") if isinstance(one, dict) else None
        found += [subset for subset in inside if isinstance(subset, dict)] if isinstance(inside, list) else []
    return found


def trigger_words(known: Sources) -> Said | None:
    """Words that call the adapter: as the author says, else the classes and folders it was trained on."""
    for key in ("modelspec.trigger_phrase", "ss_trigger_words", "trigger_words", "trigger_word", "trigger_phrase"):
        value = known.metadata.get(key)
        if value:
            return said([str(one) for one in value] if isinstance(value, list) else [str(value)], key)
    tokens = [str(one["class_tokens"]) for one in _subsets(known) if one.get("class_tokens")]
    if tokens:
        return said(list(dict.fromkeys(tokens)), "ss_datasets: subsets.class_tokens")
    learned = sorted(key for key in known.metadata if re.fullmatch(r"<.+>", key))  # safetensors orders by chance
    if learned:
        return said(learned, "names of learned embeddings")
    folders = known.metadata.get("ss_dataset_dirs")
    names = [_CONCEPT.match(name) for name in folders] if isinstance(folders, dict) else []
    concepts = list(dict.fromkeys(match["name"] for match in names if match))
    return said(concepts, "ss_dataset_dirs (names of folders)") if concepts else None


def tags(known: Sources) -> tuple[dict[str, int | float], str]:
    """Every tag of the dataset and how often it occurs, over all its folders."""
    counts: dict[str, int | float] = {}
    direct = known.metadata.get("ss_tag_frequency")
    if isinstance(direct, dict) and direct:
        _count(direct, counts)
        return counts, "ss_tag_frequency"
    every = known.metadata.get("ss_datasets")
    for one in every if isinstance(every, list) else []:
        _count(one.get("tag_frequency") if isinstance(one, dict) else None, counts)
    return counts, "ss_datasets: tag_frequency"


def _count(found: Any, counts: dict[str, int | float]) -> None:
    for name, value in found.items() if isinstance(found, dict) else ():
        if isinstance(value, dict):
            _count(value, counts)
        elif isinstance(value, int | float) and not isinstance(value, bool) and value == value:  # NaN is no count
            tag = name.strip()
            counts[tag] = counts.get(tag, 0) + value
