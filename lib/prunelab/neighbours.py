"""How good a network's features are: whether images of a class are near each other, told without training anything.

Source: Wu et al. 2018, arXiv:1805.01978, Sec. 3.4; `eval_knn.py` in facebookresearch/dino.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunelab.data import LabelledImages
from prunelab.features import features_of_sets

N_NEIGHBOURS, TEMPERATURE = 20, 0.07
_BATCH_SIZE = 256


def knn_accuracy(
    features: Tensor,
    labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    n_neighbours: int = N_NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> float:
    """Returns the share of test images whose class has the most votes among their nearest neighbours.

    A neighbour's vote weighs exp(cosine / temperature).

    Args:
        features: Of labelled images, (n, n_features).
        labels: int64 (n,).
        test_features: Of the images to classify, (m, n_features).
        test_labels: int64 (m,).
        n_neighbours: That vote, at most n.
        temperature: Of the votes; low ones let the nearest decide.
    Raises:
        ValueError: An impossible number of neighbours or temperature, or features that are no numbers.
    """
    if not 1 <= n_neighbours <= len(features):
        raise ValueError(f"n_neighbours must lie in 1..{len(features)}, the number of images; got {n_neighbours}")
    if temperature < 0.02:
        raise ValueError(f"temperature must be at least 0.02, below which votes overflow; got {temperature}")
    if not all(found.isfinite().all() for found in (features, test_features)):
        raise ValueError("features have NaN or infinite values, so no image is near another")
    features, test_features = F.normalize(features, dim=1), F.normalize(test_features, dim=1)
    n_classes = int(torch.cat([labels, test_labels]).max()) + 1
    n_correct = torch.zeros((), dtype=torch.int64, device=labels.device)
    for own, wanted in zip(test_features.split(_BATCH_SIZE), test_labels.split(_BATCH_SIZE), strict=True):
        cosines, nearest = (own @ features.T).topk(n_neighbours)
        votes = torch.zeros(len(own), n_classes, device=labels.device)
        votes.scatter_add_(1, labels[nearest], (cosines / temperature).exp())
        n_correct += (votes.argmax(dim=1) == wanted).sum()
    return int(n_correct) / len(test_labels)


def knn_test(backbone: nn.Module, dataset: LabelledImages) -> float:
    """Returns the accuracy of a backbone's features on the test images, whose neighbours are the training images."""
    train, test = features_of_sets(backbone, dataset)
    return knn_accuracy(*train, *test)
