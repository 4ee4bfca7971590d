"""What probes on a frozen network take, and WoodFisher, and a sparse network in each way of running it."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from prunelab import latency, workers
from prunelab.bench.plans import seconds
from prunelab.bench.steps import as_in_training
from prunelab.masks import layer_weights, random_mask
from prunelab.models import build_model
from prunelab.probes import train_probes
from prunelab.recipes.common import dataset_of, network_of
from prunelab.recipes.masking import build_method
from prunelab.recipes.rigl.plan import RigLOptions
from prunelab.sparse_inference import WAYS, backbone_of

N_PROBES = 8
N_IMAGES, N_FEATURES, N_CLASSES = 2000, 96, 10  # a task of the small profile
TRAINING = {"batch_size": 64, "momentum": 0.9, "weight_decay": 5e-4}
RATE = 0.01
# A network, the images that it is given, and in batches of how many.
NETWORKS = {
    "ResNet-8, 16 px": ({"name": "resnet8", "width": 1.5, "image_size": 16}, 2000, 250),
    "ResNet-50, 224 px": ({"name": "resnet50", "image_size": 224}, 16, 16),
}


@as_in_training()
def probe_ratios(*, n_epochs: int, n_rounds: int) -> dict[str, list[float]]:
    """Divides the time of 8 probes one after another by that of all together, each round.

    Returns:
        "ordinary", by an ordinary loop over a linear layer and PyTorch's optimizer, and "alone", by our own code.
    """
    device = workers.resolve_device("auto")
    features = torch.randn(N_IMAGES, N_FEATURES, generator=_generator(0)).to(device)
    labels = torch.randint(N_CLASSES, (N_IMAGES,), generator=_generator(1)).to(device)

    def train(seeds: Sequence[int]) -> None:
        train_probes(
            features,
            labels,
            num_classes=N_CLASSES,
            generators=[_generator(seed) for seed in seeds],
            learning_rates=[RATE] * len(seeds),
            n_epochs=n_epochs,
            schedule="thirds",
            **TRAINING,
        )

    def train_ordinarily(seed: int) -> None:
        probe = nn.Linear(N_FEATURES, N_CLASSES).to(device)
        optimizer = torch.optim.SGD(probe.parameters(), lr=RATE, momentum=0.9, weight_decay=TRAINING["weight_decay"])
        generator, size = _generator(seed), TRAINING["batch_size"]
        for _ in range(n_epochs):
            order = torch.randperm(N_IMAGES, generator=generator).to(device)
            for batch in order[: N_IMAGES // size * size].split(size):
                optimizer.zero_grad()
                F.cross_entropy(probe(features[batch]), labels[batch]).backward()
                optimizer.step()
        float(probe.bias.detach()[0])  # waits for a GPU

    seeds = range(N_PROBES)
    sides = {
        "together": lambda _: train(seeds),
        "alone": lambda _: [train([seed]) for seed in seeds],
        "ordinary": lambda _: [train_ordinarily(seed) for seed in seeds],
    }
    spent = latency.in_turn(sides, n_rounds=n_rounds, n_warm_up=1)
    together = spent.pop("together")
    return {side: [own / ours for own, ours in zip(taken, together, strict=True)] for side, taken in spent.items()}


@as_in_training()
def woodfisher_seconds(images: dict, *, n_gradients: int) -> float:
    """Times one pruning of a ResNet-20 to a tenth by WoodFisher, with the estimate of the Fisher matrix."""
    options = RigLOptions(**images, method="woodfisher", density=0.1, fisher_gradients=n_gradients)
    device = workers.resolve_device("auto")
    dataset = dataset_of(options, device)
    model = network_of(options, dataset, width=1.0).to(device, memory_format=torch.channels_last)
    masking = build_method(options, model, None, dataset, n_epochs=1, seed=0)

    def prune() -> None:
        masking.prune(masking.end_step)
        float(next(iter(masking.weights.values())).detach().sum())  # waits for a GPU

    return seconds(prune)


@as_in_training()
def way_ratios(
    label: str, ways: Sequence[str], *, density: float, dead_share: float = 0.0, n_rounds: int
) -> dict[str, list[float]]:
    """Divides the time of a sparse network in some ways by that as if it were dense, each round.

    Args:
        label: A key of `NETWORKS`.
        ways: Keys of `WAYS`.
        density: Share of each layer's weights that is active, at random.
        dead_share: Share of each layer's filters that has none of them.
        n_rounds: How often each way is timed.
    """
    options, n_images, batch_size = NETWORKS[label]
    backbone = sparse_backbone(options, density=density, dead_share=dead_share)
    size = options["image_size"]
    images = torch.randn(n_images, 3, size, size, generator=_generator(0))
    runs = {way: WAYS[way](backbone, images[:batch_size]) for way in ("dense", *ways)}
    rounds = [{way: run(images)[1] for way, run in runs.items()} for _ in range(n_rounds)]
    return {way: [spent[way] / spent["dense"] for spent in rounds] for way in ways}


@torch.no_grad()
def sparse_backbone(options: dict, *, density: float, dead_share: float) -> nn.Module:
    """Returns a network without head, under random masks, as for `way_ratios`; what is left of a filter is live."""
    backbone, generator = backbone_of(build_model(**options, num_classes=N_CLASSES)), _generator(0)
    for weight in layer_weights(backbone).values():
        live = torch.randperm(len(weight), generator=generator)[round(dead_share * len(weight)) :]
        mask = torch.zeros(weight.shape, dtype=torch.bool)
        shape = weight[live].shape
        mask[live] = random_mask(shape, min(shape.numel(), round(density * weight.numel())), generator=generator)
        weight.mul_(mask)
    return backbone


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
