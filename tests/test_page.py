"""`report.html`: what it says, where its numbers come from, and that it opens from a disk and asks for nothing."""

import base64
import csv
import functools
import io
import itertools
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from lorabench.jobs import Job, Status, queue, status_of, write_jobs
from lorabench.report.__main__ import main
from lorabench.report.folders import Entry, entries
from lorabench.report.page import page_html
from lorabench.report.page.charts import groups
from lorabench.report.page.claims import claims
from lorabench.report.page.rankings import ranked_together
from lorabench.report.standings import compare, told_apart
from tests.conftest import TINY_ZOO
from tests.made_results import LAYERS, TEST, TRAIN, a_ranking, a_result, a_sweep, several, with_controls
from tests.processes import Started

CHROMIUM = shutil.which("chromium")
STRANGE = 'a\\d "q" \\1 $x_1$ 猫'
QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


def corrected(values):
    """Nadeau & Bengio's t and p of one difference a split."""
    values = np.asarray(values)
    t = values.mean() / np.sqrt((1 / len(values) + TEST / TRAIN) * values.var(ddof=1))
    return t, 2 * stats.t.sf(abs(t), len(values) - 1)


def holm(ps):
    running, found = 0.0, {}
    for i, place in enumerate(np.argsort(ps)):
        running = max(running, min(1.0, (len(ps) - i) * ps[place]))
        found[int(place)] = running
    return found


class Page(HTMLParser):
    """What is on a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.text: list[str] = []
        self._cell: list[str] | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell = []

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self._cell is not None:
            self.tables[-1][-1].append("".join(self._cell).strip())
            self._cell = None

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self._cell is not None:
            self._cell.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def table(self, column: str) -> list[dict[str, str]]:
        """The first table that has such a column."""
        rows = next(rows for rows in self.tables if column in rows[0])
        return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]

    def numbers(self, name: str) -> list[dict[str, str]]:
        """The CSV that is offered under a name."""
        link = next(one for one in self.all("a") if one.get("download") == f"{name}.csv")
        text = base64.b64decode(str(link["href"]).partition("base64,")[2]).decode()
        return list(csv.DictReader(io.StringIO(text)))


def written(folder: Path, results: list[Any]) -> Path:
    """A sweep that has these results."""
    jobs = [Job(str(i), f"job {i}", [f"seed={i}", "dataset.path=a b"], f"key {i}") for i in range(len(results))]
    folder.mkdir()
    write_jobs(folder, jobs)
    for job, result in zip(jobs, results, strict=True):
        queue(folder, job)
        with status_of(folder / job.folder):
            result.write(folder / job.folder / "results.json")
    return folder


@functools.cache
def some_results(splits: int = 4) -> list[Any]:
    """Two representations, with and without the best 1 and 3 layers, with controls."""
    rng = np.random.default_rng(0)
    found = []
    for seed, (k, name, level) in itertools.product(
        range(splits), [(0, "stats", 0.5), (1, "stats", 0.5), (3, "stats", 0.5), (0, "flat", 0.8), (3, "flat", 0.8)]
    ):
        values = level + 0.01 * rng.normal(size=2)
        ranking = a_ranking(np.random.default_rng(seed)) if k else ()
        found.append(
            with_controls(
                a_result({name: values}, seed=seed, top_k=k, ranking=ranking, fall=0.1 + 0.004 * seed),
                0.4 + 0.01 * seed,
            )
        )
    return found


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of a sweep with everything on it, and a job that failed."""
    results = [*some_results(), a_result({"stats": [0.3, 0.2]}, dataset="<other> & zoo")]
    folder = written(tmp_path_factory.mktemp("page") / "sweep", results)
    queue(folder, Job("5", "job 5", [], "key 5"))  # as a sweep does before it runs a job again
    with pytest.raises(RuntimeError), status_of(folder / "5"):
        raise RuntimeError("<b>no</b> memory")
    assert main([str(folder)]) == 1
    return folder / "report.html"


@pytest.fixture(scope="module")
def page(page_file: Path) -> Page:
    return Page(page_file.read_text())


def test_a_person_reads_in_this_order(page):
    titles = "".join(page.text)
    order = [
        "what is not done", "memory", "glyphs, category, mlp", "Every representation", "What is told apart",
        "Accuracy and cost", "Which layers carry it", "With and without the best layers", "As layers go",
        "Which classes are taken for which", "Claims, and what guards them", "How to get it again",
        "<other> & zoo, category, mlp",
    ]  # fmt: skip
    heads = "".join(page.text[page.text.index("lorabench report") :])
    places = [heads.index(title, heads.index("What was run")) for title in order[:2]]
    last = heads.index("Every representation") - 1
    for title in order[3:-1]:
        places.append(heads.index(title, last))
        last = places[-1]
    assert places == sorted(places)
    assert titles.count("Every representation") >= 2


def test_it_is_one_file_and_asks_for_nothing(page, page_file):
    html = page_file.read_text()
    assert len(html) < 6e6
    addresses = set(re.findall(r"https?://[^\s\"'<>)]+", html))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    for tag, attributes in page.tags:
        assert tag not in ("iframe", "object", "embed")
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:")), (tag, value)
    assert "<b>no</b>" not in html


def test_every_id_is_one_and_every_link_leads_somewhere(page):
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {one["href"] for one in page.all("a") if str(one["href"]).startswith("#")}
    links |= {str(one["xlink:href"]) for one in page.all("use")}
    assert {link.removeprefix("#") for link in links if link} <= set(ids)


def test_every_picture_says_what_it_shows_and_offers_its_numbers(page):
    pictures = [one for one in page.all("svg") if one.get("role") == "img"]
    assert len(pictures) == len(page.all("figure")) >= 10
    assert all(len(one["aria-label"] or "") > 40 for one in pictures)
    offered = [one for one in page.all("a") if "download" in one]
    assert len(offered) == len(pictures) + len(page.tables)


def test_the_numbers_are_those_of_the_results(page):
    rows = {(row.label, row.cell.top_k): row for row in compare(some_results())}
    for one in page.numbers("with and without"):
        cell = rows[one["representation"], int(one["top_k"])].cell
        if (one["representation"], one["top_k"]) != ("flat", "3"):  # one of its runs has failed
            assert float(one["test_accuracy"]) == pytest.approx(cell.mean)
            assert (float(one["low"]), float(one["high"])) == pytest.approx(cell.interval())
    table = {row["representation"]: row for row in page.table("without best 3")}
    assert table["flat"]["all layers"].startswith(f"{100 * rows['flat', 0].cell.mean:.1f} ±")
    assert table["flat"]["all layers"].endswith("*") == rows["flat", 0].alone
    assert table["flat"]["without best 1"] == "–"
    (cost,) = [one for one in page.numbers("cost") if one["representation"] == "stats"]
    assert (cost["features"], cost["seconds"]) == ("8", "3.5")


def test_the_confusion_is_the_sum_over_members_and_splits(page):
    rows = page.numbers("confusion of stats")
    # Members count 7 + i, 3; 4, 6 each: two of them on each of four splits. Each run of a split has the same.
    assert [list(row.values()) for row in rows] == [["a", "60", "24"], ["b", "32", "48"]]


def test_commands_can_be_pasted(page):
    rows = page.table("command")
    assert {row["representation"] for row in rows} == {"stats", "flat"}
    assert rows[0]["command"] == "python -m lorabench seed=0 'dataset.path=a b'"


def test_what_is_told_apart_is_by_pairs_and_holm():
    rng = np.random.default_rng(3)
    for _ in range(20):
        names = list("abcde")
        results = several(rng, names, splits=5, gap=float(rng.choice([0, 0.05])))
        cells = sorted((row.cell for row in compare(results)), key=lambda cell: -cell.mean)
        means = [
            [np.mean([v for (s, _), v in cell.accuracy.items() if s == split]) for split in range(5)] for cell in cells
        ]
        pairs = list(itertools.combinations(range(5), 2))
        expected = holm([corrected(np.subtract(means[a], means[b]))[1] for a, b in pairs])
        found = told_apart(cells)
        assert [found[pair] for pair in pairs] == pytest.approx([expected[i] for i in range(len(pairs))])
        alike = [
            (a, b) for a, b in pairs if all(found[pair] >= 0.05 for pair in itertools.combinations(range(a, b + 1), 2))
        ]
        longest = [(a, b) for a, b in alike if not any((c, d) != (a, b) and c <= a and d >= b for c, d in alike)]
        assert groups(cells) == longest  # fmt: skip


def of_representation(results):
    """The results behind a row of results that have one representation each."""
    return lambda row: [one for one in results if one.runs[0].representation == row.cell.representation]


def test_claims_stand_beside_their_controls():
    results = some_results()
    above, missed, stable = claims(results, compare(results), of_representation(results))
    by_name = {row[0]: dict(zip(above.columns, row, strict=True)) for row in above.rows}
    cells = {(row.label, row.cell.top_k): row.cell for row in compare(results)}
    recipe = np.array([0.4 + 0.01 * seed for seed in range(4)])
    gaps, ps = {}, []
    for name in ("stats", "flat"):
        means = [np.mean([v for (s, _), v in cells[name, 0].accuracy.items() if s == split]) for split in range(4)]
        gaps[name] = np.array(means) - recipe
        ps.append(corrected(gaps[name])[1])
    for place, name in enumerate(("stats", "flat")):
        row = by_name[name]
        assert row["best control"] == "recipe"
        assert row["difference [95 %]"].startswith(f"{100 * gaps[name].mean():+.1f} [")
        p = holm(ps)[place]
        assert row["p, Holm"] == ("<0.001" if p < 0.001 else f"{p:.3f}")
        assert row["said"] == ("above" if p < 0.05 else "not shown")
    row = next(dict(zip(missed.columns, row, strict=True)) for row in missed.rows if row[0] == "flat")
    assert row["fall [95 %]"].startswith("-10.6 [")
    assert row["random ones away"] == f"{100 * cells['flat', 0].mean - 30:.1f}"
    assert "falls" in row["said"]
    assert "more than" not in row["said"]
    assert stable.rows[0][-1] == "4 splits"


def test_claims_without_controls_say_what_adds_them():
    results = [a_result({"a": [0.5, 0.6]}, seed=seed) for seed in range(3)]
    (above,) = claims(results, compare(results), lambda _: results)
    assert above.rows[0][3:] == ("none was run", "–", "–", "–", "unguarded")
    assert "ablation.controls=true" in above.caption[0]


def test_rankings_of_several_splits_are_one():
    results = [
        a_result({"stats": [0.5]}, seed=seed, top_k=2, ranking=a_ranking(np.random.default_rng(seed)))
        for seed in (0, 1, 2)
    ]
    ((_, found),) = ranked_together([*results, results[0]])
    values = {
        layer: [next(r.accuracy for r in one.ablation.ranking if r.layer == layer) for one in results]
        for layer in LAYERS
    }
    assert {row.layer: row.accuracy for row in found.ranking} == {
        k: pytest.approx(np.mean(v)) for k, v in values.items()
    }
    assert [row.accuracy for row in found.ranking] == sorted((row.accuracy for row in found.ranking), reverse=True)
    best = found.ranking[0]
    reach = stats.t.ppf(0.975, 2) * np.sqrt((1 / 3 + TEST / TRAIN) * np.var(values[best.layer], ddof=1))
    assert (best.low, best.high) == pytest.approx((best.accuracy - reach, best.accuracy + reach))
    table = np.array(list(values.values())).T
    taus = [stats.kendalltau(table[a], table[b]).statistic for a, b in itertools.combinations(range(3), 2)]
    assert (found.stability.kendall_tau, found.stability.lowest) == pytest.approx((np.mean(taus), min(taus)))
    ((_, alone),) = ranked_together(results[:1])
    assert alone is results[0].ablation  # fmt: skip


def test_a_row_is_guarded_by_what_its_own_runs_have_trained():
    """Two learning rates: the controls and the random layers of one are no guard of the other."""
    results = [
        with_controls(
            a_result({"a": [0.6 + 0.01 * seed + gap]}, seed=seed, top_k=2, classifier={"learning_rate": rate}), control
        )
        for rate, gap, control in ((0.1, 0.0, 0.2), (0.01, 0.2, 0.7))
        for seed in range(3)
    ]
    page = Page(page_html([Entry(Path(str(i)), str(i), [], Status("done"), one) for i, one in enumerate(results)]))
    rows = {row["representation"]: row for row in page.table("best control")}
    assert [rows[f"a classifier.learning_rate={rate}"]["control acc"] for rate in (0.1, 0.01)] == ["20.0", "70.0"]
    random = {row["representation"]: row["random ones away"] for row in page.table("random ones away")}
    assert list(random.values()) == ["31.0", "51.0"]
    ranked = [
        replace(one, ablation=replace(one.ablation, ranking=a_ranking(np.random.default_rng(i))))
        for i, one in enumerate(results)
    ]
    assert [found.stability.seeds for _, found in ranked_together(ranked)] == [3, 3]


def test_a_split_of_the_source_is_one_whatever_the_seed():
    results = [
        a_result({"a": [0.5 + 0.1 * seed, 0.6]}, seed=seed, top_k=2, ranking=a_ranking(np.random.default_rng(seed)))
        for seed in range(3)
    ]
    results = [with_controls(replace(one, split={**one.split, "by_source": True}), 0.3) for one in results]
    rows = compare(results)
    assert {row.cell.splits for row in rows} == {1}
    ((_, found),) = ranked_together(results)
    assert found is results[0].ablation, "one split ranks once"
    above, *_ = claims(results, rows, lambda _: results)
    assert above.rows[0][5:] == ("+30.0", "–", "not shown")
    page = Page(page_html([Entry(Path(str(i)), str(i), [], Status("done"), one) for i, one in enumerate(results)]))
    # Members 0 to 3 of the one split, of which the runs have two each; each counts once, the last as it was last.
    assert sum(int(cell) for row in page.numbers("confusion of a") for cell in list(row.values())[1:]) == 20 * 4 + 1


def test_options_of_the_ranking_take_no_claim_away():
    results = [a_result({"a": [0.6 + 0.01 * seed]}, seed=seed) for seed in range(3)]
    results += [
        a_result({"a": [0.6 + 0.01 * seed]}, seed=seed, top_k=2, fall=0.1 + 0.01 * seed, folds=folds)
        for seed in range(3)
        for folds in (1, 3)
    ]
    _, missed = claims(results, compare(results), lambda _: results)
    assert [row[0] for row in missed.rows] == ["a folds=1", "a folds=3"]
    assert [row[3].startswith("-11.0 [") for row in missed.rows] == [True, True]


def test_equal_accuracies_have_no_interval():
    ranking = a_ranking(np.random.default_rng(0))
    results = [with_controls(a_result({"a": [0.8]}, seed=seed, top_k=2, ranking=ranking), 0.3) for seed in range(3)]
    above, missed, stable = claims(results, compare(results), lambda _: results)
    assert above.rows[0][5:] == ("+50.0", "–", "not shown")
    assert missed.rows[0][3] == "-10.0"
    assert "[" not in stable.rows[0][3]
    ((_, found),) = ranked_together(results)
    assert found.marked == 0, "each run has taken its own away"


@pytest.mark.parametrize("case", ["nothing", "all failed", "one", "members failed", "strange names"])
def test_degenerate_pages(case, tmp_path):
    results = {
        "nothing": [],
        "all failed": [a_result({"a": [0.5]})],
        "one": [a_result({"a": [0.5]})],
        "members failed": [a_result({"a": []}, failed=["seed 99: nan"])],
        "strange names": [
            replace(a_result({'a\\d "q" \\1 $x_1$ 猫': [0.0, 0.1], "b": [0.5, 0.4]}), classes=["<i>", "b\\g\nc"])
        ],
    }[case]
    folder = written(tmp_path / "sweep", results)
    if case == "all failed":
        (folder / "0" / "results.json").unlink()
    page = Page(page_html(entries([folder])))
    text = " ".join(page.text)
    assert ("no run has ended well" in text.lower()) == (case in ("nothing", "all failed"))
    if case == "strange names":
        assert len([one for one in page.all("svg") if STRANGE in str(one.get("aria-label"))]) > 2
        ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
        assert len(ids) == len(set(ids))
    if case == "members failed":
        assert page.table("all layers")[0]["all layers"] == "failed"


def test_a_sweep_that_goes_on_says_what_is_to_come(tmp_path):
    folder = a_sweep(tmp_path / "sweep")
    page = Page(page_html(entries([folder]), reload=5))
    assert page.table("why")[0]["why"] == "last line"
    assert [one["content"] for one in page.all("meta") if one.get("http-equiv") == "refresh"] == ["5"]
    assert not [one for one in Page(page_html(entries([folder]))).all("meta") if one.get("http-equiv") == "refresh"]


def test_several_folders_are_written_into_one_and_a_disk_that_refuses_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    one, two = (written(tmp_path / name, [a_result({"a": [0.5, 0.6]}, seed=i)]) for i, name in enumerate(("x", "y")))
    assert main([str(one), str(two)]) == 0
    assert (tmp_path / "compared" / "report.html").exists()
    assert capsys.readouterr().out.endswith(f"Written to {Path('compared/report.html')}\n")
    (tmp_path / "file").write_text("")
    assert main([str(one), "--out", str(tmp_path / "file")]) == 1
    said = capsys.readouterr().err
    assert "Give another --out" in said
    assert len(said.splitlines()) == 1


@pytest.mark.slow
def test_a_watched_sweep_is_written_again_until_it_ends(tmp_path, capsys):
    """The report is begun while the sweep is at work, and ends with it."""
    small = ["experiment=sweep", *TINY_ZOO, "classifier.hidden=[8]", "classifier.max_epochs=3"]
    axes = ["representation=stats", "top_k=0", "seed=0,1,2"]
    sweep = Started("--multirun", *small, *axes, f"output_dir={tmp_path}/s", cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not (tmp_path / "s" / "0" / "status.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert main([str(tmp_path / "s"), "--watch", "--out", str(tmp_path / "page")]) == 0
    assert sweep.wait(120) == 0, sweep.said()
    assert " to end" in capsys.readouterr().err
    assert "all done" in (tmp_path / "page" / "report.html").read_text()
    assert "all done" in (tmp_path / "s" / "report.html").read_text()


@pytest.fixture(scope="module")
def browser(page_file: Path) -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no chromium: Debian's package of this name has it")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as known:
        opened = known.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield opened
        opened.close()


@pytest.fixture
def shown(browser: Any, page_file: Path) -> Iterator[tuple[Any, list[str]]]:
    """The page in a browser, and all that went wrong or was asked for."""
    heard: list[str] = []
    tab = browser.new_page(viewport={"width": 1200, "height": 800})
    tab.on("console", lambda message: heard.append(f"{message.type}: {message.text}"))
    tab.on("pageerror", lambda error: heard.append(str(error)))
    tab.on("request", lambda request: heard.append(request.url) if not request.url.startswith("data:") else None)
    tab.goto(page_file.as_uri())
    yield tab, heard
    assert heard == [page_file.as_uri()], "the page said something, or asked for something"
    tab.close()


def column(tab: Any, table: Any, number: int) -> list[str]:
    return [row.locator("td").nth(number).inner_text() for row in table.locator("tbody tr:visible").all()]


@pytest.mark.slow
def test_tables_are_sorted_and_filtered_in_a_browser(shown):
    tab, _ = shown
    table = tab.locator("#c1-0 table")
    head = table.locator("th").nth(1)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert column(tab, table, 0) == ["flat", "stats"]
    head.locator("button").click()
    assert (head.get_attribute("aria-sort"), column(tab, table, 0)) == ("ascending", ["stats", "flat"])
    without = table.locator("th").nth(2)
    without.locator("button").press("Enter")  # what has no number comes last, whichever way
    assert column(tab, table, 2)[-1] == "–"
    without.locator("button").press("Enter")
    assert column(tab, table, 2)[-1] == "–"
    assert head.get_attribute("aria-sort") == "none"
    tab.locator("#c1-0 input").fill("FLA")
    assert column(tab, table, 0) == ["flat"]
    tab.locator("#c1-0 input").fill("")
    assert len(column(tab, table, 0)) == 2


@pytest.mark.slow
def test_numbers_are_downloaded_and_marks_say_what_they_are(shown):
    tab, _ = shown
    with tab.expect_download() as started:
        tab.locator("a[download='cost.csv']").first.click()
    rows = list(csv.DictReader(io.StringIO(Path(started.value.path()).read_text())))
    assert [row["representation"] for row in rows] == ["stats", "flat"]
    tips = tab.locator("#c1-2 .tip title").all_text_contents()
    assert any(tip.startswith("flat: 8") and "features" in tip for tip in tips)


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 800, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_screen(shown, width, scheme, tmp_path):
    tab, _ = shown
    tab.set_viewport_size({"width": width, "height": 900})
    tab.emulate_media(color_scheme=scheme)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 380) == (scheme == "dark")
    ink = tab.evaluate("getComputedStyle(document.querySelector('figure svg')).color")
    assert (sum(map(int, re.findall(r"\d+", ink)[:3])) > 380) == (scheme == "dark")


@pytest.mark.slow
def test_paper_shows_what_is_folded(shown, tmp_path):
    tab, _ = shown
    folded = tab.locator("details:not([open])").count()
    assert folded > 3
    assert len(tab.pdf()) > 20_000
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.locator("details:not([open])").count() == 0
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    assert tab.locator("details:not([open])").count() == folded
