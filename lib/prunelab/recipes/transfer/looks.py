"""What is done with a network besides training it: classifiers on its features, and looking at it."""

import statistics
import time

import torch
from torch import nn

from prunelab import cost
from prunelab.channels.dead import channel_table
from prunelab.data import LabelledImages
from prunelab.data.downstream import metric_of
from prunelab.features import augmented_features, features_of_sets
from prunelab.probes import train_probes
from prunelab.recipes.common import generator_of, image_of
from prunelab.recipes.recipe import State
from prunelab.recipes.structures import same_network
from prunelab.recipes.transfer.plan import TransferOptions
from prunelab.training import evaluate


def probe(options: TransferOptions, dataset: LabelledImages, model: nn.Module, *, seed: int) -> dict:
    """Trains classifiers on the features of a frozen network, and tells how accurate they are on average."""
    started = time.monotonic()
    train, test = features_of_sets(model, dataset)
    if options.n_passes:
        drawn = generator_of("augmented", seed)
        train = augmented_features(model, dataset, n_passes=options.n_passes, generator=drawn)
    probes = train_probes(
        *train,
        num_classes=dataset.num_classes,
        generators=[generator_of(f"probe {number}", seed) for number in range(options.n_probes)],
        learning_rates=[options.learning_rate] * options.n_probes,
        **{name: getattr(options, name) for name in ("n_epochs", "batch_size", "momentum", "weight_decay", "schedule")},
    )
    accuracies = probes.accuracies(*test)[metric_of(options.dataset)]
    mean = None if None in accuracies else statistics.mean(accuracies)
    return {
        "status": "diverged" if mean is None else "finished",
        "metrics": {"test_accuracy": mean, "n_features": train[0].shape[-1]},
        "curves": {"probe": list(range(options.n_probes)), "test_accuracy": accuracies},
        "seconds": time.monotonic() - started,
    }


def inspect(options: TransferOptions, dataset: LabelledImages, parent: State) -> dict:
    """Tests a network as it is, with its own head, on images held out of its training; counts dead channels."""
    started = time.monotonic()
    model = same_network(options, dataset, parent).to(dataset.device, memory_format=torch.channels_last)
    _, accuracy = evaluate(model, dataset)
    channels = channel_table(model, {name: mask.cpu() for name, mask in parent.masks.items()}, **image_of(dataset))
    shares = {
        f"dead_{kind}": cost.total(channels, f"n_dead_{kind}") / cost.total(channels, f"n_{kind}")
        for kind in ("filters", "inputs")
    }
    return {
        "metrics": {"validation_accuracy": accuracy} | shares,
        "channels": channels,
        "curves": {},
        "seconds": time.monotonic() - started,
    }
