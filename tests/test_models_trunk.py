"""A trained network's values under another head."""

import pytest
import torch
from conftest import with_statistics
from torch import nn

from prunelab.models import build_model
from prunelab.models.trunk import head_of, load_trunk

FAMILIES = ["lenet_300_100", "resnet8", "preresnet20", "vgg16", "densenet22", "wrn22_2", "mobilenet_v1", "resnet18"]


def build(name, *, seed, num_classes=5, **options):
    torch.manual_seed(seed)
    options = {"image_size": 16, "width": 0.25} | options
    return with_statistics(build_model(name, num_classes=num_classes, **options))


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", [*FAMILIES, "mobilenet_v2", "vit_micro4"])
@pytest.mark.parametrize("num_classes", [5, 3])
def test_everything_moves_but_the_head_also_where_it_would_fit(name, num_classes):
    trained, model = build(name, seed=0), build(name, seed=1, num_classes=num_classes)
    before, head = state_of(model), head_of(model)
    load_trunk(model, trained.state_dict())
    for key, value in model.state_dict().items():
        assert torch.equal(value, (before if key.startswith(f"{head}.") else trained.state_dict())[key]), key
    assert not torch.equal(model.get_submodule(head).weight[:3], trained.get_submodule(head).weight[:3])


def test_state_without_a_head_will_do():
    trained, model = build("resnet8", seed=0), build("resnet8", seed=1)
    load_trunk(model, {key: value for key, value in trained.state_dict().items() if not key.startswith("fc.")})
    assert torch.equal(model.conv.weight, trained.conv.weight)


@pytest.mark.parametrize(
    "other, said",
    [
        ({"name": "resnet20"}, "it has, of no use here, blocks.3.bn1.bias, .* and 69 more"),
        ({"width": 0.5}, "it has in another shape blocks.0.bn1.bias"),
        ({"in_channels": 1}, "it has in another shape conv.weight"),
        ({"name": "mobilenet_v1"}, "it lacks blocks.0.conv1.weight, .* and 3 more; it has, of no use here"),
    ],
)
def test_state_of_another_network_is_refused_and_nothing_loaded(other, said):
    model = build("resnet8", seed=0)
    before = state_of(model)
    with pytest.raises(ValueError, match=f"^the state is another network's: {said}"):
        load_trunk(model, build(**{"name": "resnet8", "seed": 1} | other).state_dict())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_network_without_a_head_is_refused():
    with pytest.raises(ValueError, match="Sequential has no linear layer, so it has no head"):
        load_trunk(nn.Sequential(nn.Conv2d(1, 1, 1)), {})
