"""The report in a real browser: content, filters, keyboard and links, with hostile ids and labels."""

import csv
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from synthscale import Config, RunResult, parse_config
from synthscale.cli import main
from synthscale.metric_names import CORE_METRICS
from synthscale.pipeline import score

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARTIFACTS = Path(__file__).parents[2] / "artifacts"
EVIL = (
    "<script>document.title='broken'</script>",
    '"><img src=x onerror="document.title=\'broken\'">',
    "</script>'`${1}",
)
EVIL_ID = "</ul><script>document.title='broken'</script>"

in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def result(local_ray, make_images, tmp_path_factory):
    """Two generators, one of which copies; hostile ids and labels, a broken file, user columns."""
    top = tmp_path_factory.mktemp("private-folder")
    rows = []
    for seed, (name, n) in enumerate({"real": 90, "good": 60, "copier": 60}.items()):
        for i, path in enumerate(make_images(top / name, n, seed=seed)):
            if name == "copier" and i < 30:
                shutil.copy(top / "real" / path.relative_to(top / name), path)
            kind = {"real": "real"}.get(name, "synthetic")
            rows.append(
                {
                    "id": f"{name}/{i:03d}{EVIL_ID if i == 7 else ''}",
                    "image_filename": str(path.relative_to(top)),
                    "real_or_synthetic": kind,
                    "generator": None if kind == "real" else name,
                    "label": EVIL[i % 3],
                    "prompt": EVIL[1],
                }
            )
    (top / "good" / "cat" / "000.png").write_bytes(b"no image")
    pd.DataFrame(rows).to_csv(top / "metadata.csv", index=False)
    config = Config(
        manifest=str(top / "metadata.csv"),
        output=str(tmp_path_factory.mktemp("out") / "run"),
        max_failure_fraction=0.1,
        gates=("fidelity>=0.01", "generator=copier freshness>=0.9"),
    )
    return score(config)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def open_page(browser):
    """Return a function that opens a file; console messages and network requests fail the test."""
    troubles, contexts = [], []

    def open_file(path, width=1440, **more):
        context = browser.new_context(viewport={"width": width, "height": 900}, accept_downloads=True, **more)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on(
            "request", lambda request: troubles.append(request.url) if re.match("(http|ws)", request.url) else None
        )
        page.goto(Path(path).as_uri())
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert troubles == []


def shot(page, name):
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"{name}.png", full_page=True)


def ids_shown(page, gallery):
    return page.eval_on_selector_all(
        f"#{gallery} .tiles li", "tiles => tiles.filter(t => t.offsetParent).map(t => t.dataset.id)"
    )


@in_browser
@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (1440, "dark"), (375, "light"), (375, "dark")])
def test_the_report_opens_without_errors_and_fits_the_window(result, open_page, width, scheme):
    page = open_page(result.report_path, width, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.title() == f"synthscale report {result.metrics['run_id']}"
    # Every picture that is in view has been decoded.
    broken = "images => images.filter(i => i.offsetParent && i.naturalWidth === 0).length"
    page.wait_for_function("[...document.images].filter(i => i.offsetParent).every(i => i.complete)")
    assert page.eval_on_selector_all("img[data-picture]", "images => images.length") > 50
    assert page.eval_on_selector_all("img[data-picture]", broken) == 0
    shot(page, f"report-{width}-{scheme}")


@in_browser
def test_hostile_names_are_shown_as_text(result, open_page):
    page = open_page(result.report_path)
    page.select_option("#generator", label="all")
    assert "broken" not in page.title()
    scripts = page.eval_on_selector_all("script", "scripts => scripts.length")
    assert scripts == 3
    assert page.eval_on_selector_all("img:not([data-picture])", "images => images.length") == 0
    labels = page.eval_on_selector_all("#label option", "options => options.map(o => o.textContent)")
    assert labels == ["all", *sorted(EVIL)]
    # The larger view, the map's tooltip and the filters insert the names again.
    page.select_option("#label", label=EVIL[1])
    page.click("#g0-unrealistic .tile >> visible=true >> nth=0")
    assert EVIL[1] in page.inner_text("#larger")
    page.keyboard.press("Escape")
    page.select_option("#colour", "label")
    page.focus("#map > svg")
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    assert "label" in page.inner_text(".tip")
    assert "broken" not in page.title()


@in_browser
def test_filters_and_sort_orders_work(result, open_page):
    page = open_page(result.report_path)
    names = result.generators
    assert [page.is_visible(f"#g{i}") for i in range(2)] == [True, False]
    page.select_option("#generator", label=names[1])
    assert [page.is_visible(f"#g{i}") for i in range(2)] == [False, True]
    scores = result.scores(names[1]).set_index("id")
    shown = ids_shown(page, "g1-unrealistic")
    synthetic = scores[scores.real_or_synthetic == "synthetic"].label_quality_score
    assert synthetic[shown].tolist() == sorted(synthetic, reverse=True)[: len(shown)]
    page.select_option("#order", "low")
    assert synthetic[ids_shown(page, "g1-unrealistic")].tolist() == synthetic[shown].tolist()[::-1]
    page.select_option("#order", "id")
    assert ids_shown(page, "g1-unrealistic") == sorted(shown, key=str)
    page.select_option("#order", "ranked")
    page.select_option("#label", label=EVIL[0])
    assert ids_shown(page, "g1-unrealistic") == [name for name in shown if scores.label[name] == EVIL[0]]
    page.select_option("#label", label="all")
    page.select_option("#order", "tight")
    diameters = page.eval_on_selector_all(
        "#g1-copied .group", "groups => groups.map(g => Number(g.dataset.diameter))"
    )
    assert len(diameters) > 1
    assert diameters == sorted(diameters)


@in_browser
def test_a_verdict_links_to_the_gallery_of_another_generator(result, open_page):
    page = open_page(result.report_path)
    page.click("a[href='#g1-copied'] >> nth=0")
    assert page.is_visible("#g1-copied")
    assert page.input_value("#generator") == "g1"


@in_browser
def test_the_larger_view_shows_the_nearest_real_image_too(result, open_page):
    page = open_page(result.report_path)
    page.select_option("#generator", label=result.generators[1])
    page.focus("#g1-nearest .tile >> nth=0")
    page.keyboard.press("Enter")
    shown = page.locator("#larger figure").all_inner_texts()
    name = ids_shown(page, "g1-nearest")[0]
    row = result.scores(result.generators[1]).set_index("id").loc[name]
    assert shown[0].startswith(name)
    assert row.nearest_real_id in shown[1]
    widths = page.eval_on_selector_all("#larger img", "images => images.map(i => i.naturalWidth)")
    assert len(widths) == 2
    assert min(widths) > 0
    shot(page, "larger-view")
    page.keyboard.press("Escape")
    assert not page.is_visible("#larger")


@in_browser
def test_ids_can_be_copied_and_downloaded(result, open_page):
    page = open_page(result.report_path, permissions=["clipboard-read", "clipboard-write"])
    shown = ids_shown(page, "g0-realistic")
    page.click("#g0-realistic button[data-do=copy]")
    assert page.evaluate("navigator.clipboard.readText()").split("\n") == shown
    with page.expect_download() as download:
        page.click("#g0-realistic button[data-do=csv]")
    rows = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text())))
    assert [row["id"] for row in rows] == shown
    scores = result.scores(result.generators[0]).set_index("id")
    assert [row["label"] for row in rows] == scores.label[shown].tolist()
    assert np.allclose([float(row["label_quality_score"]) for row in rows], scores.label_quality_score[shown])


@in_browser
def test_the_map_shows_image_and_text_of_a_point(result, open_page):
    page = open_page(result.report_path)
    page.locator("#map > svg").scroll_into_view_if_needed()
    circle = page.locator("#map > svg > circle").nth(3)
    box = circle.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector(".tip:not([hidden])")
    assert page.evaluate("document.querySelector('.tip img').naturalWidth") > 0
    ids = set().union(*(result.scores(name).id for name in result.metrics["generators"]))
    assert page.inner_text(".tip").splitlines()[0] in ids
    fills = "circles => [...new Set(circles.map(c => c.getAttribute('fill')))].length"
    assert page.eval_on_selector_all("#map > svg > circle", fills) == 3
    page.select_option("#colour", "score")
    assert page.eval_on_selector_all("#map > svg > circle", fills) > 3
    page.select_option("#subset", result.generators[0])
    hidden = "circles => circles.filter(c => getComputedStyle(c).display === 'none').length"
    assert page.eval_on_selector_all("#map > svg > circle", hidden) == 60
    shot(page, "map")


@in_browser
def test_the_comparison_page_opens_without_errors(result, open_page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", result.run.uri]) == 0
    for width in (1440, 375):
        page = open_page(tmp_path / "compare.html", width)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("svg").count() == len(CORE_METRICS)


def test_the_report_contains_gates_failures_and_verdicts(result):
    page = Path(result.report_path).read_text()
    assert "✓ passed: good: fidelity&gt;=0.01" in page
    assert "✗ missed: copier: generator=copier freshness&gt;=0.9" in page
    assert "unsupported: 1" in page or "corrupt: 1" in page
    assert "5 in 10 synthetic images repeat a real one" in page
    assert len(page) < 5_000_000


def test_the_report_contains_no_local_folders(result):
    page = Path(result.report_path).read_text()
    assert "private-folder" not in page.replace("private-folder0/metadata.csv", "")
    assert str(Path(result.run.uri).parent) not in page
    assert "/tmp/" not in page


def test_changed_gates_are_in_the_report_of_the_same_run(result):
    config = parse_config(result.run.read_json("run.json")["config"])
    score(config.model_copy(update={"gates": ("coverage>=0.999",)}))
    page = Path(result.report_path).read_text()
    assert "coverage&gt;=0.999" in page
    assert "fidelity&gt;=0.01" not in page.partition("How this was made")[0]
    score(config)
    assert "✓ passed: good: fidelity&gt;=0.01" in Path(result.report_path).read_text()


def test_temporary_files_of_a_killed_run_are_ignored(result):
    shard = next(Path(result.scores_path).rglob("*.parquet"))
    left = shard.with_name(f".{shard.name}.1234abcd.tmp")
    before = [len(result.scores(name)) for name in result.generators]
    left.write_bytes(shard.read_bytes()[:100])
    try:
        assert [len(result.scores(name)) for name in result.generators] == before
        assert main(["report", result.run.uri]) == 0
    finally:
        left.unlink()


def test_no_images_leaves_out_all_pictures(result, tmp_path):
    assert main(["report", result.run.uri, "--no-images"]) == 0
    page = Path(result.report_path).read_text()
    assert "pictures left out" in page
    assert '<script type="application/json" id="pictures">[]</script>' in page
    assert "<img" not in page
    assert main(["report", result.run.uri]) == 0
    assert "<img" in Path(result.report_path).read_text()


def test_deleted_and_changed_pictures_are_missing(result, tmp_path):
    top = Path(result.scores("good").uri.iloc[0]).parents[2]
    moved, changed = top / "real" / "cat" / "000.png", top / "real" / "dog" / "001.png"
    kept = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (moved, changed)}
    before = Path(result.report_path).read_text().count("<img")
    moved.unlink()
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(changed)
    try:
        assert main(["report", result.run.uri]) == 0
        assert Path(result.report_path).read_text().count("<img") <= before
    finally:
        for path, (data, time_ns) in kept.items():
            path.write_bytes(data)
            os.utime(path, ns=(time_ns, time_ns))


def test_run_result_returns_what_the_report_shows(result):
    scores = result.scores("good")
    worst = result.worst("fidelity", n=5, generator="good")
    own = scores[scores.real_or_synthetic == "synthetic"].sort_values("label_quality_score", ascending=False)
    assert worst.label_quality_score.tolist() == own.label_quality_score.head(5).tolist()
    uncovered = result.worst("coverage", n=1000, generator="good")
    assert set(uncovered.id) == set(scores[(scores.real_or_synthetic == "real") & ~scores.covered.astype(bool)].id)
    copies = result.worst("freshness", n=1000, generator="copier")
    figures = result.metrics["generators"]["copier"]
    assert len(copies) == figures["neighbors"]["copies"]["rows"] >= 30
    assert (
        result.worst("diversity", n=1000, generator="copier").shape[0] == figures["neighbors"]["repeats"]["rows"]
    )
    groups = result.groups("copier")
    members = result.scores("copier").groupby("near_duplicate_id").size()
    assert dict(zip(groups.near_duplicate_id, groups["size"], strict=True)) == members.to_dict()
    figure = result.plot_projection()
    assert len(figure.axes[0].collections) == 3
    assert sum(len(points.get_offsets()) for points in figure.axes[0].collections) == 209


def test_the_example_runs(result):
    example = Path(__file__).parents[2] / "docs" / "example.py"
    done = subprocess.run([sys.executable, example, result.run.uri, "copier"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{len(result.groups('copier'))} near-duplicate groups" in done.stdout


def test_a_finished_run_can_be_opened(result):
    assert RunResult.open(result.run.uri).worst("freshness", n=3, generator="copier").shape[0] == 3
