"""What every notebook of the suite keeps to; whether its outputs still hold is nbval's part."""

import ast
import re

import nbformat
import papermill
import pytest

from prunelab import paths, recipes

NOTEBOOKS = sorted(paths.NOTEBOOKS.glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook, tag=None):
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [cell for cell in cells if tag is None or tag in cell.metadata.get("tags", [])]


def test_every_study_has_its_notebook():
    assert [path.stem for path in NOTEBOOKS] == sorted(study.notebook for study in recipes.STUDIES.values())


def test_cells_are_executed_in_order_without_error_or_stderr(notebook):
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]


def test_outputs_are_text_and_png_and_every_figure_is_told_in_words(notebook):
    for cell in code_cells(notebook):
        for output in cell.outputs:
            if "data" in output:
                assert output.data.keys() <= {"text/plain", "image/png"}
            if "image/png" in output.get("data", {}):
                if words := output.metadata.get("image/png", {}).get("alt"):
                    assert words == output.data["text/plain"].strip("'\"")
                else:  # of what is new on every machine the cell has the words
                    assert "nbval-ignore-output" in cell.metadata["tags"] and cell.metadata["alt"]


def test_parameters_are_one_cell_of_typed_literals_that_papermill_understands(path, notebook):
    (cell,) = code_cells(notebook, "parameters")
    statements = ast.parse(cell.source).body
    assert all(isinstance(s, ast.AnnAssign) and isinstance(s.value, ast.Constant) for s in statements)
    inspected = papermill.inspect_notebook(str(path))
    assert list(inspected) == [statement.target.id for statement in statements]
    for name, about in inspected.items():
        assert about["inferred_type_name"] in ("str", "bool", "int", "float") and about["help"], name
    assert {"profile", "fresh", "seeds", "device"} <= inspected.keys()


def test_kernel_is_the_plain_one_and_no_run_or_widget_state_is_kept(notebook):
    assert notebook.metadata.kernelspec.name == "python3"
    assert not {"papermill", "widgets"} & notebook.metadata.keys()
    assert not any({"papermill", "execution"} & cell.metadata.keys() for cell in notebook.cells)


def test_notebook_stays_readable(path, notebook):
    assert 20 <= len(notebook.cells) <= 75  # a figure, what it shows, and the check of what is said are three
    assert path.stat().st_size <= 900_000  # a dozen figures; GitHub shows it still
    for cell in code_cells(notebook):
        assert len(cell.source.splitlines()) <= 25
        assert not re.search(r"^\s*[!%]", cell.source, re.MULTILINE), "no shell, no magic"
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                assert node.end_lineno - node.lineno < 10, "what is long belongs in the library"


def test_first_cell_says_in_japanese_too_what_came_out(notebook):
    assert re.search(r'\n<div lang="ja">\n\n\*\*日本語\*\* .+。\n\n</div>\n', notebook.cells[0].source)


def test_last_code_cell_checks(notebook):
    assert "check" in code_cells(notebook)[-1].metadata.tags
    assert all("assert" in cell.source for cell in code_cells(notebook, "check"))


def test_figures_are_named_once_and_are_there(path, notebook):
    default = papermill.inspect_notebook(str(path))["profile"]["default"].strip("'\"")
    drawn = [
        (cell, name)
        for cell in code_cells(notebook)
        for name in re.findall(r'save_figure\(.*?"(\w+)", data', cell.source)
    ]
    names = [name for _, name in drawn]
    assert len(names) == len(set(names)) > 3
    for name in names:
        for ending in ("png", "svg", "csv"):
            assert (paths.ROOT / "figures" / path.stem / default / f"{name}.{ending}").stat().st_size > 0
