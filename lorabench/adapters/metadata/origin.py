"""Where an adapter comes from: base model, training and dataset, each value with the entry that says it."""

import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from lorabench.adapters.kinds import kinds
from lorabench.adapters.metadata.dataset_facts import datasets, tags, trigger_words
from lorabench.adapters.metadata.evidence import PEFT, STATE, Said, Sources, base_name, look_up, said
from lorabench.adapters.metadata.family import BASE_VERSION, BaseModel
from lorabench.adapters.reading.beside import CONFIG
from lorabench.adapters.reading.table import Table

__all__ = ["model_info", "network_info", "peft_method", "training_info"]

# A source is an entry of the metadata, or "file or entry: key.key" for one inside; the first that says anything wins.
_MODEL: Mapping[str, tuple[str, ...]] = {
    "base_model": (
        "ss_sd_model_name", f"{CONFIG}: base_model_name_or_path", f"{CONFIG}: model", "base_model", "baseModel",
        "ot_config: base_model_name", f"{PEFT}: base_model_name_or_path",
    ),
    "base_model_version": BASE_VERSION,
    "base_model_hash": ("ss_new_sd_model_hash", "ss_sd_model_hash"),
    "title": ("modelspec.title", "ss_output_name", "name", "title"),
    "author": ("modelspec.author", "author"),
    "license": ("modelspec.license", "license"),
    "description": ("modelspec.description", "description"),
    "date": ("modelspec.date",),
    "usage_hint": ("modelspec.usage_hint",),
    "tags": ("modelspec.tags", "tags"),
    "prediction_type": ("modelspec.prediction_type",),
    "implementation": ("modelspec.implementation",),
    "merged_from": ("modelspec.merged_from",),
    "vae": ("ss_vae_name",),
    "base_model_class": (f"{CONFIG}: auto_mapping.base_model_class",),
    "task": (f"{CONFIG}: task_type",),
}  # fmt: skip
_TRAINING: Mapping[str, tuple[str, ...]] = {
    "learning_rate": ("ss_learning_rate", f"{CONFIG}: learning_rate", "ot_config: learning_rate", "learning_rate"),
    "unet_learning_rate": ("ss_unet_lr", "ot_config: unet.learning_rate"),
    "text_encoder_learning_rate": (
        "ss_text_encoder_lr", "ss_text_encoder_lr1", "ot_config: text_encoder.learning_rate",
    ),
    "scheduler": (
        "ss_lr_scheduler", "ss_lr_scheduler_type", f"{CONFIG}: lr_schedule.name", "ot_config: learning_rate_scheduler",
    ),
    "warmup_steps": ("ss_lr_warmup_steps", f"{CONFIG}: lr_schedule.warmup", "ot_config: learning_rate_warmup_steps"),
    "optimizer": ("ss_optimizer", f"{CONFIG}: optimizer", "ot_config: optimizer.optimizer"),
    "batch_size": (
        "ss_total_batch_size", "ss_batch_size_per_device", "ss_datasets: batch_size_per_device",
        f"{CONFIG}: batch_size", f"{STATE}: train_batch_size", "ot_config: batch_size", "batch_size",
    ),
    "gradient_accumulation_steps": ("ss_gradient_accumulation_steps", "ot_config: gradient_accumulation_steps"),
    "epochs": ("ss_num_epochs", f"{STATE}: num_train_epochs", "ot_config: epochs", "num_epochs", "epochs"),
    "epoch": ("ss_epoch", "training_info: epoch", f"{STATE}: epoch"),
    "steps": ("ss_steps", "training_info: step", f"{STATE}: global_step", "steps"),
    "planned_steps": ("ss_max_train_steps", f"{STATE}: max_steps", f"{CONFIG}: iters"),
    "images": ("ss_num_train_images", "ss_datasets: num_train_images"),
    "regularisation_images": ("ss_num_reg_images", "ss_datasets: num_reg_images"),
    "resolution": ("ss_resolution", "ss_datasets: resolution", "modelspec.resolution", "ot_config: resolution"),
    "clip_skip": ("ss_clip_skip",),
    "mixed_precision": ("ss_mixed_precision", "ot_config: train_dtype"),
    "seed": ("ss_seed", f"{CONFIG}: seed", "ot_config: seed"),
    "loss": ("ss_loss_type",),
    "noise_offset": ("ss_noise_offset",),
    "min_snr_gamma": ("ss_min_snr_gamma",),
    "max_sequence_length": (f"{CONFIG}: max_seq_length", "ss_max_token_length"),
    "comment": ("ss_training_comment",),
}  # fmt: skip
_NETWORK: Mapping[str, tuple[str, ...]] = {
    "network_module": ("ss_network_module", f"{CONFIG}: peft_type", f"{CONFIG}: fine_tune_type", f"{PEFT}: peft_type"),
    "network_rank": ("ss_network_dim", f"{CONFIG}: r", f"{CONFIG}: lora_parameters.rank", f"{PEFT}: r"),
    "network_alpha": (
        "ss_network_alpha", f"{CONFIG}: lora_alpha", f"{CONFIG}: lora_parameters.alpha", f"{PEFT}: lora_alpha",
    ),
    "network_scale": (f"{CONFIG}: lora_parameters.scale",),
    "network_arguments": ("ss_network_args",),
    "network_dropout": ("ss_network_dropout", f"{CONFIG}: lora_dropout", f"{CONFIG}: lora_parameters.dropout"),
    "rank_pattern": (f"{CONFIG}: rank_pattern",),
    "alpha_pattern": (f"{CONFIG}: alpha_pattern",),
    "use_rslora": (f"{CONFIG}: use_rslora",),
    "use_dora": (f"{CONFIG}: use_dora",),
    "bias": (f"{CONFIG}: bias",),
    "fan_in_fan_out": (f"{CONFIG}: fan_in_fan_out",),
    "modules_to_save": (f"{CONFIG}: modules_to_save",),
    "asked_modules": (f"{CONFIG}: target_modules",),
}  # fmt: skip
_METHODS = {
    **{name: kind.title for name, kind in kinds().items()},
    **dict.fromkeys(("linear", "conv", "tucker", "embedding"), "LoRA"),
    "ia3": "IA3", "unilora": "Uni-LoRA", "oft": "OFT", "vera": "VeRA",
    "vblora": "VB-LoRA", "glora": "GLoRA", "full_diff": "full difference", "textual_inversion": "textual inversion",
}  # fmt: skip
_PEFT = {
    "UNILORA": "Uni-LoRA", "VERA": "VeRA", "VBLORA": "VB-LoRA", "FOURIERFT": "FourierFT", "GLORA": "GLoRA",
    "BONE": "Bone", "MISS": "MiSS", "RANDLORA": "RandLoRA", "ROAD": "RoAd", "WAVEFT": "WaveFT", "SHIRA": "SHiRA",
    "HIRA": "HiRA", "DELORA": "DeLoRA", "XLORA": "X-LoRA", "P_TUNING": "p-tuning", "ADAPTION_PROMPT": "adaption prompt",
    "TRAINABLE_TOKENS": "trainable tokens", "CARTRIDGE": "cartridge",
}  # fmt: skip
"""How the papers write PEFT's types; a type that is not here stays as it is written."""


def model_info(known: Sources, base: BaseModel) -> dict[str, Said]:
    """Base model, its family, and what the author says of the adapter; what nothing says is left out."""
    info = look_up(known, _MODEL)
    if "base_model" in info:
        info["base_model"] = said(base_name(str(info["base_model"]["value"])), info["base_model"]["source"])
    if base.version is not None:
        info["base_model_version"] = base.version
    if base.family is not None:
        info["family"] = said(base.family.name, base.family.evidence)
    nearest = base.version if base.version is not None and not base.contradicted else info.get("family")
    if nearest is not None:
        info.setdefault("base_model", said(nearest["value"], nearest["source"]))
    return info


def training_info(known: Sources, top_tags: int = 20) -> dict[str, Said]:
    """How the adapter was trained and on what; what nothing says is left out.

    Args:
        known: see `evidence.sources`.
        top_tags: how many of the dataset's most frequent tags to name.
    """
    found = {"method": _method(known.table), **look_up(known, _TRAINING)}
    for name, look in _SPECIAL.items():
        one = look(known)
        if one is not None:
            found.setdefault(name, one)
    if "steps" not in found and "planned_steps" in found:
        found["steps"] = dict(found["planned_steps"])
    counted, source = tags(known)
    if counted:
        ranked = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
        found["dataset_tags"] = said(dict(ranked[:top_tags]), source)
        found["dataset_tag_count"] = said(len(counted), source)
    order = [*dict.fromkeys(("method", "trainer", *_TRAINING, *found))]
    return {name: found[name] for name in order if name in found}


def network_info(known: Sources) -> dict[str, Said]:
    """The network as the trainer was asked for it."""
    return look_up(known, _NETWORK)


def peft_method(config: Mapping[str, Any]) -> str:
    """What PEFT calls an adapter that is no LoRA of any kind, from its configuration; "" for LoRA and where it is mute.

    >>> peft_method({"peft_type": "PREFIX_TUNING"}), peft_method({"peft_type": "LORA"})
    ('prefix tuning', '')
    """
    asked = config.get("peft_type")
    lora = {kind.peft_type for kind in kinds().values()}
    if not isinstance(asked, str) or not asked.isidentifier() or asked in lora:  # else it is no name, but rubbish
        return ""
    return _PEFT.get(asked, asked.replace("_", " ").lower() if asked.endswith("TUNING") else asked)


def _method(table: Table) -> Said:
    names = [_METHODS.get(row.kind, row.kind) for row in table.rows]
    names += [_METHODS[kind] for kind in table.unsupported if kind in _METHODS]
    if "DoRA" in names:
        names = ["LoRA", *names]
    if any(
        row.kind in ("conv", "tucker") and max(row.shapes.get("mid", row.shapes["down"])[2:], default=1) > 1
        for row in table.rows
    ):
        names = ["LoRA with convolutions (LoCon)" if name == "LoRA" else name for name in names]
    asked = peft_method(table.config)
    if asked and not table.rows:
        return said(asked, f"{CONFIG}: peft_type")
    if not names:
        return said("unknown", "tensor names")
    root = any("sqrt" in row.scale_rule for row in table.rows)
    return said(" + ".join(dict.fromkeys(names)) + (", rank-stabilised" if root else ""), "tensor names")


def _trainer(known: Sources) -> Said | None:
    config, metadata = known.table.config, known.metadata
    software = metadata.get("software")
    name = software.get("name") if isinstance(software, dict) else software
    if name:
        version = software.get("version", "") if isinstance(software, dict) else ""
        return said(f"{name} {version}".strip(), "software")
    mapping = config.get("auto_mapping")
    unsloth = isinstance(mapping, dict) and bool(mapping.get("unsloth_fixed"))
    version = config.get("peft_version")
    hints: tuple[tuple[str, str, bool], ...] = (
        ("kohya sd-scripts", "ss_sd_scripts_commit_hash", "ss_sd_scripts_commit_hash" in metadata),
        ("kohya sd-scripts or a fork", "ss_network_module", "ss_network_module" in metadata),
        ("OneTrainer", "ot_branch", "ot_branch" in metadata),
        ("Unsloth", f"{CONFIG}: auto_mapping.unsloth_fixed", unsloth),
        (f"PEFT {version}", f"{CONFIG}: peft_version", bool(version)),
        ("PEFT", f"{CONFIG}: peft_type", "peft_type" in config),
        ("mlx-lm", "tensor names", "mlx" in known.table.schemes),
        ("cloneofsimo/lora", "tensor names", "cloneofsimo" in known.table.schemes),
        ("diffusers", PEFT, PEFT in metadata),
    )
    return next((said(name, source) for name, source, so in hints if so), None)


def _steps_in_name(known: Sources) -> Said | None:
    match = re.match(r"0*(\d+)_adapters\.", known.table.file.name)  # as mlx-lm names what it keeps on the way
    return said(int(match[1]), "file name") if match else None


def _logged_rate(known: Sources) -> Said | None:
    log = known.places[STATE].get("log_history")
    rates = [one.get("learning_rate") for one in log if isinstance(one, dict)] if isinstance(log, list) else []
    numbers = [rate for rate in rates if isinstance(rate, float) and math.isfinite(rate)]
    return said(max(numbers), f"{STATE}: highest of log_history") if numbers else None


def _moment(key: str) -> Callable[[Sources], Said | None]:
    def look(known: Sources) -> Said | None:
        seconds = known.metadata.get(key)
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < 253402300800:
            return None
        return said(datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds"), key)

    return look


def _duration(known: Sources) -> Said | None:
    start, stop = (known.metadata.get(f"ss_training_{at}_at") for at in ("started", "finished"))
    if not isinstance(start, int | float) or not isinstance(stop, int | float) or not start <= stop < start + 1e9:
        return None
    return said(round(stop - start, 1), "ss_training_finished_at - ss_training_started_at")


_SPECIAL: Mapping[str, Callable[[Sources], Said | None]] = {
    "trainer": _trainer,
    "learning_rate": _logged_rate,
    "steps": _steps_in_name,
    "datasets": datasets,
    "trigger_words": trigger_words,
    "started": _moment("ss_training_started_at"),
    "finished": _moment("ss_training_finished_at"),
    "seconds": _duration,
}
