"""Differentiable Markov Channel Pruning: the runs of `02_dmcp`."""

from prunelab.recipes.dmcp import plan, setup
from prunelab.recipes.recipe import Recipe

DMCP = Recipe(
    name="dmcp",
    notebook="02_dmcp",
    options=plan.DmcpOptions,
    seeds={name: profile.seeds for name, profile in plan.PROFILES.items()},
    experiments_of=plan.experiments,
    check=setup.check,
    outline=setup.outline,
    setup=setup.setup,
)
