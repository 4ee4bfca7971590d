"""SynFlow: a weight counts by how much flows through it when all weights are positive; no image is looked at.

Source: Tanaka et al. 2020, arXiv:2006.05467, Eq. 2 and Algorithm 1; ganguli-lab/Synaptic-Flow.
"""

import torch
from torch import Tensor, nn

from prunelab.scores.gradients import Batches, Weights, check_batches, differentiable, summed_gradients


def synflow_scores(model: nn.Module, weights: Weights, batches: Batches) -> dict[str, Tensor]:
    """Returns |dR/dw * w| of each weight, where R is the sum of the outputs for an image of ones.

    All parameters and buffers are replaced by their magnitudes, and the arithmetic is in double precision: R is about
    the product of all layers' sizes. In a network of ReLUs without biases or normalisation the scores of every layer
    sum to R, so that pruned in rounds no layer is emptied before the network must be; the authors take 100 rounds, see
    `rounds.prune_in_rounds`. A pruned weight, stored as zero, scores 0.

    Normalisation breaks this. BatchNorm, in evaluation mode, scales the flow and takes its running mean off, so that
    the layers' sums differ. LayerNorm centres the flow and divides by its size: R is blind to the scale of all that is
    added up before it, the signed scores of which (in a transformer with a last LayerNorm: of embeddings, `proj` and
    `fc2`) sum to 0, and their magnitudes only tell how a weight turns the flow.

    Args:
        model: Any network of images.
        weights: By layer name; frozen ones are scored too.
        batches: Only the shape of the first image counts.
    Returns:
        Score of each weight in float64, by layer name.
    Raises:
        ValueError: See `gradients.check_weights`, `gradients.check_batches` and `gradients.summed_gradients`.
    Source: Tanaka et al. 2020, Eq. 2; magnitudes of buffers and of the product, and evaluation mode, as in the authors'
        code.
    Differs: Double precision, which the authors' code has commented out.
    """
    check_batches(batches)
    images, labels = batches[0]
    twin, own = differentiable(model, weights)
    twin.double()
    with torch.no_grad():
        for value in (*twin.parameters(), *twin.buffers()):
            if value.is_floating_point():
                value.abs_()
    ones = torch.ones_like(images[:1], dtype=torch.float64)
    gradients = summed_gradients(twin, own, [(ones, labels[:1])], lambda images, _: twin(images).sum())
    return {name: (gradient * own[name].detach()).abs() for name, gradient in gradients.items()}
