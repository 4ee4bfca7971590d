"""How tasks are judged and which are specialised: the paper's, ours, and a reader's own."""

import pytest

from prunelab.data import embedded, registry, tasks
from prunelab.data.downstream import RELEASED_AS, TASKS, is_specialised, metric_of
from prunelab.probes import METRICS

# What `--per-class-accuracy` of microsoft/robust-models-transfer allows, by its own names.
PER_CLASS = {"pets", "caltech101", "caltech256", "aircraft", "flowers"}
GENERAL = {"cifar10", "cifar100", "caltech101", "caltech256", "sun397"}


def test_there_are_twelve_tasks_that_the_registry_loads():
    assert len(TASKS) == 12 and TASKS.keys() <= {*registry.STREAMED, *registry.TORCHVISION}
    assert {task.metric for task in TASKS.values()} == METRICS.keys()


def test_tasks_are_judged_and_sorted_as_their_sources_say():
    assert {name for name in TASKS if metric_of(name) == "mean_per_class"} == PER_CLASS
    assert {name for name in TASKS if not is_specialised(name)} == GENERAL


@pytest.mark.parametrize("name, own", [("SUN", "sun397"), ("birds", "birdsnap"), ("cifar100:enlarged", "cifar100")])
def test_another_name_of_a_task_is_that_task(name, own):
    assert (metric_of(name), is_specialised(name)) == TASKS[own]


@pytest.mark.parametrize("name", ["cifar10", "tiny-imagenet-200-32px:mixed", "tiny-imagenet-200-32px", "imagenet"])
def test_images_of_all_kinds_are_general(name):
    assert (metric_of(name), is_specialised(name)) == ("top_1", False)


@pytest.mark.parametrize(
    "name",
    ["digits", "mnist10k", "omniglot-small", "my-own-birds", "eurosat", "svhn"]
    + [f"tiny-imagenet-200-32px:{task}" for task in ("insects", "dogs", "vehicles", "food")]
    + ["glyphs", "glyphs:cyrillic:40", *(f"glyphs:{family}" for family in embedded.FAMILIES)],
)
def test_images_of_one_kind_and_a_readers_own_are_specialised(name):
    assert (metric_of(name), is_specialised(name)) == ("top_1", True)


def test_every_task_of_the_archive_is_sorted():
    assert {name for name in (*tasks.TASKS, tasks.PRETRAINING) if not is_specialised(f"any:{name}")} == {
        "mixed",
        "pretraining",
    }


def test_names_of_the_released_results_are_all_known():
    # Of `raw_results/` in IST-DASLab/sparse-imagenet-transfer.
    released = {"SUN", "aircraft", "birds", "caltech101", "caltech256", "cars", "cifar10", "cifar100", "dtd"}
    released |= {"flowers", "food101", "pets"}
    assert {RELEASED_AS.get(name, name) for name in released} == TASKS.keys()
