"""RigL and its rivals: how one run of `01_rigl` is executed. What is run stands in `rigl_plan`."""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from prunelab import cost, landscape, units
from prunelab.data import Dataset
from prunelab.density import check_density
from prunelab.forecast import Workload
from prunelab.masks import prunable_weights
from prunelab.methods import METHODS, check_method
from prunelab.methods.dynamic import Dynamic
from prunelab.methods.gradual import GradualPruning
from prunelab.methods.lottery import Ticket
from prunelab.methods.snip import Snip
from prunelab.methods.static import Static
from prunelab.precision import best_precision
from prunelab.recipes.common import (
    Masks,
    Options,
    copy_of,
    dataset_of,
    generator_of,
    image_of,
    layers_of,
    source_of,
    stream_seed,
)
from prunelab.recipes.plans import PROFILES
from prunelab.recipes.rigl_build import STARTS, build, build_method, n_epochs, n_steps, width_of
from prunelab.recipes.rigl_plan import NOTEBOOK, OPTIONS, PATHS, SEEDS, experiments, plan
from prunelab.runs import Run
from prunelab.training import Result, train

__all__ = ["NOTEBOOK", "OPTIONS", "PROFILES", "SEEDS", "build", "execute", "experiments", "forecast", "plan"]


def execute(
    run: Run,
    *,
    device: str,
    parents: Sequence[dict] = (),
    checkpoint: Path | None = None,
    report: Callable[[float], None] = lambda share: None,
    grow_score: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> dict:
    """Trains one run.

    Args:
        run: One of a plan's.
        device: Where to train, "cpu" or "cuda".
        parents: The `state` of each of the run's parents.
        checkpoint: File for the state of the unfinished run.
        report: Called now and then with the share of training done.
        grow_score: The reader's own criterion in place of RigL's; see `methods.dynamic.CustomGrowth`.
    Returns:
        The record's `status`, `metrics`, `curves`, `layers` and `moves`; `units` of a multi-layer perceptron;
        `seconds`, `precision` and `dataset`; and `state`, from which children start: `model`, `masks`, and `start`, the
        values before training (or after `rewind_epochs` of it).
    Raises:
        ValueError: An option that names nothing, a density outside (0, 1], or a parent that does not fit.
    """
    options = OPTIONS | dict(run.options)
    _check(options, n_parents=len(parents))
    if grow_score is not None and options["method"] != "rigl":
        raise ValueError(f"grow_score takes the place of RigL's; method {options['method']!r} does not grow by it")
    dataset = dataset_of(options, device)
    if options["path"]:
        return _follow_path(options, dataset, parents, seed=run.seed)

    # Initialisation, and dropout where there is any.
    torch.manual_seed(run.seed if options["start"] != "reinitialised" else stream_seed("reinitialised", run.seed))
    model = build(options, dataset)
    masks = STARTS[options["start"]](options, model, parents, run.seed)
    model = model.to(device, memory_format=torch.channels_last)
    precision = best_precision(device, options["model"])
    start = copy_of(model.state_dict())
    method = build_method(options, model, masks, dataset, seed=run.seed, grow_score=grow_score)
    result = train(
        model,
        dataset,
        method=method,
        precision=precision,
        n_epochs=n_epochs(options),
        warmup_epochs=round(options["warmup_epochs"] * options["train_multiplier"]),
        generator=generator_of("images", run.seed),
        checkpoint=checkpoint,
        report=report,
        **{name: options[name] for name in _TRAINING_OPTIONS},
    )

    outcome = _outcome(options, dataset, model, method, result, parents) | {"precision": precision}
    spent = outcome["metrics"].get("total_training_macs_ratio", outcome["metrics"]["training_macs_ratio"])
    outcome["state"] = {
        "model": copy_of(model.state_dict()),
        "masks": method.masks if method else None,
        "start": method.start if isinstance(method, Ticket) else start,
        "total_training_macs_ratio": spent,
    }
    return outcome


def forecast(run: Run) -> Workload:
    """What a machine will do for a run."""
    options = OPTIONS | dict(run.options)
    dataset = dataset_of(options, "cpu")
    width, length = width_of(options, dataset), n_steps(options, dataset)
    n_evaluated = dataset.n_test * math.ceil(n_epochs(options) / options["eval_every"])
    if options["path"]:  # a straight line is not trained; every path is tested at its positions
        length = length if PATHS[options["path"]][0] else 0
        n_evaluated = landscape.N_POSITIONS * min(landscape.N_IMAGES, dataset.n_train)
    return Workload(
        num_classes=dataset.num_classes,
        width=width,
        macs=cost.total(layers_of(options, dataset, width), "macs"),
        n_steps=length,
        n_evaluated=n_evaluated,
        **image_of(dataset),
        **{name: options[name] for name in ("model", "optimizer", "batch_size")},
    )


def _check(options: Options, *, n_parents: int) -> None:
    check_method(options["method"])
    check_density(options["density"])
    for name, allowed in (("start", tuple(STARTS)), ("equal", ("weights", "macs")), ("path", (None, *PATHS))):
        if options[name] not in allowed:
            raise ValueError(f"unknown {name} {options[name]!r}; there are {', '.join(map(str, allowed))}")
    if n_epochs(options) < 1:
        raise ValueError(f"{options['n_epochs']} epochs times {options['train_multiplier']:g} leave no training")
    wanted = 2 if options["path"] else int(options["start"] != "fresh")
    if n_parents != wanted:
        raise ValueError(f"start={options['start']} path={options['path']} needs {wanted} parents, got {n_parents}")
    if options["start"] != "fresh" and METHODS[options["method"]] in (None, Snip, GradualPruning):
        raise ValueError(f"{options['method']} chooses its own mask and takes none from a parent; use start='fresh'")
    if options["method"] == "lottery" and options["start"] == "fresh" and options["density"] < 1.0:
        raise ValueError("the first round of a lottery is dense: density 1.0; later rounds have a parent")


_TRAINING_OPTIONS = (
    "batch_size",
    "optimizer",
    "learning_rate",
    "schedule",
    "momentum",
    "weight_decay",
    "label_smoothing",
    "augment",
    "eval_every",
)


def _outcome(
    options: Options,
    dataset: Dataset,
    model: nn.Module,
    method: Static | None,
    result: Result,
    parents: Sequence[dict],
) -> dict:
    """What the record says of a finished training."""
    layers, metrics = _account(options, dataset, model, method, result)
    if parents:
        spent_before = sum(parent["total_training_macs_ratio"] for parent in parents)
        metrics["total_training_macs_ratio"] = metrics["training_macs_ratio"] + spent_before
    outcome = {
        "status": "diverged" if result.diverged else "finished",
        "metrics": metrics,
        "curves": result.curves,
        "layers": layers,
        "moves": method.moves if isinstance(method, Dynamic | GradualPruning) else {},
        "seconds": result.seconds,
        "dataset": source_of(dataset),
    }
    if options["model"] == "lenet_300_100":
        outcome["units"] = _units(model, method.masks if method else None)
        metrics |= units.input_shares(outcome["units"]["input_connections"], image_size=dataset.image_size)
    return outcome


def _account(
    options: Options, dataset: Dataset, model: nn.Module, method: Static | None, result: Result
) -> tuple[list[dict], dict]:
    """Layer table and metrics, measured on the final network."""
    reference = layers_of(options, dataset, options["width"])
    own = cost.layer_table(model, **image_of(dataset))
    n_active = {name: int(mask.sum()) for name, mask in method.masks.items()} if method else {}
    layers = cost.layer_table(model, n_active=n_active, **image_of(dataset))
    n_weights, macs, dense_macs = (
        cost.total(table, key) for table, key in ((reference, "n_weights"), (layers, "macs"), (reference, "macs"))
    )
    training_macs = cost.training_macs(
        cost.total(own, "macs"),
        _mean_macs(own, method, result.n_steps) if isinstance(method, GradualPruning) else macs,
        n_samples=result.n_batches * options["batch_size"],
        n_dense_gradient_samples=method.n_dense_gradients * options["batch_size"] if method else 0,
    )
    # Longer training is measured against dense training of ordinary length.
    ordinary_length = n_steps(options | {"train_multiplier": 1.0}, dataset)
    dense_training_macs = cost.training_macs(dense_macs, dense_macs, n_samples=ordinary_length * options["batch_size"])
    return layers, {
        "test_accuracy": result.curves["test_accuracy"][-1],
        "test_loss": result.curves["test_loss"][-1],
        "train_loss": result.curves["train_loss"][-1],
        "n_weights": n_weights,
        "n_active": cost.total(layers, "n_active"),
        "measured_density": cost.total(layers, "n_active") / n_weights,
        "macs": macs,
        "macs_ratio": macs / dense_macs,
        "training_macs": training_macs,
        "training_macs_ratio": training_macs / dense_training_macs,
        "n_steps": result.n_steps,
        "n_batches": result.n_batches,
    }


def _mean_macs(dense: list[dict], method: GradualPruning, n_steps: int) -> float:
    """MACs of a forward pass, averaged over a training in which layers lose weights now and then."""
    per_weight = {layer["name"]: layer["macs"] / layer["n_weights"] for layer in dense}
    dense_macs = cost.total(dense, "macs")
    stops = [*method.moves["step"], n_steps]
    total = dense_macs * stops[0]
    for counts, step, stop in zip(method.moves["n_active"], stops[:-1], stops[1:], strict=True):
        lost = sum(
            (weight.numel() - n) * per_weight[name]
            for (name, weight), n in zip(method.weights.items(), counts, strict=True)
        )
        total += (dense_macs - lost) * (stop - step)
    return total / n_steps


def _units(model: nn.Module, masks: Masks | None) -> dict:
    """Of a perceptron: units that survive, what it takes without the others, and connections of each input."""
    weights = prunable_weights(model)
    full = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    layers = [mask.cpu() for mask in (full | (masks or {})).values()]
    return {
        "surviving": [int(alive.sum()) for alive in units.surviving(layers)],
        "input_connections": layers[0].sum(dim=0).tolist(),
        **units.compact_table(layers),
    }


def _follow_path(options: Options, dataset: Dataset, parents: Sequence[dict], *, seed: int) -> dict:
    """The training loss between two solutions, along a curve that is optimised first; the line needs no training."""
    started = time.monotonic()
    n_control_points, is_dense = PATHS[options["path"]]
    device = dataset.device
    model = build(options, dataset).to(device)
    ends = [parent["model"] for parent in parents]
    union = landscape.union_masks(*(parent["masks"] or {} for parent in parents))  # a dense one masks nothing
    control_points = []
    if n_control_points:
        control_points = landscape.fit_curve(
            model,
            *ends,
            dataset,
            n_control_points=n_control_points,
            masks=None if is_dense else {name: mask.to(device) for name, mask in union.items()},
            n_steps=n_steps(options, dataset),
            generator=generator_of("path", seed),
            **{name: options[name] for name in ("batch_size", "learning_rate", "momentum")},
        )
    positions, losses = landscape.loss_along(model, *ends, dataset, control_points=control_points)
    return {
        "status": "finished",
        "metrics": {"loss_barrier": landscape.barrier(losses), "train_loss": max(losses)},
        "curves": {"position": positions, "train_loss": losses},
        "layers": [],
        "moves": {},
        "seconds": time.monotonic() - started,
        "precision": "fp32",
        "dataset": source_of(dataset),
        "state": {},
    }
