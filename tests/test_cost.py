"""Costs: counted by hand, against torch's own counter, and against the published and derived numbers of RigL."""

import csv

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from prunelab import cost, paths
from prunelab.methods.static import active_counts
from prunelab.models import MODELS, TORCHVISION_MODELS, build_model

IMAGE = {"in_channels": 3, "image_size": 32}


def test_table_of_a_small_network_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(4 * 16, 5))
    conv, linear = cost.layer_table(model, in_channels=3, image_size=8, n_active={"2": 10})
    # 4 x 4 positions, each using all 4 * 3 * 9 = 108 weights; the linear layer uses its 10 active ones once.
    assert conv == {
        "name": "0", "shape": [4, 3, 3, 3], "n_weights": 108, "n_active": 108, "masked": False, "macs": 16 * 108
    }  # fmt: skip
    assert (linear["n_weights"], linear["n_active"], linear["masked"], linear["macs"]) == (320, 10, True, 10)


def test_grouped_convolution_counts_only_its_own_inputs():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4))
    (layer,) = cost.layer_table(model, in_channels=4, image_size=5)
    assert layer["macs"] == 25 * 4 * 9


# Transformers' products of tokens with tokens are torch's too, but use no weight: tests/test_models_vit.py has them.
@pytest.mark.parametrize(
    "name", [name for name in MODELS if name not in TORCHVISION_MODELS and not name.startswith("vit_")]
)
def test_dense_macs_are_half_of_torchs_flops(name):
    model = build_model(name, num_classes=10).eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 32, 32))
    assert cost.total(cost.layer_table(model, **IMAGE), "macs") * 2 == counter.get_total_flops()


def test_counting_leaves_the_model_as_it_was():
    model = build_model("resnet8", num_classes=10).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cost.layer_table(model, **IMAGE)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def sparse_ratio(model, image_size, density, distribution):
    n_active = active_counts(model, density=density, distribution=distribution)
    image = {"in_channels": 3, "image_size": image_size}
    sparse = cost.total(cost.layer_table(model, n_active=n_active, **image), "macs")
    return sparse / cost.total(cost.layer_table(model, **image), "macs")


@pytest.fixture(scope="module")
def resnet50():
    with torch.device("meta"):
        return build_model("resnet50", num_classes=1000, image_size=224)


@pytest.mark.parametrize(
    "density, distribution, expected",
    [(0.2, "uniform", 0.223), (0.1, "uniform", 0.126), (0.2, "erk", 0.414), (0.1, "erk", 0.242)],
)
def test_resnet50_macs_at_the_papers_sparsities(resnet50, density, distribution, expected):
    assert sparse_ratio(resnet50, 224, density, distribution) == pytest.approx(expected, abs=5e-4)


def derived(**wanted):
    """Rows of the derived cost table, computed with the formulas of RigL's App. H."""
    with open(paths.PAPER / "rigl_flops_crosscheck_derived.csv") as file:
        return [row for row in csv.DictReader(file) if all(row[key] == value for key, value in wanted.items())]


def test_wide_resnet_has_the_derived_size():
    model = build_model("wrn22_2", num_classes=10)
    layers = cost.layer_table(model, **IMAGE)
    (n_weights,) = derived(model="WRN-22-2", metric="conv_fc_weights")
    (flops,) = derived(model="WRN-22-2", metric="test_flops_abs")
    assert cost.total(layers, "n_weights") == int(n_weights["value"])
    assert cost.total(layers, "macs") * 2 == int(flops["value"])


@pytest.mark.parametrize(
    "label, distribution", [("uniform (conv1 dense)", "uniform"), ("ERK (conv1 in the mask set)", "erk")]
)
def test_wide_resnet_ratios_agree_with_the_derived_table(label, distribution):
    model = build_model("wrn22_2", num_classes=10)
    rows = derived(model="WRN-22-2", method=label, metric="test_flops_ratio")
    assert rows
    for row in rows:
        ratio = sparse_ratio(model, 32, 1 - float(row["sparsity"]), distribution)
        assert ratio == pytest.approx(float(row["value"]), abs=1e-4)


def test_training_macs_of_each_kind_by_hand():
    # f_D = 10, f_S = 2. Dense 3 * 10 a sample; static 3 * 2; SNFS 2 * 2 + 10; RigL at an update after every 4 steps
    # (3 * 2 * 4 + 2 * 2 + 10) / 5.
    assert cost.training_macs(10, 10, n_samples=7) == 210
    assert cost.training_macs(10, 2, n_samples=7) == 42
    assert cost.training_macs(10, 2, n_samples=7, n_dense_gradient_samples=7) == 7 * 14
    assert cost.training_macs(10, 2, n_samples=5, n_dense_gradient_samples=1) / 5 == pytest.approx((24 + 4 + 10) / 5)


@pytest.mark.parametrize("density", [0.2, 0.1, 0.05])
@pytest.mark.parametrize("method, share", [("RigL dT=100", 1 / 101), ("SNFS", 1.0), ("SET/Static/SNIP", 0.0)])
def test_training_ratios_of_resnet50_agree_with_the_derived_table(resnet50, density, method, share):
    sparse = sparse_ratio(resnet50, 224, density, "erk")
    (row,) = [
        row
        for row in derived(method=f"ERK (conv1 sparse) | {method}", metric="train_flops_ratio")
        if float(row["sparsity"]) == pytest.approx(1 - density)
    ]
    ratio = cost.training_macs(1.0, sparse, n_samples=1, n_dense_gradient_samples=share) / 3
    assert ratio == pytest.approx(float(row["value"]), abs=1e-3)


def test_depthwise_convolutions_cost_their_dense_share():
    model = build_model("mobilenet_v1", num_classes=10, width=0.25)
    n_active = active_counts(model, density=0.1, distribution="erk")
    layers = {layer["name"]: layer for layer in cost.layer_table(model, n_active=n_active, **IMAGE)}
    first, pointwise = layers["blocks.0.depthwise"], layers["blocks.0.pointwise"]
    assert first == {
        "name": "blocks.0.depthwise", "shape": [8, 1, 3, 3], "n_weights": 72, "n_active": 72, "masked": False,
        "macs": 72 * 32 * 32,
    }  # fmt: skip
    assert pointwise["masked"] and pointwise["macs"] == n_active["blocks.0.pointwise"] * 32 * 32
    assert len(layers) == 28 and sum(not layer["masked"] for layer in layers.values()) == 13


def test_matching_density_by_hand():
    # 16 positions for each of 108 weights, then 320 weights used once; both at the same density.
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(4 * 16, 5))
    layers = cost.layer_table(model, in_channels=3, image_size=8, n_active={"0": 5})

    def first_dense(density):
        return {"2": round(320 * density)}

    def both(density):
        return {"0": round(108 * density), "2": round(320 * density)}

    assert cost.matching_density(layers, first_dense, macs=16 * 108 + 77) == 77 / 320
    assert cost.matching_density(layers, first_dense, macs=16 * 108 + 77.4) == 77 / 320
    assert cost.matching_density(layers, first_dense, macs=16 * 108 + 77.6) == 78 / 320
    assert cost.matching_density(layers, first_dense, macs=16 * 108 + 1) == 1 / 320
    assert cost.matching_density(layers, first_dense, macs=16 * 108 + 320) == 1.0
    assert cost.matching_density(layers, both, macs=(16 * 108 + 320) / 4) == pytest.approx(1 / 4, abs=0.01)
    for macs in (16 * 108, 16 * 108 + 321):
        with pytest.raises(ValueError, match=f"no density costs {macs:,} MACs: this network takes 1,729 to 2,048"):
            cost.matching_density(layers, first_dense, macs=macs)


@pytest.mark.parametrize(
    "name, image_size, distribution, of",
    [
        ("resnet20", 32, "uniform", "erk"),
        ("resnet20", 32, "erk", "uniform"),
        ("resnet8", 16, "uniform", "erk"),
        ("mobilenet_v1", 16, "uniform", "erk"),
        ("lenet_300_100", 28, "erk", "uniform"),
        ("lenet_300_100", 28, "erdos_renyi", "erk"),
    ],
)
@pytest.mark.parametrize("density", [0.5, 0.1, 0.05])
def test_matching_density_costs_as_much_in_real_networks(name, image_size, distribution, of, density):
    image = {"in_channels": 3, "image_size": image_size}
    with torch.device("meta"):
        model = build_model(name, num_classes=10, image_size=image_size)

    def table(density, distribution):
        n_active = active_counts(model, density=density, distribution=distribution)
        return cost.layer_table(model, n_active=n_active, **image)

    macs = cost.total(table(density, of), "macs")

    def counts(density):
        return active_counts(model, density=density, distribution=distribution)

    matching = cost.matching_density(cost.layer_table(model, **image), counts, macs=macs)
    assert cost.total(table(matching, distribution), "macs") == pytest.approx(macs, rel=1e-3)


def test_no_density_makes_up_for_a_dense_first_layer():
    model = build_model("lenet_300_100", num_classes=10, in_channels=1, image_size=28)
    layers = cost.layer_table(model, in_channels=1, image_size=28)

    def counts(density):
        return active_counts(model, density=density, distribution="uniform")

    with pytest.raises(ValueError, match="this network takes 235,202 to 266,200"):
        cost.matching_density(layers, counts, macs=26_620)
    assert cost.matching_density(layers, counts, macs=235_202) == 2 / 31_000


@pytest.mark.parametrize("wanted, step", [(-5, 1), (1, 1), (5, 2), (6.5, 2), (6.6, 3), (12, 3), (13, 4), (99, 4)])
def test_nearest_step_is_below_or_above_and_of_two_alike_the_lower(wanted, step):
    assert cost.nearest_step(wanted, lambda k: k * k, most=4) == step  # sizes 1, 4, 9, 16


def test_nearest_step_stays_in_its_range():
    assert cost.nearest_step(0, lambda k: k, least=3, most=7) == 3
    assert cost.nearest_step(9, lambda k: k, least=3, most=7) == 7
