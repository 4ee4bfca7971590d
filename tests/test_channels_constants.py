"""Networks without the channels that tell nothing: what goes, by hand, and that the outputs stay."""

import copy

import pytest
import torch
from conftest import with_statistics
from torch import nn

from prunelab.channels.constants import AddMap, without_constants
from prunelab.channels.trace import UntraceableError
from prunelab.masks import prunable_weights
from prunelab.models import build_model


def same_outputs(model, smaller, *, in_channels, image_size):
    images = torch.randn(3, in_channels, image_size, image_size)
    with torch.no_grad():
        expected = model(images)
        return (smaller(images) - expected).abs().max() <= 1e-5 * expected.abs().max()


class Plain(nn.Module):
    """Two convolutions and a linear layer; the first's three channels are normalised."""

    def __init__(self, *, padding):
        super().__init__()
        self.one, self.bn = nn.Conv2d(1, 3, 1, bias=False), nn.BatchNorm2d(3)
        self.two, self.fc = nn.Conv2d(3, 2, 3, padding=padding, bias=False), nn.Linear(2, 2)

    def forward(self, x):
        return self.fc(self.two(torch.relu(self.bn(self.one(x)))).mean(dim=(2, 3)))


def plain(*, padding, shift):
    """The second channel of three has a dead filter, and normalisation shifts it."""
    model = Plain(padding=padding).eval()
    nn.init.ones_(model.one.weight)
    nn.init.ones_(model.two.weight)
    model.one.weight.data[1] = 0.0
    model.bn.bias.data[1] = shift
    return model


def test_constant_is_a_bias_where_no_edge_is_padded():
    model = plain(padding=0, shift=0.5)
    smaller = without_constants(model, in_channels=1, image_size=4)
    assert (smaller.one.out_channels, smaller.bn.num_features, smaller.two.in_channels) == (2, 2, 2)
    assert smaller.two.bias.tolist() == [4.5, 4.5]  # nine weights of 1 read 0.5
    assert same_outputs(model, smaller, in_channels=1, image_size=4)


def test_constant_is_a_map_where_edges_are_padded_with_zeros():
    model = plain(padding=1, shift=0.5)
    smaller = without_constants(model, in_channels=1, image_size=4)
    two, added = smaller.two
    assert two.in_channels == 2 and two.bias is None
    edge, inner = [2.0, 3.0, 3.0, 2.0], [3.0, 4.5, 4.5, 3.0]  # in a corner four weights read 0.5, at an edge six
    assert added.values.tolist() == [[[edge, inner, inner, edge]] * 2]
    assert same_outputs(model, smaller, in_channels=1, image_size=4)


def test_what_the_activation_cuts_to_zero_adds_nothing():
    model = plain(padding=1, shift=-0.5)
    smaller = without_constants(model, in_channels=1, image_size=4)
    assert smaller.one.out_channels == 2 and smaller.two.bias is None
    assert same_outputs(model, smaller, in_channels=1, image_size=4)


def test_what_only_an_unread_channel_needs_goes_with_it():
    model = plain(padding=1, shift=0.5)
    model.fc.weight.data[:, 0] = 0.0  # the first filter of `two` is read by nobody
    model.two.weight.data[1, 0] = 0.0  # and it alone reads the first of `one`
    before = copy.deepcopy(model.state_dict())
    smaller = without_constants(model, in_channels=1, image_size=4)
    assert (smaller.one.out_channels, smaller.two[0].out_channels, smaller.fc.in_features) == (1, 1, 1)
    assert same_outputs(model, smaller, in_channels=1, image_size=4)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_layer_without_a_needed_channel_keeps_one_that_counts_once():
    model = plain(padding=1, shift=0.5)
    nn.init.zeros_(model.one.weight)
    smaller = without_constants(model, in_channels=1, image_size=4)
    assert smaller.one.out_channels == 1 and sum(p.numel() for p in smaller.parameters()) < 30
    assert same_outputs(model, smaller, in_channels=1, image_size=4)


class Twice(nn.Module):
    """Uses a layer twice: its first channel is a constant the second time only."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.fc = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1), nn.Linear(2, 2)

    def forward(self, x):
        return self.fc(self.conv(torch.relu(self.conv(self.stem(x)))).mean(dim=(2, 3)))


def test_layer_that_is_used_twice_keeps_what_it_needs_once():
    model = Twice().eval()
    model.conv.weight.data[0] = 0.0
    smaller = without_constants(model, in_channels=1, image_size=4)
    assert smaller.stem.out_channels == 2
    assert same_outputs(model, smaller, in_channels=1, image_size=4)


class Again(nn.Module):
    """Uses its first layer once more after its second."""

    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two = (nn.Conv2d(2, 2, 1) for _ in range(3))
        self.fc = nn.Linear(2, 2)

    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(self.two(torch.relu(self.one(x))))
        return self.fc(self.one(x).mean(dim=(2, 3)))


def test_what_a_later_layer_needs_of_one_that_is_used_again_stays():
    torch.manual_seed(0)
    model = Again().eval()
    for layer, weight in (("one", [[1, 0], [0, 1]]), ("two", [[0, 1], [1, 0]])):
        module = model.get_submodule(layer)
        module.weight.data = torch.tensor(weight, dtype=torch.float32)[:, :, None, None]
    model.fc.weight.data[:, 1] = 0.0  # reads 0 of `one`, which reads 0 of `two`, which reads 1 of `one`
    smaller = without_constants(model, in_channels=2, image_size=4)
    assert smaller.one.out_channels == 2
    assert same_outputs(model, smaller, in_channels=2, image_size=4)


@pytest.mark.parametrize(
    "name",
    [
        *("lenet_300_100", "resnet8", "preresnet20", "resnext20", "densenet22", "vgg16", "mobilenet_v1"),
        *("mobilenet_v2", "resnet18", "resnet50"),
    ],
)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_outputs_stay_and_weights_go(name, share, recwarn):
    torch.manual_seed(1)
    image = {"in_channels": 1, "image_size": 8} if name.startswith("lenet") else {"in_channels": 3, "image_size": 16}
    model = with_statistics(build_model(name, num_classes=5, width=1 / 8 if name == "vgg16" else 1 / 4, **image))
    with torch.no_grad():
        for weight in list(prunable_weights(model).values())[:-1]:  # that share of filters, and of inputs
            weight[torch.rand(weight.shape[0]) < share] = 0.0
            weight[:, torch.rand(weight.shape[1]) < share] = 0.0
    smaller = without_constants(model, **image)
    assert same_outputs(model, smaller, **image) and not recwarn.list
    size, left = (sum(own.numel() for own in network.parameters()) for network in (model, smaller))
    assert left == size if share == 0.0 else left < (1 - share / 2) * size
    assert share or not any(isinstance(module, AddMap) for module in smaller.modules())


def test_what_a_transposed_convolution_reads_and_writes_stays():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 6, 2, stride=2), nn.Conv2d(6, 5, 1), nn.ReLU())
    model.append(nn.Conv2d(5, 2, 1))
    model[0].weight.data[0], model[2].weight.data[1] = 0.0, 0.0
    smaller = without_constants(model, in_channels=3, image_size=4)
    assert (smaller[0].out_channels, smaller[2].out_channels) == (4, 4)
    images = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(smaller(images), model(images))


def test_a_comparison_that_hides_the_image_is_refused():
    class Compared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            x = self.conv(x)
            return self.head((x > 0).to(x.dtype))

    torch.manual_seed(0)
    with pytest.raises(UntraceableError, match="hides what depends on the image"):
        without_constants(Compared(), in_channels=1, image_size=4)
