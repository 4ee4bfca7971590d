"""The site of the notebooks: links that lead somewhere, words for all that is seen, nothing from elsewhere."""

import json
import re
from itertools import pairwise
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup

from prunelab import gallery, pages, paths

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The pages, parsed, by where they lie."""
    built = gallery.build(tmp_path_factory.mktemp("gallery"))
    return {path: BeautifulSoup(path.read_text(), "html.parser") for path in built}


def leads(site, page, url):
    """Whether a link leads to a file of the site, and to a place in it, or is well-formed."""
    parts = urlsplit(url)
    if parts.scheme:
        return parts.scheme in ("https", "data") and (parts.scheme == "data" or "." in parts.netloc)
    path = page.parent / unquote(parts.path) if parts.path else page
    return path.is_file() and (not parts.fragment or site[path].find(id=unquote(parts.fragment)) is not None)


def text_outside(html, tags):
    """A page's text but what is in these tags."""
    return "".join(text for text in html.find_all(string=True) if not text.find_parent([*tags, "script"]))


def test_there_is_a_page_for_each_notebook_and_each_page_of_numbers(site):
    stems = [path.stem for path in sorted(paths.NOTEBOOKS.glob("*.ipynb"))]
    assert [path.stem for path in site] == ["index", *stems, *(name.removesuffix(".md") for name in pages.PAGES)]


def test_every_link_leads_somewhere(site):
    for page, html in site.items():
        urls = [tag[name] for name in ("href", "src") for tag in html.select(f"[{name}]")]
        assert len(urls) > 15 and [url for url in urls if not leads(site, page, url)] == [], page


def test_every_search_result_leads_to_its_heading(site):
    index = next(iter(site))
    sections = json.loads((index.parent / "sections.js").read_text().removeprefix("const SECTIONS = ").strip(";\n"))
    assert len(sections) > 80 and all(section["text"] for section in sections if "RESULTS" not in section["url"])
    assert [section["url"] for section in sections if not leads(site, index, section["url"])] == []
    (pixels,) = (of for of in sections if "Where the connections go" in of["heading"])
    assert pixels["url"] == "01_rigl.html#10-where-the-connections-go" and "layer" in pixels["text"]
    assert pixels["page"] == "RigL"


def test_nothing_is_loaded_from_elsewhere(site):
    for page, html in site.items():
        loaded = [tag["src"] for tag in html.select("[src]")] + [tag["href"] for tag in html.select("link")]
        assert [url for url in loaded if urlsplit(url).scheme not in ("", "data")] == [], page
        assert not html.select("iframe, object, embed")


def test_pages_can_be_heard(site):
    for page, html in site.items():
        assert html.html["lang"] == "en" and html.title.text and len(html.select("main#main")) == 1, page
        assert html.select_one("meta[name=description]")["content"], page
        assert all(image.get("alt", "").strip() for image in html.select("img")), page
        assert all(drawing.get("aria-label") for drawing in html.select("svg")), page
        assert html.select_one("body > a")["href"] == "#main"
        names = [tag["id"] for tag in html.select("[id]")]
        assert len(names) == len(set(names)), page
        levels = [int(tag.name[1]) for tag in html.select("h1, h2, h3, h4, h5, h6")]
        assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in pairwise(levels)), page
        assert html.select_one("label[for=words]") and html.select_one("select[aria-label]")
        assert all(head.get("scope") and head.get_text(strip=True) for head in html.select("th")), page
        assert all(box.get("aria-label") for box in html.select("[role=group]")), page


def test_each_page_leads_to_the_next_and_back(site):
    _, *others = site
    for page, following in pairwise(others):
        assert site[page].select_one(".turn [rel=next]")["href"] == following.name
        assert site[following].select_one(".turn [rel=prev]")["href"] == page.name
    assert len([link for html in site.values() for link in html.select(".turn a")]) == 2 * (len(others) - 1)


def test_figures_can_be_enlarged_and_papers_and_results_are_linked(site):
    for page, html in site.items():
        assert all(image.find_parent("a") for image in html.select("main img")), page
        assert not re.search(r"arXiv:\d", text_outside(html, ["a", "code", "pre"])), page
        assert not set(pages.PAGES) & {code.text for code in html.select("code") if not code.find_parent("a")}, page


def test_code_that_finds_the_library_is_folded(site):
    codes = [code for html in site.values() for code in html.select(".highlight") if "find_spec" in code.text]
    assert len(codes) >= len(gallery.MAIN) and all(code.find_parent("details") for code in codes)


def test_an_animation_waits_for_its_reader(site):
    (dmcp,) = (html for page, html in site.items() if page.stem == "02_dmcp")
    (played,) = dmcp.select("details > a > img")
    assert played.find_parent("details").summary.text == "Play the animation"


def test_results_name_their_rows_and_tell_the_verdict_first(site):
    (results,) = (html for page, html in site.items() if page.stem == "RESULTS")
    heads = [[head.text for head in table.select("thead th")] for table in results.select("table")]
    assert all(names[:3] == ["claim", "verdict", "comparison"] for names in heads if "verdict" in names)
    assert all(row.th["scope"] == "row" for row in results.select("tbody tr"))


def test_pages_are_light_and_formulas_are_drawn(site):
    for page, html in site.items():
        assert page.stat().st_size < 600_000, page
        assert "$" not in text_outside(html, ["code", "pre", "title"]), page
    assert all(len(html.select(".cell svg")) > 1 for page, html in site.items() if page.stem in gallery.MAIN)


def test_index_has_what_readme_and_records_say(site):
    html = next(iter(site.values()))
    readme = (paths.ROOT / "README.md").read_text()
    for stem, card in zip(sorted(gallery.MAIN), html.select("article"), strict=True):
        shown = re.findall(rf"\(figures/{stem}/small/(\w+)\.png\)", readme)[-1:]
        assert shown in ([gallery.MAIN[stem]], []), stem
        counts = [int(item.text) for item in card.select("li strong")]
        results = (paths.ROOT / "RESULTS.md").read_text().partition(f"## {stem}, small")[2]
        said = re.match(r"\s*Of \d+ comparisons (\d+) are .*?(\d+) are .*?(\d+) are .*?(\d+) are", results)
        assert counts == [int(count) for count in said.groups()], stem
        claim, finding, _ = (part.text for part in card.select("p"))
        assert claim.startswith("The ") and len(claim.split()) > 20, stem
        assert finding.startswith("What came out here. ") and len(finding.split()) > 10, stem
        assert all(text.endswith(".") and not set("*`") & set(text) for text in (claim, finding)), stem
