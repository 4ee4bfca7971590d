"""What is released: archives hold what they should and work where there is no clone, and say what they stand on."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from datetime import date
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import prunelab
from prunelab import paths, recipes

PYPROJECT = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
IN_SHIPPED = ("data/README.md", "data/latency/", "data/paper/", "data/records/", "notebooks/")
LEFT_OUT = """
data/cifar10.tar.xz data/cifar10/train/a/1.png data/cache/x.pt data/runs/1/record.json data/weights.pth
lib/prunelab/__pycache__/cli.cpython-311.pyc tests/__pycache__/x.pyc notebooks/.ipynb_checkpoints/01_rigl.ipynb
notebooks/x.partial.ipynb figures/01_rigl/smoke/x.png figures/01_rigl/small/01_rigl.ipynb build/lib/prunelab/gone.py
.venv/bin/python dist/x.whl
"""


def tracked() -> set[str]:
    """Files of the repository; skips where this is no clone, as in an unpacked source archive."""
    found = subprocess.run(["git", "-C", paths.ROOT, "ls-files", "-z"], capture_output=True, text=True)
    if found.returncode or not (paths.ROOT / ".git").exists():
        pytest.skip("only git knows what belongs into an archive")
    return {name for name in found.stdout.split("\0") if name and (paths.ROOT / name).is_file()}


def build(folder: Path, what: str) -> Path:
    code = f"from setuptools import build_meta; print(build_meta.build_{what}('out'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=True)
    return folder / "out" / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """The source archive of what git tracks, built where data sets, caches and executed notebooks lie about."""
    folder = tmp_path_factory.mktemp("clone") / "prunelab"
    for name in [*tracked(), *LEFT_OUT.split()]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name in LEFT_OUT.split():
            (folder / name).touch()
        else:
            shutil.copyfile(paths.ROOT / name, folder / name)
    return build(folder, "sdist")


@pytest.fixture(scope="module")
def wheel(archive, tmp_path_factory):
    """The wheel, built from the unpacked source archive, as `make dist` does."""
    folder = tmp_path_factory.mktemp("source")
    with tarfile.open(archive) as source:
        source.extractall(folder, filter="data")
    return build(folder / archive.name.removesuffix(".tar.gz"), "wheel")


def test_source_archive_holds_what_git_does(archive):
    with tarfile.open(archive) as source:
        names = {member.name.partition("/")[2] for member in source if member.isfile()}
    made = {name for name in names if name.startswith("lib/prunelab.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    assert names - made == tracked()


def test_wheel_holds_the_library_and_what_it_reads(wheel):
    assert wheel.name == f"prunelab-{prunelab.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
        about = file.read(f"prunelab-{prunelab.__version__}.dist-info/METADATA").decode()
    library = {name.removeprefix("lib/") for name in tracked() if name.startswith("lib/")}
    assert names == library | {f"prunelab/shipped/{name}" for name in tracked() if name.startswith(IN_SHIPPED)}
    for line in ("License-Expression: Apache-2.0", "License-File: LICENSE", "License-File: LICENSES.md"):
        assert f"\n{line}\n" in about


@pytest.mark.slow
def test_installed_library_plans_and_writes_nothing_into_itself(wheel, tmp_path):
    site, home = tmp_path / "site", tmp_path / "home"
    home.mkdir()
    with zipfile.ZipFile(wheel) as file:
        file.extractall(site)
    before = set(site.rglob("*"))
    environment = {name: value for name, value in os.environ.items() if name != "PRUNELAB_DATA"}
    environment |= {"PYTHONPATH": str(site), "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"USERPROFILE": str(home), "CUDA_VISIBLE_DEVICES": ""}

    code = """
from prunelab import batch, claims, cli, paths, records
from prunelab.recipes import runner

def not_measured(*about):
    raise FileNotFoundError

runner.forecast = not_measured
assert not paths.IS_CLONE and records.load("01_rigl") and claims.load()
print(paths.DATA, paths.FIGURES, records.commit(), *batch.stems())
plan = ["01_rigl", "--profile", "smoke"]
print(*map(cli.main, (["plan", *plan], ["report"], ["gallery"], ["run", *plan, "--ship"])))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=home, env=environment, check=True)
    stems = " ".join(sorted(path.stem for path in paths.NOTEBOOKS.glob("[0-9]*.ipynb")))
    head, columns, planned, *_, codes = done.stdout.splitlines()
    assert head == f"{home / 'prunelab'} {home / 'prunelab' / 'figures'} unknown {stems}"
    assert columns.split()[:3] == ["notebook", "profile", "runs"] and planned.split()[:2] == ["01_rigl", "smoke"]
    assert int(planned.split()[-3]) > 0  # on record
    assert codes == "0 2 2 2" and done.stderr.count("prunelab is installed here: use a clone") == 3
    assert set(site.rglob("*")) == before


# Of Citation File Format 1.2.0, what this file uses; `cffconvert --validate` checks all of it.
WORK = {"authors", "title", "type"}
KEYS = WORK | {"cff-version", "message", "version", "license", "repository-code", "references"}
KEYS_OF_REFERENCES = WORK | {"year", "collection-title", "notes"}
TYPES_OF_REFERENCES = {"article", "conference-paper", "generic", "unpublished"}


def test_citation_is_valid_and_names_a_work_for_each_notebook_that_re_runs_one():
    citation = yaml.safe_load((paths.ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", *WORK} <= citation.keys() <= KEYS
    assert (citation["cff-version"], citation["type"]) == ("1.2.0", "software")
    assert (citation["version"], citation["license"]) == (prunelab.__version__, PROJECT["license"])
    assert len(citation["references"]) == len(recipes.RECIPES)
    for reference in citation["references"]:
        assert reference.keys() >= WORK and reference.keys() <= KEYS_OF_REFERENCES
        assert reference["type"] in TYPES_OF_REFERENCES and isinstance(reference["year"], int)
    for work in (citation, *citation["references"]):
        assert work["authors"] and all(
            person.keys() == {"name"} or "family-names" in person.keys() <= {"family-names", "given-names"}
            for person in work["authors"]
        )


def test_changelog_begins_with_this_version():
    text = (paths.ROOT / "CHANGELOG.md").read_text()
    (first, when), *others = re.findall(r"^## \[(.+?)\] - (.+)$", text, re.MULTILINE)
    assert first == prunelab.__version__
    for _, day in others:
        date.fromisoformat(day)
    if when != "unreleased":
        date.fromisoformat(when)
    kinds = set(re.findall(r"^### (.+)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_addresses_of_the_project_lie_in_its_repository():
    assert all(address.startswith(PROJECT["urls"]["Repository"]) for address in PROJECT["urls"].values())


def licence(name: str) -> str:
    """A package's licence in the words of its own metadata."""
    about = metadata.metadata(name)
    classifiers = [each.rpartition(" :: ")[2] for each in about.get_all("Classifier", []) if "License ::" in each]
    return about["License-Expression"] or ", ".join(classifiers) or about["License"].splitlines()[0]


def test_licences_of_all_direct_dependencies_are_listed():
    extras = PROJECT["optional-dependencies"]
    needs = {"to run": PROJECT["dependencies"], **extras, "to build": PYPROJECT["build-system"]["requires"]}
    expected = [
        (need.name, str(need.specifier), purpose)
        for purpose, wanted in needs.items()
        for need in map(Requirement, wanted)
        if need.name != PROJECT["name"]
    ]
    text = (paths.ROOT / "LICENSES.md").read_text()
    rows = [
        tuple(cell.strip(" `") for cell in line.split("|")[1:-1]) for line in text.splitlines() if line[:3] == "| `"
    ]
    assert [row[:3] for row in rows] == expected
    pins = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (paths.ROOT / "requirements.lock").read_text(), re.MULTILINE))
    for name, _, _, said in rows:
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if installed.partition("+")[0] == pins.get(name):  # other versions may say it in other words
            assert said == licence(name), name
