"""Progress bars: after two seconds, on a terminal alone."""

import io
import time
from itertools import pairwise

import pytest
from rich.console import Console

from lorabench import progress
from lorabench.adapters import save
from lorabench.adapters.__main__ import program
from tests.adapter_folders import make_modules
from tests.make_adapters import made_adapters


@pytest.fixture
def screen(monkeypatch):
    text = io.StringIO()
    monkeypatch.setattr(progress, "_PATIENCE_SECONDS", 0.05)

    def use(terminal):
        monkeypatch.setattr(
            progress, "Console", lambda **_options: Console(file=text, force_terminal=terminal, width=100)
        )
        return text

    return use


def test_a_phase_of_one_long_step_shows_a_bar(screen):
    text = screen(True)
    with progress.bar("Long step", 1):
        time.sleep(0.5)
    assert "Long step" in text.getvalue()
    assert "0/1" in text.getvalue()


def test_a_short_phase_shows_nothing(screen, monkeypatch):
    text = screen(True)
    monkeypatch.setattr(progress, "_PATIENCE_SECONDS", 60.0)
    assert list(progress.track(range(3), "Short")) == [0, 1, 2]
    assert text.getvalue() == ""


def test_a_pipe_sees_no_bar(screen):
    text = screen(False)
    with progress.bar("Long step", 2) as opened:
        time.sleep(0.2)
        opened.advance(note="on")
    assert text.getvalue() == ""


def test_steps_and_notes_are_shown(screen):
    text = screen(True)
    with progress.bar("Train", 2) as opened:
        time.sleep(0.1)
        opened.advance(note="epoch 7")
        time.sleep(0.3)
    assert "1/2" in text.getvalue()
    assert "epoch 7" in text.getvalue()


def test_a_phase_within_another_has_its_bar_below(screen):
    """A terminal has room for one live display: a second one would be an error."""
    text = screen(True)
    with progress.bar("Jobs", 2) as jobs:
        time.sleep(0.2)
        for name in ("First phase", "Second phase"):
            with progress.bar(name, 1):
                time.sleep(0.3)
            jobs.advance()
        time.sleep(0.2)
    said = text.getvalue()
    assert said.index("Jobs") < said.index("First phase") < said.index("Second phase")
    assert "2/2" in said
    with progress.bar("Later", 1):
        time.sleep(0.3)
    assert "Later" in text.getvalue()


def test_lines_on_standard_output_are_not_taken_away(screen, capsys):
    screen(True)
    with progress.bar("Jobs", 1):
        time.sleep(0.3)
        print("a line")
    assert capsys.readouterr().out == "a line\n"


def test_who_asks_is_told_of_the_outermost_phase_without_a_terminal(screen):
    text, told = screen(False), []
    with progress.watched(told.append):
        with progress.bar("Outer", 2) as outer:
            list(progress.track(range(3), "Inner"))
            outer.advance()
            outer.advance(4)
        with progress.bar("No end"):
            list(progress.track(range(1), "Next"))
    list(progress.track(range(3), "Later"))
    assert told == [0.0, 0.5, 1.0, 0.0, 1.0]
    assert text.getvalue() == ""


def test_commands_that_take_long_say_how_far_they_are(tmp_path):
    kohya, old = (made_adapters() / name for name in ("kohya/style.safetensors", "diffusers_old"))
    for number, seed in enumerate((1, 2, 3)):
        save(tmp_path / "run" / f"checkpoint-{number}" / "adapter_model.safetensors", make_modules(seed), "diffusers")
    commands = {
        "audit": ("audit", tmp_path / "run"),
        "compare": ("compare", kohya, kohya),
        "inspect": ("inspect", tmp_path / "run"),
        "merge": ("merge", old, old, "-o", tmp_path / "merged.safetensors"),
        "dense merge": ("merge", old, old, "--method", "ties", "-o", tmp_path / "ties.safetensors"),
        "pca": ("pca", old),
        "pca of several": ("pca", old, kohya),
        "resize": ("resize", old, "--rank", "1", "--dry-run"),
        "plot": ("plot", old, "--kind", "ranks", "-o", tmp_path / "ranks.svg"),
    }
    for name, words in commands.items():
        told = []
        with progress.watched(told.append):
            answer = program("lorabench adapters").ask([*map(str, words)])
        assert answer.code == 0, (name, answer)
        assert told[0] == 0, name
        assert told[-1] == 1, name
        phases = told.count(0.0)
        assert sum(before > after for before, after in pairwise(told)) <= phases - 1, f"{name}: back within a phase"
