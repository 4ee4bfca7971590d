"""What a task is like that networks are transferred to: how it is judged, and whether it is general or specialised.

Source: Iofinova et al. 2022, arXiv:2111.13445, whose tasks are those of Salman et al. 2020, arXiv:2007.08489;
`--per-class-accuracy` in microsoft/robust-models-transfer names those of mean per-class accuracy.
Differs: The authors' released results give top-1 of all tasks. Which are specialised is our reading: images of one kind
of thing, of which classes are varieties (Kornblith et al. 2019, arXiv:1805.08974: fine-grained, or textures). General
ones show things of all kinds, or scenes.
"""

from typing import NamedTuple


class Task(NamedTuple):
    """One of the paper's tasks.

    Args:
        metric: A key of `probes.METRICS`.
        is_specialised: Whether its classes are varieties of one kind of thing.
    """

    metric: str
    is_specialised: bool


# By name of `data.load`.
TASKS = {
    "aircraft": Task("mean_per_class", is_specialised=True),
    "birdsnap": Task("top_1", is_specialised=True),
    "caltech101": Task("mean_per_class", is_specialised=False),
    "caltech256": Task("mean_per_class", is_specialised=False),
    "cars": Task("top_1", is_specialised=True),
    "cifar10": Task("top_1", is_specialised=False),
    "cifar100": Task("top_1", is_specialised=False),
    "dtd": Task("top_1", is_specialised=True),
    "flowers": Task("mean_per_class", is_specialised=True),
    "food101": Task("top_1", is_specialised=True),
    "pets": Task("mean_per_class", is_specialised=True),
    "sun397": Task("top_1", is_specialised=False),
}
RELEASED_AS = {"birds": "birdsnap", "SUN": "sun397"}  # names that the authors' results have for two of them
_GENERAL = {"imagenet", "tiny-imagenet-200", "tiny-imagenet-200-32px", "mixed", "pretraining"}


def metric_of(name: str) -> str:
    """Returns what a task is judged by, a key of `probes.METRICS`; a task that is none of the paper's by top-1.

    Args:
        name: One that `data.load` knows, also of a folder of one's own, or one that the authors' results have.
    """
    task = TASKS.get(_whole(name))
    return task.metric if task else "top_1"


def is_specialised(name: str) -> bool:
    """Tells whether a task's classes are varieties of one kind of thing, as those of a folder of one's own are taken.

    Args:
        name: As for `metric_of`; of "tiny-imagenet-200-32px:insects" the last part decides.
    """
    task = TASKS.get(_whole(name))
    return task.is_specialised if task else name.rpartition(":")[2] not in _GENERAL


def _whole(name: str) -> str:
    """Returns the name in `TASKS` of what is enlarged, or named otherwise."""
    return RELEASED_AS.get(name, name.removesuffix(":enlarged"))
