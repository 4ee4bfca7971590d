"""RigL and its rivals, and lottery tickets: the runs of `01_rigl`."""

from prunelab.recipes.recipe import Recipe
from prunelab.recipes.rigl import plan, setup

RIGL = Recipe(
    name="rigl",
    notebook="01_rigl",
    options=plan.RigLOptions,
    seeds={name: profile.seeds for name, profile in plan.PROFILES.items()},
    experiments_of=plan.experiments,
    check=setup.check,
    outline=setup.outline,
    setup=setup.setup,
)
