"""Who may import whom: the floors of the house, read from the imports themselves."""

import ast
import subprocess
import sys

import pytest

from prunelab import paths

LIBRARY = paths.ROOT / "lib" / "prunelab"
FILES = sorted(LIBRARY.rglob("*.py"))
NUMBERS_ONLY = ("masks", "density", "schedules")
DRAWERS = ("claims", "figures", "records", "papers", "files", "paths", "runs")


def module_name(path):
    parts = path.relative_to(LIBRARY.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path, *, top_level=False):
    """Full names of what a file imports; `from a import b` counts as a and as a.b."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in tree.body if top_level else ast.walk(tree):
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


# Each room and the rooms above it, which it must not know.
ABOVE = {
    "prunelab.methods": (
        "channels",
        "training",
        "recipes",
        "engine",
        "workers",
        "data",
        "models",
        "cost",
        "landscape",
        "units",
    ),
    "prunelab.channels": ("training", "recipes", "engine", "workers", "data", "cost", "latency", "export"),
    "prunelab.models": ("methods", "channels", "training", "recipes", "engine", "workers", "data"),
    "prunelab.data": ("methods", "models", "training", "recipes", "engine", "workers", "masks"),
    "prunelab.precision": ("methods", "models", "steps", "training", "recipes", "engine", "workers", "data", "masks"),
    "prunelab.latency": ("methods", "channels", "training", "recipes", "engine", "workers", "data", "records"),
    "prunelab.export": ("methods", "channels", "training", "recipes", "engine", "workers", "data", "records"),
    "prunelab.steps": (
        "channels",
        "training",
        "models",
        "recipes",
        "engine",
        "workers",
        "records",
        "landscape",
        "units",
        "cost",
    ),
    "prunelab.training": ("channels", "recipes", "engine", "workers", "records", "models", "landscape", "units"),
    "prunelab.cost": ("methods", "training", "recipes", "engine", "workers", "data"),
    "prunelab.landscape": ("methods", "models", "training", "recipes", "engine", "workers", "records", "cost"),
    "prunelab.units": ("methods", "models", "training", "recipes", "engine", "workers", "records", "data", "cost"),
    "prunelab.recipes": ("engine", "workers", "records", "figures", "claims"),
    "prunelab.recipes.rigl_plan": ("recipes.rigl", "models", "training", "data", "cost", "landscape", "units"),
    "prunelab.recipes.rethinking_plan": ("recipes.rethinking", "models", "training", "data", "cost", "channels"),
    "prunelab.workers": ("engine", "methods", "models", "training", "data", "cost"),
    "prunelab.engine": ("methods", "models", "training", "data", "cost"),
}


def test_every_room_of_the_table_is_there():
    rooms = {module_name(path) for path in FILES}
    assert rooms >= {*ABOVE, *(f"prunelab.{other}" for above in ABOVE.values() for other in above)}


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_nobody_imports_upward(path):
    name = module_name(path)
    for room, forbidden in ABOVE.items():
        if name == room or name.startswith(room + "."):
            for found in imports(path):
                assert not any((found + ".").startswith(f"prunelab.{other}.") for other in forbidden), found


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


def test_nothing_unpickles_and_nothing_prints_but_notebooks_and_the_command_line():
    for path in FILES:
        text = path.read_text()
        assert "weights_only=False" not in text and "pickle.load" not in text, path
        calls = [node.func for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
        prints = any(isinstance(function, ast.Name) and function.id == "print" for function in calls)
        assert not prints or path.stem in ("cli", "notebook", "ordinary"), path
