"""All recipes alike: their plans, and what every run of any of them must do."""

import hashlib

import pytest

from prunelab import engine, recipes, records
from prunelab.runs import Run

# SHA-256 of the ids of each plan, in its order: what is recorded stays findable. Nothing of `paper` is recorded yet.
PLANS = {
    ("rigl", "smoke"): (135, "164ede7b6c4c6083"),
    ("rigl", "small"): (577, "3dab8c8873f2c4ec"),
    ("rigl", "full"): (618, "a10280309d0bf02a"),
    ("rethinking", "smoke"): (73, "fa3bd41273a37e0e"),
    ("rethinking", "small"): (414, "bf3e9c55e0ae9b08"),
    ("rethinking", "full"): (504, "6417a7de9347a5e8"),
}


@pytest.mark.parametrize("recipe, profile", PLANS)
def test_ids_of_plans_stay_as_they_were(recipe, profile):
    ids = [run.id for run in recipes.get(recipe).plan(profile)]
    assert (len(ids), hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]) == PLANS[recipe, profile]


@pytest.mark.parametrize("recipe", recipes.RECIPES)
def test_id_of_every_shipped_record_follows_from_its_options(recipe):
    defaults = recipes.get(recipe).OPTIONS
    shipped = {record["id"]: record for record in records.load(recipes.get(recipe).NOTEBOOK)}

    def run_of(record):
        ids = record["parent"] if isinstance(record["parent"], list) else [record["parent"]] if record["parent"] else []
        changed = {name: value for name, value in record["options"].items() if value != defaults[name]}
        return Run(record["recipe"], changed, record["seed"], tuple(run_of(shipped[parent]) for parent in ids))

    assert len(shipped) > 400
    assert all(run_of(record).id == run_id for run_id, record in shipped.items())


@pytest.mark.parametrize("recipe", recipes.RECIPES)
def test_every_parent_of_a_plan_comes_before_its_children(recipe):
    seen = set()
    for run in engine.with_parents(recipes.get(recipe).plan("small")):
        assert all(parent.id in seen for parent in run.parents)
        seen.add(run.id)
