"""Recipes: the only rooms that know methods, models and training together, one a notebook.

A recipe module has `NOTEBOOK`, `PROFILES`, `OPTIONS` (each option's default), `plan(profile, seeds=None)`, which lists
runs, `execute(run, device=..., parents=..., checkpoint=..., report=...)`, which trains one from its parents' states and
returns its result, and `forecast(run)`, the `forecast.Workload` that it is for a machine.
"""

from types import ModuleType

from prunelab.recipes import rethinking, rigl

RECIPES: dict[str, ModuleType] = {"rigl": rigl, "rethinking": rethinking}


def get(name: str) -> ModuleType:
    """The recipe called `name`.

    Raises:
        ValueError: There is none.
    """
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; there are {', '.join(RECIPES)}")
    return RECIPES[name]


def for_notebook(stem: str) -> ModuleType:
    """The recipe behind a notebook.

    Raises:
        ValueError: No recipe belongs to that notebook.
    """
    by_notebook = {recipe.NOTEBOOK: recipe for recipe in RECIPES.values()}
    if stem not in by_notebook:
        raise ValueError(f"unknown notebook {stem!r}; there are {', '.join(by_notebook)}")
    return by_notebook[stem]
