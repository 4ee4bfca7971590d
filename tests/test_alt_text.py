"""Alternative text, from a figure in a notebook to the HTML that nbconvert makes of it."""

import os
import subprocess
import sys
from html.parser import HTMLParser

import nbformat
import pytest

from prunelab import paths

pytest.importorskip("nbconvert", reason="nbconvert is not installed")

WORDS = 'Loss "falls" & rises: a < b'
CELL = f"""import matplotlib.pyplot as plt, pandas, pathlib
from prunelab import figures, paths
paths.FIGURES = pathlib.Path.cwd()
fig, ax = plt.subplots(figsize=(2, 1))
figures.save_figure(fig, "toy", "smoke", "loss", data=pandas.DataFrame(), alt={WORDS!r})"""


@pytest.mark.parametrize("template", ["lab", "classic"])
def test_words_of_a_figure_are_the_alternative_text_of_its_image_in_html(tmp_path, template):
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    notebook.cells = [nbformat.v4.new_code_cell(CELL), nbformat.v4.new_code_cell("print('<img>')")]
    nbformat.write(notebook, tmp_path / "toy.ipynb")
    library = paths.ROOT / "lib"
    environment = os.environ | {"PYTHONPATH": str(library), "JUPYTER_CONFIG_PATH": str(library / "prunelab")}
    command = ["-m", "nbconvert", "--to", "html", "--template", template, "--execute", "toy.ipynb"]
    subprocess.run([sys.executable, *command], check=True, capture_output=True, cwd=tmp_path, env=environment)

    images = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: images.append(dict(attributes)) if tag == "img" else None
    parser.feed((tmp_path / "toy.html").read_text())
    (image,) = images
    assert (image["alt"], image["width"]) == (WORDS, "200") and image["src"].startswith("data:image/png;base64,iVBOR")


def test_a_picture_without_words_has_those_of_its_cell():
    from prunelab.alt_text import AltText

    picture, text = nbformat.v4.new_output("display_data", {"image/png": "iVBOR"}), nbformat.v4.new_output("stream")
    cell = nbformat.v4.new_code_cell(outputs=[picture, text], metadata={"alt": WORDS})
    first, second = AltText().preprocess_cell(cell, {}, 0)[0].outputs
    assert 'alt="Loss &quot;falls&quot; &amp; rises: a &lt; b"' in first.data["text/html"] and "data" not in second
