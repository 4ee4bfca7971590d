"""How well sparse networks transfer: the runs of `04_sparse_transfer`."""

from prunelab.recipes.recipe import Recipe
from prunelab.recipes.transfer import plan, setup

TRANSFER = Recipe(
    name="transfer",
    notebook="04_sparse_transfer",
    options=plan.TransferOptions,
    seeds={name: profile.seeds for name, profile in plan.PROFILES.items()},
    experiments_of=plan.experiments,
    check=setup.check,
    outline=setup.outline,
    setup=setup.setup,
)
