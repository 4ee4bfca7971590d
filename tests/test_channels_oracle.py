"""Channel surgery against torch-pruning, which follows gradients where ours follows the forward pass."""

import copy
import random

import pytest
import torch
from conftest import with_statistics
from torch import nn

from prunelab.channels.surgery import shrink
from prunelab.channels.trace import trace
from prunelab.models import build_model
from prunelab.models.layers import Select

torch_pruning = pytest.importorskip("torch_pruning")

IMAGE = {"in_channels": 3, "image_size": 32}
# By width. ResNeXts are left out: torch-pruning leaves a number of groups that does not divide the channels that stay,
# and what the groups read that are gone. So are the channels that PadChannels appends, which it goes on appending.
NETWORKS = {
    "vgg11": 0.25,
    "vgg16": 0.25,
    "resnet20": 0.5,
    "preresnet20": 0.5,
    "mobilenet_v1": 0.25,
    "densenet22": 0.5,
    "wrn22_2": 0.5,
    "resnet34": 1.0,
}


def network(name):
    """A small network whose batch normalisations have seen numbers, in evaluation mode."""
    torch.manual_seed(0)
    model = build_model(name, num_classes=5, width=NETWORKS[name], **IMAGE)
    return with_statistics(model)


def some(model):
    """A random part of each convolution's and linear layer's channels, of the first layer where several share them."""
    draw, traced, kept = random.Random(0), trace(model, **IMAGE), {}
    decided = set(traced.channels(traced.fixed))
    for name, layer in traced.layers.items():
        channels, n = traced.channels(layer.writes), len(layer.writes)
        if layer.makes_channels and not isinstance(layer.module, Select) and decided.isdisjoint(channels):
            decided.update(channels)
            kept[name] = sorted(draw.sample(range(n), round(0.6 * n)))
    return kept


def shrunken_by_torch_pruning(model, kept):
    smaller = copy.deepcopy(model)
    # It takes a selection for an operation on each channel by itself and leaves its indices as they were, which then
    # lie out of range. Ours select every channel here, as the identity does.
    for name, module in model.named_modules():
        if isinstance(module, Select):
            smaller.set_submodule(name, nn.Identity())
    images = torch.zeros(1, 3, 32, 32)
    graph = torch_pruning.DependencyGraph().build_dependency(smaller, example_inputs=images)
    for name, indices in kept.items():
        layer = smaller.get_submodule(name)
        linear = isinstance(layer, nn.Linear)
        prune = torch_pruning.prune_linear_out_channels if linear else torch_pruning.prune_conv_out_channels
        gone = sorted(set(range(len(layer.weight))) - set(indices))
        graph.get_pruning_group(layer, prune, idxs=gone).prune()
    return smaller


@pytest.mark.parametrize("name", NETWORKS)
def test_torch_pruning_makes_the_same_network(name):
    model = network(name)
    kept = some(model)
    ours, theirs = shrink(model, kept, **IMAGE), shrunken_by_torch_pruning(model, kept)
    shapes = [{key: tensor.shape for key, tensor in smaller.named_parameters()} for smaller in (ours, theirs)]
    assert shapes[0] == shapes[1] != {key: tensor.shape for key, tensor in model.named_parameters()}
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)
