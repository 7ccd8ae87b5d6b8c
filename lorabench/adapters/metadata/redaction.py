r"""What metadata tells of people, machines and data, and the same without it.

Taken away whole, at any depth:

- session ids and times: `ss_session_id`, `ss_training_started_at`, `ss_training_finished_at`;
- tags and captions of the dataset, and the names of its folders: `ss_tag_frequency`, `ss_dataset_dirs`,
  `ss_reg_dataset_dirs`, `ss_datasets`, and every entry whose name ends in `tag_frequency`, `caption(s)`, `prompt(s)`;
- what a person typed or named: `ss_training_comment`, `ss_output_name`, and of the outermost entries a run's, a
  project's or a person's name: `name`, `run`, `job`, `project`, `experiment`, `creator`, `author`, `owner`,
  `trained_by` and the like (`modelspec.author` is published on purpose); inside JSON too, and there the
  `name` of what is called a run, a job, a project, their `config` or `meta`, if nothing else is above it;
- OneTrainer's whole configuration, `ot_config`; ComfyUI's `prompt`, `workflow` and `extra_pnginfo`, A1111's
  `parameters`, which hold all of these;
- every entry whose name ends in `dir(s)`, `folder(s)`, `cwd`, `argv`, `command_line`, `session_id`, `run_id`,
  `run_name`, `user(name)`, `host(name)`, `email`, `password`, `secret`, `api_key` or `access_token` and the like.

In all that stays, JSON inside included, a path of somebody's disk becomes its last part (of a model's cache folder:
its repository; of a home folder: nothing). Where a path ends is plain if it is all of a text, stands in quotes, or runs
to the end of a line or to one of `, ; ) ] } > |` with no other path after it. Elsewhere names may have blanks, so the
whole entry goes; inside JSON the text becomes "". What an author publishes on purpose stays: `modelspec.*`, the base
model's name, web addresses without a user's name, the settings.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lorabench.adapters.metadata.evidence import base_name

__all__ = ["is_private", "redact", "redact_config"]

_WHOLE = {
    "ss_session_id", "ss_training_started_at", "ss_training_finished_at", "ss_tag_frequency", "ss_dataset_dirs",
    "ss_reg_dataset_dirs", "ss_datasets", "ss_training_comment", "ss_output_name", "ot_config", "workflow",
    "extra_pnginfo", "parameters",
}  # fmt: skip
_PEOPLE = r"creators?|authors?|owner|trained_by|created_by|team|organi[sz]ation|company"
_NAMES = r"full_?name|(output|run|job|project|experiment|session|config|lora|adapter|author|creator|owner)[_-]?name"
_NAMED = re.compile(rf"(ss_)?(name|{_NAMES}|run|job|project|experiment|{_PEOPLE})", re.IGNORECASE)
# Inside JSON a "job" is of a sort ("train"), and a "name" that of a program, a schedule, a model, but for a run's.
_INNER_PEOPLE = re.compile(_PEOPLE, re.IGNORECASE)
_INNER_TEXTS = re.compile(rf"{_NAMES}|run|project|experiment", re.IGNORECASE)
_RUNS = re.compile(
    r"config(uration)?|meta|job|run|project|experiment|session|(run|job|project|experiment)[_-]?config", re.IGNORECASE
)
_ENDINGS = re.compile(
    r"(^|[._])(tag_frequency|captions?|prompts?|dirs?|director(y|ies)|folders?|workflows?|session_id|run_id|run_name"
    r"|user|username|user_name|host|hostname|host_name|email|password|secret|cwd|argv|cmd|cmdline|command_line"
    r"|api_key|(access|api|auth|hf|huggingface)_token)$",
    re.IGNORECASE,
)
# Names of modules, often as regular expressions, whose backslashes are no paths: another name is another adapter.
_MODULES = {
    "target_modules", "exclude_modules", "modules_to_save", "target_parameters", "layers_pattern", "rank_pattern",
    "alpha_pattern", "auto_mapping",
}  # fmt: skip

# Where a path of a disk begins: at a protocol, a drive, a host, a home, a variable, here; or at a root, below.
_ROOT = (
    r"(?:(?<![+-])[A-Za-z][\w+.-]*:/{2,}|file:/|(?<![A-Za-z])[A-Za-z]:[/\\]|\\\\|~[\w.-]*[/\\]|\.{1,2}[/\\]"
    r"|\$\{?\w+\}?[/\\]|%\w+%[/\\]"
)
_FILES = r"\.(?:safetensors|ckpt|pth?|bin|npz|png|jpe?g|webp|bmp|gif|mp4|txt|caption|json|toml|ya?ml|csv|py|sh)"
_WHOLE_PATH = re.compile(_ROOT + r"|/)[^\n]*")
_FILE = re.compile(_FILES + r"$")
_QUOTED = re.compile(r"([\"'`])(" + _ROOT + r"|/[^\s/\"'`]+/)[^\"'`\n]*)\1")
_INSIDE = re.compile(
    r"(?<![\w./\\~%$])(?:" + _ROOT + r"|/[^\s/\"'`<>]+/)[^\s\"'`,;<>|)\]}]*"
    r"|(?<!-)[\w.-]+(?:[/\\][\w.-]+)*[/\\][\w.-]+" + _FILES + r"\b)"
)
_ENDS = re.compile(r"[^\S\n]*(?:\Z|\n)|[,;<>|)\]}]")
_HOMES = {"home", "users", "documents and settings"}
_HOME_INSIDE = re.compile(r"[/\\](?:home|users|documents and settings)[/\\]", re.IGNORECASE)
_PUBLIC = re.compile(r"https?://(?![^/\s]*@)[^\s\"'`<>]+|data:[\w.+-]+/[\w.+-]+;base64,[\w+/=]*")


def redact(metadata: Mapping[str, str]) -> dict[str, str]:
    """Metadata without what this module's head names."""
    kept = {key: value for key, value in metadata.items() if not is_private(key) and not _NAMED.fullmatch(key)}
    cleaned = {key: _without_paths(value, key) for key, value in kept.items()}
    return {key: value for key, value in cleaned.items() if value is not None}


def redact_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """adapter_config.json, the same way; every option of PEFT's stays, and so do all names of modules."""
    return {
        key: value if key in _MODULES else _walk(value, key) for key, value in config.items() if not is_private(key)
    }


def is_private(key: str) -> bool:
    """Whether an entry of this name is taken away whole."""
    return key in _WHOLE or _ENDINGS.search(key) is not None


def _without_paths(text: str, *of: str) -> str | None:
    """A text without paths; None where it must go whole. `of` is as for `_walk`."""
    bare = text.strip()
    if bare[:1] in ("{", "["):
        try:
            found = json.loads(bare)
            cleaned = _walk(found, *of)
        except (ValueError, RecursionError):
            return _plain(text)
        return text if cleaned == found else json.dumps(cleaned)
    return _plain(text)


def _walk(value: Any, *of: str) -> Any:
    """A value of JSON, below entries of these names, the outermost first."""
    if isinstance(value, dict):
        inside = ((key, one) for key, one in value.items() if not (is_private(key) or _is_a_persons(key, one, of)))
        known = {_plain(key): _walk(one, *of, key) for key, one in inside}
        return {key: one for key, one in known.items() if key is not None}
    if isinstance(value, list):
        return [_walk(one, *of) for one in value]
    return (_without_paths(value, *of) or "") if isinstance(value, str) else value


def _is_a_persons(key: str, value: Any, of: Sequence[str]) -> bool:
    """Whether an entry inside JSON is a person, or a name that one gave to what is run."""
    if "modelspec" in of:
        return False
    if _INNER_PEOPLE.fullmatch(key):
        return True
    if not isinstance(value, str):
        return False
    # the name of a run's configuration, and none of that of a schedule
    of_a_run = bool(of) and all(map(_RUNS.fullmatch, of[1:] or of))
    return _INNER_TEXTS.fullmatch(key) is not None or (key.lower() == "name" and of_a_run)


def _plain(text: str) -> str | None:
    bare = text.strip()
    if _PUBLIC.fullmatch(bare):
        return text
    return _last(bare) if _is_path(bare) else _inside(text)


def _is_path(text: str) -> bool:
    """Whether a text is a path and no more; `owner/name` is a repository."""
    if _WHOLE_PATH.fullmatch(text):
        return True
    parts = re.split(r"[/\\]", text)
    if len(parts) == 1 or re.search(r"[:;,=<>|\"'\n]", text) or not re.search("[A-Za-z]", text):
        return False
    return _FILE.search(text) is not None or (len(parts) > 2 and not re.search(r"\s", text) and "" not in parts)


def _last(path: str) -> str | None:
    """A path's last part, "" for a home folder; None where it may be a host or a user."""
    parts = [part for part in re.split(r"[/\\]", path) if part]
    if (len(parts) > 1 and parts[-2].lower() in _HOMES) or (len(parts) == 1 and path[0] == "~"):
        return ""
    if "://" in path and (len(parts) < 3 or "@" in path):
        return None
    name = base_name(path)
    return parts[-1] if name == path and parts else name


def _inside(text: str) -> str | None:
    """A text that is more than a path; None where it cannot be told where one ends."""
    kept: list[str | None] = []

    def keep(what: str | None) -> str:
        kept.append(what)
        return f"\0{len(kept) - 1}\0"

    quiet = _PUBLIC.sub(lambda match: keep(match[0]), text)
    published = len(kept)
    quiet = _QUOTED.sub(lambda match: keep(_certain(match[2], match[1])), quiet)
    quiet = _INSIDE.sub(lambda match: keep(_unquoted(match)), quiet)
    if len(kept) == published:
        return None if _HOME_INSIDE.search(quiet) else text
    if None in kept or "\0" in text or re.search(r"[/\\]", quiet):
        return None
    return re.sub("\0([0-9]+)\0", lambda match: kept[int(match[1])] or "", quiet)


def _unquoted(match: re.Match[str]) -> str | None:
    text, start, end = match.string, match.start(), match.end()
    # host:/path names a machine, and who has a home folder may be called by several words
    if text[max(start - 1, 0) : start] == ":" or not _ENDS.match(text, end):
        return None
    last = _certain(match[0])
    return last if last or end == len(text) else None


def _certain(path: str, quote: str = "") -> str | None:
    """The last part in its quotes; None where something else stands in it."""
    last = None if "\0" in path else _last(path)
    return None if last is None else f"{quote}{last}{quote}"
