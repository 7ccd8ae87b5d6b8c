"""Options as one object: checked for callers, documented, and made into a command line."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest

from lorabench.commands.options import add_options, from_args, natural, path_name, positive_int, share
from lorabench.errors import LorabenchError
from lorabench.options import (
    Above,
    AtLeast,
    AtMost,
    Below,
    Help,
    Metavar,
    OneOf,
    Spelled,
    check_options,
    documented,
    option_fields,
)

METHODS: list[str] = ["svd", "ties"]


@documented
@dataclass(frozen=True)
class Rule:
    """How it is done."""

    method: Annotated[str, Help("how it is done"), OneOf(lambda: METHODS)] = "svd"
    rank: Annotated[int | None, Help("of each module"), Metavar("R"), AtLeast(1)] = None
    density: Annotated[float | int, Help("what is kept, 100 % at most"), Above(0), AtMost(1)] = 0.5
    tolerance: Annotated[float | int, Help("largest difference"), AtLeast(0), Below(1)] = 0.0
    weights: Annotated[tuple[float | int, ...] | None, Help("one for each"), Spelled("-w", "--weights")] = None
    limits: Annotated[Mapping[str, int], Help("largest rank"), Spelled("--limit"), Metavar("R"), AtLeast(1)] = field(
        default_factory=dict
    )
    names_from: Annotated[Path | None, Help("any adapter of the same base")] = None
    normalize: Annotated[bool, Help("take the weights as they are; else they sum to 1")] = True
    drop_dora: Annotated[bool, Help("lose the magnitudes")] = False

    def __post_init__(self) -> None:
        check_options(self)
        if self.method == "ties" and self.rank is not None:
            raise LorabenchError("method='ties' takes no rank.")


def parsed(*words: str, refuse: bool = False) -> Rule:
    parser = argparse.ArgumentParser(prog="tool")
    add_options(parser, Rule)
    if refuse:
        parser.set_defaults(refuse=parser.error)
    return from_args(Rule, parser.parse_args(words))


def test_nothing_said_is_the_defaults() -> None:
    assert parsed() == Rule()


def test_every_kind_of_field_is_an_option() -> None:
    words = "--method ties --density 1 --tolerance 0.25 -w 0.5 -1 --limit unet=4 --limit te=a=8 --names-from base.txt"
    assert parsed(*words.split(), "--no-normalize", "--drop-dora") == Rule(
        method="ties", density=1.0, tolerance=0.25, weights=(0.5, -1.0), limits={"unet": 4, "te=a": 8},
        names_from=Path("base.txt"), normalize=False, drop_dora=True,
    )  # fmt: skip
    assert parsed("--rank", "8").rank == 8


def test_a_repeated_mapping_leaves_the_default_alone() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, Rule)
    parser.parse_args(["--limit", "unet=4"])
    assert from_args(Rule, parser.parse_args([])).limits == {}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--rank 0", "argument --rank: a whole number from 1 is needed, not '0'"),
        ("--rank 1.5", "argument --rank: a whole number from 1 is needed, not '1.5'"),
        ("--density 0", "argument --density: a number above 0 and at most 1 is needed, not '0'"),
        ("--density nan", "argument --density: a number above 0 and at most 1 is needed, not 'nan'"),
        ("--tolerance 1", "argument --tolerance: a number from 0 and below 1 is needed, not '1'"),
        ("--weights 1 inf", "argument -w/--weights: a number is needed, not 'inf'"),
        ("--limit unet", "argument --limit: NAME=R is needed, not 'unet'"),
        ("--limit unet=0", "argument --limit: a whole number from 1 is needed, not '0'"),
        ("--method dare", "argument --method: invalid choice: 'dare'"),
        ("--method ties --rank 4", "method='ties' takes no rank."),
    ],
)
def test_a_wrong_value_is_wrong_usage(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parsed(*words.split(), refuse=True)
    assert left.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rank": 0}, "rank=0 (--rank): a whole number from 1 is needed."),
        ({"rank": True}, "rank=True (--rank): a whole number from 1 is needed."),
        ({"density": 1.5}, "density=1.5 (--density): a number above 0 and at most 1 is needed."),
        ({"density": float("nan")}, "density=nan (--density): a number above 0 and at most 1 is needed."),
        ({"method": "dare"}, "method='dare' (--method): one of svd, ties is needed."),
        ({"weights": (1.0, float("inf"))}, "weights=(1.0, inf) (--weights): a number, or several is needed."),
        ({"limits": {"unet": 0}}, "limits={'unet': 0} (--limit): a whole number from 1 for each name is needed."),
    ],
)
def test_a_callers_wrong_value_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(LorabenchError) as refused:
        Rule(**given)
    assert str(refused.value) == said


def test_without_refuse_the_error_comes_through() -> None:
    with pytest.raises(LorabenchError, match="takes no rank"):
        parsed("--method", "ties", "--rank", "4")


def test_help_and_docs_say_the_fields_text() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, Rule)
    shown = parser.format_help()
    for option in option_fields(Rule):
        assert option.spelled[-1] in shown
        assert f"{option.name}: {option.help} (" in str(Rule.__doc__)
    assert "100 % at most" in shown
    assert "--rank R" in shown
    assert "--limit NAME=R" in shown
    assert "share" not in shown
    assert "default: 0.5" in str(Rule.__doc__)


def test_some_fields_alone_and_in_groups() -> None:
    parser = argparse.ArgumentParser()
    group = parser.add_mutually_exclusive_group()
    add_options(group, Rule, ["rank", "density"])
    assert parser.parse_args(["--rank", "4"]).rank == 4
    with pytest.raises(SystemExit):
        parser.parse_args(["--rank", "4", "--density", "0.5"])


def test_a_registry_is_asked_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.test_options.METHODS", [*METHODS, "dare"])
    assert parsed("--method", "dare").method == "dare"


def test_a_field_that_cannot_be_an_option_is_the_programmers_error() -> None:
    @dataclass(frozen=True)
    class Unsaid:
        rank: int = 4

    @dataclass(frozen=True)
    class Odd:
        rank: Annotated[complex, Help("no number")] = 0j

    for options in (Unsaid, Odd):
        with pytest.raises(TypeError, match="an option is Annotated"):
            option_fields(options)


def test_types_of_single_options() -> None:
    assert (positive_int("3"), natural("0"), share("0.25"), path_name("a b")) == (3, 0, 0.25, Path("a b"))
    for reader, text in ((positive_int, "0"), (natural, "-1"), (share, "0"), (path_name, " ")):
        with pytest.raises(argparse.ArgumentTypeError):
            reader(text)
