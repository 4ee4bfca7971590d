"""All methods on one front: runs of the other recipes on one network and data, for `06_frontier`."""

from prunelab import frontier
from prunelab.recipes.frontier import plan
from prunelab.recipes.recipe import Study

FRONTIER = Study(
    name="frontier",
    notebook="06_frontier",
    seeds={name: profile.seeds for name, profile in plan.PROFILES.items()},
    experiments_of=plan.experiments,
    extended=frontier.with_best,
)
