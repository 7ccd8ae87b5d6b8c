"""The API: uploads, the library, jobs and their files, each user's own; and whatever else is sent to it."""

import asyncio
import io
import json
import os
import shutil
import struct
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
import torch
from hypothesis import HealthCheck, given, settings
from safetensors.torch import load, load_file

from lorabench.adapters.adapter import Adapter
from lorabench.adapters.metadata.library import row_of
from lorabench.adapters.reading.files import load as load_adapter
from lorabench.errors import LorabenchError
from lorabench.web.access import Access
from lorabench.web.previews import Previews
from lorabench.web.settings import Settings
from lorabench.web.shelf import Shelf
from lorabench.web.site import Site, make_site
from lorabench.web.tools import tool
from tests.make_adapters import made_adapters
from tests.web_site import TOKEN, Scripts, ended, make

OLD = made_adapters() / "diffusers_old" / "pytorch_lora_weights.safetensors"
GPT2 = made_adapters() / "peft" / "gpt2"
USER = "me"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One whose queue runs."""
    made = make(tmp_path_factory.mktemp("site"), max_upload=2**20, quota=20 * 2**20)
    made.queue.start()
    yield made
    made.queue.stop()


@pytest.fixture(scope="module")
def scripts(site: Site) -> Scripts:
    return Scripts(site)


def asked(scripts: Scripts, method: str, path: str, **how: Any) -> httpx.Response:
    return asyncio.run(scripts.ask(method, path, **how))


def brought(scripts: Scripts, *files: tuple[str, bytes]) -> httpx.Response:
    return asyncio.run(scripts.bring(files))


def item_id(scripts: Scripts, end: str) -> str:
    return next(str(item["id"]) for item in asked(scripts, "GET", "/api/adapters").json() if item["file"].endswith(end))


def test_the_library_is_the_table_of_inspect_and_has_no_path(scripts: Scripts, site: Site) -> None:
    rows = {row["file"]: row for row in asked(scripts, "GET", "/api/adapters").json()}
    assert rows["old/pytorch_lora_weights.safetensors"]["valid"] is True
    assert rows["gpt2/adapter_model.safetensors"]["method"] == "LoRA"
    assert rows["broken/text.safetensors"]["valid"] is False
    assert "JSON text" in rows["broken/text.safetensors"]["error"]
    said = json.dumps(rows) + json.dumps(
        asked(scripts, "GET", f"/api/adapters/{item_id(scripts, 'style.safetensors')}").json()
    )
    assert str(site.settings.data.parent) not in said


def test_the_library_comes_in_parts(scripts: Scripts) -> None:
    whole = asked(scripts, "GET", "/api/adapters")
    assert whole.headers["x-total-count"] == str(len(whole.json()))
    part = asked(scripts, "GET", "/api/adapters?offset=1&limit=2")
    assert part.json() == whole.json()[1:3]
    assert asked(scripts, "GET", "/api/adapters?limit=0").status_code == 422


def test_an_upload_is_there_is_the_same_bytes_and_goes_again(scripts: Scripts) -> None:
    (new,) = brought(scripts, ("my style.safetensors", OLD.read_bytes())).json()
    assert asked(scripts, "GET", f"/api/adapters/{new}").json()["name"] == "my style.safetensors"
    assert asked(scripts, "GET", f"/api/adapters/{new}/file").content == OLD.read_bytes()
    assert asked(scripts, "DELETE", f"/api/adapters/{new}").status_code == 204
    assert asked(scripts, "GET", f"/api/adapters/{new}").status_code == 404


def test_a_configuration_comes_with_its_adapter(scripts: Scripts, site: Site) -> None:
    names = ("adapter_model.safetensors", "adapter_config.json")
    (new,) = brought(scripts, *((name, (GPT2 / name).read_bytes()) for name in names)).json()
    own, there = load_adapter(site.shelf.item(USER, new).path), load_adapter(GPT2)
    assert {name: module.alpha for name, module in own.modules.items()} == {
        name: module.alpha for name, module in there.modules.items()
    }
    assert own.config == there.config
    archive = asked(scripts, "GET", f"/api/adapters/{new}/archive")
    assert archive.headers["content-disposition"].endswith("adapter_model.zip")
    with zipfile.ZipFile(io.BytesIO(archive.content)) as packed:
        assert packed.testzip() is None
        assert {name: packed.read(name) for name in packed.namelist()} == {
            name: (GPT2 / name).read_bytes() for name in names
        }


def _lying(length: int) -> bytes:
    return struct.pack("<Q", length) + b'{"a":' + b"1" * 100


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.safetensors", b"", "a.safetensors"),
        ("a.safetensors", b"not an adapter at all", "a.safetensors"),
        ("a.safetensors", _lying(2**62), "a.safetensors"),
        ("a.safetensors", OLD.read_bytes()[:-1], "a.safetensors"),
        ("a.safetensors", b"PK\x03\x04" + bytes(200), "a.safetensors"),
        ("a.bin", OLD.read_bytes(), "cannot be brought"),
        ("../../etc/a.safetensors", OLD.read_bytes(), "cannot be brought"),
        ("a/b.safetensors", OLD.read_bytes(), "cannot be brought"),
        (".hidden.safetensors", OLD.read_bytes(), "cannot be brought"),
        ("-rf.safetensors", OLD.read_bytes(), "cannot be brought"),
        ("a\n.safetensors", OLD.read_bytes(), "cannot be brought"),
        ("x" * 200 + ".safetensors", OLD.read_bytes(), "cannot be brought"),
        ("adapter_config.json", b"{}", "0 adapters and 1 adapter_config.json came"),
    ],
)
def test_what_is_no_adapter_is_refused_and_nothing_is_left(
    scripts: Scripts, site: Site, name: str, data: bytes, message: str
) -> None:
    before = site.uploads.size(USER)
    answer = brought(scripts, (name, data))
    assert answer.status_code == 400
    assert message in answer.json()["error"]
    assert str(site.settings.data) not in answer.text
    assert site.uploads.size(USER) == before


def test_one_bad_file_of_a_request_keeps_out_all(scripts: Scripts, site: Site) -> None:
    before = site.uploads.size(USER)
    assert brought(scripts, ("a.safetensors", OLD.read_bytes()), ("b.safetensors", b"no")).status_code == 400
    assert site.uploads.size(USER) == before
    assert not [one for one in (site.settings.data / "uploads").rglob("*") if one.name.startswith(".")]


def test_sizes_are_held_while_the_bytes_come(scripts: Scripts, site: Site) -> None:
    async def endless() -> Any:
        for _ in range(10_000):
            yield bytes(2**16)

    answer = brought(scripts, ("a.safetensors", bytes(2**20 + 1)))
    assert answer.status_code == 400
    assert "at most 1 MiB" in answer.json()["error"]
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    unsaid = asked(scripts, "POST", "/api/adapters", content=endless(), headers=kind)
    assert unsaid.status_code == 400
    assert "must say its size" in unsaid.json()["error"]
    assert asked(scripts, "POST", "/api/adapters", content=bytes(3 * 2**20)).status_code == 413


def test_many_at_once_stay_within_the_quota(scripts: Scripts, site: Site) -> None:
    used = 18 * 2**20
    with site.uploads.room("other", 2**20, lambda: used):
        with site.uploads.room("other", 2**19, lambda: used):
            pass
        with pytest.raises(LorabenchError, match="of 20 MiB are"), site.uploads.room("other", 2**20, lambda: used + 1):
            pass
    with site.uploads.room("other", 2**20, lambda: used + 2**20):
        pass


@pytest.mark.slow
def test_two_hundred_uploads_at_once_of_which_eight_are_hostile(scripts: Scripts, site: Site) -> None:
    hostile = [
        b"",
        b"PK\x03\x04",
        _lying(2**62),
        _lying(3),
        OLD.read_bytes()[:50],
        bytes(1000),
        b"{" * 999,
        b"\x80\x04.",
    ]
    small = OLD.read_bytes()

    async def all_at_once() -> list[httpx.Response]:
        files = [(f"n{i}.safetensors", hostile[i // 25] if i % 25 == 0 else small) for i in range(200)]
        return await asyncio.gather(*(scripts.bring([one]) for one in files))

    before = len(site.uploads.of(USER))
    answers = asyncio.run(all_at_once())
    good = [answer for answer in answers if answer.status_code == 201]
    assert len(good) == 192
    assert {answer.status_code for answer in answers} == {201, 400}
    assert len(site.uploads.of(USER)) == before + 192
    assert not [one for one in (site.settings.data / "uploads").rglob("*") if one.name.startswith(".")]
    for upload in site.uploads.of(USER):
        site.uploads.remove(USER, upload.id)


def test_a_resize_foreseen_is_the_resize_done(scripts: Scripts, site: Site) -> None:
    one = item_id(scripts, "old/pytorch_lora_weights.safetensors")
    seen = asked(scripts, "POST", f"/api/adapters/{one}/foresee", json={"rank": 2}).json()
    job = asked(scripts, "POST", "/api/jobs", json={"command": "resize", "adapters": [one], "options": {"rank": 2}})
    assert job.status_code == 202
    done = ended(site, USER, job.json()["id"])
    assert done["state"] == "done", done
    answer = asked(scripts, "GET", f"/api/jobs/{job.json()['id']}").json()
    assert answer["answer"]["data"]["predicted"] == pytest.approx(seen["error"], rel=1e-9)
    (name,) = answer["files"]
    content = asked(scripts, "GET", f"/api/jobs/{job.json()['id']}/files/{name}").content
    ranks = {value.shape[0] for key, value in load(content).items() if "lora.down" in key}
    assert ranks == {2}
    assert str(site.settings.data.parent) not in json.dumps(answer)


def test_an_edit_foreseen_is_the_edit_done(scripts: Scripts, site: Site) -> None:
    one = item_id(scripts, "kohya/style.safetensors")
    edit = {"set": ["ss_tag=2", "new=3"], "redact": True}
    told = asked(scripts, "POST", f"/api/adapters/{one}/changes", json=edit).json()
    assert told["changed"]["new"] == [None, "3"]
    job = asked(scripts, "POST", "/api/jobs", json={"command": "inspect", "adapters": [one], "options": edit}).json()
    assert ended(site, USER, job["id"])["state"] == "done"
    (name,) = asked(scripts, "GET", f"/api/jobs/{job['id']}").json()["files"]
    made = metadata_in(asked(scripts, "GET", f"/api/jobs/{job['id']}/files/{name}").content)
    assert {key: then for key, (_, then) in told["changed"].items()}.items() <= made.items()
    assert not set(told["removed"]) & set(made)
    for wrong in ({}, {"hashes": True}, {"unset": ["not there"]}, {"unset": [None]}, {"nonsense": 1}):
        refused = asked(scripts, "POST", f"/api/adapters/{one}/changes", json=wrong)
        assert refused.status_code == 400, wrong
        assert refused.json()["error"]


def metadata_in(content: bytes) -> dict[str, str]:
    """The metadata of a safetensors file's bytes."""
    found: dict[str, str] = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    return found


def test_what_a_job_made_is_on_the_shelf_and_can_be_used_again(scripts: Scripts, site: Site) -> None:
    one = item_id(scripts, "gpt2/adapter_model.safetensors")
    first = asked(scripts, "POST", "/api/jobs", json={"command": "resize", "adapters": [one], "options": {"rank": 1}})
    assert ended(site, USER, first.json()["id"])["state"] == "done"
    made = item_id(scripts, "gpt2-resized/adapter_model.safetensors")
    again = asked(scripts, "POST", "/api/jobs", json={"command": "merge", "adapters": [made, one], "options": {}})
    done = ended(site, USER, again.json()["id"])
    assert done["state"] == "done", done
    merged = next(item for item in site.shelf.items(USER) if item.name.endswith("merged/adapter_model.safetensors"))
    tensors = load_file(merged.path)
    assert all(bool(torch.isfinite(value).all()) for value in tensors.values())


def test_a_page_of_a_job_is_shown_in_a_frame_of_its_own_alone(scripts: Scripts, site: Site) -> None:
    one = item_id(scripts, "old/pytorch_lora_weights.safetensors")
    job = asked(scripts, "POST", "/api/jobs", json={"command": "audit", "adapters": [one]}).json()["id"]
    assert ended(site, USER, job)["state"] == "done"
    page = asked(scripts, "GET", f"/api/jobs/{job}/files/audit.html?show=true")
    assert page.headers["content-type"].startswith("text/html")
    assert "sandbox" in page.headers["content-security-policy"]
    assert "old/pytorch_lora_weights.safetensors" in page.text
    assert str(site.settings.folder) not in page.text
    taken = asked(scripts, "GET", f"/api/jobs/{job}/files/audit.html")
    assert taken.headers["content-disposition"].startswith("attachment")


def test_another_users_things_are_not_there(scripts: Scripts, site: Site) -> None:
    (new,) = brought(scripts, ("mine.safetensors", OLD.read_bytes())).json()
    assert new in {item.id for item in site.shelf.items(USER)}
    assert new not in {item.id for item in site.shelf.items("other")}
    with pytest.raises(LorabenchError, match="there is no adapter"):
        site.shelf.item("other", new)
    for job in site.queue.jobs(USER):
        with pytest.raises(LorabenchError, match="no such job"):
            site.queue.job("other", job.id)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/api/adapters/nothing", None, 404),
        ("GET", "/api/jobs/nothing", None, 404),
        ("GET", "/api/runs/nothing/page", None, 404),
        ("POST", "/api/jobs/nothing/cancel", None, 404),
        ("DELETE", "/api/jobs/nothing", None, 404),
        ("DELETE", "/api/adapters/nothing", None, 404),
        ("POST", "/api/jobs", {"command": "resize", "adapters": ["nothing"], "options": {"rank": 2}}, 404),
        ("POST", "/api/jobs", {"command": "resize", "adapters": []}, 422),
        ("POST", "/api/jobs", {"command": "rm", "adapters": ["a"]}, 422),
        ("POST", "/api/jobs", {"command": "resize", "adapters": ["a"], "out": "x"}, 422),
    ],
)
def test_what_is_not_there(scripts: Scripts, method: str, path: str, body: object, status: int) -> None:
    answer = asked(scripts, method, path, json=body)
    assert answer.status_code == status


def test_a_refusal_names_no_folder_of_the_servers(scripts: Scripts, site: Site) -> None:
    broken = item_id(scripts, "text.safetensors")
    for answer in (
        asked(scripts, "GET", f"/api/adapters/{broken}"),
        asked(scripts, "POST", f"/api/adapters/{broken}/foresee", json={"rank": 1}),
        brought(scripts, ("a.safetensors", OLD.read_bytes()), ("adapter_config.json", b"[" * 9000)),
    ):
        assert answer.status_code == 400
        assert str(site.settings.data.parent) not in answer.text
    assert answer.json()["error"].startswith("a/adapter_config.json: ")


def test_an_answer_names_no_folder_when_its_upload_is_gone(scripts: Scripts, site: Site) -> None:
    (new,) = brought(scripts, ("gone.safetensors", OLD.read_bytes())).json()
    job = asked(scripts, "POST", "/api/jobs", json={"command": "resize", "adapters": [new], "options": {"rank": 2}})
    assert ended(site, USER, job.json()["id"])["state"] == "done"
    asked(scripts, "DELETE", f"/api/adapters/{new}")
    answer = asked(scripts, "GET", f"/api/jobs/{job.json()['id']}")
    assert str(site.settings.data) not in answer.text
    assert "gone.safetensors" in answer.text


def test_what_a_job_reads_stays_until_it_has_ended(tmp_path: Path) -> None:
    idle = make(tmp_path)  # nothing runs, so the job waits
    own = Scripts(idle)
    (new,) = brought(own, ("used.safetensors", OLD.read_bytes())).json()
    job = asked(own, "POST", "/api/jobs", json={"command": "resize", "adapters": [new], "options": {"rank": 2}}).json()
    answer = asked(own, "DELETE", f"/api/adapters/{new}")
    assert (answer.status_code, answer.json()["error"]) == (
        400,
        "used.safetensors is read by a job: let it end, or cancel it.",
    )
    idle.uploads.forget_older(-1.0, idle.queue.reads)
    assert asked(own, "GET", f"/api/adapters/{new}").status_code == 200
    asked(own, "POST", f"/api/jobs/{job['id']}/cancel")
    assert asked(own, "DELETE", f"/api/adapters/{new}").status_code == 204


def test_a_rank_may_have_any_number_of_digits(scripts: Scripts) -> None:
    one = item_id(scripts, "old/pytorch_lora_weights.safetensors")
    answer = asked(scripts, "POST", f"/api/adapters/{one}/foresee", json={"rank": 10**1000})
    assert (answer.status_code, answer.json()["error"]) == (200, 0.0)


def test_a_name_that_no_disk_takes_is_refused(scripts: Scripts) -> None:
    answer = brought(scripts, ("漢" * 119 + ".safetensors", OLD.read_bytes()))
    assert (answer.status_code, "cannot be brought" in answer.json()["error"]) == (400, True)


@pytest.mark.parametrize("name", ["NaN", '"\\ud800"', "[" * 900 + "]" * 900, "[" * 9000 + "]" * 9000])
def test_what_is_no_json_is_refused(scripts: Scripts, name: str) -> None:
    for body in (f'{{"command": {name}}}', f'{{"command": "pca", "adapters": ["x", {name}]}}', f'{{"rank": {name}}}'):
        for path in ("/api/jobs", "/api/adapters/nothing/foresee"):
            answer = asked(scripts, "POST", path, content=body, headers={"Content-Type": "application/json"})
            assert answer.status_code in (400, 404, 422)  # how deep is too deep depends on what has called the parser
            assert len(answer.content) < 2000
            assert ("detail" if answer.status_code == 422 else "error") in answer.json()


def test_checkpoints_are_one_training_by_their_names_alone(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        shutil.copytree(GPT2, tmp_path / "adapters" / "run" / f"checkpoint-{step}")
    own = Scripts(make(tmp_path))
    for step in (2, 1):
        brought(own, (f"mine-{step:06d}.safetensors", OLD.read_bytes()))
    shelf = own.site.shelf
    trainings = {one.name: [item.name for item in one.items] for one in shelf.trainings(USER)}
    assert trainings == {
        "run/checkpoint-…": [f"run/checkpoint-{step}/adapter_model.safetensors" for step in (9, 10, 100)],
        "mine-….safetensors": ["mine-000001.safetensors", "mine-000002.safetensors"],
    }
    assert [one.name for one in shelf.trainings("other")] == ["run/checkpoint-…"]
    (mine,) = (one for one in shelf.trainings(USER) if one.name.startswith("mine"))
    wish = tool("audit").wish([item.input for item in mine.items], {"series": True})
    assert wish.shown == (
        "lorabench adapters audit mine-000001.safetensors mine-000002.safetensors --series --html audit.html --sarif "
        "audit.sarif"
    )


def test_a_training_is_judged_over_its_steps(scripts: Scripts, site: Site) -> None:
    two = [item_id(scripts, "old/pytorch_lora_weights.safetensors"), item_id(scripts, "kohya/style.safetensors")]
    two[1] = brought(scripts, ("later.safetensors", OLD.read_bytes())).json()[0]
    wish = {"command": "audit", "adapters": two, "options": {"series": True}}
    job = asked(scripts, "POST", "/api/jobs", json=wish).json()
    assert job["asked"] == {"adapters": two, "options": {"series": True}}
    done = ended(site, USER, job["id"])
    assert done["state"] == "done", done
    (one,) = asked(scripts, "GET", f"/api/jobs/{job['id']}").json()["answer"]["data"]["adapters"]
    assert (one["steps"], [entry["step"] for entry in one["trajectory"]]) == ([1, 2], [1, 2])
    told = asked(scripts, "GET", "/api/notices").json()
    assert (told[0]["id"], told[0]["unread"]) == (job["id"], True)
    assert asked(scripts, "POST", "/api/notices/read").status_code == 204
    assert not any(one["unread"] for one in asked(scripts, "GET", "/api/notices").json())
    asked(scripts, "DELETE", f"/api/adapters/{two[1]}")


def test_headers_are_read_once_for_each_state_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    first = make(tmp_path).shelf
    before = {item.name: first.row(item) for item in first.items(USER)}
    read: list[Path] = []
    monkeypatch.setattr("lorabench.web.shelf.row_of", lambda path, root: read.append(path) or row_of(path, root))
    settings = Settings(tmp_path / "data", tmp_path / "adapters")

    def shelf() -> Shelf:
        return make_site(settings, Access(token=TOKEN)).shelf

    again = shelf()
    assert {item.name: again.row(item) for item in again.items(USER)} == before
    assert read == []
    changed = tmp_path / "adapters" / "kohya" / "style.safetensors"
    changed.write_bytes(changed.read_bytes() + b"x")
    config = tmp_path / "adapters" / "gpt2" / "adapter_config.json"
    os.utime(config, (1, 1))
    later = shelf()
    assert [later.row(item)["valid"] for item in later.items(USER) if item.path == changed] == [False]
    assert [item.path.parent.name for item in later.items(USER) if later.known_row(item) is None] == ["gpt2"]
    kept = tmp_path / "data" / "headers.jsonl"
    kept.write_text(kept.read_text()[:-20] + "\n[1]\nnull\n")
    assert all(shelf().row(item) for item in shelf().items(USER)), "half a line is passed over"
    kept.write_text('["another version"]\n' + kept.read_text())
    assert not any(shelf().known_row(item) for item in shelf().items(USER))


def test_the_shelf_looks_at_the_disk_once_for_each_change(scripts: Scripts, site: Site) -> None:
    (new,) = brought(scripts, ("once.safetensors", OLD.read_bytes())).json()
    site.shelf.items(USER)
    gone = site.shelf.item(USER, new)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "walk", None)
        patch.setattr(Path, "glob", None)
        assert site.shelf.item(USER, new) == gone
    asked(scripts, "DELETE", f"/api/adapters/{new}")
    with pytest.raises(LorabenchError, match="there is no adapter"):
        site.shelf.item(USER, new)


def test_nobody_waits_for_another_users_spectra(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    by_name = {item.name: item for item in site.shelf.items(USER)}
    slow, quick = by_name["old/pytorch_lora_weights.safetensors"], by_name["kohya/style.safetensors"]
    previews, go = Previews(), threading.Event()

    def slowly(path: Path) -> Adapter:
        assert path != slow.path or go.wait(60)
        return load_adapter(path)

    monkeypatch.setattr("lorabench.adapters.reading.files.load", slowly)

    async def asking() -> None:
        first = asyncio.create_task(previews.of("ann", slow))
        left = asyncio.create_task(previews.of("ann", slow))
        await asyncio.sleep(0)
        left.cancel()
        assert await previews.of("ben", quick) is await previews.of("ann", quick)
        assert not first.done()
        go.set()
        assert await first is await previews.of("ben", slow), "who leaves does not end it for others"

    asyncio.run(asking())


def test_adapters_of_the_folder_stay(scripts: Scripts) -> None:
    one = item_id(scripts, "old/pytorch_lora_weights.safetensors")
    answer = asked(scripts, "DELETE", f"/api/adapters/{one}")
    assert answer.status_code == 400
    assert "no upload of yours" in answer.json()["error"]


def test_the_commands_are_told_with_their_options(scripts: Scripts) -> None:
    told = {one["name"]: one for one in asked(scripts, "GET", "/api/commands").json()}
    assert {"resize", "merge", "audit"} <= set(told)
    assert "rank" in {argument["name"] for argument in told["resize"]["arguments"]}


OPERATIONS = [
    ("GET", "/api/adapters"),
    ("POST", "/api/adapters"),
    ("GET", "/api/adapters/{adapter_id}"),
    ("DELETE", "/api/adapters/{adapter_id}"),
    ("GET", "/api/adapters/{adapter_id}/file"),
    ("GET", "/api/adapters/{adapter_id}/archive"),
    ("POST", "/api/adapters/{adapter_id}/foresee"),
    ("POST", "/api/adapters/{adapter_id}/changes"),
    ("GET", "/api/commands"),
    ("POST", "/api/jobs"),
    ("GET", "/api/jobs"),
    ("GET", "/api/jobs/{job_id}"),
    ("POST", "/api/jobs/{job_id}/cancel"),
    ("DELETE", "/api/jobs/{job_id}"),
    ("GET", "/api/jobs/{job_id}/files/{name}"),
    ("GET", "/api/models"),
    ("GET", "/api/notices"),
    ("POST", "/api/notices/read"),
    ("GET", "/api/runs"),
    ("GET", "/api/runs/{run_id}/page"),
]


def test_every_operation_is_tried(scripts: Scripts) -> None:
    told = scripts.app.openapi()["paths"]
    assert {(method.upper(), path) for path, methods in told.items() for method in methods} == set(OPERATIONS)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_nothing_that_is_sent_breaks_it(scripts: Scripts, method: str, path: str) -> None:
    headers = {**scripts.headers, "Host": "localhost:8765"}
    schema = schemathesis.openapi.from_asgi("/api/openapi.json", scripts.gate, headers=headers)

    @settings(max_examples=15, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=schema[path][method].as_strategy())
    def tried(case: schemathesis.Case) -> None:
        answer = case.call(headers=headers)
        assert answer.status_code < 500, answer.text
        if answer.status_code >= 400 and answer.status_code != 422:
            assert "error" in answer.json()

    tried()
