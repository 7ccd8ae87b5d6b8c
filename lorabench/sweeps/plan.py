"""The jobs of a sweep: what each is started with, where it writes, and which of them are done already."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from lorabench.configs import check_values, check_whole, chosen_and_resolved, configuration_key, make
from lorabench.errors import LorabenchError
from lorabench.jobs import STATUS, Job, Status, read_jobs, read_status
from lorabench.progress import track
from lorabench.report.folders import result_in
from lorabench.sweeps.composition import Compositions
from lorabench.text import counted

__all__ = ["Planned", "combinations", "plan", "plan_text"]


_OF_ALL = ("output_dir", "cache_dir", "dry_run", "rerun")


@dataclass(frozen=True)
class Planned:
    """A job, and what is known of it before it starts.

    Attributes:
        job: it.
        status: of what lies in its folder.
        done: whether it need not be run.
    """

    job: Job
    status: Status
    done: bool


def combinations(words: Sequence[str], loader: ConfigLoader) -> dict[str, list[str]]:
    """Name and overrides of every job: all combinations of the axes, the last one changing fastest.

    Args:
        words: overrides in Hydra's syntax; a later one of a key takes the place of an earlier.
        loader: Hydra's, which knows what `glob` matches.

    Raises:
        LorabenchError: an axis has no value, or no end.
    """
    axes: dict[str, list[str]] = {}
    for override in OverridesParser.create(config_loader=loader).parse_overrides(list(words)):
        axes[override.get_key_element().lstrip("+")] = _values(override)  # +seed and seed are one axis
    empty = [key for key, values in axes.items() if not values]
    if empty:
        raise LorabenchError(f"{empty[0]}: no name matches, so there is no job; name the values, or another pattern")
    wrong = [key for key in _OF_ALL if len(axes.get(key, [])) > 1]
    if wrong:
        raise LorabenchError(f"{wrong[0]} is one for all jobs of a sweep: give one value")
    several = [len(values) > 1 for values in axes.values()]
    return {
        " ".join(itertools.compress(overrides, several)) or "the only job": list(overrides)
        for overrides in itertools.product(*axes.values())
    }


def _values(override: Override) -> list[str]:
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"]
    if not override.is_discrete_sweep():
        raise LorabenchError(f"{key}: an interval has no end of values; list them: {key}=A,B,C")
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def plan(folder: Path, jobs: Mapping[str, list[str]], config: DictConfig, loader: ConfigLoader) -> list[Planned]:
    """Where every job writes, and whether it is done; combinations that come to the same are one job.

    A job takes the folder of an earlier one of the same configuration and code, if the sweep's folder has one; it is
    done if that one is, its results can be read, the zoo is still the same (a dry run does not look), and `rerun` is
    false. One of which no configuration can be made takes the folder of an earlier such job of the same overrides. The
    others take the next free numbers.

    Args:
        folder: the sweep's.
        jobs: name and overrides of each.
        config: the sweep's, with what Hydra adds.
        loader: Hydra's.

    Raises:
        LorabenchError: the zoo of a job that is done cannot be read: what that job has found would be lost.
    """
    earlier = _planned_before(folder)
    known = _known(folder, earlier)
    places = {place for place, _ in known.values()}
    refused = {  # where another's results are, they stay
        tuple(job.overrides): job.folder for job in earlier if not job.configuration and job.folder not in places
    }
    taken = {path.name for path in folder.glob("*")} | {job.folder for job in earlier} | places
    free = (str(number) for number in itertools.count() if str(number) not in taken)
    compositions, zoos = Compositions(config, loader), dict[str, str]()
    planned: dict[str, Planned] = {}
    for title, overrides in track(jobs.items(), "Plan"):
        cfg, key = _composed(overrides, compositions)
        place, status = known.get(key, ("" if key else refused.get(tuple(overrides), ""), Status("queued")))
        done = status.status == "done" and _readable(folder / place)
        if done and not config.dry_run:
            done = status.fingerprint == _fingerprint(cfg, zoos, title)
        if key not in planned or not key:
            job = Job(place or next(free), title, overrides, key)
            planned[key or title] = Planned(job, status, done and not config.rerun)
    return list(planned.values())


def _planned_before(folder: Path) -> list[Job]:
    """The jobs of an earlier command, which may have been killed before it made their folders."""
    try:
        jobs = read_jobs(folder)
    except LorabenchError:  # the first command into the folder, or what it left is damaged
        return []
    return [job for job in jobs if job.folder.isdecimal()]


def _known(folder: Path, earlier: Sequence[Job]) -> dict[str, tuple[str, Status]]:
    """Configuration -> folder and status of the job that has it."""
    known = {job.configuration: (job.folder, Status("queued")) for job in earlier if job.configuration}
    for file in sorted(folder.glob(f"*/{STATUS}")):
        status = read_status(file.parent)
        key = status.configuration or ""
        if key and (key not in known or known[key][0] == file.parent.name or status.status == "done"):
            known[key] = file.parent.name, status
    return known


def _readable(folder: Path) -> bool:
    try:
        result_in(folder)
    except LorabenchError:
        return False
    return True


def _fingerprint(cfg: DictConfig, zoos: dict[str, str], title: str) -> str:
    """Of the zoo of a job that is done: what it has found may be lost only where that zoo is surely another one."""
    source = OmegaConf.to_yaml(cfg.dataset, resolve=True)
    if source not in zoos:
        try:
            zoos[source] = make(cfg.dataset).fingerprint
        except LorabenchError as error:
            raise LorabenchError(
                f"{title} is done here, and whether its zoo is still the same cannot be seen: {error} (nothing was "
                "queued, and what was done before is kept)"
            ) from error
    return zoos[source]


def _composed(overrides: list[str], compositions: Compositions) -> tuple[DictConfig, str]:
    """The configuration of a job, and its key; "" where nothing can be made of it: the job itself will say so."""
    cfg, choices = compositions.of(overrides)
    try:
        check_whole(cfg)
        check_values(cfg, choices)
        return cfg, configuration_key(chosen_and_resolved(cfg, choices)[1])
    except LorabenchError:
        return cfg, ""


def plan_text(planned: Sequence[Planned]) -> str:
    """A line a job, and what the rest will take by what the done ones took."""
    lines = [f"{'done' if one.done else 'to run':7s} {one.job.name}" for one in planned]
    left = sum(not one.done for one in planned)
    took = [one.status.seconds for one in planned if one.done and one.status.seconds is not None]
    peaks = [one.status.peak_memory_mb for one in planned if one.done and one.status.peak_memory_mb is not None]
    guess = "; none is done, by which the time could be reckoned"
    if not left:
        guess = ""
    elif took and peaks:
        seconds = left * sum(took) / len(took)
        guess = f", in about {seconds:.0f} s one after another and {max(peaks):.0f} MB, going by those that are done"
    return "\n".join([*lines, f"{counted(len(planned), 'job')}, {left} to run{guess}"])
