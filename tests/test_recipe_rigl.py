"""The recipe of 01_rigl: what it compares is comparable."""

import pytest
import torch

from prunelab import cost, data
from prunelab.methods import METHODS
from prunelab.methods.static import active_counts
from prunelab.models import MODELS
from prunelab.recipes import rigl
from prunelab.runs import make_run

TINY = {"model": "resnet8", "width": 0.5, "dataset": "digits", "n_train": 128, "batch_size": 64, "n_epochs": 2}


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", n_train=128)


def execute(**options):
    return rigl.execute(make_run("rigl", rigl.OPTIONS, seed=options.pop("seed", 0), **TINY | options), device="cpu")


@pytest.mark.parametrize("method, column", [("small_dense", "n_active"), ("small_dense_macs", "macs")])
@pytest.mark.parametrize("density", [0.5, 0.05])
@pytest.mark.parametrize("model", ["resnet8", "lenet_300_100"])
def test_small_dense_is_as_large_as_its_rival_and_no_width_is_nearer(method, column, density, model, digits):
    options = rigl.OPTIONS | {"method": method, "density": density, "model": model, "width": 1.0}
    image = {"in_channels": 1, "image_size": 8}
    dense = rigl.build(options | {"method": "dense"}, digits)
    counts = active_counts(dense, density=density, distribution="erk")
    target = cost.total(cost.layer_table(dense, n_active=counts, **image), column)

    def size(width):
        with torch.device("meta"):
            network = rigl.build(options | {"method": "dense", "width": width}, digits)
        return cost.total(cost.layer_table(network, **image), column)

    found = cost.total(cost.layer_table(rigl.build(options, digits), **image), column)
    nearest = min((size(k / 256) for k in range(1, 257)), key=lambda size: abs(size - target))
    assert abs(found - target) == abs(nearest - target)


def test_small_dense_draws_its_weights_from_the_seed_alone(digits):
    options = rigl.OPTIONS | {"method": "small_dense", "model": "resnet8"}
    torch.manual_seed(3)
    first = rigl.build(options, digits)
    share = first.fc.in_features / 64
    torch.manual_seed(3)
    second = rigl.build(options | {"method": "dense", "width": share}, digits)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_methods_of_a_seed_start_from_the_same_mask_and_see_the_same_images():
    kinds = {name: execute(method=name, learning_rate=1e-30) for name in ("static", "set", "dense")}
    assert kinds["static"]["metrics"]["n_active"] == kinds["set"]["metrics"]["n_active"]
    # At a learning rate of nothing only dense and sparse differ, whatever moves.
    first, moved = kinds["static"]["curves"]["train_loss"], kinds["set"]["curves"]["train_loss"]
    assert first == pytest.approx(moved, rel=0.2) and first != kinds["dense"]["curves"]["train_loss"]


def test_seeds_differ():
    assert execute(seed=0)["curves"] != execute(seed=1)["curves"]


@pytest.mark.parametrize("name", METHODS)
def test_costs_are_measured_on_the_final_network(name):
    result = execute(method=name, density=0.1 if name != "dense" else 1.0, update_every=1)
    metrics, layers = result["metrics"], result["layers"]
    assert metrics["n_active"] == sum(layer["n_active"] for layer in layers)
    assert metrics["measured_density"] == metrics["n_active"] / metrics["n_weights"]
    assert metrics["macs"] == sum(layer["macs"] for layer in layers)
    assert metrics["n_steps"] == 4
    if name in ("static", "set", "rigl"):
        assert metrics["n_active"] == round(0.1 * metrics["n_weights"])
    # RigL's updates, at every step up to three quarters of training, took a batch each, with dense gradients.
    n_updates = {"rigl": 4}.get(name, 0)
    assert metrics["n_batches"] == 4 + n_updates
    dense_macs = cost.total(
        cost.layer_table(
            rigl.build(rigl.OPTIONS | TINY | {"method": "dense"}, data.load("digits")), in_channels=1, image_size=8
        ),
        "macs",
    )
    spent = 64 * (4 * 3 * metrics["macs"] + n_updates * (2 * metrics["macs"] + dense_macs))
    assert metrics["training_macs"] == spent
    assert metrics["training_macs_ratio"] == pytest.approx(spent / (64 * 4 * 3 * dense_macs))


def test_uniform_names_its_first_layer_as_dense():
    layers = execute(method="static", distribution="uniform")["layers"]
    assert [layer["masked"] for layer in layers] == [False] + [True] * (len(layers) - 1)
    assert layers[0]["n_active"] == layers[0]["n_weights"]


def test_forecast_is_what_dense_training_costs_for_masked_networks_too():
    dense = execute(method="dense", density=1.0)["metrics"]["training_macs"]
    for method in ("dense", "static", "rigl"):
        assert rigl.forecast(make_run("rigl", rigl.OPTIONS, seed=0, **TINY, method=method)) == dense


def test_every_model_of_the_registry_can_be_forecast():
    for model in MODELS:
        if model != "resnet50":  # for colour images
            options = TINY | {"model": model, "width": 1.0}
            assert rigl.forecast(make_run("rigl", rigl.OPTIONS, seed=0, **options)) > 0
