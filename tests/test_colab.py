"""Every notebook as Colab opens it: alone in a folder, with the packages of there, run from top to bottom.

`make colab` builds that environment and runs this with its Python; in any other one nothing is run.
"""

import os
import re
import subprocess
import time
from importlib.util import find_spec

import nbformat
import pytest
from nbclient import NotebookClient

from prunelab import paths

ADDRESS = "https://github.com/prunelab/prunelab"  # tests/test_setup.py holds the notebooks to it

every_notebook = pytest.mark.parametrize("path", sorted(paths.NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)


def minutes_of(path):
    """How long the first cell of a notebook says that all of them run, where nothing is to be trained."""
    (minutes,) = re.findall(r"all cells run within (\d+) minutes", nbformat.read(path, as_version=4).cells[0].source)
    return int(minutes)


@every_notebook
def test_notebook_states_a_few_minutes(path):
    assert 1 <= minutes_of(path) <= 10


@pytest.fixture(scope="module")
def variables(tmp_path_factory):
    """Those of a kernel that knows no library, and where the address of the repository is that of these very files."""
    origin = tmp_path_factory.mktemp("origin")
    git = ["git", f"--git-dir={origin}", f"--work-tree={paths.ROOT}", "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in ("init --quiet --initial-branch main", "add --all", "commit --quiet --message all"):
        subprocess.run([*git, *command.split()], check=True, cwd=paths.ROOT)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PRUNELAB"))}
    redirected = {"GIT_CONFIG_KEY_0": f"url.{origin.as_uri()}.insteadOf", "GIT_CONFIG_VALUE_0": ADDRESS}
    return inherited | redirected | {"GIT_CONFIG_COUNT": "1"}


@pytest.mark.slow
@pytest.mark.skipif(find_spec("papermill") is not None, reason="these are not Colab's packages: make colab")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:jupyter_client")  # of its old Jupyter, about a newer Python
@every_notebook
def test_notebook_runs_in_its_minutes_and_nothing_is_told_on_stderr(path, variables, tmp_path):
    folder = tmp_path / "Colab Notebooks"
    folder.mkdir()
    notebook = nbformat.read(path, as_version=4)
    started = time.monotonic()
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute(env=variables)
    seconds = time.monotonic() - started
    assert (folder / "prunelab" / "lib").is_dir(), "it ran on another library than the one it fetches"
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    assert seconds <= 60 * minutes_of(path)
