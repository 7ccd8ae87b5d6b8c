"""Every word of style that a panel says is one that its stylesheet or Quasar knows."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import nicegui

import lorabench.web

WEB = Path(lorabench.web.__path__[0])
STATIC = Path(nicegui.__path__[0]) / "static"
SHEETS = [
    WEB / "style.css",
    *(STATIC / name for name in ("nicegui.css", "quasar.important.prod.css", "quasar.unimportant.prod.css")),
]


def said(file: Path) -> Iterator[str]:
    """Every class that `.classes(...)` is called with."""
    for call in ast.walk(ast.parse(file.read_text())):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "classes":
            for part in [node for given in (*call.args, *call.keywords) for node in ast.walk(given)]:
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield from part.value.split()


def test_every_class_of_a_panel_is_known() -> None:
    known = {name for sheet in SHEETS for name in re.findall(r"\.([a-zA-Z][\w-]*)", sheet.read_text())}
    used = {name: file.name for file in WEB.rglob("*.py") for name in said(file)}
    assert len(used) > 20
    assert {name: file for name, file in used.items() if name not in known} == {}


def test_the_stylesheet_has_no_class_that_no_panel_says() -> None:
    own = set(re.findall(r"\.([a-z][\w-]*)", re.sub(r"/\*.*?\*/|\{[^{}]*\}", " ", SHEETS[0].read_text(), flags=re.S)))
    frameworks = {name for name in own if name.startswith(("q-", "body--", "nicegui-"))}
    used = {name for file in WEB.rglob("*.py") for name in said(file)}
    assert own - frameworks == own & used
