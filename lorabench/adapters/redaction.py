"""What metadata tells of people, machines and data, and the same without it.

Taken away whole:

- session ids and times: `ss_session_id`, `ss_training_started_at`, `ss_training_finished_at`;
- tags and captions of the dataset, and the names of its folders: `ss_tag_frequency`, `ss_dataset_dirs`,
  `ss_reg_dataset_dirs`, `ss_datasets`, and every entry whose name ends in `tag_frequency`, `caption(s)`, `prompt(s)`;
- what a person typed or named: `ss_training_comment`, `ss_output_name`;
- OneTrainer's whole configuration, `ot_config`, which holds all of these;
- every entry whose name ends in `dir(s)`, `folder(s)`, `session_id`, `run_id`, `run_name`, `user(name)`, `host(name)`,
  `email`, `password`, `secret`, `api_key` or `access_token`.

In all that stays, JSON inside included, a path of somebody's disk becomes its last part (of a model's cache folder:
its repository). What an author publishes on purpose stays: `modelspec.*`, the base model's name, the settings.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from lorabench.adapters.evidence import base_name

__all__ = ["is_private", "redact", "redact_config"]

_WHOLE = {
    "ss_session_id", "ss_training_started_at", "ss_training_finished_at", "ss_tag_frequency", "ss_dataset_dirs",
    "ss_reg_dataset_dirs", "ss_datasets", "ss_training_comment", "ss_output_name", "ot_config",
}  # fmt: skip
_ENDINGS = re.compile(
    r"(^|[._])(tag_frequency|captions?|prompts?|dirs?|folders?|session_id|run_id|run_name|user|username|user_name|host"
    r"|hostname|host_name|email|password|secret|api_key|access_token)$",
    re.IGNORECASE,
)
# A path that starts at a root, a drive, a host or a home, up to what cannot stand in one without quotes.
_PATH = re.compile(
    r"(?<![\w:/.\\])(?:file:/+|[A-Za-z]:[/\\]+|\\\\|~/|\.{1,2}[/\\]"
    r"|/(?=(?:home|Users|root|mnt|media|tmp|var|opt|srv|data|workspace|content|kaggle|Volumes|scratch|storage)/))"
    r"[^\s\"',;<>|)\]}]+"
)
_WHOLE_PATH = re.compile(r"(?:file:/+|/|~/|[A-Za-z]:[/\\]|\\\\|\.{1,2}[/\\])[^\n]+")


def redact(metadata: Mapping[str, str]) -> dict[str, str]:
    """Metadata without what this module's head names."""
    return {key: _without_paths(value) for key, value in metadata.items() if not is_private(key)}


def redact_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """adapter_config.json, the same way; every option of PEFT's stays."""
    return {key: _walk(value) for key, value in config.items() if not is_private(key)}


def is_private(key: str) -> bool:
    """Whether an entry of this name is taken away whole."""
    return key in _WHOLE or _ENDINGS.search(key) is not None


def _without_paths(text: str) -> str:
    bare = text.strip()
    if bare[:1] in ("{", "["):
        try:
            found = json.loads(bare)
            cleaned = _walk(found)
        except (ValueError, RecursionError):
            return _plain(text)
        return text if cleaned == found else json.dumps(cleaned)
    return _plain(text)


def _walk(value: Any) -> Any:
    if isinstance(value, dict):
        return {_plain(key): _walk(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_walk(one) for one in value]
    return _plain(value) if isinstance(value, str) else value


def _plain(text: str) -> str:
    if _WHOLE_PATH.fullmatch(text):
        return base_name(text)
    return _PATH.sub(lambda match: base_name(match[0]), text)
