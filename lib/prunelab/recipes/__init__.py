"""Recipes: the only rooms that know methods, models and training together, one a paper.

Each has a folder: `plan` says what is run, one block a profile, and `setup` what a run is made of. `runner` executes
any of them; `masking`, `structures` and `prunings` are what they share. A study has a plan alone, of others' runs.
"""

from prunelab.recipes.afr import AFR
from prunelab.recipes.dmcp import DMCP
from prunelab.recipes.frontier import FRONTIER
from prunelab.recipes.recipe import Recipe, Study
from prunelab.recipes.rethinking import RETHINKING
from prunelab.recipes.rigl import RIGL
from prunelab.recipes.transfer import TRANSFER
from prunelab.runs import PROFILES, check_choice

__all__ = ["PROFILES", "RECIPES", "STUDIES", "Recipe", "Study", "for_notebook", "get"]

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (RIGL, DMCP, RETHINKING, TRANSFER, AFR)}
STUDIES: dict[str, Study] = RECIPES | {FRONTIER.name: FRONTIER}  # one a notebook


def get(name: str) -> Recipe:
    """Returns the recipe of that name.

    Raises:
        ValueError: There is none.
    """
    check_choice("recipe", name, RECIPES)
    return RECIPES[name]


def for_notebook(stem: str) -> Study:
    """Returns the study behind a notebook.

    Raises:
        ValueError: No study belongs to that notebook.
    """
    by_notebook = {study.notebook: study for study in STUDIES.values()}
    check_choice("notebook", stem, by_notebook)
    return by_notebook[stem]
