"""The explorer's page in a real browser, opened from disk with the network off."""

import shutil
from html import escape

import numpy as np
import pytest
from test_explore import HOSTILE, invented, page_of

from gesture_nb.data.sequences import take
from gesture_nb.data.simulate import simulate
from gesture_nb.explorer.recordings import of_recordings

pytest.importorskip("plotly", reason="plotly, with which the explorer draws, is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="module")
def found():
    return invented(simulate(60, seed=8))


@pytest.fixture(scope="module")
def path(found, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(page_of(found).html, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def chromium():
    if CHROMIUM is None:
        pytest.skip("no Chromium here, and installing one needs the privilege to (see tools/browser.py)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """Opens a page; at the end nothing was fetched, nothing complained, and no label had become a script."""
    contexts, trouble = [], []

    def go(path, width=1400, scheme="light"):
        context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: trouble.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: trouble.append(str(e)))
        page.on("dialog", lambda d: (trouble.append("dialog " + d.message), d.dismiss()))
        page.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else trouble.append(r.url))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]", timeout=60_000, state="attached")
        page.wait_for_selector(".viewer .js-plotly-plot .cartesianlayer path", timeout=60_000, state="attached")
        return page

    yield go
    for context in contexts:
        context.close()
    assert not trouble


def count(page):
    return int(page.inner_text("#count").split()[0].replace(",", ""))


def listed(page):
    """The names in the rows that are on the page."""
    return page.locator(".table tbody tr[data-i] td:nth-child(2)").all_inner_texts()


def test_the_table_begins_with_the_highest_loss(visit, path, found):
    page = visit(path)
    order = np.argsort(-found.loss)
    assert listed(page)[:5] == found.table.meta["sequence_id"][order[:5]].tolist()
    page.get_by_role("button", name="loss").click()
    assert listed(page)[0] == found.table.meta["sequence_id"][order[-1]]


def test_filters_together(visit, path, found):
    page = visit(path)
    meta, wrong = found.table.meta, found.predictions.labels != found.y
    page.check("#filter-wrong")
    assert count(page) == wrong.sum()
    person = meta["subject"][np.argmax(wrong)]
    page.select_option("#filter-person", label=person)
    assert count(page) == (wrong & (meta["subject"] == person)).sum()
    page.select_option("#filter-orientation", label=meta["orientation"][np.argmax(wrong)])
    here = wrong & (meta["subject"] == person) & (meta["orientation"] == meta["orientation"][np.argmax(wrong)])
    assert count(page) == here.sum()
    page.click("#clear")
    assert count(page) == len(wrong) and not page.is_checked("#filter-wrong")
    page.select_option("#filter-y", label=HOSTILE[0])
    assert count(page) == (found.y == 0).sum()
    page.fill("#filter-text", meta["sequence_id"][np.argmax(found.y == 0)][-5:].lower())
    assert 1 <= count(page) < (found.y == 0).sum()


def test_missing_sensors_can_be_looked_for(visit, found, tmp_path):
    values = found.table.values.copy()
    rows = slice(found.table.offsets[2], found.table.offsets[4])
    values[[name.startswith("tof_") for name in found.table.names], rows] = np.nan
    table = type(found.table)(values, found.table.names, found.table.offsets, found.table.meta)
    (tmp_path / "page.html").write_text(page_of(of_recordings(table, "t")).html, encoding="utf-8")
    page = visit(tmp_path / "page.html")
    page.select_option("#filter-missing", label="all tof missing")
    assert sorted(listed(page)) != [] and count(page) == 2
    assert page.locator("#confusion-figure").is_hidden()


def test_a_click_on_a_confusion_cell_lists_its_sequences(visit, path, found):
    page = visit(path)
    y, pred = found.y, found.predictions.labels
    a, b = next((a, b) for a in range(4) for b in range(4) if a != b and ((y == a) & (pred == b)).any())
    page.locator("#confusion").scroll_into_view_if_needed()
    box = page.locator("#confusion .nsewdrag").bounding_box()
    page.mouse.click(box["x"] + box["width"] * (b + 0.5) / 4, box["y"] + box["height"] * (a + 0.5) / 4)
    page.wait_for_function("document.getElementById('filter-y').value !== '-1'")
    wanted = (y == a) & (pred == b)
    assert count(page) == wanted.sum() and set(listed(page)) == set(found.table.meta["sequence_id"][wanted])
    assert page.locator(".viewer h2").inner_text() in set(listed(page))


def test_the_slider_moves_everything(visit, path):
    page = visit(path)
    picture = "[...document.querySelectorAll('.viewer canvas')].map(c => c.toDataURL())"
    cursor = "document.querySelector('.signals').layout.shapes.at(-1).x0"
    output = page.locator(".viewer output")
    page.locator(".viewer input[type=range]").fill("2")
    before = page.evaluate(picture), output.inner_text()
    page.locator(".viewer input[type=range]").fill("30")
    assert output.inner_text().startswith("3.00 s") and output.inner_text() != before[1]
    after = page.evaluate(picture)
    assert after[0] != before[0][0] and after[1] != before[0][1]
    page.wait_for_function(f"Math.abs({cursor} - 3) < 1e-6")


def test_the_grids_say_what_is_under_the_pointer(visit, path):
    page = visit(path)
    page.locator(".grids canvas").scroll_into_view_if_needed()
    box = page.locator(".grids canvas").bounding_box()
    page.mouse.move(box["x"] + 87 + 20, box["y"] + 87 + 30)
    text = page.locator(".grids .hint").inner_text()
    assert text.startswith("tof_1, line ") and text.split(": ")[1]


def test_two_sequences_side_by_side_are_zoomed_together(visit, path, found):
    page = visit(path)
    second = listed(page)[3]
    page.locator(f"button[aria-label='show {second} beside the other one']").first.click()
    page.wait_for_selector(".viewer:nth-child(2) .js-plotly-plot")
    assert page.locator(".viewer h2").all_inner_texts() == [listed(page)[0], second]
    zoom = "Plotly.relayout(document.querySelector('.signals'), {'xaxis.range[0]': 1, 'xaxis.range[1]': 2})"
    page.evaluate(zoom)
    page.wait_for_function("document.querySelectorAll('.signals')[1].layout.xaxis.range[1] === 2")
    page.get_by_role("button", name="close").click()
    assert page.locator(".viewer").count() == 1


def test_look_alikes_lead_on(visit, path):
    page = visit(path)
    other = page.locator(".alike tbody tr:first-child td:nth-child(2)").inner_text()
    page.locator(".alike tbody tr:first-child").get_by_role("button", name="open").click()
    page.wait_for_function(f"document.querySelector('.viewer h2').textContent === {other!r}")


def test_probabilities_are_shown_by_member(visit, path, found):
    page = visit(path)
    worst = int(np.argmax(found.loss))
    heads = page.locator(".probs thead th").all_inner_texts()
    assert heads == ["gesture", "ensemble", "lgbm", "torch"]
    row = page.locator(".probs tr.true td").all_inner_texts()
    assert row == [f"{values[worst, found.y[worst]]:.2f}" for values in found.predictions.probs.values()]


def test_labels_are_shown_as_they_are(visit, path):
    page = visit(path)
    options = page.locator("#filter-y option").all_inner_texts()
    assert options[1:] == list(HOSTILE)
    page.click("#tab-overview")
    page.wait_for_selector("#overview .js-plotly-plot .barlayer path")
    ticks = page.locator("#overview .js-plotly-plot").first.locator(".ytick").all_text_contents()
    assert any(tick.startswith("<img src=x") for tick in ticks) and "頬をつまむ & <b>x</b>" in ticks
    assert page.locator("img, b").count() == 0
    assert page.locator("#overview .js-plotly-plot").count() == 8


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it(visit, path, scheme):
    page = visit(path, width=390, scheme=scheme)
    for tab in ("#tab-overview", "#tab-sequences"):
        page.click(tab)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 31)"
    assert dark == (scheme == "dark")
    page.select_option("#theme", "light" if dark else "dark")
    assert page.evaluate("document.documentElement.dataset.theme") == ("light" if dark else "dark")


def test_a_frame_in_dark_jupyterlab_is_dark(chromium, found, tmp_path):
    html = page_of(of_recordings(take(found.table, np.arange(4)), "t")).html
    outer = f'<body data-jp-theme-light="false"><iframe width=900 height=900 srcdoc="{escape(html)}"></iframe></body>'
    (tmp_path / "lab.html").write_text(outer, encoding="utf-8")
    page = chromium.new_page(color_scheme="light")
    page.goto((tmp_path / "lab.html").as_uri())
    frame = page.frame_locator("iframe")
    frame.locator("html[data-ready][data-theme=dark]").wait_for(timeout=60_000, state="attached")
    page.evaluate("document.body.dataset.jpThemeLight = 'true'")
    frame.locator("html[data-theme=light]").wait_for(timeout=10_000, state="attached")
    page.close()
