"""Ways to run a sparse network: all give its features, and a way is taken where it pays."""

import copy

import pytest
import torch
from conftest import with_statistics
from torch import nn

from prunelab import latency, sparse_inference
from prunelab.features import features_of
from prunelab.masks import prunable_weights
from prunelab.models import build_model
from prunelab.sparse_inference import WAYS, SparseConv, backbone_of, with_sparse_convolutions


def sparse_network(name, *, density, seed=0):
    torch.manual_seed(seed)
    model = with_statistics(build_model(name, num_classes=3, image_size=16, width=0.25))
    for weight in prunable_weights(model).values():
        weight.data *= torch.rand_like(weight) < density
    return model


@pytest.mark.parametrize("name", ["resnet8", "densenet22", "vgg16", "mobilenet_v1", "resnet18"])
@pytest.mark.parametrize("way", ["dense", "removed", "csr"])
@pytest.mark.parametrize("density", [0.02, 0.3])
def test_every_way_gives_the_features_that_probes_are_trained_on(name, way, density, monkeypatch):
    monkeypatch.setattr(sparse_inference, "_is_faster", lambda conv, sparse, x: True)
    model, images = sparse_network(name, density=density), torch.randn(7, 3, 16, 16)
    before = copy.deepcopy(model.state_dict())
    expected, _ = features_of(model, [(images, torch.zeros(7))])
    run = WAYS[way](backbone_of(model.train()), images[:3])
    for n_images in (7, 1):  # the last batch is short
        features, seconds = run(images[:n_images])
        assert (features - expected[:n_images]).abs().max() <= 1e-5 * expected.abs().max() and seconds > 0
    assert model.training and all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    "shape, options, size",
    [
        ((4, 3, 3), {"padding": 1}, (6, 6)),  # 36 positions: three images at a time
        ((4, 3, 3), {"padding": 1, "stride": 2, "bias": False}, (7, 6)),
        ((2, 5, 1), {"stride": 2}, (5, 4)),
        ((3, 2, (1, 3)), {"padding": (0, 1), "stride": (2, 1)}, (4, 9)),
        ((3, 1, 7), {"padding": 3, "stride": 2}, (32, 32)),
    ],
)
@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
def test_sparse_product_is_the_convolution(shape, options, size, density):
    torch.manual_seed(0)
    (n_out, n_in, kernel), images = shape, torch.randn(5, shape[1], *size)
    conv = nn.Conv2d(n_in, n_out, kernel, **options).requires_grad_(False)
    conv.weight *= torch.rand_like(conv.weight) < density
    assert SparseConv.fits(conv)
    for given in (images, images.contiguous(memory_format=torch.channels_last)):
        torch.testing.assert_close(SparseConv(conv)(given), conv(given), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{"groups": 2}, {"dilation": 2}, {"padding": "same"}, {"padding_mode": "reflect"}])
def test_other_convolutions_stay_dense(options):
    conv = nn.Conv2d(2, 2, 3, **options)
    assert not SparseConv.fits(conv)
    found = with_sparse_convolutions(nn.Sequential(conv), torch.randn(1, 2, 8, 8), pays=lambda *_: True)
    assert isinstance(found[0], nn.Conv2d)


def test_convolutions_are_sparse_only_where_that_pays():
    model = sparse_network("resnet8", density=0.1)

    def pays(conv, sparse, x):
        assert x.shape[:2] == (5, sparse.weight.shape[1] // 9)
        return x.shape[-1] == 4

    found = with_sparse_convolutions(model, torch.randn(5, 3, 16, 16), pays=pays)
    sparse = [name for name, module in found.named_modules() if isinstance(module, SparseConv)]
    assert sparse == ["blocks.2.conv2"] and isinstance(model.blocks[2].conv2, nn.Conv2d)


def test_by_default_it_pays_where_the_shortest_time_is_shorter(monkeypatch):
    spent = {"conv": [2.0, 9.0], "sparse": [3.0, 1.0]}
    monkeypatch.setattr(latency, "in_turn", lambda sides, **rounds: {side: spent[side] for side in sides})
    assert sparse_inference._is_faster(None, None, None)
    spent["conv"][1] = 0.5
    assert not sparse_inference._is_faster(None, None, None)


def test_a_network_without_head_is_refused():
    with pytest.raises(ValueError, match="has no head"):
        backbone_of(nn.Conv2d(1, 1, 1))
