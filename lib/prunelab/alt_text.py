"""Words of figures as HTML has them. nbconvert's own template for `--to html` leaves the alternative text out.

`make` puts the JSON beside this file into its environment, where nbconvert finds it. Elsewhere:

    jupyter nbconvert --to html --HTMLExporter.preprocessors=prunelab.alt_text.AltText NOTEBOOK
"""

from html import escape

from nbconvert.preprocessors import Preprocessor
from nbformat import NotebookNode


class AltText(Preprocessor):
    """Makes each PNG that has words, of its own or of its cell, an `<img>` that has both."""

    def preprocess_cell(self, cell: NotebookNode, resources: dict, index: int) -> tuple[NotebookNode, dict]:
        """Replaces the pictures of a cell."""
        for output in cell.get("outputs", []):
            about = cell.metadata | output.get("metadata", {}).get("image/png", {})
            if "alt" in about and "image/png" in output.get("data", {}):
                image = {"src": f"data:image/png;base64,{output.data['image/png']}"}
                image |= {name: about[name] for name in ("alt", "width", "height") if name in about}
                attributes = " ".join(f'{name}="{escape(str(value))}"' for name, value in image.items())
                output.data = NotebookNode({"text/html": f'<div class="jp-RenderedImage"><img {attributes}></div>'})
        return cell, resources
