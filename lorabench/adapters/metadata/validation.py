"""Whether an adapter is whole, and agrees with what its configuration says."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lorabench.adapters.finding import Finding
from lorabench.adapters.kinds import kinds
from lorabench.adapters.metadata.evidence import Said, Sources
from lorabench.adapters.metadata.family import BaseModel
from lorabench.adapters.metadata.origin import peft_method
from lorabench.adapters.reading.beside import CONFIG
from lorabench.adapters.reading.hashes import NOTHING, check_hashes
from lorabench.adapters.reading.patterns import Regex, plain_names
from lorabench.adapters.reading.scaling import NO_CONFIG
from lorabench.adapters.reading.switching import UNPLACED
from lorabench.adapters.reading.table import ModuleRow, Table
from lorabench.text import counted, some

__all__ = ["validate"]

_RENAMERS = tuple(
    (re.compile(pattern, re.IGNORECASE), name)
    for pattern, name in (
        (r"ai-?toolkit", "ai-toolkit"),
        (r"musubi", "musubi-tuner"),
        (r"one-?trainer", "OneTrainer"),
        (r"diffusion-?pipe", "diffusion-pipe"),
        (r"simple-?tuner", "SimpleTuner"),
    )
)
_MUSUBI = re.compile(r"lora_(wan|framepack|fpack|qwen_image|hv|hunyuan|zimage|kandinsky|flux_kontext|flux_2)")
"""Networks of musubi-tuner; the hash is of its own names, and its converter renames them."""
_NO_ADAPTER = {"full_weight", "bias", "other", "textual_inversion", "alpha_alone"}
"""Kinds of tensors that make no adapter where nothing else is in the file."""


def validate(
    known: Sources,
    network: Mapping[str, Said],
    base: BaseModel,
    *,
    strict: bool,
    hashes: bool,
    values: bool = False,
) -> dict[str, Any]:
    """Every check of one file.

    Args:
        known: the file, and what is said of it.
        network: what the trainer was asked for (`origin.network_info`).
        base: the base model that tensors and metadata tell.
        strict: whether a tensor that cannot be analysed is an error.
        hashes: whether to hold the file's hashes against all its bytes.
        values: whether to read the weights and look for NaN, infinity and untrained modules.

    Returns:
        "valid", "errors" and "warnings" in words, "checks", "unsupported" (kind -> keys), and "assumed" (what the
        file did not say -> number of modules).

    Raises:
        LorabenchError: the file cannot be read for its hashes or weights.
    """
    table = known.table
    findings = [
        *_modules(table),
        *_pairs(table),
        *_ranks(table),
        *_alphas(table),
        *_merged(table),
        *_asked(table, network),
        *_targets(table, network),
        *_unsupported(table, strict),
        *_base(base),
        *(_values(table) if values else _no_values(table)),
        *(_hashes(known) if hashes else ()),
        *(Finding("warning", "beside", note) for note in known.notes),
    ]
    words = {level: [one.message for one in findings if one.level == level] for level in ("error", "warning")}
    return {
        "valid": not words["error"],
        "errors": words["error"],
        "warnings": words["warning"],
        "checks": [{"check": one.check, "level": one.level, "message": one.message} for one in findings],
        "unsupported": {kind: list(keys) for kind, keys in table.unsupported.items()},
        "assumed": dict(Counter(note for row in table.rows for note in row.assumed)),
    }


def _modules(table: Table) -> Iterator[Finding]:
    count = len(table.rows)
    if count:
        yield Finding("ok", "modules", f"{counted(count, 'module')} that can be analysed")
    elif set(table.unsupported) <= _NO_ADAPTER and not table.problems and not peft_method(table.config):
        held = ", ".join(sorted(table.unsupported)) or "no tensors at all"
        yield Finding("error", "modules", f"no adapter: the file holds {held}")
    elif not table.problems:
        held = ", ".join(sorted(table.unsupported))
        yield Finding("warning", "modules", f"no module that can be analysed, only {held}")


def _pairs(table: Table) -> Iterator[Finding]:
    for problem in table.problems:
        yield Finding("error", "pairs", problem)
    if table.rows and not table.problems:
        yield Finding("ok", "pairs", "every pair is complete and fits together")


def _ranks(table: Table) -> Iterator[Finding]:
    bad = [row for row in table.rows if row.rank <= 0 and not kinds()[row.form].rankless]
    if bad:
        yield Finding("error", "rank", f"{counted(len(bad), 'module')} without a positive rank: {_names(bad)}")
    elif table.rows:
        yield Finding("ok", "rank", "every rank is positive")
    over = [row for row in table.rows if row.rank > _narrower(row) > 0]
    if over:
        yield Finding("warning", "rank", f"{counted(len(over), 'module')} of a rank above the width: {_names(over)}")


def _alphas(table: Table) -> Iterator[Finding]:
    missing = [row for row in table.rows if row.alpha_source.startswith("assumed")]
    if missing:
        # only kohya's and LyCORIS' files carry one α a module; the others know no better
        theirs = {"kohya", "lycoris"} & set(table.schemes)
        text = f"no alpha for {len(missing)} of {len(table.rows)} modules: alpha = r is assumed"
        partly = len(missing) < len(table.rows)
        parted = any(row.alpha_source == NO_CONFIG for row in missing)
        if parted:
            text += f"; PEFT keeps it in {CONFIG}, which is not beside the file: put it there, or ΔW has the wrong size"
        yield Finding("warning" if theirs or partly or parted else "ok", "alpha", text)
    elif table.rows:
        sources = ", ".join(dict.fromkeys(row.alpha_source for row in table.rows))
        yield Finding("ok", "alpha", f"every module has its alpha or scale ({sources})")
    still = [row for row in table.rows if row.scale == 0]
    if still:
        yield Finding(
            "warning", "alpha", f"{counted(len(still), 'module')} of scale 0, without effect: {_names(still)}"
        )
    backward = [row for row in table.rows if row.scale < 0 or not math.isfinite(row.scale)]
    if backward:
        yield Finding("warning", "alpha", f"{counted(len(backward), 'module')} of negative scale: {_names(backward)}")


def _merged(table: Table) -> Iterator[Finding]:
    unplaced = [row for row in table.rows if UNPLACED in row.assumed]
    if unplaced:
        yield Finding("warning", "merged", f"{counted(len(unplaced), 'module')}, {UNPLACED}: {_names(unplaced)}")


def _values(table: Table) -> Iterator[Finding]:
    from lorabench.adapters.metadata.values import read_values  # numpy; a header alone is read without

    report = read_values(table)
    for keys, word in ((report.nan, "NaN"), (report.infinite, "infinite values")):
        if keys:
            yield Finding("error", "values", f"{word} in {counted(len(keys), 'tensor')}: {some(keys)}")
    if not report.nan and not report.infinite:
        yield Finding("ok", "values", "all weights are finite")
    if report.untrained:
        text = f"{counted(len(report.untrained), 'module')} untrained, a factor of all zeros: "
        yield Finding("warning", "values", text + some(report.untrained))


def _no_values(table: Table) -> Iterator[Finding]:
    if table.format != "pickle" and table.rows:
        text = "weights were not read, the header alone: NaN and untrained modules cannot be seen (--values reads them)"
        yield Finding("note", "values", text)


def _asked(table: Table, network: Mapping[str, Said]) -> Iterator[Finding]:
    """Rank and α against what the trainer was asked for."""
    other = Counter(note for row in table.rows for note in row.assumed if note.startswith(f"{CONFIG} says r"))
    for note, count in other.items():
        yield Finding("warning", "rank against config", f"{note} ({counted(count, 'module')})")
    found: dict[str, Callable[[ModuleRow], float | None]] = {
        "network_rank": lambda row: row.rank,
        "network_alpha": lambda row: row.alpha,
    }
    agreed = False
    for name, get in found.items():
        asked = network.get(name)
        if asked is None or not asked["source"].startswith("ss_") or not isinstance(asked["value"], int | float):
            continue  # "Dynamic", after a resize; PEFT's patterns are minded by the table itself
        plain = [row for row in table.rows if row.kind in ("linear", "dora", "loha") and get(row) is not None]
        unlike = [row for row in plain if not math.isclose(get(row) or 0, asked["value"], rel_tol=1e-2)]
        agreed |= bool(plain) and not unlike
        if unlike:
            text = f"{asked['source']} = {asked['value']}, and {len(unlike)} of {len(plain)} modules have another"
            yield Finding("warning", f"{name.removeprefix('network_')} against config", f"{text}: {_names(unlike)}")
    if table.rows and not other and (agreed or "r" in table.config):
        yield Finding("ok", "rank against config", "rank and configuration agree")


def _targets(table: Table, network: Mapping[str, Said]) -> Iterator[Finding]:
    """PEFT's target modules: every one was adapted, and nothing else."""
    asked = network.get("asked_modules")
    if asked is None or not table.rows or asked["value"] == "all-linear":
        return
    names = [row.module for row in table.rows]
    if isinstance(asked["value"], list):
        wanted = [str(one) for one in asked["value"]]
        missing = [one for one in wanted if not any(_ends(name, one) for name in names)]
        extra = [name for name in names if not any(_ends(name, one) for one in wanted)]
    elif (listed := plain_names(str(asked["value"]))) is not None:
        missing = sorted(set(listed) - set(names))
        extra = [name for name in names if name not in set(listed)]
    else:
        try:
            pattern = Regex(str(asked["value"]))
            missing, extra = [], [name for name in names if not pattern.matches(name)]
        except ValueError as error:
            text = f"target_modules is no regular expression that is read here ({error}): left unchecked"
            yield Finding("warning", "target modules", text)
            return
    if missing:
        yield Finding("warning", "target modules", f"{CONFIG} names modules without tensors: {some(missing)}")
    if extra:
        yield Finding(
            "warning", "target modules", f"{CONFIG} does not name {counted(len(extra), 'module')}: {some(extra)}"
        )
    if not missing and not extra:
        yield Finding("ok", "target modules", "the target modules are those of the configuration")


def _unsupported(table: Table, strict: bool) -> Iterator[Finding]:
    asked = peft_method(table.config)
    for kind, keys in table.unsupported.items():
        method = f", {asked} by its configuration," if asked and not table.rows else ""
        text = f"kind {kind}{method} cannot be analysed ({counted(len(keys), 'tensor')}): {some(keys)}"
        yield Finding("error" if strict else "warning", "unsupported", text)


def _base(base: BaseModel) -> Iterator[Finding]:
    if base.version is not None and base.contradicted:
        yield Finding("warning", "base model", f"{base.version['source']} says {base.version['value']}")


def _hashes(known: Sources) -> Iterator[Finding]:
    header = known.table.header
    for key, checked in check_hashes(header).items() if header is not None else ():
        if checked.ok:
            yield Finding("ok", "hashes", f"{key} is right")
        elif checked.ok is None:
            yield Finding("warning", "hashes", f"{key} cannot be checked: the header is longer than 1 MiB")
        elif checked.stored.strip().lower() in (NOTHING, f"0x{NOTHING}", NOTHING[:8]):
            yield Finding("note", "hashes", f"{key} is the hash of nothing: its trainer took it of no tensors")
        elif not checked.stored.strip():
            yield Finding("note", "hashes", f"{key} is empty: its trainer took none")
        elif renamer := _renamer(known):
            text = f"{key} is of other bytes: {renamer} takes it before the tensors are renamed, so it tells nothing"
            yield Finding("note", "hashes", text)
        else:
            text = (
                f"{key} is wrong, the file changed since: it says {checked.stored[:80]}, its bytes say {checked.found}"
            )
            yield Finding("error", "hashes", text)


def _renamer(known: Sources) -> str:
    """Who took a hash and then renamed the tensors; "" where nobody is known to."""
    says = " ".join(str(known.metadata.get(key, "")) for key in ("software", "modelspec.implementation"))
    trainers = (name for pattern, name in _RENAMERS if pattern.search(says))
    if name := next(trainers, "OneTrainer" if "ot_branch" in known.metadata else ""):
        return name
    network = str(known.metadata.get("ss_network_module", ""))
    if _MUSUBI.search(network):
        return "musubi-tuner"
    return "" if {"kohya", "lycoris"} & set(known.table.schemes) else "whoever converted the file"


def _narrower(row: ModuleRow) -> int:
    """The smaller of a pair's d_out and d_in; 0 for what is no plain pair."""
    down, up = row.shapes.get("down", ()), row.shapes.get("up", ())
    if row.kind not in ("linear", "embedding", "dora") or len(down) != 2 or len(up) != 2:
        return 0
    return min(math.prod(shape) // row.rank for shape in (down, up)) if row.rank > 0 else 0


def _ends(name: str, wanted: str) -> bool:
    return name == wanted or name.endswith(f".{wanted}")


def _names(rows: Sequence[ModuleRow]) -> str:
    return some([row.module for row in rows])
