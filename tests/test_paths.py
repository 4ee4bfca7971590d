"""Where a machine's own files lie: in the checkout, or where PRUNELAB_DATA says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from prunelab import paths


def folders(cwd, **environment):
    """DATA, RUNS, FIGURES and RECORDS in a process of its own, and PRUNELAB_DATA as those that it starts have it."""
    code = "import os; from prunelab import paths as p; print(p.DATA, p.RUNS, p.FIGURES, p.RECORDS, sep='\\n'); "
    code += "print(os.environ.get('PRUNELAB_DATA', ''))"
    environment = os.environ | {"PYTHONPATH": str(paths.ROOT / "lib"), "HOME": str(cwd)} | environment
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env=environment)
    *found, told = done.stdout.split("\n")[:-1]
    return [*map(Path, found), told]


def test_empty_is_as_good_as_not_set(tmp_path):
    data = paths.ROOT / "data"
    expected = [data, data / "runs", paths.ROOT / "figures", data / "records", ""]
    assert folders(tmp_path, PRUNELAB_DATA="") == expected


@pytest.mark.parametrize("given", ["~/drive", "drive", "./drive/../drive/"])
def test_what_is_made_goes_where_it_is_told_to_and_what_ships_stays(given, tmp_path):
    drive = tmp_path / "drive"
    shipped = paths.ROOT / "data" / "records"
    assert folders(tmp_path, PRUNELAB_DATA=given) == [drive, drive / "runs", drive / "figures", shipped, str(drive)]
