"""A site of the committed notebooks, to be read without running them.

nbconvert makes the pages: it comes with JupyterLab, so that `make gallery` needs no further package and no network;
Jupyter Book 2 would bring Node, mkdocs-jupyter MkDocs and a theme. The pages load nothing from elsewhere either: badges
become words, and formulas, for which nbconvert would have MathJax loaded, are drawn by matplotlib.
"""

import base64
import html
import json
import re
import struct
from pathlib import Path
from typing import NamedTuple

import jinja2
import nbformat
from bs4 import BeautifulSoup, Tag
from matplotlib.textpath import TextPath
from nbconvert import HTMLExporter
from nbformat import NotebookNode

from prunelab import pages, paths, recipes, verdicts
from prunelab.files import atomic_write
from prunelab.recipes import Study

# The figure that says most of each notebook; the README shows these too.
MAIN = {
    "01_rigl": "accuracy_vs_sparsity",
    "02_dmcp": "widths",
    "03_rethinking": "lengths",
    "04_sparse_transfer": "trends",
    "05_afr": "accuracy_vs_sparsity",
    "06_frontier": "fronts",
}
LABELS = {  # of links to pages
    "01_rigl": "RigL",
    "02_dmcp": "DMCP",
    "03_rethinking": "Rethinking",
    "04_sparse_transfer": "Transfer",
    "05_afr": "AFR",
    "06_frontier": "Frontier",
    "RESULTS": "Results",
    "BENCHMARKS": "Benchmarks",
}
_HERE = Path(__file__).parent
_HEADINGS = ("h1", "h2", "h3", "h4")
_SPELLED = (  # what matplotlib does not know of TeX, in words that it knows
    (r"\\[bB]ig(?=[(\[])", r"\\left"),
    (r"\\[bB]ig(?=[)\]])", r"\\right"),
    (r"\\tfrac", r"\\frac"),
    (r"\\le(?![a-z])", r"\\leq"),
    (r"\\[lr]vert(?![a-z])", "|"),
    (r"\\[lr]Vert(?![a-z])", r"\\|"),
    # Limits would touch what is beside them.
    (r"(\\(?:sum|prod)(?![a-z])(?:\s*[_^](?:\{(?:[^{}]|\{[^{}]*\})*\}|\\?\w+))*)", r"\\,\1\\,"),
    (r"\\textbf\{(.*?)\}", lambda found: rf"\mathbf{{{found[1]}}}".replace(" ", r"\ ")),
)
_PEN = {1: "M", 2: "L", 3: "Q", 4: "C", 79: "Z"}  # from codes of matplotlib's paths to SVG's letters
_EM = 1000  # units of a formula's drawing in the size of the text around it


class _Page(NamedTuple):
    name: str
    title: str
    body: BeautifulSoup
    card: dict | None = None  # what the index shows of a notebook

    @property
    def label(self) -> str:
        return LABELS[self.name]

    @property
    def headings(self) -> list[Tag]:
        return self.body.find_all(_HEADINGS)


def build(folder: Path) -> list[Path]:
    """Writes the site: an index, a page for each notebook, and the pages of numbers.

    Returns:
        Its pages; the first is the index.
    Raises:
        OSError: Nothing can be written there.
    """
    site = [_of_notebook(study) for study in sorted(recipes.STUDIES.values(), key=lambda each: each.notebook)]
    site += [_of_markdown(name) for name in pages.PAGES]
    for page in site:
        _store_images(page, folder)
        _finish(page.body)
        _name_headings(page.headings)
    sections = [section for page in site for section in _sections(page)]
    atomic_write(folder / "sections.js", f"const SECTIONS = {json.dumps(sections, ensure_ascii=False)};\n")
    for name in ("style.css", "script.js"):
        atomic_write(folder / name, (_HERE / name).read_bytes())
    templates = jinja2.Environment(loader=jinja2.FileSystemLoader(_HERE), trim_blocks=True, autoescape=True)
    template = templates.get_template("page.html.j2")
    atomic_write(folder / "index.html", template.render(site=site))
    for page in site:
        atomic_write(folder / f"{page.name}.html", template.render(site=site, page=page))
    return [folder / f"{name}.html" for name in ("index", *(page.name for page in site))]


def _of_notebook(study: Study) -> _Page:
    stem = study.notebook
    notebook = nbformat.read(paths.NOTEBOOKS / f"{stem}.ipynb", as_version=4)
    first = notebook.cells[0].source
    parts = r"# (.+)\n\n\*\*(The claim|The question)\.\*\* (.+)\n[\s\S]*?What came out here\.\*\* (.+?\.)\s"
    title, kind, claim, finding = (part.replace("*", "").replace("`", "") for part in re.match(parts, first).groups())
    (main,) = (cell for cell in notebook.cells if f'"{stem}", chosen.profile, "{MAIN[stem]}"' in cell.source)
    (alt,) = (output.metadata["image/png"]["alt"] for output in main.outputs if "image/png" in output.get("data", {}))
    body = _body(notebook)
    counts = verdicts.pooled(pages.judge(study, "small"))["verdict"].value_counts()
    words = {word: counts.get(word, 0) for word in verdicts.WORDS}
    card = {"kind": kind, "claim": claim, "finding": finding, "image": body.find("img", alt=alt), "verdicts": words}
    return _Page(stem, title, body, card)


def _of_markdown(name: str) -> _Page:
    cell = nbformat.v4.new_markdown_cell((paths.ROOT / name).read_text())
    body = _body(nbformat.v4.new_notebook(cells=[cell]))
    for first in body.select("tbody td:first-child"):
        first.name, first["scope"] = "th", "row"
    return _Page(Path(name).stem, LABELS[Path(name).stem], body)


def _body(notebook: NotebookNode) -> BeautifulSoup:
    exporter = HTMLExporter(template_file=str(_HERE / "cells.html.j2"))
    return BeautifulSoup(exporter.from_notebook_node(notebook)[0], "html.parser")


def _store_images(page: _Page, folder: Path) -> None:
    for i, image in enumerate(page.body.find_all("img")):
        kind, _, content = image["src"].partition(",")
        if kind.startswith("http"):  # a badge
            image.replace_with(image["alt"])
            continue
        content = base64.b64decode(content) if content else (paths.ROOT / kind).read_bytes()
        width, height = struct.unpack(">II", content[16:24])  # known before it is loaded, lest the text jump
        image["height"] = round(height / width * int(image.attrs.setdefault("width", width)))
        image["src"] = f"{page.name}/{i}.png"
        image["loading"] = "lazy" if i else "eager"
        link = image.wrap(page.body.new_tag("a", href=image["src"]))  # to look at it as large as it is
        if b"acTL" in content[:200]:
            played = link.wrap(page.body.new_tag("details"))
            played.insert(0, BeautifulSoup("<summary>Play the animation</summary>", "html.parser"))
        atomic_write(folder / image["src"], content)


def _finish(body: BeautifulSoup) -> None:
    """Makes links stay in the site, lets wide things scroll, and draws the formulas."""
    for mark in body.select("a.anchor-link"):
        mark.decompose()
    for link in body.select("a[href]"):
        link["href"] = re.sub(r"^(?!https?:)(?:.*/)?(\w+)\.(?:ipynb|md)(?=#|$)", r"\1.html", link["href"])
    for code in body.find_all("code", string=list(pages.PAGES)):
        if not code.find_parent("a"):
            code.wrap(body.new_tag("a", href=code.string.replace(".md", ".html")))
    for head in body.select("thead th"):
        head.attrs |= {"scope": "col"}
        if not head.get_text(strip=True):
            head.name = "td"
    for wide in body.select("table, .output pre, .highlight pre"):
        name = "Table" if wide.name == "table" else "Code" if wide.find_parent(class_="highlight") else "Output"
        wide.wrap(body.new_tag("div", attrs={"class": "wide", "role": "group", "aria-label": name}))
    for text in body.find_all(string=re.compile("arXiv:")):
        if not text.find_parent(["a", "code", "pre"]):
            linked = re.sub(r"arXiv:(\d+\.\d+)", r'<a href="https://arxiv.org/abs/\1">\g<0></a>', html.escape(text))
            text.replace_with(BeautifulSoup(linked, "html.parser"))
    for text in body.find_all(string=re.compile(r"\$")):
        if not text.find_parent(["code", "pre"]):
            drawn = re.sub(r"(\$\$?)(.+?)\1", _formula, html.escape(text), flags=re.DOTALL)
            text.replace_with(BeautifulSoup(drawn, "html.parser"))


def _formula(found: re.Match) -> str:
    """Draws TeX in the colour and size of the text around it; who cannot see it is told the TeX."""
    tex = " ".join(html.unescape(found[2]).split())
    spelled = tex
    for pattern, words in _SPELLED:
        spelled = re.sub(pattern, words, spelled)
    if is_display := found[1] == "$$":
        spelled = spelled.replace(r"\frac", r"\dfrac")
    path = TextPath((0, 0), f"${spelled}$", size=_EM)
    pen = ((_PEN[code], points.round().astype(int)) for points, code in path.iter_segments(simplify=False))
    drawing = "".join(letter + (" ".join(map(str, points)) if letter != "Z" else "") for letter, points in pen)
    (left, low), (right, high) = path.get_extents().get_points().round().astype(int)
    style = f"width: {(right - left) / _EM}em; height: {(high - low) / _EM}em; vertical-align: {low / _EM}em"
    svg = f'<svg role="img" aria-label="{html.escape(tex)}" viewBox="{left} {-high} {right - left} {high - low}"'
    svg += f' style="{style}"><path transform="scale(1 -1)" d="{drawing}"/></svg>'
    return f'<span class="wide formula">{svg}</span>' if is_display else svg


def _name_headings(headings: list[Tag]) -> None:
    for i, heading in enumerate(headings):
        words = re.sub(r"\W+", "-", heading.get_text().lower()).strip("-")
        is_new = all(words != other["id"] for other in headings[:i])
        heading["id"] = words if is_new else f"{words}-{i}"


def _sections(page: _Page) -> list[dict]:
    """Returns what is searched, heading by heading: all text but code."""
    found = []
    for part in page.body.find_all([*_HEADINGS, "p", "li", "tr", "pre", "img"]):
        text = " ".join((part.get("alt") or part.get_text(" ")).split())
        if part.name in _HEADINGS:
            found.append({"url": f"{page.name}.html#{part['id']}", "page": page.label, "heading": text, "text": ""})
        elif not part.find_parent(class_="input") and not part.find_parent("li"):
            found[-1]["text"] += f"{text} "
    return found
