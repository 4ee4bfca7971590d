"""Who may import whom: the floors of the house, read from the imports themselves."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter

import pytest

from prunelab import paths

LIBRARY = paths.ROOT / "lib" / "prunelab"
FILES = sorted(LIBRARY.rglob("*.py"))
NUMBERS_ONLY = ("masks", "density", "schedules", "fisher")
DRAWERS = ("claims", "verdicts", "figures", "records", "papers", "files", "paths", "runs")


def module_name(path):
    parts = path.relative_to(LIBRARY.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path):
    """Full names of what a file imports; `from a import b` counts as a and as a.b."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own_imports(name):
    """Second parts of the names that a module of the library imports from the library."""
    (path,) = [path for path in FILES if module_name(path) == f"prunelab.{name}"]
    return {found.split(".")[1] for found in imports(path) if found.startswith("prunelab.")}


@pytest.mark.parametrize("name", NUMBERS_ONLY)
def test_pure_modules_stand_on_nothing_but_each_other(name):
    assert own_imports(name) <= set(NUMBERS_ONLY)


# From the ground up: a room, a file or a folder, imports from its own folder and from lower floors only.
FLOORS = (
    {"paths", "runs", "shadows", "schedules", "density", "turns", "precision", "perceptron", "diagrams"}
    | {"moderated", "progress", "interrupts", "alt_text", "files", "fisher", "deepsparse_script"},
    {"masks", "models", "transfer", "latency", "ranks", "frontier"},
    {"checkpoints", "records", "claims", "papers", "methods", "scores", "data", "cost", "export", "batch"},
    {"channels", "verdicts", "steps", "views", "features", "deepsparse"},
    {"training", "landscape", "figures", "dino", "neighbours", "detection", "sparse_inference"},
    {"forecast", "probes", "shrinking"},
    {"recipes"},
    {"stores"},
    {"workers"},
    {"ray_workers"},
    {"engine", "notebook", "pages"},
    {"bench", "gallery"},
    {"commands"},
    {"cli"},
)
# In recipes: what a paper is made of, what several share, and how any is executed; the papers know each other not.
RECIPES = (
    {"recipe"},
    {"common", "rigl.plan", "dmcp.plan", "rethinking.plan", "afr.plan"},
    {"structures", "masking", "runner", "released", "transfer.plan", "frontier.plan"},
    {"prunings", "dmcp.supernets", "afr.looks", "transfer.looks"},
    {"rigl.setup", "dmcp.setup", "rethinking.setup", "transfer.setup", "afr.setup"},
    {"rigl", "dmcp", "rethinking", "transfer", "afr", "frontier"},
)


def floor_of(room, floors):
    """The floor of the longest prefix of a name that has one; None for a package that only gathers its files."""
    parts = room.split(".")
    prefixes = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((i for prefix in prefixes for i, own in enumerate(floors) if prefix in own), None)


def test_every_room_has_a_floor():
    rooms = {module_name(path).partition("prunelab.")[2] for path in FILES} - {""}
    assert {room for room in rooms if floor_of(room, FLOORS) is None} == set()
    assert set().union(*FLOORS) <= {room.split(".")[0] for room in rooms}
    assert {f"recipes.{room}" for own in RECIPES for room in own} == {r for r in rooms if r.startswith("recipes.")}


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_nobody_imports_upward(path):
    room = module_name(path).partition("prunelab.")[2]
    for found in imports(path):
        other = found.partition("prunelab.")[2]
        if other not in ("", "__version__", room) and room:
            is_near = other.split(".")[0] == room.split(".")[0]
            assert is_near or floor_of(other, FLOORS) < floor_of(room, FLOORS), f"{room} imports {other}"
            if room.startswith("recipes.") and other.startswith("recipes."):
                own, its = (floor_of(name.removeprefix("recipes."), RECIPES) for name in (room, other))
                assert its is None or its < own, f"{room} imports {other}"


def test_imports_have_no_circle():
    names = {module_name(path): path for path in FILES}
    waits = {name: (imports(path) & names.keys()) - {name, "prunelab"} for name, path in names.items()}
    for name in waits:  # a package that is imported for one of its files does not wait for itself
        waits[name] -= {package for package in waits[name] if name.startswith(package + ".")}
    tuple(TopologicalSorter(waits).static_order())


@pytest.mark.parametrize("name", ["steps", "training"])
def test_training_knows_no_method_but_its_hooks(name):
    found = {name for name in imports(LIBRARY / f"{name}.py") if name.startswith("prunelab.methods")}
    assert found == {"prunelab.methods.hooks", "prunelab.methods.hooks.Hooks"}


def loads(names, module):
    """Whether importing modules of the library, in a fresh process, imports another one."""
    code = (
        f"import sys; sys.path.insert(0, {str(LIBRARY.parent)!r}); import {', '.join(f'prunelab.{n}' for n in names)}"
    )
    found = subprocess.run([sys.executable, "-c", f"{code}; sys.exit(7 if {module!r} in sys.modules else 0)"])
    assert found.returncode in (0, 7)
    return found.returncode == 7


@pytest.mark.parametrize("name", DRAWERS)
def test_records_claims_and_figures_never_load_torch(name):
    assert not loads([name], "torch")


def test_what_trains_never_loads_what_executes_notebooks():
    assert loads(["batch"], "nbformat") and not loads(["engine", "workers", "bench"], "nbformat")


def test_deepsparse_is_imported_by_nothing_but_the_script_for_its_own_environment():
    assert [path.stem for path in FILES if "deepsparse" in imports(path)] == ["deepsparse_script"]
    assert "deepsparse_script" not in {name.split(".")[-1] for path in FILES for name in imports(path)}


def test_nothing_unpickles_and_nothing_prints_but_notebooks_and_the_command_line():
    for path in FILES:
        text = path.read_text()
        assert "weights_only=False" not in text and "pickle.load" not in text, path
        calls = [node.func for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
        prints = any(isinstance(function, ast.Name) and function.id == "print" for function in calls)
        assert not prints or path.stem in ("cli", "commands", "notebook", "ordinary", "deepsparse_script"), path
