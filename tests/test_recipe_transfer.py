"""The recipe of 04_sparse_transfer: what is carried over is the parent, and what is recorded of it is true."""

import functools
import itertools
import statistics
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from prunelab import data, paths, recipes
from prunelab.features import features_of_sets
from prunelab.masks import prunable_weights
from prunelab.models import build_model, pretrained
from prunelab.models.trunk import head_of, load_trunk
from prunelab.recipes import PROFILES, runner
from prunelab.recipes.rethinking import RETHINKING
from prunelab.recipes.rigl import RIGL
from prunelab.recipes.transfer import TRANSFER, setup
from prunelab.recipes.transfer.plan import TRAININGS, UPSTREAM
from prunelab.runs import Run
from prunelab.training import evaluate

NETWORK = {"model": "resnet8", "width": 0.25, "image_size": 8, "in_colour": True}
UPSTREAM_IMAGES = {"dataset": "glyphs:greek", "n_train": 240, "n_epochs": 2, "batch_size": 32}
TASK = {"dataset": "digits", "n_train": 200, "n_epochs": 2, "batch_size": 50, "learning_rate": 0.05}


@functools.cache
def parent(method="rigl", density=0.2, **options):
    run = RIGL.run(seed=1, method=method, density=density, update_every=2, **NETWORK | UPSTREAM_IMAGES | options)
    return runner.execute(RIGL, run, device="cpu")["state"]


def execute(state, *, seed=3, upstream="rigl", density=0.2, **options):
    run = TRANSFER.run(seed=seed, upstream=upstream, density=density, **NETWORK | TASK | options)
    return runner.execute(TRANSFER, run, device="cpu", parents=[state] if state else [])


def network(state, num_classes=10):
    model = build_model("resnet8", num_classes=num_classes, in_channels=3, image_size=8, width=0.25)
    load_trunk(model, state.model)
    return model


def test_whole_network_is_trained_under_the_mask_of_its_parent_with_a_new_dense_head():
    record = execute(parent(), training="full")
    state, head = record["state"], head_of(network(parent()))
    assert state.masks.keys() == parent().masks.keys() - {head}
    for layer, mask in state.masks.items():
        assert torch.equal(mask, parent().masks[layer]) and not state.model[f"{layer}.weight"][~mask].any()
        assert not torch.equal(state.model[f"{layer}.weight"], parent().model[f"{layer}.weight"])
    assert state.model[f"{head}.weight"].shape[0] == 10 and (state.model[f"{head}.weight"] != 0).all()
    assert not torch.equal(state.model["bn.running_mean"], parent().model["bn.running_mean"])  # in training mode


def test_probe_classifies_features_of_the_network_as_it_is():
    before = {name: value.clone() for name, value in parent().model.items()}
    record = execute(parent(), training="probe", n_probes=3, n_epochs=60, learning_rate=0.1)
    assert all(torch.equal(parent().model[name], value) for name, value in before.items())
    accuracies = record["curves"]["test_accuracy"]
    assert len(set(accuracies)) > 1 and record["metrics"]["test_accuracy"] == statistics.mean(accuracies)
    images = data.load("digits", image_size=8, n_train=200, in_colour=True)
    (features, labels), (test_features, test_labels) = features_of_sets(network(parent()), images)
    assert record["metrics"]["n_features"] == features.shape[1]
    centres = torch.stack([features[labels == label].mean(dim=0) for label in range(10)])
    nearest = torch.cdist(test_features, centres).argmin(dim=1)  # a classifier without training: not far off
    assert abs(float((nearest == test_labels).float().mean()) - record["metrics"]["test_accuracy"]) < 0.25


def test_probe_of_augmented_images_is_another_one():
    plain, augmented = (execute(parent(), training="probe", n_passes=n)["curves"]["test_accuracy"] for n in (0, 2))
    assert plain != augmented


def test_ticket_for_transfer_has_the_last_mask_on_early_values(monkeypatch):
    first = RIGL.run(seed=1, method="lottery", density=1.0, rewind_epochs=1.0, **NETWORK | UPSTREAM_IMAGES)
    run = RIGL.run(**{**dict(first.options), "density": 0.2, "start": "ticket"}, seed=1, parents=(first,))
    state = runner.execute(RIGL, run, device="cpu", parents=[runner.execute(RIGL, first, device="cpu")["state"]])[
        "state"
    ]
    options = TRANSFER.options_of(TRANSFER.run(seed=0, upstream="lottery", density=0.2, **NETWORK | TASK))
    images = data.load("digits", image_size=8, n_train=200, in_colour=True)
    model = setup.setup(options, images, [state], seed=0).model
    for layer, mask in state.masks.items():
        if layer != head_of(model):
            assert torch.equal(model.get_submodule(layer).weight, state.start[f"{layer}.weight"] * mask)
            assert not torch.equal(state.start[f"{layer}.weight"] * mask, state.model[f"{layer}.weight"])


def test_inspection_tests_the_network_itself_on_images_that_it_was_not_trained_on():
    images = {**UPSTREAM_IMAGES, "n_validation": 48}
    record = execute(parent(), training="inspect", **images)
    held_out = data.load("glyphs:greek", image_size=8, in_colour=True, n_train=240, n_validation=48)
    model = network(parent(), held_out.num_classes)
    model.load_state_dict(parent().model)
    assert record["metrics"]["validation_accuracy"] == evaluate(model, held_out)[1]
    dead = sum(
        int((~mask.flatten(1).any(dim=1)).sum()) for name, mask in parent().masks.items() if name != head_of(model)
    )
    filters = sum(len(mask) for name, mask in parent().masks.items() if name != head_of(model))
    assert (
        record["metrics"]["dead_filters"] == dead / filters
        and sum(row["n_dead_filters"] for row in record["channels"]) == dead
    )


def test_detector_starts_from_the_network_and_keeps_its_mask():
    own = {"n_scenes": 60, "n_epochs": 3, "batch_size": 20, "optimizer": "adam", "learning_rate": 0.01}
    record = execute(parent(), training="detect", **own)
    assert 0 <= record["metrics"]["mean_average_precision"] <= 1 and "test_accuracy" not in record["metrics"]
    assert record["metrics"]["n_steps"] == 3 * 3 and record["boxes"]["true"]
    for layer, mask in record["state"].masks.items():
        assert torch.equal(mask, parent().masks[layer.removeprefix("backbone.")])


def test_network_without_some_channels_is_carried_over():
    run = RETHINKING.run(
        seed=1, training="fine_tune", pruning="l1", density=0.5, fine_tune_epochs=1, **NETWORK | UPSTREAM_IMAGES
    )
    state = runner.execute(RETHINKING, run, device="cpu", parents=[parent("dense")])["state"]
    record = execute(state, upstream="l1", density=0.5, training="full")
    assert record["metrics"]["n_stored_weights"] < 0.7 * record["metrics"]["n_reference_weights"]
    assert record["state"].widths == state.widths


def shortened(run, **few):
    """Executes a planned run, and its parents before it, all with other values of the options that they have."""
    recipe = recipes.get(run.recipe)
    own = {name: value for name, value in few.items() if name in recipe.defaults}
    parents = [shortened(parent, **few)["state"] for parent in run.parents]
    return runner.execute(
        recipe, Run(run.recipe, {**run.options, **own}, 1, run.parents), device="cpu", parents=parents
    )


@functools.cache
def planned(upstream):
    """A network and the density that it was to have, made as in `small`, but smaller and in a few steps."""
    few = {"fine_tune_epochs": 1, "fisher_gradients": 20, "update_every": 2, "stop_update": 1.0}
    runs = [run for run in TRANSFER.plan("small") if run.recipe == "transfer"]
    run = next(run for run in runs if TRANSFER.options_of(run).upstream == upstream)
    state = shortened(run.parents[0], **NETWORK | {"width": 0.5} | UPSTREAM_IMAGES | few)["state"]
    return state, TRANSFER.options_of(run).density


MEASURED = {
    "probe": "test_accuracy",
    "full": "test_accuracy",
    "detect": "mean_average_precision",
    "inspect": "validation_accuracy",
}


@pytest.mark.parametrize("training", TRAININGS)
@pytest.mark.parametrize("upstream", UPSTREAM)
def test_network_of_every_kind_is_carried_over_in_every_way(upstream, training):
    state, density = planned(upstream)
    images = {**UPSTREAM_IMAGES, "n_validation": 48} if training == "inspect" else TASK
    few = {"training": training, "n_epochs": 1, "n_scenes": 50, "n_probes": 2, "width": 0.5}
    record = execute(state, upstream=upstream, density=density, **images | few)
    assert record["status"] == "finished" and 0 <= record["metrics"][MEASURED[training]] <= 1
    assert bool(state.masks) == (upstream not in ("dense", "l1", "slimming"))
    if record["state"]:
        masks = {layer.removeprefix("backbone."): mask for layer, mask in record["state"].masks.items()}
        assert masks.keys() == state.masks.keys() - {"fc"}
        assert all(torch.equal(mask, state.masks[layer]) for layer, mask in masks.items())
        own = {name.removeprefix("backbone."): value for name, value in record["state"].model.items()}
        assert not any(own[f"{layer}.weight"][~mask].any() for layer, mask in masks.items())


def test_two_hundred_probes_look_at_each_image_once():
    state, images, seen = parent(), data.load("digits", n_train=200), []
    kind = type(network(state))
    counts = nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: seen.append(len(inputs[0])) if isinstance(module, kind) else None
    )
    try:
        record = execute(state, training="probe", n_probes=200, n_epochs=1)
    finally:
        counts.remove()
    assert sum(seen) == images.n_train + images.n_test
    assert record["curves"]["probe"] == list(range(200))
    accuracies = record["curves"]["test_accuracy"]
    assert len(accuracies) == 200 and len(set(accuracies)) > 20 and all(0 <= own <= 1 for own in accuracies)


def write_folders(folder, *names):
    """Folders of eight photographs of noise, of two classes, half of them to test on."""
    generator = np.random.default_rng(0)
    for name, part, label, number in itertools.product(names, ("train", "test"), "ab", "12"):
        path = folder / name / part / label / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (230, 250, 3), dtype=np.uint8)).save(path)


@pytest.mark.slow
def test_released_networks_of_the_paper_are_carried_over_from_files_that_were_made_up(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA", tmp_path)
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    write_folders(tmp_path, "pets")
    torch.manual_seed(0)
    few = {"n_epochs": 1, "batch_size": 2, "learning_rate": 1e-3}
    narrow = few | {"width": 1 / 16}
    experiments = TRANSFER.experiments("paper", seeds=[0])

    def run_of(experiment, **options):
        return next(run for run in experiments[experiment] if options.items() <= run.options.items())

    sparse = build_model("resnet50", num_classes=7, image_size=224, width=1 / 16)
    for weight in prunable_weights(sparse).values():
        weight.data *= torch.rand_like(weight) < 0.5
    torch.save(sparse.state_dict(), tmp_path / "sparse.pt")
    torch.save(build_model("resnet50", num_classes=1000, image_size=224).state_dict(), tmp_path / "dense.pth")
    released = pretrained.Release("resnet50", "https://example.com/dense.pth", num_classes=1000)
    monkeypatch.setitem(pretrained.RELEASES, "resnet50_imagenet", released)
    for experiment in ("linear_released", "full_released"):
        run = run_of(experiment, dataset="pets")
        assert shortened(run, **few)["metrics"]["test_accuracy"] >= 0
        record = shortened(run, **narrow, checkpoint="sparse.pt")
        assert record["metrics"]["test_accuracy"] >= 0
    for layer, mask in record["state"].masks.items():
        assert torch.equal(mask, sparse.get_submodule(layer).weight != 0)
        assert not record["state"].model[f"{layer}.weight"][~mask].any()
    assert record["state"].masks.keys() == prunable_weights(sparse).keys() - {"fc"}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"training": "guess"}, "unknown training 'guess'; there are probe, full, detect, inspect"),
        ({"upstream": "magic"}, "unknown upstream 'magic'; there are dense, gmp"),
        ({"checkpoint": "resnet50_imagenet"}, "needs 0 parents, got 1"),
        ({"n_probes": 0}, "n_probes must be at least 1, got 0"),
        ({"n_passes": -1}, "n_passes must be at least 0, got -1"),
        ({"upstream": "gmp"}, "upstream=gmp needs a parent with .*'method': 'gmp'.* this one has .*'rigl'"),
        ({"density": 0.1}, "needs a parent with .*'density': 0.1.* this one has .*0.2"),
        ({"width": 0.5}, "the parent is no resnet8 of width 0.5"),
        ({"dataset": "nothing"}, "unknown data set 'nothing'"),
    ],
)
def test_what_does_not_go_together_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        execute(parent(), **options)


def test_diverged_parent_and_a_mask_that_does_not_fit_are_refused():
    with pytest.raises(ValueError, match="the parent has diverged; there is nothing in it"):
        execute(replace(parent(), diverged=True))
    masks = {name: mask[:1] for name, mask in parent().masks.items()}
    with pytest.raises(ValueError, match="mask"):
        execute(replace(parent(), masks=masks))


@pytest.mark.parametrize("profile", PROFILES)
def test_judged_methods_meet_on_the_same_tasks_by_both_transfers(profile):
    experiments = TRANSFER.experiments(profile)
    for name in ("linear", "full"):
        of = {}
        for run in experiments[name]:
            options = TRANSFER.options_of(run)
            of.setdefault((options.upstream, options.density, run.seed), set()).add(options.dataset)
        assert {upstream for upstream, _, _ in of} == {"dense", "gmp", "woodfisher", "acdc", "str", "rigl"}
        assert len({frozenset(tasks) for tasks in of.values()}) == 1
        assert {seed for _, _, seed in of} == set(TRANSFER.seeds[profile])


def test_every_way_to_make_a_network_sparse_is_planned():
    planned = {TRANSFER.options_of(run).upstream for run in TRANSFER.experiments("small")["inspected_others"]}
    planned |= {TRANSFER.options_of(run).upstream for run in TRANSFER.experiments("small")["inspected"]}
    assert planned == set(UPSTREAM)
