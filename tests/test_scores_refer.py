"""ReFer: the mean singular value and its gradient, against SVD and finite differences, and what features are."""

import pytest
import torch
from torch import nn

from prunelab.masks import prunable_weights
from prunelab.scores import refer
from prunelab.scores.refer import FEATURES, mean_singular_value, polar_factor, refer_scores


def random_matrix(n, d, *, seed=0):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def orthogonal(n, *, seed=0):
    return torch.linalg.qr(random_matrix(n, n, seed=seed)).Q


def gradient(function, matrix):
    matrix = matrix.clone().requires_grad_()
    return torch.autograd.grad(function(matrix), matrix)[0]


@pytest.mark.parametrize("n, d", [(1, 4), (4, 4), (3, 7), (7, 3), (64, 96)])
@pytest.mark.parametrize("precision, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-6)])
def test_mean_singular_value_and_its_gradient_are_those_of_the_svd(n, d, precision, tolerance):
    matrix = random_matrix(n, d).to(precision)
    exact = matrix.double()
    found = mean_singular_value(matrix)
    assert found.dtype == precision
    assert float(found) == pytest.approx(float(torch.linalg.svdvals(exact).mean()), rel=tolerance)
    expected = gradient(lambda matrix: torch.linalg.matrix_norm(matrix, "nuc"), exact) / min(n, d)
    error = gradient(mean_singular_value, matrix).double() - expected
    assert float(error.norm() / expected.norm()) < tolerance


@pytest.mark.parametrize("n, d", [(4, 4), (3, 6), (6, 3)])
def test_gradient_is_that_of_finite_differences(n, d):
    assert torch.autograd.gradcheck(mean_singular_value, random_matrix(n, d).requires_grad_())


def test_equal_singular_values_have_a_gradient_where_single_ones_have_none():
    matrix = 3 * orthogonal(5)[:3]  # three singular values of 3
    torch.testing.assert_close(gradient(mean_singular_value, matrix), matrix / 9)
    assert torch.autograd.gradcheck(mean_singular_value, matrix.requires_grad_())


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_zero_singular_values_add_nothing_to_the_gradient(shape):
    # U diag(4, 2, 0, ...) V': the gradient is U diag(1, 1, 0, ...) V' / 6.
    left, right = orthogonal(shape[0], seed=1), orthogonal(shape[1], seed=2)
    matrix = left[:, :2] @ torch.diag(torch.tensor([4.0, 2.0], dtype=torch.float64)) @ right[:2]
    torch.testing.assert_close(gradient(mean_singular_value, matrix), left[:, :2] @ right[:2] / 6)
    assert float(mean_singular_value(matrix)) == pytest.approx(1.0)
    assert not gradient(mean_singular_value, torch.zeros(shape)).any()


@pytest.mark.parametrize("smallest, counts", [(1e-5, True), (1e-7, False)])
def test_cutoff_is_relative_to_the_largest(smallest, counts):
    for scale in (1e-20, 1.0, 1e20):
        factor = polar_factor(torch.diag(torch.tensor([scale, smallest * scale], dtype=torch.float64)))
        torch.testing.assert_close(factor, torch.diag(torch.tensor([1.0, float(counts)], dtype=torch.float64)))


def test_matrix_on_which_the_solver_does_not_converge_goes_to_another(monkeypatch):
    matrix = random_matrix(5, 3)
    expected = polar_factor(matrix)

    def fail(_):
        raise torch.linalg.LinAlgError("failed to converge")

    monkeypatch.setattr(torch.linalg, "eigh", fail)
    torch.testing.assert_close(polar_factor(matrix), expected)


def test_features_of_tokens_and_of_maps():
    tokens = torch.arange(12.0).view(2, 3, 2)  # images, tokens, features
    assert FEATURES["cls"](tokens).tolist() == [[0, 1], [6, 7]]
    assert FEATURES["mean"](tokens).tolist() == [[2, 3], [8, 9]]
    assert FEATURES["tokens"](tokens).tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]
    maps = torch.arange(16.0).view(2, 2, 1, 4)  # images, channels, height, width
    assert FEATURES["mean"](maps).tolist() == [[1.5, 5.5], [9.5, 13.5]]
    assert FEATURES["tokens"](maps)[:5].tolist() == [[0, 4], [1, 5], [2, 6], [3, 7], [8, 12]]
    for name in ("mean", "tokens"):
        assert FEATURES[name](tokens[0]).tolist() == tokens[0].tolist()
    for name, shape in [("cls", (2, 3)), ("cls", (2, 3, 4, 4)), ("mean", (2,)), ("tokens", (2, 1, 1, 1, 1))]:
        with pytest.raises(ValueError):
            FEATURES[name](torch.zeros(shape))


@pytest.mark.parametrize("features", FEATURES)
def test_scores_are_those_of_a_slow_svd_averaged_over_batches(features):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    weights = prunable_weights(model)
    batches = [(torch.randn(n, 3, 6, dtype=torch.float64), torch.zeros(n)) for n in (7, 2)]
    total = 0.0
    for images, _ in batches:
        hidden = model[0](images)
        for output in (hidden, model[2](hidden.tanh())):
            matrix = {"cls": output[:, 0], "mean": output.mean(1), "tokens": output.flatten(0, 1)}[features]
            total = total + torch.linalg.svdvals(matrix).mean() / len(batches)
    expected = torch.autograd.grad(total, list(weights.values()))
    found = refer_scores(model, weights, batches, layers=["0", "2"], features=features)
    for (name, weight), slope in zip(weights.items(), expected, strict=True):
        torch.testing.assert_close(found[name], (slope * weight).detach().abs())


def test_layer_that_runs_twice_counts_twice_and_one_named_twice_once():
    torch.manual_seed(0)
    layer = nn.Linear(4, 4, bias=False)
    twice = nn.Sequential(layer, nn.ReLU(), layer)
    copied = nn.Sequential(layer, nn.ReLU(), nn.Linear(4, 4, bias=False))
    copied[2].weight = layer.weight
    batches = [(torch.randn(5, 4), torch.zeros(5))]
    options = {"features": "mean", "weights": {"0": layer.weight}, "batches": batches}
    found = refer_scores(twice, layers=["0", "0"], **options)["0"]
    torch.testing.assert_close(found, refer_scores(copied, layers=["0", "2"], **options)["0"])


def test_output_that_is_changed_in_place_later_is_seen_as_it_was():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    batches = [(torch.randn(5, 4), torch.zeros(5))]
    options = {"layers": ["0"], "features": "mean", "weights": {"0": model[0].weight}, "batches": batches}
    apart = refer_scores(model, **options)["0"]
    model[1].inplace = True
    assert torch.equal(refer_scores(model, **options)["0"], apart)


def test_blocks_of_a_network_are_its_layers_by_default():
    model = nn.Module()
    model.blocks = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    assert refer.block_names(model) == ["blocks.0", "blocks.1"]
