"""What became of a network: what the large one and the smaller one cost, and get right."""

import math
from typing import Any

import torch
from torch import nn

from prunelab import cost, data
from prunelab.data import LabelledImages, folders
from prunelab.latency import compare, measure, n_bytes
from prunelab.training import evaluate

N_ROUNDS = 50  # in which networks are timed


def measured(networks: dict[str, nn.Module], dataset: LabelledImages) -> dict[str, Any]:
    """Measures all that is reported of two networks, and says what they take.

    Seconds are those of a network that runs alone, as it will be used; how many times as fast the smaller one is, those
    of rounds in which both run in turn.

    Args:
        networks: `before` and `after`.
        dataset: On whose test images.
    Raises:
        RuntimeError: Outputs that are not finite.
    """
    image = {"in_channels": dataset.channels, "image_size": dataset.image_size}
    timing = {"batch_size": 1, "n_rounds": N_ROUNDS, **image}
    found: dict[str, Any] = {}
    for name, network in networks.items():
        loss, accuracy = evaluate(network, dataset)
        if not math.isfinite(loss):
            raise RuntimeError(f"the network {name} shrinking gives outputs that are not finite; take other weights")
        layers = cost.layer_table(network, **image)
        found[name] = {"accuracy": accuracy, "n_bytes": n_bytes(network)}
        found[name] |= {column: cost.total(layers, column) for column in ("n_weights", "macs")}
        found[name]["seconds"] = measure(network, **timing).spread()._asdict()
    timed = compare(networks, **timing)
    found["speed_up"] = timed["after"].speed_up_over(timed["before"])._asdict()
    found["input"] = {"pixels": _pixels(dataset), **image}
    for name, moment in (("mean", dataset.mean), ("std", dataset.std)):
        found["input"][name] = [round(each, 6) for each in moment.tolist()]
    return found | {"n_test": dataset.n_test, "n_threads": torch.get_num_threads(), "classes": [*dataset.class_names]}


def _pixels(dataset: LabelledImages) -> str:
    """Says what is done to an image, in words."""
    cut = folders.CUT if isinstance(dataset, data.Dataset) else dataset.cut
    shape = "float32 (images, 3, height, width), RGB as shares of 255, minus the mean, over the deviation"
    return f"{cut}; orientation tags are ignored; then {shape}"


def table(report: dict) -> list[dict[str, str]]:
    """Lists the numbers of a report for reading, one dict a row: what it is, `before` and `after`."""
    before, after = report["before"], report["after"]
    times = [" ".join(f"{1e3 * each:.3g}" for each in own["seconds"].values()) for own in (before, after)]
    rows = {
        f"% of {report['n_test']:,} test images right": [f"{100 * own['accuracy']:.1f}" for own in (before, after)],
        "weights": [f"{own['n_weights']:,}" for own in (before, after)],
        "MACs": [f"{own['macs']:,}" for own in (before, after)],
        "bytes": [f"{own['n_bytes']:,}" for own in (before, after)],
        "ms for an image (quartiles)": times,
        "times as fast (quartiles)": ["", " ".join(f"{each:.2f}" for each in report["speed_up"].values())],
    }
    return [{"": name, "before": one, "after": other} for name, (one, other) in rows.items()]
