"""A network for a reader's own images: trained, made as fast as they want it, trained on, exported and timed."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunelab import data, export, files
from prunelab.channels import surgery
from prunelab.channels.timed import density_for, milliseconds, narrowed
from prunelab.channels.trace import trace
from prunelab.data import LabelledImages
from prunelab.precision import best_precision
from prunelab.progress import progress_of
from prunelab.runs import check_choice
from prunelab.shrinking.asked import (
    check_whole,
    claim,
    first_line,
    found_in,
    held,
    network_for,
    parsed,
    read,
    sha256,
)
from prunelab.shrinking.report import measured, table
from prunelab.training import train

__all__ = ["shrink_to", "table"]

BATCH_SIZE = 64  # unless there are fewer images
RATE, LOW_RATE = 0.05, 0.01  # peak learning rates, from new weights and from trained ones
# The smaller network is fine-tuned, for this share of the large one's epochs. In 03_rethinking new weights end at most
# 1.5 points ahead of that after L1 pruning, for some eight times the epochs, and have no use of weights from elsewhere.
SHARE_OF_EPOCHS = 0.5


def shrink_to(
    source: Path,
    latency: str,
    *,
    out: Path,
    model: str | nn.Module = "resnet18",
    weights: str = "imagenet",
    is_trained: bool = False,
    n_epochs: int = 20,
    batch_size: int | None = None,
    image_size: int = 224,
    device: str = "cpu",
    tell: Callable[[str], object] = lambda line: None,
) -> dict:
    """Trains a network on a folder of images, and a smaller one of its kind that takes at most a latency.

    In `out` appear `dense.prunelab` and, named after the latency, `5ms.prunelab`, which `surgery.load` reads into a
    network of the same kind, `5ms.onnx` where the extra `onnx` is installed, and last the report, `5ms.json`; beside
    them `options.json`, and `5ms.found`, what a search came to. A call that was stopped goes on where it was, one that
    came to its end gives its report again, and one for another latency takes the large network that is there.

    Args:
        source: Folder or archive, as for `data.load_from`.
        latency: Of one image on this device: "5ms", "0.8s", or "50%" of what the large network takes.
        out: Folder for all that is written; it belongs to these images and options.
        model: A name of `models.named`; or a network for colour images, with an output a class, of which a copy is
            trained from the values it has.
        weights: That a named network starts from, as for `named_network`, or a file that ends in .prunelab; of a given
            one "none" tells that it has new ones, which learn at a higher rate.
        is_trained: Whether the network has been trained on these images, and is only to be shrunk.
        n_epochs: Passes over the training images.
        batch_size: Images a training step; None takes 64, or all where there are fewer.
        image_size: Their height and width in pixels.
        device: Where networks are trained and timed, "cpu" or "cuda".
        tell: Called with a line of text now and then.
    Returns:
        The report: accuracy on the test images, weights, MACs, bytes, and quartiles of the latency in seconds, `before`
        and `after`; the share of the channels that stayed; `wanted` and `reached`, in seconds or as a share; the
        `file`, and what a user of it must know of its inputs.
    Raises:
        ValueError: Options or images that cannot be used, or a file in `out` that is damaged; or see `density_for`.
        FileExistsError: `out` belongs to other images or options.
        FileNotFoundError: No images, or no weights.
        OSError: Nothing can be written into `out`.
        RuntimeError: A loss is not finite, or another call is writing to `out`.
    """
    (wanted, is_share), source, out = parsed(latency), Path(source), Path(out)
    check_whole(n_epochs=n_epochs, image_size=image_size)
    check_choice("device", device, ("cpu", "cuda"))
    stem = latency.replace("%", "percent")
    dataset = data.load_from(source, image_size=image_size, device=device)
    batch_size = min(BATCH_SIZE, dataset.n_train) if batch_size is None else batch_size
    if type(batch_size) is not int or not 1 <= batch_size <= dataset.n_train:
        raise ValueError(f"batch_size must lie in 1..{dataset.n_train}, the training images; got {batch_size}")
    tell(f"{dataset.n_train:,} images to train on, {dataset.n_test:,} to test on, {dataset.num_classes} classes")
    network = network_for(model, weights, dataset, is_trained=is_trained)
    image = {"in_channels": dataset.channels, "image_size": image_size}
    name, is_new = model if isinstance(model, str) else type(network).__name__, weights == "none"
    rate = RATE if is_new else LOW_RATE
    options = {"images": dataset.sha256, "model": name, "weights": sha256(network, is_new=is_new)}
    options |= {"is_trained": is_trained, "learning_rate": rate}
    options |= {"image_size": image_size, "n_epochs": n_epochs, "batch_size": batch_size}
    with held(out):
        claim(out, options)
        if (report_file := out / f"{stem}.json").exists():
            report = read(report_file)
            tell(f"{report_file} is there already, timed on {report['device']}; remove {stem}.* to have it made anew")
            _tell_doubts(report, tell)
            return report
        data.check(dataset)

        found_file, asked = out / f"{stem}.found", options | {"device": device}
        if not (found := found_in(found_file, asked)):  # timed anew it might come out otherwise
            tell(f"narrower networks are timed{' beside the whole one' if is_share else ''}")
            found = density_for(network, trace(network, **image), wanted, is_share=is_share, **image)
            for suffix in (".prunelab", ".checkpoint"):  # of what was found before, of another width
                (out / f"{stem}{suffix}").unlink(missing_ok=True)
            files.atomic_write(found_file, json.dumps({"asked": asked, "found": found}))
        some = f"{found.density:.0%} of its channels"
        tell(f"{name} takes {milliseconds(found.seconds)} for an image, with {some} {found.share:.0%} of that")

        train_on = partial(_trained, dataset=dataset, batch_size=batch_size, precision=best_precision(device, name))
        if not is_trained:
            tell(f"the large network is trained from {'new weights' if is_new else 'the weights it has'}")
            network = train_on(network, out / "dense.prunelab", n_epochs=n_epochs, learning_rate=rate)
        tell("the smaller network is trained from what it keeps of those")
        smaller = narrowed(network, trace(network, **image), found.density, **image)
        n_short = max(1, round(SHARE_OF_EPOCHS * n_epochs))
        smaller = train_on(smaller, out / f"{stem}.prunelab", n_epochs=n_short, learning_rate=LOW_RATE)

        report = {"latency": latency, "file": f"{stem}.prunelab", "density": found.density, "options": options}
        report |= {"device": device, **measured({"before": network, "after": smaller}, dataset)}
        reached = 1 / report["speed_up"]["median"] if is_share else report["after"]["seconds"]["median"]
        report |= {"wanted": wanted, "reached": reached}
        _tell_doubts(report, tell)
        try:
            export.to_onnx(smaller, out / f"{stem}.onnx", **image)
        except Exception as error:  # exporters meet networks with errors of many kinds; this one is written already
            tell(f"no ONNX file: {first_line(error)}")
        files.atomic_write(report_file, json.dumps(report, indent=1))
    return report


def _tell_doubts(report: dict[str, Any], tell: Callable[[str], object]) -> None:
    """Tells what a reader of a report should not miss."""
    if report["reached"] > report["wanted"]:
        over = report["reached"] / report["wanted"] - 1
        tell(f"timed again it takes {over:.1%} more than asked for: the machine is busier, or was")
    if report["before"]["accuracy"] <= 1 / len(report["classes"]):
        tell("the large network does no better than guessing: give it more epochs, more images, or trained weights")


def _trained(network: nn.Module, path: Path, *, dataset: LabelledImages, n_epochs: int, **how: Any) -> nn.Module:
    """Trains a network and writes it to a file; or reads it, where it is there."""
    if path.exists():
        try:
            return surgery.load(network, path)
        except ValueError as error:
            raise ValueError(f"{error}; remove {path} to have it made anew") from error
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
