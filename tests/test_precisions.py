"""Networks in other precisions than float32, and on the meta device: what is made of them stays there."""

import pytest
import torch
from conftest import build_method, train_step
from torch import nn

from prunelab import cost, latency
from prunelab.channels.constants import without_constants
from prunelab.channels.filters import keep_largest, keep_largest_globally, l1_scores
from prunelab.channels.surgery import load, save, shrink, without
from prunelab.channels.trace import trace
from prunelab.masks import global_masks, prunable_weights
from prunelab.methods import METHODS
from prunelab.methods.static import Static, initial_masks
from prunelab.models import build_model
from prunelab.scores import SCORES, score
from prunelab.scores.rounds import prune_in_rounds
from prunelab.steps import build_optimizer, set_learning_rate

IMAGE = {"in_channels": 3, "image_size": (8, 12)}

every_precision = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)


def network(dtype=torch.float32):
    torch.manual_seed(0)
    groups, head = nn.Conv2d(8, 8, 3, padding=1, groups=2), [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)]
    body = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.PReLU(8), groups, nn.Conv2d(8, 4, 1)
    return nn.Sequential(*body, *head).to(dtype).eval()


KEPT = {"0": [0, 1, 4, 5], "4": [0, 3]}


def kinds(model):
    tensors = (*model.parameters(), *model.buffers())
    return {(each.dtype, each.device.type) for each in tensors if each.is_floating_point()}


@every_precision
def test_networks_keep_their_precision(dtype, tmp_path):
    model, wanted = network(dtype), {(dtype, "cpu")}
    assert trace(model, **IMAGE).widths == trace(network(), **IMAGE).widths
    smaller = shrink(model, KEPT, **IMAGE)
    save(smaller, tmp_path / "network")
    loaded = load(model, tmp_path / "network")
    square = {"in_channels": 3, "image_size": 8}
    for each in (smaller, loaded, without(model, ["1"]), without_constants(model, **square), model):
        assert kinds(each) == wanted
    images = torch.randn(2, 3, 8, 12).to(dtype)
    assert torch.equal(loaded.eval()(images), smaller(images))


@every_precision
def test_counts_are_those_of_single_precision_and_bytes_follow_it(dtype):
    model, single = network(dtype), network()
    assert cost.layer_table(model, **IMAGE) == cost.layer_table(single, **IMAGE)
    n_numbers = sum(each.numel() for each in (*model.parameters(), *model.buffers()) if each.is_floating_point())
    saved = latency.n_bytes(single) - latency.n_bytes(model)
    assert abs(saved - n_numbers * (4 - dtype.itemsize)) < 1000  # small tensors are padded
    assert len(latency.measure(model, batch_size=2, n_rounds=2, **IMAGE).seconds) == 2


@every_precision
@pytest.mark.parametrize("name", SCORES)
def test_weights_are_scored_and_pruned_in_every_precision(name, dtype):
    model = network(dtype)
    weights = {layer: weight for layer, weight in prunable_weights(model).items() if layer != "7"}
    batches = [(torch.randn(6, 3, 8, 8).to(dtype), torch.arange(6) % 5)]
    features = {"layers": ["1", "4"], "features": "mean"} if name in ("refer", "afr") else {}
    options = features | ({"generator": torch.Generator().manual_seed(0)} if name == "random" else {})

    def scored(*arguments):
        return score(name, *arguments, **options)

    if name == "grasp" and dtype == torch.float16:
        with pytest.raises(ValueError, match="gradients so small vanish in float16, which layer '0' has"):
            scored(model, weights, batches)
        return
    masks = prune_in_rounds(scored, model, weights, batches, density=0.5)
    method = Static(model, masks)
    n_weights = sum(weight.numel() for weight in weights.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == n_weights // 2
    assert kinds(model) == {(dtype, "cpu")} and not any(
        weight[~masks[layer]].any() for layer, weight in weights.items()
    )
    assert method.masks.keys() == weights.keys()


@every_precision
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_in_every_precision(name, dtype):
    torch.manual_seed(0)
    model = build_model("resnet8", num_classes=10, width=0.25).to(dtype)
    generator = torch.Generator().manual_seed(0)
    method = build_method(name, model, density=0.5, generator=generator, update_every=2, stop_step=3)
    optimizer = build_optimizer(model, momentum=0.9, weight_decay=5e-4)
    set_learning_rate(optimizer, 0.01)
    step = 0
    while step < 3:
        images = torch.randn(8, 3, 8, 8, generator=generator).to(dtype)
        step += train_step(model, optimizer, images, torch.arange(8), step, method=method)[1]
    assert kinds(model) == {(dtype, "cpu")}
    if method is not None:
        assert not any(weight[~method.masks[layer]].any() for layer, weight in method.weights.items())


def test_shapes_need_no_numbers():
    model = network().to("meta")
    assert trace(model, **IMAGE).widths == trace(network(), **IMAGE).widths
    assert cost.layer_table(model, **IMAGE) == cost.layer_table(network(), **IMAGE)
    smaller = shrink(model, KEPT, **IMAGE)
    assert kinds(smaller) == {(torch.float32, "meta")}
    wanted = shrink(network(), KEPT, **IMAGE).state_dict()
    assert {key: value.shape for key, value in smaller.state_dict().items()} == {
        key: value.shape for key, value in wanted.items()
    }
    masks = initial_masks(model, density=0.5, distribution="erk", generator=torch.Generator())
    assert {mask.device.type for mask in Static(model, masks).masks.values()} == {"meta"}


@pytest.mark.parametrize(
    "act, what",
    [
        (
            lambda model: latency.measure(model, batch_size=2, n_rounds=2, **IMAGE),
            "network 'model' is on the meta device",
        ),
        (latency.n_bytes, "network 'model' is on the meta device, without numbers; put it on a device that computes"),
        (lambda model: keep_largest(l1_scores(model, ["4"]), {"4": 2}), "layer '4' has scores on the meta device"),
        (lambda model: keep_largest_globally(l1_scores(model, ["4"]), density=0.5), "layer '4' has scores on the meta"),
        (lambda model: global_masks(prunable_weights(model), density=0.5), "layer '0' has scores on the meta device"),
        (
            lambda model: score("magnitude", model, prunable_weights(model), ()),
            "layer '0' has weights on the meta device",
        ),
    ],
)
def test_what_needs_numbers_says_so(act, what):
    with pytest.raises(ValueError, match=what):
        act(network().to("meta"))
