"""JupyterLab in a real browser: bars and curves move, a button ends the run, which goes on and ends with its card."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

# the run's stop signal, in the notebook: a run that is over before the page has drawn a bar cannot be followed
IN_STEP = """\
import time
from pathlib import Path
from gesture_nb.app import main, picker
from gesture_nb.control import StopSignal

class InStep(StopSignal):
    "Lets a step of the training begin for each look that the test takes at the page; all of them, once it says so."
    steps, looks, alone = 0, Path("looks"), Path("alone")

    def check(self, save=None):
        self.steps += 1
        while self.looks.stat().st_size < self.steps and not (self.requested or self.alone.exists()): time.sleep(0.02)
        super().check(save)
"""

ALIVE = "import ipywidgets; ipywidgets.HTML('widgets are alive')"

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def lab(toy, tmp_path_factory):
    """A JupyterLab server on this machine, with one notebook."""
    import nbformat

    if CHROMIUM is None:
        pytest.skip("no Chromium here, and installing one needs the privilege to (see tools/browser.py)")
    folder = tmp_path_factory.mktemp("lab")
    settings = f"data={str(toy)!r}, output_path={str(folder / 'out')!r}, members='torch', "
    settings += "folds=2, epochs=30, batch_size=8, log_every_steps=1"
    cells = [
        ALIVE,
        IN_STEP,
        f"if __name__ == '__main__': outcome = main({settings}, stop=InStep())",
        "picker(outcome)",
    ]
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "python3", "language": "python"}
    nbformat.write(nb, folder / "go.ipynb")
    (folder / "looks").touch()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    environ = {k: v for k, v in os.environ.items() if k != "IN_TEST"} | {
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_DATA_DIR": str(folder / "data"),
    }
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--ip=127.0.0.1",
        f"--port={port}",
        "--IdentityProvider.token=t",
        "--allow-root",
        f"--ServerApp.root_dir={folder}",
        "--LabApp.news_url=",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    server = subprocess.Popen(command, env=environ, stdout=open(folder / "lab.log", "w"), stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    for _ in range(240):
        try:
            json.load(urllib.request.urlopen(f"{address}/api?token=t", timeout=2))
            break
        except OSError:
            time.sleep(0.25)
    else:
        server.kill()
        pytest.fail("JupyterLab did not start: " + (folder / "lab.log").read_text()[-2000:])
    yield f"{address}/lab/tree/go.ipynb?token=t", folder
    server.terminate()
    server.wait(timeout=20)


def bars(page):
    """(label, width in percent, text beside it) of each bar that shows."""
    rows = page.locator(".widget-hbox:has(.progress-bar)")
    found = []
    for i in range(rows.count()):
        row = rows.nth(i)
        width = re.search(r"width:\s*([\d.]+)%", row.locator(".progress-bar").first.get_attribute("style") or "")
        found.append(
            (
                row.locator(".widget-label").first.inner_text(),
                float(width[1]) if width else 0.0,
                row.locator(".widget-html-content").last.inner_text(),
            )
        )
    return found


def confirmed(page):
    """Whether a dialog was open; it is confirmed."""
    accept = page.locator(".jp-Dialog .jp-mod-accept")
    if accept.count():
        accept.click()
        time.sleep(2)
        return True


def loaded(page):
    """Waits until the notebook is there and its kernel is idle."""
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=90_000)
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']", timeout=90_000)


def with_living_widgets(page):
    """Runs the first cell, until its widget is drawn.

    JupyterLab's manager of widgets now and then does not come up with the page; a reader loads the page again."""
    for _ in range(4):
        loaded(page)
        cell = page.locator(".jp-CodeCell").first
        cell.locator(".cm-content").click()
        page.keyboard.press("Shift+Enter")
        for _ in range(60):
            time.sleep(0.25)
            if confirmed(page):
                break
            if cell.locator(".widget-html:has-text('widgets are alive')").count():
                return
        else:
            page.reload()
    pytest.fail("widgets are not drawn: " + page.locator(".jp-Notebook").inner_text()[:2000])


def run_all(page):
    """Run → Run All Cells, until the last cell waits for its turn or has run.

    Some versions first ask, sooner or later, for the kernel that the notebook names, and then forget the command."""
    from playwright.sync_api import TimeoutError

    prompt = page.locator(".jp-CodeCell .jp-InputPrompt").last
    before = prompt.inner_text()
    for _ in range(6):
        confirmed(page)
        try:
            page.get_by_role("menuitem", name="Run", exact=True).click(timeout=5000)
            page.get_by_text("Run All Cells", exact=True).click(timeout=5000)
        except TimeoutError:  # a dialog came in between
            continue
        for _ in range(20):
            time.sleep(0.5)
            if confirmed(page):
                break
            if prompt.inner_text() != before:
                return
    pytest.fail("no cell was run: " + page.locator(".jp-Notebook").inner_text()[:2000])


def outputs(page):
    """The text of all outputs of the notebook."""
    return "".join(page.locator(".jp-Cell-outputArea").all_inner_texts())


def brightness(page, selector):
    """0 to 255: how light the words of an element are."""
    colour = page.locator(selector).first.evaluate("e => getComputedStyle(e).fill || getComputedStyle(e).color")
    return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 3


def until(condition, what, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what() if callable(what) else what
        time.sleep(0.1)


def choose_dark(page):
    page.get_by_role("menuitem", name="Settings", exact=True).click()
    for name in ("Theme", "JupyterLab Dark"):
        page.locator(f".lm-Menu-itemLabel:text-is('{name}')").click()
    page.wait_for_selector("body[data-jp-theme-light='false']", state="attached")
    page.wait_for_selector("#jupyterlab-splash", state="detached")


def picture(page, name):
    """Keeps what is seen, where somebody wants to look at it."""
    if os.environ.get("BROWSER_PICTURE"):
        page.screenshot(path=os.environ["BROWSER_PICTURE"].replace(".png", f"_{name}.png"), full_page=True)


def test_a_run_is_followed_cancelled_and_taken_up_again(lab):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
            ],
        )
        page, wrong = browser.new_page(viewport={"width": 1300, "height": 1000}), []
        # JupyterLab itself cancels what it asked of a kernel when the page is left
        page.on("pageerror", lambda error: "Canceled future for" in str(error) or wrong.append(str(error)))
        address, folder = lab
        page.goto(address)
        with_living_widgets(page)
        run_all(page)
        seen = []
        curve = page.locator(".jp-OutputArea svg polyline")

        def has_moved():
            with open(folder / "looks", "a") as looks:
                looks.write(".")
            seen.append(bars(page))
            widths = {row[1] for rows in seen for row in rows if re.search("epoch|fold", row[0].lower())}
            return len(widths) > 3 and curve.count() > 0

        until(has_moved, lambda: f"the bars did not move or there is no curve: {seen[-1:]}, {outputs(page)[:2000]}")
        picture(page, "light")
        page.locator(".jp-OutputArea button:has-text('cancel')").click()
        until(lambda: "ended before it was finished" in outputs(page), "the button did not end the run", seconds=60)
        assert "goes on from the last checkpoint" in outputs(page)
        (folder / "alone").touch()
        assert any("loss" in row[2] and "lr" in row[2] for rows in seen for row in rows)
        assert any("ETA" in row[2] for rows in seen for row in rows if row[0] == "overall")

        page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']", timeout=90_000)
        run_all(page)
        page.wait_for_selector(".jp-OutputArea a:has-text('report')", timeout=240_000)
        last = bars(page)
        lines = page.locator(".jp-OutputArea details").last
        assert "[Torch]" not in lines.inner_text()
        lines.locator("summary").click()
        folded = lines.inner_text()
        page.wait_for_selector(".widget-dropdown, .widget-slider, .widget-inline-hbox", timeout=120_000)
        words = ".jp-OutputArea svg text"
        assert brightness(page, words) < 100
        choose_dark(page)
        until(lambda: brightness(page, words) > 150, "words of the curves stay dark on a dark page", seconds=20)
        picture(page, "dark")
        text = outputs(page)
        browser.close()
    assert last[0][1] == 100.0
    assert "[Torch] fold=2 epoch=30/30" in folded
    assert text.count("Loading training data") == 1 and "95 % over people" in text
    assert not wrong, wrong
