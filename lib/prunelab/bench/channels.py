"""What choosing channels and removing them takes, and what a smaller network gains by it."""

from collections.abc import Mapping

import torch
from torch import nn

from prunelab import cost, data, latency, workers
from prunelab.bench.plans import seconds
from prunelab.channels import reconstruction, thinet
from prunelab.channels.filters import uniform_counts
from prunelab.channels.surgery import shrink
from prunelab.channels.trace import Trace, trace
from prunelab.models import build_model
from prunelab.recipes.common import image_of

IMAGE = {"in_channels": 3, "image_size": 32}
SELECTIONS = {"ThiNet": thinet.prune, "regression": reconstruction.prune}
N_IMAGES = 250  # on which channels are chosen
SHARE_STEPS = 256  # the share of channels that stay is found to this fraction


def gains(name: str, *, batch_size: int, n_rounds: int) -> list[float]:
    """Returns the speed-up of a network at half the MACs over its ratio of MACs, each round."""
    device = workers.resolve_device("auto")
    networks = {"large": _network(name).to(device), "small": _network(name, half_widths(name)).to(device)}
    ratio = _macs(networks["large"]) / _macs(networks["small"])
    spent = latency.compare(networks, batch_size=batch_size, n_rounds=n_rounds, **IMAGE)
    rounds = zip(spent["large"].seconds, spent["small"].seconds, strict=True)
    return [large / small / ratio for large, small in rounds]


def half_widths(name: str) -> dict[str, int]:
    """Counts the channels of each convolution that may lose some, at the share that is nearest to half the MACs."""
    with torch.device("meta"):
        large = _network(name)
        widths, half = _conv_widths(trace(large, **IMAGE)), _macs(large) / 2

        def counts(step: int) -> dict[str, int]:
            return uniform_counts(widths, density=step / SHARE_STEPS)

        def macs(step: int) -> int:
            return _macs(_network(name, counts(step)))

        return counts(cost.nearest_step(half, macs, most=SHARE_STEPS))


def surgery_seconds() -> float:
    """Times the removal of half of the channels of each layer of a ResNet-110 that may lose some."""
    model = _network("resnet110")
    kept = {name: range(n) for name, n in uniform_counts(trace(model, **IMAGE).widths, density=0.5).items()}
    return seconds(lambda: shrink(model, kept, **IMAGE))


def selection_seconds(method: str, images: dict) -> float:
    """Times how a key of `SELECTIONS` chooses half of the channels of each convolution of a VGG-16."""
    device = workers.resolve_device("auto")
    dataset = data.load(images["dataset"], n_train=images["n_train"], device=device)
    generator = torch.Generator().manual_seed(0)
    batch, _ = next(dataset.train_batches(batch_size=N_IMAGES, augment=False, generator=generator))
    image = image_of(dataset)
    model = build_model("vgg16", num_classes=dataset.num_classes, **image).to(device)
    traced = trace(model, **image)
    counts = uniform_counts(_conv_widths(traced), density=0.5)
    readers = {name: traced.readers(name)[0] for name in counts}
    return seconds(lambda: SELECTIONS[method](model, batch, readers=readers, counts=counts, generator=generator))


def _network(name: str, widths: Mapping[str, int] | None = None) -> nn.Module:
    return build_model(name, num_classes=10, widths=widths, **IMAGE)


def _macs(model: nn.Module) -> int:
    return cost.total(cost.layer_table(model, **IMAGE), "macs")


def _conv_widths(traced: Trace) -> dict[str, int]:
    return {name: n for name, n in traced.widths.items() if isinstance(traced.layers[name].module, nn.Conv2d)}
