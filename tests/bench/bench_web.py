"""How soon the web page answers: python -m tests.bench.bench_web. It needs Debian's Chromium."""

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.bench.bench_inspect import make_library
from tests.bench.machine import describe
from tests.web_process import Server

if TYPE_CHECKING:
    from playwright.sync_api import Page

FILES, ROUNDS = 1000, 5
_GOALS = {"start": 3.0, "first page": 1.0, "library": 1.0, "adapter": 1.0, "slider": 0.1}


_WATCH = """() => {
    window.lorabenchTook = new Promise(tell => {
        let begun = 0;
        addEventListener("keydown", () => { begun = performance.now(); }, {once: true, capture: true});
        const said = document.querySelector("[aria-live=polite][role=status]");
        new MutationObserver((_, seen) => { seen.disconnect(); tell(performance.now() - begun); })
            .observe(said, {childList: true, characterData: true, subtree: true});
    });
}"""
"""In the page itself: from the key to the new text. Waiting from outside takes longer than what is waited for."""


def main(files: int = FILES) -> None:
    """Print the seconds until the address, the first page, the library, an adapter of 3 MB, and after the slider."""
    chromium = shutil.which("chromium")
    if chromium is None:
        print("no chromium: Debian's package of this name has it. Nothing was measured.")
        return
    from playwright.sync_api import sync_playwright

    print(describe())
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as known:
        (Path(folder) / "adapters").mkdir()
        size = make_library(Path(folder) / "adapters", files)
        begun = time.perf_counter()
        server = Server(Path(folder) / "data", str(Path(folder) / "adapters"))
        try:
            found = {"start": [time.perf_counter() - begun]}
            cookies: Any = []
            for _ in range(ROUNDS):  # browsers that have nothing of the page yet; one is the server's first
                browser = known.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
                context = browser.new_context(base_url=server.base)
                context.add_cookies(cookies)
                page = context.new_page()
                begun = time.perf_counter()
                _open_at(page, "/" if cookies else server.url, "00000.safetensors")
                found.setdefault("first page", []).append(time.perf_counter() - begun)
                cookies = context.cookies()
                if len(found["first page"]) < ROUNDS:
                    browser.close()
            found |= _visited(page)
            browser.close()
        finally:
            server.end()
    for what, seconds in found.items():
        goal = f"(goal: below {_GOALS[what]:g} s)" if what in _GOALS else ""
        print(f"{what:28}: {statistics.median(seconds):.2f} s, at worst {max(seconds):.2f} s  {goal}")
    print(f"{files} adapters of {size / 1e6:.1f} MB")


def _open_at(page: "Page", path: str, text: str) -> None:
    page.goto(path)
    page.get_by_text(text).first.wait_for()


def _visited(page: "Page") -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}

    def timed(what: str, go: Callable[[], object]) -> None:
        begun = time.perf_counter()
        go()
        found.setdefault(what, []).append(time.perf_counter() - begun)

    timed(
        "first headers read",
        lambda: page.get_by_text("kohya").or_(page.get_by_text("yes", exact=True)).first.wait_for(),
    )
    item = page.request.get("/api/adapters?limit=1").json()[0]["id"]
    for _ in range(ROUNDS):
        timed("library", lambda: _open_at(page, "/", "00000.safetensors"))
        timed("adapter", lambda: _open_at(page, f"/adapter/{item}", "Architecture"))
    timed("resizer, torch not loaded", lambda: _open_at(page, f"/resize?of={item}", ": error"))
    timed("resizer, spectra known", lambda: _open_at(page, f"/resize?of={item}", ": error"))
    page.get_by_role("slider").first.locator("[tabindex='0']").focus()
    for round_ in range(ROUNDS):
        page.evaluate(_WATCH)
        page.keyboard.press("ArrowLeft" if round_ % 2 == 0 else "ArrowRight")
        found.setdefault("slider", []).append(page.evaluate("window.lorabenchTook") / 1000)
    return found


if __name__ == "__main__":
    main()
