"""What stands twice is equal, what readers are told to type exists, a bare machine hears what it lacks."""

import itertools
import os
import re
import shlex
import subprocess
import sys
import tomllib

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement

import prunelab
from prunelab import cli, paths

PYPROJECT = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())
REPOSITORY = PYPROJECT["project"]["urls"]["Repository"]
EXTRAS = PYPROJECT["project"]["optional-dependencies"]
for own_command in ("browser", "cluster"):  # installs it: `make browser`
    del EXTRAS[own_command]
REQUIREMENTS = [
    need
    for need in map(Requirement, itertools.chain(PYPROJECT["project"]["dependencies"], *EXTRAS.values()))
    if need.name != PYPROJECT["project"]["name"]  # an extra that takes another one along
]
CONDA_NAMES = {"torch": "pytorch"}
BRANCHES = [f"v{prunelab.__version__}", "main"]
NOTEBOOKS = sorted(paths.NOTEBOOKS.glob("*.ipynb"))


def read(name: str) -> str:
    return (paths.ROOT / name).read_text()


def test_developers_have_every_extra():
    others = EXTRAS.keys() - {"dev"}
    assert {f"{PYPROJECT['project']['name']}[{extra}]" for extra in others} <= set(EXTRAS["dev"])


def test_conda_environment_asks_for_the_same_packages():
    environment = yaml.safe_load(read("environment.yml"))
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    python = f"python{PYPROJECT['project']['requires-python']}"
    expected = {f"{CONDA_NAMES.get(need.name, need.name)}{need.specifier}" for need in REQUIREMENTS}
    *from_conda, from_pypi = environment["dependencies"]
    asked = {f"{need.name}{need.specifier}" for need in map(Requirement, from_conda + from_pypi["pip"])}
    assert asked == expected | {python, "pip"}


def test_lock_pins_every_requirement_by_hash_and_names_no_index():
    pins = {}
    for line in read("requirements.lock").replace(" \\\n    ", " ").splitlines():
        pinned, *hashes = line.split(" --hash=sha256:")
        if not line.startswith("#"):
            pin = re.fullmatch(r"([a-z0-9-]+)==([\w.!]+)( ; .+)?", pinned)
            assert pin and hashes and all(re.fullmatch("[0-9a-f]{64}", each) for each in hashes), line
            pins.setdefault(pin[1], []).append(pin[2])
        assert not re.search(r"://|--|\.(org|com|io|net)\b", pinned), line
    for need in REQUIREMENTS:
        assert all(need.specifier.contains(version) for version in pins[need.name]), need
    assert "2.13.0" not in pins["torch"]


def test_repository_address_and_version_are_one():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["repository-code"] == REPOSITORY
    assert citation["version"] == prunelab.__version__


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_links_to_itself_in_this_repository(path):
    cells = nbformat.read(path, as_version=4).cells
    slug = REPOSITORY.removeprefix("https://github.com/")
    badge = rf"https://colab\.research\.google\.com/github/{slug}/blob/([\w.]+)/notebooks/{path.name}\b"
    found = re.findall(badge, cells[0].source)
    assert set(found) <= set(BRANCHES) and found
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    addresses = set(re.findall(r"https://github\.com/[\w.-]+/[\w-]+", code))
    assert addresses == {REPOSITORY}


def first_cell(path) -> str:
    """Returns what finds the library in the first cell of a notebook; what checks its own parameters comes after it."""
    (source,) = (cell.source for cell in nbformat.read(path, as_version=4).cells if "check_parameters(" in cell.source)
    return source.partition("\nfrom prunelab.notebook import")[0]


def test_first_cell_is_the_same_in_all_notebooks_and_fetches_this_release():
    (source,) = set(map(first_cell, NOTEBOOKS))
    assert f'("v{prunelab.__version__}", "main")' in source and REPOSITORY in source


@pytest.fixture
def origin(tmp_path):
    """A bare repository of a library with nothing in it, whose branch main says so and whose release does not."""

    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main")
        subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, cwd=tmp_path / "work")

    (tmp_path / "work" / "lib" / "prunelab").mkdir(parents=True)
    module = tmp_path / "work" / "lib" / "prunelab" / "__init__.py"
    git("init")
    for where in ("of the release", "of main"):
        module.write_text(f"print('library {where}')")
        git("add", ".")
        git("commit", "-m", where)
        if where == "of the release":
            git("tag", f"v{prunelab.__version__}")
    git("clone", "--bare", ".", "../origin.git")
    return tmp_path / "origin.git"


def open_notebook(folder, address, path=NOTEBOOKS[0]):
    """Runs the first cell of a notebook in a folder, as where the library is not installed, and imports it."""
    code = first_cell(path).replace(REPOSITORY, f"file://{address}") + "\nimport prunelab"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-S", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)


def test_first_cell_fetches_the_release_once_and_finds_it_again(tmp_path, origin):
    first, *again = (open_notebook(folder, origin) for folder in (tmp_path, tmp_path, tmp_path / "prunelab" / "lib"))
    assert first.stdout == f"v{prunelab.__version__}: fetched\nlibrary of the release\n"
    assert [result.stdout for result in again] == ["library of the release\n"] * 2


def test_first_cell_takes_main_where_there_is_no_release_and_says_why_in_a_line(tmp_path, origin):
    tag = f"v{prunelab.__version__}"
    subprocess.run(["git", "-C", origin, "tag", "--delete", tag], check=True, capture_output=True)
    why, *more = open_notebook(tmp_path, origin).stdout.splitlines()
    assert why.startswith(f"{tag}: ") and f"{tag} not found" in why
    assert more == ["main: fetched", "library of main"]


@pytest.mark.parametrize("inside", ["notes.txt", "src"])
def test_first_cell_fetches_beside_a_folder_that_is_only_called_like_the_library(tmp_path, origin, inside):
    (tmp_path / "prunelab" / inside).mkdir(parents=True)
    for _ in range(2):
        assert open_notebook(tmp_path, origin).stdout.endswith("library of the release\n")
    assert (tmp_path / "prunelab-repository" / "lib").is_dir() and not (tmp_path / "prunelab" / "lib").exists()


def test_first_cell_that_can_fetch_nothing_says_why_and_what_to_do(tmp_path):
    result = open_notebook(tmp_path, tmp_path / "nowhere.git")
    assert result.returncode == 1 and [line.split(": ")[0] for line in result.stdout.splitlines()] == BRANCHES
    assert result.stdout.count("nowhere.git' does not appear to be a git repository") == 2
    last = result.stderr.splitlines()[-1]
    assert last.startswith("RuntimeError: no copy of file://") and last.endswith("open the notebook inside of it")


def commands() -> list[str]:
    blocks = re.findall(r"^```(?:bash|sh|console)\n(.*?)^```", read("README.md"), re.DOTALL | re.MULTILINE)
    lines = [line.split("#")[0].strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [line for line in lines if re.match(r"(make|prunelab)\b", line)]


def test_readme_commands_exist():
    targets = set(re.findall(r"^([a-z]+):", read("Makefile"), flags=re.MULTILINE))
    assert {"make figures", "make test"} <= set(commands())
    for command in commands():
        program, *arguments = shlex.split(command)
        if program == "make":
            assert set(arguments) <= targets, command
        else:
            cli._parser().parse_args(arguments)  # exits, and so fails, where an option does not exist


KEPT = """
lib/prunelab/data/x.py data/README.md data/paper/x.csv data/records/01_rigl.jsonl notebooks/01_rigl.ipynb
figures/01_rigl/small/x.png
"""
LEFT_OUT = """
.venv/bin/python lib/prunelab.egg-info/PKG-INFO data/cifar10.tar.xz data/cifar10/train/a/1.png data/cache/x.pt
data/runs/1/lock figures/01_rigl/small/01_rigl.ipynb figures/01_rigl/smoke/x.png
notebooks/.ipynb_checkpoints/x.ipynb
"""


def test_git_keeps_the_library_and_leaves_out_what_machines_make(tmp_path):
    (tmp_path / ".gitignore").write_text(read(".gitignore"))
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    ignored = subprocess.run(
        ["git", "-C", tmp_path, "check-ignore", *KEPT.split(), *LEFT_OUT.split()],
        capture_output=True,
        text=True,
    )
    assert ignored.stdout.split() == LEFT_OUT.split()


def make(*arguments: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "--no-print-directory", "-C", paths.ROOT, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment | {"LC_ALL": "C"})


def test_old_python_is_told_which_one_is_needed():
    code = "import sys; sys.version_info, sys.version = (3, 10, 9), '3.10.9 (main)'; import prunelab.records"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=paths.ROOT / "lib")
    assert result.returncode == 1
    assert "\nImportError: prunelab needs Python 3.11 or newer; this is 3.10.9." in result.stderr


@pytest.mark.parametrize(
    "lack, said",
    [
        ("sys.version_info = (3, 10, 9)", "prunelab needs Python 3.11 or newer"),
        ("sys.modules['ensurepip'] = None", "sudo apt install python{}.{}-venv".format(*sys.version_info)),
    ],
)
def test_make_says_what_a_bare_machine_lacks(tmp_path, lack, said):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "import sys; {lack}; exec(sys.argv[1])" "$2"\n')
    python.chmod(0o755)
    result = make(f"VENV={tmp_path}/venv", f"PYTHON={python}", "test")
    assert result.returncode == 2 and said in result.stderr
    assert not (tmp_path / "venv").exists()


BY_UV = ["uv pip install --require-hashes --compile-bytecode -r requirements.lock"]
BY_PIP = [
    "python -m pip install --require-hashes -r requirements.lock",
    "python -m pip install --no-build-isolation --no-deps -e .",
]


@pytest.mark.parametrize(
    "uv, installed_by",
    [("exit 0", [*BY_UV, "uv pip install --no-build-isolation --no-deps -e ."]), ("exit 1", BY_UV + BY_PIP)],
)
def test_make_installs_the_lock_by_its_own_uv_or_else_by_pip(tmp_path, uv, installed_by):
    (tmp_path / "bin").mkdir()
    reads = f'case "$*" in */dev/stdin) cat > {tmp_path}/uv.txt;; esac; exit 0'
    for name, ending in (("uv", uv), ("python", reads)):
        program = tmp_path / "bin" / name
        program.write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/log\n{ending}\n')
        program.chmod(0o755)
    assert make(f"VENV={tmp_path}", f"{tmp_path}/.installed").returncode == 0
    said = re.sub(r" (--python \S+|--disable-pip-version-check)", "", (tmp_path / "log").read_text())
    first, *others = [line for line in said.splitlines() if "install" in line]
    assert first == "python -m pip install --quiet --require-hashes -r /dev/stdin" and others == installed_by
    pinned, *hashes = (tmp_path / "uv.txt").read_text().splitlines()
    assert re.fullmatch(r"uv==[\d.]+ \\", pinned) and hashes and all("--hash=sha256:" in line for line in hashes)
    assert (tmp_path / ".installed").exists()
    assert (tmp_path / "etc" / "jupyter" / "jupyter_nbconvert_config.json").exists()


def test_second_make_installs_nothing(tmp_path):
    assert "pip install" in make("-n", f"VENV={tmp_path}", "figures").stdout
    (tmp_path / ".installed").touch()
    planned = make("-n", f"VENV={tmp_path}", "figures").stdout.splitlines()
    assert planned == [f"{tmp_path}/bin/prunelab figures{options}" for options in (" --profile smoke --fresh", "")]


def test_continuous_integration_runs_the_test_command():
    script = paths.ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert re.search(r"^exec make test </dev/null$", script.read_text(), flags=re.MULTILINE)
