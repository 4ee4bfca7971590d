"""Feature reconstruction on layers worked out on paper, against scikit-learn and NumPy, and in whole networks."""

import copy
import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso
from test_channels_readers import READERS, prune_three, three_convolutions
from torch import nn

from prunelab.channels.reconstruction import choose, prune, refit


def sums(inputs, outputs):
    """What `choose` and `refit` take, from inputs (samples, channels, kernel size) and outputs (samples, filters)."""
    flat = inputs.flatten(1)
    return {"gram": flat.T @ flat, "cross": flat.T @ outputs}


def problem(n_samples, n_channels, kernel_size, *, n_filters=4):
    """Positive inputs of unequal size, weights, and the outputs that they make."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(n_samples, n_channels, kernel_size, generator=generator, dtype=torch.float64)
    inputs *= torch.rand(n_channels, 1, generator=generator, dtype=torch.float64)
    weight = torch.randn(n_filters, n_channels, kernel_size, generator=generator, dtype=torch.float64)
    return inputs, weight, inputs.flatten(1) @ weight.flatten(1).T


@pytest.mark.parametrize("count, kept", [(1, [2]), (2, [0, 2]), (3, [0, 1, 2])])
def test_largest_of_orthogonal_contributions_stay(count, kept):
    # Each sample shows one channel, so that the LASSO shrinks each factor from 1 by penalty / contribution squared:
    # contributions 2 * 1, 1 * -1 and 1 * 3 enter in the order of their squares 4, 1, 9.
    inputs = torch.diag(torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64)).unsqueeze(2)
    weight = torch.tensor([[[1.0], [-1.0], [3.0]]], dtype=torch.float64)
    outputs = inputs.flatten(1) @ weight.flatten(1).T
    assert choose(weight, **sums(inputs, outputs), count=count).tolist() == kept


def test_factors_follow_the_outputs_asked_for():
    # As above, but the outputs to rebuild are 0, -5 and 3: correlations 0, 5 and 9, and channel 0 comes last.
    inputs = torch.diag(torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64)).unsqueeze(2)
    weight = torch.tensor([[[1.0], [-1.0], [3.0]]], dtype=torch.float64)
    outputs = torch.tensor([[0.0], [-5.0], [3.0]], dtype=torch.float64)
    assert choose(weight, **sums(inputs, outputs), count=2).tolist() == [1, 2]


@pytest.mark.parametrize("kernel_size", [1, 9])
def test_choice_is_the_support_of_a_lasso_over_listed_contributions(kernel_size):
    inputs, weight, outputs = problem(60, 12, kernel_size)
    contributions = torch.einsum("mck,ock->moc", inputs, weight).reshape(-1, 12).numpy()
    supports = set()
    for penalty in np.geomspace(1e-4, 1, 100):
        lasso = Lasso(alpha=penalty, fit_intercept=False, tol=1e-10, max_iter=100_000)
        support = lasso.fit(contributions, outputs.flatten().numpy()).coef_.nonzero()[0].tolist()
        supports.add(tuple(support))
        if 0 < len(support) < 12 and [len(other) for other in supports].count(len(support)) == 1:
            assert choose(weight, **sums(inputs, outputs), count=len(support)).tolist() == support
    assert len(supports) > 8


@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize("count", [1, 5, 12])
def test_choice_does_not_depend_on_scale(scale, count):
    inputs, weight, outputs = problem(60, 12, 4)
    expected = choose(weight, **sums(inputs, outputs), count=count)
    assert torch.equal(choose(weight, **sums(scale * inputs, scale * outputs), count=count), expected)
    assert torch.equal(choose(scale * weight, **sums(inputs, scale * outputs), count=count), expected)


@pytest.mark.parametrize("n_samples, n_channels", [(50, 3), (50, 12), (2, 30)])
def test_choice_has_the_exact_count(n_samples, n_channels):
    inputs, weight, outputs = problem(n_samples, n_channels, 1)
    for count in range(1, n_channels + 1):
        kept = choose(weight, **sums(inputs, outputs), count=count)
        assert len(kept) == count and kept.tolist() == sorted(set(kept.tolist()))


def test_silent_and_equal_channels_fill_up_last():
    inputs, weight, outputs = problem(50, 8, 2)
    inputs[:, 3] = 0
    inputs[:, 6], weight[:, 6] = inputs[:, 1], weight[:, 1]
    outputs = inputs.flatten(1) @ weight.flatten(1).T
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for count in (6, 7, 8):
            kept = choose(weight, **sums(inputs, outputs), count=count).tolist()
            assert len(kept) == count and {0, 2, 4, 5, 7} <= set(kept) and {1, 6} & set(kept)
        assert 3 not in choose(weight, **sums(inputs, outputs), count=6)
        silent = sums(torch.zeros_like(inputs), torch.zeros_like(outputs))
        assert choose(weight, **silent, count=3).tolist() == [0, 1, 2]


@pytest.mark.filterwarnings("error")
def test_nearly_equal_channels_are_no_cause_for_warnings():
    inputs, weight, _ = problem(50, 20, 2)
    inputs[:, 10:] = inputs[:, :10] + 1e-8 * inputs[:, 10:]
    weight[:, 10:] = weight[:, :10]
    outputs = inputs.flatten(1) @ weight.flatten(1).T
    assert len(choose(weight, **sums(inputs, outputs), count=15)) == 15


def test_weights_are_refitted_by_hand():
    # Channel 1 is always twice channel 0, and goes; channel 0 takes over 2 * 3 besides its own 1.
    inputs = torch.tensor([[1.0, 2.0], [2.0, 4.0]], dtype=torch.float64).unsqueeze(2)
    weight = torch.tensor([[[1.0], [3.0]]], dtype=torch.float64)
    refitted = refit(weight, **sums(inputs, torch.tensor([[7.0], [14.0]]).double()), kept=torch.tensor([0]))
    torch.testing.assert_close(refitted, torch.tensor([[[7.0], [0.0]]], dtype=torch.float64))


@pytest.mark.parametrize("kernel_size", [1, 9])
def test_refitted_weights_are_those_of_numpy(kernel_size):
    inputs, weight, outputs = problem(100, 8, kernel_size)
    kept = torch.tensor([1, 4, 7])
    refitted = refit(weight, **sums(inputs, outputs), kept=kept)
    expected = np.linalg.lstsq(inputs[:, kept].flatten(1).numpy(), outputs.numpy(), rcond=None)[0].T
    np.testing.assert_allclose(refitted[:, kept].flatten(1).numpy(), expected, rtol=1e-6)
    assert not refitted[:, [0, 2, 3, 5, 6]].any()


def test_weights_that_no_sample_reaches_stay():
    inputs, weight, _ = problem(100, 4, 3)
    inputs[:, 2] = 0
    outputs = inputs.flatten(1) @ weight.flatten(1).T
    refitted = refit(weight, **sums(inputs, outputs), kept=torch.tensor([0, 1, 2, 3]))
    torch.testing.assert_close(refitted, weight)


def test_network_that_keeps_every_channel_is_unchanged():
    model = three_convolutions()
    pruned, _ = prune_three(prune, model, {"0": 8, "3": 12, "6": 10})
    for name, value in model.state_dict().items():
        torch.testing.assert_close(pruned.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_refitting_brings_new_images_closer_to_the_original_outputs():
    model, counts = three_convolutions(), {"0": 6, "3": 9, "6": 10}
    pruned, kept = prune_three(prune, model, counts)
    cut = copy.deepcopy(model).eval()
    for name, reader in READERS.items():
        weight = cut.get_submodule(reader).weight.data
        weight[:, ~torch.isin(torch.arange(weight.shape[1]), kept[name])] = 0
    images = torch.randn(100, 3, 8, 8)
    expected = model.eval()(images)
    assert (pruned(images) - expected).norm() < 0.8 * (cut(images) - expected).norm()


def test_outputs_to_rebuild_are_those_of_the_original_network():
    # Images (a, b) of (1, 0), (0, 1), (1, 1); outputs 3 a + b + 1 of the second layer. The first loses b: least squares
    # of 3, 1, 4 on the inputs 1, 0, 1 gives 7 / 2. The last layer doubles: its outputs were 8, 4, 10, and its inputs
    # are now 4.5, 1, 4.5, of which the weight 2 would make 9, 2, 9.
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1), nn.Linear(1, 1, bias=False))
    model[0].weight.data, model[1].weight.data = torch.eye(2), torch.tensor([[3.0, 1.0]])
    model[1].bias.data, model[2].weight.data = torch.tensor([1.0]), torch.tensor([[2.0]])
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    options = {"readers": {"0": "1", "1": "2"}, "counts": {"0": 1, "1": 1}, "generator": torch.Generator()}
    pruned, kept = prune(model, images, **options)
    assert kept["0"].tolist() == [0]
    torch.testing.assert_close(pruned[1].weight.data, torch.tensor([[3.5, 0.0]]))
    torch.testing.assert_close(pruned[2].weight.data, torch.tensor([[(4.5 * 8 + 4 + 4.5 * 10) / (2 * 4.5**2 + 1)]]))
