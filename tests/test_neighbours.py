"""Accuracy of nearest neighbours, by hand, against a slow formula, and on images."""

import math

import pytest
import torch
from torch import nn

from prunelab.features import features_of
from prunelab.neighbours import knn_accuracy, knn_test


def test_votes_by_hand():
    """Cosines of the test image with others: 1, twice 0.6, -1. At a temperature of 1 two are worth more than one."""
    features = torch.tensor([[2.0, 0.0], [3.0, 4.0], [0.6, -0.8], [-1.0, 0.0]])
    labels, test, wanted = torch.tensor([0, 1, 1, 2]), torch.tensor([[5.0, 0.0]]), torch.tensor([1])
    assert math.exp(1) < 2 * math.exp(0.6)
    assert knn_accuracy(features, labels, test, wanted, n_neighbours=3, temperature=1.0) == 1
    assert knn_accuracy(features, labels, test, wanted, n_neighbours=4, temperature=1.0) == 1
    assert math.exp(1 / 0.07) > 2 * math.exp(0.6 / 0.07)
    assert knn_accuracy(features, labels, test, wanted, n_neighbours=3) == 0
    assert knn_accuracy(features, labels, test, wanted, n_neighbours=1, temperature=1.0) == 0


def slow_accuracy(features, labels, test_features, test_labels, n_neighbours, temperature):
    """Image by image, in plain numbers."""
    n_correct = 0
    for own, wanted in zip(test_features.tolist(), test_labels.tolist(), strict=True):
        cosines = []
        for other, label in zip(features.tolist(), labels.tolist(), strict=True):
            product = sum(a * b for a, b in zip(own, other, strict=True))
            cosines.append((product / math.hypot(*own) / math.hypot(*other), label))
        votes = {}
        for cosine, label in sorted(cosines, reverse=True)[:n_neighbours]:
            votes[label] = votes.get(label, 0) + math.exp(cosine / temperature)
        n_correct += max(votes, key=votes.get) == wanted
    return n_correct / len(test_labels)


@pytest.mark.parametrize("n_neighbours", [1, 5, 20, 60])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_accuracy_is_that_of_a_slow_formula(n_neighbours, temperature):
    generator = torch.Generator().manual_seed(0)
    labels, test_labels = (torch.randint(0, 5, (n,), generator=generator) for n in (60, 300))  # more than one batch
    centres = torch.randn(5, 4, generator=generator)
    features, test = (
        c + 1.5 * torch.randn(c.shape, generator=generator) for c in (centres[labels], centres[test_labels])
    )
    options = {"n_neighbours": n_neighbours, "temperature": temperature}
    accuracy = knn_accuracy(features, labels, test, test_labels, **options)
    assert accuracy == slow_accuracy(features, labels, test, test_labels, **options) and 0.3 < accuracy < 0.9


@pytest.mark.parametrize("n_neighbours", [0, 4])
def test_impossible_numbers_of_neighbours_are_refused(n_neighbours):
    features, labels = torch.ones(3, 2), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match=rf"n_neighbours must lie in 1\.\.3, the number of images; got {n_neighbours}"):
        knn_accuracy(features, labels, features, labels, n_neighbours=n_neighbours)


class Pixels(nn.Module):
    """Features that are the pixels, and tell in which mode they were made."""

    def __init__(self):
        super().__init__()
        self.modes, self.head = [], nn.Linear(64, 10)

    def forward(self, images):
        self.modes.append(self.training)
        return self.head(images.flatten(1))


def test_features_are_those_of_all_images_in_order_and_in_evaluation_mode(digits):
    for mode in (True, False):
        backbone = Pixels().train(mode)
        features, labels = features_of(backbone, digits.test_batches(batch_size=100))
        assert backbone.training == mode and backbone.modes == [False] * 4
        assert torch.equal(labels, digits.test_labels) and not features.requires_grad
        whole, _ = next(iter(digits.test_batches(batch_size=1000)))
        assert torch.equal(features, whole.flatten(1))


def test_pixels_of_digits_are_near_their_like(digits):
    accuracy = knn_test(Pixels(), digits)
    everything = torch.cat([images for images, _ in digits.take(torch.arange(256)).test_batches(batch_size=1000)])
    train = (digits.train_images.permute(0, 3, 1, 2).float() / 255 - digits.mean) / digits.std
    expected = slow_accuracy(train.flatten(1), digits.train_labels, everything.flatten(1), digits.test_labels, 20, 0.07)
    assert accuracy == pytest.approx(expected, abs=1e-9) and accuracy > 0.8


@pytest.mark.parametrize(
    "features, temperature, message",
    [(1.0, 0.01, "temperature must be at least 0.02"), (float("nan"), 0.07, "features have NaN or infinite values")],
)
def test_votes_that_are_no_numbers_are_refused(features, temperature, message):
    own, labels = torch.full((3, 2), features), torch.arange(3)
    with pytest.raises(ValueError, match=message):
        knn_accuracy(own, labels, own, labels, n_neighbours=1, temperature=temperature)
