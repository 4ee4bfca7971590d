"""`paper` of every notebook, from images in a folder to the last child: a line of descent of each kind of run.

The images are made up: 200 of many sizes, in folders with ImageNet's 1,000 classes or as many as a task has. Networks
are an eighth as wide, images smaller, trainings of two steps; all else is as planned.
"""

import functools
import itertools
import os

import numpy as np
import pytest
import torch
from PIL import Image

from prunelab import engine, paths, recipes
from prunelab.data.downstream import metric_of
from prunelab.data.registry import ENLARGED, STREAMED
from prunelab.models import build_model, pretrained
from prunelab.recipes import STUDIES, runner
from prunelab.recipes.dmcp import setup as dmcp_setup
from prunelab.recipes.dmcp.plan import SAMPLED

N_TRAIN, BATCH_SIZE, WIDTH = 8, 4, 0.125
SIDE = 64  # from which on networks are those for ImageNet
CLASSES = {"imagenet": 1000, "cifar100": 100, "tiny-imagenet-200": 200}
GREY = ("mnist", "fashion_mnist")
SIDES = {"mnist": 28, "fashion_mnist": 28, "tiny-imagenet-200": 64}  # of images that are held; else 32
# What is cut, where a recipe has it.
FEW = {"n_epochs": 1, "batch_size": BATCH_SIZE, "learning_rate": 1e-3, "warmup_epochs": 0, "eval_every": 1}
FEW |= {"update_every": 1, "begin_pruning": 0.0, "stop_update": 1.0, "fisher_gradients": 8}
FEW |= {"budget": 0.6}  # of so narrow a network the first layer, which stays whole, is a fourth
FEW |= {"fine_tune_epochs": 1, "fine_tune_rate": 1e-3, "n_scored": BATCH_SIZE, "n_rounds": 1}


@functools.cache
def planned(recipe):
    return recipe.plan("paper", seeds=[0])


def options_of(run):
    return recipes.get(run.recipe).options_of(run)


def kind_of_images(name):
    streamed = "enlarged" if name in ENLARGED else "streamed" if name in STREAMED else "held"
    return streamed, name in GREY, name == "imagenet", metric_of(name)


@functools.cache
def kind(run):
    """What chooses the code that a run goes through: all but numbers, of which only whether they are zero."""
    options = vars(options_of(run)) | {"dataset": kind_of_images(options_of(run).dataset)}
    options = {name: bool(value) if isinstance(value, (int, float)) else value for name, value in options.items()}
    return run.recipe, *options.values(), *map(kind, run.parents)


def shortened(run):
    """The same run in small, and so its parents."""
    recipe, options = recipes.get(run.recipe), options_of(run)
    few = FEW | {"image_size": SIDE, "n_train": N_TRAIN}
    if not options.model.startswith("vgg"):  # which torchvision has in one width
        few["width"] = options.width * WIDTH
    if options.dataset not in STREAMED:
        few["image_size"] = 16
    few |= {"n_validation": options.n_validation and 2}
    few = {name: value for name, value in few.items() if name in recipe.defaults}
    for name, value in (("rewind_epochs", 0.5), ("max_epochs", 2), ("enlarged_to", SIDE)):
        if getattr(options, name, None):
            few[name] = value
    if getattr(options, "path", None):
        few["n_train"] = 200  # that the loss is taken on at once
    elif getattr(options, "method", None) == "woodfisher":
        few["n_train"] = 32  # of which gradients are taken at once
    if getattr(options, "checkpoint", None):
        few["checkpoint"] = "resnet50.pt"
    parents = tuple(map(shortened, run.parents))
    return recipe.run(seed=run.seed, parents=parents, **dict(run.options) | few)


def write_images(folder):
    """A folder of each data set's name, whose files are links to 200 images, as many sizes as there are."""
    generator = np.random.default_rng(0)
    drawn = []
    for number in range(200):
        drawn.append(folder / "drawn" / f"{number}.jpg")
        drawn[-1].parent.mkdir(exist_ok=True)
        width, height = 30 + number % 41, 30 + number % 37
        Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(drawn[-1])
    runs = [run for recipe in STUDIES.values() for run in engine.with_parents(planned(recipe))]
    names = {options_of(run).dataset for run in runs}
    for name in sorted({ENLARGED.get(name, name) for name in names}):
        images = itertools.cycle(drawn)
        if name not in STREAMED:
            side, shape = SIDES.get(name, 32), () if name in GREY else (3,)
            square = folder / "drawn" / f"{name}.png"
            Image.fromarray(generator.integers(0, 256, (side, side, *shape), dtype=np.uint8)).save(square)
            images = itertools.repeat(square)
        n_train = 1 if name in CLASSES else 20
        for split, n_images in (("train", n_train), ("val" if name == "imagenet" else "test", 1)):
            for number in range(CLASSES.get(name, 10)):
                if split == "val" and number % 100:
                    continue
                for image in range(n_images):
                    source = next(images)
                    path = folder / name / split / f"n{number:08}" / f"{image}{source.suffix}"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    os.link(source, path)


def greedy(grid, cost, *, budget, loss):
    """Tests one network, in place of as many as there are groups at each of some hundred steps."""
    assert loss(grid.at(3)) > 0
    return grid.at(3)


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    torch.manual_seed(0)
    write_images(folder)
    torch.save(build_model("resnet50", num_classes=7, image_size=224, width=WIDTH).state_dict(), folder / "resnet50.pt")
    released = build_model("vit_b16", num_classes=1, image_size=224, width=WIDTH).state_dict()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "DATA", folder)
        patch.setattr(paths, "CACHE", folder / "cache")
        patch.setattr(pretrained, "read", lambda name, path=None: released)
        patch.setattr(dmcp_setup, "greedy", greedy)
        # Of chains that learned for two steps, hardly a draw keeps to the budget.
        patch.setattr(dmcp_setup.Search, "found", lambda search, _: dict.fromkeys(SAMPLED, search.grid.at(4)))
        patch.setattr(dmcp_setup, "N_GENERATIONS", 1)
        patch.setattr(dmcp_setup, "N_CANDIDATES", 2)
        yield folder


def executed(run):
    parents = [handed_on(parent) for parent in run.parents]
    return runner.execute(recipes.get(run.recipe), run, device="cpu", parents=parents)


@functools.lru_cache(maxsize=3)  # those of a VGG-16 take a gigabyte
def handed_on(run):
    return executed(run)["state"]


def check(run):
    """Executes a planned run in small, after its parents."""
    small = shortened(run)
    result = executed(small)
    assert result["status"] == "finished" and result["dataset"]["name"] == options_of(run).dataset, run
    if "training_macs" in result["metrics"]:
        spent = result["metrics"]["training_macs"] + sum(handed_on(parent).training_macs for parent in small.parents)
        assert result["metrics"]["total_training_macs"] == spent


def of_each_kind(recipe):
    """The first run of each kind."""
    return list({kind(run): run for run in reversed(planned(recipe))}.values())


def of_each_network_and_kind_of_images(recipe):
    """As few as have, with their ancestors, each network on each kind of images; long lines of descent first.

    Not VGGs, which are at full width and take half of the time.
    """
    seen, chosen = set(), []
    for run in sorted(of_each_kind(recipe), key=lambda run: -len(run.ancestors)):
        every = [options_of(each) for each in (*run.ancestors, run)]
        own = {(options.model, kind_of_images(options.dataset)) for options in every}
        if not own <= seen and not any(model.startswith("vgg") for model, _ in own):
            chosen.append(run)
            seen |= own
    return chosen


ALL = pytest.mark.parametrize("recipe", STUDIES.values(), ids=STUDIES)


@ALL
def test_each_network_on_each_kind_of_images_comes_to_the_end_of_its_line(recipe, house):
    chosen = of_each_network_and_kind_of_images(recipe)
    assert any(run.parents for run in chosen) or not any(run.parents for run in planned(recipe))
    for run in chosen:
        check(run)


@pytest.mark.slow
@pytest.mark.exhaustive
@ALL
def test_each_kind_of_run_comes_to_the_end_of_its_line(recipe, house):
    for run in of_each_kind(recipe):
        check(run)
