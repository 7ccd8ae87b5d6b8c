"""`lorabench web` as a person uses it, in a real browser."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorabench.jobs import Job, queue, status_of, write_jobs
from lorabench.web.frame import PANELS
from tests.made_results import a_result
from tests.make_adapters import made_adapters
from tests.test_audit import write
from tests.test_web_predict import models_and_adapters
from tests.web_process import Server
from tests.web_site import folder_of_adapters

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium")
OLD = made_adapters() / "diffusers_old" / "pytorch_lora_weights.safetensors"
PHONE = {"width": 390, "height": 844}
SECONDS = 90_000
"""That a page may take on a busy machine, in ms."""


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    if CHROMIUM is None:
        pytest.skip("no chromium: Debian's package of this name has it")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as known:
        opened = known.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("web")
    folder = folder_of_adapters(place / "adapters")
    for step in (10, 20, 30):
        file = folder / "run" / f"checkpoint-{step}" / "adapter_model.safetensors"
        write(file, seed=1, collapsed=step > 20, size=step / 100)
    models, new = models_and_adapters(place / "predict")
    shutil.copytree(new, folder / "new")
    started = Server(place / "data", str(folder), "--runs", str(place), "--models", str(models))
    yield started
    started.end()


@pytest.fixture(scope="module")
def signed_in(browser: "Browser", server: Server) -> Any:
    """The cookies of who has followed the printed address."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(server.url, timeout=SECONDS)
    page.wait_for_url(server.base + "/", timeout=SECONDS)
    state = context.storage_state()
    context.close()
    return state


@pytest.fixture
def page(browser: "Browser", server: Server, signed_in: Any) -> Iterator["Page"]:
    """A page that says nothing on the console and asks nobody else."""
    context = browser.new_context(storage_state=signed_in, base_url=server.base)
    context.set_default_timeout(SECONDS)
    opened = context.new_page()
    wrong: list[str] = []
    opened.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("request", lambda request: None if _own(request.url, server.base) else wrong.append(request.url))
    yield opened
    context.close()
    # A refused upload is an error of the network's own to Chromium, which is what the test asks for.
    assert [said for said in wrong if "400 (Bad Request)" not in said] == []


def _own(url: str, base: str) -> bool:
    return url.startswith((base, "data:", "blob:"))


def _settled(page: "Page") -> None:
    """Wait until a page is whole and speaks with the server: what leaves it earlier takes its place in the history."""
    page.wait_for_load_state("load")
    page.wait_for_function("window.did_handshake")


def _bring(page: "Page", *files: Path) -> None:
    page.goto("/")
    page.locator("input[type=file]").first.set_input_files(files)


def _id_of(page: "Page", name: str) -> str:
    items = page.request.get("/api/adapters").json()
    return next(str(item["id"]) for item in items if item["file"] == name)


def _run(page: "Page") -> None:
    """Press Run, and wait until the job is over."""
    page.get_by_role("button", name="Run", exact=True).click()
    page.wait_for_url("**/jobs/*")
    page.get_by_text(re.compile("^(done(, with findings)?|failed|lost|cancelled)$")).first.wait_for()


def test_every_panel_opens_and_fits_a_phone(page: "Page") -> None:
    for path in PANELS:
        page.goto(path)
        page.get_by_role("heading", level=1).wait_for()
        assert page.title().endswith("· lorabench")
    page.set_viewport_size(PHONE)  # type: ignore[arg-type]
    for path in PANELS:
        page.goto(path)
        page.get_by_role("heading", level=1).wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], path


def test_an_adapter_is_brought_looked_at_and_removed(page: "Page", tmp_path: Path) -> None:
    own = tmp_path / "my fox.safetensors"
    shutil.copy(OLD, own)
    _bring(page, own)
    page.get_by_label("Choose files to bring").wait_for()
    page.get_by_role("button", name="Copy the command").first.wait_for()
    page.get_by_role("link", name="my fox.safetensors").click()
    page.get_by_role("heading", name="Architecture").wait_for()
    page.get_by_text("valid", exact=True).first.wait_for()
    page.get_by_role("button", name="Remove").click()
    page.wait_for_url(re.compile("/$"))
    page.get_by_text("old/pytorch_lora_weights.safetensors").first.wait_for()
    assert page.get_by_role("link", name="my fox.safetensors").count() == 0


def test_an_edit_is_foreseen_and_done(page: "Page") -> None:
    page.goto(f"/adapter/{_id_of(page, 'kohya/style.safetensors')}")
    page.get_by_text("Edit the metadata").click()
    page.get_by_text("what changes stands here").wait_for()
    page.get_by_role("combobox", name="set", exact=True).fill("modelspec.title=Foxes")
    page.keyboard.press("Enter")
    page.get_by_role("cell", name="Foxes", exact=True).wait_for()
    page.get_by_text(re.compile(r"entr(y|ies) will change")).wait_for()
    _run(page)
    page.get_by_text(re.compile("set +modelspec.title = Foxes")).wait_for()


def test_a_wrong_file_is_refused_with_the_reason(page: "Page", tmp_path: Path) -> None:
    wrong = tmp_path / "photo.safetensors"
    wrong.write_bytes(b"\x89PNG\r\n" + bytes(500))
    _bring(page, wrong)
    page.get_by_text(re.compile("photo.safetensors: ")).first.wait_for()


def test_a_resize_is_foreseen_done_and_taken_home(page: "Page", tmp_path: Path) -> None:
    page.goto(f"/resize?of={_id_of(page, 'old/pytorch_lora_weights.safetensors')}")
    page.get_by_text(re.compile(r"rank \d+: error [\d.e-]+ %, weights")).wait_for()
    page.get_by_role("slider").first.locator("[tabindex='0']").focus()
    for _ in range(20):
        page.keyboard.press("ArrowLeft")
    said = page.get_by_text(re.compile("rank 1: error"))
    said.wait_for()
    foreseen = float(re.search(r"error ([\d.e-]+) %", said.inner_text())[1])  # type: ignore[index]
    page.get_by_text("--rank=1").first.wait_for()
    _run(page)
    page.reload()
    page.get_by_text("done", exact=True).first.wait_for()
    measured = page.get_by_text(re.compile("whole adapter: predicted error")).inner_text()
    assert float(re.search(r"predicted error ([\d.e-]+) %", measured)[1]) == pytest.approx(foreseen)  # type: ignore[index]
    with page.expect_download() as coming:
        page.get_by_role("link", name="pytorch_lora_weights-resized.safetensors").first.click()
    coming.value.save_as(tmp_path / "small.safetensors")
    downs = [value for key, value in load_file(tmp_path / "small.safetensors").items() if "lora.down" in key]
    assert {value.shape[0] for value in downs} == {1}


def test_a_resize_by_energy_is_filled_in_again_from_its_job(page: "Page") -> None:
    page.goto(f"/resize?of={_id_of(page, 'old/pytorch_lora_weights.safetensors')}")
    foreseen = page.get_by_text(re.compile(r"rank [\d to]+: error [\d.e-]+ %, weights"))
    foreseen.wait_for()
    page.get_by_role("combobox", name="How").click()
    page.get_by_role("option", name="keep this share of each module's energy").click()
    page.get_by_role("spinbutton", name="Value").fill("0.9")
    asked_for = page.get_by_text(re.compile(r"--energy=0\.9(?!\d)")).first
    asked_for.wait_for()
    _run(page)
    _settled(page)
    page.get_by_role("button", name="Change and run again").click()
    page.wait_for_url("**/resize?again=*")
    foreseen.wait_for()
    asked_for.wait_for()
    assert float(page.get_by_role("spinbutton", name="Value").input_value()) == 0.9


def test_a_merge_is_checked_and_done(page: "Page") -> None:
    one = _id_of(page, "old/pytorch_lora_weights.safetensors")
    page.goto(f"/merge?of={one},{_id_of(page, 'kohya/style.safetensors')}")
    page.get_by_role("combobox", name="weights").fill("0.5")
    page.keyboard.press("Enter")
    page.get_by_role("combobox", name="weights").fill("0.25")  # and on to a button, without Enter
    page.get_by_role("button", name="Check first").click()
    page.wait_for_url("**/jobs/*")
    page.get_by_text(re.compile("^preflight: ")).wait_for()
    page.get_by_role("status", name="What clashes").get_by_text("It can be merged; 1 warning.").wait_for()
    _settled(page)
    typed = "--weights 0.5 0.25 --out merged.safetensors"
    page.get_by_role("button", name="Change and run again").click()
    page.get_by_text(typed).wait_for()
    _settled(page)
    page.go_back()
    page.wait_for_url("**/jobs/*")
    _settled(page)
    page.go_back()
    page.wait_for_url("**/merge?again=*")
    page.get_by_text(typed).wait_for()
    page.goto(f"/merge?of={one},{_id_of(page, 'gpt2/adapter_model.safetensors')}")
    page.get_by_role("button", name="Check first").click()
    page.get_by_text("done, with findings").wait_for()
    found = page.get_by_role("status", name="What clashes")
    found.get_by_text(re.compile("^modules: .*no module in common")).wait_for()
    page.goto(f"/merge?of={one},{one}")
    _run(page)
    modules = page.get_by_role("table").filter(
        has_text="clashes in"
    )  # an adapter with itself: all directions are shared
    assert modules.get_by_role("cell", name="directions", exact=True).count() > 0
    page.get_by_role("link", name="look at it").click()
    page.get_by_role("heading", name="Architecture").wait_for()


def test_components_health_and_pictures_are_shown(page: "Page") -> None:
    one = _id_of(page, "old/pytorch_lora_weights.safetensors")
    page.goto(f"/pca?of={one}")
    _run(page)
    page.locator("canvas").nth(4).wait_for()
    page.goto("/audit")
    page.get_by_label("A training").click()
    page.get_by_role("option", name="run/checkpoint-… (3 checkpoints)").click()
    page.get_by_text(re.compile("checkpoint-30/adapter_model.safetensors --series")).wait_for()
    _run(page)
    page.get_by_text(re.compile("^What to do: ")).first.wait_for()
    page.locator("canvas").nth(2).wait_for()
    frame = page.frame_locator("iframe")
    frame.get_by_role("heading", name="lorabench audit").wait_for()
    page.goto("/jobs")
    page.reload()
    page.get_by_role("button", name="Notifications").click()
    page.get_by_role("list", name="Jobs that have ended").get_by_text(re.compile("audit run/checkpoint-10")).click()
    page.wait_for_url("**/jobs/*")
    page.goto(f"/plot?of={one}")
    page.get_by_label("kind").click()
    page.get_by_role("option", name="ranks", exact=True).click()
    _run(page)
    picture = page.locator("img[alt='ranks.svg']")
    picture.wait_for()
    assert picture.evaluate("one => one.naturalWidth") > 100


def test_a_model_says_what_an_adapter_was_trained_on(page: "Page") -> None:
    page.goto(f"/predict?of={_id_of(page, 'new/other/ant/000000-leaf0000.safetensors')}")
    page.get_by_label("Model").click()
    page.get_by_role("option", name="animals").click()
    page.get_by_text("lorabench predict animals new/other").wait_for()
    _run(page)
    page.get_by_role("cell", name="I do not know").wait_for()


def test_a_command_that_cannot_run_says_why_and_its_button_waits(page: "Page") -> None:
    page.goto("/convert")
    hint = page.get_by_text("Choose an adapter first.")
    hint.wait_for()
    assert "text-negative" not in str(hint.get_attribute("class")), "nothing is wrong yet"
    assert page.get_by_role("button", name="Run", exact=True).is_disabled()
    page.get_by_role("combobox", name="to", exact=True).click()
    page.get_by_role("option").first.click()
    wrong = page.get_by_text("convert takes one adapter, 0 came")
    wrong.wait_for()
    assert "text-negative" in str(wrong.get_attribute("class"))


def test_the_keyboard_alone_is_enough(page: "Page") -> None:
    page.goto("/")
    page.get_by_role("heading", level=1).wait_for()
    page.get_by_label("Search").focus()
    page.keyboard.type("kohya")
    page.get_by_role("link", name="kohya/style.safetensors").wait_for()
    for _ in range(60):
        page.keyboard.press("Tab")
        if "kohya/style" in page.evaluate("document.activeElement.textContent") and page.evaluate(
            "document.activeElement.tagName == 'A'"
        ):
            break
    page.keyboard.press("Enter")
    page.wait_for_url("**/adapter/*")


@pytest.fixture
def slow_adapter(tmp_path: Path) -> Path:
    """One whose components take a while."""
    folder = tmp_path / "slow"
    folder.mkdir()
    torch.manual_seed(0)
    tensors = {}
    for layer in range(40):
        name = f"unet.down_blocks.0.attentions.0.transformer_blocks.{layer}.attn1.to_q.lora"
        tensors |= {f"{name}.down.weight": torch.randn(64, 768), f"{name}.up.weight": torch.randn(768, 64)}
    save_file(tensors, folder / "slow.safetensors")
    return folder


def test_a_report_of_what_still_runs_is_drawn_anew(browser: "Browser", tmp_path: Path) -> None:
    sweep = tmp_path / "runs" / "sweep"
    jobs = [Job(str(number), f"seed={number}", [f"seed={number}"], f"key {number}") for number in (0, 1)]
    sweep.mkdir(parents=True)
    write_jobs(sweep, jobs)
    for job in jobs:
        queue(sweep, job)
    with status_of(sweep / "0"):
        a_result({"stats": [0.8, 0.7]}).write(sweep / "0" / "results.json")
    server = Server(tmp_path / "data", "--runs", str(tmp_path / "runs"))
    context = browser.new_context(base_url=server.base)
    context.set_default_timeout(SECONDS)
    page = context.new_page()
    wrong: list[str] = []
    page.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
    try:
        with status_of(sweep / "1"):
            page.goto(server.url)
            page.goto("/results")
            page.get_by_role("link", name="sweep", exact=True).click()
            page.get_by_text("1 of 2 done, running").wait_for()
            report = page.frame_locator("iframe")
            report.get_by_text("2 runs, 1 not done").first.wait_for()
            a_result({"stats": [0.6, 0.5]}, seed=1).write(sweep / "1" / "results.json")
        page.get_by_text("2 of 2 done", exact=True).wait_for()
        report.get_by_text("2 runs, all done").first.wait_for()
        assert "lorabench report sweep" in page.locator(".command").inner_text()
    finally:
        context.close()
        server.end()
    assert wrong == []


def test_a_job_is_cancelled_and_one_outlives_its_server(browser: "Browser", tmp_path: Path, slow_adapter: Path) -> None:
    started = Server(tmp_path / "data", str(slow_adapter))
    try:
        context = browser.new_context(base_url=started.base)
        context.set_default_timeout(SECONDS)
        page = context.new_page()
        page.goto(started.url)
        page.wait_for_url(started.base + "/")
        page.goto(f"/pca?of={_id_of(page, 'slow.safetensors')}")
        page.get_by_role("button", name="Run", exact=True).click()
        page.wait_for_url("**/jobs/*")
        page.wait_for_function("window.did_handshake")  # what is clicked before is clicked on a picture of a page
        page.get_by_role("button", name="Cancel").click()
        page.get_by_text("cancelled", exact=True).first.wait_for()
        assert page.get_by_role("link", name="components.json").count() == 0

        page.goto(f"/pca?of={_id_of(page, 'slow.safetensors')}")
        page.get_by_role("button", name="Run", exact=True).click()
        page.wait_for_url("**/jobs/*")
        page.get_by_text("running", exact=True).first.wait_for()
        job = page.url.rsplit("/", maxsplit=1)[-1]
        context.close()
    finally:
        started.kill()

    again = Server(tmp_path / "data", str(slow_adapter))
    try:
        context = browser.new_context(base_url=again.base)
        context.set_default_timeout(SECONDS)
        page = context.new_page()
        page.goto(again.url)
        page.wait_for_url(again.base + "/")
        page.goto(f"/jobs/{job}")
        page.get_by_text("done", exact=True).first.wait_for()
        page.get_by_role("link", name="components.json").wait_for()
        context.close()
    finally:
        again.end()
    assert not [one for one in (tmp_path / "data").rglob(".*") if one.is_dir() or one.suffix == ".safetensors"]


def test_another_user_sees_nothing_of_the_first(browser: "Browser", tmp_path: Path) -> None:
    users = tmp_path / "users"
    for name in ("ada", "bob"):
        subprocess.run(
            [sys.executable, "-m", "lorabench", "web", "--users", str(users), "--add-user", name],
            input=f"{name} has a long password\n", text=True, check=True, capture_output=True,
        )  # fmt: skip
    started = Server(tmp_path / "data", "--users", str(users))
    try:
        pages = {}
        for name in ("ada", "bob"):
            context = browser.new_context(base_url=started.base)
            context.set_default_timeout(SECONDS)
            pages[name] = context.new_page()
            pages[name].goto("/")
            pages[name].get_by_label("Name").fill(name)
            pages[name].get_by_label("Password").fill(f"{name} has a long password")
            pages[name].get_by_role("button", name="Sign in").click()
            pages[name].wait_for_url(started.base + "/")
        _bring(pages["ada"], OLD)
        pages["ada"].get_by_role("link", name="pytorch_lora_weights.safetensors").wait_for()
        (own,) = pages["ada"].request.get("/api/adapters").json()
        assert pages["bob"].request.get("/api/adapters").json() == []
        assert pages["bob"].request.get(f"/api/adapters/{own['id']}/file").status == 404
        pages["bob"].goto(f"/adapter/{own['id']}")
        pages["bob"].get_by_text(re.compile("there is no adapter")).wait_for()
        pages["ada"].get_by_role("button", name="Sign out").click()
        pages["ada"].wait_for_url("**/sign-in*")
        assert pages["ada"].request.get("/api/adapters").status == 401
    finally:
        started.end()
