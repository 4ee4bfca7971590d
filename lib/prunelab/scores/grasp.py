"""GraSP: the weights stay without which the gradient would shrink, and training with it.

Source: Wang et al. 2020, arXiv:2002.07376, Eq. 8 and Algorithm 2; alecwangcq/GraSP.
"""

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from prunelab.scores.gradients import (
    Batches,
    Weights,
    check_batches,
    differentiable,
    summed_gradients,
    summed_loss,
)


def grasp_scores(
    model: nn.Module, weights: Weights, batches: Batches, *, temperature: float = 200.0
) -> dict[str, Tensor]:
    """Returns w * Hg of each weight: half of what the gradient's squared norm loses, to first order, without it.

    g and H are gradient and Hessian, in the scored weights, of the mean cross-entropy over all images of all batches.
    A weight of negative score holds the gradient back; the authors remove the largest -w * Hg, so the largest w * Hg
    stay. Two passes over the batches: g first, then the gradient of its product with a copy of g that is held fixed.

    Args:
        model: Returns logits; all its operations must have second derivatives.
        weights: By layer name; frozen ones are scored too.
        batches: Images and labels, on the model's device.
        temperature: Divides the logits, above 0; so large, the outputs of a fresh network are all but uniform.
    Returns:
        Score of each weight, by layer name; of either sign, and 0 for a weight that is 0.
    Raises:
        ValueError: A temperature that is not above 0, or weights in float16; else see `snip.snip_scores`.
    Source: Wang et al. 2020, Eq. 8; temperature as in the authors' code.
    Differs: Not divided by the magnitude of the sum of all scores, which changes no ranking. Evaluation mode, see
        `gradients`, and a mean over images; the authors sum over half batches in training mode. The output layer is
        not drawn anew.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if half := [name for name, weight in weights.items() if weight.dtype == torch.float16]:
        raise ValueError(f"gradients so small vanish in float16, which layer {half[0]!r} has; give float32 or bfloat16")
    check_batches(batches)
    n_images = sum(len(labels) for _, labels in batches)
    twin, own = differentiable(model, weights)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        return summed_loss(twin, images, labels, temperature=temperature) / n_images

    gradients = summed_gradients(twin, own, batches, loss)

    def product(images: Tensor, labels: Tensor) -> Tensor:
        again = torch.autograd.grad(loss(images, labels), list(own.values()), create_graph=True, materialize_grads=True)
        return sum((fixed * gradient).sum() for fixed, gradient in zip(gradients.values(), again, strict=True))

    with sdpa_kernel(SDPBackend.MATH):  # the only kernel of attention that can be differentiated twice
        curvature = summed_gradients(twin, own, batches, product)
    return {name: curved * own[name].detach() for name, curved in curvature.items()}
