"""Rethinking the value of pruning: how one run of `03_rethinking` is executed. `rethinking_plan` says what is run."""

import functools
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from prunelab import cost
from prunelab.channels.filters import TARGETS
from prunelab.channels.selection import Selection
from prunelab.channels.surgery import without
from prunelab.channels.trace import trace
from prunelab.data import Dataset
from prunelab.density import check_density
from prunelab.forecast import Workload
from prunelab.latency import n_bytes
from prunelab.methods.static import Static
from prunelab.models import TORCHVISION_MODELS, build_model
from prunelab.precision import best_precision
from prunelab.recipes.common import (
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
from prunelab.recipes.rethinking_build import (
    PREPARATIONS,
    PRUNINGS,
    WEIGHT_PRUNINGS,
    Pruned,
    changed,
    from_scratch,
    large_of,
    patterns_of,
    preparation_of,
)
from prunelab.recipes.rethinking_plan import NOTEBOOK, OPTIONS, SCRATCH, SEEDS, STARTS, TRAININGS, experiments, plan
from prunelab.runs import Run
from prunelab.training import Result, evaluate, train

__all__ = ["NOTEBOOK", "OPTIONS", "PROFILES", "SEEDS", "execute", "experiments", "forecast", "plan", "rebuild"]

_TRAINING_OPTIONS = ("batch_size", "optimizer", "momentum", "weight_decay", "augment", "eval_every")


def execute(
    run: Run,
    *,
    device: str,
    parents: Sequence[dict] = (),
    checkpoint: Path | None = None,
    report: Callable[[float], None] = lambda share: None,
) -> dict:
    """Trains one run: a large network, or a pruned one in one of three ways.

    Args:
        run: One of a plan's.
        device: Where to train, "cpu" or "cuda".
        parents: The `state` of each of the run's parents: the network that is pruned; of a guided design also the one
            that the design is taken from.
        checkpoint: File for the state of the unfinished run.
        report: Called now and then with the share of training done.
    Returns:
        The record's `status`, `metrics`, `curves` and `layers`; `widths`, `removed` and `image`, by which `rebuild`
        makes the network again; `patterns` of single weights; `seconds`, `precision` and `dataset`; and `state`, from
        which children start.
    Raises:
        ValueError: An option that names nothing, a density outside (0, 1], or a parent that does not fit.
    """
    options = OPTIONS | dict(run.options)
    _check(options, n_parents=len(parents))
    dataset = dataset_of(options, device)
    torch.manual_seed(run.seed)
    large = large_of(options, dataset, parents, seed=run.seed)
    reference = cost.layer_table(large.model, **image_of(dataset))
    pruned, model, metrics = Pruned(large.model), large.model, {}
    is_large, inherits = (options["training"] == training for training in ("dense", "fine_tune"))
    if not is_large:
        pruned = PRUNINGS[options["pruning"]](large)
        torch.manual_seed(stream_seed("scratch", run.seed))  # the same values, whatever was drawn to find the structure
        model = pruned.shrunken(pruned.model, dataset) if inherits else from_scratch(pruned, large)
    n_active = {name: int(mask.sum()) for name, mask in pruned.masks.items()}
    layers = cost.layer_table(model, n_active=n_active, **image_of(dataset))
    n_epochs = _n_epochs(options, cost.total(layers, "macs") / cost.total(reference, "macs"))
    start = parents[0]["start"] if options["start"] == "ticket" else copy_of(model.state_dict())
    method = Static(model, pruned.masks) if pruned.masks else None
    if is_large:
        method = preparation_of(large, steps_per_epoch=dataset.n_train // options["batch_size"])
    if inherits:
        _, metrics["inherited_accuracy"] = evaluate(model, dataset)
    precision = best_precision(device, options["model"])
    if isinstance(method, Selection) and precision == "fp16":  # in which its factors cannot be trained
        precision = "fp32"
    result = train(
        model,
        dataset,
        method=method,
        precision=precision,
        n_epochs=n_epochs,
        learning_rate=options["fine_tune_rate" if inherits else "learning_rate"],
        schedule="constant" if inherits else options["schedule"],
        warmup_epochs=0,
        label_smoothing=0.0,
        generator=generator_of("images", run.seed),
        checkpoint=checkpoint,
        report=report,
        **{name: options[name] for name in _TRAINING_OPTIONS},
    )

    state = {"start": start, "masks": pruned.masks, "options": options, "num_classes": dataset.num_classes}
    if isinstance(method, Selection):
        method.fold()
        state["factors"] = copy_of(method.factors)
    state["model"] = copy_of(model.state_dict())
    costs = _account(options, dataset, layers, result, reference=reference) | {"n_bytes": n_bytes(model)}
    spent_before = sum(parent["total_training_macs_ratio"] for parent in parents) if inherits else 0.0
    state["total_training_macs_ratio"] = costs["training_macs_ratio"] + spent_before
    return {
        "status": "diverged" if result.diverged else "finished",
        "metrics": metrics
        | costs
        | {name: result.curves[name][-1] for name in ("test_accuracy", "test_loss", "train_loss")}
        | {"n_epochs_trained": n_epochs, "total_training_macs_ratio": state["total_training_macs_ratio"]},
        "curves": result.curves,
        "layers": layers,
        "widths": trace(model, **image_of(dataset)).widths,
        "removed": list(pruned.removed),
        "image": image_of(dataset) | {"num_classes": dataset.num_classes},
        "patterns": patterns_of(large, pruned.masks) if pruned.masks else {},
        "seconds": result.seconds,
        "precision": precision,
        "dataset": source_of(dataset),
        "state": state,
    }


def rebuild(record: Mapping) -> nn.Module:
    """The network of a record, with other values: to be timed, or looked at."""
    options, image = record["options"], dict(record["image"])
    build = functools.partial(build_model, options["model"], width=options["width"], **image)
    del image["num_classes"]
    # A block that was removed has no widths, and is built only to be removed again.
    return without(build(widths=changed(record["widths"], trace(build(), **image).widths)), record["removed"])


def forecast(run: Run) -> Workload:
    """What a machine will do for a run. The cost of a structure that training finds is guessed from its density."""
    options = OPTIONS | dict(run.options)
    dataset = dataset_of(options, "cpu")
    is_narrower = options["training"] != "dense" and options["pruning"] not in WEIGHT_PRUNINGS
    share = (_mean_share(options["target"]) if options["target"] else options["density"]) if is_narrower else 1.0
    width = options["width"] * (1.0 if options["model"] in TORCHVISION_MODELS else share)
    macs, full_macs = (cost.total(layers_of(options, dataset, at), "macs") for at in (width, options["width"]))
    saved = macs / full_macs if is_narrower else options["density"]
    n_epochs = _n_epochs(options, saved)
    return Workload(
        num_classes=dataset.num_classes,
        width=width,
        macs=macs,
        n_steps=n_epochs * (dataset.n_train // options["batch_size"]),
        n_evaluated=dataset.n_test * math.ceil(n_epochs / options["eval_every"]),
        **image_of(dataset),
        **{name: options[name] for name in ("model", "optimizer", "batch_size")},
    )


def _check(options: Options, *, n_parents: int) -> None:
    check_density(options["density"])
    is_large = options["training"] == "dense"
    prunings = (None, *PREPARATIONS) if is_large else tuple(PRUNINGS)
    for name, allowed in (("training", TRAININGS), ("start", STARTS), ("pruning", prunings)):
        if options[name] not in allowed:
            raise ValueError(f"unknown {name} {options[name]!r}; there are {', '.join(map(str, allowed))}")
    if options["target"] is not None and options["target"] not in TARGETS:
        raise ValueError(f"unknown target {options['target']!r}; there are {', '.join(TARGETS)}")
    wanted = 0 if is_large or options["pruning"] == "predefined" else 1 + options["pruning"].startswith("guided")
    if n_parents != wanted:
        raise ValueError(
            f"training={options['training']} pruning={options['pruning']} needs {wanted} parents, got {n_parents}"
        )
    if options["start"] == "ticket" and options["training"] not in SCRATCH:
        raise ValueError(f"a ticket is trained from scratch: {', '.join(SCRATCH)}; got training={options['training']}")
    if options["pruning"] == "predefined" and (options["training"] == "fine_tune" or options["start"] == "ticket"):
        raise ValueError("a predefined structure has no values to inherit; prune a trained network, by l1 for example")


def _n_epochs(options: Options, macs_ratio: float) -> int:
    """Epochs of a training; from scratch with the budget of the large network's, as many more as they are cheaper."""
    if options["training"] == "fine_tune":
        return options["fine_tune_epochs"]
    if options["training"] == "scratch_b":
        return min(int(options["n_epochs"] / macs_ratio), options["max_epochs"] or sys.maxsize)
    return options["n_epochs"]


def _account(
    options: Options, dataset: Dataset, layers: list[dict], result: Result, *, reference: list[dict]
) -> dict[str, float]:
    """Costs of a network by its layer table, beside those of the large one."""
    macs, dense_macs = (cost.total(table, "macs") for table in (layers, reference))
    n_samples = result.n_batches * options["batch_size"]
    ordinary = options["n_epochs"] * (dataset.n_train // options["batch_size"]) * options["batch_size"]
    training_macs = cost.training_macs(macs, macs, n_samples=n_samples)
    return {
        "n_weights": cost.total(layers, "n_weights"),
        "n_active": cost.total(layers, "n_active"),
        "measured_density": cost.total(layers, "n_active") / cost.total(reference, "n_weights"),
        "macs": macs,
        "macs_ratio": macs / dense_macs,
        "training_macs": training_macs,
        "training_macs_ratio": training_macs / cost.training_macs(dense_macs, dense_macs, n_samples=ordinary),
        "n_steps": result.n_steps,
    }


def _mean_share(target: str) -> float:
    """About the share of channels that a predefined target keeps."""
    return statistics.mean(TARGETS[target].densities)
