"""PEFT's patterns: what Python's `re` says, in time that no pattern can blow up."""

import re
import subprocess
import sys
import time
import warnings

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lorabench.adapters.reading.patterns import Patterns, Regex, compile_patterns, plain_names

_SIGNS = ["^", "$", r"\b", r"\B"]
_LETTERS = [
    "a",
    "b",
    "x",
    "_",
    "é",
    "-",
    ".",
    r"\.",
    "[ab]",
    "[^a]",
    "[a-b.]",
    r"[\d_]",
    r"\w",
    r"\d",
    r"\s",
    r"\W",
    "",
]
_ONE = st.sampled_from(_LETTERS + _SIGNS)
_TIMES = st.sampled_from(["*", "+", "?", "*?", "+?", "??", "{2}", "{0}", "{1,2}", "{0,1}", "{1,}", "{0,}?"])
PATTERN = st.recursive(
    _ONE,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: f"({'|'.join(parts)})"),
        st.tuples(inner, _TIMES).map(lambda pair: f"({pair[0]}){pair[1]}"),
        st.tuples(inner, _TIMES).map(lambda pair: f"(?:{pair[0]}){pair[1]}"),
    ),
    max_leaves=12,
)
NAME = st.text("ab.x_1é-", max_size=8)


def of_peft(patterns: list[str], name: str) -> str | None:
    """`peft.utils.other.get_pattern_key`, but None where it returns the name."""
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", name)), None)


@given(PATTERN, st.lists(NAME, min_size=1, max_size=6))
@settings(deadline=None, max_examples=1500)
def test_one_pattern_fits_where_python_says_so(pattern: str, names: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            compiled = re.compile(pattern)
        except (re.error, FutureWarning):
            assume(False)
    try:
        regex = Regex(pattern)
    except ValueError:
        assert any(sign in pattern for sign in _SIGNS)  # one of them repeated: nothing else is refused
        assume(False)
    for name in names:
        if by_letter(pattern) and not (name and name.isascii()):
            with pytest.raises(ValueError, match="ASCII names alone"):
                regex.matches(name)
        else:
            assert regex.matches(name) == (compiled.fullmatch(name) is not None), (pattern, name)


def by_letter(pattern: str) -> bool:
    """Whether it asks what sort of letter it meets: Python by Unicode, RE2 by ASCII."""
    return re.search(r"\\[bBdDsSwW]", pattern) is not None


@given(st.text(r"ab.x_1-\()[]{}|*+?^$,:=!<#&~ dDwWsSbBzAQP", max_size=14), st.lists(NAME, min_size=1, max_size=6))
@settings(deadline=None, max_examples=800)
def test_any_letters_fit_where_python_says_so_or_are_refused(pattern: str, names: list[str]) -> None:
    """What both engines take means the same to both; PEFT's own wrapping of it too."""
    try:
        regex, wrapped = Regex(pattern), Regex(rf"(.*\.)?({pattern})$")
    except ValueError:
        assume(False)
    for name in names:
        if not by_letter(pattern) or (name and name.isascii()):
            assert regex.matches(name) == (re.fullmatch(pattern, name) is not None), (pattern, name)
            assert wrapped.matches(name) == (of_peft([pattern], name) is not None), (pattern, name)


@pytest.mark.parametrize("name", ["é", "", "a\x1c", "a\n"])
def test_a_name_on_which_the_engines_differ_is_refused(name: str) -> None:
    r"""Python's `\w` is any letter, its `\s` any space, its `\B` not in nothing, its `$` before a last newline."""
    with pytest.raises(ValueError, match="ASCII names alone"):
        Regex(r"(\w|\s|\B)$").matches(name)
    assert Regex("[aé]?").matches("é")


@pytest.mark.parametrize("pattern", ["(?<=a)b", "(?!a)b", r"(.)\1", "(?P<n>a)(?P=n)", "(?>a)", "a*+", "a++"])
def test_what_only_a_backtracking_engine_can_do_is_refused(pattern: str) -> None:
    re.compile(pattern)
    with pytest.raises(ValueError, match=r"not understood|bad repetition"):
        Regex(pattern)


@given(st.lists(PATTERN | NAME | NAME.map(lambda name: "^" + re.escape(name)), min_size=1, max_size=6), NAME)
@settings(deadline=None, max_examples=600)
def test_the_first_of_several_is_pefts(patterns: list[str], name: str) -> None:
    try:
        wanted = of_peft(patterns, name)
        found = Patterns(tuple(patterns)).first(name)
    except (re.error, ValueError):
        assume(False)
    assert found == wanted


@pytest.mark.parametrize(
    ("patterns", "name", "wanted"),
    [
        (["q_proj"], "h.0.q_proj", "q_proj"),
        (["q_proj"], "h.0.xq_proj", None),
        (["h.0"], "h.0.q", None),
        (["^h.0"], "x.h.0", None),
        (["^h.0"], "h.0", "^h.0"),
        ([r"^h\.0\.q", "q"], "h.0.q", r"^h\.0\.q"),
        ([r".*\.(0|1)\.q", "q"], "h.1.q", r".*\.(0|1)\.q"),
        (["h.1.q"], "hx1.q", "h.1.q"),  # a dot of PEFT's is any letter
        (["model.layers.[0-9]+.q"], "model.layers.31.q", "model.layers.[0-9]+.q"),
        ([r"layers\.\d{1,2}\.q"], "layers.310.q", None),
        (["a)|(b"], "b", "a)|(b"),  # it is put between brackets, and these are not closed by it
        ([""], "a.", ""),
        ([], "a", None),
    ],
)
def test_patterns_as_they_are_written(patterns: list[str], name: str, wanted: str | None) -> None:
    assert of_peft(patterns, name) == wanted
    assert compile_patterns(tuple(patterns)).first(name) == wanted


BOMBS = ["(a+)+$", "(a|a)*b", "(a|aa)+$", "(.*a){25}", "(a?){100}a{100}", ".*.*.*.*.*.*x", "(a|a)" * 150, "([a-z]*)*b",
         "(((a*)*)*)*b", "^(([a-z])+.)+[A-Z]([a-z])+$", "(x+x+)+y"]  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_no_pattern_takes_for_ever(bomb: str) -> None:
    """`re` needs hours for most of them on forty letters already."""
    start = time.process_time()
    patterns = Patterns((bomb,))
    for name in ("a" * 299 + "!", "ab" * 150, "x" * 300, "".join(chr(97 + i * i % 26) for i in range(300))):
        patterns.first(name)
    assert time.process_time() - start < 2


def test_the_bombs_are_some() -> None:
    """On twenty letters `re` is already slower than this is on three hundred."""
    start = time.process_time()
    assert re.fullmatch("(a+)+b", "a" * 22) is None
    slow = time.process_time() - start
    start = time.process_time()
    assert not Regex("(a+)+b").matches("a" * 300)
    assert time.process_time() - start < slow


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", "missing \\)"),
        (")", "unbalanced parenthesis"),
        ("[a", "not understood"),
        ("*", "nothing to repeat"),
        ("a**", "multiple repeat"),
        ("^*", "nothing to repeat"),
        ("a{2,1}", "min repeat greater than max repeat"),
        ("[z-a]", "bad character range"),
        ("[[a]]", "not understood"),  # Python warns of it
        ("[a--b]", "not understood"),
        (r"(a)\1", "not understood"),
        ("(?=a)", "not understood"),
        ("(?i)a", "not understood"),
        (r"\Z", "not understood"),
        ("a" * 1001, "1001 characters"),
        ("a{9999}", "invalid repetition size"),
        ("((a{99}){99}){99}", "invalid repetition size"),
        ("(){9999}", "invalid repetition size"),
        ("(" * 60 + ")" * 60, "brackets within brackets"),
    ],
)
def test_what_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Regex(pattern)


def test_limits_of_all_patterns_together() -> None:
    with pytest.raises(ValueError, match="holds 10001 patterns"):
        Patterns(tuple(map(str, range(10_001))))
    with pytest.raises(ValueError, match="too long together"):
        Patterns(tuple(f"a{{900}}{i}" for i in range(7)))
    with pytest.raises(ValueError, match=r"holds '\(', no regular expression"):
        Patterns(("(",))
    with pytest.raises(ValueError, match="300 characters at most, one has 301"):
        Patterns(("a",)).first("a" * 301)


def test_hundreds_of_names_are_quick() -> None:
    """A resized SDXL adapter names most of its modules."""
    names = [f"unet.down_blocks.{i % 4}.attentions.{i % 7}.transformer_blocks.{i}.attn1.to_q" for i in range(700)]
    start = time.process_time()
    for texts in (tuple(names), tuple("^" + re.escape(name) for name in names)):
        patterns = Patterns(texts)
        assert [patterns.first(name) for name in names] == list(texts)
    assert time.process_time() - start < 2


def test_all_names_of_a_file_share_one_budget() -> None:
    """One bomb takes milliseconds a name, and a file has as many names as it likes. (Here types are not checked.)"""
    code = (
        "import time; from lorabench.adapters.reading.patterns import Patterns\n"
        "patterns = Patterns(('(a?){900}b',))\n"
        "try:\n"
        "    for i in range(2000): patterns.first('a' * 290 + str(i))\n"
        "except ValueError as error: print(time.process_time(), error)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    seconds, _, message = done.stdout.partition(" ")
    assert message == "takes too long to be matched with the names of this file\n"
    assert float(seconds) < 6


def test_expressions_of_ordinary_size_stay_within_it() -> None:
    names = [f"unet.down_blocks.{i % 4}.attentions.{i % 7}.transformer_blocks.{i}.attn1.to_q" for i in range(100)]
    texts = tuple(rf"(unet|te)\.down_blocks\.\d+\..*blocks\.{i}\d?\.attn1\.to_(q|k)" for i in range(20))
    patterns = Patterns(texts)
    assert [patterns.first(name) for name in names] == [of_peft(list(texts), name) for name in names]


@given(st.lists(st.text("ab.x_1- /(|", min_size=1, max_size=8), min_size=1, max_size=5))
@settings(deadline=None, max_examples=200)
def test_lists_of_names_are_read_as_such(names: list[str]) -> None:
    found = plain_names(f"^(?:{'|'.join(re.escape(name) for name in names)})$")
    assert found == (None if any("|" in name for name in names) else tuple(names))


@pytest.mark.parametrize("text", ["h.0|h.1", "^(?:h.0|h.1)$", r".*\.q", r"^(?:a\d|b)$", "(a)b", "", r"(a|b)+", "(?!a)"])
def test_what_does_more_is_no_list(text: str) -> None:
    assert plain_names(text) is None
