"""Rethinking the value of pruning: the runs of `03_rethinking`."""

from prunelab.recipes.recipe import Recipe
from prunelab.recipes.rethinking import plan, setup

RETHINKING = Recipe(
    name="rethinking",
    notebook="03_rethinking",
    options=plan.RethinkingOptions,
    seeds={name: profile.seeds for name, profile in plan.PROFILES.items()},
    experiments_of=plan.experiments,
    check=setup.check,
    outline=setup.outline,
    setup=setup.setup,
)
