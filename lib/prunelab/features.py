"""Features of images: what a trained network's head reads, of each image once, or of several augmented copies."""

import math
from collections.abc import Iterable
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunelab.data import LabelledImages
from prunelab.models.trunk import head_of

_BATCH_SIZE, _PIXELS = 256, 256 * 64**2  # of a batch at most


@torch.no_grad()
def features_of(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Works out the features of images, in evaluation mode: batch normalisation takes its running statistics.

    Args:
        model: Any network whose outputs are those of a linear layer, its head; left in the mode it was in.
        batches: Images and labels.
    Returns:
        features: What the head reads, float32 (n, d): of our convolutional networks, but a VGG with a hidden layer, the
            channels after global average pooling; of a ViT the class token.
        labels: (n,).
    Raises:
        ValueError: The network has no head, or goes on after it.
    """
    head, seen, features, labels = head_of(model), [], [], []
    hook = model.get_submodule(head).register_forward_hook(
        lambda module, inputs, output: seen.append((*inputs, output))
    )
    was_training = model.training
    model.eval()
    try:
        for images, own_labels in batches:
            outputs = model(images)
            if not seen or seen[-1][1] is not outputs:
                raise ValueError(
                    f"the outputs of {type(model).__name__} are not those of {head!r}, its last linear layer, so what"
                    " that layer reads is not its features; let the network end with it"
                )
            features.append(seen[-1][0].float())
            labels.append(own_labels)
            seen.clear()
    finally:
        hook.remove()
        model.train(was_training)
    return torch.cat(features), torch.cat(labels)


@torch.no_grad()
def map_layer(model: nn.Module, images: Tensor) -> tuple[str, Tensor]:
    """Finds the feature maps that a network's head reads averaged over the image.

    Args:
        model: As for `features_of`.
        images: Some, (n, c, h, h).
    Returns:
        layer: Name of the first layer that puts these maps out, perhaps before their ReLU.
        maps: Of the images, (n, d, h', h'), after it.
    Raises:
        ValueError: There are no such maps, as in a network with a hidden layer after them, or a ViT.
    """
    outputs: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda module, inputs, output, name=name: outputs.update({name: output}))
        for name, module in model.named_modules()
    ]
    try:
        features, _ = features_of(model, [(images, images)])
    finally:
        for hook in hooks:
            hook.remove()
    for name, output in outputs.items():
        if isinstance(output, Tensor) and output.dim() == 4:
            means = F.relu(output).mean(dim=(2, 3))
            if means.shape == features.shape and (means - features).norm() <= 1e-4 * features.norm():
                return name, F.relu(output)
    raise ValueError(f"the head of {type(model).__name__} reads no feature maps averaged over the image")


def features_of_sets(model: nn.Module, dataset: LabelledImages) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Returns what `features_of` does for all training images as they are, in order, and for all test images."""
    everything = torch.arange(dataset.n_train, device=dataset.device)
    train, test = (
        features_of(model, images.test_batches(batch_size=_batch_size(images)))
        for images in (dataset.take(everything, held_out=everything), dataset)
    )
    return train, test


def augmented_features(
    model: nn.Module, dataset: LabelledImages, *, n_passes: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Works out the features of the training images anew for each of several passes, augmented as in training.

    Args:
        model: As for `features_of`.
        dataset: On the model's device.
        n_passes: At least 1.
        generator: Orders and augments the images, on the CPU.
    Returns:
        features: float32 (passes, n, d), each pass in an order of its own. As in training, batches are full, so that a
            pass may leave out some images: fewer than it has batches.
        labels: (passes, n).
    Raises:
        ValueError: No pass; else as for `features_of`.
    """
    if n_passes < 1:
        raise ValueError(f"n_passes must be at least 1, got {n_passes}")
    n_batches = math.ceil(dataset.n_train / _batch_size(dataset))
    batches = dataset.train_batches(batch_size=dataset.n_train // n_batches, augment=True, generator=generator)
    passes = [features_of(model, islice(batches, n_batches)) for _ in range(n_passes)]
    features, labels = zip(*passes, strict=True)
    return torch.stack(features), torch.stack(labels)


def _batch_size(dataset: LabelledImages) -> int:
    return max(1, min(_BATCH_SIZE, _PIXELS // dataset.image_size**2))
