"""Notebooks in JupyterLab, and the gallery, as a reader has them: in Chromium. `make browser` runs it, many minutes.

Pictures of what was seen are left in build/browser.
"""

import base64
import io
import itertools
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest
from PIL import Image

from prunelab import gallery, paths

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: `make browser` does that")
pytestmark = pytest.mark.browser

STEMS = [path.stem for path in sorted(paths.NOTEBOOKS.glob("[0-9]*.ipynb"))]
PICTURES = paths.ROOT / "build" / "browser"
# What a reader may set; `mine` is a folder of images, which `checkout` makes.
OWN = {
    "01_rigl": {"live_density": 0.1, "live_update_every": 5},
    "02_dmcp": {"live_budget": 0.4},
    "03_rethinking": {"live_density": 0.25},
    "04_sparse_transfer": {"live_task": "mine", "live_size": 16},
    "05_afr": {"live_task": "mine", "live_size": 16, "live_density": 0.2},
    "06_frontier": {"budget": 0.4, "budget_of": "weights"},
}
# Without the last ones a browser asks its maker's servers, at each start.
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
CONTENT = "jupyterapp.shell.currentWidget.content"
RUN_ALL = "jupyterapp.commands.execute('notebook:run-all-cells')"


@pytest.fixture(scope="module")
def chromium():
    own = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_api.sync_playwright() as driver:
        if not own and not Path(driver.chromium.executable_path).exists():
            pytest.skip("no Chromium here: install your system's, or run `playwright install chromium`")
        browser = driver.chromium.launch(executable_path=own, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the repository, for notebooks save themselves and their figures; with images of a reader's own."""
    folder = tmp_path_factory.mktemp("a reader's")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=paths.ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.strip("\0").split("\0"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(paths.ROOT / name, folder / name)
    for split, shade, number in itertools.product(("train", "test"), (60, 180), range(40)):
        path = folder / "data" / "mine" / split / f"shade {shade}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((20, 16), shade).convert("RGB").save(path)
    return folder


@pytest.fixture(scope="module")
def lab(checkout):
    """Address of a JupyterLab in that copy."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [f"--port={port}", "--ip=127.0.0.1", "--no-browser", "--allow-root", "--IdentityProvider.token="]
    options += [f"--ServerApp.root_dir={checkout}", "--LabApp.expose_app_in_browser=True", "--LabApp.news_url="]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PRUNELAB_DATA")}
    log = (checkout.parent / "lab.log").open("w")
    server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], stdout=log, stderr=log, env=environment)
    address = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            urlopen(f"{address}/api").close()
            break
        except OSError:
            time.sleep(0.1)
    yield address
    server.terminate()
    server.wait()


@pytest.fixture
def notebook(chromium, lab, stem):
    """The page of one notebook, whose kernel has started."""
    page = chromium.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(120_000)
    page.goto(f"{lab}/lab/workspaces/{stem}/tree/notebooks/{stem}.ipynb?reset")
    page.wait_for_function("() => window.jupyterapp?.shell.currentWidget?.content?.model?.cells.length > 9")
    page.evaluate("jupyterapp.shell.currentWidget.sessionContext.ready")
    yield page
    page.screenshot(path=PICTURES / f"{stem}.png")
    page.evaluate("jupyterapp.commands.execute('notebook:shutdown-kernel')")
    page.close()


def cells_of(page):
    cells = page.evaluate(f"{CONTENT}.model.toJSON().cells")
    return [cell | {"source": "".join(cell["source"])} for cell in cells]


def edit(page, number, source):
    page.evaluate(f"([i, text]) => {CONTENT}.model.cells.get(i).sharedModel.setSource(text)", [number, source])


def the(cells, text):
    """Number of the only cell of code that has the text."""
    (number,) = (i for i, cell in enumerate(cells) if cell["cell_type"] == "code" and text in cell["source"])
    return number


def outputs(cells):
    return [output for cell in cells for output in cell.get("outputs", ())]


def run_all(page):
    """Runs all cells; none fails, and figures show something."""
    page.evaluate(RUN_ALL)
    cells = cells_of(page)
    assert [output["evalue"] for output in outputs(cells) if output["output_type"] == "error"] == []
    assert all(cell["execution_count"] for cell in cells if cell["cell_type"] == "code")
    images = [output["data"]["image/png"] for output in outputs(cells) if "image/png" in output.get("data", {})]
    assert len(images) >= 5
    for image in images:
        assert len(Image.open(io.BytesIO(base64.b64decode("".join(image)))).convert("L").getcolors()) > 8
    return cells


@pytest.mark.parametrize("stem", STEMS)
def test_notebook_runs_as_it_is_lists_its_contents_and_takes_solutions(notebook):
    cells = run_all(notebook)
    told = "".join(output["text"] for output in outputs(cells) if output.get("name") == "stderr")
    assert told.strip() == "", "a bar that is through leaves blanks"

    notebook.evaluate("jupyterapp.commands.execute('toc:show-panel')")
    text = "\n".join(cell["source"] for cell in cells if cell["cell_type"] == "markdown")
    headings = re.findall("^#+ (.+)", re.sub("(?s)```.*?```", "", text), re.M)
    listed = notebook.locator(".jp-TableOfContents .jp-tocItem-content")
    listed.nth(len(headings) - 1).wait_for(state="attached")
    assert [heading.strip() for heading in listed.all_text_contents()] == [
        re.sub(r"[*`]", "", heading) for heading in headings
    ]

    stubs = the(cells, "return None  # your line")
    (solutions,) = re.findall("(?s)Solutions</summary>\n\n```python\n(.*?)```", cells[stubs - 1]["source"])
    checks = re.sub(r"(?s)^def .*return None  # your lines? here\n", "", cells[stubs]["source"])
    edit(notebook, stubs, f"{solutions}\n\n{checks}")
    notebook.evaluate(f"{CONTENT}.activeCellIndex = {stubs}")
    notebook.evaluate("jupyterapp.commands.execute('notebook:run-cell')")
    said = outputs([cells_of(notebook)[stubs]])
    assert "".join("".join(output["text"]) for output in said) == "1: right\n2: right\n3: right\n"


@pytest.mark.parametrize("stem", STEMS)
def test_notebook_trains_with_a_readers_values_and_goes_on_after_an_interrupt(notebook, stem):
    cells = cells_of(notebook)
    parameters = next(i for i, cell in enumerate(cells) if "parameters" in cell["metadata"].get("tags", ()))
    given = {"profile": "smoke", "fresh": True} | OWN.get(stem, {})
    edit(notebook, parameters, cells[parameters]["source"] + "".join(f"\n{name} = {given[name]!r}" for name in given))
    training = the(cells, "results = prunelab.engine.run(plan")
    notebook.evaluate("jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")
    notebook.evaluate(f"void (window.ran = {RUN_ALL})")
    shown = f"{CONTENT}.model.cells.get({training}).outputs.length > 0"
    notebook.wait_for_function(f"() => {shown}", timeout=600_000)  # the bar is there
    notebook.screenshot(path=PICTURES / f"{stem}_trains.png")
    notebook.evaluate("jupyterapp.commands.execute('notebook:interrupt-kernel')")
    said = f"{CONTENT}.model.toJSON().cells[{training}].outputs"
    notebook.wait_for_function(f"() => {said}.some((output) => output.ename == 'KeyboardInterrupt')")
    assert not notebook.evaluate("window.ran"), "the cells behind are given up"
    run_all(notebook)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return gallery.build(tmp_path_factory.mktemp("gallery"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_gallery_fits_is_searched_and_is_used_by_keyboard(chromium, site, width, scheme):
    page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(error.message))
    for path in site:
        page.goto(path.as_uri())
        page.evaluate("document.querySelectorAll('img').forEach((image) => (image.loading = 'eager'))")
        page.wait_for_function("() => [...document.images].every((image) => image.complete)")
        assert page.evaluate("[...document.images].filter((image) => !image.naturalWidth).length") == 0, path
        assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{path} is wider than {width}"
        page.screenshot(path=PICTURES / f"{path.stem}_{width}_{scheme}.png")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the text"
    page.fill("#words", "nuclear norm")
    page.locator("#found li a").first.wait_for()
    page.locator("#found li a").first.press("Enter")
    page.wait_for_url("**/05_afr.html#*")
    page.go_back()  # finds the search as it was left
    page.locator("#found li mark", has_text="nuclear").first.wait_for()
    assert page.input_value("#words") == "nuclear norm"
    page.locator("#main").focus()
    page.keyboard.press("Escape")  # is not meant for the search
    assert page.input_value("#words") == "nuclear norm"
    page.fill("#words", "ＲＩＧＬ’ｓ")
    page.locator("#found li mark", has_text="RigL's").first.wait_for()
    assert said == []
    page.close()


def test_gallery_fits_on_paper(chromium, site):
    page = chromium.new_page(viewport={"width": 718, "height": 1000})  # A4 within its margins
    page.emulate_media(media="print")
    for path in site:
        page.goto(path.as_uri())
        wide = "[...document.querySelectorAll('.wide')].filter((box) => box.scrollWidth > box.clientWidth + 1).length"
        assert page.evaluate("document.documentElement.scrollWidth") <= 718 and page.evaluate(wide) == 0, path
    page.close()
