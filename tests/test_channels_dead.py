"""Dead filters and inputs: counted by hand, and against what the layers of a network are really given."""

import pytest
import torch
from conftest import with_statistics
from torch import nn

from prunelab import cost
from prunelab.channels.dead import channel_table, dead_filters, unread_inputs
from prunelab.masks import layer_weights, prunable_weights
from prunelab.models import build_model
from prunelab.models.layers import PadChannels


def mask(*rows):
    return torch.tensor(rows, dtype=torch.bool)


def test_filters_and_inputs_by_hand():
    own = mask([0, 0, 0], [1, 0, 0], [1, 0, 1])
    assert dead_filters(own).tolist() == [True, False, False]
    assert unread_inputs(own).tolist() == [False, True, False]
    kernels = torch.zeros(2, 2, 1, 2, dtype=torch.bool)
    kernels[1, 0, 0, 1] = True  # one weight of one kernel keeps both its filter and its input
    assert dead_filters(kernels).tolist() == [True, False] and unread_inputs(kernels).tolist() == [False, True]


def test_filters_of_a_group_read_its_channels_only():
    # Two groups of two filters, each with two channels: 0 and 1, 2 and 3.
    own = mask([0, 1], [0, 0], [1, 0], [0, 0]).view(4, 2, 1, 1)
    assert unread_inputs(own, n_groups=2).tolist() == [True, False, False, True]
    depthwise = mask([0], [1]).view(2, 1, 1, 1)
    assert unread_inputs(depthwise, n_groups=2).tolist() == [True, False]


class Residual(nn.Module):
    """A stem of three channels, to which two convolutions add theirs; a fourth appears with the second."""

    def __init__(self):
        super().__init__()
        self.stem, self.one = (nn.Conv2d(n, 3, 1, bias=False) for n in (2, 3))
        self.pad, self.two, self.fc = PadChannels(1), nn.Conv2d(3, 4, 1, bias=False), nn.Linear(4, 5)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.one(x)
        return self.fc((self.pad(x) + self.two(x)).mean(dim=(2, 3)))


def rows_of(table):
    return [tuple(row.values()) for row in table]


def test_residual_stream_by_hand():
    masks = {
        "stem": mask([1, 1], [0, 0], [0, 0]),
        "one": mask([1, 0, 0], [1, 0, 0], [0, 0, 0]),
        "two": mask([1, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]),
    }
    masks = {name: own[:, :, None, None] for name, own in masks.items()}
    table = channel_table(Residual(), masks, in_channels=2, image_size=4)
    assert table[0].keys() == {"layer", "n_filters", "n_dead_filters", "n_inputs", "n_dead_inputs"}
    assert rows_of(table) == [
        ("stem", 3, 2, 2, 0),
        ("one", 3, 1, 3, 2),  # two of the stem's filters are dead; nothing reads these either
        ("two", 4, 3, 3, 1),  # `one` has written the second channel; the third is unread, and nobody's
        ("fc", 0, 0, 4, 2),  # the outputs are no filters; of the third and the fourth channel nobody has written any
    ]
    assert (cost.total(table, "n_filters"), cost.total(table, "n_dead_filters")) == (10, 6)


def test_without_masks_nothing_is_dead_but_what_is_padded_and_written_by_nobody():
    assert [row["n_dead_inputs"] for row in channel_table(Residual(), {}, in_channels=2, image_size=4)] == [0] * 4
    masks = {"two": mask([1, 1, 1], [1, 1, 1], [1, 1, 1], [0, 0, 0])[:, :, None, None]}
    *_, last = channel_table(Residual(), masks, in_channels=2, image_size=4)
    assert last["n_dead_inputs"] == 1


@pytest.mark.parametrize("name, shape", [("stem", (3, 3, 1, 1)), ("pad", (1,)), ("three", (1, 1))])
def test_mask_that_fits_no_layer_is_refused(name, shape):
    with pytest.raises(ValueError, match=rf"mask '{name}' of shape .* fits no layer of Residual"):
        channel_table(Residual(), {name: torch.ones(shape, dtype=torch.bool)}, in_channels=2, image_size=4)


def random_masks(model, *, seed=0):
    """Whole filters and whole inputs are cut out, of each layer a third; what is left is dense."""
    generator, masks = torch.Generator().manual_seed(seed), {}
    *names, _ = prunable_weights(model)
    for name in names:
        own = torch.ones_like(model.get_submodule(name).weight, dtype=torch.bool)
        own[torch.rand(own.shape[0], generator=generator) < 1 / 3] = False
        own[:, torch.rand(own.shape[1], generator=generator) < 1 / 3] = False
        masks[name] = own
    return masks


@pytest.mark.parametrize(
    "name", ["resnet8", "preresnet20", "resnext20", "densenet22", "vgg16", "mobilenet_v1", "resnet18"]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_dead_inputs_are_those_that_are_zero_where_nothing_shifts_them_or_that_have_no_weight(name, seed):
    torch.manual_seed(seed)
    width = 1 / 2 if name == "resnext20" else 1 / 8 if name in ("vgg16", "resnet18", "mobilenet_v1") else 1 / 4
    model = with_statistics(build_model(name, num_classes=5, image_size=16, width=width))
    masks = random_masks(model, seed=seed)
    if name == "resnext20":  # a group of two channels that are both dead would make a filter zero that has weights
        masks = {layer: own for layer, own in masks.items() if layer.endswith("conv2")}
    table = channel_table(model, masks, in_channels=3, image_size=16)
    layers, inputs = {}, {}
    with torch.no_grad():
        for module in model.modules():  # everything is positive or zero, so that nothing cancels and no ReLU cuts
            if hasattr(module, "running_mean"):
                module.running_mean.zero_()
                module.bias.zero_()
        for layer, weight in layer_weights(model).items():
            weight.abs_().mul_(masks.get(layer, 1))
            layers[layer] = model.get_submodule(layer)
            if layers[layer].bias is not None:
                layers[layer].bias.zero_()
            layers[layer].register_forward_pre_hook(lambda module, given, layer=layer: inputs.update({layer: given[0]}))
        model(torch.rand(2, 3, 16, 16) + 0.1)
    depthwise = [
        layer for layer, module in layers.items() if getattr(module, "groups", 1) == module.weight.shape[0] > 1
    ]
    assert [row["layer"] for row in table] == [layer for layer in inputs if layer not in depthwise]
    for row in table:
        weight, given = layers[row["layer"]].weight, inputs[row["layer"]].transpose(0, 1).flatten(1)
        n_groups = getattr(layers[row["layer"]], "groups", 1)
        is_read = torch.cat([part.abs().sum(0).view(part.shape[1], -1).sum(1) > 0 for part in weight.chunk(n_groups)])
        assert row["n_inputs"] - row["n_dead_inputs"] == int((is_read & (given.amax(dim=1) > 0)).sum()), row
        if row["layer"] in masks:
            assert row["n_dead_filters"] == int((weight.abs().flatten(1).sum(dim=1) == 0).sum())
    assert cost.total(table, "n_dead_inputs") > 0


def test_what_a_transposed_convolution_writes_is_alive():
    decoder = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 6, 2, stride=2), nn.Conv2d(6, 2, 1))
    masks = {"0": torch.ones(4, 3, 1, 1, dtype=torch.bool)}
    masks["0"][0] = False
    first, last = channel_table(decoder, masks, in_channels=3, image_size=4)
    assert (first["n_dead_filters"], last["n_inputs"], last["n_dead_inputs"]) == (1, 6, 0)
