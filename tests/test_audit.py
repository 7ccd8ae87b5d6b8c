"""`lorabench-adapter audit` as a user runs it, on made and on published adapters."""

import csv
import json
import math
import os
import re
import subprocess
import sys
import urllib.parse
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lorabench.adapters import load
from lorabench.adapters.__main__ import main
from lorabench.errors import LorabenchError
from lorabench.health import audit, read_thresholds
from lorabench.health.rules import rules
from lorabench.health.sheets import adapters_sheet, modules_sheet
from lorabench.sheet import sheets_text
from lorabench.text import to_json
from tests.real_adapters import SHARED, real_files

SCRIPT = "<script>alert(1)</script>"


def run(*words, code=0, cwd=None):
    """As a user does; nothing is ever a traceback, nor a warning."""
    done = subprocess.run(
        [sys.executable, "-m", "lorabench.adapters", "audit", *map(str, words)],
        cwd=cwd, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    return done


def ask(capsys, *words, code=0):
    """The same in this process, with what is said for machines."""
    assert main(["audit", *map(str, words), "--json"]) == code
    said = capsys.readouterr()
    return json.loads(said.out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def write(path, count=4, rank=4, out=24, width=16, seed=0, name="unet.mid_block.{i}.to_q", dtype=torch.float32, **ups):
    """A PEFT file of some modules; `ups`: the size of B, or what B @ A is turned into."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for i in range(count):
        down = torch.randn(rank, width, generator=generator)
        up = torch.randn(out, rank, generator=generator) * ups.get("size", 0.1)
        if ups.get("collapsed"):  # all but one direction
            up[:, 1:] *= 1e-4
        tensors[f"base_model.model.{name.format(i=i)}.lora_A.weight"] = down.to(dtype)
        tensors[f"base_model.model.{name.format(i=i)}.lora_B.weight"] = up.to(dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A sound adapter, one of little use, one that is untrained, one with NaN, and what is none."""
    below = tmp_path_factory.mktemp("audited")
    write(below / "sound.safetensors")
    write(below / "deep" / "weak.safetensors", collapsed=True)
    write(below / "deep" / "untrained.safetensors", size=0.0)
    write(below / "nan.safetensors", size=math.nan)
    (below / "text.safetensors").write_text("not an adapter")
    (below / "notes.txt").write_text("not looked at")
    return below


def test_a_folder_is_a_table_with_what_the_rules_say_and_what_to_do(folder):
    said = run(folder, code=1).stdout
    lines = said.splitlines()
    assert lines[0] == "5 adapters: 3 with errors at worst, 1 with warnings at worst"
    rows = [line.split() for line in lines if ".safetensors" in line and line.startswith(" ")]
    by_name = {row[0]: row[1:] for row in rows if row[0].endswith(".safetensors")}
    assert set(by_name) == {"sound.safetensors", "deep/weak.safetensors", "deep/untrained.safetensors",
                            "nan.safetensors", "text.safetensors"}  # fmt: skip
    assert by_name["sound.safetensors"][:2] == ["4", "4"]
    assert by_name["nan.safetensors"][-2:] == ["error", "unreadable"]
    assert by_name["deep/untrained.safetensors"][-2:] == ["error", "untrained"]
    assert "error, untrained: 4 of 4 modules: unet.mid_block.0.to_q changes nothing: B is zero" in said
    assert re.search(r"not readable: .*nan\.safetensors: NaN or infinite values in .*lora_B", said)
    assert re.search(r"not readable: .*text\.safetensors: ", said)
    assert said.count(f"  untrained: {rules()['untrained'].action}") == 1
    assert "notes.txt" not in said


def test_on_a_terminal_of_a_hundred_columns_tables_are_folded_and_lose_nothing(folder, base, tmp_path):
    long = tmp_path / "an-organisation-of-many-words__and-its-adapters" / "weights" / "text_encoder_of_the_first"
    write(long / "collapsed.safetensors", collapsed=True, size=9.0)
    write(tmp_path / "sound.safetensors", name="a_rather_long_prefix.of_a_module.{i}.that_has.many_parts")
    audits = [*audit(tmp_path), *audit(folder / "sound.safetensors", base, count_intruders=True)]
    whole = [adapters_sheet(audits), *(modules_sheet(one) for one in audits)]
    text = sheets_text(whole, width=100)
    tables = [line for line in text.splitlines() if not line.startswith(("κ", "by norms", "used"))]
    assert max(map(len, tables)) <= 100 < max(map(len, sheets_text(whole).splitlines()))
    together = "".join(text.split())
    for part in ("organisation-", "text_encoder_of_the_first/", "low_rank_use", "ill_conditioned", "many_parts"):
        assert part in together
    assert "left out on a narrow terminal: by norms, κ(B), κ(A); --json has them" in text
    assert "…" not in text


def test_json_is_json_and_says_the_numbers_of_dense_algebra(folder, capsys):
    found = ask(capsys, folder, code=1)
    by_name = {Path(one["name"]).name: one for one in found["adapters"]}
    assert (found["fail_on"], found["failed"], found["written"]) == ("error", True, [])
    assert by_name["nan.safetensors"]["severity"] == by_name["text.safetensors"]["severity"] == "error"
    assert "NaN or infinite" in by_name["nan.safetensors"]["unreadable"]
    assert by_name["sound.safetensors"]["severity"] is None
    adapter = load(folder / "sound.safetensors")
    assert [row["module"] for row in by_name["sound.safetensors"]["modules"]] == list(adapter.modules)
    for row in by_name["sound.safetensors"]["modules"]:
        check(row, adapter.modules[row["module"]])


def check(row, module):
    """One module of --json beside numpy."""
    delta = module.delta().double().numpy()
    sigma = np.linalg.svd(delta, compute_uv=False)[: module.rank]
    assert (row["nominal_rank"], tuple(row["shape"])) == (module.rank, module.shape)
    assert row["sigma_max"] == pytest.approx(sigma[0], rel=1e-5)
    assert row["frobenius"] == pytest.approx(np.linalg.norm(delta), rel=1e-5)
    if row["untrained"]:
        assert not delta.any()
        return
    share = sigma[sigma > 1e-9 * sigma[0]] / sigma.sum()
    effective = math.exp(-(share * np.log(share)).sum())
    assert row["effective_rank_BA"] == pytest.approx(effective, rel=1e-3)
    assert row["rank_utilization"] == pytest.approx(effective / module.rank, rel=1e-3)
    assert row["stable_rank"] == pytest.approx((sigma**2).sum() / sigma[0] ** 2, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "codes"),
    [
        ("sound.safetensors", {"note": 0, "warning": 0, "error": 0, "never": 0}),
        ("deep/weak.safetensors", {"note": 1, "warning": 1, "error": 0, "never": 0}),
        ("deep/untrained.safetensors", {"note": 1, "warning": 1, "error": 1, "never": 0}),
        (".", {"note": 1, "warning": 1, "error": 1, "never": 0}),
    ],
)
def test_the_exit_code_is_that_of_fail_on(folder, capsys, name, codes):
    for fail_on, code in codes.items():
        found = ask(capsys, folder / name, "--fail-on", fail_on, code=code)
        assert found["failed"] == bool(code)
    assert main(["audit", str(folder / name)]) == codes["error"]


def refused(capsys, words):
    """The exit code, and the one line that says why."""
    try:
        code = main(["audit", *map(str, words)])
    except SystemExit as left:
        code = left.code
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1), words
    return code, said.err


def test_what_is_wrong_usage_ends_with_two_and_a_line(folder, tmp_path, capsys):
    sound = folder / "sound.safetensors"
    for words in (
        (), (sound, "--intruders"), (sound, "--fail-on", "all"), (sound, "--top", "0"), ("",),
        (sound, "--rule"), (sound, "--html", ""), (sound, "--html", tmp_path / "x", "--sarif", tmp_path / "x"),
        (sound, "--html", sound), (sound, "--sarif", folder / "deep" / "weak.safetensors"),
    ):  # fmt: skip
        code, line = refused(capsys, words)
        assert code == 2, words
        assert line.startswith("usage: lorabench-adapter audit"), words
    assert run(sound, "--intruders", code=2).stderr.endswith("give --base too\n")
    assert load(sound).modules
    assert not (tmp_path / "x").exists()


def test_what_cannot_be_read_ends_with_one_and_a_line(folder, tmp_path, capsys):
    sound = folder / "sound.safetensors"
    (tmp_path / "bad.yaml").write_text("dominating: {limits: {error: .nan}}")
    for words, message in (
        ((tmp_path / "missing",), "no such file or folder"),
        ((tmp_path,), "no adapter below"),
        ((folder / "nan.safetensors",), "NaN or infinite values"),
        ((folder / "text.safetensors",), "no safetensors header"),
        ((folder / "notes.txt",), "adapter files end in"),
        ((sound, "--rule", "nonsense"), "rule nonsense: there is none"),
        ((sound, "--thresholds", tmp_path / "missing.yaml"), "cannot be read"),
        ((sound, "--thresholds", tmp_path / "bad.yaml"), "limits finite numbers"),
        ((sound, "--base", tmp_path / "missing"), "no such file or folder"),
        ((sound, "--base", tmp_path), "no .safetensors file in it"),
        ((sound, "--base", sound), "holds no weight of the adapter's modules"),
        ((sound, "--html", tmp_path / "bad.yaml" / "page.html"), "page.html"),
        ((sound, "--html", tmp_path), str(tmp_path)),
        ((sound, "--sarif", tmp_path / "bad.yaml" / "log"), "log"),
    ):
        code, line = refused(capsys, words)
        assert code == 1, words
        assert message in line, words
        assert line.startswith("lorabench-adapter audit: ")
    assert json.loads(run(tmp_path / "missing", "--json", code=1).stdout)["error"]


def test_one_rule_alone_and_thresholds_of_ones_own(folder, tmp_path, capsys):
    weak = folder / "deep" / "weak.safetensors"
    found = ask(capsys, weak, "--rule", "quarter_of_nominal", "--rule", "ill_conditioned")
    said = {alert["rule"] for one in found["adapters"] for alert in one["alerts"]}
    assert said <= {"quarter_of_nominal", "ill_conditioned"}
    assert ask(capsys, weak, "--rule", "untrained")["adapters"][0]["alerts"] == []
    mine = tmp_path / "mine.yaml"
    mine.write_text("low_rank_use: {limits: {error: 0.9}}\nill_conditioned: {asked: false}")
    (alert,) = ask(capsys, weak, "--thresholds", mine, code=1)["adapters"][0]["alerts"]
    assert (alert["rule"], alert["severity"], alert["limit"]) == ("low_rank_use", "error", 0.9)


@pytest.fixture(scope="module")
def base(folder, tmp_path_factory):
    """W of the first three of four modules: ρ of one of them is large, of one small."""
    weights = {
        f"mid_block.{i}.to_q.weight": torch.randn(24, 16, generator=torch.Generator().manual_seed(i)) * size
        for i, size in enumerate((1e-2, 1.0, 1e6))
    }
    path = tmp_path_factory.mktemp("base") / "unet.safetensors"
    save_file(weights, path)
    return path


def test_beside_a_base_dominance_is_judged_and_shown(folder, base, tmp_path, capsys):
    sound = folder / "sound.safetensors"
    page = tmp_path / "page.html"
    found = ask(capsys, sound, "--base", base, "--intruders", "--html", page, code=1)["adapters"][0]
    said = {alert["rule"]: alert for alert in found["alerts"]}
    assert {"dominating", "scale_too_large", "scale_too_small"} <= set(said)
    assert (said["dominating"]["severity"], said["dominating"]["modules"][0]) == ("error", "unet.mid_block.0.to_q")
    weights = load_base(base)
    for row in found["modules"]:
        weight = weights.get(row["module"].removeprefix("unet.") + ".weight")
        if weight is None:
            assert (row["dominance"], row["base_sigma_max"], row["intruder_dimensions"]) == (None, None, None)
            continue
        expected = np.linalg.norm(load(sound).modules[row["module"]].delta().numpy(), 2) / np.linalg.norm(weight, 2)
        assert row["dominance"] == pytest.approx(expected, rel=1e-5)
    assert found["structure"]["max_dominance"] == max(row["dominance"] or 0 for row in found["modules"])
    assert found["structure"]["band"] == "critical"
    text = run(sound, "--base", base, "--intruders", code=1).stdout
    assert "ρ" in text
    assert "intruders" in text
    assert 'aria-label="σ_max(ΔW) / σ_max(W) of 3 modules in network order' in page.read_text()


def test_a_small_dominance_is_drawn_without_a_warning(tmp_path, capsys):
    small = write(tmp_path / "small.safetensors", size=1e-3)
    weights = {f"mid_block.{i}.to_q.weight": torch.randn(24, 16) for i in range(4)}
    save_file(weights, tmp_path / "base.safetensors")
    ask(capsys, small, "--base", tmp_path / "base.safetensors", "--html", tmp_path / "page.html")
    assert self_contained(tmp_path / "page.html").elements.count("svg") == 2


def load_base(path):
    from safetensors.numpy import load_file

    return load_file(path)


def test_an_adapter_of_another_base_among_several_is_told_and_the_others_are_judged(folder, base, tmp_path, capsys):
    write(tmp_path / "a.safetensors")
    write(tmp_path / "b.safetensors", width=17)
    write(tmp_path / "c.safetensors", name="other.{i}")
    by_name = {Path(one["name"]).stem: one for one in ask(capsys, tmp_path, "--base", base, code=1)["adapters"]}
    assert by_name["a"]["structure"]["max_dominance"] > 0
    assert "changes a weight of [24, 17]" in by_name["b"]["unreadable"]
    assert "holds no weight of the adapter's modules" in by_name["c"]["unreadable"]
    assert {name: one["misfit"] for name, one in by_name.items()} == {"a": False, "b": True, "c": True}
    (tmp_path / "d.safetensors").write_text("no adapter")
    page = tmp_path / "page.html"
    assert main(["audit", str(tmp_path), "--base", str(base), "--html", str(page)]) == 1
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if "[24, 17]" in line]
    assert re.fullmatch(r"  does not fit the base: .*mid_block\.0\.to_q\.weight is \[24, 16\], and .*", line)
    assert said.count("not readable: ") == 1
    assert [line.split()[-2:] for line in said.splitlines() if line.startswith(" b.safe")] == [["other", "base"]]
    assert "Does not fit the base: " in page.read_text()


def test_sarif_is_what_a_code_host_takes(folder, tmp_path, capsys):
    odd = tmp_path / "in put" / "été #1%.safetensors"
    write(odd, size=0.0)
    (tmp_path / "in put" / "broken.safetensors").write_text("no")
    log = tmp_path / "audit.sarif"
    ask(capsys, tmp_path / "in put", "--sarif", log, code=1)
    said = json.loads(log.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert (said["version"], len(said["runs"])) == ("2.1.0", 1)
    assert said["$schema"].startswith("https://")
    driver = said["runs"][0]["tool"]["driver"]
    assert driver["name"] == "lorabench"
    declared = [rule["id"] for rule in driver["rules"]]
    assert set(declared) == {*rules(), "unreadable"}
    assert len(declared) == len(set(declared))
    assert all(rule["shortDescription"]["text"] for rule in driver["rules"])
    results = said["runs"][0]["results"]
    assert [result["ruleId"] for result in results] == ["unreadable", "untrained"]
    for result in results:
        assert result["ruleId"] in declared
        assert result["level"] in ("none", "note", "warning", "error")
        assert result["message"]["text"]
        (location,) = result["locations"]
        uri = location["physicalLocation"]["artifactLocation"]["uri"]
        assert re.fullmatch(r"[A-Za-z0-9/._~%-]+", uri)
        assert Path(urllib.parse.unquote(uri)).is_file()
    assert urllib.parse.unquote(results[1]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]) == str(odd)
    names = [one["fullyQualifiedName"] for one in results[1]["locations"][0]["logicalLocations"]]
    assert names == list(load(odd).modules)
    ask(capsys, folder / "sound.safetensors", "--sarif", log)
    assert json.loads(log.read_text())["runs"][0]["results"] == []


class Page(HTMLParser):
    """What a browser would make of it: the elements, what they ask for, and the text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.asked, self.words, self.ids = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
                self.asked.append(value)
            if name == "id":
                self.ids.append(value)

    def handle_data(self, data):
        self.words.append(data)


def self_contained(path):
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert text.startswith("<!doctype html>")
    assert page.elements.count("script") == 1
    assert [address for address in page.asked if not address.startswith(("#", "data:"))] == []
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert {address[1:] for address in page.asked if address.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    return page


def test_the_page_is_one_file_and_says_no_name_as_markup(tmp_path):
    folder = tmp_path / "files"
    write(folder / "a<b>&amp;$x^2$'\".safetensors", name=SCRIPT.replace("/", "") + ".$a_{i}$", collapsed=True)
    write(folder / "<img src=x onerror=alert(1)>.safetensors", name='"><svg onload=x>.{i}')
    (folder / "<iframe>.safetensors").write_text("no")
    page = tmp_path / "page.html"
    run(folder, "--html", page, code=1)
    found = self_contained(page)
    assert {"img", "iframe"}.isdisjoint(found.elements)
    words = "".join(found.words)
    for name in ("a<b>&amp;$x^2$'\".safetensors", "<img src=x onerror=alert(1)>.safetensors", "<iframe>.safetensors"):
        assert name in words
    assert SCRIPT.replace("/", "") + ".$a_0$" in words
    assert "Not readable: " in words


def test_names_that_are_no_text_stop_nothing(tmp_path):
    folder = tmp_path / "files"
    write(folder / "a.safetensors", size=0.0)
    try:
        os.link(folder / "a.safetensors", os.fsencode(folder) + b"/b\xff\xfe.safetensors")
    except OSError:
        pytest.skip("this file system holds no such name")
    write(folder / "пример\u202e日本.safetensors")
    run(folder, "--html", tmp_path / "page.html", "--sarif", tmp_path / "log.sarif", "--json", code=1)
    self_contained(tmp_path / "page.html")
    results = json.loads((tmp_path / "log.sarif").read_text())["runs"][0]["results"]
    uris = [one["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for one in results]
    assert uris[1].endswith("b%FF%FE.safetensors")


def test_a_page_has_a_section_with_figures_for_every_adapter_that_can_be_read(folder, tmp_path, capsys):
    page = tmp_path / "page.html"
    ask(capsys, folder, "--html", page, code=1)
    found = self_contained(page)
    assert [one for one in found.ids if one.startswith("adapter-")] == ["adapter-0", "adapter-1", "adapter-2"]
    assert found.elements.count("svg") == 2  # of what is untrained there is none
    ask(capsys, folder / "sound.safetensors", "--html", page)
    assert self_contained(page).elements.count("svg") == 1


def a_training(folder, uses):
    """Checkpoints 10, 20, ... whose σ are all alike or one alone."""
    for number, collapsed in enumerate(uses):
        write(folder / f"checkpoint-{(number + 1) * 10}" / "adapter_model.safetensors", seed=1, collapsed=collapsed,
              size=0.1 * (number + 1))  # fmt: skip


def test_a_training_that_collapses_is_one_adapter_with_its_steps(tmp_path, capsys):
    a_training(tmp_path / "run", [False, False, False, True, True])
    page = tmp_path / "page.html"
    (one,) = ask(capsys, tmp_path / "run", "--html", page)["adapters"]
    assert one["name"] == str(tmp_path / "run" / "checkpoint-…")
    assert one["steps"] == [10, 20, 30, 40, 50]
    assert [Path(file).parent.name for file in one["files"]] == [f"checkpoint-{step}" for step in one["steps"]]
    said = {alert["rule"]: alert for alert in one["alerts"]}
    assert (said["collapsed_early"]["severity"], said["collapsed_early"]["step"]) == ("warning", 50)
    assert said["low_rank_use"]["step"] == 50  # the last is asked as a file is, though it comes before step 100
    assert {module["rank_utilization_trend"] for module in one["dynamics"]} == {"collapsing"}
    last = load(tmp_path / "run" / "checkpoint-50")
    for row in one["modules"]:
        check(row, last.modules[row["module"]])
    text = run(tmp_path / "run").stdout
    assert "checkpoint-… (5 checkpoints)" in text
    assert "collapsing in 4 modules" in text
    assert re.search(r"warning, collapsed_early, step 50: 4 of 4 modules: .* uses \d+% of rank 4 at step 50", text)
    assert self_contained(page).elements.count("svg") == 2


def test_what_ceased_before_the_last_checkpoint_is_told_with_its_step(tmp_path, capsys):
    a_training(tmp_path / "run", [False, True, False])
    (one,) = ask(capsys, tmp_path / "run")["adapters"]
    assert {alert["rule"]: alert["step"] for alert in one["alerts"]}["collapsed_early"] == 20


def test_what_has_ceased_is_no_failure_and_what_no_rule_judges_any_more_is(tmp_path, capsys):
    run_of = {"back": (False, True, False), "late": (False, True, True)}
    for name, uses in run_of.items():
        a_training(tmp_path / name, uses)
    last = tmp_path / "late" / "checkpoint-30"
    last.rename(last.with_name("checkpoint-3000"))  # behind the window of the rule
    log = tmp_path / "log.sarif"
    options = ("--rule", "collapsed_early", "--fail-on", "warning")
    (back,) = ask(capsys, tmp_path / "back", *options, "--sarif", log)["adapters"]
    assert (back["severity"], back["ceased"], [alert["step"] for alert in back["alerts"]]) == (
        None, ["collapsed_early"], [20],
    )  # fmt: skip
    assert [one["level"] for one in json.loads(log.read_text())["runs"][0]["results"]] == ["note"]
    (late,) = ask(capsys, tmp_path / "late", *options, code=1)["adapters"]
    assert (late["severity"], late["ceased"], late["steps"][-1]) == ("warning", [], 3000)
    assert main(["audit", str(tmp_path / "back"), *options]) == 0
    said = capsys.readouterr().out
    assert said.startswith("1 adapter, of whose last checkpoint nothing is said\n")
    assert "warning, collapsed_early, step 20, ceased since: 4 of 4 modules" in said
    assert " (collapsed_early)" in said


def test_epochs_that_never_trained_are_an_error_and_are_drawn(tmp_path):
    for epoch in (1, 2, 3):
        write(tmp_path / f"style-{epoch:06d}.safetensors", size=0.0)
    said = run(tmp_path, "--html", tmp_path / "page.html", code=1).stdout
    assert "error, untrained, epoch 3: 4 of 4 modules" in said
    self_contained(tmp_path / "page.html")


@pytest.mark.parametrize("name", ["style-{:06d}", "epoch-{}", "{}"])
def test_epochs_are_no_steps_to_the_rules_that_count_steps(tmp_path, capsys, name):
    files = [tmp_path / f"{name.format(number)}.safetensors" for number in range(1, 7)]
    for number, file in enumerate(files):
        write(file, seed=number, collapsed=number > 2)
    (one,) = ask(capsys, *(["--series"] if name == "{}" else []), *files)["adapters"]
    assert (one["steps"], one["unit"]) == (list(range(1, 7)), "checkpoint" if name == "{}" else "epoch")
    assert "collapsed_early" not in {alert["rule"] for alert in one["alerts"]}
    assert {alert["unit"] for alert in one["alerts"]} == {one["unit"]}


def test_what_is_infinite_is_null_and_named(tmp_path, capsys):
    write(tmp_path / "wide.safetensors", rank=32)
    write(tmp_path / "zero.safetensors", size=0.0)
    wide, zero = (one["modules"][0] for one in ask(capsys, tmp_path, "--fail-on", "never")["adapters"])
    assert (wide["kappa_BA"], wide["infinite"]) == (None, ["kappa_BA"])
    assert (zero["kappa_BA"], zero["infinite"]) == (None, [])


def test_one_checkpoint_says_the_same_alone_and_as_the_last_of_its_training(tmp_path, capsys):
    a_training(tmp_path / "run", [True, True])
    (series,) = ask(capsys, tmp_path / "run")["adapters"]
    (alone,) = ask(capsys, tmp_path / "run" / "checkpoint-20")["adapters"]
    assert [(alert["rule"], alert["value"]) for alert in series["alerts"]] == [
        (alert["rule"], alert["value"]) for alert in alone["alerts"]
    ]
    assert alone["alerts"]


def test_steps_of_more_digits_than_a_number_has_are_drawn(tmp_path):
    write(tmp_path / f"checkpoint-{10**30}" / "adapter_model.safetensors")
    write(tmp_path / "checkpoint-7" / "adapter_model.safetensors")
    run(tmp_path, "--html", tmp_path / "page.html")
    self_contained(tmp_path / "page.html")


def test_names_are_without_the_folders_that_all_have_in_common(folder, monkeypatch, capsys):
    for path, here in ((folder, folder), (".", folder), ("..", folder / "deep")):
        monkeypatch.chdir(here)
        assert main(["audit", str(path)]) == 1
        said = capsys.readouterr().out
        assert "\ndeep/weak.safetensors\n" in said
        assert " sound.safetensors " in said
    monkeypatch.chdir(folder)
    assert main(["audit", "sound.safetensors"]) == 0
    assert " sound.safetensors " in capsys.readouterr().out


def test_links_are_read_and_dead_ones_are_said_to_be(folder, tmp_path):
    (tmp_path / "good.safetensors").symlink_to(folder / "sound.safetensors")
    (tmp_path / "dead.safetensors").symlink_to(tmp_path / "nowhere")
    (tmp_path / "around").symlink_to(tmp_path)
    said = run(tmp_path, code=1).stdout
    assert said.startswith("2 adapters: 1 with errors at worst")
    assert re.search(r"not readable: .*dead\.safetensors: ", said)


@pytest.mark.slow
def test_a_great_many_modules_are_shown_in_part_and_told_in_whole(tmp_path, capsys):
    write(tmp_path / "many.safetensors", count=1500, rank=2, out=5, width=4, name="blocks.{i}.to_q")
    page = tmp_path / "page.html"
    said = run(tmp_path / "many.safetensors", "--html", page).stdout
    shown = re.findall(r"^ blocks\.\d+\.to_q ", said, re.MULTILINE)
    assert len(shown) == 20
    assert "20 of 1500 modules, the least used first; --top 1500" in said
    assert main(["audit", str(tmp_path / "many.safetensors"), "--top", "1500"]) == 0
    assert len(re.findall(r"^ blocks", capsys.readouterr().out, re.MULTILINE)) == 1500
    assert len(ask(capsys, tmp_path / "many.safetensors")["adapters"][0]["modules"]) == 1500
    assert self_contained(page).elements.count("tr") > 1500
    assert page.stat().st_size < 3e6


@pytest.mark.slow
def test_an_answer_that_nobody_reads_is_no_error(folder):
    words = [sys.executable, "-m", "lorabench.adapters", "audit", folder, "--json", "--fail-on", "never"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert (process.wait(timeout=120), process.stderr.read()) == (0, "")


def test_a_dora_is_judged_by_its_low_rank_part_and_pruned_adalora_by_what_is_left(tmp_path, capsys):
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(4, 16, generator=generator), torch.randn(24, 4, generator=generator)
    prefix = "base_model.model.layers.0.q_proj"
    save_file(
        {
            f"{prefix}.lora_A.weight": down,
            f"{prefix}.lora_B.weight": up,
            f"{prefix}.lora_magnitude_vector": torch.ones(24),
        },
        tmp_path / "dora.safetensors",
    )
    energies = torch.tensor([[2.0], [0.0], [1.0], [0.0]])
    (tmp_path / "ada").mkdir()
    save_file(
        {f"{prefix}.lora_A": down, f"{prefix}.lora_B": up, f"{prefix}.lora_E": energies},
        tmp_path / "ada" / "adapter_model.safetensors",
    )
    config = {"peft_type": "ADALORA", "r": 8, "init_r": 4, "target_r": 2, "lora_alpha": 4}
    (tmp_path / "ada" / "adapter_config.json").write_text(json.dumps(config))
    by_name = {Path(one["name"]).stem: one for one in ask(capsys, tmp_path)["adapters"]}
    (dora,), (ada,) = by_name["dora"]["modules"], by_name["ada"]["modules"]
    check(dora, load(tmp_path / "dora.safetensors").modules[dora["module"]])
    assert dora["sigma_max"] == pytest.approx(np.linalg.norm((up @ down).numpy(), 2), rel=1e-5)
    kept = (up @ (energies * down)).double().numpy()
    sigma = np.linalg.svd(kept, compute_uv=False)
    assert ada["numerical_rank"] == 2
    assert ada["stable_rank"] == pytest.approx((sigma**2).sum() / sigma[0] ** 2, rel=1e-5)
    assert len(ada["dead_dimensions"]) == 2


@pytest.mark.slow
def test_every_published_file_is_told_of_or_named_as_unreadable(real_folder, tmp_path, capsys):
    page, log = tmp_path / "page.html", tmp_path / "log.sarif"
    code = main(["audit", str(real_folder), "--json", "--html", str(page), "--sarif", str(log)])
    found = json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert code == int(found["failed"]) == 1
    told = [Path(file) for one in found["adapters"] for file in one["files"]]
    assert len(told) == len(set(told))
    assert set(told) <= set(real_files(real_folder))
    for one in found["adapters"]:
        if one["unreadable"] is not None:
            with pytest.raises(LorabenchError) as error:
                load(Path(one["files"][-1]))
            assert one["unreadable"] == str(error.value)
            continue
        modules = load(Path(one["files"][-1])).modules
        assert [row["module"] for row in one["modules"]] == list(modules)
        for row in one["modules"][:: max(1, len(modules) // 3)]:
            if math.prod(row["shape"]) <= 2e5:
                check(row, modules[row["module"]])
    self_contained(page)
    results = json.loads(log.read_text())["runs"][0]["results"]
    assert len(results) == sum(len(one["alerts"]) + (one["unreadable"] is not None) for one in found["adapters"])


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the published adapters are not beside this checkout")
def test_a_published_training_is_one_adapter():
    (folder,) = SHARED.glob("vqdung71104*")
    (one,) = audit(folder)
    assert [snapshot.step for snapshot in one.snapshots] == [23, 46]
    assert one.name.name == "checkpoint-…"
    for snapshot, file in zip(one.snapshots, one.files, strict=True):
        state = json.loads((file.parent / "trainer_state.json").read_text())
        assert state["global_step"] == snapshot.step
        modules = load(file).modules
        for row in list(snapshot.rows.values())[::12]:
            sigma = np.linalg.svd(modules[row.module].delta().double().numpy(), compute_uv=False)[: row.nominal_rank]
            assert row.stable_rank == pytest.approx((sigma**2).sum() / sigma[0] ** 2, rel=1e-5)


def test_an_audit_is_the_same_from_python(folder):
    found = audit(folder, thresholds=read_thresholds(), rules=["untrained"])
    assert {one.name.name: one.severity for one in found} == {
        "nan.safetensors": "error", "text.safetensors": "error", "untrained.safetensors": "error",
        "sound.safetensors": None, "weak.safetensors": None,
    }  # fmt: skip
    with pytest.raises(LorabenchError, match="NaN or infinite"):
        audit(folder / "nan.safetensors")


def test_the_numbers_of_a_page_can_be_taken_away(folder, tmp_path, capsys):
    page = tmp_path / "page.html"
    ask(capsys, folder / "sound.safetensors", "--html", page)
    import base64

    links = re.findall(r'href="data:text/csv;charset=utf-8;base64,([^"]+)"', page.read_text())
    tables = [list(csv.reader(base64.b64decode(link).decode().splitlines())) for link in links]
    (ranks,) = [table for table in tables if table[0][:2] == ["module", "nominal_rank"]]
    by_module = {row[0]: float(row[2]) for row in ranks[1:]}
    (one,) = audit(folder / "sound.safetensors")
    assert by_module == pytest.approx({row.module: row.effective_rank_BA for row in one.rows})


def test_one_checkpoint_that_cannot_be_read_does_not_hide_the_others(tmp_path, capsys):
    for step, size in ((100, 0.1), (200, math.nan), (300, 0.2)):
        write(tmp_path / "run" / f"checkpoint-{step}" / "adapter_model.safetensors", size=size)
    page, log = tmp_path / "page.html", tmp_path / "log.sarif"
    (found,) = ask(capsys, tmp_path / "run", "--html", page, "--sarif", log, code=1)["adapters"]
    assert found["steps"] == [100, 300]
    assert len(found["modules"]) == 4
    assert found["unreadable"] is None
    ((file, reason),) = found["skipped"].items()
    assert Path(file).parent.name == "checkpoint-200"
    assert "NaN or infinite" in reason
    assert found["severity"] == "error"
    assert "NaN or infinite" in page.read_text()
    (result,) = [one for one in json.loads(log.read_text())["runs"][0]["results"] if one["ruleId"] == "unreadable"]
    assert "checkpoint-200" in result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert "not readable: " in run(tmp_path / "run", code=1).stdout


def test_what_is_known_of_a_base_is_not_read_again_for_the_next_adapter(tmp_path, base, capsys, monkeypatch):
    for number in range(3):
        write(tmp_path / f"{number}.safetensors", seed=number)
    reads = []
    from lorabench.health import base as module

    true = module.read_tensor
    monkeypatch.setattr(module, "read_tensor", lambda header, key: (reads.append(key), true(header, key))[1])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # one lane
    found = ask(capsys, tmp_path, "--base", base, code=1)["adapters"]
    assert len(reads) == 3
    for one in found:
        alone = ask(capsys, one["name"], "--base", base, code=1)["adapters"][0]
        assert [row["dominance"] for row in alone["modules"]] == [row["dominance"] for row in one["modules"]]


@pytest.mark.slow
def test_processes_that_share_a_large_folder_say_what_one_says(tmp_path, capsys):
    for number in range(110):
        write(tmp_path / f"{number:03}.safetensors", count=1, seed=number, collapsed=number % 7 == 0)
    (tmp_path / "broken.safetensors").write_bytes(b"no adapter")
    shared = json.loads(run(tmp_path, "--json", code=1).stdout)["adapters"]
    alone = json.loads(to_json([one.as_dict() for one in audit(tmp_path)]))
    assert len(shared) == 111
    assert shared == alone
