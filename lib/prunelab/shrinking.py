"""A network for a reader's own images: trained, made as fast as they want it, trained on, exported and timed."""

import copy
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunelab import cost, data, export, files
from prunelab.channels import surgery
from prunelab.channels.timed import Found, density_for, milliseconds, narrowed
from prunelab.channels.trace import trace
from prunelab.data import LabelledImages
from prunelab.data.folders import sha256_of_files
from prunelab.latency import compare, n_bytes
from prunelab.models.named import named_network
from prunelab.precision import best_precision
from prunelab.progress import progress_of
from prunelab.shadows import images_for, without_numbers
from prunelab.training import evaluate, train

N_ROUNDS = 50  # in which the two networks are timed in the end
RATE, LOW_RATE = 0.05, 0.01  # peak learning rates, from new weights and from trained ones
# The smaller network is fine-tuned, for this share of the large one's epochs. In 03_rethinking new weights end at most
# 1.5 points ahead of that after L1 pruning, for some eight times the epochs, and have no use of weights from elsewhere.
SHARE_OF_EPOCHS = 0.5
_UNITS = {"ms": 1e-3, "s": 1.0, "%": 0.01}


def shrink_to(
    source: Path,
    latency: str,
    *,
    out: Path,
    model: str | nn.Module = "resnet18",
    weights: str = "imagenet",
    is_trained: bool = False,
    n_epochs: int = 20,
    batch_size: int = 64,
    image_size: int = 224,
    device: str = "cpu",
    tell: Callable[[str], object] = lambda line: None,
) -> dict:
    """Trains a network on a folder of images, and a smaller one of its kind that takes at most a latency.

    In `out` appear `dense.prunelab` and, named after the latency, `5ms.prunelab`, which `surgery.load` reads into a
    network of the same kind, `5ms.onnx` where the extra `onnx` is installed, and last the report, `5ms.json`. A call
    that was stopped goes on where it was, one that came to its end gives its report again, and one for another latency
    takes the large network that is there.

    Args:
        source: Folder or archive, as for `data.load_from`.
        latency: Of one image on this device: "5ms", "0.8s", or "50%" of what the large network takes.
        out: Folder for all that is written; it belongs to these images and options.
        model: A name of `models.named`; or a network for colour images, with an output a class, of which a copy is
            trained from the values it has.
        weights: That a named network starts from, as for `named_network`; of a given one "none" tells that it has new
            ones, which learn at a higher rate.
        is_trained: Whether the network has been trained on these images, and is only to be shrunk.
        n_epochs: Passes over the training images.
        batch_size: Images a training step.
        image_size: Their height and width in pixels.
        device: Where networks are trained and timed, "cpu" or "cuda".
        tell: Called with a line of text now and then.
    Returns:
        The report: accuracy on the test images, weights, MACs, bytes, and quartiles of the latency in seconds, `before`
        and `after`; the share of the channels that stayed; the `file`, and what a user of it must know of its inputs.
    Raises:
        ValueError: Options or images that cannot be used; or see `density_for`.
        FileExistsError: `out` belongs to other images or options.
        FileNotFoundError: No images, or no weights.
        RuntimeError: The loss of a training became infinite.
    """
    wanted, is_share = _parsed(latency)
    stem, name = latency.replace("%", "percent"), model if isinstance(model, str) else type(model).__name__
    dataset = data.load_from(source, image_size=image_size, device=device)
    if not 1 <= batch_size <= dataset.n_train:
        raise ValueError(f"batch_size must lie in 1..{dataset.n_train}, the training images; got {batch_size}")
    tell(f"{dataset.n_train:,} images to train on, {dataset.n_test:,} to test on, {dataset.num_classes} classes")
    network = _network(model, weights, dataset)
    image = {"in_channels": dataset.channels, "image_size": image_size}
    asked = {"images": dataset.sha256, "model": name, "weights": _sha256(network), "is_trained": is_trained}
    asked |= {"image_size": image_size, "n_epochs": n_epochs, "batch_size": batch_size}
    _check_same(out / "options.json", asked)
    if (report_file := out / f"{stem}.json").exists():
        tell(f"{report_file} is there already; remove {stem}.* to have it made anew")
        return json.loads(report_file.read_text())
    data.check(dataset)

    if not (found_file := out / f"{stem}.found").exists():  # timed anew it might come out otherwise
        tell("narrower networks are timed beside the whole one")
        found = density_for(network, trace(network, **image), wanted, is_share=is_share, **image)
        files.require_folder(out)
        files.atomic_write(out / "options.json", json.dumps(asked, indent=1))
        files.atomic_write(found_file, json.dumps(found))
    found = Found(*json.loads(found_file.read_text()))
    some = f"{found.density:.0%} of its channels"
    tell(f"{name} takes {milliseconds(found.seconds)} for an image, with {some} {found.share:.0%} of that")

    train_on = partial(_trained, dataset=dataset, batch_size=batch_size, precision=best_precision(device, name))
    if not is_trained:
        rate, start = (RATE, "new weights") if weights == "none" else (LOW_RATE, "the weights it has")
        tell(f"the large network is trained from {start}")
        network = train_on(network, out / "dense.prunelab", n_epochs=n_epochs, learning_rate=rate)
    tell("the smaller network is trained from what it keeps of those")
    smaller = narrowed(network, trace(network, **image), found.density, **image)
    n_short = max(1, round(SHARE_OF_EPOCHS * n_epochs))
    smaller = train_on(smaller, out / f"{stem}.prunelab", n_epochs=n_short, learning_rate=LOW_RATE)

    report = {
        "latency": latency,
        "file": f"{stem}.prunelab",
        "density": found.density,
        "options": asked,
        "device": str(dataset.device),
    }
    report |= _compared({"before": network, "after": smaller}, dataset)
    reached = 1 / report["speed_up"]["median"] if is_share else report["after"]["seconds"]["median"]
    if reached > wanted:
        tell(f"timed again it takes {reached / wanted - 1:.0%} more than asked for: the machine is busier, or was")
    try:
        export.to_onnx(smaller, out / f"{stem}.onnx", **image)
    except Exception as error:  # exporters meet networks with errors of many kinds; this one is written already
        tell(f"no ONNX file: {(str(error) or type(error).__name__).splitlines()[0]}")
    files.atomic_write(report_file, json.dumps(report, indent=1))
    found_file.unlink()
    return report


def _parsed(latency: str) -> tuple[float, bool]:
    """Reads a latency: seconds, or a share and True."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|%)", latency, re.ASCII)
    if not match or not float(match[1]):
        raise ValueError(f"latency must be a time or a share above 0, such as 5ms, 0.8s or 50%; got {latency!r}")
    return float(match[1]) * _UNITS[match[2]], match[2] == "%"


def _network(model: str | nn.Module, weights: str, dataset: LabelledImages) -> nn.Module:
    """Returns the network to start from."""
    if isinstance(model, str):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            classes, size = dataset.num_classes, dataset.image_size
            network = named_network(model, num_classes=classes, image_size=size, weights=weights)
            return network.to(dataset.device, memory_format=torch.channels_last)
    outputs = without_numbers(model)(images_for(model, dataset.channels, dataset.image_size))
    if outputs.shape[1:] != (dataset.num_classes,):
        raise ValueError(
            f"{type(model).__name__} gives {tuple(outputs.shape[1:])} numbers for an image, but there are "
            f"{dataset.num_classes} classes: {', '.join(dataset.class_names[:5])}"
        )
    return copy.deepcopy(model).to(dataset.device, memory_format=torch.channels_last)


def _sha256(network: nn.Module) -> str:
    state = ((name, value.detach().cpu().reshape(-1)) for name, value in network.state_dict().items())
    return sha256_of_files((name, value.view(torch.uint8).numpy().tobytes()) for name, value in state)


def _check_same(path: Path, asked: dict) -> None:
    """Raises FileExistsError if a folder belongs to other images or options."""
    before = json.loads(path.read_text()) if path.exists() else asked
    if other := [
        f"{name} {before.get(name)}, not {value}" for name, value in asked.items() if before.get(name) != value
    ]:
        raise FileExistsError(f"{path.parent} is of calls with {'; '.join(other)}: remove it, or choose another folder")


def _trained(network: nn.Module, path: Path, *, dataset: LabelledImages, n_epochs: int, **how: Any) -> nn.Module:
    """Trains a network and writes it to a file; or reads it, where it is there."""
    if path.exists():
        return surgery.load(network, path)
    checkpoint = path.with_suffix(".checkpoint")
    devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices), progress_of(n_epochs, what="epochs") as bar:
        torch.manual_seed(0)
        result = train(
            network,
            dataset,
            n_epochs=n_epochs,
            schedule="cosine",
            warmup_epochs=min(1, n_epochs - 1),
            momentum=0.9,
            weight_decay=5e-4,
            label_smoothing=0.1,
            augment=True,
            eval_every=max(1, n_epochs // 5),
            generator=torch.Generator().manual_seed(0),
            checkpoint=checkpoint,
            report=lambda share: bar(share * n_epochs),
            **how,
        )
    if result.diverged:
        checkpoint.unlink(missing_ok=True)
        raise RuntimeError("the training has diverged: its loss is no longer finite; take other weights")
    surgery.save(network, path)
    checkpoint.unlink(missing_ok=True)
    return network


def _compared(networks: dict[str, nn.Module], dataset: LabelledImages) -> dict[str, Any]:
    """Measures all that is reported of two networks, and says what they take."""
    image = {"in_channels": dataset.channels, "image_size": dataset.image_size}
    timed = compare(networks, batch_size=1, n_rounds=N_ROUNDS, **image)
    found: dict[str, Any] = {}
    for name, network in networks.items():
        layers = cost.layer_table(network, **image)
        found[name] = {"accuracy": evaluate(network, dataset)[1], "n_bytes": n_bytes(network)}
        found[name] |= {column: cost.total(layers, column) for column in ("n_weights", "macs")}
        found[name]["seconds"] = timed[name].spread()._asdict()
    found["speed_up"] = timed["after"].speed_up_over(timed["before"])._asdict()
    pixels = "float32 (images, 3, height, width), RGB as shares of 255, minus the mean, over the deviation"
    mean, std = ([round(each, 6) for each in moment.tolist()] for moment in (dataset.mean, dataset.std))
    found["input"] = {"pixels": pixels, "mean": mean, "std": std, **image}
    return found | {"n_test": dataset.n_test, "n_threads": torch.get_num_threads(), "classes": dataset.class_names}


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
