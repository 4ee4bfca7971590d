"""Linear probes: together as alone, against torch's own training step by step, and against scikit-learn's optimum."""

import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional as F

from prunelab.probes import Probes, train_probes
from prunelab.schedules import learning_rate

SETTINGS = {"num_classes": 4, "batch_size": 16, "momentum": 0.9, "weight_decay": 5e-4, "schedule": "thirds"}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def blobs(n, *, d=6, n_classes=4, seed=0):
    """Features of overlapping classes, and labels."""
    generator = seeded(seed)
    labels = torch.randint(n_classes, (n,), generator=generator)
    centres = torch.randn(n_classes, d, generator=seeded(99))
    return centres[labels] + torch.randn(n, d, generator=generator), labels


def trained(features, labels, *, seeds=(0,), rates=None, n_epochs=6, **changes):
    generators = [seeded(seed) for seed in seeds]
    rates = rates or [0.1] * len(seeds)
    return train_probes(
        features, labels, generators=generators, learning_rates=rates, n_epochs=n_epochs, **SETTINGS | changes
    )


def torch_weights(passes, seed, rate, *, n_epochs, batch_size, momentum, weight_decay, schedule, num_classes):
    """One probe by torch's linear layer, autograd and optimizer."""
    generator = seeded(seed)
    n, d = passes[0][0].shape
    layer = nn.Linear(d, num_classes)
    drawn = torch.empty(num_classes, d + 1).uniform_(-(d**-0.5), d**-0.5, generator=generator)
    layer.load_state_dict({"weight": drawn[:, :-1], "bias": drawn[:, -1]})
    optimizer = torch.optim.SGD(layer.parameters(), lr=rate, momentum=momentum, weight_decay=weight_decay)
    n_batches = n // batch_size
    for epoch in range(n_epochs):
        features, labels = passes[epoch % len(passes)]
        order = torch.randperm(n, generator=generator)
        for batch in range(n_batches):
            step, chosen = epoch * n_batches + batch, order[batch * batch_size : (batch + 1) * batch_size]
            optimizer.param_groups[0]["lr"] = learning_rate(
                step, peak=rate, n_steps=n_epochs * n_batches, schedule=schedule
            )
            optimizer.zero_grad()
            F.cross_entropy(layer(features[chosen]), labels[chosen]).backward()
            optimizer.step()
    return torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach()


@pytest.mark.parametrize("schedule", ["thirds", "cosine"])
@pytest.mark.parametrize("n_passes", [1, 3])
def test_each_probe_is_what_torch_makes_of_it_alone(schedule, n_passes):
    passes = [blobs(83, seed=seed) for seed in range(n_passes)]
    features, labels = (torch.stack(parts) for parts in zip(*passes, strict=True))
    if n_passes == 1:
        features, labels = features[0], labels[0]
    seeds, rates = (0, 1, 1), (0.1, 0.1, 0.01)
    probes = trained(features, labels, seeds=seeds, rates=rates, n_epochs=7, schedule=schedule)
    for weights, seed, rate in zip(probes.weights, seeds, rates, strict=True):
        expected = torch_weights(passes, seed, rate, n_epochs=7, **SETTINGS | {"schedule": schedule})
        torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-5)
    assert probes.seconds > 0


def test_probe_is_the_same_alone_and_among_others_also_with_labels_of_its_own():
    features, labels = blobs(100)
    own = torch.stack([labels, 3 - labels, labels // 2])
    among = trained(features, own, seeds=(3, 4, 5), rates=[0.1, 0.2, 0.05])
    for i, rate in enumerate([0.1, 0.2, 0.05]):
        alone = trained(features, own[i], seeds=(3 + i,), rates=[rate])
        torch.testing.assert_close(alone.weights[0], among.weights[i], rtol=1e-5, atol=1e-6)
    test_features, test_labels = blobs(200, seed=1)
    tests = torch.stack([test_labels, 3 - test_labels, test_labels // 2])
    for name, accuracies in among.accuracies(test_features, tests).items():
        for i, accuracy in enumerate(accuracies):
            one = Probes(among.weights[i : i + 1], 0.0)
            assert one.accuracies(test_features, tests[i])[name] == [accuracy]
            assert 0.4 < accuracy < 1


def test_long_training_comes_to_the_optimum_of_scikit_learn():
    """Mean cross-entropy + decay / 2 * |w|^2 is scikit-learn's sum + |w|^2 / (2 C), for C = 1 / (decay * n)."""
    features, labels = blobs(96)
    features = F.pad(features, (0, 1), value=1.0)  # a bias that decays is a weight: scikit-learn's own does not
    options = {"n_epochs": 600, "batch_size": 32, "weight_decay": 0.02, "schedule": "cosine"}
    weights = trained(features[:, :-1], labels, rates=[0.5], **options).weights[0]
    exact = LogisticRegression(C=1 / (0.02 * 96), fit_intercept=False, tol=1e-8, max_iter=1000)
    exact.fit(features.numpy(), labels.numpy())
    torch.testing.assert_close(weights, torch.tensor(exact.coef_).float(), rtol=0.02, atol=0.01)


def test_accuracies_by_hand():
    # One feature x; outputs x, -x and -9. Right of five: those at 1, 2 and -1.
    weights = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.0, -9.0]]])
    features, labels = torch.tensor([[1.0], [2.0], [3.0], [-1.0], [-2.0]]), torch.tensor([0, 0, 1, 1, 0])
    found = Probes(weights, 0.0).accuracies(features, labels)
    assert found == {"top_1": [3 / 5], "mean_per_class": [pytest.approx((2 / 3 + 1 / 2) / 2)]}
    lifted = weights + torch.tensor([[[0.0, 0.0], [0.0, 0.0], [0.0, 19.0]]])  # a bias decides
    assert Probes(lifted, 0.0).accuracies(features, labels)["top_1"] == [0.0]


def test_probe_that_diverges_says_so_and_leaves_the_others_alone():
    features, labels = blobs(100)
    probes = trained(features, labels, seeds=(0, 0), rates=[0.1, 1e30], n_epochs=20)
    found = probes.accuracies(features, labels)
    assert [found[name][1] for name in found] == [None, None] and found["top_1"][0] > 0.6
    torch.testing.assert_close(probes.weights[:1], trained(features, labels, n_epochs=20).weights)


def test_every_batch_is_full_and_every_pass_has_a_turn():
    features = torch.zeros(3, 5, 2)  # outputs are biases, which count labels
    labels = torch.tensor([[0] * 5, [1] * 5, [2] * 5])
    flat = {"momentum": 0.0, "weight_decay": 0.0, "schedule": "constant"}
    probes = trained(features, labels, n_epochs=4, batch_size=2, rates=[1e-3], **flat)
    biases = torch.empty(4, 3).uniform_(-(2**-0.5), 2**-0.5, generator=seeded(0))[:, -1]
    # Eight steps of 1e-3 * (1 at the label - probability): two each of the passes 0, 1, 2 and again 0.
    moved = (probes.weights[0, :, -1] - biases) / 1e-3
    expected = torch.tensor([4.0, 2, 2, 0]) - 8 * biases.softmax(dim=0)
    torch.testing.assert_close(moved, expected, atol=0.02, rtol=0)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"seeds": ()}, "each probe needs a generator and a rate, got 0 and 0"),
        ({"seeds": (0, 1), "rates": [0.1]}, "got 2 and 1"),
        ({"batch_size": 0}, r"batch_size must lie in 1..20, the number of training images; got 0"),
        ({"batch_size": 21}, "got 21"),
        ({"labels": torch.zeros(3, 20, dtype=torch.int64)}, r"need labels of shape \(20,\), or \(1, 20\) .* \(3, 20\)"),
        ({"labels": torch.arange(20) % 5}, r"labels must lie in 0..3, got 0..4"),
        ({"labels": torch.arange(20) % 4 - 1}, r"got -1..2"),
        ({"features": torch.full((20, 6), math.nan)}, "NaN or infinite values; the network .* has diverged"),
        ({"schedule": "steps"}, "unknown learning-rate schedule 'steps'"),
    ],
)
def test_what_cannot_be_trained_is_refused(changes, message):
    features, labels = blobs(20)
    with pytest.raises(ValueError, match=message):
        trained(**{"features": features, "labels": labels} | changes)
