"""RigL and its rivals: what `01_rigl` trains, and how one of its runs is executed.

Source: Evci et al. 2020, arXiv:1911.11134; the CIFAR-10 protocol of google-research/rigl, shortened as profiles say.
"""

import bisect
import functools
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from prunelab import cost, data
from prunelab.density import check_density
from prunelab.methods import METHODS, check_method
from prunelab.methods.dynamic import Dynamic
from prunelab.methods.static import Static, active_counts, initial_masks
from prunelab.models import build_model
from prunelab.runs import Option, Run, make_run
from prunelab.training import train

NOTEBOOK = "01_rigl"
PROFILES = ("smoke", "small", "full", "paper")

OPTIONS: dict[str, Option] = {
    "method": "rigl",
    "density": 0.1,
    "distribution": "erk",
    "model": "resnet20",
    "width": 1.0,
    "dataset": "cifar10",
    "image_size": None,
    "n_train": None,
    "n_epochs": 100,
    "batch_size": 128,
    "learning_rate": 0.1,
    "schedule": "cosine",
    "warmup_epochs": 0,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "label_smoothing": 0.0,
    "augment": True,
    "eval_every": 1,
    "drop_fraction": 0.3,
    "update_every": 100,
    "stop_update": 0.75,
    "decay": "cosine",
}

# How each profile departs from the defaults. `paper` is the paper's own CIFAR-10 protocol (Sec. 4.3); its ImageNet
# experiments do not fit a data set that lives on the device, and are not planned here.
_BASES: dict[str, dict[str, Option]] = {
    "smoke": {
        "model": "resnet8",
        "width": 0.5,
        "dataset": "digits",
        "n_epochs": 6,
        "batch_size": 64,
        "update_every": 10,
    },
    "small": {
        "model": "resnet8",
        "image_size": 16,
        "n_train": 10_000,
        "n_epochs": 20,
        "eval_every": 5,
    },
    "full": {"n_epochs": 60},
    "paper": {
        "model": "wrn22_2",
        "n_epochs": 250,
        "schedule": "step",
    },
}
_DENSITIES = {
    "smoke": (0.2, 0.1),
    "small": (0.2, 0.1, 0.05, 0.02),
    "full": (0.5, 0.2, 0.1, 0.05, 0.02),
    "paper": (0.5, 0.2, 0.1, 0.05),
}
# Where the distributions are compared; ERK is there already.
_DISTRIBUTION_DENSITIES = {"smoke": (0.1,), "small": (0.1, 0.05), "full": (0.1, 0.05), "paper": (0.1, 0.05)}
_SEEDS = {"smoke": (0, 1, 2), "small": (0, 1, 2), "full": (0, 1, 2), "paper": (0, 1, 2)}


def plan(profile: str, *, seeds: Iterable[int] | None = None) -> list[Run]:
    """The runs behind the notebook's figures.

    Args:
        profile: One of `PROFILES`.
        seeds: Instead of the profile's own.
    Raises:
        ValueError: Unknown profile, no seed, or a seed twice.
    """
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}; there are {', '.join(PROFILES)}")
    seeds = _SEEDS[profile] if seeds is None else tuple(seeds)
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be one or more different numbers, got {list(seeds)}")

    points: list[dict[str, Option]] = [{"method": "dense", "density": 1.0}]
    for density in _DENSITIES[profile]:
        for method in METHODS:
            if method != "dense":
                points.append({"method": method, "density": density})
    for density in _DISTRIBUTION_DENSITIES[profile]:
        for distribution in ("erdos_renyi", "uniform"):
            for method in ("static", "rigl"):
                points.append({"method": method, "density": density, "distribution": distribution})
    return [make_run("rigl", OPTIONS, seed=seed, **_BASES[profile], **point) for seed in seeds for point in points]


def execute(
    run: Run, *, device: str, checkpoint: Path | None = None, report: Callable[[float], None] = lambda share: None
) -> dict:
    """Trains one run.

    Args:
        run: One of a plan's.
        device: Where to train, "cpu" or "cuda".
        checkpoint: File for the state of the unfinished run.
        report: Called now and then with the share of training done.
    Returns:
        The record's `status`, `metrics`, `curves`, `layers`, `moves`, `seconds` and `dataset`.
    Raises:
        ValueError: An option that names nothing, or a density outside (0, 1].
    """
    options = OPTIONS | dict(run.options)
    check_method(options["method"])
    check_density(options["density"])
    dataset = _dataset(options["dataset"], options["image_size"], options["n_train"], device)
    torch.manual_seed(run.seed)  # initialisation, and dropout where there is any
    model = build(options, dataset).to(device)
    method = _build_method(options, model, dataset, seed=run.seed)
    result = train(
        model,
        dataset,
        method=method,
        generator=_generator("images", run.seed),
        checkpoint=checkpoint,
        report=report,
        **{name: options[name] for name in _TRAINING_OPTIONS},
    )

    reference = cost.layer_table(_model(options, dataset, options["width"]), **_image(dataset))
    n_active = {name: int(mask.sum()) for name, mask in method.masks.items()} if method else {}
    layers = cost.layer_table(model, n_active=n_active, **_image(dataset))
    macs, dense_macs = cost.total(layers, "macs"), cost.total(reference, "macs")
    training_macs = cost.training_macs(
        cost.total(cost.layer_table(model, **_image(dataset)), "macs"),
        macs,
        n_samples=result.n_batches * options["batch_size"],
        n_dense_gradient_samples=method.n_dense_gradients * options["batch_size"] if method else 0,
    )
    n_steps = options["n_epochs"] * (len(dataset.train_labels) // options["batch_size"])
    dense_training_macs = cost.training_macs(dense_macs, dense_macs, n_samples=n_steps * options["batch_size"])
    return {
        "status": "diverged" if result.diverged else "finished",
        "metrics": {
            "test_accuracy": result.curves["test_accuracy"][-1],
            "test_loss": result.curves["test_loss"][-1],
            "train_loss": result.curves["train_loss"][-1],
            "n_weights": cost.total(reference, "n_weights"),
            "n_active": cost.total(layers, "n_active"),
            "measured_density": cost.total(layers, "n_active") / cost.total(reference, "n_weights"),
            "macs": macs,
            "macs_ratio": macs / dense_macs,
            "training_macs": training_macs,
            "training_macs_ratio": training_macs / dense_training_macs,
            "n_steps": result.n_steps,
            "n_batches": result.n_batches,
        },
        "curves": result.curves,
        "layers": layers,
        "moves": method.moves if isinstance(method, Dynamic) else {},
        "seconds": result.seconds,
        "dataset": {"name": dataset.name, "source": dataset.source, "sha256": dataset.sha256},
    }


def forecast(run: Run) -> float:
    """MACs that a machine performs to train a run. Masks save none of them: zeros are multiplied as well."""
    options = OPTIONS | dict(run.options)
    dataset = _dataset(options["dataset"], options["image_size"], options["n_train"], "cpu")
    with torch.device("meta"):
        macs = cost.total(cost.layer_table(build(options, dataset), **_image(dataset)), "macs")
    n_samples = options["n_epochs"] * (len(dataset.train_labels) // options["batch_size"]) * options["batch_size"]
    return cost.training_macs(macs, macs, n_samples=n_samples)


# The runs of a plan share their images, and a worker trains many of them.
@functools.lru_cache(maxsize=1)
def _dataset(name: str, image_size: int | None, n_train: int | None, device: str) -> data.Dataset:
    return data.load(name, image_size=image_size, n_train=n_train, device=device)


_TRAINING_OPTIONS = (
    "n_epochs",
    "batch_size",
    "learning_rate",
    "schedule",
    "warmup_epochs",
    "momentum",
    "weight_decay",
    "label_smoothing",
    "augment",
    "eval_every",
)


def _generator(stream: str, seed: int) -> torch.Generator:
    # Streams of one seed must not be the same numbers, and hash() differs between processes.
    return torch.Generator().manual_seed(zlib.crc32(f"{stream} {seed}".encode()))


def _image(dataset: data.Dataset) -> dict[str, int]:
    return {"in_channels": dataset.channels, "image_size": dataset.image_size}


def _build_method(
    options: dict[str, Option], model: torch.nn.Module, dataset: data.Dataset, *, seed: int
) -> Static | None:
    method = METHODS[options["method"]]
    if method is None:
        return None
    masks = initial_masks(
        model,
        density=options["density"],
        distribution=options["distribution"],
        generator=_generator("masks", seed),
    )
    if not issubclass(method, Dynamic):
        return method(model, masks)
    n_steps = options["n_epochs"] * (len(dataset.train_labels) // options["batch_size"])
    return method(
        model,
        masks,
        initial_drop_fraction=options["drop_fraction"],
        update_every=options["update_every"],
        stop_update_step=round(options["stop_update"] * n_steps),
        decay=options["decay"],
        generator=_generator("moves", seed),
    )


# A small dense network's width is found to this fraction of the full one's.
_WIDTH_STEPS = 256
_MATCHED = {"small_dense": "n_active", "small_dense_macs": "macs"}


def build(options: dict[str, Option], dataset: data.Dataset) -> torch.nn.Module:
    """The network of a run at its initialisation, on the CPU; a small dense one as wide as its rival's size allows."""
    share = 1.0
    if options["method"] in _MATCHED:
        share = _matching_share(options, dataset, key=_MATCHED[options["method"]])
    return _model(options, dataset, options["width"] * share)


def _model(options: dict[str, Option], dataset: data.Dataset, width: float) -> torch.nn.Module:
    return build_model(
        options["model"],
        num_classes=dataset.num_classes,
        in_channels=dataset.channels,
        image_size=dataset.image_size,
        width=width,
    )


def _matching_share(options: dict[str, Option], dataset: data.Dataset, *, key: str) -> float:
    """Share of the width at which a dense network has as many weights, or MACs, as the sparse one."""

    with torch.device("meta"):  # shapes without numbers, and no random number drawn
        reference = _model(options, dataset, options["width"])
    n_active = active_counts(reference, density=options["density"], distribution=options["distribution"])
    target = cost.total(cost.layer_table(reference, n_active=n_active, **_image(dataset)), key)

    def size(k: int) -> int:
        with torch.device("meta"):
            model = _model(options, dataset, options["width"] * k / _WIDTH_STEPS)
        return cost.total(cost.layer_table(model, **_image(dataset)), key)

    k = bisect.bisect_left(range(_WIDTH_STEPS + 1), target, lo=1, key=size)  # the first that reaches the target
    return min((max(k - 1, 1), k), key=lambda k: abs(size(k) - target)) / _WIDTH_STEPS
