"""SNIP: a weight counts by what the loss loses, to first order, when the weight is scaled down.

Source: Lee et al. 2019, arXiv:1810.02340, Eq. 4-6.
"""

from torch import Tensor, nn

from prunelab.scores.gradients import Batches, Weights, check_batches, differentiable, summed_gradients, summed_loss


def snip_scores(model: nn.Module, weights: Weights, batches: Batches) -> dict[str, Tensor]:
    """Returns |dL/dw * w| of each weight, where L is the mean cross-entropy over all images of all batches.

    The magnitude is taken of the sum over images, in which their gradients may cancel; how images are split into
    batches does not matter.

    Args:
        model: Returns logits. A classifier that is still random makes the gradients noise: train it first, by itself.
        weights: By layer name; frozen ones are scored too.
        batches: Images and labels, on the model's device.
    Returns:
        Score of each weight, by layer name.
    Raises:
        ValueError: See `gradients.check_weights`, `gradients.summed_loss` and `gradients.summed_gradients`.
    Source: Lee et al. 2019, Eq. 6.
    Differs: Not divided by the sum of all scores, which changes no ranking. Evaluation mode, see `gradients`; the
        authors' networks are in training mode.
    """
    check_batches(batches)
    n_images = sum(len(labels) for _, labels in batches)
    twin, own = differentiable(model, weights)
    gradients = summed_gradients(
        twin, own, batches, lambda images, labels: summed_loss(twin, images, labels) / n_images
    )
    return {name: (gradient * own[name].detach()).abs() for name, gradient in gradients.items()}
