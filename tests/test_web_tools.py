"""The commands as the page and the API have them: told by their parsers, and by nobody else."""

import contextlib
import shlex
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabench.adapters.__main__ import COMMANDS
from lorabench.errors import LorabenchError
from lorabench.web.tools import PREDICT, TOOLS, Input, tool
from tests.make_adapters import made_adapters

OLD = Input(made_adapters() / "diffusers_old" / "pytorch_lora_weights.safetensors", "sub/a style.safetensors")
PEFT = Input(made_adapters() / "peft" / "gpt2" / "adapter_model.safetensors", "gpt2/adapter_model.safetensors")
MODEL = Input(Path("/models/of glyphs"), "of glyphs")
OPTIONS = {
    PREDICT: {"model": "of glyphs"},
    "resize": {"rank": 2},
    "convert": {"layout": "kohya"},
    "plot": {"kind": "ranks"},
    "inspect": {"redact": True},
}


def test_every_command_that_works_on_files_alone_is_offered() -> None:
    assert set(COMMANDS) - set(TOOLS) == {"interpolate"}  # it needs a run of the benchmark
    assert set(TOOLS) - set(COMMANDS) == {PREDICT}


@pytest.mark.parametrize("name", TOOLS)
def test_a_wish_is_what_its_own_parser_reads_and_what_a_person_types(name: str) -> None:
    wish = tool(name).wish([OLD], OPTIONS.get(name, {}), model=lambda _: MODEL)
    files = [MODEL, OLD] if name == PREDICT else [OLD]
    assert wish.words[: 1 + len(files)] == (name, *(str(one.path) for one in files))
    called = ["lorabench", name] if name == PREDICT else ["lorabench", "adapters", name]
    assert shlex.split(wish.shown) == [*called, *(one.name for one in files), *wish.words[1 + len(files) :]]
    read = vars(wish.parsed())
    for option, value in OPTIONS.get(name, {}).items():
        assert read[option] == (MODEL.path if option == "model" else value)


@pytest.mark.parametrize(
    ("options", "message"),
    [({}, "Choose one"), ({"model": ""}, "Choose one"), ({"model": ["a"]}, "Choose one"), ({"model": "x"}, "no x")],
)
def test_a_model_is_one_that_there_is(options: dict[str, object], message: str) -> None:
    def find(name: str) -> Input:
        raise LorabenchError(f"no {name}")

    with pytest.raises(LorabenchError, match=message):
        tool(PREDICT).wish([OLD], options, model=find)
    with pytest.raises(LorabenchError, match="cannot be named here"):
        tool(PREDICT).wish([OLD], {"model": "/etc"})


@pytest.mark.parametrize("name", TOOLS)
def test_no_option_names_a_file_of_the_servers(name: str) -> None:
    for argument in tool(name).arguments:
        if argument.kind == "adapter":
            with pytest.raises(LorabenchError, match="cannot be named here"):
                tool(name).wish([OLD], OPTIONS.get(name, {}) | {argument.name: "/etc/passwd"}, model=lambda _: MODEL)
    for hidden in ("out", "output", "figure", "html", "sarif", "force", "thresholds", "json"):
        with pytest.raises(LorabenchError, match="has no option"):
            tool(name).wish([OLD], OPTIONS.get(name, {}) | {hidden: "x"}, model=lambda _: MODEL)


@pytest.mark.parametrize("word", ["--names-from=/etc/passwd", "--out=/tmp/x", "-o", "-1e5"])
def test_one_of_several_values_is_no_option(word: str) -> None:
    with pytest.raises(LorabenchError, match="would be read as an option"):
        tool("merge").wish([OLD, OLD], {"weights": ["1", word], "preflight": True})


def test_several_values_may_be_below_zero() -> None:
    assert tool("merge").wish([OLD, OLD], {"weights": [-1, "-.5"]}).parsed().weights == [-1.0, -0.5]


@pytest.mark.parametrize("text", ["\ud800", "a\0b"])
def test_what_cannot_be_written_is_no_value(text: str) -> None:
    with pytest.raises(LorabenchError, match="no command line takes"):
        tool("pca").wish([OLD], {"layers": text})


QUICK = settings(max_examples=30, deadline=None)
EVERY = [(name, argument.name) for name in TOOLS for argument in tool(name).arguments]
ANY = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.text()), st.just({}), st.just("--out")
)


@QUICK
@given(
    value=st.one_of(
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30),
        st.sampled_from(["--force", "-o", "-x=1", "--layers=a"]),
    ).filter("--".__ne__)
)
def test_what_a_text_holds_is_never_another_option(value: str) -> None:
    read = vars(tool("pca").wish([OLD], {"layers": value}).parsed())
    assert read["layers"] == (value or None)
    assert read["paths"] == [OLD.path]
    assert read["force"] is False


@pytest.mark.parametrize("name", TOOLS)
@QUICK
@given(data=st.data(), value=ANY)
def test_any_value_is_read_or_refused_in_one_line(name: str, data: st.DataObject, value: object) -> None:
    option = data.draw(st.sampled_from([one for command, one in EVERY if command == name]))
    given_too = {key: other for key, other in OPTIONS.get(name, {}).items() if key != option}
    with contextlib.suppress(LorabenchError):
        wish = tool(name).wish([OLD], given_too | {option: value}, lambda _: PEFT, lambda _: MODEL)
        assert str(OLD.path) in wish.words[1:3]
        assert not {"--force", "-f"} & set(wish.words)


def test_peft_is_written_as_a_folder_and_the_rest_as_files() -> None:
    assert tool("resize").wish([PEFT], {"rank": 2}).words[-1] == "gpt2-resized"
    assert tool("resize").wish([PEFT], {"rank": 2, "layout": "kohya"}).words[-1] == "gpt2-resized.safetensors"
    assert tool("convert").wish([OLD], {"layout": "peft"}).words[-1] == "a-style-converted"
    assert tool("merge").wish([OLD, OLD], {}).words[-1] == "merged.safetensors"


def test_what_writes_nothing_has_no_output() -> None:
    assert "--out" not in tool("resize").wish([OLD], {"rank": 2, "dry_run": True}).words
    assert "--out" not in tool("merge").wish([OLD, OLD], {"preflight": True}).words
    assert tool("inspect").wish([OLD], {}).words == ("inspect", str(OLD.path))


def test_values_that_are_the_default_are_not_spelt() -> None:
    assert "--min-rank=1" not in tool("resize").wish([OLD], {"rank": 2, "min_rank": 1}).words
    assert "--no-normalize" not in tool("merge").wish([OLD], {"normalize": True}).words
    assert "--no-normalize" in tool("merge").wish([OLD], {"normalize": False}).words


@pytest.mark.parametrize(
    ("name", "inputs", "options", "message"),
    [
        ("resize", [OLD], {}, "one of the arguments --rank"),
        ("resize", [OLD], {"rank": 0}, "a whole number from 1 is needed, not '0'"),
        ("resize", [OLD], {"rank": 2, "energy": 0.5}, "not allowed with"),
        ("resize", [], {"rank": 2}, "resize takes one adapter, 0 came"),
        ("resize", [OLD, OLD], {"rank": 2}, "resize takes one adapter, 2 came"),
        ("resize", [OLD], {"drop_dora": "yes"}, "drop_dora: true or false is needed"),
        ("resize", [OLD], {"rank": [1, 2]}, "rank: one value is needed"),
        ("convert", [OLD], {}, "--to"),
        ("plot", [OLD], {"kind": "portrait"}, "invalid choice"),
        ("pca", [OLD], {"layers": "--"}, "layers: -- is no value"),
        ("nothing", [OLD], {}, "is no command here"),
    ],
)
def test_wrong_wishes(name: str, inputs: list[Input], options: dict[str, object], message: str) -> None:
    with pytest.raises(LorabenchError, match=message):
        tool(name).wish(inputs, options)


def test_names_of_files_are_made_of_letters_that_harm_nobody() -> None:
    odd = Input(OLD.path, "../..; rm -rf $HOME `x`\n/étude #1.safetensors")
    written = tool("resize").wish([odd], {"rank": 2}).words[-1]
    assert written == "étude--1-resized.safetensors"
    assert Path(written).name == written
