"""Adaptive Feature Retention: the runs of `05_afr`."""

from prunelab.recipes.afr import plan, setup
from prunelab.recipes.recipe import Recipe

AFR = Recipe(
    name="afr",
    notebook="05_afr",
    options=plan.AfrOptions,
    seeds={name: profile.seeds for name, profile in plan.PROFILES.items()},
    experiments_of=plan.experiments,
    check=setup.check,
    outline=setup.outline,
    setup=setup.setup,
)
