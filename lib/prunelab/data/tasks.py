"""Fine-grained tasks cut from one archive of ImageNet's classes, whose folders are named by WordNet id.

What is held out is held out as a whole: `pretraining` has the classes that are in no other task, so that a network
trained on it has seen none of theirs.
"""

from itertools import compress

import torch
from torch import Tensor

from prunelab.data.dataset import Images

# WordNet id and first name of each class, as Tiny-ImageNet-200 has them.
TASKS: dict[str, dict[str, str]] = {
    "insects": {
        "n02165456": "ladybug",
        "n02190166": "fly",
        "n02206856": "bee",
        "n02226429": "grasshopper",
        "n02231487": "walking stick",
        "n02233338": "cockroach",
        "n02236044": "mantis",
        "n02268443": "dragonfly",
        "n02279972": "monarch",
        "n02281406": "sulphur butterfly",
    },
    "dogs": {
        "n02085620": "Chihuahua",
        "n02094433": "Yorkshire terrier",
        "n02099601": "golden retriever",
        "n02099712": "Labrador retriever",
        "n02106662": "German shepherd",
        "n02113799": "standard poodle",
    },
    "vehicles": {
        "n02814533": "beach wagon",
        "n02917067": "bullet train",
        "n03100240": "convertible",
        "n03393912": "freight car",
        "n03444034": "go-kart",
        "n03447447": "gondola",
        "n03599486": "jinrikisha",
        "n03662601": "lifeboat",
        "n03670208": "limousine",
        "n03796401": "moving van",
        "n03977966": "police van",
        "n04146614": "school bus",
        "n04285008": "sports car",
        "n04465501": "tractor",
        "n04487081": "trolleybus",
    },
    "food": {
        "n07579787": "plate",
        "n07583066": "guacamole",
        "n07614500": "ice cream",
        "n07615774": "ice lolly",
        "n07695742": "pretzel",
        "n07711569": "mashed potato",
        "n07715103": "cauliflower",
        "n07720875": "bell pepper",
        "n07734744": "mushroom",
        "n07747607": "orange",
        "n07749582": "lemon",
        "n07753592": "banana",
        "n07768694": "pomegranate",
        "n07871810": "meat loaf",
        "n07873807": "pizza",
        "n07875152": "potpie",
        "n07920052": "espresso",
    },
    # Every seventh, in the order of ids, of the classes that no other task has.
    "mixed": {
        "n01768244": "trilobite",
        "n01910747": "jellyfish",
        "n02002724": "black stork",
        "n02125311": "cougar",
        "n02410509": "bison",
        "n02504458": "African elephant",
        "n02788148": "bannister",
        "n02815834": "beaker",
        "n02906734": "broom",
        "n02988304": "CD player",
        "n03126707": "crane",
        "n03388043": "fountain",
        "n03637318": "lampshade",
        "n03814639": "neck brace",
        "n03937543": "pill bottle",
        "n04023962": "punching bag",
        "n04149813": "scoreboard",
        "n04311004": "steel arch bridge",
        "n04399382": "teddy",
        "n04532670": "viaduct",
        "n09193705": "alp",
    },
}
PRETRAINING = "pretraining"
NAMES = ", ".join((*TASKS, PRETRAINING))


def named_classes(task: str) -> list[str]:
    """Returns the WordNet ids that a task is defined by: those of its classes; of pretraining, those it leaves out.

    Raises:
        ValueError: An unknown task.
    """
    if task != PRETRAINING and task not in TASKS:
        raise ValueError(f"unknown task {task!r}; there are {NAMES}")
    return sorted(set().union(*TASKS.values()) if task == PRETRAINING else TASKS[task])


def cut(images: Images, task: str, *, source: str) -> Images:
    """Takes the images of a task's classes, in the order that they have; classes are numbered anew.

    Args:
        images: Of classes named by WordNet id.
        task: A key of `TASKS`, or `PRETRAINING`.
        source: What errors call the images.
    Raises:
        ValueError: An unknown task, or images that have not all the classes that it is defined by.
    """
    named = named_classes(task)
    if missing := [name for name in named if name not in images.class_names]:
        raise ValueError(
            f"{source} has no classes for the task {task!r}, which are named by WordNet id: "
            f"{len(missing)} of {len(named)} are missing, such as {', '.join(missing[:3])}"
        )
    kept = torch.tensor([(name in named) == (task != PRETRAINING) for name in images.class_names])
    numbers = kept.cumsum(0) - 1

    def part(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        own = kept[labels]
        return images[own], numbers[labels[own]]

    return Images(
        *part(images.train_images, images.train_labels),
        *part(images.test_images, images.test_labels),
        tuple(compress(images.class_names, kept.tolist())),
    )
