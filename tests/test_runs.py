"""Runs are values: ids are frozen here, so that old records stay findable."""

import math
from dataclasses import dataclass

import pytest
import torch

from prunelab.runs import MAX_SEED, Options, Run, make_run, option


@dataclass(frozen=True, kw_only=True)
class Some(Options):
    method: str = option("", "rigl")
    density: float = option("", 0.1)
    width: float = option("", 1.0)
    n_epochs: int = option("", 100)
    augment: bool = option("", True)
    image_size: int | None = option("", None)


@dataclass(frozen=True, kw_only=True)
class More(Some):
    new_option: int = option("", 3)


def test_ids_are_what_they_were():
    assert Run("rigl", {"density": 0.05}, seed=1).id == "7a2239bca285a069"
    assert Run("rigl", {}, seed=0, parents=(Run("rigl", {"density": 0.05}, seed=1),)).id == "a580ca76cc50fbe4"


def test_several_parents_are_a_list_in_their_order():
    first, second = (Run("rigl", {}, seed=seed) for seed in (0, 1))
    child, turned = (Run("rigl", {"path": "line"}, 0, parents) for parents in ((first, second), (second, first)))
    assert child.parent_ids == [first.id, second.id]
    assert child.canonical() == (
        f'{{"options":{{"path":"line"}},"parent":["{first.id}","{second.id}"],"recipe":"rigl","seed":0}}'
    )
    assert child.id == "24e52214f0e413c0" and turned.id != child.id and turned != child


def test_one_parent_is_an_id_and_none_is_none():
    parent = Run("rigl", {"density": 0.05}, seed=1)
    child = Run("rigl", {}, seed=0, parents=(parent,))
    assert (parent.parent_ids, child.parent_ids) == (None, "7a2239bca285a069")
    assert child.canonical() == '{"options":{},"parent":"7a2239bca285a069","recipe":"rigl","seed":0}'
    assert len({child.id, Run("rigl", {}, 0, (parent, parent)).id, Run("rigl", {}, 0).id}) == 3


def test_options_of_an_ancestor_change_the_id():
    chains = [Run("rigl", {}, 0, (Run("rigl", {}, 0, (Run("rigl", {"density": d}, 0),)),)) for d in (0.5, 0.2)]
    assert chains[0].id != chains[1].id


def test_canonical_text_is_sorted_and_complete():
    run = Run("rigl", {"width": 2.0, "density": 0.05}, seed=1)
    assert run.canonical() == '{"options":{"density":0.05,"width":2.0},"parent":null,"recipe":"rigl","seed":1}'


def test_defaults_are_left_out_so_a_new_option_keeps_old_ids():
    old = make_run("rigl", Some, seed=0, density=0.05, n_epochs=100)
    new = make_run("rigl", More, seed=0, density=0.05)
    assert old.id == new.id
    assert dict(old.options) == {"density": 0.05}


def test_everything_that_determines_a_result_changes_the_id():
    parent = make_run("rigl", Some, seed=0)
    runs = [
        parent,
        make_run("rigl", Some, seed=1),
        make_run("rigl", Some, seed=0, density=0.2),
        make_run("rigl", Some, seed=0, parents=(parent,)),
        make_run("dmcp", Some, seed=0),
    ]
    assert len({run.id for run in runs}) == len(runs)


def test_order_of_options_and_whole_numbers_do_not_matter():
    first = make_run("rigl", Some, seed=0, density=0.2, width=2)
    second = make_run("rigl", Some, seed=0, width=2.0, density=0.2)
    assert first == second and hash(first) == hash(second) and first.id == second.id


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"sparsity": 0.9}, "rigl has no option 'sparsity'; it has method, density"),
        ({"density": "0.1"}, "option density is float, got '0.1'"),
        ({"n_epochs": 1.5}, "option n_epochs is int, got 1.5"),
        ({"augment": 1}, "option augment is bool, got 1"),
        ({"n_epochs": True}, "option n_epochs is int, got True"),
        ({"density": 10**400}, "option density must be a finite number of 64 bits, got 1000"),
        ({"density": math.nan}, "option density must be a finite number of 64 bits, got nan"),
    ],
)
def test_options_that_are_not_there_or_of_another_type_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_run("rigl", Some, seed=0, **changes)


def test_how_many_gpus_a_run_may_have_is_no_part_of_what_it_is():
    one, several = make_run("rigl", Some, seed=0), make_run("rigl", Some, seed=0, n_gpus=8)
    assert (one.n_gpus, several.n_gpus) == (1, 8)
    assert one == several and one.id == several.id and one.canonical() == several.canonical()
    for n_gpus in (0, -1, 1.0, True, "8"):
        with pytest.raises(ValueError, match=f"n_gpus must be a whole number from 1 on, got {n_gpus!r}"):
            make_run("rigl", Some, seed=0, n_gpus=n_gpus)


@pytest.mark.parametrize("seed", [-1, 0.5, "0", True, 2**63])
def test_seed_must_be_a_whole_number_that_generators_take(seed):
    torch.manual_seed(make_run("rigl", Some, seed=MAX_SEED).seed)
    with pytest.raises(ValueError, match=f"seed must be a whole number from 0 to {MAX_SEED}, got"):
        make_run("rigl", Some, seed=seed)
